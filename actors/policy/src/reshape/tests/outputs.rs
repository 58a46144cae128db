//! Outputs that are computed ahead, or given up.

use super::*;

#[test]
fn what_is_needed_first_is_computed_first_and_the_rest_waits() {
    let rush = [0.0, 0.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0];
    let later = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0, 9.0];
    // 400 ms of work each, 500 ms of background time a tick.
    let scene = Scene::new(1)
        .with(0, &[0], 0.0)
        .output(0, 1e6, 400, &later)
        .output(0, 1e6, 400, &rush)
        .output(0, 1e6, 400, &[0.0; 8]);
    let plan = scene.plan();
    insta::assert_snapshot!(plan, @"
    epoch 7
      precompute f2 on trades/0 (10.0 calls expected, the first within 3.0 s; 400 rows of 1 ms are missing)
      precompute f1 on trades/0 (18.0 calls expected, the first within 7.0 s; 400 rows of 1 ms are missing)
    ");
    assert_eq!(plan.steps[0].worth.benefit_ns, 4e9);
    assert_eq!(plan.steps[0].worth.cost_ns, 4e8);
}

#[test]
fn scarce_time_goes_to_what_is_worth_most_and_not_to_what_is_due_first() {
    let soon = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let later = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0];
    // 4 s of work each; until the end of the lead there are 8 times 0.5 s.
    let scene = Scene::new(1).with(0, &[0], 0.0).output(0, 1e7, 400, &soon);
    insta::assert_snapshot!(scene.plan(), @"
    epoch 7
      precompute f1 on trades/0 (1.0 calls expected, the first within 1.0 s; 400 rows of 10 ms are missing)
    ");
    insta::assert_snapshot!(scene.output(0, 1e7, 400, &later).plan(), @"
    epoch 7
      precompute f2 on trades/0 (9.0 calls expected, the first within 8.0 s; 400 rows of 10 ms are missing)
    ");
}

#[test]
fn of_outputs_needed_at_the_same_time_the_denser_comes_first() {
    let scene = Scene::new(1)
        .with(0, &[0], 0.0)
        .output(0, 1_000.0, 1_000, &[2.0; 8])
        .output(0, 9_000.0, 1_000, &[2.0; 8]);
    let order: Vec<_> = scene.plan().steps.iter().map(|it| it.step.to_string()).collect();
    assert_eq!(order, ["precompute f2 on trades/0", "precompute f1 on trades/0"]);
}

/// Three outputs of which only one is computed in a tick; the first is called next.
fn scarce() -> Scene {
    let scene = Scene::new(1).with(0, &[0], 0.0);
    scene
        .output(0, 1e6, 600, &[6.0; 8])
        .output(0, 1e6, 600, &[3.0; 8])
        .output(0, 1e6, 600, &[0.0; 8])
}

#[test]
fn when_background_time_is_scarce_a_wrong_forecast_computes_the_wrong_output() {
    let right = scarce();
    let mut wrong = scarce().mode(Mode::Inverted);
    wrong.forecast = invert(&wrong.forecast);
    insta::assert_snapshot!(format!("{}{}", right.plan(), wrong.plan()), @"
    epoch 7
      precompute f1 on trades/0 (48.0 calls expected, the first within 1.0 s; 600 rows of 1 ms are missing)
    epoch 7
      precompute f3 on trades/0 (48.0 calls expected, the first within 1.0 s; 600 rows of 1 ms are missing)
    ");
    assert_eq!(
        right.plan().steps[0].alternatives,
        ["f2 on trades/0: 24.0 calls expected, but background time is used up"]
    );
}

#[test]
fn a_node_in_debt_computes_nothing_until_it_is_paid() {
    let mut scene = scarce();
    let mut budget = BackgroundBudget::default();
    budget.refill([NodeId(0)], &scene.config);
    budget.charge(NodeId(0), &"trades".into(), 1.2e9);
    let mut idle = 0;
    loop {
        scene.state.background_ns = budget.free_ns().clone();
        if !scene.plan().steps.is_empty() {
            break;
        }
        idle += 1;
        budget.refill([NodeId(0)], &scene.config);
    }
    // 0.5 - 1.2 s are 0.7 s of debt: two ticks of 0.5 s.
    assert_eq!(idle, 2);
}

#[test]
fn a_function_cheaper_than_a_lookup_is_never_computed_ahead() {
    let scene = Scene::new(1).with(0, &[0], 0.0).output(0, 299.0, 1_000, &[50.0; 8]);
    assert_eq!(scene.plan().steps, []);
}

#[test]
fn a_state_is_found_with_one_lookup_however_cheap_its_rows_are() {
    let mut scene = Scene::new(1).with(0, &[0], 0.0).output(0, 299.0, 1_000, &[50.0; 8]);
    for output in scene.view.outputs.values_mut() {
        output.is_state = output.rows_missing > 0;
    }
    assert_eq!(scene.plan().steps.len(), 1);
}

#[test]
fn what_does_not_fit_into_memory_waits_and_what_nobody_uses_makes_room() {
    let mut scene = Scene::new(1).with(0, &[0], 300.0).output(0, 5_000.0, 1_000, &[3.0; 8]);
    scene = scene.output(0, 5_000.0, 0, &[0.0; 12]);
    scene.view.nodes.insert(NodeId(0), node(100 * MIB - 1_000));
    insta::assert_snapshot!(scene.plan(), @"
    epoch 7
      drop output f2 on trades/0 (no call expected this season; memory is 101 % taken or wanted, more than 90 %)
    ");
}

#[test]
fn an_output_that_was_used_this_season_is_kept_even_when_memory_is_short() {
    let mut scene = Scene::new(1).with(0, &[0], 300.0).output(0, 5_000.0, 0, &[0.0; 12]);
    scene.view.nodes.insert(NodeId(0), node(99 * MIB));
    assert_eq!(scene.plan().steps.len(), 1);
    scene.forecast.series.iter_mut().for_each(|series| series.calls_season = 1.0);
    assert_eq!(scene.plan().steps, []);
}
