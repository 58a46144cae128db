//! The store as the monitor and readers use it.

use std::fs;

use foreshard_policy::history::Summary;
use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey};

use super::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const NOW: u64 = 1_700_000_000_000 - 1_700_000_000_000 % DAY;

fn row(function: &str, ordinal: u32, start_ms: u64, calls: u64) -> Row {
    let key = SeriesKey {
        function: function.into(),
        expression: ExpressionId(1),
        partition: PartitionId::new("t", ordinal),
    };
    let summary =
        Summary { calls, rows: 10 * calls, ns: calls * 500_000_000, ..Summary::default() };
    Row { key, start_ms, summary }
}

fn open(folder: &Path) -> HistoryStore {
    HistoryStore::open(folder, &MonitorConfig::default()).unwrap()
}

/// Appends a call of `f` for each of these times.
fn append(store: &HistoryStore, times_ms: impl IntoIterator<Item = u64>) {
    for at_ms in times_ms {
        store.append(Tick(at_ms / 1_000), at_ms, true, vec![row("f", 0, at_ms, 1)]);
    }
    store.flush();
}

/// Every row, those of files with their resolution.
fn all(store: &HistoryStore) -> Vec<(Resolution, Row)> {
    let listing = store.list(0, u64::MAX).unwrap();
    let of_files = listing.files.iter().flat_map(|file| {
        let rows = file::rows(&file.path).unwrap().map(Result::unwrap);
        rows.map(|row| (file.about.resolution, row)).collect::<Vec<_>>()
    });
    let live = rows::from_batch(&listing.live).unwrap();
    of_files.chain(live.into_iter().map(|row| (Resolution::Second, row))).collect()
}

fn calls(store: &HistoryStore) -> u64 {
    all(store).iter().map(|(_, row)| row.summary.calls).sum()
}

fn ended_with(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    paths.sort();
    paths
}

#[test]
fn what_was_flushed_is_there_after_a_restart_and_frames_go_on_counting() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    append(&store, [NOW, NOW + 1_000]);
    assert_eq!(store.append(Tick(9), NOW, true, vec![]), 2);
    store.close();
    assert_eq!(store.append(Tick(9), NOW, true, vec![row("f", 0, NOW, 1)]), 3);
    let counters = store.counters();
    assert_eq!(
        (counters.frames_written, counters.frames_dropped, counters.rows_dropped),
        (2, 1, 1)
    );
    let store = open(folder.path());
    assert_eq!(calls(&store), 2);
    assert_eq!(store.append(Tick(9), NOW + 2_000, true, vec![row("f", 0, NOW, 1)]), 3);
    store.flush();
    let mut frames = vec![];
    store.frames_after(1, |frame| frames.push((frame.number, frame.tick))).unwrap();
    assert_eq!(frames, [(2, Tick(NOW / 1_000 + 1)), (3, Tick(9))]);
}

#[test]
fn a_second_that_came_in_parts_is_one_row() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    append(&store, [NOW, NOW, NOW]);
    let rows = all(&store);
    assert_eq!((rows.len(), rows[0].1.summary.calls), (1, 3));
    assert_eq!(rows[0].1.summary.in_flight_max, 1.5);
    store.tidy(NOW).unwrap();
    assert_eq!(all(&store), rows);
    assert_eq!(ended_with(folder.path(), SEGMENT).len(), 0);
}

#[test]
fn a_torn_end_and_damage_are_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    append(&store, (0..10).map(|second| NOW + 1_000 * second));
    store.close();
    let path = &ended_with(folder.path(), SEGMENT)[0];
    let mut bytes = fs::read(path).unwrap();
    let frame = bytes.len() / 10;
    bytes.truncate(bytes.len() - 7);
    bytes[frame * 3 + 20] ^= 1;
    fs::write(path, &bytes).unwrap();
    let store = open(folder.path());
    assert_eq!(calls(&store), 8);
    let counters = store.counters();
    assert_eq!(counters.bytes_torn, frame as u64 - 7);
    assert_eq!(counters.bytes_damaged, frame as u64);
    append(&store, [NOW + 20_000]);
    store.close();
    assert_eq!(calls(&open(folder.path())), 9);
}

