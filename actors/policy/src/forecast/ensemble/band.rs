//! Intervals learned from past misses: scaled quantile tracking.
//!
//! Each quantile is kept as a multiple of a scale that rises and falls with the size of the last
//! misses and with how wide the source itself says it is. After each miss the multiple moves a little
//! towards the level that the quantile is meant to have, which holds the coverage whatever the load
//! does.
//!
//! # Source
//! Gibbs and Candès, *Adaptive conformal inference under distribution shift*, NeurIPS 2021; Angelopoulos,
//! Candès and Tibshirani, *Conformal PID control for time series prediction*, NeurIPS 2023, section 2
//! (quantile tracking with a scale).

use serde::{Deserialize, Serialize};

use crate::forecast::Quantiles;

/// Scores after which the size of a miss counts half.
const MISS_HALF_LIFE: f64 = 100.0;

/// Scores before quantiles are learned ones.
const COUNT_MIN: f64 = 20.0;

/// Horizon from which steps get shorter: misses further ahead come in a row and are heard of late.
const STEP_TICKS: f64 = 12.0;

/// Step of the median, in scales.
const STEP_MEDIAN: f64 = 0.003;

/// Furthest that a tracked quantile goes from the middle, in scales.
const FAR_MAX: f64 = 20.0;

/// Smallest scale, in logarithms of calls: a constant series misses by nothing at all.
const SCALE_FLOOR: f64 = 1e-4;

/// Widths that a source is believed to have, in mean misses.
const SAID_RANGE: (f64, f64) = (0.2, 20.0);

/// How a band follows its source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// Step of the outer quantiles, in scales.
    step: f64,
    /// The first misses say more than the thousandth: numerator of their step over the count.
    first: f64,
    /// Share of the scale that comes from the width that the source says, in the exponent; the rest
    /// comes from past misses.
    said: f64,
}

/// A member: its width is a guess.
pub(super) const MEMBER: Pace = Pace { step: 0.03, first: 1.0, said: 0.7 };

/// The mix: its width is that of members that are right already, so it moves slowly.
pub(super) const MIX: Pace = Pace { step: 0.015, first: 0.3, said: 1.0 };

/// Quantiles of the logarithm of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Logs {
    pub(super) low: f32,
    pub(super) middle: f32,
    pub(super) high: f32,
}

impl Logs {
    pub(super) fn of(quantiles: &Quantiles) -> Self {
        let log = |calls: f64| calls.max(0.0).ln_1p() as f32;
        Self { low: log(quantiles.q10), middle: log(quantiles.q50), high: log(quantiles.q90) }
    }

    pub(super) fn quantiles(&self) -> Quantiles {
        let calls = |log: f32| f64::from(log).min(60.0).exp_m1();
        Quantiles { q10: calls(self.low), q50: calls(self.middle), q90: calls(self.high) }.tidy()
    }

    /// Half the distance of the outer two.
    pub(super) fn width(&self) -> f64 {
        f64::from(self.high - self.low) / 2.0
    }

    /// Mean pinball loss against the logarithm of what happened.
    pub(super) fn pinball(&self, actual: f64) -> f64 {
        let loss = |level: f64, quantile: f32| {
            let miss = actual - f64::from(quantile);
            (level * miss).max((level - 1.0) * miss)
        };
        (loss(0.1, self.low) + loss(0.5, self.middle) + loss(0.9, self.high)) / 3.0
    }
}

/// The interval of one source (a member or the mix) at one horizon.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Band {
    /// Scores so far.
    pub(super) count: f64,
    /// Mean absolute miss of the middle.
    miss: f64,
    /// Where the quantiles lie, in scales from the middle.
    low: f64,
    median: f64,
    high: f64,
}

impl Default for Band {
    fn default() -> Self {
        Self { count: 0.0, miss: 0.0, low: -1.0, median: 0.0, high: 1.0 }
    }
}

impl Band {
    /// Mean absolute miss of the middle, in logarithms of calls.
    pub(super) fn miss(&self) -> f64 {
        self.miss
    }

