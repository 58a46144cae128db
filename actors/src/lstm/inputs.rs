//! What the network sees of a series: standardised logarithms, the phase, and former seasons.

use foreshard_policy::forecast::Quantiles;
use foreshard_policy::ids::Tick;

use super::LstmConfig;

/// Numbers per tick of the window: level, difference to former seasons, sine and cosine of the phase.
pub(super) const PER_TICK: usize = 4;

/// Numbers per window besides the seasonal changes: change of level, level, whether a season is known.
pub(super) const PER_WINDOW: usize = 3;

/// Former seasons that are averaged.
const SEASONS_MAX: usize = 3;

/// Least deviation, in `log1p` units, that a series is divided by: keeps a constant one finite.
const DEVIATION_MIN: f64 = 0.1;

/// Most standard deviations that an input or target is away from the mean.
const FAR_MAX: f64 = 8.0;

/// One series in `log1p`, with the running sums that standardise it without looking ahead.
pub(super) struct Normal<'a> {
    counts: &'a [f64],
    logs: Vec<f64>,
    sums: Vec<f64>,
    squares: Vec<f64>,
    last: Tick,
    season: Option<usize>,
}

impl<'a> Normal<'a> {
    /// `counts` oldest first, the last one belonging to tick `last`.
    pub(super) fn new(counts: &'a [f64], last: Tick, season: Option<usize>) -> Self {
        let logs: Vec<f64> = counts.iter().map(|c| finite(*c).ln_1p()).collect();
        let mut sums = Vec::with_capacity(logs.len());
        let mut squares = Vec::with_capacity(logs.len());
        let (mut sum, mut square) = (0.0, 0.0);
        for log in &logs {
            sum += log;
            square += log * log;
            sums.push(sum);
            squares.push(square);
        }
        let season = season.filter(|season| *season > 1 && *season < logs.len());
        Self { counts, logs, sums, squares, last, season }
    }

    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Mean and deviation of everything up to and with `end`.
    fn scale(&self, end: usize) -> (f64, f64) {
        let n = (end + 1) as f64;
        let mean = self.sums[end] / n;
        let variance = (self.squares[end] / n - mean * mean).max(0.0);
        (mean, variance.sqrt().max(DEVIATION_MIN))
    }

    /// Mean over up to three former seasons of the tick `ahead` after `at`, known at `end`.
    fn seasonal(&self, at: usize, ahead: usize, end: usize) -> Option<f64> {
        let season = self.season?;
        let target = at + ahead;
        let (mut sum, mut n) = (0.0, 0.0);
        let mut back = season;
        while back <= target && n < SEASONS_MAX as f64 {
            // A horizon longer than the season must not look at ticks that are still to come.
            if target - back <= end && target - back < self.logs.len() {
                sum += self.logs[target - back];
                n += 1.0;
            }
            back += season;
        }
        (n > 0.0).then(|| sum / n)
    }

    fn phase(&self, at: usize) -> (f64, f64) {
        let Some(season) = self.season else { return (0.0, 0.0) };
        let season = season as u64;
        let behind = (self.logs.len() - 1 - at) as u64;
        // Ticks before the first one wrap round; only the phase matters.
        let tick = (self.last.0 % season + season - behind % season) % season;
        (std::f64::consts::TAU * tick as f64 / season as f64).sin_cos()
    }

    /// Back from standardised changes to counts, with the quantiles in order.
    pub(super) fn counts(&self, changes: &[f32]) -> Quantiles {
        let end = self.len() - 1;
        let (_, deviation) = self.scale(end);
        let top = self.logs.iter().copied().fold(0.0, f64::max) + 2.0;
        let mut q = [0.0; 3];
        for (q, change) in q.iter_mut().zip(changes) {
            let log = self.logs[end] + finite_or_zero(f64::from(*change)) * deviation;
            *q = log.clamp(0.0, top).exp_m1();
        }
        q.sort_by(f64::total_cmp);
        Quantiles { q10: q[0], q50: q[1], q90: q[2] }
    }
}

fn finite(count: f64) -> f64 {
    if count.is_finite() { count.max(0.0) } else { 0.0 }
}

