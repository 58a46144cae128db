//! The node's side: does what the coordinator tells it, with the same pieces as a node within the
//! coordinator's process.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::DataFusionError;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::{StorePolicy, Tables};
use foreshard_actors::partition::{PartitionMessage as ToPartition, Wanted};
use foreshard_actors::ports::Outcome;
use foreshard_actors::table::{Committed, Rewritten, Snapshot, TableStore};
use foreshard_policy::ids::{ExpressionId, FragmentId, PartitionId, SegmentId, ShapeId};
use foreshard_udfs::Functions;
use tokio::sync::Notify;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::generated::coordinator_client::CoordinatorClient;
use super::generated::node_server::Node;
use super::messages::{
    AdoptRequest, AdoptStateRequest, CommitMessage, Computed, Done, DropOutputsRequest, Dropped,
    ExpressionMessage, News, OpenRequest, OutputReply, OutputRequest, PartitionMessage,
    PrecomputeRequest, RewrittenMessage, RowsRequest, Settings, StateMessage, StateReply,
    StateRequest, TableMessage, TableName, ValuesMessage, fingerprint, given,
};
use super::tables::NodeTables;
use crate::cluster::{LocalNode, MemberError, Place};
use crate::error::EngineError;
use crate::query::context::Queries;

/// What the coordinator drives.
#[derive(Clone)]
pub(super) struct Service {
    /// The node, as the coordinator's own nodes are.
    pub(super) node: LocalNode,
    /// Its tables.
    pub(super) tables: Arc<NodeTables>,
    /// Functions of this process.
    pub(super) functions: Arc<Functions>,
    /// Queries whose tasks run here.
    pub(super) queries: Arc<Queries>,
    /// Where rows of memory tables are.
    pub(super) coordinator: CoordinatorClient<Channel>,
    /// Id of the process that this node belongs to.
    pub(super) coordinator_id: String,
    /// Notified when the coordinator does not need the node any more.
    pub(super) dismissed: Arc<Notify>,
}

/// An error as the coordinator is told.
fn status(error: impl Into<EngineError>) -> Status {
    Status::from(error.into())
}

impl Service {
    fn store(&self, table: &str) -> Result<Arc<dyn TableStore>, Status> {
        let store = self.tables.store(table);
        store.ok_or_else(|| Status::not_found(format!("this node knows no table {table}")))
    }

    fn snapshot(&self, open: OpenRequest) -> Result<(PartitionId, Arc<Snapshot>), Status> {
        let table = open.partition.as_ref().map(|partition| partition.table.clone());
        let store = self.store(&given(table, "partition").map_err(status)?)?;
        open.snapshot(store.table()).map_err(status)
    }

    /// Applies settings that the coordinator chose.
    pub(super) fn set(&self, settings: Settings) {
        self.node.set_budget(settings.cpu_permits, settings.memory_bytes_max);
        self.node.set_draining(settings.draining);
        self.node.set_store_policy(StorePolicy {
            enabled: settings.stores,
            ns_per_row_min: settings.ns_per_row_min,
        });
    }

    async fn compute(&self, request: PrecomputeRequest) -> Result<Outcome, DataFusionError> {
        let partition = given(request.partition, "partition")?.id();
        let wanted = match request.expression {
            Some(expression) => Wanted::Outputs(self.expression(expression)?),
            None => Wanted::States(ShapeId(fingerprint(&request.shape)?)),
        };
        Ok(self.node.precompute(&partition, &wanted).await)
    }

    /// Tells the replicas what became of their segments; they read the new rows themselves.
    fn committed(&self, commit: CommitMessage) -> Result<(), DataFusionError> {
        let rewritten: Vec<Rewritten> = commit
            .rewritten
            .into_iter()
            .map(RewrittenMessage::rewritten)
            .collect::<Result<_, _>>()?;
        for open in commit.partitions {
            // A table that was dropped meanwhile is none of our business any more.
            let Ok((partition, snapshot)) = self.snapshot(open) else { continue };
            if !rewritten.is_empty() {
                let (snapshot, rewritten) = (Arc::clone(&snapshot), rewritten.clone());
                let change = Arc::new(Committed { snapshot, added: vec![], rewritten });
                self.node.handle.tell(&partition, ToPartition::SegmentsChanged(change));
            }
            self.node.handle.tell(&partition, ToPartition::Load(snapshot, None));
        }
        Ok(())
    }

    /// The values of a stored output.
    async fn read(&self, request: OutputRequest) -> Result<OutputReply, EngineError> {
        let partition = given(request.partition, "partition")?.id();
        let expression = ExpressionId(fingerprint(&request.expression)?);
        let segment = SegmentId(fingerprint(&request.segment)?);
        let values = self.node.output(&partition, expression, segment).await;
        let values = values.map_err(MemberError::from)?;
        Ok(OutputReply { values: values.as_ref().map(ValuesMessage::new).transpose()? })
    }

    /// Stores an output that another node computed.
    async fn take(&self, request: AdoptRequest) -> Result<(), EngineError> {
        let partition = given(request.partition, "partition")?.id();
        let expression = self.expression(given(request.expression, "expression")?)?;
        let segment = SegmentId(fingerprint(&request.segment)?);
        let values = given(request.values, "values")?.values()?;
        if !expression.is_measured() {
            let rows = values.rows_known().max(1) as u64;
            expression.measured(rows, request.ns_per_evaluation.saturating_mul(rows));
        }
        let adopted = self.node.adopt(&partition, &expression, segment, values).await;
        Ok(adopted.map_err(MemberError::from)?)
    }

