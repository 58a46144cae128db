//! Walks a trace from origin to origin, and scores what the mix and each member said.
//!
//! The first three fifths are only learned from. From there on the members forecast at every tick, and learn
//! anew now and then from what is over; the last fifth is the test. What is walked is the mixer of the loop
//! itself.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use foreshard_policy::forecast::ensemble::{Mixer, Outlook, seasons};
use foreshard_policy::forecast::{Effort, Member, Past, Quantiles, Series, Window};
use foreshard_policy::ids::Tick;

use super::trace::Trace;

/// Shares of the trace at which members learn: as often before the test as within it, since weights are
/// earned by members that are as fresh.
const FITS: [f64; 10] = [0.6, 0.64, 0.68, 0.72, 0.76, 0.8, 0.84, 0.88, 0.92, 0.96];

/// Share of the trace at which the test begins.
const TEST: f64 = 0.8;

/// Horizons besides a day, in ticks.
const HORIZONS: [usize; 3] = [1, 6, 60];

/// Ticks after a jump of the level, besides twice the horizon, after which intervals should be honest again.
const SETTLED_AFTER: usize = 200;

const DAY_MS: u64 = 86_400_000;

/// Members whose mean is QueryBot 5000's forecast.
const QUERYBOT: [&str; 2] = ["ridge", "lstm"];

/// What came of one series at one horizon.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    /// Name of the series; empty if the trace has only one.
    pub series: String,
    /// Ticks ahead.
    pub horizon: usize,
    /// Whether it is a day ahead.
    pub is_day: bool,
    /// Whether a season was found by the end.
    pub has_season: bool,
    /// Forecasts that were scored.
    pub count: usize,
    /// Pinball loss in logarithms, as a multiple of seasonal naive's.
    pub ensemble: f64,
    /// The same of each member; where it was silent it counts as naive.
    pub members: BTreeMap<String, f64>,
    /// The same of the mean of ridge regression and LSTM; NaN without an LSTM.
    pub querybot: f64,
    /// Pinball loss in calls, as a multiple of seasonal naive's.
    pub in_calls: f64,
    /// Mean absolute error over that of seasonal naive before the test.
    pub mase: f64,
    /// Mean squared difference of logarithms.
    pub log_mse: f64,
    /// The same of each member.
    pub log_mse_members: BTreeMap<String, f64>,
    /// Share of ticks within the 80 % interval or at one of its ends.
    pub coverage: f64,
    /// Share of ticks between its ends. Of whole numbers many lie at an end: where most ticks have no call,
    /// no interval holds four in five. Honest is one that holds no less with its ends, and no more without.
    pub strict: f64,
    /// The first one, from 200 ticks and twice the horizon after a jump of the level on; NaN if none was made up.
    pub settled: f64,
    /// Share of origins at which the gate was open.
    pub open: f64,
}

/// Horizons that a trace allows: the test must be twice as long.
pub(super) fn horizons(trace: &Trace) -> Vec<usize> {
    let day = (DAY_MS / trace.tick_ms.max(1)) as usize;
    let test = trace.ticks() - (trace.ticks() as f64 * TEST) as usize;
    let mut all: Vec<usize> = HORIZONS.into_iter().chain([day]).collect();
    all.retain(|ahead| *ahead >= 1 && 2 * ahead <= test);
    all.sort_unstable();
    all.dedup();
    all
}

