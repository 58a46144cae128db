//! How much is called in each tick: a load that is made up, or one from a trace.

use std::f64::consts::TAU;

use foreshard_policy::random::SplitMix64;

/// Ticks of a day at least.
pub(crate) const DAY_TICKS: usize = 1_440;

/// Calls keep so large a share of all CPUs busy in the busiest ticks.
const PEAK: f64 = 0.45;

/// One tick of so many is busier than the peak.
const PEAK_QUANTILE: f64 = 0.99;

/// Lowest share of CPUs, so that a night has steps to judge, too.
const NIGHT: f64 = 0.3;

/// A load over days.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Share of all CPUs that calls keep busy, by tick.
    pub(crate) shares: Vec<f64>,
    pub(crate) day_ticks: usize,
}

impl Load {
    /// A day and a night, each a little different from the last.
    pub(crate) fn made_up(days: usize, seed: u64) -> Self {
        let mut dice = SplitMix64::new(seed);
        let (mut drift, mut values) = (0.0, Vec::new());
        for tick in 0..days * DAY_TICKS {
            drift = 0.99 * drift + 0.02 * dice.normal();
            let hour = (TAU * tick as f64 / DAY_TICKS as f64).sin();
            values.push((0.5 * hour + drift).exp());
        }
        Self::scaled(&values, 1, DAY_TICKS)
    }

    /// The values of a trace, of which so many are a day, each held for as many ticks as make a day long enough.
    /// Of a longer trace the last `days` days.
    pub(crate) fn of_trace(values: &[f64], values_a_day: usize, days: usize) -> Self {
        let held = DAY_TICKS.div_ceil(values_a_day);
        let first = values.len().saturating_sub(days * values_a_day);
        Self::scaled(&values[first..], held, held * values_a_day)
    }

    fn scaled(values: &[f64], held: usize, day_ticks: usize) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let peak =
            sorted[((sorted.len() - 1) as f64 * PEAK_QUANTILE) as usize].max(f64::MIN_POSITIVE);
        let share = |value: &f64| (PEAK * value / peak).clamp(NIGHT, PEAK);
        let shares = values.iter().flat_map(|value| std::iter::repeat_n(share(value), held));
        Self { shares: shares.collect(), day_ticks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_of_a_trace_are_held_flat_and_its_peak_keeps_most_cpus_busy() {
        let hours: Vec<f64> = (0..48).map(|hour| f64::from(hour % 24)).collect();
        let load = Load::of_trace(&hours, 24, 1);
        assert_eq!((load.day_ticks, load.shares.len()), (1_440, 1_440));
        assert_eq!(load.shares[1_439], PEAK);
        assert!(load.shares[..60].iter().all(|share| *share == NIGHT));
        assert_eq!(Load::made_up(3, 1).shares.len(), 3 * 1_440);
    }
}
