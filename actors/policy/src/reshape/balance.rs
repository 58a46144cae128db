//! Which replicas move, or get a copy, because nodes carry unequal loads.
//!
//! All is measured in waiting: work that comes to a node waits as often as the node's CPUs are busy, so a
//! node on which calls keep CPUs busy for `L` ms/s has calls wait about `L * L / (CPUs * 1 s)`. A step is
//! taken if it spares more waiting within `reshape.payback-ticks` than its copying takes, that which spares
//! most per byte first. Each step is an improvement by itself, and never makes a node busier than the one
//! was that it unloads.
//!
//! # Source
//! The score is Slicer's weighted move (Adya and others, OSDI 2016, section 4.4); that steps improve one by
//! one is the rule of the Citus rebalancer. That arrivals see a node as busy as it is on average is PASTA
//! (Wolff, Operations Research 30, 1982).

use super::colocate::joins_spared_ms;
use super::replicate::{COPY_NS_PER_BYTE, inputs, load, may_take, rests};
use super::situation::{Place, Situation};
use super::{Planned, Reason, Worth};
use crate::cluster::Step;
use crate::ids::NodeId;

/// Bytes that a step costs besides those that it copies: what takes nothing to copy still takes a step.
pub(super) const STEP_BYTES: f64 = 1_048_576.0;

/// A copy also keeps its bytes, a move gives them back: they count so often.
const COPY_BYTES: f64 = 2.0;

/// So many of the least busy nodes are looked at as targets of one step.
const TARGETS: usize = 8;

/// How many of the steps that were not chosen are named in a decision.
const ALTERNATIVES_MAX: usize = 3;

/// One node that may give or take load.
struct Carrier {
    node: NodeId,
    busy_ms: f64,
    permits: f64,
    /// Bytes that it can still take.
    room: u64,
    /// Whether it took part in a move just now.
    rests: bool,
    /// Whether nothing on it is worth moving.
    is_done: bool,
    /// Partitions of which it holds a replica that may move, in order.
    parts: Vec<Place>,
}

impl Carrier {
    /// Busy ms per s of each CPU.
    fn level(&self) -> f64 {
        self.busy_ms / self.permits
    }
}

/// A step that may be taken.
#[derive(Clone, Copy)]
struct Candidate {
    place: Place,
    from: usize,
    to: usize,
    is_copy: bool,
    /// Waiting that it spares, in ms per s.
    spared_ms: f64,
    /// Load that it takes off the node, in busy ms per s.
    shed_ms: f64,
    /// Bytes that it is charged for.
    bytes: f64,
}

impl Candidate {
    fn score(&self) -> f64 {
        self.spared_ms / self.bytes
    }
}

/// Adds to `steps`, up to `slots` of them, what evens out what nodes carry: from when the busiest carries
/// `reshape.balance-above` times the mean until it carries `reshape.balance-until` times the mean.
pub(super) fn steps(situation: &mut Situation<'_>, slots: usize, steps: &mut Vec<Planned>) {
    if !situation.is_load_known || steps.len() >= slots {
        return;
    }
    let mean = situation.mean_level();
    let mut carriers = carriers(situation);
    let config = situation.config.reshape();
    let busiest = carriers.iter().map(Carrier::level).fold(0.0, f64::max);
    if busiest <= config.balance_above() * mean || busiest <= config.balance_load_min() {
        return;
    }
    list_parts(situation, &mut carriers);
    let enough = (config.balance_until() * mean).max(config.balance_load_min());
    while steps.len() < slots {
        let at_work = carriers.iter().enumerate().filter(|(_, carrier)| !carrier.is_done);
        // Of equals the first one.
        let busiest = at_work.rev().max_by(|a, b| a.1.level().total_cmp(&b.1.level()));
        let Some((from, _)) = busiest.filter(|(_, carrier)| carrier.level() > enough) else {
            break;
        };
        let found =
            if carriers[from].rests { Vec::new() } else { candidates(situation, &carriers, from) };
        let Some(chosen) = found.first() else {
            carriers[from].is_done = true;
            continue;
        };
        let unit = unit(situation, &carriers, *chosen);
        let share = unit.len() as f64;
        let each = Candidate {
            spared_ms: chosen.spared_ms / share,
            shed_ms: chosen.shed_ms / share,
            ..*chosen
        };
        let planned: Vec<Planned> = unit
            .iter()
            .map(|place| {
                let one = Candidate { place: *place, ..each };
                planned(situation, &carriers, one, &found[1..], mean)
            })
            .collect();
        let fits = steps.len() + planned.len() <= slots
            && planned.iter().all(|planned| may_take(situation, planned, steps))
            && planned.iter().all(|planned| situation.may_copy(planned));
        if !fits {
            let left_out = chosen.place;
            carriers
                .iter_mut()
                .for_each(|carrier| carrier.parts.retain(|place| *place != left_out));
            continue;
        }
        for (place, planned) in unit.into_iter().zip(planned) {
            take(situation, &mut carriers, Candidate { place, ..each }, &planned.step);
            steps.push(planned);
        }
    }
}

