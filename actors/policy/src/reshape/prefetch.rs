//! Which rows of files are read into memory before queries ask for them, and which are let go for others.
//!
//! Rows of tables in memory are there anyway, and are no business of this.

use std::collections::BTreeMap;

use super::reason::duration;
use super::situation::{Place, Situation};
use super::{Planned, Reason, Worth};
use crate::cluster::{NodeView, RowsView, Step};
use crate::ids::{NodeId, PartitionId};

/// Share of a node's memory that rows may take; the rest is for outputs. A replica that opens keeps to it,
/// too.
pub const ROWS_SHARE: f64 = 0.5;

/// How many of those that have to wait are named in a decision.
const ALTERNATIVES_MAX: usize = 3;

/// Fewer expected calls than this are none.
const NO_CALLS: f64 = 0.01;

/// Kind of step, as in [`Step::kind`].
const KIND: &str = "prefetch";

/// A replica by what names it.
type Target<'s> = &'s (PartitionId, NodeId);

/// What is expected of a partition: of the function that is called most, for several that are called in one
/// query read its rows once.
#[derive(Clone, Copy, Default)]
struct Reads {
    /// Calls within the lead.
    ahead: f64,
    /// Calls of the last ticks, per tick.
    now: f64,
    /// First tick, from one, by whose end one is expected.
    needed_in: Option<usize>,
}

impl Reads {
    /// Calls to be ready for. What is called now goes on for a tick at least, whatever is forecast.
    fn calls(&self) -> f64 {
        self.ahead.max(self.now)
    }
}

/// Rows that are missing in memory and that calls are expected on.
struct Candidate<'s> {
    target: Target<'s>,
    rows: RowsView,
    /// On this replica.
    calls: f64,
    trust: f64,
    needed_in: usize,
    /// Whether it is called already: what is measured goes before what is forecast.
    is_called: bool,
}

/// Rows in memory that nobody read for as long as is looked ahead, and that are not called.
#[derive(Clone, Copy)]
struct Idle<'s> {
    target: Target<'s>,
    rows: RowsView,
    /// Calls that are expected all the same.
    calls: f64,
}

impl Idle<'_> {
    fn is_expected(&self) -> bool {
        self.calls >= NO_CALLS
    }
}

impl Candidate<'_> {
    fn bytes(&self) -> f64 {
        self.rows.bytes_missing as f64
    }

    /// Nanoseconds that reading what is missing takes, each time.
    fn read_ns(&self) -> f64 {
        let all = (self.rows.bytes + self.rows.bytes_missing) as f64;
        self.rows.read_ns * self.bytes() / all.max(1.0)
    }

    /// Reads that are spared, less for the chance that there is none: then reading ahead was for nothing.
    fn spared(&self) -> f64 {
        self.calls * -(-self.calls).exp_m1() * self.trust
    }

    fn worth_per_byte(&self) -> f64 {
        self.spared() * self.read_ns() / self.bytes().max(1.0)
    }
}

/// What a node can still take.
struct Room {
    bytes: f64,
    /// Bytes of rows that are being let go.
    coming: f64,
    /// Bytes that may still be read within a tick.
    io_bytes: f64,
}

