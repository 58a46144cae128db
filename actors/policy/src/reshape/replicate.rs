//! Which partitions gain or lose a replica: repairs, drains, and load per replica with hysteresis.

use super::situation::{Part, Place, Situation};
use super::{Planned, Reason, Worth, churn};
use crate::cluster::{PartitionView, Step};
use crate::ids::NodeId;
use crate::trust::Expected;

/// What copying one byte to another node costs, until it is measured.
pub(crate) const COPY_NS_PER_BYTE: f64 = 1.0;

/// How many of the nodes that were not chosen are named in a decision.
const ALTERNATIVES_MAX: usize = 3;

/// How far above the limit of the others a partition that rests must be to get a copy: counts and forecasts are
/// never exact, and what is only just too hot can wait.
const STILL_HOT: f64 = 1.1;

/// Repairs and drains: partitions that no live node holds, or that a draining node holds.
///
/// A draining node gives a replica up only once a node that stays has one.
pub(super) fn urgent(situation: &mut Situation<'_>, by_heat: &[Place]) -> Vec<Planned> {
    let mut steps = Vec::new();
    for place in by_heat.iter().copied() {
        let leaving = situation.leaving(place).next();
        let has_other = situation.staying(place).next().is_some();
        let planned = match leaving {
            None if has_other => None,
            None => copy(situation, place, None, Reason::Lost),
            Some(node) if !has_other => {
                copy(situation, place, Some(node), Reason::Draining { node })
            }
            Some(node) => Some(drop_from(situation, place, node, Reason::Draining { node })),
        };
        if let Some(planned) = planned {
            if let Some(bytes) = churn::bytes_copied(&planned) {
                situation.take_bytes(bytes);
            }
            situation.apply(place, &planned.step);
            situation.parts[place].is_moving = true;
            steps.push(planned);
        }
    }
    steps
}

/// Replicas by load: added where those that exist carry too much, dropped where there are more than may be.
/// Hottest first; a partition that rests after a change gets a copy only for what is called more. At most
/// `slots` steps.
pub(super) fn hot(situation: &mut Situation<'_>, by_heat: &[Place], slots: usize) -> Vec<Planned> {
    let mut steps = Vec::new();
    each(situation, by_heat, slots, &mut steps, hot_step);
    steps
}

/// Replicas that are dropped because one fewer would still carry little, where no node would then carry so
/// much that load had to be taken off it. Hottest first; `steps` has those before, at most `slots` in all.
pub(super) fn cold(
    situation: &mut Situation<'_>,
    by_heat: &[Place],
    slots: usize,
    steps: &mut Vec<Planned>,
) {
    let mean = situation.mean_level();
    each(situation, by_heat, slots, steps, |situation, place| cold_step(situation, place, mean));
}

