//! Which outputs are computed before they are asked for, and which are thrown away.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::parts::{Parts, Pot, Round};
use super::purse::{Lack, Purse};
use super::reason::duration;
use super::situation::{Known, Place, Situation};
use super::{Planned, Reason, Worth, prefetch};
use crate::budgets::ByTable;
use crate::cluster::{OutputView, Step};
use crate::forecast::SeriesForecast;
use crate::ids::{ExpressionId, NodeId, PartitionId};
use crate::trust::Expected;

/// How many of the outputs that have to wait are named in a decision.
pub(super) const ALTERNATIVES_MAX: usize = 3;

/// Kind of step, as in [`Step::kind`].
const KIND: &str = "precompute";

/// Fewer expected calls than this, in the horizon and in the season, are none.
const NO_CALLS: f64 = 0.01;

/// An output that calls are expected for and that is missing.
pub(super) struct Candidate<'a> {
    pub(super) target: &'a (ExpressionId, PartitionId),
    pub(super) output: &'a OutputView,
    pub(super) series: &'a SeriesForecast,
    /// Number of its table.
    pub(super) table: usize,
    /// Positions of its holders' accounts in the purse.
    pub(super) holders: Vec<usize>,
    pub(super) calls: f64,
    /// What expectations of outputs are multiplied with.
    pub(super) trust: f64,
    /// First tick, from one, by whose end it is needed.
    pub(super) needed_in: usize,
    pub(super) cost_ns: f64,
    pub(super) bytes: f64,
}

impl Candidate<'_> {
    fn benefit_ns(&self) -> f64 {
        self.calls * self.cost_ns * self.trust
    }
}

/// Bytes of outputs that are needed and find no room, by node and number of the table.
type Wanted = BTreeMap<NodeId, Vec<(usize, f64)>>;

/// Outputs to drop for want of memory, then outputs to compute. Nothing unless the forecast may be
/// acted on.
///
/// Each table first has its part of both; what it leaves is anybody's, up to what people limit them to.
///
/// What is worth most for the time and the memory that it takes gets the last moments before it is
/// needed, or the first after that. Of all that got some, what is due first is computed now.
///
/// # Source
/// Greedy choice of jobs with deadlines and profits (Lawler, Combinatorial Optimization, 1976,
/// section 7.8); the weighing of two resources by their scarcity is the surrogate multiplier of
/// Senju and Toyoda (1968).
pub(super) fn steps(situation: &Situation<'_>) -> Vec<Planned> {
    if situation.ahead.is_empty() || situation.config.precompute().budget_share() <= 0.0 {
        return Vec::new();
    }
    let mut purse = Purse::new(situation);
    let mut wanted_bytes = Wanted::new();
    let (mut due, mut waiting) = (Vec::new(), Vec::new());
    let mut open = candidates(situation, &purse);
    purse.deal_out(situation, &open);
    for round in [Round::Part, Round::Rest] {
        for candidate in std::mem::take(&mut open) {
            let lack = match purse.pay(&candidate, round) {
                Ok(tick) => {
                    due.push((tick, candidate));
                    continue;
                }
                Err(Lack::Part { .. }) if round == Round::Part => {
                    open.push(candidate);
                    continue;
                }
                Err(lack) => lack,
            };
            if let Lack::Memory { node, .. } = lack {
                wanted_bytes.entry(node).or_default().push((candidate.table, candidate.bytes));
            }
            if waiting.len() < ALTERNATIVES_MAX {
                waiting.push(format!("{}: {lack}", candidate.series.key));
            }
        }
    }
    due.sort_by_key(|(tick, _)| *tick); // Stable: of those due together the worthiest stays first.
    let due: Vec<_> = due.into_iter().map(|(_, candidate)| candidate).collect();
    let (mut chosen, mut later) = purse.start(situation, due);
    if let Some(left) = situation.trusted(KIND).steps_left {
        chosen.truncate(left); // Stopped, but for some by which it may prove itself.
    }
    later.extend(waiting);
    later.truncate(ALTERNATIVES_MAX);
    let mut steps = unused(situation, &wanted_bytes);
    steps.extend(chosen.iter().map(|candidate| planned(situation, candidate, &later)));
    steps
}

