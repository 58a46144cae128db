//! The functions that are called, the rows that they are called on, and what a row of each costs here.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::ports::SharedClock;
use foreshard_udfs::{Card, CostClass, Functions, registered};

use super::stage::{TABLE, name, row_ns_wanted};
use crate::posts::{Column, Posts};

/// Words of a text, and of what it is compared with.
const WORDS: usize = 6;

/// Candidates of a function that is measured, and how often.
const CANDIDATES_MEASURED: usize = 40;
const TIMES_MEASURED: usize = 30;

/// `best_match_score` of the library with candidates of its own: the more of them, the dearer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Similar {
    name: String,
    inner: Arc<ScalarUDF>,
    candidates: ScalarValue,
    signature: Signature,
}

impl Similar {
    fn new(place: usize, candidates: &str) -> Result<Self> {
        let library = Functions::library();
        let best = library.get("best_match_score").context("it is in the library")?;
        let inner = registered(&best).context("every function of the library is one")?.inner();
        Ok(Self {
            name: name(place),
            inner: Arc::clone(inner),
            candidates: ScalarValue::from(candidates),
            signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable),
        })
    }
}

impl ScalarUDFImpl for Similar {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> datafusion::common::Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(
        &self,
        mut call: ScalarFunctionArgs,
    ) -> datafusion::common::Result<ColumnarValue> {
        call.args.push(ColumnarValue::Scalar(self.candidates.clone()));
        call.arg_fields.push(Arc::new(Field::new("candidates", DataType::Utf8, true)));
        self.inner.invoke_with_args(call)
    }
}

/// The rows of the table: each partition gets so many a minute.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) partitions: usize,
    pub(crate) each: usize,
    texts: Posts,
}

impl Rows {
    pub(crate) fn new(partitions: usize, each: usize, seed: u64) -> Self {
        let texts = Posts { seed, words: WORDS, rows_a_day: 1, columns: vec![Column::Body] };
        Self { partitions, each, texts }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("row_id", DataType::Int64, false),
            Field::new("region", DataType::Int32, false),
            Field::new("minute", DataType::Int32, false),
            Field::new("text", DataType::Utf8, false),
        ]))
    }

    pub(crate) fn partitioning(&self) -> Partitioning {
        let bounds = (1..self.partitions).map(|bound| bound.to_string()).collect();
        Partitioning::Range { column: "region".to_owned(), bounds }
    }

    /// The rows of a minute; the first one is the first after those that are there when play begins.
    pub(crate) fn minute(&self, minute: i32) -> Result<RecordBatch> {
        let count = self.partitions * self.each;
        // There are no more than so many minutes before the first.
        let first = (i64::from(minute) + 1_000) * count as i64;
        let ids = first..first + count as i64;
        let texts = self.texts.batches(ids.clone())?;
        let texts = texts.first().context("a minute has rows")?.column(0).clone();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(ids.clone())),
            Arc::new(Int32Array::from_iter_values(
                ids.map(|id| (id % self.partitions as i64) as i32),
            )),
            Arc::new(Int32Array::from_value(minute, count)),
            texts,
        ];
        Ok(RecordBatch::try_new(self.schema(), columns)?)
    }
}

/// A function with what a row of it costs.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) card: Card,
    pub(crate) udf: ScalarUDF,
    /// Nanoseconds of a row, measured just now.
    pub(crate) row_ns: f64,
}

