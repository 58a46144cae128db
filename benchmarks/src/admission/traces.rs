//! Reads traces of keys from files, compressed (`.gz`, `.xz`, `.bz2`, `.zst`) or not.
//!
//! | file | a call | its cost |
//! |---|---|---|
//! | `.jsonl` | each number of `hash_ids` of each line | drawn by the key |
//! | `.csv` | a line; its key is `groupId` with `checkpoint_model_version_id` | `exec_time_seconds` |
//! | other text | a line, its first word | drawn by the key |
//! | other, `.trace` in its name | 4 bytes | drawn by the key |
//! | other | 8 bytes | drawn by the key |

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use foreshard_policy::caches::Call;
use serde::Deserialize;

use super::Trace;
use super::made_up::{bytes, drawn};

/// Calls that are played of one trace, from its begin.
const CALLS_MAX: usize = 1_000_000;
const CALLS_MAX_QUICK: usize = 20_000;

/// Columns of a table that make the key, and the one that is the cost.
const KEY_COLUMNS: [&str; 2] = ["groupId", "checkpoint_model_version_id"];
const SECONDS_COLUMN: &str = "exec_time_seconds";

/// Reads a file.
pub(super) fn read(file: &Path, seed: u64, quick: bool) -> Result<Trace> {
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let (stem, compression) = match name.rsplit_once('.') {
        Some((stem, ending)) => match FileCompressionType::from_str(ending) {
            Ok(compression) => (stem, compression),
            Err(_) => (&*name, FileCompressionType::UNCOMPRESSED),
        },
        None => (&*name, FileCompressionType::UNCOMPRESSED),
    };
    let mut content = vec![];
    File::open(file)
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(compression.convert_read(file)?))
        .and_then(|mut reader| Ok(reader.read_to_end(&mut content)?))
        .with_context(|| format!("cannot read the trace {}", file.display()))?;
    let mut calls = parse(stem, &content, seed).with_context(|| format!("{}", file.display()))?;
    calls.truncate(if quick { CALLS_MAX_QUICK } else { CALLS_MAX });
    if calls.is_empty() {
        bail!("{} has no calls", file.display());
    }
    Ok(Trace { name: stem.to_owned(), calls })
}

fn parse(name: &str, content: &[u8], seed: u64) -> Result<Vec<Call>> {
    let text = std::str::from_utf8(content).ok().filter(|text| !text.contains('\0'));
    let Some(text) = text else {
        return Ok(binary(content, if name.contains(".trace") { 4 } else { 8 }, seed));
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    if name.ends_with(".jsonl") {
        return blocks(lines, seed);
    }
    if name.ends_with(".csv") {
        return requests(lines, seed);
    }
    let mut keys = Keys::default();
    let words = lines.filter_map(|line| line.split_whitespace().next());
    Ok(words.map(|word| drawn(keys.number(word), seed)).collect())
}

fn binary(content: &[u8], width: usize, seed: u64) -> Vec<Call> {
    let mut keys = Keys::default();
    content.chunks_exact(width).map(|key| drawn(keys.number(key), seed)).collect()
}

fn blocks<'a>(lines: impl Iterator<Item = &'a str>, seed: u64) -> Result<Vec<Call>> {
    #[derive(Deserialize)]
    struct Request {
        hash_ids: Vec<u64>,
    }
    let mut calls = vec![];
    for (at, line) in lines.enumerate() {
        let request: Request =
            serde_json::from_str(line).with_context(|| format!("line {}", at + 1))?;
        calls.extend(request.hash_ids.into_iter().map(|key| drawn(key, seed)));
    }
    Ok(calls)
}

