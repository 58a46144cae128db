//! What is stored in an engine, and what of it was used and went away between two looks.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use foreshard::Engine;
use foreshard_policy::ids::{NodeId, SegmentId};

/// Everything stored in the nodes of an engine at one moment.
#[derive(Debug, Default)]
pub struct Stored {
    segments: HashSet<(NodeId, SegmentId)>,
    /// How often each value was read, by node, segment, and what names it there.
    outputs: HashMap<(NodeId, SegmentId, u128), u64>,
    partials: HashMap<(NodeId, SegmentId, u128), u64>,
    group_uses: u64,
}

/// What happened between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Some stored output was read.
    pub outputs_read: bool,
    /// Some stored state of a partial aggregate was read.
    pub partials_read: bool,
    /// Some kept groups were used.
    pub groups_used: bool,
    /// Values that are gone while their segment is still there.
    pub gone: u64,
}

impl Stored {
    /// Looks at `engine`.
    #[must_use]
    pub fn look(engine: &Engine) -> Self {
        let mut stored = Self::default();
        for (node, state) in engine.members().local_states() {
            for handle in state.replicas().values() {
                for (segment, held) in &handle.replica.view().segments {
                    stored.segments.insert((node, *segment));
                    let outputs = held.outputs.iter();
                    stored.outputs.extend(outputs.map(|(id, output)| {
                        ((node, *segment, id.0), output.uses.load(Ordering::Relaxed))
                    }));
                    let partials = held.partials.iter();
                    stored.partials.extend(partials.map(|(id, partial)| {
                        ((node, *segment, id.0), partial.uses.load(Ordering::Relaxed))
                    }));
                }
            }
        }
        stored.group_uses = engine.kept_groups().iter().map(|kept| kept.uses).sum();
        stored
    }

    /// What happened since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Happened {
        let read = |now: &HashMap<_, u64>, before: &HashMap<_, u64>| {
            now.iter().any(|(key, uses)| *uses > before.get(key).copied().unwrap_or(0))
        };
        let keys = before.outputs.keys().chain(before.partials.keys());
        let gone = keys.filter(|key| {
            let is_held = self.outputs.contains_key(*key) || self.partials.contains_key(*key);
            !is_held && self.segments.contains(&(key.0, key.1))
        });
        Happened {
            outputs_read: read(&self.outputs, &before.outputs),
            partials_read: read(&self.partials, &before.partials),
            groups_used: self.group_uses > before.group_uses,
            gone: gone.count() as u64,
        }
    }
}
