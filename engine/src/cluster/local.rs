//! Nodes inside this process.

use std::sync::Arc;

use async_trait::async_trait;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::{NodeHandle, StorePolicy};
use foreshard_actors::partition::{
    Offer, OutputValues, PartialOffer, PartitionMessage, ReplicaView, Wanted, stored_values,
};
use foreshard_actors::ports::Outcome;
use foreshard_actors::table::{Committed, Snapshot};
use foreshard_policy::budgets::Shares;
use foreshard_policy::cluster::{NodeView, RowsView};
use foreshard_policy::ids::{ExpressionId, FragmentId, PartitionId, SegmentId};

use crate::cluster::place::{HeldOutput, HeldPartial, Place, PlaceError};

/// Longest wait for a replica to load, in milliseconds.
const LOAD_MS_MAX: u64 = 60_000;

/// A node of this process.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// The node.
    pub handle: NodeHandle,
}

impl LocalNode {
    fn gone(&self, what: &str) -> PlaceError {
        let url = self.handle.state.id.to_string();
        PlaceError::Unreachable { url, reason: format!("{what} got no answer") }
    }
}

#[async_trait]
impl Place for LocalNode {
    fn view(&self) -> NodeView {
        let state = &self.handle.state;
        NodeView {
            memory_bytes_max: state.memory_bytes_max(),
            memory_bytes: state.memory_bytes(),
            cpu_permits: state.permits_max(),
            draining: state.is_draining(),
            joined: false,
            leaves: 0,
        }
    }

    fn outputs(&self, partition: &PartitionId) -> Vec<HeldOutput> {
        self.replica(partition).map(|view| HeldOutput::list(&view)).unwrap_or_default()
    }

    fn partials(&self, partition: &PartitionId) -> Vec<HeldPartial> {
        self.replica(partition).map(|view| HeldPartial::list(&view)).unwrap_or_default()
    }

    async fn open(
        &self,
        partition: &PartitionId,
        snapshot: &Arc<Snapshot>,
        from: Option<&dyn Place>,
    ) -> Result<(), PlaceError> {
        self.handle.open(partition).await?;
        let other = from.and_then(|from| from.replica(partition));
        let actor = self
            .handle
            .state
            .handle(partition)
            .and_then(|handle| handle.actor.actor())
            .ok_or_else(|| self.gone("open"))?;
        if let Some(other) = other {
            drop(ractor::call_t!(actor, PartitionMessage::Adopt, LOAD_MS_MAX, other));
        }
        let load = |reply| PartitionMessage::Load(Arc::clone(snapshot), Some(reply));
        ractor::call_t!(actor, load, LOAD_MS_MAX).map_err(|_no_answer| self.gone("load"))
    }

    async fn close(&self, partition: &PartitionId) -> Result<(), PlaceError> {
        self.handle.close(partition).await?;
        Ok(())
    }

    fn committed(&self, change: &Arc<Committed>) {
        let Snapshot { table, layout, .. } = &*change.snapshot;
        for partition in self.handle.state.replicas().keys() {
            // The replica of a partition that was split or merged keeps what others take over from it.
            if partition.table == table.name && layout.has(partition.ordinal) {
                let message = PartitionMessage::SegmentsChanged(Arc::clone(change));
                self.handle.tell(partition, message);
            }
        }
    }

    async fn take_over(&self, change: &Arc<Committed>) -> Result<(), PlaceError> {
        self.committed(change);
        Ok(())
    }

    async fn precompute(&self, partition: &PartitionId, wanted: &Wanted) -> Outcome {
        let failed = |reason: &str| Outcome::Failed {
            code: "FS-CLUSTER-2",
            reason: format!("{wanted} on {partition}: {reason}"),
        };
        let handle = self.handle.state.handle(partition);
        let Some(actor) = handle.and_then(|handle| handle.actor.actor()) else {
            return failed("the node holds no replica");
        };
        let ask = |reply| PartitionMessage::Precompute(wanted.clone(), reply);
        match actor.call(ask, None).await {
            Ok(ractor::rpc::CallResult::Success(outcome)) => outcome,
            _ => failed("the partition actor gave no answer"),
        }
    }

