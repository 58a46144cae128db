//! What is least worth keeping of what one replica has stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use foreshard_policy::admit::{self, Admission};
use foreshard_policy::disk::ReadCost;
use foreshard_policy::ids::{ExpressionId, FragmentId, SegmentId, ShapeId};
use foreshard_policy::repeats::Repeats;

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

/// What is told apart to find out whether something new is called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Outputs of one expression, over all segments.
    Output(ExpressionId),
    /// States of fragments that differ in their literals only.
    Partial(ShapeId),
}

/// Names something that is stored in a replica.
pub(super) type Key = (SegmentId, Stored);

/// What worth depends on besides the calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    /// What evaluating takes, and what is pinned.
    pub(super) expressions: &'a Expressions,
    /// What reading back takes; `None` if nothing is spilled.
    pub(super) disk: Option<ReadCost>,
}

impl Terms<'_> {
    /// Nanoseconds that one call of an output takes more if it leaves the memory.
    pub(super) fn ns_without_memory(&self, ns: u64, bytes: u64) -> u64 {
        self.disk.map_or(ns, |disk| disk.ns_without_memory(ns, bytes))
    }
}

/// What each thing in one replica is worth, by the calls of late. Starts anew with its actor.
#[derive(Debug, Default)]
pub(super) struct Worth {
    admission: Admission<Key>,
    /// Whether what is called for the first time is called again.
    repeats: Repeats<Kind>,
    /// Uses of what is stored that were counted already.
    counted: HashMap<Key, u64>,
}

impl Worth {
    /// Counts `calls` of something that took `ns`; returns what it is worth to store it in `bytes` beside
    /// what `view` has.
    pub(super) fn called(
        &mut self,
        view: &ReplicaView,
        (key, kind): (Key, Kind),
        calls: u64,
        ns: u64,
        bytes: u64,
    ) -> f64 {
        let stored = view.segments.values().map(|held| held.outputs.len() + held.partials.len());
        self.admission.set_stored(stored.sum());
        let part = self.expected(key, kind, calls);
        self.admission.called(key, calls, part * ns as f64, bytes)
    }

    /// What something is worth whose calls were counted already.
    pub(super) fn of(&self, key: Key) -> f64 {
        self.admission.worth(key).unwrap_or(0.0)
    }

    /// Lets `to` begin with what `from` is worth after `uses`, which took `ns` each and are in `bytes`:
    /// its rows went there. No call of `to`, and none that says whether what is new is called again.
    pub(super) fn followed(
        &mut self,
        view: &ReplicaView,
        (from, uses): (Key, u64),
        (ns, bytes): (u64, u64),
        to: Key,
    ) {
        let calls = uses.saturating_sub(self.counted.remove(&from).unwrap_or(0));
        if let ((_, Stored::Output(id)), 1..) = (from, calls) {
            self.called(view, (from, Kind::Output(id)), calls, ns, bytes);
        }
        self.admission.followed(from, to);
    }

    /// What part of its calls something is worth: less than all where it is new, and what was new of its
    /// kind was not called again. Takes note of the calls.
    fn expected(&mut self, key: Key, kind: Kind, calls: u64) -> f64 {
        if self.admission.worth(key).is_some() {
            self.repeats.again(kind, calls);
            return 1.0;
        }
        let part = self.repeats.expected(kind);
        self.repeats.first(kind);
        part
    }

    /// How many of the `uses` of something that is stored were not counted yet; they are from here on.
    pub(super) fn new_calls(&mut self, key: Key, uses: u64) -> u64 {
        uses.saturating_sub(self.counted.insert(key, uses).unwrap_or(0))
    }

    /// What must go from `view` so that something worth `offered` finds the `bytes` that it lacks; `None`
    /// if that is worth as much. What is pinned stays, and what is read at the moment would make no room.
    pub(super) fn make_room(
        &mut self,
        view: &ReplicaView,
        terms: Terms<'_>,
        offered: f64,
        bytes: u64,
    ) -> Option<Vec<Key>> {
        let now = all(view, terms);
        let mut stored: Vec<_> = now
            .iter()
            .map(|it| (it.may_go, self.look(it)))
            .filter_map(|(may_go, it)| may_go.then_some(it))
            .collect();
        let on_disk = view.segments.iter().flat_map(|(segment, held)| {
            let files = held.only_on_disk();
            files.map(|(id, _)| (*segment, Stored::Output(id)))
        });
        let kept: HashMap<Key, u64> =
            on_disk.filter_map(|key| Some((key, *self.counted.get(&key)?))).collect();
        self.counted = now.into_iter().map(|it| (it.key, it.uses)).chain(kept).collect();
        stored.sort_by(|a, b| a.worth.total_cmp(&b.worth).then_with(|| a.key.cmp(&b.key)));
        self.admission.make_room(offered, bytes, stored)
    }

