//! When partitions are split and merged.

use super::*;
use crate::cluster::TableView;

impl Scene {
    /// The partitions so far are those of one table that was made with so many.
    fn made_with(mut self, made: u32) -> Self {
        let order: Vec<u32> = self.view.partitions.keys().map(|id| id.ordinal).collect();
        let next = order.last().map_or(0, |last| last + 1);
        let cuts = (1..order.len()).map(|cut| cut as u64).collect();
        let table = TableView { order, next, made, key: Some(1), cuts };
        self.view.tables.insert("trades".into(), table);
        self
    }

    /// A table that is laid out as `trades` is, with partitions of such a size on node 0.
    fn with_twin(mut self, name: &str, bytes: u64) -> Self {
        let trades = self.view.tables["trades"].clone();
        for ordinal in &trades.order {
            let holders = [NodeId(0)].into();
            let view = PartitionView { holders, rows: 1_000, bytes };
            self.view.partitions.insert(PartitionId::new(name, *ordinal), view);
        }
        self.view.tables.insert(name.into(), trades);
        self
    }

    fn declared(mut self, tables: &[&str]) -> Self {
        self.state.controls.colocate(&tables.iter().map(|it| (*it).into()).collect::<Vec<_>>());
        self
    }

    fn bytes(mut self, ordinal: u32, bytes: u64) -> Self {
        self.view.partitions.get_mut(&part(ordinal)).unwrap().bytes = bytes;
        self
    }

    fn reshape(mut self, edit: impl FnOnce(ReshapeConfig) -> ReshapeConfig) -> Self {
        let reshape = edit(self.config.reshape().clone());
        self.config = self.config.with_reshape(reshape).unwrap();
        self
    }

    fn shards(&self) -> Vec<String> {
        let plan = self.plan();
        let ends = |it: &&Planned| !it.step.partitions_ended().is_empty();
        plan.steps.iter().filter(ends).map(|it| format!("{} ({})", it.step, it.reason)).collect()
    }
}

#[test]
fn a_partition_is_split_once_copies_are_no_help_any_more() {
    let one_copy = |config: ReshapeConfig| config.with_copies_max(1).unwrap();
    let hot = Scene::new(3).with(0, &[0], 1_000.0).with(1, &[1], 300.0).made_with(2);
    assert_eq!(hot.shards(), [] as [String; 0], "it gets a copy");
    let hot = hot.reshape(one_copy);
    assert_eq!(
        hot.shards(),
        [
            "split trades/0 -> 2, 3 (too hot: 1000 ms/s on each of 1 replicas expected, more than 900 \
          ms/s, and there may be no more (reshape.copies-max))"
        ]
    );
    let everywhere = Scene::new(2).with(0, &[0, 1], 1_900.0).made_with(1);
    assert_eq!(everywhere.shards(), [] as [String; 0], "all nodes carry the same");
    let most = Scene::new(3).with(0, &[0, 1], 1_900.0).made_with(1);
    let two_copies = |config: ReshapeConfig| config.with_copies_max(2).unwrap();
    assert_eq!(most.reshape(two_copies).shards().len(), 1);
    let warm = Scene::new(3).with(0, &[0, 1], 1_700.0).made_with(1);
    assert_eq!(warm.reshape(two_copies).shards(), [] as [String; 0]);
}

#[test]
fn what_is_too_hot_is_cut_by_its_load_and_what_is_too_large_by_its_rows() {
    let even = |scene: &Scene| -> Vec<cut::Even> {
        let of = |planned: &Planned| match planned.step {
            Step::Split { even, .. } => Some(even),
            _ => None,
        };
        scene.plan().steps.iter().filter_map(of).collect()
    };
    let one_copy = |config: ReshapeConfig| config.with_copies_max(1).unwrap();
    let hot = Scene::new(3).with(0, &[0], 1_000.0).with(1, &[1], 300.0).made_with(2);
    assert_eq!(even(&hot.reshape(one_copy)), [cut::Even::Load]);
    let large = Scene::new(1).with(0, &[0], 0.0).bytes(0, 2 << 30).made_with(1);
    assert_eq!(even(&large), [cut::Even::Rows]);
}