fn requests<'a>(mut lines: impl Iterator<Item = &'a str>, seed: u64) -> Result<Vec<Call>> {
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| {
        let at = header.iter().position(|it| *it == name);
        at.with_context(|| format!("a table of calls has a column {name}; there is none"))
    };
    let key_columns = [column(KEY_COLUMNS[0])?, column(KEY_COLUMNS[1])?];
    let seconds_column = column(SECONDS_COLUMN)?;
    let (mut keys, mut calls) = (Keys::default(), vec![]);
    for (at, line) in lines.enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        let cell = |column: usize| cells.get(column).copied().unwrap_or_default();
        let seconds: f64 = cell(seconds_column).parse().with_context(|| {
            format!("line {}: {SECONDS_COLUMN} is {:?}", at + 2, cell(seconds_column))
        })?;
        let key = keys.number(key_columns.map(cell));
        calls.push(Call { key, bytes: bytes(key, seed), ns: seconds.max(0.0) * 1e9 });
    }
    Ok(calls)
}

/// Numbers keys in the order in which they come first.
#[derive(Debug)]
struct Keys<K>(HashMap<K, u64>);

impl<K> Default for Keys<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: std::hash::Hash + Eq> Keys<K> {
    fn number(&mut self, key: K) -> u64 {
        let next = self.0.len() as u64;
        *self.0.entry(key).or_insert(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(name: &str, content: &[u8]) -> Vec<u64> {
        parse(name, content, 1).unwrap().iter().map(|call| call.key).collect()
    }

    #[test]
    fn each_kind_of_file_gives_its_keys_in_their_order() {
        assert_eq!(keys("a.trace", b"17\n4 x\n\n17\n"), [0, 1, 0]);
        let blocks = b"{\"timestamp\": 0, \"hash_ids\": [3, 9]}\n{\"hash_ids\": [3]}\n";
        assert_eq!(keys("a.jsonl", blocks), [3, 9, 3]);
        let binary = [0_u8, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0, 1];
        assert_eq!(keys("a.trace", &binary), [0, 1, 0, 1]);
        assert_eq!(keys("trace_a", &binary), [0, 0]);
    }

    #[test]
    fn a_table_of_requests_tells_what_a_call_costs_and_an_error_names_what_is_missing() {
        let table = "groupId,exec_time_seconds,checkpoint_model_version_id\n\
                     g,2.5,m\ng,1,n\ng,4,m\n";
        let calls = parse("a.csv", table.as_bytes(), 1).unwrap();
        let told: Vec<_> = calls.iter().map(|call| (call.key, call.ns)).collect();
        assert_eq!(told, [(0, 2.5e9), (1, 1e9), (0, 4e9)]);
        assert_eq!(calls[0].bytes, calls[2].bytes);
        let error = parse("a.csv", b"time,value\n1,2\n", 1).unwrap_err();
        assert!(error.to_string().contains("column groupId"), "{error}");
        let error = parse("a.csv", table.replace("2.5", "soon").as_bytes(), 1).unwrap_err();
        assert!(error.to_string().contains("line 2: exec_time_seconds is \"soon\""), "{error}");
    }

    #[test]
    fn a_compressed_trace_is_read_and_a_missing_or_empty_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.trace");
        std::fs::write(&file, "1\n2\n1\n").unwrap();
        let trace = read(&file, 1, true).unwrap();
        assert_eq!((trace.name.as_str(), trace.calls.len()), ("a.trace", 3));
        let compressed = folder.path().join("b.trace.gz");
        // gzip of "1\n2\n1\n", stored without compression.
        let gz = [
            &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1, 6, 0, 249, 255][..],
            b"1\n2\n1\n",
            &CRC_AND_LENGTH,
        ];
        std::fs::write(&compressed, gz.concat()).unwrap();
        assert_eq!(read(&compressed, 1, true).unwrap().calls, trace.calls);
        std::fs::write(&file, "\n").unwrap();
        assert!(read(&file, 1, true).unwrap_err().to_string().contains("a.trace has no calls"));
        let error = read(&folder.path().join("none.gz"), 1, true).unwrap_err();
        assert!(error.to_string().contains("none.gz"), "{error}");
    }

    const CRC_AND_LENGTH: [u8; 8] = [90, 54, 105, 69, 6, 0, 0, 0];
}
