//! Nodes in other processes, driven over the control service.
//!
//! What must be waited for is a call with a deadline. What need not be (commits, ended queries,
//! settings) is put into an outbox that keeps only the newest state of each, so it is bounded, and one
//! task carries it over.

mod outbox;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::StorePolicy;
use foreshard_actors::partition::{OutputValues, PartialOffer, ReplicaView, Wanted};
use foreshard_actors::pins::Pinned;
use foreshard_actors::ports::Outcome;
use foreshard_actors::table::{Committed, Snapshot, Table};
use foreshard_policy::budgets::Shares;
use foreshard_policy::cluster::{NodeView, RowsView};
use foreshard_policy::ids::{ExpressionId, FragmentId, NodeId, PartitionId, SegmentId};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use url::Url;

use crate::cluster::place::{HeldOutput, HeldPartial, Place, PlaceError};
use crate::cluster::remote::outbox::Outbox;
use crate::query::worker::process_id;
use crate::serve::control::messages::{
    AdoptRequest, AdoptStateRequest, CommitMessage, Computed, DropOutputsRequest,
    ExpressionMessage, News, OpenRequest, OutputRequest, PinsMessage, PrecomputeRequest,
    RowsRequest, Settings, SharesMessage, StateMessage, StateRequest, TableMessage, TableName,
    ValuesMessage,
};
use crate::serve::control::{MESSAGE_BYTES_MAX, NodeClient};

/// Longest wait for news to be taken, or for an answer that needs no work.
const TELL_MAX: Duration = Duration::from_secs(2);

/// Longest wait for a replica to be copied, or a table to be opened.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// Longest wait for outputs to be computed.
const PRECOMPUTE_MAX: Duration = Duration::from_secs(600);

/// Longest wait for one stored output to come or go.
const OUTPUT_MAX: Duration = Duration::from_secs(30);

/// What a node reported last.
#[derive(Clone, Debug, Default)]
pub struct RemoteView {
    /// Bytes it holds.
    pub memory_bytes: u64,
    /// What it holds of each partition.
    pub replicas: HashMap<PartitionId, RemoteReplica>,
}

/// What a node reported of one replica.
#[derive(Clone, Debug, Default)]
pub struct RemoteReplica {
    /// Number of segments.
    pub segments: u64,
    /// Of these, with rows in memory.
    pub resident: u64,
    /// What it has of rows that are in files.
    pub rows: Option<RowsView>,
    /// Stored outputs.
    pub outputs: Vec<HeldOutput>,
    /// Stored states of partial aggregates.
    pub partials: Vec<HeldPartial>,
}

/// A node of another process.
pub struct RemoteNode {
    id: NodeId,
    url: Url,
    /// In which order it leaves; none if somebody else starts and stops its process.
    leaves: Option<u32>,
    client: NodeClient<Channel>,
    view: ArcSwap<RemoteView>,
    settings: Mutex<Settings>,
    held: Mutex<BTreeSet<PartitionId>>,
    outbox: Arc<Outbox>,
    last_heard_ns: AtomicU64,
    has_reported: AtomicBool,
    is_admitted: AtomicBool,
    _sender: JoinSet<()>,
}

impl fmt::Debug for RemoteNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteNode({} at {})", self.id, self.url)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change leaves the value whole, so a poisoned lock is as good as any.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn tell(client: NodeClient<Channel>, url: &Url, news: News) -> Result<(), PlaceError> {
    let mut client = client;
    answer(url, TELL_MAX, client.tell(news)).await?;
    Ok(())
}

/// Waits for an answer no longer than `most`.
async fn answer<T>(
    url: &Url,
    most: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, PlaceError> {
    match tokio::time::timeout(most, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            let (url, reason) = (url.to_string(), status.message().to_owned());
            let is_gone = matches!(
                status.code(),
                tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled
            );
            Err(match is_gone {
                true => PlaceError::Unreachable { url, reason },
                false => PlaceError::Refused { url, reason },
            })
        }
        Err(_elapsed) => {
            let reason = format!("no answer within {} ms", most.as_millis());
            Err(PlaceError::Unreachable { url: url.to_string(), reason })
        }
    }
}