#[test]
fn partitions_with_the_same_keys_are_split_alike_if_they_are_declared_or_joined_in_place() {
    let large = || {
        let scene = Scene::new(2).with(0, &[0], 0.0).with(1, &[0], 0.0).bytes(1, 2 << 30);
        scene.made_with(2).with_twin("lines", MIB)
    };
    let split = |scene: &Scene| -> String {
        let steps = scene.plan().steps;
        steps.iter().map(|it| it.step.to_string()).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(split(&large()), "split trades/1 -> 2, 3");
    let declared = large().declared(&["trades", "lines"]);
    assert_eq!(split(&declared), "split trades/1 -> 2, 3; lines/1 -> 2, 3");
    let mut joined = large();
    let (line, trade) = (PartitionId::new("lines", 1), part(1));
    joined.forecast.joined = vec![crate::history::Joined { a: line, b: trade, queries: 1.0 }];
    assert_eq!(split(&joined), "split trades/1 -> 2, 3; lines/1 -> 2, 3");
    joined.view.partitions.get_mut(&part(1)).unwrap().holders = [NodeId(1)].into();
    assert!(!split(&joined).contains("lines/1 -> "), "it is on another node");

    let mut frozen = declared.clone();
    frozen.state.controls.freeze("lines");
    assert_eq!(split(&frozen), "split trades/1 -> 2, 3");
    let told = frozen.plan().steps[0].alternatives.clone();
    assert_eq!(told[1], "lines/1 is not left to the loop, and stays as it is");
    let mut busy = declared;
    busy.state.reshaped.insert("lines".into(), Tick(99));
    assert_eq!(split(&busy), "", "it waits until the other table may be split");
}

#[test]
fn neighbours_are_merged_alike_and_only_if_all_of_them_are_small_and_cold() {
    let small = |bytes| {
        let scene = Scene::new(1).with(0, &[0], 0.0).with(1, &[0], 0.0).made_with(1);
        scene.with_twin("lines", bytes).declared(&["trades", "lines"])
    };
    // Each table would be the first one; both are merged at once.
    let plan = small(MIB).plan();
    assert_eq!(plan.steps.len(), 1, "{plan}");
    assert_eq!(plan.steps[0].step.to_string(), "merge lines/0, 1 -> 2; trades/0, 1 -> 2");
    assert_eq!(small(300 * MIB).plan().steps, []);
}

#[test]
fn a_partition_is_split_that_is_too_large_even_if_nobody_calls_it() {
    let large = Scene::new(1).with(0, &[0], 0.0).bytes(0, (1 << 30) + 1).made_with(1);
    assert_eq!(
        large.shards(),
        ["split trades/0 -> 1, 2 (too large: 1073741825 bytes, more than 1073741824 \
          (reshape.split-bytes))"]
    );
    let mut rowless = large.clone();
    rowless.view.partitions.get_mut(&part(0)).unwrap().rows = 1;
    assert_eq!(rowless.shards(), [] as [String; 0], "one row cannot be split");
}

#[test]
fn neighbours_are_merged_that_are_small_and_cold_if_there_are_more_than_the_table_was_made_with() {
    let cold = || {
        let scene = Scene::new(1).with(0, &[0], 250.0).with(1, &[0], 200.0);
        scene.with(2, &[0], 100.0).with(3, &[0], 500.0)
    };
    assert_eq!(
        cold().made_with(3).shards(),
        [
            "merge trades/1, 2 -> 4 (small and cold: 16777216 bytes and 300 ms/s together, less than \
          429496730 bytes and 360 ms/s; people made 3 partitions, and there are more)"
        ]
    );
    assert_eq!(cold().made_with(4).shards(), [] as [String; 0]);
    let large = cold().bytes(1, 430 << 20).made_with(3);
    assert_eq!(large.shards(), [] as [String; 0]);
}

#[test]
fn a_table_rests_after_a_split_and_while_one_is_under_way() {
    let scene = |state: PlanState| Scene {
        state,
        ..Scene::new(1).with(0, &[0], 0.0).bytes(0, 2 << 30).with(1, &[0], 0.0).made_with(2)
    };
    let rests = |tick: u64| PlanState {
        reshaped: [("trades".into(), Tick(tick))].into(),
        ..PlanState::default()
    };
    assert_eq!(scene(rests(71)).shards(), [] as [String; 0]);
    assert_eq!(scene(rests(70)).shards().len(), 1);
    let open = Step::Merge { partition: part(1), other: 7, into: 8, alike: vec![] };
    let open = PlanState { in_flight: vec![open], ..PlanState::default() };
    assert_eq!(scene(open).shards(), [] as [String; 0]);
}

#[test]
fn nothing_is_computed_ahead_on_a_partition_that_is_no_more_in_a_moment() {
    let calls = [0.5; 12];
    let scene = Scene::new(1).with(0, &[0], 0.0).output(0, 1e5, 1_000, &calls).made_with(1);
    let kinds = |scene: &Scene| -> Vec<&str> {
        scene.plan().steps.iter().map(|it| it.step.kind()).collect()
    };
    assert_eq!(kinds(&scene), ["precompute"]);
    assert_eq!(kinds(&scene.bytes(0, 2 << 30)), ["split"]);
}

proptest! {
    /// With loads that stay as they are, splits and merges come to an end, nothing of a table gets lost on
    /// the way, and no table gets fewer partitions than it was made with.
    #[test]
    fn splits_and_merges_settle(
        loads in prop::collection::vec((0.0..3_000.0_f64, 1_u64..3_000), 1..6),
        more in 0_u32..3,
    ) {
        let mut scene = Scene::new(2);
        for (ordinal, (busy_ms, mib)) in (0..).zip(&loads) {
            scene = scene.with(ordinal, &[0], *busy_ms).bytes(ordinal, mib * MIB);
        }
        let made = u32::try_from(loads.len()).unwrap().saturating_sub(more).max(1);
        let mut scene = scene.made_with(made);
        let bytes = |scene: &Scene| scene.view.partitions.values().map(|it| it.bytes).sum::<u64>();
        let all = bytes(&scene);
        for _ in 0..200 {
            let plan = scene.plan();
            let Some(step) = plan.steps.iter().map(|it| &it.step)
                .find(|step| !step.partitions_ended().is_empty()) else { return Ok(()) };
            follow(&mut scene, step);
            prop_assert_eq!(bytes(&scene), all);
            let table = &scene.view.tables["trades"];
            prop_assert!(table.order.len() >= made as usize);
            prop_assert_eq!(table.order.len(), scene.view.partitions.len());
        }
        prop_assert!(false, "it does not end: {:?}", scene.view.tables);
    }
}

/// Carries a split or a merge out; calls follow the rows.
fn follow(scene: &mut Scene, step: &Step) {
    let ended = step.partitions_ended();
    scene.view.apply(step);
    let new: Vec<u32> = match step {
        Step::Split { into, .. } => into.to_vec(),
        Step::Merge { into, .. } => vec![*into],
        _ => vec![],
    };
    let (of_ended, mut series): (Vec<_>, Vec<_>) = std::mem::take(&mut scene.forecast.series)
        .into_iter()
        .partition(|series| ended.contains(&series.key.partition));
    for old in of_ended {
        for ordinal in &new {
            let mut part_of = old.clone();
            part_of.key.partition = part(*ordinal);
            let calls = part_of.calls[0].mean() / new.len() as f64;
            part_of.calls = vec![Quantiles::exactly(calls); 12];
            part_of.calls_now = calls;
            series.push(part_of);
        }
    }
    series.sort_by(|a, b| a.key.cmp(&b.key));
    scene.forecast.series = series;
}
