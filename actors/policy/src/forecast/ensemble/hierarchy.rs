//! What is expected of a function on a whole table and on each of its partitions, made to agree.
//!
//! A rhythm that drowns in the noise of single partitions is plain in their sum; what moves one partition
//! alone is plain there. So both are forecast, and there are two opinions of the sum: its own forecast, and
//! what the partitions add up to. They are weighed by what each missed so far; then the sum, and by one
//! factor all partitions, are moved to where they agree.
//!
//! Means agree, by Swanson's rule ([`Quantiles::mean`]). Where partitions are called so seldom that even
//! their 90 % quantiles say little of their means, no factor within [`FACTOR_MAX`] makes them agree: then
//! only their shares in the calls of the function tell what to expect of each, as far as these were right
//! so far ([`Proportions`]). Without any, both are left as they are.
//!
//! # Source
//! Two levels of forecast reconciliation: Hyndman and Athanasopoulos, "Forecasting: Principles and
//! Practice", third edition, chapter 11. Weights by the inverse squares of misses instead of a covariance.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::proportions::Proportions;
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

/// Proportions are judged by what they say of the tick that is so far ahead, or nearest to it.
const SHARES_AHEAD: usize = 4;

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
    #[serde(default)]
    proportions: BTreeMap<u64, Proportions>,
}

impl Hierarchy {
    /// For forecasts whose misses are known `horizons` ticks later (ascending).
    pub(super) fn new(horizons: Vec<usize>) -> Self {
        Self { horizons, known: BTreeMap::new(), proportions: BTreeMap::new() }
    }

    pub(super) fn is_for(&self, horizons: usize) -> bool {
        self.horizons.len() == horizons
            && self.known.values().all(|misses| misses.len() == horizons)
    }

    /// Forgets what was expected of ticks to come.
    pub(super) fn forget_said(&mut self) {
        self.known.values_mut().flatten().for_each(|misses| misses.pending.clear());
        self.proportions.values_mut().for_each(Proportions::forget_said);
    }

    /// Forgets all sums but those of `families`.
    pub(super) fn keep(&mut self, families: &[Family]) {
        let kept: BTreeSet<u64> = families.iter().map(|family| family.id).collect();
        self.known.retain(|id, _| kept.contains(id));
        self.proportions.retain(|id, _| kept.contains(id));
    }

    /// Takes in what each of the series `parts` of the sum `id` was called in a tick.
    pub(super) fn observe_parts(
        &mut self,
        (id, tick): (u64, u64),
        parts: &[u64],
        calls: impl Fn(u64) -> f64,
    ) {
        self.proportions.entry(id).or_default().observe(tick, parts, calls);
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
    /// * `series`: the numbers of the parts.
    pub(super) fn agree(
        &mut self,
        (id, at): (u64, u64),
        aheads: &[usize],
        sum: &mut [Quantiles],
        (series, parts): (&[u64], &mut [&mut [Quantiles]]),
    ) {
        let known = self.known.entry(id).or_default();
        known.resize_with(self.horizons.len(), Misses::default);
        let proportions = self.proportions.entry(id).or_default();
        let (share_of, by_shares) = (proportions.of(series), proportions.weight());
        let judged = self.horizons.iter().min_by_key(|it| it.abs_diff(SHARES_AHEAD)).copied();
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
            let is_near = (1.0 / FACTOR_MAX..=FACTOR_MAX).contains(&factor);
            if is_near {
                parts.iter_mut().for_each(|part| part[place] = part[place].times(factor));
            }
            if let Some(share_of) = &share_of {
                let own: Vec<f64> = parts.iter().map(|part| part[place].mean()).collect();
                let by_share: Vec<f64> = share_of.iter().map(|share| share * agreed).collect();
                if judged == Some(*ahead) {
                    proportions.said(at + *ahead as u64, series, &own, &by_share);
                }
                for ((part, own), by_share) in parts.iter_mut().zip(&own).zip(&by_share) {
                    let mean = by_shares * by_share + (1.0 - by_shares) * own;
                    part[place] = moved(part[place], *own, mean);
                }
            }
            if is_near || by_shares > 0.0 {
                *sum = if own > 0.0 { sum.times(agreed / own) } else { Quantiles::exactly(agreed) };
            }
        }
    }
}

/// What is expected with another mean. What is hardly ever called has it from its upper end.
fn moved(quantiles: Quantiles, from: f64, to: f64) -> Quantiles {
    let factor = to / from.max(f64::MIN_POSITIVE);
    if (1.0 / FACTOR_MAX..=FACTOR_MAX).contains(&factor) {
        return quantiles.times(factor);
    }
    if factor < 1.0 {
        return quantiles.times(factor.max(0.0));
    }
    let at_most = quantiles.times(FACTOR_MAX);
    let more = (to - at_most.mean()) / Quantiles { q10: 0.0, q50: 0.0, q90: 1.0 }.mean();
    Quantiles { q90: at_most.q90 + more, ..at_most }
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
        hierarchy.agree((ID.0, at), &[1], &mut sum, (&[1, 2], &mut [&mut a, &mut b]));
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

    #[test]
    fn partitions_that_are_seldom_called_are_expected_by_their_shares_once_these_were_right() {
        let mut hierarchy = Hierarchy::new(vec![1]);
        let mut random = crate::random::SplitMix64::new(3);
        let mut expected = [0.0; 2];
        for at in 0..200 {
            // Four calls in every other tick, three of four on the first part; the parts' own forecasts see none.
            let rate = if at % 2 == 0 { 4.0 } else { 0.0 };
            let came = [0.75, 0.25].map(|share| f64::from(random.poisson(share * rate)));
            let sum: f64 = came.iter().sum();
            hierarchy.observe(ID.0, at, |_| Some(sum.ln_1p()));
            hierarchy.observe_parts((ID.0, at), &[1, 2], |part| came[part as usize - 1]);
            let next = if at % 2 == 0 { 0.0 } else { 4.0 };
            let (_, parts) = agreed(&mut hierarchy, at, next, [0.0, 0.0]);
            if next > 0.0 {
                expected = parts;
            }
        }
        assert!((2.0..4.0).contains(&expected[0]), "{expected:?}");
        assert!((0.6..1.6).contains(&expected[1]), "{expected:?}");
    }
}
