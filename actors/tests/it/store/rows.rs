//! What is written is what is read: resident, from the file, and in the eyes of other readers.

use arrow::array::Array;
use arrow::compute::concat_batches;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use foreshard_actors::segment::ColumnRange;
use foreshard_actors::table::TableStore;

use super::*;

async fn read_all(
    store: &dyn TableStore,
    segment: &foreshard_actors::segment::Segment,
    projection: Option<&[usize]>,
) -> RecordBatch {
    let stream = store.read(segment, projection).await.unwrap();
    let schema = stream.schema();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    concat_batches(&schema, &batches).unwrap()
}

#[tokio::test]
async fn a_commit_hands_its_rows_back_and_one_file_per_entry_is_one_segment() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    let empty = rows(0, 0);
    let change = Change {
        operation: Operation::Insert,
        removed: vec![],
        added: vec![
            (0, vec![rows(0, 10), empty.clone(), rows(10, 5)]),
            (3, vec![rows(15, 5)]),
            (2, vec![empty]),
        ],
        layout: None,
        transaction: None,
    };
    let committed = table.commit(change).await.unwrap();
    assert_eq!(committed.snapshot.version, 1);
    let placed: Vec<_> =
        committed.added.iter().map(|(segment, _)| (segment.partition, segment.rows)).collect();
    assert_eq!(placed, [(0, 15), (3, 5)]);
    for (segment, resident) in &committed.added {
        let resident = concat_batches(&schema(), resident.iter()).unwrap();
        assert_eq!(read_all(&table, segment, None).await, resident);
        assert!(segment.bytes > 0);
    }
    assert_eq!(committed.snapshot.partitions[2].len(), 0);
    assert_eq!(ids_of_library(&url).await, each_once(0..20));
}

#[tokio::test]
async fn a_projection_keeps_its_order_and_an_empty_one_keeps_the_row_count() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    let committed = table.commit(insert(1, rows(0, 20_000))).await.unwrap();
    let segment = &committed.added[0].0;
    let projected = read_all(&table, segment, Some(&[2, 0])).await;
    assert_eq!(projected, rows(0, 20_000).project(&[2, 0]).unwrap());
    let stream = table.read(segment, Some(&[])).await.unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    let counts: Vec<usize> = batches.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(counts, [8_192, 8_192, 3_616]);
}

#[tokio::test]
async fn an_empty_change_writes_nothing() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    assert_eq!(table.commit(insert(0, rows(0, 0))).await.unwrap().snapshot.version, 0);
}

#[tokio::test]
async fn rows_of_another_shape_and_partitions_that_do_not_exist_are_refused() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    let error = table.commit(insert(4, rows(0, 1))).await.unwrap_err();
    assert_eq!(error.to_string(), "partition 4 of table \"t\" does not exist; it has 4");
    let narrow = rows(0, 1).project(&[0, 1]).unwrap();
    let error = table.commit(insert(0, narrow)).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-9", "{error}");
    let nulls = RecordBatch::try_new(
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
            Field::new("v", DataType::Float64, true),
        ])),
        vec![
            Arc::new(Int64Array::from(vec![None])),
            Arc::new(StringArray::from(vec!["a"])),
            Arc::new(Float64Array::from(vec![1.0])),
        ],
    )
    .unwrap();
    let error = table.commit(insert(0, nulls)).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-20", "{error}");
    assert_eq!(table.refresh().await.unwrap().version, 0);
}

