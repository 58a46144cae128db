//! States of several nodes in an order that does not depend on who was first.
//!
//! Before: `AggregateExec(Final)` over an exchange over `PartialReuseExec` on several nodes. After: the same
//! with a `SameOrderExec` above the exchange.
//!
//! On one node partitions take turns ([`turns`](super::turns)). A partition of another node may be asked for
//! only after one of this node has ended, so nobody may wait for it: instead what came is sorted by all of
//! its columns. Rows that are equal in all of them may be merged in either order.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};

/// Bytes that are held back to be sorted. More are handed on as they come: states that were stored are small,
/// and what is not has no fixed order below either.
const HELD_BYTES_MAX: usize = 4 << 20;

/// Hands few rows on in an order that follows from what they are.
#[derive(Debug)]
pub struct SameOrderExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl SameOrderExec {
    /// The rows of `input`.
    #[must_use]
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Self { input, properties: Arc::new(properties) }
    }
}

impl DisplayAs for SameOrderExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SameOrderExec")
    }
}

impl ExecutionPlan for SameOrderExec {
    fn name(&self) -> &str {
        "SameOrderExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self::new(input))),
            Err(_) => internal_err!("SameOrderExec has one child"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let schema = self.input.schema();
        let ordered = stream::once(in_order(input, context)).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, ordered.boxed())))
    }
}

/// Rows in order, if they are few; as they come otherwise.
async fn in_order(
    mut input: SendableRecordBatchStream,
    context: Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let schema = input.schema();
    let held = MemoryConsumer::new("SameOrderExec").register(context.memory_pool());
    let mut batches = vec![];
    while let Some(batch) = input.try_next().await? {
        let bytes = batch.get_array_memory_size();
        batches.push(batch);
        let is_held = held.size().saturating_add(bytes) <= HELD_BYTES_MAX;
        if !is_held || held.try_grow(bytes).is_err() {
            // The reservation ends with what was held.
            let first = stream::iter(batches).map(move |batch| {
                let _held = &held;
                Ok(batch)
            });
            let all = first.chain(input).boxed();
            return Ok(Box::pin(RecordBatchStreamAdapter::new(schema, all)));
        }
    }
    let all = concat_batches(&schema, &batches)?;
    let sorted = sorted(&all)?;
    drop((batches, all));
    let rows_max = context.session_config().batch_size().max(1);
    let rows = sorted.num_rows();
    let pieces = (0..rows).step_by(rows_max).map(move |start| {
        let _held = &held;
        Ok(sorted.slice(start, rows_max.min(rows - start)))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(pieces).boxed())))
}

/// The same rows, sorted by all columns; as they are if there is a column that cannot be compared.
fn sorted(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter();
    let fields: Vec<SortField> =
        columns.map(|column| SortField::new(column.data_type().clone())).collect();
    if batch.num_rows() < 2 || fields.is_empty() || !RowConverter::supports_fields(&fields) {
        return Ok(batch.clone());
    }
    let rows = RowConverter::new(fields)?.convert_columns(batch.columns())?;
    let mut order: Vec<u32> = (0..).take(batch.num_rows()).collect();
    order.sort_unstable_by_key(|row| rows.row(*row as usize));
    Ok(take_record_batch(batch, &UInt32Array::from(order))?)
}
