//! Reads loads and calls from CSV and Parquet files, gzipped or not.
//!
//! Columns are told by their names: the time is the first of which the name says so, and the value the
//! first number that is named as one. A file without such a number holds one call a row.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::csv::ReaderBuilder;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Where traces are looked for, from the root of the repository.
const FOLDER: &str = "../shared/traces";

/// Parts of names that say what a column is, the clearest first.
const TIMES: [&str; 6] = ["timestamp", "create", "date", "period", "time", "ts"];
const VALUES: [&str; 9] =
    ["value", "count", "requests", "calls", "qps", "rate", "load", "total", "volume"];
const SERIES: [&str; 9] =
    ["series", "key", "model", "function", "container", "instance", "host", "app", "name"];

/// Numbers of seconds, milliseconds, microseconds and nanoseconds since 1970 are told apart by these.
const SECONDS_MAX: f64 = 1e11;

/// One row of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    /// Milliseconds since 1970.
    pub(crate) at_ms: i64,
    /// The value; `None` if the row is one call.
    pub(crate) value: Option<f64>,
    /// The series; empty if the file has only one.
    pub(crate) series: String,
}

/// The traces beside the repository, in `shared/traces`, sorted; none if there is no such folder, which is
/// told.
pub(crate) fn beside() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FOLDER);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) => {
            eprintln!("no traces in {}: {error}", folder.display());
            return Vec::new();
        }
    };
    let is_load = |file: &PathBuf| {
        let name = file.to_string_lossy();
        [".csv", ".csv.gz", ".parquet", ".parquet.gz"].iter().any(|end| name.ends_with(end))
    };
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = files.filter(is_load).collect();
    files.sort();
    files
}

/// The name of a file without its endings, and its rows in their order.
///
/// # Errors
/// It cannot be read, or has no column of times; it is named.
pub(crate) fn read(path: &Path) -> Result<(String, Vec<Event>)> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.split('.').next().unwrap_or(&name).to_owned();
    let batches =
        batches(path, &name).with_context(|| format!("cannot read {}", path.display()))?;
    let mut events = Vec::new();
    for batch in &batches {
        events_of(batch, &mut events).with_context(|| format!("in {}", path.display()))?;
    }
    Ok((stem, events))
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
    let column =
        cast_with_options(column, &ms, &CastOptions { safe: false, ..Default::default() })?;
    Ok(cast(&column, &DataType::Int64)?.as_primitive::<Int64Type>().iter().collect())
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

    #[test]
    fn a_csv_file_is_read_gzipped_or_not() {
        let csv = "timestamp,value\n2015-01-01 00:00:00,1\n2015-01-01 00:01:00,2.5\n";
        let (_folder, path) = written("load.csv", csv.as_bytes());
        let (name, events) = read(&path).unwrap();
        let event = |at_ms, value| Event { at_ms, value: Some(value), series: String::new() };
        let start = 1_420_070_400_000;
        assert_eq!(events, [event(start, 1.0), event(start + 60_000, 2.5)]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(csv.as_bytes()).unwrap();
        let (_folder, path) = written("load.csv.gz", &gzip.finish().unwrap());
        assert_eq!(read(&path).unwrap(), (name, events));
    }

    #[test]
    fn a_row_without_a_value_is_one_call_of_its_series() {
        let (_folder, path) = written("calls.csv", b"other,time,model\nx,1600000005,b\ny,5,a\n");
        let event = |at_ms, series: &str| Event { at_ms, value: None, series: series.to_owned() };
        let (name, events) = read(&path).unwrap();
        assert_eq!(name, "calls");
        assert_eq!(events, [event(1_600_000_005_000, "b"), event(5_000, "a")]);
    }

    #[test]
    fn a_file_without_times_or_with_unreadable_ones_is_refused_by_name() {
        let (_folder, path) = written("keys.csv", b"key\n1\n");
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("keys.csv: there is no column of times"), "{error}");
        let (_folder, path) = written("never.csv", b"time,key\nnever,1\n");
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("never.csv") && error.contains("never"), "{error}");
        let error = format!("{:#}", read(Path::new("nowhere.csv")).unwrap_err());
        assert!(error.contains("cannot read nowhere.csv"), "{error}");
    }
}
