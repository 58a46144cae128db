//! Every coming tick is like the last one: the yardstick.

use super::{FitReport, ForecastError, Member, Quantiles, Series, Window};

/// Ticks that the width of the interval is measured on.
const BAND_TICKS: usize = 256;

/// Distance of the 10 % and 90 % quantiles of a normal distribution from its mean, in deviations.
pub(super) const DEVIATIONS_80: f64 = 1.2816;

/// Repeats the last value of each series.
///
/// The interval grows with the root of the distance and of the level, by how much more than Poisson
/// noise the series moved from tick to tick. An idle series is expected to stay idle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Naive;

impl Member for Naive {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn fit(&mut self, _: &Window<'_>, _: &[usize], _: u32) -> Result<FitReport, ForecastError> {
        Ok(FitReport::default())
    }

    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let one = |series: &Series<'_>| {
            let calls = counts(series);
            horizons.iter().map(|ahead| repeat_last(&calls, *ahead)).collect()
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

/// A member without state takes up only an empty one.
pub(super) fn stateless(member: &'static str, state: &[u8]) -> Result<(), ForecastError> {
    if state.is_empty() {
        return Ok(());
    }
    let reason = format!("it keeps none, but {} bytes were given", state.len());
    Err(ForecastError::State { member, reason })
}

/// The last value; zero if there is none.
pub(super) fn repeat_last(calls: &[f64], ahead: usize) -> Quantiles {
    band(calls.last().copied().unwrap_or(0.0), dispersion(calls, 1) * ahead as f64)
}

/// The newest calls of a series, as many as the members of a few ticks look at.
pub(super) fn counts(series: &Series<'_>) -> Vec<f64> {
    series.logs.iter().map(|log| log.exp_m1()).collect()
}

/// How much more than Poisson noise a series differs from itself `lag` ticks ago; 1 is Poisson.
pub(super) fn dispersion(calls: &[f64], lag: usize) -> f64 {
    let recent = &calls[calls.len().saturating_sub(BAND_TICKS + lag)..];
    let pairs = recent.iter().skip(lag).zip(recent);
    let (mut sum, mut count) = (0.0, 0.0);
    for (new, old) in pairs {
        if new + old > 0.0 {
            sum += (new - old).powi(2) / (new + old).max(1.0);
            count += 1.0;
        }
    }
    if count > 0.0 { sum / count } else { 1.0 }
}

/// Quantiles around `centre`, whose variance and that of the value it came from are both
/// `dispersion` times its level.
pub(super) fn band(centre: f64, dispersion: f64) -> Quantiles {
    let width = DEVIATIONS_80 * (2.0 * dispersion * centre).max(0.0).sqrt();
    Quantiles { q10: centre - width, q50: centre, q90: centre + width }.tidy()
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
    fn the_last_value_is_repeated_and_gets_less_certain_with_the_distance() {
        let all = forecast(&[4.0, 9.0, 5.0, 7.0], &[1, 2, 3]);
        assert!(all.iter().all(|tick| (tick.q50 - 7.0).abs() < 1e-9));
        assert!(all[2].q90 > all[0].q90 && all[2].q10 < all[0].q10);
    }

    #[test]
    fn a_constant_series_is_certain_and_an_empty_one_is_idle() {
        let constant = forecast(&[3.0; 9], &[1])[0];
        assert!((constant.q10 - 3.0).abs() < 1e-9 && (constant.q90 - 3.0).abs() < 1e-9);
        assert_eq!(forecast(&[], &[1]), [Quantiles::exactly(0.0)]);
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
