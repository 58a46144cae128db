//! Which outputs are computed before they are asked for, and which are thrown away.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::parts::{Parts, Pot, Round};
use super::reason::duration;
use super::situation::{Known, Place, Situation};
use super::{Planned, Reason, Worth, prefetch};
use crate::cluster::{NodeView, OutputView, Step};
use crate::forecast::SeriesForecast;
use crate::ids::{ExpressionId, NodeId, PartitionId};
use crate::trust::Expected;

/// How many of the outputs that have to wait are named in a decision.
const ALTERNATIVES_MAX: usize = 3;

/// Kind of step, as in [`Step::kind`].
const KIND: &str = "precompute";

/// Fewer expected calls than this, in the horizon and in the season, are none.
const NO_CALLS: f64 = 0.01;

/// An output that calls are expected for and that is missing.
struct Candidate<'a> {
    target: &'a (ExpressionId, PartitionId),
    output: &'a OutputView,
    series: &'a SeriesForecast,
    /// Positions of its holders' accounts in the purse.
    holders: Vec<usize>,
    calls: f64,
    /// What expectations of outputs are multiplied with.
    trust: f64,
    /// First tick, from one, by whose end it is needed.
    needed_in: usize,
    cost_ns: f64,
    bytes: f64,
}

impl Candidate<'_> {
    fn benefit_ns(&self) -> f64 {
        self.calls * self.cost_ns * self.trust
    }

    fn table(&self) -> &Arc<str> {
        &self.target.1.table
    }
}

/// Bytes of outputs that are needed and find no room, by node and table.
type Wanted = BTreeMap<NodeId, BTreeMap<Arc<str>, f64>>;

/// What one node may still spend.
struct Account {
    node: NodeId,
    /// Background time left until the end of each tick of the lead, nearest first.
    left_ns: Vec<f64>,
    /// Background time left now.
    free_ns: f64,
    memory_bytes: f64,
    /// What each table may take of the time until the end of the lead, and of the memory.
    time: Parts,
    memory: Parts,
    /// What each may take of the time now.
    now: Parts,
}

/// What each node may still spend until the end of the lead, sorted by node.
struct Purse {
    accounts: Vec<Account>,
    ticks: usize,
}

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
                let of_node = wanted_bytes.entry(node).or_default();
                *of_node.entry(Arc::clone(candidate.table())).or_default() += candidate.bytes;
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
        holders,
        calls,
        trust,
        needed_in: series.needed_in().unwrap_or(usize::MAX).clamp(1, config.lead_ticks()),
        cost_ns: rows * series.ns_per_row,
        bytes: rows * series.bytes_per_row,
    })
}

impl Purse {
    fn new(situation: &Situation<'_>) -> Self {
        let share = situation.config.precompute().budget_share() * situation.config.tick_ns();
        let ticks = situation.config.precompute().lead_ticks();
        let account = |(node, view): (&NodeId, &NodeView)| {
            let free_ns = situation.state.background_ns.get(node).map_or(share, |ns| *ns as f64);
            Account {
                node: *node,
                left_ns: (0..ticks).map(|tick| free_ns + tick as f64 * share).collect(),
                free_ns,
                memory_bytes: view.memory_bytes_max as f64 - view.memory_bytes as f64,
                time: Parts::default(),
                memory: Parts::default(),
                now: Parts::default(),
            }
        };
        Self { accounts: situation.nodes.iter().map(account).collect(), ticks }
    }

