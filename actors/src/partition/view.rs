//! What one replica of a partition holds, as scans see it: immutable, taken in nanoseconds.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::MemoryReservation;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::RowsView;
use foreshard_policy::disk::ReadCost;
use foreshard_policy::ids::{ExpressionId, FragmentId, PartitionId, SegmentId, ShapeId};

use crate::partition::ahead::{Recipe, Sign};
use crate::partition::load::SegmentLoad;
use crate::partition::output::OutputValues;
use crate::segment::{Rows, Segment};
use crate::spill::SpillFile;

/// What is stored of one function expression over one segment.
#[derive(Clone)]
pub struct StoredOutput {
    /// The values, of all rows of the segment or of some.
    pub values: OutputValues,
    /// Bytes it is charged with.
    pub bytes: u64,
    /// How often a query read it.
    pub uses: Arc<AtomicU64>,
    /// Gives the bytes back to the node's budget when the last reader lets go.
    pub charge: Arc<MemoryReservation>,
}

impl fmt::Debug for StoredOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (known, rows) = (self.values.rows_known(), self.values.rows());
        write!(f, "StoredOutput({known} of {rows} rows, {} bytes)", self.bytes)
    }
}

/// A part of a plan whose states over segments are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What names its states.
    pub id: FragmentId,
    /// What it has in common with those that differ in their literals only.
    pub shape: ShapeId,
    /// What the plan says it is, for people.
    pub text: Arc<str>,
    /// The same for its shape: a question mark stands for each literal.
    pub pattern: Arc<str>,
}

/// The state of a partial aggregate over one segment, as rows.
#[derive(Clone)]
pub struct StoredPartial {
    /// The state: what the final aggregate merges.
    pub batches: Arc<[RecordBatch]>,
    /// What it is the state of.
    pub fragment: Arc<Fragment>,
    /// Nanoseconds that it took.
    pub ns: u64,
    /// The calls that were made for it: reading it spares them.
    pub calls: Arc<[CallRecord]>,
    /// Bytes it is charged with.
    pub bytes: u64,
    /// How often a query read it.
    pub uses: Arc<AtomicU64>,
    /// Computes the same over other segments; `None` if only a query can.
    pub recipe: Option<Arc<dyn Recipe>>,
    /// Whether it was computed before a query asked for it.
    pub is_ahead: bool,
    /// Gives the bytes back to the node's budget when the last reader lets go.
    pub charge: Arc<MemoryReservation>,
}

impl StoredPartial {
    /// What it says about the need for more of its kind.
    #[must_use]
    pub fn sign(&self) -> Sign {
        Sign {
            uses: self.uses.load(Ordering::Relaxed),
            is_ahead: self.is_ahead,
            has_recipe: self.recipe.as_ref().is_some_and(|recipe| recipe.fits()),
        }
    }
}

impl fmt::Debug for StoredPartial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredPartial({}, {} bytes)", self.fragment.text, self.bytes)
    }
}

/// One segment as one replica holds it.
#[derive(Clone, Debug)]
pub struct Held {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Its rows if they are resident.
    pub rows: Option<Resident>,
    /// Stored outputs of function expressions, in memory.
    pub outputs: HashMap<ExpressionId, StoredOutput>,
    /// Those on disk; where memory has the same expression, too, the values are the same.
    pub spilled: HashMap<ExpressionId, Arc<SpillFile>>,
    /// Stored partial aggregates.
    pub partials: HashMap<FragmentId, StoredPartial>,
    /// What calls on its rows cost or would have cost.
    pub load: SegmentLoad,
    /// Expressions that a query asked for on this segment before.
    asked: Arc<Mutex<HashSet<ExpressionId>>>,
}

/// Rows in memory and what they are charged with.
#[derive(Clone)]
pub struct Resident {
    /// The rows.
    pub rows: Rows,
    /// `None` for rows of a memory table: they are there with or without a replica.
    pub charge: Option<Arc<MemoryReservation>>,
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resident({} batches)", self.rows.len())
    }
}

impl Held {
    /// Holds nothing of `segment` yet, but the rows that are pinned in it.
    #[must_use]
    pub fn new(segment: Arc<Segment>) -> Self {
        let rows = segment.pinned.clone().map(|rows| Resident { rows, charge: None });
        Self {
            load: SegmentLoad::new(segment.rows),
            segment,
            rows,
            outputs: HashMap::new(),
            spilled: HashMap::new(),
            partials: HashMap::new(),
            asked: Arc::default(),
        }
    }

