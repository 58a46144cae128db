//! What do forecasts cost? Time and memory of learning, of a tick of very many series and of a long
//! history, and what queries notice while the network is trained.
//!
//! Times are those of this machine, and its bounds are meant for two cores. Memory is the most that the
//! whole process ever held meanwhile, as the kernel counts it, also for what it only needs to make up the
//! load; without a kernel that counts it, it is not measured.

mod load;
mod memory;
mod queries;

use anyhow::{Context, Result};
use foreshard_actors::ports::Clock;
use foreshard_policy::config::LoopConfig;
use foreshard_policy::forecast::ensemble::{Ensemble, Mixer};
use foreshard_policy::forecast::{Effort, Past, Series, Window};
use foreshard_policy::history::History;
use foreshard_policy::ids::Tick;

use crate::forecast::members;
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use load::Load;
use memory::Peak;

/// Ticks of a day of minutes.
const DAY: usize = 1_440;

/// Horizons that are learned for.
const HORIZONS: [usize; 3] = [1, 6, 60];

/// Training steps of a fit.
const STEPS: u32 = 300;

/// Ticks of many series that are over before one is measured, and those that are.
const TICKS_BEFORE: usize = 24;
const TICKS_MEASURED: usize = 5;

/// Ticks of the history that holds very many series.
const TICKS_HISTORY: usize = 4;

/// How much is made of everything.
struct Sizes {
    learned: usize,
    ticked: usize,
    remembered: usize,
    steps: u32,
}

const WHOLE: Sizes =
    Sizes { learned: 10_000, ticked: 100_000, remembered: 1_000_000, steps: STEPS };
const QUICK: Sizes = Sizes { learned: 100, ticked: 3_000, remembered: 10_000, steps: 5 };

/// What one part took.
#[derive(Clone, Copy, Debug)]
struct Took {
    seconds: f64,
    peak_mib: f64,
}

/// Runs the benchmark.
///
/// # Errors
/// A member that fails, or what the engine says.
pub async fn run(options: Options) -> Result<Found> {
    let sizes = if options.quick { QUICK } else { WHOLE };
    let asked = options.clone();
    let (learned, ticked, remembered) =
        tokio::task::spawn_blocking(move || -> Result<(Took, [Took; 2], Took)> {
            let clock = &*asked.clock;
            let learned = learn(&sizes, asked.seed, clock)?;
            eprintln!("learned: {learned:?}");
            let ticked = tick(&sizes, asked.seed, clock)?;
            eprintln!("ticked and learned: {ticked:?}");
            Ok((learned, ticked, remember(&sizes, clock)?))
        })
        .await??;
    let sizes = if options.quick { QUICK } else { WHOLE };
    let noticed = queries::noticed(&options).await?;
    let row = |what: &str, series: usize, took: Took| {
        Row::default()
            .with("what", what)
            .with("series", series as u64)
            .with("seconds", took.seconds)
            .with("peak_mib", took.peak_mib)
    };
    let rows = vec![
        row("learn and forecast a day of minutes", sizes.learned, learned),
        row("score and forecast a tick", sizes.ticked, ticked[0]),
        row("learn in a tick", sizes.ticked, ticked[1]),
        row("remember", sizes.remembered, remembered),
    ];
    let figure = |name: &str, value: f64, unit: &'static str, bound: f64| {
        Figure::bounded(name, value, unit, Bound::AtMost(bound))
    };
    let figures = vec![
        figure("learn and forecast a day of minutes", learned.seconds, "s", 30.0),
        figure("memory of that", learned.peak_mib, "MiB", 768.0),
        figure("score and forecast a tick of many series", ticked[0].seconds, "s", 1.0),
        figure("memory of a history of very many series", remembered.peak_mib, "MiB", 2_048.0),
        figure("p95 of queries while the network is trained", noticed.p95, "ratio", 1.05),
        Figure::reported("median of queries while the network is trained", noticed.median, "ratio"),
        Figure::reported("training steps beside queries", noticed.pace, "of those without"),
    ];
    Ok((rows, figures))
}

