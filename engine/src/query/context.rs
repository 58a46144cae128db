//! What all parts of one query share: its snapshots, its placement, and the way to cancel it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use datafusion::execution::runtime_env::RuntimeEnv;
use foreshard_actors::node::NodeState;
use foreshard_actors::segment::Segment;
use foreshard_actors::table::{Snapshot, TableStore};
use foreshard_policy::ids::{NodeId, PartitionId, SegmentId};
use foreshard_policy::key_ranges::KeyRange;
use foreshard_udfs::Caller;
use tokio_util::sync::CancellationToken;

use crate::cluster::Placement;
use crate::query::memory::share;

/// Ranges of keys that are noted of one query.
const RANGES_MAX: usize = 64;

/// One query. Every scan of it reads the snapshots that are pinned here.
#[derive(Debug)]
pub struct QueryContext {
    /// Unique within the process that coordinates the query.
    pub id: u64,
    /// Cancelled when the client goes away; scans look at it between batches.
    pub cancel: CancellationToken,
    /// The placement that the query is planned with.
    pub placement: Arc<Placement>,
    /// W3C trace context of the query, if it is traced.
    pub traceparent: Option<String>,
    runtime: OnceLock<Arc<RuntimeEnv>>,
    snapshots: Mutex<HashMap<String, Arc<Snapshot>>>,
    joined: Mutex<Vec<(PartitionId, PartitionId)>>,
    ranges: Mutex<Vec<(Arc<str>, KeyRange)>>,
}

impl QueryContext {
    /// A query that has pinned nothing yet.
    #[must_use]
    pub fn new(id: u64, placement: Arc<Placement>, traceparent: Option<String>) -> Self {
        let cancel = CancellationToken::new();
        let (runtime, snapshots, joined) = (OnceLock::new(), Mutex::default(), Mutex::default());
        let ranges = Mutex::default();
        Self { id, cancel, placement, traceparent, runtime, snapshots, joined, ranges }
    }

    /// What all tasks of the query in this process run in: `node`'s, of whose memory they may take
    /// `bytes_max` together.
    #[must_use]
    pub fn runtime(&self, node: &RuntimeEnv, bytes_max: usize) -> Arc<RuntimeEnv> {
        Arc::clone(self.runtime.get_or_init(|| share(node, bytes_max)))
    }

    /// The snapshot of a table that this query reads: the newest one at first use, the same one from
    /// then on.
    #[must_use]
    pub fn pin(&self, store: &dyn TableStore) -> Arc<Snapshot> {
        let Ok(mut snapshots) = self.snapshots.lock() else { return store.snapshot() };
        let name = store.table().name.to_string();
        snapshots.entry(name).or_insert_with(|| store.snapshot()).clone()
    }

    /// Reads this snapshot of a table instead of the newest one.
    pub fn pin_to(&self, snapshot: Arc<Snapshot>) {
        if let Ok(mut snapshots) = self.snapshots.lock() {
            snapshots.insert(snapshot.table.name.to_string(), snapshot);
        }
    }

    /// Notes partitions whose rows the query joins by their keys.
    pub(crate) fn joins(&self, pairs: impl IntoIterator<Item = (PartitionId, PartitionId)>) {
        if let Ok(mut joined) = self.joined.lock() {
            joined.extend(pairs);
        }
    }

    /// What was noted so far; it is not noted any more.
    pub(crate) fn take_joined(&self) -> Vec<(PartitionId, PartitionId)> {
        self.joined.lock().map(|mut joined| std::mem::take(&mut *joined)).unwrap_or_default()
    }

    /// Notes which keys of a table the query asks for.
    pub(crate) fn asks_for(&self, table: &Arc<str>, range: KeyRange) {
        if let Ok(mut ranges) = self.ranges.lock()
            && ranges.len() < RANGES_MAX
        {
            ranges.push((Arc::clone(table), range));
        }
    }

    /// What was noted of it so far; it is not noted any more.
    pub(crate) fn take_ranges(&self) -> Vec<(Arc<str>, KeyRange)> {
        self.ranges.lock().map(|mut ranges| std::mem::take(&mut *ranges)).unwrap_or_default()
    }

    /// A segment of a pinned snapshot: keeps rows of a memory table readable after a commit
    /// removed them.
    #[must_use]
    pub fn segment(&self, table: &str, id: SegmentId) -> Option<Arc<Segment>> {
        let snapshot = self.snapshots.lock().ok()?.get(table)?.clone();
        snapshot.segments().find(|segment| segment.id == id).cloned()
    }
}

