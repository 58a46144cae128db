//! The history as the monitor uses it.

use super::*;
use crate::ids::{ExpressionId, NodeId, PartitionId};
use proptest::prelude::*;
use std::sync::Arc;

fn call(function: &str, ordinal: u32, rows: u64, ns_per_row: u64) -> CallRecord {
    CallRecord {
        at_ms: 0,
        query: 1,
        function: function.into(),
        expression: ExpressionId(u128::MAX - 7),
        partition: PartitionId::new("trades", ordinal),
        node: NodeId(0),
        rows,
        rows_stored: 0,
        rows_fresh: rows,
        rows_fresh_stored: 0,
        ns: rows * ns_per_row,
        waited_ns: 0,
        would_be_ns: rows * ns_per_row,
        bytes: 8 * rows,
        traceparent: None,
    }
}

fn key(function: &str, ordinal: u32) -> SeriesKey {
    call(function, ordinal, 0, 0).series()
}

/// One series whose ticks have these calls.
fn history(config: &LoopConfig, calls: &[u32]) -> History {
    let mut history = History::new(config);
    for count in calls {
        (0..*count).for_each(|_| history.record(&call("embed", 0, 100, 50)));
        history.close_tick();
    }
    history
}

#[test]
fn frequency_and_duration_have_a_mean_and_a_deviation() {
    let mut history = history(&LoopConfig::default(), &[2, 0, 4]);
    history.record(&call("embed", 0, 100, 70));
    let stats = history.stats(&key("embed", 0)).unwrap();
    assert_eq!((stats.calls, stats.rows, stats.last_called), (7, 700, Tick(4)));
    assert!((stats.calls_per_tick.mean - 2.0).abs() < 1e-9);
    assert!((stats.calls_per_tick.deviation() - (8.0_f64 / 3.0).sqrt()).abs() < 1e-9);
    assert!((stats.ns_per_row.mean - (6.0 * 50.0 + 70.0) / 7.0).abs() < 1e-9);
    assert!((stats.bytes_per_row.mean - 8.0).abs() < 1e-9);
}

#[test]
fn a_stored_output_does_not_hide_the_load_that_it_serves() {
    let mut history = History::new(&LoopConfig::default());
    history.record(&CallRecord { rows_stored: 100, ns: 10, ..call("embed", 0, 100, 50) });
    let stats = history.stats(&key("embed", 0)).unwrap();
    assert_eq!((stats.ns, stats.would_be_ns), (10, 5_000));
    assert_eq!(stats.ns_per_call.mean, 5_000.0);
    assert_eq!(stats.bytes_per_row.count, 0);
}

#[test]
fn a_window_ends_where_it_is_asked_to_and_a_gap_is_zero_calls() {
    let view = history(&LoopConfig::default(), &[0, 2, 0, 0, 5, 1]).view();
    assert_eq!(view.at, Tick(6));
    assert_eq!(view.calls(Tick(6)), [[0.0, 2.0, 0.0, 0.0, 5.0, 1.0]]);
    assert_eq!(view.calls(Tick(4)), [[0.0, 2.0, 0.0, 0.0]]);
    assert_eq!(view.calls(Tick(0)), [[0.0; 0]]);
    assert_eq!(view.calls(Tick(99)), view.calls(Tick(6)));
    assert_eq!(view.series[0].calls_at(Tick(5)), 5.0);
    assert_eq!(view.series[0].calls_until(Tick(5), 4), 7.0);
    assert_eq!(view.series[0].calls_now(Tick(6), 3), 2.0);
}

#[test]
fn later_calls_do_not_change_a_view() {
    let mut history = history(&LoopConfig::default(), &[1, 1]);
    let view = history.view();
    history.record(&call("embed", 0, 1, 1));
    history.close_tick();
    assert_eq!(view.calls(Tick(9)), [[1.0, 1.0]]);
    assert_eq!(history.view().calls(Tick(9)), [[1.0, 1.0, 1.0]]);
}

#[test]
fn the_least_called_series_is_forgotten_and_counted() {
    let config = LoopConfig::default().with_series_max(2).unwrap();
    let mut history = History::new(&config);
    for _ in 0..3 {
        history.record(&call("often", 0, 1, 1));
    }
    history.record(&call("once", 0, 1, 1));
    history.close_tick();
    history.record(&call("new", 0, 1, 1));
    let kept: Vec<_> = history.iter().map(|(key, _)| key.function.to_string()).collect();
    assert_eq!(kept, ["new", "often"]);
    assert_eq!((history.tail().series, history.tail().calls), (1, 1));
    assert_eq!((history.at_most(&key("once", 0)).0, history.at_most(&key("often", 0)).0), (1, 3));
}

#[test]
fn ticks_beyond_the_limit_are_forgotten() {
    let config = LoopConfig::default().with_history_ticks_max(16).unwrap();
    let calls: Vec<u32> = (1..=40).collect();
    let history = history(&config, &calls);
    let calls = history.view().calls(Tick(40));
    assert_eq!(calls, [(25..=40).map(f64::from).collect::<Vec<_>>()]);
    assert_eq!(history.buckets, 16);
}

#[test]
fn memory_stays_bounded_when_every_series_is_busy_in_every_tick() {
    let monitor = LoopConfig::default().monitor().clone().with_buckets_max(1_000).unwrap();
    let config = LoopConfig::default().with_monitor(monitor).unwrap();
    let mut history = History::new(&config);
    for _ in 0..100 {
        (0..50).for_each(|ordinal| history.record(&call("embed", ordinal, 1, 1)));
        history.close_tick();
        assert!(history.buckets <= 1_000);
    }
    let held: usize = history.series.values().map(|series| series.buckets.len()).sum();
    assert_eq!(history.buckets, held);
}

