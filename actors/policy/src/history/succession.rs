//! Series follow what they are about: tables are renamed, partitions are split and merged, functions get
//! another body.
//!
//! Sums stay what they are: a split divides every number by the shares of the rows, rounded so that the
//! parts add up, and a merge adds. Only rolling figures of several series are weighed together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::series::{Bucket, Buckets, Rolling, Series, SeriesStats};
use super::summary::apportion;
use super::together::Target;
use super::{HEIRS_MAX, Heir, History};
use crate::ids::{ExpressionId, PartitionId, SeriesKey};

/// What took the place of something that is called.
#[derive(Clone, Debug, PartialEq)]
pub enum Succession {
    /// A table has another name. Partitions of a table that had that name are merged with its own.
    Renamed {
        /// Its former name.
        from: Arc<str>,
        /// Its name from now on.
        to: Arc<str>,
    },
    /// The rows of a partition are in others now.
    Split {
        /// The partition that was.
        from: PartitionId,
        /// Those that have its rows, each with its share of them; it may be among them itself.
        into: Vec<(PartitionId, f64)>,
    },
    /// The rows of several partitions are in one now.
    Merged {
        /// The partitions that were.
        from: Vec<PartitionId>,
        /// The one that has their rows; it may be one of them.
        into: PartitionId,
    },
    /// A function in an expression has another body: who called the former will call the new one.
    Redefined {
        /// The expression with the former body.
        from: ExpressionId,
        /// The expression with the new one.
        to: ExpressionId,
    },
}

impl Succession {
    /// What goes on for a target, with shares; none if this is not about it.
    fn of(&self, (expression, partition): &Target) -> Option<Vec<(Target, f64)>> {
        let here = |partition: PartitionId| (*expression, partition);
        match self {
            Self::Renamed { from, to } => (partition.table == *from).then(|| {
                vec![(here(PartitionId { table: to.clone(), ordinal: partition.ordinal }), 1.0)]
            }),
            Self::Split { from, into } => {
                let has_rows = |(_, share): &&(_, f64)| share.is_finite() && *share > 0.0;
                let places = into.iter().filter(has_rows).cloned();
                let places: Vec<_> = places.map(|(place, share)| (here(place), share)).collect();
                (partition == from && !places.is_empty()).then_some(places)
            }
            Self::Merged { from, into } => {
                from.contains(partition).then(|| vec![(here(into.clone()), 1.0)])
            }
            Self::Redefined { from, to } => {
                (expression == from).then(|| vec![((*to, partition.clone()), 1.0)])
            }
        }
    }
}

impl History {
    /// Takes in where rows are now, or what is called instead: the series go on there.
    pub fn follow(&mut self, what: &Succession) {
        let target = |key: &SeriesKey| (key.expression, key.partition.clone());
        let keys = self.series.keys().filter(|key| what.of(&target(key)).is_some());
        let keys: Vec<SeriesKey> = keys.cloned().collect();
        // All leave before any arrives: the new places may be among the former ones.
        let mut arriving: BTreeMap<SeriesKey, Series> = BTreeMap::new();
        for key in keys {
            let Some(places) = what.of(&target(&key)) else { continue };
            let Some(series) = self.series.remove(&key) else { continue };
            self.buckets -= series.buckets.len();
            let shares: Vec<f64> = places.iter().map(|(_, share)| *share).collect();
            let parts = places.into_iter().zip(series.split(&shares));
            for (((expression, partition), _), part) in parts {
                let of = key.clone();
                let key = SeriesKey { expression, partition, ..key.clone() };
                if self.heirs.len() < HEIRS_MAX {
                    self.heirs.push((self.now, Heir { key: key.clone(), of }));
                }
                arriving.entry(key).and_modify(|held| held.merge(&part)).or_insert(part);
            }
        }
        for (key, part) in arriving {
            let held = self.series.remove(&key);
            let held_buckets = held.as_ref().map_or(0, |held| held.buckets.len());
            let mut series = part;
            if let Some(held) = held {
                series.merge(&held);
            }
            self.buckets = self.buckets - held_buckets + series.buckets.len();
            self.series.insert(key, series);
        }
        self.together.follow(|target| what.of(target));
        self.keep_bounds();
    }
}

impl Series {
    fn split(&self, shares: &[f64]) -> Vec<Self> {
        let sum: f64 = shares.iter().sum();
        let divided = |total: u64| apportion(total, shares);
        let stats = &self.stats;
        let (calls, rows) = (divided(stats.calls), divided(stats.rows));
        let (stored, fresh) = (divided(stats.rows_stored), divided(stats.rows_fresh));
        let fresh_stored = divided(stats.rows_fresh_stored);
        let (ns, would_be_ns) = (divided(stats.ns), divided(stats.would_be_ns));
        let bytes = divided(stats.bytes);
        let open = self.open.split(shares);
        let mut buckets = vec![Buckets::new(); shares.len()];
        for bucket in self.buckets.iter() {
            for (held, part) in buckets.iter_mut().zip(bucket.split(shares)) {
                if part != (Bucket { tick: part.tick, ..Bucket::default() }) {
                    held.push_back(part);
                }
            }
        }
        let durations = self.durations.split(shares);
        let parts = buckets.into_iter().zip(open).zip(durations).enumerate();
        let series = parts.map(|(part, ((buckets, open), durations))| Self {
            stats: SeriesStats {
                calls: calls[part],
                rows: rows[part],
                rows_stored: stored[part],
                rows_fresh: fresh[part],
                rows_fresh_stored: fresh_stored[part],
                ns: ns[part],
                would_be_ns: would_be_ns[part],
                bytes: bytes[part],
                calls_per_tick: stats.calls_per_tick.thinned(shares[part] / sum),
                ..*stats
            },
            buckets: Arc::new(buckets),
            open,
            durations: Arc::new(durations),
        });
        series.collect()
    }

