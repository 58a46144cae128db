//! What is least worth keeping of what one replica has stored.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use foreshard_policy::admit::{self, Admission};
use foreshard_policy::ids::{ExpressionId, FragmentId, SegmentId};

use crate::expressions::Expressions;
use crate::partition::view::ReplicaView;

/// Something that is stored for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stored {
    /// The output of an expression.
    Output(ExpressionId),
    /// A partial aggregate.
    Partial(FragmentId),
}

/// Names something that is stored in a replica.
pub(super) type Key = (SegmentId, Stored);

/// What each thing in one replica is worth, by the calls of late. Starts anew with its actor.
#[derive(Debug, Default)]
pub(super) struct Worth {
    admission: Admission<Key>,
    /// Uses of what is stored that were counted already.
    counted: HashMap<Key, u64>,
}

impl Worth {
    /// Counts `calls` of something that took `ns`; returns what it is worth to store it in `bytes` beside
    /// what `view` has.
    pub(super) fn called(
        &mut self,
        view: &ReplicaView,
        key: Key,
        calls: u64,
        ns: u64,
        bytes: u64,
    ) -> f64 {
        let stored = view.segments.values().map(|held| held.outputs.len() + held.partials.len());
        self.admission.set_stored(stored.sum());
        self.admission.called(key, calls, ns as f64, bytes)
    }

    /// What must go from `view` so that something worth `offered` finds the `bytes` that it lacks; `None`
    /// if that is worth as much.
    pub(super) fn make_room(
        &mut self,
        view: &ReplicaView,
        expressions: &Expressions,
        offered: f64,
        bytes: u64,
    ) -> Option<Vec<Key>> {
        let now = all(view, expressions);
        let mut stored: Vec<_> = now.iter().map(|it| self.look(it)).collect();
        self.counted = now.into_iter().map(|it| (it.key, it.uses)).collect();
        stored.sort_by(|a, b| a.worth.total_cmp(&b.worth).then_with(|| a.key.cmp(&b.key)));
        self.admission.make_room(offered, bytes, stored)
    }

    /// Counts the uses since it was looked at last.
    fn look(&mut self, it: &Used) -> admit::Stored<Key> {
        let Used { key, ns, bytes, uses } = *it;
        let calls = uses.saturating_sub(self.counted.get(&key).copied().unwrap_or(0));
        let worth = match self.admission.worth(key) {
            Some(worth) if calls == 0 => worth,
            _ => self.admission.called(key, calls, ns as f64, bytes),
        };
        admit::Stored { key, worth, bytes }
    }
}

/// Something that is stored, as it is now.
struct Used {
    key: Key,
    ns: u64,
    bytes: u64,
    uses: u64,
}

/// All that is stored.
fn all(view: &ReplicaView, expressions: &Expressions) -> Vec<Used> {
    let mut all = vec![];
    for (segment, held) in &view.segments {
        all.extend(held.outputs.iter().map(|(id, output)| {
            let ns_per_row = expressions.get(*id).map_or(0, |known| known.ns_per_row());
            Used {
                key: (*segment, Stored::Output(*id)),
                ns: ns_per_row.saturating_mul(output.values.rows_known() as u64),
                bytes: output.bytes,
                uses: output.uses.load(Ordering::Relaxed),
            }
        }));
        all.extend(held.partials.iter().map(|(id, partial)| Used {
            key: (*segment, Stored::Partial(*id)),
            ns: partial.ns,
            bytes: partial.bytes,
            uses: partial.uses.load(Ordering::Relaxed),
        }));
    }
    all.sort_by_key(|used| used.key);
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::execution::memory_pool::{
        MemoryConsumer, MemoryPool, MemoryReservation, UnboundedMemoryPool,
    };
    use foreshard_policy::ids::PartitionId;

    use super::*;
    use crate::partition::view::{Held, StoredPartial};
    use crate::segment::{Location, Segment};

    const SEGMENT: SegmentId = SegmentId(1);

    fn key(id: u128) -> Key {
        (SEGMENT, Stored::Partial(FragmentId(id)))
    }

    /// A replica of one segment with these partial aggregates: nanoseconds and uses; 100 bytes each.
    fn view(partials: &[(u64, u64)]) -> ReplicaView {
        let (location, columns, pinned) = (Location::Memory, vec![], None);
        let segment =
            Segment { id: SEGMENT, partition: 0, rows: 1, bytes: 1, columns, location, pinned };
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let charge: Arc<MemoryReservation> = Arc::new(MemoryConsumer::new("t").register(&pool));
        let mut held = Held::new(Arc::new(segment));
        for (id, (ns, uses)) in (1..).zip(partials) {
            let (batches, calls) = (vec![].into(), vec![].into());
            let (ns, bytes, uses) = (*ns, 100, Arc::new((*uses).into()));
            let charge = Arc::clone(&charge);
            let partial =
                StoredPartial { batches, text: "".into(), ns, calls, bytes, uses, charge };
            held.partials.insert(FragmentId(id), partial);
        }
        let partition = PartitionId::new("t", 0);
        ReplicaView { partition, version: 1, segments: HashMap::from([(SEGMENT, held)]) }
    }

    fn offer(worth: &mut Worth, view: &ReplicaView, new: Key, ns: u64) -> Option<Vec<Key>> {
        let offered = worth.called(view, new, 1, ns, 100);
        worth.make_room(view, &Expressions::default(), offered, 100)
    }

    #[test]
    fn what_queries_read_stays_and_what_nobody_reads_goes_for_what_is_new() {
        let mut worth = Worth::default();
        let view = view(&[(1_000, 5), (1_000, 0)]);
        assert_eq!(offer(&mut worth, &view, key(3), 1_000), Some(vec![key(2)]));
    }

    #[test]
    fn a_use_counts_once_and_not_again_each_time_that_room_is_made() {
        let mut worth = Worth::default();
        let mut all = vec![(1_000, 50), (2_000, 60)];
        let taken = (3..1_000).find(|new| {
            all[1].1 += 1; // The other is read all the time.
            offer(&mut worth, &view(&all), key(*new), 900).is_some_and(|gone| gone == [key(1)])
        });
        assert!(taken.is_some_and(|offers| (20..100).contains(&offers)), "{taken:?}");
    }

    #[test]
    fn what_would_take_less_than_anything_stored_is_refused() {
        let mut worth = Worth::default();
        let view = view(&[(1_000, 5), (2_000, 3)]);
        assert_eq!(offer(&mut worth, &view, key(3), 100), None);
    }
}
