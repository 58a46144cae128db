//! What is known of steps that move load.

use proptest::prelude::*;

use super::*;
use crate::ids::{ExpressionId, SeriesKey};

const TICK_NS: f64 = 1e9;

fn part(ordinal: u32) -> PartitionId {
    PartitionId::new("t", ordinal)
}

fn nodes(count: u32) -> BTreeMap<NodeId, NodeView> {
    let node = NodeView { cpu_permits: 1, ..NodeView::default() };
    (0..count).map(|id| (NodeId(id), node.clone())).collect()
}

/// Calls on a partition that keep a node busy for so many ms.
fn call(ordinal: u32, node: u32, busy_ms: f64, waited_ms: f64) -> CallRecord {
    let key =
        SeriesKey { function: "f".into(), expression: ExpressionId(1), partition: part(ordinal) };
    CallRecord {
        ns: (busy_ms * 1e6) as u64,
        waited_ns: (waited_ms * 1e6) as u64,
        ..CallRecord::empty(key, 1, NodeId(node), None)
    }
}

/// One tick: loads in ms by partition and node. Calls wait twice as long as if they came at random.
fn tick(waits: &mut Waits, now: u64, loads: &[(u32, u32, f64)]) -> Vec<Spared> {
    for (ordinal, node, ms) in loads {
        waits.record(&call(*ordinal, *node, *ms, 0.0));
    }
    for node in 0..3 {
        let busy: f64 = loads.iter().filter(|it| it.1 == node).map(|it| it.2).sum();
        waits.record(&call(99, node, 0.0, 2e3 * waiting(busy / 1e3, 1.0)));
    }
    waits.close_tick(Tick(now), TICK_NS, &nodes(3))
}

fn moved(ordinal: u32, from: u32, to: u32) -> Step {
    Step::Move { partition: part(ordinal), from: NodeId(from), to: NodeId(to) }
}

#[test]
fn a_move_spares_what_calls_would_have_waited_longer_where_the_partition_was() {
    let mut waits = Waits::default();
    (1..=50).for_each(|now| drop(tick(&mut waits, now, &[(0, 0, 300.0), (1, 0, 400.0)])));
    waits.watch(7, &moved(0, 0, 1), false, Tick(50), 3);
    let mut spared = Vec::new();
    for now in 51..=53 {
        spared.extend(tick(&mut waits, now, &[(0, 1, 300.0), (1, 0, 400.0)]));
    }
    let expected =
        3.0 * 2.0 * TICK_NS * (waiting(0.7, 1.0) - waiting(0.4, 1.0) - waiting(0.3, 1.0));
    let [Spared { id: 7, measured_ns: Some(measured), less_ns: Some(less) }] = spared[..] else {
        panic!("{spared:?}")
    };
    assert!((measured / expected - 1.0).abs() < 1e-3, "{measured} {expected}");
    assert!((less / expected - 1.0).abs() < 1e-3, "what was to do is the same: {less}");
}

#[test]
fn a_move_to_a_node_that_is_busier_costs_waiting_and_one_that_nobody_calls_is_not_known() {
    let mut waits = Waits::default();
    let loads = [(0, 0, 300.0), (1, 0, 100.0), (2, 1, 600.0)];
    (1..=50).for_each(|now| drop(tick(&mut waits, now, &loads)));
    waits.watch(1, &moved(0, 0, 1), false, Tick(50), 1);
    waits.watch(2, &moved(3, 0, 1), false, Tick(50), 1);
    let spared = tick(&mut waits, 51, &[(0, 1, 300.0), (1, 0, 100.0), (2, 1, 600.0)]);
    assert!(spared[0].measured_ns.is_some_and(|spared| spared < -1e9), "{spared:?}");
    assert_eq!(spared[1].measured_ns, None);
}

#[test]
fn a_load_that_doubles_by_itself_is_not_taken_for_what_a_step_did() {
    let mut waits = Waits::default();
    // Small loads, so that twice the load waits about four times as long.
    (1..=50)
        .for_each(|now| drop(tick(&mut waits, now, &[(0, 0, 20.0), (1, 0, 20.0), (2, 1, 40.0)])));
    waits.watch(1, &moved(0, 0, 1), true, Tick(50), 5);
    let after: Vec<Spared> = (51..=55)
        .flat_map(|now| tick(&mut waits, now, &[(0, 0, 40.0), (1, 0, 40.0), (2, 1, 80.0)]))
        .collect();
    let [Spared { id: 1, measured_ns: None, less_ns: Some(less) }] = after[..] else {
        panic!("{after:?}")
    };
    let waited = 5.0 * 4.0 * TICK_NS * waiting(0.08, 1.0);
    assert!(less.abs() < 0.1 * waited, "{less} of {waited}");
}

#[test]
fn memory_stays_bounded_whatever_is_called_and_watched() {
    let mut waits = Waits::default();
    for id in 0..WATCHES_MAX as u64 + 10 {
        waits.watch(id, &moved(0, 0, 1), false, Tick(0), 1_000);
    }
    for ordinal in 0..PARTITIONS_MAX as u32 + 10 {
        waits.record(&call(ordinal, 0, 1.0, 1.0));
    }
    assert_eq!((waits.watches.len(), waits.open.len()), (WATCHES_MAX, PARTITIONS_MAX));
    (1..200).for_each(|now| drop(waits.close_tick(Tick(now), TICK_NS, &nodes(2))));
    assert_eq!(waits.past.len(), BEFORE_MAX);
}

proptest! {
    #[test]
    fn what_all_steps_spare_is_what_would_be_waited_for_without_any_of_them(
        loads in prop::collection::vec(10.0..150.0f64, 6),
        moves in prop::collection::vec((0u32..6, 0u32..3), 1..12),
    ) {
        let mut waits = Waits::default();
        let placed = |at: &[u32]| -> Vec<(u32, u32, f64)> {
            (0..6).map(|part| (part, at[part as usize], loads[part as usize])).collect()
        };
        let mut at = vec![0, 0, 1, 1, 2, 2];
        let first = placed(&at);
        (1..=50).for_each(|now| drop(tick(&mut waits, now, &first)));
        for (id, (part, to)) in (0..).zip(moves) {
            let from = std::mem::replace(&mut at[part as usize], to);
            waits.watch(id, &moved(part, from, to), false, Tick(50), 1);
        }
        let spared = tick(&mut waits, 51, &placed(&at));
        let sum: f64 = spared.iter().filter_map(|spared| spared.measured_ns).sum();
        let waited = |loads: &[(u32, u32, f64)]| -> f64 {
            (0..3).map(|node| {
                let busy: f64 = loads.iter().filter(|it| it.1 == node).map(|it| it.2).sum();
                2.0 * TICK_NS * waiting(busy / 1e3, 1.0)
            }).sum()
        };
        let expected = waited(&first) - waited(&placed(&at));
        prop_assert!((sum - expected).abs() < 1e-3 * waited(&first) + 1.0, "{sum} {expected}");
    }
}
