//! Which partitions gain or lose a replica: repairs, drains, and load per replica with hysteresis.

use super::situation::{Part, Place, Situation};
use super::{Planned, Reason, Worth};
use crate::cluster::{PartitionView, Step};
use crate::ids::NodeId;

/// What copying one byte to another node costs, until it is measured.
const COPY_NS_PER_BYTE: f64 = 1.0;

/// How many of the nodes that were not chosen are named in a decision.
const ALTERNATIVES_MAX: usize = 3;

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
            if let Step::Copy { .. } = planned.step {
                situation.take_bytes(planned.worth.bytes);
            }
            situation.apply(place, &planned.step);
            situation.parts[place].is_moving = true;
            steps.push(planned);
        }
    }
    steps
}

/// Replicas by load: added where those that exist carry too much, dropped where one fewer would
/// still carry little. Hottest first; a partition rests for the dwell time after each change.
pub(super) fn by_load(situation: &mut Situation<'_>, by_heat: &[Place]) -> Vec<Planned> {
    if !situation.is_load_known {
        return Vec::new();
    }
    let mut steps = Vec::new();
    for place in by_heat.iter().copied() {
        if situation.parts[place].is_moving || !situation.plans_for(place) {
            continue;
        }
        let planned = step_by_load(situation, place);
        let planned = planned.filter(|planned| !is_stopped(situation, planned.step.kind(), &steps));
        let planned = planned.filter(|planned| !situation.avoids(|| planned.step.clone()));
        if let Some(planned) = planned
            && situation.may_copy(&planned)
        {
            situation.apply(place, &planned.step);
            steps.push(planned);
        }
    }
    steps
}

/// Whether a kind that did harm has no more tries left in this window, after these steps.
fn is_stopped(situation: &Situation<'_>, kind: &str, steps: &[Planned]) -> bool {
    let left = situation.trusted(kind).steps_left;
    left.is_some_and(|left| steps.iter().filter(|it| it.step.kind() == kind).count() >= left)
}

fn step_by_load(situation: &Situation<'_>, place: Place) -> Option<Planned> {
    let config = situation.config.reshape();
    let replicas = situation.staying(place).count();
    if replicas == 0 {
        return None; // Nobody to copy from and nowhere to load it: urgent found no node either.
    }
    let most = config.copies_max() as usize;
    if replicas > most {
        let reason = Reason::TooMany { replicas, most: config.copies_max() };
        return Some(drop_from(situation, place, busiest(situation, place)?, reason));
    }
    let busy = situation.parts[place].busy_ms;
    // A kind that did harm must be wanted more.
    let (copies, drops) = (situation.trusted("copy"), situation.trusted("drop"));
    let (copy_above, drop_below) =
        (config.copy_above() / copies.factor.min(1.0), config.drop_below() * drops.factor.min(1.0));
    let hot = busy / replicas as f64 > copy_above && replicas < most;
    let cold = replicas > 1 && busy / (replicas as f64 - 1.0) < drop_below;
    if !(hot || cold) || rests(situation, place) {
        return None;
    }
    let basis = situation.basis(place);
    if hot {
        let from = calmest(situation, place)?;
        let busy_ms = busy / replicas as f64;
        let reason = Reason::Hot { busy_ms, limit_ms: copy_above, basis };
        return copy(situation, place, Some(from), reason);
    }
    let busy_ms = busy / (replicas as f64 - 1.0);
    let reason = Reason::Cold { busy_ms, limit_ms: drop_below, basis };
    Some(drop_from(situation, place, busiest(situation, place)?, reason))
}

/// Whether the replicas of a partition changed just now.
fn rests(situation: &Situation<'_>, place: Place) -> bool {
    let dwell = situation.config.reshape().dwell_ticks();
    let changed = situation.state.changed.get(situation.parts[place].id);
    changed.is_some_and(|tick| situation.now.0 < tick.0.saturating_add(dwell))
}

fn calmest(situation: &Situation<'_>, place: Place) -> Option<NodeId> {
    let load = &situation.node_busy_ms;
    situation.staying(place).min_by(|a, b| load[a].total_cmp(&load[b]).then(a.cmp(b)))
}

fn busiest(situation: &Situation<'_>, place: Place) -> Option<NodeId> {
    let load = &situation.node_busy_ms;
    situation.staying(place).max_by(|a, b| load[a].total_cmp(&load[b]).then(a.cmp(b)))
}

/// A copy to the best node that stays; without `from` it is loaded from the store.
fn copy(
    situation: &Situation<'_>,
    place: Place,
    from: Option<NodeId>,
    reason: Reason,
) -> Option<Planned> {
    let Part { id, view, busy_ms, .. } = &situation.parts[place];
    let targets = situation.targets(place, 1 + ALTERNATIVES_MAX);
    let (to, others) = targets.split_first()?;
    let alternatives = others
        .iter()
        .map(|node| format!("to {node}, which carries {:.0} ms/s", situation.node_busy_ms[node]))
        .collect();
    // What the new replica takes off the others until the horizon.
    let share_ms = busy_ms / (situation.staying(place).count() + 1) as f64;
    let seconds = situation.config.horizon_ticks() as f64 * situation.config.tick_ns() / 1e9;
    Some(Planned {
        step: Step::Copy { partition: (*id).clone(), from: from.unwrap_or(*to), to: *to },
        reason,
        worth: Worth {
            benefit_ns: share_ms * seconds * 1e6,
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

fn inputs(situation: &Situation<'_>, place: Place) -> String {
    let part = &situation.parts[place];
    let holders: Vec<_> = part.holders().iter().map(ToString::to_string).collect();
    let PartitionView { rows, bytes, .. } = part.view;
    format!("holders [{}], {rows} rows, {bytes} bytes", holders.join(" "))
}

fn load(situation: &Situation<'_>, place: Place) -> String {
    if !situation.is_load_known {
        return "none".to_owned();
    }
    format!("{:.0} ms/s {}", situation.parts[place].busy_ms, situation.basis(place))
}
