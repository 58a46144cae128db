//! What does a plan cost where there is very much to plan for? A tick of the placement planner and the
//! allocator on one thread, without an engine: 1,000 nodes, 100,000 partitions and a million forecasts, of
//! which calls, rows and steps change from tick to tick as they do in a cluster.
//!
//! The time is what the thread had of a CPU, as the kernel counts it, and that of the clock without a kernel
//! that counts it.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use foreshard_actors::ports::Clock;
use foreshard_policy::allocate::{self, AllocateState};
use foreshard_policy::cluster::{ClusterView, NodeView, OutputView, PartitionView, Step};
use foreshard_policy::config::LoopConfig;
use foreshard_policy::forecast::ensemble::Standing;
use foreshard_policy::forecast::{Forecast, Quantiles, SeriesForecast};
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId, SeriesKey, Tick};
use foreshard_policy::random::SplitMix64;
use foreshard_policy::reshape::{self, PlanState};

use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

/// How much there is to plan for.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    nodes: u32,
    tables: u32,
    /// Partitions of each table.
    partitions: u32,
    /// Functions that are called on each partition.
    functions: u32,
    ticks: u64,
    /// Kinds of steps that must be among those planned, or there was nothing to plan.
    kinds: usize,
}

const WHOLE: Sizes =
    Sizes { nodes: 1_000, tables: 100, partitions: 1_000, functions: 10, ticks: 9, kinds: 4 };
const QUICK: Sizes =
    Sizes { nodes: 20, tables: 4, partitions: 50, functions: 5, ticks: 4, kinds: 3 };

/// Seconds that a plan may take.
const SECONDS_MAX: f64 = 1.0;

/// Busy ms per s that calls on one partition come to in the middle of the day, on average.
const BUSY_MS: f64 = 8.0;

/// Share of partitions that get rows in a tick, and of nodes that are lost or drained in one.
const APPENDED: f64 = 0.02;
const LOST: f64 = 0.002;

/// Share of partitions with two replicas.
const TWO_REPLICAS: f64 = 0.02;

const MIB: u64 = 1 << 20;

/// Runs the benchmark.
///
/// # Errors
/// A setting out of bounds, or plans that plan nothing.
pub async fn run(options: Options) -> Result<Found> {
    let sizes = if options.quick { QUICK } else { WHOLE };
    tokio::task::spawn_blocking(move || measure(sizes, options.seed, &*options.clock)).await?
}

fn measure(sizes: Sizes, seed: u64, clock: &dyn Clock) -> Result<Found> {
    let mut world = World::new(sizes, seed)?;
    let (mut rows, mut seconds) = (Vec::new(), Vec::new());
    for tick in 1..=sizes.ticks {
        world.change(tick);
        let started = cpu_ns(clock);
        let plan = reshape::plan(
            &world.view,
            Some(&world.forecast),
            &world.state,
            &world.config,
            Tick(tick),
        );
        let reshaped = cpu_ns(clock);
        let nodes = allocate::plan(
            &world.view,
            Some(&world.forecast),
            &world.nodes,
            &world.config,
            Tick(tick),
        );
        let allocated = cpu_ns(clock);
        let took = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
        seconds.push(took(started, allocated));
        rows.push(row(tick, &plan, took(started, reshaped), took(reshaped, allocated)));
        world.nodes = nodes.state;
        world.carry_out(plan.steps.into_iter().map(|planned| planned.step), tick);
    }
    seconds.sort_by(f64::total_cmp);
    let (middle, worst) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    ensure!(world.planned.len() >= sizes.kinds, "only {:?} were planned", world.planned);
    let forecasts = world.forecast.series.len() as f64;
    let figures = vec![
        Figure::bounded("plan_seconds", middle, "s", Bound::AtMost(SECONDS_MAX)),
        Figure::reported("plan_seconds_worst", worst, "s"),
        Figure::reported("plan_forecasts", forecasts, "forecasts"),
    ];
    Ok((rows, figures))
}

