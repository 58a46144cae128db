//! The cluster as queries see it (the placement) and as the loop changes it.

mod arrivals;
mod endpoint;
mod local;
mod members;
mod place;
mod provider;
mod remote;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foreshard_policy::ids::{Epoch, NodeId, PartitionId};
use url::Url;

pub(crate) use arrivals::{Arrivals, Leaving};
pub use endpoint::Endpoint;
pub(crate) use endpoint::{incoming, url_of};
pub use local::LocalNode;
pub use members::{MemberError, Members, NodeBudget, Reshaped, ReshapedAlike};
pub use place::{HeldOutput, HeldPartial, Place, PlaceError};
pub use provider::ProviderError;
pub(crate) use provider::provider;
pub use remote::{RemoteNode, RemoteReplica, RemoteView};

/// One node of a placement.
#[derive(Clone, Debug)]
pub struct PlacedNode {
    /// The node.
    pub id: NodeId,
    /// Where its tasks are sent.
    pub url: Url,
    /// Whether it lives in this process.
    pub is_local: bool,
    /// Queries that read from it now; for choosing among replicas.
    pub in_flight: Arc<AtomicUsize>,
}

/// Which node holds which replica, at which epoch. Immutable; a query keeps the one it started with.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// Grows with every change.
    pub epoch: Epoch,
    /// Live nodes, by id.
    pub nodes: Vec<PlacedNode>,
    /// Holders of each partition.
    pub holders: BTreeMap<PartitionId, BTreeSet<NodeId>>,
}

impl Placement {
    /// Position of a node; tasks are numbered by it.
    #[must_use]
    pub fn position(&self, node: NodeId) -> Option<usize> {
        self.nodes.binary_search_by_key(&node, |placed| placed.id).ok()
    }

    /// Whether a node lives in this process.
    #[must_use]
    pub fn is_local(&self, node: NodeId) -> bool {
        self.position(node).is_some_and(|position| self.nodes[position].is_local)
    }

    /// The node that a query reads `partition` from: of two holders the one with fewer queries in
    /// flight. `turn` picks the two, so that calls with different turns spread.
    ///
    /// A partition without a live holder is read by the first node, from its file.
    #[must_use]
    pub fn choose(&self, partition: &PartitionId, turn: usize) -> NodeId {
        let live: Vec<&PlacedNode> = self
            .holders
            .get(partition)
            .into_iter()
            .flatten()
            .filter_map(|node| self.position(*node).map(|position| &self.nodes[position]))
            .collect();
        let Some(count) = std::num::NonZeroUsize::new(live.len()) else {
            return self.nodes.first().map(|node| node.id).unwrap_or_default();
        };
        let (one, two) = (live[turn % count], live[(turn / 7 + 1 + turn) % count]);
        let busy = |node: &PlacedNode| node.in_flight.load(Ordering::Relaxed);
        if busy(two) < busy(one) { two.id } else { one.id }
    }
}

/// Counts a query at the nodes it reads from, for as long as it runs.
#[derive(Debug, Default)]
pub struct InFlight(Vec<Arc<AtomicUsize>>);

impl InFlight {
    /// Counts a query at one more node.
    pub fn add(&mut self, placement: &Placement, node: NodeId) {
        if let Some(position) = placement.position(node) {
            let counter = Arc::clone(&placement.nodes[position].in_flight);
            counter.fetch_add(1, Ordering::Relaxed);
            self.0.push(counter);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        for counter in &self.0 {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(busy: &[usize]) -> Placement {
        let nodes = (0u32..).zip(busy).map(|(id, busy)| PlacedNode {
            id: NodeId(id),
            url: Url::parse(&format!("http://n{id}")).unwrap(),
            is_local: true,
            in_flight: Arc::new(AtomicUsize::new(*busy)),
        });
        let holders = (0..u32::try_from(busy.len()).unwrap()).map(NodeId).collect();
        let partition = PartitionId::new("t", 0);
        Placement {
            epoch: Epoch(1),
            nodes: nodes.collect(),
            holders: [(partition, holders)].into(),
        }
    }

    #[test]
    fn the_less_busy_of_two_replicas_is_read() {
        let placement = placement(&[5, 0]);
        for turn in 0..10 {
            let chosen = placement.choose(&PartitionId::new("t", 0), turn);
            let pair = [turn % 2, (turn / 7 + 1 + turn) % 2];
            let expected = if pair.contains(&1) { NodeId(1) } else { NodeId(0) };
            assert_eq!(chosen, expected, "turn {turn}");
        }
    }

    #[test]
    fn a_partition_without_a_live_holder_is_read_by_the_first_node() {
        assert_eq!(placement(&[0, 0]).choose(&PartitionId::new("u", 3), 1), NodeId(0));
    }
}
