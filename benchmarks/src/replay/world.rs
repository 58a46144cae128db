//! What is played: load, rows, functions and the budget that all arms have.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use foreshard_actors::ports::SharedClock;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{NodeId, PartitionId, SeriesKey};

use super::functions::{Function, Rows, TABLE, functions, place};
use super::load::{Call, Load, Shape, kept_at_first_use};
use super::player::engine;
use crate::forecast::Trace;

/// In-process nodes, each with one permit.
pub(super) const NODES: u32 = 3;

/// Share of each permit that background work may have.
const BUDGET_SHARE: f64 = 0.3;

/// What the permits are to be used for in the first tenth of peaks where things are stored at first use.
const UTILISATION: f64 = 0.25;

/// Minutes that are looked ahead.
const LEAD: usize = 4;

/// Calls a minute that are tried at most, and how often.
const CALLS_MAX: f64 = 60.0;
const HALVINGS: usize = 20;

/// How much is played.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) shape: Shape,
    /// Length of a minute.
    pub(super) tick: Duration,
    /// What it takes to keep everything fresh, over the background budget.
    pub(super) demand: f64,
    /// Calls a minute; none to reach [`UTILISATION`].
    pub(super) calls: Option<f64>,
}

/// What all arms play.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) load: Load,
    pub(super) rows: Rows,
    pub(super) functions: Vec<Function>,
    pub(super) calls: Vec<Call>,
    /// Calls a minute on average.
    pub(super) calls_a_minute: f64,
    pub(super) tick: Duration,
    /// What it takes to keep everything fresh, over the background budget.
    pub(super) demand: f64,
}

impl World {
    /// Measures functions, and chooses rows and calls so that demand and use of the permits are as wanted.
    ///
    /// # Errors
    /// A function that fails, or a trace without calls.
    pub(super) fn new(trace: &Trace, size: Size, seed: u64, clock: &SharedClock) -> Result<Self> {
        let Size { shape, tick, demand, calls } = size;
        let load = Load::new(trace, shape, seed)?;
        // Rows are whole: first as many as the costs that are wanted ask for, then what they come to.
        let budget_ns = BUDGET_SHARE * f64::from(NODES) * tick.as_nanos() as f64;
        let probe = Rows::new(shape.partitions, 4, seed);
        let functions = functions(shape.functions, &probe, clock)?;
        let row_ns: Vec<f64> = functions.iter().map(|function| function.row_ns).collect();
        let all_ns = row_ns.iter().sum::<f64>() * shape.partitions as f64;
        let each = ((demand * budget_ns / all_ns).round() as usize).max(1);
        let rows = Rows::new(shape.partitions, each, seed);
        let begins = load.peak_begins();
        let used = |calls_a_minute: f64| {
            let calls = load.calls(calls_a_minute, CALLS_MAX, seed);
            let ns = kept_at_first_use(&calls, &shape, load.played(), &row_ns, each);
            let in_peaks = ns.iter().zip(&begins).filter(|(_, begins)| **begins);
            let (sum, minutes) =
                in_peaks.fold((0.0, 0.0), |all, (ns, _)| (all.0 + ns, all.1 + 1.0));
            sum / (minutes * f64::from(NODES) * tick.as_nanos() as f64)
        };
        let calls_a_minute = calls.unwrap_or_else(|| {
            let (mut low, mut high) = (0.0, CALLS_MAX);
            for _ in 0..HALVINGS {
                let middle = (low + high) / 2.0;
                if used(middle) < UTILISATION { low = middle } else { high = middle }
            }
            high
        });
        let calls = load.calls(calls_a_minute, CALLS_MAX, seed);
        let demand = all_ns * each as f64 / budget_ns;
        Ok(Self { seed, load, rows, functions, calls, calls_a_minute, tick, demand })
    }

    /// Settings of every engine.
    pub(super) fn settings(&self, folder: &Path, mode: &str) -> Vec<(&'static str, String)> {
        vec![
            ("data-dir", folder.to_string_lossy().into_owned()),
            ("nodes", NODES.to_string()),
            ("partitions", "1".to_owned()),
            // Calls come at their times, however many are under way.
            ("limits.queries-max", "10000".to_owned()),
            ("loop.mode", mode.to_owned()),
            ("loop.tick-ms", self.tick.as_millis().to_string()),
            // A real day is known from the calendar, which knows nothing of compressed ones.
            ("loop.season-ticks", self.load.shape.minutes.to_string()),
            // Time is compressed; the time that the network takes is not.
            ("loop.lstm.enabled", "false".to_owned()),
            ("loop.precompute.lead-ticks", LEAD.to_string()),
            ("loop.horizon-ticks", LEAD.to_string()),
            ("loop.precompute.budget-share", format!("{BUDGET_SHARE}")),
            ("loop.reshape.steps-in-flight-max", "1000".to_owned()),
            ("limits.spill-bytes", "0".to_owned()),
            // What is compared is what is computed ahead.
            ("loop.reshape.copies-max", "1".to_owned()),
            ("loop.allocate.cpu-permits", "1".to_owned()),
            ("loop.allocate.nodes-min", NODES.to_string()),
            ("loop.allocate.nodes-max", NODES.to_string()),
        ]
    }

    /// An engine is told the calls of the days before, tick by tick, and what its loop learned of them is
    /// kept in `folder`.
    ///
    /// # Errors
    /// What the engine says.
    pub(super) async fn learn(&self, folder: &Path, clock: &SharedClock) -> Result<()> {
        let engine = engine(self, folder, "reactive", None, Arc::clone(clock)).await?;
        let mut known = vec![None; self.functions.len()];
        for expression in engine.members().expressions().list() {
            if let Some(place) = place(&expression.function) {
                known[place] = Some((expression.function.clone(), expression.id));
            }
        }
        let known = known.into_iter().collect::<Option<Vec<_>>>();
        let known = known.context("every function was called")?;
        let the_loop = engine.control_loop();
        let sink = the_loop.calls();
        // Numbers that no query of this process has.
        let (mut query, rows) = (1 << 40, (self.load.shape.window * self.rows.each) as u64);
        let mut minutes = self.load.history(self.calls_a_minute, self.seed);
        // In the last one the players call each function once.
        minutes.pop();
        for minute in minutes {
            let mut records = Vec::new();
            for (pair, count) in minute.into_iter().enumerate() {
                let (function, partition) = self.load.shape.of_pair(pair);
                let (name, expression) = known[function].clone();
                let ns = (rows as f64 * self.functions[function].row_ns) as u64;
                for _ in 0..count {
                    query += 1;
                    let partition = PartitionId::new(TABLE, partition as u32);
                    let key = SeriesKey { function: name.clone(), expression, partition };
                    records.push(CallRecord {
                        at_ms: clock.now_ms(),
                        rows,
                        ns,
                        would_be_ns: ns,
                        bytes: 8 * rows,
                        ..CallRecord::empty(key, query, NodeId(0), None)
                    });
                }
            }
            sink.offer(records);
            the_loop.tick().await?;
        }
        Ok(engine.shutdown().await?)
    }
}
