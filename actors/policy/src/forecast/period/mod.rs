//! Finds the numbers of ticks after which a load repeats, or that it does not.
//!
//! A season is a line in the periodogram that stands out of what red noise gives. The noise is fitted to
//! the same periodogram (an AR(1) process and white noise on top), and the line must stand out of that of
//! the differences from tick to tick too, in which neither drift nor a shift of level leaves a trace.
//! Which multiple of the line's period the load repeats after is read from the autocorrelation, which
//! must confirm it in both halves of the series. Then the season is taken off, and the next one is looked
//! for in what is left.

mod background;
mod fourier;
mod spectrum;
#[cfg(test)]
mod tests;

use spectrum::Spectrum;

/// Shortest series that is searched.
const TICKS_MIN: usize = 24;

/// Of longer series the newest so many ticks are searched.
const TICKS_MAX: usize = 1 << 17;

/// Seasons that a series must show, nearly.
const CYCLES_MIN: f64 = 2.8;

/// Chance of a line in noise that has none, over all frequencies.
const FALSE_ALARM: f64 = 1e-3;

/// Lines that are looked into beside those of the seasons that are found.
const LINES_MAX: usize = 8;

/// Autocorrelation that confirms a season, once slower and faster parts are gone.
const CORRELATION_MIN: f64 = 0.1;

/// What each half of a series must confirm of it.
const HALF_SHARE: f64 = 0.3;

/// How near to a multiple or part of a season another period is the same one.
const SAME: f64 = 0.03;

/// A season of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Period {
    /// Ticks after which the load repeats.
    pub ticks: usize,
    /// Autocorrelation of the series after so many ticks, without what is slower: the share of its
    /// variation that repeats, in `(0, 1]`.
    pub strength: f64,
    /// Chance of a line as strong as the season's in red noise without one, over all frequencies.
    pub p_value: f64,
}

/// The season of `calls` in ticks, oldest tick first; `None` if none is certain.
///
/// It is the first one of [`find_periods`].
///
/// # Cost
/// `O(n log n)`; `n = 10,000` takes a few ms.
#[must_use]
pub fn find_season(calls: &[f64]) -> Option<usize> {
    find_periods(calls, 1).first().map(|period| period.ticks)
}

/// The seasons of `series`, that of the clearest line first; empty if none is certain.
///
/// # Shape and units
/// * `series`: `n` loads in any unit, one per tick, oldest first. Logarithms of them are searched, so that
///   bursts and growth do not hide a season.
/// * `max`: seasons to look for.
///
/// A season shows at least three times in the series. Harmonics of a season are none of their own; a
/// season that is a multiple of another one, such as a week over days, is. In white noise, AR(1) processes
/// and random walks a season is found in less than one series of a hundred.
///
/// # Cost
/// `O(n log n)` for each season and once more: a few ms for 10,000 ticks. Of more than 131,072 ticks the
/// newest are searched.
///
/// # Source
/// Schulz and Mudelsee, "REDFIT: estimating red-noise spectra" (2002), for the test against AR(1) noise;
/// Vlachos, Yu and Castelli, "On periodicity detection and structural periodic similarity" (2005), for the
/// confirmation by autocorrelation.
#[must_use]
pub fn find_periods(series: &[f64], max: usize) -> Vec<Period> {
    let series = &series[series.len().saturating_sub(TICKS_MAX)..];
    if series.len() < TICKS_MIN || series.iter().any(|value| !value.is_finite()) {
        return vec![];
    }
    let loads: Vec<f64> = series.iter().map(|load| logarithm(*load)).collect();
    let mut search = Search { rest: loads.clone(), found: vec![], dismissed: vec![] };
    while search.found.len() < max && search.dismissed.len() < LINES_MAX {
        if !search.step() {
            break;
        }
    }
    let periods = search.found.into_iter().map(|Found { ticks, p_value }| Period {
        ticks: ticks.round() as usize,
        strength: correlation(&band(&loads, ticks, 1), ticks.round() as usize).clamp(0.0, 1.0),
        p_value,
    });
    periods.collect()
}

/// Whether newer loads still repeat after `ticks`; `None` if they are too few to say: less than three
/// seasons.
///
/// It is the confirmation of [`find_periods`] alone: cheap enough for every tick, but no test that a
/// season is there if none was found before.
///
/// # Cost
/// `O(n)`; 10,000 ticks take 0.1 ms.
#[must_use]
pub fn still_holds(recent: &[f64], ticks: usize) -> Option<bool> {
    let is_short = recent.len() < TICKS_MIN || (recent.len() as f64) < CYCLES_MIN * ticks as f64;
    if ticks < 2 || is_short || recent.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let loads: Vec<f64> = recent.iter().map(|load| logarithm(*load)).collect();
    Some(is_confirmed(&loads, ticks as f64))
}

/// Near zero the value itself, far from it its logarithm, with its sign.
fn logarithm(value: f64) -> f64 {
    value.signum() * value.abs().ln_1p()
}

/// A season while others are looked for.
#[derive(Clone, Copy, Debug)]
struct Found {
    ticks: f64,
    p_value: f64,
}

struct Search {
    /// The series without the seasons that were found.
    rest: Vec<f64>,
    found: Vec<Found>,
    /// Frequencies of lines that turned out to be no season's.
    dismissed: Vec<f64>,
}

