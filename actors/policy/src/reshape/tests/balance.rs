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
