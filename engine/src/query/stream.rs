//! Runs a scan: segment by segment, batch by batch, with as little function work as possible.
//!
//! Segments without a row that dynamic filters let through are not opened. Per batch: dynamic filters if
//! there are calls to evaluate, then filters one after the other, each on the rows that the ones before
//! left, in the order that drops most rows per nanosecond; a function call becomes a column the first time
//! something needs it, from its stored output where there is one, computed on the other rows that are left.
//! A call in a branch that not all rows take looks its values up where DataFusion evaluates it. What was
//! computed is offered to the partition actor. At the end of the task one bulk record per call and partition
//! goes to the monitor.

mod call;
mod counted;
mod disk;
mod ensure;
mod lazy;
mod queue;
mod rest;
mod rows;
mod segment;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::common::{Result, exec_datafusion_err, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, MetricBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::NodeState;
use foreshard_actors::trace;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey};
use futures::stream;
use futures::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;

use crate::query::context::{Ahead, LocalNodes, QueryContext};
use crate::query::functions::is_storable;
use crate::query::partial::{Tap, tell};
use crate::query::scan::{PartitionScanExec, ScanSegment};
use crate::query::stream::call::{Asked, Used};
use crate::query::stream::counted::Counted;
use crate::query::stream::disk::Disk;
pub(in crate::query) use crate::query::stream::ensure::check;
use crate::query::stream::ensure::ensure;
use crate::query::stream::queue::Queue;
use crate::query::stream::rest::Rest;
use crate::query::stream::rows::read;
use crate::query::stream::segment::OpenSegment;
use crate::query::stream::work::{Call, Step, Work};
use crate::query::worker::TaskTrace;

/// Opens the stream of one output partition.
pub(super) fn open(
    exec: &PartitionScanExec,
    partition: usize,
    context: &Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let Some(segments) = exec.groups.get(partition) else {
        return internal_err!("scan of {} has no partition {partition}", exec.table.name);
    };
    let config = context.session_config();
    let Some(nodes) = config.get_extension::<LocalNodes>() else {
        return internal_err!("the session of this task knows no node");
    };
    let query = config.get_extension::<QueryContext>();
    let task = config.get_extension::<TaskTrace>().map(|task| task.0.clone());
    let traceparent = task.or_else(|| query.as_ref().and_then(|query| query.traceparent.clone()));
    let work = Work::new(exec, config.options(), &nodes.own.expressions)?;
    let schema = exec.schema();
    let mut scan = Scan {
        counted: Counted::new(&work, &exec.metrics, partition),
        work: Arc::new(work),
        nodes,
        cancel: query.as_ref().map(|query| query.cancel.clone()).unwrap_or_default(),
        query: query.map_or(0, |query| query.id),
        queue: Queue::new(exec, segments, partition),
        open: None,
        records: BTreeMap::new(),
        traceparent: None,
        tap: exec.tap.clone().map(|tap| (tap, partition)),
        is_ahead: config.get_extension::<Ahead>().is_some(),
        left: exec.fetch.unwrap_or(usize::MAX),
        batch_rows: config.batch_size().max(1),
        baseline: BaselineMetrics::new(&exec.metrics, partition),
        segments_skipped: MetricBuilder::new(&exec.metrics).counter("segments_skipped", partition),
        disk: Disk::new(context.memory_pool(), &exec.metrics, partition),
    };
    let span = tracing::debug_span!(
        "partition_scan",
        table = %exec.table.name,
        partition,
        query = scan.query,
        segments = segments.len(),
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

/// State of one running scan.
struct Scan {
    work: Arc<Work>,
    nodes: Arc<LocalNodes>,
    cancel: CancellationToken,
    query: u64,
    queue: Queue,
    open: Option<OpenSegment>,
    records: BTreeMap<(ExpressionId, PartitionId), CallRecord>,
    traceparent: Option<Arc<str>>,
    tap: Option<(Tap, usize)>,
    is_ahead: bool,
    left: usize,
    batch_rows: usize,
    baseline: BaselineMetrics,
    counted: Counted,
    segments_skipped: Count,
    disk: Disk,
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.report();
    }
}

/// In which order the filters of a batch are evaluated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The one that drops most rows per nanosecond.
    Ranked,
    /// The one of the plan.
    Written,
}

