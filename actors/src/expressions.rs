//! The function expressions that were called, so that their outputs can be computed again or ahead.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use datafusion::physical_expr::PhysicalExpr;
use foreshard_policy::ids::ExpressionId;

use crate::pins::Pins;
use crate::predicates::Predicates;

/// Most expressions that are remembered. Beyond it new ones are computed but neither stored nor
/// forecast.
pub const EXPRESSIONS_MAX: usize = 10_000;

/// From this share of unique arguments on, in thousandths, equal ones are not looked for every time.
const UNIQUE_PERMILLE_MAX: u64 = 900;

/// One batch in so many is then still looked at.
const SEARCH_EVERY: u64 = 16;

/// Evaluations from which on a measurement counts in full: with few, what comes once weighs too much.
const ROWS_OF_FULL_WEIGHT: u64 = 256;

/// Nanoseconds that weigh as much as one evaluation: a millisecond is enough for full weight.
const NS_PER_ROW_OF_WEIGHT: u64 = 4_000;

/// Nanoseconds a row is taken to cost before anything was measured.
const NS_PER_ROW_UNKNOWN: u64 = 1_000;

/// One function expression over the columns of one table.
#[derive(Debug)]
pub struct FunctionExpression {
    /// Fingerprint; names the stored outputs together with a segment.
    pub id: ExpressionId,
    /// Name of the outermost function.
    pub function: Arc<str>,
    /// Names of all functions in it, the outermost first.
    pub functions: Vec<Arc<str>>,
    /// Table whose columns it reads.
    pub table: Arc<str>,
    /// How it was written, for people.
    pub text: String,
    /// The expression over the table's schema.
    pub expr: Arc<dyn PhysicalExpr>,
    /// Columns of the table that it reads, ascending.
    pub columns: Vec<usize>,
    ns_per_row: AtomicU64,
    /// Share of rows whose arguments were like no other's, in thousandths (moving average).
    unique_permille: AtomicU64,
    searches: AtomicU64,
}

impl FunctionExpression {
    /// Describes an expression whose cost is not known yet.
    #[must_use]
    pub fn new(
        id: ExpressionId,
        functions: Vec<Arc<str>>,
        table: Arc<str>,
        expr: Arc<dyn PhysicalExpr>,
    ) -> Self {
        let mut columns: Vec<usize> = datafusion::physical_expr::utils::collect_columns(&expr)
            .iter()
            .map(datafusion::physical_expr::expressions::Column::index)
            .collect();
        columns.sort_unstable();
        columns.dedup();
        Self {
            id,
            function: functions.first().cloned().unwrap_or_else(|| "".into()),
            functions,
            table,
            text: expr.to_string(),
            expr,
            columns,
            ns_per_row: AtomicU64::new(0),
            unique_permille: AtomicU64::new(0),
            searches: AtomicU64::new(0),
        }
    }

    /// Nanoseconds that one row costs, as measured so far (moving average): less than an evaluation
    /// where rows share their arguments.
    #[must_use]
    pub fn ns_per_row(&self) -> u64 {
        let share = match self.unique_permille.load(Ordering::Relaxed) {
            0 => 1_000,
            seen => seen,
        };
        (self.ns_per_evaluation() * share / 1_000).max(1)
    }

    /// Nanoseconds that one evaluation takes, as measured so far (moving average).
    #[must_use]
    pub fn ns_per_evaluation(&self) -> u64 {
        match self.ns_per_row.load(Ordering::Relaxed) {
            0 => NS_PER_ROW_UNKNOWN,
            measured => measured,
        }
    }

    /// Whether the cost of a row was measured yet.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        self.ns_per_row.load(Ordering::Relaxed) > 0
    }

    /// Takes a measurement of `rows` evaluations that took `ns` nanoseconds into the average: a quarter of
    /// it if they are many or took long, less otherwise.
    pub fn measured(&self, rows: u64, ns: u64) {
        if rows == 0 {
            return;
        }
        let now = (ns / rows).max(1);
        let before = self.ns_per_row.load(Ordering::Relaxed);
        let weight = rows.max(ns / NS_PER_ROW_OF_WEIGHT).min(ROWS_OF_FULL_WEIGHT);
        let whole = 4 * ROWS_OF_FULL_WEIGHT;
        let mean = match before {
            0 => now,
            _ => (before.saturating_mul(whole - weight) + now.saturating_mul(weight)) / whole,
        };
        self.ns_per_row.store(mean.max(1), Ordering::Relaxed);
    }

    /// Whether rows with equal arguments are worth looking for: always while some were found lately,
    /// else now and then.
    #[must_use]
    pub fn may_repeat_arguments(&self) -> bool {
        self.unique_permille.load(Ordering::Relaxed) < UNIQUE_PERMILLE_MAX
            || self.searches.fetch_add(1, Ordering::Relaxed).is_multiple_of(SEARCH_EVERY)
    }

    /// Takes into the average that `rows` rows had `distinct` different arguments.
    pub fn saw_arguments(&self, distinct: u64, rows: u64) {
        let now = distinct * 1_000 / rows.max(1);
        let before = self.unique_permille.load(Ordering::Relaxed);
        let mean = if before == 0 { now } else { before - before / 4 + now / 4 };
        self.unique_permille.store(mean.max(1), Ordering::Relaxed);
    }
}

