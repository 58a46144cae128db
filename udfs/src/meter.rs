//! Counts what a function was asked and how long it took. This is the crate's only clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Counters of one function, shared by all its copies in all plans.
#[derive(Debug, Default)]
pub struct Meter {
    calls: AtomicU64,
    rows: AtomicU64,
    ns: AtomicU64,
    failures: AtomicU64,
}

/// The counters of a [`Meter`] at one moment (each is exact; together they may be one call apart).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metered {
    /// Batches answered or failed.
    pub calls: u64,
    /// Rows answered.
    pub rows: u64,
    /// Time spent, of answered and failed calls.
    pub ns: u64,
    /// Calls that ended in an error.
    pub failures: u64,
}

impl Meter {
    /// The counters now.
    #[must_use]
    pub fn read(&self) -> Metered {
        Metered {
            calls: self.calls.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            ns: self.ns.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Runs `work` and counts it. `rows` tells from its answer how many rows were answered.
    pub(crate) fn measure<T, E>(
        &self,
        work: impl FnOnce() -> Result<T, E>,
        rows: impl FnOnce(&T) -> usize,
    ) -> Result<T, E> {
        let begin = now();
        let answer = work();
        self.count(begin, answer.as_ref().map(rows));
        answer
    }

    /// Awaits `work` and counts it, unless it is dropped before it ends.
    pub(crate) async fn measure_later<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
        rows: impl FnOnce(&T) -> usize,
    ) -> Result<T, E> {
        let begin = now();
        let answer = work.await;
        self.count(begin, answer.as_ref().map(rows));
        answer
    }

    fn count<E>(&self, begin: Instant, rows: Result<usize, E>) {
        let ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(ns, Ordering::Relaxed);
        match rows {
            Ok(rows) => self.rows.fetch_add(rows as u64, Ordering::Relaxed),
            Err(_) => self.failures.fetch_add(1, Ordering::Relaxed),
        };
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a cost is a wall-clock duration; nothing decides by it here, so no test needs to own it"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_their_rows_and_failures_count_none() {
        let meter = Meter::default();
        let answer: Result<u8, ()> = meter.measure(|| Ok(7), |_| 3);
        assert_eq!(answer, Ok(7));
        let failure: Result<u8, &str> = meter.measure(|| Err("no"), |_| 3);
        assert_eq!(failure, Err("no"));
        let metered = meter.read();
        assert_eq!((metered.calls, metered.rows, metered.failures), (2, 3, 1));
        assert!(metered.ns > 0);
    }
}