    /// Counts the uses since it was looked at last.
    fn look(&mut self, it: &Used) -> admit::Stored<Key> {
        let Used { key, kind, ns, bytes, uses, .. } = *it;
        let calls = uses.saturating_sub(self.counted.get(&key).copied().unwrap_or(0));
        let worth = match self.admission.worth(key) {
            Some(worth) if calls == 0 => worth,
            _ => {
                self.expected(key, kind, calls);
                self.admission.called(key, calls, ns as f64, bytes)
            }
        };
        admit::Stored { key, worth, bytes }
    }
}

/// Something that is stored, as it is now.
struct Used {
    key: Key,
    kind: Kind,
    ns: u64,
    bytes: u64,
    uses: u64,
    /// Whether letting it go is allowed and makes room: nobody else holds its charge.
    may_go: bool,
}

/// All that is in memory.
fn all(view: &ReplicaView, terms: Terms<'_>) -> Vec<Used> {
    let table = &view.partition.table;
    let pins = &terms.expressions.pins;
    let keeps_states = pins.has_table(table);
    let mut all = vec![];
    for (segment, held) in &view.segments {
        all.extend(held.outputs.iter().map(|(id, output)| {
            let ns_per_row = terms.expressions.get(*id).map_or(0, |known| known.ns_per_row());
            let ns = ns_per_row.saturating_mul(output.values.rows_known() as u64);
            Used {
                key: (*segment, Stored::Output(*id)),
                kind: Kind::Output(*id),
                ns: terms.ns_without_memory(ns, output.bytes),
                bytes: output.bytes,
                uses: output.uses.load(Ordering::Relaxed),
                may_go: Arc::strong_count(&output.charge) == 1 && !pins.has_output(table, *id),
            }
        }));
        all.extend(held.partials.iter().map(|(id, partial)| Used {
            key: (*segment, Stored::Partial(*id)),
            kind: Kind::Partial(partial.fragment.shape),
            ns: partial.ns,
            bytes: partial.bytes,
            uses: partial.uses.load(Ordering::Relaxed),
            may_go: Arc::strong_count(&partial.charge) == 1 && !keeps_states,
        }));
    }
    all.sort_by_key(|used| used.key);
    all
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, UnboundedMemoryPool};
    use foreshard_policy::ids::PartitionId;

    use super::*;
    use crate::partition::view::{Fragment, Held, StoredPartial};
    use crate::segment::{Location, Segment};

    const SEGMENT: SegmentId = SegmentId(1);

    fn key(id: u128) -> Key {
        (SEGMENT, Stored::Partial(FragmentId(id)))
    }

    /// Each of another shape.
    fn fragment(id: u128) -> Arc<Fragment> {
        let (text, pattern) = ("".into(), "".into());
        Arc::new(Fragment { id: FragmentId(id), shape: ShapeId(id), text, pattern })
    }

    /// Each its own, as long as a test does not say otherwise.
    fn kind((_, stored): Key) -> Kind {
        match stored {
            Stored::Output(id) => Kind::Output(id),
            Stored::Partial(id) => Kind::Partial(ShapeId(id.0)),
        }
    }

    /// A replica of one segment with these partial aggregates: nanoseconds and uses; 100 bytes each.
    fn view(partials: &[(u64, u64)]) -> ReplicaView {
        let (location, columns, pinned) = (Location::Memory, vec![], None);
        let segment =
            Segment { id: SEGMENT, partition: 0, rows: 1, bytes: 1, columns, location, pinned };
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let charge = MemoryConsumer::new("t").register(&pool);
        let mut held = Held::new(Arc::new(segment));
        for (id, (ns, uses)) in (1..).zip(partials) {
            let (batches, calls) = (vec![].into(), vec![].into());
            let (ns, bytes, uses) = (*ns, 100, Arc::new((*uses).into()));
            let charge = Arc::new(charge.new_empty());
            let fragment = fragment(id);
            let (recipe, is_ahead) = (None, false);
            let partial = StoredPartial {
                batches,
                fragment,
                ns,
                calls,
                bytes,
                uses,
                recipe,
                is_ahead,
                charge,
            };
            held.partials.insert(FragmentId(id), partial);
        }
        let partition = PartitionId::new("t", 0);
        ReplicaView { partition, version: 1, segments: HashMap::from([(SEGMENT, held)]) }
    }

    fn offer(worth: &mut Worth, view: &ReplicaView, new: Key, ns: u64) -> Option<Vec<Key>> {
        offer_of(worth, view, (new, kind(new)), ns)
    }

    fn offer_of(
        worth: &mut Worth,
        view: &ReplicaView,
        new: (Key, Kind),
        ns: u64,
    ) -> Option<Vec<Key>> {
        let expressions = Expressions::default();
        let offered = worth.called(view, new, 1, ns, 100);
        worth.make_room(view, Terms { expressions: &expressions, disk: None }, offered, 100)
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

    #[test]
    fn what_is_read_at_the_moment_makes_no_room_and_is_not_asked_to() {
        let mut worth = Worth::default();
        let view = view(&[(1_000, 0), (1_000, 1)]);
        let reader = view.segments[&SEGMENT].partials[&FragmentId(1)].clone();
        assert_eq!(offer(&mut worth, &view, key(3), 90_000), Some(vec![key(2)]));
        drop(reader);
        assert_eq!(offer(&mut worth, &view, key(3), 90_000), Some(vec![key(1)]));
    }

    #[test]
    fn what_is_pinned_is_not_asked_to_go() {
        let mut worth = Worth::default();
        let view = view(&[(1_000, 0), (1_000, 1)]);
        let expressions = Expressions::default();
        let terms = Terms { expressions: &expressions, disk: None };
        expressions.pins.change(|pinned| pinned.tables.extend(["t".into()]));
        assert_eq!(worth.make_room(&view, terms, f64::INFINITY, 100), None);
        expressions.pins.change(|pinned| pinned.tables.clear());
        assert_eq!(worth.make_room(&view, terms, f64::INFINITY, 100), Some(vec![key(1)]));
    }

    #[test]
    fn what_the_disk_takes_over_pays_for_its_memory_what_reading_takes() {
        let expressions = Expressions::default();
        let terms = Terms { expressions: &expressions, disk: Some(ReadCost::default()) };
        assert_eq!(terms.ns_without_memory(1_000_000_000, 100_000), 300_000);
        assert_eq!(terms.ns_without_memory(500_000, 100_000), 500_000, "not worth a file");
        let terms = Terms { disk: None, ..terms };
        assert_eq!(terms.ns_without_memory(1_000_000_000, 100_000), 1_000_000_000);
    }

    #[test]
    fn an_output_that_goes_on_in_new_segments_is_no_new_one() {
        let mut worth = Worth::default();
        let view = view(&[]);
        let of = |segment| (SegmentId(segment), Stored::Output(ExpressionId(1)));
        let mut before = worth.called(&view, (of(2), kind(of(2))), 1, 1_000, 100);
        for segment in 2..200 {
            worth.followed(&view, (of(segment), 1), (1_000, 100), of(segment + 1));
            let now = worth.of(of(segment + 1));
            assert!(now > before, "it was used once more");
            before = now;
        }
        worth.followed(&view, (of(200), 0), (1_000, 100), of(201));
        assert_eq!(worth.of(of(201)), before, "it was not used");
        assert_eq!(worth.repeats.expected(Kind::Output(ExpressionId(1))), 1.0);
        assert!(worth.counted.is_empty());
    }

    #[test]
    fn outputs_of_ever_new_segments_push_out_nothing_that_was_called_often() {
        let pushed_out = |expression: fn(u128) -> u128| {
            let mut worth = Worth::default();
            let view = view(&[(1_000, 50)]);
            (2..2_000).any(|new| {
                let new_one = (SegmentId(new), Stored::Output(ExpressionId(expression(new))));
                offer(&mut worth, &view, new_one, 1_000).is_some()
            })
        };
        assert!(!pushed_out(|_| 1), "one expression, never asked for a segment again");
        assert!(pushed_out(|new| new), "each another one: who knows");
    }

    #[test]
    fn states_of_ever_new_literals_push_out_nothing_that_was_called_often() {
        let pushed_out = |shape: fn(u128) -> u128| {
            let mut worth = Worth::default();
            let view = view(&[(1_000, 50)]);
            (2..2_000).any(|new| {
                let kind = Kind::Partial(ShapeId(shape(new)));
                offer_of(&mut worth, &view, (key(new), kind), 1_000).is_some()
            })
        };
        assert!(!pushed_out(|_| 1), "one shape, never asked with the same literals again");
        assert!(pushed_out(|new| new), "each of another shape: who knows");
    }
}
