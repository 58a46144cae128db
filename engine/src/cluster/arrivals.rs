//! Nodes that a provider starts in other processes: known by the name with which they join.
//!
//! A provider says which names it expects, and waits for them; the control service asks here who a process
//! is that wants to join. Whoever joins with a name that nobody expects was started by somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use foreshard_policy::ids::NodeId;
use tokio::sync::watch;

/// Says of a name whether it is one of the provider's, and if so in which order it leaves
/// (`NodeView::leaves`).
type Recognise = Box<dyn Fn(&str) -> Option<u32> + Send + Sync>;

/// Who came, and who is to come.
#[derive(Default)]
pub(crate) struct Arrivals {
    known: Mutex<Known>,
    recognise: OnceLock<Recognise>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Known {
    address: Option<SocketAddr>,
    by_name: BTreeMap<String, Arrival>,
    /// Names that may not join: their nodes were drained and are about to end.
    leaving: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug)]
struct Arrival {
    node: NodeId,
    leaves: u32,
    /// Whether the number was given to a process; another one gets another number.
    is_given: bool,
    is_here: bool,
}

/// A process may not join now: its node is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaving;

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.known().fmt(f)
    }
}

impl Arrivals {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is one insert or one removal.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where nodes join from now on; nowhere any more if it is none.
    pub(crate) fn open_at(&self, address: Option<SocketAddr>) {
        self.known().address = address;
    }

    /// Where processes of this machine join, if they may.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let address = self.known().address?;
        let here = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        Some(SocketAddr::new(here, address.port()))
    }

    /// Says how names of the provider's nodes look that it did not announce one by one. Once.
    pub(crate) fn recognise(&self, names: impl Fn(&str) -> Option<u32> + Send + Sync + 'static) {
        // There is one provider.
        drop(self.recognise.set(Box::new(names)));
    }

    /// A node will join by this name, and should have this number. It is waited for until the answer is
    /// dropped.
    #[must_use]
    pub(crate) fn expect(&self, name: &str, node: NodeId, leaves: u32) -> Expected<'_> {
        let mut known = self.known();
        known.leaving.remove(name);
        let arrival = Arrival { node, leaves, is_given: false, is_here: false };
        known.by_name.insert(name.to_owned(), arrival);
        Expected { arrivals: self, name: name.to_owned() }
    }

    /// Nobody comes by this name any more. Returns the node that had come.
    pub(crate) fn forget(&self, name: &str) -> Option<NodeId> {
        let arrival = self.known().by_name.remove(name)?;
        arrival.is_here.then_some(arrival.node)
    }

    /// Nobody may join by this name until it is expected again or allowed to.
    pub(crate) fn leaves(&self, name: &str) {
        self.known().leaving.insert(name.to_owned());
    }

    /// The name may join again.
    pub(crate) fn may_join(&self, name: &str) {
        self.known().leaving.remove(name);
    }

    /// The number of a process that joins by `name`, and in which order it leaves if it is the provider's.
    /// The expected number is given once, and only if it `is_free`; otherwise the number is `fresh`.
    ///
    /// # Errors
    /// [`Leaving`] if its node was drained.
    pub(crate) fn joins(
        &self,
        name: &str,
        fresh: NodeId,
        is_free: impl FnOnce(NodeId) -> bool,
    ) -> Result<(NodeId, Option<u32>), Leaving> {
        let mut known = self.known();
        if known.leaving.contains(name) {
            return Err(Leaving);
        }
        if let Some(arrival) = known.by_name.get_mut(name) {
            if arrival.is_given || !is_free(arrival.node) {
                arrival.node = fresh;
            }
            (arrival.is_given, arrival.is_here) = (true, false);
            return Ok((arrival.node, Some(arrival.leaves)));
        }
        let leaves = self.recognise.get().and_then(|recognise| recognise(name));
        if let Some(leaves) = leaves {
            let arrival = Arrival { node: fresh, leaves, is_given: true, is_here: false };
            known.by_name.insert(name.to_owned(), arrival);
        }
        Ok((fresh, leaves))
    }

    /// A number that none of these has or will have.
    pub(crate) fn next_id(&self) -> NodeId {
        let last = self.known().by_name.values().map(|arrival| arrival.node.0).max();
        NodeId(last.map_or(0, |last| last.saturating_add(1)))
    }

    /// The node is part of the cluster now.
    pub(crate) fn admitted(&self, node: NodeId) {
        for arrival in self.known().by_name.values_mut() {
            arrival.is_here |= arrival.is_given && arrival.node == node;
        }
        self.changed.send_replace(());
    }

    /// Waits until the node that joins by `name` is part of the cluster, or for ever.
    pub(crate) async fn arrived(&self, name: &str) -> NodeId {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(node) = self.node_of(name) {
                return node;
            }
            // The sender lives in self.
            drop(changed.changed().await);
        }
    }

    /// All names that came, with their nodes, and those that are waited for.
    pub(crate) fn names(&self) -> Vec<(String, Option<NodeId>)> {
        let known = self.known();
        let node = |arrival: &Arrival| arrival.is_here.then_some(arrival.node);
        known.by_name.iter().map(|(name, arrival)| (name.clone(), node(arrival))).collect()
    }

    /// The node that came by this name.
    pub(crate) fn node_of(&self, name: &str) -> Option<NodeId> {
        let known = self.known();
        known.by_name.get(name).filter(|arrival| arrival.is_here).map(|arrival| arrival.node)
    }

    /// The name by which a node came.
    pub(crate) fn name_of(&self, node: NodeId) -> Option<String> {
        let known = self.known();
        let of_node = |(name, arrival): (&String, &Arrival)| {
            (arrival.is_given && arrival.node == node).then(|| name.clone())
        };
        known.by_name.iter().find_map(of_node)
    }
}

