//! System tables about what was called, and what was decided.

use std::collections::BTreeSet;

use foreshard_actors::ports::Cluster;
use foreshard_policy::alike;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::decision::DecisionRow;
use foreshard_policy::history::SeriesStats;
use foreshard_policy::ids::{NodeId, PartitionId};
use foreshard_policy::trust::KindTrust;

use crate::catalog::system::sheet::Sheet;
use crate::engine::Inner;

fn partition(id: &PartitionId) -> u64 {
    u64::from(id.ordinal)
}

/// Rows of `system.calls` of which each is one call: of a function expression on a partition in a task.
pub(super) fn calls(calls: &[CallRecord]) -> Sheet {
    let rows = || calls.iter();
    Sheet::default()
        .moment("at", rows().map(|call| call.at_ms))
        .count("query", rows().map(|call| call.query))
        .text("function", rows().map(|call| &call.function))
        .text("expression", rows().map(|call| call.expression))
        .text("table_name", rows().map(|call| &call.partition.table))
        .count("partition", rows().map(|call| partition(&call.partition)))
        .text("node", rows().map(|call| call.node))
        .count("rows", rows().map(|call| call.rows))
        .count("rows_stored", rows().map(|call| call.rows_stored))
        .count("rows_fresh", rows().map(|call| call.rows_fresh))
        .count("rows_fresh_stored", rows().map(|call| call.rows_fresh_stored))
        .count("ns", rows().map(|call| call.ns))
        .count("would_be_ns", rows().map(|call| call.would_be_ns))
        .count("bytes", rows().map(|call| call.bytes))
        .count_or_null("waited_ns", rows().map(|call| Some(call.waited_ns)))
        .count("calls", rows().map(|_| 1))
        .text("resolution", rows().map(|_| "call"))
}

/// `system.function_stats`: rolling frequency and duration of each series.
pub(super) fn function_stats(engine: &Inner) -> Sheet {
    let history = engine.the_loop.history();
    let rows = || history.series.iter();
    let quantile = |share: f64| rows().map(move |series| series.durations.quantile(share));
    // Little's law: calls that come in a tick, times the ticks that one takes.
    let tick_ns = (history.tick_ms as f64 * 1e6).max(1.0);
    let in_flight = |stats: &SeriesStats| {
        stats.calls_per_tick.mean * stats.ns as f64 / (stats.calls as f64).max(1.0) / tick_ns
    };
    Sheet::default()
        .text("function", rows().map(|series| &series.key.function))
        .text("expression", rows().map(|series| series.key.expression))
        .text("table_name", rows().map(|series| &series.key.partition.table))
        .count("partition", rows().map(|series| partition(&series.key.partition)))
        .count("calls", rows().map(|series| series.stats.calls))
        .count("rows", rows().map(|series| series.stats.rows))
        .count("rows_stored", rows().map(|series| series.stats.rows_stored))
        .count("ns", rows().map(|series| series.stats.ns))
        .count("would_be_ns", rows().map(|series| series.stats.would_be_ns))
        .number("calls_per_tick_mean", rows().map(|series| series.stats.calls_per_tick.mean))
        .number(
            "calls_per_tick_deviation",
            rows().map(|series| series.stats.calls_per_tick.deviation()),
        )
        .number("ns_per_row_mean", rows().map(|series| series.stats.ns_per_row.mean))
        .number("ns_per_row_deviation", rows().map(|series| series.stats.ns_per_row.deviation()))
        .number("ns_per_call_mean", rows().map(|series| series.stats.ns_per_call.mean))
        .number("ns_per_call_deviation", rows().map(|series| series.stats.ns_per_call.deviation()))
        .count("last_called_tick", rows().map(|series| series.stats.last_called.0))
        .count("bytes", rows().map(|series| series.stats.bytes))
        .number("in_flight_mean", rows().map(|series| in_flight(&series.stats)))
        .number_or_null("duration_ns_p50", quantile(0.5))
        .number_or_null("duration_ns_p95", quantile(0.95))
        .number_or_null("duration_ns_p99", quantile(0.99))
}

/// `system.history_counters`: what the history holds on disk, and what was irregular: dropped, damaged,
/// late or doubled.
pub(super) fn counters(engine: &Inner) -> Sheet {
    let the_loop = &engine.the_loop;
    let mut counters = vec![("calls_dropped", the_loop.calls().dropped())];
    counters.extend(the_loop.irregular().counters());
    let store = the_loop.history_store();
    counters.extend(store.iter().flat_map(|store| store.counters().counters()));
    let rows = || counters.iter();
    Sheet::default()
        .text("name", rows().map(|(name, _)| name))
        .count("value", rows().map(|(_, value)| *value))
}

/// `system.controls`: what the loop may do to each table by itself.
pub(super) fn controls(engine: &Inner) -> Sheet {
    let (controls, config) = (engine.the_loop.controls(), engine.the_loop.config());
    let mut tables: Vec<_> =
        engine.catalog.stores().into_iter().map(|it| it.table().name.clone()).collect();
    tables.sort_unstable();
    let rows = || tables.iter();
    let usual = config.control();
    Sheet::default()
        .text("table_name", rows())
        .text("control", rows().map(|table| controls.own(table).unwrap_or(usual)))
        .flag("is_default", rows().map(|table| controls.own(table).is_none()))
        .flag("frozen", rows().map(|table| controls.is_frozen(table)))
}

