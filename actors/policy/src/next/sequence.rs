//! Which key follows the ones just seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Followers of a context that are kept; the rarest gives way.
const FOLLOWERS_MAX: usize = 32;

/// Contexts of each length that are kept; beyond, the rarer half is forgotten.
const CONTEXTS_MAX: usize = 8_192;

/// Keys whose popularity is kept; beyond, the rarer half is forgotten.
const KEYS_MAX: usize = 8_192;

/// Calls after a context beyond which the earlier ones count half.
const CONTEXT_CALLS_MAX: f64 = 64.0;

/// Calls in all beyond which the earlier ones count half: what is popular changes slowly.
const CALLS_MAX: f64 = 1_024.0;

/// A Markov chain of the second order that backs off to the first order and to popularity.
///
/// A context is trusted as far as it was seen more often than it had something new to show; the rest of
/// the trust goes to the shorter context. Older calls fade, so that a changed habit is learned within
/// some tens of calls.
///
/// # Source
/// Witten and Bell, "The zero-frequency problem", IEEE Transactions on Information Theory 37 (1991),
/// method C.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sequence<K: Ord> {
    seen: Vec<K>,
    popular: Counts<K>,
    after_one: Vec<(K, Counts<K>)>,
    after_two: Vec<((K, K), Counts<K>)>,
}

impl<K: Ord> Default for Sequence<K> {
    fn default() -> Self {
        let (seen, popular) = (vec![], Counts::default());
        Self { seen, popular, after_one: vec![], after_two: vec![] }
    }
}

impl<K: Clone + Ord> Sequence<K> {
    /// Takes note of a call.
    ///
    /// # Cost
    /// `O(log n)` for `n` contexts, and `O(n)` when a new one comes.
    pub fn observe(&mut self, key: K) {
        self.popular.add(key.clone(), CALLS_MAX, KEYS_MAX);
        if let Some(last) = self.seen.last() {
            context(&mut self.after_one, last.clone()).add(
                key.clone(),
                CONTEXT_CALLS_MAX,
                FOLLOWERS_MAX,
            );
        }
        if let [before, last] = self.seen.as_slice() {
            let context = context(&mut self.after_two, (before.clone(), last.clone()));
            context.add(key.clone(), CONTEXT_CALLS_MAX, FOLLOWERS_MAX);
            self.seen.remove(0);
        }
        self.seen.push(key);
    }

    /// The keys that are most likely called next, with their probabilities; at most `count`, the
    /// likeliest first. Empty if nothing was called yet.
    ///
    /// # Cost
    /// `O(n log n)` for `n` keys whose popularity is kept.
    #[must_use]
    pub fn likeliest(&self, count: usize) -> Vec<(K, f64)> {
        let mut chances: BTreeMap<&K, f64> = BTreeMap::new();
        for (share, counts) in self.contexts() {
            for (key, calls) in &counts.calls {
                *chances.entry(key).or_default() += share * calls / counts.total;
            }
        }
        let mut likeliest: Vec<(&K, f64)> = chances.into_iter().collect();
        likeliest.sort_by(|a, b| b.1.total_cmp(&a.1));
        likeliest.truncate(count);
        likeliest.into_iter().map(|(key, chance)| (key.clone(), chance)).collect()
    }

    /// The probability that this key is called next; zero if it was never called.
    ///
    /// # Cost
    /// `O(log n)`.
    #[must_use]
    pub fn chance(&self, key: &K) -> f64 {
        let of = |(share, counts): (f64, &Counts<K>)| {
            let found = counts.calls.binary_search_by(|it| it.0.cmp(key));
            found.map_or(0.0, |at| share * counts.calls[at].1 / counts.total)
        };
        self.contexts().map(of).sum()
    }

    /// What followed the last calls, the longest context first, with the trust in each.
    fn contexts(&self) -> impl Iterator<Item = (f64, &Counts<K>)> {
        let two = match self.seen.as_slice() {
            [before, last] => {
                let key = (before.clone(), last.clone());
                self.after_two.binary_search_by(|it| it.0.cmp(&key)).ok()
            }
            _ => None,
        };
        let one = self
            .seen
            .last()
            .and_then(|last| self.after_one.binary_search_by(|it| it.0.cmp(last)).ok());
        let contexts = [
            two.map(|at| &self.after_two[at].1),
            one.map(|at| &self.after_one[at].1),
            Some(&self.popular),
        ];
        let mut rest = 1.0;
        let mut all = Vec::with_capacity(contexts.len());
        for (order, counts) in contexts.into_iter().enumerate() {
            let Some(counts) = counts.filter(|counts| counts.total > 0.0) else { continue };
            let trust = if order == 2 { 1.0 } else { counts.trust() };
            all.push((rest * trust, counts));
            rest *= 1.0 - trust;
        }
        all.into_iter()
    }
}

/// Calls by key, the earlier ones fading; sorted by key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Counts<K> {
    total: f64,
    calls: Vec<(K, f64)>,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self { total: 0.0, calls: vec![] }
    }
}

