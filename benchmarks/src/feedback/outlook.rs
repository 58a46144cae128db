//! A plain forecast that knows only what was: now, times how yesterday went on from this hour.

use foreshard_policy::config::LoopConfig;
use foreshard_policy::forecast::ensemble::Standing;
use foreshard_policy::forecast::{Forecast, Quantiles, SeriesForecast};
use foreshard_policy::ids::{SeriesKey, Tick};

/// Ticks after which a tick counts a third in what is called now.
const NOW_TICKS: f64 = 10.0;

/// Ticks on both sides over which yesterday is averaged.
const AROUND: usize = 8;

/// Errors that count as many as the newest.
const ERRORS: f64 = 200.0;

/// Nine in ten are within so many deviations on one side.
const ONE_SIDE: f64 = 1.2816;

/// What one call of a series costs, and its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) ns_per_call: f64,
    pub(crate) ns_per_row: f64,
    pub(crate) bytes_per_row: f64,
}

/// Calls of all series so far.
pub(crate) struct Outlook {
    keys: Vec<(SeriesKey, Cost)>,
    /// Sums of calls up to each tick, by series.
    sums: Vec<Vec<f64>>,
    now: Vec<f64>,
    day_ticks: usize,
    /// Mean square of the error of the mean over the horizon, in logarithms beyond that of counts.
    square: f64,
    /// What was forecast for the mean of the coming ticks, by tick it was made in.
    made: Vec<Vec<f64>>,
}

impl Outlook {
    pub(crate) fn new(keys: Vec<(SeriesKey, Cost)>, day_ticks: usize) -> Self {
        let (sums, now) = (vec![vec![0.0]; keys.len()], vec![0.0; keys.len()]);
        Self { keys, sums, now, day_ticks, square: 0.05, made: Vec::new() }
    }

    /// Mean calls in the ticks around `tick`; ticks that are not known are left out.
    fn around(&self, series: usize, tick: usize) -> f64 {
        let sums = &self.sums[series];
        let known = sums.len() - 1;
        let (from, to) = (tick.saturating_sub(AROUND).min(known), (tick + AROUND + 1).min(known));
        (sums[to] - sums[from]) / (to - from).max(1) as f64
    }

    /// Takes the calls of the next tick and answers what is expected after it.
    pub(crate) fn next(&mut self, calls: &[u32], config: &LoopConfig) -> Forecast {
        let horizon = config.horizon_ticks();
        let tick = self.sums[0].len() - 1;
        for (series, calls) in calls.iter().enumerate() {
            let last = self.sums[series][tick];
            self.sums[series].push(last + f64::from(*calls));
            let pace = (1.0 / (tick as f64 + 1.0)).max(1.0 / NOW_TICKS);
            self.now[series] += pace * (f64::from(*calls) - self.now[series]);
        }
        self.learn(tick, horizon);
        let mut means = Vec::with_capacity(self.keys.len());
        let series = (0..self.keys.len()).map(|at| {
            let ahead = self.ahead(at, tick, horizon);
            means.push(ahead.iter().sum::<f64>() / horizon as f64);
            self.series(at, &ahead)
        });
        let mut series: Vec<SeriesForecast> = series.collect();
        self.made.push(means);
        series.sort_by(|a, b| a.key.cmp(&b.key));
        let (at, tick_ms) = (Tick(tick as u64), config.tick_ms());
        Forecast { at, tick_ms, series, trusted: true, ..Forecast::default() }
    }

    fn ahead(&self, series: usize, tick: usize, horizon: usize) -> Vec<f64> {
        let now = self.now[series];
        let Some(before) = (tick + 1).checked_sub(self.day_ticks + AROUND) else {
            return vec![now; horizon];
        };
        let before = before + AROUND - 1;
        let then = self.around(series, before).max(0.2);
        let ratio = |ahead: usize| self.around(series, before + ahead).max(0.2) / then;
        (1..=horizon).map(|ahead| now * ratio(ahead).clamp(0.2, 5.0)).collect()
    }

    /// Compares what was forecast a horizon ago with what came.
    fn learn(&mut self, tick: usize, horizon: usize) {
        let Some(made) = tick.checked_sub(horizon).and_then(|at| self.made.get(at)) else { return };
        let (mut square, mut weight) = (0.0, 0.0);
        for (sums, mean) in self.sums.iter().zip(made) {
            let came = (sums[tick + 1] - sums[tick + 1 - horizon]) / horizon as f64;
            let counts = 1.0 / (mean * horizon as f64).max(1.0);
            let error = ((came + 0.1) / (mean + 0.1)).ln();
            square += mean * (error * error - counts).max(0.0);
            weight += mean;
        }
        if weight > 0.0 {
            self.square += (square / weight - self.square) / ERRORS;
        }
    }

    fn series(&self, at: usize, ahead: &[f64]) -> SeriesForecast {
        let (key, cost) = &self.keys[at];
        let horizon = ahead.len() as f64;
        let calls = ahead.iter().map(|mean| {
            let counts = 1.0 / (mean * horizon).max(1.0);
            let factor = (ONE_SIDE * (self.square + counts).sqrt()).exp();
            Quantiles { q10: mean / factor, q50: *mean, q90: mean * factor }
        });
        SeriesForecast {
            key: key.clone(),
            calls: calls.collect(),
            ns_per_call: cost.ns_per_call,
            ns_per_row: cost.ns_per_row,
            bytes_per_row: cost.bytes_per_row,
            weights: Vec::new(),
            calls_now: self.now[at],
            calls_season: self.now[at] * self.day_ticks as f64,
            standing: Standing::New,
            announced: false,
        }
    }
}
