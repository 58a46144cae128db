//! The rows that the demo plays on and the function expressions over them.
//!
//! Every table has the columns `row_id` and `region` before its own text (or number) columns, and is
//! partitioned by region. Rows that are appended during the day come from the same source; a source
//! that runs out starts again with new row ids.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, UInt64Array,
};
use arrow::compute::{cast, concat_batches, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use foreshard_actors::partitioning::Partitioning;

use super::error::DemoError;
use super::schedule::REGIONS;
use crate::workload::tpch;

/// Rows of one source that are read at most.
const ROWS_MAX: usize = 20_000;
/// Expressions over the tables of a world at most.
const EXPRESSIONS_MAX: usize = 8;
/// Characters of a candidate of `best_match`.
const CANDIDATE_CHARS: usize = 40;

/// A function with its further arguments.
#[derive(Clone, Copy, Debug)]
enum Call {
    /// How friendly or hostile the text is.
    Sentiment,
    /// The language that the text is written in.
    Language,
    /// The most similar of so many texts of the same column.
    BestMatch(usize),
    /// How similar the most similar of so many texts is.
    BestMatchScore(usize),
}

/// What is called on a column if nobody says otherwise.
const CALLS: [Call; 4] =
    [Call::BestMatch(100), Call::Language, Call::BestMatchScore(40), Call::Sentiment];

/// One table: its source rows without `row_id` and `region`.
#[derive(Clone, Debug)]
pub struct Table {
    /// Name in SQL.
    pub name: String,
    rows: RecordBatch,
}

impl Table {
    /// Schema with `row_id` and `region`.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        let own = self.rows.schema();
        let mut fields: Vec<Arc<Field>> = vec![
            Arc::new(Field::new("row_id", DataType::Int64, false)),
            Arc::new(Field::new("region", DataType::Int32, false)),
        ];
        fields.extend(own.fields().iter().cloned());
        Arc::new(Schema::new(fields))
    }

    /// One partition per region.
    #[must_use]
    pub fn partitioning() -> Partitioning {
        let bounds = (1..REGIONS).map(|bound| bound.to_string()).collect();
        Partitioning::Range { column: "region".to_owned(), bounds }
    }

    /// The rows with ids from `first`, `count` of them, dealt out evenly over the regions.
    ///
    /// # Errors
    /// [`DemoError::Rows`] if Arrow cannot take them.
    pub fn batch(&self, first: usize, count: usize) -> Result<RecordBatch, DemoError> {
        let ids = first..first + count;
        let source = self.rows.num_rows() as u64;
        let at: UInt64Array = ids.clone().map(|id| id as u64 % source).collect();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(ids.clone().map(|id| id as i64).collect::<Int64Array>()),
            Arc::new(ids.map(|id| id as i32 % REGIONS as i32).collect::<Int32Array>()),
        ];
        for column in self.rows.columns() {
            columns.push(take(column, &at, None)?);
        }
        Ok(RecordBatch::try_new(self.schema(), columns)?)
    }
}

/// A function called on a column of a table.
#[derive(Clone, Debug)]
pub struct Expression {
    /// Position of the table.
    pub table: usize,
    /// For people: function, table and column.
    pub label: String,
    /// As it stands in a query.
    pub sql: String,
}

/// Tables and what is called on them.
#[derive(Clone, Debug)]
pub struct World {
    /// Where the rows come from, in words.
    pub source: String,
    /// The tables.
    pub tables: Vec<Table>,
    /// What is called on them.
    pub expressions: Vec<Expression>,
}

impl World {
    /// Comments and names of generated TPC-H data.
    ///
    /// # Errors
    /// [`DemoError::Rows`] if Arrow cannot bring them into shape.
    pub fn tpch() -> Result<Self, DemoError> {
        use Call::{BestMatch, BestMatchScore, Language};
        let plan: [(&str, &str, &[Call]); 3] = [
            ("customer", "c_comment", &[Language, BestMatch(60), BestMatchScore(30)]),
            ("orders", "o_comment", &[Language, BestMatch(100)]),
            ("part", "p_name", &[BestMatch(120), BestMatchScore(60), Language]),
        ];
        let generated = tpch::tables(0.05);
        let mut world = Self { source: "TPC-H".to_owned(), tables: vec![], expressions: vec![] };
        for (name, column, calls) in plan {
            let found = generated.iter().find(|(table, ..)| *table == name);
            let (schema, batches) = found
                .map(|(_, schema, batches)| (schema.clone(), batches.as_slice()))
                .unwrap_or((Arc::new(Schema::empty()), &[]));
            let rows = concat_batches(&schema, batches)?;
            let rows = rows.slice(0, rows.num_rows().min(ROWS_MAX));
            let rows = rows.project(&[schema.index_of(column)?])?;
            world.add(name, rows, |_| calls)?;
        }
        Ok(world)
    }

