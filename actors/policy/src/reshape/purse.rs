//! What each node may still spend on outputs, in background time and memory, and for which tables.

use std::fmt;

use super::parts::{Parts, Pot, Round};
use super::precompute::{ALTERNATIVES_MAX, Candidate};
use super::situation::Situation;
use crate::cluster::NodeView;
use crate::ids::NodeId;

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
pub(super) struct Purse {
    accounts: Vec<Account>,
    ticks: usize,
}

impl Purse {
    pub(super) fn new(situation: &Situation<'_>) -> Self {
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
    pub(super) fn deal_out(&mut self, situation: &Situation<'_>, candidates: &[Candidate<'_>]) {
        if situation.shares.is_of_one() {
            return;
        }
        let mut pots: Vec<(Pot, Pot)> = self.accounts.iter().map(|_| Default::default()).collect();
        for candidate in candidates {
            for at in &candidate.holders {
                let (time, memory) = &mut pots[*at];
                time.wants.push((candidate.table, candidate.cost_ns));
                memory.wants.push((candidate.table, candidate.bytes));
            }
        }
        for (account, (mut time, mut memory)) in self.accounts.iter_mut().zip(pots) {
            time.left = account.left_ns.last().copied().unwrap_or(0.0);
            time.had = situation.background_spent(account.node);
            memory.left = account.memory_bytes;
            memory.had = situation.held.get(&account.node).cloned().unwrap_or_default();
            account.time = Parts::new(time, &situation.shares);
            account.memory = Parts::new(memory, &situation.shares);
        }
    }

    pub(super) fn account(&self, node: NodeId) -> Option<usize> {
        self.accounts.binary_search_by_key(&node, |account| account.node).ok()
    }

    fn of<'s>(&'s self, candidate: &'s Candidate<'_>) -> impl Iterator<Item = &'s Account> {
        candidate.holders.iter().map(|at| &self.accounts[*at])
    }

    /// What the candidate takes of the time and the memory of its holders, as a sum of shares of what
    /// is left.
    pub(super) fn share_taken(&self, candidate: &Candidate<'_>) -> f64 {
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
    pub(super) fn pay(&mut self, candidate: &Candidate<'_>, round: Round) -> Result<usize, Lack> {
        let Candidate { holders, bytes, calls, needed_in, .. } = candidate;
        let table = candidate.table;
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
    pub(super) fn start<'c>(
        &mut self,
        situation: &Situation<'_>,
        mut due: Vec<Candidate<'c>>,
    ) -> (Vec<Candidate<'c>>, Vec<String>) {
        let pot = |account: &Account| Pot { left: account.free_ns, ..Pot::default() };
        let mut pots: Vec<Pot> = self.accounts.iter().map(pot).collect();
        for candidate in &due {
            for at in &candidate.holders {
                pots[*at].wants.push((candidate.table, candidate.cost_ns));
            }
        }
        for (account, mut pot) in self.accounts.iter_mut().zip(pots) {
            pot.had = situation.background_spent(account.node);
            account.now = Parts::new(pot, &situation.shares);
        }
        let mut started = Vec::new();
        let before: Vec<f64> = self.accounts.iter().map(|account| account.free_ns).collect();
        for round in [Round::Part, Round::Rest] {
            for candidate in std::mem::take(&mut due) {
                let part: f64 =
                    self.of(&candidate).map(|it| it.now.left(candidate.table, round)).sum();
                let free: f64 = self.of(&candidate).map(|account| account.free_ns).sum();
                // Its part is its own, though the last step of another table took more than was left.
                let has_own = round == Round::Part
                    && part.is_finite()
                    && candidate.holders.iter().map(|at| before[*at]).sum::<f64>() > 0.0;
                if part <= 0.0 || (free <= 0.0 && !has_own) {
                    due.push(candidate);
                    continue;
                }
                for at in &candidate.holders {
                    let account = &mut self.accounts[*at];
                    account.free_ns -= candidate.cost_ns;
                    account.now.take(candidate.table, candidate.cost_ns);
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
pub(super) enum Lack {
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
