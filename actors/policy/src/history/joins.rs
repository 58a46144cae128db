//! How often queries join partitions whose keys are in the same range.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::PartitionId;

/// Joins a tick below which a pair of partitions is forgotten.
const JOINS_MIN: f64 = 0.001;

/// Pairs that are counted in one tick; what comes then is not looked at, which bounds its memory.
const OPEN_MAX: usize = 100_000;

/// Two partitions that queries join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// The first one.
    pub a: PartitionId,
    /// The second one; it follows the first one.
    pub b: PartitionId,
    /// Queries per tick that join them.
    pub queries: f64,
}

/// Counts joins by pair of partitions. Bounded: the rarest pairs are forgotten.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Joins {
    /// Of the open tick.
    open: BTreeMap<(PartitionId, PartitionId), u32>,
    /// Per tick, in a mean in which older ticks count less.
    mean: BTreeMap<(PartitionId, PartitionId), f64>,
    pairs_max: usize,
}

impl Joins {
    pub(super) fn new(pairs_max: usize) -> Self {
        Self { pairs_max, ..Self::default() }
    }

    /// Notes that a query joins these.
    pub(super) fn record(&mut self, one: PartitionId, other: PartitionId) {
        if one == other {
            return;
        }
        let pair = if one < other { (one, other) } else { (other, one) };
        if self.open.len() < OPEN_MAX || self.open.contains_key(&pair) {
            *self.open.entry(pair).or_insert(0) += 1;
        }
    }

    /// Ends the open tick; a tick counts half after `half_life` ticks.
    pub(super) fn close(&mut self, half_life: f64) {
        let keep = 0.5_f64.powf(1.0 / half_life);
        self.mean.values_mut().for_each(|joins| *joins *= keep);
        for (pair, queries) in std::mem::take(&mut self.open) {
            *self.mean.entry(pair).or_insert(0.0) += (1.0 - keep) * f64::from(queries);
        }
        self.mean.retain(|_, joins| *joins >= JOINS_MIN);
        if self.mean.len() > self.pairs_max {
            let mut all: Vec<_> = std::mem::take(&mut self.mean).into_iter().collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            all.truncate(self.pairs_max);
            self.mean = all.into_iter().collect();
        }
    }

    /// Partitions that queries join, sorted.
    pub(super) fn joined(&self) -> Vec<Joined> {
        let joins = self.mean.iter();
        joins
            .map(|((a, b), queries)| Joined { a: a.clone(), b: b.clone(), queries: *queries })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(ordinal: u32) -> PartitionId {
        PartitionId::new("orders", ordinal)
    }

    fn line(ordinal: u32) -> PartitionId {
        PartitionId::new("lines", ordinal)
    }

    #[test]
    fn joins_are_counted_whichever_side_is_first_and_fade() {
        let mut joins = Joins::new(100);
        for _ in 0..20 {
            joins.record(order(1), line(1));
            joins.record(line(1), order(1));
            joins.record(order(1), order(1));
            joins.close(1.0);
        }
        let joined = joins.joined();
        assert_eq!(joined.len(), 1);
        assert_eq!((&joined[0].a, &joined[0].b), (&line(1), &order(1)));
        assert!((joined[0].queries - 2.0).abs() < 1e-3, "{joined:?}");
        (0..20).for_each(|_| joins.close(1.0));
        assert_eq!(joins.joined(), []);
    }

    #[test]
    fn beyond_the_bound_the_rarest_pairs_are_forgotten() {
        let mut joins = Joins::new(2);
        for ordinal in 0..5 {
            (0..=ordinal).for_each(|_| joins.record(order(ordinal), line(ordinal)));
        }
        joins.close(1.0);
        let kept: Vec<u32> = joins.joined().iter().map(|joined| joined.a.ordinal).collect();
        assert_eq!(kept, [3, 4]);
    }
}