    /// Deals time and memory out among the tables, by what they want of it.
    fn deal_out(&mut self, situation: &Situation<'_>, candidates: &[Candidate<'_>]) {
        if situation.shares.is_of_one() {
            return;
        }
        let mut pots: Vec<(Pot, Pot)> = self.accounts.iter().map(|_| Default::default()).collect();
        for candidate in candidates {
            for at in &candidate.holders {
                let (time, memory) = &mut pots[*at];
                let table = candidate.table();
                *time.wants.entry(Arc::clone(table)).or_default() += candidate.cost_ns;
                *memory.wants.entry(Arc::clone(table)).or_default() += candidate.bytes;
            }
        }
        for (account, (time, memory)) in self.accounts.iter_mut().zip(&mut pots) {
            let of = |all: &BTreeMap<NodeId, BTreeMap<Arc<str>, f64>>| {
                all.get(&account.node).cloned().unwrap_or_default()
            };
            time.left = account.left_ns.last().copied().unwrap_or(0.0);
            time.had = of(&situation.state.background_spent);
            memory.left = account.memory_bytes;
            memory.had = of(&situation.held);
            account.time = Parts::new(time, &situation.shares);
            account.memory = Parts::new(memory, &situation.shares);
        }
    }

    fn account(&self, node: NodeId) -> Option<usize> {
        self.accounts.binary_search_by_key(&node, |account| account.node).ok()
    }

    fn of<'s>(&'s self, candidate: &'s Candidate<'_>) -> impl Iterator<Item = &'s Account> {
        candidate.holders.iter().map(|at| &self.accounts[*at])
    }

    /// What the candidate takes of the time and the memory of its holders, as a sum of shares of what
    /// is left.
    fn share_taken(&self, candidate: &Candidate<'_>) -> f64 {
        let of = |taken: f64, left: f64| taken.max(1.0) / left.max(1.0);
        let shares = self.of(candidate).map(|account| {
            let time_left = account.left_ns.last().copied().unwrap_or(0.0);
            of(candidate.cost_ns, time_left) + of(candidate.bytes, account.memory_bytes)
        });
        shares.sum()
    }

    /// Takes what the candidate costs from each holder and answers the tick by whose end it is
    /// computed, or says what is lacking. Time may be overdrawn by the last step, or one longer than
    /// a tick's share could never run.
    fn pay(&mut self, candidate: &Candidate<'_>, round: Round) -> Result<usize, Lack> {
        let Candidate { holders, bytes, calls, needed_in, .. } = candidate;
        let table = candidate.table();
        let time = self.of(candidate).map(|account| account.time.left(table, round)).sum::<f64>();
        let fits = |account: &Account| account.memory.left(table, round) >= *bytes;
        if time <= 0.0 || !self.of(candidate).all(fits) {
            return Err(Lack::Part { calls: *calls });
        }
        if let Some(full) = self.of(candidate).find(|account| account.memory_bytes < *bytes) {
            let room = full.memory_bytes.max(0.0);
            return Err(Lack::Memory { node: full.node, bytes: *bytes, room });
        }
        let left =
            |tick: usize| self.of(candidate).map(|account| account.left_ns[tick]).sum::<f64>();
        // What is computed by the end of a tick takes time from all later ones too.
        let full = (needed_in - 1..self.ticks).rfind(|tick| left(*tick) <= 0.0);
        let mut tick = full.map_or(needed_in - 1, |full| full + 1);
        if tick >= self.ticks {
            if round == Round::Rest || time.is_infinite() {
                return Err(Lack::Time { calls: *calls });
            }
            // Its part is its own, though the last step of another table took more than was left.
            tick = self.ticks - 1;
        }
        for at in holders {
            let account = &mut self.accounts[*at];
            account.left_ns[tick..].iter_mut().for_each(|left| *left -= candidate.cost_ns);
            account.memory_bytes -= bytes;
            account.time.take(table, candidate.cost_ns);
            account.memory.take(table, *bytes);
        }
        Ok(tick)
    }

    /// Those that start now, for there is time on their holders, and those that have to wait, by name.
    fn start<'c>(
        &mut self,
        situation: &Situation<'_>,
        mut due: Vec<Candidate<'c>>,
    ) -> (Vec<Candidate<'c>>, Vec<String>) {
        let pot = |account: &Account| Pot { left: account.free_ns, ..Pot::default() };
        let mut pots: Vec<Pot> = self.accounts.iter().map(pot).collect();
        for candidate in &due {
            for at in &candidate.holders {
                let wants = &mut pots[*at].wants;
                *wants.entry(Arc::clone(candidate.table())).or_default() += candidate.cost_ns;
            }
        }
        for (account, mut pot) in self.accounts.iter_mut().zip(pots) {
            let spent = situation.state.background_spent.get(&account.node);
            pot.had = spent.cloned().unwrap_or_default();
            account.now = Parts::new(&pot, &situation.shares);
        }
        let mut started = Vec::new();
        let is_in_debt: Vec<bool> = self.accounts.iter().map(|it| it.free_ns <= 0.0).collect();
        for round in [Round::Part, Round::Rest] {
            for candidate in std::mem::take(&mut due) {
                let part: f64 =
                    self.of(&candidate).map(|it| it.now.left(candidate.table(), round)).sum();
                let free: f64 = self.of(&candidate).map(|account| account.free_ns).sum();
                // Its part is its own, though the last step of another table took more than was left.
                let has_own = round == Round::Part
                    && part.is_finite()
                    && !candidate.holders.iter().all(|at| is_in_debt[*at]);
                if part <= 0.0 || (free <= 0.0 && !has_own) {
                    due.push(candidate);
                    continue;
                }
                for at in &candidate.holders {
                    let account = &mut self.accounts[*at];
                    account.free_ns -= candidate.cost_ns;
                    account.now.take(candidate.table(), candidate.cost_ns);
                }
                started.push(candidate);
            }
        }
        let name = |candidate: &Candidate<'_>| {
            format!("{}: {}", candidate.series.key, Lack::Time { calls: candidate.calls })
        };
        (started, due.iter().take(ALTERNATIVES_MAX).map(name).collect())
    }
}

