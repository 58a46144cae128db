//! Level, damped trend and season, each followed at the speed that would have been best so far.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::naive::around;
use super::{Effort, FitReport, ForecastError, Member, Quantiles, Series, Window};

/// Weights of the newest tick in the level that are tried.
const LEVEL_WEIGHTS: [f64; 5] = [0.02, 0.08, 0.25, 0.6, 0.95];

/// Weights of the newest change in the trend that are tried; zero has no trend.
const TREND_WEIGHTS: [f64; 3] = [0.0, 0.03, 0.2];

/// Weights of the newest season in the seasonal pattern that are tried.
const SEASON_WEIGHTS: [f64; 2] = [0.1, 0.4];

/// What is left of the trend after each tick.
const DAMPING: f64 = 0.9;

/// Ticks on which speeds are tried, besides those of two seasons to begin with.
const TRIED_TICKS: usize = 1_500;

/// Longest season that a pattern is kept for.
const SEASON_MAX: usize = 4_096;

/// Ticks after which a miss counts half in the width of the interval.
const MISS_HALF_LIFE: f64 = 100.0;

const NAME: &str = "holt_winters";

/// Holt-Winters smoothing of logarithms with a damped trend and, if a season is known, an additive
/// season. Its three speeds are chosen per series and horizon by the absolute error at that horizon.
///
/// # Cost
/// A fit tries 30 speeds on some 1,500 ticks per series and horizon; a tick takes a few operations.
///
/// # Source
/// Gardner and McKenzie, *Forecasting trends in time series*, 1985; Winters, *Forecasting sales by
/// exponentially weighted moving averages*, 1960.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Smoothing {
    followed: BTreeMap<u64, Vec<Followed>>,
}

/// One horizon of one series.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Followed {
    ahead: usize,
    speeds: Speeds,
    state: State,
    /// Mean absolute miss at this horizon when the speeds were chosen, in logarithms.
    miss: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Speeds {
    level: f64,
    trend: f64,
    season: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// The last tick that was followed.
    at: u64,
    level: f64,
    trend: f64,
    /// By position of the tick in the season.
    pattern: Vec<f32>,
}

impl State {
    /// Begins with the mean and the pattern of `logs`, of which the last belongs to tick `at`.
    fn begin(logs: &[f64], at: u64, season: usize) -> Self {
        let mean = |logs: &[f64]| logs.iter().sum::<f64>() / logs.len().max(1) as f64;
        let level = mean(logs);
        let first = at + 1 - logs.len() as u64;
        let mut pattern = vec![0.0; season];
        let mut counts = vec![0.0_f32; season];
        if season > 0 {
            for (tick, log) in (first..).zip(logs) {
                let place = (tick % season as u64) as usize;
                pattern[place] += (log - level) as f32;
                counts[place] += 1.0;
            }
            pattern.iter_mut().zip(&counts).for_each(|(sum, count)| *sum /= count.max(1.0));
        }
        let newest = &logs[logs.len().saturating_sub(season.clamp(4, 24))..];
        let level = if season > 0 { level } else { mean(newest) };
        Self { at, level, trend: 0.0, pattern }
    }

    fn pattern(&self, tick: u64) -> f64 {
        match self.pattern.len() {
            0 => 0.0,
            season => f64::from(self.pattern[(tick % season as u64) as usize]),
        }
    }

    fn expected(&self, ahead: usize) -> f64 {
        let trend = self.trend * DAMPING * (1.0 - DAMPING.powi(ahead as i32)) / (1.0 - DAMPING);
        self.level + trend + self.pattern(self.at + ahead as u64)
    }

