//! Do queries notice that their partitions are copied, moved, dropped, merged and split, and that outputs come
//! and go?
//!
//! Calls come at their times to one engine of three nodes, in windows: in every second one a random step is
//! taken some hundred times a second, in the others nothing happens. Rows come before each window, so there
//! is always something to compute ahead. No call may fail, no answer may differ from plain DataFusion's,
//! and the slowest calls must not get much slower.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use foreshard::demo::measure::quantile;
use foreshard::{Config, Engine};
use foreshard_actors::ports::{Outcome, SharedClock};
use foreshard_policy::ids::{NodeId, PartitionId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::program::{Found, Options};
use crate::replay::functions::{Function, Rows, checksum, fingerprint, functions, sql};
use crate::replay::stage::{TABLE, name};
use crate::report::{Bound, Figure, Row};

const NODES: u32 = 3;
const PARTITIONS: usize = 24;
const FUNCTIONS: usize = 3;

/// Rows that each partition gets before a window, and windows whose rows a call asks for.
const ROWS: usize = 8;
const ASKED: usize = 8;

/// Length of a window, and what happens in it.
const WINDOW: Duration = Duration::from_secs(2);
const CALLS: usize = 80;
const STEPS: usize = 250;

/// Steps of all windows.
const ALL_STEPS: u64 = 10_000;
const ALL_STEPS_QUICK: u64 = 500;

/// Windows after which it is given up: steps that are refused count for nothing.
const WINDOWS_MAX: usize = 400;

/// What was asked, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Answer {
    function: usize,
    partition: usize,
    minute: i32,
    /// In a window with steps.
    is_moved: bool,
    /// From when it was due; none if it failed.
    ns: Option<u64>,
    checksum: u64,
}

/// Runs the benchmark.
///
/// # Errors
/// What an engine says to anything but the calls that are counted.
pub async fn run(options: Options) -> Result<Found> {
    let steps = if options.quick { ALL_STEPS_QUICK } else { ALL_STEPS };
    play(steps, WINDOW, &options).await
}

async fn play(steps_all: u64, window: Duration, options: &Options) -> Result<Found> {
    let rows = Rows::new(PARTITIONS, ROWS, options.seed);
    let functions = functions(FUNCTIONS, &rows, &options.clock)?;
    let folder = tempfile::tempdir()?;
    let engine = engine(&rows, &functions, &folder.path().to_string_lossy()).await?;
    let mut dice = StdRng::seed_from_u64(options.seed);
    let mut done: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut answers = Vec::new();
    let mut minute = 0;
    while done.values().sum::<u64>() < steps_all {
        anyhow::ensure!((minute as usize) < WINDOWS_MAX, "too many steps are refused: {done:?}");
        minute += 1;
        engine.append(TABLE, vec![rows.minute(minute)?]).await?;
        // Two and two, so that a drifting machine favours neither.
        let is_moved = matches!(minute % 4, 2 | 3);
        let asked = ask(&engine, &options.clock, (minute, window, is_moved), dice.random());
        let mut moving = StdRng::seed_from_u64(dice.random());
        let stepped = async {
            let began = Instant::now();
            let mut kinds = Vec::new();
            for number in 0..if is_moved { STEPS } else { 0 } {
                tokio::time::sleep_until(began + window.mul_f64(number as f64 / STEPS as f64))
                    .await;
                kinds.extend(step(&engine, &mut moving).await);
            }
            kinds
        };
        let (window_answers, kinds) = tokio::join!(asked, stepped);
        answers.extend(window_answers?);
        kinds.into_iter().for_each(|kind| *done.entry(kind).or_default() += 1);
        if minute % 16 == 0 {
            eprintln!("{} of {steps_all} steps", done.values().sum::<u64>());
        }
    }
    engine.shutdown().await?;
    let wrong = wrong(&answers, &rows, &functions, minute).await?;
    Ok(found(&answers, &done, wrong, steps_all))
}

/// The engine; steps are taken by hand, and the loop takes none.
async fn engine(rows: &Rows, functions: &[Function], folder: &str) -> Result<Engine> {
    let mut config = Config::default();
    for (key, value) in [
        ("data-dir", folder.to_owned()),
        ("nodes", NODES.to_string()),
        // Calls come at their times, however many are under way.
        ("limits.queries-max", "10000".to_owned()),
        ("partitions", "1".to_owned()),
        ("loop.mode", "reactive".to_owned()),
        ("loop.lstm.enabled", "false".to_owned()),
        ("loop.allocate.cpu-permits", "1".to_owned()),
        ("loop.allocate.nodes-min", NODES.to_string()),
        ("loop.allocate.nodes-max", NODES.to_string()),
    ] {
        config = config.set(key, &value)?;
    }
    let mut builder = Engine::builder().config(config).manual_ticks(true);
    for function in functions {
        builder = builder.function(function.card.clone(), function.udf.clone());
    }
    let engine = builder.start().await?;
    engine.create_memory_table(TABLE, rows.schema(), rows.partitioning(), vec![]).await?;
    for minute in 1 - ASKED as i32..1 {
        engine.append(TABLE, vec![rows.minute(minute)?]).await?;
    }
    for function in 0..functions.len() {
        engine.sql(&sql(function, 0, 0, ASKED)).await?;
    }
    Ok(engine)
}

