//! The fixed tables that differential tests run on: every kind of value that has ever made two
//! engines disagree, in segments of uneven size.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
    RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One table: its rows come in segments, the first one at creation, the others by appends.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its name.
    pub name: &'static str,
    /// Column that partitions are made by.
    pub key: &'static str,
    /// Its columns.
    pub schema: SchemaRef,
    /// Its rows, segment by segment.
    pub segments: Vec<RecordBatch>,
}

const WORDS: &[&str] = &[
    "",
    " ",
    "a",
    "A",
    "apple",
    "Apple",
    "naïve café",
    "NAÏVE CAFÉ",
    "日本語テキスト",
    "Ünïcode 🎉",
    "O'Hara",
    "100%",
    "a_b",
    "smith",
    "Smyth",
    "SMITH",
    "robert",
    "rupert",
    "ashcraft",
    "tymczak",
    "order 4711 shipped",
    "order 0013 lost",
    "This is a wonderful product, I love it!",
    "Terrible. It broke on the first day and I hate it.",
    "Das ist ein ganz gewöhnlicher Satz auf Deutsch.",
    "Ceci est une phrase tout à fait ordinaire en français.",
    "https://example.com/path?q=1#top",
    "http://user@host.org:8080/a/b",
    "null",
    "NaN",
    "\ttabbed\n",
    "the quick brown fox jumps over the lazy dog",
];

const DIMENSION_ROWS: usize = 48;
const FACT_SEGMENTS: [usize; 6] = [600, 1, 370, 640, 260, 129];
const NOTE_SEGMENTS: [usize; 3] = [300, 90, 210];
/// As large as each other: then nothing but its name tells one from another.
const TWIN_SEGMENTS: [usize; 3] = [100, 100, 100];

/// The tables `fact`, `dim`, `note` and the empty table `void`.
///
/// # Errors
/// None that Arrow does not make.
pub fn samples(seed: u64) -> Result<Vec<Sample>> {
    let mut rng = StdRng::seed_from_u64(seed);
    Ok(vec![fact(&mut rng)?, dim(&mut rng)?, note(&mut rng)?, void()])
}

fn fact(rng: &mut StdRng) -> Result<Sample> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("k", DataType::Int32, true),
        Field::new("n", DataType::Int64, true),
        Field::new("f", DataType::Float64, true),
        Field::new("t", DataType::Utf8, true),
        Field::new("d", DataType::Date32, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("b", DataType::Boolean, true),
        Field::new("m", DataType::Decimal128(12, 2), true),
    ]));
    let mut next_id = 0;
    let segments = FACT_SEGMENTS
        .iter()
        .map(|&rows| {
            let ids = Int64Array::from_iter_values(next_id..next_id + rows as i64);
            next_id += rows as i64;
            let columns: Vec<ArrayRef> = vec![
                Arc::new(ids),
                Arc::new(
                    some(rng, rows, 0.05, |rng| rng.random_range(0..60)).collect::<Int32Array>(),
                ),
                Arc::new(
                    some(rng, rows, 0.08, |rng| rng.random_range(-40_i64..=40))
                        .collect::<Int64Array>(),
                ),
                Arc::new(some(rng, rows, 0.05, float).collect::<Float64Array>()),
                Arc::new(some(rng, rows, 0.06, word).collect::<StringArray>()),
                Arc::new(
                    some(rng, rows, 0.05, |rng| 19_716 + rng.random_range(0..75))
                        .collect::<Date32Array>(),
                ),
                Arc::new(some(rng, rows, 0.05, time).collect::<TimestampMicrosecondArray>()),
                Arc::new(
                    some(rng, rows, 0.1, |rng| rng.random_bool(0.5)).collect::<BooleanArray>(),
                ),
                Arc::new(decimals(rng, rows)?),
            ];
            Ok(RecordBatch::try_new(schema.clone(), columns)?)
        })
        .collect::<Result<_>>()?;
    Ok(Sample { name: "fact", key: "id", schema, segments })
}

fn dim(rng: &mut StdRng) -> Result<Sample> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int32, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("lat", DataType::Float64, false),
        Field::new("lon", DataType::Float64, false),
        Field::new("flag", DataType::Boolean, true),
    ]));
    let rows = DIMENSION_ROWS;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(0..rows as i32)),
        Arc::new(some(rng, rows, 0.1, word).collect::<StringArray>()),
        Arc::new(Float64Array::from_iter_values(
            (0..rows).map(|_| f64::from(rng.random_range(-640..640)) / 8.0),
        )),
        Arc::new(Float64Array::from_iter_values(
            (0..rows).map(|_| f64::from(rng.random_range(-1_400..1_400)) / 8.0),
        )),
        Arc::new(some(rng, rows, 0.2, |rng| rng.random_bool(0.4)).collect::<BooleanArray>()),
    ];
    let segments = vec![RecordBatch::try_new(schema.clone(), columns)?];
    Ok(Sample { name: "dim", key: "k", schema, segments })
}

