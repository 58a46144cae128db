//! Tables share background time and memory by weight, and what one does not want is for the others.

use super::*;
use crate::budgets::TableBudget;
use crate::config::AllocateConfig;

/// One node of which background work may use 500 ms a tick, looking two ticks ahead.
fn world() -> Scene {
    let mut scene = Scene::new(1);
    let precompute = PrecomputeConfig::default().with_lead_ticks(2).unwrap();
    scene.config = scene.config.with_precompute(precompute).unwrap();
    scene
}

impl Scene {
    /// An output of a table: calls a tick, ms that all of it takes, bytes stored and missing in MiB.
    fn of_table(
        mut self,
        table: &str,
        ordinal: u32,
        calls: f64,
        ms: f64,
        (stored, missing): (u64, u64),
    ) -> Self {
        let partition = PartitionId::new(table, ordinal);
        let holders = [NodeId(0)].into();
        let size = PartitionView { holders, rows: 1_000, bytes: MIB };
        self.view.partitions.insert(partition.clone(), size);
        let number = self.forecast.series.len() as u128;
        let (expression, function) = (ExpressionId(number), std::sync::Arc::from(table));
        let (rows_missing, rows_stored) = if missing > 0 { (1_000, 0) } else { (0, 1_000) };
        let output = OutputView {
            function: std::sync::Arc::clone(&function),
            is_state: false,
            rows_stored,
            rows_missing,
            bytes: stored * MIB,
            pinned: false,
        };
        self.view.outputs.insert((expression, partition.clone()), output);
        let node = self.view.nodes.get_mut(&NodeId(0)).unwrap();
        node.memory_bytes += stored * MIB;
        self.forecast.series.push(SeriesForecast {
            key: SeriesKey { function, expression, partition },
            calls: vec![Quantiles::exactly(calls); 12],
            ns_per_call: ms * 1e6,
            ns_per_row: ms * 1e3,
            bytes_per_row: missing as f64 * MIB as f64 / 1e3,
            weights: Vec::new(),
            calls_now: 0.0,
            calls_season: calls * 12.0,
            standing: crate::forecast::ensemble::Standing::New,
            announced: false,
        });
        self.forecast.series.sort_by(|a, b| a.key.cmp(&b.key));
        self
    }

    /// A flood: outputs that spare very much, and more of them than there is time for.
    fn flood(self) -> Self {
        (0..20).fold(self, |scene, ordinal| scene.of_table("flood", ordinal, 50.0, 100.0, (0, 1)))
    }

    /// What is computed of each table over so many ticks, with the account as the manager keeps it.
    fn computed(&self, ticks: usize) -> BTreeMap<String, usize> {
        let (mut scene, mut budget) = (self.clone(), BackgroundBudget::default());
        let mut computed = BTreeMap::new();
        for _ in 0..ticks {
            budget.refill([NodeId(0)], &scene.config);
            scene.state.background_ns = budget.free_ns().clone();
            scene.state.background_spent = budget.spent().clone();
            for Planned { step, worth, .. } in scene.plan().steps {
                if let Step::Precompute { partition, .. } = &step {
                    budget.charge(NodeId(0), &partition.table, worth.cost_ns);
                    *computed.entry(partition.table.to_string()).or_insert(0) += 1;
                }
                // It is missing again at once, as where rows come all the time.
            }
        }
        computed
    }
}

#[test]
fn a_table_that_floods_leaves_the_others_their_part() {
    let alone = world().flood();
    assert_eq!(alone.computed(20), [("flood".to_owned(), 100)].into());
    let both = world().flood().of_table("quiet", 0, 2.0, 50.0, (0, 1));
    let computed = both.computed(20);
    assert!(computed["quiet"] >= 19, "it is computed in every tick: {computed:?}");
    assert!(computed["flood"] >= 85, "and wants no more than that: {computed:?}");
}

#[test]
fn what_people_say_weighs_and_a_limit_holds_even_if_nobody_else_wants_it() {
    let mut both = world().flood();
    for ordinal in 0..20 {
        both = both.of_table("quiet", ordinal, 10.0, 100.0, (0, 1));
    }
    let before = both.computed(40);
    both.state.controls.set_budget("quiet", TableBudget::default().with_weight(20.0).unwrap());
    let after = both.computed(40);
    assert!(after["quiet"] > 2 * before["quiet"], "{before:?}, then {after:?}");
    assert!(after["flood"] > 0, "{after:?}");
    let mut alone = world().flood();
    alone.state.controls.set_budget("flood", TableBudget::default().with_limit(0.4).unwrap());
    let limited = alone.computed(20)["flood"];
    assert!((35..=60).contains(&limited), "of 100 without it: {limited}");
}

#[test]
fn what_a_table_has_more_than_its_part_goes_first_and_no_other_loses_of_its_own() {
    // 96 MiB of 100 are taken, nobody calls any of it, and ten more are wanted.
    let scene = |table: &str| {
        world()
            .of_table("large", 0, 0.0, 1.0, (40, 0))
            .of_table("large", 1, 0.0, 1.0, (41, 0))
            .of_table("small", 0, 0.0, 1.0, (15, 0))
            .of_table(table, 7, 9.0, 50.0, (0, 10))
    };
    let dropped = |scene: &Scene| -> Vec<String> {
        let steps = scene.plan().steps.into_iter().map(|it| it.step.to_string());
        steps.filter(|step| step.starts_with("drop")).collect()
    };
    assert_eq!(dropped(&scene("small")), ["drop output large on large/1"]);
    assert_eq!(dropped(&scene("large")), ["drop output large on large/1"]);
    let mut given = scene("large");
    given.state.controls.set_budget("large", TableBudget::default().with_weight(100.0).unwrap());
    assert_eq!(
        dropped(&given),
        ["drop output large on large/1"],
        "small has less than its part, whatever the weight of the other"
    );
}

#[test]
fn one_table_has_all_as_if_nothing_were_dealt_out() {
    let scene = world().flood();
    let mut spent = scene.clone();
    spent.state.background_spent = [(NodeId(0), [("flood".into(), 9e9)].into())].into();
    assert_eq!(spent.plan(), scene.plan());
    let memory = AllocateConfig::default().with_memory_bytes(200 * MIB).unwrap();
    let mut roomy = scene.clone();
    roomy.config = roomy.config.with_allocate(memory).unwrap();
    assert_eq!(roomy.plan(), scene.plan());
}