    /// What a multiple of this band stands for, when the source says that it is so wide.
    pub(super) fn scale(&self, width: f64, pace: Pace) -> f64 {
        let width = width.max(SCALE_FLOOR);
        if self.count < 5.0 || pace.said >= 1.0 {
            return width;
        }
        let miss = self.miss.max(SCALE_FLOOR);
        // A source that is far too sure of itself must not be followed for long.
        let width = width.clamp(miss * SAID_RANGE.0, miss * SAID_RANGE.1);
        miss.powf(1.0 - pace.said) * width.powf(pace.said)
    }

    /// What the source says, moved to where past misses show that its quantiles belong.
    pub(super) fn quantiles(&self, said: &Logs, pace: Pace) -> Logs {
        if self.count < COUNT_MIN {
            return *said;
        }
        let (middle, scale) = (f64::from(said.middle), self.scale(said.width(), pace));
        let low = (middle + self.low * scale).max(0.0);
        let high = (middle + self.high * scale).max(low);
        let median = (middle + self.median * scale).clamp(low, high);
        Logs { low: low as f32, middle: median as f32, high: high as f32 }
    }

    /// Learns from what the source had said, at this scale then, about a tick `ahead` whose logarithm
    /// is now known.
    pub(super) fn learn(&mut self, middle: f64, scale: f64, actual: f64, ahead: usize, pace: Pace) {
        self.count += 1.0;
        let weight = (1.0 / self.count).max(1.0 - 0.5_f64.powf(1.0 / MISS_HALF_LIFE));
        self.miss += weight * ((actual - middle).abs() - self.miss);
        let scaled = (actual - middle) / scale.max(SCALE_FLOOR);
        let slower = (STEP_TICKS / ahead.max(1) as f64).min(1.0);
        let step = (pace.step * slower).max(pace.first / (self.count + 10.0));
        let moved = |quantile: f64, level: f64, step: f64| {
            let below = if scaled < quantile { 1.0 } else { 0.0 };
            quantile + step * (level - below)
        };
        self.low = moved(self.low, 0.1, step).clamp(-FAR_MAX, 0.0);
        self.high = moved(self.high, 0.9, step).clamp(0.0, FAR_MAX);
        self.median = moved(self.median, 0.5, STEP_MEDIAN * slower).clamp(self.low, self.high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_learns_to_hold_four_out_of_five() {
        let mut band = Band::default();
        let said = Logs { low: 3.99, middle: 4.0, high: 4.01 };
        let mut inside = 0;
        for tick in 0..3_000_u32 {
            let actual = 3.0 + f64::from(tick * 37 % 41) / 20.0;
            let quantiles = band.quantiles(&said, MEMBER);
            let holds = f64::from(quantiles.low) <= actual && actual <= f64::from(quantiles.high);
            inside += i32::from(tick >= 1_000 && holds);
            band.learn(4.0, band.scale(said.width(), MEMBER), actual, 1, MEMBER);
        }
        assert!((1_540..=1_660).contains(&inside), "{inside} of 2000");
    }

    #[test]
    fn a_source_that_is_always_too_high_is_moved_down() {
        let mut band = Band::default();
        let said = Logs { low: 4.5, middle: 5.0, high: 5.5 };
        for tick in 0..20_000_u32 {
            let actual = 4.0 + f64::from(tick % 11) / 20.0;
            band.learn(5.0, band.scale(said.width(), MEMBER), actual, 1, MEMBER);
        }
        let median = band.quantiles(&said, MEMBER).middle;
        assert!((4.1..4.4).contains(&median), "{median}");
    }

    #[test]
    fn a_source_without_any_width_or_miss_stays_finite() {
        let mut band = Band::default();
        let said = Logs { low: 2.0, middle: 2.0, high: 2.0 };
        for _ in 0..100 {
            band.learn(2.0, band.scale(said.width(), MEMBER), 2.0, 60, MEMBER);
        }
        let quantiles = band.quantiles(&said, MEMBER);
        assert!((quantiles.high - 2.0).abs() < 0.01 && quantiles.low <= quantiles.high);
    }
}
