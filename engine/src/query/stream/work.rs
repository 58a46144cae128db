//! What a scan has to do: its expressions, and the calls in them.

use std::sync::Arc;

use arrow::datatypes::{Field, SchemaRef};
use datafusion::common::Result;
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan;
use foreshard_actors::expressions::{Expressions, FunctionExpression};
use foreshard_actors::predicates::PredicateStats;

use crate::query::functions::{all_calls, describe, eager_calls, fingerprint};
use crate::query::late::Carried;
use crate::query::options::SessionOptions;
use crate::query::scan::PartitionScanExec;

/// A function call of the scan.
#[derive(Debug)]
pub(super) struct Call {
    /// What it is called by in the plan.
    pub(super) expr: Arc<dyn PhysicalExpr>,
    /// What it is called by everywhere else.
    pub(super) expression: Arc<FunctionExpression>,
    /// Its type.
    pub(super) field: Arc<Field>,
}

/// An expression that is evaluated on batches: a predicate or an output.
#[derive(Debug)]
pub(super) struct Step {
    /// As in the plan.
    pub(super) expr: Arc<dyn PhysicalExpr>,
    /// The calls in it.
    pub(super) calls: Vec<usize>,
    /// Those of them that are evaluated on every row that the expression is evaluated on.
    pub(super) eager: Vec<usize>,
    /// Columns of the table in it.
    pub(super) columns: Vec<usize>,
    /// The call of which what is known is handed on, if the step is no more than that.
    pub(super) carried: Option<usize>,
}

/// The expressions of a scan.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) table: Arc<str>,
    pub(super) schema: SchemaRef,
    pub(super) output_schema: SchemaRef,
    /// Columns of the table that must be read, ascending.
    pub(super) columns: Vec<usize>,
    pub(super) calls: Vec<Call>,
    pub(super) filters: Vec<Step>,
    /// Dynamic filters that go ahead of the calls; none if there is no call to evaluate.
    pub(super) dynamic: Vec<Step>,
    /// What was measured of each filter.
    pub(super) stats: Vec<Arc<PredicateStats>>,
    pub(super) outputs: Vec<Step>,
    /// Whether a call stands in a branch that not all rows take.
    pub(super) has_lazy_calls: bool,
    /// Whether the session reads stored outputs and offers new ones.
    pub(super) uses_outputs: bool,
    /// Of so many look-ups one is checked.
    pub(super) check_every: u64,
    pub(super) is_passthrough: bool,
}

impl Work {
    pub(super) fn new(
        exec: &PartitionScanExec,
        settings: &Arc<ConfigOptions>,
        known: &Expressions,
    ) -> Result<Self> {
        let outputs: Vec<_> = exec.outputs.iter().map(|output| Arc::clone(&output.expr)).collect();
        let exprs = || exec.filters.iter().chain(&outputs);
        let found = all_calls(exprs())?;
        let calls = found
            .iter()
            .map(|expr| {
                let expression = Arc::new(describe(expr, &exec.table.name, settings)?);
                let field = expr.return_field(&exec.table.schema)?;
                Ok(Call { field, expression, expr: Arc::clone(expr) })
            })
            .collect::<Result<Vec<_>>>()?;
        let position = |call: &Arc<dyn PhysicalExpr>| found.iter().position(|it| it == call);
        let step = |expr: &Arc<dyn PhysicalExpr>| {
            let calls = all_calls([expr])?.iter().filter_map(position).collect();
            let eager = eager_calls([expr])?.iter().filter_map(position).collect();
            let columns = collect_columns(expr).iter().map(Column::index).collect();
            if let Some(carried) = expr.downcast_ref::<Carried>() {
                let (carried, expr) = (position(&carried.call), Arc::clone(expr));
                return Ok(Step { expr, calls: vec![], eager: vec![], columns: vec![], carried });
            }
            Ok(Step { expr: Arc::clone(expr), calls, eager, columns, carried: None })
        };
        let filters = exec.filters.iter().map(step).collect::<Result<Vec<_>>>()?;
        let stats = |filter: &Arc<dyn PhysicalExpr>| {
            let fingerprint = fingerprint(filter, &exec.table.name, settings)?;
            Ok(known.predicates.stats(fingerprint))
        };
        let stats = match filters.len() {
            0 | 1 => vec![Arc::default(); filters.len()],
            _ => exec.filters.iter().map(stats).collect::<Result<_>>()?,
        };
        let steps = outputs.iter().map(step).collect::<Result<Vec<_>>>()?;
        let has_calls = filters.iter().chain(&steps).any(|step: &Step| !step.calls.is_empty());
        let ahead = if has_calls { exec.dynamic.as_slice() } else { &[] };
        let dynamic = ahead.iter().map(step).collect::<Result<Vec<_>>>()?;
        let is_lazy = |step: &Step| step.calls.len() > step.eager.len();
        let mut columns: Vec<usize> = exprs()
            .filter(|expr| !expr.is::<Carried>())
            .chain(ahead)
            .flat_map(collect_columns)
            .map(|column| column.index())
            .collect();
        columns.sort_unstable();
        columns.dedup();
        let is_column = |expr: &Arc<dyn PhysicalExpr>| expr.is::<Column>();
        Ok(Self {
            table: Arc::clone(&exec.table.name),
            schema: Arc::clone(&exec.table.schema),
            output_schema: exec.schema(),
            columns,
            calls,
            uses_outputs: settings
                .extensions
                .get::<SessionOptions>()
                .is_none_or(|options| options.use_outputs),
            check_every: settings
                .extensions
                .get::<SessionOptions>()
                .map_or(0, |options| options.check_every),
            is_passthrough: exec.filters.is_empty() && outputs.iter().all(is_column),
            has_lazy_calls: filters.iter().chain(&steps).any(is_lazy),
            filters,
            dynamic,
            stats,
            outputs: steps,
        })
    }

    /// Which columns on the way through the scan are read by some of the filters, by a dynamic one or by an
    /// output.
    pub(super) fn read_by(&self, filters: &[usize]) -> Vec<bool> {
        let mut is_read = vec![false; self.position(self.calls.len()) + 1];
        let filters = filters.iter().map(|filter| &self.filters[*filter]);
        for step in filters.chain(&self.dynamic).chain(&self.outputs) {
            let calls = step.calls.iter().map(|call| self.position(*call));
            step.columns.iter().copied().chain(calls).for_each(|position| is_read[position] = true);
        }
        // The number of the row.
        is_read[self.position(self.calls.len())] = true;
        is_read
    }

    /// Position of a call's column behind those of the table.
    pub(super) fn position(&self, call: usize) -> usize {
        self.schema.fields().len() + call
    }

    /// The column with the number of the row.
    pub(super) fn row_column(&self) -> Column {
        Column::new("row", self.position(self.calls.len()))
    }
}
