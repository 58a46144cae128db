//! Every coming tick is like the last one: the yardstick.

use super::direct::from_logs;
use super::{Effort, FitReport, ForecastError, Member, Quantiles, Series, Window};

/// Past ticks on which the width of an interval is measured, spread over four times as many.
const WIDTH_SAMPLES: usize = 48;

/// Distance of the 10 % and 90 % quantiles from the middle, in mean absolute misses, for noise
/// between normal and Laplace.
const MISSES_80: f64 = 1.6;

/// Repeats the last value of each series.
///
/// The interval is as wide as the series moved at that distance before. An idle series is expected
/// to stay idle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Naive;

impl Member for Naive {
    fn name(&self) -> &'static str {
        "naive"
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
        let one = |series: &Series<'_>| {
            let last = series.log(0);
            let tick = |ahead: &usize| around(last, miss(series, *ahead, 1, |past| past.log(0)));
            horizons.iter().map(tick).collect()
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

/// A member without state takes up only an empty one.
pub(super) fn stateless(member: &'static str, state: &[u8]) -> Result<(), ForecastError> {
    if state.is_empty() {
        return Ok(());
    }
    let reason = format!("it keeps none, but {} bytes were given", state.len());
    Err(ForecastError::State { member, reason })
}

/// Quantiles around a logarithm that is missed by `miss` on average.
pub(super) fn around(centre: f64, miss: f64) -> Quantiles {
    from_logs(centre - MISSES_80 * miss, centre, centre + MISSES_80 * miss)
}

/// How far `rule` was off on average, in logarithms, when it forecast `ahead` ticks at some recent
/// origins that had `ticks_min` ticks behind them; with few such, as if it had missed as calls at random
/// do.
pub(super) fn miss(
    series: &Series<'_>,
    ahead: usize,
    ticks_min: usize,
    rule: impl Fn(&Series<'_>) -> f64,
) -> f64 {
    let random = 0.8 / (series.log(0).exp() + 1.0).sqrt();
    let origins = series.len().saturating_sub(ahead);
    let stride = (origins / WIDTH_SAMPLES).clamp(1, 4);
    let (mut sum, mut count) = (0.0, 0.0);
    for sample in 0..WIDTH_SAMPLES {
        let back = ahead + sample * stride;
        if back + ticks_min > series.len() {
            break;
        }
        sum += (series.log(back - ahead) - rule(&series.before(back))).abs();
        count += 1.0;
    }
    // Two samples' worth of what is true of calls at random.
    if series.log(0) == 0.0 && sum == 0.0 { 0.0 } else { (sum + random) / (count + 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Past;
    use crate::ids::Tick;

    fn forecast(calls: &[f64], horizons: &[usize]) -> Vec<Quantiles> {
        let past = Past::new(calls.iter().copied());
        let series = [past.series(calls.len(), 1, &[])];
        let window = Window { at: Tick(9), tick_ms: 1_000, epoch_ms: 0, series: &series };
        Naive.forecast(&window, horizons).unwrap().remove(0)
    }

    #[test]
    fn the_last_value_is_repeated_and_is_as_uncertain_as_the_series_moved() {
        let ramp: Vec<f64> = (1..60).map(|tick| f64::from(tick).powi(2)).collect();
        let all = forecast(&ramp, &[1, 10]);
        assert!(all.iter().all(|tick| (tick.q50 - 59.0 * 59.0).abs() < 1e-6));
        assert!(all[1].q90 > all[0].q90 && all[1].q10 < all[0].q10);
    }

    #[test]
    fn a_constant_series_is_nearly_certain_and_an_empty_one_is_idle() {
        let constant = forecast(&[30.0; 90], &[1])[0];
        assert!(constant.q10 > 29.0 && constant.q90 < 31.0);
        assert_eq!(forecast(&[], &[1]), [Quantiles::exactly(0.0)]);
        assert_eq!(forecast(&[0.0; 50], &[3]), [Quantiles::exactly(0.0)]);
    }

    #[test]
    fn a_state_of_another_member_is_refused() {
        assert_eq!(Naive.load(&Naive.save().unwrap()), Ok(()));
        assert_eq!(
            Naive.load(b"xyz").unwrap_err().to_string(),
            "state of member naive is unusable: it keeps none, but 3 bytes were given"
        );
    }
}
