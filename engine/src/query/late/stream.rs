//! Runs late calls: batch by batch, each row whose value is not known evaluated once per task.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, new_empty_array};
use arrow::compute::{filter, interleave};
use datafusion::common::{DataFusionError, Result, exec_datafusion_err, internal_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, MetricBuilder, Time};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::partition::{ComputeError, Offer, evaluate, keep_rows};
use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{PartitionId, SeriesKey};
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::query::context::{LocalNodes, QueryContext};
use crate::query::functions::{describe, is_storable};
use crate::query::late::carried::{CarriedColumn, RowNumber};
use crate::query::late::found::Found;
use crate::query::late::{LateCall, LateCallExec};
use crate::query::options::SessionOptions;
use crate::query::partial::{Tap, tell};
use crate::query::scan::ScanSegment;
use crate::query::stream::check;

/// Values that a task holds before it offers them and forgets them.
const VALUES_MAX: usize = 1 << 20;

/// What is kept must cost so many times the bound of what is kept at all: nobody knows yet whether the
/// same rows come again.
const KEPT_FROM: u64 = 4;

/// Opens the stream of one partition.
pub(super) fn open(
    exec: &LateCallExec,
    partition: usize,
    context: &Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let config = context.session_config();
    let Some(nodes) = config.get_extension::<LocalNodes>() else {
        return internal_err!("the session of this task knows no node");
    };
    let query = config.get_extension::<QueryContext>();
    let options = config.options().extensions.get::<SessionOptions>();
    let memory = MemoryConsumer::new("LateCallExec").register(context.memory_pool());
    let calls = exec.calls.iter().map(|call| Running::new(call, &nodes, config.options()));
    let run = Run {
        calls: calls.collect::<Result<_>>()?,
        input: exec.input.execute(partition, Arc::clone(context))?,
        exec: exec.clone(),
        cancel: query.as_ref().map(|query| query.cancel.clone()).unwrap_or_default(),
        query: query.as_ref().map_or(0, |query| query.id),
        traceparent: query.and_then(|query| query.traceparent.as_deref().map(Arc::from)),
        check_every: options.map_or(0, |options| options.check_every),
        nodes,
        memory,
        tap: exec.tap.clone().map(|tap| (tap, partition)),
        baseline: BaselineMetrics::new(&exec.metrics, partition),
        rows_stored: MetricBuilder::new(&exec.metrics).counter("rows_stored", partition),
        rows_computed: MetricBuilder::new(&exec.metrics).counter("rows_computed", partition),
        time_computing: MetricBuilder::new(&exec.metrics).subset_time("time_computing", partition),
        time_saved: MetricBuilder::new(&exec.metrics).subset_time("time_saved", partition),
    };
    let batches = stream::try_unfold(run, |mut run| async move {
        let next = run.next().await?;
        Ok(next.map(|batch| (batch, run)))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(exec.schema(), batches.boxed())))
}

struct Run {
    exec: LateCallExec,
    calls: Vec<Running>,
    input: SendableRecordBatchStream,
    nodes: Arc<LocalNodes>,
    cancel: CancellationToken,
    query: u64,
    traceparent: Option<Arc<str>>,
    check_every: u64,
    memory: MemoryReservation,
    tap: Option<(Tap, usize)>,
    baseline: BaselineMetrics,
    rows_stored: Count,
    rows_computed: Count,
    time_computing: Time,
    time_saved: Time,
}

/// A call of a task that runs.
struct Running {
    call: LateCall,
    /// The call as everybody knows it.
    expression: Arc<FunctionExpression>,
    /// The call as it stands here, over other columns.
    here: FunctionExpression,
    /// Columns of the input that it reads.
    columns: Vec<usize>,
    found: Found,
    used: HashMap<u32, Used>,
    ns: u64,
    waited_ns: u64,
    bytes: u64,
    /// Whether the session reads stored outputs and offers new ones.
    is_stored: bool,
}

/// What the rows of one segment were used for.
#[derive(Clone, Copy, Default)]
struct Used {
    rows: u64,
    computed: u64,
}

/// Where the values of a batch are.
struct Places {
    /// For each row: 0 for what was carried, then the pieces found, then what is to be evaluated; and the
    /// position there.
    of_row: Vec<(usize, usize)>,
    /// Rows to evaluate.
    missing: Vec<bool>,
    /// Their numbers.
    numbers: Vec<Option<RowNumber>>,
}

