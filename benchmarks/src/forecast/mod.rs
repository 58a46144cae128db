//! Are forecasts worth more than repeating the last season? Walks traces of load from origin to origin.
//!
//! Without `--trace` it walks the files of the folder `shared/traces` beside the repository, if it is there,
//! and eight loads that are made up. Losses are pinball losses of the logarithms (a burst would decide alone
//! in calls), as multiples of what seasonal naive loses, the better one of day and week; every member is
//! calibrated in the same way. `querybot` is the mean of ridge regression and LSTM (Ma et al., SIGMOD 2018).

pub(crate) mod evaluate;
pub(crate) mod families;
mod figures;
pub(crate) mod trace;

use std::time::Duration;

use anyhow::Result;
use foreshard_actors::lstm::{Lstm, LstmConfig};
use foreshard_policy::forecast::Member;
use foreshard_policy::forecast::ensemble::statistical_members;

use self::evaluate::{Scored, evaluate};
pub(crate) use self::trace::Trace;
use crate::loads;
use crate::program::{Found, Options};
use crate::report::{Cell, Row};
use crate::threads::each;

/// Most training steps of a fit.
const STEPS: u32 = 300;
const STEPS_QUICK: u32 = 20;

/// Traces that are walked at the same time.
const THREADS: usize = 2;

/// What came of one trace.
struct Walked {
    trace: Trace,
    scored: Vec<Scored>,
    took: Duration,
}

/// Runs the benchmark.
///
/// # Errors
/// A file that is no load, or a member that fails.
pub async fn run(options: Options) -> Result<Found> {
    let traces = traces(&options)?;
    let steps = if options.quick { STEPS_QUICK } else { STEPS };
    let walked = tokio::task::spawn_blocking(move || walk_all(traces, steps, &options)).await??;
    let rows = walked.iter().flat_map(rows).collect();
    Ok((rows, figures::all(&walked)))
}

fn traces(options: &Options) -> Result<Vec<Trace>> {
    if !options.traces.is_empty() {
        return options.traces.iter().map(|file| Trace::read(file)).collect();
    }
    let mut all = Vec::new();
    if !options.quick {
        all.extend(
            loads::beside().iter().map(|file| Trace::read(file)).collect::<Result<Vec<_>>>()?,
        );
    }
    all.extend(families::all(options.seed, options.quick));
    Ok(all)
}

/// Every member of the loop.
pub(crate) fn members() -> Result<Vec<Box<dyn Member>>> {
    let mut members = statistical_members();
    members.push(Box::new(Lstm::new(LstmConfig::default())?));
    Ok(members)
}

fn walk_all(traces: Vec<Trace>, steps: u32, options: &Options) -> Result<Vec<Walked>> {
    each(traces, THREADS, |trace| {
        let started = options.clock.monotonic_ns();
        let scored = evaluate(&trace, members()?, steps)
            .map_err(|error| error.context(format!("on trace {}", trace.name)))?;
        let took = Duration::from_nanos(options.clock.monotonic_ns() - started);
        Ok(Walked { trace, scored, took })
    })
}

fn rows(walked: &Walked) -> Vec<Row> {
    let share = walked.took.as_secs_f64() / walked.scored.len().max(1) as f64;
    let row = |scored: &Scored| {
        Row::default()
            .with("trace", walked.trace.name.as_str())
            .with("series", scored.series.as_str())
            .with("horizon", scored.horizon as u64)
            .with("ensemble", scored.ensemble)
            .with("members", Cell::Map(scored.members.clone()))
            .with("querybot", scored.querybot)
            .with("in_calls", scored.in_calls)
            .with("mase", scored.mase)
            .with("log_mse", scored.log_mse)
            .with("coverage", scored.coverage)
            .with("coverage_without_ends", scored.strict)
            .with("settled_coverage", scored.settled)
            .with("gate_open", scored.open)
            .with("forecasts", scored.count as u64)
            .with("repaired", walked.trace.repaired)
            .with("seconds", share)
    };
    walked.scored.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use foreshard_actors::ports::SystemClock;

    use super::*;

    #[test]
    fn a_file_that_is_named_is_walked_instead_of_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("day.csv");
        let row = |n: usize| format!("{},{}\n", 1_600_000_000 + n * 3_600, 10 + n % 24);
        let rows: String = (0..300).map(row).collect();
        std::fs::write(&path, "time,value\n".to_owned() + &rows).unwrap();
        let clock = Arc::new(SystemClock);
        let options = Options {
            seed: 1,
            quick: true,
            traces: vec![path],
            simulation: Default::default(),
            queries: None,
            clock,
        };
        let traces = traces(&options).unwrap();
        assert_eq!(traces.len(), 1);
        assert_eq!((traces[0].name.as_str(), traces[0].ticks()), ("day", 298));
    }
}
