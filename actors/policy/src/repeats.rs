//! How likely something new is called again, from what became of others of its kind.
//!
//! A function that is asked about ever new segments leaves outputs behind that nobody asks for again. Each
//! is worth one call when it comes, so enough of them push out whatever is called less often than they
//! come. What tells them from others is their kind: the expression. Docs:
//! `docs/decisions/0011-outputs-on-disk.md`.

use std::collections::BTreeMap;

/// First calls of a kind from which on they tell something.
const FIRST_CALLS_MIN: f64 = 32.0;

/// Beyond so many calls of a kind its earlier ones count half.
const CALLS_MAX: f64 = 1_024.0;

/// Kinds that are told apart; the least called is forgotten beyond.
const KINDS_MAX: usize = 1_024;

/// Calls by kind: of something new, and of something known.
#[derive(Clone, Debug)]
pub struct Repeats<K> {
    calls: BTreeMap<K, Calls>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    first: f64,
    again: f64,
}

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Self { calls: BTreeMap::new() }
    }
}

impl<K: Copy + Ord> Repeats<K> {
    /// Takes note of the first call of something of this kind.
    pub fn first(&mut self, kind: K) {
        self.add(kind, 1.0, 0.0);
    }

    /// Takes note of `calls` more calls of something of this kind.
    pub fn again(&mut self, kind: K, calls: u64) {
        self.add(kind, 0.0, calls as f64);
    }

    fn add(&mut self, kind: K, first: f64, again: f64) {
        if !self.calls.contains_key(&kind) && self.calls.len() >= KINDS_MAX {
            let total = |calls: &Calls| calls.first + calls.again;
            let least = self.calls.iter().min_by(|a, b| total(a.1).total_cmp(&total(b.1)));
            if let Some(least) = least.map(|(kind, _)| *kind) {
                self.calls.remove(&least);
            }
        }
        let calls = self.calls.entry(kind).or_default();
        calls.first += first;
        calls.again += again;
        if calls.first + calls.again > CALLS_MAX {
            calls.first /= 2.0;
            calls.again /= 2.0;
        }
    }

    /// What part of a call something new of this kind is worth: all of one as long as nothing is known, else
    /// as many as followed on each first call lately, at most one.
    #[must_use]
    pub fn expected(&self, kind: K) -> f64 {
        let Some(Calls { first, again }) = self.calls.get(&kind) else { return 1.0 };
        if *first < FIRST_CALLS_MIN {
            return 1.0;
        }
        (again / first).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::admit::{Admission, Stored};

    const BYTES: u64 = 100;

    /// Things that are stored, each of a kind; all alike in bytes and cost.
    struct Store {
        admission: Admission<u32>,
        repeats: Repeats<u8>,
        stored: BTreeMap<u32, f64>,
        places: usize,
        has_rule: bool,
    }

    impl Store {
        fn of(places: usize, has_rule: bool) -> Self {
            let (admission, repeats) = (Admission::default(), Repeats::default());
            Self { admission, repeats, stored: BTreeMap::new(), places, has_rule }
        }

        /// True if it was stored before.
        fn call(&mut self, kind: u8, key: u32) -> bool {
            let is_known = self.admission.worth(key).is_some();
            let part = if is_known || !self.has_rule { 1.0 } else { self.repeats.expected(kind) };
            match is_known {
                true => self.repeats.again(kind, 1),
                false => self.repeats.first(kind),
            }
            let worth = self.admission.called(key, 1, part * 100_000.0, BYTES);
            if let Some(stored) = self.stored.get_mut(&key) {
                *stored = worth;
                return true;
            }
            let mut all: Vec<_> = self
                .stored
                .iter()
                .map(|(key, worth)| Stored { key: *key, worth: *worth, bytes: BYTES })
                .collect();
            all.sort_by(|a, b| a.worth.total_cmp(&b.worth));
            let lacking = if all.len() < self.places { 0 } else { BYTES };
            if let Some(gone) = self.admission.make_room(worth, lacking, all) {
                self.stored.retain(|key, _| !gone.contains(key));
                self.stored.insert(key, worth);
                self.admission.set_stored(self.stored.len());
            }
            false
        }
    }

    /// Thirty rounds: ten things are called once in each, and between them `new` things that never come
    /// again. Returns the share of the calls of the ten that was answered.
    fn answered(has_rule: bool, new: u32) -> f64 {
        let mut store = Store::of(20, has_rule);
        let (mut answered, mut next) = (0, 1_000);
        for _ in 0..30 {
            answered += (0..10).filter(|key| store.call(0, *key)).count();
            for _ in 0..new {
                store.call(1, next);
                next += 1;
            }
        }
        f64::from(answered as u32) / 300.0
    }

    #[test]
    fn what_is_asked_for_once_does_not_push_out_what_is_asked_for_again() {
        let (with, without): (Vec<_>, Vec<_>) =
            [10, 50, 250].iter().map(|new| (answered(true, *new), answered(false, *new))).unzip();
        assert!(with.iter().all(|share| *share > 0.93), "{with:?}");
        assert!(without[0] > 0.96 && without[2] < 0.1, "worth alone: {without:?}");
    }

    #[test]
    fn a_kind_that_is_asked_for_again_keeps_its_full_worth() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.expected('a'), 1.0);
        (0..31).for_each(|_| repeats.first('a'));
        assert_eq!(repeats.expected('a'), 1.0, "too few to tell");
        (0..69).for_each(|_| repeats.first('a'));
        assert_eq!(repeats.expected('a'), 0.0);
        repeats.again('a', 50);
        assert_eq!(repeats.expected('a'), 0.5);
        repeats.again('a', 500);
        assert_eq!(repeats.expected('a'), 1.0);
        assert_eq!(repeats.expected('b'), 1.0, "another kind");
    }

    #[test]
    fn what_was_taken_for_useless_is_believed_in_again_soon() {
        let mut repeats = Repeats::default();
        (0..100_000).for_each(|_| repeats.first('a'));
        let calls = (1..).find(|_| {
            repeats.again('a', 1);
            repeats.expected('a') >= 0.5
        });
        assert!(calls.is_some_and(|calls: u32| calls < 1_000), "{calls:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn worth_is_never_more_than_a_call_and_few_kinds_are_kept(
            calls in prop::collection::vec((0u32..1_300, 0u64..9), 0..3_000),
        ) {
            let mut repeats = Repeats::default();
            for (kind, again) in calls {
                match again {
                    0 => repeats.first(kind),
                    again => repeats.again(kind, again),
                }
                prop_assert!((0.0..=1.0).contains(&repeats.expected(kind)));
                prop_assert!(repeats.calls.len() <= KINDS_MAX);
            }
        }
    }
}
