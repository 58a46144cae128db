//! `foreshard node`: a process that is one node of another process's cluster.
//!
//! It opens its port, joins, answers and reports. If the coordinator has forgotten it, it joins again, as
//! a new node that holds nothing.

use std::collections::HashSet;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use foreshard_actors::calls::CallSink;
use foreshard_actors::expressions::Expressions;
use foreshard_actors::node::{
    NodeHandle, NodeState, NodeStateArgs, ProcessMemory, StorePolicy, Tables,
};
use foreshard_actors::ports::SystemClock;
use foreshard_policy::ids::NodeId;
use foreshard_udfs::{Functions, call_threads};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Server};
use url::Url;

use super::MESSAGE_BYTES_MAX;
use super::calls::forward;
use super::generated::coordinator_client::CoordinatorClient;
use super::generated::node_server::NodeServer;
use super::messages::{JoinRequest, Welcome};
use super::report::{End, GONE_AFTER, Reporter};
use super::service::Service;
use super::tables::NodeTables;
use crate::cluster::{LocalNode, incoming, url_of};
use crate::config::Config;
use crate::error::EngineError;
use crate::query::channel::Channels;
use crate::query::context::Queries;
use crate::query::worker::WorkerParts;

/// Longest wait for the answer to a wish to join.
const JOIN_MAX: Duration = Duration::from_secs(5);

/// Pause before a coordinator that does not answer is asked again.
const JOIN_AGAIN: Duration = Duration::from_millis(500);

/// Pause after an answer that the coordinator must still receive, before the process ends.
const FAREWELL: Duration = Duration::from_millis(100);

/// Runs a node of the cluster whose control address is `address`, until it is not needed any more.
///
/// It listens on `serve.control-address` if that is set, and on any free loopback port otherwise. Whoever
/// started it knows it by `name`, which may be empty.
///
/// # Errors
/// [`EngineError::Address`] if the coordinator refuses the node, or does not answer at the first try;
/// [`EngineError::NodeLost`] if it is gone for a minute.
pub async fn run_node(config: &Config, address: &str, name: &str) -> Result<(), EngineError> {
    crate::telemetry::install_tls();
    let mut is_first = true;
    loop {
        let left = Membership::begin(config, (address, name), is_first).await?.run().await?;
        match left {
            Left::Dismissed => return Ok(()),
            Left::Forgotten => {
                tracing::warn!(address, "forgotten by the coordinator; joining again")
            }
        }
        is_first = false;
    }
}

/// Why a node is none any more.
enum Left {
    Dismissed,
    Forgotten,
}

/// One node, from joining to leaving.
struct Membership {
    address: String,
    url: Url,
    node: NodeHandle,
    service: Service,
    reporter: Reporter,
    _forwarding: super::calls::Forwarding,
    _server: JoinSet<()>,
}

fn cannot(address: &str, reason: impl std::fmt::Display) -> EngineError {
    EngineError::Address { address: address.to_owned(), reason: reason.to_string() }
}