/// Turns the mixer over all origins of `trace`, and hands what it says about each to `said`: origin,
/// series, and one outlook per horizon. Members learn at these shares of the trace, with at most so many
/// training steps; the first one is where it begins.
///
/// # Errors
/// No member can forecast.
pub(crate) fn walk(
    trace: &Trace,
    mixer: &mut Mixer,
    horizons: &[usize],
    (fits, steps): (&[f64], u32),
    mut said: impl FnMut(usize, usize, &[Outlook]),
) -> Result<()> {
    let ticks = trace.ticks();
    let pasts: Vec<Past> =
        trace.series.iter().map(|(_, calls)| Past::new(calls.iter().copied())).collect();
    let fits: Vec<usize> = fits.iter().map(|share| (ticks as f64 * share) as usize).collect();
    let first = fits.first().copied().unwrap_or(ticks);
    let mut known: Vec<Vec<usize>> = vec![Vec::new(); pasts.len()];
    for origin in first..ticks {
        if fits.contains(&origin) {
            for (known, past) in known.iter_mut().zip(&pasts) {
                *known = seasons(past.series(origin + 1, 0, &[]).logs, trace.tick_ms);
            }
        }
        let series: Vec<Series<'_>> = (0..)
            .zip(pasts.iter().zip(&known))
            .map(|(id, (past, known))| past.series(origin + 1, id, known))
            .collect();
        let at = Tick(origin as u64);
        let (tick_ms, epoch_ms) = (trace.tick_ms, trace.epoch_ms);
        let window = Window { at, tick_ms, epoch_ms, series: &series };
        mixer.observe(&window);
        if fits.contains(&origin) {
            for (member, report) in mixer.fit(&window, Effort::steps(steps), true) {
                report.map_err(|error| anyhow!("{member}: {error}"))?;
            }
        }
        let outlooks = mixer.forecast(&window, horizons, |_| true)?;
        for (place, outlooks) in outlooks.iter().enumerate() {
            said(origin, place, outlooks);
        }
    }
    Ok(())
}

/// Sums of one series at one horizon.
#[derive(Clone, Debug, Default)]
struct Sums {
    count: f64,
    ensemble: Losses,
    members: Vec<Losses>,
    querybot: Losses,
    absolute: f64,
    inside: f64,
    strict: f64,
    settled: f64,
    settled_inside: f64,
    open: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    logs: f64,
    calls: f64,
    squares: f64,
}

impl Losses {
    fn add(&mut self, said: &Quantiles, actual: f64) {
        let log = |calls: f64| calls.max(0.0).ln_1p();
        let logs = Quantiles { q10: log(said.q10), q50: log(said.q50), q90: log(said.q90) };
        self.logs += logs.pinball(log(actual));
        self.calls += said.pinball(actual);
        self.squares += (logs.q50 - log(actual)).powi(2);
    }
}

/// Scores a trace at all its horizons, with `members` and at most `steps` training steps a fit.
///
/// # Errors
/// A member cannot learn, or none can forecast.
pub(super) fn evaluate(
    trace: &Trace,
    members: Vec<Box<dyn Member>>,
    steps: u32,
) -> Result<Vec<Scored>> {
    let horizons = horizons(trace);
    let mut mixer = Mixer::new(members, horizons.clone());
    let names: Vec<String> = mixer.members().map(|member| member.name().to_owned()).collect();
    let place = |name: &str| names.iter().position(|other| other == name);
    let naive = place("naive");
    let querybot = QUERYBOT.map(place);
    let test = (trace.ticks() as f64 * TEST) as usize;
    let is_whole = |calls: &[f64]| calls.iter().all(|calls| calls.fract() == 0.0);
    let are_whole: Vec<bool> = trace.series.iter().map(|(_, calls)| is_whole(calls)).collect();
    let empty = Sums { members: vec![Losses::default(); names.len()], ..Sums::default() };
    let mut sums = vec![vec![empty; horizons.len()]; trace.series.len()];
    walk(trace, &mut mixer, &horizons, (&FITS, steps), |origin, series, outlooks| {
        let calls = &trace.series[series].1;
        for ((sums, ahead), outlook) in sums[series].iter_mut().zip(&horizons).zip(outlooks) {
            let target = origin + ahead;
            let Some(actual) = calls.get(target).filter(|_| target >= test) else { continue };
            let plain = naive.and_then(|naive| outlook.members[naive]).unwrap_or_default();
            for (losses, said) in sums.members.iter_mut().zip(&outlook.members) {
                losses.add(&said.unwrap_or(plain), *actual);
            }
            if let [Some(a), Some(b)] = querybot {
                let mean = mean(outlook.members[a], outlook.members[b]).unwrap_or(plain);
                sums.querybot.add(&mean, *actual);
            }
            sums.count += 1.0;
            sums.ensemble.add(&outlook.quantiles, *actual);
            sums.absolute += (outlook.quantiles.q50 - actual).abs();
            let (inside, strict) = held(&outlook.quantiles, *actual, are_whole[series]);
            sums.inside += inside;
            sums.strict += strict;
            if is_settled(&trace.shifts, target, *ahead) {
                sums.settled += 1.0;
                sums.settled_inside += inside;
            }
            sums.open += f64::from(u8::from(outlook.standing.is_proven()));
        }
    })?;
    let mut all = Vec::new();
    for ((name, calls), sums) in trace.series.iter().zip(&sums) {
        let logs: Vec<f64> = calls.iter().map(|calls| calls.ln_1p()).collect();
        let found = seasons(&logs, trace.tick_ms);
        let before = seasonal_error(&calls[..test], found.first().copied());
        for (ahead, sums) in horizons.iter().zip(sums) {
            let mut scored = scored(sums, &names, before);
            scored.series.clone_from(name);
            scored.horizon = *ahead;
            scored.is_day = *ahead as u64 * trace.tick_ms == DAY_MS;
            scored.has_season = !found.is_empty();
            scored.querybot = if querybot.contains(&None) { f64::NAN } else { scored.querybot };
            all.push(scored);
        }
    }
    Ok(all)
}

