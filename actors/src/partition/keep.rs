//! Keeps some rows of a batch, and copies only the columns that somebody still reads.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, NullArray, RecordBatch, RecordBatchOptions};
use arrow::compute::FilterBuilder;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;

/// The rows of `batch` for which `mask` is true. Columns at the positions for which `is_read` says no
/// become Null columns, and Null columns are not copied: Arrow's own filter copies them row by row.
///
/// # Errors
/// If the mask has another length than the batch, or Arrow cannot filter a type.
pub fn keep_rows(
    batch: &RecordBatch,
    mask: &BooleanArray,
    is_read: impl Fn(usize) -> bool,
) -> Result<RecordBatch, ArrowError> {
    let is_kept = |(position, column): (usize, &ArrayRef)| {
        is_read(position) && column.data_type() != &DataType::Null
    };
    let copied: Vec<bool> = batch.columns().iter().enumerate().map(is_kept).collect();
    let mut filter = FilterBuilder::new(mask);
    if copied.iter().filter(|copied| **copied).count() > 1 {
        filter = filter.optimize();
    }
    let filter = filter.build();
    let rows = filter.count();
    let nothing: ArrayRef = Arc::new(NullArray::new(rows));
    let unread = Arc::new(Field::new("-", DataType::Null, true));
    let (mut fields, mut columns) = (vec![], vec![]);
    for ((column, field), copied) in
        batch.columns().iter().zip(batch.schema_ref().fields()).zip(copied)
    {
        let is_null = column.data_type() == &DataType::Null;
        fields.push(if copied || is_null { field.clone() } else { unread.clone() });
        columns.push(if copied { filter.filter(column)? } else { nothing.clone() });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn read_columns_keep_their_rows_and_the_others_become_null() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("a", Arc::new(Int64Array::from(vec![1, 2, 3]))),
            ("b", Arc::new(StringArray::from(vec!["x", "y", "z"]))),
            ("c", Arc::new(NullArray::new(3))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mask = BooleanArray::from(vec![Some(true), None, Some(true)]);
        let kept = keep_rows(&batch, &mask, |position| position != 1).unwrap();
        assert_eq!(kept.num_rows(), 2);
        assert_eq!(kept.column(0).as_primitive::<Int64Type>().values(), &[1, 3]);
        assert_eq!((kept.column(1).data_type(), kept.column(1).len()), (&DataType::Null, 2));
        assert_eq!((kept.column(2).data_type(), kept.column(2).len()), (&DataType::Null, 2));
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let options = RecordBatchOptions::new().with_row_count(Some(3));
        let empty = Arc::new(Schema::empty());
        let batch = RecordBatch::try_new_with_options(empty, vec![], &options).unwrap();
        let mask = BooleanArray::from(vec![true, false, true]);
        assert_eq!(keep_rows(&batch, &mask, |_| true).unwrap().num_rows(), 2);
    }
}