/// Why an output has to wait.
enum Lack {
    Memory {
        node: NodeId,
        bytes: f64,
        room: f64,
    },
    Time {
        calls: f64,
    },
    /// Of what its table may have.
    Part {
        calls: f64,
    },
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
            Self::Part { calls } => {
                write!(f, "{calls:.1} calls expected, but its table has all that it may have")
            }
        }
    }
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
            expected: expected(candidate),
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
/// holder finds. Later calls would have found them without the step.
fn expected(candidate: &Candidate<'_>) -> Expected {
    let Candidate { output, series, holders, calls, cost_ns, .. } = candidate;
    let rows = (output.rows_stored + output.rows_missing) as f64;
    let rows_per_call = series.ns_per_call / series.ns_per_row.max(f64::MIN_POSITIVE);
    let share = (rows_per_call / rows.max(1.0)).min(1.0);
    let holders = holders.len() as f64;
    let most_ns = holders * share * cost_ns;
    Expected { mean_ns: most_ns * -(-calls / holders).exp_m1(), most_ns }
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
    for (target, output, holders) in idle_outputs(situation) {
        let table = &target.1.table;
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
    let mut had = situation.held.get(&node).cloned().unwrap_or_default();
    for (table, bytes) in wanted_bytes.get(&node).into_iter().flatten() {
        *had.entry(Arc::clone(table)).or_default() += bytes;
    }
    // Who has, or wants, more than the room that is left is dealt out for.
    Parts::new(&Pot { left: -excess, had, wants: BTreeMap::new() }, &situation.shares)
}

/// Stored outputs without expected calls, the biggest first, with their holders.
fn idle_outputs<'s>(
    situation: &'s Situation<'_>,
) -> Vec<(&'s (ExpressionId, PartitionId), &'s OutputView, Vec<NodeId>)> {
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
        step: drop_of(target, output),
        reason,
        worth: Worth { benefit_ns: 0.0, cost_ns: 0.0, bytes: -bytes },
        inputs: format!("{} rows stored in {} bytes", output.rows_stored, output.bytes),
        forecast: "no calls".to_owned(),
        alternatives: Vec::new(),
    }
}
