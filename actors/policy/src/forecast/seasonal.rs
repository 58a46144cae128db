//! Every coming tick is like the same tick of the last season, or of the last few at today's level.

use super::naive::{around, miss, stateless};
use super::{Effort, FitReport, ForecastError, Member, Quantiles, Series, Window};

/// Weight of the last season, the one before, and so on.
const SEASON_WEIGHTS: [f64; 3] = [0.5, 0.3, 0.2];

/// How much today's level may differ from that of a season ago, in logarithms.
const LEVEL_RANGE: f64 = 1.5;

/// Share of the present difference of level that is left a season ahead.
const LEVEL_KEPT: f64 = 0.5;

/// Which of the seasons of a series a member goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The shortest.
    Shortest,
    /// The longest, if there are several.
    Longest,
}

impl Which {
    /// The season of `series`, if at least one is over.
    fn of(self, series: &Series<'_>) -> Option<usize> {
        let known = || series.seasons.iter().copied().filter(|s| *s > 0 && *s < series.len());
        match self {
            Self::Shortest => known().min(),
            Self::Longest => known().max().filter(|longest| known().any(|s| s < *longest)),
        }
    }
}

/// Repeats the last season.
#[derive(Clone, Copy, Debug)]
pub struct SeasonalNaive(pub Which);

/// Repeats the mean of the last three seasons, smoothed over neighbouring ticks, at today's level.
///
/// Today's level is that of the last eighth of a season against the same ticks of former seasons; of
/// the difference less is kept the further ahead the tick is.
#[derive(Clone, Copy, Debug)]
pub struct Profile(pub Which);

impl SeasonalNaive {
    fn log(series: &Series<'_>, season: usize, ahead: usize) -> f64 {
        series.log(ahead.div_ceil(season) * season - ahead)
    }
}

impl Profile {
    fn log(series: &Series<'_>, season: usize, ahead: usize) -> f64 {
        let ago = ahead.div_ceil(season) * season;
        let half = (season / 96).min(30);
        let back = ago - ahead;
        let newest = back.saturating_sub(half);
        let then = mean(series, season, newest, back + half + 1 - newest);
        let wide = (season / 8).max(1);
        let usual = mean(series, season, season, wide);
        let change = (series.mean(0, wide) - usual).clamp(-LEVEL_RANGE, LEVEL_RANGE);
        then + change * LEVEL_KEPT.powf(ahead as f64 / season as f64)
    }
}

/// Weighted mean, over the last seasons, of `ticks` ticks of which the newest is `back` ticks ago.
fn mean(series: &Series<'_>, season: usize, back: usize, ticks: usize) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for (age, weight) in SEASON_WEIGHTS.into_iter().enumerate() {
        if back + age * season >= series.len() {
            break;
        }
        sum += weight * series.mean(back + age * season, ticks);
        weights += weight;
    }
    if weights > 0.0 { sum / weights } else { series.log(back) }
}

macro_rules! member {
    ($kind:ident, $shortest:literal, $longest:literal) => {
        impl Member for $kind {
            fn name(&self) -> &'static str {
                match self.0 {
                    Which::Shortest => $shortest,
                    Which::Longest => $longest,
                }
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
                let which = self.0;
                let one = |series: &Series<'_>| {
                    let Some(season) = which.of(series) else { return Vec::new() };
                    let tick = |ahead: &usize| {
                        let rule = |past: &Series<'_>| Self::log(past, season, *ahead);
                        around(rule(series), miss(series, *ahead, season + 1, rule))
                    };
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
    };
}

member!(SeasonalNaive, "seasonal_naive", "seasonal_naive_long");
member!(Profile, "profile", "profile_long");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Past;
    use crate::ids::Tick;

    fn all(mut member: impl Member, calls: &[f64], seasons: &[usize], to: usize) -> Vec<Quantiles> {
        let past = Past::new(calls.iter().copied());
        let series = [past.series(calls.len(), 1, seasons)];
        let window = Window { at: Tick(9), tick_ms: 1_000, epoch_ms: 0, series: &series };
        let horizons: Vec<usize> = (1..=to).collect();
        member.forecast(&window, &horizons).unwrap().remove(0)
    }

    fn median(member: impl Member, calls: &[f64], seasons: &[usize], to: usize) -> Vec<f64> {
        let all = all(member, calls, seasons, to);
        all.iter().map(|tick| (tick.q50 * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn a_repeating_day_is_repeated() {
        let day = [0.0, 0.0, 8.0, 2.0];
        let calls = [day, day, day].concat();
        let naive = SeasonalNaive(Which::Shortest);
        assert_eq!(median(naive, &calls, &[4], 6), [0.0, 0.0, 8.0, 2.0, 0.0, 0.0]);
        assert_eq!(median(naive, &calls[..10], &[4], 2), [8.0, 2.0]);
        let profile = Profile(Which::Shortest);
        assert_eq!(median(profile, &calls, &[4], 6), [0.0, 0.0, 8.0, 2.0, 0.0, 0.0]);
    }

    #[test]
    fn the_longest_of_several_seasons_is_a_member_of_its_own() {
        let week = [1.0, 5.0, 1.0, 9.0];
        let calls = [week, week].concat();
        assert_eq!(median(SeasonalNaive(Which::Shortest), &calls, &[4, 2], 2), [1.0, 9.0]);
        assert_eq!(median(SeasonalNaive(Which::Longest), &calls, &[4, 2], 2), [1.0, 5.0]);
        assert_eq!(all(SeasonalNaive(Which::Longest), &calls, &[2], 2), []);
    }

    #[test]
    fn a_busier_day_is_expected_to_stay_somewhat_busier() {
        let yesterday = [100.0; 16];
        let today = [150.0; 8];
        let calls = [&yesterday[..], &today[..]].concat();
        let next = median(Profile(Which::Shortest), &calls, &[16], 16);
        assert!((135.0..=150.0).contains(&next[0]), "{next:?}");
        assert!(next[15] < next[7] + 26.0 && next[15] > 100.0, "{next:?}");
    }

    #[test]
    fn before_a_season_is_over_it_has_nothing_to_say() {
        for seasons in [&[4][..], &[]] {
            assert_eq!(all(SeasonalNaive(Which::Shortest), &[1.0, 2.0], seasons, 2), []);
            assert_eq!(all(Profile(Which::Shortest), &[1.0, 2.0], seasons, 2), []);
        }
    }
}
