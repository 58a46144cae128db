//! The cluster as the loop sees and changes it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use foreshard_actors::node::Tables;
use foreshard_actors::ports::{Cluster, NodeProvider, Outcome};
use foreshard_actors::segment::Segment;
use foreshard_policy::cluster::{ClusterView, NodeView, OutputView, PartitionView, Step};
use foreshard_policy::ids::{Epoch, NodeId};

use super::{Members, failed};

#[async_trait]
impl Cluster for Members {
    fn view(&self) -> ClusterView {
        let members = self.members.load();
        let placement = self.placement();
        let nodes: BTreeMap<NodeId, NodeView> =
            members.iter().map(|(id, member)| (*id, member.place.view())).collect();
        let mut view = ClusterView { epoch: placement.epoch, nodes, ..ClusterView::default() };
        let mut expressions_of: HashMap<Arc<str>, Vec<_>> = HashMap::new();
        for expression in self.expressions.list() {
            expressions_of.entry(Arc::clone(&expression.table)).or_default().push(expression);
        }
        for (partition, holders) in &placement.holders {
            let Some(store) = self.catalog.store(&partition.table) else { continue };
            let snapshot = store.snapshot();
            let Some(segments) = snapshot.partitions.get(partition.ordinal as usize) else {
                continue;
            };
            let rows: u64 = segments.iter().map(|segment| segment.rows).sum();
            let bytes = segments.iter().map(|segment| segment.bytes).sum();
            let holders = holders.clone();
            let held: Vec<HashMap<_, _>> = holders
                .iter()
                .filter_map(|node| members.get(node))
                .map(|member| {
                    let outputs = member.place.outputs(partition).into_iter();
                    outputs.map(|held| ((held.expression, held.segment), held)).collect()
                })
                .collect();
            for expression in expressions_of.get(&partition.table).into_iter().flatten() {
                // What the holder that has the least of a segment has of it.
                let rows_stored_everywhere = |segment: &Arc<Segment>| {
                    let rows = held.iter().map(|held| {
                        held.get(&(expression.id, segment.id)).map_or(0, |output| output.rows)
                    });
                    rows.min().unwrap_or(0)
                };
                let rows_stored: u64 = segments.iter().map(rows_stored_everywhere).sum();
                let bytes_held = held
                    .iter()
                    .flatten()
                    // Memory is what plans weigh.
                    .filter(|((id, _), held)| *id == expression.id && !held.is_on_disk)
                    .map(|(_, output)| output.bytes)
                    .sum();
                let output = OutputView {
                    function: Arc::clone(&expression.function),
                    rows_stored,
                    rows_missing: rows - rows_stored,
                    bytes: bytes_held,
                    pinned: self.expressions.pins.has_output(&partition.table, expression.id),
                };
                view.outputs.insert((expression.id, partition.clone()), output);
            }
            view.partitions.insert(partition.clone(), PartitionView { holders, rows, bytes });
        }
        view
    }

    async fn carry_out(&self, _epoch: Epoch, step: Step) -> Outcome {
        match self.step(step).await {
            Ok(outcome) => outcome,
            Err(error) => failed(&error),
        }
    }
}

#[async_trait]
impl NodeProvider for Members {
    fn nodes(&self) -> Vec<NodeId> {
        self.members.load().keys().copied().collect()
    }

    async fn add(&self, node: NodeId) -> Outcome {
        match self.add_local(node).await {
            Ok(()) => Outcome::Done { rows: 0, bytes: 0, ns: 0 },
            Err(error) => failed(&error),
        }
    }

    async fn remove(&self, node: NodeId) -> Outcome {
        match Members::remove(self, node).await {
            Ok(()) => Outcome::Done { rows: 0, bytes: 0, ns: 0 },
            Err(error) => failed(&error),
        }
    }

    fn set_budget(&self, node: NodeId, cpu_permits: u32, memory_bytes_max: u64) {
        if let Ok(member) = self.member(node) {
            member.place.set_budget(cpu_permits, memory_bytes_max);
        }
    }
}
