//! Calls that every row needs: looked up, taken from who computes them at the same time, or computed.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use datafusion::common::{DataFusionError, Result};
use datafusion::physical_expr::PhysicalExpr;
use foreshard_actors::calls::Liar;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::NodeState;
use foreshard_actors::partition::{ComputeError, PartitionMessage, Selected, evaluate, keep_rows};
use foreshard_policy::ids::PartitionId;
use foreshard_udfs::{calls_asynchronously, evaluate_later};
use tracing::Instrument;

use crate::query::context::LocalNodes;
use crate::query::functions::quarantine;
use crate::query::stream::call::SegmentCall;
use crate::query::stream::rest::Rest;
use crate::query::stream::segment::OpenSegment;
use crate::query::stream::work::{Call, Step, Work};

/// Rows that are computed again in one check.
const ROWS_CHECKED: usize = 64;

/// Who computes the same batch is waited for so many times as long as computing it takes, and a little.
const PATIENCE: u32 = 2;

/// The little.
const PATIENCE_MIN: Duration = Duration::from_millis(100);

/// Makes the calls that `step` needs on every row columns of `rest`.
pub(super) async fn ensure(
    work: &Work,
    nodes: &LocalNodes,
    open: &mut OpenSegment,
    rest: &mut Rest,
    step: &Step,
) -> Result<()> {
    // Nothing of an open segment is shared across a wait: its stream is not made for that.
    let node = Arc::clone(&open.node);
    for i in open.columns_needed(step, rest) {
        let call = Arc::clone(&open.calls[i]);
        let found = call.look(rest.selected.as_ref())?;
        if !found.values.is_empty() && node.is_check_due(work.check_every) {
            let rows = match &found.known {
                None => rest.batch.clone(),
                Some(known) => {
                    keep_rows(&rest.batch, &BooleanArray::from(known.clone()), |_| true)?
                }
            };
            let (expr, partition) = (&work.calls[i].expr, open.partition.clone());
            check(expr, &call.expression, &rows, &found.values, partition, nodes).await?;
        }
        let values = match &found.known {
            None => {
                call.answered(rest.selected.as_ref(), None, 0)?;
                found.values
            }
            Some(known) => {
                let rows = known.len() - known.count_set_bits();
                in_turn(&node, &work.calls[i], &call, rest, found, rows).await?
            }
        };
        rest.add(i, values, work.calls[i].field.data_type())?;
    }
    Ok(())
}

/// The values of a call of which `missing` rows are not known, as soon as nobody else computes them.
async fn in_turn(
    node: &NodeState,
    call: &Call,
    segment: &SegmentCall,
    rest: &Rest,
    found: Selected,
    missing: usize,
) -> Result<ArrayRef> {
    let Some(flight) = &segment.flight else {
        return compute(node, call, segment, rest, &found).await;
    };
    let ns = segment.expression.ns_per_row().saturating_mul(missing as u64);
    let longest = PATIENCE_MIN.saturating_add(Duration::from_nanos(ns).saturating_mul(PATIENCE));
    let Some(mut turn) = flight.turn(longest).await else {
        return compute(node, call, segment, rest, &found).await;
    };
    segment.learn(&turn)?;
    let found = segment.look(rest.selected.as_ref())?;
    let still = found.known.as_ref().map_or(0, |known| known.len() - known.count_set_bits());
    segment.waited(missing.saturating_sub(still));
    let values = compute(node, call, segment, rest, &found).await?;
    segment.tell(&mut turn);
    Ok(values)
}

/// What was found, and the values of the other rows computed.
async fn compute(
    node: &NodeState,
    call: &Call,
    segment: &SegmentCall,
    rest: &Rest,
    found: &Selected,
) -> Result<ArrayRef> {
    let wanted = rest.selected.as_ref();
    let Some(known) = &found.known else {
        segment.answered(wanted, None, 0)?;
        return Ok(Arc::clone(&found.values));
    };
    let missing = !known;
    let rows = match known.count_set_bits() {
        0 => rest.batch.clone(),
        _ => keep_rows(&rest.batch, &BooleanArray::from(missing.clone()), |_| true)?,
    };
    let function = &segment.expression.function;
    let span = tracing::debug_span!("function_call", %function, rows = rows.num_rows());
    let computed = evaluate(node, &segment.expression, &call.expr, &rows).instrument(span).await;
    let computed = computed.map_err(|error| match error {
        ComputeError::Evaluate(source) => source,
        other => DataFusionError::External(Box::new(other)),
    })?;
    let missing = rest.of_batch(missing);
    segment.answered(wanted, Some((missing, &computed.values)), computed.ns)?;
    segment.queued(computed.waited_ns);
    Ok(found.complete(&computed.values)?)
}

/// Calls a function again for some of `rows`, whose `values` are known. One that gives other values lied
/// when it said that it was immutable: nothing of it is stored or read from here on.
///
/// # Errors
/// What the function says.
pub(in crate::query) async fn check(
    expr: &Arc<dyn PhysicalExpr>,
    expression: &FunctionExpression,
    rows: &RecordBatch,
    values: &ArrayRef,
    partition: PartitionId,
    nodes: &LocalNodes,
) -> Result<()> {
    let count = rows.num_rows().min(ROWS_CHECKED);
    let rows = rows.slice(0, count);
    let again = if calls_asynchronously(expr) {
        // A service that is down is no reason to fail where its answers are stored.
        let Ok(again) = evaluate_later(expr, &rows).await else { return Ok(()) };
        again
    } else {
        expr.evaluate(&rows)?
    };
    let again = again.into_array(count)?;
    if again.to_data() == values.slice(0, count).to_data() {
        return Ok(());
    }
    quarantine(expr)?;
    let (function, text) = (Arc::clone(&expression.function), expression.text.clone());
    tracing::warn!(%function, call = text, "a function that is declared immutable is not");
    for node in nodes.nodes.values() {
        for handle in node.replicas().values() {
            if let Some(actor) = handle.actor.actor() {
                drop(actor.cast(PartitionMessage::Worthless(expression.id)));
            }
        }
    }
    let at_ms = nodes.own.clock.now_ms();
    let liar = Liar { at_ms, function, text, partition, rows: count as u64 };
    nodes.own.calls.found_liar(liar);
    Ok(())
}
