//! One replica of one partition: owns its resident batches and stored outputs.
//!
//! ```text
//! scans --Offer--> partition --publish--> Replica (scans read it without queueing)
//! node supervisor --Load, SegmentsChanged, Precompute, DropOutputs--> partition
//! ```
//!
//! Data never travel in a message: an offer carries a reference-counted column. If the actor dies,
//! its supervisor starts it again on the same [`Replica`], so nothing that was published is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwapOption;
use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::MemoryReservation;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{ExpressionId, FragmentId, PartitionId, SegmentId};
use futures::TryStreamExt;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::Semaphore;

use crate::expressions::FunctionExpression;
use crate::node::NodeState;
use crate::partition::compute::{ComputeError, compute_segment};
use crate::partition::flight::Flight;
use crate::partition::output::OutputValues;
use crate::partition::view::{Held, Replica, ReplicaView, Resident, StoredOutput, StoredPartial};
use crate::partition::worth::{Key, Stored, Worth};
use crate::ports::Outcome;
use crate::table::{Committed, Snapshot};

/// Offers that may wait in one mailbox; more are dropped and counted.
pub const OFFERS_MAX: usize = 256;

/// Share of the node's budget that resident rows of files may take; the rest is for outputs.
const RESIDENT_SHARE: f64 = 0.5;

/// A computed output that a scan or a background task hands over.
#[derive(Debug)]
pub struct Offer {
    /// The segment.
    pub segment: SegmentId,
    /// The expression.
    pub expression: Arc<FunctionExpression>,
    /// Values of some or all rows of the segment; they complete what is stored already.
    pub values: OutputValues,
    /// Kept until the values are published: who looks for them finds them here or there.
    pub flight: Option<Arc<Flight>>,
}

/// The state of a partial aggregate over one segment that a query hands over.
#[derive(Debug)]
pub struct PartialOffer {
    /// The segment.
    pub segment: SegmentId,
    /// What was computed.
    pub fragment: FragmentId,
    /// The same for people.
    pub text: Arc<str>,
    /// The state, as rows.
    pub batches: Vec<RecordBatch>,
    /// Nanoseconds that it took.
    pub ns: u64,
    /// The calls that were made for it.
    pub calls: Vec<CallRecord>,
}

/// What a partition can be told or asked.
#[derive(Debug)]
pub enum PartitionMessage {
    /// Command: hold the segments of this snapshot; reply when resident rows are loaded.
    Load(Arc<Snapshot>, Option<RpcReplyPort<()>>),
    /// Command: hold what another replica holds, without reading or computing anything.
    Adopt(Arc<ReplicaView>, RpcReplyPort<()>),
    /// Event: a commit changed the table.
    SegmentsChanged(Arc<Committed>),
    /// Command: store this output if it is worth it and fits.
    Store(Box<Offer>),
    /// Command: store this partial aggregate if it fits.
    StorePartial(Box<PartialOffer>),
    /// Command: compute and store what is missing of an expression; reply with what it took.
    Precompute(Arc<FunctionExpression>, RpcReplyPort<Outcome>),
    /// Event: an expression gave another value than the stored one; its outputs are worthless.
    LiarFound(ExpressionId),
    /// Command: throw the outputs of one expression, or all of them, away.
    DropOutputs(Option<ExpressionId>, RpcReplyPort<u64>),
}

/// Where to reach the actor of a replica: survives its restart.
#[derive(Clone, Debug)]
pub struct PartitionRef {
    actor: Arc<ArcSwapOption<ActorRef<PartitionMessage>>>,
    credits: Arc<Semaphore>,
}

impl Default for PartitionRef {
    fn default() -> Self {
        Self { actor: Arc::default(), credits: Arc::new(Semaphore::new(OFFERS_MAX)) }
    }
}

impl PartitionRef {
    /// Points to a newly started actor.
    pub fn set(&self, actor: ActorRef<PartitionMessage>) {
        self.actor.store(Some(Arc::new(actor)));
    }

    /// The actor, if one was started.
    #[must_use]
    pub fn actor(&self) -> Option<ActorRef<PartitionMessage>> {
        self.actor.load_full().map(|actor| ActorRef::clone(&actor))
    }

    /// Hands an output over without waiting; false if the queue is full or the actor is gone.
    pub fn offer(&self, offer: Offer) -> bool {
        self.hand_over(|| PartitionMessage::Store(Box::new(offer)))
    }

