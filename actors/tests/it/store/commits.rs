//! The rules of a commit, with competitors, lost answers and cleaned logs.

use std::sync::Arc;

use foreshard_actors::ports::{Clock, SystemClock};
use foreshard_actors::store::{Durable, ManagedOptions, ManagedTable, StoreError};
use foreshard_actors::table::{Operation, TableStore};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::sync::Semaphore;
use url::Url;

use super::faulty::{Fault, Faulty};
use super::*;

#[derive(Debug)]
struct Fixed(u64);

impl Clock for Fixed {
    fn now_ms(&self) -> u64 {
        self.0
    }

    fn monotonic_ns(&self) -> u64 {
        self.0 * 1_000_000
    }
}

async fn in_faulty(inner: Arc<dyn ObjectStore>) -> (Faulty, Url, ManagedTable) {
    let faulty = Faulty::new(inner);
    let url = Url::parse("mem://bucket/some/t/").unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(faulty.clone());
    let table = ManagedTable::create("t", &url, Some(store), schema(), hashed(4)).await.unwrap();
    (faulty, url, table)
}

async fn again(faulty: &Faulty, url: &Url) -> ManagedTable {
    ManagedTable::open("t", url, Some(Arc::new(faulty.clone()))).await.unwrap()
}

#[tokio::test]
async fn of_two_rewrites_of_one_segment_the_second_is_refused() {
    let (_folder, url) = folder();
    let (a, b) = (create(&url).await, open(&url).await);
    let segment = only(&a.commit(insert(1, rows(0, 100))).await.unwrap());
    b.refresh().await.unwrap();
    let halves = || vec![(1, vec![rows(0, 50)]), (1, vec![rows(50, 50)])];
    a.commit(rewrite(&[segment], halves())).await.unwrap();
    let error = b.commit(rewrite(&[segment], halves())).await.unwrap_err();
    assert!(is_gone(&error), "{error}");
    assert_eq!(ids_in(&b, &b.refresh().await.unwrap()).await, each_once(0..100));
    assert_eq!(ids_of_library(&url).await, each_once(0..100));
    // The files of the refused commit are not left behind.
    let files = std::fs::read_dir(url.to_file_path().unwrap().join("_partition=1")).unwrap();
    assert_eq!(files.count(), 3);
}

#[tokio::test]
async fn a_delete_of_everything_is_not_lost_to_a_compaction() {
    let (_folder, url) = folder();
    let (a, b) = (create(&url).await, open(&url).await);
    for part in 0..4 {
        a.commit(insert(2, rows(part * 10, 10))).await.unwrap();
    }
    let before = ids(&b.refresh().await.unwrap());
    let all: Vec<_> = (0..4).map(|part| rows(part * 10, 10)).collect();
    a.commit(rewrite(&before, vec![(2, all)])).await.unwrap();
    let error = b.commit(delete(before)).await.unwrap_err();
    assert!(is_gone(&error), "{error}");
    // Computed again from the newest snapshot it goes through.
    let now = ids(&b.refresh().await.unwrap());
    assert_eq!(now.len(), 1);
    let mut truncate = delete(now);
    truncate.operation = Operation::Truncate;
    assert_eq!(b.commit(truncate).await.unwrap().snapshot.rows(), 0);
    assert_eq!(ids_of_library(&url).await, each_once(0..0));
}

