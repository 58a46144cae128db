//! What is played: load, rows, functions and the budget that all arms have.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use foreshard_actors::ports::SharedClock;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::config::Mode;
use foreshard_policy::ids::{NodeId, PartitionId, SeriesKey};

use super::functions::{Function, Rows, functions};
use super::player::engine;
use super::stage::{NODES, Size, Stage, TABLE, place};
use crate::forecast::Trace;

/// What all arms play on engines.
pub(crate) struct World {
    pub(crate) stage: Stage,
    pub(crate) rows: Rows,
    pub(crate) functions: Vec<Function>,
}

impl World {
    /// Measures functions, and chooses rows and calls so that demand and use of the permits are as wanted.
    ///
    /// # Errors
    /// A function that fails, or a trace without calls.
    pub(crate) fn new(trace: &Trace, size: Size, seed: u64, clock: &SharedClock) -> Result<Self> {
        let probe = Rows::new(size.shape.partitions, 4, seed);
        let functions = functions(size.shape.functions, &probe, clock)?;
        let row_ns = functions.iter().map(|function| function.row_ns).collect();
        let stage = Stage::new(trace, size, seed, row_ns)?;
        let rows = Rows::new(size.shape.partitions, stage.each, seed);
        Ok(Self { stage, rows, functions })
    }

    /// Settings of every engine.
    pub(crate) fn settings(&self, folder: &Path, mode: Mode) -> Vec<(&'static str, String)> {
        let mut all = vec![
            ("data-dir", folder.to_string_lossy().into_owned()),
            ("nodes", NODES.to_string()),
            ("partitions", "1".to_owned()),
            // Calls come at their times, however many are under way.
            ("limits.queries-max", "10000".to_owned()),
            ("limits.spill-bytes", "0".to_owned()),
        ];
        all.extend(self.stage.loop_settings(mode));
        all
    }

    /// An engine is told the calls of the days before, tick by tick, and what its loop learned of them is
    /// kept in `folder`.
    ///
    /// # Errors
    /// What the engine says.
    pub(crate) async fn learn(&self, folder: &Path, clock: &SharedClock) -> Result<()> {
        let engine = engine(self, folder, Mode::Reactive, None, Arc::clone(clock)).await?;
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
        let (mut query, rows) = (1 << 40, (self.stage.load.shape.window * self.rows.each) as u64);
        let minutes = self.stage.past();
        for minute in minutes {
            let mut records = Vec::new();
            for (pair, count) in minute.into_iter().enumerate() {
                let (function, partition) = self.stage.load.shape.of_pair(pair);
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
