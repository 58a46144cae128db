//! What all arms play, on the engine or in virtual time: calls, rows, costs, and the budget that they have.

use std::time::Duration;

use anyhow::{Result, ensure};
use foreshard_policy::config::{LoopConfig, Mode};
use foreshard_policy::ids::PartitionId;

use super::load::{Call, Load, Shape, VARIANTS, kept_at_first_use};
use super::outlooks::Coming;
use crate::forecast::Trace;

/// The table.
pub(crate) const TABLE: &str = "events";

/// Nodes, each with one permit.
pub(crate) const NODES: u32 = 3;

/// Share of each permit that background work may have.
pub(crate) const BUDGET_SHARE: f64 = 0.3;

/// Minutes that rows stay beyond those that a call may ask for, so that a late one finds them.
pub(crate) const MINUTES_SPARE: usize = 2;

/// Minutes that an arm plays before it is another one's turn.
pub(crate) const TURN: usize = 16;

/// Minutes that are looked ahead.
const LEAD: usize = 4;

/// What the permits are to be used for in the first tenth of peaks where things are stored at first use.
const UTILISATION: f64 = 0.205;

/// Minutes of a window of trust: a sixth of a day.
pub(crate) const WINDOW: usize = 8;

/// What a row of the cheapest and of the dearest function costs.
const COST_MIN_NS: f64 = 20e3;
const COST_MAX_NS: f64 = 2e6;

/// Calls a minute that are tried at most, and how often.
const CALLS_MAX: f64 = 60.0;
const HALVINGS: usize = 20;

/// A look whether all works.
const QUICK: Shape =
    Shape { days: (2, 1), warm_up: 4, minutes: 24, functions: 6, partitions: 6, window: 4 };

/// How much is played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) shape: Shape,
    /// Length of a minute.
    pub(crate) tick: Duration,
    /// What it takes to keep everything fresh, over the background budget.
    pub(crate) demand: f64,
    /// Calls a minute; none to reach [`UTILISATION`].
    pub(crate) calls: Option<f64>,
}

impl Size {
    /// Where refreshing everything takes five thirds of the budget.
    pub(crate) const SCARCE: Self = Self {
        shape: Shape {
            days: (5, 1),
            warm_up: 12,
            minutes: 48,
            functions: 12,
            partitions: 12,
            window: 4,
        },
        tick: Duration::from_millis(2_000),
        demand: 1.65,
        calls: None,
    };

    /// Where it takes half of it.
    pub(crate) const AMPLE: Self =
        Self { tick: Duration::from_millis(1_500), demand: 0.5, ..Self::SCARCE };

    /// The same, or a look whether all works.
    pub(crate) fn or_quick(self, quick: bool) -> Self {
        match quick {
            true => Self { shape: QUICK, calls: Some(4.0), tick: self.tick / 4, ..self },
            false => self,
        }
    }
}

/// Name of a function in SQL.
pub(crate) fn name(place: usize) -> String {
    format!("similar_{place}")
}

/// Position of the function with this name.
pub(crate) fn place(name: &str) -> Option<usize> {
    name.strip_prefix("similar_")?.parse().ok()
}

/// What a row of each of so many functions is to cost, in nanoseconds, from the cheapest to the dearest.
pub(crate) fn row_ns_wanted(functions: usize) -> Vec<f64> {
    let costs = functions.div_ceil(VARIANTS);
    let dearer = (COST_MAX_NS / COST_MIN_NS).powf(1.0 / (costs.max(2) - 1) as f64);
    (0..functions).map(|place| COST_MIN_NS * dearer.powi((place / VARIANTS) as i32)).collect()
}

/// What is played.
pub(crate) struct Stage {
    pub(crate) seed: u64,
    pub(crate) load: Load,
    /// Rows that each partition gets a minute.
    pub(crate) each: usize,
    /// Nanoseconds of a row of each function.
    pub(crate) row_ns: Vec<f64>,
    pub(crate) calls: Vec<Call>,
    /// Calls a minute on average.
    pub(crate) calls_a_minute: f64,
    pub(crate) tick: Duration,
    /// What it takes to keep everything fresh, over the background budget.
    pub(crate) demand: f64,
}

