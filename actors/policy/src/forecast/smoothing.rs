//! Level and damped trend, followed at the speed that would have been best so far.

use super::naive::{band, counts, stateless};
use super::{FitReport, ForecastError, Member, Quantiles, Series, Window};

/// Ticks that are smoothed over.
const TICKS_MAX: usize = 256;

/// Weights of the newest tick in the level that are tried.
const LEVEL_WEIGHTS: [f64; 4] = [0.05, 0.2, 0.5, 0.9];

/// Weights of the newest change in the trend that are tried; zero has no trend.
const TREND_WEIGHTS: [f64; 3] = [0.0, 0.1, 0.3];

/// What is left of the trend after each tick.
const DAMPING: f64 = 0.9;

/// Damped Holt smoothing, its two weights chosen per series from a small grid by the absolute error
/// of one step.
///
/// # Source
/// Gardner and McKenzie, *Forecasting trends in time series*, 1985.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smoothing;

impl Member for Smoothing {
    fn name(&self) -> &'static str {
        "smoothing"
    }

    fn fit(&mut self, _: &Window<'_>, _: &[usize], _: u32) -> Result<FitReport, ForecastError> {
        Ok(FitReport::default())
    }

    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let last = horizons.last().copied().unwrap_or(0);
        let one = |series: &Series<'_>| {
            let all = smooth(&counts(series), last);
            horizons.iter().filter_map(|ahead| all.get(ahead - 1).copied()).collect()
        };
        Ok(window.series.iter().map(one).collect())
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        Ok(Vec::new())
    }

    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        stateless(self.name(), state)
    }
}

#[derive(Clone, Copy, Default)]
struct Smoothed {
    level: f64,
    trend: f64,
    /// Mean absolute error of one step.
    error: f64,
    /// Mean squared error of one step over the level expected.
    dispersion: f64,
}

fn smooth(calls: &[f64], horizon: usize) -> Vec<Quantiles> {
    let recent = &calls[calls.len().saturating_sub(TICKS_MAX)..];
    if recent.iter().all(|calls| *calls == 0.0) {
        return vec![Quantiles::exactly(0.0); horizon];
    }
    let grid = LEVEL_WEIGHTS.iter().flat_map(|a| TREND_WEIGHTS.iter().map(move |b| (*a, *b)));
    let best = grid
        .map(|(level, trend)| follow(recent, level, trend))
        .min_by(|a, b| a.error.total_cmp(&b.error))
        .unwrap_or_default();
    let (mut trend, mut expected) = (best.trend, best.level);
    (1..=horizon)
        .map(|ahead| {
            trend *= DAMPING;
            expected += trend;
            // Half: `band` counts the noise of one observation twice, a level has little.
            band(expected.max(0.0), best.dispersion / 2.0 * (1.0 + 0.1 * ahead as f64))
        })
        .collect()
}

fn follow(calls: &[f64], level_weight: f64, trend_weight: f64) -> Smoothed {
    let Some((first, rest)) = calls.split_first() else { return Smoothed::default() };
    let mut now = Smoothed { level: *first, ..Smoothed::default() };
    for actual in rest {
        let expected = now.level + DAMPING * now.trend;
        let miss = actual - expected;
        let level = expected + level_weight * miss;
        now.trend = DAMPING * now.trend + level_weight * trend_weight * miss;
        now.level = level;
        now.error += miss.abs();
        now.dispersion += miss * miss / expected.max(0.1);
    }
    let count = rest.len().max(1) as f64;
    Smoothed { error: now.error / count, dispersion: (now.dispersion / count).max(1e-9), ..now }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_followed_and_noise_is_not() {
        let step: Vec<f64> = [vec![2.0; 30], vec![20.0; 30]].concat();
        assert!((smooth(&step, 1)[0].q50 - 20.0).abs() < 0.5);
        let noise: Vec<f64> = (0..100).map(|tick| 10.0 + f64::from(tick % 2) * 4.0).collect();
        assert!((smooth(&noise, 1)[0].q50 - 12.0).abs() < 1.0);
    }

    #[test]
    fn a_trend_is_carried_on_and_fades() {
        let ramp: Vec<f64> = (0..100).map(f64::from).collect();
        let next = smooth(&ramp, 40);
        assert!(next[0].q50 > 99.2, "{:?}", next[0]);
        let last_step = next[39].q50 - next[38].q50;
        assert!((0.0..0.1).contains(&last_step), "{last_step}");
    }

    #[test]
    fn a_falling_load_never_goes_below_zero() {
        let ramp: Vec<f64> = (0..50).rev().map(f64::from).collect();
        assert!(smooth(&ramp, 40).iter().all(|tick| tick.q10 >= 0.0 && tick.q90.is_finite()));
    }

    #[test]
    fn an_empty_and_an_idle_series_are_expected_to_stay_idle() {
        assert_eq!(smooth(&[], 2), [Quantiles::exactly(0.0); 2]);
        assert_eq!(smooth(&[0.0; 500], 2), [Quantiles::exactly(0.0); 2]);
    }
}
