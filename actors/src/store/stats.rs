//! What is known of a segment's columns without reading them: exact bounds, or none.
//!
//! Bounds are computed from the stored values when a segment is written, travel in the log as Delta
//! statistics, and are read back typed. A value that does not survive its JSON form unchanged has
//! no bound, so a reopened table knows nothing wrong. Floats of a segment that holds a NaN have no
//! bounds at all: statistics ignore NaN, and pruning by them would change answers.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Float32Type, Float64Type, Schema};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::Accumulator;
use serde_json::{Map, Number, Value};

use super::types::{cast_batch, storage_schema};
use crate::segment::ColumnRange;

/// Longest text in bytes that gets into bounds; a cut one would not be a value of the column.
const TEXT_BYTES_MAX: usize = 64;
/// Digits of a decimal that survive the way through a JSON number.
const DECIMAL_DIGITS: u32 = 15;

/// Whether bounds of this stored type are kept.
pub(crate) fn is_bounded(storage: &DataType) -> bool {
    matches!(
        storage,
        DataType::Boolean
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Float32
            | DataType::Float64
            | DataType::Utf8
            | DataType::Date32
            | DataType::Timestamp(_, _)
            | DataType::Decimal128(_, _)
    )
}

/// Whether NULLs of this stored type are counted in the log.
fn is_counted(storage: &DataType) -> bool {
    is_bounded(storage) || matches!(storage, DataType::Binary)
}

/// Whether a valid value of a float column is NaN.
pub(crate) fn has_nan(array: &ArrayRef) -> bool {
    match array.data_type() {
        DataType::Float32 => array.as_primitive::<Float32Type>().iter().flatten().any(f32::is_nan),
        DataType::Float64 => array.as_primitive::<Float64Type>().iter().flatten().any(f64::is_nan),
        _ => false,
    }
}

/// Bounds and NULLs of each column of `rows`, which have the stored schema; bounds in stored types.
pub(crate) fn measure(
    storage: &Schema,
    rows: &[RecordBatch],
) -> Result<Vec<ColumnRange>, DataFusionError> {
    let measure_column = |(ordinal, data_type): (usize, &DataType)| {
        if !is_counted(data_type) {
            return Ok(ColumnRange::UNKNOWN);
        }
        let columns: Vec<&ArrayRef> = rows.iter().map(|batch| batch.column(ordinal)).collect();
        let nulls = columns.iter().map(|column| column.null_count() as u64).sum();
        let mut range = ColumnRange { min: None, max: None, nulls: Some(nulls) };
        if is_bounded(data_type) && !columns.iter().any(|column| has_nan(column)) {
            let mut min = MinAccumulator::try_new(data_type)?;
            let mut max = MaxAccumulator::try_new(data_type)?;
            for column in columns {
                min.update_batch(std::slice::from_ref(column))?;
                max.update_batch(std::slice::from_ref(column))?;
            }
            range.min = widen(min.evaluate()?, true);
            range.max = widen(max.evaluate()?, false);
        }
        Ok(range)
    };
    storage.fields().iter().map(|field| field.data_type()).enumerate().map(measure_column).collect()
}

/// As [`measure`], for rows of any schema: bounds in the columns' own types, unknown where a type
/// has no stored one.
pub(crate) fn measure_logical(logical: &Schema, rows: &[RecordBatch]) -> Vec<ColumnRange> {
    let measure_column = |(ordinal, field): (usize, &FieldRef)| {
        let one = Schema::new(vec![Arc::clone(field)]);
        let storage = storage_schema(&one, "").ok()?;
        if !is_counted(storage.field(0).data_type()) {
            return None;
        }
        let stored: Result<Vec<RecordBatch>, _> =
            rows.iter().map(|batch| cast_batch(&batch.project(&[ordinal])?, &storage)).collect();
        to_logical(&measure(&storage, &stored.ok()?).ok()?, &one).pop()
    };
    let columns = logical.fields().iter().enumerate().map(measure_column);
    columns.map(|range| range.unwrap_or(ColumnRange::UNKNOWN)).collect()
}

/// A bound that survives JSON, or none. A zero becomes the zero that bounds both of them.
fn widen(bound: ScalarValue, lower: bool) -> Option<ScalarValue> {
    let bound = match bound {
        ScalarValue::Float32(Some(0.0)) => {
            ScalarValue::Float32(Some(if lower { -0.0 } else { 0.0 }))
        }
        ScalarValue::Float64(Some(0.0)) => {
            ScalarValue::Float64(Some(if lower { -0.0 } else { 0.0 }))
        }
        bound => bound,
    };
    // By way of the text: without its feature `float_roundtrip` serde_json reads some floats wrong.
    let json: Value = serde_json::from_str(&to_json(&bound)?.to_string()).ok()?;
    (from_json(&json, &bound.data_type()).as_ref() == Some(&bound)).then_some(bound)
}

