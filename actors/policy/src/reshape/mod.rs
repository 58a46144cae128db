//! Which replicas and outputs to add or drop, and why. Pure: same input, same plan.

pub mod budget;
mod precompute;
mod reason;
mod replicate;
mod situation;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use budget::BackgroundBudget;
pub use reason::{Basis, Reason};

use crate::cluster::{ClusterView, Step};
use crate::config::{LoopConfig, Mode};
use crate::forecast::Forecast;
use crate::ids::{Epoch, NodeId, PartitionId, Tick};
use situation::Situation;

/// What a step is expected to bring and to cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Worth {
    /// Nanoseconds of waiting that queries are spared.
    pub benefit_ns: f64,
    /// Nanoseconds of background work, over all nodes that do it.
    pub cost_ns: f64,
    /// Bytes of memory that the step takes on each node (negative: gives back).
    pub bytes: f64,
}

/// A step with why it was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The step.
    pub step: Step,
    /// Why, with numbers and units.
    pub reason: Reason,
    /// What it is expected to be worth.
    pub worth: Worth,
    /// What was known of the target: rows, replicas, memory.
    pub inputs: String,
    /// What was expected of the target.
    pub forecast: String,
    /// What else was considered, best first, with why it was not taken.
    pub alternatives: Vec<String>,
}

/// Steps in the order they are to be sent, and the epoch they bring about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Epoch of the placement once all steps are done; unchanged if no replica changes.
    pub epoch: Epoch,
    /// The steps.
    pub steps: Vec<Planned>,
}

/// What the manager knows besides the view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanState {
    /// Steps that were sent and not answered.
    pub in_flight: Vec<Step>,
    /// When the replicas of a partition last changed.
    pub changed: BTreeMap<PartitionId, Tick>,
    /// Background nanoseconds that each node may still use; a node that is not listed has its share
    /// of one tick. A step may start while this is above zero and may overdraw it, see
    /// [`BackgroundBudget`].
    pub background_ns: BTreeMap<NodeId, i64>,
}

/// Plans the next steps: at most one per partition's replicas, and as many outputs as background
/// time and memory allow, together at most `reshape.steps-in-flight-max` under way.
///
/// * Mode off: nothing. Mode reactive, or a forecast that is not trusted: replicas follow the load
///   of the last ticks, nothing is computed ahead. No forecast at all: only repairs and drains.
/// * In mode inverted the caller hands in [`invert`](crate::forecast::ensemble::invert)ed forecasts;
///   nothing is turned around here.
/// * The promises: a partition never loses its last live replica; only live nodes are named, only
///   nodes that stay get anything, and no node gets a second replica.
#[must_use]
pub fn plan(
    view: &ClusterView,
    forecast: Option<&Forecast>,
    state: &PlanState,
    config: &LoopConfig,
    now: Tick,
) -> Plan {
    let slots = config.reshape().steps_in_flight_max().saturating_sub(state.in_flight.len());
    if config.mode() == Mode::Off || slots == 0 {
        return Plan { epoch: view.epoch, steps: Vec::new() };
    }
    let mut situation = Situation::new(view, forecast, state, config, now);
    let by_heat = situation.by_heat();
    let mut steps = replicate::urgent(&mut situation, &by_heat);
    let replicas = replicate::by_load(&mut situation, &by_heat);
    let mut outputs = precompute::steps(&situation);
    steps.truncate(slots);
    let left = slots - steps.len();
    // Neither kind may starve the other: outputs get half, and what replicas leave over.
    outputs.truncate(left.saturating_sub(replicas.len()).max(left.div_ceil(2)));
    steps.extend(outputs);
    steps.extend(replicas);
    steps.truncate(slots);

    let moves = steps.iter().any(|planned| planned.step.partition_moved().is_some());
    let epoch = if moves { view.epoch.next() } else { view.epoch };
    Plan { epoch, steps }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "epoch {}", self.epoch.0)?;
        for Planned { step, reason, .. } in &self.steps {
            writeln!(f, "  {step} ({reason})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
