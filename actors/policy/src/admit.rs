//! Which output a query computed is worth keeping on a node, and what gives way for it.

use serde::{Deserialize, Serialize};

use crate::config::LoopConfig;

/// An output that could be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate<K> {
    /// Its name on the node, for example (segment, expression).
    pub key: K,
    /// Calls per use that it can expect: calls seen so far, or expected ones; at least one counts.
    pub calls: f64,
    /// What one of its rows costs to compute.
    pub ns_per_row: f64,
    /// Its rows.
    pub rows: u64,
    /// Its size in memory.
    pub bytes: u64,
}

/// An output that is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Held<K> {
    /// Its name on the node.
    pub key: K,
    /// [`Admission::priority`] at its last use.
    pub priority: f64,
    /// Its size in memory.
    pub bytes: u64,
}

/// Whether to store a candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision<K> {
    /// Whether the candidate is stored.
    pub store: bool,
    /// What must be thrown away for it, in order. Empty if it is not stored.
    pub evict: Vec<K>,
    /// The candidate's priority, to be kept with it.
    pub priority: f64,
}

/// Greedy-dual admission and eviction with size, frequency and cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Admission {
    inflation: f64,
    min_ns_per_row: f64,
}

impl Admission {
    /// With the thresholds of `config`.
    #[must_use]
    pub fn new(config: &LoopConfig) -> Self {
        Self { inflation: 0.0, min_ns_per_row: config.precompute().min_ns_per_row() }
    }

    /// Priority of an output that is used now: `inflation + calls * ns_per_row * rows / bytes`.
    /// Keep it with the output, and renew it at each use.
    #[must_use]
    pub fn priority<K>(&self, output: &Candidate<K>) -> f64 {
        self.inflation + density(output)
    }

    /// Decides whether `candidate` is stored beside what is `held`, within `bytes_max`.
    ///
    /// It is stored if there is room, or if everything that must go for it has a lower priority.
    /// What goes lifts the inflation to its priority, so that outputs that are not used any more
    /// grow old; a candidate that is refused lifts it a little, so that the old cannot block the
    /// new for ever.
    pub fn decide<K: Clone + Ord>(
        &mut self,
        candidate: &Candidate<K>,
        held: impl IntoIterator<Item = Held<K>>,
        bytes_max: u64,
    ) -> Decision<K> {
        let priority = self.priority(candidate);
        let refused = Decision { store: false, evict: Vec::new(), priority };
        let too_cheap = candidate.ns_per_row < self.min_ns_per_row || candidate.rows == 0;
        if too_cheap || candidate.bytes > bytes_max {
            return refused;
        }
        let mut held: Vec<_> = held.into_iter().filter(|it| it.key != candidate.key).collect();
        held.sort_by(|a, b| a.priority.total_cmp(&b.priority).then_with(|| a.key.cmp(&b.key)));
        let used = held.iter().fold(candidate.bytes, |sum, it| sum.saturating_add(it.bytes));
        let mut over = used.saturating_sub(bytes_max);
        let mut victims = Vec::new();
        let lowest = held.first().map_or(0.0, |it| it.priority);
        for victim in held {
            if over == 0 {
                break;
            }
            if victim.priority >= priority {
                let aged = self.inflation + density(candidate) * AGEING;
                self.inflation = aged.min(lowest).max(self.inflation);
                return refused;
            }
            over = over.saturating_sub(victim.bytes);
            victims.push(victim);
        }
        if let Some(last) = victims.last() {
            self.inflation = self.inflation.max(last.priority);
        }
        let evict = victims.into_iter().map(|victim| victim.key).collect();
        Decision { store: true, evict, priority }
    }
}

/// Share of a refused candidate's density by which what is held grows old.
const AGEING: f64 = 1.0 / 16.0;

