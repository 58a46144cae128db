//! What a rename, a split or a merge may change, and what not.

use proptest::prelude::*;

use super::*;
use crate::calls::CallRecord;
use crate::config::LoopConfig;
use crate::ids::{ExpressionId, NodeId, Tick};

fn call(table: &str, ordinal: u32, query: u64, ns: u64) -> CallRecord {
    let series = SeriesKey {
        function: "f".into(),
        expression: ExpressionId(1),
        partition: PartitionId::new(table, ordinal),
    };
    let empty = CallRecord::empty(series, query, NodeId(0), None);
    CallRecord { rows: 7, rows_stored: 2, ns, would_be_ns: ns, bytes: 8, ..empty }
}

/// Everything that must stay what it was: sums over all series, tick by tick.
fn totals(history: &History) -> Vec<u64> {
    let mut sums = vec![0; 8];
    for (_, s) in history.iter() {
        let of = [s.calls, s.rows, s.rows_stored, s.rows_fresh, s.ns, s.would_be_ns, s.bytes];
        for (sum, value) in sums.iter_mut().zip(of) {
            *sum += value;
        }
    }
    sums[7] = history.together.pairs.values().sum();
    let view = history.view();
    sums.extend((1..=view.at.0).map(|tick| {
        view.series.iter().map(|series| series.calls_at(Tick(tick)) as u64).sum::<u64>()
    }));
    sums.extend(
        history.series.values().map(|series| u64::from(series.open.calls)).reduce(|a, b| a + b),
    );
    sums.push(history.series.values().map(|series| series.durations.count()).sum());
    sums
}

fn keys(history: &History) -> Vec<String> {
    history.iter().map(|(key, _)| key.partition.to_string()).collect()
}

#[test]
fn a_renamed_table_keeps_its_history() {
    let mut history = History::new(&LoopConfig::default());
    (0..3).for_each(|ordinal| history.record(&call("old", ordinal, 1, 10)));
    history.record(&call("other", 0, 1, 10));
    history.close_tick();
    history.follow(&Succession::Renamed { from: "old".into(), to: "new".into() });
    assert_eq!(keys(&history), ["new/0", "new/1", "new/2", "other/0"]);
    let target = |table: &str, ordinal| (ExpressionId(1), PartitionId::new(table, ordinal));
    assert_eq!(history.together(&target("new", 0), &target("other", 0)), 1);
    assert_eq!(history.together(&target("old", 0), &target("other", 0)), 0);
}

#[test]
fn a_function_with_another_body_is_expected_as_the_former_was() {
    let mut history = History::new(&LoopConfig::default());
    (0..3).for_each(|ordinal| history.record(&call("trades", ordinal, 1, 10)));
    history.close_tick();
    let before = totals(&history);
    history.follow(&Succession::Redefined { from: ExpressionId(1), to: ExpressionId(9) });
    assert_eq!(totals(&history), before);
    assert!(history.iter().all(|(key, _)| key.expression == ExpressionId(9)));
    let target =
        |expression, ordinal| (ExpressionId(expression), PartitionId::new("trades", ordinal));
    assert_eq!(history.together(&target(9, 0), &target(9, 1)), 1);
    // Somebody still called the former body: the next move takes it along.
    history.record(&call("trades", 0, 2, 10));
    history.follow(&Succession::Redefined { from: ExpressionId(1), to: ExpressionId(9) });
    assert_eq!(keys(&history), ["trades/0", "trades/1", "trades/2"]);
}

#[test]
fn a_split_divides_the_load_by_rows_and_leaves_what_a_call_takes() {
    let mut history = History::new(&LoopConfig::default());
    for _ in 0..100 {
        history.record(&call("t", 0, 1, 500));
    }
    history.close_tick();
    let [whole, part] = [0, 4].map(|ordinal| PartitionId::new("t", ordinal));
    let into = vec![(whole.clone(), 0.25), (part.clone(), 0.75)];
    history.follow(&Succession::Split { from: whole, into });
    let view = history.view();
    let calls: Vec<f64> = view.series.iter().map(|series| series.calls_at(Tick(1))).collect();
    assert_eq!((keys(&history), calls), (vec!["t/0".into(), "t/4".into()], vec![25.0, 75.0]));
    let stats = view.series[1].stats;
    assert_eq!((stats.calls_per_tick.mean, stats.ns_per_call.mean), (75.0, 500.0));
    assert_eq!(view.series[1].durations.count(), 75);
}

