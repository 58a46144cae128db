//! Writes columns as the files write them: `NULL`, `(empty)`, floats to twelve digits, one letter per type.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type, Schema};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::config::FormatOptions as Settings;
use sqllogictest::ColumnType;

/// Digits after the point that a float keeps: what two ways of summing agree on.
const FLOAT_DIGITS: usize = 12;

/// The letter of a column's type in the first line of a record; `?` for any type without a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter(char);

impl ColumnType for Letter {
    fn from_char(letter: char) -> Option<Self> {
        Some(Self(if "BDIPRT".contains(letter) { letter } else { '?' }))
    }

    fn to_char(&self) -> char {
        self.0
    }
}

/// The letters of a result's columns.
pub(super) fn letters(schema: &Schema) -> Vec<Letter> {
    schema.fields().iter().map(|field| Letter(letter(field.data_type()))).collect()
}

fn letter(data_type: &DataType) -> char {
    match data_type {
        DataType::Boolean => 'B',
        DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => 'D',
        DataType::Timestamp(..) => 'P',
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => 'T',
        DataType::Dictionary(_, values) if values.is_string() => 'T',
        number if number.is_integer() => 'I',
        number if number.is_floating() || number.is_decimal() => 'R',
        _ => '?',
    }
}

/// The rows of a batch as text. A row whose last cell has several lines becomes several rows.
pub(super) fn rows(batch: &RecordBatch) -> Result<Vec<Vec<String>>, ArrowError> {
    let mut rows = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let cells = batch.columns().iter().map(|column| cell(column.as_ref(), row));
        unfold(cells.collect::<Result<_, _>>()?, &mut rows);
    }
    Ok(rows)
}

/// Lines are numbered and their leading blanks are drawn, because blanks are not compared.
fn unfold(mut row: Vec<String>, rows: &mut Vec<Vec<String>>) {
    let Some(last) = row.pop_if(|last| last.contains('\n')) else {
        rows.push(row);
        return;
    };
    rows.push(row);
    for (index, line) in last.split('\n').enumerate() {
        let text = line.trim_start();
        let blanks = "-".repeat(line.len() - text.len());
        rows.push(vec![format!("{:02}){blanks}{text}", index + 1)]);
    }
}

fn cell(column: &dyn Array, row: usize) -> Result<String, ArrowError> {
    if column.is_null(row) || *column.data_type() == DataType::Null {
        return Ok("NULL".to_owned());
    }
    Ok(match column.data_type() {
        DataType::Float16 => float(column.as_primitive::<Float16Type>().value(row).to_f32()),
        DataType::Float32 => float(column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => text(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => text(column.as_string::<i64>().value(row)),
        DataType::Utf8View => text(column.as_string_view().value(row)),
        DataType::Dictionary(..) => {
            let dictionary = column.as_any_dictionary();
            let key = dictionary.normalized_keys()[row];
            return cell(dictionary.values().as_ref(), key);
        }
        number if number.is_decimal() => shortened(&formatted(column, row)?, usize::MAX),
        _ => formatted(column, row)?,
    })
}

fn formatted(column: &dyn Array, row: usize) -> Result<String, ArrowError> {
    let settings = Settings { null: "NULL".to_owned(), ..Settings::default() };
    let options = FormatOptions::try_from(&settings);
    let options = options.map_err(|error| ArrowError::ExternalError(Box::new(error)))?;
    Ok(ArrayFormatter::try_new(column, &options)?.value(row).to_string())
}

fn text(value: &str) -> String {
    if value.is_empty() {
        return "(empty)".to_owned();
    }
    value.trim_end_matches('\n').replace('\0', "\\0")
}

/// Rust writes the fewest digits that read back as the same float, never with an exponent.
fn float(value: impl Into<f64> + ToString + Copy) -> String {
    let double: f64 = value.into();
    if double.is_nan() {
        return "NaN".to_owned();
    }
    if double.is_infinite() {
        return if double > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    shortened(&value.to_string(), FLOAT_DIGITS)
}

/// A decimal number rounded, half to even, to so many digits after the point, without idle zeros.
fn shortened(number: &str, digits_max: usize) -> String {
    let (sign, number) = match number.strip_prefix('-') {
        Some(number) => ("-", number),
        None => ("", number),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let kept = part.len().min(digits_max);
    let mut digits: Vec<u8> = whole.bytes().chain(part.bytes().take(kept)).collect();
    if rounds_up(&part.as_bytes()[kept..], digits.last().copied()) {
        add_one(&mut digits);
    }
    let point = digits.len() - kept;
    let digits = String::from_utf8_lossy(&digits);
    let (whole, part) = digits.split_at(point);
    let (whole, part) = (whole.trim_start_matches('0'), part.trim_end_matches('0'));
    match (whole, part) {
        ("", "") => "0".to_owned(),
        (whole, "") => format!("{sign}{whole}"),
        ("", part) => format!("{sign}0.{part}"),
        (whole, part) => format!("{sign}{whole}.{part}"),
    }
}

fn rounds_up(cut: &[u8], last_kept: Option<u8>) -> bool {
    let is_odd = last_kept.is_some_and(|digit| digit % 2 == 1);
    match cut.split_first() {
        Some((b'5', rest)) => is_odd || rest.iter().any(|digit| *digit != b'0'),
        Some((first, _)) => *first > b'5',
        None => false,
    }
}

fn add_one(digits: &mut Vec<u8>) {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
    digits.insert(0, b'1');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Decimal128Array, Float64Array, Int64Array, StringArray};

    use super::*;

    #[test]
    fn numbers_lose_idle_zeros_and_are_rounded_half_to_even() {
        let cases = [
            ("0.11", "0.11"),
            ("-0.0", "0"),
            ("110", "110"),
            ("1.0000000000011", "1.000000000001"),
            ("0.0000000000005", "0"),
            ("0.0000000000015", "0.000000000002"),
            ("0.0000000000025", "0.000000000002"),
            ("0.00000000000250001", "0.000000000003"),
            ("-9.9999999999996", "-10"),
        ];
        for (number, expected) in cases {
            assert_eq!(shortened(number, FLOAT_DIGITS), expected, "{number}");
        }
        assert_eq!(shortened("0.00000000000000100", usize::MAX), "0.000000000000001");
    }

    #[test]
    fn every_kind_of_cell_is_written_as_the_files_write_it() {
        let decimals = Decimal128Array::from(vec![12_300]).with_precision_and_scale(9, 3).unwrap();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("i", Arc::new(Int64Array::from(vec![None]))),
            ("f", Arc::new(Float64Array::from(vec![f64::NEG_INFINITY]))),
            ("d", Arc::new(decimals)),
            ("t", Arc::new(StringArray::from(vec![""]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(rows(&batch).unwrap(), [["NULL", "-Infinity", "12.3", "(empty)"]]);
        let all: String = letters(&batch.schema()).iter().map(ColumnType::to_char).collect();
        assert_eq!(all, "IRRT");
    }

    #[test]
    fn lines_of_the_last_cell_become_rows_with_their_blanks_drawn() {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["Sort\n  Scan"]));
        let batch = RecordBatch::try_from_iter([("plan", text)]).unwrap();
        let rows = rows(&batch).unwrap();
        assert_eq!(rows, [vec![], vec!["01)Sort".to_owned()], vec!["02)--Scan".to_owned()]]);
    }
}
