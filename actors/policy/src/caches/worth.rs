//! What is expected to spare least per byte gives way, and only for what is expected to spare more.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cache, Call, Rank};
use crate::admit::{Admission, Stored};

/// What [`Admission`] would keep.
#[derive(Debug)]
pub struct Worth {
    bytes_max: u64,
    bytes: u64,
    admission: Admission<u64>,
    held: BTreeMap<u64, (Rank, u64)>,
    order: BTreeSet<(Rank, u64)>,
}

impl Worth {
    /// An empty store.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        let (held, order) = (BTreeMap::new(), BTreeSet::new());
        Self { bytes_max, bytes: 0, admission: Admission::default(), held, order }
    }
}

impl Cache for Worth {
    fn name(&self) -> &'static str {
        "worth"
    }

    fn call(&mut self, call: &Call) -> bool {
        let Call { key, bytes, ns } = *call;
        let worth = self.admission.called(key, 1, ns, bytes);
        if let Some((rank, _)) = self.held.get_mut(&key) {
            self.order.remove(&(*rank, key));
            *rank = Rank(worth);
            self.order.insert((*rank, key));
            return true;
        }
        let stored = self.order.iter().filter_map(|(Rank(worth), key)| {
            let (_, bytes) = self.held.get(key)?;
            Some(Stored { key: *key, worth: *worth, bytes: *bytes })
        });
        let lacking = (self.bytes + bytes).saturating_sub(self.bytes_max);
        let Some(victims) = self.admission.make_room(worth, lacking, stored) else { return false };
        for victim in victims {
            if let Some((rank, bytes)) = self.held.remove(&victim) {
                self.order.remove(&(rank, victim));
                self.bytes -= bytes;
            }
        }
        self.bytes += bytes;
        self.held.insert(key, (Rank(worth), bytes));
        self.order.insert((Rank(worth), key));
        self.admission.set_stored(self.held.len());
        false
    }

    fn bytes_held(&self) -> u64 {
        self.bytes
    }
}
