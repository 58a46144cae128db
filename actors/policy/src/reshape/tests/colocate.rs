//! What queries join comes to one node.

use super::*;
use crate::calls::CallRecord;
use crate::forecast::ensemble::repeat_current;
use crate::history::{History, Joined};
use crate::random::SplitMix64;

fn joined(a: u32, b: u32, queries: f64) -> Joined {
    Joined { a: part(a), b: part(b), queries }
}

fn colocating(scene: Scene, colocates: bool) -> Scene {
    let reshape = scene.config.reshape().clone().with_colocate(colocates).unwrap();
    Scene { config: scene.config.clone().with_reshape(reshape).unwrap(), ..scene }
}

#[test]
fn what_is_joined_moves_together_unless_that_is_switched_off() {
    let mut scene = Scene::new(3).with(0, &[0], 100.0).with(1, &[1], 80.0).with(2, &[2], 60.0);
    scene.forecast.joined = vec![joined(0, 1, 20.0), joined(1, 2, 10.0)];
    assert_eq!(colocating(scene.clone(), false).plan().steps, []);
    insta::assert_snapshot!(scene.plan(), @"
    epoch 8
      move trades/1 n1 -> n2 (joined: 30.0 queries a tick join it with what n2 holds; this spares 84 ms/s of copying)
      move trades/0 n0 -> n2 (joined: 20.0 queries a tick join it with what n2 holds; this spares 168 ms/s of copying)
    ");
}

#[test]
fn what_is_joined_stays_apart_where_its_node_would_carry_too_much() {
    let scene = Scene::new(2).with(0, &[0], 590.0).with(1, &[1], 590.0);
    let mut scene = scene.with(2, &[0], 200.0).with(3, &[1], 200.0);
    scene.forecast.joined = vec![joined(0, 1, 20.0)];
    assert_eq!(scene.plan().steps, []);
}

#[test]
fn what_is_joined_is_neither_dropped_nor_moved_apart() {
    let mut scene = Scene::new(2).with(0, &[0, 1], 10.0).with(1, &[0], 10.0).with(2, &[1], 10.0);
    assert_eq!(scene.plan().steps[0].step.kind(), "drop");
    scene.forecast.joined = vec![joined(0, 1, 20.0), joined(0, 2, 20.0)];
    assert_eq!(scene.plan().steps, []);
}

const PAIRS: u32 = 8;
const NODES: u32 = 4;

fn order(at: u32) -> PartitionId {
    PartitionId::new("orders", at)
}

fn line(at: u32) -> PartitionId {
    PartitionId::new("lines", at)
}

/// Joins of orders with their lines; which are asked for most changes slowly.
fn ask(history: &mut History, tick: u64) -> Vec<u32> {
    let mut asked = Vec::new();
    for at in 0..PAIRS {
        let phase = f64::from(at) / f64::from(PAIRS) + tick as f64 / 60.0;
        let queries = 4.0 + 3.0 * (phase * std::f64::consts::TAU).sin();
        (0..queries as u64).for_each(|_| asked.push(at));
    }
    for (query, at) in (tick * 1_000..).zip(&asked) {
        for (number, partition) in [(1, order(*at)), (2, line(*at))] {
            let expression = ExpressionId(number);
            let key = SeriesKey { function: "near".into(), expression, partition };
            let spent = CallRecord {
                rows: 1_000,
                ns: 9_000_000,
                would_be_ns: 9_000_000,
                ..CallRecord::empty(key, query, NodeId(0), None)
            };
            history.record(&spent);
        }
        history.join([(order(*at), line(*at))]);
    }
    history.close_tick();
    asked
}

/// Share of joins whose partitions are on one node.
fn on_one_node(view: &ClusterView, asked: &[u32]) -> f64 {
    let holders = |id: PartitionId| &view.partitions[&id].holders;
    let together = |at: &&u32| !holders(order(**at)).is_disjoint(holders(line(**at)));
    asked.iter().filter(together).count() as f64 / asked.len() as f64
}

#[test]
fn after_one_period_four_of_five_joins_of_tables_that_drift_together_are_on_one_node() {
    let mut scene = Scene::new(NODES).mode(Mode::Reactive);
    let mut dice = SplitMix64::new(5);
    for id in (0..PAIRS).map(order).chain((0..PAIRS).map(line)) {
        let holders = [NodeId((dice.uniform() * f64::from(NODES)) as u32)].into();
        let view = PartitionView { holders, rows: 1_000, bytes: 8 * MIB };
        scene.view.partitions.insert(id, view);
    }
    let mut history = History::new(&scene.config);
    let mut shares = Vec::new();
    for tick in 1..=70 {
        let asked = ask(&mut history, tick);
        shares.push(on_one_node(&scene.view, &asked));
        scene.forecast = repeat_current(&history.view(), &scene.config);
        for planned in scene.plan_at(tick).steps {
            let partition = planned.step.partition_moved().unwrap();
            scene.state.changed.insert(partition.clone(), Tick(tick));
            scene.view.apply(&planned.step);
        }
    }
    assert!(shares[0] < 0.5, "{shares:?}");
    assert!(shares[60..].iter().all(|share| *share >= 0.8), "{shares:?}");
    let levels = (0..NODES).map(|node| {
        scene.view.partitions.values().filter(|it| it.holders.contains(&NodeId(node))).count()
    });
    assert!(levels.clone().all(|count| count > 0), "{:?}", levels.collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn planning_settles_with_joins_and_no_replica_is_lost(
        scene in scenes(),
        pairs in prop::collection::btree_map((0u32..5, 5u32..10), 0.0..50.0f64, 0..10),
    ) {
        let mut scene = scene;
        scene.forecast.joined =
            pairs.into_iter().map(|((a, b), queries)| joined(a, b, queries)).collect();
        let before = scene.view.clone();
        let mut steps = usize::MAX;
        for round in 1..200 {
            let plan = scene.plan_at(round * 20);
            for planned in &plan.steps {
                scene.view.apply(&planned.step);
            }
            steps = plan.steps.len();
            if steps == 0 {
                break;
            }
        }
        prop_assert_eq!(steps, 0);
        for partition in before.partitions.keys() {
            let was_live = !live(&before, partition).is_empty();
            prop_assert!(!was_live || !live(&scene.view, partition).is_empty(), "{partition} lost");
        }
    }
}