    /// Rows of a Parquet file, or of all Parquet files of a folder, that the user names.
    ///
    /// # Errors
    /// [`DemoError::Data`] if it cannot be read, [`DemoError::NoColumns`] if no column is text or float.
    pub async fn parquet(path: &Path) -> Result<Self, DemoError> {
        let failed = |reason: String| DemoError::Data { path: path.to_owned(), reason };
        if !path.exists() {
            return Err(failed("there is no such file or folder".to_owned()));
        }
        let session = SessionContext::new();
        let location = path.to_string_lossy();
        let frame = session.read_parquet(location.as_ref(), ParquetReadOptions::default()).await;
        let frame = frame.and_then(|frame| frame.limit(0, Some(ROWS_MAX)));
        let frame = frame.map_err(|error| failed(error.strip_backtrace()))?;
        let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
        let batches = frame.collect().await.map_err(|error| failed(error.strip_backtrace()))?;
        let rows = concat_batches(&schema, &batches)?;
        if rows.num_rows() == 0 {
            return Err(failed("it holds no rows".to_owned()));
        }
        let chosen = callable_columns(&rows)?;
        if chosen.is_empty() {
            let name = |field: &Arc<Field>| format!("{} ({})", field.name(), field.data_type());
            let columns = schema.fields().iter().map(name).collect::<Vec<_>>().join(", ");
            return Err(DemoError::NoColumns { path: path.to_owned(), columns });
        }
        let rows = renamed(&rows.project(&chosen)?)?;
        let mut world =
            Self { source: path.display().to_string(), tables: vec![], expressions: vec![] };
        let calls_each = EXPRESSIONS_MAX.div_ceil(chosen.len()).min(CALLS.len());
        world.add(&table_name(path), rows, |_| &CALLS[..calls_each])?;
        world.expressions.truncate(EXPRESSIONS_MAX);
        Ok(world)
    }

    fn add<'a>(
        &mut self,
        name: &str,
        rows: RecordBatch,
        calls: impl Fn(usize) -> &'a [Call],
    ) -> Result<(), DemoError> {
        let table = self.tables.len();
        for (position, field) in rows.schema().fields().iter().enumerate() {
            let column = quoted(field.name());
            let text = if is_text(field.data_type()) {
                column
            } else {
                format!("CAST({column} AS VARCHAR)")
            };
            for call in calls(position) {
                let (function, sql) = written(*call, &text, rows.column(position))?;
                let label = format!("{function}({name}.{})", field.name());
                self.expressions.push(Expression { table, label, sql });
            }
        }
        self.tables.push(Table { name: name.to_owned(), rows });
        Ok(())
    }
}

/// The call as SQL over the column `text`, and the name of its function.
fn written(call: Call, text: &str, values: &ArrayRef) -> Result<(String, String), DemoError> {
    Ok(match call {
        Call::Sentiment => ("sentiment".into(), format!("sentiment({text})")),
        Call::Language => ("language".into(), format!("language({text})")),
        Call::BestMatch(count) => (
            format!("best of {count} matches"),
            format!("best_match({text}, '{}')", candidates(values, count)?),
        ),
        Call::BestMatchScore(count) => (
            format!("score of the best of {count} matches"),
            format!("best_match_score({text}, '{}')", candidates(values, count)?),
        ),
    })
}

