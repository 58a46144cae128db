//! What was called longest ago gives way.

use std::collections::BTreeMap;

use super::{Cache, Call};

/// Least recently used.
#[derive(Debug)]
pub struct Lru {
    bytes_max: u64,
    bytes: u64,
    calls: u64,
    /// When each was called last, and its bytes.
    held: BTreeMap<u64, (u64, u64)>,
    /// What was called when.
    order: BTreeMap<u64, u64>,
}

impl Lru {
    /// An empty store.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: 0, calls: 0, held: BTreeMap::new(), order: BTreeMap::new() }
    }
}

impl Cache for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn call(&mut self, call: &Call) -> bool {
        self.calls += 1;
        if let Some((at, _)) = self.held.get_mut(&call.key) {
            self.order.remove(at);
            *at = self.calls;
            self.order.insert(self.calls, call.key);
            return true;
        }
        if call.bytes > self.bytes_max {
            return false;
        }
        while self.bytes + call.bytes > self.bytes_max {
            let Some((_, key)) = self.order.pop_first() else { break };
            if let Some((_, bytes)) = self.held.remove(&key) {
                self.bytes -= bytes;
            }
        }
        self.bytes += call.bytes;
        self.held.insert(call.key, (self.calls, call.bytes));
        self.order.insert(self.calls, call.key);
        false
    }

    fn bytes_held(&self) -> u64 {
        self.bytes
    }
}