impl Membership {
    async fn begin(
        config: &Config,
        (address, name): (&str, &str),
        is_first: bool,
    ) -> Result<Self, EngineError> {
        let own = config.serve().control_address().unwrap_or("127.0.0.1:0").to_owned();
        let listener = tokio::net::TcpListener::bind(&own)
            .await
            .map_err(|error| EngineError::listen(&own, &error))?;
        let bound: SocketAddr = listener.local_addr().map_err(|error| cannot(&own, error))?;
        let url = url_of(bound).map_err(|error| cannot(&own, error))?;
        let channels = Channels::default();
        let coordinator = Url::parse(&format!("http://{}", address.trim_start_matches("http://")))
            .map_err(|error| cannot(address, error))?;
        let channel = channels.remote(&coordinator).map_err(|error| cannot(address, error))?;
        let client = CoordinatorClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let welcome = join(config, client.clone(), (address, name), &url, is_first).await?;
        let settings = welcome.settings.unwrap_or_default();
        let tables = Arc::<NodeTables>::default();
        let functions = Arc::new(Functions::library());
        let threads = call_threads().map_err(|error| cannot(address, error))?;
        let queries = Arc::<Queries>::default();
        let calls = CallSink::default();
        let forwarding = forward(&calls).await.map_err(|error| cannot(address, error))?;
        let expressions = Arc::<Expressions>::default();
        let clock = Arc::new(SystemClock);
        let spill = crate::builder::spill(config, false, &expressions, clock).await?;
        let memory = Arc::new(ProcessMemory::new(config.memory_bytes()));
        let state = Arc::new(NodeState::new(NodeStateArgs {
            id: NodeId(welcome.node),
            tables: Arc::clone(&tables) as Arc<dyn Tables>,
            expressions,
            calls,
            clock: Arc::new(SystemClock),
            cpu_permits: settings.cpu_permits,
            memory: Arc::clone(&memory),
            memory_bytes_max: settings.memory_bytes_max,
            store_policy: StorePolicy {
                enabled: settings.stores,
                ns_per_row_min: settings.ns_per_row_min,
            },
            spill,
        }));
        let parts = WorkerParts {
            functions: Arc::clone(&functions),
            queries: Arc::clone(&queries),
            channels: channels.clone(),
            runtime: RuntimeEnvBuilder::new().with_memory_pool(memory).build_arc()?,
            query_bytes_max: config.query_bytes_max(),
            // There is one node in this process, and no cluster but the coordinator's.
            members: Weak::new(),
        };
        let worker = parts.worker(Arc::clone(&state));
        channels.add(url.clone(), worker.clone());
        let node = NodeHandle::start(Arc::clone(&state)).await;
        let node = node.map_err(|error| cannot(address, error))?;
        let service = Service {
            node: LocalNode { handle: node.clone() },
            tables,
            functions,
            queries,
            coordinator: client.clone(),
            coordinator_id: welcome.coordinator.clone(),
            dismissed: Arc::<Notify>::default(),
        };
        let control = NodeServer::new(service.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let serving = Server::builder()
            // What is sent to a worker are plans; rows go the other way.
            .add_service(worker.into_worker_server().max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(control)
            .serve_with_incoming(incoming(listener));
        let mut server = JoinSet::new();
        let serving = async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the node's port was closed");
            }
        };
        // A function that loops must not keep the node from saying that it lives.
        server.spawn_on(serving, &threads);
        let reporter = Reporter {
            node: state,
            calls: Arc::clone(&forwarding.buffer),
            client,
            coordinator_id: welcome.coordinator,
            beat: Duration::from_millis(welcome.beat_ms.max(1)),
            told: HashSet::new(),
        };
        let address = address.to_owned();
        Ok(Self { address, url, node, service, reporter, _forwarding: forwarding, _server: server })
    }

    async fn run(self) -> Result<Left, EngineError> {
        let Self { address, url, node, service, reporter, .. } = &self;
        let dismissed = Arc::clone(&service.dismissed);
        let id = node.state.id;
        let (to, at) = (address.clone(), url.clone());
        let announce = move || {
            // Whoever closed our output does not want to know.
            let _unread = writeln!(std::io::stdout(), "node {id} joined {to}, serving on {at}");
            let _unread = std::io::stdout().flush();
        };
        let reporting = reporter.clone().run(announce);
        let left = tokio::select! {
            end = reporting => match end {
                End::Forgotten => Ok(Left::Forgotten),
                End::Gone => Err(EngineError::NodeLost { node: address.clone() }),
            },
            () = dismissed.notified() => {
                tokio::time::sleep(FAREWELL).await;
                Ok(Left::Dismissed)
            }
        };
        node.stop();
        left
    }
}

/// Asks to become a node. At the first time once, so that a wrong address is an error at once; later for
/// as long as a coordinator may take to come back.
async fn join(
    config: &Config,
    mut client: CoordinatorClient<Channel>,
    (address, name): (&str, &str),
    url: &Url,
    is_first: bool,
) -> Result<Welcome, EngineError> {
    let allocate = config.loop_config().allocate();
    let request = JoinRequest {
        url: url.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_permits: allocate.cpu_permits(),
        memory_bytes_max: allocate.memory_bytes(),
        name: name.to_owned(),
    };
    let begun = tokio::time::Instant::now();
    loop {
        let answer = tokio::time::timeout(JOIN_MAX, client.join(request.clone())).await;
        let reason = match answer {
            Ok(Ok(welcome)) => return Ok(welcome.into_inner()),
            Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => {
                return Err(cannot(address, status.message()));
            }
            Ok(Err(status)) => status.message().to_owned(),
            Err(_elapsed) => format!("no answer within {} ms", JOIN_MAX.as_millis()),
        };
        if is_first || begun.elapsed() > GONE_AFTER {
            return Err(cannot(address, reason));
        }
        tokio::time::sleep(JOIN_AGAIN).await;
    }
}
