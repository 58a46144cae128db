//! Computes a function expression over rows: in slices, so that a dear function neither blocks the
//! runtime for long nor holds a permit while others wait.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use arrow::array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_empty_array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{concat, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;
use foreshard_udfs::{calls_asynchronously, evaluate_later};
use futures::TryStreamExt;

use crate::expressions::FunctionExpression;
use crate::node::NodeState;
use crate::partition::Held;
use crate::partition::distinct::distinct;
use crate::partition::keep::keep_rows;
use crate::partition::output::OutputValues;
use crate::segment::{Rows, Segment};
use crate::store::StoreError;

/// Wall time that one slice should take.
const SLICE_NS: u64 = 20_000_000;

/// The same in the background: a query that comes waits for the slice that runs.
const SLICE_NS_BEHIND: u64 = 2_000_000;

/// Rows of the first slice, when nothing is known of the cost.
const SLICE_ROWS_FIRST: usize = 32;

/// Most rows of a slice.
const SLICE_ROWS_MAX: usize = 8_192;

/// An output could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// The rows could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The function failed, or Arrow did.
    #[error("{0}")]
    Evaluate(#[from] DataFusionError),
    /// The table was dropped meanwhile.
    #[error("table {table:?} is not there any more")]
    NoTable {
        /// Name of the table.
        table: Arc<str>,
    },
    /// The function gave the wrong number of rows.
    #[error("{function} gave {got} values for {rows} rows")]
    Length {
        /// Name of the function.
        function: Arc<str>,
        /// Values given.
        got: usize,
        /// Rows given to it.
        rows: usize,
    },
}

impl ComputeError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Evaluate(_) => "FS-COMPUTE-1",
            Self::NoTable { .. } => "FS-COMPUTE-2",
            Self::Length { .. } => "FS-COMPUTE-3",
        }
    }
}

/// A computed column and what it took.
#[derive(Clone, Debug)]
pub struct Computed {
    /// One value per row.
    pub values: ArrayRef,
    /// Nanoseconds spent in the function.
    pub ns: u64,
    /// Nanoseconds for which it waited for permits of the node.
    pub waited_ns: u64,
    /// Rows that it was evaluated on: fewer than values where rows share their arguments.
    pub evaluated: u64,
}

/// Evaluates `expr` on `batch` in slices of about 20 ms, or 2 in the background, and measures it. Rows with the same arguments
/// are evaluated once if that pays.
///
/// A permit of the node is held while a slice runs. Dropping the future stops after the slice. Calls
/// of asynchronous functions are awaited, without a permit, and stop when the future is dropped.
///
/// # Errors
/// What the function or Arrow said.
pub async fn evaluate(
    node: &NodeState,
    expression: &FunctionExpression,
    expr: &Arc<dyn PhysicalExpr>,
    batch: &RecordBatch,
) -> Result<Computed, ComputeError> {
    evaluate_for(Whom::User, node, (expression, expr), batch).await
}

/// For whom something is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// A query.
    User,
    /// Queries to come: behind those that are here.
    Background,
}

async fn evaluate_for(
    whom: Whom,
    node: &NodeState,
    (expression, expr): (&FunctionExpression, &Arc<dyn PhysicalExpr>),
    batch: &RecordBatch,
) -> Result<Computed, ComputeError> {
    let once = distinct(expression, batch)?;
    let rows = once.as_ref().map_or(batch, |once| &once.rows);
    let waits = calls_asynchronously(expr);
    let mut pieces: Vec<ArrayRef> = Vec::new();
    let mut done = 0;
    let (mut ns_total, mut waited_ns) = (0, 0);
    while done < rows.num_rows() {
        let slice_rows = slice_rows(expression, waits, whom).min(rows.num_rows() - done);
        let slice = rows.slice(done, slice_rows);
        let asked = node.clock.monotonic_ns();
        // Who waits for something else needs no core.
        let permit = match whom {
            _ if waits => None,
            Whom::User => Some(node.permits.acquire(&expression.table, &node.clock).await),
            Whom::Background => Some(node.permits.acquire_behind(&node.clock).await),
        };
        let start = node.clock.monotonic_ns();
        waited_ns += start.saturating_sub(asked);
        let values = match waits {
            true => evaluate_later(expr, &slice).await?,
            false => expr.evaluate(&slice)?,
        };
        let values = values.into_array(slice_rows)?;
        let ns = node.clock.monotonic_ns().saturating_sub(start);
        drop(permit);
        if values.len() != slice_rows {
            return Err(ComputeError::Length {
                function: expression.function.clone(),
                got: values.len(),
                rows: slice_rows,
            });
        }
        expression.measured(slice_rows as u64, ns);
        ns_total += ns;
        done += slice_rows;
        pieces.push(values);
        if done < rows.num_rows() {
            let_others_go_first().await;
        }
    }
    let values = join(pieces, &expr.data_type(&batch.schema())?)?;
    let values = match once {
        Some(once) => take(&values, &once.of_row, None).map_err(DataFusionError::from)?,
        None => values,
    };
    Ok(Computed { values, ns: ns_total, waited_ns, evaluated: done as u64 })
}

