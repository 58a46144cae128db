//! What is found by walking sorted lists is what a plain search finds.

use super::*;
use crate::reshape::situation::Situation;

type Target = (ExpressionId, PartitionId);

#[derive(Clone, Debug)]
struct Cluster {
    view: ClusterView,
    forecast: Forecast,
    in_flight: Vec<Step>,
    mode: Mode,
}

fn id(number: u32) -> PartitionId {
    PartitionId::new(["lines", "trades"][number as usize % 2], number / 2)
}

fn output(rows_missing: u64) -> OutputView {
    OutputView {
        function: "f".into(),
        rows_stored: 5,
        rows_missing,
        bytes: 5,
        is_state: false,
        pinned: false,
    }
}

fn series(function: u32, expression: u128, partition: u32, calls: f64) -> SeriesForecast {
    let function: std::sync::Arc<str> = format!("f{function}").into();
    let expression = ExpressionId(expression);
    SeriesForecast {
        key: SeriesKey { function, expression, partition: id(partition) },
        calls: (0..12).map(|tick| Quantiles::exactly(calls * f64::from(tick % 5))).collect(),
        ns_per_call: 1e6,
        ns_per_row: 1e3,
        bytes_per_row: 8.0,
        weights: Vec::new(),
        calls_now: calls,
        calls_season: calls,
        standing: crate::forecast::ensemble::Standing::New,
        announced: calls > 3.5,
    }
}

fn steps() -> impl Strategy<Value = Step> {
    (0u32..7, 0u32..24, 0u32..6, 0u32..6, 0u128..6).prop_map(|(kind, part, from, to, number)| {
        let (partition, from, to) = (id(part), NodeId(from), NodeId(to));
        let (function, expression) = ("f".into(), ExpressionId(number));
        match kind {
            0 => Step::Copy { partition, from, to },
            1 => Step::Move { partition, from, to },
            2 => Step::Drop { partition, from },
            3 => Step::Precompute { function, expression, partition },
            4 => Step::DropOutput { function, expression, partition },
            5 => Step::AddNode { node: NodeId(99) },
            _ => Step::RemoveNode { node: from },
        }
    })
}

fn clusters() -> impl Strategy<Value = Cluster> {
    let holders = prop::collection::btree_set(0u32..7, 0..4);
    let parts = prop::collection::btree_map(0u32..20, (holders, 0u64..2), 0..20);
    let outputs = prop::collection::btree_map((0u128..6, 0u32..24), 0u64..3, 0..60);
    let seen = prop::collection::btree_map((0u32..2, 0u128..6, 0u32..24), 0.0..4.0f64, 0..60);
    let modes = prop::sample::select(vec![Mode::Reactive, Mode::Forecast]);
    let steps = prop::collection::vec(steps(), 0..6);
    (parts, outputs, seen, steps, any::<bool>(), modes).prop_map(
        |(parts, outputs, seen, in_flight, trusted, mode)| {
            let mut view = cluster(6);
            for (number, (holders, gib)) in parts {
                let holders = holders.into_iter().map(NodeId).collect();
                let part = PartitionView { holders, rows: 10, bytes: gib << 30 };
                view.partitions.insert(id(number), part);
            }
            for ((number, part), missing) in outputs {
                view.outputs.insert((ExpressionId(number), id(part)), output(missing));
            }
            let seen = seen.into_iter();
            let mut series: Vec<_> =
                seen.map(|((f, number, part), calls)| series(f, number, part, calls)).collect();
            series.sort_by(|a, b| a.key.cmp(&b.key));
            let forecast = Forecast { trusted, tick_ms: 1_000, series, ..Forecast::default() };
            Cluster { view, forecast, in_flight, mode }
        },
    )
}

/// The view as if the steps were done; a node that is being removed is draining.
fn done(cluster: &Cluster) -> ClusterView {
    let mut view = cluster.view.clone();
    for step in &cluster.in_flight {
        match step {
            Step::RemoveNode { node } => {
                view.nodes.get_mut(node).into_iter().for_each(|node| node.draining = true);
            }
            step => view.apply(step),
        }
    }
    view
}

