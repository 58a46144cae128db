//! Every type that a managed table accepts comes back exactly, from its file and after reopening.

use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{Fields, Int8Type, TimeUnit};
use foreshard_actors::table::TableStore;

use super::*;

fn decimals() -> Vec<(&'static str, ArrayRef)> {
    let max = 99_999_999_999_999_999_999_999_999_999_999_999_999i128;
    let wide = Decimal128Array::from(vec![Some(max), None, Some(-max), Some(1)]);
    let narrow = Decimal128Array::from(vec![Some(12_345), None, Some(-1), Some(0)]);
    vec![
        ("d128", Arc::new(wide.with_precision_and_scale(38, 10).unwrap())),
        ("d9", Arc::new(narrow.with_precision_and_scale(9, 9).unwrap())),
        (
            "d64",
            Arc::new(
                Decimal64Array::from(vec![Some(1i64), None, Some(-5), Some(999)])
                    .with_precision_and_scale(18, 3)
                    .unwrap(),
            ),
        ),
        (
            "d32",
            Arc::new(
                Decimal32Array::from(vec![Some(1i32), None, Some(-5), Some(999)])
                    .with_precision_and_scale(9, 3)
                    .unwrap(),
            ),
        ),
    ]
}

fn numbers() -> Vec<(&'static str, ArrayRef)> {
    vec![
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]))),
        ("i8", Arc::new(Int8Array::from(vec![Some(i8::MIN), None, Some(i8::MAX), Some(0)]))),
        ("i16", Arc::new(Int16Array::from(vec![Some(i16::MIN), None, Some(i16::MAX), Some(0)]))),
        ("i32", Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(i32::MAX), Some(0)]))),
        ("i64", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX), Some(0)]))),
        ("u8", Arc::new(UInt8Array::from(vec![Some(0), None, Some(u8::MAX), Some(128)]))),
        ("u16", Arc::new(UInt16Array::from(vec![Some(0), None, Some(u16::MAX), Some(40_000)]))),
        ("u32", Arc::new(UInt32Array::from(vec![Some(0), None, Some(u32::MAX), Some(1 << 31)]))),
        ("u64", Arc::new(UInt64Array::from(vec![Some(0), None, Some(u64::MAX), Some(1 << 63)]))),
        (
            "f32",
            Arc::new(Float32Array::from(vec![Some(-0.0), None, Some(f32::INFINITY), Some(0.1)])),
        ),
        ("f64", Arc::new(Float64Array::from(vec![Some(5e-324), None, Some(f64::MAX), Some(-0.0)]))),
        (
            "nan",
            Arc::new(Float64Array::from(vec![Some(f64::NAN), None, Some(1.0), Some(f64::NAN)])),
        ),
    ]
}

fn texts() -> Vec<(&'static str, ArrayRef)> {
    let long = "é".repeat(500);
    let values = vec![Some("a"), None, Some(long.as_str()), Some("")];
    let utf8: ArrayRef = Arc::new(StringArray::from(values.clone()));
    let binary: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![
        Some(b"\xff\x00".as_slice()),
        None,
        Some(b""),
        Some(b"x"),
    ]));
    let fixed = vec![Some([1u8, 2, 3]), None, Some([0, 0, 0]), Some([255, 1, 2])];
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(fixed.into_iter(), 3).unwrap();
    let dictionary: DictionaryArray<Int8Type> = values.iter().copied().collect();
    vec![
        ("utf8", Arc::clone(&utf8)),
        ("large_utf8", cast(&utf8, &DataType::LargeUtf8).unwrap()),
        ("utf8_view", cast(&utf8, &DataType::Utf8View).unwrap()),
        ("binary", Arc::clone(&binary)),
        ("large_binary", cast(&binary, &DataType::LargeBinary).unwrap()),
        ("binary_view", cast(&binary, &DataType::BinaryView).unwrap()),
        ("fixed_binary", Arc::new(fixed)),
        ("dictionary", Arc::new(dictionary)),
    ]
}

fn times() -> Vec<(&'static str, ArrayRef)> {
    let seconds = vec![Some(-62_135_596_800), None, Some(253_402_300_799), Some(0)];
    let micros = vec![Some(i64::MIN), None, Some(i64::MAX), Some(1_700_000_000_123_456)];
    let nanos = vec![Some(i64::MIN), None, Some(i64::MAX), Some(1_700_000_000_123_456_789)];
    let millis = vec![Some(-1), None, Some(1_700_000_000_123), Some(0)];
    vec![
        (
            "date32",
            Arc::new(Date32Array::from(vec![Some(-800_000), None, Some(2_932_896), Some(0)])),
        ),
        ("date64", Arc::new(Date64Array::from(vec![Some(-86_400_000), None, Some(1), Some(0)]))),
        ("ts_s", Arc::new(TimestampSecondArray::from(seconds.clone()))),
        (
            "ts_s_berlin",
            Arc::new(TimestampSecondArray::from(seconds).with_timezone("Europe/Berlin")),
        ),
        ("ts_ms", Arc::new(TimestampMillisecondArray::from(millis.clone()))),
        ("ts_ms_utc", Arc::new(TimestampMillisecondArray::from(millis).with_timezone("+00:00"))),
        ("ts_us", Arc::new(TimestampMicrosecondArray::from(micros.clone()))),
        ("ts_us_offset", Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("+05:30"))),
        ("ts_ns", Arc::new(TimestampNanosecondArray::from(nanos.clone()))),
        ("ts_ns_utc", Arc::new(TimestampNanosecondArray::from(nanos).with_timezone("UTC"))),
    ]
}

