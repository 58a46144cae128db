//! Rows of the history as Arrow columns: the same in segments, in Parquet files and in SQL.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, Float64Array, PrimitiveArray,
    RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array,
};
use arrow::datatypes::{
    DataType, Field, Float64Type, Schema, SchemaRef, TimeUnit, TimestampMillisecondType, UInt64Type,
};
use arrow::error::ArrowError;
use foreshard_policy::history::{QuantileSketch, Resolution, Row, Summary};
use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey};

/// Beginning of the bucket: what files are chosen by.
pub const START: &str = "start";

/// Name of the function: what files are sorted by.
pub const FUNCTION: &str = "function";

/// Quantiles of the duration of a call that have a column.
const QUANTILES: [(&str, f64); 3] =
    [("duration_ns_p50", 0.5), ("duration_ns_p95", 0.95), ("duration_ns_p99", 0.99)];

/// A column of whole numbers, and where they are.
type Count = (&'static str, fn(&Summary) -> u64);

/// Columns of whole numbers, in their order.
const COUNTS: [Count; 8] = [
    ("calls", |of| of.calls),
    ("rows", |of| of.rows),
    ("rows_stored", |of| of.rows_stored),
    ("rows_fresh", |of| of.rows_fresh),
    ("rows_fresh_stored", |of| of.rows_fresh_stored),
    ("ns", |of| of.ns),
    ("would_be_ns", |of| of.would_be_ns),
    ("bytes", |of| of.bytes),
];

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let moment = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let mut fields = vec![
        Field::new(START, moment, false),
        Field::new("resolution", DataType::Utf8, false),
        Field::new(FUNCTION, DataType::Utf8, false),
        Field::new("expression", DataType::Utf8, false),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("partition", DataType::UInt64, false),
    ];
    fields.extend(COUNTS.iter().map(|(name, _)| Field::new(*name, DataType::UInt64, false)));
    let numbers = ["would_be_ns_squares", "in_flight_mean", "in_flight_max"];
    fields.extend(numbers.map(|name| Field::new(name, DataType::Float64, false)));
    fields.extend(QUANTILES.map(|(name, _)| Field::new(name, DataType::Float64, true)));
    fields.push(Field::new("durations", DataType::Binary, false));
    Arc::new(Schema::new(fields))
});

/// The columns of the history.
#[must_use]
pub fn schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// Rows of one resolution as columns.
pub(super) fn to_batch(rows: &[Row], resolution: Resolution) -> Result<RecordBatch, ArrowError> {
    let each = || rows.iter();
    let texts = |text: &dyn Fn(&Row) -> Arc<str>| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(each().map(text)))
    };
    let reals = |real: &dyn Fn(&Summary) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(each().map(|row| real(&row.summary))))
    };
    let moment = |ms| i64::try_from(ms).unwrap_or(i64::MAX);
    let starts = each().map(|row| moment(row.start_ms));
    let starts = TimestampMillisecondArray::from_iter_values(starts).with_timezone("UTC");
    let expressions = each().map(|row| row.key.expression.to_string());
    let partitions = each().map(|row| u64::from(row.key.partition.ordinal));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(starts),
        texts(&|_| resolution.name().into()),
        texts(&|row| Arc::clone(&row.key.function)),
        Arc::new(StringArray::from_iter_values(expressions)),
        texts(&|row| Arc::clone(&row.key.partition.table)),
        Arc::new(UInt64Array::from_iter_values(partitions)),
    ];
    columns.extend(COUNTS.iter().map(|(_, count)| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(each().map(|row| count(&row.summary))))
    }));
    columns.push(reals(&|of| of.would_be_ns_squares));
    columns.push(reals(&|of| of.in_flight(resolution.ms())));
    columns.push(reals(&|of| of.in_flight_max));
    columns.extend(QUANTILES.map(|(_, share)| -> ArrayRef {
        let quantiles = each().map(|row| row.summary.durations.quantile(share));
        Arc::new(quantiles.collect::<Float64Array>())
    }));
    let sketches = each().map(|row| row.summary.durations.to_bytes());
    columns.push(Arc::new(BinaryArray::from_iter_values(sketches)));
    RecordBatch::try_new(schema(), columns)
}