/// All expressions known to one process.
#[derive(Default)]
pub struct Expressions {
    /// What was measured of predicates.
    pub predicates: Predicates,
    /// What is pinned.
    pub pins: Arc<Pins>,
    known: RwLock<HashMap<ExpressionId, Arc<FunctionExpression>>>,
}

impl fmt::Debug for Expressions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expressions({})", self.list().len())
    }
}

impl Expressions {
    /// The expression with this fingerprint, if it is known.
    #[must_use]
    pub fn get(&self, id: ExpressionId) -> Option<Arc<FunctionExpression>> {
        self.known.read().ok()?.get(&id).cloned()
    }

    /// Remembers an expression and returns the one that is shared from now on; `None` when
    /// [`EXPRESSIONS_MAX`] are known already.
    pub fn remember(&self, expression: FunctionExpression) -> Option<Arc<FunctionExpression>> {
        let mut known = self.known.write().ok()?;
        if let Some(there) = known.get(&expression.id) {
            return Some(there.clone());
        }
        if known.len() >= EXPRESSIONS_MAX {
            return None;
        }
        let shared = Arc::new(expression);
        known.insert(shared.id, shared.clone());
        Some(shared)
    }

    /// Forgets every expression that calls `function` (it was redefined) or reads `table` (it was
    /// dropped), and that it was pinned. Returns the forgotten ones.
    pub fn forget(
        &self,
        gone: impl Fn(&FunctionExpression) -> bool,
    ) -> Vec<Arc<FunctionExpression>> {
        let Ok(mut known) = self.known.write() else { return vec![] };
        let forgotten: Vec<_> = known.extract_if(|_, it| gone(it)).map(|(_, it)| it).collect();
        drop(known);
        if !forgotten.is_empty() {
            self.pins.change(|pinned| {
                let is_kept = |id: &ExpressionId| forgotten.iter().all(|it| it.id != *id);
                pinned.expressions.retain(is_kept);
            });
        }
        forgotten
    }

    /// Every expression, in the order of their ids.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<FunctionExpression>> {
        let Ok(known) = self.known.read() else { return vec![] };
        let mut list: Vec<_> = known.values().cloned().collect();
        list.sort_by_key(|expression| expression.id);
        list
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_expr::expressions::Column;

    use super::*;

    fn expression() -> FunctionExpression {
        let column = Arc::new(Column::new("x", 0));
        FunctionExpression::new(ExpressionId(1), vec!["f".into()], "t".into(), column)
    }

    #[test]
    fn a_few_quick_rows_do_not_upset_what_many_rows_told() {
        let expression = expression();
        expression.measured(10_000, 10_000 * 500);
        expression.measured(4, 4 * 5_000);
        assert!((500..600).contains(&expression.ns_per_row()), "{}", expression.ns_per_row());
        for _ in 0..20 {
            expression.measured(10_000, 10_000 * 50_000);
        }
        assert!(expression.ns_per_row() > 45_000, "it got dear: {}", expression.ns_per_row());
    }

    #[test]
    fn a_first_call_that_loaded_a_model_is_soon_forgotten() {
        let expression = expression();
        expression.measured(32, 1_000_000_000);
        for _ in 0..30 {
            expression.measured(10, 10 * 2_000_000);
        }
        assert!(expression.ns_per_row() < 2_100_000, "{}", expression.ns_per_row());
    }

    #[test]
    fn a_row_costs_less_than_an_evaluation_where_rows_share_their_arguments() {
        let expression = expression();
        expression.measured(10_000, 10_000 * 40_000);
        expression.saw_arguments(25, 100);
        assert_eq!((expression.ns_per_evaluation(), expression.ns_per_row()), (40_000, 10_000));
    }
}
