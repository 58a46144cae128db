//! Plans an operator can read, and the promises they keep.

use super::*;
use crate::cluster::{NodeView, OutputView, PartitionView};
use crate::config::{PrecomputeConfig, ReshapeConfig};
use crate::forecast::ensemble::invert;
use crate::forecast::{Quantiles, SeriesForecast};
use crate::ids::{ExpressionId, SeriesKey};
use proptest::prelude::*;
use std::collections::BTreeSet;

mod announced;
mod balance;
mod colocate;
mod control;
mod declared;
mod exact;
mod outputs;
mod prefetch;
mod shards;
mod situation;
mod tables;

const MIB: u64 = 1 << 20;

fn part(ordinal: u32) -> PartitionId {
    PartitionId::new("trades", ordinal)
}

fn node(memory_bytes: u64) -> NodeView {
    NodeView {
        memory_bytes_max: 100 * MIB,
        memory_bytes,
        cpu_permits: 2,
        draining: false,
        joined: false,
        leaves: 0,
    }
}

fn cluster(nodes: u32) -> ClusterView {
    ClusterView {
        epoch: Epoch(7),
        nodes: (0..nodes).map(|id| (NodeId(id), node(0))).collect(),
        ..ClusterView::default()
    }
}

/// A cluster and what is expected of it; ticks are one second.
#[derive(Clone, Debug)]
struct Scene {
    view: ClusterView,
    forecast: Forecast,
    state: PlanState,
    config: LoopConfig,
}

impl Scene {
    fn new(nodes: u32) -> Self {
        Self {
            view: cluster(nodes),
            forecast: Forecast { trusted: true, tick_ms: 1_000, ..Forecast::default() },
            state: PlanState::default(),
            config: LoopConfig::default(),
        }
    }

    /// A partition that these nodes hold and that keeps a CPU busy for so many ms per s.
    fn with(mut self, ordinal: u32, holders: &[u32], busy_ms: f64) -> Self {
        let holders = holders.iter().copied().map(NodeId).collect();
        self.view
            .partitions
            .insert(part(ordinal), PartitionView { holders, rows: 1_000, bytes: 8 * MIB });
        let calls = [busy_ms / 10.0; 12];
        self.output(ordinal, 10_000.0, 0, &calls)
    }

    /// An output: what a row costs, rows missing, calls in the coming ticks.
    fn output(mut self, ordinal: u32, ns_per_row: f64, missing: u64, calls: &[f64]) -> Self {
        let number = u128::from(ordinal) * 100 + self.forecast.series.len() as u128;
        let expression = ExpressionId(number);
        let function: std::sync::Arc<str> = format!("f{number}").into();
        self.view.outputs.insert(
            (expression, part(ordinal)),
            OutputView {
                function: function.clone(),
                rows_stored: 1_000 - missing,
                rows_missing: missing,
                bytes: (1_000 - missing) * 1_024,
                is_state: false,
                pinned: false,
            },
        );
        self.forecast.series.push(SeriesForecast {
            key: SeriesKey { function, expression, partition: part(ordinal) },
            calls: calls.iter().copied().map(Quantiles::exactly).collect(),
            ns_per_call: ns_per_row * 1_000.0,
            ns_per_row,
            bytes_per_row: 1_024.0,
            weights: Vec::new(),
            calls_now: calls.first().copied().unwrap_or(0.0),
            calls_season: calls.iter().sum(),
            standing: crate::forecast::ensemble::Standing::New,
            announced: false,
        });
        self.forecast.series.sort_by(|a, b| a.key.cmp(&b.key));
        self
    }

    fn mode(mut self, mode: Mode) -> Self {
        self.config = self.config.with_mode(mode).unwrap();
        self
    }

    fn plan(&self) -> Plan {
        self.plan_at(100)
    }

    fn plan_at(&self, tick: u64) -> Plan {
        plan(&self.view, Some(&self.forecast), &self.state, &self.config, Tick(tick))
    }
}

