//! Measures on a real engine, alone on the machine, what the model takes for granted.

use anyhow::{Context, Result};
use foreshard::Engine;
use foreshard_actors::ports::SharedClock;
use foreshard_policy::config::Mode;

use super::costs::Costs;
use crate::arms::Samples;
use crate::replay::functions::sql;
use crate::replay::player::engine;
use crate::replay::stage::{NODES, Stage, TABLE};
use crate::replay::world::World;

/// Queries that are not counted, those that are, and minutes whose rows come.
const WARM_UP: usize = 20;
const TIMES: usize = 100;
const MINUTES: usize = 20;

/// What copying a byte takes between nodes of one process: the policy's own guess.
const COPY_NS_PER_BYTE: f64 = 1.0;

/// What is played, with functions that were measured just now, and the costs of all else but forecasts, which are
/// measured while the past is learned.
///
/// # Errors
/// What the engine says.
pub(super) async fn measured(world: World, clock: &SharedClock) -> Result<(Stage, Costs)> {
    let folder = tempfile::tempdir()?;
    let engine = engine(&world, folder.path(), Mode::Reactive, None, clock.clone()).await?;
    let window = world.stage.load.shape.window;
    // Tables are dealt out in turn: each of the first partitions is on another node.
    let on = |partition: usize| sql(0, partition, 0, window);
    let plan_ns = median(&engine, clock, &format!("EXPLAIN {}", on(0))).await?;
    let whole_ns = median(&engine, clock, &on(0)).await?;
    let elsewhere_ns = median(&engine, clock, &on(1 % NODES as usize)).await?;
    let mut appended = Samples::default();
    for minute in 1..=MINUTES as i32 {
        let rows = vec![world.rows.minute(minute)?];
        let began = clock.monotonic_ns();
        engine.append(TABLE, rows).await?;
        let gone = minute - window as i32;
        engine.sql(&format!("DELETE FROM {TABLE} WHERE minute <= {gone}")).await?;
        appended.push(clock.monotonic_ns() - began);
    }
    engine.shutdown().await?;
    let cores = std::thread::available_parallelism().context("how many cores are there?")?.get();
    let costs = Costs {
        cores,
        plan_ns,
        scan_ns: (whole_ns - plan_ns).max(0.0),
        scan_elsewhere_ns: (elsewhere_ns - plan_ns).max(0.0),
        append_ns: appended.median(),
        forecast_ns: 0.0,
        learn_ns: Vec::new(),
        learn_little_ns: 0.0,
        copy_ns_per_byte: COPY_NS_PER_BYTE,
    };
    Ok((world.stage, costs))
}

/// How long a query takes whose outputs are stored since the first time.
async fn median(engine: &Engine, clock: &SharedClock, sql: &str) -> Result<f64> {
    let mut samples = Samples::default();
    for time in 0..WARM_UP + TIMES {
        let began = clock.monotonic_ns();
        engine.sql(sql).await?;
        if time >= WARM_UP {
            samples.push(clock.monotonic_ns() - began);
        }
    }
    Ok(samples.median())
}
