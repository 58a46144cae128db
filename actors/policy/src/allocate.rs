//! How many nodes there are, and what each may use.

mod hours;
mod migration;
mod planner;
pub mod pods;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

pub use hours::NodeHours;
pub use migration::Migration;
pub use planner::{Load, NodePlanner, Z_90};

use crate::cluster::{ClusterView, Step};
use crate::config::{LoopConfig, Mode};
use crate::control::Control;
use crate::forecast::{Forecast, SeriesForecast};
use crate::ids::{NodeId, Tick};
use crate::reshape::{Basis, Planned, Reason, Worth};
use hours::Left;

/// What a tick with more load than the nodes carry costs, in nodes that run for a tick.
const VIOLATED: f64 = 20.0;

/// Ticks in which no node is asked for after one could not be added; twice as many after each further time,
/// so that what cannot work is not tried in every tick.
const REST_TICKS: u64 = 8;

/// Times that the rest is doubled at most.
const REST_DOUBLINGS_MAX: u32 = 6;

/// What one node may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeBudget {
    /// Tasks that may compute at the same time.
    pub cpu_permits: u32,
    /// Bytes of resident segments and stored outputs.
    pub memory_bytes: u64,
}

/// What the allocator remembers between plans.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AllocateState {
    /// Since when fewer nodes would have been enough, and the most that were needed since.
    pub lower: Option<(Tick, u32)>,
    /// Nodes that were asked for. They count as running until the caller takes them out: when they
    /// are in the view, or when adding them failed.
    pub adding: BTreeSet<NodeId>,
    /// Nodes that were asked to leave. They count as gone until the caller takes them out.
    pub removing: BTreeSet<NodeId>,
    /// What nodes ran for today.
    pub hours: NodeHours,
    /// Milliseconds since the Unix epoch; none counts days from the first tick on.
    pub clock_ms: Option<u64>,
    /// How often in a row nodes could not be added, and the first tick in which one is asked for again.
    pub failed: (u32, Tick),
}

impl AllocateState {
    /// A node that was asked for is there.
    pub fn added(&mut self, node: NodeId) {
        self.adding.remove(&node);
        self.failed = (0, Tick(0));
    }

    /// A node that was asked for could not be added: it does not count as running any more, and none is
    /// asked for during a rest, which is longer each time. Several that fail during one rest count once.
    pub fn not_added(&mut self, node: NodeId, now: Tick) {
        self.adding.remove(&node);
        let (times, until) = self.failed;
        if now >= until {
            let rest = REST_TICKS << times.min(REST_DOUBLINGS_MAX);
            self.failed = (times.saturating_add(1), Tick(now.0.saturating_add(rest)));
        }
    }

    /// A node that was asked to leave could not.
    pub fn not_removed(&mut self, node: NodeId) {
        self.removing.remove(&node);
    }
}

/// What to change about the nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AllocatePlan {
    /// Nodes to add or remove: never both in one plan.
    pub steps: Vec<Planned>,
    /// Nodes to add or remove if somebody approves. Nothing counts on them.
    pub suggested: Vec<Planned>,
    /// A node that would be added if there were more node-hours left.
    pub waiting: Vec<Planned>,
    /// What each node, with those to be added, may use.
    pub budgets: BTreeMap<NodeId, NodeBudget>,
    /// Nodes that the load takes besides those that joined from elsewhere, within the bounds.
    pub need: u32,
    /// What to hand to the next call.
    pub state: AllocateState,
}

/// Load of the whole cluster.
struct Demand {
    busy_cpus: f64,
    basis: Basis,
}

