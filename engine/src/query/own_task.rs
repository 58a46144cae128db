//! Keeps a client free while its query calls functions.
//!
//! A function may hold up its thread: it loops, or it waits for something else where DataFusion calls it
//! without being able to wait. So that a client can still give up, and the query's time can run out,
//! neither running nor planning such a query happens in the client's own task, and the running not on
//! its threads either.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::window::{PlainAggregateWindowExpr, SlidingAggregateWindowExpr};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use foreshard_udfs::{registered, registered_aggregate};
use futures::StreamExt;
use tokio::runtime::Handle;
use tracing::Instrument;

/// Batches that wait for a slow client.
const BATCHES_WAITING_MAX: usize = 1;

/// Whether planning may call a registered function: it has no column among its arguments, or answers
/// later.
///
/// # Errors
/// If the walk fails.
pub fn is_called_while_planning(plan: &LogicalPlan) -> Result<bool> {
    let is_called = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) => Ok(registered(&call.func)
            .is_some_and(|function| function.is_asynchronous() || !expr.any_column_refs())),
        _ => Ok(false),
    };
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found |= expr.exists(is_called)?;
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(found)
}

/// Whether a physical plan calls a registered function.
///
/// # Errors
/// If the walk fails.
pub fn is_called_by(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let is_call = |expr: &Arc<dyn PhysicalExpr>| {
        let call = expr.downcast_ref::<ScalarFunctionExpr>();
        Ok(call.is_some_and(|call| registered(call.fun()).is_some()))
    };
    plan.exists(|node| {
        let mut found = aggregates(node);
        node.apply_expressions(&mut |expr| {
            found |= expr.exists(is_call)?;
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        Ok(found)
    })
}

/// Whether a node calls a registered aggregate function.
fn aggregates(node: &Arc<dyn ExecutionPlan>) -> bool {
    let is_ours =
        |aggregate: &AggregateFunctionExpr| registered_aggregate(aggregate.fun()).is_some();
    if let Some(node) = node.downcast_ref::<AggregateExec>() {
        return node.aggr_expr().iter().any(|aggregate| is_ours(aggregate));
    }
    let all = node.downcast_ref::<WindowAggExec>().map(WindowAggExec::window_expr);
    let bounded = || node.downcast_ref::<BoundedWindowAggExec>();
    let windows = all.or_else(|| bounded().map(BoundedWindowAggExec::window_expr));
    windows.unwrap_or_default().iter().any(|window| {
        let window = window.as_any();
        let plain = window.downcast_ref().map(PlainAggregateWindowExpr::get_aggregate_expr);
        let sliding = || window.downcast_ref().map(SlidingAggregateWindowExpr::get_aggregate_expr);
        plain.or_else(sliding).is_some_and(is_ours)
    })
}

/// The batches of `stream`, which runs in a task of its own on `threads`.
#[must_use]
pub fn in_own_task(
    mut stream: SendableRecordBatchStream,
    threads: &Handle,
) -> SendableRecordBatchStream {
    let mut own = RecordBatchReceiverStream::builder(stream.schema(), BATCHES_WAITING_MAX);
    let batches = own.tx();
    let work = async move {
        while let Some(batch) = stream.next().await {
            if batches.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    own.spawn_on(work.in_current_span(), threads);
    own.build()
}