/// Gives other tasks a turn. Other than with tokio's `yield_now`, any thread may go on with this one: a call
/// that comes next on this thread may hold it up.
async fn let_others_go_first() {
    let mut is_first = true;
    poll_fn(|context| {
        if std::mem::take(&mut is_first) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Rows of the next slice. A function that `waits` blocks nothing, and cuts its rows itself.
fn slice_rows(expression: &FunctionExpression, waits: bool, whom: Whom) -> usize {
    if waits {
        return SLICE_ROWS_MAX;
    }
    if !expression.is_measured() {
        return SLICE_ROWS_FIRST;
    }
    let slice_ns = match whom {
        Whom::User => SLICE_NS,
        Whom::Background => SLICE_NS_BEHIND,
    };
    let rows = slice_ns / expression.ns_per_evaluation().max(1);
    usize::try_from(rows).unwrap_or(SLICE_ROWS_MAX).clamp(1, SLICE_ROWS_MAX)
}

fn join(pieces: Vec<ArrayRef>, data_type: &DataType) -> Result<ArrayRef, DataFusionError> {
    match pieces.len() {
        0 => Ok(new_empty_array(data_type)),
        1 => Ok(pieces.into_iter().next().unwrap_or_else(|| new_empty_array(data_type))),
        _ => {
            let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
            Ok(concat(&pieces)?)
        }
    }
}

/// Reads some columns of a segment as batches over the *whole* table schema: columns that are not
/// asked for are replaced by Null columns, which cost nothing.
///
/// # Errors
/// What the store said.
pub async fn read_columns(
    node: &NodeState,
    segment: &Segment,
    held: Option<&Held>,
    table: &str,
    columns: &[usize],
) -> Result<Vec<RecordBatch>, ComputeError> {
    let store = node
        .tables
        .store(table)
        .ok_or_else(|| ComputeError::NoTable { table: Arc::from(table) })?;
    let schema = store.table().schema.clone();
    let resident = held.and_then(|held| held.rows.as_ref()).map(|resident| resident.rows.clone());
    let resident: Option<Rows> = resident.or_else(|| segment.pinned.clone());
    if let Some(rows) = resident {
        let kept = |batch: &RecordBatch| columns.iter().map(|i| batch.column(*i).clone()).collect();
        return rows
            .iter()
            .map(|batch| sparse(&schema, columns, kept(batch), batch.num_rows()))
            .collect();
    }
    let batches: Vec<RecordBatch> = store.read(segment, Some(columns)).await?.try_collect().await?;
    batches
        .iter()
        .map(|batch| sparse(&schema, columns, batch.columns().to_vec(), batch.num_rows()))
        .collect()
}

fn sparse(
    schema: &SchemaRef,
    columns: &[usize],
    values: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch, ComputeError> {
    let mut all: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    let mut fields: Vec<Arc<Field>> = Vec::with_capacity(schema.fields().len());
    for (index, field) in schema.fields().iter().enumerate() {
        match columns.iter().position(|column| *column == index) {
            Some(position) => {
                all.push(values[position].clone());
                fields.push(field.clone());
            }
            None => {
                all.push(Arc::new(arrow::array::NullArray::new(rows)));
                fields.push(Arc::new(Field::new(field.name(), DataType::Null, true)));
            }
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let schema = Arc::new(Schema::new(fields));
    RecordBatch::try_new_with_options(schema, all, &options)
        .map_err(|error| ComputeError::Evaluate(error.into()))
}

/// A column computed in the background and what it took.
pub(super) struct ComputedSegment {
    /// Values of the rows that were not stored.
    pub(super) values: OutputValues,
    /// Nanoseconds spent in the function.
    pub(super) ns: u64,
}

/// Computes `expression` over the rows of one segment of which nothing is `stored`, in the background:
/// waits while user tasks run.
///
/// # Errors
/// As [`evaluate`] and [`read_columns`].
pub(super) async fn compute_segment(
    node: &NodeState,
    expression: &FunctionExpression,
    held: &Held,
    stored: Option<&OutputValues>,
) -> Result<ComputedSegment, ComputeError> {
    let table = expression.table.clone();
    let batches =
        read_columns(node, &held.segment, Some(held), &table, &expression.columns).await?;
    let missing = stored.and_then(OutputValues::known).map(|known| !known);
    let waits = calls_asynchronously(&expression.expr);
    let mut pieces = Vec::with_capacity(batches.len());
    let (mut ns, mut at) = (0, 0);
    for batch in &batches {
        let rows = batch.num_rows();
        let wanted = missing.as_ref().map(|missing| missing.slice(at, rows));
        at += rows;
        let left = match wanted {
            Some(wanted) => keep_rows(batch, &BooleanArray::from(wanted), |_| true)
                .map_err(DataFusionError::from)?,
            None => batch.clone(),
        };
        let mut start = 0;
        while start < left.num_rows() {
            // Without that, those who have a permit would keep all threads from queries that just come.
            let_others_go_first().await;
            node.idle().await;
            let rows = slice_rows(expression, waits, Whom::Background).min(left.num_rows() - start);
            let (what, slice) = ((expression, &expression.expr), left.slice(start, rows));
            let computed = evaluate_for(Whom::Background, node, what, &slice).await?;
            ns += computed.ns;
            pieces.push(computed.values);
            start += rows;
        }
    }
    let schema = node.tables.store(&table).map(|store| store.table().schema.clone());
    let schema = schema.ok_or(ComputeError::NoTable { table })?;
    let values = join(pieces, &expression.expr.data_type(&schema)?)?;
    let known = missing.unwrap_or_else(|| BooleanBuffer::new_set(at));
    let (function, got, rows) = (expression.function.clone(), values.len(), known.count_set_bits());
    let values =
        OutputValues::of_rows(known, values).ok_or(ComputeError::Length { function, got, rows })?;
    Ok(ComputedSegment { values, ns })
}
