//! How far the expectations of each kind of step are trusted, by what its steps turned out to be worth.
//!
//! A kind whose steps bring far less than expected is stopped, except for a few steps in each window by which
//! it can earn its trust again. What was long ago is forgotten, so it comes back after a while in any case.

mod interval;
mod trial;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use interval::Interval;
use trial::Trial;

/// Expected successes that a kind has in advance: so many it takes to halve its trust.
const PRIOR: f64 = 3.0;

/// What a window counts beside the next one.
const FORGET: f64 = 0.5;

/// A kind is stopped below the first factor, and goes on above the second.
const STOP: (f64, f64) = (0.2, 0.6);

/// Least and most that expectations are multiplied with.
const FACTOR: (f64, f64) = (0.05, 2.0);

/// Thresholds are raised by its inverse at most.
const EAGERNESS_MIN: f64 = 0.5;

/// Steps by which a stopped kind may prove itself in each window.
const PROBES: usize = 4;

/// Windows of each kind that are kept for reading.
const WINDOWS_MAX: usize = 100;

/// Steps that must be judged before some are held back: a system that takes few pays nothing.
const KNOWN_STEPS: f64 = 20.0;

/// How near a window's total must be to what was predicted.
const NEAR: f64 = 0.3;

/// What a step is expected to bring of what can be measured afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// On average, in nanoseconds of calls that are spared.
    pub mean_ns: f64,
    /// If what it is for comes, in nanoseconds.
    pub most_ns: f64,
    /// One in ten brings less, as far as the forecast knows.
    #[serde(default)]
    pub low_ns: f64,
    /// One in ten brings more, as far as the forecast knows.
    #[serde(default)]
    pub high_ns: f64,
}

impl Expected {
    /// That it does no harm: nothing else can be measured of it.
    pub const HARMLESS: Self = Self { mean_ns: 1.0, most_ns: 1.0, low_ns: 1.0, high_ns: 1.0 };
}

/// What is predicted of a step: what is expected of it, corrected by what earlier steps of its kind brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// On average, in nanoseconds.
    pub mean_ns: f64,
    /// One in ten brings less.
    pub low_ns: f64,
    /// One in ten brings more.
    pub high_ns: f64,
}

impl Predicted {
    /// That it does no harm.
    pub const HARMLESS: Self = Self { mean_ns: 1.0, low_ns: 1.0, high_ns: 1.0 };
}

/// How far a kind is trusted now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trusted {
    /// What its expected benefit is multiplied with.
    pub factor: f64,
    /// Steps that it may still take in this window; none if it is not stopped.
    pub steps_left: Option<usize>,
}

impl Trusted {
    /// What thresholds are divided by: a kind that brings less than expected must be wanted more. Not by any
    /// measure: what gets very hot all at once is not to wait until its kind has proven itself.
    #[must_use]
    pub fn eagerness(&self) -> f64 {
        self.factor.clamp(EAGERNESS_MIN, 1.0)
    }
}

impl Default for Trusted {
    fn default() -> Self {
        Self { factor: 1.0, steps_left: None }
    }
}

/// One kind, for reading.
#[derive(Clone, Debug, PartialEq)]
pub struct KindTrust {
    /// Kind of step.
    pub kind: &'static str,
    /// Steps that were judged so far.
    pub steps: u64,
    /// Nanoseconds that they were expected to spare.
    pub expected_ns: f64,
    /// Nanoseconds that they were predicted to spare, by what those before them did.
    pub predicted_ns: f64,
    /// Nanoseconds that they spared.
    pub measured_ns: f64,
    /// How far it is trusted now.
    pub now: Trusted,
    /// Windows with steps that were judged, of those that are kept.
    pub windows: usize,
    /// Share of them whose total was within 30 % of what was predicted; none without any.
    pub windows_near: Option<f64>,
    /// Share of steps that were within their 80 % interval; none before the first.
    pub coverage: Option<f64>,
    /// Steps that were held back to compare others with.
    pub held_back: u64,
    /// What is spared for each nanosecond expected, by comparing steps that were taken with those that were
    /// held back, and the standard error of that; none before both are known.
    pub by_trial: Option<(f64, f64)>,
}