/// Rows to let go, then rows to read, at most so many. Nothing unless the forecast may be acted on.
///
/// What spares most reading per byte comes first, as far as memory that nobody uses goes, beside what
/// `others` take of it. For more than that, rows go that nobody read for as long as is looked ahead, and that
/// nobody is expected to read; what takes their place is read when they are gone. What is called already comes
/// before what is only expected, and may have its place, too: a wrong forecast keeps nothing out for long.
pub(super) fn steps(situation: &Situation<'_>, others: &[Planned], most: usize) -> Vec<Planned> {
    if most == 0 || situation.ahead.is_empty() || situation.rows.is_empty() {
        return Vec::new();
    }
    let reads = reads(situation);
    let mut rooms = rooms(situation, others);
    let mut unread = unread(situation, &reads);
    for Planned { step, .. } in others {
        if let Step::Release { partition, node } = step {
            let of_node = unread.entry(*node).or_default();
            of_node.retain(|idle| idle.target.0 != *partition);
        }
    }
    let (mut steps, mut chosen, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    for candidate in candidates(situation, &reads) {
        let (partition, node) = candidate.target;
        let Some(room) = rooms.get_mut(node) else { continue };
        let lacking = candidate.bytes() - room.bytes;
        if lacking <= 0.0 && room.io_bytes > 0.0 {
            room.bytes -= candidate.bytes();
            room.io_bytes -= candidate.bytes(); // The last one may be as large as it likes.
            chosen.push(candidate);
            continue;
        }
        let mut text = format!("{partition} {node}: the node reads as much as it may");
        if lacking > 0.0 {
            text = format!("{partition} {node}: {lacking:.0} bytes are lacking");
            let going = lacking <= room.coming;
            let of_node = unread.get_mut(node).filter(|_| !going);
            let found = of_node.map(|idle| room_for(lacking, candidate.is_called, idle));
            let found = found.unwrap_or_default();
            if going || !found.is_empty() {
                room.bytes = 0.0; // Nothing that spares less may take what is left meanwhile.
            }
            steps.extend(found.into_iter().map(|idle| release(idle, lacking)));
        }
        if waiting.len() < ALTERNATIVES_MAX {
            waiting.push(text);
        }
    }
    if let Some(left) = situation.trusted(KIND).steps_left {
        chosen.truncate(left);
    }
    chosen.sort_by_key(|candidate| candidate.needed_in); // Stable: the worthiest of a tick stays first.
    steps.extend(chosen.iter().map(|candidate| prefetch(situation, candidate, &waiting)));
    steps.truncate(most);
    steps
}

/// Rows to let go where memory is short: `over` has the bytes that each node lacks, and then those that it
/// still does.
pub(super) fn give_room(
    situation: &Situation<'_>,
    over: &mut BTreeMap<NodeId, f64>,
) -> Vec<Planned> {
    if over.is_empty() || situation.rows.is_empty() {
        return Vec::new();
    }
    let mut unread = unread(situation, &reads(situation));
    let mut steps = Vec::new();
    for (node, lacking) in over {
        let of_node = unread.entry(*node).or_default();
        while *lacking > 0.0
            && let Some(idle) = of_node.pop_if(|idle| !idle.is_expected())
        {
            steps.push(release(idle, *lacking));
            *lacking -= idle.rows.bytes as f64;
        }
    }
    steps
}

/// What is expected of each partition, by its place.
fn reads(situation: &Situation<'_>) -> Vec<Reads> {
    let lead = situation.config.precompute().lead_ticks();
    let mut all = vec![Reads::default(); situation.parts.len()];
    let mut near = 0;
    for series in situation.ahead.series() {
        let Some(place) = situation.place_near(&series.key.partition, &mut near) else { continue };
        let reads = &mut all[place];
        reads.ahead = reads.ahead.max(series.expected_calls(lead));
        reads.now = reads.now.max(series.calls_now);
        let first = series.needed_in();
        reads.needed_in = reads.needed_in.into_iter().chain(first).min();
    }
    all
}

/// Replicas that the loop may change, each with its place.
fn replicas<'s>(situation: &Situation<'s>) -> impl Iterator<Item = (Place, Target<'s>, RowsView)> {
    let mut near = 0;
    let is_open = |target: Target<'_>| {
        situation.state.in_flight.iter().any(|step| of_rows(step) == Some((&target.0, target.1)))
    };
    situation.rows.iter().filter_map(move |(target, rows)| {
        let place = situation.place_near(&target.0, &mut near)?;
        let may_change = situation.plans_for(place) && !situation.parts[place].is_moving;
        (may_change && !is_open(target)).then_some((place, target, *rows))
    })
}

/// The replica whose rows a step reads or lets go.
fn of_rows(step: &Step) -> Option<(&PartitionId, NodeId)> {
    match step {
        Step::Prefetch { partition, node } | Step::Release { partition, node } => {
            Some((partition, *node))
        }
        _ => None,
    }
}

/// The worthiest first.
fn candidates<'s>(situation: &Situation<'s>, reads: &[Reads]) -> Vec<Candidate<'s>> {
    let config = situation.config.precompute();
    let trust = situation.trusted(KIND).factor;
    let candidate = |(place, target, rows): (Place, Target<'s>, RowsView)| {
        let reads = reads[place];
        let holders: Vec<NodeId> = situation.computing(place).collect();
        let is_wanted = rows.bytes_missing > 0 && holders.contains(&target.1);
        if !is_wanted || situation.avoids(|| prefetch_of(target)) {
            return None;
        }
        let calls = reads.calls() / holders.len() as f64;
        let needed_in = if reads.now >= 0.5 { Some(1) } else { reads.needed_in };
        let needed_in = needed_in.unwrap_or(usize::MAX).clamp(1, config.lead_ticks());
        let is_called = reads.now >= NO_CALLS;
        let candidate = Candidate { target, rows, calls, trust, needed_in, is_called };
        (candidate.spared() >= config.min_worth()).then_some(candidate)
    };
    let mut all: Vec<_> = replicas(situation).filter_map(candidate).collect();
    all.sort_by(|a, b| {
        let called = b.is_called.cmp(&a.is_called);
        called
            .then(b.worth_per_byte().total_cmp(&a.worth_per_byte()))
            .then_with(|| a.target.cmp(b.target))
    });
    all
}