/// Learns a day of minutes and forecasts three horizons.
fn learn(sizes: &Sizes, seed: u64, clock: &dyn Clock) -> Result<Took> {
    let peak = Peak::start();
    let mut load = Load::new(sizes.learned, seed);
    let mut pasts = vec![Past::default(); sizes.learned];
    for tick in 0..DAY {
        pasts.iter_mut().enumerate().for_each(|(series, past)| past.push(load.calls(series, tick)));
    }
    let series: Vec<Series<'_>> =
        (0..).zip(&pasts).map(|(id, past)| past.series(DAY, id, &[])).collect();
    let window = Window { at: Tick(DAY as u64), tick_ms: 60_000, epoch_ms: 0, series: &series };
    let started = clock.monotonic_ns();
    let mut mixer = Mixer::new(members()?, HORIZONS.to_vec());
    for (member, report) in mixer.fit(&window, Effort::steps(sizes.steps), true) {
        report.with_context(|| format!("{member} did not learn"))?;
    }
    mixer.forecast(&window, &HORIZONS, |_| true)?;
    Ok(Took { seconds: seconds_since(started, clock), peak_mib: peak.mib() })
}

/// The middle time of a tick of very many series: scoring what was said and forecasting anew, and learning.
fn tick(sizes: &Sizes, seed: u64, clock: &dyn Clock) -> Result<[Took; 2]> {
    let peak = Peak::start();
    let config = LoopConfig::default().with_series_max(sizes.ticked)?;
    let mut load = Load::new(sizes.ticked, seed);
    let mut history = History::new(&config);
    let neural = foreshard_actors::predictor::neural_members(&config)?;
    let mut ensemble = Ensemble::new(&config, neural);
    let (mut forecast, mut learned) = (Vec::new(), Vec::new());
    for tick in 0..TICKS_BEFORE + TICKS_MEASURED {
        for series in 0..sizes.ticked {
            let calls = load.calls(series, tick) as u64;
            load::record(&mut history, series, calls);
        }
        history.close_tick();
        let view = history.view();
        if tick + 2 < TICKS_BEFORE {
            continue;
        }
        let started = clock.monotonic_ns();
        ensemble.observe(&view);
        ensemble.forecast(&view, config.horizon_ticks())?;
        forecast.push(seconds_since(started, clock));
        let started = clock.monotonic_ns();
        for (member, report) in ensemble.fit(&view, Effort::steps(config.lstm().steps_per_tick())) {
            report.with_context(|| format!("{member} did not learn"))?;
        }
        learned.push(seconds_since(started, clock));
    }
    let middle = |seconds: &[f64]| {
        let mut measured = seconds[seconds.len() - TICKS_MEASURED..].to_vec();
        measured.sort_by(f64::total_cmp);
        Took { seconds: measured[TICKS_MEASURED / 2], peak_mib: peak.mib() }
    };
    Ok([middle(&forecast), middle(&learned)])
}

/// Counts calls of very many series, as views and checkpoints are made of them.
fn remember(sizes: &Sizes, clock: &dyn Clock) -> Result<Took> {
    let peak = Peak::start();
    let started = clock.monotonic_ns();
    let config = LoopConfig::default().with_series_max(sizes.remembered)?;
    let mut history = History::new(&config);
    for _ in 0..TICKS_HISTORY {
        (0..sizes.remembered).for_each(|series| load::record(&mut history, series, 1));
        history.close_tick();
    }
    let counted = history.view().series.len();
    anyhow::ensure!(counted == sizes.remembered, "only {counted} series are counted");
    Ok(Took { seconds: seconds_since(started, clock), peak_mib: peak.mib() })
}

fn seconds_since(started_ns: u64, clock: &dyn Clock) -> f64 {
    clock.monotonic_ns().saturating_sub(started_ns) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use foreshard_actors::ports::SystemClock;

    use super::*;

    #[test]
    fn all_parts_take_time_and_memory() {
        let sizes = Sizes { learned: 8, ticked: 40, remembered: 100, steps: 1 };
        let [ticked, learned] = tick(&sizes, 1, &SystemClock).unwrap();
        let all = [learn(&sizes, 1, &SystemClock).unwrap(), ticked, learned];
        let all = all.into_iter().chain([remember(&sizes, &SystemClock).unwrap()]);
        for took in all {
            assert!(took.seconds > 0.0, "{took:?}");
            assert!(took.peak_mib > 1.0 || cfg!(not(target_os = "linux")), "{took:?}");
        }
    }
}
