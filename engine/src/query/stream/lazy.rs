//! A call in a branch that not all rows take: in CASE, AND, OR or COALESCE.
//!
//! DataFusion decides which rows take the branch and evaluates the call on a batch of these. The batch
//! carries the number of each row, so that the call can look its value up, and compute only what nobody
//! computed before.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use foreshard_actors::partition::keep_rows;
use foreshard_actors::ports::SharedClock;

use crate::query::stream::call::SegmentCall;

/// The call, and the column with the numbers of the rows.
pub(super) struct LazyCall {
    call: Arc<dyn PhysicalExpr>,
    row: Arc<dyn PhysicalExpr>,
    segment: Arc<SegmentCall>,
    clock: SharedClock,
}

impl LazyCall {
    /// `call` over rows whose numbers within the scan's batch are in the column `row`.
    pub(super) fn new(
        call: Arc<dyn PhysicalExpr>,
        row: Arc<dyn PhysicalExpr>,
        segment: Arc<SegmentCall>,
        clock: SharedClock,
    ) -> Self {
        Self { call, row, segment, clock }
    }
}

impl fmt::Debug for LazyCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LazyCall({})", self.call)
    }
}

impl fmt::Display for LazyCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.call.fmt(f)
    }
}

impl PartialEq for LazyCall {
    fn eq(&self, other: &Self) -> bool {
        self.call.eq(&other.call) && Arc::ptr_eq(&self.segment, &other.segment)
    }
}

impl Eq for LazyCall {}

impl Hash for LazyCall {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.call.hash(state);
    }
}

impl PhysicalExpr for LazyCall {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.call.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.call.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.call.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let rows = self.row.evaluate(batch)?.into_array(batch.num_rows())?;
        let Some(rows) = rows.as_any().downcast_ref::<UInt32Array>() else {
            return internal_err!("the rows of a branch have no numbers");
        };
        // Rows that come several times, or in another order, are none of a branch.
        if !rows.values().is_sorted_by(|one, next| one < next) {
            return self.call.evaluate(batch);
        }
        let batch_rows = self.segment.batch_rows();
        let mut wanted = vec![false; batch_rows];
        for row in rows.values() {
            wanted[*row as usize] = true;
        }
        let wanted: BooleanBuffer = wanted.into_iter().collect();
        let found = self.segment.look(Some(&wanted))?;
        let Some(known) = &found.known else {
            self.segment.answered(Some(&wanted), None, 0)?;
            return Ok(ColumnarValue::Array(found.values));
        };
        let missing = !known;
        let mut missing_rows = vec![false; batch_rows];
        for position in missing.set_indices() {
            missing_rows[rows.value(position) as usize] = true;
        }
        let rest = keep_rows(batch, &BooleanArray::from(missing), |_| true)?;
        let start = self.clock.monotonic_ns();
        let computed = self.call.evaluate(&rest)?.into_array(rest.num_rows())?;
        let ns = self.clock.monotonic_ns().saturating_sub(start);
        self.segment.expression.measured(rest.num_rows() as u64, ns);
        let missing_rows: BooleanBuffer = missing_rows.into_iter().collect();
        self.segment.answered(Some(&wanted), Some((missing_rows, &computed)), ns)?;
        Ok(ColumnarValue::Array(found.complete(&computed)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.call, &self.row]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let Ok([call, row]) = <[_; 2]>::try_from(children) else {
            return internal_err!("a lazy call has two children");
        };
        let (segment, clock) = (Arc::clone(&self.segment), self.clock.clone());
        Ok(Arc::new(Self { call, row, segment, clock }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.call.fmt_sql(f)
    }
}
