//! What of a plan can be computed segment by segment.
//!
//! A fragment has one scan whose segments it is computed over, at the end of its path. Beside the path lie
//! the small sides of joins: each row of the scan meets all of their rows, whatever segment it is in.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{JoinType, Result};
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};
use foreshard_policy::ids::NodeId;

use crate::query::functions::{compose, contains_dynamic_filter, contains_storable, is_immutable};
use crate::query::late::{Carried, LateCallExec};
use crate::query::scan::{PartitionScanExec, ScanSegment, ScanTable};

/// The child that the path goes on with, by its position.
fn next(plan: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    match plan.children().len() {
        1 => Some(0),
        _ => plan.is::<HashJoinExec>().then_some(1),
    }
}

/// The scan at the end of the path.
pub(in crate::query) fn scan_below(plan: &Arc<dyn ExecutionPlan>) -> Option<&PartitionScanExec> {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        return Some(scan);
    }
    scan_below(plan.children()[next(plan)?])
}

/// Whether there is a join on the path.
pub(super) fn is_joined(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<HashJoinExec>()
        || next(plan).is_some_and(|position| is_joined(plan.children()[position]))
}

/// The same plan over another scan, with nothing left of an earlier run.
pub(super) fn with_scan(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &PartitionScanExec,
) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(position) = next(plan) else { return Ok(Arc::new(scan.clone())) };
    let mut children: Vec<_> = plan.children().into_iter().cloned().collect();
    children[position] = with_scan(&children[position], scan)?;
    if let Some(late) = plan.downcast_ref::<LateCallExec>() {
        return Ok(Arc::new(late.over(children.remove(position), scan.tap.clone())?));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(children, options)
}

/// The same plan over no segments, and with joined tables as they would be read by one node alone: what is
/// computed is the same wherever and in how many pieces the rows lie.
pub(super) fn without_segments(
    plan: &Arc<dyn ExecutionPlan>,
    scan: &PartitionScanExec,
) -> Result<Arc<dyn ExecutionPlan>> {
    let whole = Arc::clone(plan).transform_up(|node| {
        if let Some(late) = node.downcast_ref::<LateCallExec>() {
            return Ok(Transformed::yes(Arc::new(late.without_segments()?)));
        }
        let Some(scan) = node.downcast_ref::<PartitionScanExec>() else {
            return Ok(Transformed::no(node));
        };
        let mut segments: Vec<ScanSegment> = scan.groups.iter().flatten().cloned().collect();
        segments.sort_by_key(|scan| scan.segment.id);
        for scan in &mut segments {
            (scan.node, scan.number) = (NodeId(0), 0);
        }
        let scan: Arc<dyn ExecutionPlan> = Arc::new(scan.with_groups(vec![segments])?);
        Ok(Transformed::yes(scan))
    });
    let mut blank = scan.with_groups(vec![vec![]])?;
    let table =
        ScanTable { version: 0, statistics: None, placed: None, ..scan.table.as_ref().clone() };
    blank.table = Arc::new(table);
    with_scan(&whole.data()?, &blank)
}

/// Whether `expr` gives the same for the same row in every query.
pub(in crate::query) fn is_same(expr: &Arc<dyn PhysicalExpr>) -> bool {
    is_immutable(expr) && !contains_dynamic_filter(expr)
}

/// `expr`, given over what `plan` gives, over the columns of its table: as far as filters, projections and
/// the scan go.
pub(super) fn over_table(
    expr: &Arc<dyn PhysicalExpr>,
    plan: &Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn PhysicalExpr>> {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        return compose(expr, &scan.outputs);
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        return over_table(&compose(expr, projection.expr())?, projection.input());
    }
    match plan.downcast_ref::<FilterExec>() {
        Some(filter) if filter.projection().is_none() => over_table(expr, filter.input()),
        _ => Ok(Arc::clone(expr)),
    }
}

/// The same plan, but for what a sort for its first rows knows of other segments: it would leave rows out that
/// are behind the first ones there, and its state would lack them once those are gone.
pub(super) fn on_its_own(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let Some(sort) = plan.downcast_ref::<SortExec>() else { return Arc::clone(plan) };
    let new = SortExec::new(sort.expr().clone(), Arc::clone(sort.input()));
    let new = new.with_preserve_partitioning(sort.preserve_partitioning());
    Arc::new(new.with_fetch(sort.fetch()))
}

/// What a fragment may have on its path.
#[derive(Clone, Copy)]
pub(super) struct Takes {
    /// Joins.
    pub(super) joins: bool,
    /// What is known of calls that are evaluated further up.
    pub(super) carried: bool,
}

