//! Tables and their snapshots, and what a store of segments must be able to do.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use foreshard_policy::ids::SegmentId;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::partitioning::Partitioning;
use crate::segment::{Rows, Segment};
use crate::store::StoreError;

/// How a table keeps its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// A Delta Lake table that this engine writes: durable before a write is acknowledged.
    Managed,
    /// Existing Parquet files, never written.
    Parquet,
    /// Rows in memory, lost when the process ends.
    Memory,
}

impl TableKind {
    /// The word used in SQL and in `system` tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Managed => "managed",
            Self::Parquet => "parquet",
            Self::Memory => "memory",
        }
    }
}

/// What does not change about a table.
#[derive(Debug)]
pub struct Table {
    /// Name as registered in the catalog.
    pub name: Arc<str>,
    /// Logical Arrow schema: what queries see.
    pub schema: SchemaRef,
    /// How it was partitioned when it was made or opened. Partitions are split and merged since: which
    /// there are, and which rows they hold, says the layout of a snapshot.
    pub partitioning: Partitioning,
    /// How rows are kept.
    pub kind: TableKind,
    /// Root of the table's files as a URL; `None` for a memory table.
    pub url: Option<url::Url>,
}

/// One version of a table: the segments of every partition. A query reads exactly one.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The table.
    pub table: Arc<Table>,
    /// Version; grows by at least one with each commit.
    pub version: u64,
    /// Which partition holds which rows.
    pub layout: Arc<Layout>,
    /// Segments by partition ordinal; empty where the layout has no such partition.
    pub partitions: Vec<Arc<Vec<Arc<Segment>>>>,
}

impl Snapshot {
    /// Every segment, partition by partition.
    pub fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.partitions.iter().flat_map(|partition| partition.iter())
    }

    /// Number of rows in all partitions.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.segments().map(|segment| segment.rows).sum()
    }
}

/// What a commit does; recorded in the log of a managed table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Rows are added.
    Insert,
    /// Rows are changed in place.
    Update,
    /// Rows are removed.
    Delete,
    /// All rows are removed.
    Truncate,
    /// The same rows are laid out anew (split, merge, compact).
    Rewrite,
}

/// Another layout, as part of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLayout {
    /// The layout that it was made of. If the table has another one by then, the change is refused.
    pub from: Arc<Layout>,
    /// The layout from then on. The change removes all segments of partitions that it does not have; if
    /// others were added to them meanwhile, it is refused.
    pub to: Arc<Layout>,
}

/// One atomic change of a table.
#[derive(Clone, Debug)]
pub struct Change {
    /// What is done.
    pub operation: Operation,
    /// Segments that must still be there and are replaced; if one is gone the commit is refused with
    /// [`StoreError::Conflict`].
    pub removed: Vec<SegmentId>,
    /// New rows by partition ordinal. Each entry becomes one segment, its rows in their order. Empty
    /// batches are dropped. If a partition was split or merged meanwhile, the change is refused with
    /// [`StoreError::Conflict`]: its rows must be dealt out again.
    pub added: Vec<(u32, Vec<RecordBatch>)>,
    /// Another layout of partitions, if the change makes one.
    pub layout: Option<NewLayout>,
    /// Application transaction `(name, sequence)`: a sequence that was already committed is not
    /// committed again, an older one is refused.
    pub transaction: Option<(String, i64)>,
}

/// What a commit brought about.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The snapshot that contains the change.
    pub snapshot: Arc<Snapshot>,
    /// The new segments with their rows, so that replicas need not read them back.
    pub added: Vec<(Arc<Segment>, Rows)>,
    /// New segments with rows that were there before, as far as the writer knows: a store does not.
    pub rewritten: Vec<Rewritten>,
}

/// Where a new segment has its first rows from; those behind them are new.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The new segment.
    pub segment: SegmentId,
    /// Removed segments, one after the other: for each of its rows whether it was kept. Kept rows have
    /// the order that they had.
    pub kept: Vec<(SegmentId, BooleanBuffer)>,
}

/// Keeps the segments of one table.
#[async_trait]
pub trait TableStore: Debug + Send + Sync {
    /// The table.
    fn table(&self) -> &Arc<Table>;

    /// The newest snapshot known here. No I/O.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// Looks for commits of other processes and returns the newest snapshot.
    async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError>;

    /// Commits `change` on top of the newest snapshot: all of it or nothing, durable before this
    /// returns when the table is managed. It carries on when the caller stops waiting.
    async fn commit(&self, change: Change) -> Result<Committed, StoreError>;

    /// Reads the rows of `segment`, in their fixed order, cast to the table's schema.
    ///
    /// `projection` names columns of the table's schema, `None` all of them.
    async fn read(
        &self,
        segment: &Segment,
        projection: Option<&[usize]>,
    ) -> Result<SendableRecordBatchStream, StoreError>;
}
