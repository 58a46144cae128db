//! Which outputs are computed before they are asked for, and which are thrown away.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::reason::duration;
use super::situation::Situation;
use super::{Planned, Reason, Worth};
use crate::cluster::{OutputView, Step};
use crate::forecast::SeriesForecast;
use crate::ids::{ExpressionId, NodeId, PartitionId};

/// How many of the outputs that have to wait are named in a decision.
const ALTERNATIVES_MAX: usize = 3;

/// Fewer expected calls than this, in the horizon and in the season, are none.
const NO_CALLS: f64 = 0.01;

/// An output that calls are expected for and that is missing.
struct Candidate<'a> {
    target: &'a (ExpressionId, PartitionId),
    output: &'a OutputView,
    series: &'a SeriesForecast,
    holders: BTreeSet<NodeId>,
    calls: f64,
    /// First tick, from one, by whose end it is needed.
    needed_in: usize,
    cost_ns: f64,
    bytes: f64,
}

impl Candidate<'_> {
    fn benefit_ns(&self) -> f64 {
        self.calls * self.cost_ns
    }

    /// Nanoseconds spared per byte held.
    fn density(&self) -> f64 {
        self.benefit_ns() / self.bytes.max(1.0)
    }
}

/// What each node may still spend in this plan.
struct Purse {
    background_ns: BTreeMap<NodeId, f64>,
    memory_bytes: BTreeMap<NodeId, f64>,
}

/// Outputs to drop for want of memory, then outputs to compute: those needed first come first, and
/// of these the densest. Nothing unless the forecast may be acted on.
pub(super) fn steps(situation: &Situation<'_>) -> Vec<Planned> {
    if situation.ahead.is_empty() || situation.config.precompute().budget_share() <= 0.0 {
        return Vec::new();
    }
    let mut purse = Purse::new(situation);
    let mut wanted_bytes = BTreeMap::new();
    let (mut chosen, mut waiting) = (Vec::new(), Vec::new());
    for candidate in candidates(situation) {
        match purse.pay(&candidate) {
            Ok(()) => chosen.push(candidate),
            Err(lack) => {
                if let Lack::Memory { node, .. } = lack {
                    *wanted_bytes.entry(node).or_insert(0.0) += candidate.bytes;
                }
                if waiting.len() < ALTERNATIVES_MAX {
                    waiting.push(format!("{}: {lack}", candidate.series.key));
                }
            }
        }
    }
    let mut steps = unused(situation, &wanted_bytes);
    steps.extend(chosen.iter().map(|candidate| planned(situation, candidate, &waiting)));
    steps
}

fn candidates<'a>(situation: &'a Situation<'_>) -> Vec<Candidate<'a>> {
    let outputs = situation.view.outputs.iter();
    let mut all: Vec<_> = outputs
        .filter_map(|(target, output)| {
            let series = situation.ahead.get(target)?;
            candidate(situation, target, output, series)
        })
        .collect();
    all.sort_by(|a, b| {
        (a.needed_in.cmp(&b.needed_in))
            .then_with(|| b.density().total_cmp(&a.density()))
            .then_with(|| a.target.cmp(b.target))
    });
    all
}

fn candidate<'a>(
    situation: &Situation<'_>,
    target: &'a (ExpressionId, PartitionId),
    output: &'a OutputView,
    series: &'a SeriesForecast,
) -> Option<Candidate<'a>> {
    let config = situation.config.precompute();
    let holders = situation.computing(&target.1);
    if output.rows_missing == 0 || holders.is_empty() {
        return None;
    }
    if series.ns_per_row < config.min_ns_per_row() {
        return None; // Looking it up would cost as much as computing it.
    }
    let rows = output.rows_missing as f64;
    let calls = series.expected_calls(config.lead_ticks());
    if calls / (holders.len() as f64) < config.min_worth() {
        return None;
    }
    Some(Candidate {
        target,
        output,
        series,
        holders,
        calls,
        needed_in: series.needed_in().unwrap_or(usize::MAX).min(config.lead_ticks()),
        cost_ns: rows * series.ns_per_row,
        bytes: rows * series.bytes_per_row,
    })
}

impl Purse {
    fn new(situation: &Situation<'_>) -> Self {
        let config = situation.config;
        let share = config.precompute().budget_share() * config.tick_ns();
        let nodes = || situation.view.nodes.iter();
        let free_ns = |node| situation.state.background_ns.get(node).map_or(share, |ns| *ns as f64);
        Self {
            background_ns: nodes().map(|(node, _)| (*node, free_ns(node))).collect(),
            memory_bytes: nodes()
                .map(|(node, view)| {
                    (*node, view.memory_bytes_max as f64 - view.memory_bytes as f64)
                })
                .collect(),
        }
    }

