//! The number of nodes as the load rises and falls.

use super::*;
use crate::cluster::NodeView;
use crate::forecast::{Quantiles, SeriesForecast};
use crate::ids::{ExpressionId, PartitionId, SeriesKey};
use proptest::prelude::*;

/// Two permits at 0.5: one busy CPU per node. Ticks of one second.
fn config() -> LoopConfig {
    let allocate = crate::config::AllocateConfig::default()
        .with_target_utilisation(0.5)
        .and_then(|it| it.with_nodes_max(6))
        .and_then(|it| it.with_scale_in_ticks(5))
        .unwrap();
    LoopConfig::default().with_allocate(allocate).unwrap()
}

fn nodes(ids: impl IntoIterator<Item = u32>) -> ClusterView {
    let nodes = ids.into_iter().map(|id| (NodeId(id), NodeView::default()));
    ClusterView { nodes: nodes.collect(), ..ClusterView::default() }
}

/// One call costs one CPU second.
fn load(now: f64, later: f64, trusted: bool) -> Forecast {
    let series = SeriesForecast {
        key: SeriesKey {
            function: "embed".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("trades", 0),
        },
        calls: vec![Quantiles::exactly(now), Quantiles::exactly(later)],
        ns_per_call: 1e9,
        ns_per_row: 1e6,
        bytes_per_row: 8.0,
        weights: Vec::new(),
        calls_now: now,
        calls_season: 1.0,
        standing: crate::forecast::ensemble::Standing::New,
        announced: false,
    };
    Forecast { series: vec![series], trusted, ..Forecast::default() }
}

fn text(plan: &AllocatePlan) -> String {
    let steps = plan.steps.iter().map(|it| format!("{} ({})", it.step, it.reason));
    steps.collect::<Vec<_>>().join("\n")
}

