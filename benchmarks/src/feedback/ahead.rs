//! Outputs that are computed ahead on one node in virtual time: rows are appended, functions are called, and the
//! ledger counts what the first call of new rows found stored.

use std::collections::BTreeMap;

use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::{ClusterView, NodeView, OutputView, PartitionView};
use foreshard_policy::config::LoopConfig;
use foreshard_policy::decision::{By, Ledger, Outcome, Stamp};
use foreshard_policy::forecast::Forecast;
use foreshard_policy::forecast::ensemble::invert;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId, SeriesKey, Tick};
use foreshard_policy::random::SplitMix64;
use foreshard_policy::reshape::{BackgroundBudget, PlanState, plan};

use super::days::Days;
use super::load::Load;
use super::outlook::{Cost, Outlook};

const FUNCTIONS: usize = 4;
const PARTITIONS: usize = 20;

/// Ticks after which a partition gets rows, on average, and how many.
const APPENDED_EVERY: f64 = 40.0;
const APPENDED_ROWS: f64 = 400.0;

/// Rows of a partition before anything was appended.
const ROWS: u64 = 2_000;

/// What a row of the cheapest function costs; each other one costs twice as much as the one before.
const ROW_NS: f64 = 50_000.0;

/// Deviation of the logarithm of what a row costs from call to call.
const NOISE: f64 = 0.15;

/// Calls on all pairs in a tick of full load, and the exponent of Zipf's law by which they are popular.
const CALLS: f64 = 12.0;
const ZIPF: f64 = 1.0;

/// Calls at night, when a function is of no use, over those of the whole day.
const NIGHT: f64 = 0.02;

/// Decisions that are kept.
const ROWS_MAX: usize = 4_000;

/// One function on one partition.
struct Pair {
    key: SeriesKey,
    row_ns: f64,
    weight: f64,
    phase: f64,
    /// Rows that nobody asked for yet: all, and stored ones.
    fresh: (u64, u64),
}

fn pairs(dice: &mut SplitMix64) -> Vec<Pair> {
    let mut ranks: Vec<usize> = (1..=FUNCTIONS * PARTITIONS).collect();
    for at in (1..ranks.len()).rev() {
        ranks.swap(at, (dice.uniform() * (at + 1) as f64) as usize);
    }
    let pair = |(number, rank): (usize, usize)| {
        let (function, partition) = (number / PARTITIONS, number % PARTITIONS);
        Pair {
            key: SeriesKey {
                function: format!("f{function}").into(),
                expression: ExpressionId(function as u128),
                partition: PartitionId::new("t", partition as u32),
            },
            row_ns: ROW_NS * f64::from(1 << function),
            weight: (rank as f64).powf(-ZIPF),
            phase: dice.uniform(),
            fresh: (0, 0),
        }
    };
    ranks.into_iter().enumerate().map(pair).collect()
}

struct Node {
    config: LoopConfig,
    view: ClusterView,
    budget: BackgroundBudget,
    ledger: Ledger,
    days: Days,
    /// Outputs that are computed in the next tick.
    under_way: Vec<(u64, usize)>,
}

/// Plays a load; `is_inverted` turns forecasts upside down.
pub(crate) fn play(load: &Load, seed: u64, config: &LoopConfig, is_inverted: bool) -> Days {
    let mut dice = SplitMix64::new(!seed);
    let mut pairs = pairs(&mut dice);
    let cost = |pair: &Pair| Cost {
        ns_per_call: pair.row_ns * ROWS as f64,
        ns_per_row: pair.row_ns,
        bytes_per_row: 8.0,
    };
    let keys = pairs.iter().map(|pair| (pair.key.clone(), cost(pair))).collect();
    let mut outlook = Outlook::new(keys, load.day_ticks);
    let mut node = Node::new(config, &pairs);
    let all: f64 = pairs.iter().map(|pair| pair.weight).sum();
    for (tick, share) in load.shares.iter().enumerate() {
        let hour = tick as f64 / load.day_ticks as f64;
        node.append(&mut pairs, &mut dice);
        let mut counts = Vec::with_capacity(pairs.len());
        for pair in &mut pairs {
            let sun = (std::f64::consts::TAU * (hour + pair.phase)).sin().max(0.0);
            let rhythm = NIGHT + 4.0 * sun * sun;
            let calls = dice.poisson(CALLS * share * rhythm * pair.weight / all);
            counts.push(calls);
            (0..calls).for_each(|_| node.call(pair, tick as u64, &mut dice));
        }
        let forecast = outlook.next(&counts, config);
        let mut forecast = if is_inverted { invert(&forecast) } else { forecast };
        node.measure(&mut forecast);
        node.close(&mut pairs, tick as u64, load.day_ticks);
        node.plan(&forecast, &pairs, tick as u64);
    }
    node.days
}