    /// Takes what the candidate costs from each holder, or says what is lacking. Time may be
    /// overdrawn by the last step, or one longer than a tick's share could never run.
    fn pay(&mut self, candidate: &Candidate<'_>) -> Result<(), Lack> {
        let Candidate { holders, bytes, calls, .. } = candidate;
        if let Some(node) = holders.iter().find(|node| self.memory_bytes[node] < *bytes) {
            let room = self.memory_bytes[node].max(0.0);
            return Err(Lack::Memory { node: *node, bytes: *bytes, room });
        }
        if holders.iter().map(|node| self.background_ns[node]).sum::<f64>() <= 0.0 {
            return Err(Lack::Time { calls: *calls });
        }
        for node in holders {
            self.background_ns.entry(*node).and_modify(|free| *free -= candidate.cost_ns);
            self.memory_bytes.entry(*node).and_modify(|free| *free -= bytes);
        }
        Ok(())
    }
}

/// Why an output has to wait.
enum Lack {
    Memory { node: NodeId, bytes: f64, room: f64 },
    Time { calls: f64 },
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { node, bytes, room } => {
                write!(f, "needs {bytes:.0} bytes, {node} has {room:.0} left")
            }
            Self::Time { calls } => {
                write!(f, "{calls:.1} calls expected, but background time is used up")
            }
        }
    }
}

fn planned(situation: &Situation<'_>, candidate: &Candidate<'_>, waiting: &[String]) -> Planned {
    let Candidate { target, output, series, holders, calls, needed_in, .. } = candidate;
    let tick_ms = situation.config.tick_ms() as f64;
    Planned {
        step: Step::Precompute {
            function: output.function.clone(),
            expression: target.0,
            partition: target.1.clone(),
        },
        reason: Reason::Needed {
            calls: *calls,
            in_ms: *needed_in as f64 * tick_ms,
            rows: output.rows_missing,
            ns_per_row: series.ns_per_row,
        },
        worth: Worth {
            benefit_ns: candidate.benefit_ns(),
            cost_ns: candidate.cost_ns * holders.len() as f64,
            bytes: candidate.bytes,
        },
        inputs: format!(
            "{} rows stored, {} missing on {} nodes, {} a row",
            output.rows_stored,
            output.rows_missing,
            holders.len(),
            duration(series.ns_per_row)
        ),
        forecast: format!(
            "{calls:.1} calls in {} ticks, needed in {needed_in}",
            situation.config.precompute().lead_ticks()
        ),
        alternatives: waiting.to_vec(),
    }
}

/// Outputs that nobody is expected to ask for, where memory is short: the biggest first, and no
/// more than it takes.
fn unused(situation: &Situation<'_>, wanted_bytes: &BTreeMap<NodeId, f64>) -> Vec<Planned> {
    let limit = situation.config.precompute().drop_above();
    let mut over: BTreeMap<NodeId, f64> = BTreeMap::new();
    for (node, view) in &situation.view.nodes {
        let wanted = wanted_bytes.get(node).copied().unwrap_or(0.0);
        let excess = view.memory_bytes as f64 + wanted - limit * view.memory_bytes_max as f64;
        if excess > 0.0 && view.memory_bytes_max > 0 {
            over.insert(*node, excess);
        }
    }
    let mut steps = Vec::new();
    for (target, output, holders) in idle_outputs(situation) {
        let Some(node) = holders.iter().find(|node| over.get(node).is_some_and(|it| *it > 0.0))
        else {
            continue;
        };
        let view = &situation.view.nodes[node];
        let wanted = wanted_bytes.get(node).copied().unwrap_or(0.0);
        let memory = (view.memory_bytes as f64 + wanted) / view.memory_bytes_max as f64;
        let bytes = output.bytes as f64 / holders.len() as f64;
        for node in &holders {
            over.entry(*node).and_modify(|excess| *excess -= bytes);
        }
        steps.push(drop_output(target, output, Reason::Unused { memory, limit }, bytes));
    }
    steps
}

/// Stored outputs without expected calls, the biggest first.
fn idle_outputs<'a>(
    situation: &'a Situation<'_>,
) -> Vec<(&'a (ExpressionId, PartitionId), &'a OutputView, BTreeSet<NodeId>)> {
    let mut idle: Vec<_> = situation
        .view
        .outputs
        .iter()
        .filter(|(target, output)| {
            // What the forecast does not know may have been called just now.
            let series = situation.ahead.get(target);
            output.bytes > 0
                && series.is_some_and(|series| {
                    series.expected_calls(usize::MAX) < NO_CALLS && series.calls_season < NO_CALLS
                })
        })
        .filter_map(|(target, output)| {
            let holders = situation.computing(&target.1);
            (!holders.is_empty()).then_some((target, output, holders))
        })
        .collect();
    idle.sort_by(|a, b| b.1.bytes.cmp(&a.1.bytes).then_with(|| a.0.cmp(b.0)));
    idle
}

fn drop_output(
    target: &(ExpressionId, PartitionId),
    output: &OutputView,
    reason: Reason,
    bytes: f64,
) -> Planned {
    Planned {
        step: Step::DropOutput {
            function: Arc::clone(&output.function),
            expression: target.0,
            partition: target.1.clone(),
        },
        reason,
        worth: Worth { benefit_ns: 0.0, cost_ns: 0.0, bytes: -bytes },
        inputs: format!("{} rows stored in {} bytes", output.rows_stored, output.bytes),
        forecast: "no calls".to_owned(),
        alternatives: Vec::new(),
    }
}
