//! What the members and the intervals of one series were worth so far.

use serde::{Deserialize, Serialize};

use super::super::Quantiles;
use crate::history::Rolling;

/// How strongly weights follow losses: a member whose loss is higher by the loss of seasonal naive
/// gets `exp(-HEDGE)` of the weight.
const HEDGE: f64 = 12.0;

/// Scores after which a score counts half.
const LOSS_HALF_LIFE: f64 = 1_000.0;

/// Scores after which the size of a miss counts half.
const MISS_HALF_LIFE: f64 = 100.0;

/// Scores of all series together that a series' own scores are weighed against.
const POOL: f64 = 10.0;

/// Scores before intervals are learned ones.
const BAND_COUNT_MIN: u64 = 20;

/// Step of the quantile tracker, in scales.
const BAND_STEP: f64 = 0.05;

/// Furthest that a tracked quantile goes from the median, in scales.
const BAND_MAX: f64 = 20.0;

/// Smallest loss that others are divided by, in calls: a constant series loses nothing at all.
const LOSS_FLOOR: f64 = 0.01;

/// Smallest scale of an interval, in logarithms of calls.
const SCALE_FLOOR: f64 = 1e-3;

/// One horizon of one series.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Track {
    /// Loss of each member in calls; empty until the first score.
    pub(super) losses: Vec<Rolling>,
    /// Misses of the median, in logarithms of calls.
    misses: Rolling,
    /// Where the 10 % and 90 % quantiles lie, in scales from the median.
    low: f64,
    high: f64,
}

/// What was mixed for one tick, before its interval was moved: kept until the tick is over.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Mixed {
    /// Logarithm of the median.
    pub(super) centre: f64,
    /// How far members and their intervals lie apart, in logarithms.
    pub(super) spread: f64,
    /// Logarithms of the members' mean 10 % and 90 % quantiles.
    lower: f64,
    upper: f64,
}

impl Track {
    /// Takes in what the members said and what happened. A member that said nothing is not scored.
    pub(super) fn score(&mut self, members: &[Option<Quantiles>], mixed: &Mixed, actual: f64) {
        if self.losses.len() != members.len() {
            self.losses = vec![Rolling::default(); members.len()];
        }
        for (loss, said) in self.losses.iter_mut().zip(members) {
            if let Some(said) = said {
                loss.add(said.pinball(actual), LOSS_HALF_LIFE);
            }
        }
        if self.misses.count == 0 {
            (self.low, self.high) = (-1.28, 1.28);
        }
        let miss = actual.ln_1p() - mixed.centre;
        let scaled = miss / self.scale(mixed.spread);
        let step = |quantile: f64, level: f64| {
            let below = if scaled < quantile { 1.0 } else { 0.0 };
            (quantile + BAND_STEP * (level - below)).clamp(-BAND_MAX, BAND_MAX)
        };
        (self.low, self.high) = (step(self.low, 0.1).min(0.0), step(self.high, 0.9).max(0.0));
        self.misses.add(miss.abs(), MISS_HALF_LIFE);
    }

    /// Loss of each member as a multiple of member `yardstick`'s (of the first one's until that was
    /// scored), with the number of scores; absent if it was never scored.
    fn relative(&self, members: usize, yardstick: usize) -> Vec<Option<(f64, f64)>> {
        let loss = |member| self.losses.get(member).filter(|loss: &&Rolling| loss.count > 0);
        let unit = loss(yardstick).or(loss(0)).map_or(0.0, |loss| loss.mean).max(LOSS_FLOOR);
        (0..members)
            .map(|member| loss(member).map(|loss| (loss.mean / unit, loss.count as f64)))
            .collect()
    }

    fn scale(&self, spread: f64) -> f64 {
        (self.misses.mean * spread).max(0.0).sqrt().max(SCALE_FLOOR)
    }

    /// Median and interval of what was mixed, by what was learned from past misses.
    pub(super) fn quantiles(&self, mixed: &Mixed) -> Quantiles {
        let (low, high) = if self.misses.count < BAND_COUNT_MIN {
            (mixed.lower, mixed.upper)
        } else {
            let scale = self.scale(mixed.spread);
            (mixed.centre + self.low * scale, mixed.centre + self.high * scale)
        };
        let (q10, q50, q90) = (low.exp_m1(), mixed.centre.exp_m1(), high.exp_m1());
        Quantiles { q10: q10.min(q50), q50, q90: q90.max(q50) }.tidy()
    }
}

