//! Keeps the groups of an answer that rows which came or went cannot belong to.
//!
//! A dashboard counts the different customers of each day, and rows of a new day were appended. States of
//! `count(DISTINCT ..)` over a segment are as large as its rows, so storing them spares nothing. But the new
//! segment has smallest and largest days, and the groups of all other days are what they were: they are
//! kept, and the rows of the days in between are aggregated anew.
//!
//! ```text
//! AggregateExec(Final) .. PartitionScanExec
//!   -> KeptGroupsExec(day < 90) over AggregateExec(Final) .. PartitionScanExec(filters=[day >= 90 AND day <= 91])
//! ```
//!
//! Rows that were deleted or changed are no other case: their segments have bounds, too.

mod exec;
mod rule;

use std::cmp::Ordering as Order;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::execution::memory_pool::MemoryReservation;
use foreshard_actors::node::NodeState;
use foreshard_actors::segment::Segment;
use foreshard_policy::ids::SegmentId;

pub use exec::KeptGroupsExec;
pub use rule::KeepGroups;

/// Answers that are kept; beyond it the one that was not used for longest gives way.
const ANSWERS_MAX: usize = 256;

/// Bytes of one answer that is kept.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Smallest and largest value of a column in a segment.
#[derive(Clone, Debug, PartialEq)]
struct Bounds {
    min: ScalarValue,
    max: ScalarValue,
}

impl Bounds {
    /// Of the column at `position`, of this type; `None` if they are not known.
    fn of(segment: &Segment, position: usize, data_type: &DataType) -> Option<Self> {
        let range = segment.columns.get(position)?;
        let (min, max) = (range.min.clone()?, range.max.clone()?);
        let is_of_type = min.data_type() == *data_type && max.data_type() == *data_type;
        (is_of_type && min.partial_cmp(&max)? != Order::Greater).then_some(Self { min, max })
    }

    /// What holds both.
    fn hull(self, other: &Self) -> Option<Self> {
        let min = match self.min.partial_cmp(&other.min)? {
            Order::Greater => other.min.clone(),
            _ => self.min,
        };
        let max = match self.max.partial_cmp(&other.max)? {
            Order::Less => other.max.clone(),
            _ => self.max,
        };
        Some(Self { min, max })
    }

    /// Share of values between these that are between the others as well, if all are as frequent; 0 only if
    /// there can be none.
    fn share_within(&self, other: &Self) -> f64 {
        if self.max < other.min || self.min > other.max {
            return 0.0;
        }
        let number = |value: &ScalarValue| match value.cast_to(&DataType::Int64) {
            Ok(ScalarValue::Int64(Some(number))) => Some(number as f64),
            _ => None,
        };
        let share = || {
            let (min, max) = (number(&self.min)?, number(&self.max)?);
            let (from, to) = (number(&other.min)?.max(min), number(&other.max)?.min(max));
            Some((to - from + 1.0) / (max - min + 1.0))
        };
        share().unwrap_or(1.0)
    }
}

/// What is known of the group columns of each segment that an answer is about, in the order of the columns.
type Segments = HashMap<SegmentId, Vec<Option<Bounds>>>;

/// One answer.
struct Kept {
    table: Arc<str>,
    text: String,
    segments: Segments,
    /// Its rows, in the partitions in which the plan gives them.
    partitions: Vec<Option<RecordBatch>>,
    bytes: u64,
    uses: AtomicU64,
    used_at: AtomicU64,
    _charge: Arc<MemoryReservation>,
}

/// What is kept of one answer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    /// The table.
    pub table: Arc<str>,
    /// What the answer is.
    pub text: String,
    /// Segments that it is about.
    pub segments: u64,
    /// Its groups.
    pub rows: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// Queries that used it.
    pub uses: u64,
}

/// All answers that are kept, by what names them.
#[derive(Default)]
pub struct KeptGroups {
    answers: Mutex<HashMap<u128, Arc<Kept>>>,
    uses: AtomicU64,
}

impl fmt::Debug for KeptGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptGroups")
    }
}

impl KeptGroups {
    fn lock(&self) -> MutexGuard<'_, HashMap<u128, Arc<Kept>>> {
        // Every change leaves the map whole.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: u128) -> Option<Arc<Kept>> {
        self.lock().get(&id).cloned()
    }

    /// A query uses an answer.
    fn used(&self, kept: &Kept) {
        kept.uses.fetch_add(1, Ordering::Relaxed);
        kept.used_at.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Keeps an answer in place of the one before. Others that were not used for longer give way; if there
    /// is no room then, nothing is kept.
    fn keep(&self, node: &NodeState, id: u128, (table, text): (&Arc<str>, &str), new: Gathered) {
        let batches = new.partitions.iter().flatten();
        let bytes: usize = batches.map(RecordBatch::get_array_memory_size).sum();
        if bytes > ANSWER_BYTES_MAX || !node.store_policy().enabled {
            return;
        }
        let bytes = bytes as u64;
        let mut answers = self.lock();
        let before = answers.remove(&id);
        let uses = before.map_or(0, |before| before.uses.load(Ordering::Relaxed));
        let charge = loop {
            let has_place = answers.len() < ANSWERS_MAX;
            if let Some(charge) = has_place.then(|| node.charge("kept groups", bytes)).flatten() {
                break charge;
            }
            let oldest = answers.iter().min_by_key(|(_, it)| it.used_at.load(Ordering::Relaxed));
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            answers.remove(&oldest);
        };
        let kept = Kept {
            table: Arc::clone(table),
            text: text.to_owned(),
            segments: new.segments,
            partitions: new.partitions,
            bytes,
            uses: AtomicU64::new(uses),
            used_at: AtomicU64::new(self.uses.fetch_add(1, Ordering::Relaxed)),
            _charge: charge,
        };
        answers.insert(id, Arc::new(kept));
    }

    /// Throws the answers about a table away, or all; says how many there were.
    pub fn forget(&self, table: Option<&str>) -> u64 {
        let mut answers = self.lock();
        let before = answers.len();
        answers.retain(|_, kept| table.is_some_and(|table| *kept.table != *table));
        (before - answers.len()) as u64
    }

    /// All that are kept.
    #[must_use]
    pub fn list(&self) -> Vec<KeptAnswer> {
        let listed = |kept: &Arc<Kept>| KeptAnswer {
            table: Arc::clone(&kept.table),
            text: kept.text.clone(),
            segments: kept.segments.len() as u64,
            rows: kept.partitions.iter().flatten().map(|batch| batch.num_rows() as u64).sum(),
            bytes: kept.bytes,
            uses: kept.uses.load(Ordering::Relaxed),
        };
        self.lock().values().map(listed).collect()
    }
}

/// A whole answer.
struct Gathered {
    segments: Segments,
    partitions: Vec<Option<RecordBatch>>,
}

#[cfg(test)]
mod tests;
