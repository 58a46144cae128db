//! A node as the cluster drives it: in this process, or in another one.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::partition::{
    Fragment, OutputValues, PartialOffer, ReplicaView, Sign, Wanted,
};
use foreshard_actors::ports::Outcome;
use foreshard_actors::table::{Committed, Snapshot, Table};
use foreshard_policy::budgets::Shares;
use foreshard_policy::cluster::{NodeView, RowsView};
use foreshard_policy::ids::{ExpressionId, FragmentId, PartitionId, SegmentId};

/// A node did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The node of this process failed.
    #[error(transparent)]
    Node(#[from] foreshard_actors::node::NodeError),
    /// The node does not answer.
    #[error("node at {url} does not answer: {reason}")]
    Unreachable {
        /// Where it is.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The node answered, and would not or could not do it.
    #[error("node at {url} refused: {reason}")]
    Refused {
        /// Where it is.
        url: String,
        /// What it said.
        reason: String,
    },
}

impl PlaceError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Node(error) => error.code(),
            Self::Unreachable { .. } => "FS-CLUSTER-1",
            Self::Refused { .. } => "FS-CLUSTER-8",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        true
    }
}

/// How much of an expression one replica has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldOutput {
    /// The expression.
    pub expression: ExpressionId,
    /// The segment.
    pub segment: SegmentId,
    /// Bytes it takes, in memory or on disk.
    pub bytes: u64,
    /// Queries that read it.
    pub uses: u64,
    /// Rows of the segment that have a value.
    pub rows: u64,
    /// Whether it is on disk only.
    pub is_on_disk: bool,
}

impl HeldOutput {
    /// Everything that a replica holds of this kind.
    #[must_use]
    pub fn list(view: &ReplicaView) -> Vec<Self> {
        let held = view.segments.iter().flat_map(|(segment, held)| {
            let in_memory = held.outputs.iter().map(|(expression, output)| Self {
                expression: *expression,
                segment: *segment,
                bytes: output.bytes,
                uses: output.uses.load(Ordering::Relaxed),
                rows: output.values.rows_known() as u64,
                is_on_disk: false,
            });
            let on_disk = held.only_on_disk().map(|(expression, file)| Self {
                expression,
                segment: *segment,
                bytes: file.bytes(),
                uses: file.uses().load(Ordering::Relaxed),
                rows: file.rows_known() as u64,
                is_on_disk: true,
            });
            in_memory.chain(on_disk)
        });
        held.collect()
    }
}

/// A stored state of a partial aggregate over one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldPartial {
    /// What it is the state of.
    pub fragment: Arc<Fragment>,
    /// The segment.
    pub segment: SegmentId,
    /// Rows of the state.
    pub rows: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// Nanoseconds that it took.
    pub ns: u64,
    /// How it came, and how often queries read it.
    pub sign: Sign,
}

impl HeldPartial {
    /// Everything that a replica holds of this kind.
    #[must_use]
    pub fn list(view: &ReplicaView) -> Vec<Self> {
        let held = view.segments.iter().flat_map(|(segment, held)| {
            held.partials.values().map(|partial| Self {
                fragment: Arc::clone(&partial.fragment),
                segment: *segment,
                rows: partial.batches.iter().map(|batch| batch.num_rows() as u64).sum(),
                bytes: partial.bytes,
                ns: partial.ns,
                sign: partial.sign(),
            })
        });
        held.collect()
    }
}

/// What the cluster does to one node.
#[async_trait]
pub trait Place: Debug + Send + Sync {
    /// What the node has and uses. No I/O.
    fn view(&self) -> NodeView;

    /// Outputs that the replica of a partition holds; empty if there is none. No I/O.
    fn outputs(&self, partition: &PartitionId) -> Vec<HeldOutput>;

    /// States of partial aggregates that the replica of a partition holds. No I/O.
    fn partials(&self, partition: &PartitionId) -> Vec<HeldPartial>;

    /// Makes the node hold `partition` of `snapshot`; `from` is a node to copy from, if there is one
    /// in the same process. Returns when the rows are there.
    async fn open(
        &self,
        partition: &PartitionId,
        snapshot: &Arc<Snapshot>,
        from: Option<&dyn Place>,
    ) -> Result<(), PlaceError>;

