//! How far the frequencies of a series stand out of its noise, and which period they make together.

use super::background::Background;
use super::fourier::Fourier;

/// Ratio of power to noise below which a frequency says nothing.
const RATIO_MIN: f64 = 6.0;

/// Part of the best multiple's autocorrelation that another one needs to be looked at.
const LIKELY_SHARE: f64 = 0.6;

/// Multiples of a line's period that may be the season.
const MULTIPLES_MAX: usize = 16;

/// Seasons at most over which a period is measured.
const REPEATS_MAX: usize = 64;

/// Part of a season's frequency around each harmonic that belongs to it: what it changes by.
const SIDE_SHARE: f64 = 0.06;

/// The same, in cycles over the whole series.
const SIDE_CYCLES: f64 = 2.5;

/// Periods that are tried to find the best.
const TRIALS: usize = 96;

/// A frequency that stands out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    /// Cycles per tick.
    pub(super) frequency: f64,
    /// Chance that noise stands out as much at any frequency.
    pub(super) p_value: f64,
}

/// Power over noise by frequency.
#[derive(Debug)]
pub(super) struct Spectrum {
    ticks: usize,
    length: usize,
    /// At `position / length` cycles per tick; zero where it belongs to known seasons.
    ratios: Vec<f64>,
    /// Autocorrelation of what stands out.
    correlations: Vec<f64>,
}

impl Spectrum {
    /// The spectrum of a series apart from what belongs to known periods and from frequencies near
    /// `dismissed`; `None` if the series is constant or too short.
    pub(super) fn of(series: &[f64], known: &[f64], dismissed: &[f64]) -> Option<Self> {
        let ticks = series.len();
        // Long enough for autocorrelations up to the longest season.
        let length = (ticks + ticks * 2 / 5).next_power_of_two();
        let fourier = Fourier::new(length);
        let (level, steps) = (detrended(series), differences(series));
        let (of_level, of_steps) = fourier.powers(&level, &steps);
        let is_counted = |position: usize| {
            let frequency = position as f64 / length as f64;
            !known.iter().any(|period| is_harmonic(frequency, *period, ticks))
                && !dismissed.iter().any(|line| (frequency - line).abs() * (ticks as f64) < 1.5)
        };
        let mut powers = vec![0.0; of_level.len()];
        for (position, power) in powers.iter_mut().enumerate().skip(1) {
            let sine = (std::f64::consts::PI * position as f64 / length as f64).sin();
            let integrated = of_steps[position] / (4.0 * sine * sine);
            *power = of_level[position].min(integrated) / ticks as f64;
        }
        if powers.iter().sum::<f64>() <= 1e-9 * length as f64 {
            return None;
        }
        let background = Background::fit(&powers, is_counted, length, ticks)?;
        let ratio = |(position, power): (usize, &f64)| {
            let is_counted = position > 0 && is_counted(position);
            if is_counted { power / background.power(position as f64 / length as f64) } else { 0.0 }
        };
        let ratios: Vec<f64> = powers.iter().enumerate().map(ratio).collect();
        let outstanding = ratios.iter().map(|ratio| (ratio - RATIO_MIN).max(0.0));
        let correlations = fourier.autocovariance(&outstanding.collect::<Vec<_>>());
        Some(Self { ticks, length, ratios, correlations })
    }

    /// The frequency that stands out most, of those that show at least `cycles_min` times.
    pub(super) fn clearest_line(&self, cycles_min: f64) -> Option<Line> {
        let from = (cycles_min * self.length as f64 / self.ticks as f64).ceil() as usize;
        let all = self.ratios.iter().enumerate().skip(from);
        let (position, ratio) = all.max_by(|a, b| a.1.total_cmp(b.1))?;
        // Between the frequencies of a series' length others are tried, half of which count as new.
        let p_value = (self.ticks as f64 * (-ratio).exp()).min(1.0);
        Some(Line { frequency: self.summit(position) / self.length as f64, p_value })
    }

