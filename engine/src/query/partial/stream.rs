//! Runs a fragment: stored states as they are, the others segment by segment.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::Array;
use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, MetricBuilder, Time};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use foreshard_actors::node::NodeState;
use foreshard_actors::partition::{Fragment, PartialOffer, Recipe, StoredPartial};
use foreshard_actors::segment::Segment;
use foreshard_actors::trace;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{PartitionId, SeriesKey};
use futures::{StreamExt, TryStreamExt, stream};

use crate::query::context::{LocalNodes, QueryContext};
use crate::query::options::SessionOptions;
use crate::query::partial::PartialReuseExec;
use crate::query::partial::fragment::{is_joined, on_its_own, scan_below, with_scan};
use crate::query::partial::recipe::PlanRecipe;
use crate::query::scan::{PartitionScanExec, ScanSegment};
use crate::query::worker::TaskTrace;

/// Bytes of state that are always worth a try, however few rows they stand for.
const STATE_BYTES_SMALL: u64 = 64 << 10;

/// Beyond that, a state must have so many times fewer bytes than its segment.
const BYTES_SHRINK_BY_MIN: u64 = 2;

/// Rows of a state that are always worth a try.
const STATE_ROWS_SMALL: u64 = 1_024;

/// Beyond that, a state must have so many times fewer rows than its segment: who reads it back has to put
/// its rows into groups again.
const ROWS_SHRINK_BY_MIN: u64 = 4;

/// Bytes of states that a partition has ready before its turn comes.
const AHEAD_BYTES_MAX: usize = 4 << 20;

/// Opens the stream of one output partition.
pub(super) fn open(
    exec: &PartialReuseExec,
    partition: usize,
    context: &Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let config = context.session_config();
    let nodes = config.get_extension::<LocalNodes>();
    let (Some(scan), Some(nodes)) = (scan_below(&exec.input), nodes) else {
        return exec.input.execute(partition, Arc::clone(context));
    };
    let Some(segments) = scan.groups.get(partition) else {
        return internal_err!("scan of {} has no partition {partition}", scan.table.name);
    };
    let first = scan.groups.iter().take(partition).map(Vec::len).sum::<usize>();
    let counter = |name: &'static str| MetricBuilder::new(&exec.metrics).counter(name, partition);
    let query = config.get_extension::<QueryContext>();
    let span = tracing::debug_span!(
        "partial_states",
        table = %scan.table.name,
        partition,
        what = %exec.fragment.pattern,
    );
    let task = config.get_extension::<TaskTrace>().map(|task| task.0.clone());
    let traceparent = task.or_else(|| query.as_ref().and_then(|query| query.traceparent.clone()));
    trace::adopt(&span, traceparent.as_deref());
    let ahead = MemoryConsumer::new("PartialReuseExec").register(context.memory_pool());
    let run = Run {
        scan: scan.clone(),
        exec: exec.clone(),
        nodes,
        traceparent: trace::traceparent(&span).map(Arc::from),
        _span: span,
        query: query.map_or(0, |query| query.id),
        records: BTreeMap::new(),
        recipe: None,
        context: Arc::clone(context),
        partition,
        segments: (first..).zip(segments.clone()).collect::<Vec<_>>().into_iter(),
        now: Now::Between,
        ahead: VecDeque::new(),
        ahead_bytes: ahead,
        baseline: BaselineMetrics::new(&exec.metrics, partition),
        segments_stored: counter("segments_stored"),
        segments_computed: counter("segments_computed"),
        rows_stored: counter("rows_stored"),
        time_saved: MetricBuilder::new(&exec.metrics).subset_time("time_saved", partition),
    };
    let batches = stream::try_unfold(run, |mut run| async move {
        let next = run.next_in_turn().await?;
        Ok(next.map(|batch| (batch, run)))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(exec.input.schema(), batches.boxed())))
}

/// Bytes of the rows of a batch; it may be a piece of a much larger one.
fn bytes_of(batch: &RecordBatch) -> Result<u64> {
    let columns = batch.columns().iter();
    let bytes = columns.map(|column| column.to_data().get_slice_memory_size());
    Ok(bytes.sum::<Result<usize, _>>()? as u64)
}

/// The same rows in one piece: the batches of a large state are slices of all its groups.
fn kept(batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    match batches {
        [] | [_] => Ok(batches.to_vec()),
        [first, ..] => Ok(vec![concat_batches(&first.schema(), batches)?]),
    }
}

/// What became of computing a state.
pub(super) enum Collected {
    /// All of it, in one piece.
    State(Vec<RecordBatch>),
    /// It is not worth storing: what there is so far, and the rest.
    TooLarge(Vec<RecordBatch>, SendableRecordBatchStream),
}

