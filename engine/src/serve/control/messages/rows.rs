//! What nodes and their coordinator say of rows in files, and of what each table may use.

use datafusion::common::{Result, exec_datafusion_err};
use foreshard_actors::ports::Outcome;
use foreshard_policy::budgets::Shares;
use foreshard_policy::cluster::RowsView;
use prost::Message;

use super::{Computed, PartitionMessage};

/// Rows of a replica that are in files.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct RowsMessage {
    /// Bytes in memory.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// Bytes that are not.
    #[prost(uint64, tag = "2")]
    pub bytes_missing: u64,
    /// Milliseconds since a query read it, or rows came into memory.
    #[prost(uint64, tag = "3")]
    pub idle_ms: u64,
    /// Nanoseconds that reading all of it from files takes.
    #[prost(double, tag = "4")]
    pub read_ns: f64,
}

impl From<RowsView> for RowsMessage {
    fn from(rows: RowsView) -> Self {
        let RowsView { bytes, bytes_missing, idle_ms, read_ns } = rows;
        Self { bytes, bytes_missing, idle_ms, read_ns }
    }
}

impl From<RowsMessage> for RowsView {
    fn from(rows: RowsMessage) -> Self {
        let RowsMessage { bytes, bytes_missing, idle_ms, read_ns } = rows;
        Self { bytes, bytes_missing, idle_ms, read_ns }
    }
}

/// Have the rows of a partition that are in files in memory, or not.
#[derive(Clone, PartialEq, Message)]
pub struct RowsRequest {
    /// Of what.
    #[prost(message, optional, tag = "1")]
    pub partition: Option<PartitionMessage>,
    /// Whether they are to be read into memory, or let go.
    #[prost(bool, tag = "2")]
    pub in_memory: bool,
}

/// Which part of what a node has each table gets.
#[derive(Clone, PartialEq, Message)]
pub struct SharesMessage {
    /// The parts, as JSON.
    #[prost(bytes = "vec", tag = "1")]
    pub json: Vec<u8>,
}

impl SharesMessage {
    pub(crate) fn new(shares: &Shares) -> Self {
        // Numbers by name: nothing that JSON has no form for.
        Self { json: serde_json::to_vec(shares).unwrap_or_default() }
    }

    pub(crate) fn shares(&self) -> Result<Shares> {
        serde_json::from_slice(&self.json)
            .map_err(|error| exec_datafusion_err!("parts of tables cannot be read: {error}"))
    }
}

impl From<Outcome> for Computed {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done { rows, bytes, ns } => Self { rows, bytes, ns, ..Self::default() },
            Outcome::Reshaped { bytes, .. } => Self { bytes, ..Self::default() },
            Outcome::Failed { code, reason } => {
                Self { code: code.to_owned(), reason, ..Self::default() }
            }
        }
    }
}
