//! Counts the queries of this process, for background work that lets them go first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use foreshard_policy::courtesy::Traffic;

/// Queries that are under way, and that have begun so far. Counting one is two additions.
#[derive(Debug, Default)]
pub struct TrafficGauge {
    under_way: AtomicUsize,
    begun: AtomicU64,
}

/// A query that works, as long as this lives.
#[derive(Debug)]
pub struct UnderWay(Arc<TrafficGauge>);

impl TrafficGauge {
    /// Counts a query.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// What is counted at present.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let under_way = self.under_way.load(Ordering::Relaxed);
        Traffic { under_way, begun: self.begun.load(Ordering::Relaxed) }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
