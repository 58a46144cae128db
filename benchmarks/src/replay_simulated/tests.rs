//! The simulated replay against formulas, and against what each arm must come to.

use std::time::Duration;

use foreshard_actors::ports::Clock;
use foreshard_policy::ids::PartitionId;
use foreshard_policy::random::SplitMix64;

use super::scene::{Pair, Part};
use super::*;
use crate::replay::load::{Call, Shape};
use crate::replay::stage::row_ns_wanted;

/// A clock that nobody needs: what is simulated does not depend on the time.
#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now_ms(&self) -> u64 {
        0
    }

    fn monotonic_ns(&self) -> u64 {
        0
    }
}

const SHAPE: Shape =
    Shape { days: (2, 1), warm_up: 0, minutes: 16, functions: 6, partitions: 6, window: 4 };

fn costs() -> Costs {
    Costs {
        cores: 2,
        plan_ns: 2e6,
        scan_ns: 1e6,
        scan_elsewhere_ns: 2e6,
        append_ns: 5e6,
        forecast_ns: 10e6,
        learn_ns: vec![5e6; 10],
        learn_little_ns: 1e6,
        copy_ns_per_byte: 1.0,
    }
}

fn stage() -> Stage {
    let trace = season(1).unwrap();
    let tick = Duration::from_millis(1_000);
    let size = Size { shape: SHAPE, tick, demand: 2.0, calls: Some(4.0) };
    Stage::new(&trace, size, 2, row_ns_wanted(SHAPE.functions)).unwrap()
}

fn played(stage: &Stage, costs: &Costs, arms: &[Arm]) -> Judged {
    let scene = Scene::of_stage(stage);
    let learned = the_loop::learn(&scene, &stage.loop_config(Mode::Reactive).unwrap(), &|| 0);
    let learned = learned.unwrap();
    let play = |arm: &Arm| {
        let config = stage.loop_config(arm.mode()).unwrap();
        (*arm, play::play(&scene, costs, (*arm, config), &learned).unwrap())
    };
    Judged::new(stage, arms.iter().map(play).collect())
}

#[test]
fn who_knows_what_comes_gains_most_and_an_inverted_forecast_little() {
    // Learning would keep all but the reactive ones waiting for forecasts.
    let judged = played(&stage(), &Costs { learn_ns: vec![], ..costs() }, &Arm::ALL);
    let mean = |arm: Arm| {
        let answers = &judged.arm(arm).unwrap().answers;
        answers.iter().map(|answer| answer.ns as f64).sum::<f64>() / answers.len() as f64 / 1e6
    };
    let means: Vec<(Arm, f64)> = Arm::ALL.map(|arm| (arm, mean(arm))).into();
    let [oracle, forecast] = [mean(Arm::Oracle), mean(Arm::Forecast)];
    let [reactive, inverted] = [mean(Arm::Reactive), mean(Arm::Inverted)];
    assert!(oracle <= forecast && forecast < reactive, "{means:?}");
    assert!(reactive - inverted < 0.3 * (reactive - oracle), "{means:?}");
    assert!(mean(Arm::Off) > reactive, "{means:?}");
    let stored = |arm: Arm| -> u64 {
        judged.arm(arm).unwrap().minutes.iter().map(|minute| minute.rows_stored).sum()
    };
    assert_eq!(stored(Arm::Off), 0);
    assert!(stored(Arm::Oracle) > stored(Arm::Reactive));
}

#[test]
fn the_same_seed_plays_the_same_and_no_call_is_lost() {
    let (stage, arms) = (stage(), [Arm::Random, Arm::Forecast]);
    let [one, two] = [played(&stage, &costs(), &arms), played(&stage, &costs(), &arms)];
    assert_eq!(one.arms, two.arms);
    for (arm, played) in &one.arms {
        assert_eq!(played.answers.len(), stage.calls.len());
        assert!(played.answers.iter().all(|answer| answer.ns >= 3_000_000), "{arm:?}");
        assert!(played.background_ns > 0 && played.steps_failed == 0, "{arm:?}");
    }
}