/// What is missing and expected to be called, the worthiest first.
fn candidates<'s>(situation: &'s Situation<'_>, purse: &Purse) -> Vec<Candidate<'s>> {
    let min_ns_per_row = situation.config.precompute().min_ns_per_row();
    let mut near = 0;
    let mut all: Vec<_> = situation
        .ahead
        .known(|output| output.rows_missing > 0)
        .filter_map(|known| {
            if !known.1.is_state && known.2.ns_per_row < min_ns_per_row {
                return None; // Looking it up would cost as much as computing it.
            }
            let place = situation.place_near(&known.0.1, &mut near)?;
            if !situation.plans_for(place) {
                return None;
            }
            let candidate = candidate(situation, purse, place, known)?;
            Some((candidate.benefit_ns() / purse.share_taken(&candidate), candidate))
        })
        .collect();
    all.sort_unstable_by(|(worth_a, a), (worth_b, b)| {
        (worth_b.total_cmp(worth_a)).then_with(|| a.target.cmp(b.target))
    });
    all.into_iter().map(|(_, candidate)| candidate).collect()
}

fn candidate<'s>(
    situation: &Situation<'_>,
    purse: &Purse,
    place: Place,
    (target, output, series): Known<'s>,
) -> Option<Candidate<'s>> {
    let config = situation.config.precompute();
    let holders: Vec<_> =
        situation.computing(place).filter_map(|node| purse.account(node)).collect();
    if holders.is_empty() || situation.avoids(|| precompute(target, output)) {
        return None;
    }
    let rows = output.rows_missing as f64;
    let calls = series.expected_calls(config.lead_ticks());
    let trust = situation.trusted(KIND).factor;
    if calls * trust / (holders.len() as f64) < config.min_worth() {
        return None;
    }
    Some(Candidate {
        target,
        output,
        series,
        table: situation.table(place),
        holders,
        calls,
        trust,
        needed_in: series.needed_in().unwrap_or(usize::MAX).clamp(1, config.lead_ticks()),
        cost_ns: rows * series.ns_per_row,
        bytes: rows * series.bytes_per_row,
    })
}

fn precompute((expression, partition): &(ExpressionId, PartitionId), output: &OutputView) -> Step {
    let function = Arc::clone(&output.function);
    Step::Precompute { function, expression: *expression, partition: partition.clone() }
}

fn drop_of((expression, partition): &(ExpressionId, PartitionId), output: &OutputView) -> Step {
    let function = Arc::clone(&output.function);
    Step::DropOutput { function, expression: *expression, partition: partition.clone() }
}

fn planned(situation: &Situation<'_>, candidate: &Candidate<'_>, waiting: &[String]) -> Planned {
    let Candidate { target, output, series, holders, calls, needed_in, .. } = candidate;
    let tick_ms = situation.config.tick_ms() as f64;
    Planned {
        step: precompute(target, output),
        reason: Reason::Needed {
            calls: *calls,
            in_ms: *needed_in as f64 * tick_ms,
            rows: output.rows_missing,
            ns_per_row: series.ns_per_row,
            expected: expected(candidate, situation.config.precompute().lead_ticks()),
        },
        worth: Worth {
            benefit_ns: candidate.benefit_ns(),
            cost_ns: candidate.cost_ns * holders.len() as f64,
            bytes: candidate.bytes,
        },
        inputs: format!(
            "{} rows stored, {} missing on {} nodes, {} a row{}",
            output.rows_stored,
            output.rows_missing,
            holders.len(),
            duration(series.ns_per_row),
            if candidate.trust == 1.0 {
                String::new()
            } else {
                format!(", trusted {:.2}", candidate.trust)
            }
        ),
        forecast: format!(
            "{calls:.1} calls in {} ticks, needed in {needed_in}",
            situation.config.precompute().lead_ticks()
        ),
        alternatives: waiting.to_vec(),
    }
}

/// What the ledger will measure: the rows that were missing and that the first call of each segment on each
/// holder finds. Later calls would have found them without the step. How likely a call is depends on how many
/// the forecast has at least and at most.
fn expected(candidate: &Candidate<'_>, lead_ticks: usize) -> Expected {
    let Candidate { output, series, holders, calls, cost_ns, .. } = candidate;
    let rows = (output.rows_stored + output.rows_missing) as f64;
    let rows_per_call = series.ns_per_call / series.ns_per_row.max(f64::MIN_POSITIVE);
    let share = (rows_per_call / rows.max(1.0)).min(1.0);
    let holders = holders.len() as f64;
    let most_ns = holders * share * cost_ns;
    let by = |calls: f64| most_ns * -(-calls / holders).exp_m1();
    let ahead = || series.calls.iter().take(lead_ticks);
    let low_ns = by(ahead().map(|calls| calls.q10).sum());
    let high_ns = by(ahead().map(|calls| calls.q90).sum());
    Expected { mean_ns: by(*calls), most_ns, low_ns, high_ns }
}

