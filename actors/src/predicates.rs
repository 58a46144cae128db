//! What was measured of predicates: how many rows pass, and what a row costs. Scans order their
//! predicates by it, and correct it with every batch.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Most predicates that are remembered; further ones start anew with every scan.
pub const PREDICATES_MAX: usize = 10_000;

/// After so many rows older ones count half, so that a change of the data is noticed.
const ROWS_MAX: f64 = 65_536.0;

/// A row that cost so many times more or less than others is an outlier: a thread that had to wait.
const OUTLIER: f64 = 4.0;

/// Measurements of one predicate.
#[derive(Debug, Default)]
pub struct PredicateStats(Mutex<Seen>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    rows: f64,
    passed: f64,
    ns: f64,
}

impl PredicateStats {
    /// Takes in that `passed` of `rows` rows passed and that this took `ns` nanoseconds. Times are wall
    /// times, so what is far above all others is cut down, be it new or remembered.
    pub fn measured(&self, rows: u64, passed: u64, ns: u64) {
        if rows == 0 {
            return;
        }
        let (rows, mut ns) = (rows as f64, ns as f64);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.rows > ROWS_MAX {
            *seen = Seen { rows: seen.rows / 2.0, passed: seen.passed / 2.0, ns: seen.ns / 2.0 };
        }
        if seen.rows > 0.0 {
            let (before, now) = (seen.ns / seen.rows, ns / rows);
            ns = ns.min(OUTLIER * before.max(1.0) * rows);
            seen.ns = seen.ns.min(OUTLIER * now.max(1.0) * seen.rows);
        }
        seen.rows += rows;
        seen.passed += passed as f64;
        seen.ns += ns;
    }

    /// Rows that count at present.
    #[must_use]
    pub fn rows(&self) -> f64 {
        self.seen().rows
    }

    /// Share of rows that pass; `None` before the first.
    #[must_use]
    pub fn passes(&self) -> Option<f64> {
        let seen = self.seen();
        (seen.rows > 0.0).then(|| seen.passed / seen.rows)
    }

    /// Nanoseconds per row, without what its function calls took.
    #[must_use]
    pub fn ns_per_row(&self) -> f64 {
        let seen = self.seen();
        if seen.rows > 0.0 { seen.ns / seen.rows } else { 0.0 }
    }

    fn seen(&self) -> Seen {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All predicates known to one process, by fingerprint.
#[derive(Default)]
pub struct Predicates {
    known: RwLock<HashMap<u128, Arc<PredicateStats>>>,
}

impl fmt::Debug for Predicates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Predicates({})", self.known.read().map_or(0, |known| known.len()))
    }
}

impl Predicates {
    /// The measurements of a predicate, shared by all who ask for it.
    #[must_use]
    pub fn stats(&self, fingerprint: u128) -> Arc<PredicateStats> {
        if let Ok(known) = self.known.read()
            && let Some(stats) = known.get(&fingerprint)
        {
            return stats.clone();
        }
        match self.known.write() {
            Ok(mut known) if known.len() < PREDICATES_MAX => {
                known.entry(fingerprint).or_default().clone()
            }
            _ => Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_of_one_predicate_share_what_they_measure_and_the_newest_rows_count_most() {
        let predicates = Predicates::default();
        assert_eq!(predicates.stats(1).passes(), None);
        predicates.stats(1).measured(100_000, 100_000, 200_000);
        assert_eq!(predicates.stats(1).passes(), Some(1.0));
        assert!((predicates.stats(1).ns_per_row() - 2.0).abs() < 1e-9);
        for _ in 0..10 {
            predicates.stats(1).measured(50_000, 0, 50_000);
        }
        assert!(predicates.stats(1).passes().is_some_and(|passes| passes < 0.02));
        assert_eq!(predicates.stats(2).rows(), 0.0, "another predicate");
    }

    #[test]
    fn a_thread_that_had_to_wait_does_not_make_a_predicate_dear() {
        let predicates = Predicates::default();
        let stats = predicates.stats(1);
        stats.measured(64, 10, 4_000_000);
        stats.measured(64, 10, 640);
        assert!(stats.ns_per_row() < 30.0, "what was first: {}", stats.ns_per_row());
        let before = stats.ns_per_row();
        stats.measured(64, 10, 4_000_000);
        assert!(stats.ns_per_row() < OUTLIER * before, "what came later: {}", stats.ns_per_row());
        for _ in 0..30 {
            stats.measured(8_192, 10, 8_192 * 5_000);
        }
        assert!(stats.ns_per_row() > 4_000.0, "it got dear: {}", stats.ns_per_row());
    }

    #[test]
    fn there_is_a_most_of_predicates_that_are_remembered() {
        let predicates = Predicates::default();
        for fingerprint in 0..=PREDICATES_MAX as u128 {
            predicates.stats(fingerprint).measured(1, 1, 1);
        }
        assert_eq!(predicates.stats(7).rows(), 1.0);
        assert_eq!(predicates.stats(PREDICATES_MAX as u128).rows(), 0.0);
    }
}