fn note(rng: &mut StdRng) -> Result<Sample> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("fact_id", DataType::Int64, true),
        Field::new("w", DataType::Int32, true),
        Field::new("body", DataType::Utf8, false),
        Field::new("score", DataType::Float64, true),
    ]));
    let mut next_id = 0;
    let segments = NOTE_SEGMENTS
        .iter()
        .map(|&rows| {
            let ids = Int64Array::from_iter_values(next_id..next_id + rows as i64);
            next_id += rows as i64;
            let columns: Vec<ArrayRef> = vec![
                Arc::new(ids),
                Arc::new(
                    some(rng, rows, 0.1, |rng| rng.random_range(0..2_500_i64))
                        .collect::<Int64Array>(),
                ),
                Arc::new(
                    some(rng, rows, 0.1, |rng| rng.random_range(-5..60)).collect::<Int32Array>(),
                ),
                Arc::new(StringArray::from_iter_values((0..rows).map(|_| word(rng)))),
                Arc::new(some(rng, rows, 0.1, float).collect::<Float64Array>()),
            ];
            Ok(RecordBatch::try_new(schema.clone(), columns)?)
        })
        .collect::<Result<_>>()?;
    Ok(Sample { name: "note", key: "fact_id", schema, segments })
}

/// A table with columns of the names, places and types that `fact` has, and others: what is stored for one
/// must not be taken for the other's. Its `"K"` is the `k` of `fact` but for the case.
///
/// # Errors
/// None that Arrow does not make.
pub fn twin(seed: u64) -> Result<Sample> {
    let rng = &mut StdRng::seed_from_u64(seed);
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("K", DataType::Int64, true),
        Field::new("n", DataType::Int64, true),
        Field::new("f", DataType::Float64, true),
        Field::new("t", DataType::Utf8, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
    ]));
    let mut next_id = 0;
    let segments = TWIN_SEGMENTS
        .iter()
        .map(|&rows| {
            let ids = Int64Array::from_iter_values(next_id..next_id + rows as i64);
            next_id += rows as i64;
            let number = |rng: &mut StdRng| rng.random_range(-20_i64..=20);
            let zeros = |rng: &mut StdRng| if rng.random_bool(0.3) { -0.0 } else { float(rng) };
            let columns: Vec<ArrayRef> = vec![
                Arc::new(ids),
                Arc::new(some(rng, rows, 0.05, number).collect::<Int64Array>()),
                Arc::new(some(rng, rows, 0.08, number).collect::<Int64Array>()),
                Arc::new(some(rng, rows, 0.05, zeros).collect::<Float64Array>()),
                Arc::new(some(rng, rows, 0.06, word).collect::<StringArray>()),
                Arc::new(some(rng, rows, 0.05, time).collect::<TimestampMicrosecondArray>()),
            ];
            Ok(RecordBatch::try_new(schema.clone(), columns)?)
        })
        .collect::<Result<_>>()?;
    Ok(Sample { name: "twin", key: "id", schema, segments })
}

fn void() -> Sample {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("t", DataType::Utf8, true),
        Field::new("f", DataType::Float64, true),
    ]));
    Sample {
        name: "void",
        key: "id",
        segments: vec![RecordBatch::new_empty(schema.clone())],
        schema,
    }
}

/// `rows` values of which a share of `nulls` is missing.
fn some<T>(
    rng: &mut StdRng,
    rows: usize,
    nulls: f64,
    mut value: impl FnMut(&mut StdRng) -> T,
) -> std::vec::IntoIter<Option<T>> {
    let values: Vec<_> = (0..rows).map(|_| (!rng.random_bool(nulls)).then(|| value(rng))).collect();
    values.into_iter()
}

/// A multiple of 1/8, so that sums are exact in any order; now and then NaN, 0.0 or -0.0.
fn float(rng: &mut StdRng) -> f64 {
    match rng.random_range(0..100) {
        0..3 => f64::NAN,
        3..5 => -0.0,
        5..7 => 0.0,
        _ => f64::from(rng.random_range(-8_000..8_000)) / 8.0,
    }
}

/// Microseconds of a time around the beginning of 2024.
fn time(rng: &mut StdRng) -> i64 {
    1_703_462_400_000_000 + rng.random_range(0..6_000_000) * 1_000_037
}

fn word(rng: &mut StdRng) -> String {
    let word = WORDS[rng.random_range(0..WORDS.len())];
    if rng.random_bool(0.25) { format!("{word} {}", rng.random_range(0..20)) } else { word.into() }
}

fn decimals(rng: &mut StdRng, rows: usize) -> Result<Decimal128Array, ArrowError> {
    some(rng, rows, 0.05, |rng| i128::from(rng.random_range(-99_999..=999_999)))
        .collect::<Decimal128Array>()
        .with_precision_and_scale(12, 2)
}