#[tokio::test]
async fn a_transaction_counts_once_and_an_older_one_is_fenced() {
    let (_folder, url) = folder();
    let (a, b) = (create(&url).await, open(&url).await);
    a.commit(named(insert(0, rows(0, 10)), "p:0", 5)).await.unwrap();
    // A fresh snapshot, an old one, and after reopening: the same transaction adds nothing.
    for table in [&a, &b, &open(&url).await] {
        let repeated = table.commit(named(insert(0, rows(0, 10)), "p:0", 5)).await.unwrap();
        assert!(repeated.added.is_empty());
        assert_eq!(repeated.snapshot.rows(), 10);
    }
    let error = b.commit(named(insert(0, rows(90, 1)), "p:0", 4)).await.unwrap_err();
    let StoreError::Fenced { sequence: 4, newest: 5, .. } = &error else { panic!("{error}") };
    b.commit(named(insert(0, rows(10, 10)), "p:0", 6)).await.unwrap();
    // A checkpoint keeps transactions.
    b.checkpoint().await.unwrap();
    let c = open(&url).await;
    assert!(c.commit(named(insert(0, rows(0, 1)), "p:0", 6)).await.unwrap().added.is_empty());
    assert_eq!(
        c.commit(named(insert(0, rows(0, 1)), "p:0", 5)).await.unwrap_err().code(),
        "FS-STORE-2"
    );
    assert_eq!(ids_of_library(&url).await, each_once(0..20));
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_recognised_for_inserts_and_rewrites() {
    for fault in [Fault::LoseAnswer, Fault::SayTaken] {
        let (faulty, url, table) = in_faulty(Arc::new(InMemory::new())).await;
        faulty.on_put("_delta_log", fault.clone(), 1);
        let inserted = table.commit(insert(1, rows(0, 10))).await.unwrap();
        assert_eq!(inserted.snapshot.version, 1);
        faulty.on_put("_delta_log", fault.clone(), 1);
        let rewritten =
            table.commit(rewrite(&[only(&inserted)], vec![(1, vec![rows(0, 10)])])).await.unwrap();
        assert_eq!((rewritten.snapshot.version, rewritten.snapshot.rows()), (2, 10), "{fault:?}");
        let reopened = again(&faulty, &url).await;
        assert_eq!(ids_in(&reopened, &reopened.snapshot()).await, each_once(0..10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_lands_after_its_time_is_up_is_recognised() {
    let (faulty, _, table) = in_faulty(Arc::new(InMemory::new())).await;
    faulty.on_put("_delta_log", Fault::NeverAnswer, 1);
    let inserted = table.commit(insert(1, rows(0, 10))).await.unwrap();
    faulty.on_put("_delta_log", Fault::NeverAnswer, 1);
    let change = rewrite(&[only(&inserted)], vec![(1, vec![rows(0, 5)]), (2, vec![rows(5, 5)])]);
    let snapshot = table.commit(change).await.unwrap().snapshot;
    assert_eq!((snapshot.version, snapshot.rows()), (2, 10));
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_never_lands_says_that_it_may_and_a_retry_finds_out() {
    let (faulty, _, table) = in_faulty(Arc::new(InMemory::new())).await;
    faulty.on_put("_delta_log", Fault::Fail, 4);
    let error = table.commit(named(insert(1, rows(0, 10)), "p:1", 1)).await.unwrap_err();
    let StoreError::InDoubt { version: 1, .. } = &error else { panic!("{error}") };
    assert!(!error.is_retryable());
    assert_eq!(table.refresh().await.unwrap().rows(), 0);
    let retried = table.commit(named(insert(1, rows(0, 10)), "p:1", 1)).await.unwrap();
    assert_eq!(retried.snapshot.rows(), 10);
}

#[tokio::test]
async fn a_store_that_may_not_be_written_says_so_and_nothing_happened() {
    let (faulty, _, table) = in_faulty(Arc::new(InMemory::new())).await;
    for at in ["_delta_log", "_partition"] {
        faulty.on_put(at, Fault::Refuse, 1);
        let error = table.commit(insert(0, rows(0, 1))).await.unwrap_err();
        assert_eq!(error.code(), "FS-STORE-11", "{error}");
    }
    assert_eq!(table.commit(insert(0, rows(0, 1))).await.unwrap().snapshot.rows(), 1);
}

#[tokio::test]
async fn a_checkpoint_that_fails_fails_no_commit() {
    let (_folder, url) = folder();
    let faulty = Faulty::new(Arc::new(Durable::new()));
    let store: Arc<dyn ObjectStore> = Arc::new(faulty.clone());
    let options = ManagedOptions { checkpoint_every: 2, ..ManagedOptions::default() };
    let table = ManagedTable::create_with("t", &url, Some(store), schema(), hashed(4), options)
        .await
        .unwrap();
    faulty.on_put("checkpoint", Fault::Fail, 1_000);
    for part in 0..6 {
        table.commit(insert(0, rows(part * 10, 10))).await.unwrap();
        table.settle().await;
    }
    assert!(faulty.puts("checkpoint") > 0, "no checkpoint was tried");
    let log = url.to_file_path().unwrap().join("_delta_log");
    assert!(!log.join("_last_checkpoint").exists());
    assert_eq!(ids_in(&open(&url).await, &table.snapshot()).await, each_once(0..60));
    assert_eq!(ids_of_library(&url).await, each_once(0..60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_are_made_beside_and_a_table_opens_from_them() {
    let (_folder, url) = folder();
    let options = ManagedOptions { checkpoint_every: 5, ..ManagedOptions::default() };
    let table =
        ManagedTable::create_with("t", &url, None, schema(), hashed(4), options).await.unwrap();
    for part in 0..12 {
        let change = insert(u32::try_from(part % 4).unwrap(), rows(part * 10, 10));
        table.commit(named(change, "p", part)).await.unwrap();
        table.settle().await;
    }
    let log = url.to_file_path().unwrap().join("_delta_log");
    assert!(log.join("_last_checkpoint").exists());
    // Without the entries before it, the checkpoint is all there is.
    for version in 0..10 {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    let reopened = open(&url).await;
    let (written, read) = (table.snapshot(), reopened.snapshot());
    assert_eq!(written.version, read.version);
    for (a, b) in written.partitions.iter().zip(&read.partitions) {
        let key = |segment: &Arc<foreshard_actors::segment::Segment>| {
            let segment = segment.as_ref();
            (segment.id, segment.rows, segment.bytes, format!("{:?}", segment.columns))
        };
        let mut a: Vec<_> = a.iter().map(key).collect();
        let mut b: Vec<_> = b.iter().map(key).collect();
        a.sort();
        b.sort();
        assert_eq!(a, b);
    }
    assert_eq!(ids_in(&reopened, &read).await, each_once(0..120));
    let repeated = reopened.commit(named(insert(0, rows(0, 1)), "p", 11)).await.unwrap();
    assert!(repeated.added.is_empty());
}

#[tokio::test]
async fn a_commit_into_a_cleaned_log_is_not_acknowledged_unseen() {
    let (_folder, url) = folder();
    let (a, stale) = (create(&url).await, open(&url).await);
    for part in 0..6 {
        a.commit(insert(0, rows(part * 10, 10))).await.unwrap();
    }
    a.checkpoint().await.unwrap();
    let log = url.to_file_path().unwrap().join("_delta_log");
    for version in 0..=6 {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    // The first put goes to version 1, where nobody looks any more.
    let committed = stale.commit(insert(1, rows(60, 10))).await.unwrap();
    assert_eq!((committed.snapshot.version, committed.snapshot.rows()), (7, 70));
    let rows_seen = ids_in(&open(&url).await, &a.refresh().await.unwrap()).await;
    assert_eq!(rows_seen, each_once(0..70));
    assert_eq!(ids_of_library(&url).await, each_once(0..70));
}

#[tokio::test]
async fn a_reader_behind_a_cleaned_log_catches_up() {
    let (_folder, url) = folder();
    let (a, stale) = (create(&url).await, open(&url).await);
    for part in 0..3 {
        a.commit(insert(0, rows(part * 10, 10))).await.unwrap();
    }
    a.checkpoint().await.unwrap();
    let log = url.to_file_path().unwrap().join("_delta_log");
    for version in 0..=3 {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    assert_eq!(stale.snapshot().rows(), 0);
    let caught_up = stale.refresh().await.unwrap();
    assert_eq!((caught_up.version, caught_up.rows()), (3, 30));
}

#[tokio::test]
async fn a_commit_goes_on_when_nobody_waits_for_it() {
    let gate = Arc::new(Semaphore::new(0));
    let (faulty, url, table) = in_faulty(Arc::new(InMemory::new())).await;
    faulty.on_put("_delta_log", Fault::Wait(Arc::clone(&gate)), 1);
    {
        let commit = table.commit(insert(0, rows(0, 10)));
        let reached = async {
            while faulty.puts("_delta_log") < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = commit => panic!("it cannot end while its entry waits"),
            () = reached => {}
        }
    }
    gate.add_permits(1);
    // The next commit has to wait for the first one.
    assert_eq!(table.commit(insert(1, rows(10, 10))).await.unwrap().snapshot.rows(), 20);
    let reopened = again(&faulty, &url).await;
    assert_eq!(ids_in(&reopened, &reopened.snapshot()).await, each_once(0..20));
}

#[tokio::test]
async fn an_append_passes_a_delete_in_another_partition() {
    let (_folder, url) = folder();
    let (a, b) = (create(&url).await, open(&url).await);
    let segment = only(&a.commit(insert(1, rows(0, 10))).await.unwrap());
    b.refresh().await.unwrap();
    a.commit(delete(vec![segment])).await.unwrap();
    let committed = b.commit(insert(2, rows(10, 10))).await.unwrap();
    assert_eq!((committed.snapshot.version, committed.snapshot.rows()), (3, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_writers_in_two_processes_lose_and_double_no_row() {
    let (_folder, url) = folder();
    let tables = [create(&url).await, open(&url).await];
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8i64 {
        let table = tables[usize::try_from(writer % 2).unwrap()].clone();
        writers.spawn(async move {
            for turn in 0..10 {
                let from = writer * 1_000 + turn * 10;
                let change = insert(u32::try_from(writer % 4).unwrap(), rows(from, 10));
                table.commit(named(change, &format!("w:{writer}"), turn)).await.unwrap();
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    let expected: BTreeMap<i64, usize> =
        (0..8).flat_map(|writer| (0..100).map(move |row| (writer * 1_000 + row, 1))).collect();
    let reopened = open(&url).await;
    assert_eq!(ids_in(&reopened, &reopened.snapshot()).await, expected);
    assert_eq!(ids_of_library(&url).await, expected);
}

#[tokio::test]
async fn commits_that_wait_together_share_a_log_entry() {
    let gate = Arc::new(Semaphore::new(0));
    let (faulty, url, table) = in_faulty(Arc::new(InMemory::new())).await;
    let segment = only(&table.commit(insert(0, rows(0, 10))).await.unwrap());
    faulty.on_put("_delta_log", Fault::Wait(Arc::clone(&gate)), 1);
    let mut commits = tokio::task::JoinSet::new();
    for writer in 1..=10 {
        let table = table.clone();
        commits.spawn(async move { table.commit(insert(1, rows(writer * 10, 10))).await });
    }
    // Two that replace the same segment wait along: one of them must lose.
    for _ in 0..2 {
        let table = table.clone();
        let change = rewrite(&[segment], vec![(0, vec![rows(0, 10)])]);
        commits.spawn(async move { table.commit(change).await });
    }
    while faulty.puts("_partition") < 13 || faulty.puts("_delta_log") < 3 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    let (mut done, mut lost) = (0, 0);
    while let Some(ended) = commits.join_next().await {
        match ended.unwrap() {
            Ok(_) => done += 1,
            Err(error) => {
                assert!(is_gone(&error), "{error}");
                lost += 1;
            }
        }
    }
    assert_eq!((done, lost), (11, 1));
    let snapshot = table.snapshot();
    assert!(snapshot.version <= 4, "12 commits took {} entries", snapshot.version - 1);
    let reopened = again(&faulty, &url).await;
    assert_eq!(ids_in(&reopened, &reopened.snapshot()).await, each_once(0..110));
}

#[tokio::test]
async fn a_table_whose_metadata_another_writer_changed_must_be_opened_again() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    let library = library_table(&url).await;
    let properties = [("delta.logRetentionDuration".to_owned(), "interval 90 days".to_owned())];
    library.set_tbl_properties().with_properties(properties.into()).await.unwrap();
    let error = table.commit(insert(0, rows(0, 10))).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-1", "{error}");
    assert!(!error.is_retryable());
    assert_eq!(open(&url).await.commit(insert(0, rows(0, 10))).await.unwrap().snapshot.rows(), 10);
}

#[tokio::test]
async fn vacuum_spares_pinned_versions_and_files_that_are_being_written() {
    let (_folder, url) = folder();
    // In the log everything happened long ago; the files themselves are new.
    let day = 24 * 60 * 60 * 1000;
    let past = SystemClock.now_ms() - 10 * day;
    let options = ManagedOptions { clock: Arc::new(Fixed(past)), ..ManagedOptions::default() };
    let table =
        ManagedTable::create_with("t", &url, None, schema(), hashed(4), options).await.unwrap();
    let first = table.commit(insert(1, rows(0, 10))).await.unwrap();
    let second =
        table.commit(rewrite(&[only(&first)], vec![(1, vec![rows(0, 10)])])).await.unwrap();
    table.commit(rewrite(&[only(&second)], vec![(1, vec![rows(0, 10)])])).await.unwrap();
    let folder = url.to_file_path().unwrap().join("_partition=1");
    let in_flight = folder.join("foreshard-in-flight-1.parquet");
    std::fs::write(&in_flight, b"not in the log yet").unwrap();
    let orphan = folder.join("foreshard-orphan-1.parquet");
    std::fs::write(&orphan, b"of a writer that died").unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_millis(past);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path != in_flight {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(long_ago).unwrap();
        }
    }
    let error = table.vacuum(&[], 0).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-18", "{error}");

    let mut removed = table.vacuum(&[first.snapshot.version], day).await.unwrap();
    removed.sort();
    assert_eq!(removed.len(), 2, "{removed:?}");
    assert!(removed.iter().any(|path| path.contains("orphan")), "{removed:?}");
    assert!(in_flight.exists());
    assert_eq!(ids_in(&table, &first.snapshot).await, each_once(0..10));
    let gone = &second.added[0].0;
    let error = table.read(gone, None).await.err().unwrap();
    assert_eq!(error.code(), "FS-STORE-5", "{error}");
    assert_eq!(ids_in(&table, &table.snapshot()).await, each_once(0..10));

    table.vacuum(&[], day).await.unwrap();
    let left = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(left, 2, "the newest file and the one in flight");
    assert_eq!(ids_of_library(&url).await, each_once(0..10));
    assert_eq!(table.commit(insert(0, rows(10, 10))).await.unwrap().snapshot.rows(), 20);
}
