//! Segments: immutable sets of rows, only ever added and removed.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use foreshard_policy::ids::SegmentId;
use serde::{Deserialize, Serialize};

/// The rows of one segment, in their fixed order.
pub type Rows = Arc<[RecordBatch]>;

/// Where the rows of a segment can be read from when no replica holds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// In the memory of the process that owns the table; others fetch them from there.
    Memory,
    /// A Parquet file below the table's root, wholly or one row group of it.
    Parquet {
        /// Path of the file relative to the root of the table's object store.
        path: Arc<str>,
        /// Size of the file in bytes.
        file_bytes: u64,
        /// The row group that is the segment; `None` for the whole file.
        row_group: Option<u32>,
    },
}

/// What is known of one column of a segment without reading it.
///
/// Floats of a segment that holds a NaN, and floats of foreign files, have no bounds: Parquet and
/// Delta statistics ignore NaN, so pruning by them would change answers.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnRange {
    /// Smallest value that is not NULL, if known.
    pub min: Option<ScalarValue>,
    /// Largest value that is not NULL, if known.
    pub max: Option<ScalarValue>,
    /// Number of NULLs, if known.
    pub nulls: Option<u64>,
}

impl ColumnRange {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { min: None, max: None, nulls: None };
}

/// An immutable set of rows of one partition.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Identity; the rows behind an id never change.
    pub id: SegmentId,
    /// Ordinal of the partition that the segment belongs to.
    pub partition: u32,
    /// Number of rows.
    pub rows: u64,
    /// Approximate bytes when resident as Arrow.
    pub bytes: u64,
    /// One entry per column of the table, or empty if nothing is known.
    pub columns: Vec<ColumnRange>,
    /// Where to read the rows.
    pub location: Location,
    /// The rows themselves if the segment belongs to a memory table of this process: whoever pins a
    /// snapshot keeps them alive, also when a later commit removes the segment.
    pub pinned: Option<Rows>,
}