/// What a batch holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// Rows with the resolution of each.
    pub(super) rows: Vec<(Resolution, Row)>,
    /// Rows that say something impossible, such as a negative number or one that is not finite.
    pub(super) unusable: u64,
}

/// Reads columns by name, whatever their order; others are ignored. What the columns of a file of somebody
/// else may hold is checked row by row.
pub(super) fn parse(batch: &RecordBatch) -> Result<Parsed, ArrowError> {
    let columns = Columns::of(batch)?;
    let mut parsed = Parsed::default();
    let mut names: HashMap<String, Arc<str>> = HashMap::new();
    for row in 0..batch.num_rows() {
        match columns.row(row, &mut names) {
            Some(row) => parsed.rows.push(row),
            None => parsed.unusable += 1,
        }
    }
    Ok(parsed)
}

/// The rows of a batch that this program wrote, of one resolution.
pub(super) fn from_batch(batch: &RecordBatch) -> Result<Vec<Row>, ArrowError> {
    Ok(parse(batch)?.rows.into_iter().map(|(_, row)| row).collect())
}

struct Columns<'a> {
    start: &'a TimestampMillisecondArray,
    resolution: &'a StringArray,
    function: &'a StringArray,
    expression: &'a StringArray,
    table: &'a StringArray,
    partition: &'a UInt64Array,
    counts: Vec<&'a UInt64Array>,
    squares: &'a Float64Array,
    in_flight_max: &'a Float64Array,
    durations: &'a BinaryArray,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, ArrowError> {
        Ok(Self {
            start: numbers::<TimestampMillisecondType>(batch, START)?,
            resolution: texts(batch, "resolution")?,
            function: texts(batch, FUNCTION)?,
            expression: texts(batch, "expression")?,
            table: texts(batch, "table_name")?,
            partition: numbers::<UInt64Type>(batch, "partition")?,
            counts: COUNTS
                .iter()
                .map(|(name, _)| numbers::<UInt64Type>(batch, name))
                .collect::<Result<_, _>>()?,
            squares: numbers::<Float64Type>(batch, "would_be_ns_squares")?,
            in_flight_max: numbers::<Float64Type>(batch, "in_flight_max")?,
            durations: column(batch, "durations")?
                .as_binary_opt()
                .ok_or_else(|| other_type(batch, "durations"))?,
        })
    }

    fn row(&self, at: usize, names: &mut HashMap<String, Arc<str>>) -> Option<(Resolution, Row)> {
        let mut name = |column: &StringArray| {
            let text = column.is_valid(at).then(|| column.value(at))?;
            if let Some(known) = names.get(text) {
                return Some(Arc::clone(known));
            }
            let shared: Arc<str> = text.into();
            names.insert(text.to_owned(), Arc::clone(&shared));
            Some(shared)
        };
        let (function, table) = (name(self.function)?, name(self.table)?);
        let resolution = Resolution::named(&name(self.resolution)?)?;
        let expression: ExpressionId = self.expression.value(at).parse().ok()?;
        let ordinal = u32::try_from(value(self.partition, at)?).ok()?;
        let start_ms = u64::try_from(value(self.start, at)?).ok()?;
        let mut counts = self.counts.iter().map(|column| value(column, at));
        let mut count = || counts.next().flatten();
        let real = |column: &Float64Array| {
            value(column, at).filter(|real: &f64| real.is_finite() && *real >= 0.0)
        };
        let summary = Summary {
            calls: count()?,
            rows: count()?,
            rows_stored: count()?,
            rows_fresh: count()?,
            rows_fresh_stored: count()?,
            ns: count()?,
            would_be_ns: count()?,
            bytes: count()?,
            would_be_ns_squares: real(self.squares)?,
            in_flight_max: real(self.in_flight_max)?,
            durations: QuantileSketch::from_bytes(self.durations.value(at))?,
        };
        let is_start = resolution.start(start_ms) == start_ms;
        let partition = PartitionId { table, ordinal };
        let key = SeriesKey { function, expression, partition };
        is_start.then_some((resolution, Row { key, start_ms, summary }))
    }
}