    /// Notes that a query asks for `expression` on this segment; true the first time.
    #[must_use]
    pub fn is_first_ask(&self, expression: ExpressionId) -> bool {
        self.asked.lock().is_ok_and(|mut asked| asked.insert(expression))
    }

    /// Whether a query asked for `expression` on this segment before.
    #[must_use]
    pub fn was_asked(&self, expression: ExpressionId) -> bool {
        self.asked.lock().is_ok_and(|asked| asked.contains(&expression))
    }

    /// The file with the values of an expression, unless it was taken away meanwhile.
    #[must_use]
    pub fn on_disk(&self, expression: ExpressionId) -> Option<&Arc<SpillFile>> {
        self.spilled.get(&expression).filter(|file| !file.is_gone())
    }

    /// Files of expressions whose values are not in memory.
    pub fn only_on_disk(&self) -> impl Iterator<Item = (ExpressionId, &Arc<SpillFile>)> {
        let of = self
            .spilled
            .iter()
            .filter(|(id, file)| !file.is_gone() && !self.outputs.contains_key(*id));
        of.map(|(id, file)| (*id, file))
    }

    /// Bytes that this replica is charged with for this segment.
    #[must_use]
    pub fn bytes_charged(&self) -> u64 {
        let charged = self.rows.as_ref().is_some_and(|resident| resident.charge.is_some());
        let rows = if charged { self.segment.bytes } else { 0 };
        let outputs = self.outputs.values().map(|output| output.bytes).sum::<u64>();
        rows + outputs + self.partials.values().map(|partial| partial.bytes).sum::<u64>()
    }
}

/// Everything that one replica holds at one moment.
#[derive(Clone, Debug)]
pub struct ReplicaView {
    /// The partition.
    pub partition: PartitionId,
    /// Version of the table that the replica has caught up with.
    pub version: u64,
    /// Its segments.
    pub segments: HashMap<SegmentId, Held>,
}

impl ReplicaView {
    /// Bytes of outputs and partial aggregates in memory.
    #[must_use]
    pub fn bytes_stored(&self) -> u64 {
        let of = |held: &Held| {
            held.outputs.values().map(|output| output.bytes).sum::<u64>()
                + held.partials.values().map(|partial| partial.bytes).sum::<u64>()
        };
        self.segments.values().map(of).sum()
    }
}

/// The place where scans find the newest view of a replica.
#[derive(Debug)]
pub struct Replica {
    view: ArcSwap<ReplicaView>,
    /// Rows that were read through this replica, for routing and statistics.
    pub rows_read: AtomicU64,
    /// When a query read it last, or rows came into memory, in nanoseconds of its node's clock.
    touched_ns: AtomicU64,
}

impl Replica {
    /// An empty replica.
    #[must_use]
    pub fn new(partition: PartitionId) -> Self {
        let view = ReplicaView { partition, version: 0, segments: HashMap::new() };
        let (rows_read, touched_ns) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { view: ArcSwap::from_pointee(view), rows_read, touched_ns }
    }

    /// The newest view. Never waits.
    #[must_use]
    pub fn view(&self) -> Arc<ReplicaView> {
        self.view.load_full()
    }

    /// Replaces the view; only the partition actor does.
    pub(crate) fn publish(&self, view: ReplicaView) {
        self.view.store(Arc::new(view));
    }

    /// Counts rows read, now.
    pub fn read(&self, rows: u64, now_ns: u64) {
        self.rows_read.fetch_add(rows, Ordering::Relaxed);
        self.touch(now_ns);
    }

    /// Rows came into memory.
    pub(crate) fn touch(&self, now_ns: u64) {
        self.touched_ns.fetch_max(now_ns, Ordering::Relaxed);
    }

    /// What it has of rows that are in files, where reading takes `cost`; `None` if none are in files.
    #[must_use]
    pub fn rows(&self, cost: ReadCost, now_ns: u64) -> Option<RowsView> {
        let idle_ns = now_ns.saturating_sub(self.touched_ns.load(Ordering::Relaxed));
        let mut rows = RowsView { idle_ms: idle_ns / 1_000_000, ..RowsView::default() };
        for held in self.view().segments.values() {
            match &held.rows {
                // They are there with or without a replica.
                Some(Resident { charge: None, .. }) => continue,
                Some(_) => rows.bytes += held.segment.bytes,
                None => rows.bytes_missing += held.segment.bytes,
            }
            rows.read_ns += cost.ns(held.segment.bytes);
        }
        (rows.bytes + rows.bytes_missing > 0).then_some(rows)
    }
}