/// The statistics as they stand in an `add` action.
pub(crate) fn to_stats(storage: &Schema, rows: u64, ranges: &[ColumnRange]) -> String {
    let (mut mins, mut maxs, mut nulls) = (Map::new(), Map::new(), Map::new());
    for (field, range) in storage.fields().iter().zip(ranges) {
        if let Some(json) = range.min.as_ref().and_then(to_json) {
            mins.insert(field.name().clone(), json);
        }
        if let Some(json) = range.max.as_ref().and_then(to_json) {
            maxs.insert(field.name().clone(), json);
        }
        if let Some(count) = range.nulls {
            nulls.insert(field.name().clone(), Value::from(count));
        }
    }
    serde_json::json!({
        "numRecords": rows, "minValues": mins, "maxValues": maxs, "nullCount": nulls,
    })
    .to_string()
}

/// Row count and, if `exact`, the ranges in logical types, out of an `add` action's statistics.
///
/// Statistics of other writers (`exact` is false) may be cut, rounded or loose, so only their row
/// count is used.
pub(crate) fn from_stats(
    stats: &str,
    logical: &Schema,
    storage: &Schema,
    exact: bool,
) -> Option<(u64, Vec<ColumnRange>)> {
    let stats: Value = serde_json::from_str(stats).ok()?;
    let rows = stats.get("numRecords")?.as_u64()?;
    if !exact {
        return Some((rows, vec![]));
    }
    let stored = storage.fields().iter().map(|field| {
        let bound = |kind: &str| from_json(stats.get(kind)?.get(field.name())?, field.data_type());
        ColumnRange {
            min: bound("minValues").filter(|_| is_bounded(field.data_type())),
            max: bound("maxValues").filter(|_| is_bounded(field.data_type())),
            nulls: stats.get("nullCount").and_then(|counts| counts.get(field.name())?.as_u64()),
        }
    });
    let ranges: Vec<ColumnRange> = stored.collect();
    Some((rows, to_logical(&ranges, logical)))
}

/// The ranges with bounds of the columns' own types.
pub(crate) fn to_logical(stored: &[ColumnRange], logical: &Schema) -> Vec<ColumnRange> {
    let cast = |bound: &Option<ScalarValue>, to: &DataType| {
        let bound = bound.as_ref()?;
        let cast = bound.cast_to(to).ok()?;
        (cast.cast_to(&bound.data_type()).ok().as_ref() == Some(bound)).then_some(cast)
    };
    stored
        .iter()
        .zip(logical.fields())
        .map(|(range, field)| ColumnRange {
            min: cast(&range.min, field.data_type()),
            max: cast(&range.max, field.data_type()),
            nulls: range.nulls,
        })
        .collect()
}

fn to_json(bound: &ScalarValue) -> Option<Value> {
    if bound.is_null() {
        return None;
    }
    match bound {
        ScalarValue::Boolean(Some(value)) => Some(Value::from(*value)),
        ScalarValue::Int8(Some(value)) => Some(Value::from(*value)),
        ScalarValue::Int16(Some(value)) => Some(Value::from(*value)),
        ScalarValue::Int32(Some(value)) => Some(Value::from(*value)),
        ScalarValue::Int64(Some(value)) => Some(Value::from(*value)),
        ScalarValue::Float32(Some(value)) => Number::from_f64(f64::from(*value)).map(Value::from),
        ScalarValue::Float64(Some(value)) => Number::from_f64(*value).map(Value::from),
        ScalarValue::Utf8(Some(text)) if text.len() <= TEXT_BYTES_MAX => {
            Some(Value::from(text.as_str()))
        }
        ScalarValue::Date32(_) | ScalarValue::TimestampMicrosecond(_, _) => {
            match bound.cast_to(&DataType::Utf8).ok()? {
                ScalarValue::Utf8(Some(text)) => Some(Value::from(text)),
                _ => None,
            }
        }
        ScalarValue::Decimal128(Some(value), _, scale) => decimal_to_json(*value, *scale),
        _ => None,
    }
}

fn decimal_to_json(value: i128, scale: i8) -> Option<Value> {
    if value.unsigned_abs() >= 10u128.pow(DECIMAL_DIGITS) {
        return None;
    }
    if scale == 0 {
        return i64::try_from(value).ok().map(Value::from);
    }
    // The text of the number, so that the nearest float is taken, and the same one again.
    let digits =
        format!("{:0>width$}", value.unsigned_abs(), width = usize::try_from(scale).ok()? + 1);
    let (whole, fraction) = digits.split_at(digits.len() - usize::try_from(scale).ok()?);
    let sign = if value < 0 { "-" } else { "" };
    Number::from_f64(format!("{sign}{whole}.{fraction}").parse().ok()?).map(Value::from)
}

fn from_json(json: &Value, data_type: &DataType) -> Option<ScalarValue> {
    match data_type {
        DataType::Boolean => json.as_bool().map(|value| ScalarValue::Boolean(Some(value))),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            ScalarValue::Int64(Some(json.as_i64()?)).cast_to(data_type).ok().filter(not_null)
        }
        DataType::Float32 => {
            let value = json.as_f64()?;
            #[expect(clippy::cast_possible_truncation, reason = "a value that changes is dropped")]
            let narrow = value as f32;
            (f64::from(narrow).to_bits() == value.to_bits())
                .then_some(ScalarValue::Float32(Some(narrow)))
        }
        DataType::Float64 => json.as_f64().map(|value| ScalarValue::Float64(Some(value))),
        DataType::Utf8 => json.as_str().map(ScalarValue::from),
        DataType::Date32 | DataType::Timestamp(_, _) => {
            ScalarValue::from(json.as_str()?).cast_to(data_type).ok().filter(not_null)
        }
        DataType::Decimal128(precision, scale) => {
            let value = decimal_from_json(json, *scale)?;
            Some(ScalarValue::Decimal128(Some(value), *precision, *scale))
        }
        _ => None,
    }
}