#[test]
fn seconds_become_minutes_and_minutes_hours_and_nothing_is_lost_on_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    append(&store, (0..4 * 3_600).step_by(600).map(|second| NOW + 1_000 * second));
    store.tidy(NOW + 4 * HOUR).unwrap();
    let resolutions = |store: &HistoryStore| {
        let all = all(store);
        let mut found: Vec<_> = all.iter().map(|(resolution, _)| *resolution).collect();
        found.dedup();
        (found, all.len(), all.iter().map(|(_, row)| row.summary.calls).sum::<u64>())
    };
    assert_eq!(resolutions(&store), (vec![Resolution::Second], 24, 24));
    store.tidy(NOW + 52 * HOUR).unwrap();
    assert_eq!(resolutions(&store), (vec![Resolution::Minute], 24, 24));
    store.tidy(NOW + 31 * DAY).unwrap();
    assert_eq!(resolutions(&store), (vec![Resolution::Hour], 4, 24));
    assert!(all(&store).iter().all(|(_, row)| row.summary.in_flight_max == 0.5));
    store.close();
    let store = open(folder.path());
    assert_eq!(resolutions(&store), (vec![Resolution::Hour], 4, 24));
    store.tidy(NOW + 732 * DAY).unwrap();
    assert_eq!((calls(&store), ended_with(folder.path(), PARQUET).len()), (0, 0));
}

#[test]
fn what_is_outside_the_time_asked_for_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for hour in 0..5 {
        append(&store, [NOW + hour * HOUR, NOW + hour * HOUR + 1_000]);
        if hour < 3 {
            store.tidy(NOW).unwrap();
        }
    }
    let listing = store.list(NOW + HOUR, NOW + HOUR).unwrap();
    assert_eq!((listing.files.len(), listing.files_skipped), (1, 2));
    assert_eq!((listing.frames, listing.live.num_rows()), ((0, 4), 0));
    let listing = store.list(NOW + 4 * HOUR + 1_000, u64::MAX).unwrap();
    assert_eq!((listing.files.len(), listing.frames, listing.live.num_rows()), (0, (1, 3), 1));
}

#[test]
fn a_file_that_is_read_stays_until_its_readers_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    append(&store, [NOW]);
    store.tidy(NOW).unwrap();
    let listing = store.list(0, u64::MAX).unwrap();
    store.tidy(NOW + 3 * DAY).unwrap();
    assert_eq!(ended_with(folder.path(), PARQUET).len(), 2);
    assert_eq!(file::rows(&listing.files[0].path).unwrap().count(), 1);
    drop(listing);
    assert_eq!(ended_with(folder.path(), PARQUET).len(), 1);
    assert_eq!(calls(&store), 1);
}

#[test]
fn what_a_crash_leaves_beside_the_manifest_is_removed_and_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    append(&store, [NOW, NOW + 1_000]);
    let segment = ended_with(folder.path(), SEGMENT)[0].clone();
    let before = fs::read(&segment).unwrap();
    store.tidy(NOW).unwrap();
    let file = ended_with(folder.path(), PARQUET)[0].clone();
    store.close();
    // The segment was not yet removed, a file was made that is in no manifest, one was half written.
    fs::write(&segment, before).unwrap();
    fs::copy(&file, folder.path().join("second-00000077.parquet")).unwrap();
    fs::write(folder.path().join("minute-00000078.parquet.new"), "half").unwrap();
    let store = open(folder.path());
    assert_eq!(calls(&store), 2);
    assert_eq!(ended_with(folder.path(), PARQUET), [file]);
    assert_eq!(
        ended_with(folder.path(), SEGMENT).len() + ended_with(folder.path(), "new").len(),
        0
    );
}

#[test]
fn a_manifest_that_is_unreadable_is_set_aside_and_every_file_counts() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    append(&store, [NOW, NOW + 1_000]);
    store.tidy(NOW).unwrap();
    append(&store, [NOW + 2_000]);
    store.close();
    fs::write(folder.path().join("manifest.json"), "{").unwrap();
    let store = open(folder.path());
    assert_eq!(calls(&store), 3);
    assert!(folder.path().join("manifest.json.unusable").exists());
    append(&store, [NOW + 3_000]);
    store.tidy(NOW).unwrap();
    store.close();
    assert_eq!(calls(&open(folder.path())), 4);
}