    /// Adds the calls of another series.
    pub(super) fn merge(&mut self, other: &Self) {
        let (a, b) = (&mut self.stats, &other.stats);
        let weights = (a.calls as f64, b.calls as f64);
        a.calls = a.calls.saturating_add(b.calls);
        a.rows = a.rows.saturating_add(b.rows);
        a.rows_stored = a.rows_stored.saturating_add(b.rows_stored);
        a.rows_fresh = a.rows_fresh.saturating_add(b.rows_fresh);
        a.rows_fresh_stored = a.rows_fresh_stored.saturating_add(b.rows_fresh_stored);
        a.ns = a.ns.saturating_add(b.ns);
        a.would_be_ns = a.would_be_ns.saturating_add(b.would_be_ns);
        a.calls_per_tick = a.calls_per_tick.summed(&b.calls_per_tick);
        a.ns_per_row = a.ns_per_row.pooled(&b.ns_per_row, weights);
        a.ns_per_call = a.ns_per_call.pooled(&b.ns_per_call, weights);
        a.bytes_per_row = a.bytes_per_row.pooled(&b.bytes_per_row, weights);
        a.bytes = a.bytes.saturating_add(b.bytes);
        a.first_called = a.first_called.min(b.first_called);
        a.last_called = a.last_called.max(b.last_called);
        self.open.add(&other.open);
        Arc::make_mut(&mut self.durations).merge(&other.durations);
        let mut ticks: BTreeMap<_, Bucket> = BTreeMap::new();
        for bucket in self.buckets.iter().chain(other.buckets.iter()) {
            ticks.entry(bucket.tick).and_modify(|held| held.add(bucket)).or_insert(*bucket);
        }
        self.buckets = Arc::new(ticks.into_values().collect());
    }
}

impl Bucket {
    fn split(&self, shares: &[f64]) -> Vec<Self> {
        let calls = apportion(u64::from(self.calls), shares);
        let rows = apportion(self.rows, shares);
        let would_be_ns = apportion(self.would_be_ns, shares);
        let parts = calls.into_iter().zip(rows).zip(would_be_ns);
        let part = |((calls, rows), would_be_ns)| Self {
            tick: self.tick,
            // A part of a u32 is one, too.
            calls: u32::try_from(calls).unwrap_or(u32::MAX),
            rows,
            would_be_ns,
        };
        parts.map(part).collect()
    }

    fn add(&mut self, other: &Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.rows = self.rows.saturating_add(other.rows);
        self.would_be_ns = self.would_be_ns.saturating_add(other.would_be_ns);
    }
}

impl Rolling {
    /// If each of the things counted is kept with chance `share`, independently of the others.
    fn thinned(&self, share: f64) -> Self {
        let variance = share * share * self.variance + share * (1.0 - share) * self.mean;
        Self { count: self.count, mean: share * self.mean, variance }
    }

    /// The sum of two counts that are seen together and vary independently.
    fn summed(&self, other: &Self) -> Self {
        Self {
            count: self.count.max(other.count),
            mean: self.mean + other.mean,
            variance: self.variance + other.variance,
        }
    }

    /// The values of both, as if drawn from one or the other by these weights.
    fn pooled(&self, other: &Self, (own, others): (f64, f64)) -> Self {
        let own = if self.count == 0 { 0.0 } else { own };
        let others = if other.count == 0 { 0.0 } else { others };
        let share = if own + others > 0.0 { own / (own + others) } else { 1.0 };
        let mean = share * self.mean + (1.0 - share) * other.mean;
        let around = |it: &Self| it.variance + (it.mean - mean).powi(2);
        Self {
            count: self.count + other.count,
            mean,
            variance: share * around(self) + (1.0 - share) * around(other),
        }
    }
}

impl super::Together {
    /// Renames the targets that `places` knows, and divides or adds up their pairs.
    fn follow(&mut self, places: impl Fn(&Target) -> Option<Vec<(Target, f64)>>) {
        let stays = |target: &Target| vec![(target.clone(), 1.0)];
        let mut pairs: BTreeMap<(Target, Target), u64> = BTreeMap::new();
        for ((a, b), count) in std::mem::take(&mut self.pairs) {
            let (to_a, to_b) = (places(&a), places(&b));
            let (to_a, to_b) =
                (to_a.unwrap_or_else(|| stays(&a)), to_b.unwrap_or_else(|| stays(&b)));
            let each: Vec<_> = to_a.iter().flat_map(|a| to_b.iter().map(move |b| (a, b))).collect();
            let shares: Vec<f64> = each.iter().map(|(a, b)| a.1 * b.1).collect();
            for ((a, b), count) in each.iter().zip(apportion(count, &shares)) {
                if a.0 != b.0 && count > 0 {
                    *pairs.entry(super::together::ordered(&a.0, &b.0)).or_insert(0) += count;
                }
            }
        }
        self.restore(pairs.into_iter().map(|((a, b), count)| (a, b, count)).collect());
        // What is open is paired under the names that its calls came with.
    }
}

#[cfg(test)]
#[path = "succession/tests.rs"]
mod tests;