#[tokio::test]
async fn a_file_with_nan_has_no_float_bounds_anywhere_and_answers_do_not_depend_on_it() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    let values = Float64Array::from(vec![Some(1.0), Some(f64::NAN), None, Some(2.0)]);
    let batch = RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
            Arc::new(StringArray::from(vec!["a", "b", "c", "d"])),
            Arc::new(values),
        ],
    )
    .unwrap();
    let committed = table.commit(insert(0, batch.clone())).await.unwrap();
    let bounds = |columns: &[ColumnRange]| {
        assert_eq!(columns[0].min, Some(ScalarValue::Int64(Some(1))));
        assert_eq!(columns[0].max, Some(ScalarValue::Int64(Some(4))));
        assert_eq!(columns[1].max, Some(ScalarValue::from("d")));
        assert_eq!(columns[2], ColumnRange { min: None, max: None, nulls: Some(1) });
    };
    bounds(&committed.added[0].0.columns);
    let reopened = open(&url).await;
    bounds(&reopened.snapshot().segments().next().unwrap().columns);

    // Resident rows, the bare file, and the table through the library must agree.
    let session = SessionContext::new();
    let resident = MemTable::try_new(schema(), vec![vec![batch]]).unwrap();
    session.register_table("resident", Arc::new(resident)).unwrap();
    let provider = library_table(&url).await.table_provider().await.unwrap();
    session.register_table("delta", provider).unwrap();
    let file = std::fs::read_dir(url.to_file_path().unwrap().join("_partition=0")).unwrap();
    let file = file.map(|entry| entry.unwrap().path()).next().unwrap();
    let file = file.to_str().unwrap();
    session.register_parquet("file", file, Default::default()).await.unwrap();
    for query in [
        "select max(v), min(v), count(v) from",
        "select count(*) from TABLE where v > 100",
        "select count(*) from TABLE where v = 'NaN'::double",
        "select count(*) from TABLE where v <> 1",
        "select count(*) from TABLE where isnan(v)",
    ] {
        let mut answers = vec![];
        for name in ["resident", "file", "delta"] {
            let sql = match query.contains("TABLE") {
                true => query.replace("TABLE", name),
                false => format!("{query} {name}"),
            };
            let batches = session.sql(&sql).await.unwrap().collect().await.unwrap();
            let answer = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
            let values = answer.lines().nth(3).unwrap().split_whitespace();
            answers.push(values.collect::<Vec<_>>().join(" "));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{query}: {answers:?}");
    }
}

#[tokio::test]
async fn two_tables_do_not_share_segment_ids() {
    let ((_a, first), (_b, second)) = (folder(), folder());
    let mut seen = std::collections::HashSet::new();
    for url in [&first, &second] {
        let table = create(url).await;
        for part in 0..3 {
            let committed = table.commit(insert(0, rows(part, 1))).await.unwrap();
            assert!(seen.insert(only(&committed)));
        }
        assert_eq!(ids(&open(url).await.snapshot()), ids(&table.snapshot()));
    }
}

#[tokio::test]
async fn a_rewrite_is_marked_as_changing_no_data() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    let segment = only(&table.commit(insert(0, rows(0, 10))).await.unwrap());
    table.commit(rewrite(&[segment], vec![(0, vec![rows(0, 10)])])).await.unwrap();
    let log = url.to_file_path().unwrap().join("_delta_log");
    let entry = |version: u64| std::fs::read_to_string(log.join(format!("{version:020}.json")));
    assert_eq!(entry(1).unwrap().matches("\"dataChange\":true").count(), 1);
    assert_eq!(entry(2).unwrap().matches("\"dataChange\":false").count(), 2);
    // The library shows what we did.
    let library = library_table(&url).await;
    let mut history = library.history(None);
    let newest = history.try_next().await.unwrap().unwrap();
    assert_eq!(newest.operation.as_deref(), Some("OPTIMIZE"));
}

#[tokio::test]
async fn a_snapshot_that_is_held_reads_on_through_rewrites() {
    let (_folder, url) = folder();
    let table = create(&url).await;
    let first = table.commit(insert(0, rows(0, 10))).await.unwrap();
    table.commit(delete(vec![only(&first)])).await.unwrap();
    assert_eq!(table.snapshot().rows(), 0);
    assert_eq!(ids_in(&table, &first.snapshot).await, each_once(0..10));
    assert!(first.added[0].1[0].column(0).len() == 10);
}