/// Sums over steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    steps: f64,
    expected_ns: f64,
    most_ns: f64,
    predicted_ns: f64,
    measured_ns: f64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.expected_ns += other.expected_ns;
        self.predicted_ns += other.predicted_ns;
        self.most_ns += other.most_ns;
        self.measured_ns += other.measured_ns;
    }

    /// Observed over expected, both with the same success in advance.
    fn factor(&self) -> f64 {
        if self.steps <= 0.0 || self.most_ns <= 0.0 {
            return 1.0;
        }
        let prior = PRIOR * self.most_ns / self.steps;
        let factor = (self.measured_ns + prior) / (self.expected_ns + prior);
        factor.clamp(FACTOR.0, FACTOR.1)
    }
}

#[derive(Clone, Debug, Default)]
struct Kind {
    /// All steps.
    total: Sums,
    /// The steps of this window, and earlier ones for what they still count.
    recent: Sums,
    /// The steps of this window.
    window: Sums,
    /// Windows that are over and had steps, oldest first.
    windows: VecDeque<Sums>,
    interval: Interval,
    trial: Trial,
    /// Steps that may still be taken in this window, if the kind is stopped.
    probes_left: Option<usize>,
}

impl Kind {
    fn judge(&mut self, expected: Expected, predicted: Predicted, measured_ns: f64) {
        let Expected { mean_ns, most_ns, .. } = expected;
        let predicted_ns = predicted.mean_ns;
        let step = Sums { steps: 1.0, expected_ns: mean_ns, most_ns, predicted_ns, measured_ns };
        for sums in [&mut self.total, &mut self.recent, &mut self.window] {
            sums.add(&step);
        }
        self.interval.judge(expected, predicted, measured_ns);
        self.stop_or_go_on();
    }

    /// Observed over expected; where that contradicts what holding steps back says, the nearest that does not.
    fn factor(&self) -> f64 {
        let factor = self.recent.factor();
        let Some((low, high)) = self.trial.bounds() else { return factor };
        factor.clamp(low, high).clamp(FACTOR.0, FACTOR.1)
    }

    fn stop_or_go_on(&mut self) {
        let factor = self.factor();
        match self.probes_left {
            None if factor < STOP.0 => self.probes_left = Some(0),
            Some(_) if factor > STOP.1 => self.probes_left = None,
            _ => {}
        }
    }

    fn close_window(&mut self) {
        let window = std::mem::take(&mut self.window);
        if window.steps > 0.0 {
            self.windows.push_back(window);
            if self.windows.len() > WINDOWS_MAX {
                self.windows.pop_front();
            }
        }
        let Sums { steps, expected_ns, most_ns, predicted_ns, measured_ns } = self.recent;
        self.recent = Sums {
            steps: steps * FORGET,
            expected_ns: expected_ns * FORGET,
            most_ns: most_ns * FORGET,
            predicted_ns: predicted_ns * FORGET,
            measured_ns: measured_ns * FORGET,
        };
        self.stop_or_go_on();
        self.probes_left = self.probes_left.map(|_| PROBES);
    }

    fn now(&self) -> Trusted {
        Trusted { factor: self.factor(), steps_left: self.probes_left }
    }

    fn windows_near(&self) -> Option<f64> {
        if self.windows.is_empty() {
            return None;
        }
        let is_near =
            |it: &&Sums| (it.measured_ns - it.predicted_ns).abs() <= NEAR * it.predicted_ns.abs();
        Some(self.windows.iter().filter(is_near).count() as f64 / self.windows.len() as f64)
    }
}

/// What the steps of each kind were worth. Its size depends on the number of kinds only.
#[derive(Clone, Debug, Default)]
pub struct TrustBook {
    kinds: BTreeMap<&'static str, Kind>,
}

impl TrustBook {
    /// What is predicted of a step of which so much is expected.
    #[must_use]
    pub fn predict(&self, kind: &str, expected: Expected) -> Predicted {
        let Some(book) = self.kinds.get(kind) else {
            return Interval::default().predict(expected, 1.0);
        };
        book.interval.predict(expected, book.factor())
    }