fn not_null(value: &ScalarValue) -> bool {
    !value.is_null()
}

fn decimal_from_json(json: &Value, scale: i8) -> Option<i128> {
    let value = json.as_f64()?;
    let scaled = (value * 10f64.powi(i32::from(scale))).round();
    if scaled.abs() >= 10f64.powi(i32::try_from(DECIMAL_DIGITS).ok()?) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 10^15, checked above")]
    let unscaled = scaled as i64;
    // Only a number that is the nearest one to this decimal stands for it.
    let unscaled = i128::from(unscaled);
    (decimal_to_json(unscaled, scale)?.as_f64()?.to_bits() == value.to_bits()).then_some(unscaled)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray,
        TimestampMicrosecondArray,
    };
    use arrow::datatypes::{Field, Schema};
    use proptest::prelude::*;

    use super::*;

    fn ranges_of(array: ArrayRef) -> (Schema, Vec<ColumnRange>, String) {
        let schema = Schema::new(vec![Field::new("c", array.data_type().clone(), true)]);
        let rows = array.len() as u64;
        let batch = RecordBatch::try_new(Arc::new(schema.clone()), vec![array]).unwrap();
        let ranges = measure(&schema, &[batch]).unwrap();
        let stats = to_stats(&schema, rows, &ranges);
        (schema, ranges, stats)
    }

    #[test]
    fn bounds_read_from_the_log_are_those_that_were_written() {
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)])),
            Arc::new(Float64Array::from(vec![-1.5e-300, 0.1 + 0.2])),
            Arc::new(Float64Array::from(vec![f64::INFINITY, f64::NEG_INFINITY])),
            Arc::new(Float64Array::from(vec![0.0, -0.0])),
            Arc::new(StringArray::from(vec!["a\"b", "é"])),
            Arc::new(StringArray::from(vec!["z".repeat(65)])),
            Arc::new(Date32Array::from(vec![-800_000, 2_932_896])),
            Arc::new(
                TimestampMicrosecondArray::from(vec![-1, 1_700_000_000_123_456])
                    .with_timezone("UTC"),
            ),
            Arc::new(TimestampMicrosecondArray::from(vec![i64::MIN, 5])),
            Arc::new(
                Decimal128Array::from(vec![-123_456_789, 99])
                    .with_precision_and_scale(38, 10)
                    .unwrap(),
            ),
            Arc::new(
                Decimal128Array::from(vec![i128::from(i64::MAX) * 1000])
                    .with_precision_and_scale(38, 2)
                    .unwrap(),
            ),
        ];
        for array in arrays {
            let label = format!("{array:?}");
            let (schema, ranges, stats) = ranges_of(array);
            let (_, read) = from_stats(&stats, &schema, &schema, true).unwrap();
            assert_eq!(read, ranges, "{label} as {stats}");
        }
    }

    #[test]
    fn a_column_with_nan_has_no_bounds_and_infinity_has_none_in_json() {
        let (_, ranges, stats) =
            ranges_of(Arc::new(Float64Array::from(vec![Some(1.0), Some(f64::NAN), None])));
        assert_eq!(ranges[0], ColumnRange { min: None, max: None, nulls: Some(1) });
        assert!(!stats.contains("1.0"), "{stats}");
    }

    #[test]
    fn both_zeros_are_within_the_bounds_of_either() {
        for zero in [0.0, -0.0] {
            let (_, ranges, _) = ranges_of(Arc::new(Float64Array::from(vec![zero])));
            let Some(ScalarValue::Float64(Some(min))) = ranges[0].min else { panic!() };
            let Some(ScalarValue::Float64(Some(max))) = ranges[0].max else { panic!() };
            assert!(min.is_sign_negative() && max.is_sign_positive());
        }
    }

    #[test]
    fn statistics_of_other_writers_give_the_row_count_only() {
        let (schema, _, stats) = ranges_of(Arc::new(Int64Array::from(vec![1, 2])));
        assert_eq!(from_stats(&stats, &schema, &schema, false), Some((2, vec![])));
        assert_eq!(from_stats("{}", &schema, &schema, true), None);
        assert_eq!(from_stats("not json", &schema, &schema, true), None);
    }

    proptest! {
        #[test]
        fn a_decimal_bound_is_exact_or_absent(value in any::<i64>(), scale in 0i8..=18) {
            let json = decimal_to_json(i128::from(value), scale);
            if let Some(json) = json {
                let back = decimal_from_json(&json, scale);
                prop_assert!(back.is_none() || back == Some(i128::from(value)));
            }
        }
    }
}
