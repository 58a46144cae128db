//! Which steps did harm: whether the calls on what a step changed got slower than they were, beyond noise and
//! beyond what happened to all others meanwhile.
//!
//! The pace of a series is the logarithm of the nanoseconds that a row takes to compute. Of a partition that a
//! step changed, each tick with calls is compared with the pace before the step, and with how the paces of
//! partitions that no step changed went meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use crate::calls::CallRecord;
use crate::ids::{ExpressionId, PartitionId, Tick};

/// Series whose pace is remembered; others are not watched.
const PACES_MAX: usize = 10_000;

/// Steps that are watched at the same time; others are not.
const WATCHES_MAX: usize = 1_000;

/// Ticks after which a tick counts half in a pace.
const HALF_LIFE_TICKS: f64 = 50.0;

/// Ticks after which a pace is known well enough to compare with.
const KNOWN_TICKS: f64 = 8.0;

/// What counts as no change, as a logarithm: 5 %.
const MARGIN: f64 = 0.05;

/// What a change may be if there is one, as the deviation of a logarithm.
const CHANGE: f64 = 0.5;

/// Least deviation of a tick that is reckoned with, as a logarithm: clocks and neighbours are never quieter.
const DEVIATION_MIN: f64 = 0.1;

/// Ticks that it takes at least to tell: one that is slow by chance is none of them.
const TICKS_MIN: f64 = 3.0;

/// Chance of harm from which a step is taken back.
const HARM: f64 = 0.95;

type Key = (ExpressionId, PartitionId);

/// How long a row of one series takes, as a logarithm.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    mean: f64,
    variance: f64,
    ticks: f64,
}

impl Pace {
    fn is_known(&self) -> bool {
        self.ticks >= KNOWN_TICKS
    }

    fn add(&mut self, seen: f64) {
        self.ticks += 1.0;
        let weight = (1.0 / self.ticks).max(1.0 - 0.5_f64.powf(1.0 / HALF_LIFE_TICKS));
        let miss = seen - self.mean;
        self.mean += weight * miss;
        self.variance = (1.0 - weight) * (self.variance + weight * miss * miss);
    }
}

/// How one partition did in one tick against its pace.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Sum of misses and of variances, weighted with the nanoseconds.
    miss: f64,
    variance: f64,
    ns: f64,
    /// By how much its paces adapted themselves, weighted alike.
    adapted: f64,
    /// Ticks that the least known of its paces rests on.
    ticks: f64,
}

#[derive(Clone, Debug)]
struct Watch {
    partition: PartitionId,
    until: Tick,
    misses: f64,
    variances: f64,
    ticks: f64,
    /// How far the paces of others had adapted themselves before it.
    drift: f64,
    /// Ticks before the step that these are compared with.
    before: f64,
}

/// A step that did harm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Harm {
    /// The decision.
    pub id: u64,
    /// How many times as long as before a row takes.
    pub slower: f64,
    /// The chance that it is slower at all.
    pub chance: f64,
}

/// What came of watching one step to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It did harm.
    Harmful(Harm),
    /// It had its time, with so many ticks to judge by, and did none.
    Harmless {
        /// The decision.
        id: u64,
        /// Ticks in which what it changed was called.
        ticks: u64,
    },
}

/// Paces of all series, and the steps that are watched.
#[derive(Clone, Debug, Default)]
pub struct HarmWatch {
    /// Nanoseconds and rows of the open tick.
    open: BTreeMap<Key, (u64, u64)>,
    paces: BTreeMap<Key, Pace>,
    watches: BTreeMap<u64, Watch>,
    /// How far the paces of partitions that were not watched adapted themselves so far.
    drift: f64,
}

impl HarmWatch {
    /// Counts the rows of a call that were computed.
    pub fn record(&mut self, call: &CallRecord) {
        let rows = call.rows.saturating_sub(call.rows_stored);
        if rows == 0 || call.ns == 0 {
            return;
        }
        let key = (call.expression, call.partition.clone());
        if self.open.len() >= PACES_MAX && !self.open.contains_key(&key) {
            return;
        }
        let open = self.open.entry(key).or_default();
        open.0 = open.0.saturating_add(call.ns);
        open.1 = open.1.saturating_add(rows);
    }