/// So many functions, from the cheapest to the dearest, each measured on calls of a few rows as they are
/// computed later.
///
/// # Errors
/// A function that fails.
pub(crate) fn functions(count: usize, rows: &Rows, clock: &SharedClock) -> Result<Vec<Function>> {
    let batch = rows.minute(0)?.slice(0, rows.each);
    let measured = |place: usize, candidates: usize| -> Result<(ScalarUDF, f64)> {
        // Other candidates for each: no two functions give the same answers.
        let texts = Posts { seed: rows.texts.seed + place as u64, ..rows.texts.clone() };
        let texts = texts.candidates(candidates, WORDS);
        let udf = ScalarUDF::from(Similar::new(place, &texts)?);
        let mut times: Vec<u64> = Vec::with_capacity(TIMES_MEASURED);
        for _ in 0..TIMES_MEASURED {
            let start = clock.monotonic_ns();
            udf.invoke_with_args(arguments(&batch))?;
            times.push(clock.monotonic_ns().saturating_sub(start));
        }
        times.sort_unstable();
        Ok((udf, times[TIMES_MEASURED / 2] as f64 / rows.each as f64))
    };
    let per_candidate = measured(0, CANDIDATES_MEASURED)?.1 / CANDIDATES_MEASURED as f64;
    row_ns_wanted(count)
        .into_iter()
        .enumerate()
        .map(|(place, wanted)| {
            let candidates = ((wanted / per_candidate).round() as usize).max(1);
            let (udf, row_ns) = measured(place, candidates)?;
            let card = Card::immutable(
                name(place),
                candidates.to_string(),
                CostClass::of_ns_per_row(wanted as u64),
                "How similar the most similar candidate is.",
                format!("SELECT {}('text')", name(place)),
            );
            Ok(Function { card, udf, row_ns })
        })
        .collect()
}

fn arguments(batch: &RecordBatch) -> ScalarFunctionArgs {
    ScalarFunctionArgs {
        args: vec![ColumnarValue::Array(Arc::clone(batch.column(3)))],
        arg_fields: vec![Arc::new(batch.schema().field(3).clone())],
        number_rows: batch.num_rows(),
        return_field: Arc::new(Field::new("score", DataType::Float64, true)),
        config_options: Arc::new(ConfigOptions::default()),
    }
}

/// Asks for a function on the rows of a partition of the last minutes up to `minute`.
pub(crate) fn sql(function: usize, partition: usize, minute: i32, window: usize) -> String {
    let name = name(function);
    let before = i64::from(minute) - window as i64;
    format!(
        "SELECT row_id, {name}(text) AS score FROM {TABLE} \
         WHERE region = {partition} AND minute > {before} AND minute <= {minute}"
    )
}

/// What a row of an answer adds to its checksum.
pub(crate) fn fingerprint(id: Option<i64>, score: Option<f64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (id, score.map(f64::to_bits)).hash(&mut hasher);
    hasher.finish() | 1
}

/// The same for all arms, whatever the order of the rows.
pub(crate) fn checksum(batches: &[RecordBatch]) -> Result<u64> {
    use arrow::array::AsArray;
    use arrow::datatypes::{Float64Type, Int64Type};
    let mut sum = 0_u64;
    for batch in batches {
        let ids = batch.column(0).as_primitive_opt::<Int64Type>().context("row_id is Int64")?;
        let scores = batch.column(1).as_primitive_opt::<Float64Type>().context("a score")?;
        let rows = ids.iter().zip(scores.iter());
        sum = rows.fold(sum, |sum, (id, score)| sum.wrapping_add(fingerprint(id, score)));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use foreshard_actors::ports::SystemClock;

    use super::*;
    use crate::replay::load::VARIANTS;

    #[test]
    fn dearer_functions_have_more_candidates_and_other_rows_other_answers() {
        let rows = Rows::new(3, 4, 1);
        let clock: SharedClock = Arc::new(SystemClock);
        let functions = functions(2 * VARIANTS, &rows, &clock).unwrap();
        let versions: Vec<u64> =
            functions.iter().map(|function| function.card.version.parse().unwrap()).collect();
        assert_eq!(versions[0], versions[VARIANTS - 1]);
        assert!(versions[0] < versions[VARIANTS], "{versions:?}");
        assert_ne!(rows.minute(0).unwrap(), rows.minute(1).unwrap());
        let texts = rows.minute(5).unwrap();
        let texts: std::collections::HashSet<_> =
            texts["text"].as_string::<i32>().iter().flatten().map(str::to_owned).collect();
        assert_eq!(texts.len(), 12);
    }
}
