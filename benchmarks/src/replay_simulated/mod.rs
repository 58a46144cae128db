//! The replay in virtual time: the same load, arms, policy and score, without an engine.
//!
//! The history, the forecasts, the planner, budgets, trust and the ledger are those of the loop; nodes, permits, cores,
//! rows and stored outputs are modelled (`play`) from what functions, queries, appends and forecasts cost, which is
//! measured on an engine before and the same for all arms. With `--real FILE`, a report of the real replay, each arm's
//! time that 19 of 20 calls keep to is held against it. With `--history FILE` somebody's own calls are
//! played instead of a trace: the last fifth of them, after the others were learned from.

mod ahead;
mod cores;
mod costs;
mod measure;
mod node;
mod past;
mod play;
mod query;
mod real;
mod scene;
mod table;
mod the_loop;

use std::path::Path;

use anyhow::{Result, ensure};
use foreshard_actors::ports::SharedClock;
use foreshard_policy::config::{LoopConfig, Mode};

use self::costs::Costs;
use self::real::Real;
use self::scene::Scene;
use crate::forecast::{Trace, families};
use crate::program::{Found, Options};
use crate::replay::arm::{Arm, Played};
use crate::replay::score::{Judged, figures, row};
use crate::replay::stage::{BUDGET_SHARE, Size, Stage};
use crate::replay::trace;
use crate::replay::world::World;
use crate::report::{Bound, Figure, Row};
use crate::threads::each;

/// How far the simulated time that 19 of 20 calls keep to may be from the real one.
const OFF_MAX: f64 = 0.2;

/// How far the number of calls may be from the real one: costs of functions decide it, and are measured anew.
const CALLS_OFF_MAX: f64 = 0.05;

/// Arms and regimes that are played at the same time.
const THREADS: usize = 2;

/// Runs the benchmark.
///
/// # Errors
/// A file that is no load, history or report, or what an engine says.
pub async fn run(options: Options) -> Result<Found> {
    if let Some(file) = options.simulation.history.clone() {
        return own_history(file, options).await;
    }
    let real = options.simulation.real.as_deref().map(real::read).transpose()?.unwrap_or_default();
    let (trace, quick) = (trace(&options)?, options.quick);
    let world = World::new(&trace, Size::SCARCE.or_quick(quick), options.seed, &options.clock)?;
    let (scarce, costs) = measure::measured(world, &options.clock).await?;
    let calls = Some(scarce.calls_a_minute);
    let ample = Size { calls, ..Size::AMPLE.or_quick(quick) };
    let ample = Stage::new(&trace, ample, options.seed, scarce.row_ns.clone())?;
    eprintln!("{costs:?}");
    let clock = options.clock;
    let judged = move || {
        let stages = [("scarce", &scarce, &Arm::ALL[..]), ("ample", &ample, &Arm::EASY[..])];
        each(stages.to_vec(), THREADS, |(name, stage, arms)| {
            Ok((name, simulated(stage, &costs, arms, &clock)?))
        })
    };
    let judged = tokio::task::spawn_blocking(judged).await??;
    found(&judged, &real)
}

/// Plays arms of a stage.
fn simulated(stage: &Stage, costs: &Costs, arms: &[Arm], clock: &SharedClock) -> Result<Judged> {
    let config = |mode: Mode| stage.loop_config(mode);
    let played = all_arms(&Scene::of_stage(stage), costs, arms, config, clock)?;
    Ok(Judged::new(stage, played))
}

fn all_arms(
    scene: &Scene,
    costs: &Costs,
    arms: &[Arm],
    config: impl Fn(Mode) -> Result<LoopConfig> + Sync,
    clock: &SharedClock,
) -> Result<Vec<(Arm, Played)>> {
    let learned = the_loop::learn(scene, &config(Mode::Reactive)?, &|| clock.monotonic_ns())?;
    let costs = costs.with_rounds(&learned.rounds);
    each(arms.to_vec(), THREADS, |arm| {
        Ok((arm, play::play(scene, &costs, (arm, config(arm.mode())?), &learned)?))
    })
}