    /// From the next tick on watches what decision `id` changed, until `until` is closed. A partition that is
    /// watched for another step is judged by the newest.
    pub fn watch(&mut self, id: u64, partition: &PartitionId, until: Tick) {
        self.watches.retain(|_, watch| watch.partition != *partition);
        if self.watches.len() < WATCHES_MAX {
            let partition = partition.clone();
            let (misses, variances, ticks, before) = (0.0, 0.0, 0.0, f64::INFINITY);
            let drift = self.drift;
            let watch = Watch { partition, until, misses, variances, ticks, drift, before };
            self.watches.insert(id, watch);
        }
    }

    /// Ends a tick, and answers what is known of steps since then; these are not watched any more.
    pub fn close_tick(&mut self, now: Tick) -> Vec<Verdict> {
        let watched: BTreeSet<&PartitionId> =
            self.watches.values().map(|watch| &watch.partition).collect();
        let mut seen: BTreeMap<PartitionId, Seen> = BTreeMap::new();
        for (key, (ns, rows)) in std::mem::take(&mut self.open) {
            let ln = (ns as f64 / rows as f64).ln();
            let known = self.paces.get(&key).copied().filter(Pace::is_known);
            if let Some(pace) = known {
                let at = seen.entry(key.1.clone()).or_default();
                at.ticks = if at.ns > 0.0 { at.ticks.min(pace.ticks) } else { pace.ticks };
                at.miss += ns as f64 * (ln - pace.mean);
                at.variance += ns as f64 * pace.variance;
                at.ns += ns as f64;
            }
            // What a step may have changed is compared with what was before.
            let may_learn = known.is_none() || !watched.contains(&key.1);
            if may_learn && (self.paces.len() < PACES_MAX || self.paces.contains_key(&key)) {
                let pace = self.paces.entry(key.clone()).or_default();
                pace.add(ln);
                if let (Some(before), Some(at)) = (known, seen.get_mut(&key.1)) {
                    at.adapted += ns as f64 * (pace.mean - before.mean);
                }
            }
        }
        let others: Vec<&Seen> =
            seen.iter().filter(|(id, _)| !watched.contains(id)).map(|(_, at)| at).collect();
        let mean = |of: fn(&Seen) -> f64| {
            others.iter().map(|at| of(at) / at.ns).sum::<f64>() / (others.len() as f64).max(1.0)
        };
        let (usual, adapted) = (mean(|at| at.miss), mean(|at| at.adapted));
        for watch in self.watches.values_mut() {
            if let Some(at) = seen.get(&watch.partition) {
                // Others are compared with paces that go along with them, this one with what was before.
                watch.misses += at.miss / at.ns - (usual + self.drift - watch.drift);
                watch.variances += (at.variance / at.ns).max(DEVIATION_MIN * DEVIATION_MIN);
                watch.ticks += 1.0;
                watch.before = watch.before.min(at.ticks);
            }
        }
        self.drift += adapted;
        self.verdicts(now)
    }

    fn verdicts(&mut self, now: Tick) -> Vec<Verdict> {
        let verdict = |(id, watch): (&u64, &Watch)| {
            let chance = watch.chance();
            if chance > HARM {
                let slower = (watch.misses / watch.ticks).exp();
                return Some(Verdict::Harmful(Harm { id: *id, slower, chance }));
            }
            let ticks = watch.ticks as u64;
            (now >= watch.until).then_some(Verdict::Harmless { id: *id, ticks })
        };
        let verdicts: Vec<_> = self.watches.iter().filter_map(verdict).collect();
        for verdict in &verdicts {
            let (Verdict::Harmful(Harm { id, .. }) | Verdict::Harmless { id, .. }) = verdict;
            self.watches.remove(id);
        }
        verdicts
    }
}

