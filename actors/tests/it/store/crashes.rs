//! What a crash leaves behind, and what is done about it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use foreshard_actors::ports::{Clock, SystemClock};
use foreshard_actors::store::{Durable, LEFTOVER_AGE_MS, StoreError};
use foreshard_actors::table::TableStore;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::*;

#[tokio::test]
async fn temporary_files_of_dead_writers_are_swept_and_those_of_live_ones_are_not() {
    let (_folder, url) = folder();
    create(&url).await.commit(insert(0, rows(0, 10))).await.unwrap();
    let root = url.to_file_path().unwrap();
    let old = [root.join("_partition=0/x.parquet#1"), root.join("_delta_log/00.json#12")];
    let kept = [root.join("_partition=0/y.parquet#1"), root.join("_partition=0/z#part")];
    let long_ago = SystemClock.now_ms() - LEFTOVER_AGE_MS - 1_000;
    let long_ago = std::time::UNIX_EPOCH + Duration::from_millis(long_ago);
    for path in old.iter().chain(&kept) {
        fs::write(path, b"half").unwrap();
    }
    for path in old.iter().chain(&kept[1..]) {
        fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    let table = open(&url).await;
    assert_eq!(table.snapshot().rows(), 10);
    assert!(old.iter().all(|path| !path.exists()));
    assert!(kept.iter().all(|path| path.exists()));
}

#[tokio::test]
async fn an_empty_or_torn_last_entry_is_reported_and_never_skipped() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    table.commit(insert(0, rows(0, 10))).await.unwrap();
    let behind = open(&url).await;
    table.commit(insert(0, rows(10, 10))).await.unwrap();
    let last = url.to_file_path().unwrap().join("_delta_log/00000000000000000002.json");
    let whole = fs::read(&last).unwrap();
    let first_line = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for length in [0, first_line, whole.len() / 2, whole.len() - 2] {
        fs::write(&last, &whole[..length]).unwrap();
        for error in [
            ManagedTable::open("t", &url, None).await.err().unwrap(),
            behind.refresh().await.err().unwrap(),
            behind.commit(insert(1, rows(20, 10))).await.err().unwrap(),
        ] {
            let text = error.to_string();
            assert!(text.contains("00000000000000000002.json"), "{length}: {text}");
            assert!(text.contains("damaged"), "{length}: {text}");
        }
    }
    fs::write(&last, &whole).unwrap();
    assert_eq!(behind.refresh().await.unwrap().rows(), 20);
}

#[tokio::test]
async fn a_hole_in_the_log_is_reported() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    for part in 0..3 {
        table.commit(insert(0, rows(part * 10, 10))).await.unwrap();
    }
    let log = url.to_file_path().unwrap().join("_delta_log");
    fs::remove_file(log.join("00000000000000000002.json")).unwrap();
    let error = ManagedTable::open("t", &url, None).await.unwrap_err();
    let StoreError::Corrupt { path, .. } = &error else { panic!("{error}") };
    assert!(path.ends_with("00000000000000000002.json"), "{error}");
}

#[tokio::test]
async fn a_damaged_checkpoint_does_not_matter_while_the_log_is_whole() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    for part in 0..3 {
        table.commit(insert(0, rows(part * 10, 10))).await.unwrap();
    }
    table.checkpoint().await.unwrap();
    let log = url.to_file_path().unwrap().join("_delta_log");
    let checkpoint = log.join("00000000000000000003.checkpoint.parquet");
    let bytes = fs::read(&checkpoint).unwrap();
    fs::write(&checkpoint, &bytes[..bytes.len() / 2]).unwrap();
    let table = open(&url).await;
    assert_eq!(ids_in(&table, &table.snapshot()).await, each_once(0..30));
}

#[tokio::test]
async fn a_file_that_is_gone_is_named() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    let committed = table.commit(insert(3, rows(0, 10))).await.unwrap();
    fs::remove_dir_all(url.to_file_path().unwrap().join("_partition=3")).unwrap();
    let error = table.read(&committed.added[0].0, None).await.err().unwrap();
    let StoreError::Missing { path } = &error else { panic!("{error}") };
    assert!(path.starts_with("_partition=3/"), "{error}");
}

#[tokio::test]
async fn a_table_is_created_once_and_opened_only_if_it_is_there() {
    let (_folder, url) = folder();
    let error = ManagedTable::open("t", &url, None).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-15", "{error}");
    create(&url).await;
    let error = ManagedTable::create("t", &url, None, schema(), hashed(4)).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-14", "{error}");
}

#[tokio::test]
async fn a_delta_table_of_somebody_else_is_not_taken_for_ours() {
    let (_folder, url) = folder();
    fs::create_dir_all(url.to_file_path().unwrap()).unwrap();
    let builder = deltalake_core::DeltaTableBuilder::from_url(url.clone()).unwrap();
    builder.build().unwrap().write(vec![rows(0, 10)]).await.unwrap();
    let error = ManagedTable::open("t", &url, None).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-8", "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writers_that_create_one_object_exactly_one_wins_and_its_bytes_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = Durable::new();
    let root = Path::from_absolute_path(folder.path()).unwrap();
    for key in 0..50 {
        let path = root.clone().join("a").join(format!("k{key}"));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let (store, path) = (store.clone(), path.clone());
            writers.spawn(async move {
                let bytes = format!("{writer}").into_bytes();
                let options = PutOptions::from(PutMode::Create);
                (writer, store.put_opts(&path, bytes.into(), options).await)
            });
        }
        let mut winners = vec![];
        while let Some(ended) = writers.join_next().await {
            match ended.unwrap() {
                (writer, Ok(_)) => winners.push(writer),
                (_, Err(Error::AlreadyExists { .. })) => {}
                (_, Err(error)) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1);
        let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(bytes, format!("{}", winners[0]).into_bytes());
    }
    let left = fs::read_dir(folder.path().join("a")).unwrap().count();
    assert_eq!(left, 50, "temporary files stay behind");
}

#[tokio::test]
async fn an_upload_in_parts_and_an_overwrite_leave_whole_files() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(Durable::new());
    let path = Path::from_absolute_path(folder.path()).unwrap().join("deep").join("file");
    let mut upload = store.put_multipart(&path).await.unwrap();
    upload.put_part(vec![1; 1_000].into()).await.unwrap();
    upload.put_part(vec![2; 10].into()).await.unwrap();
    upload.complete().await.unwrap();
    assert_eq!(store.head(&path).await.unwrap().size, 1_010);
    store.put(&path, vec![3; 7].into()).await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), vec![3; 7]);
    let update = PutMode::Update(object_store::UpdateVersion { e_tag: None, version: None });
    let error = store.put_opts(&path, vec![4].into(), update.into()).await.unwrap_err();
    assert!(matches!(error, Error::NotImplemented { .. }), "{error}");
}