fn found(judged: &[(&'static str, Judged)], real: &Real) -> Result<Found> {
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for (regime, judged) in judged {
        for arm in &judged.arms {
            let (row, figure) = beside(regime, judged, arm, real)?;
            rows.push(row);
            all.extend(figure);
        }
    }
    if let [(_, scarce), (_, ample)] = judged {
        // Their bounds are for the real one.
        let told = figures(scarce, ample).into_iter();
        let told = told.filter(|figure| figure.name != "answers_different");
        all.extend(told.map(|it| Figure::reported(&it.name, it.value, it.unit)));
    }
    Ok((rows, all))
}

/// A row with what the arm came to in reality, if that is known.
fn beside(
    regime: &'static str,
    judged: &Judged,
    arm: &(Arm, Played),
    real: &Real,
) -> Result<(Row, Option<Figure>)> {
    let (name, p95_ms) = (arm.0.name(), judged.time(arm.0, 0.95) / 1e6);
    let row = row(regime, judged, arm);
    let Some(real) = real.get(&(regime.to_owned(), name.to_owned())) else {
        return Ok((row, None));
    };
    let calls_off = (judged.calls as f64 / real.calls as f64 - 1.0).abs();
    ensure!(
        calls_off <= CALLS_OFF_MAX,
        "the report is of another load: {} calls, and here are {}",
        real.calls,
        judged.calls
    );
    let ratio = p95_ms / real.p95_ms;
    let row = row.with("p95_real_ms", real.p95_ms).with("p95_vs_real", ratio);
    let figure = format!("p95_off_{regime}_{name}");
    let figure = Figure::bounded(&figure, (ratio - 1.0).abs(), "ratio", Bound::AtMost(OFF_MAX));
    Ok((row, Some(figure)))
}

/// Plays an exported history.
async fn own_history(file: std::path::PathBuf, options: Options) -> Result<Found> {
    let Options { seed, clock, .. } = options;
    let probe = season(seed)?;
    let world = World::new(&probe, Size::SCARCE.or_quick(true), seed, &clock)?;
    let (_, costs) = measure::measured(world, &clock).await?;
    let judged = move || history_judged(&file, seed, costs, &clock);
    let judged = tokio::task::spawn_blocking(judged).await??;
    found(&[("history", judged)], &Real::new())
}

fn history_judged(file: &Path, seed: u64, costs: Costs, clock: &SharedClock) -> Result<Judged> {
    let (scene, begins) = past::read(file, seed)?;
    let costs = Costs { cores: scene.nodes as usize, ..costs };
    let config = |mode: Mode| own_config(&scene, mode);
    let budget_share = config(Mode::Forecast)?.precompute().budget_share();
    let permits = f64::from(scene.nodes * scene.permits);
    let refreshed =
        scene.pairs.iter().map(|it| it.row_ns * scene.parts[it.partition].rows_a_minute);
    let tick_ns = scene.tick.as_nanos() as f64;
    let arms = all_arms(&scene, &costs, &Arm::ALL, config, clock)?;
    Ok(Judged {
        tick: scene.tick,
        begins,
        calls: scene.calls.len(),
        calls_a_minute: scene.calls.len() as f64 / scene.minutes.max(1) as f64,
        permits,
        demand: refreshed.sum::<f64>() / (budget_share * permits * tick_ns),
        arms,
    })
}

/// The settings that an engine has by itself, but for the network, whose training is not played.
fn own_config(scene: &Scene, mode: Mode) -> Result<LoopConfig> {
    let config = LoopConfig::default().with_mode(mode)?;
    let config = config.with_tick_ms(scene.tick.as_millis() as u64)?;
    let (lstm, ahead) = (config.lstm().clone(), config.precompute().clone());
    let config = config.with_lstm(lstm.with_enabled(false)?)?;
    Ok(config.with_precompute(ahead.with_budget_share(BUDGET_SHARE)?)?)
}

fn season(seed: u64) -> Result<Trace> {
    let mut made_up = families::all(seed, true).into_iter();
    let season = made_up.find(|trace| trace.name == "season");
    season.ok_or_else(|| anyhow::anyhow!("there is a load with a season"))
}

#[cfg(test)]
mod tests;
