//! Work ahead of calls in virtual time: what is missing of a pair, on each node that holds its partition.

use std::collections::VecDeque;

use foreshard_policy::ids::NodeId;

/// One step, and how far it is.
#[derive(Clone, Debug)]
pub(super) struct Ahead {
    /// Number of the decision.
    pub(super) id: u64,
    pub(super) pair: usize,
    /// Nodes that it has still to go to, and the one where it is.
    pub(super) nodes: VecDeque<NodeId>,
    pub(super) node: NodeId,
    /// Segments that it lacks there, and the one that is computed.
    segments: Vec<(i64, u64)>,
    pub(super) segment: i64,
    pub(super) rows_left: u64,
    /// What it has computed.
    pub(super) rows: u64,
    pub(super) ns: u64,
}

impl Ahead {
    pub(super) fn new(id: u64, pair: usize) -> Self {
        let (nodes, segments) = Default::default();
        let node = NodeId::default();
        Self { id, pair, nodes, node, segments, segment: 0, rows_left: 0, rows: 0, ns: 0 }
    }

    /// Comes to a node that lacks these segments.
    pub(super) fn goes_to(&mut self, node: NodeId, segments: Vec<(i64, u64)>) {
        (self.node, self.segments) = (node, segments);
    }

    /// Goes on to the next segment of its node, if there is one; answers the node.
    pub(super) fn next_segment(&mut self) -> Option<NodeId> {
        (self.segment, self.rows_left) = self.segments.pop()?;
        Some(self.node)
    }

    /// Computed rows; answers how many are left of the segment.
    pub(super) fn computed(&mut self, rows: u64, ns: u64) -> u64 {
        self.rows += rows;
        self.ns += ns;
        self.rows_left -= rows.min(self.rows_left);
        self.rows_left
    }
}
