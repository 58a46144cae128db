//! What can go wrong while rows are kept: one code per kind, fields instead of prose.

use std::sync::Arc;

use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use deltalake_core::DeltaTableError;
use foreshard_policy::ids::SegmentId;
use parquet::errors::ParquetError;

use crate::partitioning::PartitioningError;

/// Why a commit was refused although nothing is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConflictReason {
    /// A segment that the change replaces was removed by a commit that came first.
    #[error("segment {segment} was removed by an earlier commit")]
    SegmentGone {
        /// The segment.
        segment: SegmentId,
    },
    /// A partition that the change adds rows to was split or merged by a commit that came first.
    #[error("partition {ordinal} was split or merged by an earlier commit")]
    PartitionGone {
        /// The partition.
        ordinal: u32,
    },
    /// Rows were added to a partition that the change splits or merges.
    #[error("rows were added to partition {ordinal} by an earlier commit")]
    PartitionWritten {
        /// The partition.
        ordinal: u32,
    },
    /// Partitions were split or merged since the new layout was made.
    #[error("partitions were split or merged by an earlier commit")]
    LayoutChanged,
    /// Schema, key or properties were changed since the table was opened.
    #[error("the table's metadata was changed at version {version}; open the table again")]
    MetadataChanged {
        /// Version that changed them.
        version: u64,
    },
}

