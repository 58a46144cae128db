//! Every coming tick is like the same tick of the last seasons, at today's level.

use super::naive::{band, dispersion, repeat_last, stateless};
use super::{FitReport, ForecastError, Member, Quantiles, Window};

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
/// Without a season, or before one season is over, it repeats the last value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seasonal;

impl Member for Seasonal {
    fn name(&self) -> &'static str {
        "seasonal"
    }

    fn fit(&mut self, _: &Window, _: u32) -> Result<FitReport, ForecastError> {
        Ok(FitReport::default())
    }

    fn forecast(
        &self,
        window: &Window,
        horizon: usize,
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let one = |calls: &Vec<f64>| match window.season_ticks {
            Some(season) if knows_season(calls.len(), season) => by_season(calls, season, horizon),
            _ => repeat_last(calls, horizon),
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

fn by_season(calls: &[f64], season: usize, horizon: usize) -> Vec<Quantiles> {
    let level = level(calls, season);
    let dispersion = dispersion(calls, season);
    let profile = |ahead: usize| profile(calls, season, ahead) * level;
    (1..=horizon)
        .map(|ahead| {
            let middle = profile(ahead);
            let before = profile(ahead + season - 1);
            let after = profile(ahead + 1);
            Quantiles {
                q10: band(middle.min(before).min(after), dispersion).q10,
                q50: middle,
                q90: band(middle.max(before).max(after), dispersion).q90,
            }
            .tidy()
        })
        .collect()
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
    use crate::ids::Tick;

    fn median(calls: &[f64], season: Option<usize>, horizon: usize) -> Vec<f64> {
        let window = Window { at: Tick(9), season_ticks: season, series: vec![calls.to_vec()] };
        let all = Seasonal.forecast(&window, horizon).unwrap();
        all[0].iter().map(|tick| tick.q50).collect()
    }

    #[test]
    fn a_repeating_day_is_repeated() {
        let day = [0.0, 0.0, 8.0, 2.0];
        let calls = [day, day, day].concat();
        assert_eq!(median(&calls, Some(4), 6), [0.0, 0.0, 8.0, 2.0, 0.0, 0.0]);
        assert_eq!(median(&calls[..10], Some(4), 2), [8.0, 2.0]);
    }

    #[test]
    fn the_second_day_is_known_from_the_first() {
        assert_eq!(median(&[1.0, 5.0, 9.0, 1.0], Some(3), 2), [5.0, 9.0]);
    }

    #[test]
    fn a_busier_day_is_expected_to_stay_busier() {
        let yesterday = [100.0; 16];
        let today = [150.0; 8];
        let calls = [&yesterday[..], &today[..]].concat();
        let next = median(&calls, Some(16), 1)[0];
        assert!((135.0..=150.0).contains(&next), "{next}");
    }

    #[test]
    fn what_comes_a_tick_earlier_than_yesterday_is_within_the_interval() {
        let mut calls = vec![0.0; 40];
        calls[10] = 9.0;
        let window = Window { at: Tick(39), season_ticks: Some(30), series: vec![calls] };
        let next = Seasonal.forecast(&window, 3).unwrap();
        // Tick 40 repeats tick 10; ticks 41 to 43 repeat 11 to 13.
        assert_eq!(next[0][0].q50, 9.0);
        assert!(next[0][1].q90 >= 9.0 && next[0][1].q50 == 0.0);
        assert_eq!(next[0][2], Quantiles::exactly(0.0));
    }

    #[test]
    fn before_a_season_is_over_the_last_value_is_repeated() {
        assert_eq!(median(&[1.0, 2.0], Some(4), 2), [2.0, 2.0]);
        assert_eq!(median(&[1.0, 2.0], None, 1), [2.0]);
        assert_eq!(median(&[], Some(4), 1), [0.0]);
    }
}