impl RemoteNode {
    /// The node `id` that is reached at `url` by `channel`. If our provider started it, `leaves` says in
    /// which order it leaves.
    #[must_use]
    pub fn new(
        (id, leaves): (NodeId, Option<u32>),
        url: Url,
        channel: Channel,
        settings: Settings,
        now_ns: u64,
    ) -> Self {
        let client = NodeClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let outbox = Arc::<Outbox>::default();
        let mut sender = JoinSet::new();
        let (box_, to, at) = (Arc::clone(&outbox), client.clone(), url.clone());
        sender.spawn(async move { box_.send(to, at).await });
        Self {
            id,
            url,
            leaves,
            client,
            view: ArcSwap::default(),
            settings: Mutex::new(settings),
            held: Mutex::default(),
            outbox,
            last_heard_ns: AtomicU64::new(now_ns),
            has_reported: AtomicBool::new(false),
            is_admitted: AtomicBool::new(false),
            _sender: sender,
        }
    }

    /// The node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// What it may use and how it behaves.
    #[must_use]
    pub fn settings(&self) -> Settings {
        *lock(&self.settings)
    }

    /// Takes a report up; true if it is the first one.
    pub fn reported(&self, view: RemoteView, now_ns: u64) -> bool {
        self.view.store(Arc::new(view));
        self.last_heard_ns.store(now_ns, Ordering::Relaxed);
        !self.has_reported.swap(true, Ordering::Relaxed)
    }

    /// When it was heard of last, by the monotonic clock.
    #[must_use]
    pub fn last_heard_ns(&self) -> u64 {
        self.last_heard_ns.load(Ordering::Relaxed)
    }

    /// Whether it is part of the cluster.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Relaxed)
    }

    /// It is part of the cluster from now on.
    pub fn admit(&self) {
        self.is_admitted.store(true, Ordering::Relaxed);
    }

    /// Asks the node whether it is there.
    ///
    /// # Errors
    /// [`PlaceError::Unreachable`] if not.
    pub async fn probe(&self) -> Result<(), PlaceError> {
        let news = News { coordinator: process_id().to_owned(), ..News::default() };
        tell(self.client.clone(), &self.url, news).await
    }

    fn set(&self, change: impl FnOnce(&mut Settings)) {
        let settings = {
            let mut settings = lock(&self.settings);
            change(&mut settings);
            *settings
        };
        self.outbox.settings(settings);
    }

    /// What a commit means to the replicas that the node holds.
    fn news_of(&self, change: &Committed) -> CommitMessage {
        let Snapshot { table, layout, .. } = &*change.snapshot;
        // The replica of a partition that was split or merged keeps what others take over from it.
        let concerns = |held: &&PartitionId| held.table == table.name && layout.has(held.ordinal);
        let held: Vec<PartitionId> = lock(&self.held).iter().filter(concerns).cloned().collect();
        CommitMessage::new(change, &held)
    }

    /// How work ended that the node did on `what`.
    fn outcome(
        &self,
        answered: Result<Computed, PlaceError>,
        what: impl Fn() -> String,
    ) -> Outcome {
        let error = match answered {
            Ok(done) if done.code.is_empty() => {
                return Outcome::Done { rows: done.rows, bytes: done.bytes, ns: done.ns };
            }
            Ok(not) => {
                let reason = format!("{} ({})", not.reason, not.code);
                PlaceError::Refused { url: self.url.to_string(), reason }
            }
            Err(error) => error,
        };
        Outcome::Failed { code: error.code(), reason: format!("{}: {error}", what()) }
    }

    fn refused(&self, error: &datafusion::common::DataFusionError) -> PlaceError {
        PlaceError::Refused { url: self.url.to_string(), reason: error.to_string() }
    }
}

#[async_trait]
impl Place for RemoteNode {
    fn view(&self) -> NodeView {
        let settings = self.settings();
        NodeView {
            memory_bytes_max: settings.memory_bytes_max,
            memory_bytes: self.view.load().memory_bytes,
            cpu_permits: settings.cpu_permits,
            draining: settings.draining,
            joined: self.leaves.is_none(),
            leaves: self.leaves.unwrap_or(0),
        }
    }

