//! Dynamic filters: what a top-k or a join above a scan learns, while the query runs, of the rows that it
//! is going to drop.
//!
//! Before: `SortExec: TopK` or the probe side of a `HashJoinExec` over `PartitionScanExec`, which offered
//! its filter to the scan. After: the same, and the scan leaves out segments that hold no row that passes,
//! and, if it evaluates calls, rows ahead of them. The node above works as if it had no filter, so that one
//! that fails, or came too late, changes nothing.
//!
//! What it must not change: the rows of the answer, and what is stored. So no filter passes a limit, below
//! which fewer rows are other rows, or an aggregate, whose states stand for whole segments; aggregates make
//! none, because that of `min(a), max(b + 1)` tells of `a` alone; and none is over floats, whose two zeros
//! are equal and yet in an order.
//!
//! Counter-example: `SELECT * FROM few JOIN (SELECT * FROM t WHERE y < 2 LIMIT 50) t ON t.id = few.id`: with
//! the join's filter in the scan of `t`, the limit counts rows that it did not count before.

mod bounds;

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNode;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, DynamicFilterPhysicalExpr};
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};

pub(super) use bounds::{first_bound, may_pass, tells_apart};

use crate::query::functions::compose;
use crate::query::scan::PartitionScanExec;

type Plan = Arc<dyn ExecutionPlan>;
type Expr = Arc<dyn PhysicalExpr>;

/// `filter`, given over a scan's outputs, over the columns of its table; `None` if it is no dynamic filter
/// over plain columns of types that have one order.
pub(super) fn on_table(
    filter: &Expr,
    outputs: &[ProjectionExpr],
    schema: &Schema,
) -> Result<Option<Expr>> {
    if !filter.is::<DynamicFilterPhysicalExpr>() {
        return Ok(None);
    }
    let filter = compose(filter, outputs)?;
    let is_plain = |child: &&Expr| {
        let column = child.downcast_ref::<Column>();
        column.is_some_and(|column| has_one_order(schema.field(column.index()).data_type()))
    };
    let is_plain = filter.children().iter().all(is_plain);
    Ok(is_plain.then_some(filter))
}

/// Whether sorts, joins and bounds of segments agree on which values are equal and which are less.
pub(super) fn has_one_order(data_type: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Boolean, Date32, Date64, FixedSizeBinary, LargeBinary, LargeUtf8,
        Time32, Time64, Timestamp, Utf8, Utf8View,
    };
    let is_plain = matches!(
        data_type,
        Boolean
            | Utf8
            | LargeUtf8
            | Utf8View
            | Binary
            | LargeBinary
            | BinaryView
            | FixedSizeBinary(_)
            | Date32
            | Date64
            | Time32(_)
            | Time64(_)
            | Timestamp(_, _)
    );
    is_plain || data_type.is_integer() || data_type.is_decimal()
}

/// Has each scan use those of the filters offered to it that it may use and that are worth it.
///
/// # Errors
/// If a plan cannot be built again over its changed children.
pub(super) fn settle(plan: Plan) -> Result<Plan> {
    let is_asked = |node: &Plan| {
        let scan = node.downcast_ref::<PartitionScanExec>();
        Ok(scan.is_some_and(|scan| !scan.offered.is_empty()))
    };
    if plan.exists(is_asked)? { settle_below(&plan, vec![]) } else { Ok(plan) }
}

/// `made` names the filters that nodes above make and that may come down to here.
fn settle_below(plan: &Plan, mut made: Vec<u64>) -> Result<Plan> {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        let is_used = |filter: &Expr| {
            filter.expression_id().is_some_and(|id| made.contains(&id))
                && (scan.has_function_work() || tells_apart(filter, &scan.groups))
        };
        return Ok(Arc::new(scan.using_offered(is_used)));
    }
    if plan.fetch().is_some() || plan.is::<AggregateExec>() {
        made.clear();
    }
    if plan.is::<SortExec>() || plan.is::<HashJoinExec>() {
        let filters = plan.dynamic_expressions_produced();
        made.extend(filters.iter().filter_map(|filter| filter.expression_id()));
    }
    let old = plan.children();
    let new = old.iter().map(|child| settle_below(child, made.clone()));
    let new = new.collect::<Result<Vec<_>>>()?;
    if old.iter().zip(&new).all(|(old, new)| Arc::ptr_eq(old, new)) {
        return Ok(Arc::clone(plan));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(plan).replace_children(new, options)
}
