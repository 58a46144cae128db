//! What the network sees of a series: standardised logarithms, phases, and former seasons.
//!
//! A [`View`] is a series as it was at the end of one tick; it cannot show anything later. All
//! values are differences or phases, divided by the deviation of the series' own past, so that one
//! network serves quiet and busy series alike.

use std::f64::consts::TAU;

use foreshard_policy::forecast::{Series, Window};

/// Numbers per tick, for the recurrent cell.
pub(super) const PER_TICK: usize = 14;

/// Numbers per horizon, for its head.
pub(super) const PER_HORIZON: usize = LAGS.len() + MEANS.len() + 6 + STATIC + 12 + SEASONS * 20;

/// Ticks back that the heads see.
const LAGS: [usize; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 20, 24];

/// Newest ticks whose means the heads see.
const MEANS: [usize; 6] = [3, 6, 12, 30, 60, 180];

/// Seasons of a series that are looked at, the strongest.
const SEASONS: usize = 2;

/// Features of a series that do not change, as far as they are known.
const STATIC: usize = 4;

/// Former seasons that are averaged, few and many.
const FEW: usize = 3;
const MANY: usize = 7;

/// Ticks over which the mean change from tick to tick is taken, short and long.
const RESTLESS: [usize; 2] = [8, 32];

/// Fewest ticks that mean and deviation are taken over, and the values that a deviation is estimated
/// from: more cost time for each tick of each window.
const SCALE_TICKS_MIN: usize = 256;
const SCALE_VALUES: usize = 64;

/// Least deviation, in `log1p` units, that a series is divided by: keeps a constant one finite.
const DEVIATION_MIN: f64 = 0.05;

/// Most deviations that an input is away from zero.
const FAR_MAX: f64 = 8.0;

/// Logarithm by which a forecast may exceed the newest value and the usual range.
const RISE_MAX: f64 = 2.0;

/// Days and weeks that a series must show before the calendar is looked at: fewer are no rhythm yet.
const TIMES_MIN: i64 = 3;

const DAY_MS: i64 = 24 * 3_600 * 1_000;
const WEEK_MS: i64 = 7 * DAY_MS;

/// One series as it was at the end of one tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    series: Series<'a>,
    /// Of the newest tick.
    tick: u64,
    clock_ms: i64,
    tick_ms: i64,
    now: f64,
    mean: f64,
    deviation: f64,
}

impl<'a> View<'a> {
    /// `series` of `window`, `back` ticks before the window's last one.
    pub(super) fn new(window: &Window<'_>, series: &Series<'a>, back: usize) -> Self {
        let series = series.before(back);
        let tick_ms = i64::try_from(window.tick_ms).unwrap_or(i64::MAX);
        let before = i64::try_from(back).unwrap_or(i64::MAX).saturating_mul(tick_ms);
        let (mean, deviation) = scale(&series);
        Self {
            series,
            tick: window.at.0.wrapping_sub(back as u64),
            clock_ms: window.clock_ms(0).saturating_sub(before),
            tick_ms,
            now: series.log(0),
            mean,
            deviation,
        }
    }

    /// What the recurrent cell sees of the newest tick: [`PER_TICK`] numbers.
    pub(super) fn tick(&self, out: &mut Vec<f32>) {
        let start = out.len();
        let series = &self.series;
        self.push(out, self.now - self.mean);
        self.push(out, self.now - series.log(1));
        self.push(out, series.mean(0, 6) - series.mean(0, 60));
        self.push(out, self.restless(RESTLESS[0]));
        for place in 0..SEASONS {
            let season = self.season(place);
            let change = season.map_or(0.0, |season| self.now - series.log(season));
            self.push(out, change);
            self.phase(out, season, 0, 1);
        }
        self.calendar(out, 0, 1);
        debug_assert_eq!(out.len() - start, PER_TICK);
    }

    /// What the head of a horizon sees: [`PER_HORIZON`] numbers.
    pub(super) fn ahead(&self, horizon: usize, out: &mut Vec<f32>) {
        let start = out.len();
        let series = &self.series;
        for lag in LAGS {
            self.push(out, series.log(lag) - self.now);
        }
        for ticks in MEANS {
            self.push(out, series.mean(0, ticks) - self.now);
        }
        self.push(out, self.now - self.mean);
        for ticks in RESTLESS {
            self.push(out, self.restless(ticks));
        }
        // The deviation of a Poisson count, in logarithms.
        self.push(out, (-0.5 * series.mean(0, 6)).exp());
        out.extend([(self.mean / 4.0) as f32, self.deviation.ln() as f32]);
        let fixed = series.features.iter().copied().chain(std::iter::repeat(0.0));
        out.extend(fixed.take(STATIC).map(|x| if x.is_finite() { x } else { 0.0 }));
        self.calendar(out, horizon, 3);
        for place in 0..SEASONS {
            let season = self.season(place);
            self.phase(out, season, horizon, 3);
            self.seasonal(out, season, horizon);
        }
        debug_assert_eq!(out.len() - start, PER_HORIZON);
    }

