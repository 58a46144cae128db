//! Tests of single steps of a scan.

use arrow::array::{BooleanArray, Int64Array, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, UnboundedMemoryPool};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, col, lit};

use super::rest::{Rest, narrow};
use super::work::Call;
use super::*;
use foreshard_actors::partition::StoredOutput;

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
    let call = Call { expr, expression: Arc::new(expression), field, computed_from: None };
    Work {
        table: "t".into(),
        schema: schema(),
        output_schema: schema(),
        columns,
        calls: vec![call],
        filters: vec![],
        outputs: vec![],
        uses_outputs: true,
        is_passthrough: false,
    }
}

fn stored(work: &Work, values: Vec<i64>) -> SegmentCall {
    let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
    let output = StoredOutput {
        values: Arc::new(Int64Array::from(values)),
        bytes: 1,
        uses: Arc::default(),
        charge: Arc::new(MemoryConsumer::new("test").register(&pool)),
    };
    SegmentCall {
        expression: Arc::clone(&work.calls[0].expression),
        stored: Some(output),
        column_from: Some(0),
        is_fresh: false,
        computed: None,
    }
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

#[test]
fn a_second_filter_narrows_the_first_ones_rows() {
    let before = BooleanArray::from(vec![true, false, true, true, false]);
    let mask = BooleanArray::from(vec![false, true, true]);
    let kept: Vec<bool> = narrow(&before, &mask).values().iter().collect();
    assert_eq!(kept, [false, false, true, true, false]);
}

#[test]
fn a_stored_output_is_cut_to_the_rows_that_several_filters_left() {
    let work = work(vec![1]);
    // Ten rows in the segment; the batch is its last six.
    let calls = [stored(&work, (100..110).collect())];
    let batch = read(vec![Some(1), None, Some(7), Some(8), None, Some(9)]);
    let mut rest = Rest::new(&work, &calls, batch, 4).unwrap();
    rest.keep(&x_is(Operator::GtEq, 1)).unwrap();
    assert_eq!(rest.batch.num_rows(), 4, "NULL is not true");
    rest.keep(&x_is(Operator::Gt, 0)).unwrap();
    rest.keep(&x_is(Operator::NotEq, 8)).unwrap();
    assert!(!rest.is_whole);
    rest.add(0, None, &DataType::Int64).unwrap();
    assert_eq!(numbers(rest.batch.column(1)), [Some(1), Some(7), Some(9)]);
    assert_eq!(numbers(rest.batch.column(2)), [Some(104), Some(106), Some(109)]);
    // From here on it is filtered with the others.
    rest.keep(&x_is(Operator::Gt, 1)).unwrap();
    assert_eq!(numbers(rest.batch.column(2)), [Some(106), Some(109)]);
}

#[test]
fn a_batch_without_columns_keeps_its_rows() {
    let work = work(vec![]);
    let calls = [stored(&work, (0..5).collect())];
    let options = RecordBatchOptions::new().with_row_count(Some(3));
    let none = Arc::new(Schema::empty());
    let batch = RecordBatch::try_new_with_options(none, vec![], &options).unwrap();
    let mut rest = Rest::new(&work, &calls, batch, 2).unwrap();
    rest.keep(&lit(true)).unwrap();
    assert!(rest.is_whole);
    rest.add(0, None, &DataType::Int64).unwrap();
    assert_eq!(numbers(rest.batch.column(2)), [Some(2), Some(3), Some(4)]);
    rest.keep(&lit(false)).unwrap();
    assert_eq!(rest.batch.num_rows(), 0);
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

#[test]
fn a_call_is_a_column_only_from_the_filter_that_needs_it_on_every_row() {
    let mut work = work(vec![1]);
    let call = Arc::clone(&work.calls[0].expr);
    work.filters = vec![Arc::clone(&call), Arc::clone(&call)];
    work.outputs = vec![call];
    let mut computed = stored(&work, vec![]);
    computed.stored = None;
    let is_column = |expr: &Arc<dyn PhysicalExpr>| {
        expr.downcast_ref::<Column>().is_some_and(|column| column.index() == 2)
    };
    for (from, expected) in
        [(0, [true, true, true]), (1, [false, true, true]), (2, [false, false, true])]
    {
        computed.column_from = Some(from);
        let (filters, outputs) = work.rewrite(std::slice::from_ref(&computed)).unwrap();
        let found: Vec<bool> = filters.iter().chain(&outputs).map(is_column).collect();
        assert_eq!(found, expected, "from {from}");
    }
}
