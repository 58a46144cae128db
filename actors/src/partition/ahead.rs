//! Computes what is missing of an expression before anybody asks for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use foreshard_policy::ids::ExpressionId;
use ractor::RpcReplyPort;

use crate::expressions::FunctionExpression;
use crate::node::NodeState;
use crate::partition::actor::{Offer, PartitionRef};
use crate::partition::compute::compute_segment;
use crate::partition::output::OutputValues;
use crate::partition::view::{Held, Replica};
use crate::ports::Outcome;

/// What is stored of an expression over one segment, in memory or on disk. Waits for the disk.
pub async fn stored_values(
    node: &NodeState,
    held: &Held,
    expression: ExpressionId,
) -> Option<OutputValues> {
    if let Some(stored) = held.outputs.get(&expression) {
        return Some(stored.values.clone());
    }
    node.spill.as_ref()?.read(held.on_disk(expression)?).await
}

/// Computes what is missing, newest segments first, and offers each column as soon as it is there.
pub(super) async fn precompute(
    node: &Arc<NodeState>,
    replica: &Replica,
    reference: &PartitionRef,
    expression: &Arc<FunctionExpression>,
    reply: &RpcReplyPort<Outcome>,
) -> Outcome {
    let view = replica.view();
    let (mut rows, mut bytes, mut ns) = (0, 0, 0);
    for held in view.segments.values() {
        let on_disk = held.on_disk(expression.id).map(|file| file.rows_known() as u64);
        if on_disk == Some(held.segment.rows) {
            continue;
        }
        let stored = stored_values(node, held, expression.id).await;
        if stored.as_ref().is_some_and(OutputValues::is_whole) {
            continue;
        }
        if reply.is_closed() {
            break;
        }
        match compute_segment(node, expression, held, stored.as_ref()).await {
            Ok(computed) => {
                rows += computed.values.rows_known() as u64;
                bytes += computed.values.bytes();
                ns += computed.ns;
                node.background_ns.fetch_add(computed.ns, Ordering::Relaxed);
                // What is on disk only is not merged there.
                let values = match stored.map(|stored| stored.merge(&computed.values)) {
                    Some(Ok(all)) => all,
                    _ => computed.values,
                };
                let offer = Offer {
                    segment: held.segment.id,
                    expression: expression.clone(),
                    values,
                    flight: None,
                };
                if !reference.offer_waiting(offer).await {
                    node.offers_dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) => {
                return Outcome::Failed { code: error.code(), reason: error.to_string() };
            }
        }
    }
    Outcome::Done { rows, bytes, ns }
}
