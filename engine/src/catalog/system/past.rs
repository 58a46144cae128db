//! What was called, from memory and from disk in one: `system.calls`, and the table function
//! `function_stats('2026-11-29', '2026-11-30')`.
//!
//! Single calls are in memory, the newest so many; before those there are the sums that disk has of them, by
//! the second, minute or hour. Both are views over [`HistoryTable`], so conditions on time and names choose
//! files and row groups.

use std::fmt;
use std::sync::{Arc, Weak};

use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err};
use datafusion::datasource::{MemTable, ViewTable, provider_as_source};
use datafusion::functions::expr_fn::{greatest, sqrt};
use datafusion::functions_aggregate::expr_fn::{max, min, sum};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, col, lit};
use datafusion::prelude::SessionContext;
use foreshard_actors::calls::RECENT_MAX;
use foreshard_actors::history_store::{FUNCTION, START};
use foreshard_policy::history::Resolution;

use super::buckets::HistoryTable;
use super::history;
use crate::engine::Inner;
use crate::error::EngineError;
use crate::statements::moment;

/// Columns that tell series apart.
const SERIES: [&str; 4] = [FUNCTION, "expression", "table_name", "partition"];

/// Columns of both kinds of rows that are sums.
const SUMS: [&str; 7] =
    ["rows", "rows_stored", "rows_fresh", "rows_fresh_stored", "ns", "would_be_ns", "bytes"];

fn at(ms: u64) -> Expr {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    lit(ScalarValue::TimestampMillisecond(Some(ms), Some("UTC".into())))
}

/// `system.calls`: the newest calls one by one, in memory, and what was called before them as sums, from
/// disk. No call is in both.
pub(super) fn calls(engine: &Inner) -> Result<Arc<dyn TableProvider>> {
    let mut calls = engine.the_loop.recent_calls();
    let oldest = calls.iter().map(|call| call.at_ms).min();
    let second = |ms: u64| Resolution::Second.start(ms);
    // Of the second in which the oldest one ended there may be others that are not in memory any more.
    let is_whole = calls.len() < RECENT_MAX;
    let from_ms = oldest.map_or(u64::MAX, |ms| second(ms) + u64::from(!is_whole) * 1_000);
    calls.retain(|call| call.at_ms >= from_ms);
    let memory = history::calls(&calls).finish()?;
    let memory = MemTable::try_new(memory.schema(), vec![vec![memory]])?;
    let memory = LogicalPlanBuilder::scan("memory", provider_as_source(Arc::new(memory)), None)?;
    // A bucket in which memory begins would tell some calls again.
    let is_before = col(START).lt(at(Resolution::Hour.start(from_ms)));
    let is_second = col("resolution").eq(lit(Resolution::Second.name()));
    let absent = |kind: DataType, name: &str| {
        Ok::<_, datafusion::error::DataFusionError>(lit(ScalarValue::try_from(&kind)?).alias(name))
    };
    let mut columns = vec![col(START).alias("at"), absent(DataType::UInt64, "query")?];
    columns.extend(SERIES.map(col));
    columns.push(absent(DataType::Utf8, "node")?);
    columns.extend(SUMS.map(col));
    columns.push(absent(DataType::UInt64, "waited_ns")?);
    columns.extend(["calls", "resolution"].map(col));
    let plan = scan(engine)?
        .filter(col(START).lt(at(from_ms)))?
        .filter(is_second.or(is_before))?
        .project(columns)?
        .union(memory.build()?)?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

fn scan(engine: &Inner) -> Result<LogicalPlanBuilder> {
    let table = Arc::new(HistoryTable::new(engine.the_loop.history_store()));
    LogicalPlanBuilder::scan("history", provider_as_source(table), None)
}

/// What each series came to in the buckets that begin from one moment to another, the end not included.
fn stats(engine: &Inner, from_ms: u64, to_ms: u64) -> Result<Arc<dyn TableProvider>> {
    let real = |expr: Expr| cast(expr, DataType::Float64);
    let span_ns = to_ms.saturating_sub(from_ms) as f64 * 1e6;
    let mut sums: Vec<Expr> =
        SUMS.iter().chain(&["calls"]).map(|name| sum(col(*name)).alias(*name)).collect();
    sums.push(sum(col("would_be_ns_squares")).alias("squares"));
    sums.push(max(col("in_flight_max")).alias("in_flight_max"));
    sums.push(min(col(START)).alias("first"));
    sums.push(max(col(START)).alias("last"));
    let calls = || real(col("calls"));
    let mean = || real(col("would_be_ns")) / calls();
    let variance = col("squares") / calls() - mean() * mean();
    let mut columns: Vec<Expr> = SERIES.map(col).into();
    columns.push(col("calls"));
    columns.extend(SUMS.map(col));
    columns.extend([
        (calls() / lit(span_ns / 1e9)).alias("calls_per_s_mean"),
        mean().alias("ns_per_call_mean"),
        sqrt(greatest(vec![variance, lit(0.0)])).alias("ns_per_call_deviation"),
        (real(col("ns")) / lit(span_ns)).alias("in_flight_mean"),
    ]);
    columns.extend(["in_flight_max", "first", "last"].map(col));
    let plan = scan(engine)?
        .filter(col(START).gt_eq(at(from_ms)))?
        .filter(col(START).lt(at(to_ms)))?
        .aggregate(SERIES.map(col), sums)?
        .filter(col("calls").gt(lit(0_u64)))?
        .project(columns)?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

/// `function_stats('from', 'to')`. It knows the engine weakly, because the engine's sessions hold it.
struct FunctionStats(Weak<Inner>);

impl fmt::Debug for FunctionStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("function_stats")
    }
}

/// Lets a session use `function_stats`.
pub(crate) fn function_stats(context: &SessionContext, engine: &Arc<Inner>) {
    let function = FunctionStats(Arc::downgrade(engine));
    context.register_udtf("function_stats", Arc::new(function));
}

impl TableFunctionImpl for FunctionStats {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let engine = self.0.upgrade();
        let engine = engine.ok_or_else(|| exec_datafusion_err!("the engine has stopped"))?;
        let text = |expr: &Expr| match expr {
            Expr::Literal(value, _) => value.try_as_str().flatten().map(ToOwned::to_owned),
            _ => None,
        };
        let texts: Option<Vec<String>> = args.exprs().iter().map(text).collect();
        let [from, to] = texts.as_deref().unwrap_or_default() else {
            let message =
                "function_stats takes two moments: function_stats('2026-11-29', '2026-11-30')";
            return Err(EngineError::Invalid { message: message.to_owned() }.into());
        };
        let (from_ms, to_ms) = (moment(from)?, moment(to)?);
        if from_ms >= to_ms {
            let message = format!("function_stats: {from:?} must be before {to:?}");
            return Err(EngineError::Invalid { message }.into());
        }
        stats(&engine, from_ms, to_ms)
    }
}