    fn outputs(&self, partition: &PartitionId) -> Vec<HeldOutput> {
        let view = self.view.load();
        view.replicas.get(partition).map(|replica| replica.outputs.clone()).unwrap_or_default()
    }

    fn partials(&self, partition: &PartitionId) -> Vec<HeldPartial> {
        let view = self.view.load();
        view.replicas.get(partition).map(|replica| replica.partials.clone()).unwrap_or_default()
    }

    async fn open(
        &self,
        partition: &PartitionId,
        snapshot: &Arc<Snapshot>,
        _from: Option<&dyn Place>,
    ) -> Result<(), PlaceError> {
        let request = OpenRequest::new(partition, snapshot);
        lock(&self.held).insert(partition.clone());
        let mut client = self.client.clone();
        answer(&self.url, OPEN_MAX, client.open(request)).await?;
        Ok(())
    }

    async fn close(&self, partition: &PartitionId) -> Result<(), PlaceError> {
        lock(&self.held).remove(partition);
        let mut client = self.client.clone();
        let request = crate::serve::control::messages::PartitionMessage::from(partition);
        answer(&self.url, TELL_MAX, client.close(request)).await?;
        Ok(())
    }

    async fn take_over(&self, change: &Arc<Committed>) -> Result<(), PlaceError> {
        let commits = vec![self.news_of(change)];
        let coordinator = process_id().to_owned();
        tell(self.client.clone(), &self.url, News { coordinator, commits, ..News::default() }).await
    }

    fn committed(&self, change: &Arc<Committed>) {
        let table = &change.snapshot.table.name;
        let commit = self.news_of(change);
        if !commit.partitions.is_empty() {
            self.outbox.commit(Arc::clone(table), change.snapshot.version, commit);
        }
    }

    async fn precompute(&self, partition: &PartitionId, wanted: &Wanted) -> Outcome {
        let what = || format!("{wanted} on {partition}");
        let request = match PrecomputeRequest::new(partition, wanted) {
            Ok(request) => request,
            Err(error) => return self.outcome(Err(self.refused(&error)), what),
        };
        let mut client = self.client.clone();
        let answered = answer(&self.url, PRECOMPUTE_MAX, client.precompute(request)).await;
        self.outcome(answered, what)
    }

    async fn output(
        &self,
        partition: &PartitionId,
        expression: ExpressionId,
        segment: SegmentId,
    ) -> Result<Option<OutputValues>, PlaceError> {
        let request = OutputRequest {
            partition: Some(partition.into()),
            expression: expression.0.to_be_bytes().to_vec(),
            segment: segment.0.to_be_bytes().to_vec(),
        };
        let mut client = self.client.clone();
        let reply = answer(&self.url, OUTPUT_MAX, client.output(request)).await?;
        let values = reply.values.map(|values| values.values()).transpose();
        values.map_err(|error| self.refused(&error))
    }

    async fn adopt(
        &self,
        partition: &PartitionId,
        expression: &Arc<FunctionExpression>,
        segment: SegmentId,
        values: OutputValues,
    ) -> Result<(), PlaceError> {
        let refused = |error| self.refused(&error);
        let request = AdoptRequest {
            partition: Some(partition.into()),
            expression: Some(ExpressionMessage::new(expression).map_err(refused)?),
            ns_per_evaluation: expression.ns_per_evaluation(),
            segment: segment.0.to_be_bytes().to_vec(),
            values: Some(ValuesMessage::new(&values).map_err(refused)?),
        };
        let mut client = self.client.clone();
        answer(&self.url, OUTPUT_MAX, client.adopt(request)).await?;
        Ok(())
    }

    async fn state(
        &self,
        partition: &PartitionId,
        fragment: FragmentId,
        segment: SegmentId,
    ) -> Result<Option<PartialOffer>, PlaceError> {
        let request = StateRequest {
            partition: Some(partition.into()),
            fragment: fragment.0.to_be_bytes().to_vec(),
            segment: segment.0.to_be_bytes().to_vec(),
        };
        let mut client = self.client.clone();
        let reply = answer(&self.url, OUTPUT_MAX, client.state(request)).await?;
        let state = reply.state.map(|state| state.state()).transpose();
        state.map_err(|error| self.refused(&error))
    }

