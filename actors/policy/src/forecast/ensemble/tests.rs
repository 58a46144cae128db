//! The ensemble on loads with a rhythm, without one, and with one that deceives.

use super::*;
use crate::calls::CallRecord;
use crate::forecast::{Effort, FitReport};
use crate::history::{History, Succession};
use crate::ids::{ExpressionId, NodeId, PartitionId};
use proptest::prelude::*;

fn call(ordinal: u32) -> CallRecord {
    CallRecord {
        at_ms: 0,
        query: 1,
        function: "embed".into(),
        expression: ExpressionId(1),
        partition: PartitionId::new("trades", ordinal),
        node: NodeId(0),
        rows: 100,
        rows_stored: 0,
        rows_fresh: 0,
        rows_fresh_stored: 0,
        ns: 100_000,
        waited_ns: 0,
        would_be_ns: 100_000,
        bytes: 800,
        traceparent: None,
    }
}

/// The loop as the predictor turns it, tick by tick.
struct Turning {
    history: History,
    ensemble: Ensemble,
}

impl Turning {
    fn new(config: &LoopConfig, more: Vec<Box<dyn Member>>) -> Self {
        Self { history: History::new(config), ensemble: Ensemble::new(config, more) }
    }

    fn tick(&mut self, calls: &[u32]) -> Forecast {
        for (ordinal, count) in (0..).zip(calls) {
            (0..*count).for_each(|_| self.history.record(&call(ordinal)));
        }
        self.history.close_tick();
        let view = self.history.view();
        self.ensemble.observe(&view);
        for (name, report) in self.ensemble.fit(&view, Effort::steps(0)) {
            assert!(report.is_ok() || name == "broken");
        }
        self.ensemble.forecast(&view, 12).unwrap()
    }

    fn ticks(&mut self, count: usize, mut calls: impl FnMut(usize) -> Vec<u32>) -> Forecast {
        let now = self.history.now().0 as usize;
        (now..now + count).map(|tick| self.tick(&calls(tick))).last().unwrap()
    }
}

fn config(season: Option<usize>) -> LoopConfig {
    LoopConfig::default().with_season_ticks(season).unwrap()
}

/// Partition 0 is called 6 times in ticks 30 to 34 of every 60, partition 1 in ticks 5 to 9.
fn days(tick: usize) -> Vec<u32> {
    let busy = |from: usize| if (from..from + 5).contains(&(tick % 60)) { 6 } else { 0 };
    vec![busy(30), busy(5)]
}