    fn follow(&mut self, log: f64, speeds: Speeds) {
        let pattern = self.pattern(self.at + 1);
        let carried = self.level + DAMPING * self.trend;
        let miss = log - pattern - carried;
        self.at += 1;
        self.level = carried + speeds.level * miss;
        self.trend = DAMPING * self.trend + speeds.level * speeds.trend * miss;
        let season = self.pattern.len() as u64;
        if season > 0 {
            let part = speeds.season * (1.0 - speeds.level) * miss;
            self.pattern[(self.at % season) as usize] += part as f32;
        }
    }
}

fn grid(seasonal: bool) -> impl Iterator<Item = Speeds> {
    let seasons = if seasonal { &SEASON_WEIGHTS[..] } else { &[0.0][..] };
    LEVEL_WEIGHTS.into_iter().flat_map(move |level| {
        TREND_WEIGHTS.into_iter().flat_map(move |trend| {
            seasons.iter().map(move |season| Speeds { level, trend, season: *season })
        })
    })
}

/// Follows a series from the beginning at each speed and keeps the best one for each horizon.
fn choose(series: &Series<'_>, at: u64, horizons: &[usize]) -> Vec<Followed> {
    let known = series.seasons.iter().copied();
    let season = known.filter(|s| *s > 1 && *s <= SEASON_MAX && 2 * s <= series.len()).min();
    let season = season.unwrap_or(0);
    let last = horizons.last().copied().unwrap_or(1);
    let warm = (2 * season).max(16);
    let ticks = series.len().min(warm + last + TRIED_TICKS.max(season));
    let logs = &series.logs[series.len() - ticks..];
    if ticks <= warm {
        return Vec::new();
    }
    let begun = at - (ticks - warm) as u64;
    let first = State::begin(&logs[..warm], begun, season);
    let mut best: Vec<Option<Followed>> = vec![None; horizons.len()];
    for speeds in grid(season > 0) {
        let mut state = first.clone();
        let mut misses = vec![(0.0, 0.0); horizons.len()];
        for (place, log) in logs.iter().enumerate().skip(warm) {
            for (miss, ahead) in misses.iter_mut().zip(horizons) {
                // A long horizon changes little from tick to tick.
                if (place % (1 + ahead / 16)) == 0
                    && let Some(actual) = logs.get(place + ahead - 1)
                {
                    *miss = (miss.0 + (actual - state.expected(*ahead)).abs(), miss.1 + 1.0);
                }
            }
            state.follow(*log, speeds);
        }
        for ((best, miss), ahead) in best.iter_mut().zip(&misses).zip(horizons) {
            let miss = if miss.1 > 0.0 { miss.0 / miss.1 } else { f64::INFINITY };
            if best.as_ref().is_none_or(|best| miss <= best.miss) {
                *best = Some(Followed { ahead: *ahead, speeds, state: state.clone(), miss });
            }
        }
    }
    best.into_iter().flatten().filter(|followed| followed.miss.is_finite()).collect()
}

