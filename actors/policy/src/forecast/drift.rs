//! Notices that forecasts have begun to be wrong in one direction.

use serde::{Deserialize, Serialize};

/// Shifts of the mean up to this much are let pass, in units of the residuals' deviation.
const TOLERANCE: f64 = 0.25;

/// Sum of the excess that is a drift. With this tolerance noise reaches it about once in 50,000 ticks, a
/// shift by one deviation in about 24.
const THRESHOLD: f64 = 18.0;

/// A residual counts at most so much: one outlier is no drift.
const RESIDUAL_MAX: f64 = 4.0;

/// Ticks over which the usual mean is learned after a start or a drift.
const TICKS_MIN: u32 = 30;

/// Beyond so many ticks older residuals fade from the usual mean.
const MEMORY_TICKS: f64 = 2_000.0;

/// The direction in which the load left its forecasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drift {
    /// More came than was forecast.
    Up,
    /// Less came than was forecast.
    Down,
}

/// The test of Page and Hinkley, in both directions.
///
/// It is fed one residual per tick (what came less what was forecast), divided by the deviation that
/// residuals of the series usually have. What they are on average is learned and is no drift; only a
/// change of it is.
///
/// # Cost
/// `O(1)` per tick and 40 bytes per series.
///
/// # Source
/// Page, "Continuous inspection schemes", Biometrika 41 (1954); Hinkley, "Inference about the change-point
/// from cumulative sum tests", Biometrika 58 (1971).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PageHinkley {
    ticks: u32,
    mean: f64,
    up: f64,
    down: f64,
}

impl PageHinkley {
    /// Takes note of one scaled residual. After a drift it begins anew. A residual that is not finite is
    /// passed over.
    pub fn observe(&mut self, residual: f64) -> Option<Drift> {
        if !residual.is_finite() {
            return None;
        }
        let residual = residual.clamp(-RESIDUAL_MAX, RESIDUAL_MAX);
        self.ticks = self.ticks.saturating_add(1);
        let away = residual - self.mean;
        self.mean += away / f64::from(self.ticks).min(MEMORY_TICKS);
        if self.ticks <= TICKS_MIN {
            return None;
        }
        self.up = (self.up + away - TOLERANCE).max(0.0);
        self.down = (self.down - away - TOLERANCE).max(0.0);
        let drift = match (self.up > THRESHOLD, self.down > THRESHOLD) {
            (true, _) => Drift::Up,
            (false, true) => Drift::Down,
            (false, false) => return None,
        };
        self.reset();
        Some(drift)
    }

    /// Forgets everything: for a model that was fitted anew.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// The first tick at which a drift is noticed, and its direction, of residuals with a mean each.
    fn noticed(seed: u64, ticks: usize, mean: impl Fn(usize) -> f64) -> Option<(usize, Drift)> {
        let mut random = SplitMix64::new(seed);
        let mut test = PageHinkley::default();
        (0..ticks).find_map(|tick| Some((tick, test.observe(mean(tick) + random.normal())?)))
    }

    #[test]
    fn a_shift_by_one_deviation_is_noticed_within_a_hundred_ticks_in_either_direction() {
        for seed in 0..50 {
            for (height, direction) in [(1.0, Drift::Up), (-1.0, Drift::Down)] {
                let found = noticed(seed, 1_000, |tick| if tick < 500 { 0.0 } else { height });
                let (tick, found) = found.unwrap();
                assert!((500..600).contains(&tick), "seed {seed}: {tick}");
                assert_eq!(found, direction, "seed {seed}");
            }
        }
    }

    #[test]
    fn noise_and_a_steady_bias_are_no_drift() {
        for bias in [0.0, 0.7] {
            let alarms = (0..50).filter(|seed| noticed(*seed, 2_000, |_| bias).is_some()).count();
            assert!(alarms <= 5, "bias {bias}: {alarms} of 50 in 100,000 ticks");
        }
    }

    #[test]
    fn outliers_and_broken_residuals_alone_are_no_drift() {
        let mut test = PageHinkley::default();
        for tick in 0..5_000_u32 {
            let residual = match tick % 100 {
                7 => 1e9,
                8 => f64::NAN,
                _ => 0.0,
            };
            assert_eq!(test.observe(residual), None, "{tick}");
        }
    }

    #[test]
    fn after_a_drift_the_new_level_is_learned() {
        let mut random = SplitMix64::new(1);
        let mut test = PageHinkley::default();
        let level = |tick| if tick < 500 { 0.0 } else { 2.0 };
        let drifts: Vec<usize> = (0..3_000)
            .filter(|tick| test.observe(level(*tick) + random.normal()).is_some())
            .collect();
        assert_eq!(drifts.len(), 1, "{drifts:?}");
    }
}