impl Caller for QueryContext {
    fn is_gone(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// Ended queries of other processes that are remembered, for tasks that come after the news of it.
const ENDED_MAX: usize = 1_024;

/// The queries that run in this process, so that tasks and cancellations find them by id.
#[derive(Debug, Default)]
pub struct Queries {
    next: AtomicU64,
    running: Mutex<HashMap<u64, Weak<QueryContext>>>,
    foreign: Mutex<Foreign>,
}

/// Queries that another process coordinates.
#[derive(Debug, Default)]
struct Foreign {
    running: HashMap<(String, u64), Weak<QueryContext>>,
    ended: VecDeque<(String, u64)>,
}

impl Queries {
    /// Starts a query of this process.
    #[must_use]
    pub fn start(
        &self,
        placement: Arc<Placement>,
        traceparent: Option<String>,
    ) -> Arc<QueryContext> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let query = Arc::new(QueryContext::new(id, placement, traceparent));
        if let Ok(mut running) = self.running.lock() {
            running.insert(id, Arc::downgrade(&query));
            if running.len() % 256 == 0 {
                running.retain(|_, query| query.strong_count() > 0);
            }
        }
        query
    }

    /// The query with this id, if it still runs.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Arc<QueryContext>> {
        self.running.lock().ok()?.get(&id)?.upgrade()
    }

    /// The query of another process that a task here belongs to: the same for all its tasks, and
    /// cancelled from the start if it is known to be over.
    #[must_use]
    pub fn join(
        &self,
        coordinator: &str,
        id: u64,
        context: impl FnOnce() -> QueryContext,
    ) -> Arc<QueryContext> {
        let Ok(mut foreign) = self.foreign.lock() else { return Arc::new(context()) };
        let key = (coordinator.to_owned(), id);
        if let Some(query) = foreign.running.get(&key).and_then(Weak::upgrade) {
            return query;
        }
        let query = Arc::new(context());
        if foreign.ended.contains(&key) {
            query.cancel.cancel();
            return query;
        }
        foreign.running.insert(key, Arc::downgrade(&query));
        if foreign.running.len() % 256 == 0 {
            foreign.running.retain(|_, query| query.strong_count() > 0);
        }
        query
    }

    /// Ends what is left of a query of another process.
    pub fn end(&self, coordinator: &str, id: u64) {
        let Ok(mut foreign) = self.foreign.lock() else { return };
        let key = (coordinator.to_owned(), id);
        if let Some(query) = foreign.running.remove(&key).and_then(|query| query.upgrade()) {
            query.cancel.cancel();
        }
        if foreign.ended.len() >= ENDED_MAX {
            foreign.ended.pop_front();
        }
        foreign.ended.push_back(key);
    }

    /// Number of queries that run. Tasks of one that has ended may keep it for a while.
    #[must_use]
    pub fn count(&self) -> usize {
        let runs = |query: &&Weak<QueryContext>| {
            query.upgrade().is_some_and(|query| !query.cancel.is_cancelled())
        };
        self.running.lock().map_or(0, |running| running.values().filter(runs).count())
    }
}

/// The nodes that live in this process. A scan takes each segment from the node it was assigned to if
/// that is one of them, and from the first one otherwise.
#[derive(Debug)]
pub struct LocalNodes {
    /// Nodes by id.
    pub nodes: HashMap<NodeId, Arc<NodeState>>,
    /// The node that a worker stands for: reads what no local node holds.
    pub own: Arc<NodeState>,
}

impl LocalNodes {
    /// The node that segments assigned to `id` are read through here.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Arc<NodeState> {
        self.nodes.get(&id).unwrap_or(&self.own)
    }
}

/// Marks a task that no query asked for: what it calls is no sign of what will be called.
#[derive(Debug)]
pub struct Ahead;

#[cfg(test)]
mod tests {
    use super::*;

    fn context(id: u64) -> QueryContext {
        QueryContext::new(id, Arc::default(), None)
    }

    #[test]
    fn the_end_of_a_foreign_query_reaches_its_tasks_early_or_late() {
        let queries = Queries::default();
        let (one, two) = (queries.join("a", 7, || context(7)), queries.join("a", 7, || context(7)));
        assert!(Arc::ptr_eq(&one, &two));
        let other = queries.join("b", 7, || context(7));
        queries.end("a", 7);
        assert!(one.cancel.is_cancelled());
        assert!(!other.cancel.is_cancelled());
        assert!(queries.join("a", 7, || context(7)).cancel.is_cancelled());
        assert!(!queries.join("a", 8, || context(8)).cancel.is_cancelled());
    }
}
