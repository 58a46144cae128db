//! The coordinator's side: takes nodes in, hears their reports, and lets go of those that are silent.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_flight::FlightData;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use async_trait::async_trait;
use foreshard_actors::node::Tables;
use foreshard_actors::ports::{Clock, SystemClock};
use foreshard_actors::segment::{Location, Segment};
use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{NodeId, SegmentId};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use url::Url;

use super::generated::coordinator_server::{Coordinator, CoordinatorServer};
use super::messages::{
    FetchRequest, Heard, JoinRequest, ReplicaMessage, ReportRequest, Settings, Welcome, fingerprint,
};
use super::{BEAT, BEATS_MISSED_MAX, MESSAGE_BYTES_MAX, NODES_MAX};
use crate::cluster::{Leaving, Members, Place, RemoteNode, RemoteReplica, RemoteView};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::query::worker::process_id;
use crate::serve::bound;

/// Records that are handed to the monitor at once.
const CALLS_AT_ONCE: usize = 4_096;

/// The address where nodes join, and what is known of those that did.
#[derive(Debug)]
#[must_use = "nodes are lost when this is dropped"]
pub struct ControlServer {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    tasks: JoinSet<()>,
    members: Arc<Members>,
}

impl ControlServer {
    /// Takes nodes in on `listener` from now on, and gives the nodes of this process ports on the same
    /// host, so that nodes of other processes can reach them.
    ///
    /// # Errors
    /// [`EngineError::Address`] if the listener cannot be used, or no port can be opened.
    pub async fn start(engine: Engine, listener: TcpListener) -> Result<Self, EngineError> {
        let address = bound(&listener)?;
        let failed = |error| EngineError::listen(&address.to_string(), &error);
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        engine.inner.members.open_ports(address.ip()).await?;
        let members = Arc::clone(&engine.inner.members);
        let roster =
            Arc::new(Roster { engine, nodes: Mutex::default(), admitting: Mutex::default() });
        let (stop, stopped) = oneshot::channel::<()>();
        let service = CoordinatorServer::new(Service(Arc::clone(&roster)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let serving = Server::builder().add_service(service).serve_with_incoming_shutdown(
            crate::cluster::incoming(listener),
            async {
                // An error means that the server was dropped: stop as well.
                let _dropped = stopped.await;
            },
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "no more nodes can join");
            }
        });
        tasks.spawn(async move { roster.watch().await });
        members.arrivals().open_at(Some(address));
        Ok(Self { address, stop, tasks, members })
    }

    /// The address it is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no nodes any more. Those that joined are told when the engine is shut down.
    pub async fn stop(self) {
        let Self { stop, mut tasks, members, .. } = self;
        members.arrivals().open_at(None);
        // An error means that the server ended by itself.
        let _ended = stop.send(());
        tasks.shutdown().await;
    }
}

/// The nodes of other processes.
struct Roster {
    engine: Engine,
    nodes: Mutex<BTreeMap<NodeId, Arc<RemoteNode>>>,
    admitting: Mutex<JoinSet<()>>,
}

fn now_ns() -> u64 {
    SystemClock.monotonic_ns()
}

