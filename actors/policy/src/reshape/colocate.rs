//! Which partitions move onto one node because queries join them.
//!
//! From the partition whose joins have most to copy, a clump grows along the strongest joins, and moves to a
//! node that holds what it is joined with: as much of it as spares most. Copying is measured in the same
//! time as waiting, so that load and joins can be weighed against each other: a clump moves if it spares
//! more of both within `reshape.payback-ticks` than moving it takes, and its node stays below the load at
//! which balancing would begin.
//!
//! # Source
//! Serafini and others, "Clay: Fine-Grained Adaptive Partitioning for General Database Schemas", VLDB 2016,
//! section 5: clumps, the look-ahead of five, and that the receiver stays below the maximum.

use std::collections::{BTreeMap, BTreeSet};

use super::balance::{STEP_BYTES, waiting_ms};
use super::replicate::{COPY_NS_PER_BYTE, inputs, load, may_take, rests};
use super::situation::{Place, Situation};
use super::{Planned, Reason, Worth};
use crate::cluster::Step;
use crate::ids::NodeId;

/// Partitions that a clump may grow by without becoming worth more.
const LOOK_AHEAD: usize = 5;

/// Partitions whose joins are looked at in one plan, those with most to copy first.
const STARTS_MAX: usize = 256;

/// Partitions that go to one node together.
#[derive(Clone)]
struct Clump {
    /// Each with the node that gives it up.
    members: Vec<(Place, NodeId)>,
    to: NodeId,
    /// Waiting and copying that it spares, in ms per s.
    spared_ms: f64,
}

/// Adds to `steps`, up to `slots` of them, moves that bring together what queries join.
pub(super) fn steps(situation: &mut Situation<'_>, slots: usize, steps: &mut Vec<Planned>) {
    if steps.len() >= slots {
        return;
    }
    let mean = situation.mean_level();
    for start in starts(situation) {
        let free = slots - steps.len();
        let clumps = targets(situation, start);
        let clumps = clumps.into_iter().filter_map(|to| clump(situation, start, to, mean, free));
        let Some(best) = clumps.max_by(|a, b| a.spared_ms.total_cmp(&b.spared_ms)) else {
            continue;
        };
        for (place, from) in best.members {
            let planned = planned(situation, (place, from, best.to));
            // What waits for bytes of the next hour is left alone, too.
            situation.parts[place].is_moving = true;
            if !may_take(situation, &planned, steps) || !situation.may_copy(&planned) {
                break;
            }
            situation.apply(place, &planned.step);
            steps.push(planned);
        }
        if steps.len() >= slots {
            break;
        }
    }
}

/// Partitions that are joined with some that no node holds with them, those with most to copy first.
fn starts(situation: &Situation<'_>) -> Vec<Place> {
    let copied = |place: Place| -> f64 {
        let holders = situation.parts[place].holders();
        situation.apart(place, holders).map(|join| join.copied_ms).sum()
    };
    let mut starts: Vec<_> = situation
        .joins
        .places()
        .map(|place| (copied(place), place))
        .filter(|(copied, _)| *copied > 0.0)
        .collect();
    starts.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    starts.truncate(STARTS_MAX);
    starts.into_iter().map(|(_, place)| place).collect()
}

/// Nodes that hold what a partition is joined with.
fn targets(situation: &Situation<'_>, start: Place) -> BTreeSet<NodeId> {
    let holders = situation.parts[start].holders();
    situation.apart(start, holders).flat_map(|join| situation.staying(join.with)).collect()
}

/// The clump around `start` that spares most on `to`, of at most so many partitions.
fn clump(
    situation: &Situation<'_>,
    start: Place,
    to: NodeId,
    mean: f64,
    free: usize,
) -> Option<Clump> {
    let mut grown = Vec::new();
    let mut best: Option<Clump> = None;
    let mut next = Some(start);
    while let Some(place) = next {
        grown.push((place, giver(situation, place, to)?));
        let spared_ms = spared_ms(situation, &grown, to, mean);
        if let Some(spared_ms) = spared_ms
            && best.as_ref().is_none_or(|best| spared_ms > best.spared_ms)
        {
            best = Some(Clump { members: grown.clone(), to, spared_ms });
        }
        let kept = best.as_ref().map_or(0, |best| best.members.len());
        if grown.len() > kept + LOOK_AHEAD || grown.len() >= free {
            break;
        }
        next = strongest(situation, &grown, to);
    }
    best
}

/// The node that a partition would leave: the busiest of those that hold it. None if it may not move.
fn giver(situation: &Situation<'_>, place: Place, to: NodeId) -> Option<NodeId> {
    let part = &situation.parts[place];
    let is_still = !part.is_moving && situation.plans_for(place) && !rests(situation, place);
    if !is_still || part.holders().contains(&to) {
        return None;
    }
    let load = &situation.node_busy_ms;
    let givers = situation.staying(place);
    let from = givers.max_by(|a, b| load[a].total_cmp(&load[b]).then(a.cmp(b)))?;
    // What people want together goes before what queries join.
    (!situation.takes_apart(place, from, Some(to))).then_some(from)
}

