//! Tables against their promises: nothing acknowledged is lost, no row is doubled, whatever fails.

mod commits;
mod crashes;
mod faulty;
mod memory;
mod parquet_files;
mod partitions;
mod rows;
mod types;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::execution::context::SessionContext;
use deltalake_core::{DeltaTable, DeltaTableBuilder};
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::store::{ManagedTable, StoreError};
use foreshard_actors::table::{Change, Committed, Operation, Snapshot, TableStore};
use foreshard_policy::ids::SegmentId;
use futures::TryStreamExt;
use tempfile::TempDir;
use url::Url;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("v", DataType::Float64, true),
    ]))
}

/// `count` rows whose ids begin at `from`.
fn rows(from: i64, count: i64) -> RecordBatch {
    let ids: Vec<i64> = (from..from + count).collect();
    let names: Vec<Option<String>> =
        ids.iter().map(|id| (id % 7 != 0).then(|| format!("n{id}"))).collect();
    let values: Vec<f64> = ids.iter().map(|id| *id as f64 / 2.0).collect();
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(Int64Array::from(ids)),
            Arc::new(StringArray::from(names)),
            Arc::new(Float64Array::from(values)),
        ],
    )
    .unwrap()
}

fn hashed(partitions: u32) -> Partitioning {
    Partitioning::Hash { columns: vec!["id".to_owned()], partitions }
}

fn folder() -> (TempDir, Url) {
    let folder = tempfile::tempdir().unwrap();
    let url = Url::from_directory_path(folder.path().join("t")).unwrap();
    (folder, url)
}

async fn create(url: &Url) -> ManagedTable {
    ManagedTable::create("t", url, None, schema(), hashed(4)).await.unwrap()
}

async fn open(url: &Url) -> ManagedTable {
    ManagedTable::open("t", url, None).await.unwrap()
}

fn insert(partition: u32, batch: RecordBatch) -> Change {
    Change {
        operation: Operation::Insert,
        removed: vec![],
        added: vec![(partition, vec![batch])],
        layout: None,
        transaction: None,
    }
}

fn named(mut change: Change, application: &str, sequence: i64) -> Change {
    change.transaction = Some((application.to_owned(), sequence));
    change
}

fn rewrite(removed: &[SegmentId], added: Vec<(u32, Vec<RecordBatch>)>) -> Change {
    let removed = removed.to_vec();
    Change { operation: Operation::Rewrite, removed, added, layout: None, transaction: None }
}

fn delete(removed: Vec<SegmentId>) -> Change {
    Change { operation: Operation::Delete, removed, added: vec![], layout: None, transaction: None }
}

fn ids(snapshot: &Snapshot) -> Vec<SegmentId> {
    snapshot.segments().map(|segment| segment.id).collect()
}

fn only(committed: &Committed) -> SegmentId {
    assert_eq!(committed.added.len(), 1);
    committed.added[0].0.id
}

/// How often each id is there, read through the store from a snapshot.
async fn ids_in(store: &dyn TableStore, snapshot: &Snapshot) -> BTreeMap<i64, usize> {
    let mut found = BTreeMap::new();
    for segment in snapshot.segments() {
        let batches: Vec<RecordBatch> =
            store.read(segment, Some(&[0])).await.unwrap().try_collect().await.unwrap();
        for batch in &batches {
            for id in batch.column(0).as_primitive::<Int64Type>().values() {
                *found.entry(*id).or_default() += 1;
            }
        }
    }
    found
}

fn each_once(range: std::ops::Range<i64>) -> BTreeMap<i64, usize> {
    range.map(|id| (id, 1)).collect()
}

/// The table as the Delta library has it.
async fn library_table(url: &Url) -> DeltaTable {
    let mut table = DeltaTableBuilder::from_url(url.clone()).unwrap().build().unwrap();
    table.load().await.unwrap();
    table
}

/// How often each id is there in the eyes of the Delta library and DataFusion.
async fn ids_of_library(url: &Url) -> BTreeMap<i64, usize> {
    let session = SessionContext::new();
    let provider = library_table(url).await.table_provider().await.unwrap();
    session.register_table("t", provider).unwrap();
    let counts = session.sql("select id, count(*) from t group by id").await.unwrap();
    let mut found = BTreeMap::new();
    for batch in counts.collect().await.unwrap() {
        let (ids, counts) = (
            batch.column(0).as_primitive::<Int64Type>(),
            batch.column(1).as_primitive::<Int64Type>(),
        );
        for (id, count) in ids.values().iter().zip(counts.values()) {
            found.insert(*id, usize::try_from(*count).unwrap());
        }
    }
    found
}

fn is_gone(error: &StoreError) -> bool {
    error.code() == "FS-STORE-1" && error.is_retryable()
}
