//! Splits and merges of partitions: one commit, no row lost or doubled, whoever writes meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use foreshard_actors::layout::{Layout, deal_out_all};
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::store::{MemoryTable, ParquetTable, Prepared, Reshape, StoreError, prepare};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::faulty::{Fault, Faulty};
use super::*;

fn dealt(layout: &Layout, batch: RecordBatch) -> Change {
    Change {
        operation: Operation::Insert,
        removed: vec![],
        added: deal_out_all(layout, &[batch]).unwrap(),
        layout: None,
        transaction: None,
    }
}

/// Inserts rows, dealt out again as often as their partitions are split or merged meanwhile.
async fn append(store: &dyn TableStore, batch: RecordBatch) {
    let mut snapshot = store.snapshot();
    loop {
        match store.commit(dealt(&snapshot.layout, batch.clone())).await {
            Ok(_) => return,
            Err(error) => {
                assert!(is_gone(&error), "{error}");
                snapshot = store.refresh().await.unwrap();
            }
        }
    }
}

async fn split(store: &dyn TableStore, ordinal: u32, at: Option<&str>) -> Prepared {
    let prepared = prepare(store, Reshape::Split { ordinal, at }).await.unwrap();
    store.commit(prepared.change.clone()).await.unwrap();
    prepared
}

async fn merge(store: &dyn TableStore, one: u32, other: u32) -> Prepared {
    let prepared = prepare(store, Reshape::Merge { one, other }).await.unwrap();
    store.commit(prepared.change.clone()).await.unwrap();
    prepared
}

/// Fails unless every row is once in the table, in the partition that its key belongs to.
async fn is_in_order(store: &dyn TableStore, range: std::ops::Range<i64>) {
    let snapshot = store.snapshot();
    assert_eq!(ids_in(store, &snapshot).await, each_once(range));
    for segment in snapshot.segments() {
        let rows: Vec<RecordBatch> =
            store.read(segment, None).await.unwrap().try_collect().await.unwrap();
        for batch in rows {
            let owners = snapshot.layout.owners(&batch).unwrap();
            let is_right = owners.iter().all(|owner| *owner == segment.partition);
            assert!(is_right, "{owners:?} in {}", segment.partition);
        }
    }
    let ended = (0..snapshot.layout.places()).filter(|ordinal| !snapshot.layout.has(*ordinal));
    for ordinal in ended {
        assert!(snapshot.partitions[ordinal as usize].is_empty(), "{ordinal} is no more");
    }
}

fn by_range() -> Partitioning {
    Partitioning::Range { column: "id".to_owned(), bounds: vec!["100".to_owned()] }
}

#[tokio::test]
async fn a_split_and_a_merge_are_one_entry_each_that_changes_no_data() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    for part in 0..4 {
        append(&table, rows(part * 100, 100)).await;
    }
    let before = table.snapshot();
    let done = split(&table, 2, None).await;
    assert_eq!((done.gone.as_slice(), done.new[0].0, done.new[1].0), (&[2][..], 4, 5));
    let (left, right) = (done.new[0].1, done.new[1].1);
    assert!(left.abs_diff(right) <= 1, "{left} and {right} rows");
    assert_eq!(table.snapshot().layout.ordinals(), [0, 1, 4, 5, 3]);
    is_in_order(&table, 0..400).await;
    // Four segments became one on either side.
    assert_eq!(table.snapshot().partitions[4].len(), 1);

    let done = merge(&table, 5, 3).await;
    assert_eq!((done.gone.as_slice(), done.new[0].0), (&[5, 3][..], 6));
    assert_eq!(table.snapshot().layout.ordinals(), [0, 1, 4, 6]);
    is_in_order(&table, 0..400).await;

    let log = url.to_file_path().unwrap().join("_delta_log");
    for version in [5, 6] {
        let entry = std::fs::read_to_string(log.join(format!("{version:020}.json"))).unwrap();
        assert!(entry.contains("\"metaData\""), "{entry}");
        assert!(!entry.contains("\"dataChange\":true"), "{entry}");
        assert!(entry.contains("\"dataChange\":false"), "{entry}");
    }
    // Others see the same rows, and so does whoever held the table before.
    assert_eq!(ids_of_library(&url).await, each_once(0..400));
    assert_eq!(ids_in(&table, &before).await, each_once(0..400));
    let reopened = open(&url).await;
    assert_eq!(reopened.snapshot().layout, table.snapshot().layout);
    append(&reopened, rows(400, 50)).await;
    table.refresh().await.unwrap();
    is_in_order(&table, 0..450).await;
    reopened.checkpoint().await.unwrap();
    let from_checkpoint = open(&url).await;
    assert_eq!(from_checkpoint.snapshot().layout, table.snapshot().layout);
    split(&from_checkpoint, 6, None).await;
    is_in_order(&from_checkpoint, 0..450).await;
    assert_eq!(ids_of_library(&url).await, each_once(0..450));
}

