//! What a node is to the scans that run on it: replicas, budgets, and where calls are reported.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use datafusion::execution::memory_pool::MemoryReservation;
use foreshard_policy::budgets::Shares;
use foreshard_policy::disk::ReadCost;
use foreshard_policy::ids::{NodeId, PartitionId};
use tokio::sync::watch;

use crate::calls::CallSink;
use crate::expressions::Expressions;
use crate::node::memory::{NodeMemory, ProcessMemory};
use crate::node::permits::Permits;
use crate::partition::{Flights, PartitionRef, Replica};
use crate::ports::SharedClock;
use crate::spill::Spill;
use crate::table::TableStore;

/// Least nanoseconds between two times that tables are asked to give way.
const ASK_EVERY_NS: u64 = 20_000_000;

/// How long room is kept for the table that it was made for.
const PROMISED_NS: u64 = 10_000_000_000;

/// Room that a table made for another one.
#[derive(Clone, Debug)]
struct Promise {
    table: Arc<str>,
    bytes: u64,
    until_ns: u64,
}

/// Where a node finds the stores of the tables.
pub trait Tables: fmt::Debug + Send + Sync + 'static {
    /// The store of the table with this name.
    fn store(&self, table: &str) -> Option<Arc<dyn TableStore>>;
}

/// When a node stores function outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorePolicy {
    /// Whether outputs are stored and read at all.
    pub enabled: bool,
    /// Functions cheaper than this, in nanoseconds per row, are never stored.
    pub ns_per_row_min: u64,
}

/// One replica on this node, and the actor that changes it.
#[derive(Clone, Debug)]
pub struct ReplicaHandle {
    /// What scans read.
    pub replica: Arc<Replica>,
    /// The actor; replaced when its supervisor starts it again.
    pub actor: PartitionRef,
}

/// Everything that scans and actors of one node share. Reading it never waits.
pub struct NodeState {
    /// The node.
    pub id: NodeId,
    /// Stores of all tables.
    pub tables: Arc<dyn Tables>,
    /// Function expressions known to the process.
    pub expressions: Arc<Expressions>,
    /// Where finished tasks report their calls.
    pub calls: CallSink,
    /// The time.
    pub clock: SharedClock,
    /// Tasks that may compute functions at the same time.
    pub permits: Permits,
    /// Where outputs go that find no room in memory; `None` if they go for good.
    pub spill: Option<Arc<Spill>>,
    memory: Arc<NodeMemory>,
    store_policy: ArcSwap<StorePolicy>,
    replicas: ArcSwap<HashMap<PartitionId, ReplicaHandle>>,
    draining: AtomicBool,
    active: watch::Sender<usize>,
    /// Nanoseconds that background work has computed so far.
    pub background_ns: AtomicU64,
    /// Offers that were dropped because too many were waiting.
    pub offers_dropped: AtomicU64,
    /// Bytes of rows that were read from files into memory so far.
    pub rows_fetched: AtomicU64,
    /// What queries compute at present.
    pub flights: Flights,
    lookups: AtomicU64,
    /// When a table was asked to give way last, in nanoseconds.
    asked_ns: AtomicU64,
    promise: Mutex<Option<Promise>>,
    reading: Mutex<ReadCost>,
}

impl fmt::Debug for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeState({})", self.id)
    }
}

/// What a node is born with.
#[derive(Debug)]
pub struct NodeStateArgs {
    /// The node.
    pub id: NodeId,
    /// Stores of all tables.
    pub tables: Arc<dyn Tables>,
    /// Function expressions known to the process.
    pub expressions: Arc<Expressions>,
    /// Where finished tasks report their calls.
    pub calls: CallSink,
    /// The time.
    pub clock: SharedClock,
    /// Tasks that may compute functions at the same time; at least 1.
    pub cpu_permits: u32,
    /// The memory of the process, of which the node keeps a part.
    pub memory: Arc<ProcessMemory>,
    /// Bytes of resident segments and stored outputs.
    pub memory_bytes_max: u64,
    /// When outputs are stored.
    pub store_policy: StorePolicy,
    /// Where outputs go that find no room in memory; `None` if they go for good.
    pub spill: Option<Arc<Spill>>,
}