/// The partition outside of the clump and of its node that has most to copy for joins with the clump.
fn strongest(situation: &Situation<'_>, grown: &[(Place, NodeId)], to: NodeId) -> Option<Place> {
    let is_new = |place: Place| {
        grown.iter().all(|(known, _)| *known != place) && giver(situation, place, to).is_some()
    };
    let joins = grown.iter().flat_map(|(place, _)| situation.joins.of(*place));
    let outside = joins.filter(|join| is_new(join.with));
    outside
        .max_by(|a, b| a.copied_ms.total_cmp(&b.copied_ms).then(b.with.cmp(&a.with)))
        .map(|it| it.with)
}

/// What moving the clump spares, in ms per s: none if it is not worth its bytes, or too much for the node.
fn spared_ms(
    situation: &Situation<'_>,
    grown: &[(Place, NodeId)],
    to: NodeId,
    mean: f64,
) -> Option<f64> {
    let config = situation.config.reshape();
    let (mut busy, mut bytes) = (situation.node_busy_ms.clone(), 0);
    for (place, from) in grown {
        let part = &situation.parts[*place];
        let share = part.busy_ms / situation.staying(*place).count().max(1) as f64;
        busy.entry(*from).and_modify(|busy| *busy -= share);
        busy.entry(to).and_modify(|busy| *busy += share);
        bytes += part.view.bytes;
    }
    let mut spared_ms = joins_spared_ms(situation, grown, to);
    let view = &situation.nodes[&to];
    let waiting = |node: &NodeId, busy_ms: f64| waiting_ms(busy_ms, situation.permits(*node));
    let before =
        situation.node_busy_ms.iter().map(|(node, busy)| waiting(node, *busy)).sum::<f64>();
    let after = busy.iter().map(|(node, busy)| waiting(node, *busy)).sum::<f64>();
    spared_ms += before - after;
    let seconds = config.payback_ticks() as f64 * situation.config.tick_ns() / 1e9;
    let cost_ns = (bytes as f64 + STEP_BYTES * grown.len() as f64) * COPY_NS_PER_BYTE;
    let level = busy[&to] / situation.permits(to);
    let most = (config.balance_above() * mean).max(config.balance_load_min());
    let fits = view.memory_bytes_max.saturating_sub(view.memory_bytes) >= bytes;
    (fits && level <= most && spared_ms * seconds * 1e6 > cost_ns).then_some(spared_ms)
}

/// Copying for joins that is spared if all of the clump is on a node, in ms per s.
pub(super) fn joins_spared_ms(
    situation: &Situation<'_>,
    grown: &[(Place, NodeId)],
    to: NodeId,
) -> f64 {
    let moved: BTreeMap<Place, BTreeSet<NodeId>> = grown
        .iter()
        .map(|(place, from)| {
            let mut holders = situation.parts[*place].holders().clone();
            holders.remove(from);
            holders.insert(to);
            (*place, holders)
        })
        .collect();
    let mut spared_ms = 0.0;
    for (place, after) in &moved {
        let before = situation.parts[*place].holders();
        for join in situation.joins.of(*place) {
            let with = situation.parts[join.with].holders();
            let with_after = moved.get(&join.with).unwrap_or(with);
            // Joins within the clump are met from both sides.
            let share = if moved.contains_key(&join.with) { 0.5 } else { 1.0 };
            let copied = |apart: bool| if apart { share * join.copied_ms } else { 0.0 };
            spared_ms += copied(before.is_disjoint(with)) - copied(after.is_disjoint(with_after));
        }
    }
    spared_ms
}

fn planned(situation: &Situation<'_>, (place, from, to): (Place, NodeId, NodeId)) -> Planned {
    let part = &situation.parts[place];
    let mut holders = part.holders().clone();
    let queries = situation.apart(place, &holders).map(|join| join.queries).sum();
    holders.remove(&from);
    holders.insert(to);
    let spared_ms = situation.joins_spared_ms(place, &holders);
    let seconds = situation.config.horizon_ticks() as f64 * situation.config.tick_ns() / 1e9;
    Planned {
        step: Step::Move { partition: part.id.clone(), from, to },
        reason: Reason::Joined { node: to, queries, spared_ms },
        worth: Worth {
            benefit_ns: spared_ms * seconds * 1e6,
            cost_ns: part.view.bytes as f64 * COPY_NS_PER_BYTE,
            bytes: 0.0,
        },
        inputs: inputs(situation, place),
        forecast: load(situation, place),
        alternatives: Vec::new(),
    }
}
