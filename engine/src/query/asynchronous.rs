//! Keeps a client free while its query waits for an asynchronous function.
//!
//! A scan awaits such a call. DataFusion calls a function anywhere else, and while it plans, without
//! being able to wait: the thread is held up. So that a client can still give up, and the query's time can
//! run out, neither happens in the client's own task.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use foreshard_udfs::{Registered, calls_asynchronously, registered};
use futures::StreamExt;
use tracing::Instrument;

/// Batches that wait for a slow client.
const BATCHES_WAITING_MAX: usize = 1;

/// Whether a logical plan calls an asynchronous function.
///
/// # Errors
/// If the walk fails.
pub fn is_called_in(plan: &LogicalPlan) -> Result<bool> {
    let is_called = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) => {
            Ok(registered(&call.func).is_some_and(Registered::is_asynchronous))
        }
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

/// Whether a physical plan calls an asynchronous function.
///
/// # Errors
/// If the walk fails.
pub fn is_called_by(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    plan.exists(|node| {
        let mut found = false;
        node.apply_expressions(&mut |expr| {
            found |= calls_asynchronously(expr);
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        Ok(found)
    })
}

/// The batches of `stream`, which runs in a task of its own.
#[must_use]
pub fn in_own_task(mut stream: SendableRecordBatchStream) -> SendableRecordBatchStream {
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
    own.spawn(work.in_current_span());
    own.build()
}
