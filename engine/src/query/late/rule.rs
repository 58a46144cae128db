//! Puts a [`LateCallExec`] below projections, filters and aggregates that evaluate dear calls which the
//! scan could not take ([`crate::query::push_functions`]), because a join, a limit or something else that
//! drops or repeats rows lies in between.
//!
//! What it must not change: which call is evaluated on which row. So a call in a branch that not all rows
//! take stays, and the parts of a conjunction become filters one above the other, in their order.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_expr::utils::split_conjunction;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::projection::ProjectionExec;
use foreshard_udfs::registered;

use crate::query::functions::{Replacement, contains_storable, is_lazy, is_storable, substitute};
use crate::query::late::carry::carry;
use crate::query::late::{LateCall, LateCallExec};
use crate::query::options::SessionOptions;

/// A call that costs less per row is evaluated as plain DataFusion does: carrying costs something too.
const NS_PER_ROW_MIN: u64 = 2_000;

/// Rows from which on the measured cost of a function counts, and no longer that of its card.
const ROWS_MEASURED_MIN: u64 = 100;

type Plan = Arc<dyn ExecutionPlan>;
type Expr = Arc<dyn PhysicalExpr>;

/// The rule.
#[derive(Debug, Default)]
pub struct CallLate;

impl PhysicalOptimizerRule for CallLate {
    fn name(&self) -> &str {
        "call_late"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(&self, plan: Plan, config: &ConfigOptions) -> Result<Plan> {
        let options = config.extensions.get::<SessionOptions>();
        if !options.is_some_and(|options| options.use_outputs) {
            return Ok(plan);
        }
        plan.transform_up(|node| {
            let new = if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
                below_projection(projection)?
            } else if let Some(filter) = node.downcast_ref::<FilterExec>() {
                below_filter(filter)?
            } else if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
                below_aggregate(aggregate)?
            } else {
                None
            };
            Ok(new.map_or_else(|| Transformed::no(node), Transformed::yes))
        })
        .data()
    }
}