/// What goes with a candidate: a copy alone, and what is moved with all that people want together with it.
fn unit(situation: &Situation<'_>, carriers: &[Carrier], chosen: Candidate) -> Vec<Place> {
    let (from, to) = (carriers[chosen.from].node, carriers[chosen.to].node);
    if chosen.is_copy { vec![chosen.place] } else { situation.unit(chosen.place, from, to) }
}

fn carriers(situation: &Situation<'_>) -> Vec<Carrier> {
    let blackout = situation.config.reshape().blackout_ticks();
    let staying = situation.nodes.iter().filter(|(_, view)| !view.draining);
    let carriers = staying.map(|(node, view)| {
        let moved = situation.state.traded.get(node);
        Carrier {
            node: *node,
            busy_ms: situation.node_busy_ms[node],
            permits: f64::from(view.cpu_permits.max(1)),
            room: view.memory_bytes_max.saturating_sub(view.memory_bytes),
            rests: moved.is_some_and(|tick| situation.now.0 < tick.0.saturating_add(blackout)),
            is_done: false,
            parts: Vec::new(),
        }
    });
    carriers.collect()
}

fn position(carriers: &[Carrier], node: NodeId) -> Option<usize> {
    carriers.binary_search_by_key(&node, |carrier| carrier.node).ok()
}

/// Notes with each node the partitions that may leave it.
fn list_parts(situation: &Situation<'_>, carriers: &mut [Carrier]) {
    for (place, part) in situation.parts.iter().enumerate() {
        let is_still = !part.is_moving && situation.plans_for(place) && !rests(situation, place);
        if part.busy_ms <= 0.0 || !is_still {
            continue;
        }
        for node in part.holders() {
            if let Some(at) = position(carriers, *node) {
                carriers[at].parts.push(place);
            }
        }
    }
}

/// What may be taken off a node and is worth it, best first: so many as are told of.
fn candidates(situation: &Situation<'_>, carriers: &[Carrier], from: usize) -> Vec<Candidate> {
    let mut targets: Vec<usize> = (0..carriers.len())
        .filter(|at| !carriers[*at].rests && carriers[*at].level() < carriers[from].level())
        .collect();
    let order = |a: &usize, b: &usize| {
        (carriers[*a].level().total_cmp(&carriers[*b].level())).then(a.cmp(b))
    };
    if targets.len() > TARGETS {
        targets.select_nth_unstable_by(TARGETS - 1, order);
        targets.truncate(TARGETS);
    }
    targets.sort_unstable_by(order);
    let mut found: Vec<Candidate> = Vec::new();
    for place in carriers[from].parts.iter().copied() {
        let part = &situation.parts[place];
        if part.is_moving {
            continue;
        }
        let can = |to: &&usize| {
            !part.holders().contains(&carriers[**to].node) && carriers[**to].room >= part.view.bytes
        };
        let Some(to) = targets.iter().find(can) else { continue };
        found.extend(moved(situation, carriers, (place, from, *to)));
        found.extend(copied(situation, carriers, (place, from, *to)));
    }
    let better = |a: &Candidate, b: &Candidate| {
        (b.score().total_cmp(&a.score())).then((a.place, a.is_copy).cmp(&(b.place, b.is_copy)))
    };
    if found.len() > ALTERNATIVES_MAX + 1 {
        found.select_nth_unstable_by(ALTERNATIVES_MAX, better);
        found.truncate(ALTERNATIVES_MAX + 1);
    }
    found.sort_unstable_by(better);
    found
}

/// Waiting on a node that calls keep busy for so long, in ms per s.
pub(super) fn waiting_ms(busy_ms: f64, permits: f64) -> f64 {
    busy_ms * busy_ms / (permits * 1e3)
}

/// Waiting that is spared if a node gets so much load more; less than none if it is more.
fn spared_ms(carrier: &Carrier, more_ms: f64) -> f64 {
    waiting_ms(carrier.busy_ms, carrier.permits)
        - waiting_ms(carrier.busy_ms + more_ms, carrier.permits)
}

