//! Which partitions gain or lose a replica: repairs, drains, and load per replica with hysteresis.

use std::collections::BTreeSet;

use super::situation::Situation;
use super::{Planned, Reason, Worth};
use crate::cluster::{PartitionView, Step};
use crate::ids::{NodeId, PartitionId};

/// What copying one byte to another node costs, until it is measured.
const COPY_NS_PER_BYTE: f64 = 1.0;

/// How many of the nodes that were not chosen are named in a decision.
const ALTERNATIVES_MAX: usize = 3;

/// Repairs and drains: partitions that no live node holds, or that a draining node holds.
///
/// A draining node gives a replica up only once a node that stays has one.
pub(super) fn urgent(situation: &mut Situation<'_>) -> Vec<Planned> {
    let mut steps = Vec::new();
    for partition in by_heat(situation) {
        let view = &situation.view.partitions[&partition];
        let leaving = situation.leaving(view).first().copied();
        let lost = leaving.is_none() && situation.staying(view).is_empty();
        let planned = match leaving {
            _ if lost => copy(situation, &partition, None, Reason::Lost),
            None => None,
            Some(node) if situation.staying(view).is_empty() => {
                copy(situation, &partition, Some(node), Reason::Draining { node })
            }
            Some(node) => Some(drop_from(situation, &partition, node, Reason::Draining { node })),
        };
        if let Some(planned) = planned {
            situation.apply(&planned.step);
            situation.moving.insert(partition);
            steps.push(planned);
        }
    }
    steps
}

/// Replicas by load: added where those that exist carry too much, dropped where one fewer would
/// still carry little. Hottest first; a partition rests for the dwell time after each change.
pub(super) fn by_load(situation: &mut Situation<'_>) -> Vec<Planned> {
    if situation.busy_ms.is_none() {
        return Vec::new();
    }
    let mut steps = Vec::new();
    for partition in by_heat(situation) {
        if let Some(planned) = step_by_load(situation, &partition) {
            situation.apply(&planned.step);
            steps.push(planned);
        }
    }
    steps
}

fn step_by_load(situation: &Situation<'_>, partition: &PartitionId) -> Option<Planned> {
    let config = situation.config.reshape();
    let staying = situation.staying(&situation.view.partitions[partition]);
    let replicas = staying.len();
    if replicas == 0 {
        return None; // Nobody to copy from and nowhere to load it: urgent found no node either.
    }
    let most = config.copies_max() as usize;
    if replicas > most {
        let reason = Reason::TooMany { replicas, most: config.copies_max() };
        return Some(drop_from(situation, partition, busiest(situation, &staying)?, reason));
    }
    let changed = situation.state.changed.get(partition);
    if changed.is_some_and(|tick| situation.now.0 < tick.0.saturating_add(config.dwell_ticks())) {
        return None;
    }
    let (busy, basis) = (situation.busy(partition), situation.basis(partition));
    let busy_ms = busy / replicas as f64;
    if busy_ms > config.copy_above() && replicas < most {
        let from = calmest(situation, &staying)?;
        let reason = Reason::Hot { busy_ms, limit_ms: config.copy_above(), basis };
        return copy(situation, partition, Some(from), reason);
    }
    let busy_ms = busy / (replicas as f64 - 1.0);
    if replicas > 1 && busy_ms < config.drop_below() {
        let reason = Reason::Cold { busy_ms, limit_ms: config.drop_below(), basis };
        return Some(drop_from(situation, partition, busiest(situation, &staying)?, reason));
    }
    None
}

/// Partitions that are not changing already, those with the highest load first.
fn by_heat(situation: &Situation<'_>) -> Vec<PartitionId> {
    let partitions = situation.view.partitions.keys();
    let still = partitions.filter(|partition| !situation.moving.contains(partition));
    let mut all: Vec<_> = still.map(|partition| (situation.busy(partition), partition)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    all.into_iter().map(|(_, partition)| partition.clone()).collect()
}

fn calmest(situation: &Situation<'_>, nodes: &BTreeSet<NodeId>) -> Option<NodeId> {
    let load = &situation.node_busy_ms;
    nodes.iter().copied().min_by(|a, b| load[a].total_cmp(&load[b]).then(a.cmp(b)))
}

fn busiest(situation: &Situation<'_>, nodes: &BTreeSet<NodeId>) -> Option<NodeId> {
    let load = &situation.node_busy_ms;
    nodes.iter().copied().max_by(|a, b| load[a].total_cmp(&load[b]).then(a.cmp(b)))
}

/// A copy to the best node that stays; without `from` it is loaded from the store.
fn copy(
    situation: &Situation<'_>,
    partition: &PartitionId,
    from: Option<NodeId>,
    reason: Reason,
) -> Option<Planned> {
    let view = &situation.view.partitions[partition];
    let targets = situation.targets(view);
    let (to, others) = targets.split_first()?;
    let others = others.iter().take(ALTERNATIVES_MAX);
    let alternatives = others
        .map(|node| format!("to {node}, which carries {:.0} ms/s", situation.node_busy_ms[node]))
        .collect();
    // What the new replica takes off the others until the horizon.
    let share_ms = situation.busy(partition) / (situation.staying(view).len() + 1) as f64;
    let seconds = situation.config.horizon_ticks() as f64 * situation.config.tick_ns() / 1e9;
    Some(Planned {
        step: Step::Copy { partition: partition.clone(), from: from.unwrap_or(*to), to: *to },
        reason,
        worth: Worth {
            benefit_ns: share_ms * seconds * 1e6,
            cost_ns: view.bytes as f64 * COPY_NS_PER_BYTE,
            bytes: view.bytes as f64,
        },
        inputs: inputs(view),
        forecast: load(situation, partition),
        alternatives,
    })
}

fn drop_from(
    situation: &Situation<'_>,
    partition: &PartitionId,
    from: NodeId,
    reason: Reason,
) -> Planned {
    let view = &situation.view.partitions[partition];
    let others = situation.staying(view).into_iter().filter(|node| *node != from);
    let alternatives = others
        .take(ALTERNATIVES_MAX)
        .map(|node| format!("from {node}, which carries {:.0} ms/s", situation.node_busy_ms[&node]))
        .collect();
    Planned {
        step: Step::Drop { partition: partition.clone(), from },
        reason,
        worth: Worth { benefit_ns: 0.0, cost_ns: 0.0, bytes: -(view.bytes as f64) },
        inputs: inputs(view),
        forecast: load(situation, partition),
        alternatives,
    }
}

fn inputs(view: &PartitionView) -> String {
    let holders: Vec<_> = view.holders.iter().map(ToString::to_string).collect();
    format!("holders [{}], {} rows, {} bytes", holders.join(" "), view.rows, view.bytes)
}

fn load(situation: &Situation<'_>, partition: &PartitionId) -> String {
    match situation.busy_ms {
        Some(_) => format!("{:.0} ms/s {}", situation.busy(partition), situation.basis(partition)),
        None => "none".to_owned(),
    }
}