    /// Hands a partial aggregate over without waiting; false if the queue is full or the actor is gone.
    pub fn offer_partial(&self, offer: PartialOffer) -> bool {
        self.hand_over(|| PartitionMessage::StorePartial(Box::new(offer)))
    }

    fn hand_over(&self, message: impl FnOnce() -> PartitionMessage) -> bool {
        let Ok(credit) = self.credits.try_acquire() else { return false };
        let sent = self.actor().is_some_and(|actor| actor.cast(message()).is_ok());
        if sent {
            credit.forget(); // Given back when the actor has handled the offer.
        }
        sent
    }
}

/// What a partition actor is born with.
#[derive(Debug)]
pub struct PartitionArgs {
    /// The partition.
    pub partition: PartitionId,
    /// Where it publishes; already filled when the actor is started again.
    pub replica: Arc<Replica>,
    /// The node it lives on.
    pub node: Arc<NodeState>,
    /// How others reach it.
    pub reference: PartitionRef,
}

/// The actor. All that changes lives in `PartitionState`.
#[derive(Debug)]
pub struct Partition;

/// Memory of one partition actor.
#[derive(Debug)]
pub struct PartitionState {
    args: PartitionArgs,
    worth: Worth,
}

impl Actor for Partition {
    type Msg = PartitionMessage;
    type State = PartitionState;
    type Arguments = PartitionArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: PartitionArgs,
    ) -> Result<PartitionState, ActorProcessingErr> {
        args.reference.set(myself);
        // Offers that waited in the mailbox of a dead predecessor are gone; so are their credits.
        let lost = OFFERS_MAX.saturating_sub(args.reference.credits.available_permits());
        args.reference.credits.add_permits(lost);
        Ok(PartitionState { args, worth: Worth::default() })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: PartitionMessage,
        state: &mut PartitionState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PartitionMessage::Load(snapshot, reply) => state.on_load(&snapshot, reply).await,
            PartitionMessage::Adopt(view, reply) => state.on_adopt(&view, reply),
            PartitionMessage::SegmentsChanged(committed) => state.on_segments_changed(&committed),
            PartitionMessage::Store(offer) => state.on_store(*offer),
            PartitionMessage::StorePartial(offer) => state.on_store_partial(*offer),
            PartitionMessage::Precompute(expression, reply) => {
                state.on_precompute(expression, reply);
            }
            PartitionMessage::LiarFound(expression) => drop(state.drop_outputs(Some(expression))),
            PartitionMessage::DropOutputs(which, reply) => {
                drop(reply.send(state.drop_outputs(which)));
            }
        }
        Ok(())
    }
}

impl PartitionState {
    fn ordinal(&self) -> usize {
        self.args.partition.ordinal as usize
    }

    /// A copy of the published view to change and publish again.
    fn view(&self) -> ReplicaView {
        ReplicaView::clone(&self.args.replica.view())
    }

    async fn on_load(&mut self, snapshot: &Snapshot, reply: Option<RpcReplyPort<()>>) {
        self.catch_up(snapshot, &[]);
        let view = self.args.replica.view();
        let cold: Vec<Held> =
            view.segments.values().filter(|held| held.rows.is_none()).cloned().collect();
        for held in cold {
            if let Some(resident) = self.load(&held).await {
                let mut view = self.view();
                if let Some(held) = view.segments.get_mut(&held.segment.id) {
                    held.rows = Some(resident);
                }
                self.args.replica.publish(view);
            }
        }
        if let Some(reply) = reply {
            drop(reply.send(()));
        }
    }

    /// Reads the rows of a cold segment if the budget allows; a failure leaves it on disk, where the
    /// query that needs it will meet the error.
    async fn load(&self, held: &Held) -> Option<Resident> {
        let node = &self.args.node;
        let used = (node.memory_bytes() + held.segment.bytes) as f64;
        if used > node.memory_bytes_max() as f64 * RESIDENT_SHARE {
            return None;
        }
        let charge = node.charge("resident segment", held.segment.bytes)?;
        let store = node.tables.store(&self.args.partition.table)?;
        let rows = async {
            let stream = store.read(&held.segment, None).await.map_err(ComputeError::Store)?;
            stream.try_collect::<Vec<_>>().await.map_err(ComputeError::Evaluate)
        };
        match rows.await {
            Ok(batches) => Some(Resident { rows: batches.into(), charge: Some(charge) }),
            Err(error) => {
                let (segment, code) = (held.segment.id, error.code());
                tracing::warn!(%segment, code, %error, "segment stays on disk");
                None
            }
        }
    }