/// Collects the state of one segment, unless it grows too large.
pub(super) async fn collect(
    mut stream: SendableRecordBatchStream,
    segment: &Segment,
) -> Result<Collected> {
    let bytes_max = (segment.bytes / BYTES_SHRINK_BY_MIN).max(STATE_BYTES_SMALL);
    let rows_max = (segment.rows / ROWS_SHRINK_BY_MIN).max(STATE_ROWS_SMALL);
    let (mut batches, mut bytes, mut rows) = (vec![], 0, 0);
    while let Some(batch) = stream.try_next().await? {
        bytes += bytes_of(&batch)?;
        rows += batch.num_rows() as u64;
        batches.push(batch);
        if bytes > bytes_max || rows > rows_max {
            return Ok(Collected::TooLarge(batches, stream));
        }
    }
    kept(&batches).map(Collected::State)
}

/// What is being read.
enum Now {
    /// Nothing.
    Between,
    /// The rest of a state.
    State(std::vec::IntoIter<RecordBatch>),
    /// What is computed and not stored.
    Stream(SendableRecordBatchStream),
}

/// The same context, in which every look-up of stored values is checked.
fn checking(context: &Arc<TaskContext>) -> Arc<TaskContext> {
    let mut config = context.session_config().clone();
    if let Some(options) = config.options_mut().extensions.get_mut::<SessionOptions>() {
        options.check_every = 1;
    }
    Arc::new(TaskContext::new(
        context.task_id(),
        context.session_id(),
        config,
        context.scalar_functions().clone(),
        context.higher_order_functions().clone(),
        context.aggregate_functions().clone(),
        context.window_functions().clone(),
        context.runtime_env(),
    ))
}

struct Run {
    scan: PartitionScanExec,
    exec: PartialReuseExec,
    nodes: Arc<LocalNodes>,
    query: u64,
    context: Arc<TaskContext>,
    partition: usize,
    /// Segments to come, with their numbers among those of all partitions.
    segments: std::vec::IntoIter<(usize, ScanSegment)>,
    now: Now,
    /// What is ready before its turn.
    ahead: VecDeque<RecordBatch>,
    ahead_bytes: MemoryReservation,
    baseline: BaselineMetrics,
    segments_stored: Count,
    segments_computed: Count,
    rows_stored: Count,
    time_saved: Time,
    /// What the monitor is told at the end, by partition of the table.
    records: BTreeMap<PartitionId, CallRecord>,
    /// Lasts as long as this; what its records are linked to.
    _span: tracing::Span,
    traceparent: Option<Arc<str>>,
    recipe: Option<Arc<PlanRecipe>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(turns) = &self.exec.turns {
            turns.end(self.partition);
        }
        let own = &self.nodes.own;
        let at_ms = own.clock.now_ms();
        let records = std::mem::take(&mut self.records).into_values();
        let records: Vec<CallRecord> =
            records.map(|record| CallRecord { at_ms, ..record }).collect();
        if !records.is_empty() {
            own.calls.offer(records);
        }
    }
}

/// Rows of a segment, and how many of them no query asked for before.
#[derive(Clone, Copy)]
struct SegmentRows {
    all: u64,
    fresh: u64,
}

