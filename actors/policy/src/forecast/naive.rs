//! Every coming tick is like the last one: the yardstick.

use super::{FitReport, ForecastError, Member, Quantiles, Window};

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

    fn fit(&mut self, _: &Window, _: u32) -> Result<FitReport, ForecastError> {
        Ok(FitReport::default())
    }

    fn forecast(
        &self,
        window: &Window,
        horizon: usize,
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        Ok(window.series.iter().map(|calls| repeat_last(calls, horizon)).collect())
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

/// The last value for every coming tick; zero if there is none.
pub(super) fn repeat_last(calls: &[f64], horizon: usize) -> Vec<Quantiles> {
    let last = calls.last().copied().unwrap_or(0.0);
    let dispersion = dispersion(calls, 1);
    (1..=horizon).map(|ahead| band(last, dispersion * ahead as f64)).collect()
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

    fn window(calls: &[f64]) -> Window {
        Window { at: crate::ids::Tick(9), season_ticks: None, series: vec![calls.to_vec()] }
    }

    #[test]
    fn the_last_value_is_repeated_and_gets_less_certain_with_the_distance() {
        let all = Naive.forecast(&window(&[4.0, 9.0, 5.0, 7.0]), 3).unwrap();
        assert_eq!(all[0].iter().map(|tick| tick.q50).collect::<Vec<_>>(), [7.0; 3]);
        assert!(all[0][2].q90 > all[0][0].q90 && all[0][2].q10 < all[0][0].q10);
    }

    #[test]
    fn a_constant_series_is_certain_and_an_empty_one_is_idle() {
        assert_eq!(Naive.forecast(&window(&[3.0; 9]), 1).unwrap(), [[Quantiles::exactly(3.0)]]);
        assert_eq!(Naive.forecast(&window(&[]), 1).unwrap(), [[Quantiles::exactly(0.0)]]);
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
