//! What every store must keep to, and what each would do if it were written without any index.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::bound::ns_spared_max;
use super::*;
use crate::admit::{Admission, Stored};

/// Calls of a few things, each of its own size and cost.
fn calls() -> impl Strategy<Value = Vec<Call>> {
    let things = prop::collection::vec((1u64..400, 0u32..10_000), 12);
    let keys = prop::collection::vec(0usize..12, 1..300);
    (things, keys).prop_map(|(things, keys)| {
        let call = |at: usize| {
            let (bytes, ns) = things[at];
            Call { key: at as u64, bytes, ns: f64::from(ns) }
        };
        keys.into_iter().map(call).collect()
    })
}

fn answered(mut cache: Box<dyn Cache>, calls: &[Call]) -> Vec<bool> {
    calls.iter().map(|call| cache.call(call)).collect()
}

fn spared(answered: &[bool], calls: &[Call]) -> f64 {
    calls.iter().zip(answered).filter(|(_, hit)| **hit).map(|(call, _)| call.ns).sum()
}

/// What a store without any index keeps of a thing.
#[derive(Clone, Copy, Debug)]
struct Kept {
    key: u64,
    bytes: u64,
    rank: f64,
    calls: f64,
}

/// Lets what ranks lowest go until `bytes` more fit; returns the rank of the last one that went.
fn shrink(kept: &mut Vec<Kept>, bytes: u64, bytes_max: u64) -> Option<f64> {
    let mut last = None;
    while kept.iter().map(|it| it.bytes).sum::<u64>() + bytes > bytes_max {
        let key = |at: &usize| (Rank(kept[*at].rank), kept[*at].key);
        let at = (0..kept.len()).min_by_key(key)?;
        last = Some(kept.swap_remove(at).rank);
    }
    last
}

fn naive_lru(calls: &[Call], bytes_max: u64) -> Vec<bool> {
    let mut kept: Vec<Kept> = vec![];
    let mut one = |(at, call): (usize, &Call)| {
        let rank = at as f64;
        if let Some(it) = kept.iter_mut().find(|it| it.key == call.key) {
            it.rank = rank;
            return true;
        }
        if call.bytes <= bytes_max {
            shrink(&mut kept, call.bytes, bytes_max);
            kept.push(Kept { key: call.key, bytes: call.bytes, rank, calls: 1.0 });
        }
        false
    };
    calls.iter().enumerate().map(&mut one).collect()
}

fn naive_gdsf(calls: &[Call], bytes_max: u64) -> Vec<bool> {
    let (mut kept, mut inflation): (Vec<Kept>, f64) = (vec![], 0.0);
    let mut one = |call: &Call| {
        let spared = call.ns / call.bytes as f64;
        if let Some(it) = kept.iter_mut().find(|it| it.key == call.key) {
            it.calls += 1.0;
            it.rank = inflation + it.calls * spared;
            return true;
        }
        if call.bytes <= bytes_max {
            inflation = shrink(&mut kept, call.bytes, bytes_max).unwrap_or(inflation);
            let rank = inflation + spared;
            kept.push(Kept { key: call.key, bytes: call.bytes, rank, calls: 1.0 });
        }
        false
    };
    calls.iter().map(&mut one).collect()
}

fn naive_worth(calls: &[Call], bytes_max: u64) -> Vec<bool> {
    let mut admission = Admission::default();
    let mut kept: Vec<Stored<u64>> = vec![];
    let mut one = |call: &Call| {
        let worth = admission.called(call.key, 1, call.ns, call.bytes);
        if let Some(it) = kept.iter_mut().find(|it| it.key == call.key) {
            it.worth = worth;
            return true;
        }
        kept.sort_by_key(|it| (Rank(it.worth), it.key));
        let bytes = kept.iter().map(|it| it.bytes).sum::<u64>() + call.bytes;
        let lacking = bytes.saturating_sub(bytes_max);
        if let Some(victims) = admission.make_room(worth, lacking, kept.iter().copied()) {
            kept.retain(|it| !victims.contains(&it.key));
            kept.push(Stored { key: call.key, worth, bytes: call.bytes });
            admission.set_stored(kept.len());
        }
        false
    };
    calls.iter().map(&mut one).collect()
}