/// Rows that nobody is expected to read, then outputs that nobody is expected to ask for, where memory is
/// short: the biggest first, and no more than it takes.
///
/// What goes is of tables that have, or want, more than their part: no table loses of its part for another.
fn unused(situation: &Situation<'_>, wanted_bytes: &Wanted) -> Vec<Planned> {
    let limit = situation.config.precompute().drop_above();
    let wanted_on = |node: &NodeId| wanted_bytes.get(node).into_iter().flatten();
    let wanted_sum = |node: &NodeId| wanted_on(node).map(|(_, bytes)| bytes).sum::<f64>();
    let mut over: BTreeMap<NodeId, f64> = BTreeMap::new();
    for (node, view) in &situation.nodes {
        let wanted = wanted_sum(node);
        let excess = view.memory_bytes as f64 + wanted - limit * view.memory_bytes_max as f64;
        if excess > 0.0 && view.memory_bytes_max > 0 {
            over.insert(*node, excess);
        }
    }
    // What is read from files again costs less than what is computed again.
    let mut steps = prefetch::give_room(situation, &mut over);
    over.retain(|_, excess| *excess > 0.0);
    if over.is_empty() {
        return steps;
    }
    let mut parts: BTreeMap<NodeId, Parts> = over
        .iter()
        .map(|(node, excess)| (*node, kept_parts(situation, *node, *excess, wanted_bytes)))
        .collect();
    for (target, output, place, holders) in idle_outputs(situation) {
        let table = situation.table(place);
        // Less than nothing is left of the part of a table that has, or wants, more.
        let has_more = |node: &NodeId| {
            situation.shares.is_of_one() || parts[node].left(table, Round::Part) < -1.0
        };
        let gives =
            |node: &&NodeId| over.get(node).is_some_and(|excess| *excess > 0.0) && has_more(node);
        let Some(node) = holders.iter().find(gives) else { continue };
        let view = &situation.nodes[node];
        let wanted = wanted_sum(node);
        let memory = (view.memory_bytes as f64 + wanted) / view.memory_bytes_max as f64;
        let bytes = output.bytes as f64 / holders.len() as f64;
        for node in &holders {
            over.entry(*node).and_modify(|excess| *excess -= bytes);
            parts.entry(*node).and_modify(|parts| parts.take(table, -bytes));
        }
        steps.push(drop_output(target, output, Reason::Unused { memory, limit }, bytes));
    }
    steps
}

/// What is left of the part of each table that has outputs on a node, or wants to, once there is room for as much
/// as there is without the `excess`.
fn kept_parts(
    situation: &Situation<'_>,
    node: NodeId,
    excess: f64,
    wanted_bytes: &Wanted,
) -> Parts {
    let held = situation.held.get(&node).map(ByTable::amounts).unwrap_or_default();
    let wanted = wanted_bytes.get(&node).map(Vec::as_slice).unwrap_or_default();
    // Who has, or wants, more than the room that is left is dealt out for.
    let had = ByTable::sums([held, wanted].concat());
    Parts::new(Pot { left: -excess, had, wants: Vec::new() }, &situation.shares)
}

/// An output with the place of its partition and its holders.
type Held<'s> = (&'s (ExpressionId, PartitionId), &'s OutputView, Place, Vec<NodeId>);

/// Stored outputs without expected calls, the biggest first.
fn idle_outputs<'s>(situation: &'s Situation<'_>) -> Vec<Held<'s>> {
    let mut near = 0;
    // What the forecast does not know may have been called just now.
    let stored = situation.ahead.known(|output| output.bytes > 0 && !output.pinned);
    let mut idle: Vec<_> = stored
        .filter(|(_, _, series)| {
            series.calls_season < NO_CALLS && series.expected_calls(usize::MAX) < NO_CALLS
        })
        .filter_map(|(target, output, _)| {
            let place = situation.place_near(&target.1, &mut near)?;
            if !situation.plans_for(place) || situation.avoids(|| drop_of(target, output)) {
                return None;
            }
            let holders: Vec<_> = situation.computing(place).collect();
            (!holders.is_empty()).then_some((target, output, place, holders))
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
        step: drop_of(target, output),
        reason,
        worth: Worth { benefit_ns: 0.0, cost_ns: 0.0, bytes: -bytes },
        inputs: format!("{} rows stored in {} bytes", output.rows_stored, output.bytes),
        forecast: "no calls".to_owned(),
        alternatives: Vec::new(),
    }
}
