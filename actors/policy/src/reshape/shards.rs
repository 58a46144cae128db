//! Which partitions are split because they are too large or too hot, and which neighbours are merged again.
//!
//! Copies come first: they cost no rewriting. A partition is split by load once it has as many replicas as it
//! may, each still carries more than `reshape.split-above`, and there is a node without one, so that its
//! parts can be moved apart: within one node the segments of a partition use all CPUs anyway. In one table one partition is split or merged at a time, and the table rests afterwards, so
//! that the next decision knows what the parts carry.

use super::replicate::{COPY_NS_PER_BYTE, inputs, load, may_take, rests};
use super::situation::{Place, Situation};
use super::{Planned, Reason, Worth};
use crate::cluster::{Step, TableView};
use crate::ids::PartitionId;

/// What is rewritten is read and written.
const REWRITE_NS_PER_BYTE: f64 = 2.0 * COPY_NS_PER_BYTE;

/// Adds to `steps`, up to `slots` of them, at most one for each table.
pub(super) fn steps(situation: &mut Situation<'_>, slots: usize, steps: &mut Vec<Planned>) {
    for (name, table) in situation.tables {
        if steps.len() >= slots {
            return;
        }
        let dwell = situation.config.reshape().split_dwell_ticks();
        let reshaped = situation.state.reshaped.get(name);
        let has_rest = reshaped.is_some_and(|tick| situation.now.0 < tick.0.saturating_add(dwell));
        if has_rest || situation.reshaping.contains(name) {
            continue;
        }
        let place = |ordinal: &u32| situation.place(&PartitionId::new(name.clone(), *ordinal));
        let Some(places) = table.order.iter().map(place).collect::<Option<Vec<_>>>() else {
            continue; // Partitions have come or gone since the view was begun.
        };
        let planned = split(situation, table, &places).or_else(|| merge(situation, table, &places));
        let Some(planned) = planned.filter(|planned| may_take(situation, planned, steps)) else {
            continue;
        };
        if situation.may_copy(&planned) {
            situation.begin(&planned.step);
            steps.push(planned);
        }
    }
}

fn is_still(situation: &Situation<'_>, place: Place) -> bool {
    let part = &situation.parts[place];
    !part.is_moving && situation.plans_for(place) && !rests(situation, place)
}

/// Splits the partition of the table that is most above a limit.
fn split(situation: &Situation<'_>, table: &TableView, places: &[Place]) -> Option<Planned> {
    let wanted = places
        .iter()
        .copied()
        .filter(|place| situation.parts[*place].view.rows > 1 && is_still(situation, *place));
    let wanted = wanted.filter_map(|place| Some((place, excess(situation, place)?)));
    let (place, (_, reason)) =
        wanted.max_by(|a, b| (a.1.0.total_cmp(&b.1.0)).then_with(|| b.0.cmp(&a.0)))?;
    let part = &situation.parts[place];
    let replicas = situation.staying(place).count().max(1) as f64;
    let step = Step::Split { partition: part.id.clone(), into: [table.next, table.next + 1] };
    // Two parts on two nodes have calls wait half as long as one.
    let busy_ms = part.busy_ms / replicas;
    let seconds = situation.config.horizon_ticks() as f64 * situation.config.tick_ns() / 1e9;
    Some(Planned {
        step,
        reason,
        worth: Worth {
            benefit_ns: busy_ms * busy_ms / 2e3 * seconds * 1e6,
            cost_ns: part.view.bytes as f64 * REWRITE_NS_PER_BYTE,
            bytes: 0.0,
        },
        inputs: inputs(situation, place),
        forecast: load(situation, place),
        alternatives: vec![format!("leave it whole, {} partitions", table.order.len())],
    })
}

/// How many times as large or as hot as it may be a partition is, and which.
fn excess(situation: &Situation<'_>, place: Place) -> Option<(f64, Reason)> {
    let config = situation.config.reshape();
    let part = &situation.parts[place];
    let bytes = part.view.bytes;
    let large = (bytes as f64 / config.split_bytes() as f64).max(0.0);
    let replicas = situation.staying(place).count();
    // Of a kind that did harm more is wanted.
    let limit_ms = config.split_above() / situation.trusted("split").factor.min(1.0);
    let busy_ms = part.busy_ms / replicas.max(1) as f64;
    let hot = if parts_can_part(situation, place, replicas) { busy_ms / limit_ms } else { 0.0 };
    if large.max(hot) <= 1.0 {
        return None;
    }
    let reason = if hot > large {
        Reason::TooHot { busy_ms, limit_ms, replicas, basis: situation.basis(place) }
    } else {
        Reason::TooLarge { bytes, limit: config.split_bytes() }
    };
    Some((large.max(hot), reason))
}

/// Whether there can be no more copies, and yet another node could take a part.
fn parts_can_part(situation: &Situation<'_>, place: Place, replicas: usize) -> bool {
    let most = situation.config.reshape().copies_max() as usize;
    replicas >= most && !situation.targets(place, 1).is_empty()
}

/// Merges the neighbours that are smallest and coldest together.
fn merge(situation: &Situation<'_>, table: &TableView, places: &[Place]) -> Option<Planned> {
    if table.order.len() <= table.made.max(1) as usize || !situation.is_load_known {
        return None;
    }
    let config = situation.config.reshape();
    let bytes_limit = config.merge_below() * config.split_bytes() as f64;
    let limit_ms = config.merge_below() * config.split_above();
    let sums = |one: Place, other: Place| {
        let (one, other) = (&situation.parts[one], &situation.parts[other]);
        (one.view.bytes + other.view.bytes, one.busy_ms + other.busy_ms)
    };
    let pairs = places.windows(2).map(|pair| (pair[0], pair[1]));
    let pairs = pairs.filter(|(one, other)| {
        let (bytes, busy_ms) = sums(*one, *other);
        let is_small = (bytes as f64) < bytes_limit && busy_ms < limit_ms;
        is_small && is_still(situation, *one) && is_still(situation, *other)
    });
    let fullness = |one: Place, other: Place| {
        let (bytes, busy_ms) = sums(one, other);
        (bytes as f64 / bytes_limit).max(busy_ms / limit_ms)
    };
    let (one, other) = pairs.min_by(|a, b| fullness(a.0, a.1).total_cmp(&fullness(b.0, b.1)))?;
    let (bytes, busy_ms) = sums(one, other);
    let partition = situation.parts[one].id.clone();
    let other_id = situation.parts[other].id.ordinal;
    Some(Planned {
        step: Step::Merge { partition, other: other_id, into: table.next },
        reason: Reason::TooSmall { bytes, bytes_limit, busy_ms, limit_ms, made: table.made },
        worth: Worth { benefit_ns: 0.0, cost_ns: bytes as f64 * REWRITE_NS_PER_BYTE, bytes: 0.0 },
        inputs: format!("{}; {}", inputs(situation, one), inputs(situation, other)),
        forecast: format!("{}; {}", load(situation, one), load(situation, other)),
        alternatives: vec![format!("leave {} partitions", table.order.len())],
    })
}