fn dice(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn the_second_day_is_expected_after_the_first_when_the_season_is_configured() {
    let mut turning = Turning::new(&config(Some(60)), Vec::new());
    let forecast = turning.ticks(60 + 26, days);
    // Tick 86 is over; the rush is ticks 90 to 94.
    let [rush, quiet] = &forecast.series[..] else { panic!("two series") };
    let in_ticks = rush.needed_in();
    assert!(in_ticks.is_some_and(|ticks| (3..=5).contains(&ticks)), "{in_ticks:?}");
    assert!(rush.expected_calls(8) > 3.0, "{}", rush.expected_calls(8));
    assert!(quiet.expected_calls(8) < 0.5, "{}", quiet.expected_calls(8));
    assert!(forecast.trusted, "skill {}", forecast.skill);
}

#[test]
fn a_season_that_nobody_configured_is_found_and_used() {
    let mut turning = Turning::new(&config(None), Vec::new());
    let forecast = turning.ticks(5 * 60 + 26, days);
    assert_eq!(forecast.season_ticks, Some(60));
    let rush = &forecast.series[0];
    assert!(rush.expected_calls(8) > 15.0, "{}", rush.expected_calls(8));
    let naive = rush.weights.iter().find(|(name, _)| name == "naive").unwrap().1;
    assert!(naive < 0.1, "{:?}", rush.weights);
    assert!(forecast.trusted && forecast.skill > 0.1, "skill {}", forecast.skill);
}

#[test]
fn a_function_with_another_body_is_trusted_as_the_former_was() {
    let mut turning = Turning::new(&config(Some(60)), Vec::new());
    let before = turning.ticks(5 * 60 + 26, days);
    let are_known = |forecast: &Forecast| {
        forecast.series.iter().all(|it| matches!(it.standing, Standing::Season { .. }))
    };
    assert!(are_known(&before), "{before:?}");
    let (from, to) = (ExpressionId(1), ExpressionId(2));
    turning.history.follow(&Succession::Redefined { from, to });
    // Nobody calls it in this tick.
    let after = turning.tick(&[]);
    assert!(after.series.iter().all(|series| series.key.expression == to));
    assert!(are_known(&after), "{after:?}");
    assert!(after.series[0].expected_calls(8) > 3.0);
    let long_after = (0..20).map(|_| turning.tick(&[])).last().unwrap();
    assert_eq!(long_after.series.len(), 2, "it is told of once");
}

#[test]
fn a_load_that_never_changes_is_trusted_within_a_dozen_ticks() {
    let mut turning = Turning::new(&config(None), Vec::new());
    let forecast = turning.ticks(12, |_| vec![5]);
    let series = &forecast.series[0];
    assert_eq!(series.standing, Standing::Steady, "{:?}", series.calls[0]);
    assert!(series.calls.iter().all(|tick| (tick.q50 - 5.0).abs() < 0.1), "{:?}", series.calls);
    assert!(forecast.trusted, "skill {}", forecast.skill);
}

#[test]
fn on_a_random_walk_it_is_about_as_good_as_repeating_the_last_tick() {
    let mut seed = 5;
    let mut level: f64 = 60.0;
    let walk: Vec<u32> = (0..500)
        .map(|_| {
            level = (level + 8.0 * (dice(&mut seed) - 0.5)).clamp(10.0, 200.0);
            level as u32
        })
        .collect();
    let mut turning = Turning::new(&config(None), Vec::new());
    let forecast = turning.ticks(499, |tick| vec![walk[tick]]);
    assert!(forecast.skill > -0.03, "skill {}", forecast.skill);
    assert_eq!(forecast.season_ticks, None);
}

#[test]
fn a_load_that_does_the_opposite_of_yesterday_costs_the_trust() {
    let mut turning = Turning::new(&config(Some(20)), Vec::new());
    let opposite = |tick: usize| {
        let hot = (tick / 20 + tick / 10).is_multiple_of(2);
        vec![if hot { 40 } else { 0 }]
    };
    let mut distrusted = 0;
    for tick in 1..200 {
        distrusted += u32::from(!turning.tick(&opposite(tick)).trusted);
    }
    let forecast = turning.tick(&opposite(200));
    let seasonal =
        forecast.series[0].weights.iter().find(|(name, _)| name == "seasonal_naive").unwrap().1;
    assert!(seasonal < 0.05, "{:?}", forecast.series[0].weights);
    assert!(distrusted > 20, "{distrusted} of 199 ticks");
}

#[test]
fn four_out_of_five_ticks_fall_into_the_interval() {
    let mut seed = 9;
    let load: Vec<u32> = (0..900)
        .map(|tick| {
            let phase = f64::from(tick) / 48.0 * std::f64::consts::TAU;
            (40.0 + 30.0 * phase.sin() + 20.0 * (dice(&mut seed) - 0.5)) as u32
        })
        .collect();
    let mut turning = Turning::new(&config(Some(48)), Vec::new());
    let mut last: Option<Forecast> = None;
    let mut inside = 0;
    for (tick, calls) in load.iter().enumerate() {
        if let Some(before) = &last
            && tick >= 500
        {
            inside += u32::from(before.series[0].calls[0].holds(f64::from(*calls)));
        }
        last = Some(turning.tick(&[*calls]));
    }
    assert!((290..=350).contains(&inside), "{inside} of 400");
}

/// Knows the future, or fails.
#[derive(Clone, Copy)]
struct Scripted(&'static str, Option<fn(u64) -> f64>);

impl Member for Scripted {
    fn name(&self) -> &'static str {
        self.0
    }
    fn fit(
        &mut self,
        _: &Window<'_>,
        _: &[usize],
        _: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        match self.1 {
            Some(_) => Ok(FitReport::default()),
            None => Err(ForecastError::Numeric { member: self.0, reason: "diverged".into() }),
        }
    }
    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let Some(calls) = self.1 else {
            return Err(ForecastError::Numeric { member: self.0, reason: "diverged".into() });
        };
        let ticks =
            horizons.iter().map(|ahead| Quantiles::exactly(calls(window.at.0 + *ahead as u64)));
        let ticks: Vec<_> = ticks.collect();
        Ok(vec![ticks; window.series.len()])
    }
    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        Ok(Box::new(*self))
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        Ok(self.0.as_bytes().to_vec())
    }
    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        assert_eq!(state, self.0.as_bytes());
        Ok(())
    }
}

