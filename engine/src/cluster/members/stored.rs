//! What nodes have stored: computed ahead, thrown away, pinned, and taken along when partitions move.

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::Tables;
use foreshard_actors::partition::{PartitionMessage, Wanted};
use foreshard_actors::pins::Pinned;
use foreshard_actors::ports::Outcome;
use foreshard_policy::history::Succession;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId, ShapeId};

use super::{MemberError, Members, failed};
use crate::cluster::place::Place;
use crate::query::functions;
use crate::serve::control::MESSAGE_BYTES_MAX;

/// Evaluations that the cost of a function's former body counts for.
const EVALUATIONS_GUESSED: u64 = 256;

impl Members {
    /// Gives a new replica what another one has stored, if one of the two is in another process: within
    /// a process a replica is copied with what it has stored. What fails is computed again some day.
    pub(super) async fn stored_follows(
        &self,
        partition: &PartitionId,
        from: &dyn Place,
        to: &dyn Place,
    ) {
        if from.replica(partition).is_some() && to.replica(partition).is_some() {
            return;
        }
        for held in from.outputs(partition) {
            let Some(expression) = self.expressions.get(held.expression) else { continue };
            if held.bytes >= MESSAGE_BYTES_MAX as u64 / 2 {
                continue;
            }
            let followed = async {
                match from.output(partition, held.expression, held.segment).await? {
                    Some(values) => to.adopt(partition, &expression, held.segment, values).await,
                    None => Ok(()),
                }
            };
            if let Err(error) = followed.await {
                let call = &expression.text;
                tracing::warn!(%partition, call, code = error.code(), %error, "output not copied");
            }
        }
        for held in from.partials(partition) {
            if held.bytes >= MESSAGE_BYTES_MAX as u64 / 2 {
                continue;
            }
            let followed = async {
                match from.state(partition, held.fragment.id, held.segment).await? {
                    Some(state) => to.adopt_state(partition, state).await,
                    None => Ok(()),
                }
            };
            if let Err(error) = followed.await {
                let state = &*held.fragment.text;
                tracing::warn!(%partition, state, code = error.code(), %error, "state not copied");
            }
        }
    }

    /// Computes and stores what is missing of an expression, or of the states that are counted by it, on
    /// every holder of a partition.
    pub async fn precompute(&self, expression: ExpressionId, partition: &PartitionId) -> Outcome {
        let wanted = match self.expressions.get(expression) {
            Some(expression) => Wanted::Outputs(expression),
            None => match self.shape(expression, partition) {
                Some(shape) => Wanted::States(shape),
                None => return failed(&MemberError::NoExpression { expression }),
            },
        };
        let holders = self.placement().holders.get(partition).cloned().unwrap_or_default();
        let (mut rows, mut bytes, mut ns) = (0, 0, 0);
        for node in holders {
            let Ok(member) = self.member(node) else { continue };
            match member.place.precompute(partition, &wanted).await {
                Outcome::Done { rows: r, bytes: b, ns: n } => {
                    rows += r;
                    bytes += b;
                    ns += n;
                }
                outcome => return outcome,
            }
        }
        Outcome::Done { rows, bytes, ns }
    }

    /// The shape whose states are counted by `series`, if a holder of the partition has some.
    fn shape(&self, series: ExpressionId, partition: &PartitionId) -> Option<ShapeId> {
        let placement = self.placement();
        let mut holders = placement.holders.get(partition)?.iter();
        holders.find_map(|node| {
            let partials = self.member(*node).ok()?.place.partials(partition).into_iter();
            let mut shapes = partials.map(|held| held.fragment.shape);
            shapes.find(|shape| shape.series() == series)
        })
    }

    /// Throws stored outputs away on every holder of a partition.
    ///
    /// # Errors
    /// If a node fails.
    pub async fn drop_outputs(
        &self,
        which: Option<ExpressionId>,
        partition: &PartitionId,
    ) -> Result<u64, MemberError> {
        let holders = self.placement().holders.get(partition).cloned().unwrap_or_default();
        let mut dropped = 0;
        for node in holders {
            dropped += self.member(node)?.place.drop_outputs(partition, which).await?;
        }
        Ok(dropped)
    }

    /// Forgets what was stored of a function that has another body now. What it was called on is expected
    /// to be called again: the same expressions with the new body are known at once, as pinned as the
    /// former ones, and their history is to follow the successions that are returned.
    pub fn redefined(&self, function: &Arc<ScalarUDF>) -> Vec<Succession> {
        let pinned = self.expressions.pins.all();
        let calls_it = |name: &Arc<str>| **name == *function.name();
        let gone = self.expressions.forget(|known| known.functions.iter().any(calls_it));
        for node in self.local_states().values() {
            for (partition, handle) in node.replicas().iter() {
                let Some(actor) = handle.actor.actor() else { continue };
                for expression in gone.iter().filter(|it| it.table == partition.table) {
                    // A dead actor has no outputs in its mailbox; what it published is never read again.
                    drop(actor.cast(PartitionMessage::Worthless(expression.id)));
                }
            }
        }
        let follows = |known: &Arc<FunctionExpression>| {
            let store = self.catalog.store(&known.table)?;
            let new = functions::redefined(known, function, &store.table().schema);
            let new = new.inspect_err(|error| {
                tracing::debug!(call = known.text, %error, "not expected with its new body");
            });
            let new = new.ok().flatten()?;
            if known.is_measured() {
                // A first guess: it counts in full, and is soon outweighed.
                new.measured(EVALUATIONS_GUESSED, EVALUATIONS_GUESSED * known.ns_per_evaluation());
            }
            let what =
                Succession::Redefined { from: known.id, to: self.expressions.remember(new)?.id };
            Some((known.id, what))
        };
        let (former, successions): (Vec<_>, Vec<_>) = gone.iter().filter_map(follows).unzip();
        self.pin(|all| {
            for (former, what) in former.iter().zip(&successions) {
                if let Succession::Redefined { to, .. } = what
                    && pinned.expressions.contains(former)
                {
                    all.expressions.insert(*to);
                }
            }
        });
        successions
    }

    /// Changes what is pinned, on all nodes.
    pub fn pin(&self, change: impl Fn(&mut Pinned)) {
        self.expressions.pins.change(change);
        let pinned = self.expressions.pins.all();
        for member in self.members.load().values() {
            member.place.set_pins(&pinned);
        }
    }

    /// What each node would hold of outputs and states that are pinned if `pinned` were: their number and
    /// bytes, and the bytes that it may hold.
    #[must_use]
    pub fn held_if(&self, pinned: &Pinned) -> Vec<(NodeId, u64, u64, u64)> {
        let placement = self.placement();
        let members = self.members.load();
        let of_node = |(id, member): (&NodeId, &super::Member)| {
            let (mut count, mut bytes) = (0, 0);
            for (partition, _) in placement.holders.iter().filter(|(_, nodes)| nodes.contains(id)) {
                let has_table = pinned.tables.contains(&partition.table);
                let outputs = member.place.outputs(partition).into_iter();
                let outputs = outputs
                    .filter(|it| has_table || pinned.expressions.contains(&it.expression))
                    .map(|it| it.bytes);
                let partials = member.place.partials(partition).into_iter();
                let partials = partials.filter(|_| has_table).map(|it| it.bytes);
                for held in outputs.chain(partials) {
                    count += 1;
                    bytes += held;
                }
            }
            (*id, count, bytes, member.place.view().memory_bytes_max)
        };
        members.iter().map(of_node).collect()
    }
}