impl Run {
    /// The next batch, once it is this partition's turn; until then batches are made ahead.
    async fn next_in_turn(&mut self) -> Result<Option<RecordBatch>> {
        let Some(turns) = self.exec.turns.clone() else { return self.next().await };
        let mut is_at_end = false;
        while !turns.has_come(self.partition) {
            let has_room = self.ahead_bytes.size() < AHEAD_BYTES_MAX;
            if is_at_end || !has_room {
                turns.come(self.partition).await;
                break;
            }
            match self.next().await? {
                // For want of memory it is made ahead no further, and what there is goes uncharged.
                Some(batch) => {
                    let bytes = usize::try_from(bytes_of(&batch)?).unwrap_or(usize::MAX);
                    if self.ahead_bytes.try_grow(bytes).is_err() {
                        turns.come(self.partition).await;
                    }
                    self.ahead.push_back(batch);
                }
                None => is_at_end = true,
            }
        }
        if let Some(batch) = self.ahead.pop_front() {
            return Ok(Some(batch));
        }
        self.ahead_bytes.free();
        if is_at_end { Ok(None) } else { self.next().await }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let batch = match &mut self.now {
                Now::State(batches) => batches.next(),
                Now::Stream(stream) => stream.try_next().await?,
                Now::Between => None,
            };
            if let Some(batch) = batch {
                self.baseline.record_output(batch.num_rows());
                return Ok(Some(batch));
            }
            self.now = Now::Between;
            let Some((number, segment)) = self.segments.next() else { return Ok(None) };
            let node = Arc::clone(self.nodes.node(segment.node));
            match self.stored(&node, &segment) {
                Some(stored) if !self.is_check_due(&stored) => {
                    self.take(&node, &segment, &stored);
                }
                Some(_) => {
                    let context = checking(&self.context);
                    self.compute(&node, number, segment, context).await?;
                }
                None if node.store_policy().enabled => {
                    let context = Arc::clone(&self.context);
                    self.compute(&node, number, segment, context).await?;
                }
                None => self.compute_rest(number, segment)?,
            }
        }
    }

    fn partition_of(&self, segment: &ScanSegment) -> PartitionId {
        PartitionId::new(Arc::clone(&self.scan.table.name), segment.segment.partition)
    }

    /// Adds the state over a segment to what is told the monitor: a shape has calls like an expression.
    fn count(
        &mut self,
        node: &NodeState,
        segment: &ScanSegment,
        add: impl FnOnce(&mut CallRecord, SegmentRows),
    ) {
        let partition = self.partition_of(segment);
        let Fragment { shape, pattern, .. } = &*self.exec.fragment;
        let series = shape.series();
        let view = node.replica(&partition).map(|replica| replica.view());
        let held = view.as_ref().and_then(|view| view.segments.get(&segment.segment.id));
        let is_fresh = held.is_some_and(|held| held.is_first_ask(series));
        let all = segment.segment.rows;
        let rows = SegmentRows { all, fresh: if is_fresh { all } else { 0 } };
        let (query, own) = (self.query, self.nodes.own.id);
        let record = self.records.entry(partition).or_insert_with_key(|partition| {
            let (function, partition) = (Arc::clone(pattern), partition.clone());
            let key = SeriesKey { function, expression: series, partition };
            CallRecord::empty(key, query, own, self.traceparent.clone())
        });
        record.rows += rows.all;
        record.rows_fresh += rows.fresh;
        add(record, rows);
    }

    /// Computes the same when no query asks for it; the same one for all segments.
    fn recipe(&mut self) -> Arc<dyn Recipe> {
        let (exec, context) = (&self.exec, &self.context);
        let recipe = self.recipe.get_or_insert_with(|| Arc::new(PlanRecipe::new(exec, context)));
        Arc::clone(recipe) as Arc<dyn Recipe>
    }

    fn stored(&self, node: &NodeState, segment: &ScanSegment) -> Option<StoredPartial> {
        if !node.store_policy().enabled {
            return None;
        }
        let view = node.replica(&self.partition_of(segment))?.view();
        view.segments.get(&segment.segment.id)?.partials.get(&self.exec.fragment.id).cloned()
    }

    /// Whether the calls behind a state are to be made again: nobody would look at their stored values while
    /// the state is used.
    fn is_check_due(&self, stored: &StoredPartial) -> bool {
        let options = self.context.session_config().options();
        let options = options.extensions.get::<SessionOptions>();
        let check_every = options.map_or(0, |options| options.check_every);
        !stored.calls.is_empty() && self.nodes.own.is_check_due(check_every)
    }

    /// Uses a stored state. Its calls count as if they had been made and answered from stored outputs:
    /// else the forecast would take them to have ended.
    fn take(&mut self, node: &NodeState, segment: &ScanSegment, stored: &StoredPartial) {
        stored.uses.fetch_add(1, Ordering::Relaxed);
        self.segments_stored.add(1);
        self.rows_stored.add(segment.segment.rows as usize);
        self.time_saved.add_duration(Duration::from_nanos(stored.ns));
        let would_be_ns: u64 = stored.calls.iter().map(|call| call.would_be_ns).sum();
        let ns_alone = stored.ns.saturating_sub(would_be_ns);
        self.count(node, segment, |record, rows| {
            record.rows_stored += rows.all;
            record.rows_fresh_stored += rows.fresh;
            record.would_be_ns += ns_alone;
        });
        let at_ms = node.clock.now_ms();
        let view = node.replica(&self.partition_of(segment)).map(|replica| replica.view());
        let held = view.as_ref().and_then(|view| view.segments.get(&segment.segment.id));
        if let Some(held) = held {
            held.load.count_evenly(node.clock.monotonic_ns(), (would_be_ns + ns_alone) as f64);
        }
        let calls = stored.calls.iter().map(|call| {
            let is_fresh = held.is_some_and(|held| held.is_first_ask(call.expression));
            let rows_fresh = if is_fresh { call.rows } else { 0 };
            CallRecord {
                at_ms,
                query: self.query,
                node: node.id,
                rows_stored: call.rows,
                rows_fresh,
                rows_fresh_stored: rows_fresh,
                ns: 0,
                waited_ns: 0,
                bytes: 0,
                ..call.clone()
            }
        });
        self.nodes.own.calls.offer(calls.collect());
        let rows_max = self.context.session_config().batch_size().max(1);
        let pieces = |batch: &RecordBatch| {
            let (batch, rows) = (batch.clone(), batch.num_rows());
            let starts = (0..rows).step_by(rows_max);
            starts.map(move |start| batch.slice(start, rows_max.min(rows - start)))
        };
        let batches: Vec<RecordBatch> = stored.batches.iter().flat_map(pieces).collect();
        self.now = Now::State(batches.into_iter());
    }

    /// Computes the state of one segment and offers it, unless it grows too large.
    async fn compute(
        &mut self,
        node: &NodeState,
        number: usize,
        segment: ScanSegment,
        context: Arc<TaskContext>,
    ) -> Result<()> {
        let partition = self.partition_of(&segment);
        let by_segment = self.exec.by_segment()?.clone();
        let start = node.clock.monotonic_ns();
        let stream = on_its_own(&by_segment.plan).execute(number, context)?;
        let batches = match collect(stream, &segment.segment).await? {
            Collected::State(batches) => batches,
            Collected::TooLarge(batches, stream) => {
                let schema = self.exec.input.schema();
                let all = stream::iter(batches.into_iter().map(Ok)).chain(stream);
                let all = Box::pin(RecordBatchStreamAdapter::new(schema, all.boxed()));
                let rest = self.segments.by_ref().collect();
                self.stream(self.followed_by(all, rest)?);
                return Ok(());
            }
        };
        let ns = node.clock.monotonic_ns().saturating_sub(start);
        self.segments_computed.add(1);
        let offer = PartialOffer {
            segment: segment.segment.id,
            fragment: Arc::clone(&self.exec.fragment),
            batches: batches.clone(),
            ns,
            calls: by_segment.calls_of(number),
            recipe: Some(self.recipe()),
            is_ahead: false,
        };
        let ns_alone = ns.saturating_sub(offer.calls.iter().map(|call| call.ns).sum());
        let bytes = offer.bytes();
        self.count(node, &segment, |record, _rows| {
            record.ns += ns_alone;
            record.would_be_ns += ns_alone;
            record.bytes += bytes;
        });
        let handle = node.handle(&partition);
        if handle.is_some_and(|handle| !handle.actor.offer_partial(offer)) {
            node.offers_dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.now = Now::State(batches.into_iter());
        Ok(())
    }

    /// Computes this and all segments that are left in one go.
    fn compute_rest(&mut self, number: usize, segment: ScanSegment) -> Result<()> {
        let first = std::iter::once((number, segment));
        let segments = first.chain(self.segments.by_ref()).collect();
        self.stream(self.together(segments)?);
        Ok(())
    }

    fn stream(&mut self, stream: SendableRecordBatchStream) {
        if let Some(turns) = &self.exec.turns {
            turns.in_any_order();
        }
        self.now = Now::Stream(stream);
    }

    fn together(&self, segments: Vec<(usize, ScanSegment)>) -> Result<SendableRecordBatchStream> {
        if is_joined(&self.exec.input) {
            // One after the other: what they are joined with is there already.
            let plan = Arc::clone(&self.exec.by_segment()?.plan);
            let (schema, context) = (plan.schema(), Arc::clone(&self.context));
            let numbers = stream::iter(segments).map(|(number, _)| number);
            let all = numbers.map(move |number| plan.execute(number, Arc::clone(&context)));
            return Ok(Box::pin(RecordBatchStreamAdapter::new(schema, all.try_flatten().boxed())));
        }
        let segments = segments.into_iter().map(|(_, segment)| segment).collect();
        let rest = self.scan.with_groups(vec![segments])?.sharing_metrics_of(&self.scan);
        with_scan(&self.exec.input, &rest)?.execute(0, Arc::clone(&self.context))
    }

    /// A stream, and after it the segments that are left.
    fn followed_by(
        &self,
        first: SendableRecordBatchStream,
        segments: Vec<(usize, ScanSegment)>,
    ) -> Result<SendableRecordBatchStream> {
        if segments.is_empty() {
            return Ok(first);
        }
        let schema = first.schema();
        let both = first.chain(self.together(segments)?);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, both.boxed())))
    }
}