fn future(tick: u64) -> f64 {
    (tick * tick % 17) as f64
}

#[test]
fn a_member_from_outside_that_is_right_gets_the_weight_and_a_broken_one_is_left_out() {
    let more: Vec<Box<dyn Member>> =
        vec![Box::new(Scripted("oracle", Some(future))), Box::new(Scripted("broken", None))];
    let mut turning = Turning::new(&config(None), more);
    let forecast = turning.ticks(100, |tick| vec![future(tick as u64) as u32]);
    let weights: BTreeMap<_, _> = forecast.series[0].weights.iter().cloned().collect();
    assert!(weights["oracle"] > 0.9, "{weights:?}");
    assert_eq!(weights["broken"], 0.0);
    assert!(forecast.skill > 0.5, "{}", forecast.skill);
}

#[test]
fn it_forecasts_the_same_after_a_restart() {
    let more = || -> Vec<Box<dyn Member>> { vec![Box::new(Scripted("oracle", Some(future)))] };
    let mut turning = Turning::new(&config(None), more());
    turning.ticks(200, days);
    let view = turning.history.view();
    let mut restarted = Ensemble::new(&config(None), more());
    restarted.load(&turning.ensemble.save().unwrap()).unwrap();
    let (a, b) =
        (turning.ensemble.forecast(&view, 12).unwrap(), restarted.forecast(&view, 12).unwrap());
    assert_eq!((a.season_ticks, a.trusted), (b.season_ticks, b.trusted));
    let total = |forecast: &Forecast| forecast.total("embed", "trades").unwrap().calls[5].mean();
    assert!(total(&a) > 0.0 && (total(&a) - total(&b)).abs() < 1e-6, "sums are weighed as before");
    for (a, b) in a.series.iter().zip(&b.series) {
        for (a, b) in a.calls.iter().zip(&b.calls) {
            assert!((a.q50 - b.q50).abs() < 1e-6 && (a.q90 - b.q90).abs() < 1e-6);
        }
    }
}

#[test]
fn a_state_that_is_none_is_refused_and_one_of_other_members_is_read_without_their_weights() {
    let mut ensemble = Ensemble::new(&config(None), Vec::new());
    let error = ensemble.load(b"{}").unwrap_err();
    assert_eq!(error.code(), "FS-FORECAST-1");
    assert!(error.to_string().starts_with("state of member ensemble is unusable: "), "{error}");
    let more: Vec<Box<dyn Member>> = vec![Box::new(Scripted("oracle", Some(future)))];
    let mut turning = Turning::new(&config(None), more);
    turning.ticks(50, days);
    assert_eq!(ensemble.load(&turning.ensemble.save().unwrap()), Ok(()));
    assert_eq!(ensemble.mixer.known.len(), 0);
}

#[test]
fn upside_down_the_hottest_series_becomes_the_coldest() {
    let mut turning = Turning::new(&config(None), Vec::new());
    let forecast = turning.ticks(30, |_| vec![9, 4, 1]);
    let turned = invert(&forecast);
    let medians: Vec<_> = turned.series.iter().map(|series| series.calls[0].q50.round()).collect();
    assert_eq!(medians, [1.0, 6.0, 9.0]);
    assert_eq!(turned.trusted, forecast.trusted);
    assert_eq!(turned.series[0].calls_season, forecast.series[2].calls_season);
    assert_eq!(invert(&Forecast::default()), Forecast::default());
}