#[tokio::test]
async fn a_range_is_split_at_a_key_or_in_the_middle_and_a_cut_outside_is_refused() {
    let (_folder, url) = folder();
    let managed = ManagedTable::create("t", &url, None, schema(), by_range()).await.unwrap();
    let memory = MemoryTable::create("t", schema(), by_range()).unwrap();
    for store in [&managed as &dyn TableStore, &memory] {
        append(store, rows(0, 300)).await;
        let done = split(store, 0, Some("30")).await;
        assert_eq!(done.new, [(2, 30), (3, 70)]);
        let done = split(store, 1, None).await;
        assert_eq!(done.new, [(4, 100), (5, 100)]);
        is_in_order(store, 0..300).await;
        for (ordinal, at, code) in
            [(2, "30", "FS-PARTITION-9"), (2, "x", "FS-PARTITION-9"), (0, "5", "FS-PARTITION-7")]
        {
            let reshape = Reshape::Split { ordinal, at: Some(at) };
            let error = prepare(store, reshape).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
        }
        let error = prepare(store, Reshape::Merge { one: 2, other: 5 }).await.unwrap_err();
        assert_eq!(error.code(), "FS-PARTITION-8", "{error}");
        is_in_order(store, 0..300).await;
    }
}

#[tokio::test]
async fn what_was_dealt_out_by_an_older_layout_is_refused_and_goes_through_when_dealt_out_again() {
    let (_folder, url) = folder();
    let (managed, other) = (create(&url).await, open(&url).await);
    let memory = MemoryTable::create("t", schema(), hashed(4)).unwrap();
    for (store, writer) in
        [(&managed as &dyn TableStore, &other as &dyn TableStore), (&memory, &memory)]
    {
        append(store, rows(0, 100)).await;
        writer.refresh().await.unwrap();
        let old = writer.snapshot();
        let segments: Vec<SegmentId> = old.partitions[1].iter().map(|segment| segment.id).collect();
        let too_late = prepare(writer, Reshape::Split { ordinal: 2, at: None }).await.unwrap();
        split(store, 1, None).await;
        // An insert, a delete and another split know nothing of it.
        for change in [dealt(&old.layout, rows(100, 50)), delete(segments), too_late.change] {
            let error = writer.commit(change).await.unwrap_err();
            assert!(is_gone(&error), "{error}");
        }
        append(writer, rows(100, 50)).await;
        store.refresh().await.unwrap();
        is_in_order(store, 0..150).await;
    }
    assert_eq!(ids_of_library(&url).await, each_once(0..150));
}