/// `system.colocated`: tables that people said belong together, by number of their group, with the ranges of
/// keys that all of the group are cut into, and how many of those are on one node with all of their partitions.
pub(super) fn colocated(engine: &Inner) -> Sheet {
    let (controls, view) = (engine.the_loop.controls(), engine.members.view());
    let holders = |id: &PartitionId| {
        let held = view.partitions.get(id).into_iter().flat_map(|it| &it.holders).copied();
        held.filter(|node| view.nodes.contains_key(node)).collect::<BTreeSet<NodeId>>()
    };
    let is_together = |set: &&Vec<PartitionId>| {
        let common = set.iter().map(holders).reduce(|a, b| &a & &b);
        common.is_some_and(|common| !common.is_empty())
    };
    let mut all = vec![];
    for (number, group) in (1..).zip(controls.groups()) {
        let sets = alike::sets(&view, group);
        let together = sets.iter().filter(is_together).count() as u64;
        all.extend(group.iter().map(|table| (number, table, sets.len() as u64, together)));
    }
    let rows = || all.iter();
    Sheet::default()
        .count("colocation", rows().map(|row| row.0))
        .text("table_name", rows().map(|row| row.1))
        .count("ranges", rows().map(|row| row.2))
        .count("ranges_on_one_node", rows().map(|row| row.3))
}

/// `system.trust`: what the steps of each kind were expected to bring and brought, and how far the kind is
/// trusted now. Where nothing is measured but harm (drops), each step counts as one nanosecond that it spares
/// if it does none.
pub(super) fn trust(engine: &Inner) -> Sheet {
    let kinds = engine.the_loop.trust();
    let rows = || kinds.iter();
    let by_trial = |of: fn((f64, f64)) -> f64| kinds.iter().map(move |kind| kind.by_trial.map(of));
    let left = |kind: &KindTrust| kind.now.steps_left.map(|left| left as u64);
    Sheet::default()
        .text("kind", rows().map(|kind| kind.kind))
        .count("steps", rows().map(|kind| kind.steps))
        .number("expected_ns", rows().map(|kind| kind.expected_ns))
        .number("predicted_ns", rows().map(|kind| kind.predicted_ns))
        .number("measured_ns", rows().map(|kind| kind.measured_ns))
        .number("factor", rows().map(|kind| kind.now.factor))
        .flag("stopped", rows().map(|kind| kind.now.steps_left.is_some()))
        .count_or_null("steps_left", rows().map(left))
        .count("windows", rows().map(|kind| kind.windows as u64))
        .number_or_null("windows_within_30_percent", rows().map(|kind| kind.windows_near))
        .number_or_null("coverage_of_80_percent", rows().map(|kind| kind.coverage))
        .count("held_back", rows().map(|kind| kind.held_back))
        .number_or_null("factor_by_holdback", by_trial(|(factor, _)| factor))
        .number_or_null("factor_by_holdback_error", by_trial(|(_, error)| error))
}

/// `system.decisions`: every step with its inputs, forecast, reason and outcome.
pub(super) fn decisions(engine: &Inner) -> Sheet {
    let decisions = engine.the_loop.decisions();
    let rows = || decisions.iter();
    Sheet::default()
        .count("id", rows().map(|row| row.id))
        .moment("at", rows().map(|row| row.at_ms))
        .count("tick", rows().map(|row| row.tick.0))
        .count("epoch", rows().map(|row| row.epoch.0))
        .text("kind", rows().map(|row| &row.kind))
        .text("target", rows().map(|row| &row.target))
        .text("mode", rows().map(|row| row.mode))
        .text("decided_by", rows().map(|row| row.by))
        .count_or_null("follows", rows().map(|row| row.by.follows()))
        .text("reason", rows().map(|row| &row.reason))
        .text("inputs", rows().map(|row| &row.inputs))
        .text("forecast", rows().map(|row| &row.forecast))
        .text("alternatives", rows().map(|row| row.alternatives.join("; ")))
        .number("expected_benefit_ns", rows().map(|row| row.expected_benefit_ns))
        .number("expected_cost_ns", rows().map(|row| row.expected_cost_ns))
        .number_or_null(
            "expected_measured_ns",
            rows().map(|row| row.predicted.map(|predicted| predicted.mean_ns)),
        )
        .number_or_null(
            "expected_measured_ns_q10",
            rows().map(|row| row.predicted.map(|predicted| predicted.low_ns)),
        )
        .number_or_null(
            "expected_measured_ns_q90",
            rows().map(|row| row.predicted.map(|predicted| predicted.high_ns)),
        )
        .text("outcome", rows().map(DecisionRow::standing))
        .number_or_null("measured_benefit_ns", rows().map(|row| row.measured))
}