fn value<T: ArrowPrimitiveType>(column: &PrimitiveArray<T>, at: usize) -> Option<T::Native> {
    column.is_valid(at).then(|| column.value(at))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    batch
        .column_by_name(name)
        .ok_or_else(|| ArrowError::SchemaError(format!("there is no column {name}")))
}

fn other_type(batch: &RecordBatch, name: &str) -> ArrowError {
    let found = batch.column_by_name(name).map(|column| column.data_type().clone());
    let expected = SCHEMA.field_with_name(name).map(|field| field.data_type().clone());
    ArrowError::SchemaError(format!("column {name} is {found:?}; it must be {expected:?}"))
}

fn numbers<'a, T: ArrowPrimitiveType>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a PrimitiveArray<T>, ArrowError> {
    column(batch, name)?.as_primitive_opt().ok_or_else(|| other_type(batch, name))
}

fn texts<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, ArrowError> {
    column(batch, name)?.as_string_opt().ok_or_else(|| other_type(batch, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn row(ordinal: u32, start_ms: u64, calls: u64) -> Row {
        let mut durations = QuantileSketch::default();
        (0..calls).for_each(|call| durations.add(1_000 + call));
        let key = SeriesKey {
            function: "embed".into(),
            expression: ExpressionId(u128::MAX - 7),
            partition: PartitionId::new("trades", ordinal),
        };
        let summary = Summary {
            calls,
            rows: 9 * calls,
            ns: 77,
            would_be_ns_squares: 0.5,
            in_flight_max: 2.0,
            durations,
            ..Summary::default()
        };
        Row { key, start_ms, summary }
    }

    #[test]
    fn rows_come_back_from_their_columns() {
        let rows = vec![row(0, 1_000, 3), row(7, 61_000, 1)];
        let batch = to_batch(&rows, Resolution::Second).unwrap();
        assert_eq!(from_batch(&batch).unwrap(), rows);
        assert_eq!(to_batch(&[], Resolution::Hour).unwrap().num_rows(), 0);
    }

    #[test]
    fn rows_that_say_something_impossible_are_counted_and_left_out() {
        let mut rows = vec![row(0, 60_000, 1); 5];
        rows[1].summary.would_be_ns_squares = f64::NAN;
        rows[2].summary.in_flight_max = -1.0;
        rows[3].start_ms = 61_000; // In the middle of its minute.
        let batch = to_batch(&rows, Resolution::Minute).unwrap();
        let parsed = parse(&batch).unwrap();
        assert_eq!((parsed.rows.len(), parsed.unusable), (2, 3));
    }

    #[test]
    fn a_column_that_is_missing_or_of_another_type_is_named() {
        let batch = to_batch(&[row(0, 0, 1)], Resolution::Second).unwrap();
        let without: Vec<usize> = (0..batch.num_columns() - 1).collect();
        let error = parse(&batch.project(&without).unwrap()).unwrap_err();
        assert!(error.to_string().contains("no column durations"), "{error}");
        let mut columns = batch.columns().to_vec();
        columns[5] = Arc::new(StringArray::from(vec!["0"]));
        let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
        fields[5] = Arc::new(Field::new("partition", DataType::Utf8, false));
        let other = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        let error = parse(&other).unwrap_err().to_string();
        assert!(error.contains("column partition is Some(Utf8)"), "{error}");
    }
}