/// Counts a running user task; background work waits while there are any.
#[derive(Debug)]
pub struct ActiveTask(watch::Sender<usize>);

impl Drop for ActiveTask {
    fn drop(&mut self) {
        self.0.send_modify(|active| *active = active.saturating_sub(1));
    }
}

impl NodeState {
    /// A node without replicas.
    #[must_use]
    pub fn new(args: NodeStateArgs) -> Self {
        Self {
            id: args.id,
            tables: args.tables,
            expressions: args.expressions,
            calls: args.calls,
            clock: args.clock,
            permits: Permits::new(args.cpu_permits.max(1)),
            spill: args.spill,
            memory: NodeMemory::new(args.memory, args.memory_bytes_max),
            store_policy: ArcSwap::from_pointee(args.store_policy),
            replicas: ArcSwap::default(),
            draining: AtomicBool::new(false),
            active: watch::Sender::new(0),
            background_ns: AtomicU64::new(0),
            offers_dropped: AtomicU64::new(0),
            rows_fetched: AtomicU64::new(0),
            flights: Flights::default(),
            lookups: AtomicU64::new(0),
            asked_ns: AtomicU64::new(0),
            promise: Mutex::default(),
            reading: Mutex::default(),
        }
    }

    /// The replica of `partition` on this node, if there is one.
    #[must_use]
    pub fn replica(&self, partition: &PartitionId) -> Option<Arc<Replica>> {
        self.replicas.load().get(partition).map(|handle| handle.replica.clone())
    }

    /// The replica of `partition` with the actor that changes it.
    #[must_use]
    pub fn handle(&self, partition: &PartitionId) -> Option<ReplicaHandle> {
        self.replicas.load().get(partition).cloned()
    }

    /// All replicas on this node.
    #[must_use]
    pub fn replicas(&self) -> Arc<HashMap<PartitionId, ReplicaHandle>> {
        self.replicas.load_full()
    }

    /// Adds or replaces (`Some`) or removes (`None`) a replica; only the node supervisor does.
    pub(crate) fn set_replica(&self, partition: &PartitionId, handle: Option<ReplicaHandle>) {
        self.replicas.rcu(|replicas| {
            let mut replicas = HashMap::clone(replicas);
            match &handle {
                Some(handle) => drop(replicas.insert(partition.clone(), handle.clone())),
                None => drop(replicas.remove(partition)),
            }
            replicas
        });
    }

    /// When outputs are stored.
    #[must_use]
    pub fn store_policy(&self) -> StorePolicy {
        **self.store_policy.load()
    }

    /// Changes when outputs are stored.
    pub fn set_store_policy(&self, policy: StorePolicy) {
        self.store_policy.store(Arc::new(policy));
    }

    /// Counts a look-up of stored values; true for one in `check_every`, never if that is 0.
    #[must_use]
    pub fn is_check_due(&self, check_every: u64) -> bool {
        let before = self.lookups.fetch_add(1, Ordering::Relaxed);
        check_every > 0 && (before + 1).is_multiple_of(check_every)
    }

    /// Charges `bytes` to the node's memory budget; `None` if they do not fit.
    #[must_use]
    pub fn charge(&self, what: &str, bytes: u64) -> Option<Arc<MemoryReservation>> {
        self.charge_after(what, bytes, || true)
    }

    /// Charges `bytes` as soon as `make_room` has given others back, unless that says that it could not.
    /// Nobody else gets what it gave back.
    pub(crate) fn charge_after(
        &self,
        what: &str,
        bytes: u64,
        make_room: impl FnOnce() -> bool,
    ) -> Option<Arc<MemoryReservation>> {
        self.memory.charge(what, bytes, make_room)
    }