#[test]
fn in_mode_reactive_every_tick_is_like_the_last_few_and_never_trusted() {
    let mut turning = Turning::new(&config(None), Vec::new());
    turning.ticks(30, |tick| vec![if tick > 28 { 9 } else { 3 }]);
    let forecast = repeat_current(&turning.history.view(), &config(None));
    assert_eq!(forecast.series[0].calls, [Quantiles::exactly(7.0); 12]);
    assert!(!forecast.trusted);
}

#[test]
fn every_tick_of_a_long_forecast_lies_between_those_that_members_were_asked_for() {
    let asked = asked(1_000, 5);
    assert!(asked.len() <= 40 && asked[..16].iter().copied().eq(1..=16) && asked.contains(&1_000));
    let outlook = |ahead: &usize| Outlook {
        quantiles: Quantiles::exactly(*ahead as f64),
        ..Outlook::default()
    };
    let outlooks: Vec<Outlook> = asked.iter().map(outlook).collect();
    let calls = interpolated(&asked, &outlooks, 1_000);
    assert_eq!(calls.len(), 1_000);
    assert!(calls.windows(2).all(|pair| pair[0].q50 < pair[1].q50));
    assert!((calls[999].q50 - 1_000.0).abs() < 1e-6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_the_load_quantiles_are_in_order_and_weights_sum_to_one(
        load in prop::collection::vec(prop::collection::vec(0u32..40, 3), 1..60),
        season in prop::option::of(2usize..20),
    ) {
        let mut turning = Turning::new(&config(season), Vec::new());
        for calls in &load {
            let forecast = turning.tick(calls);
            prop_assert!(forecast.skill.is_finite());
            for series in &forecast.series {
                prop_assert_eq!(series.calls.len(), 12);
                for tick in &series.calls {
                    prop_assert!(tick.q10 >= 0.0 && tick.q90.is_finite());
                    prop_assert!(tick.q10 <= tick.q50 && tick.q50 <= tick.q90);
                }
                let sum: f64 = series.weights.iter().map(|(_, weight)| weight).sum();
                prop_assert!((sum - 1.0).abs() < 1e-9);
            }
        }
    }
}

/// Eight partitions that are called now and then, more often in half of each twenty ticks.
fn thin(seed: &mut u64, tick: usize) -> Vec<u32> {
    let chance = if tick % 20 < 10 { 0.6 } else { 0.15 };
    (0..8).map(|_| u32::from(dice(seed) < chance)).collect()
}

#[test]
fn a_total_is_what_its_partitions_add_up_to() {
    let mut seed = 11;
    let mut turning = Turning::new(&config(None), Vec::new());
    let forecast = turning.ticks(60, |tick| {
        let hot = 6 + (tick % 10) as u32;
        thin(&mut seed, tick).iter().map(|calls| calls + hot).collect()
    });
    let total = forecast.total("embed", "trades").unwrap();
    assert_eq!(total.calls.len(), 12);
    for ahead in 0..12 {
        let parts: f64 = forecast.series.iter().map(|series| series.calls[ahead].mean()).sum();
        let total = total.calls[ahead].mean();
        assert!((parts - total).abs() < 1e-6 * total, "{ahead}: {parts} and {total}");
    }
    assert_eq!(forecast.total("embed", "quotes"), None);
    assert_eq!(turning.tick(&[3]).totals.len(), 1, "the others are still known");
}

#[test]
fn the_rhythm_of_a_sum_is_found_where_each_partition_is_mostly_noise() {
    let mut seed = 3;
    let mut turning = Turning::new(&config(None), Vec::new());
    turning.ticks(160, |tick| thin(&mut seed, tick));
    let (mut together, mut apart) = (0.0, 0.0);
    for _ in 0..40 {
        let tick = turning.history.now().0 as usize;
        let forecast = turning.tick(&thin(&mut seed, tick));
        let ahead = 6;
        let truth: f64 = if (tick + ahead) % 20 < 10 { 8.0 * 0.6 } else { 8.0 * 0.15 };
        let said = forecast.total("embed", "trades").unwrap().calls[ahead - 1].mean();
        let level = forecast.series.iter().map(|series| series.calls_now).sum::<f64>();
        together += (said - truth).abs();
        apart += (level - truth).abs();
    }
    assert!(together < 0.28 * apart, "missed {together}, repeating the level misses {apart}");
}