/// Puts the calls of one window at their times.
async fn ask(
    engine: &Engine,
    clock: &SharedClock,
    (minute, window, is_moved): (i32, Duration, bool),
    seed: u64,
) -> Result<Vec<Answer>> {
    let mut dice = StdRng::seed_from_u64(seed);
    let began = Instant::now();
    let began_ns = clock.monotonic_ns();
    let mut asked = JoinSet::new();
    for number in 0..CALLS {
        let due = window.mul_f64(number as f64 / CALLS as f64);
        tokio::time::sleep_until(began + due).await;
        let (function, partition) =
            (dice.random_range(0..FUNCTIONS), dice.random_range(0..PARTITIONS));
        let (engine, clock) = (engine.clone(), Arc::clone(clock));
        let due_ns = began_ns + u64::try_from(due.as_nanos()).unwrap_or(u64::MAX);
        asked.spawn(async move {
            let answer = engine.sql(&sql(function, partition, minute, ASKED)).await;
            let ns = clock.monotonic_ns().saturating_sub(due_ns);
            let (ns, checksum) = match answer {
                Ok(rows) => (Some(ns), checksum(&rows).unwrap_or(0)),
                Err(error) => {
                    eprintln!("a query failed: {error}");
                    (None, 0)
                }
            };
            Answer { function, partition, minute, is_moved, ns, checksum }
        });
    }
    let mut answers = Vec::with_capacity(CALLS);
    while let Some(answer) = asked.join_next().await {
        answers.push(answer.context("a query broke off")?);
    }
    Ok(answers)
}

/// Takes a random step; says which, if it was not refused.
async fn step(engine: &Engine, dice: &mut StdRng) -> Option<&'static str> {
    let members = engine.members();
    let view = engine.placement();
    let partitions: Vec<&PartitionId> = view.partitions.keys().collect();
    let partition = (*partitions.choose(dice)?).clone();
    let holders: Vec<NodeId> = view.partitions[&partition].holders.iter().copied().collect();
    let nodes: Vec<NodeId> = view.nodes.keys().copied().collect();
    let (from, to) = (*holders.choose(dice)?, *nodes.choose(dice)?);
    match dice.random_range(0..104) {
        0..30 => members.copy(&partition, to).await.ok().map(|_bytes| "copy"),
        30..55 => members.drop_replica(&partition, from).await.ok().map(|()| "drop"),
        55..75 => {
            if from == to || members.copy(&partition, to).await.is_err() {
                return None;
            }
            members.drop_replica(&partition, from).await.ok().map(|()| "move")
        }
        75..95 => {
            let here = view.outputs.keys().filter(|(_, place)| *place == partition);
            let expressions: Vec<_> = here.map(|(expression, _)| *expression).collect();
            let done = members.precompute(*expressions.choose(dice)?, &partition).await;
            matches!(done, Outcome::Done { .. }).then_some("precompute")
        }
        95..100 => members.drop_outputs(None, &partition).await.ok().map(|_count| "drop outputs"),
        100 | 101 => {
            let order = members.store(TABLE)?.snapshot().layout.ordinals().to_vec();
            let at = dice.random_range(1..order.len().max(2));
            let pair = (*order.get(at - 1)?, *order.get(at)?);
            members.merge(&TABLE.into(), pair).await.ok().map(|_reshaped| "merge")
        }
        // One of those that were merged: the others have rows of one key only.
        _ => {
            let (largest, _) = view.partitions.iter().max_by_key(|(_, view)| view.rows)?;
            members.split(largest, None).await.ok().map(|_reshaped| "split")
        }
    }
}

