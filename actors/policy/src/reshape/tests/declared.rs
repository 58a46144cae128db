//! What people declare to belong together comes to one node and stays there.

use super::*;
use crate::cluster::TableView;
use crate::history::Joined;

const TABLES: [&str; 2] = ["lines", "orders"];

/// Two tables of two partitions each, on these nodes, that were declared to belong together.
fn scene(nodes: u32, lines: [u32; 2], orders: [u32; 2]) -> Scene {
    let mut scene = Scene::new(nodes);
    for (table, held) in TABLES.into_iter().zip([lines, orders]) {
        for (ordinal, node) in (0..).zip(held) {
            let holders = [NodeId(node)].into();
            let view = PartitionView { holders, rows: 1_000, bytes: 8 * MIB };
            scene.view.partitions.insert(PartitionId::new(table, ordinal), view);
        }
        let table_view =
            TableView { order: vec![0, 1], next: 2, made: 2, key: Some(1), cuts: vec![10] };
        scene.view.tables.insert(table.into(), table_view);
    }
    scene.state.controls.colocate(&TABLES.map(Into::into));
    scene
}

/// Calls that keep a CPU busy for so many ms per s.
fn busy(mut scene: Scene, table: &str, ordinal: u32, busy_ms: f64) -> Scene {
    let trades = std::mem::take(&mut scene.forecast.series);
    scene = scene.output(ordinal, 10_000.0, 0, &[busy_ms / 10.0; 12]);
    let mut series = scene.forecast.series.pop().unwrap();
    scene.view.outputs.clear();
    series.key.partition = PartitionId::new(table, ordinal);
    series.key.function = format!("{table}{ordinal}").into();
    scene.forecast.series = trades;
    scene.forecast.series.push(series);
    scene.forecast.series.sort_by(|a, b| a.key.cmp(&b.key));
    scene
}

fn text(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|it| it.step.to_string()).collect()
}

#[test]
fn partitions_with_the_same_keys_come_to_one_node_though_nobody_joins_them() {
    insta::assert_snapshot!(scene(3, [0, 1], [2, 1]).plan(), @"
    epoch 8
      move orders/0 n2 -> n0 (declared: people want its 2 partitions with the same keys on one node (CALL colocate), and n0 has room for them)
    ");
    let mut ended = scene(3, [0, 1], [2, 1]);
    ended.state.controls.colocate_end("lines");
    assert_eq!(ended.plan().steps, []);
}

#[test]
fn all_parts_of_a_range_come_together_also_where_one_table_is_split_further() {
    let mut scene = scene(2, [0, 0], [0, 0]);
    let split = Step::Split {
        partition: PartitionId::new("orders", 1),
        into: [2, 3],
        even: cut::Even::Rows,
        alike: vec![],
    };
    scene.view.apply(&split);
    scene.view.tables.get_mut("orders").unwrap().made = 3;
    let part = PartitionId::new("orders", 3);
    scene.view.partitions.get_mut(&part).unwrap().holders = [NodeId(1)].into();
    assert_eq!(text(&scene.plan()), ["move orders/3 n1 -> n0"]);
}

#[test]
fn they_stay_apart_where_no_node_has_room_or_too_much_was_moved() {
    let mut full = scene(2, [0, 0], [1, 1]);
    for node in full.view.nodes.values_mut() {
        node.memory_bytes = 95 * MIB;
    }
    assert_eq!(full.plan().steps, []);
    full.view.nodes.get_mut(&NodeId(1)).unwrap().memory_bytes = 0;
    assert_eq!(text(&full.plan()), ["move lines/0 n0 -> n1", "move lines/1 n0 -> n1"]);

    let few = |config: ReshapeConfig| config.with_moved_bytes_per_hour_max(MIB).unwrap();
    let mut moved = scene(2, [0, 0], [1, 0]);
    let reshape = few(moved.config.reshape().clone());
    moved.config = moved.config.with_reshape(reshape).unwrap();
    assert_eq!(moved.plan().steps, []);
    assert_eq!(moved.plan().waiting.len(), 1, "it says what it waits for");
}

#[test]
fn a_table_that_is_not_left_to_the_loop_stays_and_the_others_come_to_it() {
    let mut frozen = scene(3, [0, 0], [2, 2]);
    frozen.state.controls.freeze("orders");
    assert_eq!(text(&frozen.plan()), ["move lines/0 n0 -> n2", "move lines/1 n0 -> n2"]);
}

#[test]
fn what_is_together_is_not_taken_apart_by_a_drop_but_leaves_a_busy_node_together() {
    // Two replicas of one: that which is not needed goes, though the other node is busier.
    let mut two = busy(scene(2, [0, 0], [0, 0]), "orders", 0, 20.0);
    let order = PartitionId::new("orders", 0);
    two.view.partitions.get_mut(&order).unwrap().holders = [NodeId(0), NodeId(1)].into();
    assert_eq!(text(&two.plan()), ["drop orders/0 n1"]);

    let hot = busy(busy(scene(2, [0, 0], [0, 0]), "lines", 0, 600.0), "orders", 0, 300.0);
    let hot = busy(busy(hot, "lines", 1, 600.0), "orders", 1, 300.0);
    let steps = text(&hot.plan());
    assert_eq!(steps.len(), 2, "{steps:?}");
    let of = |table: &str| steps.iter().find(|step| step.contains(table)).unwrap().clone();
    assert_eq!(of("lines").replace("lines", "orders"), of("orders"), "both of one range");
}

#[test]
fn what_queries_join_does_not_take_apart_what_people_want_together() {
    let mut scene = scene(2, [0, 0], [0, 0]).with(7, &[1], 0.0);
    let line = PartitionId::new("lines", 0);
    scene.forecast.joined = vec![Joined { a: line, b: part(7), queries: 50.0 }];
    assert_eq!(text(&scene.plan()), ["move trades/7 n1 -> n0"]);
}

proptest! {
    /// Whatever carries how much: once everything is settled, all sets are on one node.
    #[test]
    fn planning_settles_with_all_that_is_declared_together(
        lines in prop::array::uniform2(0u32..4),
        orders in prop::array::uniform2(0u32..4),
        loads in prop::array::uniform4(0.0..900.0f64),
    ) {
        let mut scene = scene(4, lines, orders);
        for (at, busy_ms) in loads.into_iter().enumerate() {
            scene = busy(scene, TABLES[at / 2], (at % 2) as u32, busy_ms);
        }
        let mut steps = usize::MAX;
        for round in 1..100 {
            let plan = scene.plan_at(round * 20);
            plan.steps.iter().for_each(|planned| scene.view.apply(&planned.step));
            steps = plan.steps.len();
            if steps == 0 {
                break;
            }
        }
        prop_assert_eq!(steps, 0);
        let names = TABLES.map(Into::into).into();
        for set in crate::alike::sets(&scene.view, &names) {
            let holders = set.iter().map(|id| scene.view.partitions[id].holders.clone());
            let homes = holders.reduce(|a, b| a.intersection(&b).copied().collect()).unwrap();
            prop_assert!(!homes.is_empty(), "{set:?} in {:?}", scene.view.partitions);
        }
    }
}