    async fn output(
        &self,
        partition: &PartitionId,
        expression: ExpressionId,
        segment: SegmentId,
    ) -> Result<Option<OutputValues>, PlaceError> {
        let view = self.replica(partition);
        let held = view.as_ref().and_then(|view| view.segments.get(&segment));
        Ok(match held {
            Some(held) => stored_values(&self.handle.state, held, expression).await,
            None => None,
        })
    }

    async fn adopt(
        &self,
        partition: &PartitionId,
        expression: &Arc<FunctionExpression>,
        segment: SegmentId,
        values: OutputValues,
    ) -> Result<(), PlaceError> {
        let gone = || self.gone("an output");
        let handle = self.handle.state.handle(partition).ok_or_else(gone)?;
        let (expression, flight) = (Arc::clone(expression), None);
        let offer = Offer { segment, expression, values, flight };
        handle.actor.offer_waiting(offer).await.then_some(()).ok_or_else(gone)
    }

    async fn state(
        &self,
        partition: &PartitionId,
        fragment: FragmentId,
        segment: SegmentId,
    ) -> Result<Option<PartialOffer>, PlaceError> {
        let view = self.replica(partition);
        let held = view.as_ref().and_then(|view| view.segments.get(&segment));
        let stored = held.and_then(|held| held.partials.get(&fragment));
        Ok(stored.map(|stored| PartialOffer {
            segment,
            fragment: Arc::clone(&stored.fragment),
            batches: stored.batches.to_vec(),
            ns: stored.ns,
            calls: stored.calls.to_vec(),
            recipe: stored.recipe.clone(),
            is_ahead: stored.is_ahead,
        }))
    }

    async fn adopt_state(
        &self,
        partition: &PartitionId,
        state: PartialOffer,
    ) -> Result<(), PlaceError> {
        let gone = || self.gone("a state");
        let handle = self.handle.state.handle(partition).ok_or_else(gone)?;
        handle.actor.offer_partial_waiting(state).await.then_some(()).ok_or_else(gone)
    }

    async fn drop_outputs(
        &self,
        partition: &PartitionId,
        which: Option<ExpressionId>,
    ) -> Result<u64, PlaceError> {
        let handle = self.handle.state.handle(partition);
        let Some(actor) = handle.and_then(|handle| handle.actor.actor()) else { return Ok(0) };
        ractor::call_t!(actor, PartitionMessage::DropOutputs, LOAD_MS_MAX, which)
            .map_err(|_no_answer| self.gone("drop outputs"))
    }

    fn rows(&self, partition: &PartitionId) -> Option<RowsView> {
        let state = &self.handle.state;
        state.replica(partition)?.rows(state.read_cost(), state.clock.monotonic_ns())
    }

    async fn prefetch(&self, partition: &PartitionId) -> Outcome {
        let failed = |reason: &str| Outcome::Failed {
            code: "FS-CLUSTER-2",
            reason: format!("rows of {partition}: {reason}"),
        };
        let handle = self.handle.state.handle(partition);
        let Some(actor) = handle.and_then(|handle| handle.actor.actor()) else {
            return failed("the node holds no replica");
        };
        match actor.call(PartitionMessage::Prefetch, None).await {
            Ok(ractor::rpc::CallResult::Success(outcome)) => outcome,
            _ => failed("the partition actor gave no answer"),
        }
    }

    async fn release(&self, partition: &PartitionId) -> Result<u64, PlaceError> {
        let handle = self.handle.state.handle(partition);
        let Some(actor) = handle.and_then(|handle| handle.actor.actor()) else { return Ok(0) };
        ractor::call_t!(actor, PartitionMessage::Release, LOAD_MS_MAX)
            .map_err(|_no_answer| self.gone("release"))
    }

    fn replica(&self, partition: &PartitionId) -> Option<Arc<ReplicaView>> {
        self.handle.state.replica(partition).map(|replica| replica.view())
    }

    fn set_budget(&self, cpu_permits: u32, memory_bytes_max: u64) {
        self.handle.state.set_budget(cpu_permits, memory_bytes_max);
    }

    fn set_shares(&self, shares: &Arc<Shares>) {
        self.handle.state.set_shares(Arc::clone(shares));
    }

    fn set_store_policy(&self, policy: StorePolicy) {
        self.handle.state.set_store_policy(policy);
    }

    fn set_draining(&self, draining: bool) {
        self.handle.state.set_draining(draining);
    }

    async fn stop(&self) {
        self.handle.stop();
    }
}
