//! How tasks reach their nodes: inside the process for nodes that live here, by gRPC for the others.
//!
//! Inside the process plans are encoded like remote ones: a shuffle holds one-shot streams, and two
//! tasks must never share a plan. Batches are handed over without a copy.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest,
    GetWorkerInfoResponse, MaybeEncoded, SetPlanRequest, Worker, WorkerChannel,
    WorkerToCoordinatorMsg, grpc,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::HeaderMap;
use tonic::transport::{Channel, Endpoint};
use url::Url;

/// Longest wait for a connection to another node.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// A silent connection is tested after this time, and given up after as much again.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Finds the channel to a node by its URL.
#[derive(Clone, Default)]
pub struct Channels {
    local: Arc<RwLock<HashMap<Url, Worker>>>,
    remote: Arc<Mutex<HashMap<Url, Channel>>>,
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channels")
    }
}

impl Channels {
    /// Adds the worker of a node that lives in this process.
    pub fn add(&self, url: Url, worker: Worker) {
        if let Ok(mut local) = self.local.write() {
            local.insert(url, worker);
        }
    }

    /// Removes a node.
    pub fn remove(&self, url: &Url) {
        if let Ok(mut local) = self.local.write() {
            local.remove(url);
        }
        if let Ok(mut remote) = self.remote.lock() {
            remote.remove(url);
        }
    }

    /// The worker of a node that lives in this process.
    #[must_use]
    pub fn local(&self, url: &Url) -> Option<Worker> {
        self.local.read().ok()?.get(url).cloned()
    }

    /// The channel to another process; connects at first use.
    ///
    /// # Errors
    /// If the URL cannot be dialled.
    pub fn remote(&self, url: &Url) -> Result<Channel> {
        let broken = |error: &dyn fmt::Display| exec_datafusion_err!("node {url}: {error}");
        let mut remote = self.remote.lock().map_err(|error| broken(&error))?;
        if let Some(channel) = remote.get(url) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_string())
            .map_err(|error| broken(&error))?
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = endpoint.connect_lazy();
        remote.insert(url.clone(), channel.clone());
        Ok(channel)
    }
}

#[async_trait]
impl ChannelResolver for Channels {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        match self.local(url) {
            Some(worker) => Ok(Box::new(LocalChannel(worker))),
            None => {
                let channel = grpc::BoxCloneSyncChannel::new(self.remote(url)?);
                Ok(grpc::create_worker_client(channel))
            }
        }
    }
}

struct LocalChannel(Worker);

#[async_trait]
impl WorkerChannel for LocalChannel {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        mut request: SetPlanRequest,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        _metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        request.plan = MaybeEncoded::Encoded(request.plan.encode(context)?);
        self.0.coordinator_channel(headers, request, messages.map(Ok).boxed()).await
    }

    async fn execute_task(
        &mut self,
        _headers: HeaderMap,
        request: ExecuteTaskRequest,
        _metrics: ExecutionPlanMetricsSet,
        _context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let (streams, _) = self.0.execute_task(request).await?;
        Ok(streams.into_iter().map(|stream| stream.boxed()).collect())
    }

    async fn get_worker_info(
        &mut self,
        _request: GetWorkerInfoRequest,
    ) -> Result<GetWorkerInfoResponse> {
        Ok(GetWorkerInfoResponse { version: env!("CARGO_PKG_VERSION").to_owned() })
    }
}