impl Search {
    /// Looks into the clearest line of the rest; false if there is none.
    fn step(&mut self) -> bool {
        let known: Vec<f64> = self.found.iter().map(|found| found.ticks).collect();
        let Some(spectrum) = Spectrum::of(&self.rest, &known, &self.dismissed) else {
            return false;
        };
        let Some(line) = spectrum.clearest_line(CYCLES_MIN) else { return false };
        if line.p_value > FALSE_ALARM {
            return false;
        }
        let ticks = spectrum.period(line, CYCLES_MIN).map(|ticks| nested(&spectrum, ticks, &known));
        let Some(ticks) = ticks.filter(|ticks| self.is_season(*ticks)) else {
            self.dismissed.push(line.frequency);
            return true;
        };
        // What turns out to be half or a third of a season was its harmonic.
        self.found.retain(|found| !is_multiple(ticks, found.ticks, 2..=3));
        self.found.push(Found { ticks, p_value: line.p_value });
        self.rest = without_season(&self.rest, ticks);
        true
    }

    fn is_season(&self, ticks: f64) -> bool {
        let is_known = |found: &Found| is_multiple(found.ticks, ticks, 1..=4);
        !self.found.iter().any(is_known) && is_confirmed(&self.rest, ticks)
    }
}

/// Whether `long` is nearly `short` times a number of `times`.
fn is_multiple(long: f64, short: f64, times: std::ops::RangeInclusive<u32>) -> bool {
    let ratio = long / short;
    times.into_iter().any(|times| (ratio / f64::from(times) - 1.0).abs() < SAME)
}

/// The multiple of a known season that `ticks` is as well as exactly, or `ticks`: seasons mostly nest.
fn nested(spectrum: &Spectrum, ticks: f64, known: &[f64]) -> f64 {
    let multiples = known.iter().map(|known| known * (ticks / known).round());
    let near = multiples.filter(|multiple| {
        *multiple > 0.0
            && (multiple / ticks - 1.0).abs() < SAME
            && spectrum.agreement(*multiple) >= 0.97 * spectrum.agreement(ticks)
    });
    near.min_by(|a, b| (a - ticks).abs().total_cmp(&(b - ticks).abs())).unwrap_or(ticks)
}

/// Whether a series is like itself `ticks` ago, in both of its halves, and less so somewhat earlier or
/// later.
fn is_confirmed(series: &[f64], ticks: f64) -> bool {
    let smoothed = band(series, ticks, (ticks / 8.0) as usize);
    let lag = ticks.round() as usize;
    let all = correlation(&smoothed, lag);
    let (older, newer) = smoothed.split_at(smoothed.len() / 2);
    let newer_from =
        &smoothed[smoothed.len() - newer.len().max(lag + lag / 2).min(smoothed.len())..];
    let older_to = &smoothed[..older.len().max(lag + lag / 2).min(smoothed.len())];
    let halves = correlation(older_to, lag).min(correlation(newer_from, lag));
    let aside = (lag / 4).max(1);
    let around = correlation(&smoothed, lag - aside).max(correlation(&smoothed, lag + aside));
    all >= CORRELATION_MIN && halves >= HALF_SHARE * all && all > around
}

/// A series without what is slower than `ticks` and without what is faster than `short` ticks.
fn band(series: &[f64], ticks: f64, short: usize) -> Vec<f64> {
    let sums = prefix_sums(series);
    let fast = moving_mean(&sums, short.max(1));
    let slow = moving_mean(&sums, (ticks.round() as usize).max(2));
    fast.into_iter().zip(slow).map(|(fast, slow)| fast - slow).collect()
}

fn prefix_sums(series: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let sums = series.iter().map(|value| {
        sum += value;
        sum
    });
    std::iter::once(0.0).chain(sums).collect()
}

/// Means of `width` values around each; at the ends of the nearest such.
fn moving_mean(sums: &[f64], width: usize) -> Vec<f64> {
    let ticks = sums.len() - 1;
    let width = width.min(ticks);
    (0..ticks)
        .map(|tick| {
            let from = tick.saturating_sub(width / 2).min(ticks - width);
            (sums[from + width] - sums[from]) / width as f64
        })
        .collect()
}

/// Correlation of a series with itself `lag` ticks ago; zero if nothing varies.
fn correlation(series: &[f64], lag: usize) -> f64 {
    let Some(later) = series.get(lag..) else { return 0.0 };
    let (mut both, mut first, mut second) = (0.0, 0.0, 0.0);
    for (a, b) in series.iter().zip(later) {
        both += a * b;
        first += a * a;
        second += b * b;
    }
    let power = (first * second).sqrt();
    if power > 1e-12 { both / power } else { 0.0 }
}

/// What is left of a series when the mean of each phase of a season is taken off.
fn without_season(series: &[f64], ticks: f64) -> Vec<f64> {
    let level = moving_mean(&prefix_sums(series), (ticks.round() as usize).max(2));
    let phases = (ticks.round() as usize).max(1);
    let phase = |tick: usize| {
        let turns = tick as f64 / ticks;
        (((turns - turns.floor()) * phases as f64) as usize).min(phases - 1)
    };
    let mut means = vec![(0.0, 0_u32); phases];
    for (tick, (value, level)) in series.iter().zip(&level).enumerate() {
        let (sum, count) = &mut means[phase(tick)];
        *sum += value - level;
        *count += 1;
    }
    let mean = |tick: usize| {
        let (sum, count) = means[phase(tick)];
        sum / f64::from(count.max(1))
    };
    series.iter().enumerate().map(|(tick, value)| value - mean(tick)).collect()
}