/// The highest tick of the last ones and the horizon.
fn load(cluster: &Cluster, partition: &PartitionId, config: &LoopConfig) -> f64 {
    let of = cluster.forecast.series.iter().filter(|series| series.key.partition == *partition);
    let ahead = |series: &SeriesForecast| {
        config.mode().looks_ahead() && cluster.forecast.may_act_on(series)
    };
    let at = |tick: usize| -> f64 {
        let calls = |series: &SeriesForecast| match tick.checked_sub(1) {
            Some(tick) if ahead(series) => series.calls[tick].mean(),
            _ => series.calls_now,
        };
        of.clone().map(|series| calls(series) * series.ns_per_call / 1e6).sum()
    };
    (0..=config.horizon_ticks()).map(at).fold(0.0, f64::max)
}

fn series_of<'a>(cluster: &'a Cluster, target: &Target) -> Option<&'a SeriesForecast> {
    let mut of = cluster.forecast.series.iter().filter(|series| {
        series.key.expression == target.0
            && series.key.partition == target.1
            && cluster.forecast.may_act_on(series)
    });
    of.next_back()
}

proptest! {
    #[test]
    fn partitions_and_their_load_are_those_of_the_view_with_the_steps_done(cluster in clusters()) {
        let config = LoopConfig::default().with_mode(cluster.mode).unwrap();
        let state = PlanState { in_flight: cluster.in_flight.clone(), ..PlanState::default() };
        let forecast = Some(&cluster.forecast);
        let found = Situation::new(&cluster.view, forecast, &state, &config, Tick(1));
        let plain = done(&cluster);
        prop_assert_eq!(&found.nodes, &plain.nodes);
        let mut busy: BTreeMap<NodeId, f64> = plain.nodes.keys().map(|node| (*node, 0.0)).collect();
        for (place, (id, view)) in plain.partitions.iter().enumerate() {
            let part = &found.parts[place];
            prop_assert_eq!((part.id, part.holders()), (id, &view.holders));
            let expected = load(&cluster, id, &config);
            prop_assert!((part.busy_ms - expected).abs() < 1e-9);
            let holders = live(&plain, id);
            let share = part.busy_ms / holders.len() as f64;
            holders.into_iter().for_each(|node| *busy.get_mut(node).unwrap() += share);
            let staying = found.staying(place).chain(found.leaving(place)).collect::<BTreeSet<_>>();
            prop_assert_eq!(staying, live(&plain, id).into_iter().copied().collect());
        }
        for (node, busy) in busy {
            prop_assert!((found.node_busy_ms[&node] - busy).abs() < 1e-6);
        }
        let heat = found.by_heat();
        let hotter = |pair: &[usize]| found.parts[pair[0]].busy_ms >= found.parts[pair[1]].busy_ms;
        prop_assert!(heat.windows(2).all(hotter));
        for place in heat {
            let all = found.targets(place, usize::MAX);
            for count in 1..4 {
                prop_assert_eq!(&found.targets(place, count), &all[..count.min(all.len())]);
            }
        }
    }

    #[test]
    fn outputs_are_found_with_what_is_expected_of_them(cluster in clusters()) {
        let config = LoopConfig::default().with_mode(cluster.mode).unwrap();
        let state = PlanState { in_flight: cluster.in_flight.clone(), ..PlanState::default() };
        let forecast = Some(&cluster.forecast);
        let found = Situation::new(&cluster.view, forecast, &state, &config, Tick(1));
        let plain = done(&cluster);
        let looks_ahead = cluster.mode.looks_ahead();
        let known = plain.outputs.iter().filter(|(_, output)| output.rows_missing > 0);
        let known: Vec<_> = known
            .filter_map(|(target, output)| {
                let series = series_of(&cluster, target).filter(|_| looks_ahead)?;
                Some((target.clone(), output.clone(), series.clone()))
            })
            .collect();
        let walked = found.ahead.known(|output| output.rows_missing > 0);
        let walked: Vec<_> = walked.map(|(a, b, c)| (a.clone(), b.clone(), c.clone())).collect();
        prop_assert_eq!(walked, known);
        let mut near = 0;
        for (target, _) in plain.outputs {
            let place = found.place_near(&target.1, &mut near);
            prop_assert_eq!(place, found.place(&target.1));
        }
    }
}
