//! Reads tables of single calls, compressed (`.gz`, `.xz`, `.bz2`, `.zst`) or not.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use datafusion::arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;

use super::play::Call;

/// Names of a column that says when; the first that a table has counts.
const TIME_COLUMNS: [&str; 5] = ["time", "timestamp", "ts", "gmt_create", "date"];

/// Names of a column that says what was called.
const KEY_COLUMNS: [&str; 6] =
    ["key", "function", "series", "model", "checkpoint_model_version_id", "name"];

/// The calls of a file, sorted by time, and its name.
pub(super) fn read(file: &Path) -> Result<(String, Vec<Call>)> {
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let (stem, compression) = match name.rsplit_once('.') {
        Some((stem, ending)) => match FileCompressionType::from_str(ending) {
            Ok(compression) => (stem, compression),
            Err(_) => (&*name, FileCompressionType::UNCOMPRESSED),
        },
        None => (&*name, FileCompressionType::UNCOMPRESSED),
    };
    let mut content = String::new();
    File::open(file)
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(compression.convert_read(file)?))
        .and_then(|mut reader| Ok(reader.read_to_string(&mut content)?))
        .with_context(|| format!("cannot read the trace {}", file.display()))?;
    let calls = parse(&content).with_context(|| format!("{}", file.display()))?;
    Ok((stem.trim_end_matches(".csv").to_owned(), calls))
}

fn parse(content: &str) -> Result<Vec<Call>> {
    let mut lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let header = lines.next().map_or("", |(_, line)| line);
    let header: Vec<&str> = header.split(',').map(str::trim).collect();
    let column = |names: &[&str]| {
        let found = names.iter().find_map(|name| header.iter().position(|it| it == name));
        found.with_context(|| format!("a table of calls has a column named one of {names:?}"))
    };
    let (time_column, key_column) = (column(&TIME_COLUMNS)?, column(&KEY_COLUMNS)?);
    let (mut numbers, mut calls) = (HashMap::new(), vec![]);
    for (at, line) in lines {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |column: usize| cells.get(column).copied().unwrap_or_default();
        let second = second(cell(time_column)).with_context(|| format!("line {}", at + 1))?;
        let new = numbers.len() as u32;
        let key = *numbers.entry(cell(key_column)).or_insert(new);
        calls.push(Call { second, key });
    }
    if calls.is_empty() {
        bail!("there are no calls");
    }
    // Calls of one second stay in the order of the file.
    calls.sort_by_key(|call| call.second);
    Ok(calls)
}

/// Seconds since 1970 of a number of them or of a date with a time.
fn second(cell: &str) -> Result<i64> {
    if let Ok(seconds) = cell.parse::<f64>() {
        return Ok(seconds as i64);
    }
    let nanoseconds = string_to_timestamp_nanos(cell)
        .with_context(|| format!("{cell:?} is neither seconds nor a date with a time"))?;
    Ok(nanoseconds.div_euclid(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_dates_and_calls_are_sorted_by_them() {
        let text = "gmt_create,other,key\n1970-01-01 00:01:00,x,b\n5,y,a\n 61 ,z,b\n";
        let call = |second, key| Call { second, key };
        assert_eq!(parse(text).unwrap(), [call(5, 1), call(60, 0), call(61, 0)]);
    }

    #[test]
    fn a_table_that_is_none_of_calls_says_what_it_lacks() {
        let said = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(said("a,b\n1,2\n").contains("a column named one of"), "{}", said("a,b\n1,2\n"));
        assert!(said("time,key\nnever,a\n").contains("line 2"), "{}", said("time,key\nnever,a\n"));
        assert_eq!(said("time,key\n"), "there are no calls");
    }
}
