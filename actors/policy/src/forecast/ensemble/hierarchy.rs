//! What is expected of a function on a whole table and on each of its partitions, made to agree.
//!
//! A rhythm that drowns in the noise of single partitions is plain in their sum; what moves one partition
//! alone is plain there. So both are forecast, and there are two opinions of the sum: its own forecast, and
//! what the partitions add up to. They are weighed by what each missed so far; then the sum, and by one
//! factor all partitions, are moved to where they agree.
//!
//! Means agree, by Swanson's rule ([`Quantiles::mean`]). Where partitions are called so seldom that even
//! their 90 % quantiles say little of their means, no factor within [`FACTOR_MAX`] makes them agree; both
//! are then left as they are.
//!
//! # Source
//! Two levels of forecast reconciliation: Hyndman and Athanasopoulos, "Forecasting: Principles and
//! Practice", third edition, chapter 11. Weights by the inverse squares of misses instead of a covariance.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::forecast::Quantiles;
use crate::history::{HistoryView, Rolling};

/// Sums that are forecast by themselves at most, the costliest.
const FAMILIES_MAX: usize = 256;

/// Misses that count half as much as the newest one.
const HALF_LIFE: f64 = 200.0;

/// Misses of each opinion that are known before it has a weight.
const COUNT_MIN: u64 = 8;

/// Most that partitions are stretched or shrunk by.
const FACTOR_MAX: f64 = 4.0;

/// A miss that counts as none, in logarithms.
const EXACT: f64 = 1e-4;

/// Forecasts that wait for their ticks; of long horizons not every origin is kept.
const PENDING_MAX: usize = 64;

/// The series of one function on one table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Family {
    /// A number for their sum that is the same on every machine; no series has it.
    pub id: u64,
    pub function: Arc<str>,
    pub table: Arc<str>,
    /// Places in the view, at least two.
    pub parts: Vec<usize>,
}

/// The families of a view, the costliest first.
pub(super) fn families(view: &HistoryView) -> Vec<Family> {
    let mut parts: BTreeMap<(&Arc<str>, &Arc<str>), Vec<usize>> = BTreeMap::new();
    for (place, series) in view.series.iter().enumerate() {
        let key = &series.key;
        parts.entry((&key.function, &key.partition.table)).or_default().push(place);
    }
    let cost = |family: &Family| {
        let stats = family.parts.iter().map(|place| &view.series[*place].stats);
        stats.map(|stats| stats.calls_per_tick.mean * stats.ns_per_call.mean.max(1.0)).sum::<f64>()
    };
    let family = |((function, table), parts): ((&Arc<str>, &Arc<str>), Vec<usize>)| Family {
        id: id(function, table),
        function: function.clone(),
        table: table.clone(),
        parts,
    };
    let mut all: Vec<Family> =
        parts.into_iter().filter(|(_, parts)| parts.len() > 1).map(family).collect();
    all.sort_by(|a, b| cost(b).total_cmp(&cost(a)));
    all.truncate(FAMILIES_MAX);
    all
}

