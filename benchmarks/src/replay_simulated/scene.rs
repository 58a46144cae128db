//! What is played in virtual time: who calls what on which rows, and what a row costs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey};

use crate::replay::load::Call;
use crate::replay::outlooks::Coming;
use crate::replay::stage::{NODES, Stage, TABLE, TURN, name};

/// Bytes of an output of one row.
pub(super) const BYTES_PER_ROW: u64 = 8;

/// A function on a partition.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// Position of the function.
    pub(super) function: usize,
    /// Position of the partition.
    pub(super) partition: usize,
    /// Nanoseconds of a row.
    pub(super) row_ns: f64,
}

/// A partition.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) id: PartitionId,
    /// Rows that are there from the beginning and stay.
    pub(super) rows_kept: u64,
    /// Rows that come a minute, and minutes whose rows a call asks for.
    pub(super) rows_a_minute: f64,
    pub(super) window: usize,
}

impl Part {
    /// Rows that a call asks for.
    pub(super) fn rows_asked(&self) -> f64 {
        self.rows_kept as f64 + self.rows_a_minute * self.window as f64
    }

    /// Rows that come in a minute.
    pub(super) fn rows_of(&self, minute: i64) -> u64 {
        let until = |minute: i64| (self.rows_a_minute * minute as f64).floor();
        (until(minute + 1) - until(minute)).max(0.0) as u64
    }
}

/// Everything that is played.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) seed: u64,
    pub(super) nodes: u32,
    /// Permits of each node.
    pub(super) permits: u32,
    /// Length of a minute.
    pub(super) tick: Duration,
    /// Minutes that are played, those of a day, and those between two pauses for all to end.
    pub(super) minutes: usize,
    /// The first of them, which do not count.
    pub(super) warm_up: usize,
    pub(super) day: usize,
    pub(super) turn: usize,
    /// Names of the functions.
    pub(super) functions: Vec<Arc<str>>,
    pub(super) parts: Vec<Part>,
    pub(super) pairs: Vec<Pair>,
    /// How often each pair was called in each minute before.
    pub(super) past: Vec<Vec<u32>>,
    /// Calls when play begins, of the newest rows: they are in the history, and take no time.
    pub(super) opening: Vec<usize>,
    pub(super) calls: Vec<Call>,
}

impl Scene {
    /// What is played on engines.
    pub(super) fn of_stage(stage: &Stage) -> Self {
        let shape = stage.load.shape;
        let part = |ordinal: usize| Part {
            id: PartitionId::new(TABLE, ordinal as u32),
            rows_kept: 0,
            rows_a_minute: stage.each as f64,
            window: shape.window,
        };
        let pair = |pair: usize| {
            let (function, partition) = shape.of_pair(pair);
            Pair { function, partition, row_ns: stage.row_ns[function] }
        };
        Self {
            seed: stage.seed,
            nodes: NODES,
            permits: 1,
            tick: stage.tick,
            minutes: stage.load.played(),
            warm_up: shape.warm_up,
            day: shape.minutes,
            turn: TURN,
            functions: (0..shape.functions).map(|place| name(place).into()).collect(),
            parts: (0..shape.partitions).map(part).collect(),
            pairs: (0..shape.pairs()).map(pair).collect(),
            past: stage.past(),
            opening: (0..shape.functions).map(|function| shape.pair(function, 0)).collect(),
            calls: stage.calls.clone(),
        }
    }

    /// What calls of a pair are counted by.
    pub(super) fn series(&self, pair: usize) -> SeriesKey {
        let Pair { function, partition, .. } = self.pairs[pair];
        SeriesKey {
            function: Arc::clone(&self.functions[function]),
            expression: Self::expression(function),
            partition: self.parts[partition].id.clone(),
        }
    }

    /// What a function is known by.
    pub(super) fn expression(function: usize) -> ExpressionId {
        ExpressionId(function as u128 + 1)
    }

    /// What a row of each function costs at first sight, in nanoseconds.
    pub(super) fn row_ns(&self) -> Vec<u64> {
        let mut all = vec![1; self.functions.len()];
        for pair in &self.pairs {
            all[pair.function] = all[pair.function].max(pair.row_ns as u64);
        }
        all
    }

    /// Position of a function by what it is known by.
    pub(super) fn function(&self, expression: ExpressionId) -> Option<usize> {
        let place = usize::try_from(expression.0).ok()?.checked_sub(1)?;
        (place < self.functions.len()).then_some(place)
    }

    /// Pair of a function and a partition, if it is ever called.
    pub(super) fn pair_of(&self) -> BTreeMap<(usize, usize), usize> {
        let pairs = self.pairs.iter().enumerate();
        pairs.map(|(place, pair)| ((pair.function, pair.partition), place)).collect()
    }

    /// The calls of each minute, as one who knows them all expects them.
    pub(super) fn coming(&self) -> Coming {
        let mut coming = Coming::default();
        for call in &self.calls {
            let SeriesKey { function, partition, .. } = self.series(call.pair);
            *coming.entry((function, partition)).or_default().entry(call.minute).or_insert(0.0) +=
                1.0;
        }
        coming
    }
}