impl Stage {
    /// Chooses rows and calls so that demand and use of the permits are as wanted.
    ///
    /// # Errors
    /// A trace without calls.
    pub(crate) fn new(trace: &Trace, size: Size, seed: u64, row_ns: Vec<f64>) -> Result<Self> {
        let Size { shape, tick, demand, calls } = size;
        ensure!(row_ns.len() == shape.functions, "each function costs something");
        let load = Load::new(trace, shape, seed)?;
        // Rows are whole: first as many as the costs that are wanted ask for, then what they come to.
        let budget_ns = BUDGET_SHARE * f64::from(NODES) * tick.as_nanos() as f64;
        let all_ns = row_ns.iter().sum::<f64>() * shape.partitions as f64;
        let each = ((demand * budget_ns / all_ns).round() as usize).max(1);
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
        Ok(Self { seed, load, each, row_ns, calls, calls_a_minute, tick, demand })
    }

    /// How often each pair was called in each minute that is learned from. In the last one nothing but what
    /// players do when they begin: they call each function once.
    pub(crate) fn past(&self) -> Vec<Vec<u32>> {
        let mut minutes = self.load.history(self.calls_a_minute, self.seed);
        minutes.pop();
        minutes
    }

    /// The calls of each minute, as one who knows them all expects them.
    pub(crate) fn coming(&self) -> Coming {
        let mut coming = Coming::default();
        for call in &self.calls {
            let (function, partition) = self.load.shape.of_pair(call.pair);
            let pair = (name(function).into(), PartitionId::new(TABLE, partition as u32));
            *coming.entry(pair).or_default().entry(call.minute).or_insert(0.0) += 1.0;
        }
        coming
    }

    /// Settings of every loop, by the names that users give them.
    pub(crate) fn loop_settings(&self, mode: Mode) -> Vec<(&'static str, String)> {
        vec![
            ("loop.mode", mode.to_string()),
            ("loop.tick-ms", self.tick.as_millis().to_string()),
            // A real day is known from the calendar, which knows nothing of compressed ones.
            ("loop.season-ticks", self.load.shape.minutes.to_string()),
            // Time is compressed; the time that the network takes is not.
            ("loop.lstm.enabled", "false".to_owned()),
            ("loop.precompute.lead-ticks", LEAD.to_string()),
            ("loop.horizon-ticks", LEAD.to_string()),
            ("loop.precompute.budget-share", format!("{BUDGET_SHARE}")),
            ("loop.reshape.steps-in-flight-max", "1000".to_owned()),
            // As is the time in which trust is lost and won.
            ("loop.feedback.window-ticks", WINDOW.to_string()),
            // What is compared is what is computed ahead: nothing is copied or moved.
            ("loop.reshape.copies-max", "1".to_owned()),
            ("loop.reshape.balance-above", "1000".to_owned()),
            ("loop.allocate.cpu-permits", "1".to_owned()),
            ("loop.allocate.nodes-min", NODES.to_string()),
            ("loop.allocate.nodes-max", NODES.to_string()),
        ]
    }

    /// The same, checked.
    ///
    /// # Errors
    /// A setting that is refused; it is named.
    pub(crate) fn loop_config(&self, mode: Mode) -> Result<LoopConfig> {
        let mut all = serde_json::json!({});
        for (key, value) in self.loop_settings(mode) {
            let value = serde_json::from_str(&value).unwrap_or(serde_json::Value::String(value));
            let keys = key.split('.').skip(1);
            *keys.fold(&mut all, |section, key| &mut section[key]) = value;
        }
        Ok(serde_json::from_value(all)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::families;

    #[test]
    fn names_lead_back_to_functions_and_each_cost_is_that_of_some_variants() {
        assert_eq!(place(&name(4)), Some(4));
        assert_eq!(place("other_4"), None);
        let costs = row_ns_wanted(12);
        assert_eq!((costs[0], costs[VARIANTS - 1]), (20e3, 20e3));
        assert!((costs[11] - 2e6).abs() < 1.0, "{costs:?}");
    }

    #[test]
    fn the_loop_of_the_simulation_has_the_settings_of_the_engine() {
        let trace = families::all(1, true).into_iter().find(|it| it.name == "season").unwrap();
        let size = Size::SCARCE.or_quick(true);
        let stage = Stage::new(&trace, size, 1, row_ns_wanted(6)).unwrap();
        let config = stage.loop_config(Mode::Inverted).unwrap();
        assert_eq!(config.mode(), Mode::Inverted);
        assert_eq!((config.tick_ms(), config.season_ticks()), (500, Some(24)));
        assert_eq!(config.precompute().budget_share(), BUDGET_SHARE);
        assert!(!config.lstm().enabled());
        assert!((1.0..3.0).contains(&stage.demand), "{}", stage.demand);
    }
}