/// A table cannot be read, written, created or opened.
///
/// Clones share their source, because one failed log entry may carry the changes of many callers.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The change was computed from a snapshot that is no longer the newest one. Nothing was
    /// written: compute it again.
    #[error("commit to table {table:?} was refused: {reason}")]
    Conflict {
        /// Table.
        table: String,
        /// Which rule refused it.
        reason: ConflictReason,
    },
    /// A newer writer has taken over this application's sequence.
    #[error(
        "commit {sequence} of {application:?} to table {table:?} was refused: {newest} is already there"
    )]
    Fenced {
        /// Table.
        table: String,
        /// Name of the application transaction.
        application: String,
        /// Its sequence.
        sequence: i64,
        /// Newest sequence in the log.
        newest: i64,
    },
    /// The object store failed.
    #[error("{action} {path:?} failed: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Path below the root of the table.
        path: String,
        /// What the store said.
        source: Arc<object_store::Error>,
    },
    /// Bytes are not what they must be.
    #[error("{path:?} is damaged: {what}")]
    Corrupt {
        /// Path below the root of the table.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file that a snapshot names is not there.
    #[error("file {path:?} is missing; was the table vacuumed while a query ran")]
    Missing {
        /// Path below the root of the table.
        path: String,
    },
    /// A foreign file was replaced after the snapshot was taken.
    #[error("file {path:?} was changed after the snapshot was taken; refresh the table")]
    Changed {
        /// Path below the root of the table.
        path: String,
    },
    /// A column's type cannot be kept exactly.
    #[error(
        "column {column:?} has type {data_type}, which a managed table cannot keep; use {alternatives}"
    )]
    UnsupportedType {
        /// Column, with its path when it is nested.
        column: String,
        /// Its type.
        data_type: DataType,
        /// What to use instead.
        alternatives: &'static str,
    },
    /// The table uses something that this engine does not.
    #[error("table at {path:?} cannot be used: {what}")]
    Unsupported {
        /// Location.
        path: String,
        /// What it uses.
        what: String,
    },
    /// Rows or files do not have the table's schema.
    #[error("{path:?} has {found}; expected {expected}")]
    SchemaMismatch {
        /// File or table.
        path: String,
        /// What the table asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The table is made of existing files that are never written.
    #[error("table {table:?} is read-only")]
    ReadOnly {
        /// Table.
        table: String,
    },
    /// The store refuses to be written to.
    #[error("{path:?} cannot be written: {source}")]
    NotWritable {
        /// Path.
        path: String,
        /// What the store said.
        source: Arc<object_store::Error>,
    },
    /// The store did not answer in time.
    #[error("{action} {path:?} took more than {limit_ms} ms")]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// Path below the root of the table.
        path: String,
        /// The limit in milliseconds.
        limit_ms: u64,
    },
    /// The log entry was sent, no answer came, and it is not (yet) there: it may still appear.
    ///
    /// Safe to retry only with an application transaction, which finds out.
    #[error("whether version {version} of table {table:?} was written is unknown: {source}")]
    InDoubt {
        /// Table.
        table: String,
        /// Version that the entry would get.
        version: u64,
        /// The last failure.
        source: Arc<StoreError>,
    },
    /// There is a table already.
    #[error("there is a table already at {url}")]
    Exists {
        /// Location.
        url: String,
    },
    /// There is no table.
    #[error("there is no table at {url}: {what}")]
    NotATable {
        /// Location.
        url: String,
        /// What is missing.
        what: &'static str,
    },
    /// A partition does not exist.
    #[error("partition {ordinal} of table {table:?} does not exist; it has {partitions}")]
    NoSuchPartition {
        /// Table.
        table: String,
        /// Ordinal asked for.
        ordinal: u32,
        /// Number of partitions.
        partitions: u32,
    },
    /// The rows of a segment are not in this process.
    #[error("segment {segment} of table {table:?} is not here")]
    NoSuchSegment {
        /// Table.
        table: String,
        /// The segment.
        segment: SegmentId,
    },
    /// A bound of an operation is out of range.
    #[error("{what} is {value} ms; it must be at least {least} ms")]
    TooShort {
        /// Which bound.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The least allowed.
        least: u64,
    },
    /// The Parquet library refused.
    #[error("Parquet file {path:?}: {source}")]
    Parquet {
        /// Path below the root of the table.
        path: String,
        /// What it said.
        source: Arc<ParquetError>,
    },
    /// Arrow could not convert values.
    #[error("values of {path:?} cannot be converted: {source}")]
    Arrow {
        /// File or table.
        path: String,
        /// What it said.
        source: Arc<ArrowError>,
    },
    /// The Delta library failed.
    #[error("{action} of the table at {url} failed: {source}")]
    Delta {
        /// What was tried.
        action: &'static str,
        /// Location.
        url: String,
        /// What it said.
        source: Arc<DeltaTableError>,
    },
    /// The table cannot be partitioned as asked.
    #[error(transparent)]
    Partitioning(Arc<PartitioningError>),
    /// The task that carried the operation ended without an answer (the runtime is shutting down).
    #[error("{action} of table {table:?} was cut off; whether it happened is unknown")]
    CutOff {
        /// What was cut off.
        action: &'static str,
        /// Table.
        table: String,
    },
}