#[test]
fn a_hot_partition_gets_a_copy_on_the_emptiest_node() {
    let scene = Scene::new(3).with(0, &[0], 900.0).with(1, &[1], 300.0);
    let plan = scene.plan();
    insta::assert_snapshot!(plan, @"
    epoch 8
      copy trades/0 n0 -> n2 (hot: 900 ms/s per replica expected, more than 600 ms/s)
    ");
    assert_eq!(plan.steps[0].alternatives, ["to n1, which carries 300 ms/s"]);
    assert_eq!(plan.steps[0].inputs, "holders [n0], 1000 rows, 8388608 bytes");
    assert_eq!(plan.steps[0].worth.bytes, 8.0 * MIB as f64);
}

#[test]
fn a_cold_partition_gives_up_the_replica_on_the_busiest_node() {
    let scene = Scene::new(2).with(0, &[0, 1], 100.0).with(1, &[1], 300.0);
    insta::assert_snapshot!(scene.plan(), @"
    epoch 8
      drop trades/0 n1 (cold: 100 ms/s per remaining replica expected, less than 250 ms/s)
    ");
}

#[test]
fn a_partition_rests_after_its_replicas_changed() {
    let mut scene = Scene::new(3).with(0, &[0], 900.0);
    scene.state.changed.insert(part(0), Tick(100));
    assert_eq!(scene.plan_at(109).steps, []);
    assert_eq!(scene.plan_at(110).steps.len(), 1);
}

/// What a partition that was just copied gets if its rows take `slower` times as long since then and it is
/// called `more` times as often.
fn after_a_copy(slower: f64, more: f64) -> Plan {
    let mut scene = Scene::new(4).with(0, &[0], 900.0);
    let first = scene.plan();
    scene.state.costs.note(&first.steps, &scene.forecast);
    scene.view.apply(&first.steps[0].step);
    scene.state.changed.insert(part(0), Tick(101));
    for series in &mut scene.forecast.series {
        (series.ns_per_row, series.ns_per_call) =
            (series.ns_per_row * slower, series.ns_per_call * slower);
        series.calls_now *= more;
        series.calls.iter_mut().for_each(|calls| *calls = calls.times(more));
    }
    scene.plan_at(101)
}

#[test]
fn a_partition_that_rests_gets_another_copy_if_it_is_called_more_but_not_if_its_calls_are_slower() {
    insta::assert_snapshot!(after_a_copy(1.0, 2.0), @"
    epoch 8
      copy trades/0 n0 -> n2 (hot: 900 ms/s per replica expected, more than 660 ms/s)
    ");
    assert_eq!(after_a_copy(3.0, 1.0).steps, []);
    assert_eq!(after_a_copy(1.0, 1.4).steps, [], "what is only just too hot can wait");
    // Of both only the calls count, and calls that are quicker now do not count as they did before.
    let reason = |slower: f64, more: f64| after_a_copy(slower, more).steps[0].reason.to_string();
    assert_eq!(reason(3.0, 2.0), reason(1.0, 2.0));
    assert_eq!(after_a_copy(0.4, 3.0).steps, []);
}

#[test]
fn what_was_known_before_the_first_of_several_changes_stays_known_while_a_partition_rests() {
    let mut scene = Scene::new(4).with(0, &[0], 900.0);
    let copy = scene.plan().steps;
    let mut costs = KnownCosts::default();
    costs.note(&copy, &scene.forecast);
    let before = costs.clone();
    scene.forecast.series[0].ns_per_row *= 5.0;
    costs.note(&copy, &scene.forecast);
    assert_eq!(costs, before);
    costs.keep(|partition| *partition == part(0));
    assert_eq!(costs, before);
    costs.keep(|_| false);
    assert_eq!(costs, KnownCosts::default());
}

#[test]
fn of_a_series_that_is_new_since_the_last_copy_nothing_is_known_and_it_brings_no_other() {
    let mut scene = Scene::new(4).with(0, &[0], 900.0);
    let first = scene.plan();
    scene.state.costs.note(&first.steps, &scene.forecast);
    scene.view.apply(&first.steps[0].step);
    scene.state.changed.insert(part(0), Tick(101));
    let scene = scene.output(0, 1e6, 0, &[3.0; 12]);
    assert_eq!(scene.plan_at(101).steps, []);
    assert_eq!(scene.plan_at(111).steps[0].step.kind(), "copy");
}

#[test]
fn a_copy_under_way_is_not_planned_again_and_its_load_counts() {
    let mut scene = Scene::new(3).with(0, &[0], 900.0).with(1, &[1], 700.0);
    scene.state.in_flight = vec![Step::Copy { partition: part(0), from: NodeId(0), to: NodeId(2) }];
    // n0 and n2 carry 450 ms/s each, so both are better than n1, and n0 has the lower number.
    insta::assert_snapshot!(scene.plan(), @"
    epoch 8
      copy trades/1 n1 -> n0 (hot: 700 ms/s per replica expected, more than 600 ms/s)
    ");
}

#[test]
fn a_partition_without_a_live_holder_is_loaded_from_the_store() {
    let scene = Scene::new(2).with(0, &[9], 10.0).with(1, &[0], 50.0);
    insta::assert_snapshot!(scene.plan(), @"
    epoch 8
      copy trades/0 store -> n1 (no live node holds it: load it from the store)
    ");
}

#[test]
fn a_draining_node_keeps_a_replica_until_another_node_has_one() {
    let mut scene = Scene::new(3).with(0, &[0], 10.0).with(1, &[0, 1], 300.0);
    scene.view.nodes.get_mut(&NodeId(0)).unwrap().draining = true;
    insta::assert_snapshot!(scene.plan(), @"
    epoch 8
      drop trades/1 n0 (n0 is draining)
      copy trades/0 n0 -> n2 (n0 is draining)
    ");
}

#[test]
fn without_trust_or_in_mode_reactive_nothing_is_done_ahead() {
    let mut scene = Scene::new(2).with(0, &[0], 900.0).output(0, 5_000.0, 1_000, &[3.0; 8]);
    scene.forecast.trusted = false;
    insta::assert_snapshot!(scene.plan(), @"
    epoch 8
      copy trades/0 n0 -> n1 (hot: 915 ms/s per replica measured, more than 600 ms/s)
    ");
    let distrusted = scene.plan();
    scene.forecast.trusted = true;
    let reactive = scene.mode(Mode::Reactive);
    assert_eq!(reactive.plan(), distrusted);
    // Expected, but not there yet: a reactive rule waits for it.
    let mut coming = reactive.clone();
    coming.forecast.series.iter_mut().for_each(|series| series.calls_now = 0.0);
    assert_eq!(coming.plan().steps, []);
    assert_eq!(coming.mode(Mode::Forecast).plan().steps.len(), 2);
}

#[test]
fn in_mode_off_nothing_is_planned_and_without_a_forecast_only_repairs() {
    let scene = Scene::new(2).with(0, &[9], 900.0).with(1, &[0], 900.0);
    let repairs = plan(&scene.view, None, &scene.state, &scene.config, Tick(100));
    assert_eq!(repairs.steps.len(), 1);
    assert_eq!(scene.mode(Mode::Off).plan(), Plan { epoch: Epoch(7), ..Plan::default() });
}

#[test]
fn neither_copies_nor_outputs_take_all_the_steps() {
    let mut scene = Scene::new(2);
    for ordinal in 0..40 {
        scene = scene.with(ordinal, &[0], 900.0).output(ordinal, 5_000.0, 100, &[3.0; 8]);
    }
    let plan = scene.plan();
    let copies = plan.steps.iter().filter(|it| it.step.kind() == "copy").count();
    assert_eq!((plan.steps.len(), copies), (16, 8));
}

fn scenes() -> impl Strategy<Value = Scene> {
    let holders = prop::collection::btree_set(0u32..8, 0..5);
    let piece = (holders, 0.0..3_000.0f64, 0u64..1_000, 100.0..1e6f64, 0.0..4.0f64);
    let pieces = prop::collection::vec(piece, 0..10);
    let draining = prop::collection::btree_set(0u32..7, 0..3);
    let memory = 0..110u64;
    (1u32..7, pieces, draining, memory, any::<bool>(), 1usize..20).prop_map(
        |(nodes, pieces, draining, memory, trusted, in_flight_max)| {
            let mut scene = Scene::new(nodes);
            scene.view.nodes.values_mut().for_each(|node| node.memory_bytes = memory * MIB);
            for (ordinal, (holders, busy, missing, ns_per_row, calls)) in (0..).zip(pieces) {
                let holders: Vec<_> = holders.into_iter().collect();
                scene = scene.with(ordinal, &holders, busy).output(
                    ordinal,
                    ns_per_row,
                    missing,
                    &[calls; 12],
                );
            }
            for id in draining {
                scene.view.nodes.entry(NodeId(id)).and_modify(|node| node.draining = true);
            }
            scene.forecast.trusted = trusted;
            let reshape = ReshapeConfig::default().with_steps_in_flight_max(in_flight_max).unwrap();
            scene.config = scene.config.with_reshape(reshape).unwrap();
            scene
        },
    )
}

fn live<'a>(view: &'a ClusterView, partition: &PartitionId) -> Vec<&'a NodeId> {
    let holders = view.partitions[partition].holders.iter();
    holders.filter(|node| view.nodes.contains_key(node)).collect()
}

proptest! {
    #[test]
    fn no_partition_loses_its_last_live_replica_even_if_only_some_steps_succeed(
        scene in scenes(),
        succeed in any::<u32>(),
        under_way in any::<u32>(),
    ) {
        // Some steps of a first plan are still under way when the second one is made, and any of
        // both plans may succeed.
        let first = scene.plan();
        let (mut between, mut after) = (scene.clone(), scene.view.clone());
        for (at, planned) in first.steps.iter().enumerate() {
            if under_way >> (at % 32) & 1 == 1 {
                between.state.in_flight.push(planned.step.clone());
            } else {
                between.view.apply(&planned.step);
                after.apply(&planned.step);
            }
        }
        let second = between.plan();
        let all = between.state.in_flight.iter().chain(second.steps.iter().map(|it| &it.step));
        for (at, step) in all.enumerate() {
            if succeed >> (at % 32) & 1 == 1 {
                after.apply(step);
            }
        }
        for partition in scene.view.partitions.keys() {
            let was_live = !live(&scene.view, partition).is_empty();
            prop_assert!(!was_live || !live(&after, partition).is_empty(), "{partition} lost");
        }
    }

    #[test]
    fn steps_name_only_live_nodes_and_never_a_second_replica(scene in scenes()) {
        let plan = scene.plan();
        prop_assert!(plan.steps.len() <= scene.config.reshape().steps_in_flight_max());
        let mut moved = BTreeSet::new();
        for planned in plan.steps {
            match planned.step {
                Step::Copy { partition, from, to } => {
                    let holders = &scene.view.partitions[&partition].holders;
                    prop_assert!(!scene.view.nodes[&to].draining && !holders.contains(&to));
                    prop_assert!(scene.view.nodes.contains_key(&from));
                    prop_assert!(from == to || holders.contains(&from));
                    prop_assert!(moved.insert(partition), "one step per partition");
                }
                Step::Move { partition, from, to } => {
                    let holders = &scene.view.partitions[&partition].holders;
                    prop_assert!(!scene.view.nodes[&to].draining && !holders.contains(&to));
                    prop_assert!(!scene.view.nodes[&from].draining && holders.contains(&from));
                    prop_assert!(moved.insert(partition), "one step per partition");
                }
                Step::Drop { partition, from } => {
                    prop_assert!(scene.view.nodes.contains_key(&from));
                    prop_assert!(scene.view.partitions[&partition].holders.contains(&from));
                    prop_assert!(moved.insert(partition), "one step per partition");
                }
                Step::Precompute { .. } | Step::DropOutput { .. } => {}
                other => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn outputs_stay_within_memory_and_start_only_while_there_is_background_time(scene in scenes()) {
        let nodes = || scene.view.nodes.keys().copied();
        let mut room: BTreeMap<NodeId, f64> =
            nodes().map(|node| (node, 100.0 - scene.view.nodes[&node].memory_bytes as f64 / MIB as f64)).collect();
        let mut free_ns: BTreeMap<NodeId, f64> = nodes().map(|node| (node, 0.5e9)).collect();
        let steps = scene.plan().steps;
        for planned in &steps {
            let Step::Precompute { partition, .. } = &planned.step else { continue };
            let leaves = |node: &NodeId| {
                steps.iter().any(|it| match &it.step {
                    Step::Drop { partition: of, from } | Step::Move { partition: of, from, .. } => {
                        of == partition && from == node
                    }
                    _ => false,
                })
            };
            let holders = live(&scene.view, partition).into_iter();
            let staying: Vec<_> = holders
                .filter(|node| !scene.view.nodes[node].draining && !leaves(node))
                .collect();
            prop_assert!(staying.iter().map(|node| free_ns[node]).sum::<f64>() > 0.0);
            for node in &staying {
                *free_ns.get_mut(node).unwrap() -= planned.worth.cost_ns / staying.len() as f64;
                *room.get_mut(node).unwrap() -= planned.worth.bytes / MIB as f64;
                prop_assert!(room[node] >= -1e-9, "{node} is overfull");
            }
        }
    }

    #[test]
    fn the_same_input_gives_the_same_plan(scene in scenes()) {
        prop_assert_eq!(scene.plan(), scene.clone().plan());
    }

    #[test]
    fn planning_settles(scene in scenes()) {
        // A plan for each tick, and one after each rest: hot partitions do not wait for theirs.
        for ticks in [1, 20] {
            let mut scene = scene.clone();
            let dwell = scene.config.reshape().dwell_ticks();
            let (mut still, mut round) = (0, 0);
            while still <= dwell && round < 400 {
                round += 1;
                let tick = Tick(round * ticks);
                let PlanState { changed, costs, .. } = &mut scene.state;
                costs.keep(|of| changed.get(of).is_some_and(|at| tick.0 < at.0 + dwell));
                let plan = scene.plan_at(tick.0);
                scene.state.costs.note(&plan.steps, &scene.forecast);
                for planned in &plan.steps {
                    if let Some(partition) = planned.step.partition_moved() {
                        scene.state.changed.insert(partition.clone(), tick);
                    }
                    scene.view.apply(&planned.step);
                }
                scene.view.epoch = plan.epoch;
                still = if plan.steps.is_empty() { still + ticks } else { 0 };
            }
            prop_assert!(still > dwell, "every {ticks} ticks");
        }
    }

    #[test]
    fn nothing_is_computed_ahead_without_trust(scene in scenes()) {
        let mut scene = scene;
        scene.forecast.trusted = false;
        let config = PrecomputeConfig::default().with_budget_share(1.0).unwrap();
        scene.config = scene.config.with_precompute(config).unwrap();
        for planned in scene.plan().steps {
            prop_assert!(planned.step.partition_moved().is_some(), "{}", planned.step);
        }
    }
}