/// Weights by Hedge: `prior * exp(-HEDGE * loss)`, the loss of a series pulled towards that of all
/// series while it has few scores of its own. A member without any score counts as good as the
/// best; one that is `None` in `awake` gets no weight.
pub(super) fn weights(
    own: Option<&Track>,
    all: &Track,
    priors: &[f64],
    awake: &[bool],
    yardstick: usize,
) -> Vec<f64> {
    let members = priors.len();
    let own = own.map_or_else(|| vec![None; members], |own| own.relative(members, yardstick));
    let pool = all.relative(members, yardstick);
    let losses: Vec<Option<f64>> = own
        .iter()
        .zip(&pool)
        .map(|(own, pool)| match (own, pool) {
            (Some((own, count)), Some((pool, _))) => {
                Some((own * count + pool * POOL) / (count + POOL))
            }
            (Some((loss, _)), None) | (None, Some((loss, _))) => Some(*loss),
            (None, None) => None,
        })
        .collect();
    let awake_losses = losses.iter().zip(awake).filter(|(_, awake)| **awake);
    let best = awake_losses.filter_map(|(loss, _)| *loss).fold(f64::INFINITY, f64::min);
    let weight = |member: usize| {
        let behind = losses[member].map_or(0.0, |loss| loss - best);
        if awake[member] { priors[member] * (-HEDGE * behind.max(0.0)).exp() } else { 0.0 }
    };
    let raw: Vec<f64> = (0..members).map(weight).collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|weight| if sum > 0.0 { weight / sum } else { 0.0 }).collect()
}

/// Mixes what the members say in logarithms of calls.
pub(super) fn mix(said: &[Option<Quantiles>], weights: &[f64]) -> Mixed {
    let pairs =
        || said.iter().zip(weights).filter_map(|(said, weight)| Some((said.as_ref()?, weight)));
    let mean = |of: fn(&Quantiles) -> f64| pairs().map(|(q, weight)| weight * of(q).ln_1p()).sum();
    let (lower, centre, upper): (f64, f64, f64) =
        (mean(|q| q.q10), mean(|q| q.q50), mean(|q| q.q90));
    let apart: f64 = pairs().map(|(q, weight)| weight * (q.q50.ln_1p() - centre).abs()).sum();
    Mixed { centre, spread: (upper - lower) / 2.56 + apart, lower, upper }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(calls: &[f64]) -> Vec<Option<Quantiles>> {
        calls.iter().map(|calls| Some(Quantiles::exactly(*calls))).collect()
    }

    #[test]
    fn the_member_that_is_right_gets_the_weight() {
        let mut track = Track::default();
        for _ in 0..50 {
            track.score(&said(&[0.0, 5.0, 10.0]), &Mixed::default(), 10.0);
        }
        let weights = weights(Some(&track), &Track::default(), &[1.0; 3], &[true; 3], 1);
        assert!(weights[2] > 0.99, "{weights:?}");
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_series_without_scores_goes_by_what_is_true_of_all() {
        let mut all = Track::default();
        (0..50).for_each(|_| all.score(&said(&[0.0, 10.0]), &Mixed::default(), 10.0));
        assert!(weights(None, &all, &[1.0; 2], &[true; 2], 0)[1] > 0.99);
    }

    #[test]
    fn a_member_that_wakes_up_counts_as_good_as_the_best() {
        let mut track = Track::default();
        for _ in 0..50 {
            track.score(&[Some(Quantiles::exactly(3.0)), None], &Mixed::default(), 9.0);
        }
        let none = Track::default();
        assert_eq!(weights(Some(&track), &none, &[1.0, 4.0], &[true, false], 0), [1.0, 0.0]);
        assert_eq!(weights(Some(&track), &none, &[1.0, 4.0], &[true, true], 0), [0.2, 0.8]);
    }

    #[test]
    fn losses_of_exactly_zero_give_finite_weights() {
        let mut track = Track::default();
        (0..50).for_each(|_| track.score(&said(&[4.0, 4.0]), &Mixed::default(), 4.0));
        let none = Track::default();
        assert_eq!(weights(Some(&track), &none, &[1.0; 2], &[true; 2], 0), [0.5, 0.5]);
        assert_eq!(weights(None, &none, &[1.0; 2], &[false; 2], 0), [0.0, 0.0]);
    }

    #[test]
    fn the_interval_learns_to_hold_four_out_of_five() {
        let mut track = Track::default();
        let members = [Some(Quantiles { q10: 49.0, q50: 50.0, q90: 51.0 })];
        let mixed = mix(&members, &[1.0]);
        let mut inside = 0;
        for tick in 0..2_000 {
            let actual = 30.0 + f64::from(tick * 37 % 41);
            let Quantiles { q10, q90, .. } = track.quantiles(&mixed);
            inside += i32::from(tick >= 1_000 && (q10..=q90).contains(&actual));
            track.score(&members, &mixed, actual);
        }
        assert!((760..=840).contains(&inside), "{inside} of 1000");
    }
}