#[test]
fn a_merge_adds_up_ticks_that_both_had() {
    let mut history = History::new(&LoopConfig::default());
    for (ordinals, ns) in [(vec![0, 1], 100), (vec![1], 100), (vec![0, 0], 400)] {
        ordinals.iter().for_each(|ordinal| history.record(&call("t", *ordinal, 1, ns)));
        history.close_tick();
    }
    let [a, b] = [0, 1].map(|ordinal| PartitionId::new("t", ordinal));
    let target = |table: &str, ordinal| (ExpressionId(1), PartitionId::new(table, ordinal));
    history.record(&call("u", 0, 1, 100));
    assert_eq!(history.together(&target("t", 0), &target("u", 0)), 1);
    history.follow(&Succession::Merged { from: vec![a, b.clone()], into: b });
    assert_eq!(keys(&history), ["t/1", "u/0"]);
    assert_eq!(history.together(&target("t", 1), &target("u", 0)), 2);
    let view = history.view();
    assert_eq!([1, 2, 3].map(|tick| view.series[0].calls_at(Tick(tick))), [2.0, 1.0, 2.0]);
    // Three calls of 100 and 400, 400 on one; two of 100 on the other.
    assert!((view.series[0].stats.ns_per_call.mean - 220.0).abs() < 1e-9);
    assert_eq!(history.buckets, 3);
}

#[test]
fn a_split_without_shares_changes_nothing() {
    let mut history = History::new(&LoopConfig::default());
    history.record(&call("t", 0, 1, 500));
    let before = totals(&history);
    for share in [0.0, -1.0, f64::NAN] {
        let into = vec![(PartitionId::new("t", 1), share)];
        history.follow(&Succession::Split { from: PartitionId::new("t", 0), into });
    }
    assert_eq!((totals(&history), keys(&history)), (before, vec!["t/0".into()]));
}

fn successions() -> impl Strategy<Value = Succession> {
    let id = || (0u32..4).prop_map(|ordinal| PartitionId::new("t", ordinal));
    let name = || prop_oneof![Just("t"), Just("u")].prop_map(Arc::<str>::from);
    prop_oneof![
        (name(), name()).prop_map(|(from, to)| Succession::Renamed { from, to }),
        (id(), prop::collection::vec((id(), 0.0f64..1.0), 1..4))
            .prop_map(|(from, into)| Succession::Split { from, into }),
        (prop::collection::vec(id(), 1..3), id())
            .prop_map(|(from, into)| Succession::Merged { from, into }),
    ]
}

proptest! {
    #[test]
    fn no_succession_changes_what_all_series_add_up_to(
        ticks in prop::collection::vec(
            prop::collection::vec((0u32..4, 0u64..3, 1u64..1_000_000), 0..8), 1..12),
        moves in prop::collection::vec(successions(), 1..5),
    ) {
        let mut history = History::new(&LoopConfig::default());
        for calls in &ticks {
            calls.iter().for_each(|(o, query, ns)| history.record(&call("t", *o, *query, *ns)));
            history.close_tick();
        }
        history.record(&call("t", 0, 9, 77));
        let mut before = totals(&history);
        for what in &moves {
            history.follow(what);
            let mut after = totals(&history);
            // Two targets that became one are no pair any more.
            prop_assert!(after[7] <= before[7]);
            before[7] = after[7];
            prop_assert_eq!(&after, &before, "{:?}", what);
            let held: usize = history.series.values().map(|series| series.buckets.len()).sum();
            prop_assert_eq!(history.buckets, held);
            after.clear();
        }
        let loaded = History::load(&LoopConfig::default(), &history.save()).unwrap();
        prop_assert_eq!(totals(&loaded), before);
    }
}
