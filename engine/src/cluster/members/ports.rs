//! The cluster as the loop sees and changes it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use foreshard_actors::node::Tables;
use foreshard_actors::partition::{Fragment, Sign};
use foreshard_actors::ports::{Cluster, NodeProvider, Outcome};
use foreshard_actors::segment::Segment;
use foreshard_policy::budgets::Shares;
use foreshard_policy::cluster::{
    ClusterView, NodeView, OutputView, PartitionView, Step, TableView, fingerprint,
};
use foreshard_policy::ids::{Epoch, ExpressionId, FragmentId, NodeId, PartitionId};

use super::{MemberError, Members, failed};
use crate::cluster::place::HeldPartial;
use crate::query::in_place::key_kind;

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
        let mut holders_of = placement.holders.clone();
        self.add_unplaced(&mut holders_of);
        view.tables = self.tables(&holders_of);
        for (partition, holders) in &holders_of {
            let Some(store) = self.catalog.store(&partition.table) else { continue };
            let snapshot = store.snapshot();
            // While a partition is split or merged, the old and the new ones are placed.
            let is_there = snapshot.layout.has(partition.ordinal);
            let segments = snapshot.partitions.get(partition.ordinal as usize);
            let Some(segments) = segments.filter(|_| is_there) else { continue };
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
                    is_state: false,
                    rows_stored,
                    rows_missing: rows - rows_stored,
                    bytes: bytes_held,
                    pinned: self.expressions.pins.has_output(&partition.table, expression.id),
                };
                view.outputs.insert((expression.id, partition.clone()), output);
            }
            let pinned = self.expressions.pins.has_table(&partition.table);
            for (series, states) in self.states(partition, &holders, segments) {
                let output = OutputView { pinned, ..states };
                view.outputs.insert((series, partition.clone()), output);
            }
            let of_files = |node: &NodeId| {
                let rows = members.get(node)?.place.rows(partition)?;
                Some(((partition.clone(), *node), rows))
            };
            view.rows.extend(holders.iter().filter_map(of_files));
            view.partitions.insert(partition.clone(), PartitionView { holders, rows, bytes });
        }
        view
    }

    fn set_shares(&self, shares: &Arc<Shares>) {
        self.shares.store(Arc::clone(shares));
        for member in self.members.load().values() {
            member.place.set_shares(shares);
        }
    }

    async fn carry_out(&self, _epoch: Epoch, step: Step) -> Outcome {
        match self.step(step).await {
            Ok(outcome) => outcome,
            Err(error) => failed(&error),
        }
    }
}

impl Members {
    async fn step(&self, step: Step) -> Result<Outcome, MemberError> {
        let done = |bytes| Outcome::Done { rows: 0, bytes, ns: 0 };
        Ok(match step {
            Step::Copy { partition, to, .. } => done(self.copy(&partition, to).await?),
            Step::Move { partition, from, to } => {
                let bytes = self.copy(&partition, to).await?;
                self.drop_replica(&partition, from).await?;
                done(bytes)
            }
            Step::Drop { partition, from } => {
                self.drop_replica(&partition, from).await?;
                done(0)
            }
            Step::Split { partition, into, even, alike } => {
                self.split_as_planned(&partition, into, even, &alike).await?
            }
            Step::Merge { partition, other, into, alike } => {
                self.merge_as_planned(&partition, (other, into), &alike).await?
            }
            Step::Precompute { expression, partition, .. } => {
                self.precompute(expression, &partition).await
            }
            Step::DropOutput { expression, partition, .. } => {
                done(self.drop_outputs(Some(expression), &partition).await?)
            }
            Step::Prefetch { partition, node } => self.prefetch(&partition, node).await?,
            Step::Release { partition, node } => {
                done(self.member(node)?.place.release(&partition).await?)
            }
            Step::AddNode { node } => {
                self.add_local(node).await?;
                done(0)
            }
            Step::RemoveNode { node } => {
                self.remove(node).await?;
                done(0)
            }
        })
    }

    /// Adds partitions that another process made of placed ones: nobody holds them yet.
    fn add_unplaced(&self, holders: &mut BTreeMap<PartitionId, BTreeSet<NodeId>>) {
        let tables: BTreeSet<Arc<str>> = holders.keys().map(|id| Arc::clone(&id.table)).collect();
        for table in tables {
            let Some(store) = self.catalog.store(&table) else { continue };
            for ordinal in store.snapshot().layout.ordinals() {
                holders.entry(PartitionId::new(Arc::clone(&table), *ordinal)).or_default();
            }
        }
    }

    /// The tables of placed partitions that can be split and merged.
    fn tables(
        &self,
        holders: &BTreeMap<PartitionId, BTreeSet<NodeId>>,
    ) -> BTreeMap<Arc<str>, TableView> {
        let names: BTreeSet<&Arc<str>> = holders.keys().map(|id| &id.table).collect();
        let table = |name: &Arc<str>| {
            let store = self.catalog.store(name)?;
            let layout = &store.snapshot().layout;
            let view = TableView {
                order: layout.ordinals().to_vec(),
                next: layout.places(),
                made: layout.made(),
                key: key_kind(layout, &store.table().schema).map(|kind| fingerprint(&kind)),
                cuts: layout.cut_marks(),
            };
            (!layout.key_columns().is_empty()).then(|| (Arc::clone(name), view))
        };
        names.into_iter().filter_map(table).collect()
    }

    /// States of each shape: on the holder that lacks most of them.
    fn states(
        &self,
        partition: &PartitionId,
        holders: &BTreeSet<NodeId>,
        segments: &[Arc<Segment>],
    ) -> BTreeMap<ExpressionId, OutputView> {
        let mut all: BTreeMap<ExpressionId, OutputView> = BTreeMap::new();
        for member in holders.iter().filter_map(|node| self.member(*node).ok()) {
            let mut fragments: BTreeMap<FragmentId, Vec<HeldPartial>> = BTreeMap::new();
            for partial in member.place.partials(partition) {
                fragments.entry(partial.fragment.id).or_default().push(partial);
            }
            let mut here: BTreeMap<ExpressionId, OutputView> = BTreeMap::new();
            for held in fragments.values() {
                let Some(Fragment { shape, pattern, .. }) = held.first().map(|it| &*it.fragment)
                else {
                    continue;
                };
                let states = here.entry(shape.series()).or_insert_with(|| OutputView {
                    function: Arc::clone(pattern),
                    is_state: true,
                    rows_stored: 0,
                    rows_missing: 0,
                    bytes: 0,
                    pinned: false,
                });
                states.bytes += held.iter().map(|partial| partial.bytes).sum::<u64>();
                let stored: HashSet<_> = held.iter().map(|partial| partial.segment).collect();
                let signs: Vec<Sign> = held.iter().map(|partial| partial.sign).collect();
                let is_wanted = Sign::speaks_for_more(&signs);
                for segment in segments {
                    match stored.contains(&segment.id) {
                        true => states.rows_stored += segment.rows,
                        false if is_wanted => states.rows_missing += segment.rows,
                        false => {}
                    }
                }
            }
            for (series, here) in here {
                let (bytes, missing) = (here.bytes, here.rows_missing);
                let most =
                    all.entry(series).or_insert_with(|| OutputView { bytes: 0, ..here.clone() });
                let bytes = most.bytes + bytes;
                if missing > most.rows_missing {
                    *most = here;
                }
                most.bytes = bytes;
            }
        }
        all
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