    /// Logarithm `ticks` after the newest tick less the newest, in deviations; `after` is the series
    /// with those ticks.
    pub(super) fn target(&self, after: &Series<'_>) -> f32 {
        ((after.log(0) - self.now) / self.deviation) as f32
    }

    /// Back from a change in deviations to calls.
    pub(super) fn calls(&self, change: f32) -> f64 {
        let change = if change.is_finite() { f64::from(change) } else { 0.0 };
        let top = self.now.max(self.mean + 3.0 * self.deviation) + RISE_MAX;
        (self.now + change * self.deviation).clamp(0.0, top).exp_m1()
    }

    fn push(&self, out: &mut Vec<f32>, difference: f64) {
        out.push((difference / self.deviation).clamp(-FAR_MAX, FAR_MAX) as f32);
    }

    /// The season at `place`, once a whole one is known.
    fn season(&self, place: usize) -> Option<usize> {
        let season = self.series.seasons.get(place).copied();
        season.filter(|season| *season > 1 && *season < self.series.len())
    }

    /// Mean change from tick to tick, whichever direction.
    fn restless(&self, ticks: usize) -> f64 {
        let change = |back| (self.series.log(back) - self.series.log(back + 1)).abs();
        (0..ticks).map(change).sum::<f64>() / ticks as f64
    }

    /// Sine and cosine of the first `harmonics` of the phase `ahead` ticks after the newest.
    fn phase(&self, out: &mut Vec<f32>, season: Option<usize>, ahead: usize, harmonics: usize) {
        let Some(season) = season else {
            return out.extend(std::iter::repeat_n(0.0, 2 * harmonics));
        };
        let tick = self.tick.wrapping_add(ahead as u64) % season as u64;
        waves(out, tick as f64 / season as f64, harmonics);
    }

    /// Hour of the day and day of the week, once they are known.
    fn calendar(&self, out: &mut Vec<f32>, ahead: usize, harmonics: usize) {
        let known_ms = (self.series.len() as i64).saturating_mul(self.tick_ms);
        let ahead_ms = (ahead as i64).saturating_mul(self.tick_ms);
        let at_ms = self.clock_ms.saturating_add(ahead_ms);
        for (length_ms, ticks_min) in [(DAY_MS, 4), (WEEK_MS, 7)] {
            if self.tick_ms.saturating_mul(ticks_min) > length_ms
                || known_ms < TIMES_MIN * length_ms
            {
                out.extend(std::iter::repeat_n(0.0, 2 * harmonics));
                continue;
            }
            waves(out, at_ms.rem_euclid(length_ms) as f64 / length_ms as f64, harmonics);
        }
    }

    /// The target's time in former seasons, against the newest tick and against its own time.
    fn seasonal(&self, out: &mut Vec<f32>, season: Option<usize>, ahead: usize) {
        const PER_SEASON: usize = 14;
        let Some(season) = season else {
            return out.extend(std::iter::repeat_n(0.0, PER_SEASON));
        };
        let series = &self.series;
        // Seasons back to the newest one in which the target's time is known, and that time.
        let back = ahead.div_ceil(season) * season;
        let target = back - ahead;
        let known = |back: usize| if back < series.len() { series.log(back) } else { self.now };
        let reach = (season / 96).max(1);
        let smooth = |back: usize| series.mean(back.saturating_sub(reach), 2 * reach + 1);
        let mean = |times: usize, of: &dyn Fn(usize) -> f64| {
            let fits = |time: &usize| *time == 0 || back + time * season < series.len();
            let (sum, n) = (0..times)
                .filter(fits)
                .fold((0.0, 0.0), |(sum, n), time| (sum + of(time * season), n + 1.0));
            sum / n
        };
        let differences = [
            known(target) - self.now,
            known(target + 1) - self.now,
            known(target.saturating_sub(1)) - self.now,
            known(target + season) - self.now,
            known(target + 2 * season) - self.now,
            known(back) - self.now,
            known(back + season) - self.now,
            smooth(target) - self.now,
            mean(FEW, &|time| smooth(target + time)) - self.now,
            mean(FEW, &|time| smooth(target + time) - smooth(back + time)),
            mean(MANY, &|time| smooth(target + time)) - self.now,
            mean(MANY, &|time| smooth(target + time) - smooth(back + time)),
            series.mean(0, season) - self.now,
        ];
        differences.iter().for_each(|difference| self.push(out, *difference));
        out.push(1.0);
    }
}

fn waves(out: &mut Vec<f32>, phase: f64, harmonics: usize) {
    for harmonic in 1..=harmonics {
        let (sin, cos) = (TAU * phase * harmonic as f64).sin_cos();
        out.extend([sin as f32, cos as f32]);
    }
}

