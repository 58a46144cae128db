//! What came of the arms: rows for reading, and what they are judged by.

use std::time::Duration;

use foreshard::demo::measure::quantile;

use super::arm::{Arm, Minute, Played};
use super::stage::{NODES, Stage};
use crate::report::{Bound, Figure, Row};

/// What was played, and what came of it.
pub(crate) struct Judged {
    /// Length of a minute.
    pub(crate) tick: Duration,
    /// For each minute whether it is in the first tenth of a peak.
    pub(crate) begins: Vec<bool>,
    /// Calls in all, and in a minute on average.
    pub(crate) calls: usize,
    pub(crate) calls_a_minute: f64,
    /// Permits of all nodes.
    pub(crate) permits: f64,
    /// What it takes to keep everything fresh, over the background budget.
    pub(crate) demand: f64,
    pub(crate) arms: Vec<(Arm, Played)>,
}

/// What an arm comes down to.
#[derive(Clone, Copy, Debug)]
struct Sums {
    mean_ms: f64,
    p50_ms: f64,
    p95_ms: f64,
    /// Of the calls in the first tenth of peaks.
    p95_peak_ms: f64,
    calls_peak: u64,
    rows_stored: f64,
    fresh_rows_stored: f64,
    /// Busy permits in the first tenth of peaks, of all.
    utilisation_peak: f64,
    utilisation: f64,
    /// Background work, in busy cores.
    background: f64,
    /// Share of it that spared no call anything.
    waste: f64,
}

impl Judged {
    pub(crate) fn new(stage: &Stage, mut arms: Vec<(Arm, Played)>) -> Self {
        let warm_up = stage.load.shape.warm_up;
        arms.iter_mut().for_each(|(_, played)| played.forget(warm_up));
        Self {
            tick: stage.tick,
            begins: stage.load.peak_begins().split_off(warm_up),
            calls: stage.calls.iter().filter(|call| call.minute >= warm_up).count(),
            calls_a_minute: stage.calls_a_minute,
            permits: f64::from(NODES),
            demand: stage.demand,
            arms,
        }
    }

    pub(crate) fn arm(&self, arm: Arm) -> Option<&Played> {
        self.arms.iter().find(|(other, _)| *other == arm).map(|(_, played)| played)
    }

    /// Answers that are not those of the arm that stores nothing.
    pub(crate) fn answers_different(&self) -> usize {
        let Some(plain) = self.arm(Arm::Off) else { return usize::MAX };
        let differ = |played: &Played| {
            let pairs = plain.answers.iter().zip(&played.answers);
            pairs.filter(|(plain, ours)| plain.checksum != ours.checksum).count()
                + plain.answers.len().abs_diff(played.answers.len())
        };
        self.arms.iter().map(|(_, played)| differ(played)).sum()
    }

    fn sums(&self, played: &Played) -> Sums {
        let begins = &self.begins;
        let ns = |peak_only: bool| -> Vec<u64> {
            let counted = played.answers.iter().filter(|it| !peak_only || begins[it.minute]);
            counted.map(|answer| answer.ns).collect()
        };
        let (all, peak) = (ns(false), ns(true));
        let mut whole = Minute::default();
        for minute in &played.minutes {
            whole.rows += minute.rows;
            whole.rows_stored += minute.rows_stored;
            whole.rows_fresh += minute.rows_fresh;
            whole.rows_fresh_stored += minute.rows_fresh_stored;
            whole.ns += minute.ns;
            whole.spared_ns += minute.spared_ns;
        }
        let in_peaks = played.minutes.iter().zip(begins).filter(|(_, begins)| **begins);
        let peak_ns: u64 = in_peaks.map(|(minute, _)| minute.ns).sum();
        let minutes_peak = begins.iter().filter(|begins| **begins).count();
        let tick_ns = self.tick.as_nanos() as f64;
        let used = |ns: u64, minutes: usize| ns as f64 / (minutes as f64 * self.permits * tick_ns);
        let share = |part: u64, whole: u64| part as f64 / whole as f64;
        Sums {
            mean_ms: all.iter().sum::<u64>() as f64 / all.len() as f64 / 1e6,
            p50_ms: quantile(&all, 0.5) / 1e6,
            p95_ms: quantile(&all, 0.95) / 1e6,
            p95_peak_ms: quantile(&peak, 0.95) / 1e6,
            calls_peak: peak.len() as u64,
            rows_stored: share(whole.rows_stored, whole.rows),
            fresh_rows_stored: share(whole.rows_fresh_stored, whole.rows_fresh),
            utilisation_peak: used(peak_ns, minutes_peak),
            utilisation: used(whole.ns, played.minutes.len()),
            background: played.background_ns as f64 / (played.minutes.len() as f64 * tick_ns),
            waste: 1.0 - whole.spared_ns / played.background_ns as f64,
        }
    }

