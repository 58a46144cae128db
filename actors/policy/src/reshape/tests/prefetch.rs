//! Rows are read before they are asked for, and let go only where nobody needs them.

use super::*;
use crate::cluster::RowsView;
use crate::config::AllocateConfig;
use crate::control::Control;

impl Scene {
    /// What a node has of the rows of a partition, in MiB, and for how many ticks nobody read them.
    fn rows(mut self, ordinal: u32, node: u32, (held, missing): (u64, u64), idle: u64) -> Self {
        let rows = RowsView {
            bytes: held * MIB,
            bytes_missing: missing * MIB,
            idle_ms: idle * 1_000,
            read_ns: (held + missing) as f64 * 1e7,
        };
        self.view.rows.insert((part(ordinal), NodeId(node)), rows);
        self.view.nodes.entry(NodeId(node)).and_modify(|it| it.memory_bytes += held * MIB);
        self
    }

    /// A partition on one node that is called so often in the coming ticks, and not yet.
    fn coming(self, ordinal: u32, node: u32, calls: &[f64]) -> Self {
        let mut scene = self.with(ordinal, &[node], 0.0).output(ordinal, 400.0, 0, calls);
        let own = |series: &&mut SeriesForecast| series.key.partition == part(ordinal);
        scene.forecast.series.iter_mut().filter(own).for_each(|series| series.calls_now = 0.0);
        scene
    }

    fn called_now(mut self, ordinal: u32, calls: f64) -> Self {
        let own = |series: &&mut SeriesForecast| series.key.partition == part(ordinal);
        self.forecast.series.iter_mut().filter(own).for_each(|series| series.calls_now = calls);
        self
    }

    fn steps(&self) -> Vec<String> {
        self.plan().steps.iter().map(|planned| planned.step.to_string()).collect()
    }

    /// Plans and carries out until nothing is planned; answers all steps.
    fn settled(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for _ in 0..20 {
            let steps = self.plan().steps;
            if steps.is_empty() {
                return all;
            }
            for Planned { step, .. } in steps {
                self.carry_out(&step);
                all.push(step.to_string());
            }
        }
        panic!("it does not settle: {all:?}")
    }

    fn carry_out(&mut self, step: &Step) {
        let bytes = |view: &ClusterView| view.rows.values().map(|rows| rows.bytes).sum::<u64>();
        let before = bytes(&self.view);
        self.view.apply(step);
        if let Step::Prefetch { node, .. } | Step::Release { node, .. } = step {
            let after = bytes(&self.view);
            let node = self.view.nodes.get_mut(node).unwrap();
            node.memory_bytes = node.memory_bytes + after - before;
        }
        if let Step::Prefetch { partition, node } = step {
            // As on a node: rows that came just now are not idle.
            let rows = self.view.rows.get_mut(&(partition.clone(), *node)).unwrap();
            rows.idle_ms = 0;
        }
    }
}

