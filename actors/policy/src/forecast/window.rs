//! The past as members see it: logarithms of calls with running sums, and nothing after one tick.
//!
//! A [`Past`] is kept per series and grows by a tick at a time. Members borrow its beginning up to
//! some tick, so asking about a tick costs nothing that grows with the length of the past: a mean
//! over any stretch is the difference of two sums.

use crate::ids::Tick;

/// Calls per tick of one series, in logarithms, with running sums.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    logs: Vec<f64>,
    /// One longer than `logs`: the sum of those before each position.
    sums: Vec<f64>,
}

impl Past {
    /// The past of `calls`, oldest tick first.
    #[must_use]
    pub fn new(calls: impl IntoIterator<Item = f64>) -> Self {
        let mut past = Self { logs: Vec::new(), sums: vec![0.0] };
        calls.into_iter().for_each(|calls| past.push(calls));
        past
    }

    /// Adds the newest tick. A number that is negative or not finite counts as no calls.
    pub fn push(&mut self, calls: f64) {
        if self.sums.is_empty() {
            self.sums.push(0.0);
        }
        let log = if calls.is_finite() { calls.max(0.0).ln_1p() } else { 0.0 };
        let sum = self.sums.last().copied().unwrap_or(0.0) + log;
        self.logs.push(log);
        self.sums.push(sum);
    }

    /// Calls in the newest tick; zero if none is known.
    #[must_use]
    pub fn last(&self) -> f64 {
        self.logs.last().map_or(0.0, |log| log.exp_m1())
    }

    /// Forgets all but the newest `ticks` ticks, once a quarter more is there: that makes it cheap.
    pub fn keep(&mut self, ticks: usize) {
        let over = self.logs.len().saturating_sub(ticks);
        if over * 4 <= ticks {
            return;
        }
        self.logs.drain(..over);
        self.sums.drain(..over);
        let forgotten = self.sums.first().copied().unwrap_or(0.0);
        self.sums.iter_mut().for_each(|sum| *sum -= forgotten);
        self.logs.shrink_to(ticks + ticks / 4 + 1);
        self.sums.shrink_to(ticks + ticks / 4 + 2);
    }

    /// Ticks that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logs.len()
    }

    /// Whether no tick is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// The series as a member sees it after its first `ticks` ticks (at most all).
    #[must_use]
    pub fn series<'a>(&'a self, ticks: usize, id: u64, seasons: &'a [usize]) -> Series<'a> {
        let ticks = ticks.min(self.logs.len());
        let sums = &self.sums[..(ticks + 1).min(self.sums.len())];
        Series { id, seasons, features: &[], logs: &self.logs[..ticks], sums }
    }
}

/// One series up to the last tick of a [`Window`]. Cheap to copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Series<'a> {
    /// Stable identity, for members that carry state from tick to tick.
    pub id: u64,
    /// Ticks after which the load repeats, the strongest first; none if none was found.
    pub seasons: &'a [usize],
    /// What does not change from tick to tick: the same few numbers, about standardised, for all
    /// series of a window; none if nothing is known.
    pub features: &'a [f32],
    /// `log1p` of the calls per tick, oldest first; the last one belongs to the window's last tick.
    pub logs: &'a [f64],
    sums: &'a [f64],
}

impl<'a> Series<'a> {
    /// Ticks that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logs.len()
    }

    /// Whether no tick is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// The logarithm `back` ticks before the last known tick; the oldest known one if that is
    /// further back than anything known, zero if nothing is.
    #[must_use]
    pub fn log(&self, back: usize) -> f64 {
        match self.logs.len().checked_sub(back + 1) {
            Some(position) => self.logs[position],
            None => self.logs.first().copied().unwrap_or(0.0),
        }
    }

    /// Calls in the last known tick.
    #[must_use]
    pub fn last(&self) -> f64 {
        self.log(0).exp_m1()
    }

    /// Mean logarithm of the `ticks` ticks of which the newest is `back` ticks before the last known
    /// one, of as many of them as are known; [`log`](Self::log) if none is.
    #[must_use]
    pub fn mean(&self, back: usize, ticks: usize) -> f64 {
        let end = self.logs.len().saturating_sub(back);
        let start = end.saturating_sub(ticks.max(1));
        if start == end {
            return self.log(back);
        }
        (self.sums[end] - self.sums[start]) / (end - start) as f64
    }

    /// The same series as it was `ticks` ticks ago.
    #[must_use]
    pub fn before(&self, ticks: usize) -> Self {
        let known = self.logs.len().saturating_sub(ticks);
        let sums = &self.sums[..(known + 1).min(self.sums.len())];
        Self { logs: &self.logs[..known], sums, ..*self }
    }

    /// The longest season of which at least `times` are known.
    #[must_use]
    pub fn season_known(&self, times: usize) -> Option<usize> {
        self.seasons.iter().copied().filter(|season| season * times <= self.len()).max()
    }
}

/// The past that a member may look at, and nothing after [`at`](Self::at).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window<'a> {
    /// The last tick that is known.
    pub at: Tick,
    /// Length of a tick in milliseconds.
    pub tick_ms: u64,
    /// Wall clock at the start of tick 0, in milliseconds since 1970 (UTC): for hours and weekdays.
    pub epoch_ms: i64,
    /// The series, in an order that may differ from window to window. They may differ in length.
    pub series: &'a [Series<'a>],
}

impl Window<'_> {
    /// Wall clock at the start of the tick `ahead` ticks after the last known one, in milliseconds
    /// since 1970.
    #[must_use]
    pub fn clock_ms(&self, ahead: usize) -> i64 {
        let ticks = self.at.0.saturating_add(ahead as u64);
        let ms = ticks.saturating_mul(self.tick_ms);
        self.epoch_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_over_any_stretch_are_those_of_the_logarithms() {
        let past = Past::new((0..50).map(f64::from));
        let series = past.series(40, 7, &[]);
        let mean = |from: u32, to: u32| {
            (from..to).map(|calls| f64::from(calls).ln_1p()).sum::<f64>() / f64::from(to - from)
        };
        assert!((series.mean(0, 5) - mean(35, 40)).abs() < 1e-12);
        assert!((series.mean(10, 3) - mean(27, 30)).abs() < 1e-12);
        assert!((series.mean(38, 10) - mean(0, 2)).abs() < 1e-12);
        assert_eq!(series.mean(90, 4), 0.0);
        assert_eq!((series.log(0), series.log(99)), (39.0_f64.ln_1p(), 0.0));
        assert_eq!(series.before(30).len(), 10);
    }

    #[test]
    fn what_is_forgotten_changes_nothing_about_what_is_kept() {
        let mut past = Past::new((0..500).map(f64::from));
        let whole = past.clone();
        past.keep(100);
        assert_eq!(past.len(), 100);
        let (kept, all) = (past.series(100, 0, &[]), whole.series(500, 0, &[]));
        assert!((kept.mean(3, 50) - all.mean(3, 50)).abs() < 1e-9);
        past.push(1.0);
        past.keep(100);
        assert_eq!(past.len(), 101, "a little more is kept until forgetting pays");
    }

    #[test]
    fn what_is_no_number_of_calls_counts_as_none() {
        let past = Past::new([1.0, f64::NAN, -3.0, f64::INFINITY]);
        assert_eq!(past.series(4, 0, &[]).logs, [1.0_f64.ln_1p(), 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_clock_of_a_coming_tick_is_counted_from_tick_zero() {
        let window = Window { at: Tick(10), tick_ms: 60_000, epoch_ms: 5_000, series: &[] };
        assert_eq!(window.clock_ms(5), 5_000 + 15 * 60_000);
    }
}