    fn on_adopt(&mut self, other: &ReplicaView, reply: RpcReplyPort<()>) {
        let mut view = self.view();
        view.version = other.version;
        for (id, theirs) in &other.segments {
            let mine =
                view.segments.entry(*id).or_insert_with(|| Held::new(theirs.segment.clone()));
            if mine.rows.is_none()
                && let Some(resident) = &theirs.rows
                && let Some(charge) =
                    self.args.node.charge("resident segment", theirs.segment.bytes)
            {
                mine.rows = Some(Resident { rows: resident.rows.clone(), charge: Some(charge) });
            }
            for (expression, output) in &theirs.outputs {
                if let Some(charge) = self.args.node.charge("stored output", output.bytes) {
                    mine.outputs.insert(*expression, StoredOutput { charge, ..output.clone() });
                }
            }
            for (fragment, partial) in &theirs.partials {
                if let Some(charge) = self.args.node.charge("stored partial", partial.bytes) {
                    mine.partials.insert(*fragment, StoredPartial { charge, ..partial.clone() });
                }
            }
        }
        self.args.replica.publish(view);
        drop(reply.send(()));
    }

    fn on_segments_changed(&mut self, committed: &Committed) {
        self.catch_up(&committed.snapshot, &committed.added);
    }

    /// Takes new segments up and lets removed ones go; older snapshots change nothing.
    fn catch_up(
        &mut self,
        snapshot: &Snapshot,
        added: &[(Arc<crate::segment::Segment>, crate::segment::Rows)],
    ) {
        let now = self.args.replica.view();
        let Some(segments) = snapshot.partitions.get(self.ordinal()) else { return };
        if snapshot.version < now.version {
            return;
        }
        let mut next: HashMap<SegmentId, Held> = HashMap::with_capacity(segments.len());
        for segment in segments.iter() {
            let held = match now.segments.get(&segment.id) {
                Some(held) => held.clone(),
                None => self.take_up(segment, added),
            };
            next.insert(segment.id, held);
        }
        self.args.replica.publish(ReplicaView {
            partition: self.args.partition.clone(),
            version: snapshot.version,
            segments: next,
        });
    }

    fn take_up(
        &self,
        segment: &Arc<crate::segment::Segment>,
        added: &[(Arc<crate::segment::Segment>, crate::segment::Rows)],
    ) -> Held {
        let mut held = Held::new(segment.clone());
        let rows = added.iter().find(|(new, _)| new.id == segment.id);
        if held.rows.is_none()
            && let Some((_, rows)) = rows
            && let Some(charge) = self.args.node.charge("resident segment", segment.bytes)
        {
            held.rows = Some(Resident { rows: rows.clone(), charge: Some(charge) });
        }
        held
    }

    fn on_store(&mut self, offer: Offer) {
        self.args.reference.credits.add_permits(1);
        let policy = self.args.node.store_policy();
        let worth_it = offer.expression.ns_per_row() >= policy.ns_per_row_min;
        if policy.enabled && worth_it {
            self.store(&offer);
        }
    }

    fn store(&mut self, offer: &Offer) {
        let view = self.args.replica.view();
        let Some(held) = view.segments.get(&offer.segment) else { return };
        if offer.values.rows() as u64 != held.segment.rows {
            return;
        }
        let before = held.outputs.get(&offer.expression.id);
        let known = before.map_or(0, |before| before.values.rows_known());
        let merged = before.map(|before| before.values.merge(&offer.values));
        let Ok(values) = merged.unwrap_or_else(|| Ok(offer.values.clone())) else { return };
        if values.rows_known() == known {
            return;
        }
        let values = values.packed();
        let (bytes, rows) = (values.bytes(), values.rows_known() as u64);
        let uses = before.map_or_else(Arc::default, |before| before.uses.clone());
        let ns = offer.expression.ns_per_row().saturating_mul(rows);
        // Reading what is stored of it was counted already.
        let calls = u64::from(before.is_none());
        drop(view);
        let key = (offer.segment, Stored::Output(offer.expression.id));
        let charge = self.charge("stored output", key, calls, ns, bytes);
        let mut view = self.view();
        let (Some(charge), Some(held)) = (charge, view.segments.get_mut(&offer.segment)) else {
            return;
        };
        held.outputs.insert(offer.expression.id, StoredOutput { values, bytes, uses, charge });
        self.args.replica.publish(view);
    }

