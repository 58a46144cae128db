//! How tasks reach their nodes: inside the process for nodes that live here, by gRPC for the others.
//!
//! Inside the process plans are encoded like remote ones: a shuffle holds one-shot streams, and two
//! tasks must never share a plan. Batches are handed over without a copy.
//!
//! A task that nobody asked for sends no metrics, and `EXPLAIN ANALYZE` would wait for them for ever:
//! the small side of a join whose states are all stored is such a task. Its channel reports for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest,
    GetWorkerInfoResponse, MaybeEncoded, SetPlanRequest, TaskMetrics, Worker, WorkerChannel,
    WorkerToCoordinatorMsg, grpc,
};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, future};
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
        let channel: Box<dyn WorkerChannel> = match self.local(url) {
            Some(worker) => Box::new(LocalChannel(worker)),
            None => {
                let channel = grpc::BoxCloneSyncChannel::new(self.remote(url)?);
                grpc::create_worker_client(channel)
            }
        };
        Ok(Box::new(ReportingChannel(channel)))
    }
}

/// A channel that ends with metrics in any case: without figures for a task that never ran.
struct ReportingChannel(Box<dyn WorkerChannel>);

#[async_trait]
impl WorkerChannel for ReportingChannel {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        request: SetPlanRequest,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        let nodes = match &request.plan {
            MaybeEncoded::Decoded(plan) => count_nodes(plan)?,
            MaybeEncoded::Encoded(_) => 0,
        };
        let from_worker =
            self.0.coordinator_channel(headers, request, messages, metrics, context).await?;
        let is_done = Arc::new(AtomicBool::new(nodes == 0));
        let seen = Arc::clone(&is_done);
        let from_worker = from_worker.inspect(move |message| {
            if !matches!(
                message,
                Ok(WorkerToCoordinatorMsg::LoadInfo(_) | WorkerToCoordinatorMsg::LoadInfoEos)
            ) {
                seen.store(true, Ordering::Relaxed);
            }
        });
        let without_figures = stream::once(async move {
            (!is_done.load(Ordering::Relaxed)).then(|| {
                let pre_order_plan_metrics = vec![MetricsSet::new(); nodes];
                let task_metrics = MetricsSet::new();
                Ok(WorkerToCoordinatorMsg::TaskMetrics(TaskMetrics {
                    pre_order_plan_metrics,
                    task_metrics,
                }))
            })
        });
        Ok(from_worker.chain(without_figures.filter_map(future::ready)).boxed())
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        self.0.execute_task(headers, request, metrics, context).await
    }

    async fn get_worker_info(
        &mut self,
        request: GetWorkerInfoRequest,
    ) -> Result<GetWorkerInfoResponse> {
        self.0.get_worker_info(request).await
    }
}

fn count_nodes(plan: &Arc<dyn ExecutionPlan>) -> Result<usize> {
    let mut nodes = 0;
    plan.apply(|_node| {
        nodes += 1;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(nodes)
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
