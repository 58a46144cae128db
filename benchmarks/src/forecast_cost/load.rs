//! A load of many series: each has a level of its own, a rhythm and noise.

use std::f64::consts::TAU;

use foreshard_policy::calls::CallRecord;
use foreshard_policy::history::History;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId, SeriesKey};
use foreshard_policy::random::SplitMix64;

/// Ticks after which the load repeats.
const SEASON: usize = 240;

/// Partitions of a table.
const PARTITIONS: usize = 1_000;

/// Calls per tick, drawn anew each time that they are asked for.
pub(super) struct Load {
    levels: Vec<f64>,
    dice: SplitMix64,
}

impl Load {
    pub(super) fn new(series: usize, seed: u64) -> Self {
        let mut dice = SplitMix64::new(seed);
        let levels = (0..series).map(|_| (2.0 * dice.normal()).exp().min(200.0)).collect();
        Self { levels, dice }
    }

    /// Whole calls of a series in a tick.
    pub(super) fn calls(&mut self, series: usize, tick: usize) -> f64 {
        let rhythm = 1.0 + 0.8 * ((tick + series) as f64 / SEASON as f64 * TAU).sin();
        let rate = self.levels[series] * rhythm;
        (rate + rate.sqrt() * self.dice.normal()).round().max(0.0)
    }
}

/// Counts so many calls of a series; at once, since what counts is how many series there are.
pub(super) fn record(history: &mut History, series: usize, calls: u64) {
    if calls == 0 {
        return;
    }
    let key = SeriesKey {
        function: "score".into(),
        expression: ExpressionId((series / PARTITIONS) as u128),
        partition: PartitionId::new("t", (series % PARTITIONS) as u32),
    };
    let call = CallRecord {
        rows: 100,
        ns: 100_000,
        would_be_ns: 100_000,
        bytes: 800,
        ..CallRecord::empty(key, 0, NodeId(0), None)
    };
    // More than some calls of one series in one tick change nothing about what is measured.
    (0..calls.min(CALLS_MAX)).for_each(|_| history.record(&call));
}

/// Calls of a series that are counted in one tick.
const CALLS_MAX: u64 = 4;