impl StoreError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "FS-STORE-1",
            Self::Fenced { .. } => "FS-STORE-2",
            Self::Io { .. } => "FS-STORE-3",
            Self::Corrupt { .. } => "FS-STORE-4",
            Self::Missing { .. } => "FS-STORE-5",
            Self::Changed { .. } => "FS-STORE-6",
            Self::UnsupportedType { .. } => "FS-STORE-7",
            Self::Unsupported { .. } => "FS-STORE-8",
            Self::SchemaMismatch { .. } => "FS-STORE-9",
            Self::ReadOnly { .. } => "FS-STORE-10",
            Self::NotWritable { .. } => "FS-STORE-11",
            Self::Timeout { .. } => "FS-STORE-12",
            Self::InDoubt { .. } => "FS-STORE-13",
            Self::Exists { .. } => "FS-STORE-14",
            Self::NotATable { .. } => "FS-STORE-15",
            Self::NoSuchPartition { .. } => "FS-STORE-16",
            Self::NoSuchSegment { .. } => "FS-STORE-17",
            Self::TooShort { .. } => "FS-STORE-18",
            Self::Parquet { .. } => "FS-STORE-19",
            Self::Arrow { .. } => "FS-STORE-20",
            Self::Delta { .. } => "FS-STORE-21",
            Self::Partitioning(inner) => inner.code(),
            Self::CutOff { .. } => "FS-STORE-22",
        }
    }

    /// Whether the same call may succeed later and does no harm when made again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Conflict { reason, .. } => {
                !matches!(reason, ConflictReason::MetadataChanged { .. })
            }
            Self::Io { .. } | Self::Timeout { .. } | Self::Changed { .. } => true,
            _ => false,
        }
    }

    /// An object store's failure at `path`.
    pub(crate) fn io(action: &'static str, path: &str, source: object_store::Error) -> Self {
        use object_store::Error;
        let path = path.to_owned();
        match source {
            Error::NotFound { .. } => Self::Missing { path },
            Error::Precondition { .. } | Error::NotModified { .. } => Self::Changed { path },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } if action == WRITE => {
                Self::NotWritable { path, source: Arc::new(source) }
            }
            source => Self::Io { action, path, source: Arc::new(source) },
        }
    }

    /// A failure inside the Parquet library, unwrapped when the cause is one of ours.
    pub(crate) fn parquet(path: &str, source: ParquetError) -> Self {
        match source {
            ParquetError::External(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(inner) => match inner.downcast::<object_store::Error>() {
                    Ok(store) => Self::io(READ, path, *store),
                    Err(inner) => Self::Parquet {
                        path: path.to_owned(),
                        source: Arc::new(ParquetError::External(inner)),
                    },
                },
            },
            ParquetError::EOF(what) | ParquetError::General(what) => {
                Self::Corrupt { path: path.to_owned(), what }
            }
            source => Self::Parquet { path: path.to_owned(), source: Arc::new(source) },
        }
    }

    /// A failure while rows are read, unwrapped when the cause is one of ours.
    pub(crate) fn rows(path: &str, source: DataFusionError) -> Self {
        match source {
            DataFusionError::External(inner) => Self::parquet(path, ParquetError::External(inner)),
            DataFusionError::ParquetError(inner) => Self::parquet(path, *inner),
            other => Self::parquet(path, ParquetError::External(Box::new(other))),
        }
    }

    pub(crate) fn arrow(path: &str, source: ArrowError) -> Self {
        Self::Arrow { path: path.to_owned(), source: Arc::new(source) }
    }

    pub(crate) fn delta(action: &'static str, url: &str, source: DeltaTableError) -> Self {
        Self::Delta { action, url: url.to_owned(), source: Arc::new(source) }
    }
}

/// The word for writing in [`StoreError::Io`].
pub(crate) const WRITE: &str = "write";
/// The word for reading in [`StoreError::Io`].
pub(crate) const READ: &str = "read";
/// The word for listing in [`StoreError::Io`].
pub(crate) const LIST: &str = "list";

impl From<PartitioningError> for StoreError {
    fn from(source: PartitioningError) -> Self {
        Self::Partitioning(Arc::new(source))
    }
}

impl From<StoreError> for DataFusionError {
    fn from(error: StoreError) -> Self {
        Self::External(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_segment_may_be_tried_again_and_says_which() {
        let error = StoreError::Conflict {
            table: "trades".into(),
            reason: ConflictReason::SegmentGone { segment: SegmentId(7) },
        };
        assert!(error.is_retryable());
        assert_eq!(error.code(), "FS-STORE-1");
        assert_eq!(
            error.to_string(),
            "commit to table \"trades\" was refused: segment 00000000000000000000000000000007 \
             was removed by an earlier commit"
        );
    }

    #[test]
    fn a_missing_object_is_a_missing_file_whoever_wraps_it() {
        let missing = object_store::Error::NotFound { path: "x".into(), source: "gone".into() };
        let wrapped = ParquetError::External(Box::new(missing));
        assert!(matches!(StoreError::parquet("x", wrapped), StoreError::Missing { .. }));
    }
}