impl Roster {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<RemoteNode>>> {
        // Every change leaves the map whole, so a poisoned lock is as good as any.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, request: &JoinRequest) -> Result<Welcome, Status> {
        let own = env!("CARGO_PKG_VERSION");
        if request.version != own {
            let text = format!("the node runs version {}, the coordinator {own}", request.version);
            return Err(Status::failed_precondition(text));
        }
        let url = Url::parse(&request.url)
            .map_err(|error| Status::invalid_argument(format!("{}: {error}", request.url)))?;
        let members = &self.engine.inner.members;
        let channel = members.channels().remote(&url);
        let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let policy = members.store_policy();
        let settings = Settings {
            cpu_permits: request.cpu_permits,
            memory_bytes_max: request.memory_bytes_max,
            stores: policy.enabled,
            ns_per_row_min: policy.ns_per_row_min,
            draining: false,
        };
        let mut nodes = self.nodes();
        if nodes.len() >= NODES_MAX {
            return Err(Status::resource_exhausted(format!(
                "{NODES_MAX} nodes have joined already"
            )));
        }
        let last = nodes.keys().next_back().map_or(NodeId(0), |NodeId(last)| NodeId(last + 1));
        let arrivals = members.arrivals();
        let fresh = members.next_id().max(last).max(arrivals.next_id());
        let is_free = |id| !nodes.contains_key(&id) && members.place(id).is_err();
        let joined = arrivals.joins(&request.name, fresh, is_free);
        let (id, leaves) = joined.map_err(|Leaving| {
            Status::unavailable(format!("{} was drained and is about to end", request.name))
        })?;
        let node = RemoteNode::new((id, leaves), url, channel, settings, now_ns());
        nodes.insert(id, Arc::new(node));
        Ok(Welcome {
            node: id.0,
            coordinator: process_id().to_owned(),
            beat_ms: u64::try_from(BEAT.as_millis()).unwrap_or(u64::MAX),
            settings: Some(settings),
        })
    }

    /// Makes a node that reports for the first time part of the cluster, without letting it wait.
    fn admit(self: &Arc<Self>, node: &Arc<RemoteNode>) {
        let (roster, node) = (Arc::clone(self), Arc::clone(node));
        let mut admitting = self.admitting.lock().unwrap_or_else(PoisonError::into_inner);
        while admitting.try_join_next().is_some() {}
        admitting.spawn(async move {
            let members = &roster.engine.inner.members;
            let place = Arc::clone(&node) as Arc<dyn Place>;
            match members.add_remote(node.id(), place, node.url().clone()).await {
                Ok(()) => {
                    node.admit();
                    members.arrivals().admitted(node.id());
                    tracing::info!(node = %node.id(), url = %node.url(), "node joined");
                }
                Err(error) => {
                    roster.nodes().remove(&node.id());
                    let code = error.code();
                    tracing::warn!(node = %node.id(), code, %error, "node was not taken in");
                }
            }
        });
    }

    fn report(self: &Arc<Self>, report: &ReportRequest) -> Result<Heard, Status> {
        let id = NodeId(report.node);
        let node = self.nodes().get(&id).cloned();
        let Some(node) = node.filter(|_| report.coordinator == process_id()) else {
            return Ok(Heard { is_known: false, is_admitted: false });
        };
        let unreadable = |error: &dyn std::fmt::Display| {
            Status::invalid_argument(format!("the report of {id} is unreadable: {error}"))
        };
        let replicas = report.replicas.iter().map(held).collect::<datafusion::common::Result<_>>();
        let replicas = replicas.map_err(|error| unreadable(&error))?;
        let view = RemoteView { memory_bytes: report.memory_bytes, replicas };
        if node.reported(view, now_ns()) {
            self.admit(&node);
        }
        self.learn(report);
        let calls: Vec<CallRecord> = match report.calls.as_slice() {
            [] => vec![],
            json => serde_json::from_slice(json).map_err(|error| unreadable(&error))?,
        };
        self.count(&calls);
        Ok(Heard { is_known: true, is_admitted: node.is_admitted() })
    }

    /// Remembers expressions that were called first on another node.
    fn learn(&self, report: &ReportRequest) {
        let inner = &self.engine.inner;
        for message in &report.expressions {
            // The table may have been dropped meanwhile.
            let Some(store) = inner.catalog.store(&message.table) else { continue };
            match message.expression(&store.table().schema, &inner.functions) {
                Ok(expression) => drop(inner.members.expressions().remember(expression)),
                Err(error) => {
                    tracing::warn!(node = report.node, table = message.table, %error, "expression not learned");
                }
            }
        }
    }

