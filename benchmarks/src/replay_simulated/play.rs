//! Plays an arm in virtual time, event by event: what is due, and what the cores have done.
//!
//! A call waits for the rows of its minute, is planned on a thread of the clients, and scans on a thread for
//! calls: segment by segment, what is missing in slices of 20 ms, each of which takes a permit of the node and
//! then a thread. A task keeps its thread from one segment to the next, and lets others go first between two slices. Two calls that miss the same compute it once. Work ahead of calls goes in slices of 2 ms, eight steps
//! at a time, where no call runs on the node. One forecast is made at a time, and learning waits for queries.

mod calls;
mod rounds;
mod steps;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use foreshard_actors::ports::Outlook;
use foreshard_policy::cluster::{ClusterView, Step};
use foreshard_policy::config::LoopConfig;
use foreshard_policy::courtesy::Traffic;
use foreshard_policy::history::HistoryView;
use foreshard_policy::ids::NodeId;
use foreshard_policy::random::SplitMix64;

use self::rounds::{Learning, Round};
use super::ahead::Ahead;
use super::cores::{Cores, Pool};
use super::costs::Costs;
use super::node::{Node, Whom};
use super::query::Query;
use super::scene::{Pair, Scene};
use super::table::Table;
use super::the_loop::{Learned, TheLoop};
use crate::replay::arm::{Answer, Arm, Minute, Played};
use crate::replay::load::Call;
use crate::replay::outlooks::{ByChance, First, Oracle, UsedLately};

/// Minutes after which it is looked whether the forecast is trusted.
const LOOK_EVERY: usize = 8;

/// Something that is due at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Minute(usize),
    Call(usize),
    /// A replica is there.
    Copied(u64),
    /// Learning looks at the queries again.
    Look,
}

/// What follows a job.
#[derive(Clone, Copy, Debug)]
enum Then {
    Appended(usize),
    Planned(usize),
    Scanned(usize),
    /// So many rows were computed on a node.
    Sliced(Whom, NodeId, u64),
    Forecast,
    Learned,
}

/// Everything that happens to one arm.
struct Theatre<'a> {
    scene: &'a Scene,
    costs: &'a Costs,
    arm: Arm,
    pair_of: BTreeMap<(usize, usize), usize>,
    cores: Cores<Then>,
    due: BinaryHeap<Reverse<(u64, u64, Due)>>,
    /// Numbers what is due: what was put first comes first.
    put: u64,
    nodes: Vec<Node>,
    table: Table,
    the_loop: TheLoop,
    outlook: Option<Box<dyn Outlook>>,
    lately: UsedLately,
    first: First,
    dice: SplitMix64,
    /// What was measured of a row of each function.
    row_ns: Vec<u64>,
    queries: Vec<Query>,
    /// Queries that are under way, and that have begun so far.
    traffic: Traffic,
    /// Calls whose rows are not there yet.
    early: Vec<usize>,
    /// Minutes whose rows are there.
    appended: usize,
    /// Who computes a pair on a segment of a node, and who waits for that.
    flights: BTreeMap<(NodeId, usize, i64), VecDeque<usize>>,
    ahead: Vec<Ahead>,
    steps_waiting: VecDeque<usize>,
    steps_at_once: usize,
    copies: BTreeMap<u64, Step>,
    round: Option<Round>,
    next_round: Option<HistoryView>,
    learning: Option<Learning>,
    trusted: bool,
    /// When the turn began, and with which minute.
    turn: (u64, usize),
    played: Played,
}

/// Plays an arm whose loop knows what was learned.
///
/// # Errors
/// What a member of the forecast says.
pub(super) fn play(
    scene: &Scene,
    costs: &Costs,
    (arm, config): (Arm, LoopConfig),
    learned: &Learned,
) -> Result<Played> {
    let first = First::default();
    let outlook: Option<Box<dyn Outlook>> = match arm {
        Arm::Oracle => Some(Box::new(Oracle::new(scene.coming(), Arc::clone(&first)))),
        Arm::Random => Some(Box::new(ByChance { seed: scene.seed })),
        _ => None,
    };
    let mut theatre = Theatre {
        scene,
        costs,
        arm,
        pair_of: scene.pair_of(),
        cores: Cores::new(costs.cores),
        due: BinaryHeap::new(),
        put: 0,
        nodes: vec![Node::new(scene.permits); scene.nodes as usize],
        table: Table::new(scene),
        the_loop: TheLoop::new(scene, config, learned)?,
        outlook,
        lately: UsedLately::new(scene.day),
        first,
        dice: SplitMix64::new(scene.seed ^ 0x51_1CE5),
        row_ns: scene.row_ns(),
        queries: vec![Query::default(); scene.calls.len()],
        traffic: Traffic::default(),
        early: Vec::new(),
        appended: 0,
        flights: BTreeMap::new(),
        ahead: Vec::new(),
        steps_waiting: VecDeque::new(),
        steps_at_once: 0,
        copies: BTreeMap::new(),
        round: None,
        next_round: None,
        learning: None,
        trusted: false,
        turn: (0, 0),
        played: Played { minutes: vec![Minute::default(); scene.minutes], ..Played::default() },
    };
    theatre.open();
    for first in (0..scene.minutes).step_by(scene.turn.max(1)) {
        theatre.play(first..scene.minutes.min(first + scene.turn.max(1)))?;
    }
    Ok(theatre.end())
}

