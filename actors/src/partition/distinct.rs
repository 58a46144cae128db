//! Finds rows with the same arguments, so that a dear function is evaluated once for all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use datafusion::error::DataFusionError;

use crate::expressions::FunctionExpression;

/// Nanoseconds per row below which looking for equal arguments costs as much as evaluating.
const NS_PER_ROW_MIN: u64 = 1_000;

/// Fewer rows than this are evaluated as they are.
const ROWS_MIN: usize = 16;

/// The distinct rows of a batch.
#[derive(Debug)]
pub(super) struct Distinct {
    /// The first row of each kind.
    pub(super) rows: RecordBatch,
    /// For each row of the batch, the row of the same kind.
    pub(super) of_row: UInt32Array,
}

/// The rows of `batch` that differ in a column that `expression` reads; `None` if looking for them
/// does not pay, or hardly any are alike.
///
/// Rows are alike only if they are bit by bit: `0.0` and `-0.0` are two.
///
/// # Errors
/// If Arrow cannot compare values of a type.
pub(super) fn distinct(
    expression: &FunctionExpression,
    batch: &RecordBatch,
) -> Result<Option<Distinct>, DataFusionError> {
    let is_cheap = expression.is_measured() && expression.ns_per_evaluation() < NS_PER_ROW_MIN;
    if is_cheap || batch.num_rows() < ROWS_MIN || !expression.may_repeat_arguments() {
        return Ok(None);
    }
    let columns: Vec<_> = expression.columns.iter().map(|i| batch.column(*i).clone()).collect();
    let fields: Vec<SortField> =
        columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let is_nested = |field: &DataType| field.is_nested();
    let types = columns.iter().map(|column| column.data_type());
    if columns.is_empty()
        || types.into_iter().any(is_nested)
        || !RowConverter::supports_fields(&fields)
    {
        return Ok(None);
    }
    let rows = RowConverter::new(fields)?.convert_columns(&columns)?;
    let mut firsts: Vec<u32> = Vec::new();
    let mut kinds: HashMap<_, u32> = HashMap::with_capacity(batch.num_rows());
    let mut of_row: Vec<u32> = Vec::with_capacity(batch.num_rows());
    for (row, number) in rows.iter().zip(0_u32..) {
        let next = firsts.len() as u32;
        of_row.push(match kinds.entry(row) {
            Entry::Occupied(kind) => *kind.get(),
            Entry::Vacant(kind) => {
                firsts.push(number);
                *kind.insert(next)
            }
        });
    }
    expression.saw_arguments(firsts.len() as u64, batch.num_rows() as u64);
    if firsts.len() * 8 > batch.num_rows() * 7 {
        return Ok(None);
    }
    let rows = take_record_batch(batch, &UInt32Array::from(firsts))?;
    Ok(Some(Distinct { rows, of_row: of_row.into() }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Float64Array, StringArray};
    use arrow::datatypes::{Field, Float64Type, Schema};
    use datafusion::physical_expr::expressions::col;
    use foreshard_policy::ids::ExpressionId;

    use super::*;

    fn expression(schema: &Schema) -> FunctionExpression {
        let expr = col("x", schema).unwrap();
        FunctionExpression::new(ExpressionId(1), vec!["f".into()], "t".into(), expr)
    }

    fn batch(x: Vec<Option<f64>>) -> RecordBatch {
        let y: ArrayRef =
            Arc::new(StringArray::from_iter_values((0..x.len()).map(|i| i.to_string())));
        let x: ArrayRef = Arc::new(Float64Array::from(x));
        let schema = Schema::new(vec![
            Field::new("y", DataType::Utf8, true),
            Field::new("x", DataType::Float64, true),
        ]);
        RecordBatch::try_new(Arc::new(schema), vec![y, x]).unwrap()
    }

    #[test]
    fn rows_with_equal_arguments_are_one_whatever_else_they_hold() {
        let kinds = [Some(1.0), None, Some(0.0), Some(-0.0), Some(f64::NAN)];
        let values: Vec<Option<f64>> = (0..100).map(|i| kinds[(i * i + i % 2 * 2) % 5]).collect();
        let batch = batch(values.clone());
        let found = distinct(&expression(&batch.schema()), &batch).unwrap().unwrap();
        let bits = |value: Option<f64>| value.map(f64::to_bits);
        let mut different: Vec<_> = values.iter().map(|value| bits(*value)).collect();
        different.sort_unstable();
        different.dedup();
        assert_eq!(found.rows.num_rows(), different.len());
        let of_kind: Vec<_> = found.rows.column(1).as_primitive::<Float64Type>().iter().collect();
        for (value, kind) in values.iter().zip(found.of_row.values()) {
            assert_eq!(bits(*value), bits(of_kind[*kind as usize]));
        }
    }

    #[test]
    fn arguments_that_never_repeat_are_soon_left_alone() {
        let values = |from: usize| batch((from..from + 50).map(|i| Some(i as f64)).collect());
        let expression = expression(&values(0).schema());
        for from in 0..10 {
            assert!(distinct(&expression, &values(from * 50)).unwrap().is_none());
        }
        let looked = (0..64).filter(|_| expression.may_repeat_arguments()).count();
        assert_eq!(looked, 4, "one batch in sixteen is looked at");
    }

    #[test]
    fn a_cheap_function_is_not_worth_the_search() {
        let batch = batch(vec![Some(1.0); 100]);
        let expression = expression(&batch.schema());
        expression.measured(1_000, 500_000);
        assert!(distinct(&expression, &batch).unwrap().is_none());
    }
}