    fn on_store_partial(&mut self, offer: PartialOffer) {
        self.args.reference.credits.add_permits(1);
        let view = self.args.replica.view();
        let held = view.segments.get(&offer.segment);
        let is_new = held.is_some_and(|held| !held.partials.contains_key(&offer.fragment));
        if !self.args.node.store_policy().enabled || !is_new {
            return;
        }
        drop(view);
        let bytes = offer.batches.iter().map(|batch| batch.get_array_memory_size() as u64).sum();
        let key = (offer.segment, Stored::Partial(offer.fragment));
        let charge = self.charge("stored partial", key, 1, offer.ns, bytes);
        let mut view = self.view();
        let (Some(charge), Some(held)) = (charge, view.segments.get_mut(&offer.segment)) else {
            return;
        };
        let PartialOffer { fragment, text, batches, ns, calls, .. } = offer;
        let (batches, calls, uses) = (batches.into(), calls.into(), Arc::default());
        held.partials
            .insert(fragment, StoredPartial { batches, text, ns, calls, bytes, uses, charge });
        self.args.replica.publish(view);
    }

    /// Charges `bytes` to the node for something that was called and took `ns`; lets what is worth less
    /// go for it, the least first.
    fn charge(
        &mut self,
        what: &str,
        key: Key,
        calls: u64,
        ns: u64,
        bytes: u64,
    ) -> Option<Arc<MemoryReservation>> {
        let offered = self.worth.called(&self.args.replica.view(), key, calls, ns, bytes);
        let node = &self.args.node;
        if let Some(charge) = node.charge(what, bytes) {
            return Some(charge);
        }
        let lacking = (node.memory_bytes() + bytes).saturating_sub(node.memory_bytes_max());
        let mut view = self.view();
        let victims = self.worth.make_room(&view, &node.expressions, offered, lacking)?;
        for (segment, stored) in victims {
            let held = view.segments.get_mut(&segment)?;
            match stored {
                Stored::Output(id) => drop(held.outputs.remove(&id)),
                Stored::Partial(id) => drop(held.partials.remove(&id)),
            }
        }
        self.args.replica.publish(view);
        // If a query still reads what went there is no room yet, but for the next one.
        node.charge(what, bytes)
    }

    fn on_precompute(&self, expression: Arc<FunctionExpression>, reply: RpcReplyPort<Outcome>) {
        let node = self.args.node.clone();
        let replica = self.args.replica.clone();
        let reference = self.args.reference.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with its reply port: it stops as soon as nobody waits for the outcome"
        )]
        tokio::spawn(async move {
            let outcome = precompute(&node, &replica, &reference, &expression, &reply).await;
            drop(reply.send(outcome));
        });
    }

    fn drop_outputs(&mut self, which: Option<ExpressionId>) -> u64 {
        let mut view = self.view();
        let mut dropped = 0;
        for held in view.segments.values_mut() {
            let before = held.outputs.len();
            held.outputs.retain(|id, _| which.is_some_and(|which| which != *id));
            dropped += (before - held.outputs.len()) as u64;
            if which.is_none() {
                dropped += held.partials.drain().count() as u64;
            }
        }
        self.args.replica.publish(view);
        dropped
    }
}

/// Computes what is missing, newest segments first, and offers each column as soon as it is there.
async fn precompute(
    node: &Arc<NodeState>,
    replica: &Replica,
    reference: &PartitionRef,
    expression: &Arc<FunctionExpression>,
    reply: &RpcReplyPort<Outcome>,
) -> Outcome {
    let view = replica.view();
    let (mut rows, mut bytes, mut ns) = (0, 0, 0);
    for held in view.segments.values() {
        let stored = held.outputs.get(&expression.id).map(|stored| &stored.values);
        if stored.is_some_and(OutputValues::is_whole) {
            continue;
        }
        if reply.is_closed() {
            break;
        }
        match compute_segment(node, expression, held, stored).await {
            Ok(computed) => {
                rows += computed.values.rows_known() as u64;
                bytes += computed.values.bytes();
                ns += computed.ns;
                node.background_ns.fetch_add(computed.ns, Ordering::Relaxed);
                let offer = Offer {
                    segment: held.segment.id,
                    expression: expression.clone(),
                    values: computed.values,
                    flight: None,
                };
                if !reference.offer(offer) {
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
