//! A process that keeps its history is killed with SIGKILL: what it had flushed is there, and nothing twice.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use foreshard_actors::history_store::{HistoryStore, schema};
use foreshard_policy::config::MonitorConfig;
use foreshard_policy::history::{Row, Summary};
use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey, Tick};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Times that the process is killed.
const KILLS: u64 = 12;

/// Tells the child its folder; without it the child's test does nothing.
const FOLDER: &str = "FORESHARD_TEST_HISTORY_FOLDER";

const HOUR_MS: u64 = 3_600_000;
const NOW: u64 = 1_700_000_000_000 - 1_700_000_000_000 % HOUR_MS;

/// The frame of this number: its calls are the number, in a second of its own.
fn row(number: u64) -> Row {
    let key = SeriesKey {
        function: "f".into(),
        expression: ExpressionId(1),
        partition: PartitionId::new("t", 0),
    };
    let start_ms = NOW + number * 1_000;
    Row { key, start_ms, summary: Summary { calls: number, ..Summary::default() } }
}

fn open(folder: &Path) -> HistoryStore {
    HistoryStore::open(folder, &MonitorConfig::default()).unwrap()
}

#[test]
fn the_child_writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = open(Path::new(&folder));
    loop {
        let number = seen(&store).len() as u64 + 1;
        for number in number..number + 7 {
            store.append(Tick(number), NOW + number * 1_000, true, vec![row(number)]);
            store.flush();
            println!("flushed {number}");
        }
        store.tidy(NOW).unwrap();
    }
}

fn child(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "history_kill::the_child_writes_until_it_is_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Calls of every second that is there, in order.
fn seen(store: &HistoryStore) -> Vec<u64> {
    let listing = store.list(0, u64::MAX).unwrap();
    let calls = schema().index_of("calls").unwrap();
    let mut batches = vec![listing.live.clone()];
    for file in &listing.files {
        let file = std::fs::File::open(&file.path).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        batches.extend(reader.map(Result::unwrap));
    }
    let mut all = vec![];
    for batch in &batches {
        let column = batch.column(calls).as_any().downcast_ref::<arrow::array::UInt64Array>();
        all.extend(column.unwrap().values().iter().copied());
    }
    all.sort_unstable();
    all
}

#[test]
fn twelve_kills_while_it_writes_lose_nothing_that_was_flushed_and_double_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(4);
    let mut flushed = 0;
    for kill in 0..KILLS {
        let mut child = child(folder.path());
        let wanted = flushed + rng.random_range(1..40);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in &mut lines {
            let line = line.unwrap();
            let number = line.strip_prefix("flushed ").and_then(|number| number.parse().ok());
            flushed = number.unwrap_or(flushed);
            if flushed >= wanted {
                break;
            }
        }
        assert!(flushed >= wanted, "the child ended by itself after {flushed}");
        for _ in 0..rng.random_range(0..2_000_000_u32) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said between.
        for line in lines.map_while(Result::ok) {
            let number = line.strip_prefix("flushed ").and_then(|number| number.parse().ok());
            flushed = number.unwrap_or(flushed);
        }
        let store = open(folder.path());
        let seen = seen(&store);
        let expected: Vec<u64> = (1..=seen.len() as u64).collect();
        assert_eq!(seen, expected, "kill {kill}: something is missing, or there twice");
        let count = seen.len() as u64;
        assert!(count == flushed || count == flushed + 1, "kill {kill}: {count} of {flushed}");
        store.close();
        flushed = count;
    }
}