    /// Hands the calls of another node to the monitor, and its measurements to those who plan here.
    fn count(&self, calls: &[CallRecord]) {
        let expressions = self.engine.inner.members.expressions();
        for call in calls {
            if let Some(expression) = expressions.get(call.expression) {
                expression.measured(call.rows.saturating_sub(call.rows_stored), call.ns);
            }
        }
        let sink = self.engine.inner.the_loop.calls();
        for some in calls.chunks(CALLS_AT_ONCE) {
            sink.offer(some.to_vec());
        }
    }

    /// Looks after every node once per beat. One that is silent is asked; one that does not answer
    /// is forgotten.
    async fn watch(&self) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let silence = u64::try_from((BEAT * BEATS_MISSED_MAX).as_nanos()).unwrap_or(u64::MAX);
        loop {
            beat.tick().await;
            let nodes: Vec<Arc<RemoteNode>> = self.nodes().values().cloned().collect();
            let checks = nodes.iter().map(|node| async move {
                let is_gone =
                    node.is_admitted() && self.engine.inner.members.place(node.id()).is_err();
                let is_silent = now_ns().saturating_sub(node.last_heard_ns()) > silence;
                if is_gone {
                    self.nodes().remove(&node.id());
                } else if is_silent && let Err(error) = node.probe().await {
                    tracing::warn!(node = %node.id(), %error, "node is lost");
                    self.nodes().remove(&node.id());
                    self.engine.inner.members.forget(node.id()).await;
                    self.engine.inner.members.channels().remove(node.url());
                }
            });
            futures::future::join_all(checks).await;
        }
    }

    async fn fetch(&self, request: FetchRequest) -> Result<Rows, Status> {
        let wrong = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        let store = self.engine.inner.catalog.store(&request.table);
        let store =
            store.ok_or_else(|| Status::not_found(format!("no table {}", request.table)))?;
        let segment = Segment {
            id: SegmentId(fingerprint(&request.segment).map_err(|error| wrong(&error))?),
            partition: request.partition,
            rows: 0,
            bytes: 0,
            columns: vec![],
            location: Location::Memory,
            pinned: None,
        };
        let columns: Vec<usize> = request.columns.iter().map(|column| *column as usize).collect();
        let columns = request.is_projected.then_some(columns);
        let rows = store.read(&segment, columns.as_deref()).await;
        let rows =
            rows.map_err(|error| Status::not_found(format!("[{}] {error}", error.code())))?;
        let schema = rows.schema();
        let encoded = FlightDataEncoderBuilder::new()
            .with_schema(schema)
            .with_dictionary_handling(DictionaryHandling::Resend)
            .build(rows.map_err(|error| FlightError::ExternalError(Box::new(error))));
        Ok(encoded.map_err(|error| Status::internal(error.to_string())).boxed())
    }
}

type Rows = BoxStream<'static, Result<FlightData, Status>>;

type Held = (foreshard_policy::ids::PartitionId, RemoteReplica);

fn held(replica: &ReplicaMessage) -> datafusion::common::Result<Held> {
    let partition = super::messages::given(replica.partition.as_ref(), "partition")?.id();
    let outputs = replica
        .outputs
        .iter()
        .map(super::messages::OutputMessage::held)
        .collect::<Result<_, _>>()?;
    let partials = replica
        .partials
        .iter()
        .map(super::messages::PartialMessage::held)
        .collect::<Result<_, _>>()?;
    let (segments, resident) = (replica.segments, replica.resident);
    let rows = replica.rows.map(Into::into);
    Ok((partition, RemoteReplica { segments, resident, rows, outputs, partials }))
}

struct Service(Arc<Roster>);

#[async_trait]
impl Coordinator for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Welcome>, Status> {
        Ok(Response::new(self.0.join(request.get_ref())?))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<Heard>, Status> {
        Ok(Response::new(self.0.report(request.get_ref())?))
    }

    type FetchSegmentStream = Rows;

    async fn fetch_segment(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Rows>, Status> {
        Ok(Response::new(self.0.fetch(request.into_inner()).await?))
    }
}
