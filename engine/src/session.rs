//! A client's session: plans and runs its statements, one snapshot each.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionContext;
use datafusion_distributed::DistributedExt;
use foreshard_actors::trace;
use foreshard_udfs::{CalledBy, call_threads, longest_call};
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use crate::cluster::InFlight;
use crate::engine::Inner;
use crate::error::EngineError;
use crate::query::complexity::{longest_chain, may_be_deep};
use crate::query::context::{LocalNodes, QueryContext};
use crate::query::explain::{explained, with_stored};
use crate::query::large_stack::on_large_stack;
use crate::query::newest_files;
use crate::query::options::{SessionOptions, changed_entries};
use crate::query::own_task::{in_own_task, is_called_by, is_called_while_planning};
use crate::query::route::PlacementResolver;
use crate::query::scan::PartitionScanExec;
use crate::query::single_row::single_value;
use crate::query::worker::task_headers;
use crate::query_stream::{AnswerSize, QueryStream};
use crate::statements;

/// Chains longer than this are planned on a thread with a large stack.
const CHAIN_ON_OWN_STACK: usize = 50;

/// One client's session. Cheap to clone; clones share their `SET` values.
#[derive(Clone)]
pub struct Session {
    pub(crate) inner: Arc<Inner>,
    pub(crate) context: SessionContext,
    /// Revision of the functions that the context has.
    installed: Arc<AtomicU64>,
    traceparent: Option<String>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

/// A statement that was planned once and can be run many times.
#[derive(Clone, Debug)]
pub struct Prepared {
    sql: String,
    plan: LogicalPlan,
    schema: SchemaRef,
    parameters: Vec<(String, DataType)>,
}

impl Prepared {
    /// The text.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Columns of the result.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Names and types of the parameters, `$1` first.
    #[must_use]
    pub fn parameters(&self) -> &[(String, DataType)] {
        &self.parameters
    }
}

/// Ends a query when its stream is dropped: cancels its tasks and gives its place back.
struct Running {
    query: Arc<QueryContext>,
    inner: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
    _in_flight: InFlight,
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&self.inner, &self.query);
    }
}

/// Stops what is left of a query, on all nodes.
fn end(inner: &Inner, query: &QueryContext) {
    query.cancel.cancel();
    inner.members.query_ended(query.id, &query.placement);
}

