//! Computes what is missing before anybody asks for it: outputs of an expression, states of a shape.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use foreshard_policy::ids::{ExpressionId, FragmentId, ShapeId};
use ractor::RpcReplyPort;

use crate::expressions::FunctionExpression;
use crate::node::NodeState;
use crate::partition::actor::{Offer, PartialOffer, PartitionRef};
use crate::partition::compute::{ComputeError, compute_segment};
use crate::partition::output::OutputValues;
use crate::partition::view::{Held, Replica, ReplicaView, StoredPartial};
use crate::ports::Outcome;
use crate::segment::Segment;

/// States of a fragment that were computed ahead and that nobody has read. If there are so many in a replica,
/// no more of it are computed: it may never be asked for again.
const UNUSED_MAX: usize = 4;

/// What is to be computed before anybody asks for it.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// Outputs of an expression.
    Outputs(Arc<FunctionExpression>),
    /// States of all fragments of a shape that are asked for again and again.
    States(ShapeId),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outputs(expression) => f.write_str(&expression.function),
            Self::States(shape) => write!(f, "states of shape {shape}"),
        }
    }
}

/// Computes the state of a fragment over any segment of its table. It knows no query and holds no rows.
#[async_trait]
pub trait Recipe: Debug + Send + Sync {
    /// False if a state was too large to be stored, or if it takes a query to compute one. Lets go of the query
    /// that it is from.
    fn fits(&self) -> bool;

    /// The state over `segment`, as it is offered but for the recipe; `None` if it is too large to be stored.
    ///
    /// # Errors
    /// What the plan said.
    async fn compute(
        &self,
        node: &Arc<NodeState>,
        segment: &Arc<Segment>,
    ) -> Result<Option<PartialOffer>, ComputeError>;
}

/// What a stored state says about the need for more of its fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sign {
    /// How often a query read it.
    pub uses: u64,
    /// Whether it was computed before a query asked for it.
    pub is_ahead: bool,
    /// Whether others can be computed without a query.
    pub has_recipe: bool,
}

impl Sign {
    /// Whether more states of a fragment should be computed, given those of one replica: queries came
    /// back to it, and not too many that were computed ahead wait for one.
    #[must_use]
    pub fn speaks_for_more(signs: &[Self]) -> bool {
        let unused = signs.iter().filter(|sign| sign.is_ahead && sign.uses == 0).count();
        signs.iter().any(|sign| sign.has_recipe)
            && signs.iter().any(|sign| sign.uses > 0)
            && unused < UNUSED_MAX
    }
}

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

/// Computes what is missing of an expression and offers each column as soon as it is there.
pub(super) async fn outputs(
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

/// Computes the states of a shape that segments lack and offers each as soon as it is there.
pub(super) async fn states(
    node: &Arc<NodeState>,
    replica: &Replica,
    reference: &PartitionRef,
    shape: ShapeId,
    reply: &RpcReplyPort<Outcome>,
) -> Outcome {
    let view = replica.view();
    let (mut rows, mut bytes, mut ns) = (0, 0, 0);
    for (fragment, recipe) in wanted(&view, shape) {
        let lacking = view.segments.values().filter(|held| !held.partials.contains_key(&fragment));
        for held in lacking {
            node.idle().await;
            if reply.is_closed() {
                return Outcome::Done { rows, bytes, ns };
            }
            match recipe.compute(node, &held.segment).await {
                Ok(None) => {}
                Ok(Some(offer)) => {
                    let offer = PartialOffer { recipe: Some(Arc::clone(&recipe)), ..offer };
                    rows += held.segment.rows;
                    ns += offer.ns;
                    bytes += offer.bytes();
                    node.background_ns.fetch_add(offer.ns, Ordering::Relaxed);
                    if !reference.offer_partial_waiting(offer).await {
                        node.offers_dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    return Outcome::Failed { code: error.code(), reason: error.to_string() };
                }
            }
        }
    }
    Outcome::Done { rows, bytes, ns }
}

/// The fragments of a shape that a replica should have more states of.
fn wanted(view: &ReplicaView, shape: ShapeId) -> Vec<(FragmentId, Arc<dyn Recipe>)> {
    let mut states: BTreeMap<FragmentId, Vec<&StoredPartial>> = BTreeMap::new();
    let all = view.segments.values().flat_map(|held| held.partials.values());
    for partial in all.filter(|partial| partial.fragment.shape == shape) {
        states.entry(partial.fragment.id).or_default().push(partial);
    }
    let wanted = states.into_iter().filter_map(|(fragment, states)| {
        let signs: Vec<Sign> = states.iter().map(|partial| partial.sign()).collect();
        let recipe = states.iter().find_map(|partial| partial.recipe.clone())?;
        Sign::speaks_for_more(&signs).then_some((fragment, recipe))
    });
    wanted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_computed_of_what_queries_come_back_to_and_not_without_end() {
        let asked = |uses| Sign { uses, is_ahead: false, has_recipe: true };
        let unused = Sign { uses: 0, is_ahead: true, has_recipe: true };
        assert!(!Sign::speaks_for_more(&[asked(0), asked(0)]), "nobody came back");
        assert!(Sign::speaks_for_more(&[asked(0), asked(1)]));
        assert!(!Sign::speaks_for_more(&[Sign { has_recipe: false, ..asked(1) }]));
        let mut signs = vec![asked(9)];
        let ahead = (0..10).take_while(|_| {
            let is_more = Sign::speaks_for_more(&signs);
            signs.push(unused);
            is_more
        });
        assert_eq!(ahead.count(), UNUSED_MAX);
        signs.iter_mut().for_each(|sign| sign.uses = 1);
        assert!(Sign::speaks_for_more(&signs), "they were read");
    }
}
