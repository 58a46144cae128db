//! Rows, replicas and stored outputs in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foreshard_policy::cluster::{ClusterView, NodeView, OutputView, PartitionView};
use foreshard_policy::ids::{Epoch, ExpressionId, NodeId, PartitionId};

use super::scene::{BYTES_PER_ROW, Part, Scene};
use crate::replay::stage::MINUTES_SPARE;

/// Number of the segment of rows that stay for ever: before those of all minutes.
const KEPT: i64 = i64::MIN;

/// Bytes of a row of the table.
const ROW_BYTES: u64 = 80;

/// What a replica holds of one segment, by function.
#[derive(Clone, Debug)]
struct Held {
    rows: u64,
    is_stored: Vec<bool>,
    was_asked: Vec<bool>,
}

/// One partition: its segments by minute, on each node that holds it.
#[derive(Clone, Debug, Default)]
struct Replicas(BTreeMap<NodeId, BTreeMap<i64, Held>>);

/// What a call finds of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) rows: u64,
    pub(super) is_stored: bool,
    /// Whether nobody asked for it here before.
    pub(super) is_fresh: bool,
}

/// All partitions.
#[derive(Clone, Debug)]
pub(super) struct Table {
    parts: Vec<(Part, Replicas)>,
    functions: usize,
}

impl Table {
    /// Partitions that are dealt out in turn, with the rows of the minutes before the first.
    pub(super) fn new(scene: &Scene) -> Self {
        let functions = scene.functions.len();
        let part = |(place, part): (usize, &Part)| {
            let node = NodeId(place as u32 % scene.nodes.max(1));
            let mut replicas = Replicas(BTreeMap::from([(node, BTreeMap::new())]));
            replicas.come(KEPT, part.rows_kept, functions);
            for minute in 1 - part.window as i64..1 {
                replicas.come(minute, part.rows_of(minute), functions);
            }
            (part.clone(), replicas)
        };
        Self { parts: scene.parts.iter().enumerate().map(part).collect(), functions }
    }

    /// The rows of a minute come, and those go that no call asks for any more.
    pub(super) fn append(&mut self, minute: i64) {
        for (part, replicas) in &mut self.parts {
            let gone = minute - (part.window + MINUTES_SPARE) as i64;
            replicas.come(minute, part.rows_of(minute), self.functions);
            for segments in replicas.0.values_mut() {
                segments.retain(|of, _| *of == KEPT || *of > gone);
            }
        }
    }

    /// Nodes that hold a partition.
    pub(super) fn holders(&self, partition: usize) -> impl Iterator<Item = NodeId> {
        self.parts[partition].1.0.keys().copied()
    }

    /// Segments that a call reads of which the newest rows are those of a minute, oldest first.
    pub(super) fn segments(&self, partition: usize, newest: i64) -> Vec<i64> {
        let (part, _) = &self.parts[partition];
        let kept = (part.rows_kept > 0).then_some(KEPT);
        let minutes =
            (newest + 1 - part.window as i64..=newest).filter(|minute| part.rows_of(*minute) > 0);
        kept.into_iter().chain(minutes).collect()
    }

    /// What a call finds of a segment. One that is gone meanwhile is read as if nobody held it.
    pub(super) fn look(
        &mut self,
        (partition, node): (usize, NodeId),
        segment: i64,
        function: usize,
    ) -> Found {
        let (part, replicas) = &mut self.parts[partition];
        match replicas.0.get_mut(&node).and_then(|segments| segments.get_mut(&segment)) {
            Some(held) => Found {
                rows: held.rows,
                is_stored: held.is_stored[function],
                is_fresh: !std::mem::replace(&mut held.was_asked[function], true),
            },
            None => {
                let rows = if segment == KEPT { part.rows_kept } else { part.rows_of(segment) };
                Found { rows, is_stored: false, is_fresh: false }
            }
        }
    }

    /// Stores the output of a function on a segment, if it is still there.
    pub(super) fn store(
        &mut self,
        (partition, node): (usize, NodeId),
        segment: i64,
        function: usize,
    ) {
        let replica = self.parts[partition].1.0.get_mut(&node);
        if let Some(held) = replica.and_then(|segments| segments.get_mut(&segment)) {
            held.is_stored[function] = true;
        }
    }

