//! One replica of one partition: owns its resident batches and stored outputs.
//!
//! ```text
//! scans --Store, ReadBack--> partition --publish--> Replica (scans read it without queueing)
//! node supervisor --Load, SegmentsChanged, Precompute, DropOutputs, Prefetch, Release--> partition
//! partition --write--> spill --Written--> partition
//! partition --read--> spill --Followed--> partition
//! ```
//!
//! Data never travel in a message: an offer carries a reference-counted column. If the actor dies,
//! its supervisor starts it again on the same [`Replica`], so nothing that was published is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::MemoryReservation;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{ExpressionId, PartitionId, SegmentId};
use foreshard_udfs::call_threads;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::expressions::FunctionExpression;
use crate::node::NodeState;
use crate::partition::ahead::{Recipe, Wanted, outputs, states};
use crate::partition::flight::Flight;
use crate::partition::output::OutputValues;
use crate::partition::storing::Storing;
use crate::partition::view::{
    Fragment, Held, Replica, ReplicaView, Resident, StoredOutput, StoredPartial,
};
use crate::partition::worth::Worth;
use crate::ports::Outcome;
use crate::spill::SpillFile;
use crate::table::{Committed, Rewritten, Snapshot};

/// Offers that may wait in one mailbox; more are dropped and counted.
pub const OFFERS_MAX: usize = 256;

/// How long a task in the background waits for a place in it.
const PLACE_WITHIN: Duration = Duration::from_secs(5);

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
    pub fragment: Arc<Fragment>,
    /// The state, as rows.
    pub batches: Vec<RecordBatch>,
    /// Nanoseconds that it took.
    pub ns: u64,
    /// The calls that were made for it.
    pub calls: Vec<CallRecord>,
    /// Computes the same over other segments; `None` if only a query can.
    pub recipe: Option<Arc<dyn Recipe>>,
    /// Whether no query asked for it yet.
    pub is_ahead: bool,
}

