//! Sorts the input of a window by the very expressions that the window partitions by.
//!
//! Before: `BoundedWindowAggExec[PARTITION BY b.id]` over `SortExec[a.id]`, which is as good where `a.id`
//! and `b.id` are known to be equal. After: the same over `SortExec[b.id]`.
//!
//! What makes it necessary: between the join that made them equal and the sort there may be a shuffle
//! to other nodes, and what arrives is not known to be equal any more. The window would then fail with
//! "Expects PARTITION BY expression to be ordered". So it is where the window partitions by what is known
//! to be constant, and is not sorted at all: then that becomes the first key of the sort, or of a new one.
//! The order of the rows stays the same.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlanProperties, ReplaceChildrenOptions,
};

use crate::query::mend::Plan;

/// What a window over a sort that says less than it needs becomes.
pub(super) fn mended(node: &Plan) -> Result<Option<Plan>> {
    match partition_keys(node) {
        Some(wanted) => below(node, &wanted),
        None => Ok(None),
    }
}

/// What a window partitions its rows by.
fn partition_keys(plan: &Plan) -> Option<Vec<Arc<dyn PhysicalExpr>>> {
    let bounded =
        plan.downcast_ref::<BoundedWindowAggExec>().map(BoundedWindowAggExec::window_expr);
    let windows =
        bounded.or_else(|| plan.downcast_ref::<WindowAggExec>().map(WindowAggExec::window_expr));
    Some(windows?.first()?.partition_by().to_vec())
}

/// `window` over the sort below it, and below windows that share it, by `wanted`; none if that is what
/// it is sorted by already.
fn below(window: &Plan, wanted: &[Arc<dyn PhysicalExpr>]) -> Result<Option<Plan>> {
    let input = window.children()[0];
    let sorted = if let Some(sort) = input.downcast_ref::<SortExec>() {
        let written = sorted_by(sort, wanted);
        let sort = written.as_ref().and_then(|plan| plan.downcast_ref()).unwrap_or(sort);
        let keys = sort.expr().to_vec();
        with_constants(sort.input(), &keys, wanted, sort.fetch()).or(written)
    } else if partition_keys(input).is_some() {
        below(input, wanted)?
    } else {
        let keys = input.output_ordering().map(|keys| keys.to_vec()).unwrap_or_default();
        with_constants(input, &keys, wanted, None)
    };
    let Some(sorted) = sorted else { return Ok(None) };
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(window).replace_children(vec![sorted], options).map(Some)
}

/// `input` sorted by those of `wanted` that are constant and not among `keys`, and then by `keys`; none
/// if there are no such.
fn with_constants(
    input: &Plan,
    keys: &[PhysicalSortExpr],
    wanted: &[Arc<dyn PhysicalExpr>],
    fetch: Option<usize>,
) -> Option<Plan> {
    let known = input.equivalence_properties();
    let is_missing = |expr: &&Arc<dyn PhysicalExpr>| {
        known.is_expr_constant(expr).is_some() && !keys.iter().any(|key| key.expr.eq(*expr))
    };
    let constants = wanted.iter().filter(is_missing).cloned();
    let mut all: Vec<_> = constants.map(PhysicalSortExpr::new_default).collect();
    if all.is_empty() {
        return None;
    }
    all.extend_from_slice(keys);
    let is_spread = input.output_partitioning().partition_count() > 1;
    let sorted = SortExec::new(LexOrdering::new(all)?, Arc::clone(input))
        .with_preserve_partitioning(is_spread)
        .with_fetch(fetch);
    Some(Arc::new(sorted))
}

/// The sort with its keys written as `wanted` where they are equal to one of them.
fn sorted_by(sort: &SortExec, wanted: &[Arc<dyn PhysicalExpr>]) -> Option<Plan> {
    let equal = sort.input().equivalence_properties().eq_group();
    let mut keys = sort.expr().to_vec();
    let mut is_changed = false;
    for expr in wanted {
        if keys.iter().any(|key| key.expr.eq(expr)) {
            continue;
        }
        let normal = equal.normalize_expr(Arc::clone(expr));
        let same = keys.iter_mut().find(|key| {
            !wanted.contains(&key.expr) && equal.normalize_expr(Arc::clone(&key.expr)).eq(&normal)
        });
        if let Some(key) = same {
            key.expr = Arc::clone(expr);
            is_changed = true;
        }
    }
    let keys = LexOrdering::new(keys).filter(|_| is_changed)?;
    let sorted = SortExec::new(keys, Arc::clone(sort.input()))
        .with_preserve_partitioning(sort.preserve_partitioning())
        .with_fetch(sort.fetch());
    Some(Arc::new(sorted))
}