    /// Segments of which a node has no output of a function, with their rows.
    pub(super) fn missing(
        &self,
        (partition, node): (usize, NodeId),
        function: usize,
    ) -> Vec<(i64, u64)> {
        let segments = self.parts[partition].1.0.get(&node).into_iter().flatten();
        let missing = segments.filter(|(_, held)| held.rows > 0 && !held.is_stored[function]);
        missing.map(|(segment, held)| (*segment, held.rows)).collect()
    }

    /// Throws the outputs of a function away.
    pub(super) fn forget(&mut self, partition: usize, function: usize) {
        let replicas = self.parts[partition].1.0.values_mut();
        replicas.flat_map(BTreeMap::values_mut).for_each(|held| held.is_stored[function] = false);
    }

    /// Gives a node a replica, with what another one has stored.
    pub(super) fn copy(&mut self, partition: usize, to: NodeId) {
        let replicas = &mut self.parts[partition].1.0;
        let from = replicas.iter().find(|(node, _)| **node != to).map(|(_, it)| it.clone());
        let Some(mut copy) = from.filter(|_| !replicas.contains_key(&to)) else { return };
        copy.values_mut().for_each(|held| held.was_asked.fill(false));
        replicas.insert(to, copy);
    }

    /// Takes a replica away, unless it is the last one.
    pub(super) fn drop(&mut self, partition: usize, from: NodeId) {
        let replicas = &mut self.parts[partition].1.0;
        if replicas.len() > 1 {
            replicas.remove(&from);
        }
    }

    /// Bytes of a replica without outputs.
    pub(super) fn bytes(&self, partition: usize) -> u64 {
        self.parts[partition].1.rows() * ROW_BYTES
    }

    /// The cluster as planners see it.
    pub(super) fn view(&self, scene: &Scene, epoch: Epoch, memory_bytes_max: u64) -> ClusterView {
        let mut outputs: BTreeMap<(ExpressionId, PartitionId), OutputView> = BTreeMap::new();
        let mut memory: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut partitions = BTreeMap::new();
        for (place, (part, replicas)) in self.parts.iter().enumerate() {
            let (rows, bytes) = (replicas.rows(), self.bytes(place));
            for (function, name) in scene.functions.iter().enumerate() {
                let (mut least, mut held) = (rows, 0);
                for (node, segments) in &replicas.0 {
                    let stored = segments.values().filter(|it| it.is_stored[function]);
                    let stored: u64 = stored.map(|it| it.rows).sum();
                    *memory.entry(*node).or_default() += stored * BYTES_PER_ROW;
                    (least, held) = (least.min(stored), held + stored);
                }
                let output = OutputView {
                    function: Arc::clone(name),
                    is_state: false,
                    rows_stored: least,
                    rows_missing: rows - least,
                    bytes: held * BYTES_PER_ROW,
                    pinned: false,
                };
                outputs.insert((Scene::expression(function), part.id.clone()), output);
            }
            let holders: BTreeSet<NodeId> = replicas.0.keys().copied().collect();
            holders.iter().for_each(|node| *memory.entry(*node).or_default() += bytes);
            partitions.insert(part.id.clone(), PartitionView { holders, rows, bytes });
        }
        let node = |id: u32| {
            let memory_bytes = memory.get(&NodeId(id)).copied().unwrap_or(0);
            let cpu_permits = scene.permits;
            let view =
                NodeView { memory_bytes_max, memory_bytes, cpu_permits, ..NodeView::default() };
            (NodeId(id), view)
        };
        let nodes = (0..scene.nodes).map(node).collect();
        // The rows are in memory: none are read ahead.
        let (tables, rows) = (BTreeMap::new(), BTreeMap::new());
        ClusterView { epoch, nodes, partitions, tables, outputs, rows }
    }
}

impl Replicas {
    fn come(&mut self, segment: i64, rows: u64, functions: usize) {
        if rows == 0 {
            return;
        }
        let none = || vec![false; functions];
        for segments in self.0.values_mut() {
            segments.insert(segment, Held { rows, is_stored: none(), was_asked: none() });
        }
    }

    fn rows(&self) -> u64 {
        let first = self.0.values().next().into_iter().flat_map(BTreeMap::values);
        first.map(|held| held.rows).sum()
    }
}
