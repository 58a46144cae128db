//! Tables over Parquet files that exist already.

use std::fs;
use std::path::Path;

use datafusion::common::ScalarValue;
use foreshard_actors::store::{ParquetTable, StoreError};
use foreshard_actors::table::TableStore;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::*;

fn write(path: &Path, batch: &RecordBatch, rows_per_group: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(rows_per_group)).build();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

async fn open_files(path: &Path, partitions: u32) -> Result<ParquetTable, StoreError> {
    let url = match path.is_dir() {
        true => Url::from_directory_path(path),
        false => Url::from_file_path(path),
    };
    ParquetTable::open("f", &url.unwrap(), None, partitions).await
}

#[tokio::test]
async fn each_row_group_is_a_segment_dealt_out_in_the_order_of_files() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("b/2.parquet"), &rows(100, 50), 1_000);
    write(&folder.path().join("a/1.parquet"), &rows(0, 100), 40);
    write(&folder.path().join("_hidden/3.parquet"), &rows(0, 1), 1);
    fs::write(folder.path().join("notes.txt"), "no table").unwrap();
    let table = open_files(folder.path(), 3).await.unwrap();
    let snapshot = table.snapshot();
    let sizes: Vec<Vec<u64>> = snapshot
        .partitions
        .iter()
        .map(|partition| partition.iter().map(|segment| segment.rows).collect())
        .collect();
    assert_eq!(sizes, [vec![40, 50], vec![40], vec![20]]);
    assert_eq!(ids_in(&table, &snapshot).await, each_once(0..150));
    let first = &snapshot.partitions[0][0];
    assert_eq!(first.columns[0].min, Some(ScalarValue::Int64(Some(0))));
    assert_eq!(first.columns[0].max, Some(ScalarValue::Int64(Some(39))));
    assert_eq!(first.columns[2].min, None, "floats of foreign files have no bounds");
    let error = table.commit(insert(0, rows(0, 1))).await.unwrap_err();
    assert_eq!(error.to_string(), "table \"f\" is read-only");
}

#[tokio::test]
async fn one_file_is_a_table_and_ids_are_the_same_for_every_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one.parquet");
    write(&path, &rows(0, 100), 30);
    let (a, b) = (open_files(&path, 2).await.unwrap(), open_files(&path, 2).await.unwrap());
    assert_eq!(ids(&a.snapshot()), ids(&b.snapshot()));
    assert_eq!(ids_in(&a, &b.snapshot()).await, each_once(0..100));
    assert_eq!(a.refresh().await.unwrap().version, 0);
}

#[tokio::test]
async fn a_file_that_changes_under_a_pinned_snapshot_gives_an_error_and_not_its_new_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    write(&path, &rows(100, 100), 1_000);
    let size = fs::metadata(&path).unwrap().len();
    let table = open_files(folder.path(), 1).await.unwrap();
    let pinned = table.snapshot();
    let segment = pinned.segments().next().unwrap();
    // Rows of the same shape, so that the size does not give it away.
    write(&path, &rows(800, 100), 1_000);
    assert_eq!(fs::metadata(&path).unwrap().len(), size);
    // With the footer remembered or not, refreshed or not.
    for _ in 0..2 {
        let stream = table.read(segment, None).await;
        let error = match stream {
            Ok(stream) => stream.try_collect::<Vec<_>>().await.unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("x.parquet") && error.contains("was changed"), "{error}");
        let snapshot = table.refresh().await.unwrap();
        assert_eq!(ids_in(&table, &snapshot).await, each_once(800..900));
    }
}

#[tokio::test]
async fn new_and_removed_files_are_seen_at_the_next_refresh() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("1.parquet"), &rows(0, 10), 100);
    write(&folder.path().join("2.parquet"), &rows(10, 10), 100);
    let table = open_files(folder.path(), 2).await.unwrap();
    fs::remove_file(folder.path().join("1.parquet")).unwrap();
    write(&folder.path().join("3.parquet"), &rows(20, 10), 100);
    assert_eq!(table.snapshot().rows(), 20);
    let snapshot = table.refresh().await.unwrap();
    assert_eq!(snapshot.version, 1);
    assert_eq!(ids_in(&table, &snapshot).await, each_once(10..30));
}

#[tokio::test]
async fn a_bad_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("1.parquet");
    write(&good, &rows(0, 1_000), 100);
    let bytes = fs::read(&good).unwrap();
    let bad = folder.path().join("2.parquet");
    let truncated = bytes[..bytes.len() / 2].to_vec();
    for content in [truncated, b"this is no Parquet file at all".to_vec(), vec![], b"PAR1".to_vec()]
    {
        fs::write(&bad, &content).unwrap();
        let error = open_files(folder.path(), 1).await.unwrap_err();
        let StoreError::Corrupt { path, .. } = &error else { panic!("{error}") };
        assert_eq!(path, "2.parquet", "{error}");
    }
    let other = rows(0, 10).project(&[0, 2]).unwrap();
    write(&bad, &other, 100);
    let error = open_files(folder.path(), 1).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"2.parquet\" has column \"v Float64\"; expected column \"name Utf8\" as in the first file"
    );
}

#[tokio::test]
async fn a_folder_that_is_not_there_or_empty_is_no_table() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("nothing")] {
        let error = open_files(&path, 1).await.unwrap_err();
        assert_eq!(error.code(), "FS-STORE-15", "{error}");
    }
}