proptest! {
    #[test]
    fn no_store_exceeds_its_budget_or_answers_what_was_never_called(
        calls in calls(),
        bytes_max in 0u64..3_000,
    ) {
        for mut cache in all(bytes_max) {
            let mut called = BTreeSet::new();
            for call in &calls {
                let before = cache.bytes_held();
                let hit = cache.call(call);
                let name = cache.name();
                prop_assert!(cache.bytes_held() <= bytes_max, "{name}");
                prop_assert!(!hit || called.contains(&call.key), "{name} made {call:?} up");
                prop_assert!(!hit || call.bytes <= bytes_max, "{name} cannot hold {call:?}");
                prop_assert!(!hit || cache.bytes_held() == before, "{name} stored it again");
                called.insert(call.key);
            }
        }
    }

    #[test]
    fn the_same_calls_get_the_same_answers_and_no_store_spares_more_than_the_bound(
        calls in calls(),
        bytes_max in 0u64..3_000,
    ) {
        let most = ns_spared_max(&calls, bytes_max);
        for (one, other) in all(bytes_max).into_iter().zip(all(bytes_max)) {
            let name = one.name();
            let answers = answered(one, &calls);
            prop_assert_eq!(&answers, &answered(other, &calls), "{}", name);
            prop_assert!(spared(&answers, &calls) <= most * (1.0 + 1e-9), "{name}");
        }
    }

    #[test]
    fn a_store_with_room_for_all_answers_every_call_but_the_first(calls in calls()) {
        let most = ns_spared_max(&calls, 12 * 400);
        for cache in all(12 * 400) {
            let name = cache.name();
            let ns = spared(&answered(cache, &calls), &calls);
            prop_assert!((ns - most).abs() <= 1e-6 * most, "{name}: {ns} of {most}");
        }
    }

    #[test]
    fn an_index_changes_no_answer(calls in calls(), bytes_max in 0u64..3_000) {
        let of = |cache: Box<dyn Cache>| answered(cache, &calls);
        prop_assert_eq!(of(Box::new(lru::Lru::new(bytes_max))), naive_lru(&calls, bytes_max));
        prop_assert_eq!(of(Box::new(gdsf::Gdsf::new(bytes_max))), naive_gdsf(&calls, bytes_max));
        prop_assert_eq!(of(Box::new(worth::Worth::new(bytes_max))), naive_worth(&calls, bytes_max));
    }
}

fn one_byte(key: u64) -> Call {
    Call { key, bytes: 1, ns: 1.0 }
}

#[test]
fn what_came_once_leaves_the_small_queue_and_what_came_again_stays_in_the_main_one() {
    let mut cache = s3_fifo::S3Fifo::new(100);
    for key in (0..100).chain([7, 7]) {
        cache.call(&one_byte(key));
    }
    // Twice asked for in the small queue: it outlives a scan that is as long as the store is large.
    (1_000..1_090).for_each(|key| assert!(!cache.call(&one_byte(key))));
    assert!(cache.call(&one_byte(7)) && !cache.call(&one_byte(8)));
    // 8 was asked for soon after it had gone: it went to the main queue.
    (2_000..2_085).for_each(|key| assert!(!cache.call(&one_byte(key))));
    assert!(cache.call(&one_byte(8)));
}

#[test]
fn the_bound_fills_the_time_of_all_calls_with_what_spares_most_for_it() {
    let calls = [one_byte(1), one_byte(2), one_byte(2), one_byte(1)];
    // Spans of three calls and of one: both at once are as much as one byte holds in four calls.
    assert_eq!(ns_spared_max(&calls, 2), 2.0);
    assert_eq!(ns_spared_max(&calls, 1), 2.0);
    let calls = [1, 2, 3, 1, 2, 3].map(one_byte);
    assert_eq!(ns_spared_max(&calls, 1), 2.0);
    assert_eq!(ns_spared_max(&calls, 0), 0.0);
}
