//! Sums of forecasts over partitions.

use super::*;
use crate::calls::CallRecord;
use crate::config::LoopConfig;
use crate::forecast::ensemble::repeat_current;
use crate::history::History;
use crate::ids::{ExpressionId, NodeId, PartitionId};

/// Evenly spread numbers from 0 to 1, the same each time: SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Calls per tick of `parts` series: each tick's level is drawn for all of them with weight `shared`, and
/// for each of them alone with the rest.
fn drawn(parts: usize, ticks: usize, shared: f64, dice: &mut Dice) -> Vec<Vec<f64>> {
    let mut calls = vec![vec![]; parts];
    for _ in 0..ticks {
        let all = dice.roll();
        for part in &mut calls {
            let level = if dice.roll() < shared { all } else { dice.roll() };
            part.push((20.0 * level).floor());
        }
    }
    calls
}

fn quantile(values: &[f64], level: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(level * (sorted.len() - 1) as f64).round() as usize]
}

fn quantiles(values: &[f64]) -> Quantiles {
    let [q10, q50, q90] = [0.1, 0.5, 0.9].map(|level| quantile(values, level));
    Quantiles { q10, q50, q90 }
}

#[test]
fn the_interval_of_a_sum_covers_four_out_of_five_however_much_its_parts_share() {
    for shared in [0.0, 0.5, 0.8, 1.0] {
        let mut dice = Dice(7);
        let (past, coming) =
            (drawn(24, 256, shared, &mut dice), drawn(24, 4_000, shared, &mut dice));
        let parts: Vec<_> = coming.iter().map(|part| quantiles(part)).collect();
        let total = total(&parts, dependence(&past));
        let held = (0..4_000)
            .filter(|tick| total.holds(coming.iter().map(|part| part[*tick]).sum()))
            .count();
        assert!((2_960..=3_440).contains(&held), "{shared}: {held} of 4000 in {total:?}");
    }
}

#[test]
fn what_partitions_share_is_measured() {
    let measured = |shared| dependence(&drawn(8, 256, shared, &mut Dice(3)));
    assert!(measured(0.0) < 0.1, "{}", measured(0.0));
    assert!((measured(1.0) - 1.0).abs() < 1e-9, "{}", measured(1.0));
    assert!((0.3..0.7).contains(&measured(0.7)), "{}", measured(0.7));
}

#[test]
fn parts_of_which_little_is_known_are_taken_to_go_together() {
    let short = drawn(8, TICKS_MIN - 1, 0.0, &mut Dice(3));
    let constant = vec![vec![4.0; 100]; 8];
    for parts in [vec![], short, constant, drawn(1, 100, 0.0, &mut Dice(3))] {
        assert_eq!(dependence(&parts), 1.0);
    }
}

#[test]
fn parts_that_go_together_are_summed_exactly() {
    let parts =
        [Quantiles { q10: 1.0, q50: 2.0, q90: 9.0 }, Quantiles { q10: 0.0, q50: 5.0, q90: 6.0 }];
    assert_eq!(total(&parts, 1.0), Quantiles { q10: 1.0, q50: 7.0, q90: 15.0 });
    assert_eq!(total(&parts[..1], 0.0), parts[0]);
    assert_eq!(total(&[], 0.5), Quantiles::default());
    assert_eq!(total(&parts, f64::NAN), total(&parts, 1.0));
}

#[test]
fn many_partitions_that_are_seldom_called_are_called_often_together() {
    // Three in ten ticks have one call: each median is zero, the sum's is not.
    let total = total(&[Quantiles { q10: 0.0, q50: 0.0, q90: 1.0 }; 100], 0.0);
    assert!((25.0..=35.0).contains(&total.q50), "{total:?}");
    assert!(total.q10 > 20.0 && total.q90 < 40.0, "{total:?}");
}

fn call(function: &str, table: &str, ordinal: u32) -> CallRecord {
    CallRecord {
        at_ms: 0,
        query: 1,
        function: function.into(),
        expression: ExpressionId(1),
        partition: PartitionId::new(table, ordinal),
        node: NodeId(0),
        rows: 10,
        rows_stored: 0,
        rows_fresh: 0,
        rows_fresh_stored: 0,
        ns: 0,
        waited_ns: 0,
        would_be_ns: 250_000_000,
        bytes: 80,
        traceparent: None,
    }
}

#[test]
fn a_function_is_the_sum_of_its_partitions_and_of_nothing_else() {
    let config = LoopConfig::default();
    let mut history = History::new(&config);
    for _ in 0..4 {
        for (function, table, calls) in [("f", "t", 3), ("f", "u", 5), ("g", "t", 100)] {
            for ordinal in 0..2 {
                (0..calls).for_each(|_| history.record(&call(function, table, ordinal)));
            }
        }
        history.close_tick();
    }
    let view = history.view();
    let forecast = repeat_current(&view, &config);
    let all = of_function(&forecast, &view, "f", None);
    assert_eq!(all.len(), config.horizon_ticks());
    assert_eq!((all[0].tick, all[0].calls.q50), (Tick(5), 16.0));
    // Sixteen calls of a quarter of a second in one second.
    assert!((all[0].concurrency - 4.0).abs() < 1e-9, "{:?}", all[0]);
    let one = of_function(&forecast, &view, "f", Some("t"));
    assert_eq!(one[0].calls.q50, 6.0);
    assert_eq!(of_function(&forecast, &view, "h", None), vec![]);
    let past = past_calls(&view, 3, |key| &*key.function == "f");
    assert_eq!(past, [[3.0; 3], [3.0; 3], [5.0; 3], [5.0; 3]]);
}

#[test]
fn the_sum_of_a_table_that_was_forecast_by_itself_is_what_counts() {
    let config = LoopConfig::default();
    let mut history = History::new(&config);
    for _ in 0..4 {
        for (table, ordinal) in [("t", 0), ("t", 1), ("u", 0)] {
            (0..5).for_each(|_| history.record(&call("f", table, ordinal)));
        }
        history.close_tick();
    }
    let view = history.view();
    let mut forecast = repeat_current(&view, &config);
    let calls = Quantiles { q10: 7.0, q50: 9.0, q90: 14.0 };
    forecast.totals = vec![TotalForecast {
        function: "f".into(),
        table: "t".into(),
        calls: vec![calls; config.horizon_ticks()],
        standing: Default::default(),
    }];
    assert_eq!(of_function(&forecast, &view, "f", Some("t"))[0].calls, calls);
    assert_eq!(of_function(&forecast, &view, "f", Some("u"))[0].calls, Quantiles::exactly(5.0));
    assert_eq!(of_function(&forecast, &view, "f", None)[0].calls.q50, 14.0);
}
