//! What the loop sees of the cluster, and the steps by which it changes it.

mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::step::{Aim, MergeAlike, SplitAlike, Step};
use crate::ids::{Epoch, ExpressionId, NodeId, PartitionId};

/// One node as the loop sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Bytes the node may hold in resident segments and stored outputs.
    pub memory_bytes_max: u64,
    /// Bytes it holds now.
    pub memory_bytes: u64,
    /// Tasks that may compute at the same time.
    pub cpu_permits: u32,
    /// A draining node gives up its replicas and gets no new ones.
    pub draining: bool,
    /// It joined by itself from a process that somebody else starts and stops.
    pub joined: bool,
    /// Of the nodes that were started here, those with the highest number leave first.
    #[serde(default)]
    pub leaves: u32,
}

/// One partition as the loop sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartitionView {
    /// Nodes that hold a live replica.
    pub holders: BTreeSet<NodeId>,
    /// Rows in the newest snapshot.
    pub rows: u64,
    /// Bytes of a replica that is wholly resident.
    pub bytes: u64,
}

/// The partitions of one table, as far as they can be split and merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableView {
    /// Ordinals of its partitions, in the order of their keys.
    pub order: Vec<u32>,
    /// The ordinal that the next new partition gets.
    pub next: u32,
    /// Number of partitions that people want at least: those it was made with, and what they split and merged.
    pub made: u32,
    /// What kind of key it is laid out by; tables with the same one may be cut alike. None if no other table
    /// can be.
    #[serde(default)]
    pub key: Option<u64>,
    /// What stands for each place between one partition and the next: one fewer than there are partitions.
    /// Two tables with the same key have a cut in common if they have the same number here.
    #[serde(default)]
    pub cuts: Vec<u64>,
}

impl TableView {
    /// The cuts on both sides of a partition; none at an end of the table, or if the partition is not there.
    pub(crate) fn ends(&self, ordinal: u32) -> Option<(Option<u64>, Option<u64>)> {
        let at = self.order.iter().position(|own| *own == ordinal)?;
        let before = at.checked_sub(1).and_then(|before| self.cuts.get(before));
        Some((before.copied(), self.cuts.get(at).copied()))
    }
}

/// How much of one function expression over one partition is stored, or of the partial aggregates of one
/// shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputView {
    /// Name of the outermost function, or what the partial aggregates are.
    pub function: Arc<str>,
    /// Whether it is of partial aggregates: one look-up finds the state of a whole segment.
    #[serde(default)]
    pub is_state: bool,
    /// Rows of the newest snapshot whose output is stored on every holder of the partition.
    pub rows_stored: u64,
    /// Rows of the newest snapshot whose output is missing on some holder.
    pub rows_missing: u64,
    /// Bytes of memory held by the stored outputs, over all holders.
    pub bytes: u64,
    /// Whether people want it kept: then no plan drops it.
    pub pinned: bool,
}

/// Rows of one replica that are read from files unless they are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowsView {
    /// Bytes of rows in memory.
    pub bytes: u64,
    /// Bytes of rows that each query reads from the store.
    pub bytes_missing: u64,
    /// Milliseconds since a query read this replica, or since it was opened.
    pub idle_ms: u64,
    /// Nanoseconds that reading all of its rows from the store takes, by what reading took on its node.
    pub read_ns: f64,
}

/// A consistent picture of the cluster: the input of every decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Epoch of the placement.
    pub epoch: Epoch,
    /// Live nodes.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Every partition of every table.
    pub partitions: BTreeMap<PartitionId, PartitionView>,
    /// Tables whose partitions can be split and merged.
    #[serde(default)]
    pub tables: BTreeMap<Arc<str>, TableView>,
    /// Every storable expression that was ever called, per partition.
    pub outputs: BTreeMap<(ExpressionId, PartitionId), OutputView>,
    /// Rows of each replica that is read from files. Those of tables in memory are there anyway.
    #[serde(default)]
    pub rows: BTreeMap<(PartitionId, NodeId), RowsView>,
}