fn scored(sums: &Sums, names: &[String], before: f64) -> Scored {
    let of = |name: &str| names.iter().position(|other| other == name).map(|at| sums.members[at]);
    // The better of day and week; a silent member counts as naive already.
    let plain = [of("seasonal_naive"), of("seasonal_naive_long")].into_iter().flatten();
    let unit = plain.min_by(|a, b| a.logs.total_cmp(&b.logs)).or(of("naive")).unwrap_or_default();
    let (logs, calls) = (unit.logs.max(1e-9), unit.calls.max(1e-9));
    let by_name = |value: &dyn Fn(&Losses) -> f64| -> BTreeMap<String, f64> {
        names.iter().cloned().zip(sums.members.iter().map(value)).collect()
    };
    let count = sums.count.max(1.0);
    Scored {
        series: String::new(),
        horizon: 0,
        is_day: false,
        has_season: false,
        count: sums.count as usize,
        ensemble: sums.ensemble.logs / logs,
        members: by_name(&|losses| losses.logs / logs),
        querybot: sums.querybot.logs / logs,
        in_calls: sums.ensemble.calls / calls,
        mase: sums.absolute / count / before.max(1e-9),
        log_mse: sums.ensemble.squares / count,
        log_mse_members: by_name(&|losses| losses.squares / count),
        coverage: sums.inside / count,
        strict: sums.strict / count,
        settled: if sums.settled > 0.0 { sums.settled_inside / sums.settled } else { f64::NAN },
        open: sums.open / count,
    }
}

/// Whether an interval holds what happened, with its ends and without them, as one or zero. Of a load of whole
/// numbers its ends are some, too: the nearest.
fn held(said: &Quantiles, actual: f64, is_whole: bool) -> (f64, f64) {
    let end = |quantile: f64| if is_whole { quantile.round() } else { quantile };
    let said = Quantiles { q10: end(said.q10), q90: end(said.q90), ..*said };
    let strict = said.q10 < actual && actual < said.q90;
    (f64::from(u8::from(said.holds(actual))), f64::from(u8::from(strict)))
}

/// Whether intervals should be honest again at `target`, after the last jump of the level before it.
fn is_settled(shifts: &[usize], target: usize, ahead: usize) -> bool {
    let last = shifts.iter().rfind(|shift| **shift <= target);
    last.is_some_and(|shift| target - shift >= SETTLED_AFTER + 2 * ahead)
}

