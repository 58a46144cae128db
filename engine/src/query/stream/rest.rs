//! The rows of a batch on their way through a scan: fewer with each filter, wider with each call.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, NullArray, RecordBatch, RecordBatchOptions, UInt32Array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{Result, internal_err};
use datafusion::physical_expr::PhysicalExpr;
use foreshard_actors::partition::keep_rows;

use crate::query::stream::work::Work;

/// The rows of one batch that the filters left so far.
pub(super) struct Rest {
    /// Columns of the table (Null where nobody reads them), one column per call (Null until something
    /// needs it), and the number of the row within the batch if a call may be lazy.
    pub(super) batch: RecordBatch,
    /// Which calls are columns already.
    pub(super) has: Vec<bool>,
    /// Rows of the batch that are left; `None` as long as all are.
    pub(super) selected: Option<BooleanBuffer>,
    calls_at: usize,
}

impl Rest {
    pub(super) fn new(work: &Work, batch: &RecordBatch) -> Result<Self> {
        let rows = batch.num_rows();
        let null: ArrayRef = Arc::new(NullArray::new(rows));
        let calls_at = work.schema.fields().len();
        let width = calls_at + work.calls.len();
        let mut columns = vec![null; width];
        let unused = Arc::new(Field::new("-", DataType::Null, true));
        let mut fields = vec![unused; width];
        for (position, index) in work.columns.iter().enumerate() {
            columns[*index] = Arc::clone(batch.column(position));
            fields[*index] = Arc::clone(&work.schema.fields()[*index]);
        }
        if work.has_lazy_calls {
            columns.push(Arc::new(UInt32Array::from_iter_values(0..rows as u32)));
            fields.push(Arc::new(Field::new("row", DataType::UInt32, false)));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::new(Schema::new(fields));
        Ok(Self {
            batch: RecordBatch::try_new_with_options(schema, columns, &options)?,
            has: vec![false; work.calls.len()],
            selected: None,
            calls_at,
        })
    }

    /// `rows` rows of which nothing is known but the values of calls that are put in their places.
    pub(super) fn unread(work: &Work, rows: usize) -> Result<Self> {
        let width = work.position(work.calls.len()) + 1;
        let null: ArrayRef = Arc::new(NullArray::new(rows));
        let columns = vec![null; width];
        let unused = Arc::new(Field::new("-", DataType::Null, true));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::new(Schema::new(vec![unused; width]));
        Ok(Self {
            batch: RecordBatch::try_new_with_options(schema, columns, &options)?,
            has: vec![false; work.calls.len()],
            selected: None,
            calls_at: work.position(0),
        })
    }

    /// Puts the values of a call in its place.
    pub(super) fn add(
        &mut self,
        call: usize,
        values: ArrayRef,
        data_type: &DataType,
    ) -> Result<()> {
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

    /// Keeps the rows for which `predicate` is true, and the columns that something after it reads.
    pub(super) fn keep(
        &mut self,
        predicate: &Arc<dyn PhysicalExpr>,
        is_read: &[bool],
    ) -> Result<()> {
        let mask = self.mask(predicate)?;
        self.keep_masked(&mask, is_read)
    }

    /// As [`keep`](Self::keep), but a predicate that fails drops no row.
    pub(super) fn keep_unless_failed(
        &mut self,
        predicate: &Arc<dyn PhysicalExpr>,
        is_read: &[bool],
    ) -> Result<()> {
        match self.mask(predicate) {
            Ok(mask) => self.keep_masked(&mask, is_read),
            Err(_) => Ok(()),
        }
    }

    fn keep_masked(&mut self, mask: &BooleanArray, is_read: &[bool]) -> Result<()> {
        let rows = self.batch.num_rows();
        if mask.true_count() == rows {
            return Ok(());
        }
        self.batch = keep_rows(&self.batch, mask, |position| is_read[position])?;
        self.selected = Some(match &self.selected {
            None => mask.values().clone(),
            Some(before) => narrow(before, mask.values()),
        });
        Ok(())
    }

    /// The rows for which `predicate` is true.
    pub(super) fn mask(&self, predicate: &Arc<dyn PhysicalExpr>) -> Result<BooleanArray> {
        let values = predicate.evaluate(&self.batch)?.into_array(self.batch.num_rows())?;
        let Some(mask) = values.as_any().downcast_ref::<BooleanArray>() else {
            return internal_err!("predicate {predicate} is not boolean");
        };
        Ok(if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() })
    }

    /// Numbers within the batch of the rows that are left.
    pub(super) fn rows(&self) -> impl Iterator<Item = u32> + '_ {
        let all = match &self.selected {
            None => Some(0..self.batch.num_rows() as u32),
            Some(_) => None,
        };
        let selected = self.selected.iter().flat_map(BooleanBuffer::set_indices);
        all.into_iter().flatten().chain(selected.map(|row| row as u32))
    }

    /// The rows of the batch that stand behind some of the rows that are left.
    pub(super) fn of_batch(&self, left: BooleanBuffer) -> BooleanBuffer {
        match &self.selected {
            None => left,
            Some(selected) => narrow(selected, &left),
        }
    }
}

/// The mask over all rows that keeps what `mask` keeps of the rows that `before` kept.
pub(super) fn narrow(before: &BooleanBuffer, mask: &BooleanBuffer) -> BooleanBuffer {
    let mut kept = mask.iter();
    before.iter().map(|is_kept| is_kept && kept.next().unwrap_or(false)).collect()
}