    /// Takes note of a step that is judged: what it brought against what was expected and predicted of it.
    pub fn judge(
        &mut self,
        kind: &'static str,
        expected: Expected,
        predicted: Predicted,
        measured_ns: f64,
    ) {
        self.kinds.entry(kind).or_default().judge(expected, predicted, measured_ns);
    }

    /// Takes note of by how much less calls waited since a step was taken, or was held back.
    pub fn tried(
        &mut self,
        kind: &'static str,
        expected: Expected,
        is_held_back: bool,
        less_ns: f64,
    ) {
        let book = self.kinds.entry(kind).or_default();
        book.trial.add(expected.mean_ns, is_held_back, less_ns);
        book.stop_or_go_on();
    }

    /// Kinds of which so many steps were judged that holding some back tells something.
    #[must_use]
    pub fn known(&self) -> BTreeSet<&'static str> {
        let known = self.kinds.iter().filter(|(_, book)| book.total.steps >= KNOWN_STEPS);
        known.map(|(kind, _)| *kind).collect()
    }

    /// Takes note of a step that is begun: a stopped kind has fewer left.
    pub fn begun(&mut self, kind: &'static str) {
        if let Some(Kind { probes_left: Some(left), .. }) = self.kinds.get_mut(kind) {
            *left = left.saturating_sub(1);
        }
    }

    /// Ends a window: what was before counts less, and stopped kinds may try again.
    pub fn close_window(&mut self) {
        self.kinds.values_mut().for_each(Kind::close_window);
    }

    /// How far each kind is trusted; one that is not named, wholly.
    #[must_use]
    pub fn now(&self) -> BTreeMap<&'static str, Trusted> {
        self.kinds.iter().map(|(kind, book)| (*kind, book.now())).collect()
    }

    /// All that is known of each kind.
    pub fn kinds(&self) -> impl Iterator<Item = KindTrust> + '_ {
        self.kinds.iter().map(|(kind, book)| KindTrust {
            kind,
            steps: book.total.steps as u64,
            expected_ns: book.total.expected_ns,
            predicted_ns: book.total.predicted_ns,
            measured_ns: book.total.measured_ns,
            now: book.now(),
            windows: book.windows.len(),
            windows_near: book.windows_near(),
            coverage: book.interval.coverage(),
            held_back: book.trial.held_back(),
            by_trial: book.trial.effect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::SplitMix64;

    const KIND: &str = "precompute";

    /// A step that is called with this chance, and then spares 1 ms.
    fn chance(chance: f64) -> Expected {
        let mean_ns = chance * 1e6;
        Expected { mean_ns, most_ns: 1e6, low_ns: 0.9 * mean_ns, high_ns: 1.1 * mean_ns }
    }

    /// A step of which so much is expected, and that brings so much.
    fn step(book: &mut TrustBook, expected: Expected, measured_ns: f64) {
        let predicted = book.predict(KIND, expected);
        book.judge(KIND, expected, predicted, measured_ns);
    }

    fn now(book: &TrustBook) -> Trusted {
        book.now()[KIND]
    }

    #[test]
    fn a_kind_that_brings_nothing_is_stopped_tries_again_and_comes_back_when_it_brings_something() {
        let mut book = TrustBook::default();
        let mut stopped_in = None;
        for window in 0..6 {
            for _ in 0..10 {
                if now_or_new(&book).steps_left != Some(0) {
                    book.begun(KIND);
                    step(&mut book, chance(0.9), 0.0);
                }
            }
            if now(&book).steps_left.is_some() {
                stopped_in = stopped_in.or(Some(window));
            }
            book.close_window();
        }
        assert!(stopped_in.is_some_and(|window| window < 3), "{stopped_in:?}");
        assert_eq!(now(&book).steps_left, Some(PROBES), "it stays stopped but for some tries");
        for _ in 0..PROBES {
            book.begun(KIND);
        }
        assert_eq!(now(&book).steps_left, Some(0));
        let windows = (1..9).find(|_| {
            for _ in 0..PROBES {
                step(&mut book, chance(0.9), 1e6);
            }
            book.close_window();
            now(&book).steps_left.is_none()
        });
        assert!(windows.is_some_and(|windows| windows <= 3), "{windows:?}");
    }

    fn now_or_new(book: &TrustBook) -> Trusted {
        book.now().get(KIND).copied().unwrap_or_default()
    }

    #[test]
    fn what_is_not_tried_any_more_is_forgotten_and_comes_back() {
        let mut book = TrustBook::default();
        (0..30).for_each(|_| step(&mut book, chance(1.0), 0.0));
        assert_eq!(now(&book).steps_left, Some(0));
        let windows = (1..20).find(|_| {
            book.close_window();
            now(&book).steps_left.is_none()
        });
        assert!(windows.is_some_and(|windows| (2..6).contains(&windows)), "{windows:?}");
    }

    #[test]
    fn totals_near_what_was_expected_and_the_interval_of_single_steps_are_counted() {
        let mut book = TrustBook::default();
        let mut random = SplitMix64::new(7);
        for _ in 0..20 {
            for _ in 0..200 {
                // Between half and one and a half of what is expected.
                step(&mut book, chance(1.0), 1e6 * (0.5 + random.uniform()));
            }
            book.close_window();
        }
        let kind = book.kinds().next().unwrap();
        assert_eq!((kind.steps, kind.windows, kind.windows_near), (4_000, 20, Some(1.0)));
        let coverage = kind.coverage.unwrap();
        assert!((0.76..0.84).contains(&coverage), "{coverage}");
        assert!((kind.now.factor - 1.0).abs() < 0.05, "{kind:?}");
    }

    #[test]
    fn what_holding_back_rules_out_is_not_believed_however_it_is_accounted_for() {
        let mut book = TrustBook::default();
        let mut random = SplitMix64::new(9);
        for number in 0..400 {
            step(&mut book, chance(1.0), 1e6); // By the account all is as expected,
            let is_held_back = number % 4 == 0; // but waiting falls alike where nothing is done.
            book.tried(KIND, chance(1.0), is_held_back, 1e6 * (1.0 + 0.5 * random.normal()));
        }
        let now = now(&book);
        assert!(now.factor < 0.3 && now.steps_left.is_some(), "{now:?}");
        assert_eq!(book.kinds().next().unwrap().held_back, 100);
    }

    #[test]
    fn a_right_expectation_is_hardly_ever_stopped_however_rare_its_success() {
        let mut stopped = 0;
        for seed in 0..30 {
            let (mut book, mut random) = (TrustBook::default(), SplitMix64::new(seed));
            let (odds, per_window) = (0.01 + 0.99 * random.uniform(), 1 + seed % 60);
            for _ in 0..30 {
                for _ in 0..per_window {
                    let hit = random.uniform() < odds;
                    step(&mut book, chance(odds), if hit { 1e6 } else { 0.0 });
                }
                stopped += usize::from(now(&book).steps_left.is_some());
                book.close_window();
            }
        }
        assert!(stopped <= 1, "{stopped} of 900 windows");
    }

    proptest! {

        #[test]
        fn an_inverted_expectation_is_stopped_within_three_windows(
            odds in 0.3..1.0f64,
            per_window in 30usize..200,
        ) {
            let mut book = TrustBook::default();
            for _ in 0..3 {
                for _ in 0..per_window {
                    step(&mut book, chance(odds), 0.0);
                }
            }
            prop_assert!(now(&book).steps_left.is_some(), "{:?}", now(&book));
        }

        #[test]
        fn the_factor_stays_within_its_bounds_whatever_is_measured(
            steps in prop::collection::vec((0.0..1e12f64, 0.0..1e12f64, -1e12..1e12f64), 0..60),
        ) {
            let mut book = TrustBook::default();
            for (mean_ns, more, measured) in steps {
                let (most_ns, low_ns, high_ns) = (mean_ns + more, mean_ns, mean_ns);
                step(&mut book, Expected { mean_ns, most_ns, low_ns, high_ns }, measured);
                let factor = now(&book).factor;
                prop_assert!((FACTOR.0..=FACTOR.1).contains(&factor), "{factor}");
            }
        }
    }
}
