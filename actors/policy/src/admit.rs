//! Which stored output gives way when there is no room for another: what is expected to spare least.

use std::collections::BTreeMap;

/// A call counts half after so many calls of each thing that is stored.
const HALF_LIFE_TURNS: f64 = 32.0;

/// Things whose calls are remembered, for each thing that is stored.
const KNOWN_PER_STORED: usize = 4;

/// Things whose calls are remembered, however few are stored.
const KNOWN_MIN: usize = 1_024;

/// Something that is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stored<K> {
    /// Its name.
    pub key: K,
    /// Its worth when it was called last.
    pub worth: f64,
    /// Its size in memory.
    pub bytes: u64,
}

/// What the things that are stored, or could be, are worth.
///
/// The worth of a thing is what its calls of late spared per byte, or would have spared, above a floor:
/// the worth of what gave way last. So each thing pays for its bytes what others would spare with them,
/// from its last call on, and what nobody asks for any more gives way however popular it was.
///
/// It also counts calls of what is not stored: a thing that was refused, or gave way, is known when it
/// is offered again. Docs: `docs/decisions/0008-admission.md`.
#[derive(Clone, Debug)]
pub struct Admission<K> {
    known: BTreeMap<K, Calls>,
    stored: usize,
    /// All calls so far, in half-lives.
    now: f64,
    floor: f64,
}

/// Calls of one thing.
#[derive(Clone, Copy, Debug)]
struct Calls {
    /// At the last call; earlier ones count less.
    count: f64,
    /// The last call, in half-lives.
    at: f64,
    worth: f64,
}

impl<K> Default for Admission<K> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), stored: 0, now: 0.0, floor: 0.0 }
    }
}

impl<K: Copy + Ord> Admission<K> {
    /// Takes note of how many things are stored: their number is the measure of what is long ago.
    pub fn set_stored(&mut self, stored: usize) {
        self.stored = stored;
    }

    /// Takes note of `calls` calls of `key`, each of which takes `ns` more if its `bytes` are not stored;
    /// returns its worth from now on.
    pub fn called(&mut self, key: K, calls: u64, ns: f64, bytes: u64) -> f64 {
        let calls = calls as f64;
        self.now += calls / (HALF_LIFE_TURNS * self.stored.max(1) as f64);
        let before = self.known.get(&key);
        let count =
            calls + before.map_or(0.0, |before| before.count * (before.at - self.now).exp2());
        let worth = self.floor + count * ns.max(0.0) / bytes.max(1) as f64;
        self.known.insert(key, Calls { count, at: self.now, worth });
        if self.known.len() > 2 * self.known_max() {
            self.forget();
        }
        worth
    }

    /// Lets `to` be worth what `from` is, for it is the same by another name; no call of either. Of several
    /// the worthiest counts.
    pub fn followed(&mut self, from: K, to: K) {
        let Some(calls) = self.known.get(&from).copied() else { return };
        let there = self.known.entry(to).or_insert(calls);
        if there.worth < calls.worth {
            *there = calls;
        }
        if self.known.len() > 2 * self.known_max() {
            self.forget();
        }
    }

    /// The worth of `key` when it was called last; `None` if that is forgotten.
    #[must_use]
    pub fn worth(&self, key: K) -> Option<f64> {
        self.known.get(&key).map(|calls| calls.worth)
    }

    /// What must give way so that something of the worth `offered` finds the `bytes` that it lacks;
    /// `None` if that is worth as much, or not enough. `stored` begins with what is worth least.
    pub fn make_room(
        &mut self,
        offered: f64,
        bytes: u64,
        stored: impl IntoIterator<Item = Stored<K>>,
    ) -> Option<Vec<K>> {
        let mut lacking = bytes;
        let (mut victims, mut least, mut last) = (vec![], offered, self.floor);
        for Stored { key, worth, bytes } in stored {
            if lacking == 0 {
                break;
            }
            least = least.min(worth);
            if worth >= offered {
                // It pays the price, too: else what is stored could keep new things out for ever.
                self.floor = self.floor.max(least);
                return None;
            }
            lacking = lacking.saturating_sub(bytes);
            last = worth;
            victims.push(key);
        }
        if lacking > 0 {
            return None;
        }
        self.floor = self.floor.max(last);
        Some(victims)
    }

    fn known_max(&self) -> usize {
        (self.stored * KNOWN_PER_STORED).max(KNOWN_MIN)
    }

