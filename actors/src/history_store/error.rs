//! What can go wrong while the history is kept on disk.

use std::io;
use std::path::{Path, PathBuf};

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

/// The history cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryStoreError {
    /// The disk refused something.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// Another process keeps its history there.
    #[error("{path} is in use by another process")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file holds something else than it should.
    #[error("{path} is unreadable: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Rows cannot be written.
    #[error("rows of the history cannot be written: {reason}")]
    Unwritable {
        /// What is wrong with them.
        reason: String,
    },
    /// The same file was imported before; its calls would count twice.
    #[error("{path} was imported before")]
    ImportedBefore {
        /// The file.
        path: PathBuf,
    },
    /// A file has more rows than are imported at once.
    #[error("{path} has more than {rows_max} rows; export shorter times")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        rows_max: usize,
    },
    /// The store was closed, or never opened.
    #[error("no history is kept on disk")]
    Closed,
}

impl HistoryStoreError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "FS-HISTORY-3",
            Self::InUse { .. } => "FS-HISTORY-4",
            Self::Unreadable { .. } => "FS-HISTORY-5",
            Self::Unwritable { .. } => "FS-HISTORY-6",
            Self::ImportedBefore { .. } => "FS-HISTORY-7",
            Self::TooLarge { .. } => "FS-HISTORY-8",
            Self::Closed => "FS-HISTORY-9",
        }
    }

    /// Whether the same may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::InUse { .. })
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn unreadable<E: ToString>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |reason| Self::Unreadable { path, reason: reason.to_string() }
    }
}

impl From<ArrowError> for HistoryStoreError {
    fn from(error: ArrowError) -> Self {
        Self::Unwritable { reason: error.to_string() }
    }
}

impl From<ParquetError> for HistoryStoreError {
    fn from(error: ParquetError) -> Self {
        Self::Unwritable { reason: error.to_string() }
    }
}
