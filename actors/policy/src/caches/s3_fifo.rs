//! Three queues: what is new passes a small one, and only what was called again there enters the main one.
//!
//! Source: Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023.

use std::collections::{BTreeMap, VecDeque};

use super::{Cache, Call};

/// Part of the budget that the small queue may take before it gives way first, in percent.
const SMALL_PERCENT: u64 = 10;

/// Calls in the small queue from which on it enters the main one.
const PROMOTED_FROM: u8 = 2;

/// Calls that are counted at most.
const CALLS_MAX: u8 = 3;

/// Static small, static main and ghost queue, all first in, first out.
#[derive(Debug, Default)]
pub struct S3Fifo {
    bytes_max: u64,
    held: BTreeMap<u64, Entry>,
    small: Queue,
    main: Queue,
    /// Keys that left the small queue lately; as many bytes as the main queue has.
    ghosts: Queue,
    /// Which burial the newest one of a ghost is; what came back is still in the queue, but not here.
    dead: BTreeMap<u64, usize>,
    burials: usize,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    calls: u8,
}

#[derive(Debug, Default)]
struct Queue {
    keys: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Queue {
    fn push(&mut self, key: u64, bytes: u64) {
        self.keys.push_back((key, bytes));
        self.bytes += bytes;
    }

    fn pop(&mut self) -> Option<u64> {
        let (key, bytes) = self.keys.pop_front()?;
        self.bytes -= bytes;
        Some(key)
    }
}

impl S3Fifo {
    /// An empty store.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    fn small_max(&self) -> u64 {
        self.bytes_max / 100 * SMALL_PERCENT
    }

    /// Lets one thing go, or moves one on.
    fn give_way(&mut self) {
        let from_small = self.small.bytes > self.small_max() || self.main.keys.is_empty();
        let queue = if from_small { &mut self.small } else { &mut self.main };
        let Some(key) = queue.pop() else { return };
        let Some(entry) = self.held.get_mut(&key) else { return };
        if from_small && entry.calls >= PROMOTED_FROM {
            entry.calls = 0;
            self.main.push(key, entry.bytes);
        } else if !from_small && entry.calls > 0 {
            entry.calls -= 1;
            self.main.push(key, entry.bytes);
        } else if let Some(gone) = self.held.remove(&key)
            && from_small
        {
            self.bury(key, gone.bytes);
        }
    }

    fn bury(&mut self, key: u64, bytes: u64) {
        self.ghosts.push(key, bytes);
        self.dead.insert(key, self.burials);
        self.burials += 1;
        while self.ghosts.bytes > self.bytes_max - self.small_max() {
            let burial = self.burials - self.ghosts.keys.len();
            let Some(forgotten) = self.ghosts.pop() else { return };
            if self.dead.get(&forgotten) == Some(&burial) {
                self.dead.remove(&forgotten);
            }
        }
    }
}

impl Cache for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn call(&mut self, call: &Call) -> bool {
        let Call { key, bytes, .. } = *call;
        if let Some(entry) = self.held.get_mut(&key) {
            entry.calls = CALLS_MAX.min(entry.calls + 1);
            return true;
        }
        if bytes > self.bytes_max {
            return false;
        }
        while self.bytes_held() + bytes > self.bytes_max {
            self.give_way();
        }
        let queue = if self.dead.remove(&key).is_some() { &mut self.main } else { &mut self.small };
        queue.push(key, bytes);
        self.held.insert(key, Entry { bytes, calls: 0 });
        false
    }

    fn bytes_held(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }
}
