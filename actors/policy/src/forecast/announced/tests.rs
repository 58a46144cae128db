//! Announcements, and a forecast with and without them.

use super::*;
use crate::calls::CallRecord;
use crate::config::LoopConfig;
use crate::forecast::ensemble::Ensemble;
use crate::history::History;
use crate::ids::{ExpressionId, NodeId, PartitionId};

const HOUR: u64 = 3_600_000;

fn says(factor: f64, from_ms: u64, until_ms: u64) -> Announcement {
    Announcement { function: "f".into(), factor, from_ms, until_ms }
}

fn announced(all: &[Announcement]) -> Announced {
    let mut announced = Announced::default();
    for one in all {
        announced.announce(one.clone(), 0).unwrap();
    }
    announced
}

fn spans(announced: &Announced) -> Vec<(f64, u64, u64)> {
    announced.iter().map(|span| (span.factor, span.from_ms, span.until_ms)).collect()
}

#[test]
fn an_announcement_that_cannot_be_is_refused_with_value_and_bound() {
    let error = |new: Announcement| announced(&[]).announce(new, 1_000).unwrap_err().to_string();
    assert_eq!(error(says(f64::NAN, 0, 9_000)), "the factor is NaN; it must be 0.001 to 1000");
    assert_eq!(error(says(0.0, 0, 9_000)), "the factor is 0; it must be 0.001 to 1000");
    assert_eq!(
        error(says(5.0, 9_000, 8_000)),
        "the end must be after the beginning; it is 1000 ms before it"
    );
    assert_eq!(error(says(5.0, 0, 400)), "the end must be in the future; it was 600 ms ago");
}

#[test]
fn the_last_word_counts_and_a_factor_of_one_takes_back() {
    let mut announced = announced(&[says(5.0, 10, 20), says(2.0, 15, 30)]);
    assert_eq!(spans(&announced), [(5.0, 10, 15), (2.0, 15, 30)]);
    announced.announce(says(1.0, 12, 18), 0).unwrap();
    assert_eq!(spans(&announced), [(5.0, 10, 12), (2.0, 18, 30)]);
    announced.announce(says(1.0, 0, 100), 0).unwrap();
    assert_eq!(announced, Announced::default());
}

#[test]
fn functions_do_not_meet_each_other() {
    let other = Announcement { function: "g".into(), ..says(3.0, 10, 20) };
    let mut announced = announced(&[other, says(5.0, 10, 20)]);
    assert_eq!(announced.factor("f", 10, 20), 5.0);
    assert_eq!(announced.factor("g", 10, 20), 3.0);
    assert_eq!(announced.factor("h", 10, 20), 1.0);
    assert_eq!(announced.take_back("g"), 1);
    assert_eq!(announced.factor("g", 10, 20), 1.0);
    assert_eq!(spans(&announced), [(5.0, 10, 20)]);
}

#[test]
fn a_tick_that_is_announced_in_part_gets_its_part() {
    let announced = announced(&[says(5.0, 1_500, 3_000)]);
    assert_eq!(announced.factor("f", 0, 1_000), 1.0);
    assert_eq!(announced.factor("f", 1_000, 2_000), 3.0);
    assert_eq!(announced.factor("f", 2_000, 3_000), 5.0);
    assert!(announced.has("f", 1_000, 2_000) && !announced.has("f", 3_000, 4_000));
}

#[test]
fn there_is_room_for_so_many_and_what_is_over_makes_room() {
    let mut full = Announced::default();
    for number in 0..ANNOUNCEMENTS_MAX as u64 {
        full.announce(says(2.0, 10 * number, 10 * number + 5), 0).unwrap();
    }
    let before = full.clone();
    let error = full.announce(says(2.0, 1_000_000, 1_000_005), 0).unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("FS-ANNOUNCE-4", true));
    assert_eq!(full, before);
    full.forget_before(5_000);
    assert_eq!(full.iter().count(), ANNOUNCEMENTS_MAX / 2);
}

#[test]
fn announcements_survive_being_written_down_and_broken_ones_are_refused() {
    let kept = announced(&[says(5.0, 10, 20), says(2.0, 15, 30)]);
    let text = serde_json::to_string(&kept).unwrap();
    assert_eq!(serde_json::from_str::<Announced>(&text).unwrap(), kept);
    let overlapping = serde_json::to_string(&[says(5.0, 10, 20), says(2.0, 15, 30)]).unwrap();
    let error = serde_json::from_str::<Announced>(&overlapping).unwrap_err().to_string();
    assert!(error.contains("announcements of f overlap"), "{error}");
}

/// Calls of `f` on one partition, so many in each tick of an hour.
fn history(calls: &[u32]) -> HistoryView {
    history_on(1, calls)
}

