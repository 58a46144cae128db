//! Every coming tick is like the same tick of the last seasons, at today's level.

use super::naive::{band, counts, dispersion, stateless};
use super::{FitReport, ForecastError, Member, Quantiles, Series, Window};

/// Weight of the last season, the one before, and so on.
const SEASON_WEIGHTS: [f64; 3] = [0.5, 0.3, 0.2];

/// How much today's level may differ from that of a season ago.
const LEVEL_RANGE: (f64, f64) = (0.5, 2.0);

/// Seasonal naive with a level mix.
///
/// The median is the weighted mean of the same tick in up to three seasons, times the level of the
/// last eighth of a season against the same eighth one season ago (within a factor of two). The
/// interval covers the neighbouring ticks too, since what happens daily does not happen to the
/// tick.
///
/// Without a season, or before one season is over, it has nothing to say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seasonal;

impl Member for Seasonal {
    fn name(&self) -> &'static str {
        "seasonal"
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
            let Some(season) = series.seasons.first().copied() else { return Vec::new() };
            let calls = counts(series);
            if !knows_season(calls.len(), season) {
                return Vec::new();
            }
            horizons.iter().map(|ahead| by_season(&calls, season, *ahead)).collect()
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

/// Whether a series of `ticks` ticks says anything about a season.
pub(super) fn knows_season(ticks: usize, season: usize) -> bool {
    season > 0 && ticks > season
}

fn by_season(calls: &[f64], season: usize, ahead: usize) -> Quantiles {
    let level = level(calls, season);
    let dispersion = dispersion(calls, season);
    let profile = |ahead: usize| profile(calls, season, ahead) * level;
    let middle = profile(ahead);
    let before = profile(ahead + season - 1);
    let after = profile(ahead + 1);
    Quantiles {
        q10: band(middle.min(before).min(after), dispersion).q10,
        q50: middle,
        q90: band(middle.max(before).max(after), dispersion).q90,
    }
    .tidy()
}

/// Weighted mean of the same phase as `ahead` ticks after the end, over the last seasons.
fn profile(calls: &[f64], season: usize, ahead: usize) -> f64 {
    let back = season - (ahead - 1) % season;
    let (mut sum, mut weights) = (0.0, 0.0);
    for (age, weight) in SEASON_WEIGHTS.into_iter().enumerate() {
        let Some(position) = calls.len().checked_sub(back + age * season) else { break };
        sum += weight * calls[position];
        weights += weight;
    }
    if weights > 0.0 { sum / weights } else { 0.0 }
}

/// Today's level against that of one season ago.
fn level(calls: &[f64], season: usize) -> f64 {
    let ticks = (season / 8).max(1).min(calls.len() - season);
    let sum = |end: usize| calls[end - ticks..end].iter().sum::<f64>();
    let (now, then) = (sum(calls.len()), sum(calls.len() - season));
    // Few calls say little: the mean of a season pulls the ratio towards one.
    let pull = 1.0 + sum(calls.len()).max(then).sqrt();
    ((now + pull) / (then + pull)).clamp(LEVEL_RANGE.0, LEVEL_RANGE.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Past;
    use crate::ids::Tick;

    fn all(calls: &[f64], season: Option<usize>, horizon: usize) -> Vec<Quantiles> {
        let past = Past::new(calls.iter().copied());
        let seasons: Vec<usize> = season.into_iter().collect();
        let series = [past.series(calls.len(), 1, &seasons)];
        let window = Window { at: Tick(9), tick_ms: 1_000, epoch_ms: 0, series: &series };
        let horizons: Vec<usize> = (1..=horizon).collect();
        Seasonal.forecast(&window, &horizons).unwrap().remove(0)
    }

    fn median(calls: &[f64], season: usize, horizon: usize) -> Vec<f64> {
        let all = all(calls, Some(season), horizon);
        all.iter().map(|tick| (tick.q50 * 1e9).round() / 1e9).collect()
    }

    #[test]
    fn a_repeating_day_is_repeated() {
        let day = [0.0, 0.0, 8.0, 2.0];
        let calls = [day, day, day].concat();
        assert_eq!(median(&calls, 4, 6), [0.0, 0.0, 8.0, 2.0, 0.0, 0.0]);
        assert_eq!(median(&calls[..10], 4, 2), [8.0, 2.0]);
    }

    #[test]
    fn the_second_day_is_known_from_the_first() {
        assert_eq!(median(&[1.0, 5.0, 9.0, 1.0], 3, 2), [5.0, 9.0]);
    }

    #[test]
    fn a_busier_day_is_expected_to_stay_busier() {
        let yesterday = [100.0; 16];
        let today = [150.0; 8];
        let calls = [&yesterday[..], &today[..]].concat();
        let next = median(&calls, 16, 1)[0];
        assert!((135.0..=150.0).contains(&next), "{next}");
    }

    #[test]
    fn what_comes_a_tick_earlier_than_yesterday_is_within_the_interval() {
        let mut calls = vec![0.0; 40];
        calls[10] = 9.0;
        let next = all(&calls, Some(30), 3);
        // Tick 40 repeats tick 10; ticks 41 to 43 repeat 11 to 13.
        assert!((next[0].q50 - 9.0).abs() < 1e-9);
        assert!(next[1].q90 >= 9.0 - 1e-9 && next[1].q50 == 0.0);
        assert_eq!(next[2], Quantiles::exactly(0.0));
    }

    #[test]
    fn before_a_season_is_over_it_has_nothing_to_say() {
        assert_eq!(all(&[1.0, 2.0], Some(4), 2), []);
        assert_eq!(all(&[1.0, 2.0], None, 1), []);
        assert_eq!(all(&[], Some(4), 1), []);
    }
}