#[test]
fn rows_are_read_before_they_are_asked_for() {
    let scene = Scene::new(2)
        .coming(0, 0, &[0.0, 0.0, 3.0, 3.0])
        .rows(0, 0, (2, 6), 99)
        .coming(1, 1, &[0.0; 12])
        .rows(1, 1, (0, 8), 99);
    insta::assert_snapshot!(scene.plan(), @r"
    epoch 7
      prefetch trades/0 n0 (6.0 calls expected, the first within 3.0 s; each reads 6291456 bytes from files, which takes 60 ms)
    ");
    let planned = &scene.plan().steps[0];
    assert_eq!(planned.worth.bytes, 6.0 * MIB as f64);
    assert!((planned.worth.benefit_ns / (6.0 * 6e7) - 1.0).abs() < 0.01, "but for e^-6");
}

#[test]
fn nothing_is_read_ahead_where_the_forecast_must_not_be_acted_on_or_nobody_is_likely_to_come() {
    let scene = Scene::new(1).coming(0, 0, &[3.0; 8]).rows(0, 0, (0, 8), 99);
    assert_eq!(scene.steps(), ["prefetch trades/0 n0"]);
    for mode in [Mode::Off, Mode::Reactive] {
        assert_eq!(scene.clone().mode(mode).steps(), Vec::<String>::new(), "{mode}");
    }
    let mut untrusted = scene;
    untrusted.forecast.trusted = false;
    assert_eq!(untrusted.steps(), Vec::<String>::new());
    let seldom = Scene::new(1).coming(0, 0, &[0.03; 8]).rows(0, 0, (0, 8), 99);
    assert_eq!(
        seldom.steps(),
        Vec::<String>::new(),
        "a quarter of a call, and three times in four none"
    );
}

#[test]
fn what_spares_most_per_byte_gets_the_room_and_the_others_are_named() {
    let mut scene = Scene::new(1)
        .coming(0, 0, &[1.0; 8])
        .rows(0, 0, (0, 30), 99)
        .coming(1, 0, &[5.0; 8])
        .rows(1, 0, (0, 30), 99);
    let plan = scene.plan();
    assert_eq!(plan.steps.len(), 1);
    assert_eq!(plan.steps[0].step.to_string(), "prefetch trades/1 n0");
    let lacking = 10 * MIB;
    assert_eq!(
        plan.steps[0].alternatives,
        [format!("trades/0 n0: {lacking} bytes are lacking")],
        "half of 100 MiB is for rows"
    );
    assert_eq!(scene.settled(), ["prefetch trades/1 n0"], "called as both are, neither goes");
}

#[test]
fn rows_that_nobody_reads_go_for_those_that_somebody_is_expected_to_read() {
    let mut scene = Scene::new(1)
        .coming(0, 0, &[2.0; 8])
        .rows(0, 0, (0, 20), 99)
        .coming(1, 0, &[0.0; 8])
        .rows(1, 0, (20, 0), 50)
        .coming(2, 0, &[0.0; 8])
        .rows(2, 0, (20, 0), 60);
    insta::assert_snapshot!(scene.plan(), @r"
    epoch 7
      release trades/2 n0 (nobody read it for 60.0 s and nobody is expected to; n0 lacks 10485760 bytes for what calls are expected on)
    ");
    let release = scene.plan().steps.remove(0).step;
    scene.state.in_flight = vec![release];
    assert_eq!(scene.steps(), Vec::<String>::new(), "what is being let go is not let go twice");
    scene.state.in_flight.clear();
    assert_eq!(scene.settled(), ["release trades/2 n0", "prefetch trades/0 n0"]);
}

#[test]
fn what_queries_read_now_stays_whatever_is_forecast() {
    let wanted = || Scene::new(1).coming(0, 0, &[9.0; 8]).rows(0, 0, (0, 40), 99);
    let held = |idle: u64| wanted().coming(1, 0, &[0.0; 8]).rows(1, 0, (40, 0), idle);
    assert_eq!(held(8).steps(), ["release trades/1 n0"]);
    assert_eq!(held(7).steps(), Vec::<String>::new(), "somebody read it");
    assert_eq!(held(99).called_now(1, 1.0).steps(), Vec::<String>::new(), "it is called");
    let in_vain = wanted().rows(1, 0, (40, 0), 99);
    assert_eq!(in_vain.steps(), Vec::<String>::new(), "there is no such partition to plan for");
}

#[test]
fn what_is_called_and_was_let_go_by_a_wrong_forecast_comes_back() {
    let scene = Scene::new(1).coming(0, 0, &[0.0; 8]).rows(0, 0, (0, 8), 0).called_now(0, 2.0);
    assert_eq!(scene.steps(), ["prefetch trades/0 n0"]);
}

#[test]
fn a_node_reads_no_more_ahead_than_its_rate_allows() {
    let mut scene = Scene::new(1);
    for ordinal in 0..4 {
        scene =
            scene.coming(ordinal, 0, &[4.0 - f64::from(ordinal); 8]).rows(ordinal, 0, (0, 4), 99);
    }
    assert_eq!(scene.steps().len(), 4);
    let allocate = AllocateConfig::default().with_io_bytes_per_s(5 * MIB).unwrap();
    scene.config = scene.config.with_allocate(allocate).unwrap();
    assert_eq!(scene.steps(), ["prefetch trades/0 n0", "prefetch trades/1 n0"]);
    let open = scene.plan().steps.into_iter().map(|planned| planned.step).collect();
    scene.state.in_flight = open;
    assert_eq!(scene.steps(), Vec::<String>::new(), "these still count");
}

#[test]
fn where_memory_is_short_rows_go_before_outputs() {
    let scene = |idle: u64| {
        let mut scene = Scene::new(1)
            .coming(0, 0, &[0.0; 8])
            .rows(0, 0, (20, 0), idle)
            .output(0, 900.0, 0, &[0.0; 8]);
        scene.view.nodes.get_mut(&NodeId(0)).unwrap().memory_bytes = 95 * MIB;
        scene
    };
    assert_eq!(scene(99).steps(), ["release trades/0 n0"]);
    assert!(scene(0).steps().iter().all(|step| step.starts_with("drop output")));
}

#[test]
fn people_are_asked_where_they_want_to_be() {
    let mut scene = Scene::new(1).coming(0, 0, &[3.0; 8]).rows(0, 0, (0, 8), 99);
    scene.state.controls.set("trades", Some(Control::Suggest));
    let plan = scene.plan();
    assert_eq!((plan.steps.len(), plan.suggested.len()), (0, 1));
    assert_eq!(plan.suggested[0].step.to_string(), "prefetch trades/0 n0");
    scene.state.controls.set("trades", Some(Control::Observe));
    let plan = scene.plan();
    assert_eq!((plan.steps.len(), plan.suggested.len()), (0, 0));
}

/// Partitions on three nodes: MiB held and missing, ticks since they were read, calls now and to come.
type Drawn = (u32, (u64, u64), u64, f64, f64);

fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
    let calls = || prop_oneof![Just(0.0), 0.0..4.0];
    let one = (0_u32..3, (0_u64..20, 0_u64..20), 0_u64..20, calls(), calls());
    prop::collection::vec(one, 1..9)
}

fn scene(drawn: &[Drawn]) -> Scene {
    let mut scene = Scene::new(3);
    for (ordinal, (node, rows, idle, now, to_come)) in (0..).zip(drawn) {
        scene = scene
            .coming(ordinal, *node, &[*to_come; 12])
            .called_now(ordinal, *now)
            .rows(ordinal, *node, *rows, *idle);
    }
    scene
}

fn of_rows(step: &Step) -> bool {
    matches!(step, Step::Prefetch { .. } | Step::Release { .. })
}

proptest! {
    #[test]
    fn rows_stay_within_their_share_and_only_what_nobody_needs_goes(
        drawn in drawn(), inverted in any::<bool>(),
    ) {
        let mut scene = scene(&drawn);
        if inverted {
            scene.forecast = invert(&scene.forecast);
        }
        let within = |scene: &Scene, node: NodeId| {
            let rows = scene.view.rows.iter().filter(|((_, of), _)| *of == node);
            rows.map(|(_, rows)| rows.bytes).sum::<u64>() as f64 <= ROWS_SHARE * 100.0 * MIB as f64
        };
        prop_assert_eq!(scene.plan(), scene.plan());
        let plan = scene.plan();
        for Planned { step, worth, .. } in plan.steps.iter().filter(|it| of_rows(&it.step)) {
            let before = scene.clone();
            scene.carry_out(step);
            match step {
                Step::Prefetch { partition, node } => {
                    prop_assert!(before.view.partitions[partition].holders.contains(node));
                    prop_assert!(within(&scene, *node), "{step}");
                    prop_assert!(worth.benefit_ns >= 0.1 * worth.cost_ns, "{step}");
                }
                Step::Release { partition, node } => {
                    let (_, _, idle, now, _) = drawn[partition.ordinal as usize];
                    prop_assert!(idle >= 8 && now < 0.01, "{step}");
                    let rows = before.view.rows[&(partition.clone(), *node)];
                    prop_assert!(rows.bytes > 0);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn reading_ahead_and_letting_go_settles(drawn in drawn()) {
        let mut scene = scene(&drawn);
        for _ in 0..20 {
            let steps: Vec<Step> = scene.plan().steps.into_iter().map(|it| it.step).collect();
            let rows: Vec<Step> = steps.into_iter().filter(of_rows).collect();
            if rows.is_empty() {
                return Ok(());
            }
            rows.iter().for_each(|step| scene.carry_out(step));
        }
        prop_assert!(false, "it goes on and on");
    }
}

/// MiB that queries read from files over ten rounds: eight partitions of 10 MiB of which five find room, two of
/// them called three times a tick for ten ticks each, one after the other.
fn read_by_queries(told: Option<fn(&Forecast) -> Forecast>) -> u64 {
    const PARTS: u64 = 8;
    let calls = |ordinal: u64, tick: u64| {
        let turn = tick / 10 % PARTS;
        if turn == ordinal || (turn + 1) % PARTS == ordinal { 3.0 } else { 0.0 }
    };
    let mut scene = Scene::new(1);
    for ordinal in 0..PARTS {
        let held = if ordinal < 5 { (10, 0) } else { (0, 10) };
        scene = scene.coming(ordinal as u32, 0, &[0.0; 12]).rows(ordinal as u32, 0, held, 99);
    }
    let mut read = 0;
    for tick in 0..10 * 10 * PARTS {
        for ((partition, _), rows) in &mut scene.view.rows {
            let called = calls(partition.ordinal.into(), tick);
            read += called as u64 * rows.bytes_missing / MIB;
            rows.idle_ms = if called > 0.0 { 0 } else { rows.idle_ms + 1_000 };
        }
        for series in &mut scene.forecast.series {
            let ordinal = series.key.partition.ordinal.into();
            let coming = (1..=12).map(|ahead| Quantiles::exactly(calls(ordinal, tick + ahead)));
            series.calls = coming.collect();
            series.calls_now = calls(ordinal, tick);
        }
        let Some(told) = told else { continue };
        let forecast = told(&scene.forecast);
        let plan = plan(&scene.view, Some(&forecast), &scene.state, &scene.config, Tick(tick));
        for step in plan.steps.iter().map(|planned| &planned.step).filter(|step| of_rows(step)) {
            scene.carry_out(step);
        }
    }
    read
}

#[test]
fn queries_read_little_from_files_and_with_a_wrong_forecast_no_more_than_without_one() {
    let first_come = read_by_queries(None);
    let forecast = read_by_queries(Some(Forecast::clone));
    let inverted = read_by_queries(Some(invert));
    assert_eq!(first_come, 3 * 10 * 2 * 3 * 10 * 10, "three of eight are never there");
    assert!(forecast * 20 < first_come, "{forecast} MiB instead of {first_come}");
    assert!(inverted * 20 <= first_come * 21, "{inverted} MiB instead of {first_come}");
}