    async fn adopt_state(
        &self,
        partition: &PartitionId,
        state: PartialOffer,
    ) -> Result<(), PlaceError> {
        let state = StateMessage::new(&state).map_err(|error| self.refused(&error))?;
        let request = AdoptStateRequest { partition: Some(partition.into()), state: Some(state) };
        let mut client = self.client.clone();
        answer(&self.url, OUTPUT_MAX, client.adopt_state(request)).await?;
        Ok(())
    }

    async fn drop_outputs(
        &self,
        partition: &PartitionId,
        which: Option<ExpressionId>,
    ) -> Result<u64, PlaceError> {
        let expression = which.map(|id| id.0.to_be_bytes().to_vec());
        let request = DropOutputsRequest { partition: Some(partition.into()), expression };
        let mut client = self.client.clone();
        Ok(answer(&self.url, TELL_MAX, client.drop_outputs(request)).await?.outputs)
    }

    fn replica(&self, _partition: &PartitionId) -> Option<Arc<ReplicaView>> {
        None
    }

    fn segments(&self, partition: &PartitionId) -> (u64, u64) {
        let view = self.view.load();
        view.replicas.get(partition).map_or((0, 0), |replica| (replica.segments, replica.resident))
    }

    fn rows(&self, partition: &PartitionId) -> Option<RowsView> {
        self.view.load().replicas.get(partition).and_then(|replica| replica.rows)
    }

    async fn prefetch(&self, partition: &PartitionId) -> Outcome {
        let request = RowsRequest { partition: Some(partition.into()), in_memory: true };
        let mut client = self.client.clone();
        let answered = answer(&self.url, PRECOMPUTE_MAX, client.set_rows(request)).await;
        self.outcome(answered, || format!("rows of {partition}"))
    }

    async fn release(&self, partition: &PartitionId) -> Result<u64, PlaceError> {
        let request = RowsRequest { partition: Some(partition.into()), in_memory: false };
        let mut client = self.client.clone();
        Ok(answer(&self.url, TELL_MAX, client.set_rows(request)).await?.bytes)
    }

    async fn table_created(&self, table: &Arc<Table>) -> Result<(), PlaceError> {
        let message = TableMessage::new(table).map_err(|error| self.refused(&error))?;
        let mut client = self.client.clone();
        answer(&self.url, OPEN_MAX, client.create_table(message)).await?;
        Ok(())
    }

    async fn table_dropped(&self, table: &str) {
        let mut client = self.client.clone();
        let request = TableName { name: table.to_owned() };
        // Nobody may take them for news of another table of this name.
        self.outbox.forget(table);
        if let Err(error) = answer(&self.url, TELL_MAX, client.drop_table(request)).await {
            tracing::warn!(node = %self.id, table, code = error.code(), %error, "table not forgotten");
        }
    }

    fn query_ended(&self, query: u64) {
        self.outbox.ended(query);
    }

    fn set_budget(&self, cpu_permits: u32, memory_bytes_max: u64) {
        self.set(|settings| {
            settings.cpu_permits = cpu_permits;
            settings.memory_bytes_max = memory_bytes_max;
        });
    }

    fn set_shares(&self, shares: &Arc<Shares>) {
        self.outbox.shares(SharesMessage::new(shares));
    }

    fn set_pins(&self, pinned: &Arc<Pinned>) {
        self.outbox.pins(PinsMessage::new(pinned));
    }

    fn set_store_policy(&self, policy: StorePolicy) {
        self.set(|settings| {
            settings.stores = policy.enabled;
            settings.ns_per_row_min = policy.ns_per_row_min;
        });
    }

    fn set_draining(&self, draining: bool) {
        self.set(|settings| settings.draining = draining);
    }

    async fn stop(&self) {
        let news =
            News { coordinator: process_id().to_owned(), is_dismissed: true, ..News::default() };
        if let Err(error) = tell(self.client.clone(), &self.url, news).await {
            tracing::debug!(node = %self.id, code = error.code(), %error, "not told to stop");
        }
    }
}