impl Node {
    fn new(config: &LoopConfig, pairs: &[Pair]) -> Self {
        let view = NodeView { memory_bytes_max: 1 << 40, cpu_permits: 2, ..NodeView::default() };
        let mut view = ClusterView { nodes: [(NodeId(0), view)].into(), ..ClusterView::default() };
        for pair in pairs {
            let part = PartitionView { holders: [NodeId(0)].into(), rows: ROWS, bytes: 8 * ROWS };
            view.partitions.insert(pair.key.partition.clone(), part);
            let output = OutputView {
                function: pair.key.function.clone(),
                is_state: false,
                rows_stored: ROWS,
                rows_missing: 0,
                bytes: 8 * ROWS,
                pinned: false,
            };
            view.outputs.insert((pair.key.expression, pair.key.partition.clone()), output);
        }
        Self {
            config: config.clone(),
            view,
            budget: BackgroundBudget::default(),
            ledger: Ledger::new(ROWS_MAX),
            days: Days::default(),
            under_way: Vec::new(),
        }
    }

    fn output(&mut self, key: &SeriesKey) -> Option<&mut OutputView> {
        self.view.outputs.get_mut(&(key.expression, key.partition.clone()))
    }

    /// Appends rows to some partitions: the oldest rows fall out of what is asked for.
    fn append(&mut self, pairs: &mut [Pair], dice: &mut SplitMix64) {
        for partition in 0..PARTITIONS {
            if dice.uniform() > 1.0 / APPENDED_EVERY {
                continue;
            }
            let rows = (APPENDED_ROWS * (0.5 + dice.uniform())) as u64;
            for pair in pairs.iter_mut().skip(partition).step_by(PARTITIONS) {
                pair.fresh.0 += rows;
                if let Some(output) = self.output(&pair.key) {
                    output.rows_missing += rows;
                    output.rows_stored = output.rows_stored.saturating_sub(rows);
                }
            }
        }
    }

    /// One call on all rows: what is missing is computed, and stored from then on.
    fn call(&mut self, pair: &mut Pair, tick: u64, dice: &mut SplitMix64) {
        let row_ns = pair.row_ns * (NOISE * dice.normal()).exp();
        let fresh = std::mem::take(&mut pair.fresh);
        let Some(output) = self.output(&pair.key) else { return };
        let (stored, missing) = (output.rows_stored, output.rows_missing);
        output.rows_stored += std::mem::take(&mut output.rows_missing);
        let call = CallRecord {
            rows: stored + missing,
            rows_stored: stored,
            rows_fresh: fresh.0,
            rows_fresh_stored: fresh.1,
            ns: (missing as f64 * row_ns) as u64,
            would_be_ns: ((stored + missing) as f64 * row_ns) as u64,
            ..CallRecord::empty(pair.key.clone(), tick, NodeId(0), None)
        };
        self.ledger.credit(&call);
    }

    /// Calls ask for all rows there are.
    fn measure(&self, forecast: &mut Forecast) {
        for series in &mut forecast.series {
            let target = (series.key.expression, series.key.partition.clone());
            if let Some(output) = self.view.outputs.get(&target) {
                let rows = output.rows_stored + output.rows_missing;
                series.ns_per_call = rows as f64 * series.ns_per_row;
            }
        }
    }

    fn close(&mut self, pairs: &mut [Pair], tick: u64, day_ticks: usize) {
        self.budget.refill([NodeId(0)], &self.config);
        self.ledger.close_tick(Tick(tick), &self.config, &self.view.nodes);
        let judged = tick.saturating_sub(self.config.precompute().lead_ticks() as u64 + 1);
        self.days.judge(&self.ledger, day_ticks, |row| row.tick.0 <= judged);
        for (id, number) in std::mem::take(&mut self.under_way) {
            let pair = &mut pairs[number];
            if let Some(output) = self.output(&pair.key) {
                output.rows_stored += std::mem::take(&mut output.rows_missing);
                pair.fresh.1 = pair.fresh.0;
            }
            self.ledger.ended(id, Outcome::Done { rows: 0, bytes: 0, ns: 1 });
        }
    }

    fn plan(&mut self, forecast: &Forecast, pairs: &[Pair], tick: u64) {
        let state = PlanState {
            trust: self.ledger.trust().now(),
            background_ns: self.budget.free_ns().clone(),
            ..PlanState::default()
        };
        let plan = plan(&self.view, Some(forecast), &state, &self.config, Tick(tick));
        let mode = self.config.mode();
        let (epoch, tick) = (plan.epoch, Tick(tick));
        let stamp = Stamp { epoch, mode, tick, at_ms: tick.0 * self.config.tick_ms() };
        let numbers: BTreeMap<_, usize> = (pairs.iter().enumerate())
            .map(|(at, pair)| ((pair.key.expression, &pair.key.partition), at))
            .collect();
        let lead = self.config.precompute().lead_ticks() as u64;
        for planned in plan.steps {
            let aim = planned.step.aim();
            let number = aim.expression.zip(aim.partition.as_ref());
            let Some((number, table)) =
                number.and_then(|target| Some((numbers.get(&target)?, &target.1.table)))
            else {
                continue;
            };
            self.budget.charge(NodeId(0), table, planned.worth.cost_ns);
            let id = self.ledger.decided(&planned, By::Loop, stamp);
            self.ledger.judge_at(id, Tick(tick.0 + lead + 1));
            self.days.taken(id);
            self.under_way.push((id, *number));
        }
    }
}