/// Nanoseconds that storing spares per byte.
fn density<K>(output: &Candidate<K>) -> f64 {
    output.calls.max(1.0) * output.ns_per_row * output.rows as f64 / output.bytes.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn output(key: u32, calls: f64, ns_per_row: f64) -> Candidate<u32> {
        Candidate { key, calls, ns_per_row, rows: 100, bytes: 800 }
    }

    /// A node's store as the engine would keep it.
    #[derive(Default)]
    struct Store(std::collections::BTreeMap<u32, Held<u32>>);

    impl Store {
        fn offer(&mut self, admission: &mut Admission, output: &Candidate<u32>, max: u64) -> bool {
            let decision = admission.decide(output, self.0.values().cloned(), max);
            for key in &decision.evict {
                assert!(self.0.remove(key).is_some(), "{key} is not held");
            }
            if decision.store {
                let Candidate { key, bytes, .. } = *output;
                self.0.insert(key, Held { key, priority: decision.priority, bytes });
            }
            assert!(self.0.values().map(|held| held.bytes).sum::<u64>() <= max);
            decision.store
        }
    }

    fn admission() -> Admission {
        Admission::new(&LoopConfig::default())
    }

    #[test]
    fn a_function_cheaper_than_a_lookup_is_never_stored() {
        assert!(!Store::default().offer(&mut admission(), &output(1, 1e6, 299.0), 1 << 30));
        assert!(Store::default().offer(&mut admission(), &output(1, 1.0, 300.0), 1 << 30));
    }

    #[test]
    fn the_dear_and_often_used_displaces_the_cheap_and_not_the_other_way_round() {
        let (mut admission, mut store) = (admission(), Store::default());
        assert!(store.offer(&mut admission, &output(1, 1.0, 400.0), 1_600));
        assert!(store.offer(&mut admission, &output(2, 9.0, 5_000.0), 1_600));
        assert!(store.offer(&mut admission, &output(3, 2.0, 5_000.0), 1_600));
        assert_eq!(store.0.keys().copied().collect::<Vec<_>>(), [2, 3]);
        assert!(!store.offer(&mut admission, &output(4, 1.0, 400.0), 1_600));
        assert_eq!(store.0.len(), 2);
    }

    #[test]
    fn a_scan_over_many_outputs_used_once_does_not_flush_what_is_used_often() {
        let (mut admission, mut store) = (admission(), Store::default());
        let often = output(0, 50.0, 2_000.0);
        store.offer(&mut admission, &often, 8_000);
        for key in 1..500 {
            store.offer(&mut admission, &output(key, 1.0, 1_000.0), 8_000);
            if key % 20 == 0 {
                store.offer(&mut admission, &often, 8_000);
            }
        }
        assert!(store.0.contains_key(&0));
    }

    #[test]
    fn what_is_not_used_any_more_gives_way_in_the_end() {
        let (mut admission, mut store) = (admission(), Store::default());
        store.offer(&mut admission, &output(0, 50.0, 2_000.0), 800);
        let taken = (1..2_000).find(|_| store.offer(&mut admission, &output(1, 1.0, 1_000.0), 800));
        assert!(taken.is_some_and(|tries| tries > 100), "{taken:?}");
    }

    #[test]
    fn what_is_larger_than_the_budget_evicts_nothing() {
        let (mut admission, mut store) = (admission(), Store::default());
        store.offer(&mut admission, &output(1, 1.0, 400.0), 1_000);
        let giant = Candidate { bytes: 1_001, ..output(2, 1e9, 1e9) };
        assert!(!store.offer(&mut admission, &giant, 1_000));
        assert!(store.0.contains_key(&1));
    }

    #[test]
    fn an_output_that_is_offered_again_is_not_counted_twice() {
        let (mut admission, mut store) = (admission(), Store::default());
        assert!(store.offer(&mut admission, &output(1, 1.0, 400.0), 800));
        assert!(store.offer(&mut admission, &output(1, 1.0, 400.0), 800));
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_only_what_is_held_is_evicted(
            offers in prop::collection::vec((0u32..20, 1.0..50.0, 100.0..9e4, 0u64..900), 1..80),
            bytes_max in 0u64..4_000,
        ) {
            let (mut admission, mut store) = (admission(), Store::default());
            for (key, calls, ns_per_row, bytes) in offers {
                let offer = Candidate { bytes, ..output(key, calls, ns_per_row) };
                store.offer(&mut admission, &offer, bytes_max);
            }
        }
    }
}