impl Running {
    fn new(call: &LateCall, nodes: &LocalNodes, settings: &Arc<ConfigOptions>) -> Result<Self> {
        let described = describe(&call.on_table, &call.source.table, settings)?;
        let here = FunctionExpression::new(
            described.id,
            described.functions.clone(),
            Arc::clone(&described.table),
            Arc::clone(&call.expr),
        );
        let expressions = &nodes.own.expressions;
        let known = expressions.get(described.id).or_else(|| expressions.remember(described));
        let expression = match known {
            Some(known) => known,
            None => Arc::new(describe(&call.on_table, &call.source.table, settings)?),
        };
        let columns = collect_columns(&call.expr).iter().map(Column::index).collect();
        let is_stored = nodes.own.store_policy().enabled && is_storable(&call.on_table);
        let (call, found, used) = (call.clone(), Found::default(), HashMap::new());
        Ok(Self {
            call,
            expression,
            here,
            columns,
            found,
            used,
            ns: 0,
            waited_ns: 0,
            bytes: 0,
            is_stored,
        })
    }

    fn places(&mut self, carried: &CarriedColumn<'_>, rows: usize) -> Places {
        let mut places = Places {
            of_row: Vec::with_capacity(rows),
            missing: vec![false; rows],
            numbers: vec![],
        };
        let to_evaluate = self.found.pieces().len() + 1;
        let mut new = HashMap::new();
        for position in 0..rows {
            let number = carried.row(position);
            let mut computed = 0;
            places.of_row.push(if carried.is_known(position) {
                (0, position)
            } else if let Some((piece, place)) = number.and_then(|row| self.found.place(row)) {
                (piece + 1, place)
            } else {
                let place = *new.entry(number).or_insert_with(|| {
                    places.missing[position] = true;
                    places.numbers.push(number);
                    computed = 1;
                    places.numbers.len() - 1
                });
                (to_evaluate, place)
            });
            if let Some(number) = number {
                let used = self.used.entry(number.segment()).or_default();
                used.rows += 1;
                used.computed += computed;
            }
        }
        places
    }

    fn segment(&self, number: u32) -> Option<&ScanSegment> {
        self.call.source.segments.get(number as usize)
    }

    /// The rows of `batch` that are set in `mask`.
    fn keep(&self, batch: &RecordBatch, mask: Vec<bool>) -> Result<RecordBatch> {
        let is_read = |position: usize| self.columns.contains(&position);
        Ok(keep_rows(batch, &BooleanArray::from(mask), is_read)?)
    }

    /// Evaluates some rows whose values are known, to see whether the function tells the same again.
    async fn check(
        &self,
        carried: &CarriedColumn<'_>,
        batch: &RecordBatch,
        nodes: &LocalNodes,
    ) -> Result<()> {
        let known: Vec<bool> =
            (0..batch.num_rows()).map(|position| carried.is_known(position)).collect();
        let first = known.iter().position(|known| *known).and_then(|known| carried.row(known));
        let Some(segment) = first.and_then(|row| self.segment(row.segment())) else {
            return Ok(());
        };
        let values = filter(carried.values(), &BooleanArray::from(known.clone()))?;
        let rows = self.keep(batch, known)?;
        let table = Arc::clone(&self.call.source.table);
        let partition = PartitionId::new(table, segment.segment.partition);
        check(&self.call.expr, &self.expression, &rows, &values, partition, nodes).await
    }