/// Mean and deviation of the newest ticks: at least two of the longest season.
///
/// The deviation is that of values spread evenly over those ticks, and over the phases of any season.
fn scale(series: &Series<'_>) -> (f64, f64) {
    let longest = series.seasons.iter().take(SEASONS).copied().max().unwrap_or(0);
    let ticks = (2 * longest).max(SCALE_TICKS_MIN).min(series.len()).max(1);
    let mean = series.mean(0, ticks);
    let golden = 0.618_033_988_749_894_9;
    let values = SCALE_VALUES.min(ticks);
    let square = |value: usize| {
        let back = if values == ticks {
            value
        } else {
            ((value as f64 * golden).fract() * ticks as f64) as usize
        };
        (series.log(back) - mean).powi(2)
    };
    let variance = (0..values).map(square).sum::<f64>() / values as f64;
    (mean, variance.sqrt().max(DEVIATION_MIN))
}

#[cfg(test)]
mod tests {
    use foreshard_policy::forecast::Past;
    use foreshard_policy::ids::Tick;

    use super::*;

    fn window<'a>(at: u64, series: &'a [Series<'a>]) -> Window<'a> {
        Window { at: Tick(at), tick_ms: 3_600_000, epoch_ms: 7 * 3_600_000, series }
    }

    fn numbers(view: &View<'_>) -> Vec<f32> {
        let mut out = Vec::new();
        view.tick(&mut out);
        [1, 5, 9, 30].into_iter().for_each(|horizon| view.ahead(horizon, &mut out));
        assert_eq!(out.len(), PER_TICK + 4 * PER_HORIZON);
        assert!(out.iter().all(|number| number.is_finite()), "{out:?}");
        out
    }

    #[test]
    fn a_view_shows_nothing_of_what_came_later() {
        let calls = |t: usize| ((t * 7) % 13 + t % 6) as f64;
        let past = Past::new((0..600).map(calls));
        let poisoned = Past::new((0..600).map(|t| if t <= 499 { calls(t) } else { 1e9 }));
        let [whole, poisoned] = [&past, &poisoned].map(|past| past.series(600, 1, &[6, 24]));
        let short = past.series(500, 1, &[6, 24]);
        let then = numbers(&View::new(&window(499, &[]), &short, 0));
        assert_eq!(then, numbers(&View::new(&window(599, &[]), &whole, 100)));
        assert_eq!(then, numbers(&View::new(&window(599, &[]), &poisoned, 100)));
    }

    #[test]
    fn a_phase_belongs_to_the_tick_and_not_to_the_length_of_the_series() {
        let past = Past::new((0..400).map(|_| 1.0));
        let phase = |at: u64, known: usize, ahead: usize| {
            let mut out = Vec::new();
            let series = past.series(known, 1, &[7]);
            View::new(&window(at, &[]), &series, 0).phase(&mut out, Some(7), ahead, 2);
            out
        };
        assert_eq!(phase(350, 300, 0), phase(350, 200, 0));
        assert_eq!(phase(350, 300, 3), phase(353, 300, 0));
        assert_ne!(phase(350, 300, 3), phase(350, 300, 0));
    }

    #[test]
    fn hours_and_weekdays_count_once_they_were_seen_three_times() {
        let past = Past::new((0..600).map(|_| 1.0));
        let calendar = |known: usize, ahead: usize| {
            let mut out = Vec::new();
            let series = past.series(known, 1, &[]);
            View::new(&window(599, &[]), &series, 0).calendar(&mut out, ahead, 1);
            out
        };
        assert_eq!(calendar(71, 0), [0.0; 4]);
        assert!(calendar(72, 0)[..2] != [0.0; 2] && calendar(72, 0)[2..] == [0.0; 2]);
        assert_eq!(calendar(600, 0)[..2], calendar(600, 24)[..2]);
        assert_ne!(calendar(600, 0)[2..], calendar(600, 24)[2..]);
    }

    #[test]
    fn calls_come_back_from_the_change_that_was_the_target() {
        let past = Past::new((0..300).map(|t| f64::from(t % 10)));
        let whole = past.series(300, 1, &[10]);
        let view = View::new(&window(299, &[]), &whole, 4);
        let change = view.target(&whole.before(1));
        assert!((view.calls(change) - whole.before(1).last()).abs() < 1e-5);
        assert!(view.calls(f32::NAN).is_finite() && view.calls(f32::MAX) < 1e4);
        assert_eq!(view.calls(f32::MIN), 0.0);
    }

    #[test]
    fn series_of_any_length_are_seen() {
        let past = Past::new((0..40).map(f64::from));
        for known in 0..40 {
            let series = past.series(known, 1, &[5, 12]);
            numbers(&View::new(&window(39, &[]), &series, 0));
        }
    }
}