#[test]
fn background_work_keeps_to_its_budget() {
    let judged = played(&stage(), &Costs { cores: 16, ..costs() }, &[Arm::Oracle]);
    let budget = BUDGET_SHARE * judged.permits * judged.tick.as_nanos() as f64;
    let used = judged.arms[0].1.background_ns as f64;
    // A step may overdraw its account, once.
    assert!(used < 1.15 * budget * judged.begins.len() as f64, "{}", used / budget);
    assert!(used > 0.0);
}

/// One function on one partition of one node, called at random.
fn one_queue(calls_a_second: f64, minutes: usize, row_ns: f64) -> Scene {
    let mut dice = SplitMix64::new(7);
    let (mut calls, mut at) = (Vec::new(), 0.0);
    loop {
        at -= (1.0 - dice.uniform()).ln() / calls_a_second;
        if at >= minutes as f64 {
            break;
        }
        calls.push(Call { minute: at as usize, at: at.fract(), pair: 0 });
    }
    let part = Part { id: PartitionId::new("t", 0), rows_kept: 1, rows_a_minute: 0.0, window: 1 };
    Scene {
        seed: 1,
        nodes: 1,
        permits: 1,
        tick: Duration::from_secs(1),
        minutes,
        warm_up: 0,
        day: 60,
        turn: minutes,
        functions: vec!["f".into()],
        parts: vec![part],
        pairs: vec![Pair { function: 0, partition: 0, row_ns }],
        past: vec![vec![1]; 20],
        opening: vec![],
        calls,
    }
}

#[test]
fn calls_wait_for_a_permit_as_long_as_the_formula_of_pollaczek_and_khinchine_says() {
    const SECONDS: f64 = 0.01;
    for utilisation in [0.3, 0.6, 0.8] {
        let scene = one_queue(utilisation / SECONDS, 400, SECONDS * 1e9);
        let config = own_config(&scene, Mode::Off).unwrap();
        let learned = the_loop::learn(&scene, &config, &|| 0).unwrap();
        let played = play::play(&scene, &Costs::NONE, (Arm::Off, config), &learned).unwrap();
        let sum: f64 = played.answers.iter().map(|answer| answer.ns as f64 / 1e9).sum();
        let waited = sum / played.answers.len() as f64 - SECONDS;
        // M/D/1: half of what M/M/1 waits.
        let formula = SECONDS * utilisation / (2.0 * (1.0 - utilisation));
        let off = (waited / formula - 1.0).abs();
        assert!(off < 0.1, "at {utilisation} it waits {waited} s, and {formula} by the formula");
    }
}

#[test]
fn a_report_of_the_real_replay_bounds_each_arm_and_one_of_another_load_is_refused() {
    let judged = played(&stage(), &costs(), &[Arm::Reactive]);
    let p95_ms = judged.time(Arm::Reactive, 0.95) / 1e6;
    let report = |calls: usize, p95_ms: f64| -> Real {
        let arm = real::RealArm { calls: calls as u64, p95_ms };
        [(("scarce".to_owned(), "reactive".to_owned()), arm)].into()
    };
    let calls = judged.calls;
    let of = |real: &Real| beside("scarce", &judged, &judged.arms[0], real);
    let holds = |off: f64| of(&report(calls, p95_ms * off)).unwrap().1.map(|it| it.holds);
    assert_eq!((holds(1.1), holds(1.5), holds(0.7)), (Some(true), Some(false), Some(false)));
    assert!(of(&Real::new()).unwrap().1.is_none());
    assert!(of(&report(2 * calls, p95_ms)).unwrap_err().to_string().contains("another load"));
}

#[test]
fn the_time_is_no_input_of_what_is_simulated() {
    let clock: SharedClock = std::sync::Arc::new(Still);
    let stage = stage();
    let one = simulated(&stage, &costs(), &[Arm::Reactive], &clock).unwrap();
    let free = Costs { forecast_ns: 0.0, learn_ns: vec![], learn_little_ns: 0.0, ..costs() };
    assert_eq!(one.arms, played(&stage, &free, &[Arm::Reactive]).arms);
}