#[tokio::test]
async fn rows_that_come_while_a_partition_is_being_split_are_not_left_behind() {
    let (_folder, url) = folder();
    let managed = create(&url).await;
    let memory = MemoryTable::create("t", schema(), hashed(4)).unwrap();
    for store in [&managed as &dyn TableStore, &memory] {
        append(store, rows(0, 100)).await;
        let prepared = prepare(store, Reshape::Split { ordinal: 1, at: None }).await.unwrap();
        append(store, rows(100, 100)).await;
        let error = store.commit(prepared.change).await.unwrap_err();
        assert!(is_gone(&error), "{error}");
        split(store, 1, None).await;
        is_in_order(store, 0..200).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_splits_and_merges_at_the_same_time_lose_and_double_no_row() {
    const WRITERS: i64 = 3;
    const EACH: i64 = 12;
    let (_folder, url) = folder();
    let managed = Arc::new(create(&url).await);
    let memory = Arc::new(MemoryTable::create("t", schema(), hashed(4)).unwrap());
    for store in [managed as Arc<dyn TableStore>, memory] {
        let is_over = AtomicBool::new(false);
        let write = async |writer: i64| {
            for turn in 0..EACH {
                append(&*store, rows((writer * EACH + turn) * 20, 20)).await;
                tokio::task::yield_now().await;
            }
        };
        let writers = async {
            futures::join!(write(0), write(1), write(2));
            is_over.store(true, Ordering::Relaxed);
        };
        let reshape = async {
            let (mut turn, mut done) = (0, 0);
            while !is_over.load(Ordering::Relaxed) || done == 0 {
                turn += 1;
                let has = store.snapshot().layout.ordinals().to_vec();
                let at = turn * 7 % (has.len() - 1);
                let reshape = match turn % 2 {
                    _ if has.len() > 8 => Reshape::Merge { one: has[at], other: has[at + 1] },
                    0 => Reshape::Split { ordinal: has[at], at: None },
                    _ => Reshape::Merge { one: has[at], other: has[at + 1] },
                };
                let reshape = if has.len() < 3 {
                    Reshape::Split { ordinal: has[0], at: None }
                } else {
                    reshape
                };
                let prepared = prepare(&*store, reshape).await;
                let Ok(prepared) = prepared else { continue };
                match store.commit(prepared.change).await {
                    Ok(_) => done += 1,
                    Err(error) => assert!(is_gone(&error), "{error}"),
                }
                tokio::task::yield_now().await;
            }
            done
        };
        let ((), done) = futures::join!(writers, reshape);
        assert!(done > 0);
        is_in_order(&*store, 0..WRITERS * EACH * 20).await;
    }
    assert_eq!(ids_of_library(&url).await, each_once(0..WRITERS * EACH * 20));
}

#[tokio::test(start_paused = true)]
async fn a_split_whose_answer_is_lost_or_that_never_lands_leaves_one_layout_or_the_other() {
    for (fault, times) in [(Fault::LoseAnswer, 1), (Fault::SayTaken, 1), (Fault::Fail, 4)] {
        let faulty = Faulty::new(Arc::new(InMemory::new()));
        let url = Url::parse("mem://bucket/some/t/").unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(faulty.clone());
        let table = ManagedTable::create("t", &url, Some(Arc::clone(&store)), schema(), hashed(4));
        let table = table.await.unwrap();
        append(&table, rows(0, 100)).await;
        let prepared = prepare(&table, Reshape::Split { ordinal: 3, at: None }).await.unwrap();
        faulty.on_put("_delta_log", fault.clone(), times);
        let committed = table.commit(prepared.change).await;
        let lands = !matches!(fault, Fault::Fail);
        assert_eq!(committed.is_ok(), lands, "{fault:?}: {committed:?}");
        let expected: &[u32] = if lands { &[0, 1, 2, 4, 5] } else { &[0, 1, 2, 3] };
        let reopened = ManagedTable::open("t", &url, Some(store)).await.unwrap();
        for table in [&table, &reopened] {
            assert_eq!(table.snapshot().layout.ordinals(), expected, "{fault:?}");
            is_in_order(table, 0..100).await;
        }
    }
}

#[tokio::test]
async fn tables_of_others_and_tables_without_a_key_are_refused() {
    let (folder, url) = folder();
    create(&url).await.commit(insert(0, rows(0, 10))).await.unwrap();
    let files = Url::from_directory_path(folder.path().join("t/_partition=0")).unwrap();
    let parquet = ParquetTable::open("p", &files, None, 2).await.unwrap();
    let error = prepare(&parquet, Reshape::Split { ordinal: 0, at: None }).await.unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    let memory = MemoryTable::create("t", schema(), Partitioning::single()).unwrap();
    memory.commit(insert(0, rows(0, 10))).await.unwrap();
    let error = prepare(&memory, Reshape::Split { ordinal: 0, at: None }).await.unwrap_err();
    assert_eq!(error.code(), "FS-PARTITION-10", "{error}");
}