    /// Time of an arm's calls in nanoseconds that a share `level` of them does not exceed.
    pub(crate) fn time(&self, arm: Arm, level: f64) -> f64 {
        let played = self.arm(arm).into_iter().flat_map(|played| &played.answers);
        quantile(&played.map(|answer| answer.ns).collect::<Vec<_>>(), level)
    }

    /// What an arm is judged by; not a number where it did not play.
    fn of(&self, arm: Arm, what: impl Fn(&Sums) -> f64) -> f64 {
        self.arm(arm).map_or(f64::NAN, |played| what(&self.sums(played)))
    }

    /// What an arm saves of the mean time, as a share of what the oracle does.
    fn gain(&self, arm: Arm) -> f64 {
        let mean = |arm| self.of(arm, |sums| sums.mean_ms);
        (mean(Arm::Reactive) - mean(arm)) / (mean(Arm::Reactive) - mean(Arm::Oracle))
    }
}

pub(crate) fn row(regime: &'static str, judged: &Judged, (arm, played): &(Arm, Played)) -> Row {
    let sums = judged.sums(played);
    Row::default()
        .with("regime", regime)
        .with("arm", arm.name())
        .with("calls", played.answers.len() as u64)
        .with("mean_ms", sums.mean_ms)
        .with("p50_ms", sums.p50_ms)
        .with("p95_ms", sums.p95_ms)
        .with("calls_peak", sums.calls_peak)
        .with("p95_peak_ms", sums.p95_peak_ms)
        .with("gain", judged.gain(*arm))
        .with("rows_stored", sums.rows_stored)
        .with("fresh_rows_stored", sums.fresh_rows_stored)
        .with("used_peak", sums.utilisation_peak)
        .with("used", sums.utilisation)
        .with("background_cores", sums.background)
        .with("waste", sums.waste)
        .with("steps", played.steps)
        .with("steps_failed", played.steps_failed)
        .with("trusted", played.ticks_trusted)
}

