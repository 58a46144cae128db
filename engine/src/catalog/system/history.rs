//! System tables about what was called, and what was decided.

use foreshard_policy::decision::Outcome;
use foreshard_policy::ids::PartitionId;

use crate::catalog::system::sheet::Sheet;
use crate::engine::Inner;

fn partition(id: &PartitionId) -> u64 {
    u64::from(id.ordinal)
}

/// `system.calls`: the newest calls, one row per function expression, partition and task.
pub(super) fn calls(engine: &Inner) -> Sheet {
    let calls = engine.the_loop.recent_calls();
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
}

/// `system.function_stats`: rolling frequency and duration of each series.
pub(super) fn function_stats(engine: &Inner) -> Sheet {
    let history = engine.the_loop.history();
    let rows = || history.series.iter();
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
}

/// `system.decisions`: every step with its inputs, forecast, reason and outcome.
pub(super) fn decisions(engine: &Inner) -> Sheet {
    let decisions = engine.the_loop.decisions();
    let rows = || decisions.iter();
    let outcome = |outcome: &Option<Outcome>| match outcome {
        None => "under way".to_owned(),
        Some(Outcome::Done { rows, bytes, ns }) => {
            format!("done: {rows} rows, {bytes} bytes, {:.1} ms", *ns as f64 / 1e6)
        }
        Some(Outcome::Failed { code, reason }) => format!("failed: {code} {reason}"),
    };
    Sheet::default()
        .count("id", rows().map(|row| row.id))
        .moment("at", rows().map(|row| row.at_ms))
        .count("tick", rows().map(|row| row.tick.0))
        .count("epoch", rows().map(|row| row.epoch.0))
        .text("kind", rows().map(|row| &row.kind))
        .text("target", rows().map(|row| &row.target))
        .text("mode", rows().map(|row| row.mode))
        .text("reason", rows().map(|row| &row.reason))
        .text("inputs", rows().map(|row| &row.inputs))
        .text("forecast", rows().map(|row| &row.forecast))
        .text("alternatives", rows().map(|row| row.alternatives.join("; ")))
        .number("expected_benefit_ns", rows().map(|row| row.expected_benefit_ns))
        .number("expected_cost_ns", rows().map(|row| row.expected_cost_ns))
        .text("outcome", rows().map(|row| outcome(&row.outcome)))
        .number_or_null("measured_benefit_ns", rows().map(|row| row.measured))
}