impl PartialOffer {
    /// Bytes of the state.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.batches.iter().map(|batch| batch.get_array_memory_size() as u64).sum()
    }

    /// The same, once it is stored.
    pub(super) fn stored(
        self,
        bytes: u64,
        uses: Arc<AtomicU64>,
        charge: Arc<MemoryReservation>,
    ) -> StoredPartial {
        let Self { fragment, ns, is_ahead, .. } = self;
        let recipe = self.recipe.filter(|recipe| recipe.fits());
        let (batches, calls) = (self.batches.into(), self.calls.into());
        StoredPartial { batches, fragment, ns, calls, bytes, uses, recipe, is_ahead, charge }
    }
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
    /// Event: a query read these values from disk; they may belong into memory.
    ReadBack(Box<Offer>),
    /// Event: writing an output to disk has ended; with the file, if it was worth it and found room.
    Written(u64, Option<Arc<SpillFile>>),
    /// Event: what is on disk was read for a new segment that has its rows now; `None` if it was gone.
    Followed(u64, Option<Box<Offer>>),
    /// Event: what is pinned and found no room may find it now.
    LookAgain,
    /// Command: compute and store what is missing; reply with what it took.
    Precompute(Wanted, RpcReplyPort<Outcome>),
    /// Event: that has ended, and all that it offered came before this; whoever asked is told.
    Precomputed(Outcome, RpcReplyPort<Outcome>),
    /// Event: an expression gave another value than the stored one, or its function was redefined; its
    /// outputs are worthless.
    Worthless(ExpressionId),
    /// Command: let so many bytes of outputs go for those of a table that has less than its part.
    GiveWay(u64),
    /// Command: read rows of files into memory that are not there; reply with what it took.
    Prefetch(RpcReplyPort<Outcome>),
    /// Event: rows of a segment were read.
    Fetched(SegmentId, Resident),
    /// Command: let rows go that are in files; reply with their bytes.
    Release(RpcReplyPort<u64>),
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

    /// Hands an output over as soon as there is a place in the queue; false if there was none for 5 s or
    /// the actor is gone.
    pub async fn offer_waiting(&self, offer: Offer) -> bool {
        self.send_waiting(PartitionMessage::Store(Box::new(offer))).await
    }

    /// The same for a partial aggregate.
    pub async fn offer_partial_waiting(&self, offer: PartialOffer) -> bool {
        self.send_waiting(PartitionMessage::StorePartial(Box::new(offer))).await
    }

    async fn send_waiting(&self, message: PartitionMessage) -> bool {
        match tokio::time::timeout(PLACE_WITHIN, self.credits.acquire()).await {
            Ok(Ok(credit)) => self.send(credit, message),
            _ => false,
        }
    }

    /// Hands a partial aggregate over without waiting; false if the queue is full or the actor is gone.
    pub fn offer_partial(&self, offer: PartialOffer) -> bool {
        self.hand_over(|| PartitionMessage::StorePartial(Box::new(offer)))
    }

    /// Hands values over that a query read from disk; false if the queue is full or the actor is gone.
    pub fn read_back(&self, offer: Offer) -> bool {
        self.hand_over(|| PartitionMessage::ReadBack(Box::new(offer)))
    }

    /// Gives one place in the queue back: an offer was handled.
    pub(super) fn free(&self) {
        self.credits.add_permits(1);
    }

    /// Takes one place in the queue for an offer that comes from the actor itself; false if there is none.
    pub(super) fn take_place(&self) -> bool {
        self.credits.try_acquire().map(SemaphorePermit::forget).is_ok()
    }

    fn hand_over(&self, message: impl FnOnce() -> PartitionMessage) -> bool {
        self.credits.try_acquire().is_ok_and(|credit| self.send(credit, message()))
    }

    fn send(&self, credit: SemaphorePermit<'_>, message: PartitionMessage) -> bool {
        let sent = self.actor().is_some_and(|actor| actor.cast(message).is_ok());
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
    pub(super) args: PartitionArgs,
    pub(super) worth: Worth,
    pub(super) storing: Storing,
    /// Whether rows of files were let go, and were not asked for again.
    pub(super) is_released: bool,
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
        args.reference.set(myself.clone());
        // Offers that waited in the mailbox of a dead predecessor are gone; so are their credits.
        let lost = OFFERS_MAX.saturating_sub(args.reference.credits.available_permits());
        args.reference.credits.add_permits(lost);
        let storing = Storing::new(myself);
        Ok(PartitionState { args, worth: Worth::default(), storing, is_released: false })
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
            PartitionMessage::ReadBack(offer) => state.on_read_back(*offer),
            PartitionMessage::Written(ticket, file) => state.on_written(ticket, file),
            PartitionMessage::Followed(ticket, offer) => state.on_followed(ticket, offer),
            PartitionMessage::LookAgain => state.look_again(),
            PartitionMessage::Precompute(wanted, reply) => state.on_precompute(wanted, reply),
            PartitionMessage::Precomputed(outcome, reply) => drop(reply.send(outcome)),
            PartitionMessage::GiveWay(bytes) => state.on_give_way(bytes),
            PartitionMessage::Prefetch(reply) => state.on_prefetch(reply),
            PartitionMessage::Fetched(segment, rows) => state.on_fetched(segment, rows),
            PartitionMessage::Release(reply) => drop(reply.send(state.on_release())),
            PartitionMessage::Worthless(expression) => drop(state.drop_outputs(Some(expression))),
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
    pub(super) fn view(&self) -> ReplicaView {
        ReplicaView::clone(&self.args.replica.view())
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
            for (expression, file) in &theirs.spilled {
                mine.spilled.insert(*expression, file.clone());
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
        let own = committed.snapshot.partitions.get(self.ordinal());
        let is_own = |new: &&Rewritten| {
            own.is_some_and(|segments| segments.iter().any(|one| one.id == new.segment))
        };
        let rewritten: Vec<Rewritten> =
            committed.rewritten.iter().filter(is_own).cloned().collect();
        let (kept, loads) = (self.kept(&rewritten), self.loads_kept(&rewritten));
        self.catch_up(&committed.snapshot, &committed.added);
        self.follow_loads(&loads);
        self.follow(kept);
    }

    /// Takes new segments up and lets removed ones go; older snapshots change nothing.
    pub(super) fn catch_up(
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
            self.args.replica.touch(self.args.node.clock.monotonic_ns());
        }
        held
    }

    fn on_precompute(&self, wanted: Wanted, reply: RpcReplyPort<Outcome>) {
        let node = self.args.node.clone();
        let replica = self.args.replica.clone();
        let reference = self.args.reference.clone();
        let work = async move {
            let outcome = match &wanted {
                Wanted::Outputs(expression) => {
                    outputs(&node, &replica, &reference, expression, &reply).await
                }
                Wanted::States(shape) => states(&node, &replica, &reference, *shape, &reply).await,
            };
            // Behind the offers in the queue: whoever asked finds stored what was computed.
            if let Some(actor) = reference.actor() {
                drop(actor.cast(PartitionMessage::Precomputed(outcome, reply)));
            }
        };
        // It ends with its reply port: it stops as soon as nobody waits for the outcome.
        drop(call_threads().unwrap_or_else(|_none| Handle::current()).spawn(work));
    }
}