#[test]
fn nodes_are_added_at_once_for_a_load_that_is_expected() {
    let plan = plan(
        &nodes([0, 1]),
        Some(&load(1.5, 3.2, true)),
        &AllocateState::default(),
        &config(),
        Tick(9),
    );
    insta::assert_snapshot!(text(&plan), @"
    add node n2 (3.2 busy CPUs expected: 4 nodes needed, 2 running)
    add node n3 (3.2 busy CPUs expected: 4 nodes needed, 2 running)
    ");
    assert_eq!(plan.budgets.len(), 4);
    assert_eq!(plan.budgets[&NodeId(3)], NodeBudget { cpu_permits: 2, memory_bytes: 1 << 30 });
}

#[test]
fn a_forecast_that_is_not_trusted_adds_nothing_ahead() {
    let distrusted = load(1.5, 3.2, false);
    let plan =
        plan(&nodes([0, 1]), Some(&distrusted), &AllocateState::default(), &config(), Tick(9));
    assert_eq!((text(&plan).as_str(), plan.need), ("", 2));
}

#[test]
fn nodes_that_joined_carry_load_and_are_never_told_to_leave() {
    let mut view = nodes([0, 1, 2, 3, 4, 5, 6]);
    (3..7).for_each(|node| view.nodes.entry(NodeId(node)).or_default().joined = true);
    // Seven nodes are more than the six that may be started, but four of them were not started here.
    let busy = load(7.0, 7.0, true);
    let plan_at = |state: &AllocateState, load: &Forecast, tick| {
        plan(&view, Some(load), state, &config(), Tick(tick))
    };
    let kept = plan_at(&AllocateState::default(), &busy, 1);
    assert_eq!((text(&kept).as_str(), kept.need, kept.budgets.len()), ("", 3, 7));
    let more = plan_at(&AllocateState::default(), &load(8.0, 8.0, true), 1);
    assert_eq!(text(&more), "add node n7 (8.0 busy CPUs expected: 4 nodes needed, 3 running)");
    let idle = load(0.0, 0.0, true);
    let waiting = plan_at(&AllocateState::default(), &idle, 1);
    let removed: Vec<Step> =
        plan_at(&waiting.state, &idle, 9).steps.into_iter().map(|it| it.step).collect();
    assert_eq!(removed, [2, 1].map(|node| Step::RemoveNode { node: NodeId(node) }));
}

#[test]
fn nodes_that_are_being_added_are_not_added_again() {
    let first = plan(
        &nodes([0]),
        Some(&load(3.0, 3.0, true)),
        &AllocateState::default(),
        &config(),
        Tick(1),
    );
    assert_eq!(first.steps.len(), 2);
    let second = plan(&nodes([0]), Some(&load(3.0, 3.0, true)), &first.state, &config(), Tick(2));
    assert_eq!(second.steps, []);
    let third =
        plan(&nodes([0, 1, 2]), Some(&load(3.0, 3.0, true)), &second.state, &config(), Tick(3));
    assert_eq!((third.steps.len(), third.state.adding.len()), (0, 0));
}

#[test]
fn a_node_is_removed_only_after_fewer_were_enough_for_a_while() {
    let (mut state, mut log) = (AllocateState::default(), Vec::new());
    for tick in 0..12 {
        // A short rise at tick 3 starts the wait again; one at tick 6 asks for 2 of the 3 nodes.
        let busy = match tick {
            3 => 2.5,
            6 => 1.5,
            _ => 0.5,
        };
        let plan =
            plan(&nodes([0, 1, 2]), Some(&load(busy, busy, true)), &state, &config(), Tick(tick));
        if !plan.steps.is_empty() {
            log.push(format!("{tick}: {}", text(&plan)));
        }
        state = plan.state;
    }
    insta::assert_snapshot!(log.join("\n"), @"9: remove node n2 (0.5 busy CPUs: 2 nodes were enough for 5 ticks, 3 running)");
}

#[test]
fn the_settings_bound_the_number_of_nodes() {
    let none = AllocateState::default();
    let few = plan(&nodes([]), None, &none, &config(), Tick(1));
    assert_eq!(text(&few), "add node n0 (0 nodes running, the settings ask for 1)");
    let many = plan(&nodes(0..8), Some(&load(99.0, 99.0, true)), &none, &config(), Tick(1));
    insta::assert_snapshot!(text(&many), @"
    remove node n7 (8 nodes running, the settings ask for 6)
    remove node n6 (8 nodes running, the settings ask for 6)
    ");
}

#[test]
fn a_draining_node_does_not_count_and_a_name_is_never_used_twice() {
    let mut view = nodes([0, 4]);
    view.nodes.get_mut(&NodeId(4)).unwrap().draining = true;
    let plan =
        plan(&view, Some(&load(1.5, 1.5, true)), &AllocateState::default(), &config(), Tick(1));
    assert_eq!(text(&plan), "add node n5 (1.5 busy CPUs expected: 2 nodes needed, 1 running)");
    assert_eq!(plan.budgets.keys().map(|node| node.0).collect::<Vec<_>>(), [0, 5]);
}

#[test]
fn in_mode_off_nothing_is_added_or_removed() {
    let config = config().with_mode(Mode::Off).unwrap();
    let plan =
        plan(&nodes([]), Some(&load(9.0, 9.0, true)), &AllocateState::default(), &config, Tick(1));
    assert_eq!(plan.steps, []);
}

#[test]
fn a_node_that_cannot_be_added_is_not_asked_for_in_every_tick() {
    let (mut state, mut asked) = (AllocateState::default(), Vec::new());
    for tick in 0..100 {
        let plan = plan(&nodes([0]), Some(&load(3.0, 3.0, true)), &state, &config(), Tick(tick));
        state = plan.state;
        for planned in plan.steps {
            let Step::AddNode { node } = planned.step else { panic!("{}", planned.step) };
            asked.push((tick, node.0));
            state.not_added(node, Tick(tick));
        }
    }
    // Two nodes are needed; the rests are 8, 16, 32 and 64 ticks.
    assert_eq!(asked, [0, 8, 24, 56].map(|tick| [(tick, 1), (tick, 2)]).concat());
    state.added(NodeId(1));
    let plan = plan(&nodes([0]), Some(&load(3.0, 3.0, true)), &state, &config(), Tick(100));
    assert_eq!(plan.steps.len(), 2, "one could be added, so others can");
}

#[test]
fn nodes_that_must_leave_first_do_whatever_they_hold() {
    let mut view = nodes([0, 1, 2, 3]);
    for (node, leaves) in [(1, 2), (2, 3), (3, 1)] {
        view.nodes.entry(NodeId(node)).or_default().leaves = leaves;
    }
    let holders = BTreeSet::from([NodeId(2)]);
    let held = crate::cluster::PartitionView { holders, ..Default::default() };
    view.partitions.insert(PartitionId::new("trades", 0), held);
    let idle = load(0.0, 0.0, true);
    let waiting = plan(&view, Some(&idle), &AllocateState::default(), &config(), Tick(1));
    let removed = plan(&view, Some(&idle), &waiting.state, &config(), Tick(9)).steps;
    let removed: Vec<Step> = removed.into_iter().map(|it| it.step).collect();
    assert_eq!(removed, [2, 1, 3].map(|node| Step::RemoveNode { node: NodeId(node) }));
}

proptest! {
    #[test]
    fn whatever_the_load_nodes_stay_within_bounds_and_it_settles(
        start in prop::collection::btree_set(0u32..12, 0..9),
        loads in prop::collection::vec((0.0..9.0f64, 0.0..9.0f64, any::<bool>()), 1..30),
    ) {
        let config = config();
        let (mut view, mut state) = (nodes(start), AllocateState::default());
        let last = loads.last().copied().unwrap();
        let settle = std::iter::repeat_n(last, 20);
        let mut steps = 0;
        for (tick, (now, later, trusted)) in (0..).zip(loads.iter().copied().chain(settle)) {
            let forecast = load(now, later, trusted);
            let made = plan(&view, Some(&forecast), &state, &config, Tick(tick));
            prop_assert_eq!(&made, &plan(&view, Some(&forecast), &state, &config, Tick(tick)));
            let kinds: BTreeSet<_> = made.steps.iter().map(|it| it.step.kind()).collect();
            prop_assert!(kinds.len() <= 1, "never both in one plan");
            for it in &made.steps {
                match &it.step {
                    Step::AddNode { node } => {
                        prop_assert!(view.nodes.insert(*node, NodeView::default()).is_none());
                    }
                    Step::RemoveNode { node } => {
                        prop_assert!(view.nodes.remove(node).is_some());
                    }
                    other => prop_assert!(false, "{other}"),
                }
            }
            prop_assert!((1..=6).contains(&view.nodes.len()), "{} nodes", view.nodes.len());
            steps = made.steps.len();
            state = made.state;
        }
        prop_assert_eq!(steps, 0);
    }
}

#[test]
fn an_announced_load_gets_its_nodes_though_forecasts_are_not_trusted() {
    let needed = |forecast: &Forecast| {
        plan(&nodes([0, 1]), Some(forecast), &AllocateState::default(), &config(), Tick(9)).need
    };
    let mut forecast = load(1.5, 3.2, false);
    assert_eq!(needed(&forecast), 2);
    // Beside it, a series that is expected to grow, which nobody announced.
    forecast.series.push(load(0.4, 9.0, false).series[0].clone());
    forecast.series[0].announced = true;
    assert_eq!(needed(&forecast), 4);
}

#[test]
fn those_who_start_nodes_themselves_are_told_what_is_needed_by_the_time_that_they_take() {
    let mut forecast = load(1.5, 1.5, true);
    let calls = (0..12).map(|tick| Quantiles::exactly(if tick < 8 { 1.5 } else { 4.5 }));
    forecast.series[0].calls = calls.collect();
    let within = |forecast: &Forecast, ticks| nodes_within(forecast, ticks, &config());
    assert_eq!([1, 8, 9, 12].map(|ticks| within(&forecast, ticks)), [2, 2, 5, 5]);
    forecast.trusted = false;
    assert_eq!(within(&forecast, 12), 2, "what is not trusted is not acted on");
    assert_eq!(within(&load(0.0, 0.0, true), 12), 0);
}

#[test]
fn where_moves_take_time_nodes_come_so_early_that_they_are_ready() {
    let config = config().with_horizon_ticks(40).unwrap();
    let slow = config.allocate().clone().with_move_ticks(3).unwrap();
    let config = config.with_allocate(slow).unwrap();
    let ticks = Migration::of_step(3.0).slots(2, 4);
    let rising_in = |tick: usize| {
        let mut forecast = load(1.8, 1.8, true);
        let calls = (0..40).map(|at| Quantiles::exactly(if at < tick { 1.8 } else { 3.9 }));
        forecast.series[0].calls = calls.collect();
        forecast
    };
    let need = |forecast: &Forecast| {
        plan(&nodes([0, 1]), Some(forecast), &AllocateState::default(), &config, Tick(9)).need
    };
    assert_eq!(need(&rising_in(ticks + 6)), 2, "there is time");
    assert!(need(&rising_in(ticks)) > 2, "now or too late");
    let distrusted = Forecast { trusted: false, ..rising_in(ticks) };
    assert_eq!(need(&distrusted), 2);
    // What is measured now is carried, whatever is expected.
    let mut surprised = rising_in(99);
    surprised.series[0].calls_now = 4.5;
    assert_eq!(need(&surprised), 5);
}

#[test]
fn nodes_that_wait_for_approval_are_suggested_as_long_as_they_are_needed() {
    let asked = config().with_control(Control::Suggest).unwrap();
    let (few, many) = (load(0.5, 0.5, true), load(3.0, 3.0, true));
    let mut state = AllocateState::default();
    let mut suggested = |forecast: &Forecast, tick: u64| {
        let plan = plan(&nodes([0, 1]), Some(forecast), &state, &asked, Tick(tick));
        assert_eq!((plan.steps.len(), plan.budgets.len()), (0, 2));
        state = plan.state;
        plan.suggested.iter().map(|it| it.step.to_string()).collect::<Vec<_>>().join(", ")
    };
    assert_eq!([1, 2].map(|tick| suggested(&many, tick)), ["add node n2", "add node n2"]);
    let waiting: Vec<_> = (3..11).map(|tick| suggested(&few, tick)).collect();
    assert_eq!(waiting[..5], [""; 5]);
    assert_eq!(waiting[5..], ["remove node n1"; 3], "it stays suggested");
    let observed = config().with_control(Control::Observe).unwrap();
    let plan = plan(&nodes([0, 1]), Some(&many), &state, &observed, Tick(12));
    assert_eq!((plan.steps, plan.suggested, plan.need), (vec![], vec![], 3));
}

/// At most so many node-hours a day.
fn budgeted(hours: f64) -> LoopConfig {
    let allocate = config().allocate().clone().with_node_hours_max(hours).unwrap();
    config().with_allocate(allocate).unwrap()
}

/// A state at so many hours after midnight.
fn at_hour(hour: u64) -> AllocateState {
    AllocateState { clock_ms: Some(hour * 3_600_000), ..AllocateState::default() }
}

#[test]
fn no_more_nodes_are_asked_for_than_the_node_hours_of_the_day_allow() {
    let busy = load(5.0, 5.0, true);
    let plan_at = |hour, nodes_now: u32, hours| {
        plan(&nodes(0..nodes_now), Some(&busy), &at_hour(hour), &budgeted(hours), Tick(1))
    };
    let enough = plan_at(12, 2, 60.0);
    assert_eq!((enough.steps.len(), enough.waiting.len(), enough.need), (3, 0, 5));
    let scarce = plan_at(12, 2, 36.0);
    assert_eq!(text(&scarce), "add node n2 (5.0 busy CPUs expected: 3 nodes needed, 2 running)");
    assert_eq!(
        scarce.waiting[0].reason.to_string(),
        "36.0 node-hours are left for the 12.0 hours of the day, which is 3 nodes; the load takes 5 \
         (allocate.node-hours-max)"
    );
    let over = plan_at(12, 4, 36.0);
    assert_eq!(over.steps.len(), 1);
    assert_eq!(over.steps[0].step, Step::RemoveNode { node: NodeId(3) });
    assert!(over.steps[0].reason.to_string().starts_with("36.0 node-hours are left"));
    assert_eq!(plan_at(12, 2, 1.0).need, 1, "nodes-min run whatever is left");
    assert_eq!(plan_at(12, 2, 0.0).need, 5, "no limit");
}

proptest! {
    #[test]
    fn no_day_runs_more_node_hours_than_its_budget_beyond_the_least_nodes(
        loads in prop::collection::vec(0.0..9.0f64, 96),
        budget in 24.0..144.0f64,
    ) {
        // Quarters of an hour of two days; nodes come and go at once.
        let settings = budgeted(budget);
        let (mut view, mut state) = (nodes([0]), AllocateState::default());
        let mut node_hours = [0.0; 2];
        for (quarter, busy) in loads.iter().enumerate().flat_map(|it| [it, it]).enumerate() {
            state.clock_ms = Some(quarter as u64 * 900_000);
            let forecast = load(*busy.1, *busy.1, true);
            let plan = plan(&view, Some(&forecast), &state, &settings, Tick(quarter as u64 * 900));
            state = plan.state;
            for planned in plan.steps {
                match planned.step {
                    Step::AddNode { node } => drop(view.nodes.insert(node, NodeView::default())),
                    step => view.apply(&step),
                }
            }
            prop_assert!(!view.nodes.is_empty() && view.nodes.len() <= 6);
            node_hours[quarter / 96] += view.nodes.len() as f64 / 4.0;
        }
        for hours in node_hours {
            prop_assert!(hours <= budget + 1e-6, "{hours} of {budget}");
        }
    }
}