fn moved(
    situation: &Situation<'_>,
    carriers: &[Carrier],
    (place, from, to): (Place, usize, usize),
) -> Option<Candidate> {
    let (giver, taker) = (&carriers[from], &carriers[to]);
    let unit = situation.unit(place, giver.node, taker.node);
    let may_go = |place: &Place| {
        let part = &situation.parts[*place];
        let holders = part.holders();
        let is_still = !part.is_moving && situation.plans_for(*place) && !rests(situation, *place);
        is_still && holders.contains(&giver.node) && !holders.contains(&taker.node)
    };
    let all_bytes: u64 = unit.iter().map(|place| situation.parts[*place].view.bytes).sum();
    if unit.len() > 1 && !(unit.iter().all(may_go) && taker.room >= all_bytes) {
        return None;
    }
    let share_of = |place: &Place| {
        situation.parts[*place].busy_ms / situation.staying(*place).count().max(1) as f64
    };
    let share: f64 = unit.iter().map(share_of).sum();
    let joins_spared_ms = if unit.len() == 1 {
        let mut holders = situation.parts[place].holders().clone();
        holders.remove(&giver.node);
        holders.insert(taker.node);
        situation.joins_spared_ms(place, &holders)
    } else {
        let moves: Vec<(Place, NodeId)> = unit.iter().map(|one| (*one, giver.node)).collect();
        joins_spared_ms(situation, &moves, taker.node)
    };
    let spared_ms = spared_ms(giver, -share) + spared_ms(taker, share) + joins_spared_ms;
    let bytes = all_bytes as f64 + STEP_BYTES * unit.len() as f64;
    let candidate = Candidate { place, from, to, is_copy: false, spared_ms, shed_ms: share, bytes };
    candidate.checked(situation, carriers, share)
}

fn copied(
    situation: &Situation<'_>,
    carriers: &[Carrier],
    (place, from, to): (Place, usize, usize),
) -> Option<Candidate> {
    let part = &situation.parts[place];
    let replicas = situation.staying(place).count();
    if replicas >= situation.config.reshape().copies_max() as usize {
        return None;
    }
    let share = part.busy_ms / (replicas + 1) as f64;
    let less = part.busy_ms / replicas.max(1) as f64 - share;
    let holders = situation.staying(place).filter_map(|node| position(carriers, node));
    let spared: f64 = holders.map(|at| spared_ms(&carriers[at], -less)).sum();
    let spared_ms = spared + spared_ms(&carriers[to], share);
    let bytes = COPY_BYTES * part.view.bytes as f64 + STEP_BYTES;
    let candidate = Candidate { place, from, to, is_copy: true, spared_ms, shed_ms: less, bytes };
    candidate.checked(situation, carriers, share)
}

impl Candidate {
    /// The candidate, if it is worth its bytes and the target ends less busy than the node was.
    fn checked(
        self,
        situation: &Situation<'_>,
        carriers: &[Carrier],
        gained_ms: f64,
    ) -> Option<Self> {
        let to = &carriers[self.to];
        let is_better = (to.busy_ms + gained_ms) / to.permits < carriers[self.from].level();
        let ticks = situation.config.reshape().payback_ticks() as f64;
        // A kind that did harm must spare more.
        let kind = if self.is_copy { "copy" } else { "move" };
        let trust = situation.trusted(kind).factor.min(1.0);
        let spared_ns = trust * self.spared_ms * ticks * situation.config.tick_ns() / 1e3;
        (is_better && spared_ns > self.bytes * COPY_NS_PER_BYTE).then_some(self)
    }
}

/// Carries a step out in what is known.
fn take(situation: &mut Situation<'_>, carriers: &mut [Carrier], chosen: Candidate, step: &Step) {
    situation.apply(chosen.place, step);
    let part = &mut situation.parts[chosen.place];
    part.is_moving = true;
    let to = &mut carriers[chosen.to];
    to.room = to.room.saturating_sub(part.view.bytes);
    for carrier in carriers {
        carrier.busy_ms = situation.node_busy_ms[&carrier.node];
    }
}

fn planned(
    situation: &Situation<'_>,
    carriers: &[Carrier],
    chosen: Candidate,
    others: &[Candidate],
    mean: f64,
) -> Planned {
    let part = &situation.parts[chosen.place];
    let step = |it: &Candidate| {
        let partition = situation.parts[it.place].id.clone();
        let (from, to) = (carriers[it.from].node, carriers[it.to].node);
        if it.is_copy {
            Step::Copy { partition, from, to }
        } else {
            Step::Move { partition, from, to }
        }
    };
    let mut holders = part.holders().clone();
    step(&chosen).change_holders(&mut holders);
    let expected = situation.sparing(chosen.place, &holders);
    let told = |it: &Candidate| {
        let mib = it.bytes / STEP_BYTES;
        format!("{}: spares {:.1} ms/s of waiting for {mib:.1} MiB", step(it), it.spared_ms)
    };
    Planned {
        step: step(&chosen),
        reason: Reason::Uneven {
            node: carriers[chosen.from].node,
            level_ms: carriers[chosen.from].level(),
            mean_ms: mean,
            shed_ms: chosen.shed_ms,
            basis: situation.basis(chosen.place),
            expected,
        },
        worth: Worth {
            benefit_ns: expected.mean_ns,
            cost_ns: part.view.bytes as f64 * COPY_NS_PER_BYTE,
            bytes: if chosen.is_copy { part.view.bytes as f64 } else { 0.0 },
        },
        inputs: inputs(situation, chosen.place),
        forecast: load(situation, chosen.place),
        alternatives: others.iter().map(told).collect(),
    }
}