/// Answers that are not those of plain DataFusion.
async fn wrong(
    answers: &[Answer],
    rows: &Rows,
    functions: &[Function],
    last: i32,
) -> Result<usize> {
    let plain = SessionContext::new();
    let batches = (1 - ASKED as i32..=last).map(|minute| rows.minute(minute));
    let batches = batches.collect::<Result<Vec<_>>>()?;
    plain.register_table(TABLE, Arc::new(MemTable::try_new(rows.schema(), vec![batches])?))?;
    // Sums of fingerprints by function, partition and minute.
    let mut sums: BTreeMap<(usize, usize, i32), u64> = BTreeMap::new();
    for (place, function) in functions.iter().enumerate() {
        plain.register_udf(function.udf.clone());
        let sql = format!("SELECT row_id, {}(text), region, minute FROM {TABLE}", name(place));
        for batch in plain.sql(&sql).await?.collect().await? {
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let scores = batch.column(1).as_primitive::<Float64Type>();
            let regions = batch.column(2).as_primitive::<Int32Type>();
            let minutes = batch.column(3).as_primitive::<Int32Type>();
            for row in 0..batch.num_rows() {
                let target = (place, regions.value(row) as usize, minutes.value(row));
                let sum = sums.entry(target).or_default();
                let score = scores.is_valid(row).then(|| scores.value(row));
                *sum = sum.wrapping_add(fingerprint(Some(ids.value(row)), score));
            }
        }
    }
    let expected = |answer: &Answer| {
        let minutes = answer.minute - ASKED as i32 + 1..=answer.minute;
        let sums = minutes.map(|minute| sums.get(&(answer.function, answer.partition, minute)));
        sums.flatten().fold(0_u64, |all, sum| all.wrapping_add(*sum))
    };
    let answered = answers.iter().filter(|answer| answer.ns.is_some());
    Ok(answered.filter(|answer| answer.checksum != expected(answer)).count())
}

fn found(
    answers: &[Answer],
    done: &BTreeMap<&'static str, u64>,
    wrong: usize,
    steps_all: u64,
) -> Found {
    let times = |is_moved: bool| -> Vec<u64> {
        let of_kind = answers.iter().filter(|answer| answer.is_moved == is_moved);
        of_kind.filter_map(|answer| answer.ns).collect()
    };
    let (quiet, moved) = (times(false), times(true));
    let row = |name: &str, times: &[u64]| {
        let ms = |level| quantile(times, level) / 1e6;
        Row::default()
            .with("windows", name)
            .with("calls", times.len() as u64)
            .with("p50_ms", ms(0.5))
            .with("p95_ms", ms(0.95))
            .with("p99_ms", ms(0.99))
    };
    let steps = done.values().sum::<u64>() as f64;
    let failed = answers.iter().filter(|answer| answer.ns.is_none()).count() as f64;
    let slower = |level| quantile(&moved, level) / quantile(&quiet, level);
    let mut figures = vec![
        Figure::bounded("steps", steps, "steps", Bound::AtLeast(steps_all as f64)),
        Figure::bounded("queries_failed", failed, "queries", Bound::Exactly(0.0)),
        Figure::bounded("answers_wrong", wrong as f64, "answers", Bound::Exactly(0.0)),
        Figure::bounded("p99_over_quiet", slower(0.99), "ratio", Bound::AtMost(2.0)),
        Figure::reported("p50_over_quiet", slower(0.5), "ratio"),
    ];
    let kinds = done.iter().map(|(kind, count)| Figure::reported(kind, *count as f64, "steps"));
    figures.extend(kinds);
    (vec![row("quiet", &quiet), row("steps", &moved)], figures)
}

#[cfg(test)]
mod tests {
    use foreshard_actors::ports::SystemClock;

    use super::*;

    #[test]
    fn steps_of_all_kinds_are_taken_in_miniature_and_no_query_fails() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_stack_size(32 << 20)
            .build()
            .unwrap();
        let clock: SharedClock = Arc::new(SystemClock);
        let options = Options {
            seed: 5,
            quick: true,
            traces: vec![],
            simulation: Default::default(),
            queries: None,
            clock,
        };
        let (rows, figures) =
            runtime.block_on(play(300, Duration::from_millis(400), &options)).unwrap();
        assert_eq!(rows.len(), 2);
        let value = |name: &str| {
            figures.iter().find(|figure| figure.name == name).map_or(f64::NAN, |it| it.value)
        };
        assert!(value("steps") >= 300.0);
        assert_eq!((value("queries_failed"), value("answers_wrong")), (0.0, 0.0));
        for kind in ["copy", "drop", "move", "precompute", "drop outputs", "merge", "split"] {
            assert!(value(kind) > 0.0, "{kind}");
        }
    }

    #[test]
    fn one_failed_query_or_wrong_answer_is_one_too_many() {
        let answer = |ns, is_moved| Answer {
            function: 0,
            partition: 0,
            minute: 1,
            is_moved,
            ns,
            checksum: 0,
        };
        let answers = [answer(Some(5), false), answer(Some(9), true), answer(None, true)];
        let (_, figures) = found(&answers, &[("copy", 10)].into(), 1, 10);
        let missed: Vec<&str> =
            figures.iter().filter(|it| !it.holds).map(|it| it.name.as_str()).collect();
        assert_eq!(missed, ["queries_failed", "answers_wrong"]);
    }
}