/// Plans the number of nodes: out at once, in only after fewer were enough for
/// `allocate.scale-in-ticks`. Nodes that joined from elsewhere take their part of the load, but are
/// neither counted nor told to leave: the bounds are for the nodes that can be started here.
///
/// The need is the load over what a node may keep busy, `cpu-permits * target-utilisation`. With a
/// trusted forecast the load is the highest tick's 90 % quantile (series are called by the same
/// queries, so their quantiles are added), and never less than what is measured now. Where moves take time
/// (`allocate.move-ticks`) a [`NodePlanner`] finds the course that costs least over the whole horizon. In mode off
/// only the budgets are set. Where people do not leave nodes to the loop (`control`), the steps are suggested, or
/// there are none. Never more nodes are asked for than the node-hours that are left allow for the rest of the
/// day (`allocate.node-hours-max`), but `allocate.nodes-min`. After a node could not be added, none is asked for
/// during a rest: [`AllocateState::not_added`].
#[must_use]
pub fn plan(
    view: &ClusterView,
    forecast: Option<&Forecast>,
    state: &AllocateState,
    config: &LoopConfig,
    now: Tick,
) -> AllocatePlan {
    let mut state = arrived(view, state);
    let joined = |node: &NodeId| view.nodes.get(node).is_some_and(|node| node.joined);
    let all = running(view, &state);
    let running: BTreeSet<NodeId> = all.iter().filter(|node| !joined(node)).copied().collect();
    let nodes = count(running.len());
    let elsewhere = count(all.len() - running.len());
    let allocate = config.allocate();
    let clock_ms = hours::clock_ms(state.clock_ms, now, config);
    let ran = running.iter().filter(|node| view.nodes.contains_key(node)).count();
    state.hours.pass(clock_ms, count(ran));
    let before = state.clone();
    let left = state.hours.left(clock_ms, config);
    let wanted_most = allocate.nodes_max();
    let most = left.map_or(wanted_most, |left| left.nodes.max(allocate.nodes_min()));
    let bounds = (allocate.nodes_min(), wanted_most.min(most));
    let busy = forecast.map(|forecast| Busy::of(forecast, config));
    let demand = busy.as_ref().map(Busy::demand);
    let wanted = match &demand {
        Some(demand) => {
            let ahead = busy.and_then(|busy| planned_nodes(&busy, all.len(), config));
            let need = ahead.unwrap_or_else(|| nodes_for(demand, config));
            need.saturating_sub(elsewhere).clamp(bounds.0, wanted_most)
        }
        None => nodes.clamp(bounds.0, wanted_most),
    };
    let need = wanted.clamp(bounds.0, bounds.1);
    let too_few = left.map(|Left { hours, rest, .. }| Reason::NodeHours {
        hours,
        rest,
        most: bounds.1,
        wanted,
    });
    let too_few = too_few.filter(|_| bounds.1 < wanted.max(nodes.min(wanted_most)));
    let mut steps = Vec::new();
    if config.mode() != Mode::Off {
        let in_bounds = nodes.clamp(bounds.0, bounds.1);
        if need > nodes && now < state.failed.1 {
            // What failed a moment ago would fail again.
        } else if need > nodes {
            let reason = match demand {
                Some(Demand { busy_cpus, basis }) if in_bounds == nodes => {
                    Reason::Overloaded { busy_cpus, need, nodes, basis }
                }
                _ => Reason::Bounds { nodes, need },
            };
            steps = add(view, &mut state, need - nodes, reason);
        } else if in_bounds < nodes {
            let reason = too_few.unwrap_or(Reason::Bounds { nodes, need: in_bounds });
            steps = remove(view, &running, &mut state, nodes - in_bounds, reason);
        } else {
            steps = scale_in(view, &running, &mut state, (need, demand.as_ref()), config, now);
        }
    }
    if need >= nodes || !steps.is_empty() {
        state.lower = None;
    }
    let mut waiting = Vec::new();
    if let Some(reason) = too_few.filter(|_| wanted > nodes && config.mode() != Mode::Off) {
        waiting = add(view, &mut state.clone(), 1, reason);
    }
    let mut suggested = Vec::new();
    if config.control() != Control::Auto && !steps.is_empty() {
        suggested = std::mem::take(&mut steps);
        let lower = before.lower.filter(|_| need < nodes);
        state = AllocateState { lower: lower.map(|(at, most)| (at, most.max(need))), ..before };
    }
    if config.control() == Control::Observe {
        suggested.clear();
    }
    let budgets = budgets(&all, &state, config);
    AllocatePlan { budgets, steps, suggested, waiting, need, state }
}

fn count(nodes: usize) -> u32 {
    u32::try_from(nodes).unwrap_or(u32::MAX)
}

/// Forgets what was asked for and has happened.
fn arrived(view: &ClusterView, state: &AllocateState) -> AllocateState {
    let mut state = state.clone();
    state.adding.retain(|node| !view.nodes.contains_key(node));
    state.removing.retain(|node| view.nodes.contains_key(node));
    state
}

