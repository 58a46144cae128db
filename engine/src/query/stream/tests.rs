//! Tests of single steps of a scan.

use arrow::array::{Int64Array, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, UnboundedMemoryPool};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, col, lit};

use super::call::SegmentCall;
use super::rest::{Rest, narrow};
use super::rows::slices;
use super::work::Call;
use super::*;
use arrow::array::AsArray;
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::Int64Type;
use datafusion::physical_expr::PhysicalExpr;
use foreshard_actors::partition::{OutputValues, StoredOutput};

/// Every column is read later on.
const ALL: [bool; 4] = [true; 4];

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("unread", DataType::Utf8, true),
        Field::new("x", DataType::Int64, true),
    ]))
}

/// Reads column `x`, if `columns` says so, and knows one call.
fn work(columns: Vec<usize>) -> Work {
    let expr = col("x", &schema()).unwrap();
    let expression =
        FunctionExpression::new(ExpressionId(1), vec!["f".into()], "t".into(), expr.clone());
    let field = Arc::new(Field::new("f", DataType::Int64, true));
    let call = Call { expr, expression: Arc::new(expression), field };
    Work {
        table: "t".into(),
        schema: schema(),
        output_schema: schema(),
        columns,
        calls: vec![call],
        filters: vec![],
        dynamic: vec![],
        stats: vec![],
        outputs: vec![],
        has_lazy_calls: true,
        uses_outputs: true,
        check_every: 0,
        is_passthrough: false,
    }
}

/// The call on a segment of which some values are stored.
fn call(work: &Work, values: Option<OutputValues>) -> Arc<SegmentCall> {
    let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
    let stored = values.map(|values| StoredOutput {
        values,
        bytes: 1,
        uses: Arc::default(),
        charge: Arc::new(MemoryConsumer::new("test").register(&pool)),
    });
    let expression = Arc::clone(&work.calls[0].expression);
    let flight = Some(Arc::default());
    let asked = Asked { expression, data_type: DataType::Int64, is_stored: true, flight };
    Arc::new(SegmentCall::new(asked, stored, false))
}

/// Values 100, 101, .. of the rows that are set.
fn values(known: &[bool]) -> OutputValues {
    let values = (100..).zip(known).filter(|(_, known)| **known).map(|(value, _)| value);
    let values = Arc::new(Int64Array::from_iter_values(values));
    OutputValues::of_rows(known.iter().copied().collect(), values).unwrap()
}

fn read(values: Vec<Option<i64>>) -> RecordBatch {
    let x: ArrayRef = Arc::new(Int64Array::from(values));
    RecordBatch::try_from_iter_with_nullable([("x", x, true)]).unwrap()
}

fn x_is(operator: Operator, value: i64) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(col("x", &schema()).unwrap(), operator, lit(value)))
}

fn numbers(column: &ArrayRef) -> Vec<Option<i64>> {
    column.as_any().downcast_ref::<Int64Array>().unwrap().iter().collect()
}

fn mask(rows: &[bool]) -> BooleanBuffer {
    rows.iter().copied().collect()
}

#[test]
fn a_second_filter_narrows_the_first_ones_rows() {
    let before = mask(&[true, false, true, true, false]);
    let kept = narrow(&before, &mask(&[false, true, true]));
    assert_eq!(kept, mask(&[false, false, true, true, false]));
}

#[test]
fn a_stored_output_is_cut_to_the_rows_that_several_filters_left() {
    let work = work(vec![1]);
    // Ten rows in the segment; the batch is its last six.
    let call = call(&work, Some(values(&[true; 10])));
    call.begin(4, 6);
    let batch = read(vec![Some(1), None, Some(7), Some(8), None, Some(9)]);
    let mut rest = Rest::new(&work, &batch).unwrap();
    rest.keep(&x_is(Operator::GtEq, 1), &ALL).unwrap();
    assert_eq!(rest.batch.num_rows(), 4, "NULL is not true");
    rest.keep(&x_is(Operator::Gt, 0), &ALL).unwrap();
    rest.keep(&x_is(Operator::NotEq, 8), &ALL).unwrap();
    let found = call.look(rest.selected.as_ref()).unwrap();
    assert!(found.known.is_none());
    rest.add(0, found.values, &DataType::Int64).unwrap();
    assert_eq!(numbers(rest.batch.column(1)), [Some(1), Some(7), Some(9)]);
    assert_eq!(numbers(rest.batch.column(2)), [Some(104), Some(106), Some(109)]);
    // From here on it is filtered with the others.
    rest.keep(&x_is(Operator::Gt, 1), &ALL).unwrap();
    assert_eq!(numbers(rest.batch.column(2)), [Some(106), Some(109)]);
    assert_eq!(
        rest.of_batch(mask(&[true, false])),
        mask(&[false, false, true, false, false, false])
    );
}

#[test]
fn a_batch_without_columns_keeps_its_rows() {
    let work = work(vec![]);
    let options = RecordBatchOptions::new().with_row_count(Some(3));
    let none = Arc::new(Schema::empty());
    let batch = RecordBatch::try_new_with_options(none, vec![], &options).unwrap();
    let mut rest = Rest::new(&work, &batch).unwrap();
    rest.keep(&lit(true), &ALL).unwrap();
    assert!(rest.selected.is_none());
    rest.keep(&lit(false), &ALL).unwrap();
    assert_eq!(rest.batch.num_rows(), 0);
}

#[test]
fn only_what_is_missing_is_computed_and_only_what_was_computed_is_offered() {
    let work = work(vec![1]);
    let stored = [true, false, false, false, true, false, false, false, false, false];
    let call = call(&work, Some(values(&stored)));
    call.begin(0, 4);
    assert_eq!(call.end(0), Used::default(), "nothing was asked of the first batch");
    call.begin(4, 4);
    let wanted = mask(&[true, true, false, true]);
    let found = call.look(Some(&wanted)).unwrap();
    assert_eq!(found.known, Some(mask(&[true, false, false])));
    let computed: ArrayRef = Arc::new(Int64Array::from(vec![105, 107]));
    let missing = mask(&[false, true, false, true]);
    call.answered(Some(&wanted), Some((missing, &computed)), 30).unwrap();
    let all = found.complete(&computed).unwrap();
    assert_eq!(all.as_primitive::<Int64Type>().values(), &[104, 105, 107]);
    // Asked again in the same batch, nothing is missing and nothing counts twice.
    let again = call.look(Some(&wanted)).unwrap();
    assert!(again.known.is_none());
    call.answered(Some(&wanted), None, 0).unwrap();
    let used = call.end(0);
    assert_eq!((used.rows, used.rows_stored, used.ns), (3, 1, 30));
    let offered = call.collected(10).unwrap();
    let rows = [4, 5, 7].map(|row| (row, 100 + row as i64));
    let known = offered.known().unwrap().set_indices();
    let offered: Vec<(usize, i64)> = known
        .zip(offered.values().unwrap().as_primitive::<Int64Type>().values().to_vec())
        .collect();
    assert_eq!(offered, rows);
}

#[test]
fn rows_are_sliced_to_the_size_of_a_batch_and_none_is_lost() {
    let rows: foreshard_actors::segment::Rows =
        [read(vec![Some(1); 5]), read(vec![]), read(vec![Some(2); 3])].into();
    for columns in [vec![0], vec![]] {
        let sizes: Vec<usize> =
            slices(Arc::clone(&rows), columns, 2).map(|batch| batch.unwrap().num_rows()).collect();
        assert_eq!(sizes, [2, 2, 1, 2, 1]);
    }
}