impl ClusterView {
    /// Records that `step` was carried out, so that the next plan counts it.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Copy { partition, .. }
            | Step::Move { partition, .. }
            | Step::Drop { partition, .. } => {
                if let Some(view) = self.partitions.get_mut(partition) {
                    step.change_holders(&mut view.holders);
                }
            }
            Step::Prefetch { partition, node } | Step::Release { partition, node } => {
                if let Some(rows) = self.rows.get_mut(&(partition.clone(), *node)) {
                    step.change_rows(rows);
                }
            }
            Step::Split { partition, into, alike, .. } => {
                // Where it is cut is not known before it is done, but it is the same place for all.
                let cut = fingerprint(&partition.to_string());
                self.divide(partition, *into, cut);
                alike.iter().for_each(|twin| self.divide(&twin.partition, twin.into, cut));
            }
            Step::Merge { partition, other, into, alike } => {
                self.unite(partition, *other, *into);
                for twin in alike {
                    self.unite(&twin.partition, twin.other, twin.into);
                }
            }
            Step::Precompute { expression, partition, .. }
            | Step::DropOutput { expression, partition, .. } => {
                if let Some(view) = self.outputs.get_mut(&(*expression, partition.clone())) {
                    step.change_output(view);
                }
            }
            Step::AddNode { .. } => {}
            Step::RemoveNode { node } => {
                self.nodes.remove(node);
                for view in self.partitions.values_mut() {
                    view.holders.remove(node);
                }
            }
        }
    }

    /// Takes a split as done, in the middle of the rows. What is stored is known once it is looked at.
    fn divide(&mut self, partition: &PartitionId, into: [u32; 2], cut: u64) {
        let Some(old) = self.partitions.remove(partition) else { return };
        self.outputs.retain(|(_, of), _| of != partition);
        self.replace(&partition.table, &[partition.ordinal], &into, Some(cut));
        let (rows, bytes) = (old.rows / 2, old.bytes / 2);
        let right = PartitionView { holders: old.holders.clone(), rows, bytes };
        let left = PartitionView { rows: old.rows - rows, bytes: old.bytes - bytes, ..old };
        for (ordinal, view) in into.into_iter().zip([left, right]) {
            self.partitions.insert(PartitionId::new(Arc::clone(&partition.table), ordinal), view);
        }
    }

    /// Takes a merge as done, on the holders of the larger partition.
    fn unite(&mut self, partition: &PartitionId, other: u32, into: u32) {
        let other = PartitionId::new(Arc::clone(&partition.table), other);
        let Some(one) = self.partitions.remove(partition) else { return };
        let two = self.partitions.remove(&other).unwrap_or_default();
        self.outputs.retain(|(_, of), _| of != partition && *of != other);
        self.replace(&partition.table, &[partition.ordinal, other.ordinal], &[into], None);
        let (rows, bytes) = (one.rows + two.rows, one.bytes + two.bytes);
        let holders = if one.rows >= two.rows { one.holders } else { two.holders };
        let new = PartitionId::new(Arc::clone(&partition.table), into);
        self.partitions.insert(new, PartitionView { holders, rows, bytes });
    }

    fn replace(&mut self, table: &Arc<str>, gone: &[u32], new: &[u32], cut: Option<u64>) {
        let Some(table) = self.tables.get_mut(table) else { return };
        if let Some(at) = table.order.iter().position(|ordinal| gone.first() == Some(ordinal)) {
            let end = (at + gone.len()).min(table.order.len());
            table.order.splice(at..end, new.iter().copied());
            let to = (at + gone.len() - 1).min(table.cuts.len());
            table.cuts.splice(at.min(to)..to, cut);
        }
        table.next = table.next.max(new.iter().max().map_or(0, |last| last + 1));
    }
}

/// A number that stands for a text, the same in all processes and versions.
#[must_use]
pub fn fingerprint(text: &str) -> u64 {
    // FNV-1a: two texts that are mistaken for each other cost a useless step, and no answer.
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