fn rooms(situation: &Situation<'_>, others: &[Planned]) -> BTreeMap<NodeId, Room> {
    let limit = situation.config.precompute().drop_above();
    let io = situation.config.allocate().io_bytes_per_s() as f64;
    let io_bytes = if io > 0.0 { io * situation.config.tick_ns() / 1e9 } else { f64::INFINITY };
    let mut held: BTreeMap<NodeId, f64> = BTreeMap::new();
    for ((_, node), rows) in situation.rows {
        *held.entry(*node).or_default() += rows.bytes as f64;
    }
    let room = |(node, view): (&NodeId, &NodeView)| {
        let most = view.memory_bytes_max as f64;
        let rows = held.get(node).copied().unwrap_or(0.0);
        let bytes = (ROWS_SHARE * most - rows).min(limit * most - view.memory_bytes as f64);
        (*node, Room { bytes, coming: 0.0, io_bytes })
    };
    let mut rooms: BTreeMap<NodeId, Room> = situation.nodes.iter().map(room).collect();
    for step in &situation.state.in_flight {
        let Some((partition, node)) = of_rows(step) else { continue };
        let rows = situation.rows.get(&(partition.clone(), node));
        let (Some(rows), Some(room)) = (rows, rooms.get_mut(&node)) else { continue };
        match step {
            Step::Prefetch { .. } => {
                room.bytes -= rows.bytes_missing as f64;
                room.io_bytes -= rows.bytes_missing as f64;
            }
            _ => room.coming += rows.bytes as f64,
        }
    }
    for Planned { step, worth, .. } in others {
        let Step::Precompute { partition, .. } = step else { continue };
        let place = situation.place(partition);
        for node in place.into_iter().flat_map(|place| situation.computing(place)) {
            rooms.entry(node).and_modify(|room| room.bytes -= worth.bytes);
        }
    }
    rooms
}

/// Rows on each node that nobody read for as long as is looked ahead, and that are not called: those that nobody
/// is expected to read come last, of them the longest unread.
fn unread<'s>(situation: &Situation<'s>, reads: &[Reads]) -> BTreeMap<NodeId, Vec<Idle<'s>>> {
    let lead = situation.config.precompute().lead_ticks() as u64;
    let idle_ms = lead.saturating_mul(situation.config.tick_ms());
    let mut all: BTreeMap<NodeId, Vec<Idle<'s>>> = BTreeMap::new();
    for (place, target, rows) in replicas(situation) {
        let Reads { ahead: calls, now, .. } = reads[place];
        let is_unread = rows.bytes > 0 && rows.idle_ms >= idle_ms && now < NO_CALLS;
        if is_unread && !situation.avoids(|| release_of(target)) {
            all.entry(target.1).or_default().push(Idle { target, rows, calls });
        }
    }
    for of_node in all.values_mut() {
        of_node.sort_by(|a, b| {
            let expected = |idle: &Idle<'_>| if idle.is_expected() { idle.calls } else { 0.0 };
            (expected(b).total_cmp(&expected(a)))
                .then(a.rows.idle_ms.cmp(&b.rows.idle_ms))
                .then_with(|| b.target.cmp(a.target))
        });
    }
    all
}

/// Takes as many as make up for what is lacking; none if all do not. Only for what is called already others go
/// that are expected to be read.
fn room_for<'s>(lacking: f64, is_called: bool, unread: &mut Vec<Idle<'s>>) -> Vec<Idle<'s>> {
    let mut bytes = 0.0;
    let may_go = unread.iter().rev().take_while(|idle| is_called || !idle.is_expected());
    let enough = may_go.map(|idle| idle.rows.bytes as f64).position(|more| {
        bytes += more;
        bytes >= lacking
    });
    enough.map_or_else(Vec::new, |last| unread.split_off(unread.len() - 1 - last))
}

fn prefetch_of((partition, node): Target<'_>) -> Step {
    Step::Prefetch { partition: partition.clone(), node: *node }
}

fn release_of((partition, node): Target<'_>) -> Step {
    Step::Release { partition: partition.clone(), node: *node }
}

fn prefetch(situation: &Situation<'_>, candidate: &Candidate<'_>, waiting: &[String]) -> Planned {
    let Candidate { target, rows, calls, needed_in, .. } = candidate;
    let lead = situation.config.precompute().lead_ticks();
    Planned {
        step: prefetch_of(target),
        reason: Reason::Awaited {
            calls: *calls,
            in_ms: *needed_in as f64 * situation.config.tick_ms() as f64,
            bytes: rows.bytes_missing,
            read_ns: candidate.read_ns(),
        },
        worth: Worth {
            benefit_ns: candidate.spared() * candidate.read_ns(),
            cost_ns: candidate.read_ns(),
            bytes: candidate.bytes(),
        },
        inputs: format!(
            "{} bytes in memory, {} in files; all of it takes {} to read",
            rows.bytes,
            rows.bytes_missing,
            duration(rows.read_ns)
        ),
        forecast: format!("{calls:.1} calls in {lead} ticks, needed in {needed_in}"),
        alternatives: waiting.to_vec(),
    }
}

fn release(Idle { target, rows, calls }: Idle<'_>, lacking: f64) -> Planned {
    Planned {
        step: release_of(target),
        reason: Reason::Unread { idle_ms: rows.idle_ms, calls, lacking, node: target.1 },
        worth: Worth { benefit_ns: 0.0, cost_ns: 0.0, bytes: -(rows.bytes as f64) },
        inputs: format!("{} bytes in memory", rows.bytes),
        forecast: format!("{calls:.1} calls"),
        alternatives: Vec::new(),
    }
}