    /// Where the parabola through a position and its neighbours is highest.
    fn summit(&self, position: usize) -> f64 {
        let at = |position: usize| self.ratios.get(position).copied().unwrap_or(0.0);
        let (before, here, after) = (at(position - 1), at(position), at(position + 1));
        let bend = before - 2.0 * here + after;
        let shift = if bend < 0.0 { 0.5 * (before - after) / bend } else { 0.0 };
        position as f64 + shift.clamp(-0.5, 0.5)
    }

    /// The multiples of a line's period after which most of what stands out repeats, ascending.
    pub(super) fn multiples(&self, frequency: f64, cycles_min: f64) -> Vec<usize> {
        let longest = 1.02 * self.ticks as f64 / cycles_min;
        let peaks: Vec<f64> = (1..=MULTIPLES_MAX)
            .take_while(|times| *times as f64 / frequency <= longest)
            .map(|times| self.peak(times as f64 / frequency, self.slack(frequency, times)))
            .collect();
        let best = peaks.iter().copied().fold(0.0, f64::max);
        let likely = peaks.iter().enumerate().filter(|(_, peak)| **peak >= LIKELY_SHARE * best);
        likely.map(|(position, _)| position + 1).collect()
    }

    /// By how many ticks a multiple of a line's period may be wrong: the line's frequency is known to a
    /// part of one cycle in the whole series.
    pub(super) fn slack(&self, frequency: f64, times: usize) -> f64 {
        (0.5 * times as f64 / (frequency * frequency * self.ticks as f64)).max(0.5)
    }

    /// The period of `low` to `high` ticks after which most repeats.
    pub(super) fn measured(&self, low: f64, high: f64) -> f64 {
        let tried = (0..=TRIALS).map(|trial| low + (high - low) * trial as f64 / TRIALS as f64);
        tried
            .map(|period| (period, self.agreement(period)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(low, |(period, _)| period)
    }

    /// The highest autocorrelation near a lag.
    fn peak(&self, lag: f64, slack: f64) -> f64 {
        let (from, to) = ((lag - slack).floor() as usize, (lag + slack).ceil() as usize);
        let lags = from.max(1)..=to.min(self.correlations.len() - 1);
        // Of a finite series fewer values have one so much later.
        let all = lags
            .map(|lag| self.correlations[lag] / (1.0 - lag as f64 / self.ticks as f64).max(0.1));
        all.fold(0.0, f64::max)
    }

    /// Autocorrelation of what stands out after one, two, three .. `period`s, summed up.
    pub(super) fn agreement(&self, period: f64) -> f64 {
        let repeats = ((0.8 * self.ticks as f64 / period) as usize).clamp(1, REPEATS_MAX);
        (1..=repeats).map(|times| self.correlation(times as f64 * period)).sum()
    }

    fn correlation(&self, lag: f64) -> f64 {
        let at = |lag: usize| self.correlations.get(lag).copied().unwrap_or(0.0);
        let (whole, part) = (lag.floor() as usize, lag.fract());
        at(whole) * (1.0 - part) + at(whole + 1) * part
    }
}

/// Whether a frequency is a harmonic of a period, or what one becomes if the season changes.
fn is_harmonic(frequency: f64, period: f64, ticks: usize) -> bool {
    let nearest = (frequency * period).round();
    let away = (frequency - nearest / period).abs();
    nearest >= 1.0 && away <= (SIDE_CYCLES / ticks as f64).max(SIDE_SHARE / period)
}

/// A series without its mean and its trend.
fn detrended(series: &[f64]) -> Vec<f64> {
    let ticks = series.len() as f64;
    let middle = (ticks - 1.0) / 2.0;
    let mean = series.iter().sum::<f64>() / ticks;
    let (mut slope, mut power) = (0.0, 0.0);
    for (tick, value) in series.iter().enumerate() {
        let away = tick as f64 - middle;
        slope += away * (value - mean);
        power += away * away;
    }
    let slope = slope / power.max(1.0);
    let line = |tick: usize| mean + slope * (tick as f64 - middle);
    series.iter().enumerate().map(|(tick, value)| value - line(tick)).collect()
}

/// Steps from tick to tick, without their mean.
fn differences(series: &[f64]) -> Vec<f64> {
    let mean = (series[series.len() - 1] - series[0]) / (series.len() - 1) as f64;
    series.windows(2).map(|pair| pair[1] - pair[0] - mean).collect()
}