/// Nodes that will be there once everything under way is done.
fn running(view: &ClusterView, state: &AllocateState) -> BTreeSet<NodeId> {
    let live = view.nodes.iter().filter(|(_, node)| !node.draining).map(|(node, _)| *node);
    live.filter(|node| !state.removing.contains(node)).chain(state.adding.iter().copied()).collect()
}

/// Nodes that the load takes at its highest within the next `lead_ticks` ticks, wherever they come from: for
/// those who start nodes by themselves, and need so long for it. As in [`plan`] the load is the 90 % quantile of
/// what is expected of series that may be gone by, and never less than what is measured now.
#[must_use]
pub fn nodes_within(forecast: &Forecast, lead_ticks: usize, config: &LoopConfig) -> u32 {
    nodes_for(&Busy::of(forecast, config).demand_within(lead_ticks), config)
}

/// CPUs that calls keep busy, by the measured ones of the last few ticks and by coming ticks.
struct Busy {
    now: f64,
    /// By tick of the horizon, nearest first: the median and the 90 % quantile. Series that may not be gone
    /// by are as now.
    ahead: Vec<(f64, f64)>,
    /// Whether any series may be gone by.
    is_ahead: bool,
}

impl Busy {
    /// Sums up in one walk: there may be a million series.
    fn of(forecast: &Forecast, config: &LoopConfig) -> Self {
        let none =
            Self { now: 0.0, ahead: vec![(0.0, 0.0); config.horizon_ticks()], is_ahead: false };
        let mut busy = none;
        for series in &forecast.series {
            let cost = series.ns_per_call;
            let now = series.calls_now * cost;
            busy.now += now;
            if !is_ahead(forecast, series, config) {
                busy.ahead
                    .iter_mut()
                    .for_each(|(q50, q90)| (*q50, *q90) = (*q50 + now, *q90 + now));
                continue;
            }
            busy.is_ahead = true;
            for ((q50, q90), calls) in busy.ahead.iter_mut().zip(&series.calls) {
                (*q50, *q90) = (*q50 + calls.q50 * cost, *q90 + calls.q90 * cost);
            }
        }
        let cpus = |ns: f64| ns / config.tick_ns();
        busy.now = cpus(busy.now);
        busy.ahead.iter_mut().for_each(|(q50, q90)| (*q50, *q90) = (cpus(*q50), cpus(*q90)));
        busy
    }

    fn demand(&self) -> Demand {
        self.demand_within(self.ahead.len())
    }

    /// What comes within so many ticks.
    fn demand_within(&self, ticks: usize) -> Demand {
        if !self.is_ahead {
            return Demand { busy_cpus: self.now, basis: Basis::Current };
        }
        let ahead = self.ahead.iter().take(ticks);
        let busy_cpus = ahead.map(|(_, q90)| *q90).fold(self.now, f64::max);
        Demand { busy_cpus, basis: Basis::Forecast }
    }
}

fn is_ahead(forecast: &Forecast, series: &SeriesForecast, config: &LoopConfig) -> bool {
    config.mode().looks_ahead() && forecast.may_act_on(series)
}

/// CPUs that a node may keep busy.
fn per_node(config: &LoopConfig) -> f64 {
    f64::from(config.allocate().cpu_permits()) * config.allocate().target_utilisation()
}

fn nodes_for(demand: &Demand, config: &LoopConfig) -> u32 {
    // A load of exactly n nodes takes n; the cast saturates.
    (demand.busy_cpus / per_node(config) - 1e-9).ceil().max(0.0) as u32
}

/// The nodes to go to now where moves take time, from `nodes`: never fewer than what is measured takes.
/// None where moves take none, or nothing is known of what comes.
fn planned_nodes(busy: &Busy, nodes: usize, config: &LoopConfig) -> Option<u32> {
    let step = config.allocate().move_ticks();
    if step == 0 || !busy.is_ahead {
        return None;
    }
    let load = |(q50, q90): &(f64, f64)| Load::new(q50 / per_node(config), q90 / per_node(config));
    let loads: Vec<Load> = busy.ahead.iter().map(load).collect();
    let bounds = (config.allocate().nodes_min(), config.allocate().nodes_max());
    let now = Demand { busy_cpus: busy.now, basis: Basis::Current };
    let planner =
        NodePlanner { moves: Migration::of_step(step as f64), bounds, violated: VIOLATED };
    Some(planner.next(&loads, count(nodes)).max(nodes_for(&now, config)))
}

