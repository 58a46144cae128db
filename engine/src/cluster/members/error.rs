//! What can go wrong when the cluster is changed.

use std::net::IpAddr;
use std::sync::Arc;

use foreshard_actors::store::StoreError;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId};

use crate::cluster::place::PlaceError;

/// A change of the cluster was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// A node failed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The table's store failed, or is against it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others wrote to the table faster than its partitions could be split or merged.
    #[error("partitions of {table} stay as they are: {attempts} times another commit was faster")]
    TooManyConflicts {
        /// The table.
        table: Arc<str>,
        /// Number of attempts.
        attempts: usize,
    },
    /// A partition of the table was split or merged since the step was planned.
    #[error("partitions of {table} were split or merged since this was planned")]
    Reshaped {
        /// The table.
        table: Arc<str>,
    },
    /// There is no such node.
    #[error("there is no node {node}")]
    NoNode {
        /// The node.
        node: NodeId,
    },
    /// There is no such partition.
    #[error("there is no partition {partition}")]
    NoPartition {
        /// The partition.
        partition: PartitionId,
    },
    /// The last replica is never dropped.
    #[error("{node} holds the last replica of {partition}")]
    LastReplica {
        /// The partition.
        partition: PartitionId,
        /// The node.
        node: NodeId,
    },
    /// The expression is not known any more.
    #[error("expression {expression} is not known: its function or table is gone")]
    NoExpression {
        /// The expression.
        expression: ExpressionId,
    },
    /// The last node is never removed.
    #[error("{node} is the last node")]
    LastNode {
        /// The node.
        node: NodeId,
    },
    /// Another node has this number already.
    #[error("there is a node {node} already")]
    Taken {
        /// The number.
        node: NodeId,
    },
    /// So many bytes come to the node already that more would wait for too long.
    #[error(
        "the next copy to {node} would wait {wait_s} s for its turn (loop.allocate.io-bytes-per-s)"
    )]
    Busy {
        /// The node.
        node: NodeId,
        /// The wait, in seconds.
        wait_s: u64,
    },
    /// A node of this process cannot be made reachable for others.
    #[error("no port for {node} on {host}: {source}")]
    NoPort {
        /// The node.
        node: NodeId,
        /// Where.
        host: IpAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

impl MemberError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Place(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::TooManyConflicts { .. } => "FS-CLUSTER-11",
            Self::NoNode { .. } => "FS-CLUSTER-3",
            Self::NoPartition { .. } => "FS-CLUSTER-4",
            Self::LastReplica { .. } => "FS-CLUSTER-5",
            Self::NoExpression { .. } => "FS-CLUSTER-6",
            Self::LastNode { .. } => "FS-CLUSTER-7",
            Self::Taken { .. } => "FS-CLUSTER-9",
            Self::NoPort { .. } => "FS-CLUSTER-10",
            Self::Busy { .. } => "FS-CLUSTER-12",
            Self::Reshaped { .. } => "FS-CLUSTER-13",
        }
    }
}
