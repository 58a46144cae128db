//! What can go wrong with the demo.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::error::EngineError;

/// The demo cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The user's data cannot be read.
    #[error("cannot read Parquet from {}: {reason}", path.display())]
    Data {
        /// The file or folder that was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The user's data have nothing to call functions on.
    #[error("{} has no column to call functions on; it needs text or floating-point columns, and its columns are {columns}", path.display())]
    NoColumns {
        /// The file or folder that was named.
        path: PathBuf,
        /// Columns and their types.
        columns: String,
    },
    /// A file of the demo cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The demo's own rows cannot be built.
    #[error("the demo's rows cannot be built: {source}")]
    Rows {
        /// What Arrow said.
        #[from]
        source: arrow::error::ArrowError,
    },
    /// A function cannot be measured before the day begins.
    #[error("{expression} cannot be measured: {reason}")]
    Measure {
        /// The function expression.
        expression: String,
        /// What happened.
        reason: String,
    },
    /// A setting that the demo makes does not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl DemoError {
    /// Stable code for logs and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Data { .. } => "FS-DEMO-1",
            Self::NoColumns { .. } => "FS-DEMO-2",
            Self::Write { .. } => "FS-DEMO-3",
            Self::Rows { .. } => "FS-DEMO-4",
            Self::Measure { .. } => "FS-DEMO-5",
            Self::Config(error) => error.code(),
            Self::Engine(error) => error.code(),
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Engine(error) if error.is_retryable())
    }
}
