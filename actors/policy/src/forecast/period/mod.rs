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
mod refine;
mod rest;
mod spectrum;
#[cfg(test)]
mod tests;

use rest::{band, correlation, without_outliers, without_season, without_shifts};
use spectrum::Spectrum;

/// Shortest series that is searched.
const TICKS_MIN: usize = 24;

/// Of longer series the newest so many ticks are searched.
const TICKS_MAX: usize = 1 << 17;

/// Seasons that a series must show, nearly.
const CYCLES_MIN: f64 = 2.8;

/// Chance of a line in noise that has none, over all frequencies.
const FALSE_ALARM: f64 = 1e-4;

/// Lines that are looked into beside those of the seasons that are found.
const LINES_MAX: usize = 8;

/// Autocorrelation that confirms a season, once slower and faster parts are gone.
const CORRELATION_MIN: f64 = 0.1;

/// What each half of a series must confirm of it.
const HALF_SHARE: f64 = 0.3;

/// How near to a multiple or part of a season another period is the same one.
const SAME: f64 = 0.06;

/// How near to a multiple of a known season a longer one may be taken for it.
const NEST: f64 = 0.03;

/// Chance of a further line in noise: what a season leaves behind when it changes is no noise.
const FALSE_ALARM_FURTHER: f64 = 2e-5;

/// How near to such a sum or difference a frequency is one, in cycles over the whole series.
const MIXED_CYCLES: f64 = 1.5;

/// Seasons in a series below which its spectrum is too coarse to measure one.
const CYCLES_COARSE: f64 = 16.0;

/// Part of the best multiple's autocorrelation that a smaller one needs to be the season.
const SMALLER_SHARE: f64 = 0.6;

/// Autocorrelation by which a period must be better than the one that waves are measured by.
const FAR_BETTER: f64 = 0.1;

/// Part of a period to which such a one is looked for.
const SHARPEST: usize = 256;

/// Mean deviations from the median that a load may be away.
const OUTLIER: f64 = 3.0;

/// Shifts of level that are taken off.
const SHIFTS_MAX: usize = 2;

/// Ticks on each side of a shift of level, at least.
const SHIFT_TICKS: usize = 24;

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
    let loads = searchable(series);
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
    Some(is_confirmed(&searchable(recent), ticks as f64))
}

/// Loads as they are searched: near zero the value itself, far from it its logarithm, with its sign;
/// outliers drawn in.
fn searchable(loads: &[f64]) -> Vec<f64> {
    let logarithm = |load: &f64| load.signum() * load.abs().ln_1p();
    let mut loads: Vec<f64> = loads.iter().map(logarithm).collect();
    without_outliers(&mut loads, OUTLIER);
    loads
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
        let longest = known.iter().copied().fold(SHIFT_TICKS as f64, f64::max);
        self.rest = without_shifts(&self.rest, longest.round() as usize, SHIFTS_MAX);
        let Some(spectrum) = Spectrum::of(&self.rest, &known, &self.dismissed) else {
            return false;
        };
        let Some(line) = spectrum.clearest_line(CYCLES_MIN) else { return false };
        let chance_max = if known.is_empty() { FALSE_ALARM } else { FALSE_ALARM_FURTHER };
        if line.p_value > chance_max {
            return false;
        }
        if self.is_mixed(line.frequency) {
            self.dismissed.push(line.frequency);
            return true;
        }
        let ticks = self.period(&spectrum, line.frequency);
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

    /// The period that a line belongs to: its own or a multiple of it.
    fn period(&self, spectrum: &Spectrum, frequency: f64) -> Option<f64> {
        let base = 1.0 / frequency;
        let likely = spectrum.multiples(frequency, CYCLES_MIN);
        let short = (base / 8.0) as usize;
        let repeats: Vec<f64> = (1..=*likely.last()?)
            .map(|times| base * times as f64)
            .map(|ticks| correlation(&band(&self.rest, ticks, short), ticks.round() as usize))
            .collect();
        let best = likely.iter().map(|times| repeats[times - 1]).fold(0.0, f64::max);
        // Beside another season nothing repeats quite; without what is slower the shorter one may.
        let times = 1 + repeats.iter().position(|it| *it >= SMALLER_SHARE * best)?;
        let (ticks, slack) = (base * times as f64, spectrum.slack(frequency, times));
        let measured = if self.rest.len() as f64 >= CYCLES_COARSE * ticks {
            spectrum.measured(ticks - slack, ticks + slack)
        } else {
            self.sharpened(
                refine::refined(&self.rest, (ticks - slack).max(2.0), ticks + slack),
                slack,
            )
        };
        (measured >= 2.0).then(|| self.nested(spectrum, measured))
    }

    /// The period near one after which the series repeats far better, or that one: short rushes are not
    /// measured well by waves.
    fn sharpened(&self, ticks: f64, slack: f64) -> f64 {
        let fast = band(&self.rest, ticks, 1);
        let (from, to) = ((ticks - slack).max(2.0) as usize, (ticks + slack).ceil() as usize);
        let lags = (from..=to).step_by((to / SHARPEST).max(1));
        let repeats = correlation(&fast, ticks.round() as usize);
        let best =
            lags.map(|lag| (lag, correlation(&fast, lag))).max_by(|a, b| a.1.total_cmp(&b.1));
        best.filter(|(_, best)| *best > repeats + FAR_BETTER).map_or(ticks, |(lag, _)| lag as f64)
    }

    /// The multiple of a known season that `ticks` may be as well, or `ticks`: seasons mostly nest.
    fn nested(&self, spectrum: &Spectrum, ticks: f64) -> f64 {
        let multiples = self.found.iter().map(|found| found.ticks * (ticks / found.ticks).round());
        let near = multiples.filter(|multiple| {
            *multiple > 0.0
                && (multiple / ticks - 1.0).abs() < NEST
                && spectrum.agreement(*multiple) >= 0.97 * spectrum.agreement(ticks)
        });
        near.min_by(|a, b| (a - ticks).abs().total_cmp(&(b - ticks).abs())).unwrap_or(ticks)
    }

    /// Whether a frequency is the sum or the difference of two seasons' harmonics: what the logarithm of
    /// their sum brings in.
    fn is_mixed(&self, frequency: f64) -> bool {
        let is_near =
            |other: f64| (frequency - other).abs() * (self.rest.len() as f64) < MIXED_CYCLES;
        let harmonics = |ticks: f64| [1.0, 2.0, 3.0].map(|wave| wave / ticks);
        let ticks: Vec<f64> = self.found.iter().map(|found| found.ticks).collect();
        let pairs = ticks.iter().flat_map(|one| ticks.iter().map(move |other| (*one, *other)));
        pairs.filter(|(one, other)| one < other).any(|(one, other)| {
            let sums = harmonics(one).map(|a| harmonics(other).map(|b| (a + b, (a - b).abs())));
            sums.into_iter().flatten().any(|(sum, difference)| is_near(sum) || is_near(difference))
        })
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