/// `plan` as it can be run over single segments, without what only deals rows out: filters, projections,
/// late calls and joins over a scan. `None` if there is anything else.
pub(super) fn segment_wise(
    plan: &Arc<dyn ExecutionPlan>,
    takes: Takes,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        return match is_whole(scan, takes.carried) && !is_spared_calls(scan) {
            true => without_dynamic_filters(plan).map(Some),
            false => Ok(None),
        };
    }
    if is_dealing(plan) {
        return segment_wise(plan.children()[0], takes);
    }
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        return match takes.joins && is_look_up(join) {
            true => alone(join, segment_wise(join.right(), takes)?),
            false => Ok(None),
        };
    }
    if !is_row_wise(plan) {
        return Ok(None);
    }
    let child = plan.children()[0];
    let takes = Takes { carried: takes.carried || plan.is::<LateCallExec>(), ..takes };
    let Some(new) = segment_wise(child, takes)? else { return Ok(None) };
    if Arc::ptr_eq(child, &new) {
        return Ok(Some(Arc::clone(plan)));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(vec![new], options).map(Some)
}

/// Whether a scan gives the same rows in every query over the same segments, but for what it may carry.
fn is_whole(scan: &PartitionScanExec, takes_carried: bool) -> bool {
    let outputs = scan.outputs.iter().map(|output| &output.expr);
    scan.fetch.is_none()
        && scan.filters.iter().chain(outputs.clone()).all(is_same)
        && (takes_carried || !outputs.into_iter().any(|output| output.is::<Carried>()))
}

/// Whether dynamic filters keep rows from calls: then leaving rows out spares more than a state of all.
fn is_spared_calls(scan: &PartitionScanExec) -> bool {
    let outputs = scan.outputs.iter().map(|output| &output.expr);
    let evaluated = outputs.filter(|output| !output.is::<Carried>());
    !scan.dynamic.is_empty() && scan.filters.iter().chain(evaluated).any(contains_storable)
}

/// The same plan with scans that read all of their rows, whatever nodes further up could tell them.
fn without_dynamic_filters(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let whole = Arc::clone(plan).transform_up(|node| {
        Ok(match node.downcast_ref::<PartitionScanExec>() {
            Some(scan) => Transformed::yes(Arc::new(scan.without_dynamic()) as _),
            None => Transformed::no(node),
        })
    });
    whole.data()
}

/// Whether a node hands on all rows as they are, in other pieces or by other tasks.
fn is_dealing(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let deals = plan.downcast_ref::<RepartitionExec>().is_some_and(|repartition| {
        matches!(repartition.partitioning(), Partitioning::RoundRobinBatch(_))
    });
    deals || plan.is::<CooperativeExec>()
}

/// Whether a node does the same to each row, whatever the other rows are.
fn is_row_wise(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(late) = plan.downcast_ref::<LateCallExec>() {
        return late.calls.iter().all(|call| is_same(&call.expr));
    }
    match (plan.downcast_ref::<FilterExec>(), plan.downcast_ref::<ProjectionExec>()) {
        (Some(filter), _) => filter.fetch().is_none() && is_same(filter.predicate()),
        (_, Some(projection)) => projection.expr().iter().all(|output| is_same(&output.expr)),
        _ => false,
    }
}

/// Whether each row of the right side is joined on its own, with all rows of a left side that is the same
/// as long as its table is.
fn is_look_up(join: &HashJoinExec) -> bool {
    use JoinType::{Inner, Right, RightAnti, RightMark, RightSemi};
    let on = join.on().iter().flat_map(|(left, right)| [left, right]);
    let filter = join.filter().map(|filter| filter.expression());
    *join.partition_mode() == PartitionMode::CollectLeft
        && matches!(join.join_type(), Inner | Right | RightAnti | RightMark | RightSemi)
        && !join.null_aware
        && join.fetch().is_none()
        && on.chain(filter).all(is_same)
        && is_fixed(join.left())
}

/// Whether the rows of `plan` are the same in every query over the same tables. What functions are called
/// for it would be told to nobody while states are used, so there must be none.
fn is_fixed(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        return is_whole(scan, false) && !scan.has_function_work();
    }
    let is_collecting = plan
        .downcast_ref::<CoalescePartitionsExec>()
        .is_some_and(|collecting| collecting.fetch().is_none());
    (is_collecting || is_dealing(plan) || is_row_wise(plan)) && is_fixed(plan.children()[0])
}

/// `join` with `right` as its right side, and with no filter of it or of another node in its scans.
fn alone(
    join: &HashJoinExec,
    right: Option<Arc<dyn ExecutionPlan>>,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(right) = right else { return Ok(None) };
    let new = HashJoinExec::try_new(
        without_dynamic_filters(join.left())?,
        right,
        join.on().to_vec(),
        join.filter().cloned(),
        join.join_type(),
        join.projection.as_ref().map(|projection| projection.to_vec()),
        *join.partition_mode(),
        join.null_equality(),
        join.null_aware,
    )?;
    Ok(Some(Arc::new(new)))
}