    /// Hands what was evaluated to the partitions that the rows came from, and forgets it.
    fn offer(&mut self, nodes: &LocalNodes) {
        let found = std::mem::take(&mut self.found);
        let bound = nodes.own.store_policy().ns_per_row_min.saturating_mul(KEPT_FROM);
        if !self.is_stored || self.expression.ns_per_row() < bound {
            return;
        }
        let rows = |number| self.segment(number).map(|segment| segment.segment.rows as usize);
        // What Arrow cannot put together is not stored.
        let Ok(outputs) = found.by_segment(rows) else { return };
        for (number, values) in outputs {
            let Some(segment) = self.segment(number) else { continue };
            let table = Arc::clone(&self.call.source.table);
            let partition = PartitionId::new(table, segment.segment.partition);
            let node = nodes.node(segment.node);
            let Some(handle) = node.handle(&partition) else { continue };
            let (segment, expression) = (segment.segment.id, Arc::clone(&self.expression));
            if !handle.actor.offer(Offer { segment, expression, values, flight: None }) {
                node.offers_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Run {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(batch) = self.input.try_next().await? else {
            self.end();
            return Ok(None);
        };
        if self.cancel.is_cancelled() {
            return Err(exec_datafusion_err!("query was cancelled"));
        }
        let mut columns = batch.columns().to_vec();
        for number in 0..self.calls.len() {
            columns.push(self.call(number, &batch).await?);
        }
        let bytes = self.calls.iter().map(|running| running.found.bytes()).sum();
        let is_full = self.calls.iter().any(|running| running.found.len() > VALUES_MAX);
        if is_full || self.memory.try_resize(bytes).is_err() {
            self.calls.iter_mut().for_each(|running| running.offer(&self.nodes));
            self.memory.free();
        }
        self.baseline.record_output(batch.num_rows());
        Ok(Some(RecordBatch::try_new(self.exec.schema(), columns)?))
    }

    /// The values of one call for the rows of `batch`.
    async fn call(&mut self, number: usize, batch: &RecordBatch) -> Result<ArrayRef> {
        let own = Arc::clone(&self.nodes.own);
        let _busy = own.user_task();
        let running = &mut self.calls[number];
        let carried = CarriedColumn::of(batch.column(running.call.carried))?;
        if own.is_check_due(self.check_every) {
            running.check(&carried, batch, &self.nodes).await?;
        }
        let places = running.places(&carried, batch.num_rows());
        let computed = places.numbers.len();
        let rows_stored = batch.num_rows() - computed;
        let ns_saved = rows_stored as u64 * running.expression.ns_per_row();
        self.rows_stored.add(rows_stored);
        self.rows_computed.add(computed);
        self.time_saved.add_duration(Duration::from_nanos(ns_saved));
        if places.of_row.iter().all(|(array, _)| *array == 0) {
            return Ok(Arc::clone(carried.values()));
        }
        let mut new = new_empty_array(carried.values().data_type());
        if computed > 0 {
            let rows = running.keep(batch, places.missing)?;
            let done = evaluate(&own, &running.here, &running.call.expr, &rows).await;
            let done = done.map_err(|error| match error {
                ComputeError::Evaluate(source) => source,
                other => DataFusionError::External(Box::new(other)),
            })?;
            running.expression.measured(done.evaluated, done.ns);
            running.ns += done.ns;
            running.waited_ns += done.waited_ns;
            running.bytes += done.values.get_array_memory_size() as u64;
            self.time_computing.add_duration(Duration::from_nanos(done.ns));
            new = done.values;
        }
        let found = running.found.pieces().iter().chain([&new]);
        let arrays: Vec<&dyn Array> =
            [carried.values()].into_iter().chain(found).map(AsRef::as_ref).collect();
        let values = interleave(&arrays, &places.of_row)?;
        if computed > 0 {
            running.found.add(&places.numbers, new)?;
        }
        Ok(values)
    }

    /// Offers what was evaluated, and tells the monitor. Does so once.
    fn end(&mut self) {
        let own = &self.nodes.own;
        let mut records = vec![];
        for running in &mut self.calls {
            running.offer(&self.nodes);
            let evaluated: u64 = running.used.values().map(|used| used.computed).sum();
            let mut of_partition: BTreeMap<PartitionId, CallRecord> = BTreeMap::new();
            for (number, used) in std::mem::take(&mut running.used) {
                let Some(segment) = running.segment(number) else { continue };
                let table = Arc::clone(&running.call.source.table);
                let partition = PartitionId::new(table, segment.segment.partition);
                let replica = self.nodes.node(segment.node).replica(&partition);
                let record = of_partition.entry(partition).or_insert_with_key(|partition| {
                    let function = Arc::clone(&running.expression.function);
                    let (expression, partition) = (running.expression.id, partition.clone());
                    let series = SeriesKey { function, expression, partition };
                    CallRecord::empty(series, self.query, segment.node, self.traceparent.clone())
                });
                record.at_ms = own.clock.now_ms();
                let share = |all: u64| all * used.computed / evaluated.max(1);
                let rows_stored = used.rows - used.computed;
                record.rows += used.rows;
                record.rows_stored += rows_stored;
                record.ns += share(running.ns);
                record.waited_ns += share(running.waited_ns);
                record.bytes += share(running.bytes);
                let would_be_ns = share(running.ns) + rows_stored * running.expression.ns_per_row();
                record.would_be_ns += would_be_ns;
                let view = replica.map(|replica| replica.view());
                let load =
                    view.and_then(|it| Some(it.segments.get(&segment.segment.id)?.load.clone()));
                if let Some(load) = load {
                    // Which rows these were is not known any more.
                    load.count_evenly(own.clock.monotonic_ns(), would_be_ns as f64);
                }
            }
            records.extend(of_partition.into_values());
        }
        if let Some((tap, partition)) = &self.tap {
            tell(tap, *partition, &records);
        }
        if !records.is_empty() {
            own.calls.offer(records);
        }
        self.memory.free();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.end();
    }
}