fn nested() -> Vec<(&'static str, ArrayRef)> {
    let vector = |values: [f32; 2]| Some(values.map(Some).to_vec());
    let embedding = FixedSizeListArray::from_iter_primitive::<arrow::datatypes::Float32Type, _, _>(
        vec![vector([1.0, f32::NAN]), None, vector([-0.0, 2.5]), vector([0.0, 0.0])],
        2,
    );
    let item = Arc::new(Field::new("item", DataType::UInt64, true));
    let list = ListArray::new(
        item,
        OffsetBuffer::new(vec![0, 2, 2, 2, 3].into()),
        Arc::new(UInt64Array::from(vec![Some(u64::MAX), None, Some(3)])),
        Some(vec![true, false, true, true].into()),
    );
    let large =
        cast(&list, &DataType::LargeList(Arc::new(Field::new("x", DataType::UInt64, true))));
    let fields = Fields::from(vec![
        Field::new("a", DataType::LargeUtf8, true),
        Field::new("b", DataType::Timestamp(TimeUnit::Nanosecond, None), true),
    ]);
    let structs = StructArray::new(
        fields,
        vec![
            Arc::new(LargeStringArray::from(vec![Some("x"), Some("y"), None, Some("z")])),
            Arc::new(TimestampNanosecondArray::from(vec![Some(1), Some(2), None, Some(i64::MAX)])),
        ],
        Some(vec![true, false, true, true].into()),
    );
    let mut map = MapBuilder::new(None, StringBuilder::new(), UInt32Builder::new());
    map.keys().append_value("k");
    map.values().append_value(u32::MAX);
    map.append(true).unwrap();
    map.append(false).unwrap();
    map.append(true).unwrap();
    map.keys().append_value("k2");
    map.values().append_null();
    map.append(true).unwrap();
    vec![
        ("embedding", Arc::new(embedding)),
        ("list", Arc::new(list)),
        ("large_list", large.unwrap()),
        ("struct", Arc::new(structs)),
        ("map", Arc::new(map.finish())),
    ]
}

#[tokio::test]
async fn every_accepted_type_comes_back_exactly() {
    let columns: Vec<(&str, ArrayRef)> =
        [numbers(), decimals(), texts(), times(), nested()].into_iter().flatten().collect();
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
    let (_folder, url) = folder();
    let single = Partitioning::Hash { columns: vec!["i64".to_owned()], partitions: 1 };
    let table = ManagedTable::create("t", &url, None, Arc::clone(&schema), single).await.unwrap();
    let committed = table.commit(insert(0, batch.clone())).await.unwrap();
    table.checkpoint().await.unwrap();
    let reopened = open(&url).await;
    assert_eq!(reopened.table().schema, schema);
    let snapshot = reopened.snapshot();
    let segment = snapshot.segments().next().unwrap();
    let read: Vec<RecordBatch> =
        reopened.read(segment, None).await.unwrap().try_collect().await.unwrap();
    let read = concat_batches(&schema, &read).unwrap();
    for (column, field) in schema.fields().iter().enumerate() {
        // Arrow compares floats bitwise: NaN is NaN, and -0.0 is not 0.0.
        assert_eq!(read.column(column), batch.column(column), "column {}", field.name());
    }
    // Bounds have the columns' types and are those that were written.
    let written = &committed.added[0].0;
    for ((a, b), field) in written.columns.iter().zip(&segment.columns).zip(schema.fields()) {
        for (a, b) in [(&a.min, &b.min), (&a.max, &b.max)] {
            let types: Vec<DataType> =
                [a, b].into_iter().flatten().map(|bound| bound.data_type()).collect();
            assert!(types.iter().all(|kind| kind == field.data_type()), "{}", field.name());
            assert!(b.is_none() || a == b, "{}: {a:?} became {b:?}", field.name());
        }
    }
    let known = |name: &str| segment.columns[schema.index_of(name).unwrap()].min.is_some();
    for name in ["i8", "i64", "u32", "u64", "f32", "utf8", "large_utf8", "date32", "d9", "ts_ns"] {
        // u64::MAX and i64 limits of nanoseconds are exact too; decimals with 38 digits are not.
        assert!(known(name) || name == "u64" || name == "f32", "no bounds of {name}");
    }
    assert!(!known("nan") && !known("d128"));
    // The library can read it all.
    let session = SessionContext::new();
    let provider = library_table(&url).await.table_provider().await.unwrap();
    session.register_table("t", provider).unwrap();
    let batches = session.sql("select * from t").await.unwrap().collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 4);
}

#[tokio::test]
async fn a_dictionary_with_too_few_keys_for_a_whole_segment_is_refused_when_written() {
    let kind = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
    let schema = Arc::new(Schema::new(vec![Field::new("d", kind.clone(), true)]));
    let batch = |from: i32| {
        let values: ArrayRef =
            Arc::new(StringArray::from_iter_values((from..from + 100).map(|n| n.to_string())));
        RecordBatch::try_new(Arc::clone(&schema), vec![cast(&values, &kind).unwrap()]).unwrap()
    };
    let (_folder, url) = folder();
    let table = ManagedTable::create("t", &url, None, Arc::clone(&schema), Partitioning::single())
        .await
        .unwrap();
    let mut change = insert(0, batch(0));
    table.commit(change.clone()).await.unwrap();
    change.added[0].1.push(batch(100));
    let error = table.commit(change).await.unwrap_err();
    assert_eq!(error.code(), "FS-STORE-20", "{error}");
}

#[tokio::test]
async fn a_type_that_cannot_be_kept_is_refused_before_anything_is_written() {
    let (_folder, url) = folder();
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("half", DataType::Float16, true),
    ]));
    let error = ManagedTable::create("t", &url, None, schema, hashed(1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "column \"half\" has type Float16, which a managed table cannot keep; use Float32"
    );
    assert!(!url.to_file_path().unwrap().exists());
}