#[test]
fn the_time_a_process_was_down_counts_as_no_calls() {
    let mut history = history(&LoopConfig::default(), &[3]);
    history.advance_to(Tick(5));
    history.advance_to(Tick(2));
    assert_eq!(history.now(), Tick(5));
    assert_eq!(history.view().calls(Tick(4)), [[3.0, 0.0, 0.0, 0.0]]);
    assert!((history.stats(&key("embed", 0)).unwrap().calls_per_tick.mean - 0.75).abs() < 1e-9);
}

#[test]
fn what_one_query_calls_is_known_to_go_together() {
    let mut history = History::new(&LoopConfig::default());
    history.record(&call("embed", 0, 1, 1));
    history.record(&call("embed", 1, 1, 1));
    let target = |ordinal| (ExpressionId(u128::MAX - 7), PartitionId::new("trades", ordinal));
    assert_eq!(history.together(&target(0), &target(1)), 1);
}

#[test]
fn bytes_that_are_no_history_are_an_error_that_says_so() {
    let config = LoopConfig::default();
    let whole = history(&config, &[1, 1]).save();
    let error = History::load(&config, &whole[..whole.len() - 1]).unwrap_err();
    assert_eq!(error.to_string(), "stored history is unreadable: the checksum is another one");
    let error = History::load(&config, b"{\"version\":1}").unwrap_err();
    assert_eq!(error.to_string(), "stored history has version 1; it must be 2");
    assert_eq!((error.code(), error.is_retryable()), ("FS-HISTORY-2", false));
    for bytes in [&b""[..], b"FSHI", b"FSHI\x02\0\0\0", b"something else"] {
        assert_eq!(History::load(&config, bytes).unwrap_err().code(), "FS-HISTORY-1", "{bytes:?}");
    }
    for damaged in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[damaged] ^= 0x10;
        assert!(History::load(&config, &bytes).is_err(), "byte {damaged}");
    }
}

#[test]
fn calls_that_are_counted_again_from_sums_give_the_same_series() {
    let config = LoopConfig::default();
    let (mut live, mut again) = (History::new(&config), History::new(&config));
    let mut timeline = Timeline::new(100);
    for tick in 1..=20 {
        for ordinal in 0..tick % 3 {
            let call =
                CallRecord { at_ms: 1_000 * u64::from(tick), ..call("embed", ordinal, 9, 5) };
            live.record(&call);
            timeline.record(&call, call.at_ms);
        }
        live.close_tick();
        for row in timeline.flush(1_000 * u64::from(tick)) {
            again.replay(row.key, &row.summary);
        }
        again.close_tick();
    }
    let (live, again): (Vec<_>, Vec<_>) = (live.iter().collect(), again.iter().collect());
    assert_eq!(live, again);
}

#[test]
fn a_hundred_thousand_series_take_less_than_a_kilobyte_each() {
    let config = LoopConfig::default().with_series_max(100_000).unwrap();
    let mut history = History::new(&config);
    let table: Arc<str> = "trades".into();
    for ordinal in 0..100_000 {
        let partition = PartitionId { table: table.clone(), ordinal };
        for ns_per_row in [50, 90, 4_000] {
            history.record(&CallRecord {
                partition: partition.clone(),
                ..call("embed", 0, 1, ns_per_row)
            });
        }
        if ordinal % 50_000 == 0 {
            history.close_tick();
        }
    }
    history.close_tick();
    let bytes = history.bytes_held() / 100_000;
    assert!((500..1_024).contains(&bytes), "{bytes} bytes for each");
}

#[test]
fn series_beyond_the_bound_take_no_more_than_the_tail() {
    let config = LoopConfig::default().with_series_max(100).unwrap();
    let mut history = History::new(&config);
    let record = |history: &mut History, ordinal| history.record(&call("embed", ordinal, 1, 1));
    (0..2_000).for_each(|ordinal| record(&mut history, ordinal));
    let before = history.bytes_held();
    (2_000..20_000).for_each(|ordinal| record(&mut history, ordinal));
    assert!(history.bytes_held() <= before + 8_192, "{} after {before}", history.bytes_held());
    let held: u64 = history.iter().map(|(_, stats)| stats.calls).sum();
    assert_eq!(held + history.tail().calls, 20_000);
}

proptest! {
    #[test]
    fn a_history_survives_a_restart(
        calls in prop::collection::vec(0u32..6, 1..60),
        more in 0u32..3,
    ) {
        let config = LoopConfig::default();
        let mut history = history(&config, &calls);
        let view = Arc::new(history.view());
        prop_assert_eq!(history.snapshot(&view).save(), history.save());
        (0..more).for_each(|_| history.record(&call("match", 3, 9, 9)));
        let mut loaded = History::load(&config, &history.save()).unwrap();
        history.close_tick();
        loaded.close_tick();
        let (a, b) = (history.view(), loaded.view());
        prop_assert_eq!(a.calls(a.at), b.calls(b.at));
        prop_assert_eq!(history.buckets, loaded.buckets);
        for ((key_a, stats_a), (key_b, stats_b)) in history.iter().zip(loaded.iter()) {
            prop_assert_eq!(key_a, key_b);
            prop_assert_eq!(stats_a.calls, stats_b.calls);
            prop_assert!((stats_a.calls_per_tick.mean - stats_b.calls_per_tick.mean).abs() < 1e-9);
        }
    }
}
