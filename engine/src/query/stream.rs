//! Runs a scan: segment by segment, batch by batch, with as little function work as possible.
//!
//! Per batch: filters one after the other, each on the rows that the ones before left; a function
//! call becomes a column the first time something needs it, from its stored output if there is one,
//! otherwise computed on the rows that are left. What was computed for all rows of a segment is offered
//! to the partition actor. At the end of the task one bulk record per call and partition goes to the
//! monitor.

mod rest;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::concat;
use datafusion::common::{DataFusionError, Result, exec_datafusion_err, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, MetricBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::NodeState;
use foreshard_actors::partition::{ComputeError, Held, Offer, evaluate};
use foreshard_actors::trace;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{ExpressionId, PartitionId};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::query::context::{LocalNodes, QueryContext};
use crate::query::scan::{PartitionScanExec, ScanSegment};
use crate::query::stream::rest::Rest;
use crate::query::stream::work::{Call, SegmentCall, Work};
use crate::query::worker::TaskTrace;

/// Opens the stream of one output partition.
pub(super) fn open(
    exec: &PartitionScanExec,
    partition: usize,
    context: &Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let Some(segments) = exec.groups.get(partition).cloned() else {
        return internal_err!("scan of {} has no partition {partition}", exec.table.name);
    };
    let config = context.session_config();
    let Some(nodes) = config.get_extension::<LocalNodes>() else {
        return internal_err!("the session of this task knows no node");
    };
    let query = config.get_extension::<QueryContext>();
    let task = config.get_extension::<TaskTrace>().map(|task| task.0.clone());
    let traceparent = task.or_else(|| query.as_ref().and_then(|query| query.traceparent.clone()));
    let work = Work::new(exec, config.options())?;
    let schema = exec.schema();
    let mut scan = Scan {
        work,
        nodes,
        cancel: query.as_ref().map(|query| query.cancel.clone()).unwrap_or_default(),
        query: query.map_or(0, |query| query.id),
        segments: segments.into_iter(),
        open: None,
        records: BTreeMap::new(),
        traceparent: None,
        left: exec.fetch.unwrap_or(usize::MAX),
        batch_rows: config.batch_size().max(1),
        baseline: BaselineMetrics::new(&exec.metrics, partition),
        rows_stored: MetricBuilder::new(&exec.metrics).counter("rows_stored", partition),
        rows_computed: MetricBuilder::new(&exec.metrics).counter("rows_computed", partition),
    };
    let span = tracing::debug_span!(
        "partition_scan",
        table = %exec.table.name,
        partition,
        query = scan.query,
        segments = exec.groups[partition].len(),
    );
    trace::adopt(&span, traceparent.as_deref());
    scan.traceparent = trace::traceparent(&span).map(Arc::from);
    let batches = stream::try_unfold(scan, |mut scan| async move {
        match scan.next().await {
            Ok(Some(batch)) => Ok(Some((batch, scan))),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let batches = crate::query::stream::in_span(batches, span).boxed();
    let adapted = RecordBatchStreamAdapter::new(schema, batches);
    Ok(Box::pin(datafusion::physical_plan::coop::cooperative(adapted)))
}

/// Polls `inner` within `span`.
fn in_span<S: futures::Stream + Send + 'static>(
    inner: S,
    span: tracing::Span,
) -> impl futures::Stream<Item = S::Item> + Send {
    let mut inner = Box::pin(inner);
    stream::poll_fn(move |context| {
        let _entered = span.enter();
        inner.as_mut().poll_next(context)
    })
}

/// One segment that is being read.
struct OpenSegment {
    partition: PartitionId,
    node: Arc<NodeState>,
    scan: ScanSegment,
    batches: Batches,
    rows_done: usize,
    calls: Vec<SegmentCall>,
    filters: Vec<Arc<dyn PhysicalExpr>>,
    outputs: Vec<Arc<dyn PhysicalExpr>>,
}

/// State of one running scan.
struct Scan {
    work: Work,
    nodes: Arc<LocalNodes>,
    cancel: CancellationToken,
    query: u64,
    segments: std::vec::IntoIter<ScanSegment>,
    open: Option<OpenSegment>,
    records: BTreeMap<(ExpressionId, PartitionId), CallRecord>,
    traceparent: Option<Arc<str>>,
    left: usize,
    batch_rows: usize,
    baseline: BaselineMetrics,
    rows_stored: Count,
    rows_computed: Count,
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.report();
    }
}

impl Scan {
    /// The next batch that is not empty.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.left > 0 {
            if self.cancel.is_cancelled() {
                return Err(exec_datafusion_err!("query was cancelled"));
            }
            let Some(mut open) = self.open.take() else {
                let Some(segment) = self.segments.next() else { break };
                self.open = Some(self.open_segment(segment).await?);
                continue;
            };
            let Some(batch) = open.batches.try_next().await? else {
                self.close_segment(open);
                continue;
            };
            let batch = self.process(&mut open, batch).await;
            self.open = Some(open);
            let Some(batch) = batch? else { continue };
            let rows = batch.num_rows().min(self.left);
            self.left -= rows;
            self.baseline.record_output(rows);
            return Ok(Some(batch.slice(0, rows)));
        }
        self.report();
        Ok(None)
    }

    async fn open_segment(&mut self, scan: ScanSegment) -> Result<OpenSegment> {
        let node = Arc::clone(self.nodes.node(scan.node));
        let partition = PartitionId::new(Arc::clone(&self.work.table), scan.segment.partition);
        let replica = node.replica(&partition);
        if let Some(replica) = &replica {
            replica.read(scan.segment.rows);
        }
        let view = replica.map(|replica| replica.view());
        let held = view.as_ref().and_then(|view| view.segments.get(&scan.segment.id));
        let calls = self.segment_calls(&node, held);
        let (filters, outputs) = self.work.rewrite(&calls)?;
        let reading = read(&self.work, self.batch_rows, &node, &scan, held);
        let batches = reading.await?;
        Ok(OpenSegment { partition, node, scan, batches, rows_done: 0, calls, filters, outputs })
    }

    fn segment_calls(&self, node: &NodeState, held: Option<&Held>) -> Vec<SegmentCall> {
        let stores = self.work.uses_outputs && node.store_policy().enabled;
        let of_call = |call: &Call| {
            let expression = node.expressions.get(call.expression.id).or_else(|| {
                let own = &call.expression;
                node.expressions.remember(FunctionExpression::new(
                    own.id,
                    own.functions.clone(),
                    Arc::clone(&own.table),
                    Arc::clone(&own.expr),
                ))
            });
            let expression = expression.unwrap_or_else(|| Arc::clone(&call.expression));
            let stored = held.filter(|_| stores).and_then(|held| held.outputs.get(&expression.id));
            if let Some(stored) = stored {
                stored.uses.fetch_add(1, Ordering::Relaxed);
            }
            SegmentCall {
                column_from: if stored.is_some() { Some(0) } else { call.computed_from },
                is_fresh: held.is_some_and(|held| held.is_first_ask(expression.id)),
                computed: (stores && call.computed_from.is_some() && stored.is_none())
                    .then(Vec::new),
                stored: stored.cloned(),
                expression,
            }
        };
        self.work.calls.iter().map(of_call).collect()
    }

    /// Filters one batch and computes its outputs; `None` if no row is left.
    async fn process(
        &mut self,
        open: &mut OpenSegment,
        batch: RecordBatch,
    ) -> Result<Option<RecordBatch>> {
        let rows = batch.num_rows();
        let start = open.rows_done;
        open.rows_done += rows;
        if rows == 0 {
            return Ok(None);
        }
        if self.work.is_passthrough {
            return self.pass(batch).map(Some);
        }
        let _busy = open.node.user_task();
        let mut rest = Rest::new(&self.work, &open.calls, batch, start)?;
        for position in 0..open.filters.len() {
            let predicate = Arc::clone(&open.filters[position]);
            self.ensure(open, &mut rest, &predicate).await?;
            rest.keep(&predicate)?;
            if rest.batch.num_rows() == 0 {
                // Values of the rows that are gone are missing from here on.
                open.calls.iter_mut().for_each(|call| call.computed = None);
                return Ok(None);
            }
            if self.cancel.is_cancelled() {
                return Err(exec_datafusion_err!("query was cancelled"));
            }
        }
        let mut columns = Vec::with_capacity(open.outputs.len());
        for position in 0..open.outputs.len() {
            let output = Arc::clone(&open.outputs[position]);
            self.ensure(open, &mut rest, &output).await?;
            columns.push(output.evaluate(&rest.batch)?.into_array(rest.batch.num_rows())?);
        }
        for (i, call) in open.calls.iter_mut().enumerate() {
            if !rest.has[i] {
                call.computed = None;
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rest.batch.num_rows()));
        let schema = Arc::clone(&self.work.output_schema);
        Ok(Some(RecordBatch::try_new_with_options(schema, columns, &options)?))
    }

    /// Only columns: no copy, no evaluation.
    fn pass(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let column = |expr: &Arc<dyn PhysicalExpr>| {
            let index = expr.downcast_ref::<Column>().map(Column::index);
            let position = self.work.columns.iter().position(|column| Some(*column) == index);
            position.map(|position| Arc::clone(batch.column(position)))
        };
        let columns: Option<Vec<ArrayRef>> = self.work.outputs.iter().map(column).collect();
        let Some(columns) = columns else { return internal_err!("scan lost a column") };
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let schema = Arc::clone(&self.work.output_schema);
        Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
    }

    /// Makes the columns of the calls that `expr` reads available in `rest`.
    async fn ensure(
        &mut self,
        open: &mut OpenSegment,
        rest: &mut Rest,
        expr: &Arc<dyn PhysicalExpr>,
    ) -> Result<()> {
        let first = self.work.schema.fields().len();
        let mut needed: Vec<usize> = collect_columns(expr)
            .iter()
            .filter_map(|column| column.index().checked_sub(first))
            .filter(|call| !rest.has[*call])
            .collect();
        needed.sort_unstable();
        for i in needed {
            let rows = rest.batch.num_rows() as u64;
            let call = &mut open.calls[i];
            let (values, ns) = match &call.stored {
                Some(_) => (None, 0),
                None => {
                    let node = &open.node;
                    let expr = &self.work.calls[i].expr;
                    let function = &call.expression.function;
                    let span = tracing::debug_span!("function_call", %function, rows);
                    let computed = evaluate(node, &call.expression, expr, &rest.batch);
                    let computed = computed.instrument(span).await;
                    let computed = computed.map_err(|error| match error {
                        ComputeError::Evaluate(source) => source,
                        other => DataFusionError::External(Box::new(other)),
                    })?;
                    (Some(computed.values), computed.ns)
                }
            };
            let bytes = values.as_ref().map_or(0, |values| values.get_array_memory_size() as u64);
            if let (Some(pieces), Some(values)) = (&mut call.computed, &values) {
                pieces.push(Arc::clone(values));
            }
            if !rest.is_whole {
                call.computed = None;
            }
            rest.add(i, values, self.work.calls[i].field.data_type())?;
            self.record(open, i, rows, ns, bytes);
        }
        Ok(())
    }

    fn record(&mut self, open: &OpenSegment, call: usize, rows: u64, ns: u64, bytes: u64) {
        let call = &open.calls[call];
        let is_stored = call.stored.is_some();
        if is_stored {
            self.rows_stored.add(rows as usize)
        } else {
            self.rows_computed.add(rows as usize)
        };
        let key = (call.expression.id, open.partition.clone());
        let record = self.records.entry(key).or_insert_with(|| CallRecord {
            at_ms: 0,
            query: self.query,
            function: Arc::clone(&call.expression.function),
            expression: call.expression.id,
            partition: open.partition.clone(),
            node: open.node.id,
            rows: 0,
            rows_stored: 0,
            rows_fresh: 0,
            rows_fresh_stored: 0,
            ns: 0,
            would_be_ns: 0,
            bytes: 0,
            traceparent: self.traceparent.clone(),
        });
        record.at_ms = open.node.clock.now_ms();
        record.rows += rows;
        record.ns += ns;
        record.bytes += bytes;
        if is_stored {
            record.rows_stored += rows;
            record.would_be_ns += rows * call.expression.ns_per_row();
        } else {
            record.would_be_ns += ns;
        }
        if call.is_fresh {
            record.rows_fresh += rows;
            record.rows_fresh_stored += if is_stored { rows } else { 0 };
        }
    }

    /// Offers what was computed for every row of the segment.
    fn close_segment(&self, open: OpenSegment) {
        let policy = open.node.store_policy();
        for call in open.calls {
            let Some(pieces) = call.computed else { continue };
            let rows: usize = pieces.iter().map(|piece| piece.len()).sum();
            let dear = call.expression.ns_per_row() >= policy.ns_per_row_min;
            if rows == 0 || rows as u64 != open.scan.segment.rows || !dear {
                continue;
            }
            let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
            let Ok(values) = concat(&pieces) else { continue };
            let Some(handle) = open.node.handle(&open.partition) else { continue };
            let offer =
                Offer { segment: open.scan.segment.id, expression: call.expression, values };
            if !handle.actor.offer(offer) {
                open.node.offers_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends the calls of this task to the monitor, in bulk and without waiting.
    fn report(&mut self) {
        let records: Vec<CallRecord> = std::mem::take(&mut self.records).into_values().collect();
        if !records.is_empty() {
            self.nodes.own.calls.offer(records);
        }
    }
}

/// The rows of a segment over the columns that are needed, in slices of at most a batch.
///
/// Looks at its arguments before the first wait, and holds none of them while it waits.
fn read(
    work: &Work,
    most: usize,
    node: &NodeState,
    scan: &ScanSegment,
    held: Option<&Held>,
) -> impl Future<Output = Result<Batches>> + Send + use<> {
    let resident = held.and_then(|held| held.rows.as_ref()).map(|rows| Arc::clone(&rows.rows));
    let resident = resident.or_else(|| scan.segment.pinned.clone());
    let columns = work.columns.clone();
    let store = node.tables.store(&work.table);
    let (table, segment) = (Arc::clone(&work.table), Arc::clone(&scan.segment));
    async move {
        if let Some(rows) = resident {
            return Ok(stream::iter(slices(rows, columns, most)).boxed());
        }
        let store = store
            .ok_or_else(|| DataFusionError::External(Box::new(ComputeError::NoTable { table })))?;
        let read = store.read(&segment, Some(&columns)).await;
        Ok(read.map_err(|error| DataFusionError::External(Box::new(error)))?.boxed())
    }
}

type Batches = BoxStream<'static, Result<RecordBatch>>;

fn slices(
    rows: foreshard_actors::segment::Rows,
    columns: Vec<usize>,
    most: usize,
) -> impl Iterator<Item = Result<RecordBatch>> + Send {
    (0..rows.len()).flat_map(move |i| {
        let batch = rows[i].project(&columns);
        let all = rows[i].num_rows();
        (0..all).step_by(most).map(move |start| match &batch {
            Ok(batch) => Ok(batch.slice(start, most.min(all - start))),
            Err(error) => Err(exec_datafusion_err!("segment has no such column: {error}")),
        })
    })
}

#[cfg(test)]
mod tests;
