//! Reports to the coordinator: that the node is alive, what it holds, and what was called on it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use foreshard_actors::node::NodeState;
use foreshard_policy::ids::ExpressionId;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::transport::Channel;

use super::calls::CallBuffer;
use super::generated::coordinator_client::CoordinatorClient;
use super::messages::{
    ExpressionMessage, OutputMessage, PartialMessage, ReplicaMessage, ReportRequest,
};
use crate::cluster::{HeldOutput, HeldPartial};

/// Longest wait for an answer.
const REPORT_MAX: Duration = Duration::from_secs(2);

/// Calls are reported so soon after the first of them, several together.
const CALLS_WAIT: Duration = Duration::from_millis(50);

/// A coordinator that was silent for so long is gone.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(60);

/// Why a node stops to report.
#[derive(Debug)]
pub(super) enum End {
    /// The coordinator knows it no more; it may join again.
    Forgotten,
    /// The coordinator does not answer.
    Gone,
}

/// Reports for one node.
#[derive(Clone)]
pub(super) struct Reporter {
    pub(super) node: Arc<NodeState>,
    pub(super) calls: Arc<CallBuffer>,
    pub(super) client: CoordinatorClient<Channel>,
    pub(super) coordinator_id: String,
    pub(super) beat: Duration,
    /// Expressions that the coordinator knows of.
    pub(super) told: HashSet<ExpressionId>,
}

impl Reporter {
    /// Reports until there is nobody to report to; calls `admitted` once the node is part of the cluster.
    pub(super) async fn run(mut self, admitted: impl FnOnce()) -> End {
        let mut beat = tokio::time::interval(self.beat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let mut admitted = Some(admitted);
        loop {
            let calls = Arc::clone(&self.calls);
            tokio::select! {
                _ = beat.tick() => {}
                () = calls.is_new.notified() => tokio::time::sleep(CALLS_WAIT).await,
            }
            match self.report().await {
                Ok(heard) if !heard.is_known => return End::Forgotten,
                Ok(heard) => {
                    heard_at = Instant::now();
                    if heard.is_admitted
                        && let Some(admitted) = admitted.take()
                    {
                        admitted();
                    }
                }
                Err(error) => {
                    tracing::warn!(node = %self.node.id, %error, "report not heard");
                    if heard_at.elapsed() > GONE_AFTER {
                        return End::Gone;
                    }
                }
            }
        }
    }

    async fn report(&mut self) -> Result<super::messages::Heard, tonic::Status> {
        let calls = self.calls.take();
        let known = self.node.expressions.list();
        let new: Vec<_> =
            known.iter().filter(|expression| !self.told.contains(&expression.id)).collect();
        let request = ReportRequest {
            node: self.node.id.0,
            coordinator: self.coordinator_id.clone(),
            memory_bytes: self.node.memory_bytes(),
            memory_bytes_max: self.node.memory_bytes_max(),
            cpu_permits: self.node.permits_max(),
            calls: match calls.as_slice() {
                [] => vec![],
                calls => serde_json::to_vec(calls).unwrap_or_default(),
            },
            calls_dropped: self.calls.dropped() + self.node.calls.dropped(),
            // One that cannot be encoded is only called here, never ahead.
            expressions: new.iter().filter_map(|it| ExpressionMessage::new(it).ok()).collect(),
            replicas: replicas(&self.node),
        };
        let answer = tokio::time::timeout(REPORT_MAX, self.client.report(request)).await;
        let heard = match answer {
            Ok(Ok(heard)) => heard.into_inner(),
            failed => {
                self.calls.lost(calls.len());
                let late =
                    || tonic::Status::deadline_exceeded("the coordinator did not answer in time");
                return Err(failed
                    .map_or_else(|_elapsed| late(), |answer| answer.err().unwrap_or_else(late)));
            }
        };
        self.told.extend(new.iter().map(|expression| expression.id));
        let is_known: HashSet<ExpressionId> =
            known.iter().map(|expression| expression.id).collect();
        self.told.retain(|id| is_known.contains(id));
        Ok(heard)
    }
}

fn replicas(node: &NodeState) -> Vec<ReplicaMessage> {
    let mut replicas = vec![];
    for (partition, handle) in node.replicas().iter() {
        let view = handle.replica.view();
        let rows = handle.replica.rows(node.read_cost(), node.clock.monotonic_ns());
        let resident = view.segments.values().filter(|held| held.rows.is_some()).count();
        replicas.push(ReplicaMessage {
            partition: Some(partition.into()),
            segments: view.segments.len() as u64,
            resident: resident as u64,
            outputs: HeldOutput::list(&view).iter().map(OutputMessage::new).collect(),
            partials: HeldPartial::list(&view).iter().map(PartialMessage::new).collect(),
            rows: rows.map(Into::into),
        });
    }
    replicas
}
