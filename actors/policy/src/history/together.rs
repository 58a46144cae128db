//! Which expressions on which partitions are called by the same query.

use std::collections::BTreeMap;

use crate::ids::{ExpressionId, PartitionId};

/// One function expression on one partition.
pub type Target = (ExpressionId, PartitionId);

/// Queries of one tick whose targets are paired; the others of that tick are not looked at, which
/// bounds the work per tick.
const QUERIES_MAX: usize = 64;

/// Targets of one query that are paired with each other.
const TARGETS_MAX: usize = 32;

/// Counts the pairs of targets that one query called. Bounded: the rarest pairs are forgotten.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Together {
    pub(super) pairs: BTreeMap<(Target, Target), u64>,
    /// Targets of the queries seen in the open tick, and in the one before: tasks of one query may
    /// report in two ticks.
    open: BTreeMap<u64, Vec<Target>>,
    before: BTreeMap<u64, Vec<Target>>,
    pairs_max: usize,
}

impl Together {
    pub(super) fn new(pairs_max: usize) -> Self {
        Self { pairs_max, ..Self::default() }
    }

    /// Notes that `query` called `target`.
    pub(super) fn record(&mut self, query: u64, target: Target) {
        if self.pairs_max == 0 {
            return;
        }
        if !self.open.contains_key(&query) {
            if self.open.len() >= QUERIES_MAX {
                return;
            }
            let known = self.before.remove(&query).unwrap_or_default();
            self.open.insert(query, known);
        }
        let Some(targets) = self.open.get_mut(&query) else { return };
        if targets.len() >= TARGETS_MAX || targets.contains(&target) {
            return;
        }
        for other in targets.iter() {
            *self.pairs.entry(ordered(other, &target)).or_insert(0) += 1;
        }
        targets.push(target);
        if self.pairs.len() > self.pairs_max {
            self.forget_rare();
        }
    }

    /// How many queries called both.
    pub(super) fn count(&self, a: &Target, b: &Target) -> u64 {
        self.pairs.get(&ordered(a, b)).copied().unwrap_or(0)
    }

    /// Ends the open tick.
    pub(super) fn close(&mut self) {
        self.before = std::mem::take(&mut self.open);
    }

    /// Takes up stored pairs, within the bound.
    pub(super) fn restore(&mut self, pairs: Vec<(Target, Target, u64)>) {
        self.pairs = pairs.into_iter().map(|(a, b, count)| (ordered(&a, &b), count)).collect();
        if self.pairs.len() > self.pairs_max {
            self.forget_rare();
        }
    }

    /// Keeps the seven eighths of the bound that were counted most.
    fn forget_rare(&mut self) {
        let mut all: Vec<_> = std::mem::take(&mut self.pairs).into_iter().collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        all.truncate(self.pairs_max - self.pairs_max / 8);
        self.pairs = all.into_iter().collect();
    }
}

pub(super) fn ordered(a: &Target, b: &Target) -> (Target, Target) {
    if a <= b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(ordinal: u32) -> Target {
        (ExpressionId(7), PartitionId::new("trades", ordinal))
    }

    #[test]
    fn a_query_counts_a_pair_once_even_over_two_ticks() {
        let mut together = Together::new(100);
        together.record(1, target(0));
        together.close();
        together.record(1, target(1));
        together.record(1, target(1));
        together.record(2, target(1));
        assert_eq!(together.count(&target(1), &target(0)), 1);
        assert_eq!(together.count(&target(0), &target(2)), 0);
    }

    #[test]
    fn the_rarest_pairs_are_forgotten_when_there_are_too_many() {
        let mut together = Together::new(8);
        for query in 0..3 {
            together.record(query, target(0));
            together.record(query, target(1));
        }
        for query in 3..40 {
            together.record(query, target(2 * query as u32));
            together.record(query, target(2 * query as u32 + 1));
        }
        assert_eq!(together.count(&target(0), &target(1)), 3);
        assert!(together.pairs.len() <= 8);
    }

    #[test]
    fn a_query_over_very_many_targets_costs_a_bounded_number_of_pairs() {
        let mut together = Together::new(100_000);
        (0..1_000).for_each(|ordinal| together.record(1, target(ordinal)));
        assert_eq!(together.pairs.len(), TARGETS_MAX * (TARGETS_MAX - 1) / 2);
    }
}
