//! Which partitions move because people said that their tables belong together (`CALL colocate`).
//!
//! All partitions of a group's tables with the same keys are wanted on one node, whatever queries join. They
//! come to the node that holds most of their bytes already and has room for the rest, within the bytes that
//! may be copied in an hour. Once they are together, nothing but a dead or a draining node takes them apart:
//! no replica is dropped or moved that they need, and where a node carries too much they leave it together.

use std::collections::BTreeSet;

use super::replicate::{COPY_NS_PER_BYTE, inputs, load, may_take, rests};
use super::situation::{Place, Situation};
use super::{Planned, Reason, Worth};
use crate::cluster::Step;
use crate::ids::NodeId;

/// Adds to `steps`, up to `slots` of them, moves that bring together what people want together.
pub(super) fn steps(situation: &mut Situation<'_>, slots: usize, steps: &mut Vec<Planned>) {
    for number in 0..situation.declared.sets().len() {
        if steps.len() >= slots {
            return;
        }
        let set = situation.declared.sets()[number].clone();
        if !situation.homes(&set, None).is_empty() {
            continue;
        }
        let Some(to) = target(situation, &set) else { continue };
        let absent = set.iter().filter(|place| !situation.parts[**place].holders().contains(&to));
        for place in absent.copied().collect::<Vec<_>>() {
            let Some(from) = busiest(situation, place) else { break };
            let planned = planned(situation, (place, from, to), set.len());
            if steps.len() >= slots || !may_take(situation, &planned, steps) {
                break;
            }
            // What waits for bytes of the next hour is left alone, too.
            situation.parts[place].is_moving = true;
            if !situation.may_copy(&planned) {
                break;
            }
            situation.apply(place, &planned.step);
            steps.push(planned);
        }
    }
}

/// Whether the partition may move now.
fn is_free(situation: &Situation<'_>, place: Place) -> bool {
    let part = &situation.parts[place];
    !part.is_moving && situation.plans_for(place) && !rests(situation, place)
}

/// The node that all of a set come to: one that holds what may not move now, and has room for all others.
fn target(situation: &Situation<'_>, set: &[Place]) -> Option<NodeId> {
    let fixed: Vec<Place> =
        set.iter().copied().filter(|place| !is_free(situation, *place)).collect();
    let able: BTreeSet<NodeId> = match fixed.as_slice() {
        [] => set.iter().flat_map(|place| situation.staying(*place)).collect(),
        fixed => situation.homes(fixed, None),
    };
    let fits = able.into_iter().filter_map(|node| {
        let absent = set.iter().filter(|place| !situation.parts[**place].holders().contains(&node));
        let bytes: u64 = absent.map(|place| situation.parts[*place].view.bytes).sum();
        let view = &situation.nodes[&node];
        let room = view.memory_bytes_max.saturating_sub(view.memory_bytes);
        (bytes <= room).then_some((bytes, situation.node_busy_ms[&node], node))
    });
    let best = fits.min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    best.map(|(.., node)| node)
}

fn busiest(situation: &Situation<'_>, place: Place) -> Option<NodeId> {
    let load = &situation.node_busy_ms;
    situation.staying(place).max_by(|a, b| load[a].total_cmp(&load[b]).then(a.cmp(b)))
}

fn planned(
    situation: &Situation<'_>,
    (place, from, to): (Place, NodeId, NodeId),
    partitions: usize,
) -> Planned {
    let part = &situation.parts[place];
    Planned {
        step: Step::Move { partition: part.id.clone(), from, to },
        reason: Reason::Declared { node: to, partitions },
        worth: Worth { cost_ns: part.view.bytes as f64 * COPY_NS_PER_BYTE, ..Worth::default() },
        inputs: inputs(situation, place),
        forecast: load(situation, place),
        alternatives: vec!["leave them apart".to_owned()],
    }
}
