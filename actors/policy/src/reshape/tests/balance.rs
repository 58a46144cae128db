//! Load moves from busy nodes to calm ones, step by step, and each step is worth it.

use super::*;

/// Load of each live node in busy ms per s and CPU, if replicas share evenly.
fn levels(view: &ClusterView, busy_ms: &BTreeMap<PartitionId, f64>) -> BTreeMap<NodeId, f64> {
    let mut levels: BTreeMap<NodeId, f64> = view.nodes.keys().map(|node| (*node, 0.0)).collect();
    for id in view.partitions.keys() {
        let holders = live(view, id);
        for node in &holders {
            let share = busy_ms.get(id).copied().unwrap_or(0.0) / holders.len() as f64;
            *levels.get_mut(node).unwrap() += share / f64::from(view.nodes[node].cpu_permits);
        }
    }
    levels
}

fn waiting(levels: &BTreeMap<NodeId, f64>) -> f64 {
    levels.values().map(|level| level * level).sum()
}

fn busy_ms(scene: &Scene) -> BTreeMap<PartitionId, f64> {
    let mut busy = BTreeMap::new();
    for series in &scene.forecast.series {
        let ms_per_s = series.ns_per_call / 1e6;
        *busy.entry(series.key.partition.clone()).or_insert(0.0) += series.calls_now * ms_per_s;
    }
    busy
}

/// Three nodes of which the first carries 1.8 times the mean.
fn uneven() -> Scene {
    Scene::new(3)
        .with(0, &[0], 500.0)
        .with(1, &[0], 450.0)
        .with(2, &[0], 400.0)
        .with(3, &[0], 300.0)
        .with(4, &[1], 500.0)
        .with(5, &[2], 600.0)
}

