//! Values that gave way to the disk: read back when a query opens their segment.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, Time};
use foreshard_actors::node::NodeState;
use foreshard_actors::partition::{Held, Offer, StoredOutput};
use foreshard_policy::ids::PartitionId;

use crate::query::stream::call::Asked;

/// Reads for one scan, on account of its query.
pub(super) struct Disk {
    pool: Arc<dyn MemoryPool>,
    outputs_from_disk: Count,
    time_from_disk: Time,
}

impl Disk {
    pub(super) fn new(
        pool: &Arc<dyn MemoryPool>,
        metrics: &ExecutionPlanMetricsSet,
        partition: usize,
    ) -> Self {
        let time_from_disk = MetricBuilder::new(metrics).subset_time("time_from_disk", partition);
        let outputs_from_disk = MetricBuilder::new(metrics).counter("outputs_from_disk", partition);
        Self { pool: Arc::clone(pool), outputs_from_disk, time_from_disk }
    }

    /// The values of a call that are on disk and not in memory. If the query has no memory for them, or the
    /// file is gone or broken, they are computed as if they had never been there.
    pub(super) async fn read(
        &self,
        node: &NodeState,
        partition: &PartitionId,
        held: &Held,
        asked: &Asked,
    ) -> Option<StoredOutput> {
        let id = asked.expression.id;
        let file = held.on_disk(id).filter(|_| !held.outputs.contains_key(&id))?;
        let spill = node.spill.as_ref().filter(|_| asked.is_stored)?;
        let charge = MemoryConsumer::new("output from disk").register(&self.pool);
        charge.try_grow(usize::try_from(file.bytes()).ok()?).ok()?;
        let timer = self.time_from_disk.timer();
        let values = spill.read(file).await?;
        drop(timer);
        self.outputs_from_disk.add(1);
        let uses = Arc::clone(file.uses());
        uses.fetch_add(1, Ordering::Relaxed);
        let offer = Offer {
            segment: held.segment.id,
            expression: Arc::clone(&asked.expression),
            values: values.clone(),
            flight: None,
        };
        let handle = node.handle(partition);
        if handle.is_some_and(|handle| !handle.actor.read_back(offer)) {
            node.offers_dropped.fetch_add(1, Ordering::Relaxed);
        }
        Some(StoredOutput { values, bytes: file.bytes(), uses, charge: Arc::new(charge) })
    }
}
