//! Which partitions to split or merge, which replicas and outputs to add or drop, and why. Pure: same input, same plan.

mod balance;
pub mod budget;
pub mod churn;
mod colocate;
mod costs;
pub mod cut;
mod declared;
mod holdback;
mod parts;
mod precompute;
mod prefetch;
mod purse;
mod reason;
mod replicate;
mod shards;
mod situation;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use budget::BackgroundBudget;
pub use churn::MovedBytes;
pub use costs::KnownCosts;
pub use prefetch::ROWS_SHARE;
pub use reason::{Basis, Reason};
pub(crate) use replicate::COPY_NS_PER_BYTE;

use crate::budgets::Spent;
use crate::cluster::{Aim, ClusterView, Step};
use crate::config::{LoopConfig, Mode};
use crate::control::{Control, Controls};
use crate::forecast::Forecast;
use crate::ids::{Epoch, NodeId, PartitionId, Tick};
use crate::trust::Trusted;
use situation::{Place, Situation};

/// Of the steps that nothing but their worth asks for, one in so many may be of rows.
const ROWS_PART: usize = 4;

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
    /// Steps on tables whose steps people want to approve first. Nothing else counts on them, and each of
    /// them on nothing but itself.
    pub suggested: Vec<Planned>,
    /// Copies that wait because too much was moved within the hour, the hottest first.
    pub waiting: Vec<Planned>,
    /// Steps that are left out so that what others like them spare can be compared with it.
    pub held_back: Vec<Planned>,
}

/// What the manager knows besides the view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanState {
    /// Steps that were sent and not answered.
    pub in_flight: Vec<Step>,
    /// When the replicas of a partition last changed.
    pub changed: BTreeMap<PartitionId, Tick>,
    /// What rows cost before that.
    pub costs: KnownCosts,
    /// When a node last gave or took a replica in a move.
    pub traded: BTreeMap<NodeId, Tick>,
    /// When a partition of a table was last split or merged.
    pub reshaped: BTreeMap<Arc<str>, Tick>,
    /// Background nanoseconds that each node may still use; a node that is not listed has its share
    /// of one tick. A step may start while this is above zero and may overdraw it, see
    /// [`BackgroundBudget`].
    pub background_ns: BTreeMap<NodeId, i64>,
    /// Background nanoseconds that were spent of late on each node for each table.
    pub background_spent: Spent,
    /// What people let the loop do to each table.
    pub controls: Controls,
    /// What was undone or did harm not long ago, and is not planned again yet.
    pub avoided: BTreeSet<Aim>,
    /// How far the expectations of each kind of step are trusted; of one that is not named, wholly.
    pub trust: BTreeMap<&'static str, Trusted>,
    /// Kinds of which so many steps were judged that some may be held back.
    pub known: BTreeSet<&'static str>,
    /// Bytes that copies moved within the last hour.
    pub moved: MovedBytes,
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
/// * Tables that people do not leave to the loop get repairs and drains only. Where they want to approve
///   each step, the steps are planned for themselves, after all others, and only suggested.
#[must_use]
pub fn plan(
    view: &ClusterView,
    forecast: Option<&Forecast>,
    state: &PlanState,
    config: &LoopConfig,
    now: Tick,
) -> Plan {
    let most = config.reshape().steps_in_flight_max();
    let slots = most.saturating_sub(state.in_flight.len());
    let suggests = state.controls.suggests(config.control());
    if config.mode() == Mode::Off || (slots == 0 && !suggests) {
        return Plan { epoch: view.epoch, ..Plan::default() };
    }
    let mut situation = Situation::new(view, forecast, state, config, now);
    let by_heat = situation.by_heat();
    let mut steps = replicate::urgent(&mut situation, &by_heat);
    steps.truncate(slots);
    steps.extend(by_worth(&mut situation, &by_heat, slots - steps.len()));
    let suggested = if suggests {
        situation.planning_for = Control::Suggest;
        by_worth(&mut situation, &by_heat, most)
    } else {
        Vec::new()
    };
    let moves = steps.iter().any(|planned| planned.step.changes_placement());
    let epoch = if moves { view.epoch.next() } else { view.epoch };
    let (waiting, held_back) = (situation.waiting, situation.held_back);
    Plan { epoch, steps, suggested, waiting, held_back }
}

/// At most so many steps that nothing but their worth asks for, on the tables that are planned for.
fn by_worth(situation: &mut Situation<'_>, by_heat: &[Place], slots: usize) -> Vec<Planned> {
    // Neither kind may starve the other. What is not sent is not planned, or outputs would count on it.
    let most = if situation.ahead.is_empty() { slots } else { slots.div_ceil(2) };
    let mut replicas = replicate::hot(situation, by_heat, most);
    shards::steps(situation, most, &mut replicas);
    declared::steps(situation, most, &mut replicas);
    let until = holdback::until(situation);
    if until.is_none() {
        balance::steps(situation, most, &mut replicas);
    }
    colocate::steps(situation, most, &mut replicas);
    replicate::cold(situation, by_heat, most, &mut replicas);
    let mut steps = precompute::steps(situation);
    let left = slots - replicas.len();
    let rows = prefetch::steps(situation, &steps, left.div_ceil(ROWS_PART));
    steps.truncate(left - rows.len());
    steps.extend(rows);
    steps.extend(replicas);
    if let Some(until) = until {
        holdback::steps(situation, most, until); // Last: nothing else counts on them.
    }
    steps
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "epoch {}", self.epoch.0)?;
        for Planned { step, reason, .. } in &self.steps {
            writeln!(f, "  {step} ({reason})")?;
        }
        for Planned { step, reason, .. } in &self.suggested {
            writeln!(f, "  suggested: {step} ({reason})")?;
        }
        for Planned { step, reason, .. } in &self.waiting {
            writeln!(f, "  waiting: {step} ({reason})")?;
        }
        for Planned { step, reason, .. } in &self.held_back {
            writeln!(f, "  held back: {step} ({reason})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