#[test]
fn a_file_that_is_missing_is_counted_and_the_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for hour in 0..2 {
        append(&store, [NOW + hour * HOUR]);
        store.tidy(NOW).unwrap();
    }
    store.close();
    fs::remove_file(&ended_with(folder.path(), PARQUET)[0]).unwrap();
    let store = open(folder.path());
    assert_eq!((calls(&store), store.counters().files_missing), (1, 1));
}

#[test]
fn a_folder_is_used_by_one_store_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let error = HistoryStore::open(folder.path(), &MonitorConfig::default()).unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("FS-HISTORY-4", true));
    store.close();
    open(folder.path());
}

#[test]
fn the_disk_never_holds_more_than_it_may_and_detail_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let config = MonitorConfig::default().with_disk_bytes(1 << 20).unwrap();
    let store = HistoryStore::open(folder.path(), &config).unwrap();
    let mut total = 0;
    for hour in 0..12 {
        for minute in 0..60 {
            let at_ms = NOW + hour * HOUR + minute * 60_000;
            let rows = (0..60).map(|second| {
                // Numbers that no compression makes small.
                let noise = |salt: u64| {
                    (at_ms + 1_000 * second + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8
                };
                let calls = 1 + noise(0) % 97;
                total += calls;
                let mut row = row("f", (noise(1) % 50) as u32, at_ms + second * 1_000, calls);
                row.summary.ns = noise(2) >> 20;
                row.summary.would_be_ns = noise(3) >> 20;
                row.summary.would_be_ns_squares = noise(4) as f64;
                row.summary.bytes = noise(5);
                row
            });
            store.append(Tick(1), at_ms, true, rows.collect());
        }
        store.tidy(NOW + hour * HOUR).unwrap();
        let bytes: u64 = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes <= (1 << 20) + 65_536, "{bytes} bytes");
    }
    let rows = all(&store);
    assert!(
        rows.iter().any(|(resolution, _)| *resolution > Resolution::Second),
        "nothing gave way"
    );
    assert_eq!(rows.iter().map(|(_, row)| row.summary.calls).sum::<u64>(), total);
}

#[test]
fn a_day_is_exported_and_is_the_same_where_it_is_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let store = open(&here);
    for at_ms in (0..40).map(|hour| NOW + hour * HOUR) {
        let rows = vec![row("f", 0, at_ms, 3), row("g", 7, at_ms + 1_000, 2)];
        store.append(Tick(1), at_ms, true, rows);
    }
    store.tidy(NOW + 70 * HOUR).unwrap();
    append(&store, [NOW + 5 * HOUR + 5_000]);
    let path = folder.path().join("day.parquet");
    let exported = store.export(&path, NOW, NOW + DAY - 1).unwrap();
    assert_eq!((exported.rows, exported.bytes), (49, fs::metadata(&path).unwrap().len()));

    let other = open(&there);
    let imported = other.import(&path).unwrap();
    assert_eq!(imported, Imported { rows: 49, until_ms: imported.until_ms, ..Imported::default() });
    let sorted = |mut rows: Vec<(Resolution, Row)>| {
        rows.sort_by(|a, b| (a.0, &a.1.key, a.1.start_ms).cmp(&(b.0, &b.1.key, b.1.start_ms)));
        rows
    };
    let mut expected = all(&store);
    expected.retain(|(_, row)| row.start_ms < NOW + DAY);
    assert_eq!(sorted(all(&other)), sorted(expected));

    let error = other.import(&path).unwrap_err();
    assert_eq!(error.code(), "FS-HISTORY-7");
    other.close();
    let other = open(&there);
    assert_eq!(other.import(&path).unwrap_err().code(), "FS-HISTORY-7");
    assert_eq!(calls(&other), 24 * 5 + 1);
    fs::write(&path, "something else").unwrap();
    assert_eq!(other.import(&path).unwrap_err().code(), "FS-HISTORY-5");
    assert_eq!(other.import(&folder.path().join("none")).unwrap_err().code(), "FS-HISTORY-3");
}