impl<K: Clone + Ord> Counts<K> {
    fn add(&mut self, key: K, calls_max: f64, keys_max: usize) {
        match self.calls.binary_search_by(|it| it.0.cmp(&key)) {
            Ok(at) => self.calls[at].1 += 1.0,
            Err(at) => self.calls.insert(at, (key.clone(), 1.0)),
        }
        self.total += 1.0;
        let (is_much, is_many) = (self.total > calls_max, self.calls.len() > keys_max);
        if is_much {
            self.calls.iter_mut().for_each(|(_, calls)| *calls /= 2.0);
        }
        if is_many {
            forget_rarer_half(&mut self.calls, |it| it.1, |it| it.0 == key);
        }
        if is_much || is_many {
            self.total = self.calls.iter().map(|(_, calls)| calls).sum();
        }
    }

    /// How far the context says what follows: calls in it, against those that were new in it.
    fn trust(&self) -> f64 {
        self.total / (self.total + self.calls.len() as f64)
    }
}

/// The followers of a context; a new one if there are none.
fn context<C: Clone + Ord, K: Clone + Ord>(
    contexts: &mut Vec<(C, Counts<K>)>,
    key: C,
) -> &mut Counts<K> {
    let found = contexts.binary_search_by(|it| it.0.cmp(&key));
    if found.is_err() && contexts.len() >= CONTEXTS_MAX {
        forget_rarer_half(contexts, |it| it.1.total, |_| false);
    }
    let at = contexts.partition_point(|it| it.0 < key);
    if contexts.get(at).is_none_or(|it| it.0 != key) {
        contexts.insert(at, (key, Counts::default()));
    }
    &mut contexts[at].1
}

fn forget_rarer_half<T>(all: &mut Vec<T>, calls: impl Fn(&T) -> f64, stays: impl Fn(&T) -> bool) {
    let mut sorted: Vec<f64> = all.iter().map(&calls).collect();
    sorted.sort_by(f64::total_cmp);
    let mut gone_max = all.len() / 2;
    let Some(middle) = sorted.get(gone_max).copied() else { return };
    all.retain(|it| {
        let goes = calls(it) <= middle && gone_max > 0 && !stays(it);
        gone_max -= usize::from(goes);
        !goes
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::SplitMix64;

    fn after(calls: impl IntoIterator<Item = u32>) -> Sequence<u32> {
        let mut sequence = Sequence::default();
        calls.into_iter().for_each(|key| sequence.observe(key));
        sequence
    }

    #[test]
    fn what_followed_the_last_two_calls_is_expected_though_the_last_one_alone_tells_nothing() {
        // After 1 follows 2 or 3, by what came before it.
        let sequence = after([7, 1, 2, 8, 1, 3].into_iter().cycle().take(60).chain([7, 1]));
        let likeliest = sequence.likeliest(2);
        assert_eq!(likeliest[0].0, 2, "{likeliest:?}");
        assert!(likeliest[0].1 > 0.8, "{likeliest:?}");
        let other = after([7, 1, 2, 8, 1, 3].into_iter().cycle().take(60).chain([8, 1]));
        assert_eq!(other.likeliest(1)[0].0, 3);
    }

    #[test]
    fn in_a_context_never_seen_the_popular_key_is_expected() {
        let sequence = after([1, 1, 2, 1, 1, 3, 1, 1, 99]);
        assert_eq!(sequence.likeliest(1)[0].0, 1);
        assert_eq!(Sequence::<u32>::default().likeliest(5), []);
    }

    #[test]
    fn a_changed_habit_is_learned_within_a_hundred_calls() {
        let old = [1, 2].into_iter().cycle().take(2_000);
        let new = [1, 3].into_iter().cycle().take(101);
        let likeliest = after(old.chain(new)).likeliest(1);
        assert_eq!(likeliest[0].0, 3, "{likeliest:?}");
    }

    #[test]
    fn scanning_over_ever_new_keys_holds_memory_down_and_keeps_what_is_common() {
        let mut sequence = Sequence::default();
        let mut random = SplitMix64::new(1);
        for call in 0..30_000_u32 {
            sequence.observe(if random.uniform() < 0.3 { 1 } else { 1_000 + call });
        }
        assert!(sequence.after_one.len() <= CONTEXTS_MAX);
        assert!(sequence.after_two.len() <= CONTEXTS_MAX);
        assert!(sequence.popular.calls.len() <= KEYS_MAX);
        assert_eq!(sequence.likeliest(1)[0].0, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn chances_are_in_order_and_sum_to_one(calls in prop::collection::vec(0u32..20, 1..200)) {
            let sequence = after(calls);
            let all = sequence.likeliest(usize::MAX);
            prop_assert!(all.is_sorted_by(|a, b| a.1 >= b.1), "{:?}", all);
            let sum: f64 = all.iter().map(|(_, chance)| chance).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9, "{}", sum);
            for (key, chance) in &all {
                prop_assert!((sequence.chance(key) - chance).abs() < 1e-12, "{}", key);
            }
            prop_assert_eq!(sequence.chance(&99), 0.0);
            let stored = serde_json::to_vec(&sequence).unwrap();
            let read: Sequence<u32> = serde_json::from_slice(&stored).unwrap();
            prop_assert_eq!(read.likeliest(3).len(), all.len().min(3));
        }
    }
}
