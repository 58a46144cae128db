//! How fast copies come to a node: no faster than `loop.allocate.io-bytes-per-s`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use foreshard_policy::ids::NodeId;
use foreshard_policy::rate::Rate;

use super::MemberError;

/// What came to each node.
#[derive(Debug, Default)]
pub(super) struct Rates {
    of_node: Mutex<BTreeMap<NodeId, Rate>>,
}

impl Rates {
    /// Waits until `bytes` may come to a node.
    ///
    /// # Errors
    /// [`MemberError::Busy`] if that would take for too long.
    pub(super) async fn turn(
        &self,
        node: NodeId,
        bytes: u64,
        (bytes_per_s, now_ns): (u64, u64),
    ) -> Result<(), MemberError> {
        let wait_ns = {
            // Every change is one number.
            let mut of_node = self.of_node.lock().unwrap_or_else(PoisonError::into_inner);
            of_node.entry(node).or_default().take(bytes, bytes_per_s, now_ns)
        };
        let busy = |wait_ns| MemberError::Busy { node, wait_s: wait_ns / 1_000_000_000 };
        tokio::time::sleep(Duration::from_nanos(wait_ns.map_err(busy)?)).await;
        Ok(())
    }

    /// Nothing comes to a node any more.
    pub(super) fn forget(&self, node: NodeId) {
        self.of_node.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }
}