    /// Bytes that must be given back before `more` can be charged, if `leaving` are given back anyway.
    #[must_use]
    pub(crate) fn bytes_lacking(&self, more: u64, leaving: u64) -> u64 {
        self.memory.lacking(more, leaving)
    }

    /// Takes note of how long reading a segment from its file took.
    pub(crate) fn read_took(&self, bytes: u64, ns: u64) {
        // Every change leaves it whole.
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).measured(bytes, ns);
    }

    /// What reading a segment from its file takes, as measured so far.
    #[must_use]
    pub fn read_cost(&self) -> ReadCost {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes charged now.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.used()
    }

    /// Bytes that may be charged.
    #[must_use]
    pub fn memory_bytes_max(&self) -> u64 {
        self.memory.max()
    }

    /// Tasks that may compute functions at the same time.
    #[must_use]
    pub fn permits_max(&self) -> u32 {
        self.permits.max()
    }

    /// Sets what the node may use from now on. Fewer permits take effect as tasks give theirs back;
    /// a smaller memory budget stops further charges but takes nothing away.
    pub fn set_budget(&self, cpu_permits: u32, memory_bytes_max: u64) {
        self.memory.set_max(memory_bytes_max);
        self.permits.set_max(cpu_permits.max(1), &self.clock);
    }

    /// Sets which part each table has of the node's permits, and of its memory for outputs.
    pub fn set_shares(&self, shares: Arc<Shares>) {
        self.permits.set_shares(shares);
    }

    /// Whether a table may be asked to give way now: looking who has how much costs something.
    pub(crate) fn may_ask(&self) -> bool {
        let now = self.clock.monotonic_ns();
        let before = self.asked_ns.load(Ordering::Relaxed);
        let is_due = before == 0 || now.saturating_sub(before) >= ASK_EVERY_NS;
        let swap =
            |to| self.asked_ns.compare_exchange(before, to, Ordering::Relaxed, Ordering::Relaxed);
        is_due && swap(now.max(1)).is_ok()
    }

    fn promise(&self) -> MutexGuard<'_, Option<Promise>> {
        // It is there or not.
        self.promise.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps so much room for a table for a while: another one makes it.
    pub(crate) fn keep_room(&self, table: &Arc<str>, bytes: u64) {
        let until_ns = self.clock.monotonic_ns().saturating_add(PROMISED_NS);
        *self.promise() = Some(Promise { table: Arc::clone(table), bytes, until_ns });
    }

    /// Bytes that are kept for other tables than this one.
    pub(crate) fn kept_from(&self, table: &str) -> u64 {
        let mut promise = self.promise();
        if promise.as_ref().is_some_and(|it| it.until_ns <= self.clock.monotonic_ns()) {
            *promise = None;
        }
        promise.as_ref().filter(|it| *it.table != *table).map_or(0, |it| it.bytes)
    }

    /// A table took its room.
    pub(crate) fn took_room(&self, table: &str) {
        self.promise().take_if(|it| *it.table == *table);
    }

    /// Which part each table has.
    #[must_use]
    pub fn shares(&self) -> Arc<Shares> {
        self.permits.shares()
    }

    /// Whether the node gives up its replicas.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Starts or ends draining.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Counts a user task for as long as the guard lives.
    #[must_use]
    pub fn user_task(&self) -> ActiveTask {
        self.active.send_modify(|active| *active += 1);
        ActiveTask(self.active.clone())
    }

    /// User tasks that run now.
    #[must_use]
    pub fn user_tasks(&self) -> usize {
        *self.active.borrow()
    }

    /// Waits until no user task runs.
    pub async fn idle(&self) {
        let mut active = self.active.subscribe();
        // The sender lives in self, so this cannot fail while we are borrowed.
        drop(active.wait_for(|active| *active == 0).await);
    }
}