/// Mean of two forecasts in logarithms.
fn mean(a: Option<Quantiles>, b: Option<Quantiles>) -> Option<Quantiles> {
    let (a, b) = (a?, b?);
    let mean = |a: f64, b: f64| ((a.ln_1p() + b.ln_1p()) / 2.0).exp_m1();
    Some(Quantiles { q10: mean(a.q10, b.q10), q50: mean(a.q50, b.q50), q90: mean(a.q90, b.q90) })
}

/// Mean absolute difference to one season ago, or to the last tick.
fn seasonal_error(calls: &[f64], season: Option<usize>) -> f64 {
    let lag = season.unwrap_or(1).clamp(1, calls.len().saturating_sub(1).max(1));
    let pairs = calls.iter().zip(calls.iter().skip(lag));
    pairs.map(|(a, b)| (a - b).abs()).sum::<f64>() / (calls.len() - lag).max(1) as f64
}

#[cfg(test)]
mod tests {
    use foreshard_policy::forecast::RidgeMember;
    use foreshard_policy::forecast::naive::Naive;
    use foreshard_policy::forecast::seasonal::{SeasonalNaive, Which};
    use foreshard_policy::forecast::smoothing::Smoothing;

    use super::*;
    use crate::forecast::families;

    fn members() -> Vec<Box<dyn Member>> {
        vec![
            Box::new(Naive),
            Box::new(SeasonalNaive(Which::Shortest)),
            Box::new(Smoothing::default()),
            Box::new(RidgeMember::default()),
        ]
    }

    fn short(family: &str) -> Trace {
        let mut trace = families::all(1, true).into_iter().find(|t| t.name == family).unwrap();
        trace.series[0].1.truncate(1_200);
        trace
    }

    /// All that is said at origins before `until`.
    fn said(trace: &Trace, until: usize) -> Vec<Vec<Outlook>> {
        let mut mixer = Mixer::new(members(), vec![1, 6]);
        let mut all = Vec::new();
        walk(trace, &mut mixer, &[1, 6], (&FITS, 0), |origin, _, outlooks| {
            if origin < until {
                all.push(outlooks.to_vec());
            }
        })
        .unwrap();
        all
    }

    #[test]
    fn intervals_have_some_time_after_a_jump_of_the_level() {
        let shifts = [100, 1_000];
        let settled = |target| is_settled(&shifts, target, 6);
        assert_eq!(
            [99, 311, 312, 999, 1_000, 1_212].map(settled),
            [false, false, true, true, false, true]
        );
        assert!(!is_settled(&[], 5_000, 6));
    }

    #[test]
    fn an_interval_of_whole_numbers_holds_its_ends_and_is_judged_without_them_too() {
        let rare = Quantiles { q10: 0.003, q50: 0.01, q90: 0.6 };
        assert_eq!(held(&rare, 0.0, true), (1.0, 0.0), "an end of 0.003 calls is none");
        assert_eq!(held(&rare, 1.0, true), (1.0, 0.0));
        assert_eq!(held(&rare, 2.0, true), (0.0, 0.0));
        assert_eq!(held(&rare, 0.0, false), (0.0, 0.0));
        assert_eq!(held(&rare, 0.5, false), (1.0, 1.0));
    }

    #[test]
    fn nothing_is_said_from_the_future() {
        let trace = short("season");
        let mut poisoned = trace.clone();
        poisoned.series[0].1[900..].fill(f64::NAN);
        let (plain, poisoned) = (said(&trace, 900), said(&poisoned, 900));
        assert_eq!(plain.len(), 900 - 720);
        assert_eq!(plain, poisoned);
    }

    #[test]
    fn the_mix_is_scored_in_multiples_of_the_seasonal_forecast() {
        let scored = evaluate(&short("season"), members(), 0).unwrap();
        let one = &scored[0];
        assert_eq!((one.horizon, one.count), (1, 240));
        assert!(one.ensemble < 0.95 && one.log_mse > 0.0, "{one:?}");
        assert!((0.7..0.9).contains(&one.coverage), "{one:?}");
        assert!((one.members["seasonal_naive"] - 1.0).abs() < 1e-9);
        assert!(one.querybot.is_nan());
    }
}