/// The same on each of some partitions.
fn history_on(partitions: u32, calls: &[u32]) -> HistoryView {
    let config = LoopConfig::default().with_tick_ms(HOUR).unwrap();
    let mut history = History::new(&config);
    let call = CallRecord {
        at_ms: 0,
        query: 1,
        function: "f".into(),
        expression: ExpressionId(1),
        partition: PartitionId::new("t", 0),
        node: NodeId(0),
        rows: 10,
        rows_stored: 0,
        rows_fresh: 0,
        rows_fresh_stored: 0,
        ns: 10,
        waited_ns: 0,
        would_be_ns: 10,
        bytes: 80,
        traceparent: None,
    };
    for count in calls {
        for ordinal in 0..partitions {
            let call = CallRecord { partition: PartitionId::new("t", ordinal), ..call.clone() };
            (0..*count).for_each(|_| history.record(&call));
        }
        history.close_tick();
    }
    history.view()
}

/// Tick 1 begins at 0.
fn moments(view: &HistoryView) -> Moments {
    Moments { at: view.at, closed_ms: view.at.0 * HOUR, tick_ms: HOUR }
}

fn calls(view: &HistoryView) -> Vec<f64> {
    (1..=view.at.0).map(|tick| view.series[0].calls_at(Tick(tick))).collect()
}

#[test]
fn members_learn_from_the_calls_that_would_have_come_without_the_announced_peak() {
    let view = history(&[10, 10, 50, 50, 10]);
    let peak = announced(&[says(5.0, 2 * HOUR, 4 * HOUR)]);
    let calm = peak.calm(&view, &moments(&view)).unwrap();
    assert_eq!(calls(&calm), [10.0; 5]);
    assert_eq!(calls(&view), [10.0, 10.0, 50.0, 50.0, 10.0], "the history itself is as it was");
}

#[test]
fn a_function_that_is_seldom_called_does_not_vanish_from_what_members_learn_from() {
    let view = history(&[2; 50]);
    let calm = announced(&[says(5.0, 0, 50 * HOUR)]).calm(&view, &moments(&view)).unwrap();
    assert_eq!(calls(&calm).iter().sum::<f64>(), 20.0, "{:?}", calls(&calm));
}

#[test]
fn what_is_announced_for_later_or_of_another_function_leaves_the_history_alone() {
    let view = history(&[10; 5]);
    let other = Announcement { function: "g".into(), ..says(5.0, 0, 5 * HOUR) };
    assert!(announced(&[says(5.0, 5 * HOUR, 9 * HOUR)]).calm(&view, &moments(&view)).is_none());
    let calm = announced(&[other]).calm(&view, &moments(&view)).unwrap();
    assert_eq!(calls(&calm), calls(&view));
}

/// What an ensemble says at the end of `view`, told of `announced` or not.
fn forecast(view: &HistoryView, announced: &Announced) -> Forecast {
    let config = LoopConfig::default().with_tick_ms(HOUR).unwrap();
    let mut ensemble = Ensemble::new(&config, vec![]);
    let calm = announced.calm(view, &moments(view));
    let mut forecast = ensemble.forecast(calm.as_ref().unwrap_or(view), 6).unwrap();
    announced.put_into(&mut forecast, view, &moments(view), 1);
    forecast
}

#[test]
fn the_announced_ticks_are_expected_to_have_so_many_times_the_calls_and_no_others() {
    let view = history(&[10; 30]);
    let plain = forecast(&view, &Announced::default());
    let told = forecast(&view, &announced(&[says(5.0, 32 * HOUR, 34 * HOUR)]));
    let ratio = |of: fn(&crate::forecast::Quantiles) -> f64| -> Vec<f64> {
        let (told, plain) = (&told.series[0].calls, &plain.series[0].calls);
        told.iter().zip(plain).map(|(told, plain)| (of(told) / of(plain)).round()).collect()
    };
    assert_eq!(ratio(|q| q.q50), [1.0, 1.0, 5.0, 5.0, 1.0, 1.0]);
    assert_eq!(ratio(|q| q.q90), [1.0, 1.0, 5.0, 5.0, 1.0, 1.0]);
    assert!(told.series[0].announced && !plain.series[0].announced);
}

#[test]
fn within_the_peak_the_load_is_as_measured_and_what_follows_is_as_before_it() {
    let mut load = vec![10; 30];
    load.extend([50, 50]);
    let view = history(&load);
    let told = forecast(&view, &announced(&[says(5.0, 30 * HOUR, 34 * HOUR)]));
    let medians: Vec<f64> = told.series[0].calls.iter().map(|calls| calls.q50.round()).collect();
    assert_eq!(medians, [50.0, 50.0, 10.0, 10.0, 10.0, 10.0]);
    assert_eq!(told.series[0].calls_now, 50.0);
}

#[test]
fn the_total_of_a_table_is_announced_as_its_partitions_are() {
    let view = history_on(3, &[10; 30]);
    let plain = forecast(&view, &Announced::default());
    let told = forecast(&view, &announced(&[says(5.0, 32 * HOUR, 34 * HOUR)]));
    let totals = told.totals[0].calls.iter().zip(&plain.totals[0].calls);
    let ratios: Vec<f64> = totals.map(|(told, plain)| (told.q50 / plain.q50).round()).collect();
    assert_eq!(ratios, [1.0, 1.0, 5.0, 5.0, 1.0, 1.0]);
}
