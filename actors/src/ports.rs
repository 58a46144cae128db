//! The ways out of the actors: time, nodes, what the loop can do to the cluster, and another's outlook.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use foreshard_policy::budgets::Shares;
use foreshard_policy::cluster::{ClusterView, Step};
use foreshard_policy::forecast::Forecast;
use foreshard_policy::history::HistoryView;
use foreshard_policy::ids::{Epoch, NodeId};

/// Where the time comes from; tests bring their own.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;
    /// Nanoseconds since some fixed point; never goes back.
    fn monotonic_ns(&self) -> u64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the port")]
    fn now_ms(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the port")]
    fn monotonic_ns(&self) -> u64 {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        let start = *START.get_or_init(Instant::now);
        u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was carried out. Precompute says how many rows and nanoseconds it took.
    Done {
        /// Rows that were computed or copied.
        rows: u64,
        /// Bytes that were stored or copied.
        bytes: u64,
        /// Nanoseconds that it took.
        ns: u64,
    },
    /// Partitions were split or merged.
    Reshaped {
        /// Bytes that were written anew.
        bytes: u64,
        /// Where they were cut and why there, and what became of those of other tables.
        how: String,
    },
    /// It was not carried out; the text says why.
    Failed {
        /// Stable code of the error.
        code: &'static str,
        /// What happened.
        reason: String,
    },
}

/// What the manager can see of the cluster and do to it.
#[async_trait]
pub trait Cluster: Debug + Send + Sync + 'static {
    /// The cluster as it is now. Cheap: no I/O.
    fn view(&self) -> ClusterView;

    /// Tells nodes which part of what they have each table gets. Does not wait.
    fn set_shares(&self, _shares: &Arc<Shares>) {}

    /// Carries out one step. Ends within a bounded time; refuses a step of an older epoch.
    async fn carry_out(&self, epoch: Epoch, step: Step) -> Outcome;
}

/// Adds and removes nodes. A step that is given up is a call whose future is dropped: what it had started
/// must then be gone, or count as a node of the provider's once it comes.
#[async_trait]
pub trait NodeProvider: Debug + Send + Sync + 'static {
    /// Nodes that run now.
    fn nodes(&self) -> Vec<NodeId>;
    /// Starts a node with this id and waits until it can hold replicas.
    async fn add(&self, node: NodeId) -> Outcome;
    /// Drains a node (its replicas are copied elsewhere) and stops it.
    async fn remove(&self, node: NodeId) -> Outcome;
    /// Sets what a node may use.
    fn set_budget(&self, node: NodeId, cpu_permits: u32, memory_bytes_max: u64);
    /// The server ends: nothing that it started may go on alone.
    async fn stop(&self) {}
}

/// Tells the planners something else than the predictor expects, so that ways to look ahead can be compared
/// under one planner: for experiments.
pub trait Outlook: Debug + Send + Sync + 'static {
    /// What the planners are told at the end of the last tick of `seen`, of which the predictor expects
    /// `forecast`. Called once a tick, off the threads that serve queries.
    fn told(&self, forecast: &Arc<Forecast>, seen: &HistoryView) -> Arc<Forecast>;
}

/// A clock, shared.
pub type SharedClock = Arc<dyn Clock>;