/// Adds to `steps`, up to `slots` of them.
fn each(
    situation: &mut Situation<'_>,
    by_heat: &[Place],
    slots: usize,
    steps: &mut Vec<Planned>,
    step: impl Fn(&Situation<'_>, Place) -> Option<Planned>,
) {
    if !situation.is_load_known {
        return;
    }
    for place in by_heat.iter().copied() {
        if steps.len() >= slots {
            break;
        }
        if situation.parts[place].is_moving || !situation.plans_for(place) {
            continue;
        }
        let planned = step(situation, place).filter(|planned| may_take(situation, planned, steps));
        if let Some(planned) = planned {
            // What waits for bytes of the next hour is left alone, too.
            situation.parts[place].is_moving = true;
            if situation.may_copy(&planned) {
                situation.apply(place, &planned.step);
                steps.push(planned);
            }
        }
    }
}

/// Whether a step may follow these: its kind did no harm or has tries left in this window, and it was not
/// undone just now.
pub(super) fn may_take(situation: &Situation<'_>, planned: &Planned, steps: &[Planned]) -> bool {
    let kind = planned.step.kind();
    let left = situation.trusted(kind).steps_left;
    left.is_none_or(|left| steps.iter().filter(|it| it.step.kind() == kind).count() < left)
        && !situation.avoids(|| planned.step.clone())
}

fn hot_step(situation: &Situation<'_>, place: Place) -> Option<Planned> {
    let config = situation.config.reshape();
    let replicas = situation.staying(place).count();
    if replicas == 0 {
        return None; // Nobody to copy from and nowhere to load it: urgent found no node either.
    }
    let most = config.copies_max() as usize;
    if replicas > most {
        let reason = Reason::TooMany { replicas, most: config.copies_max() };
        return Some(drop_from(situation, place, dispensable(situation, place)?, reason));
    }
    // A kind that did harm, or brings little, must be wanted more.
    let limit_ms = config.copy_above() / situation.trusted("copy").eagerness();
    let (demand_ms, limit_ms) = demand(situation, place, limit_ms)?;
    let busy_ms = demand_ms / replicas as f64;
    if busy_ms <= limit_ms || replicas == most {
        return None;
    }
    let from = calmest(situation, place)?;
    let basis = situation.basis(place);
    let reason = Reason::Hot { busy_ms, limit_ms, basis, expected: Expected::default() };
    copy(situation, place, Some(from), reason)
}

/// The load by which a partition may get a copy, and the limit per replica for it; none if it has to rest first.
///
/// A crowd does not wait, so a partition that rests gets another copy if it is called so much that it is too
/// hot even at the costs that were known before. That its calls are slower since the last copy is no load.
fn demand(situation: &Situation<'_>, place: Place, limit_ms: f64) -> Option<(f64, f64)> {
    let part = &situation.parts[place];
    if !rests(situation, place) {
        return Some((part.busy_ms, limit_ms));
    }
    Some((part.known_ms?, STILL_HOT * limit_ms))
}

fn cold_step(situation: &Situation<'_>, place: Place, mean: f64) -> Option<Planned> {
    let drops = situation.trusted("drop").factor.min(1.0);
    let limit_ms = situation.config.reshape().drop_below() * drops;
    let replicas = situation.staying(place).count();
    let busy_ms = situation.parts[place].busy_ms / (replicas as f64 - 1.0);
    if replicas < 2 || busy_ms >= limit_ms || rests(situation, place) {
        return None;
    }
    let from = dispensable(situation, place)?;
    let mut holders = situation.parts[place].holders().clone();
    holders.remove(&from);
    let parts_joins = situation.joins_spared_ms(place, &holders) < 0.0;
    if parts_joins || overloads(situation, place, from, mean) {
        return None;
    }
    let reason = Reason::Cold { busy_ms, limit_ms, basis: situation.basis(place) };
    Some(drop_from(situation, place, from, reason))
}

/// Whether the replicas of a partition changed just now.
pub(super) fn rests(situation: &Situation<'_>, place: Place) -> bool {
    let dwell = situation.config.reshape().dwell_ticks();
    let changed = situation.state.changed.get(situation.parts[place].id);
    changed.is_some_and(|tick| situation.now.0 < tick.0.saturating_add(dwell))
}

/// Whether a node that keeps its replica would carry so much without that of `from` that load would have
/// to be taken off it again.
fn overloads(situation: &Situation<'_>, place: Place, from: NodeId, mean: f64) -> bool {
    let config = situation.config.reshape();
    let replicas = situation.staying(place).count() as f64;
    let busy = situation.parts[place].busy_ms;
    let more = busy / (replicas - 1.0).max(1.0) - busy / replicas.max(1.0);
    let enough = (config.balance_until() * mean).max(config.balance_load_min());
    let level = |node: NodeId| (situation.node_busy_ms[&node] + more) / situation.permits(node);
    situation.staying(place).any(|node| node != from && level(node) > enough)
}

fn calmest(situation: &Situation<'_>, place: Place) -> Option<NodeId> {
    let load = &situation.node_busy_ms;
    situation.staying(place).min_by(|a, b| load[a].total_cmp(&load[b]).then(a.cmp(b)))
}

/// The busiest holder without which what people want together is still on one node.
fn dispensable(situation: &Situation<'_>, place: Place) -> Option<NodeId> {
    let load = &situation.node_busy_ms;
    let may_go = situation.staying(place).filter(|node| !situation.takes_apart(place, *node, None));
    may_go.max_by(|a, b| load[a].total_cmp(&load[b]).then(a.cmp(b)))
}

/// A copy to the best node that stays; without `from` it is loaded from the store.
fn copy(
    situation: &Situation<'_>,
    place: Place,
    from: Option<NodeId>,
    mut reason: Reason,
) -> Option<Planned> {
    let Part { id, view, busy_ms, .. } = &situation.parts[place];
    let targets = situation.targets(place, 1 + ALTERNATIVES_MAX);
    let (to, others) = targets.split_first()?;
    let alternatives = others
        .iter()
        .map(|node| format!("to {node}, which carries {:.0} ms/s", situation.node_busy_ms[node]))
        .collect();
    let benefit_ns = if let Reason::Hot { expected, .. } = &mut reason {
        let mut holders = situation.parts[place].holders().clone();
        holders.insert(*to);
        *expected = situation.sparing(place, &holders);
        expected.mean_ns
    } else {
        // What it can serve until the horizon.
        let share_ms = busy_ms / (situation.staying(place).count() + 1) as f64;
        share_ms / 1e3 * situation.config.horizon_ticks() as f64 * situation.config.tick_ns()
    };
    Some(Planned {
        step: Step::Copy { partition: (*id).clone(), from: from.unwrap_or(*to), to: *to },
        reason,
        worth: Worth {
            benefit_ns,
            cost_ns: view.bytes as f64 * COPY_NS_PER_BYTE,
            bytes: view.bytes as f64,
        },
        inputs: inputs(situation, place),
        forecast: load(situation, place),
        alternatives,
    })
}

fn drop_from(situation: &Situation<'_>, place: Place, from: NodeId, reason: Reason) -> Planned {
    let Part { id, view, .. } = &situation.parts[place];
    let others = situation.staying(place).filter(|node| *node != from);
    let alternatives = others
        .take(ALTERNATIVES_MAX)
        .map(|node| format!("from {node}, which carries {:.0} ms/s", situation.node_busy_ms[&node]))
        .collect();
    Planned {
        step: Step::Drop { partition: (*id).clone(), from },
        reason,
        worth: Worth { benefit_ns: 0.0, cost_ns: 0.0, bytes: -(view.bytes as f64) },
        inputs: inputs(situation, place),
        forecast: load(situation, place),
        alternatives,
    }
}

pub(super) fn inputs(situation: &Situation<'_>, place: Place) -> String {
    let part = &situation.parts[place];
    let holders: Vec<_> = part.holders().iter().map(ToString::to_string).collect();
    let PartitionView { rows, bytes, .. } = part.view;
    format!("holders [{}], {rows} rows, {bytes} bytes", holders.join(" "))
}

pub(super) fn load(situation: &Situation<'_>, place: Place) -> String {
    if !situation.is_load_known {
        return "none".to_owned();
    }
    format!("{:.0} ms/s {}", situation.parts[place].busy_ms, situation.basis(place))
}