/// Nanoseconds that this thread ran.
fn cpu_ns(clock: &dyn Clock) -> u64 {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat");
    let first = counted.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    first.unwrap_or_else(|| clock.monotonic_ns())
}

fn row(tick: u64, plan: &reshape::Plan, reshaped: f64, allocated: f64) -> Row {
    let count =
        |kind: &str| plan.steps.iter().filter(|planned| planned.step.kind() == kind).count() as u64;
    Row::default()
        .with("tick", tick)
        .with("reshape_s", reshaped)
        .with("allocate_s", allocated)
        .with("copies", count("copy"))
        .with("moves", count("move"))
        .with("drops", count("drop"))
        .with("outputs", count("precompute"))
        .with("outputs_dropped", count("drop output"))
}

/// A cluster of very many things, and what is expected of it.
struct World {
    view: ClusterView,
    forecast: Forecast,
    /// Mean calls per tick of each series.
    levels: Vec<f64>,
    state: PlanState,
    nodes: AllocateState,
    config: LoopConfig,
    dice: SplitMix64,
    /// Steps of each kind that were planned so far.
    planned: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(sizes: Sizes, seed: u64) -> Result<Self> {
        let config = LoopConfig::default();
        let reshape = config.reshape().clone().with_steps_in_flight_max(sizes.nodes as usize)?;
        let allocate = config.allocate().clone().with_nodes_max(sizes.nodes * 2)?;
        let mut dice = SplitMix64::new(seed);
        let view = view(sizes, &mut dice);
        let (forecast, levels) = forecast(&view, config.horizon_ticks(), &mut dice);
        Ok(Self {
            view,
            forecast,
            levels,
            state: PlanState::default(),
            nodes: AllocateState::default(),
            config: config.with_reshape(reshape)?.with_allocate(allocate)?,
            dice,
            planned: BTreeMap::new(),
        })
    }

    /// What happens between two plans: calls change, rows come, nodes go.
    fn change(&mut self, tick: u64) {
        let dice = &mut self.dice;
        for (series, level) in self.forecast.series.iter_mut().zip(&mut self.levels) {
            *level *= (0.1 * dice.normal()).exp();
            expect(series, *level, tick);
        }
        let ids: Vec<PartitionId> = self.view.partitions.keys().cloned().collect();
        let grown: std::collections::BTreeSet<&PartitionId> =
            dice.sample(ids.len(), APPENDED).into_iter().map(|at| &ids[at as usize]).collect();
        for (target, output) in &mut self.view.outputs {
            if grown.contains(&target.1) {
                output.rows_missing += 1_000;
            }
        }
        let nodes: Vec<NodeId> = self.view.nodes.keys().copied().collect();
        for at in dice.sample(nodes.len(), LOST) {
            let node = nodes[at as usize];
            if tick.is_multiple_of(2) {
                self.view.nodes.remove(&node);
            } else if let Some(view) = self.view.nodes.get_mut(&node) {
                view.draining = true;
            }
        }
    }

    /// Half of the steps are done at once, the others are under way when the next plan is made.
    fn carry_out(&mut self, steps: impl Iterator<Item = Step>, tick: u64) {
        for step in std::mem::take(&mut self.state.in_flight) {
            self.done(&step, tick);
        }
        for (at, step) in steps.enumerate() {
            *self.planned.entry(step.kind()).or_default() += 1;
            if at % 2 == 0 {
                self.done(&step, tick);
            } else {
                self.state.in_flight.push(step);
            }
        }
    }

    fn done(&mut self, step: &Step, tick: u64) {
        if let Some(partition) = step.partition_moved() {
            self.state.changed.insert(partition.clone(), Tick(tick));
        }
        if let Step::Move { from, to, .. } = step {
            self.state.traded.extend([(*from, Tick(tick)), (*to, Tick(tick))]);
        }
        self.view.apply(step);
    }
}

