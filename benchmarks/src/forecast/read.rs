//! Reads loads from CSV and Parquet files, gzipped or not.
//!
//! Columns are told by their names: the time is the first of which the name says so, and the value the
//! first number that is named as one. A file without such a number holds one call a row.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::csv::ReaderBuilder;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::trace::{Event, TICKS_MIN, Trace, from_events};

/// Parts of names that say what a column is, the clearest first.
const TIMES: [&str; 6] = ["timestamp", "create", "date", "period", "time", "ts"];
const VALUES: [&str; 9] =
    ["value", "count", "requests", "calls", "qps", "rate", "load", "total", "volume"];
const SERIES: [&str; 8] =
    ["series", "model", "function", "container", "instance", "host", "app", "name"];

/// Numbers of seconds, milliseconds, microseconds and nanoseconds since 1970 are told apart by these.
const SECONDS_MAX: f64 = 1e11;

/// Reads one file.
///
/// # Errors
/// It cannot be read, has no column of times, or too few ticks; it is named.
pub(super) fn read(path: &Path) -> Result<Trace> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.split('.').next().unwrap_or(&name).to_owned();
    let batches =
        batches(path, &name).with_context(|| format!("cannot read {}", path.display()))?;
    let mut events = Vec::new();
    for batch in &batches {
        events_of(batch, &mut events).with_context(|| format!("in {}", path.display()))?;
    }
    match from_events(&stem, events) {
        Some(trace) => Ok(trace),
        None => bail!("{} has less than {} ticks", path.display(), TICKS_MIN + 2),
    }
}

fn batches(path: &Path, name: &str) -> Result<Vec<RecordBatch>> {
    let file = File::open(path)?;
    let (name, mut reader): (&str, Box<dyn Read>) = match name.strip_suffix(".gz") {
        Some(name) => (name, Box::new(flate2::read::GzDecoder::new(BufReader::new(file)))),
        None => (name, Box::new(BufReader::new(file))),
    };
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    if name.ends_with(".parquet") {
        let bytes = bytes::Bytes::from(bytes);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()?;
        return Ok(reader.collect::<Result<_, _>>()?);
    }
    let header = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let header = String::from_utf8_lossy(header);
    let field = |name: &str| Field::new(name.trim().trim_matches('"'), DataType::Utf8, true);
    let schema = Arc::new(Schema::new(header.split(',').map(field).collect::<Vec<_>>()));
    let reader = ReaderBuilder::new(schema).with_header(true).build(bytes.as_slice())?;
    Ok(reader.collect::<Result<_, _>>()?)
}

/// The place of the column whose name says most clearly what it is.
fn named(batch: &RecordBatch, words: &[&str]) -> Option<usize> {
    let names: Vec<String> =
        batch.schema().fields().iter().map(|field| field.name().to_lowercase()).collect();
    let exactly = words.iter().find_map(|word| names.iter().position(|name| name == word));
    exactly.or_else(|| words.iter().find_map(|word| names.iter().position(|n| n.contains(word))))
}

fn events_of(batch: &RecordBatch, events: &mut Vec<Event>) -> Result<()> {
    let Some(time) = named(batch, &TIMES) else { bail!("there is no column of times") };
    let times = times(batch.column(time))?;
    let value = VALUES.iter().find_map(|word| {
        let place = batch.schema().fields().iter().position(|f| f.name().to_lowercase() == *word);
        place.filter(|place| *place != time)
    });
    let values = value.map(|place| numbers(batch.column(place))).transpose()?;
    let series = named(batch, &SERIES).filter(|place| *place != time && Some(*place) != value);
    let series = series.map(|place| cast(batch.column(place), &DataType::Utf8)).transpose()?;
    for (row, at_ms) in times.into_iter().enumerate() {
        let Some(at_ms) = at_ms else { continue };
        let value = values.as_ref().map(|values| values[row].unwrap_or(f64::NAN));
        let series = series.as_ref().map(|names| names.as_string::<i32>());
        let name = series.filter(|names| names.is_valid(row)).map(|names| names.value(row));
        events.push(Event { at_ms, value, series: name.unwrap_or_default().to_owned() });
    }
    Ok(())
}

/// Milliseconds since 1970; `None` where there is no time.
fn times(column: &dyn Array) -> Result<Vec<Option<i64>>> {
    let ms = DataType::Timestamp(TimeUnit::Millisecond, None);
    if matches!(column.data_type(), DataType::Timestamp(..) | DataType::Date32 | DataType::Date64) {
        let column = cast(&cast(column, &ms)?, &DataType::Int64)?;
        return Ok(column.as_primitive::<Int64Type>().iter().collect());
    }
    let numbers = numbers(column)?;
    if numbers.iter().any(Option::is_some) {
        let unit = |number: f64| {
            let mut ms = number * 1e3;
            while ms.abs() > SECONDS_MAX * 1e3 {
                ms /= 1e3;
            }
            ms as i64
        };
        return Ok(numbers.into_iter().map(|number| number.map(unit)).collect());
    }
    let column = cast(&cast(column, &ms)?, &DataType::Int64)?;
    Ok(column.as_primitive::<Int64Type>().iter().collect())
}

fn numbers(column: &dyn Array) -> Result<Vec<Option<f64>>> {
    let column = cast(column, &DataType::Float64)?;
    Ok(column.as_primitive::<Float64Type>().iter().collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn csv(rows: usize) -> String {
        let row = |n: usize| format!("2015-01-01 {:02}:{:02}:00,{n}\n", n / 60, n % 60);
        "timestamp,value\n".to_owned() + &(0..rows).map(row).collect::<String>()
    }

    #[test]
    fn a_csv_file_is_read_gzipped_or_not() {
        let (_folder, path) = written("load.csv", csv(200).as_bytes());
        let plain = read(&path).unwrap();
        assert_eq!((plain.tick_ms, plain.ticks(), plain.series[0].1[0]), (60_000, 198, 1.0));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(csv(200).as_bytes()).unwrap();
        let (_folder, path) = written("load.csv.gz", &gzip.finish().unwrap());
        assert_eq!(read(&path).unwrap(), plain);
    }

    #[test]
    fn a_row_without_a_value_is_one_call_of_its_series() {
        let row = |n: usize| format!("{},m{}\n", 1_600_000_000 + n * 5, n % 2);
        let rows: String = (0..3_000).map(row).collect();
        let (_folder, path) = written("calls.csv", ("time,model\n".to_owned() + &rows).as_bytes());
        let trace = read(&path).unwrap();
        assert_eq!((trace.tick_ms, trace.series.len()), (60_000, 3));
        assert_eq!(trace.series[0].1[5], 12.0);
    }

    #[test]
    fn a_file_without_times_or_with_few_rows_is_refused_by_name() {
        let (_folder, path) = written("keys.csv", b"key\n1\n");
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("keys.csv: there is no column of times"), "{error}");
        let (_folder, path) = written("short.csv", csv(20).as_bytes());
        assert!(read(&path).unwrap_err().to_string().contains("short.csv has less than 102 ticks"));
    }
}