impl Theatre<'_> {
    /// Functions are called once before play begins, and what they compute is stored.
    fn open(&mut self) {
        for pair in &self.scene.opening {
            let Pair { function, partition, .. } = self.scene.pairs[*pair];
            let holder = self.table.holders(partition).next();
            // Of the newest rows only.
            let newest = self.table.segments(partition, 0).pop();
            if let Some((segment, node)) = newest.zip(holder.filter(|_| self.stores())) {
                self.table.look((partition, node), segment, function);
                self.table.store((partition, node), segment, function);
            }
        }
    }

    fn stores(&self) -> bool {
        self.arm.mode().stores_outputs()
    }

    /// Plays some minutes, and until everything has ended that began in them.
    fn play(&mut self, minutes: std::ops::Range<usize>) -> Result<()> {
        let began_ns = self.cores.now_ns();
        self.turn = (began_ns, minutes.start);
        let at = |minute: usize, at: f64, tick: Duration| {
            began_ns + tick.mul_f64((minute - minutes.start) as f64 + at).as_nanos() as u64
        };
        for minute in minutes.clone() {
            self.put(at(minute, 0.0, self.scene.tick), Due::Minute(minute));
        }
        for (number, call) in self.scene.calls.iter().enumerate() {
            if minutes.contains(&call.minute) {
                let due_ns = at(call.minute, call.at, self.scene.tick);
                self.queries[number].due_ns = due_ns;
                self.put(due_ns, Due::Call(number));
            }
        }
        loop {
            self.cores.settle();
            let due = self.due.peek().map(|Reverse((at, ..))| *at);
            let done = self.cores.next_ns();
            let Some(now) = due.into_iter().chain(done).min() else { return Ok(()) };
            self.cores.advance(now);
            if let Some((then, ran_ns)) = self.cores.done() {
                self.on_done(then, ran_ns)?;
            } else if due == Some(now)
                && let Some(Reverse((_, _, due))) = self.due.pop()
            {
                self.on_due(due)?;
            }
        }
    }

    fn put(&mut self, at_ns: u64, due: Due) {
        self.put += 1;
        self.due.push(Reverse((at_ns, self.put, due)));
    }

    fn on_due(&mut self, due: Due) -> Result<()> {
        match due {
            Due::Minute(minute) => {
                self.cores.start(Pool::Clients, self.costs.append_ns, Then::Appended(minute));
            }
            Due::Call(number) if self.scene.calls[number].minute < self.appended => {
                self.begin(number);
            }
            Due::Call(number) => self.early.push(number),
            Due::Copied(id) => self.on_copied(id),
            Due::Look => self.learn_on(),
        }
        Ok(())
    }

    fn on_done(&mut self, then: Then, ran_ns: u64) -> Result<()> {
        match then {
            Then::Appended(minute) => return self.on_appended(minute),
            Then::Planned(number) => self.on_planned(number),
            Then::Scanned(number) => self.on_scanned(number),
            Then::Sliced(whom, node, rows) => self.on_sliced(whom, node, rows, ran_ns),
            Then::Forecast => return self.on_forecast(),
            Then::Learned => self.learn_on(),
        }
        Ok(())
    }

    /// Rows are there: calls that waited for them begin, and the tick before is over.
    fn on_appended(&mut self, minute: usize) -> Result<()> {
        self.table.append(minute as i64 + 1);
        self.appended = minute + 1;
        let early = std::mem::take(&mut self.early).into_iter();
        let (begin, wait) = early.partition(|number| self.scene.calls[*number].minute <= minute);
        self.early = wait;
        let begin: Vec<usize> = begin;
        begin.into_iter().for_each(|number| self.begin(number));
        if minute.is_multiple_of(LOOK_EVERY) {
            self.played.ticks_trusted += u64::from(self.trusted);
        }
        let view = self.view();
        let (seen, reverts) = self.the_loop.close_tick(&view);
        self.carry_out(reverts);
        self.first.get_or_init(|| seen.at.0);
        match self.round {
            Some(_) => self.next_round = Some(seen),
            None => self.begin_round(seen)?,
        }
        Ok(())
    }

    fn view(&self) -> ClusterView {
        let memory = self.the_loop.config.allocate().memory_bytes();
        self.table.view(self.scene, self.the_loop.epoch(), memory)
    }

    fn end(mut self) -> Played {
        let answers = self.queries.iter().zip(&self.scene.calls);
        let answer = |(query, call): (&Query, &Call)| Answer {
            minute: call.minute,
            ns: query.ns_answered,
            checksum: 0,
        };
        self.played.answers = answers.map(answer).collect();
        let first = self.first.get().copied();
        self.played.decided(self.the_loop.ledger.rows(), first, self.scene.warm_up);
        self.played
    }
}
