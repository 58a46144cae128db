//! Sorts each partition by all keys that the partitions are then merged by.
//!
//! Before: `SortPreservingMergeExec[a, b]` over `SortExec[b]`, or over a join that keeps the order of one.
//! After: the same over `SortExec[a, b]`.
//!
//! What makes it necessary: DataFusion leaves a key out of a sort where it takes it for constant. It takes
//! for constant what is not: `f(x)` where `x = 0.0`, which -0.0 passes too, a column of the outer side of a
//! join that was filtered by `a = 1`, a group that is NULL in another grouping set. The merge compares the
//! key nevertheless, and what comes out is in no order, or are other rows if there is a LIMIT.
//!
//! Where the key is constant the rows stay as they are.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::physical_expr::PhysicalSortExpr;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlanProperties, ReplaceChildrenOptions,
};

use crate::query::any_order::AnyOrderExec;
use crate::query::mend::Plan;

/// What a merge by more keys than its input is sorted by becomes.
pub(super) fn mended(node: &Plan) -> Result<Option<Plan>> {
    let Some(sorted) = node.downcast_ref().and_then(sorted) else { return Ok(None) };
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(node).replace_children(vec![sorted], options).map(Some)
}

/// The input of `merge`, sorted by all of its keys, if it is sorted by fewer.
fn sorted(merge: &SortPreservingMergeExec) -> Option<Plan> {
    if !is_sorted_by_fewer(merge.input(), merge.expr().len()) {
        return None;
    }
    let below = merge.input().downcast_ref::<SortExec>();
    // Other keys are left out of a sort because they are equal to one of it.
    let known = merge.input().equivalence_properties();
    let is_constant = |key: &PhysicalSortExpr| known.is_expr_constant(&key.expr).is_some();
    if below.is_none() && !merge.expr().iter().any(is_constant) {
        return None;
    }
    let input = below.map_or(merge.input(), SortExec::input);
    // A sort leaves alone what claims to be in its order.
    let input = Arc::new(AnyOrderExec::new(Arc::clone(input)));
    let sorted = SortExec::new(merge.expr().clone(), input)
        .with_preserve_partitioning(true)
        .with_fetch(below.map_or(merge.fetch(), SortExec::fetch));
    Some(Arc::new(sorted))
}

/// Whether the order of `plan` comes from a sort by fewer than so many keys.
fn is_sorted_by_fewer(plan: &Plan, keys: usize) -> bool {
    if let Some(sort) = plan.downcast_ref::<SortExec>() {
        return sort.expr().len() < keys;
    }
    let keeps = plan.maintains_input_order();
    let kept = plan.children().into_iter().zip(keeps).filter(|(_, keeps)| *keeps);
    kept.into_iter().any(|(child, _)| is_sorted_by_fewer(child, keys))
}
