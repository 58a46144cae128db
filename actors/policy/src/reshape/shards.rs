//! Which partitions are split because they are too large or too hot, and which neighbours are merged again.
//!
//! Copies come first: they cost no rewriting. A partition is split by load once it has as many replicas as it
//! may, each still carries more than `reshape.split-above`, and there is a node without one, so that its
//! parts can be moved apart: within one node the segments of a partition use all CPUs anyway. In one table one partition is split or merged at a time, and the table rests afterwards, so
//! that the next decision knows what the parts carry.
//!
//! Partitions of other tables with the very same keys are split and merged alike, where people declared that
//! the tables belong together, or queries join them in place: else what is joined would come apart. While one
//! of them changes, all wait.

use super::cut::Even;
use super::replicate::{COPY_NS_PER_BYTE, inputs, load, may_take, rests};
use super::situation::{Place, Situation};
use super::{Planned, Reason, Worth};
use crate::alike;
use crate::cluster::{MergeAlike, SplitAlike, Step, TableView};
use crate::ids::PartitionId;

/// Neighbours that are looked at for one that may be merged, the emptiest first.
const NEIGHBOURS_MAX: usize = 8;

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

/// Partitions that are split or merged as well, and what is left out of them and why; none while one of them
/// may not change.
fn twins(situation: &Situation<'_>, partition: &PartitionId) -> Option<(Vec<Place>, Vec<String>)> {
    let (mut twins, mut left_out) = (Vec::new(), Vec::new());
    let controls = &situation.state.controls;
    let dwell = situation.config.reshape().split_dwell_ticks();
    for twin in alike::twins(situation.view, controls, situation.joined, partition) {
        let place = situation.place(&twin)?;
        if !situation.plans_for(place) {
            left_out.push(format!("{twin} is not left to the loop, and stays as it is"));
            continue;
        }
        let reshaped = situation.state.reshaped.get(&twin.table);
        let has_rest = reshaped.is_some_and(|tick| situation.now.0 < tick.0.saturating_add(dwell));
        let is_changing =
            situation.reshaping.contains(&twin.table) || situation.parts[place].is_moving;
        if has_rest || is_changing {
            return None;
        }
        twins.push(place);
    }
    Some((twins, left_out))
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
    let (twins, left_out) = twins(situation, part.id)?;
    let alike = twins.iter().filter_map(|twin| {
        let partition = situation.parts[*twin].id.clone();
        let next = situation.tables.get(&partition.table)?.next;
        Some(SplitAlike { partition, into: [next, next + 1] })
    });
    let step = Step::Split {
        partition: part.id.clone(),
        into: [table.next, table.next + 1],
        even: if matches!(reason, Reason::TooHot { .. }) { Even::Load } else { Even::Rows },
        alike: alike.collect(),
    };
    let bytes_of = |place: &Place| situation.parts[*place].view.bytes;
    let bytes = bytes_of(&place) + twins.iter().map(bytes_of).sum::<u64>();
    let whole = format!("leave it whole, {} partitions", table.order.len());
    // Two parts on two nodes have calls wait half as long as one.
    let busy_ms = part.busy_ms / replicas;
    let seconds = situation.config.horizon_ticks() as f64 * situation.config.tick_ns() / 1e9;
    Some(Planned {
        step,
        reason,
        worth: Worth {
            benefit_ns: busy_ms * busy_ms / 2e3 * seconds * 1e6,
            cost_ns: bytes as f64 * REWRITE_NS_PER_BYTE,
            bytes: 0.0,
        },
        inputs: inputs(situation, place),
        forecast: load(situation, place),
        alternatives: [whole].into_iter().chain(left_out).collect(),
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

/// Two neighbours with what they have together.
#[derive(Clone, Copy)]
struct Pair {
    one: Place,
    other: Place,
    bytes: u64,
    busy_ms: f64,
}

impl Pair {
    fn of(situation: &Situation<'_>, one: Place, other: Place) -> Self {
        let (a, b) = (&situation.parts[one], &situation.parts[other]);
        Self { one, other, bytes: a.view.bytes + b.view.bytes, busy_ms: a.busy_ms + b.busy_ms }
    }

    /// How many times as much as it may have; both are small and cold below 1.
    fn fullness(&self, (bytes_limit, limit_ms): (f64, f64)) -> f64 {
        (self.bytes as f64 / bytes_limit).max(self.busy_ms / limit_ms)
    }
}

/// Merges the neighbours that are smallest and coldest together.
fn merge(situation: &Situation<'_>, table: &TableView, places: &[Place]) -> Option<Planned> {
    if table.order.len() <= table.made.max(1) as usize || !situation.is_load_known {
        return None;
    }
    let config = situation.config.reshape();
    let bytes_limit = config.merge_below() * config.split_bytes() as f64;
    let limit_ms = config.merge_below() * config.split_above();
    let limits = (bytes_limit, limit_ms);
    let pairs = places.windows(2).map(|pair| Pair::of(situation, pair[0], pair[1]));
    let mut pairs: Vec<Pair> = pairs
        .filter(|pair| {
            let both = [pair.one, pair.other];
            pair.fullness(limits) < 1.0 && both.iter().all(|place| is_still(situation, *place))
        })
        .collect();
    pairs.sort_by(|a, b| a.fullness(limits).total_cmp(&b.fullness(limits)));
    let mut found = pairs.iter().take(NEIGHBOURS_MAX);
    let (pair, MergedAlike { alike, left_out }) =
        found.find_map(|pair| Some((pair, merged_alike(situation, pair, limits)?)))?;
    let Pair { one, other, bytes, busy_ms } = *pair;
    let all_bytes: u64 = bytes + alike.iter().map(|(_, pair)| pair.bytes).sum::<u64>();
    let whole = format!("leave {} partitions", table.order.len());
    Some(Planned {
        step: Step::Merge {
            partition: situation.parts[one].id.clone(),
            other: situation.parts[other].id.ordinal,
            into: table.next,
            alike: alike.into_iter().map(|(twin, _)| twin).collect(),
        },
        reason: Reason::TooSmall { bytes, bytes_limit, busy_ms, limit_ms, made: table.made },
        worth: Worth {
            benefit_ns: 0.0,
            cost_ns: all_bytes as f64 * REWRITE_NS_PER_BYTE,
            bytes: 0.0,
        },
        inputs: format!("{}; {}", inputs(situation, one), inputs(situation, other)),
        forecast: format!("{}; {}", load(situation, one), load(situation, other)),
        alternatives: [whole].into_iter().chain(left_out).collect(),
    })
}

/// What is done to other tables where two neighbours are merged.
struct MergedAlike {
    alike: Vec<(MergeAlike, Pair)>,
    /// What stays as it is, and why.
    left_out: Vec<String>,
}

/// Neighbours of other tables that are merged as well, and what is left out; none if some of them are too
/// large or too hot to be merged, or change.
fn merged_alike(situation: &Situation<'_>, pair: &Pair, limits: (f64, f64)) -> Option<MergedAlike> {
    let (ones, mut left_out) = twins(situation, situation.parts[pair.one].id)?;
    let mut alike = Vec::new();
    for one in ones {
        let id = situation.parts[one].id;
        let twin = alike::twin(situation.view, situation.parts[pair.other].id, &id.table);
        let table = situation.tables.get(&id.table)?;
        let Some(other) = twin.and_then(|twin| situation.place(&twin)) else {
            left_out.push(format!("{id} has no neighbour with the same keys, and stays as it is"));
            continue;
        };
        let twin = Pair::of(situation, one, other);
        let is_wanted = table.order.len() <= table.made.max(1) as usize;
        if is_wanted || twin.fullness(limits) >= 1.0 || situation.parts[other].is_moving {
            return None;
        }
        let other = situation.parts[other].id.ordinal;
        alike.push((MergeAlike { partition: id.clone(), other, into: table.next }, twin));
    }
    Some(MergedAlike { alike, left_out })
}
