//! What spares least per byte gives way, and with each that does all others grow old.
//!
//! Source: Cherkasova, Improving WWW proxies performance with greedy-dual-size-frequency caching policy,
//! HP Laboratories 1998, with nanoseconds as the cost.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cache, Call, Rank};

/// Greedy dual by size and frequency: priority is that of the last victim + calls * ns / bytes.
#[derive(Debug)]
pub struct Gdsf {
    bytes_max: u64,
    bytes: u64,
    inflation: f64,
    held: BTreeMap<u64, Entry>,
    order: BTreeSet<(Rank, u64)>,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    calls: f64,
    rank: Rank,
}

impl Gdsf {
    /// An empty store.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        let (held, order) = (BTreeMap::new(), BTreeSet::new());
        Self { bytes_max, bytes: 0, inflation: 0.0, held, order }
    }
}

impl Cache for Gdsf {
    fn name(&self) -> &'static str {
        "gdsf"
    }

    fn call(&mut self, call: &Call) -> bool {
        let spared = call.ns / call.bytes.max(1) as f64;
        if let Some(entry) = self.held.get_mut(&call.key) {
            self.order.remove(&(entry.rank, call.key));
            entry.calls += 1.0;
            entry.rank = Rank(self.inflation + entry.calls * spared);
            self.order.insert((entry.rank, call.key));
            return true;
        }
        if call.bytes > self.bytes_max {
            return false;
        }
        while self.bytes + call.bytes > self.bytes_max {
            let Some((rank, key)) = self.order.pop_first() else { break };
            self.inflation = rank.0;
            if let Some(gone) = self.held.remove(&key) {
                self.bytes -= gone.bytes;
            }
        }
        let rank = Rank(self.inflation + spared);
        self.bytes += call.bytes;
        self.held.insert(call.key, Entry { bytes: call.bytes, calls: 1.0, rank });
        self.order.insert((rank, call.key));
        false
    }

    fn bytes_held(&self) -> u64 {
        self.bytes
    }
}