/// FNV-1a, as for series, with a byte between the names that no name has.
fn id(function: &str, table: &str) -> u64 {
    let bytes = function.as_bytes().iter().chain(&[0xff]).chain(table.as_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What both opinions of a sum missed at one horizon, as absolute differences of logarithms.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Misses {
    own: Rolling,
    parts: Rolling,
    /// The tick that is meant, and the logarithms of what was expected.
    #[serde(skip)]
    pending: VecDeque<(u64, f64, f64)>,
}

impl Misses {
    /// Weight of the sum's own forecast, 0 to 1.
    fn weight(&self) -> f64 {
        if self.own.count < COUNT_MIN {
            return 0.5;
        }
        let square = |missed: &Rolling| missed.mean.max(EXACT).powi(2);
        let (own, parts) = (square(&self.own), square(&self.parts));
        parts / (own + parts)
    }
}

/// Sums, and what was missed about them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Hierarchy {
    horizons: Vec<usize>,
    known: BTreeMap<u64, Vec<Misses>>,
}

impl Hierarchy {
    /// For forecasts whose misses are known `horizons` ticks later (ascending).
    pub(super) fn new(horizons: Vec<usize>) -> Self {
        Self { horizons, known: BTreeMap::new() }
    }

    pub(super) fn is_for(&self, horizons: usize) -> bool {
        self.horizons.len() == horizons
            && self.known.values().all(|misses| misses.len() == horizons)
    }

    /// Forgets what was expected of ticks to come.
    pub(super) fn forget_said(&mut self) {
        self.known.values_mut().flatten().for_each(|misses| misses.pending.clear());
    }

    /// Forgets all sums but those of `families`.
    pub(super) fn keep(&mut self, families: &[Family]) {
        let kept: BTreeSet<u64> = families.iter().map(|family| family.id).collect();
        self.known.retain(|id, _| kept.contains(id));
    }

    /// Scores what was expected of the sum `id` in ticks up to `at`; `log_at` answers the logarithm of its
    /// calls in a tick, if they are known.
    pub(super) fn observe(&mut self, id: u64, at: u64, log_at: impl Fn(u64) -> Option<f64>) {
        for misses in self.known.entry(id).or_default() {
            while let Some((due, own, parts)) = misses.pending.front().copied()
                && due <= at
            {
                misses.pending.pop_front();
                if let Some(actual) = log_at(due) {
                    misses.own.add((own - actual).abs(), HALF_LIFE);
                    misses.parts.add((parts - actual).abs(), HALF_LIFE);
                }
            }
        }
    }

    /// Moves what is expected of the sum `id`, and of its `parts`, to where they agree.
    ///
    /// # Shape and units
    /// * `at`: the last tick that is known.
    /// * `aheads`: ticks ahead, ascending; `sum` and each of `parts` have as many calls.
    pub(super) fn agree(
        &mut self,
        (id, at): (u64, u64),
        aheads: &[usize],
        sum: &mut [Quantiles],
        parts: &mut [&mut [Quantiles]],
    ) {
        let known = self.known.entry(id).or_default();
        known.resize_with(self.horizons.len(), Misses::default);
        for ((place, ahead), sum) in aheads.iter().enumerate().zip(sum) {
            let distance = |class: &usize| self.horizons[*class].abs_diff(*ahead);
            let Some(class) = (0..known.len()).min_by_key(distance) else { continue };
            let misses = &mut known[class];
            let (own, added) =
                (sum.mean(), parts.iter().map(|part| part[place].mean()).sum::<f64>());
            let (own_log, added_log) = (own.ln_1p(), added.ln_1p());
            let stride = ahead.div_ceil(PENDING_MAX) as u64;
            if self.horizons[class] == *ahead && at.is_multiple_of(stride) {
                let due = at + *ahead as u64;
                misses.pending.retain(|(other, ..)| *other != due);
                misses.pending.push_back((due, own_log, added_log));
            }
            let weight = misses.weight();
            let agreed = (weight * own_log + (1.0 - weight) * added_log).exp_m1();
            let factor = agreed / added.max(f64::MIN_POSITIVE);
            if !(1.0 / FACTOR_MAX..=FACTOR_MAX).contains(&factor) {
                continue;
            }
            parts.iter_mut().for_each(|part| part[place] = part[place].times(factor));
            *sum = if own > 0.0 { sum.times(agreed / own) } else { Quantiles::exactly(agreed) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: (u64, u64) = (7, 0);

    fn around(calls: f64) -> Quantiles {
        Quantiles { q10: 0.5 * calls, q50: calls, q90: 1.5 * calls }
    }

    /// What becomes of a sum and of two parts, one tick ahead.
    fn agreed(hierarchy: &mut Hierarchy, at: u64, sum: f64, parts: [f64; 2]) -> (f64, [f64; 2]) {
        let mut sum = [around(sum)];
        let [mut a, mut b] = parts.map(|calls| [around(calls)]);
        hierarchy.agree((ID.0, at), &[1], &mut sum, &mut [&mut a, &mut b]);
        (sum[0].mean(), [a[0].mean(), b[0].mean()])
    }

    #[test]
    fn the_sum_and_its_parts_agree_and_shares_stay_what_they_are() {
        let mut hierarchy = Hierarchy::new(vec![1]);
        let (sum, [a, b]) = agreed(&mut hierarchy, 0, 40.0, [15.0, 5.0]);
        assert!((sum - (a + b)).abs() < 1e-9, "{sum}: {a} and {b}");
        assert!((20.0..40.0).contains(&sum) && (a / b - 3.0).abs() < 1e-9, "{sum}: {a} and {b}");
    }

    #[test]
    fn whoever_missed_less_is_believed() {
        for (truth, expected) in [(40.0, 40.0), (20.0, 20.0)] {
            let mut hierarchy = Hierarchy::new(vec![1]);
            for at in 0..50 {
                hierarchy.observe(ID.0, at, |_| Some(f64::ln_1p(truth)));
                agreed(&mut hierarchy, at, 40.0, [15.0, 5.0]);
            }
            let (sum, _) = agreed(&mut hierarchy, 50, 40.0, [15.0, 5.0]);
            assert!((sum - expected).abs() < 0.01, "{sum} where {truth} came each time");
        }
    }

    #[test]
    fn parts_that_are_hardly_ever_called_are_left_as_they_are() {
        let mut hierarchy = Hierarchy::new(vec![1]);
        assert_eq!(agreed(&mut hierarchy, 0, 9.0, [0.0, 0.0]), (9.0, [0.0, 0.0]));
        let (sum, parts) = agreed(&mut hierarchy, 1, 9.0, [0.125, 0.125]);
        assert!((sum - 9.0).abs() < 1e-9 && parts == [0.125, 0.125], "{sum}: {parts:?}");
    }

    #[test]
    fn a_tick_that_is_not_known_is_not_a_miss() {
        let mut hierarchy = Hierarchy::new(vec![1]);
        agreed(&mut hierarchy, 0, 40.0, [15.0, 5.0]);
        hierarchy.observe(ID.0, 1, |_| None);
        let misses = &hierarchy.known[&ID.0][0];
        assert_eq!((misses.own.count, misses.pending.len()), (0, 0));
    }
}