    /// Makes the node give `partition` up.
    async fn close(&self, partition: &PartitionId) -> Result<(), PlaceError>;

    /// Tells the node that a table changed. Does not wait.
    fn committed(&self, change: &Arc<Committed>);

    /// Tells the node that partitions were split or merged, and that its replicas of the new ones take over
    /// what those of the old ones have stored. Returns when it knows; [`open`](Self::open) is handled
    /// afterwards.
    async fn take_over(&self, change: &Arc<Committed>) -> Result<(), PlaceError>;

    /// Computes what is missing.
    async fn precompute(&self, partition: &PartitionId, wanted: &Wanted) -> Outcome;

    /// Values of a stored output; `None` if the node does not hold it any more.
    async fn output(
        &self,
        partition: &PartitionId,
        expression: ExpressionId,
        segment: SegmentId,
    ) -> Result<Option<OutputValues>, PlaceError>;

    /// Offers values that another node computed; the node stores them if they are worth it and fit.
    async fn adopt(
        &self,
        partition: &PartitionId,
        expression: &Arc<FunctionExpression>,
        segment: SegmentId,
        values: OutputValues,
    ) -> Result<(), PlaceError>;

    /// A stored state; `None` if the node does not hold it any more.
    async fn state(
        &self,
        partition: &PartitionId,
        fragment: FragmentId,
        segment: SegmentId,
    ) -> Result<Option<PartialOffer>, PlaceError>;

    /// Offers a state that another node computed; the node stores it if it is worth it and fits.
    async fn adopt_state(
        &self,
        partition: &PartitionId,
        state: PartialOffer,
    ) -> Result<(), PlaceError>;

    /// Throws stored outputs away: one expression's, or all.
    async fn drop_outputs(
        &self,
        partition: &PartitionId,
        which: Option<ExpressionId>,
    ) -> Result<u64, PlaceError>;

    /// The view of a replica, if the node lives in this process.
    fn replica(
        &self,
        partition: &PartitionId,
    ) -> Option<Arc<foreshard_actors::partition::ReplicaView>>;

    /// Number of segments that the replica of a partition holds, and how many of them with rows in
    /// memory. No I/O.
    fn segments(&self, partition: &PartitionId) -> (u64, u64) {
        self.replica(partition).map_or((0, 0), |view| {
            let resident = view.segments.values().filter(|held| held.rows.is_some()).count();
            (view.segments.len() as u64, resident as u64)
        })
    }

    /// What the replica of a partition has of rows that are in files; `None` if none are. No I/O.
    fn rows(&self, _partition: &PartitionId) -> Option<RowsView> {
        None
    }

    /// Reads rows of files into memory that are not there, as far as they find room.
    async fn prefetch(&self, partition: &PartitionId) -> Outcome;

    /// Lets rows of files go from memory; answers their bytes.
    async fn release(&self, partition: &PartitionId) -> Result<u64, PlaceError>;

    /// Makes a table readable on the node. Nodes of this process share its catalog.
    async fn table_created(&self, _table: &Arc<Table>) -> Result<(), PlaceError> {
        Ok(())
    }

    /// Lets the node forget a table.
    async fn table_dropped(&self, _table: &str) {}

    /// Tells the node that a query is over, so that what is left of it stops. Does not wait.
    fn query_ended(&self, _query: u64) {}

    /// Sets what the node may use.
    fn set_budget(&self, cpu_permits: u32, memory_bytes_max: u64);

    /// Tells the node which part of what it has each table gets. Does not wait.
    fn set_shares(&self, _shares: &Arc<Shares>) {}

    /// Tells the node what is pinned. Nodes of this process look it up themselves.
    fn set_pins(&self, _pinned: &Arc<foreshard_actors::pins::Pinned>) {}

    /// Sets when the node stores outputs.
    fn set_store_policy(&self, policy: foreshard_actors::node::StorePolicy);

    /// Starts or ends draining.
    fn set_draining(&self, draining: bool);

    /// Stops the node.
    async fn stop(&self);
}