impl Watch {
    /// The chance that what was changed is slower than before by more than the margin.
    ///
    /// It may be asked after each tick: of steps that change nothing, at most one in twenty ever comes above
    /// 0.95 (Ville's inequality), as far as ticks are normal and independent.
    ///
    /// # Source
    /// The mixture sequential probability ratio test of Robbins (1970), with a normal mixture, as in Johari
    /// and others, *Peeking at A/B Tests* (2017); even odds before.
    fn chance(&self) -> f64 {
        if self.ticks < TICKS_MIN {
            return 0.0;
        }
        let slower = self.misses / self.ticks - MARGIN;
        if slower <= 0.0 {
            return 0.0;
        }
        let variance = self.variances / self.ticks;
        // The pace before is known from so many ticks only.
        let ticks = 1.0 / (1.0 / self.ticks + 1.0 / self.before);
        let (sum, prior) = (ticks * slower, CHANGE * CHANGE);
        let spread = variance + ticks * prior;
        let exponent = prior * sum * sum / (2.0 * variance * spread);
        let ratio = (variance / spread).sqrt() * exponent.min(700.0).exp();
        ratio / (1.0 + ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;
    use crate::random::SplitMix64;

    /// A hundred rows on a partition, each of which takes so long.
    fn call(ordinal: u32, ns_per_row: f64) -> CallRecord {
        CallRecord {
            at_ms: 0,
            query: 1,
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", ordinal),
            node: NodeId(0),
            rows: 200,
            rows_stored: 100,
            rows_fresh: 0,
            rows_fresh_stored: 0,
            ns: (100.0 * ns_per_row) as u64,
            waited_ns: 0,
            would_be_ns: (200.0 * ns_per_row) as u64,
            bytes: 0,
            traceparent: None,
        }
    }

    /// 40 ticks before and up to 60 after a step on partition 0 that makes its calls `slower` times as slow,
    /// while those of all get `all` times as slow. Partitions 1 to 3 have no steps.
    fn watched(seed: u64, (slower, all): (f64, f64), noise: f64) -> (Verdict, u64) {
        let (mut watch, mut random) = (HarmWatch::default(), SplitMix64::new(seed));
        for tick in 1..=100 {
            let after = tick > 40;
            for ordinal in 0..4 {
                let own = if after && ordinal == 0 { slower } else { 1.0 };
                let all = if after { all } else { 1.0 };
                watch.record(&call(ordinal, 1e4 * own * all * (noise * random.normal()).exp()));
            }
            let verdicts = watch.close_tick(Tick(tick));
            if let Some(verdict) = verdicts.first() {
                assert!(after);
                return (*verdict, tick - 40);
            }
            if tick == 40 {
                watch.watch(7, &PartitionId::new("t", 0), Tick(100));
            }
        }
        panic!("no verdict");
    }

    #[test]
    fn a_step_that_makes_calls_half_as_slow_again_is_found_within_a_few_ticks() {
        for seed in 0..20 {
            let (verdict, ticks) = watched(seed, (1.5, 1.0), 0.1);
            let Verdict::Harmful(harm) = verdict else { panic!("{verdict:?}") };
            assert!(harm.id == 7 && (1.2..2.1).contains(&harm.slower), "{harm:?}");
            assert!(harm.chance > HARM && ticks <= 8, "{harm:?} after {ticks}");
        }
    }

    #[test]
    fn of_a_hundred_steps_that_change_nothing_at_most_a_few_are_blamed_however_long_they_are_watched()
     {
        for (noise, all) in [(0.1, 1.0), (0.4, 1.0), (0.1, 3.0)] {
            let blamed = (0..100)
                .filter(|seed| matches!(watched(*seed, (1.0, all), noise).0, Verdict::Harmful(_)));
            assert!(blamed.count() <= 5, "noise {noise}, all {all} times as slow");
        }
        assert_eq!(watched(1, (1.0, 1.0), 0.1).0, Verdict::Harmless { id: 7, ticks: 60 });
    }

    #[test]
    fn a_step_that_makes_calls_quicker_is_never_blamed_nor_one_of_which_nothing_is_known() {
        assert!(
            (0..50).all(|seed| {
                matches!(watched(seed, (0.7, 1.0), 0.3).0, Verdict::Harmless { .. })
            })
        );
        let mut watch = HarmWatch::default();
        watch.watch(1, &PartitionId::new("t", 0), Tick(3));
        for tick in 1..3 {
            watch.record(&call(0, 1e9));
            assert_eq!(watch.close_tick(Tick(tick)), []);
        }
        assert_eq!(watch.close_tick(Tick(3)), [Verdict::Harmless { id: 1, ticks: 0 }]);
    }

    #[test]
    fn memory_stays_bounded_whatever_is_called_and_watched() {
        let mut watch = HarmWatch::default();
        for ordinal in 0..PACES_MAX as u32 + 10 {
            watch.record(&call(ordinal, 1e3));
            watch.watch(u64::from(ordinal), &PartitionId::new("t", ordinal), Tick(9));
        }
        watch.close_tick(Tick(1));
        for ordinal in PACES_MAX as u32..PACES_MAX as u32 + 10 {
            watch.record(&call(ordinal, 1e3));
        }
        watch.close_tick(Tick(2));
        assert_eq!((watch.paces.len(), watch.watches.len()), (PACES_MAX, WATCHES_MAX));
    }
}