#[test]
fn load_moves_from_the_busiest_node_to_the_calmest_until_it_is_even_enough() {
    insta::assert_snapshot!(uneven().plan(), @"
    epoch 8
      move trades/0 n0 -> n1 (uneven: n0 carries 825 ms/s per CPU expected, 1.80 times the mean; this takes 500 ms/s off it)
      move trades/3 n0 -> n2 (uneven: n0 carries 575 ms/s per CPU expected, 1.25 times the mean; this takes 300 ms/s off it)
    ");
}

#[test]
fn a_partition_that_is_most_of_a_nodes_load_gets_a_copy() {
    let mut scene = Scene::new(2).with(0, &[0], 900.0).with(1, &[0], 20.0).with(2, &[1], 200.0);
    let config = scene.config.reshape().clone().with_copy_above(2_000.0).unwrap();
    scene.config = scene.config.with_reshape(config).unwrap();
    insta::assert_snapshot!(scene.plan(), @"
    epoch 8
      copy trades/0 n0 -> n1 (uneven: n0 carries 460 ms/s per CPU expected, 1.64 times the mean; this takes 450 ms/s off it)
    ");
}

#[test]
fn in_some_windows_steps_that_even_loads_out_are_held_back_and_nothing_else_is() {
    let mut scene = uneven().with(6, &[9], 10.0);
    scene.state.known = ["move"].into();
    let with_share = |share: f64| {
        let mut scene = scene.clone();
        let feedback = scene.config.feedback().clone().with_holdback_share(share).unwrap();
        scene.config = scene.config.with_feedback(feedback).unwrap();
        scene
    };
    let some = with_share(0.5);
    let tick = (0..).step_by(24).find(|tick| !some.plan_at(*tick).held_back.is_empty()).unwrap();
    assert_eq!(tick, 72);
    insta::assert_snapshot!(some.plan_at(tick), @"
    epoch 8
      copy trades/6 store -> n1 (no live node holds it: load it from the store)
      held back: move trades/0 n0 -> n1 (held back until tick 95 to measure what such steps spare: 50 % of the time (feedback.holdback-share))
    ");
    let taken = with_share(0.0).plan_at(tick);
    assert_eq!((taken.steps.len(), taken.held_back.len()), (2, 0));
    let kept: Vec<Step> = some.plan_at(tick).held_back.into_iter().map(|it| it.step).collect();
    assert!(kept.iter().all(|step| taken.steps.iter().any(|it| it.step == *step)));
    let mut unknown = some.clone();
    unknown.state.known.clear();
    assert_eq!(unknown.plan_at(tick), taken, "a kind of which little is known is not held back");
}

#[test]
fn a_step_is_worth_less_the_less_is_certain_to_come() {
    let mut scene = uneven();
    for series in &mut scene.forecast.series {
        for calls in &mut series.calls {
            (calls.q10, calls.q90) = (0.5 * calls.q50, 1.5 * calls.q50);
        }
    }
    let planned = &scene.plan().steps[0];
    let expected = planned.reason.expected().unwrap();
    assert_eq!(expected.mean_ns, planned.worth.benefit_ns);
    let sure = uneven().plan().steps[0].reason.expected().unwrap();
    assert!(sure.low_ns == sure.mean_ns && (sure.mean_ns / expected.mean_ns - 1.0).abs() < 1e-9);
    assert!(expected.low_ns < 0.6 * expected.mean_ns && expected.high_ns > 1.1 * expected.mean_ns);
    // Less waits on n0 (825 ms/s per CPU are 325), more on n1 (250 are 500): tasks, in 12 s.
    let wait = crate::queueing::waiting;
    let spared = wait(1.65, 2.0) - wait(1.15, 2.0) + wait(0.5, 2.0) - wait(1.0, 2.0);
    assert!((expected.mean_ns / 12e9 - spared).abs() < 1e-9, "{expected:?} {spared}");
}

#[test]
fn what_is_even_enough_or_calm_stays_where_it_is() {
    let even = Scene::new(2).with(0, &[0], 590.0).with(1, &[0], 150.0).with(2, &[1], 450.0);
    assert_eq!(even.with(3, &[1], 20.0).plan().steps, []);
    let calm = Scene::new(2).with(0, &[0], 300.0).with(1, &[0], 290.0);
    assert_eq!(calm.plan().steps, []);
}

#[test]
fn a_node_that_comes_gets_load_and_a_node_that_leaves_gets_none() {
    let mut scene = Scene::new(4).with(0, &[0], 550.0).with(1, &[0], 550.0).with(2, &[1], 590.0);
    scene = scene.with(3, &[1], 500.0);
    scene.view.nodes.get_mut(&NodeId(2)).unwrap().draining = true;
    insta::assert_snapshot!(scene.plan(), @"
    epoch 8
      move trades/0 n0 -> n3 (uneven: n0 carries 550 ms/s per CPU expected, 1.51 times the mean; this takes 550 ms/s off it)
      copy trades/3 n1 -> n0 (uneven: n1 carries 545 ms/s per CPU expected, 1.49 times the mean; this takes 250 ms/s off it)
    ");
}

#[test]
fn both_ends_of_a_move_rest_afterwards() {
    let mut scene = uneven();
    scene.state.traded.insert(NodeId(1), Tick(100));
    let targets = |tick: u64| -> Vec<NodeId> {
        let steps = scene.plan_at(tick).steps;
        let to = steps.iter().filter_map(|it| match it.step {
            Step::Move { to, .. } => Some(to),
            _ => None,
        });
        to.collect()
    };
    assert!(!targets(102).contains(&NodeId(1)), "{:?}", targets(102));
    assert!(targets(103).contains(&NodeId(1)), "{:?}", targets(103));
    let mut scene = uneven();
    scene.state.traded.insert(NodeId(0), Tick(100));
    assert_eq!(scene.plan_at(102).steps, []);
}

#[test]
fn moves_under_way_count_as_done() {
    let mut scene = uneven();
    scene.state.in_flight = scene.plan().steps.into_iter().map(|it| it.step).collect();
    assert!(!scene.state.in_flight.is_empty());
    assert_eq!(scene.plan().steps, []);
}

#[test]
fn what_would_take_longer_to_copy_than_it_spares_stays() {
    let mut scene = uneven();
    for part in scene.view.partitions.values_mut() {
        part.bytes = 1 << 40;
    }
    scene.view.nodes.values_mut().for_each(|node| node.memory_bytes_max = 1 << 50);
    assert_eq!(scene.plan().steps, []);
}

proptest! {
    #[test]
    fn each_step_evens_loads_out_and_leaves_no_node_busier_than_the_busiest_was(scene in scenes()) {
        let busy = busy_ms(&scene);
        let mut view = scene.view.clone();
        for planned in scene.plan().steps {
            let before = levels(&view, &busy);
            view.apply(&planned.step);
            if !matches!(planned.reason, Reason::Uneven { .. }) {
                continue;
            }
            let after = levels(&view, &busy);
            let most = |levels: &BTreeMap<NodeId, f64>| {
                levels.values().copied().fold(0.0, f64::max)
            };
            prop_assert!(most(&after) <= most(&before) + 1e-9);
            prop_assert!(waiting(&after) < waiting(&before), "{}", planned.step);
        }
    }
}
