//! The worker of a node: builds the session that a task runs in.
//!
//! A task gets the client's options, the functions of this process, the node's own budget, and the
//! query it belongs to. Nothing else travels.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_distributed::{DistributedExt, Worker, WorkerQueryContext};
use foreshard_actors::node::NodeState;
use foreshard_actors::trace::{self, TRACEPARENT};
use foreshard_policy::ids::NodeId;
use foreshard_udfs::{CalledBy, Functions};
use http::HeaderMap;

use crate::cluster::{Members, Placement};
use crate::query::channel::Channels;
use crate::query::codec::ScanCodec;
use crate::query::context::{LocalNodes, Queries, QueryContext};
use crate::query::options::{SessionOptions, apply_entries};
use crate::query::single_row::single_value;

/// The `traceparent` of one task on one node: what its scans are children of.
#[derive(Debug)]
pub struct TaskTrace(pub String);

/// What all workers of a process share.
#[derive(Clone)]
pub struct WorkerParts {
    /// Functions of this process.
    pub functions: Arc<Functions>,
    /// Queries that were started in this process.
    pub queries: Arc<Queries>,
    /// Channels to all nodes.
    pub channels: Channels,
    /// Memory and disk of this process's queries.
    pub runtime: Arc<RuntimeEnv>,
    /// Memory that one query may take in this process.
    pub query_bytes_max: usize,
    /// The cluster; weak, because it holds the workers.
    pub members: Weak<Members>,
}

impl fmt::Debug for WorkerParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerParts")
    }
}

impl WorkerParts {
    /// The worker of one node.
    #[must_use]
    pub fn worker(&self, node: Arc<NodeState>) -> Worker {
        let parts = self.clone();
        let build = move |context: WorkerQueryContext| {
            let (parts, node) = (parts.clone(), Arc::clone(&node));
            async move { parts.session(context, node) }
        };
        Worker::from_session_builder(build)
            .with_runtime_env(Arc::clone(&self.runtime))
            .with_version(env!("CARGO_PKG_VERSION"))
    }

    /// The nodes of this process, as tasks of `own` see them.
    #[must_use]
    pub fn local_nodes(&self, own: &Arc<NodeState>) -> Arc<LocalNodes> {
        let nodes: HashMap<NodeId, Arc<NodeState>> =
            self.members.upgrade().map(|members| members.local_states()).unwrap_or_default();
        Arc::new(LocalNodes { nodes, own: Arc::clone(own) })
    }

    fn session(&self, context: WorkerQueryContext, node: Arc<NodeState>) -> Result<SessionState> {
        let headers = context.headers;
        let mut config = SessionConfig::new();
        let mut builder = context.builder;
        if let Some(given) = builder.config().take() {
            config = given;
        }
        config.set_distributed_option_extension_from_headers::<SessionOptions>(&headers)?;
        let sent = config.options().extensions.get::<SessionOptions>().cloned().unwrap_or_default();
        apply_entries(config.options_mut(), &sent.changed)?;
        let query = self.queries.get(sent.query);
        let query = query.filter(|_| is_from_here(&headers)).unwrap_or_else(|| {
            let placement = self.members.upgrade().map(|members| members.placement());
            let placement = placement.unwrap_or_else(|| Arc::new(Placement::default()));
            let coordinator = header(&headers, COORDINATOR).unwrap_or_default();
            let traceparent = header(&headers, TRACEPARENT);
            let context = || QueryContext::new(sent.query, placement, traceparent);
            self.queries.join(&coordinator, sent.query, context)
        });
        let span = tracing::info_span!("task", node = %node.id);
        let traceparent = header(&headers, TRACEPARENT).or_else(|| query.traceparent.clone());
        trace::adopt(&span, traceparent.as_deref());
        // The task's session outlives the task, so the span only marks its begin: its children go on.
        if let Some(own) = trace::traceparent(&span) {
            config.set_extension(Arc::new(TaskTrace(own)));
        }
        config.set_extension(self.local_nodes(&node));
        config.set_extension(Arc::clone(&query));
        config.options_mut().extensions.insert(CalledBy::new(&query));
        let runtime = query.runtime(&self.runtime, self.query_bytes_max);
        let codec = ScanCodec::new(Arc::clone(&self.functions), Some(query));
        let state = builder
            .with_config(config)
            .with_runtime_env(runtime)
            .with_distributed_user_codec(codec)
            .with_distributed_channel_resolver(self.channels.clone())
            .build();
        let session = SessionContext::new_with_state(state);
        session.register_udaf(single_value());
        self.functions.install(&session);
        Ok(session.state())
    }
}

/// Header that names the process that coordinates the query.
pub const COORDINATOR: &str = "x-foreshard-coordinator";

/// An id of this process, to tell its own queries from others'.
#[must_use]
pub fn process_id() -> &'static str {
    static ID: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ID.get_or_init(|| uuid::Uuid::new_v4().to_string())
}

fn is_from_here(headers: &HeaderMap) -> bool {
    header(headers, COORDINATOR).is_some_and(|id| id == process_id())
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(ToOwned::to_owned)
}

/// The headers that go with every task of a query.
///
/// # Errors
/// If the trace context is no valid header value.
pub fn task_headers(query: &QueryContext) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let value = |text: &str| {
        text.parse().map_err(|error| {
            DataFusionError::External(Box::<http::header::InvalidHeaderValue>::new(error))
        })
    };
    headers.insert(COORDINATOR, value(process_id())?);
    if let Some(traceparent) = &query.traceparent {
        headers.insert(TRACEPARENT, value(traceparent)?);
    }
    Ok(headers)
}
