//! How fast copies and rows come to a node: no faster than `loop.allocate.io-bytes-per-s`, which tables that want
//! to at the same time share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foreshard_actors::ports::SharedClock;
use foreshard_policy::ids::NodeId;
use foreshard_policy::rate::Turns;
use tokio::sync::Notify;

use super::MemberError;

/// Longest sleep before somebody who is not next looks again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What comes to each node.
#[derive(Debug, Default)]
pub(super) struct Rates {
    of_node: Mutex<BTreeMap<NodeId, Turns>>,
    /// Somebody went, or left: another one may be next.
    moved: Notify,
}

/// A place in the line, which is given up when it is dropped.
struct Place<'a> {
    rates: &'a Rates,
    node: NodeId,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(turns) = self.rates.of_node().get_mut(&self.node) {
            turns.leave(self.ticket);
        }
        self.rates.moved.notify_waiters();
    }
}

impl Rates {
    fn of_node(&self) -> MutexGuard<'_, BTreeMap<NodeId, Turns>> {
        // Every change leaves the lines whole.
        self.of_node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` of a table, which has `part` of the rate while others wait, may come to a node.
    ///
    /// # Errors
    /// [`MemberError::Busy`] if that would take for too long.
    pub(super) async fn turn(
        &self,
        node: NodeId,
        of: (&Arc<str>, f64),
        bytes: u64,
        (bytes_per_s, clock): (u64, &SharedClock),
    ) -> Result<(), MemberError> {
        let busy = |wait_ns| MemberError::Busy { node, wait_s: wait_ns / 1_000_000_000 };
        let limit = || (bytes_per_s, clock.monotonic_ns());
        let ticket = self.of_node().entry(node).or_default().join(of, bytes, limit());
        let place = Place { rates: self, node, ticket: ticket.map_err(busy)? };
        loop {
            let moved = self.moved.notified();
            let go = match self.of_node().get_mut(&node) {
                Some(turns) => turns.go(place.ticket, limit()),
                None => Ok(()), // The node is gone, as the caller will find.
            };
            let Err(wait_ns) = go else { return Ok(()) };
            let wait = Duration::from_nanos(wait_ns.max(1_000_000)).min(LOOK_EVERY);
            // Either is a reason to look again.
            drop(tokio::time::timeout(wait, moved).await);
        }
    }

    /// Nothing comes to a node any more.
    pub(super) fn forget(&self, node: NodeId) {
        self.of_node().remove(&node);
    }
}