pub(crate) fn figures(scarce: &Judged, ample: &Judged) -> Vec<Figure> {
    let rivals = |of: &dyn Fn(Arm) -> f64, arms: [Arm; 2]| arms.map(of);
    let gain = |arm| scarce.gain(arm);
    let best_gain = rivals(&gain, [Arm::Eager, Arm::Random]).into_iter().fold(f64::NAN, f64::max);
    let p95 = |arm| scarce.of(arm, |sums| sums.p95_peak_ms);
    let best_p95 = rivals(&p95, [Arm::Reactive, Arm::Eager]).into_iter().fold(f64::NAN, f64::min);
    let easy = |arm| ample.of(arm, |sums| sums.p95_peak_ms);
    let forecast = |what: fn(&Sums) -> f64| scarce.of(Arm::Forecast, what);
    let used = scarce.of(Arm::Reactive, |sums| sums.utilisation_peak);
    let different = scarce.answers_different() + ample.answers_different();
    let ratio = |name: &str, value: f64, bound: Bound| Figure::bounded(name, value, "ratio", bound);
    let reported = |name: &str, value: f64| Figure::reported(name, value, "ratio");
    vec![
        ratio("gain_share_of_oracle", gain(Arm::Forecast), Bound::AtLeast(0.9)),
        ratio("gain_over_best_rival", gain(Arm::Forecast) - best_gain, Bound::AtLeast(0.25)),
        ratio("gain_inverted", gain(Arm::Inverted), Bound::AtMost(0.1)),
        ratio("p95_peak_vs_best_rival", p95(Arm::Forecast) / best_p95, Bound::AtMost(0.33)),
        ratio("fresh_rows_stored", forecast(|sums| sums.fresh_rows_stored), Bound::AtLeast(0.85)),
        ratio("p95_ample_vs_oracle", easy(Arm::Forecast) / easy(Arm::Oracle), Bound::AtMost(1.25)),
        ratio("demand_at_least", scarce.demand, Bound::AtLeast(1.5)),
        ratio("demand_at_most", scarce.demand, Bound::AtMost(3.0)),
        ratio("used_at_least", used, Bound::AtLeast(0.2)),
        ratio("used_at_most", used, Bound::AtMost(0.6)),
        reported("demand_ample", ample.demand),
        reported("gain_eager", gain(Arm::Eager)),
        reported("gain_random", gain(Arm::Random)),
        reported("waste", forecast(|sums| sums.waste)),
        Figure::reported("background", forecast(|sums| sums.background), "cores"),
        Figure::bounded("answers_different", different as f64, "answers", Bound::Exactly(0.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::arm::Answer;

    fn played(ms: u64, fresh_stored: u64) -> Played {
        let answer = |minute| Answer { minute, ns: ms * 1_000_000, checksum: 5 };
        let minute = Minute {
            rows: 10,
            rows_fresh: 10,
            rows_fresh_stored: fresh_stored,
            ns: 9_000_000,
            ..Minute::default()
        };
        Played {
            answers: (0..24).map(answer).collect(),
            minutes: vec![minute; 24],
            ..Played::default()
        }
    }

    fn judged(forecast: (u64, u64), inverted: (u64, u64)) -> Judged {
        let arm = |arm, (ms, stored)| (arm, played(ms, stored));
        let arms = vec![
            arm(Arm::Off, (300, 0)),
            arm(Arm::Reactive, (110, 0)),
            arm(Arm::Eager, (70, 5)),
            arm(Arm::Random, (80, 4)),
            arm(Arm::Forecast, forecast),
            arm(Arm::Inverted, inverted),
            arm(Arm::Oracle, (10, 10)),
        ];
        let begins = (0..24).map(|minute| minute < 3).collect();
        let tick = Duration::from_millis(10);
        let (calls, calls_a_minute, permits, demand) = (24, 1.0, 3.0, 2.0);
        Judged { tick, begins, calls, calls_a_minute, permits, demand, arms }
    }

    fn missed(judged: &Judged) -> Vec<String> {
        let named = [
            "gain_share_of_oracle",
            "gain_over_best_rival",
            "gain_inverted",
            "p95_peak_vs_best_rival",
            "fresh_rows_stored",
            "answers_different",
        ];
        let figures = figures(judged, judged).into_iter();
        let missed = figures.filter(|it| !it.holds && named.contains(&it.name.as_str()));
        missed.map(|figure| figure.name).collect()
    }

    #[test]
    fn a_forecast_that_is_right_keeps_the_bounds_and_an_inverted_one_in_its_place_misses_them() {
        assert_eq!(missed(&judged((15, 9), (108, 0))), [""; 0]);
        assert_eq!(
            missed(&judged((108, 0), (108, 0))),
            [
                "gain_share_of_oracle",
                "gain_over_best_rival",
                "p95_peak_vs_best_rival",
                "fresh_rows_stored"
            ]
        );
    }

    #[test]
    fn a_run_in_which_the_inverted_forecast_gains_is_void() {
        assert_eq!(missed(&judged((15, 9), (20, 9))), ["gain_inverted"]);
    }

    #[test]
    fn one_other_answer_is_one_too_many() {
        let mut judged = judged((15, 9), (108, 0));
        judged.arms[4].1.answers[3].checksum = 6;
        assert_eq!(missed(&judged), ["answers_different"]);
    }
}