    /// A stored state.
    async fn read_state(&self, request: StateRequest) -> Result<StateReply, EngineError> {
        let partition = given(request.partition, "partition")?.id();
        let fragment = FragmentId(fingerprint(&request.fragment)?);
        let segment = SegmentId(fingerprint(&request.segment)?);
        let state = self.node.state(&partition, fragment, segment).await;
        let state = state.map_err(MemberError::from)?;
        Ok(StateReply { state: state.as_ref().map(StateMessage::new).transpose()? })
    }

    /// Stores a state that another node computed.
    async fn take_state(&self, request: AdoptStateRequest) -> Result<(), EngineError> {
        let partition = given(request.partition, "partition")?.id();
        let state = given(request.state, "state")?.state()?;
        Ok(self.node.adopt_state(&partition, state).await.map_err(MemberError::from)?)
    }

    /// An expression as this process knows it.
    fn expression(
        &self,
        message: ExpressionMessage,
    ) -> Result<Arc<FunctionExpression>, DataFusionError> {
        let store = given(self.tables.store(&message.table), "table")?;
        let expression = message.expression(&store.table().schema, &self.functions)?;
        let known = &self.node.handle.state.expressions;
        let id = expression.id;
        let Some(expression) = known.remember(expression) else {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{id} is one expression too many"
            )));
        };
        Ok(expression)
    }
}

#[async_trait]
impl Node for Service {
    async fn tell(&self, request: Request<News>) -> Result<Response<Done>, Status> {
        let news = request.into_inner();
        if news.coordinator != self.coordinator_id {
            return Err(Status::failed_precondition("this node belongs to another coordinator"));
        }
        for query in news.ended {
            self.queries.end(&news.coordinator, query);
        }
        if let Some(settings) = news.settings {
            self.set(settings);
        }
        if let Some(pins) = news.pins {
            let pinned = pins.pinned().map_err(status)?;
            self.node.handle.state.expressions.pins.change(|now| now.clone_from(&pinned));
        }
        if let Some(shares) = news.shares {
            self.node.set_shares(&Arc::new(shares.shares().map_err(status)?));
        }
        for commit in news.commits {
            self.committed(commit).map_err(status)?;
        }
        if news.is_dismissed {
            self.dismissed.notify_one();
        }
        Ok(Response::new(Done {}))
    }

    async fn create_table(&self, request: Request<TableMessage>) -> Result<Response<Done>, Status> {
        self.tables.create(request.get_ref(), &self.coordinator).await.map_err(status)?;
        Ok(Response::new(Done {}))
    }

    async fn drop_table(&self, request: Request<TableName>) -> Result<Response<Done>, Status> {
        let table = &request.get_ref().name;
        self.tables.forget(table);
        let known = &self.node.handle.state.expressions;
        known.forget(|expression| *expression.table == **table);
        Ok(Response::new(Done {}))
    }

    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<Done>, Status> {
        let (partition, snapshot) = self.snapshot(request.into_inner())?;
        let opened = self.node.open(&partition, &snapshot, None).await;
        opened.map_err(|error| Status::unavailable(format!("[{}] {error}", error.code())))?;
        Ok(Response::new(Done {}))
    }

    async fn close(&self, request: Request<PartitionMessage>) -> Result<Response<Done>, Status> {
        let closed = self.node.close(&request.get_ref().id()).await;
        closed.map_err(|error| Status::unavailable(format!("[{}] {error}", error.code())))?;
        Ok(Response::new(Done {}))
    }

    async fn precompute(
        &self,
        request: Request<PrecomputeRequest>,
    ) -> Result<Response<Computed>, Status> {
        Ok(Response::new(match self.compute(request.into_inner()).await {
            Ok(outcome) => outcome.into(),
            Err(error) => {
                let error = EngineError::from(error);
                let (code, reason) = (error.code().to_owned(), error.to_string());
                Computed { code, reason, ..Computed::default() }
            }
        }))
    }

    async fn output(
        &self,
        request: Request<OutputRequest>,
    ) -> Result<Response<OutputReply>, Status> {
        Ok(Response::new(self.read(request.into_inner()).await.map_err(status)?))
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<Done>, Status> {
        self.take(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(Done {}))
    }

    async fn state(&self, request: Request<StateRequest>) -> Result<Response<StateReply>, Status> {
        Ok(Response::new(self.read_state(request.into_inner()).await.map_err(status)?))
    }

    async fn adopt_state(
        &self,
        request: Request<AdoptStateRequest>,
    ) -> Result<Response<Done>, Status> {
        self.take_state(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(Done {}))
    }

    async fn set_rows(&self, request: Request<RowsRequest>) -> Result<Response<Computed>, Status> {
        let RowsRequest { partition, in_memory } = request.into_inner();
        let partition = given(partition, "partition").map_err(status)?.id();
        if in_memory {
            return Ok(Response::new(self.node.prefetch(&partition).await.into()));
        }
        let released = self.node.release(&partition).await;
        let bytes =
            released.map_err(|error| Status::unavailable(format!("[{}] {error}", error.code())))?;
        Ok(Response::new(Computed { bytes, ..Computed::default() }))
    }

    async fn drop_outputs(
        &self,
        request: Request<DropOutputsRequest>,
    ) -> Result<Response<Dropped>, Status> {
        let request = request.into_inner();
        let partition = given(request.partition, "partition").map_err(status)?.id();
        let which = request.expression.as_deref().map(fingerprint).transpose().map_err(status)?;
        let dropped = self.node.drop_outputs(&partition, which.map(ExpressionId)).await;
        let outputs =
            dropped.map_err(|error| Status::unavailable(format!("[{}] {error}", error.code())))?;
        Ok(Response::new(Dropped { outputs }))
    }
}