/// Adds nodes with numbers that were not used by any node that is known.
fn add(view: &ClusterView, state: &mut AllocateState, count: u32, reason: Reason) -> Vec<Planned> {
    let known = view.nodes.keys().chain(&state.adding).chain(&state.removing);
    let holders = view.partitions.values().flat_map(|partition| &partition.holders);
    let next = known.chain(holders).max().map_or(0, |node| node.0.saturating_add(1));
    let added: Vec<_> = (next..next.saturating_add(count)).map(NodeId).collect();
    state.adding.extend(added.iter().copied());
    added.into_iter().map(|node| planned(view, Step::AddNode { node }, reason)).collect()
}

/// Removes the nodes that must leave first, of these those with the fewest replicas, and of these the newest.
fn remove(
    view: &ClusterView,
    running: &BTreeSet<NodeId>,
    state: &mut AllocateState,
    count: u32,
    reason: Reason,
) -> Vec<Planned> {
    let mut replicas: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in view.partitions.values().flat_map(|partition| &partition.holders) {
        *replicas.entry(*node).or_default() += 1;
    }
    // A node that is still starting cannot be told to leave.
    let mut candidates: Vec<_> =
        running.iter().filter(|node| view.nodes.contains_key(node)).collect();
    let leaves = |node: &NodeId| view.nodes.get(node).map_or(0, |node| node.leaves);
    let held = |node: &NodeId| replicas.get(node).copied().unwrap_or(0);
    candidates.sort_by_key(|node| (Reverse(leaves(node)), held(node), Reverse(node.0)));
    let removed: Vec<_> = candidates.into_iter().take(count as usize).copied().collect();
    state.removing.extend(removed.iter().copied());
    removed.into_iter().map(|node| planned(view, Step::RemoveNode { node }, reason)).collect()
}

fn scale_in(
    view: &ClusterView,
    running: &BTreeSet<NodeId>,
    state: &mut AllocateState,
    (need, demand): (u32, Option<&Demand>),
    config: &LoopConfig,
    now: Tick,
) -> Vec<Planned> {
    let nodes = count(running.len());
    let Some(demand) = demand else { return Vec::new() };
    // Nothing leaves while something is still coming or going.
    if need >= nodes || !state.adding.is_empty() || !state.removing.is_empty() {
        state.lower = None;
        return Vec::new();
    }
    let (since, most) = state.lower.map_or((now, need), |(since, most)| (since, most.max(need)));
    state.lower = Some((since, most));
    let ticks = now.0.saturating_sub(since.0);
    if ticks < config.allocate().scale_in_ticks() {
        return Vec::new();
    }
    let reason = Reason::Idle { busy_cpus: demand.busy_cpus, need: most, nodes, ticks };
    remove(view, running, state, nodes - most, reason)
}

fn planned(view: &ClusterView, step: Step, reason: Reason) -> Planned {
    let forecast = match &reason {
        Reason::Overloaded { busy_cpus, basis, .. } => format!("{busy_cpus:.1} busy CPUs {basis}"),
        Reason::Idle { busy_cpus, .. } => format!("{busy_cpus:.1} busy CPUs"),
        _ => "none".to_owned(),
    };
    let draining = view.nodes.values().filter(|node| node.draining).count();
    Planned {
        step,
        reason,
        worth: Worth::default(),
        inputs: format!("{} nodes, {draining} of them draining", view.nodes.len()),
        forecast,
        alternatives: Vec::new(),
    }
}

fn budgets(
    running: &BTreeSet<NodeId>,
    state: &AllocateState,
    config: &LoopConfig,
) -> BTreeMap<NodeId, NodeBudget> {
    let budget = NodeBudget {
        cpu_permits: config.allocate().cpu_permits(),
        memory_bytes: config.allocate().memory_bytes(),
    };
    let nodes = running.iter().chain(&state.adding).filter(|node| !state.removing.contains(node));
    nodes.map(|node| (*node, budget)).collect()
}

#[cfg(test)]
mod tests;