impl Member for Smoothing {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fit(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
        effort: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        let of = |series: &Series<'_>| {
            effort.pause();
            (series.id, choose(series, window.at.0, horizons))
        };
        self.followed = window.series.iter().map(of).collect();
        Ok(FitReport::default())
    }

    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let decay = 0.5_f64.powf(1.0 / MISS_HALF_LIFE);
        let mut one = |series: &Series<'_>| {
            let Some(all) = self.followed.get_mut(&series.id) else { return Vec::new() };
            for followed in all.iter_mut() {
                let behind = window.at.0.saturating_sub(followed.state.at) as usize;
                for back in (0..behind.min(series.len())).rev() {
                    let log = series.log(back);
                    let miss = (log - followed.state.expected(1)).abs();
                    if followed.ahead == 1 {
                        followed.miss = decay * followed.miss + (1.0 - decay) * miss;
                    }
                    followed.state.follow(log, followed.speeds);
                }
            }
            let tick = |ahead: &usize| {
                let best = all.iter().min_by_key(|followed| followed.ahead.abs_diff(*ahead))?;
                Some(around(best.state.expected(*ahead), best.miss))
            };
            horizons.iter().filter_map(tick).collect()
        };
        Ok(window.series.iter().map(&mut one).collect())
    }

    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        Ok(Box::new(self.clone()))
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        serde_json::to_vec(self)
            .map_err(|error| ForecastError::Numeric { member: NAME, reason: error.to_string() })
    }

    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        *self = serde_json::from_slice(state)
            .map_err(|error| ForecastError::State { member: NAME, reason: error.to_string() })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Past;
    use crate::ids::Tick;

    fn smooth(calls: &[f64], seasons: &[usize], to: usize) -> Vec<Quantiles> {
        let past = Past::new(calls.iter().copied());
        let series = [past.series(calls.len(), 1, seasons)];
        let at = Tick(calls.len() as u64 - 1);
        let window = Window { at, tick_ms: 1_000, epoch_ms: 0, series: &series };
        let horizons: Vec<usize> = (1..=to).collect();
        let mut member = Smoothing::default();
        member.fit(&window, &horizons, Effort::steps(0)).unwrap();
        member.forecast(&window, &horizons).unwrap().remove(0)
    }

    #[test]
    fn a_step_is_followed_and_noise_is_not() {
        let step: Vec<f64> = [vec![2.0; 60], vec![20.0; 60]].concat();
        assert!((smooth(&step, &[], 1)[0].q50 - 20.0).abs() < 0.5);
        let noise: Vec<f64> = (0..200).map(|tick| 10.0 + f64::from(tick % 2) * 4.0).collect();
        assert!((smooth(&noise, &[], 1)[0].q50 - 12.0).abs() < 1.0);
    }

    #[test]
    fn a_trend_is_carried_on_and_fades() {
        let ramp: Vec<f64> = (0..200).map(|tick| (0.02 * f64::from(tick)).exp()).collect();
        let next = smooth(&ramp, &[], 40);
        assert!(next[0].q50 > ramp[199] * 1.01, "{:?}", next[0]);
        assert!(next[39].q50 < ramp[199] * (0.02_f64 * 40.0).exp());
    }

    #[test]
    fn a_season_is_repeated_at_the_level_of_today() {
        let day = [1.0, 4.0, 16.0, 4.0];
        let calls: Vec<f64> =
            (0..120).map(|tick| day[tick % 4] * if tick >= 80 { 2.0 } else { 1.0 }).collect();
        let next = smooth(&calls, &[4], 4);
        assert!(next[2].q50 > 24.0 && next[0].q50 < 4.0, "{next:?}");
    }

    #[test]
    fn it_follows_ticks_that_came_since_the_fit_and_says_the_same_after_a_restart() {
        let calls: Vec<f64> = (0..90).map(|tick| if tick < 60 { 5.0 } else { 50.0 }).collect();
        let past = Past::new(calls.iter().copied());
        let ask = |member: &mut Smoothing, ticks: usize| {
            let series = [past.series(ticks, 1, &[])];
            let at = Tick(ticks as u64 - 1);
            let window = Window { at, tick_ms: 1_000, epoch_ms: 0, series: &series };
            if ticks == 60 {
                member.fit(&window, &[1], Effort::steps(0)).unwrap();
            }
            member.forecast(&window, &[1]).unwrap()[0][0]
        };
        let mut member = Smoothing::default();
        assert!((ask(&mut member, 60).q50 - 5.0).abs() < 0.5);
        assert!(ask(&mut member, 70).q50 > 10.0);
        let mut again = Smoothing::default();
        again.load(&member.save().unwrap()).unwrap();
        assert_eq!(ask(&mut member, 90), ask(&mut again, 90));
        assert_eq!(again.load(b"no").unwrap_err().code(), "FS-FORECAST-1");
    }

    #[test]
    fn a_series_of_a_few_ticks_is_left_to_others() {
        assert_eq!(smooth(&[1.0; 9], &[], 2), []);
    }
}
