//! Everything that can go wrong, with one stable code each and one table of what each protocol is told.
//!
//! A message is one clear sentence in lower case that names the value and the bound. The code
//! (`FS-AREA-n`) never changes its meaning; clients may rely on it.

mod classify;
mod facts;
mod nearest;

use std::path::PathBuf;

use datafusion::error::DataFusionError;
use foreshard_actors::announcements::AnnouncementError;
use foreshard_actors::controls::RequestError;
use foreshard_actors::loop_handle::LoopError;
use foreshard_actors::spill::BucketError;
use foreshard_actors::store::StoreError;
use foreshard_udfs::FunctionError;

pub use self::nearest::nearest;
use crate::cluster::{MemberError, ProviderError};
use crate::config::ConfigError;

/// A place in a SQL text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line, counted from one.
    pub line: u64,
    /// Column in characters, counted from one.
    pub column: u64,
}

/// What went wrong, for whoever uses the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The SQL text cannot be parsed.
    #[error("{message}{}", at(position))]
    Syntax {
        /// What the parser expected and what it found.
        message: String,
        /// Where in the text.
        position: Option<Position>,
    },
    /// A table that the catalog does not have.
    #[error("unknown table {name}{}", did_you_mean(nearest))]
    UnknownTable {
        /// The name that was asked for.
        name: String,
        /// The most similar name that exists.
        nearest: Option<String>,
    },
    /// A column that no table of the statement has.
    #[error("unknown column {name}{}", did_you_mean(nearest))]
    UnknownColumn {
        /// The name that was asked for.
        name: String,
        /// The most similar name that exists.
        nearest: Option<String>,
    },
    /// A function that is not registered.
    #[error("unknown function {name}{}", did_you_mean(nearest))]
    UnknownFunction {
        /// The name that was asked for.
        name: String,
        /// The most similar name that exists.
        nearest: Option<String>,
    },
    /// Types that do not fit a function or an operator.
    #[error("{message}")]
    Type {
        /// Which types met where.
        message: String,
    },
    /// A statement whose chain of operators is too long to plan safely.
    #[error(
        "the statement chains {terms} terms; at most {max} are allowed (limits.statement-terms-max)"
    )]
    TooComplex {
        /// Terms of the longest chain.
        terms: usize,
        /// The bound.
        max: usize,
    },
    /// Not exactly one statement where one is asked for.
    #[error("expected one statement, found {found}")]
    NotOneStatement {
        /// Statements in the text.
        found: usize,
    },
    /// A statement that is well formed and makes no sense.
    #[error("{message}")]
    Invalid {
        /// Why.
        message: String,
    },
    /// SQL that this engine does not do.
    #[error("not supported: {message}")]
    NotSupported {
        /// What is not supported.
        message: String,
    },
    /// A parameter of a prepared statement that does not fit.
    #[error("parameter ${index} {reason}")]
    Parameter {
        /// Position, counted from one.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A wrong number of parameters.
    #[error("the statement takes {expected} parameters and {given} were given")]
    ParameterCount {
        /// Parameters of the statement.
        expected: usize,
        /// Parameters that came.
        given: usize,
    },
    /// A table that is there already.
    #[error("table {name} exists already")]
    TableExists {
        /// Its name.
        name: String,
    },
    /// A write to a table that cannot be written.
    #[error("table {name} is read-only")]
    ReadOnly {
        /// Its name.
        name: String,
    },
    /// A prepared statement that is not, or no longer, there.
    #[error("prepared statement {handle} is not known; it was closed or was idle for too long")]
    UnknownStatement {
        /// Its handle.
        handle: String,
    },
    /// More open things than allowed.
    #[error("too many {what}: at most {max} may be open")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// An answer of more rows or bytes than allowed.
    #[error("the answer has more than {max} {unit} ({setting})")]
    AnswerTooLarge {
        /// The bound.
        max: u64,
        /// What is counted.
        unit: &'static str,
        /// The setting that bounds it.
        setting: &'static str,
    },
    /// The time allowed for a query is over.
    #[error("the query took longer than {seconds} s (limits.query-seconds){during}")]
    Timeout {
        /// The bound.
        seconds: u64,
        /// The function call that it was about; empty if it was about none.
        during: String,
    },
    /// The client went away or asked to stop.
    #[error("the query was cancelled")]
    Cancelled,
    /// The memory budget does not allow it now.
    #[error("out of memory budget: {message}")]
    Memory {
        /// Who wanted how much of what.
        message: String,
    },
    /// A value that an expression cannot take: division by zero, overflow, a bad cast.
    #[error("{message}")]
    Value {
        /// Which value.
        message: String,
        /// The kind of mistake.
        mistake: ValueMistake,
    },
    /// The query failed while it ran, for a reason that has no code of its own.
    #[error("{}", classify::sentence(&.0.to_string()))]
    Execution(#[source] Box<DataFusionError>),
    /// A broken assumption in the engine or in a library below it; please report it.
    #[error("a defect of the engine: {}", classify::sentence(&.0.to_string()))]
    Defect(#[source] Box<DataFusionError>),
    /// A node went away while it worked for a query.
    #[error("node {node} was lost while it worked for the query")]
    NodeLost {
        /// Its name or address.
        node: String,
    },
    /// The engine is being shut down.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// A file or folder that is not there.
    #[error("{path} does not exist")]
    Missing {
        /// Its path or URL.
        path: String,
    },
    /// A file that cannot be understood, for example cut short.
    #[error("a file is damaged: {message}")]
    Damaged {
        /// Which, and how.
        message: String,
    },
    /// A folder that cannot be written to.
    #[error("{path} cannot be written to: {source}")]
    Unwritable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another failure of a disk, a network or an object store.
    #[error("input or output failed: {message}")]
    Io {
        /// What failed.
        message: String,
    },
    /// An address that another program listens on.
    #[error("address {address} is in use by another program")]
    PortInUse {
        /// The address.
        address: String,
    },
    /// An address that cannot be listened on or reached.
    #[error("cannot use address {address}: {reason}")]
    Address {
        /// The address.
        address: String,
        /// Why not.
        reason: String,
    },
    /// A request body that is larger than allowed.
    #[error("the request is larger than {bytes_max} bytes (limits.request-bytes)")]
    RequestTooLarge {
        /// The bound.
        bytes_max: usize,
    },
    /// A request that is not what the service takes.
    #[error("{reason}")]
    Request {
        /// What is wrong with it.
        reason: String,
    },
    /// A form of answer that the service cannot give.
    #[error("cannot answer as {accept:?}; {offered} are possible")]
    NotAcceptable {
        /// What the client accepts.
        accept: String,
        /// What is possible.
        offered: &'static str,
    },
    /// The exporter of traces cannot be set up.
    #[error("traces cannot be exported to {endpoint:?}: {reason}")]
    Telemetry {
        /// The configured endpoint.
        endpoint: String,
        /// Why not.
        reason: String,
    },
    /// A setting that cannot be.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// An error of a table's store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no object store for stored outputs that find no room in memory.
    #[error(transparent)]
    Spill(#[from] BucketError),
    /// An error of a registered function.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// An error of the loop that forecasts and acts.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// An announcement that cannot be, or cannot be kept.
    #[error(transparent)]
    Announcement(#[from] AnnouncementError),
    /// What people asked of the loop that cannot be, or cannot be kept.
    #[error(transparent)]
    Control(#[from] RequestError),
    /// An error of the cluster's nodes and replicas.
    #[error(transparent)]
    Cluster(#[from] MemberError),
    /// Nodes cannot be started or stopped.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// An error that kept its code and its text and lost the rest: it came over the network, or
    /// several tasks share it.
    #[error("{message}")]
    Relayed {
        /// Code of the original.
        code: &'static str,
        /// Text of the original.
        message: String,
    },
}

/// What kind of mistake a [`EngineError::Value`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueMistake {
    /// Division by zero.
    DivisionByZero,
    /// A number out of the range of its type.
    Overflow,
    /// Text or a number that cannot be cast.
    Cast,
}

impl EngineError {
    /// The stable code, for example `FS-SQL-1`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Setting(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Spill(error) => error.code(),
            Self::Function(error) => error.code(),
            Self::Loop(error) => error.code(),
            Self::Announcement(error) => error.code(),
            Self::Control(error) => error.code(),
            Self::Cluster(error) => error.code(),
            Self::Provider(error) => error.code(),
            Self::Relayed { code, .. } => code,
            own => own.facts().code,
        }
    }

    /// Whether the same request may succeed when it is sent again, unchanged.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Spill(error) => error.is_retryable(),
            Self::Function(error) => error.is_retryable(),
            other => other.facts().retryable,
        }
    }

    /// Status of the HTTP response that reports this error.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        self.facts().http
    }

    /// Status code of the gRPC response that reports this error.
    #[must_use]
    pub fn grpc_code(&self) -> tonic::Code {
        self.facts().grpc
    }

    /// The SQLSTATE that ODBC, JDBC and ADBC clients know this kind of error by.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::Value { mistake: ValueMistake::DivisionByZero, .. } => "22012",
            Self::Value { mistake: ValueMistake::Overflow, .. } => "22003",
            Self::Value { mistake: ValueMistake::Cast, .. } => "22018",
            other => other.facts().sqlstate,
        }
    }

    /// The text that a prompt shows: `error[FS-SQL-1]: ...`.
    #[must_use]
    pub fn line(&self) -> String {
        format!("error[{}]: {self}", self.code())
    }

    /// Classifies an error of DataFusion by what lies at the bottom of its source chain.
    ///
    /// An [`EngineError`], [`StoreError`] or [`FunctionError`] that travelled inside keeps its code,
    /// also when it came from another node as text in the form of [`Self::into_datafusion`].
    #[must_use]
    pub fn from_datafusion(error: DataFusionError) -> Self {
        classify::classify(error)
    }

    /// Wraps this error for a trip through DataFusion, so that [`Self::from_datafusion`] finds its
    /// code again, also on another node.
    #[must_use]
    pub fn into_datafusion(self) -> DataFusionError {
        DataFusionError::External(Box::new(classify::Travelling(self)))
    }

    /// Names the most similar of `names` if this is an error about an unknown name that has no
    /// suggestion yet.
    #[must_use]
    pub fn with_nearest<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        if let Self::UnknownTable { name, nearest: near @ None }
        | Self::UnknownColumn { name, nearest: near @ None }
        | Self::UnknownFunction { name, nearest: near @ None } = &mut self
        {
            *near = nearest(name, names).map(str::to_owned);
        }
        self
    }

    /// The error for a listener that could not be opened on `address`.
    #[must_use]
    pub fn listen(address: &str, error: &std::io::Error) -> Self {
        let address = address.to_owned();
        match error.kind() {
            std::io::ErrorKind::AddrInUse => Self::PortInUse { address },
            _ => Self::Address { address, reason: classify::sentence(&error.to_string()) },
        }
    }
}

impl From<DataFusionError> for EngineError {
    fn from(error: DataFusionError) -> Self {
        Self::from_datafusion(error)
    }
}

impl From<datafusion::arrow::error::ArrowError> for EngineError {
    fn from(error: datafusion::arrow::error::ArrowError) -> Self {
        Self::from_datafusion(error.into())
    }
}

impl From<EngineError> for DataFusionError {
    fn from(error: EngineError) -> Self {
        error.into_datafusion()
    }
}

impl From<EngineError> for tonic::Status {
    fn from(error: EngineError) -> Self {
        Self::new(error.grpc_code(), format!("[{}] {error}", error.code()))
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

fn at(position: &Option<Position>) -> String {
    position.map_or_else(String::new, |at| format!(" at line {}, column {}", at.line, at.column))
}

#[cfg(test)]
mod tests;