fn finite_or_zero(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

/// The inputs of a batch, row by row; every step of the window is its own buffer.
///
/// One buffer per step, because slicing one big tensor in a loop makes the backward pass quadratic.
pub(super) struct Inputs {
    /// `window` buffers of `rows * PER_TICK`.
    pub(super) ticks: Vec<Vec<f32>>,
    /// `rows * (horizon + PER_WINDOW)`.
    pub(super) ahead: Vec<f32>,
    /// `rows * horizon` standardised changes from the last value.
    pub(super) targets: Vec<f32>,
    /// Windows in the batch.
    pub(super) rows: usize,
    horizon: usize,
}

impl Inputs {
    pub(super) fn new(config: &LstmConfig) -> Self {
        let ticks = vec![Vec::with_capacity(config.batch * PER_TICK); config.window];
        Self { ticks, ahead: Vec::new(), targets: Vec::new(), rows: 0, horizon: config.horizon }
    }

    pub(super) fn clear(&mut self) {
        self.ticks.iter_mut().for_each(Vec::clear);
        self.ahead.clear();
        self.targets.clear();
        self.rows = 0;
    }

    /// Adds the window of `series` that ends with position `end`; what lies before it is zero.
    pub(super) fn push(&mut self, series: &Normal<'_>, end: usize) {
        let (mean, deviation) = series.scale(end);
        let scaled = |value: f64| (value / deviation).clamp(-FAR_MAX, FAR_MAX) as f32;
        let width = self.ticks.len();
        for (step, row) in self.ticks.iter_mut().enumerate() {
            let Some(at) = (end + step + 1).checked_sub(width) else {
                row.extend([0.0; PER_TICK]);
                continue;
            };
            let log = series.logs[at];
            let off_season = series.seasonal(at, 0, at).map_or(0.0, |s| log - s);
            let (sin, cos) = series.phase(at);
            row.extend([scaled(log - mean), scaled(off_season), sin as f32, cos as f32]);
        }
        let now = series.logs[end];
        for ahead in 1..=self.horizon {
            let change = series.seasonal(end, ahead, end).map_or(0.0, |s| s - now);
            self.ahead.push(scaled(change));
        }
        let level_change = series.seasonal(end, 0, end).map_or(0.0, |s| now - s);
        let known = if series.season.is_some() { 1.0 } else { 0.0 };
        self.ahead.extend([scaled(level_change), (mean / FAR_MAX) as f32, known]);
        self.rows += 1;
    }

    /// Adds what came after `end`; there must be `horizon` more ticks.
    pub(super) fn push_target(&mut self, series: &Normal<'_>, end: usize) {
        let (_, deviation) = series.scale(end);
        let now = series.logs[end];
        for ahead in 1..=self.horizon {
            let change = (series.logs[end + ahead] - now) / deviation;
            self.targets.push(change.clamp(-FAR_MAX, FAR_MAX) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shows_nothing_of_what_comes_after_its_end() {
        let config = LstmConfig { window: 12, horizon: 9, ..LstmConfig::default() };
        let past: Vec<f64> = (0..40).map(|t| f64::from(t % 6)).collect();
        let mut poisoned = past.clone();
        poisoned[30..].fill(1e9);
        let inputs = |counts: &[f64]| {
            let mut inputs = Inputs::new(&config);
            inputs.push(&Normal::new(counts, Tick(39), Some(6)), 29);
            (inputs.ticks, inputs.ahead)
        };
        assert_eq!(inputs(&past), inputs(&poisoned));
    }

    #[test]
    fn a_phase_belongs_to_the_tick_and_not_to_the_length_of_the_series() {
        let counts = [1.0; 30];
        let long = Normal::new(&counts, Tick(100), Some(7));
        let short = Normal::new(&counts[..20], Tick(100), Some(7));
        assert_eq!(long.phase(29), short.phase(19));
        assert_eq!(long.phase(22), short.phase(19));
    }

    #[test]
    fn a_count_that_is_no_number_is_taken_for_zero() {
        let counts = [f64::NAN, f64::INFINITY, -3.0, 4.0, 0.0, 1.0, 2.0, 3.0];
        let series = Normal::new(&counts, Tick(7), None);
        let q = series.counts(&[f32::NAN, 0.5, -0.5]);
        assert!(q.q10 <= q.q50 && q.q50 <= q.q90 && q.q90.is_finite(), "{q:?}");
    }
}
