//! What people say of tables is obeyed by every plan.

use super::*;

fn controlled(mut scene: Scene, control: Control) -> Scene {
    scene.state.controls.set("trades", Some(control));
    scene
}

fn busy() -> Scene {
    Scene::new(2).with(0, &[0], 900.0).output(0, 5_000.0, 1_000, &[3.0; 8])
}

#[test]
fn steps_on_a_table_that_waits_for_approval_are_suggested_and_not_taken() {
    insta::assert_snapshot!(controlled(busy(), Control::Suggest).plan(), @"
    epoch 7
      suggested: precompute f1 on trades/0 (24.0 calls expected, the first within 1.0 s; 1000 rows of 5.0 us are missing)
      suggested: copy trades/0 n0 -> n1 (hot: 915 ms/s per replica expected, more than 600 ms/s)
    ");
}

#[test]
fn nothing_is_planned_for_an_observed_or_frozen_table_but_repairs() {
    assert_eq!(controlled(busy(), Control::Observe).plan().steps, []);
    let mut frozen = controlled(busy().with(1, &[9], 10.0), Control::Suggest);
    frozen.state.controls.freeze("trades");
    insta::assert_snapshot!(frozen.plan(), @"
    epoch 8
      copy trades/1 store -> n1 (no live node holds it: load it from the store)
    ");
    frozen.state.controls.unfreeze("trades");
    assert_eq!(frozen.plan().suggested.len(), 2);
}

#[test]
fn one_table_waits_for_approval_while_another_goes_on() {
    let mut scene = busy();
    let other = PartitionId::new("quotes", 0);
    let view = scene.view.partitions[&part(0)].clone();
    scene.view.partitions.insert(other.clone(), view);
    let mut series = scene.forecast.series[0].clone();
    series.key.partition = other;
    scene.forecast.series.push(series);
    scene.forecast.series.sort_by(|a, b| a.key.cmp(&b.key));
    insta::assert_snapshot!(controlled(scene, Control::Suggest).plan(), @"
    epoch 8
      copy quotes/0 n0 -> n1 (hot: 900 ms/s per replica expected, more than 600 ms/s)
      suggested: precompute f1 on trades/0 (24.0 calls expected, the first within 1.0 s; 1000 rows of 5.0 us are missing)
      suggested: copy trades/0 n0 -> n1 (hot: 915 ms/s per replica expected, more than 600 ms/s)
    ");
}

#[test]
fn what_was_undone_is_not_planned_again_yet_and_everything_else_is() {
    let mut scene = busy();
    let plan = scene.plan();
    assert_eq!(plan.steps.len(), 2);
    scene.state.avoided.insert(plan.steps[0].step.aim());
    assert_eq!(scene.plan().steps, plan.steps[1..]);
    scene.state.avoided.insert(plan.steps[1].step.aim());
    assert_eq!(scene.plan().steps, []);
}

#[test]
fn what_is_not_trusted_must_be_wanted_more_and_what_is_stopped_takes_a_few_steps_only() {
    let mut scene = busy().with(1, &[0], 700.0).output(1, 5_000.0, 1_000, &[2.0; 8]);
    let kinds = |scene: &Scene| {
        let plan = scene.plan();
        let kinds = plan.steps.iter().map(|it| it.step.kind());
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(kinds(&scene), ["precompute", "precompute", "copy", "copy"]);
    let whole = scene.plan();
    let mut trust = |kind, factor, steps_left| {
        scene.state.trust.insert(kind, Trusted { factor, steps_left });
        scene.plan()
    };
    let half = trust("precompute", 0.5, None);
    assert_eq!(half.steps[0].worth.benefit_ns, 0.5 * whole.steps[0].worth.benefit_ns);
    assert!(half.steps[0].inputs.ends_with(", trusted 0.50"), "{}", half.steps[0].inputs);
    assert_eq!(trust("precompute", 0.1, Some(1)).steps.len(), 3);
    assert_eq!(trust("precompute", 0.1, Some(0)).steps.len(), 2);
    let copies = trust("copy", 0.8, None);
    insta::assert_snapshot!(copies, @"
    epoch 8
      copy trades/0 n0 -> n1 (hot: 915 ms/s per replica expected, more than 750 ms/s)
      copy trades/1 n0 -> n1 (uneven: n0 carries 584 ms/s per CPU expected, 1.44 times the mean; this takes 355 ms/s off it)
    ");
    trust("move", 0.1, Some(0));
    assert_eq!(trust("copy", 0.1, Some(0)).steps, []);
    assert_eq!(trust("copy", 1.0, Some(1)).steps.len(), 1);
}

/// Copies take 8 MiB each.
fn limited(mut scene: Scene, mib_per_hour: u64) -> Scene {
    let reshape = scene.config.reshape().clone();
    let reshape = reshape.with_moved_bytes_per_hour_max(mib_per_hour * MIB).unwrap();
    scene.config = scene.config.with_reshape(reshape).unwrap();
    scene
}

#[test]
fn copies_wait_once_the_bytes_of_the_hour_are_used_up_and_repairs_do_not() {
    let scene = Scene::new(2).with(0, &[0], 700.0).with(1, &[1], 900.0).with(2, &[9], 10.0);
    insta::assert_snapshot!(limited(scene.clone(), 20).plan(), @"
    epoch 8
      copy trades/2 store -> n0 (no live node holds it: load it from the store)
      copy trades/1 n1 -> n0 (hot: 900 ms/s per replica expected, more than 600 ms/s)
      waiting: copy trades/0 n0 -> n1 (8388608 bytes to copy, 4194304 of the 20971520 of an hour are left (reshape.moved-bytes-per-hour-max))
    ");
    let mut later = limited(scene, 20);
    later.state.moved.charge(Tick(100), 20 * MIB, &later.config);
    let plan = later.plan();
    assert_eq!((plan.steps.len(), plan.waiting.len()), (1, 2), "{plan}");
    assert_eq!(
        plan.waiting[0].inputs,
        "holders [n1], 1000 rows, 8388608 bytes; hot: 900 ms/s per replica expected, more than 600 ms/s"
    );
    let hour_later = later.plan_at(100 + 3_720);
    assert_eq!((hour_later.steps.len(), hour_later.waiting.len()), (2, 1), "{hour_later}");
}

proptest! {
    #[test]
    fn no_hour_of_plans_moves_more_for_the_sake_of_load_than_the_limit(
        scene in scenes(),
        mib in 0u64..60,
    ) {
        let mut scene = limited(scene, mib);
        let (mut moved, mut urgent) = (0.0, 0.0);
        for round in 1..40 {
            let tick = round * 20;
            let plan = scene.plan_at(tick);
            for planned in &plan.steps {
                scene.view.apply(&planned.step);
                if let Step::Copy { .. } = planned.step {
                    let bytes = planned.worth.bytes;
                    scene.state.moved.charge(Tick(tick), bytes as u64, &scene.config);
                    match planned.reason {
                        Reason::Lost | Reason::Draining { .. } => urgent += bytes,
                        _ => moved += bytes,
                    }
                }
            }
        }
        prop_assert!(moved <= (mib * MIB) as f64, "{moved} beside {urgent}");
    }

    #[test]
    fn suggestions_are_the_steps_that_would_be_taken_and_take_nothing_from_others(
        scene in scenes(),
    ) {
        let mut left_alone = scene.clone();
        left_alone.view.outputs.clear(); // Repairs leave fewer slots for outputs that are taken.
        let taken = left_alone.plan();
        let asked = controlled(left_alone, Control::Suggest).plan();
        let urgent = asked.steps.len();
        prop_assert_eq!(&asked.steps[..], &taken.steps[..urgent]);
        for planned in &asked.steps {
            let is_repair = matches!(planned.reason, Reason::Lost | Reason::Draining { .. });
            prop_assert!(is_repair, "{}", planned.step);
        }
        prop_assert!(taken.steps[urgent..].iter().all(|step| asked.suggested.contains(step)));
        let observed = controlled(scene, Control::Observe).plan();
        prop_assert_eq!(observed.suggested, vec![]);
        prop_assert_eq!(observed.steps, asked.steps);
    }
}