    /// Forgets what was worth least.
    fn forget(&mut self) {
        let mut all: Vec<_> = self.known.iter().map(|(key, calls)| (calls.worth, *key)).collect();
        all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        for (_, key) in all.drain(self.known_max()..) {
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A store that is asked and offered to as a node is.
    #[derive(Default)]
    struct Store {
        admission: Admission<u32>,
        stored: BTreeMap<u32, Stored<u32>>,
        bytes_max: u64,
    }

    impl Store {
        fn of(bytes_max: u64) -> Self {
            Self { bytes_max, ..Self::default() }
        }

        fn bytes(&self) -> u64 {
            self.stored.values().map(|stored| stored.bytes).sum()
        }

        /// Calls `key`; true if it is stored afterwards.
        fn call(&mut self, key: u32, ns: f64, bytes: u64) -> bool {
            let worth = self.admission.called(key, 1, ns, bytes);
            if let Some(stored) = self.stored.get_mut(&key) {
                stored.worth = worth;
                return true;
            }
            let mut all: Vec<_> = self.stored.values().copied().collect();
            all.sort_by(|a, b| a.worth.total_cmp(&b.worth));
            let lacking = (self.bytes() + bytes).saturating_sub(self.bytes_max);
            let Some(victims) = self.admission.make_room(worth, lacking, all) else { return false };
            for victim in victims {
                assert!(self.stored.remove(&victim).is_some(), "{victim} is not stored");
            }
            self.stored.insert(key, Stored { key, worth, bytes });
            self.admission.set_stored(self.stored.len());
            assert!(self.bytes() <= self.bytes_max);
            true
        }
    }

    #[test]
    fn the_dear_and_often_called_displaces_the_cheap_and_not_the_other_way_round() {
        let mut store = Store::of(200);
        assert!(store.call(1, 400.0, 100) && store.call(2, 5_000.0, 100));
        assert!(store.call(3, 9_000.0, 100));
        assert_eq!(store.stored.keys().copied().collect::<Vec<_>>(), [2, 3]);
        assert!(!store.call(4, 400.0, 100));
        assert_eq!(store.stored.len(), 2);
    }

    #[test]
    fn a_scan_over_many_things_called_once_does_not_flush_what_is_called_often() {
        let mut store = Store::of(1_000);
        for _ in 0..50 {
            store.call(0, 2_000.0, 100);
        }
        for key in 1..500 {
            store.call(key, 1_000.0, 100);
            assert!(store.stored.contains_key(&0), "flushed by {key}");
        }
    }

    #[test]
    fn what_is_not_called_any_more_gives_way_in_the_end() {
        let mut store = Store::of(100);
        for _ in 0..50 {
            store.call(0, 2_000.0, 100);
        }
        let taken = (1..1_000).find(|key| store.call(*key, 1_000.0, 100));
        assert!(taken.is_some_and(|calls| (50..200).contains(&calls)), "{taken:?}");
    }

    #[test]
    fn what_was_refused_is_known_when_it_is_offered_again() {
        let mut store = Store::of(100);
        for _ in 0..3 {
            store.call(0, 1_000.0, 100);
        }
        assert!(!store.call(1, 1_000.0, 100) && !store.stored.contains_key(&1));
        assert!(store.call(1, 1_000.0, 100), "two calls of late, and the other pays for its room");
    }

    #[test]
    fn what_goes_on_by_another_name_is_worth_the_same_without_a_call() {
        let mut admission = Admission::default();
        let often = (0..9).map(|_| admission.called(1, 1, 1_000.0, 100)).last();
        let seldom = admission.called(2, 1, 1_000.0, 100);
        let now = admission.now;
        admission.followed(1, 3);
        admission.followed(2, 3);
        admission.followed(2, 4);
        admission.followed(5, 4);
        assert_eq!((admission.worth(3), admission.worth(4)), (often, Some(seldom)));
        assert_eq!((admission.worth(5), admission.now), (None, now));
        for key in 10..10_000 {
            admission.followed(1, key);
            assert!(admission.known.len() <= 2 * KNOWN_MIN);
        }
    }

    #[test]
    fn what_can_never_find_room_drives_nothing_out() {
        let mut store = Store::of(100);
        store.call(1, 1.0, 100);
        assert!(!store.call(2, 1e12, 101));
        assert!(store.stored.contains_key(&1));
    }

    #[test]
    fn only_so_many_things_are_remembered_and_what_is_stored_is_among_them() {
        let mut store = Store::of(1_000);
        for key in 0..10_000 {
            store.call(key, f64::from(key % 97) * 100.0, 100);
            assert!(store.admission.known.len() <= 2 * KNOWN_MIN);
        }
        assert!(store.stored.keys().all(|key| store.admission.worth(*key).is_some()));
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_only_what_is_held_is_evicted(
            calls in prop::collection::vec((0u32..20, 0.0..9e4, 0u64..900), 1..80),
            bytes_max in 0u64..4_000,
        ) {
            let mut store = Store::of(bytes_max);
            for (key, ns, bytes) in calls {
                store.call(key, ns, bytes);
            }
        }

        #[test]
        fn nothing_gives_way_for_what_is_worth_no_more(
            stored in prop::collection::vec((0.0..10.0, 0u64..100), 0..20),
            offered in 0.0..10.0,
            lacking in 0u64..1_000,
        ) {
            let mut all: Vec<_> = (0u32..)
                .zip(stored)
                .map(|(key, (worth, bytes))| Stored { key, worth, bytes })
                .collect();
            all.sort_by(|a, b| a.worth.total_cmp(&b.worth));
            let below: u64 =
                all.iter().filter(|it| it.worth < offered).map(|it| it.bytes).sum();
            let victims = Admission::default().make_room(offered, lacking, all.iter().copied());
            prop_assert_eq!(victims.is_some(), below >= lacking);
            let victims = victims.unwrap_or_default();
            prop_assert!(all.iter().map(|it| it.key).take(victims.len()).eq(victims.clone()));
            let freed: u64 = all.iter().take(victims.len()).map(|it| it.bytes).sum();
            let last = victims.len().checked_sub(1).map_or(0, |last| all[last].bytes);
            prop_assert!(victims.is_empty() || freed - last < lacking, "one more than needed");
        }
    }
}
