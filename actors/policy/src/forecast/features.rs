//! What regressions see of a series: one row of numbers per origin and horizon.
//!
//! All but the first are differences to the last value or to a season ago, so that rows of series
//! of very different loads can be learned from together. What is not known is zero.

use super::{Series, Window};

/// Single ticks before the last one.
const LAGS: [usize; 18] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22, 24];

/// Ticks of the short means.
const MEANS: [usize; 6] = [3, 6, 12, 30, 60, 180];

/// Seasons that a row has room for.
pub(super) const SEASONS_MAX: usize = 2;

/// Numbers per season.
const PER_SEASON: usize = 17;

/// Sines and cosines of the day and of the week.
const HARMONICS: usize = 3;

/// Numbers of one row.
pub(super) const WIDTH: usize =
    1 + LAGS.len() + MEANS.len() + SEASONS_MAX * PER_SEASON + 4 * HARMONICS;

const DAY_MS: i64 = 86_400_000;

/// Thursday, 1 January 1970, was the fourth day of its week.
const WEEK_SHIFT_MS: i64 = 3 * DAY_MS;

/// Where the rows of one series get their clock from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    at: u64,
    tick_ms: u64,
    epoch_ms: i64,
    /// Whether days and weeks are known well enough to be learned from.
    days: bool,
    weeks: bool,
}

impl Clock {
    /// The clock of a window, for a series of `ticks` ticks.
    pub(super) fn new(window: &Window<'_>, ticks: usize) -> Self {
        let span_ms = (ticks as i64).saturating_mul(window.tick_ms as i64);
        Self {
            at: window.at.0,
            tick_ms: window.tick_ms,
            epoch_ms: window.epoch_ms,
            // A tick of a day or more has no hours.
            days: span_ms >= 3 * DAY_MS && (window.tick_ms as i64) < DAY_MS,
            weeks: span_ms >= 21 * DAY_MS && (window.tick_ms as i64) < 7 * DAY_MS,
        }
    }

    /// The same clock `ticks` earlier.
    pub(super) fn before(self, ticks: usize) -> Self {
        Self { at: self.at.saturating_sub(ticks as u64), ..self }
    }

    fn ms(&self, ahead: usize) -> i64 {
        self.epoch_ms + (self.at + ahead as u64).saturating_mul(self.tick_ms) as i64
    }
}

/// Appends the row for the tick `ahead` ticks after the last one of `series`.
pub(super) fn push_row(row: &mut Vec<f32>, series: &Series<'_>, clock: Clock, ahead: usize) {
    let now = series.log(0);
    row.push(now as f32);
    let lag = |back: usize| if back < series.len() { (series.log(back) - now) as f32 } else { 0.0 };
    row.extend(LAGS.map(lag));
    row.extend(MEANS.map(|ticks| (series.mean(0, ticks) - now) as f32));
    let mut seasons = [0; SEASONS_MAX];
    seasons.iter_mut().zip(series.seasons).for_each(|(slot, season)| *slot = *season);
    seasons.sort_unstable_by_key(|season| if *season == 0 { usize::MAX } else { *season });
    for season in seasons {
        push_season(row, series, season, ahead, clock);
    }
    let circle = |known: bool, ms: i64, length: i64, row: &mut Vec<f32>| {
        let phase = ms.rem_euclid(length) as f64 / length as f64 * std::f64::consts::TAU;
        for harmonic in 1..=HARMONICS {
            let (sin, cos) = (phase * harmonic as f64).sin_cos();
            row.extend(if known { [sin as f32, cos as f32] } else { [0.0; 2] });
        }
    };
    circle(clock.days, clock.ms(ahead), DAY_MS, row);
    circle(clock.weeks, clock.ms(ahead) + WEEK_SHIFT_MS, 7 * DAY_MS, row);
}

/// What a season says about the tick `ahead`: values at the target's time one and two seasons ago,
/// how the level changed since, how the season goes on from here, and both smoothed over the last
/// three seasons.
fn push_season(row: &mut Vec<f32>, s: &Series<'_>, season: usize, ahead: usize, clock: Clock) {
    let ago = if season > 0 { ahead.div_ceil(season) * season } else { 0 };
    if season == 0 || ago + 1 >= s.len() {
        row.extend([0.0; PER_SEASON]);
        return;
    }
    let back = ago - ahead;
    let now = s.log(0);
    let known = |back: usize| (back < s.len()).then(|| s.log(back));
    let at = |back: usize| known(back).unwrap_or(now);
    let change = |from: usize, to: usize| match (known(from), known(to)) {
        (Some(from), Some(to)) => to - from,
        _ => 0.0,
    };
    let half = (season / 96).min(30);
    let smooth = |back: usize| {
        let newest = back.saturating_sub(half);
        s.mean(newest, back + half + 1 - newest)
    };
    let years: Vec<usize> =
        (0..3).map(|n| n * season).filter(|n| ago + n + half < s.len()).collect();
    let mean = |of: &dyn Fn(usize) -> f64| {
        years.iter().map(|n| of(*n)).sum::<f64>() / years.len().max(1) as f64
    };
    let profile = mean(&|n| smooth(back + n));
    let profile_now = mean(&|n| smooth(ago + n));
    let wide = (season / 8).max(1);
    let level = |ticks: usize| s.mean(0, ticks) - s.mean(ago, ticks);
    let phase = (clock.at + ahead as u64) % season as u64;
    let phase = phase as f64 / season as f64 * std::f64::consts::TAU;
    row.extend(
        [
            at(back) - now,
            at(back + 1) - now,
            at(back.saturating_sub(1)) - now,
            at(back + season) - now,
            now - at(ago),
            change(ago, back),
            change(ago + season, back + season),
            level(6),
            level(wide),
            level(season),
            profile - now,
            profile - profile_now,
            s.mean(0, season) - now,
            phase.sin(),
            phase.cos(),
            (2.0 * phase).sin(),
            (2.0 * phase).cos(),
        ]
        .map(|value| value as f32),
    );
}