fn below_projection(projection: &ProjectionExec) -> Result<Option<Plan>> {
    let exprs = projection.expr().iter().map(|projected| &projected.expr);
    let Some((input, replaced)) = late(exprs, projection.input())? else { return Ok(None) };
    let columns = projection.expr().iter().map(|projected| {
        let expr = substitute(&projected.expr, &replaced)?;
        Ok(ProjectionExpr { expr, alias: projected.alias.clone() })
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(Some(Arc::new(ProjectionExec::try_new(columns, input)?)))
}

fn below_filter(filter: &FilterExec) -> Result<Option<Plan>> {
    let mut plan = Arc::clone(filter.input());
    let mut is_late = false;
    let width = plan.schema().fields().len();
    for predicate in split_conjunction(filter.predicate()) {
        let (input, predicate) = match late([predicate], &plan)? {
            Some((input, replaced)) => {
                is_late = true;
                (input, substitute(predicate, &replaced)?)
            }
            None => (plan, Arc::clone(predicate)),
        };
        let kept = Some((0..width).collect());
        plan = Arc::new(like(filter, predicate, input).apply_projection(kept)?.build()?);
    }
    if !is_late {
        return Ok(None);
    }
    // The last one gives what the filter gave.
    let Some(last) = plan.downcast_ref::<FilterExec>() else { return Ok(None) };
    let kept: Vec<usize> = match filter.projection().as_ref() {
        Some(projection) => projection.to_vec(),
        None => (0..width).collect(),
    };
    let (predicate, input) = (Arc::clone(last.predicate()), Arc::clone(last.input()));
    let last = like(filter, predicate, input).with_fetch(filter.fetch());
    Ok(Some(Arc::new(last.apply_projection(Some(kept))?.build()?)))
}

fn like(filter: &FilterExec, predicate: Expr, input: Plan) -> FilterExecBuilder {
    FilterExecBuilder::new(predicate, input)
        .with_default_selectivity(filter.default_selectivity())
        .with_batch_size(filter.batch_size())
}

fn below_aggregate(aggregate: &AggregateExec) -> Result<Option<Plan>> {
    let takes_rows = matches!(
        aggregate.mode(),
        AggregateMode::Partial | AggregateMode::Single | AggregateMode::SinglePartitioned
    );
    if !takes_rows || aggregate.limit_options().is_some() {
        return Ok(None);
    }
    let groups = aggregate.group_expr();
    let arguments: Vec<Expr> = aggregate
        .aggr_expr()
        .iter()
        .zip(aggregate.filter_expr())
        .filter(|(expr, filter)| filter.is_none() && expr.order_bys().is_empty())
        .flat_map(|(expr, _)| expr.expressions())
        .collect();
    let exprs = groups.expr().iter().map(|(expr, _)| expr);
    let filters = aggregate.filter_expr().iter().flatten();
    let Some((input, replaced)) = late(exprs.chain(&arguments).chain(filters), aggregate.input())?
    else {
        return Ok(None);
    };
    let new_groups = groups
        .expr()
        .iter()
        .map(|(expr, name)| Ok((substitute(expr, &replaced)?, name.clone())))
        .collect::<Result<Vec<_>>>()?;
    let mut aggregates = Vec::with_capacity(aggregate.aggr_expr().len());
    for expr in aggregate.aggr_expr() {
        let is_called = expr.expressions().iter().any(contains_storable);
        if !is_called || !expr.order_bys().is_empty() {
            aggregates.push(Arc::clone(expr));
            continue;
        }
        let arguments = expr.expressions();
        let arguments = arguments.iter().map(|argument| substitute(argument, &replaced));
        let arguments = arguments.collect::<Result<Vec<_>>>()?;
        match expr.with_new_expressions(arguments, vec![]) {
            Some(new) => aggregates.push(Arc::new(new)),
            None => return Ok(None),
        }
    }
    let filter = |filter: &Option<Expr>| {
        filter.as_ref().map(|filter| substitute(filter, &replaced)).transpose()
    };
    let filters = aggregate.filter_expr().iter().map(filter).collect::<Result<Vec<_>>>()?;
    let groups = PhysicalGroupBy::new(
        new_groups,
        groups.null_expr().to_vec(),
        groups.groups().to_vec(),
        groups.has_grouping_set(),
    );
    let (mode, schema) = (*aggregate.mode(), input.schema());
    let new = AggregateExec::try_new(mode, groups, aggregates, filters, input, schema)?;
    Ok(Some(Arc::new(new)))
}

/// `input` with a column for each call in `exprs` that is dear, evaluated on every row and carried by a
/// scan below; `None` if there is none.
fn late<'a>(
    exprs: impl IntoIterator<Item = &'a Expr>,
    input: &Plan,
) -> Result<Option<(Plan, Vec<Replacement>)>> {
    let mut plan = Arc::clone(input);
    let mut calls: Vec<LateCall> = vec![];
    for expr in exprs {
        expr.apply(|node| {
            if is_lazy(node) || calls.iter().any(|call| call.expr.eq(node)) {
                return Ok(TreeNodeRecursion::Jump);
            }
            if is_storable(node)
                && is_dear(node)?
                && let Some(below) = carry(&plan, node)?
            {
                let (carried, on_table, source) = (below.column, below.on_table, below.source);
                plan = below.plan;
                calls.push(LateCall { expr: Arc::clone(node), on_table, carried, source });
                return Ok(TreeNodeRecursion::Jump);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    if calls.is_empty() {
        return Ok(None);
    }
    let first = plan.schema().fields().len();
    let late = LateCallExec::try_new(plan, calls)?;
    let schema = late.schema();
    let replaced = (first..).zip(&late.calls).map(|(index, call)| {
        let column = Column::new(schema.field(index).name(), index);
        (Arc::clone(&call.expr), Arc::new(column) as Expr)
    });
    let replaced = replaced.collect();
    Ok(Some((Arc::new(late), replaced)))
}

/// Whether a call costs enough to be worth carrying: as measured, or as the card guesses.
fn is_dear(call: &Expr) -> Result<bool> {
    let mut ns = 0;
    call.apply(|node| {
        let function = node.downcast_ref::<ScalarFunctionExpr>();
        if let Some(function) = function.and_then(|call| registered(call.fun())) {
            let metered = function.metered();
            ns += match metered.rows {
                rows if rows >= ROWS_MEASURED_MIN => metered.ns / rows,
                _ => function.card().cost.typical_ns_per_row(),
            };
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(ns >= NS_PER_ROW_MIN)
}