/// The first `count` different texts of a column, separated by `|`.
fn candidates(values: &ArrayRef, count: usize) -> Result<String, DemoError> {
    let values = cast(values, &DataType::Utf8)?;
    let texts = values.as_any().downcast_ref::<StringArray>();
    let mut found: Vec<String> = Vec::new();
    for text in texts.into_iter().flatten().flatten() {
        let plain = |c: &char| !matches!(c, '|' | '\'' | '\\') && !c.is_control();
        let text: String = text.chars().filter(plain).take(CANDIDATE_CHARS).collect();
        if !text.trim().is_empty() && !found.contains(&text) {
            found.push(text);
        }
        if found.len() == count {
            break;
        }
    }
    Ok(found.join("|"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Columns to call functions on, the longest texts first; floats only where there is no text.
fn callable_columns(rows: &RecordBatch) -> Result<Vec<usize>, DemoError> {
    let schema = rows.schema();
    let mut texts = Vec::new();
    let mut floats = Vec::new();
    for (position, field) in schema.fields().iter().enumerate() {
        if is_text(field.data_type()) {
            let values = cast(rows.column(position), &DataType::Utf8)?;
            let texts_held = values.as_any().downcast_ref::<StringArray>();
            let chars: usize = texts_held.into_iter().flatten().flatten().map(str::len).sum();
            if chars > 0 {
                texts.push((chars, position));
            }
        } else if field.data_type().is_floating() {
            let values = cast(rows.column(position), &DataType::Float64)?;
            let known = values.as_any().downcast_ref::<Float64Array>();
            if known.is_some_and(|known| known.null_count() < known.len()) {
                floats.push(position);
            }
        }
    }
    texts.sort_by_key(|(chars, _)| std::cmp::Reverse(*chars));
    let texts: Vec<usize> = texts.into_iter().map(|(_, position)| position).take(3).collect();
    Ok(if texts.is_empty() { floats.into_iter().take(3).collect() } else { texts })
}

/// The same rows; columns that have the names of ours are called otherwise.
fn renamed(rows: &RecordBatch) -> Result<RecordBatch, DemoError> {
    let ours = |name: &str| ["row_id", "region"].iter().any(|own| name.eq_ignore_ascii_case(own));
    let schema = rows.schema();
    let fields = schema.fields().iter().map(|field| {
        let name = field.name();
        let name = if ours(name) { format!("{name}_text") } else { name.clone() };
        Field::new(name, field.data_type().clone(), true)
    });
    let fields: Vec<Field> = fields.collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), rows.columns().to_vec())?)
}

/// A plain SQL name from the name of a file or folder.
fn table_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    match name.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => name,
        _ => format!("data_{name}"),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int8Array;
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn written_file(folder: &Path, columns: Vec<(&str, ArrayRef)>) -> std::path::PathBuf {
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let path = folder.join("my notes.parquet");
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        path
    }

    #[test]
    fn tpch_has_three_tables_and_eight_expressions() {
        let world = World::tpch().unwrap();
        let names: Vec<_> = world.tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["customer", "orders", "part"]);
        assert_eq!(world.expressions.len(), EXPRESSIONS_MAX);
        assert!(world.tables.iter().all(|table| table.rows.num_rows() >= 7_500));
    }

    #[test]
    fn rows_are_dealt_out_evenly_and_start_again_with_new_ids() {
        let rows = RecordBatch::try_from_iter([(
            "note",
            Arc::new(StringArray::from(vec!["a", "b", "c"])) as ArrayRef,
        )])
        .unwrap();
        let table = Table { name: "notes".into(), rows };
        let batch = table.batch(6, 10).unwrap();
        let ids = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().clone();
        assert_eq!(ids.values(), &[6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let regions = batch.column(1).as_any().downcast_ref::<Int32Array>().unwrap().clone();
        let expected: Vec<i32> = (6..16).map(|id| id % REGIONS as i32).collect();
        assert_eq!(regions.values(), &expected);
        let notes = batch.column(2).as_any().downcast_ref::<StringArray>().unwrap();
        assert_eq!((notes.value(0), notes.value(1), notes.value(3)), ("a", "b", "a"));
    }

    #[tokio::test]
    async fn text_columns_of_the_users_parquet_are_found_and_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = written_file(
            folder.path(),
            vec![
                ("Region", Arc::new(StringArray::from(vec!["it's|north", "south"])) as ArrayRef),
                ("price", Arc::new(Float64Array::from(vec![1.5, 2.5]))),
            ],
        );
        let world = World::parquet(&path).await.unwrap();
        assert_eq!(world.tables[0].name, "my_notes");
        assert_eq!(world.expressions.len(), 4);
        let best = &world.expressions[0].sql;
        assert_eq!(best, "best_match(\"Region_text\", 'itsnorth|south')");
    }

    #[tokio::test]
    async fn floats_are_called_as_text_where_there_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let price = Arc::new(Float64Array::from(vec![1.5, 2.5])) as ArrayRef;
        let path = written_file(folder.path(), vec![("price", price)]);
        let world = World::parquet(&path).await.unwrap();
        assert_eq!(world.expressions[1].sql, "language(CAST(\"price\" AS VARCHAR))");
    }

    #[tokio::test]
    async fn data_without_text_or_floats_is_refused_with_their_columns() {
        let folder = tempfile::tempdir().unwrap();
        let size = Arc::new(Int8Array::from(vec![1, 2])) as ArrayRef;
        let path = written_file(folder.path(), vec![("size", size)]);
        let error = World::parquet(&path).await.unwrap_err();
        assert_eq!(error.code(), "FS-DEMO-2");
        assert!(error.to_string().ends_with("its columns are size (Int8)"), "{error}");
        let error = World::parquet(Path::new("/no/such.parquet")).await.unwrap_err();
        assert_eq!(error.code(), "FS-DEMO-1");
        assert!(error.to_string().contains("there is no such file or folder"), "{error}");
    }
}
