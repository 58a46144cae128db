//! From what to what a single step brings in eight of ten cases: as wide as the forecast says, times what
//! earlier steps have shown that to be wrong by.
//!
//! # Source
//! Gibbs and Candès, *Adaptive conformal inference under distribution shift*, NeurIPS 2021, with the scale of
//! Angelopoulos, Candès and Tibshirani, *Conformal PID control for time series prediction*, NeurIPS 2023: each
//! bound moves away after a miss and closer after none, so that in the long run one in ten misses it,
//! whatever is measured.

use super::{Expected, Predicted};

/// Share of steps that is to bring less than the interval says, and share that is to bring more.
const OUTSIDE: f64 = 0.1;

/// Least half of the width, as a share of what is predicted: no forecast is exact.
const WIDTH_MIN: f64 = 0.1;

/// How far a bound moves after a miss, as a share of itself and of the mean miss.
const STEP: f64 = 0.1;

/// Steps after which one says half as much as the first.
const FIRST: f64 = 10.0;

/// A single miss counts as so many times what the forecast says at most.
const MISS_MAX: f64 = 4.0;

/// The interval of one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    /// How many times as far away as the forecast says the bounds are.
    below: f64,
    above: f64,
    /// Mean miss, in what the forecast says.
    miss: f64,
    steps: u64,
    within: u64,
}

impl Default for Interval {
    fn default() -> Self {
        Self { below: 1.0, above: 1.0, miss: 1.0, steps: 0, within: 0 }
    }
}

/// How far below and above the mean the forecast has one step of ten, where `mean_ns` is predicted.
fn widths(expected: Expected, mean_ns: f64) -> (f64, f64) {
    let factor = if expected.mean_ns > 0.0 { mean_ns / expected.mean_ns } else { 1.0 };
    let least = (WIDTH_MIN * mean_ns.abs()).max(1.0);
    let width = |ns: f64| (factor * ns).max(least);
    (width(expected.mean_ns - expected.low_ns), width(expected.high_ns - expected.mean_ns))
}

impl Interval {
    /// What is predicted of a step whose kind brings `factor` times what is expected.
    pub(super) fn predict(&self, expected: Expected, factor: f64) -> Predicted {
        let mean_ns = factor * expected.mean_ns;
        let (below, above) = widths(expected, mean_ns);
        let low_ns = mean_ns - self.below * below;
        // Where they cross, the upper bound gives way.
        Predicted { mean_ns, low_ns, high_ns: (mean_ns + self.above * above).max(low_ns) }
    }

    /// Learns from what a step brought of which that was predicted.
    pub(super) fn judge(&mut self, expected: Expected, predicted: Predicted, measured_ns: f64) {
        let Predicted { mean_ns, low_ns, high_ns } = predicted;
        let (is_below, is_above) = (measured_ns < low_ns, measured_ns > high_ns);
        self.steps += 1;
        self.within += u64::from(!is_below && !is_above);
        let (below, above) = widths(expected, mean_ns);
        let width = if measured_ns < mean_ns { below } else { above };
        let miss = ((measured_ns - mean_ns).abs() / width).min(MISS_MAX);
        // The first steps say more than the thousandth.
        let pace = STEP.max(FIRST / (FIRST + self.steps as f64));
        self.miss += pace * (miss - self.miss);
        // What is far away comes back quickly, and what is near may pass the middle.
        let moved = |bound: f64, misses: bool| {
            pace * (bound.abs() + self.miss) * (f64::from(u8::from(misses)) - OUTSIDE)
        };
        self.below += moved(self.below, is_below);
        self.above += moved(self.above, is_above);
    }

    /// Share of steps that were within their interval; none before the first.
    pub(super) fn coverage(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.within as f64 / self.steps as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Share of `steps` that are within their interval, each of which brings `brings(random)` of one.
    fn coverage(steps: u32, mut brings: impl FnMut(&mut SplitMix64) -> f64) -> f64 {
        let (mut interval, mut random) = (Interval::default(), SplitMix64::new(3));
        for _ in 0..steps {
            let mean_ns = 1e6 * (0.5 + random.uniform());
            let expected = Expected {
                mean_ns,
                most_ns: mean_ns,
                low_ns: 0.9 * mean_ns,
                high_ns: 1.1 * mean_ns,
            };
            let predicted = interval.predict(expected, 1.0);
            interval.judge(expected, predicted, mean_ns * brings(&mut random));
        }
        interval.coverage().unwrap()
    }

    #[test]
    fn eight_of_ten_steps_are_within_however_wrong_the_forecast_is_about_its_width() {
        for (width, all_or_nothing) in
            [(0.02, 0.0), (0.5, 0.0), (3.0, 0.0), (0.1, 0.15), (0.3, 0.6)]
        {
            let share = coverage(4_000, |random| {
                let is_none = random.uniform() < all_or_nothing;
                if is_none { 0.0 } else { 1.0 + width * random.normal() }
            });
            assert!((0.76..0.84).contains(&share), "{width} {all_or_nothing}: {share}");
        }
    }

    #[test]
    fn the_interval_is_as_wide_as_the_forecast_says_before_anything_is_known() {
        let expected =
            Expected { mean_ns: 10.0e3, most_ns: 12.0e3, low_ns: 7.0e3, high_ns: 12.0e3 };
        let predicted = Interval::default().predict(expected, 0.5);
        assert_eq!(predicted, Predicted { mean_ns: 5.0e3, low_ns: 3.5e3, high_ns: 6.0e3 });
    }
}
