//! The rows of a batch on their way through a scan: fewer with each filter, wider with each call.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, NullArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{filter, filter_record_batch, prep_null_mask_filter};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{Result, internal_err};
use datafusion::physical_expr::PhysicalExpr;

use crate::query::stream::work::{SegmentCall, Work};

/// The rows of one batch that the filters left so far.
pub(super) struct Rest {
    /// Columns of the table (Null where nobody reads them), then one column per call (Null until
    /// something needs it).
    pub(super) batch: RecordBatch,
    /// Which calls are columns already.
    pub(super) has: Vec<bool>,
    /// Whether all rows of the batch are still there.
    pub(super) is_whole: bool,
    pub(super) calls_at: usize,
    pub(super) start: usize,
    pub(super) rows: usize,
    /// Rows of the batch that are left; `None` as long as all are.
    pub(super) mask: Option<BooleanArray>,
    pub(super) stored: Vec<Option<ArrayRef>>,
}

impl Rest {
    pub(super) fn new(
        work: &Work,
        calls: &[SegmentCall],
        batch: RecordBatch,
        start: usize,
    ) -> Result<Self> {
        let rows = batch.num_rows();
        let null: ArrayRef = Arc::new(NullArray::new(rows));
        let width = work.schema.fields().len() + calls.len();
        let mut columns = vec![null; width];
        let unused = Arc::new(Field::new("-", DataType::Null, true));
        let mut fields = vec![unused; width];
        for (position, index) in work.columns.iter().enumerate() {
            columns[*index] = Arc::clone(batch.column(position));
            fields[*index] = Arc::clone(&work.schema.fields()[*index]);
        }
        let stored = calls
            .iter()
            .map(|call| call.stored.as_ref().map(|stored| Arc::clone(&stored.values)))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::new(Schema::new(fields));
        Ok(Self {
            batch: RecordBatch::try_new_with_options(schema, columns, &options)?,
            has: vec![false; calls.len()],
            is_whole: true,
            calls_at: work.schema.fields().len(),
            start,
            rows,
            mask: None,
            stored,
        })
    }

    /// Puts the values of a call in its place: the given ones, or a slice of the stored output.
    pub(super) fn add(
        &mut self,
        call: usize,
        values: Option<ArrayRef>,
        data_type: &DataType,
    ) -> Result<()> {
        let values = match (values, &self.stored[call]) {
            (Some(values), _) => values,
            (None, Some(stored)) => {
                let slice = stored.slice(self.start, self.rows);
                match &self.mask {
                    Some(mask) => filter(&slice, mask)?,
                    None => slice,
                }
            }
            (None, None) => return internal_err!("call {call} is neither stored nor computed"),
        };
        let position = self.calls_at + call;
        let mut columns = self.batch.columns().to_vec();
        let mut fields: Vec<Arc<Field>> = self.batch.schema().fields().iter().cloned().collect();
        columns[position] = values;
        fields[position] = Arc::new(Field::new("call", data_type.clone(), true));
        let options = RecordBatchOptions::new().with_row_count(Some(self.batch.num_rows()));
        let schema = Arc::new(Schema::new(fields));
        self.batch = RecordBatch::try_new_with_options(schema, columns, &options)?;
        self.has[call] = true;
        Ok(())
    }

    /// Keeps the rows for which `predicate` is true.
    pub(super) fn keep(&mut self, predicate: &Arc<dyn PhysicalExpr>) -> Result<()> {
        let rows = self.batch.num_rows();
        let values = predicate.evaluate(&self.batch)?.into_array(rows)?;
        let Some(mask) = values.as_any().downcast_ref::<BooleanArray>() else {
            return internal_err!("predicate {predicate} is not boolean");
        };
        let mask = if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() };
        if mask.true_count() == rows {
            return Ok(());
        }
        self.batch = filter_record_batch(&self.batch, &mask)?;
        self.is_whole = false;
        if self.stored.iter().zip(&self.has).any(|(stored, has)| stored.is_some() && !has) {
            self.mask = Some(match &self.mask {
                None => mask,
                Some(before) => narrow(before, &mask),
            });
        }
        Ok(())
    }
}

/// The mask over all rows that keeps what `mask` keeps of the rows that `before` kept.
pub(super) fn narrow(before: &BooleanArray, mask: &BooleanArray) -> BooleanArray {
    let mut kept = mask.values().iter();
    before
        .values()
        .iter()
        .map(|is_kept| is_kept && kept.next().unwrap_or(false))
        .map(Some)
        .collect()
}