impl Scan {
    /// The next batch that is not empty.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.left > 0 {
            if self.cancel.is_cancelled() {
                return Err(exec_datafusion_err!("query was cancelled"));
            }
            let Some(mut open) = self.open.take() else {
                let Some(segment) = self.queue.next() else { break };
                self.open = Some(self.open_segment(segment).await?);
                continue;
            };
            let next = match open.pending.take() {
                Some(rest) => Some(rest),
                None => open.batches.try_next().await?,
            };
            let Some(batch) = next else { continue };
            let batch = self.process(&mut open, batch).await;
            self.open = Some(open);
            let Some(batch) = batch? else { continue };
            let rows = batch.num_rows().min(self.left);
            self.left -= rows;
            self.baseline.record_output(rows);
            return Ok(Some(batch.slice(0, rows)));
        }
        self.open = None;
        self.report();
        Ok(None)
    }

    async fn open_segment(&mut self, scan: ScanSegment) -> Result<OpenSegment> {
        let node = Arc::clone(self.nodes.node(scan.node));
        let partition = PartitionId::new(Arc::clone(&self.work.table), scan.segment.partition);
        let replica = node.replica(&partition);
        if let Some(replica) = &replica {
            replica.read(scan.segment.rows, node.clock.monotonic_ns());
        }
        // Flights are joined before the view is taken: what others compute is found in either.
        let asked: Vec<Asked> =
            self.work.calls.iter().map(|call| self.ask(&node, &scan, call)).collect();
        let view = replica.map(|replica| replica.view());
        let held = view.as_ref().and_then(|view| view.segments.get(&scan.segment.id));
        let mut calls = Vec::with_capacity(asked.len());
        for asked in asked {
            let from_disk = match held {
                Some(held) => self.disk.read(&node, &partition, held, &asked).await,
                None => None,
            };
            calls.push(asked.on(held, from_disk));
        }
        let reading = read(&self.work, self.batch_rows, &node, &scan, held);
        let is_resident =
            scan.segment.pinned.is_some() || held.is_some_and(|held| held.rows.is_some());
        let mut open = OpenSegment::new(partition, node, scan, calls);
        if !is_resident && open.drops_every_row(&self.work)? {
            self.segments_skipped.add(1);
            self.account_all(&open);
        } else {
            open.batches = reading.await?;
        }
        Ok(open)
    }

    fn ask(&self, node: &NodeState, scan: &ScanSegment, call: &Call) -> Asked {
        let policy = node.store_policy();
        let is_stored = self.work.uses_outputs && policy.enabled;
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
        let is_cheap = expression.is_measured() && expression.ns_per_row() < policy.ns_per_row_min;
        let collects = is_stored && !is_cheap && is_storable(&call.expr);
        let flight = collects.then(|| node.flights.join(scan.segment.id, expression.id));
        Asked { expression, data_type: call.field.data_type().clone(), is_stored, flight }
    }

    /// Filters one batch and computes its outputs; `None` if no row is left.
    async fn process(
        &mut self,
        open: &mut OpenSegment,
        batch: RecordBatch,
    ) -> Result<Option<RecordBatch>> {
        if batch.num_rows() == 0 {
            return Ok(None);
        }
        let work = Arc::clone(&self.work);
        if work.is_passthrough {
            return self.pass(batch).map(Some);
        }
        let batch = open.cut(&work, batch);
        let start = open.rows_done;
        open.rows_done += batch.num_rows();
        let node = Arc::clone(&open.node);
        let _busy = node.user_task();
        let mut is_as_written = true;
        let done = self.run(open, &batch, start, Order::Ranked, &mut is_as_written).await;
        let done = match done {
            // Another order may meet an error that the written one does not.
            Err(_) if !is_as_written && !self.cancel.is_cancelled() => {
                self.run(open, &batch, start, Order::Written, &mut is_as_written).await
            }
            done => done,
        };
        let done = done?;
        self.account_all(open);
        Ok(done)
    }

    /// One attempt at [`process`](Self::process).
    async fn run(
        &mut self,
        open: &mut OpenSegment,
        batch: &RecordBatch,
        start: usize,
        order: Order,
        is_as_written: &mut bool,
    ) -> Result<Option<RecordBatch>> {
        let work = Arc::clone(&self.work);
        open.calls.iter().for_each(|call| call.begin(start, batch.num_rows()));
        let nodes = Arc::clone(&self.nodes);
        let mut rest = Rest::new(&work, batch)?;
        let mut left: Vec<usize> = (0..work.filters.len()).collect();
        for filter in &work.dynamic {
            rest.keep_unless_failed(&filter.expr, &work.read_by(&left))?;
        }
        if rest.batch.num_rows() == 0 {
            return Ok(None);
        }
        while !left.is_empty() {
            let position = match order {
                Order::Ranked if left.len() > 1 => open.next_filter(&work, &left, &rest),
                _ => 0,
            };
            *is_as_written &= position == 0;
            let filter = left.remove(position);
            ensure(&work, &nodes, open, &mut rest, &work.filters[filter]).await?;
            let predicate = open.resolve(&work, filter, &rest)?;
            let rows = rest.batch.num_rows() as u64;
            let began = open.node.clock.monotonic_ns();
            rest.keep(&predicate, &work.read_by(&left))?;
            let ns = open.node.clock.monotonic_ns().saturating_sub(began);
            work.stats[filter].measured(rows, rest.batch.num_rows() as u64, ns);
            if rest.batch.num_rows() == 0 {
                return Ok(None);
            }
            if self.cancel.is_cancelled() {
                return Err(exec_datafusion_err!("query was cancelled"));
            }
        }
        let mut columns = Vec::with_capacity(work.outputs.len());
        for (number, output) in (work.filters.len()..).zip(&work.outputs) {
            if let Some(call) = output.carried {
                columns.push(open.carried(call, start, &rest)?);
                continue;
            }
            ensure(&work, &nodes, open, &mut rest, output).await?;
            let output = open.resolve(&work, number, &rest)?;
            columns.push(output.evaluate(&rest.batch)?.into_array(rest.batch.num_rows())?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rest.batch.num_rows()));
        let schema = Arc::clone(&work.output_schema);
        Ok(Some(RecordBatch::try_new_with_options(schema, columns, &options)?))
    }

    /// Only columns: no copy, no evaluation.
    fn pass(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let column = |output: &Step| {
            let index = output.expr.downcast_ref::<Column>().map(Column::index);
            let position = self.work.columns.iter().position(|column| Some(*column) == index);
            position.map(|position| Arc::clone(batch.column(position)))
        };
        let columns: Option<Vec<ArrayRef>> = self.work.outputs.iter().map(column).collect();
        let Some(columns) = columns else { return internal_err!("scan lost a column") };
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let schema = Arc::clone(&self.work.output_schema);
        Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
    }

    /// Ends a batch: counts what its calls were used for.
    fn account_all(&mut self, open: &OpenSegment) {
        let ns_per_row_min = open.node.store_policy().ns_per_row_min;
        if !self.is_ahead && !open.calls.is_empty() {
            let now_ns = open.node.clock.monotonic_ns();
            open.calls.iter().for_each(|call| call.count(now_ns));
        }
        for i in 0..open.calls.len() {
            let used = open.calls[i].end(ns_per_row_min);
            self.account(open, i, used);
        }
    }

    /// Counts what a call was used for in one batch.
    fn account(&mut self, open: &OpenSegment, i: usize, used: Used) {
        if used.rows == 0 {
            return;
        }
        let call = &open.calls[i];
        let ns_saved = used.rows_stored * call.expression.ns_per_row();
        self.counted.add(i, used, ns_saved);
        let key = (call.expression.id, open.partition.clone());
        let record = self.records.entry(key).or_insert_with_key(|(expression, partition)| {
            let function = Arc::clone(&call.expression.function);
            let (expression, partition) = (*expression, partition.clone());
            let series = SeriesKey { function, expression, partition };
            CallRecord::empty(series, self.query, open.node.id, self.traceparent.clone())
        });
        record.at_ms = open.node.clock.now_ms();
        record.rows += used.rows;
        record.rows_stored += used.rows_stored;
        record.ns += used.ns;
        record.waited_ns += used.waited_ns;
        record.bytes += used.bytes;
        record.would_be_ns += used.ns + ns_saved;
        if call.is_fresh {
            record.rows_fresh += used.rows;
            record.rows_fresh_stored += used.rows_stored;
        }
    }

    /// Sends the calls of this task to the monitor, in bulk and without waiting.
    fn report(&mut self) {
        let records: Vec<CallRecord> = std::mem::take(&mut self.records).into_values().collect();
        if let Some((tap, partition)) = &self.tap {
            tell(tap, *partition, &records);
        }
        if !records.is_empty() && !self.is_ahead {
            self.nodes.own.calls.offer(records);
        }
    }
}

#[cfg(test)]
mod tests;
