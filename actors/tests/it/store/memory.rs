//! Tables in memory keep the rules of a commit.

use foreshard_actors::store::MemoryTable;
use foreshard_actors::table::TableStore;

use super::*;

fn table() -> MemoryTable {
    MemoryTable::create("t", schema(), hashed(4)).unwrap()
}

#[tokio::test]
async fn a_memory_table_refuses_what_a_managed_one_refuses() {
    let table = table();
    let first = table.commit(named(insert(1, rows(0, 10)), "p", 3)).await.unwrap();
    let change = rewrite(&[only(&first)], vec![(2, vec![rows(0, 10)])]);
    table.commit(change.clone()).await.unwrap();
    assert!(is_gone(&table.commit(change).await.unwrap_err()));
    assert!(table.commit(named(insert(1, rows(0, 10)), "p", 3)).await.unwrap().added.is_empty());
    let error = table.commit(named(insert(1, rows(0, 10)), "p", 2)).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-2");
    assert_eq!(table.commit(insert(9, rows(0, 1))).await.unwrap_err().code(), "FS-STORE-16");
    assert_eq!(ids_in(&table, &table.snapshot()).await, each_once(0..10));
}

#[tokio::test]
async fn a_held_snapshot_keeps_removed_rows_and_letting_go_frees_them() {
    let table = table();
    let first = table.commit(insert(1, rows(0, 10))).await.unwrap();
    let segment = only(&first);
    let snapshot = std::sync::Arc::clone(&first.snapshot);
    drop(first);
    table.commit(delete(vec![segment])).await.unwrap();
    assert_eq!(table.snapshot().rows(), 0);
    assert_eq!(ids_in(&table, &snapshot).await, each_once(0..10));
    drop(snapshot);
    assert!(table.rows(segment).is_none());
}

#[tokio::test]
async fn a_projection_of_memory_is_that_of_files() {
    let table = table();
    let committed = table.commit(insert(0, rows(0, 10))).await.unwrap();
    let segment = &committed.added[0].0;
    for projection in [vec![2, 0], vec![]] {
        let stream = table.read(segment, Some(&projection)).await.unwrap();
        let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        assert_eq!(batches, [rows(0, 10).project(&projection).unwrap()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_writers_of_a_memory_table_lose_no_row() {
    let table = std::sync::Arc::new(table());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8i64 {
        let table = std::sync::Arc::clone(&table);
        writers.spawn(async move {
            for turn in 0..20 {
                let change = insert(0, rows(writer * 100 + turn * 5, 5));
                table.commit(change).await.unwrap();
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    assert_eq!(table.snapshot().version, 160);
    assert_eq!(ids_in(table.as_ref(), &table.snapshot()).await, each_once(0..800));
}