/// Takes a name off the list when this is dropped, unless its node came.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    arrivals: &'a Arrivals,
    name: String,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        let mut known = self.arrivals.known();
        if known.by_name.get(&self.name).is_some_and(|arrival| !arrival.is_here) {
            known.by_name.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_expected_gets_its_number_once_and_only_if_nobody_has_it() {
        let arrivals = Arrivals::default();
        let _a = arrivals.expect("a", NodeId(4), 1);
        assert_eq!(arrivals.next_id(), NodeId(5));
        assert_eq!(arrivals.joins("b", NodeId(5), |_| true), Ok((NodeId(5), None)));
        assert_eq!(arrivals.joins("a", NodeId(6), |_| true), Ok((NodeId(4), Some(1))));
        assert_eq!(arrivals.node_of("a"), None, "it has not reported yet");
        arrivals.admitted(NodeId(4));
        assert_eq!(arrivals.arrived("a").await, NodeId(4));
        // It was forgotten, and comes again.
        assert_eq!(arrivals.joins("a", NodeId(7), |_| true), Ok((NodeId(7), Some(1))));
        assert_eq!(arrivals.name_of(NodeId(7)).as_deref(), Some("a"));
        let c = arrivals.expect("c", NodeId(8), 1);
        assert_eq!(arrivals.joins("c", NodeId(9), |_| false), Ok((NodeId(9), Some(1))));
        drop(c);
        assert_eq!(arrivals.names(), [("a".to_owned(), None)], "nobody waits for c any more");
    }

    #[test]
    fn who_is_recognised_is_the_providers_and_who_is_drained_does_not_come_back() {
        let arrivals = Arrivals::default();
        arrivals.recognise(|name| name.strip_prefix("pod-")?.parse().ok());
        assert_eq!(arrivals.joins("pod-3", NodeId(1), |_| true), Ok((NodeId(1), Some(3))));
        assert_eq!(arrivals.joins("pod-x", NodeId(2), |_| true), Ok((NodeId(2), None)));
        arrivals.leaves("pod-3");
        assert_eq!(arrivals.joins("pod-3", NodeId(2), |_| true), Err(Leaving));
        assert_eq!(arrivals.name_of(NodeId(1)).as_deref(), Some("pod-3"));
        arrivals.may_join("pod-3");
        assert_eq!(arrivals.joins("pod-3", NodeId(2), |_| true), Ok((NodeId(2), Some(3))));
    }

    #[test]
    fn an_address_that_stands_for_all_is_dialled_on_loopback() {
        let arrivals = Arrivals::default();
        assert_eq!(arrivals.address(), None);
        for (bound, dialled) in
            [("0.0.0.0:7", "127.0.0.1:7"), ("[::]:7", "[::1]:7"), ("10.0.0.4:7", "10.0.0.4:7")]
        {
            arrivals.open_at(Some(bound.parse().unwrap()));
            assert_eq!(arrivals.address(), Some(dialled.parse().unwrap()));
        }
    }
}