impl Session {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        let context = SessionContext::new_with_state(inner.planning.state());
        context.register_udaf(single_value());
        crate::catalog::ticks::install(&context, &inner);
        crate::catalog::what_if::install(&context, &inner);
        crate::catalog::function_stats(&context, &inner);
        let installed = Arc::new(AtomicU64::new(inner.functions.install(&context)));
        Self { inner, context, installed, traceparent: None }
    }

    /// Makes the session's queries part of a trace that a client started (W3C `traceparent`).
    #[must_use]
    pub fn with_trace_parent(mut self, traceparent: Option<String>) -> Self {
        self.traceparent = traceparent;
        self
    }

    /// Runs exactly one statement. DDL and DML are done, and durable if the table is, when this returns.
    ///
    /// # Errors
    /// [`EngineError`], with a code. An error of a running query comes from the stream.
    pub async fn sql(&self, sql: &str) -> Result<QueryStream, EngineError> {
        let span = self.span(sql);
        self.run(sql, None, vec![]).instrument(span).await
    }

    /// Plans a statement whose parameters `$1`, `$2`, .. are given later.
    ///
    /// # Errors
    /// [`EngineError`], with a code.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared, EngineError> {
        let query = self.begin();
        let state = self.state(&query)?;
        let plan = self.plan(&state, sql).await?;
        let schema: SchemaRef = match &plan {
            LogicalPlan::Dml(_) => QueryStream::affected(0)?.schema(),
            LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => QueryStream::empty().schema(),
            plan => Arc::new(plan.schema().as_arrow().clone()),
        };
        let parameters = statements::parameters(&plan)?;
        Ok(Prepared { sql: sql.to_owned(), plan, schema, parameters })
    }

    /// Runs a prepared statement with one value per parameter, `$1` first.
    ///
    /// # Errors
    /// [`EngineError::ParameterCount`], [`EngineError::Parameter`], or as [`sql`](Self::sql).
    pub async fn execute(
        &self,
        prepared: &Prepared,
        parameters: Vec<ScalarValue>,
    ) -> Result<QueryStream, EngineError> {
        let expected = prepared.parameters.len();
        if parameters.len() != expected {
            return Err(EngineError::ParameterCount { expected, given: parameters.len() });
        }
        let mut values = Vec::with_capacity(expected);
        for (index, (value, (_, wanted))) in
            parameters.into_iter().zip(&prepared.parameters).enumerate()
        {
            values.push(value.cast_to(wanted).map_err(|_no_cast| EngineError::Parameter {
                index: index + 1,
                reason: format!("is {value}, which is not a {wanted}"),
            })?);
        }
        let span = self.span(&prepared.sql);
        self.run(&prepared.sql, Some(prepared.plan.clone()), values).instrument(span).await
    }

    fn span(&self, sql: &str) -> tracing::Span {
        let statement: String = sql.chars().take(1_000).collect();
        let span =
            tracing::info_span!("query", db.system.name = "foreshard", db.query.text = statement);
        trace::adopt(&span, self.traceparent.as_deref());
        span
    }

    async fn run(
        &self,
        sql: &str,
        plan: Option<LogicalPlan>,
        parameters: Vec<ScalarValue>,
    ) -> Result<QueryStream, EngineError> {
        if self.inner.stopping.load(Ordering::Relaxed) {
            return Err(EngineError::ShuttingDown);
        }
        let max = self.inner.config.limits().queries_max();
        let permit = Arc::clone(&self.inner.running)
            .try_acquire_owned()
            .map_err(|_none_left| EngineError::TooMany { what: "running queries", max })?;
        self.inner.count("foreshard_statements_total", "Statements that were started.");
        let query = self.begin();
        let _under_way = self.inner.the_loop.board().traffic.begin();
        let seconds = self.inner.config.limits().query_seconds();
        let work = self.run_within(sql, plan, parameters, &query, permit);
        let done = tokio::time::timeout(Duration::from_secs(seconds), work).await;
        let result = done.unwrap_or_else(|_elapsed| Err(self.timeout(seconds, &query)));
        if result.is_err() {
            end(&self.inner, &query);
            self.inner
                .count("foreshard_statements_failed_total", "Statements that ended with an error.");
        }
        result
    }

    async fn run_within(
        &self,
        sql: &str,
        plan: Option<LogicalPlan>,
        parameters: Vec<ScalarValue>,
        query: &Arc<QueryContext>,
        permit: OwnedSemaphorePermit,
    ) -> Result<QueryStream, EngineError> {
        let state = self.state(query)?;
        if plan.is_none()
            && let Some(call) = statements::call::parse(&state, sql)?
        {
            return statements::call::run(self, &state, call).await;
        }
        let plan = match plan {
            Some(plan) => plan,
            None => self.plan(&state, sql).await?,
        };
        let plan = if parameters.is_empty() {
            plan
        } else {
            plan.with_param_values(ParamValues::from(parameters))?
        };
        let done = if self.needs_own_thread(&plan)? {
            let (session, state, query) = (self.clone(), state.clone(), Arc::clone(query));
            let sql = sql.to_owned();
            let work =
                move || async move { statements::run(&session, &state, plan, &sql, &query).await };
            on_large_stack(work).await?
        } else {
            statements::run(self, &state, plan, sql, query).await
        };
        match done? {
            statements::Done::Stream(stream) => Ok(stream),
            statements::Done::Query(plan) => self.query(&state, plan, query, permit).await,
        }
    }

    /// Starts a query on the newest placement.
    pub(crate) fn begin(&self) -> Arc<QueryContext> {
        let traceparent = trace::current_traceparent().or_else(|| self.traceparent.clone());
        self.inner.queries.start(self.inner.members.placement(), traceparent)
    }

    /// A copy of the session's state that belongs to one query.
    pub(crate) fn state(&self, query: &Arc<QueryContext>) -> Result<SessionState, EngineError> {
        // A redefined function must be the new one at once.
        let functions = &self.inner.functions;
        if functions.revision() != self.installed.load(Ordering::Acquire) {
            self.installed.store(functions.install(&self.context), Ordering::Release);
        }
        let mut state = self.context.state();
        // Only for other nodes, and it takes as long as planning a part of a small query.
        let other_nodes = query.placement.nodes.len() > 1;
        let changed = match other_nodes {
            true => changed_entries(state.config_options()),
            false => String::new(),
        };
        let nodes = self.inner.members.local_states();
        let own = nodes.values().min_by_key(|node| node.id).cloned();
        let own = own.ok_or_else(|| EngineError::NodeLost { node: "every".to_owned() })?;
        let config = state.config_mut();
        if let Some(options) = config.options_mut().extensions.get_mut::<SessionOptions>() {
            options.changed = changed;
            options.query = query.id;
            options.other_nodes = other_nodes;
            options.use_partials &= own.store_policy().enabled;
        }
        config.set_extension(Arc::clone(query));
        config.options_mut().extensions.insert(CalledBy::new(query));
        config.set_extension(Arc::new(LocalNodes { nodes, own }));
        config.set_distributed_worker_resolver(PlacementResolver(Arc::clone(&query.placement)));
        config.set_distributed_passthrough_headers(task_headers(query)?)?;
        // Functions are called with the settings of this moment.
        state.mark_start_execution();
        Ok(state)
    }

    /// Plans one statement; long chains get a large stack, too long ones an error.
    pub(crate) async fn plan(
        &self,
        state: &SessionState,
        sql: &str,
    ) -> Result<LogicalPlan, EngineError> {
        let terms = longest_chain(sql);
        let max = self.inner.config.limits().statement_terms_max();
        if terms > max {
            return Err(EngineError::TooComplex { terms, max });
        }
        let statement = statements::parse_one(state, sql)?;
        let plan = if terms > CHAIN_ON_OWN_STACK {
            let state = state.clone();
            on_large_stack(move || async move { state.statement_to_plan(statement).await }).await?
        } else {
            state.statement_to_plan(statement).await
        };
        plan.map_err(|error| self.explain(error))
    }

    /// An error of DataFusion as ours, with the nearest name where one is unknown.
    pub(crate) fn explain(&self, error: datafusion::error::DataFusionError) -> EngineError {
        let error = EngineError::from_datafusion(error);
        let tables = self.inner.catalog.names();
        let functions = statements::function_names(&self.context);
        let columns = statements::column_names(&self.inner.catalog);
        let names = match &error {
            EngineError::UnknownTable { .. } => tables,
            EngineError::UnknownFunction { .. } => functions,
            EngineError::UnknownColumn { nearest: None, .. } => columns,
            _ => return error,
        };
        error.with_nearest(names.iter().map(String::as_str))
    }

    async fn query(
        &self,
        state: &SessionState,
        plan: LogicalPlan,
        query: &Arc<QueryContext>,
        permit: OwnedSemaphorePermit,
    ) -> Result<QueryStream, EngineError> {
        let explained = explained(&plan);
        let mut plan = self.physical(state, plan).await?;
        if let Some(explained) = explained {
            plan = with_stored(self, state, plan, explained).await?;
        }
        let mut in_flight = InFlight::default();
        count_nodes(&plan, query, &mut in_flight);
        self.inner.members.joined(query.take_joined());
        self.inner.members.asked_for(query.take_ranges());
        let stream = self.execute_plan(state, plan)?;
        let inner = Arc::clone(&self.inner);
        let running =
            Running { query: Arc::clone(query), inner, _permit: permit, _in_flight: in_flight };
        Ok(self.guarded(stream, running))
    }

    /// Whether planning would overflow a usual stack, or hold up the client's task.
    fn needs_own_thread(&self, plan: &LogicalPlan) -> Result<bool, EngineError> {
        Ok(may_be_deep(plan) || is_called_while_planning(plan)?)
    }

    /// Makes a physical plan out of a logical one.
    pub(crate) async fn physical(
        &self,
        state: &SessionState,
        plan: LogicalPlan,
    ) -> Result<Arc<dyn ExecutionPlan>, EngineError> {
        newest_files::look(&self.inner, &plan).await?;
        let span = tracing::info_span!("plan");
        let planned = if self.needs_own_thread(&plan)? {
            let state = state.clone();
            on_large_stack(move || async move { state.create_physical_plan(&plan).await }).await?
        } else {
            state.create_physical_plan(&plan).instrument(span).await
        };
        planned.map_err(|error| self.explain(error))
    }

    /// Runs a physical plan.
    pub(crate) fn execute_plan(
        &self,
        state: &SessionState,
        plan: Arc<dyn ExecutionPlan>,
    ) -> Result<SendableRecordBatchStream, EngineError> {
        let mut context = state.task_ctx();
        if let Some(query) = state.config().get_extension::<QueryContext>() {
            let runtime = query.runtime(state.runtime_env(), self.inner.config.query_bytes_max());
            context = Arc::new(TaskContext::from(state).with_runtime(runtime));
        }
        if !is_called_by(&plan)? {
            return execute_stream(plan, context).map_err(|error| self.explain(error));
        }
        let threads = call_threads().map_err(|error| EngineError::Io {
            message: format!("no thread to call functions on: {error}"),
        })?;
        // Some of its tasks begin at once.
        let entered = threads.enter();
        let stream = execute_stream(plan, context).map_err(|error| self.explain(error));
        drop(entered);
        Ok(in_own_task(stream?, &threads))
    }

    /// The time of a query is over: says what it was doing, if that was calling a function.
    fn timeout(&self, seconds: u64, query: &Arc<QueryContext>) -> EngineError {
        // A timer may be late.
        let since = Duration::from_secs(seconds.saturating_add(1));
        let during = longest_call(query, since)
            .map(|(call, time)| format!("; {call} had not ended after {} s", time.as_secs()));
        EngineError::Timeout { seconds, during: during.unwrap_or_default() }
    }

    /// Counts a query that failed while its rows were read.
    fn failed(&self, error: EngineError) -> EngineError {
        let what = "Statements that ended with an error.";
        self.inner.count("foreshard_statements_failed_total", what);
        error
    }

    /// A stream that maps errors, keeps to the limits, ends at the deadline, and holds the query's place until it is dropped.
    fn guarded(&self, stream: SendableRecordBatchStream, running: Running) -> QueryStream {
        let schema = stream.schema();
        let seconds = self.inner.config.limits().query_seconds();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
        let session = self.clone();
        let span = tracing::Span::current();
        let limits = self.inner.config.limits().clone();
        let size = AnswerSize::default();
        let state = Some((stream, running, size));
        let batches = futures::stream::unfold(state, move |state| {
            let (session, span, limits) = (session.clone(), span.clone(), limits.clone());
            async move {
                let (mut stream, running, mut size) = state?;
                // Only while somebody waits for rows: who reads slowly keeps no core busy.
                let _under_way = session.inner.the_loop.board().traffic.begin();
                let next = tokio::time::timeout_at(deadline, stream.next()).instrument(span).await;
                match next {
                    Ok(Some(Ok(batch))) => match size.add(&batch, &limits) {
                        Ok(()) => Some((Ok(batch), Some((stream, running, size)))),
                        Err(error) => Some((Err(session.failed(error)), None)),
                    },
                    Ok(Some(Err(error))) => {
                        Some((Err(session.failed(session.explain(error))), None))
                    }
                    Ok(None) => None,
                    Err(_elapsed) => {
                        let error = session.timeout(seconds, &running.query);
                        Some((Err(session.failed(error)), None))
                    }
                }
            }
        });
        QueryStream { schema, batches: batches.fuse().boxed(), rows_affected: None }
    }
}

/// Counts the query at the nodes that its scans read from.
fn count_nodes(plan: &Arc<dyn ExecutionPlan>, query: &QueryContext, in_flight: &mut InFlight) {
    if let Some(scan) = plan.downcast_ref::<PartitionScanExec>() {
        let mut nodes: Vec<_> = scan.groups.iter().flatten().map(|scan| scan.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes {
            in_flight.add(&query.placement, node);
        }
    }
    for child in plan.children() {
        count_nodes(child, query, in_flight);
    }
}