fn view(sizes: Sizes, dice: &mut SplitMix64) -> ClusterView {
    let mut view = ClusterView::default();
    for id in 0..sizes.nodes {
        let taken = if dice.uniform() < 0.1 { 0.95 } else { 0.6 };
        let memory_bytes_max = 64 << 30;
        let node = NodeView {
            memory_bytes_max,
            memory_bytes: (memory_bytes_max as f64 * taken) as u64,
            cpu_permits: 2,
            ..NodeView::default()
        };
        view.nodes.insert(NodeId(id), node);
    }
    for table in 0..sizes.tables {
        let name: std::sync::Arc<str> = format!("table_{table}").into();
        for ordinal in 0..sizes.partitions {
            let replicas = 1 + (dice.uniform() + TWO_REPLICAS) as usize;
            let node =
                |dice: &mut SplitMix64| NodeId((dice.uniform() * f64::from(sizes.nodes)) as u32);
            let holders = (0..replicas).map(|_| node(dice)).collect();
            let part = PartitionView { holders, rows: 100_000, bytes: 16 * MIB };
            view.partitions.insert(PartitionId::new(name.clone(), ordinal), part);
        }
        for function in 0..sizes.functions {
            let number = ExpressionId(u128::from(table) << 64 | u128::from(function));
            for ordinal in 0..sizes.partitions {
                let rows_missing = if dice.uniform() < 0.1 { 20_000 } else { 0 };
                let output = OutputView {
                    function: format!("function_{function}").into(),
                    rows_stored: 100_000 - rows_missing,
                    rows_missing,
                    bytes: MIB,
                    is_state: false,
                    pinned: false,
                };
                view.outputs.insert((number, PartitionId::new(name.clone(), ordinal)), output);
            }
        }
    }
    view
}

/// A forecast of every output, and the mean calls per tick of each series.
fn forecast(view: &ClusterView, horizon: usize, dice: &mut SplitMix64) -> (Forecast, Vec<f64>) {
    let functions = view.outputs.len() as f64 / view.partitions.len().max(1) as f64;
    let mut series: Vec<SeriesForecast> = view
        .outputs
        .iter()
        .map(|((expression, partition), output)| SeriesForecast {
            key: SeriesKey {
                function: output.function.clone(),
                expression: *expression,
                partition: partition.clone(),
            },
            calls: vec![Quantiles::default(); horizon],
            ns_per_call: 2e6,
            ns_per_row: 5_000.0,
            bytes_per_row: 8.0,
            weights: Vec::new(),
            calls_now: 0.0,
            calls_season: 0.0,
            standing: Standing::New,
            announced: false,
        })
        .collect();
    series.sort_by(|a, b| a.key.cmp(&b.key));
    // Log-normal around the mean: few series have most of the calls.
    let deviation = 1.8_f64;
    let mean = BUSY_MS / 2.0 / functions;
    let mut level = || (mean.ln() + deviation * dice.normal() - deviation * deviation / 2.0).exp();
    let levels = series.iter().map(|_| level()).collect();
    let forecast = Forecast { tick_ms: 1_000, series, trusted: true, ..Forecast::default() };
    (forecast, levels)
}

/// Expects a rhythm around the level.
fn expect(series: &mut SeriesForecast, level: f64, tick: u64) {
    let at = |tick: u64| level * (1.0 + 0.3 * (tick as f64 / 20.0).sin());
    series.calls_now = at(tick);
    series.calls_season = level * 100.0;
    for (ahead, calls) in (1..).zip(&mut series.calls) {
        let middle = at(tick + ahead);
        *calls = Quantiles { q10: 0.7 * middle, q50: middle, q90: 1.4 * middle };
    }
}

#[cfg(test)]
mod tests {
    use foreshard_actors::ports::SystemClock;

    use super::*;

    #[test]
    fn a_small_cluster_is_planned_for_and_its_steps_are_counted() {
        let (rows, figures) = measure(QUICK, 1, &SystemClock).unwrap();
        assert_eq!(rows.len() as u64, QUICK.ticks);
        let names: Vec<_> = figures.iter().map(|figure| figure.name.as_str()).collect();
        assert_eq!(names, ["plan_seconds", "plan_seconds_worst", "plan_forecasts"]);
        assert_eq!(figures[2].value, 1_000.0);
    }
}
