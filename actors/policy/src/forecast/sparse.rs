//! Functions that are called now and then: how long they usually rest, and how much comes at once.

use super::naive::stateless;
use super::{Effort, FitReport, ForecastError, Member, Quantiles, Series, Window};

/// Share of ticks with calls above which a series is not rare and left to the other members.
const BUSY_MAX: f64 = 0.4;

/// Ticks that are looked back over at most, for rests and sizes.
const LOOK_BACK: usize = 2_048;

/// Rests that are remembered, the newest.
const RESTS_MAX: usize = 64;

/// Rests from which their histogram says more than the mean rate.
const RESTS_MIN: usize = 6;

/// Chance that the two tails of an interval leave out.
const TAIL: f64 = 0.1;

/// The idle-time member.
///
/// The chance of a call in a coming tick is that of a rest ending there, among the past rests that
/// lasted at least as long as the present one already does, mixed with the plain rate. Quantiles
/// are those of no calls or as many as usually come at once.
///
/// # Cost
/// `O(min(n, 2,048))` per series; series that are not rare cost a few operations.
///
/// # Source
/// Shahrad et al., *Serverless in the Wild*, USENIX ATC 2020, section 4.2 (idle times); Teunter,
/// Syntetos and Babai, *Intermittent demand: linking forecasting to inventory obsolescence*, EJOR
/// 2011 (rate and size apart).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sparse;

struct Rests {
    /// Ticks from one tick with calls to the next, newest first.
    lengths: Vec<usize>,
    /// Ticks since the last one with calls.
    present: usize,
    /// Calls in ticks with calls, ascending.
    sizes: Vec<f64>,
    /// Share of ticks with calls.
    rate: f64,
}

impl Rests {
    fn of(series: &Series<'_>) -> Option<Self> {
        let recent = &series.logs[series.len().saturating_sub(LOOK_BACK)..];
        let busy = recent.iter().filter(|log| **log > 0.0).count();
        if busy == 0 || busy as f64 > BUSY_MAX * recent.len() as f64 {
            return None;
        }
        let active = || recent.iter().rev().enumerate().filter(|(_, log)| **log > 0.0);
        let places: Vec<usize> = active().map(|(place, _)| place).take(RESTS_MAX + 1).collect();
        let mut sizes: Vec<f64> = active().map(|(_, log)| log.exp_m1()).take(RESTS_MAX).collect();
        sizes.sort_by(f64::total_cmp);
        Some(Self {
            lengths: places.windows(2).map(|pair| pair[1] - pair[0]).collect(),
            present: places[0],
            sizes,
            rate: busy as f64 / recent.len() as f64,
        })
    }

    /// Chance of a call `ahead` ticks from now.
    fn chance(&self, ahead: usize) -> f64 {
        let lasted = || self.lengths.iter().filter(|rest| **rest > self.present);
        let among = lasted().count();
        if self.lengths.len() < RESTS_MIN || among == 0 {
            return self.rate;
        }
        let end = self.present + ahead;
        // Rests do not end to the tick; longer ones less so.
        let around = end / 10;
        let ends = lasted().filter(|rest| rest.abs_diff(end) <= around).count();
        let chance = ends as f64 / among as f64 / (2 * around + 1) as f64;
        let believed = among as f64 / (among as f64 + RESTS_MIN as f64);
        believed * chance + (1.0 - believed) * self.rate
    }

    fn quantiles(&self, ahead: usize) -> Quantiles {
        let chance = self.chance(ahead);
        let level = |level: f64| {
            let above = (level - (1.0 - chance)) / chance.max(1e-9);
            if above <= 0.0 || self.sizes.is_empty() {
                return 0.0;
            }
            self.sizes[((above * self.sizes.len() as f64) as usize).min(self.sizes.len() - 1)]
        };
        Quantiles { q10: level(TAIL), q50: level(0.5), q90: level(1.0 - TAIL) }
    }
}

impl Member for Sparse {
    fn name(&self) -> &'static str {
        "idle_time"
    }

    fn fit(
        &mut self,
        _: &Window<'_>,
        _: &[usize],
        _: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        Ok(FitReport::default())
    }

    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let one = |series: &Series<'_>| match Rests::of(series) {
            Some(rests) => horizons.iter().map(|ahead| rests.quantiles(*ahead)).collect(),
            None => Vec::new(),
        };
        Ok(window.series.iter().map(one).collect())
    }

    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        Ok(Box::new(*self))
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        Ok(Vec::new())
    }

    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        stateless(self.name(), state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Past;
    use crate::ids::Tick;

    fn forecast(calls: &[f64], to: usize) -> Vec<Quantiles> {
        let past = Past::new(calls.iter().copied());
        let series = [past.series(calls.len(), 1, &[])];
        let window = Window { at: Tick(9), tick_ms: 1_000, epoch_ms: 0, series: &series };
        let horizons: Vec<usize> = (1..=to).collect();
        Sparse.forecast(&window, &horizons).unwrap().remove(0)
    }

    #[test]
    fn a_call_every_seventh_tick_is_expected_in_the_seventh() {
        let calls: Vec<f64> =
            (0..140).map(|tick| f64::from(u8::from(tick % 7 == 0)) * 3.0).collect();
        // The last call was in tick 133; tick 140 is next.
        let medians: Vec<f64> = forecast(&calls, 3).iter().map(|tick| tick.q50.round()).collect();
        assert_eq!(medians, [3.0, 0.0, 0.0]);
    }

    #[test]
    fn a_call_at_random_now_and_then_is_within_the_interval_only_if_it_is_likely() {
        let rare: Vec<f64> =
            (0..1_000).map(|tick| f64::from(u8::from(tick * tick % 97 == 3))).collect();
        assert_eq!(forecast(&rare, 1)[0], Quantiles::exactly(0.0));
    }

    #[test]
    fn busy_idle_and_empty_series_are_left_to_others() {
        assert_eq!(forecast(&[5.0; 50], 1), []);
        assert_eq!(forecast(&[0.0; 50], 1), []);
        assert_eq!(forecast(&[], 1), []);
    }
}
