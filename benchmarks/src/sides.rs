//! The two sides of a comparison in one process: an engine, and plain DataFusion with the very same
//! functions over the very same Arrow buffers.
//!
//! The plain side is what a user of DataFusion would write: its functions are the library's own, not
//! guarded, metered or versioned as in the engine. Both have as many partitions and threads, and a
//! table's rows lie in the same batches and partitions on both sides.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::prelude::{SessionConfig, SessionContext};
use foreshard::{Config, Engine, Session};
use foreshard_actors::layout::Layout;
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::ports::SharedClock;
use foreshard_udfs::{Functions, registered};
use tempfile::TempDir;

use crate::answers::same;
use crate::counted::RowCounter;

/// How long nobody asks after an answer: what a query computed is stored meanwhile. Belongs to no
/// side's time.
const THINKING: Duration = Duration::from_millis(50);

/// Memory for segments and stored outputs, and for queries: so much that it decides nothing.
const MEMORY_BYTES: u64 = 6 << 30;

/// An engine and plain DataFusion with the same tables.
pub struct Sides {
    engine: Engine,
    /// The engine as a connection sees it; plain DataFusion keeps its session, too.
    session: Session,
    plain: SessionContext,
    partitions: u32,
    tables: BTreeMap<String, Partitioning>,
    clock: SharedClock,
    ours: RowCounter,
    plains: RowCounter,
    _folder: TempDir,
}

impl fmt::Debug for Sides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sides").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl Sides {
    /// Starts both sides. `settings` are the engine's besides those that make the sides equal;
    /// `counted` names the functions whose rows are counted.
    ///
    /// # Errors
    /// A setting or function that does not exist, or what the engine says.
    pub async fn start(
        clock: &SharedClock,
        settings: &[(&str, &str)],
        counted: &[&str],
    ) -> Result<Self> {
        let partitions = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let folder = tempfile::tempdir()?;
        let (cores, memory) = (partitions.to_string(), MEMORY_BYTES.to_string());
        let data = folder.path().to_string_lossy().into_owned();
        let equal = [
            ("data-dir", data.as_str()),
            ("nodes", "1"),
            ("partitions", cores.as_str()),
            ("loop.allocate.memory-bytes", memory.as_str()),
            // The plain side has no limit.
            ("memory-bytes", memory.as_str()),
            // Every core may compute, as on the plain side; and the engine stays one node.
            ("loop.allocate.cpu-permits", cores.as_str()),
            ("loop.allocate.nodes-max", "1"),
        ];
        let mut config = Config::default();
        for (key, value) in equal.iter().chain(settings) {
            config = config.set(key, value)?;
        }
        let (ours, plains) = (RowCounter::default(), RowCounter::default());
        let mut builder = Engine::builder().config(config);
        let session = SessionConfig::new().with_target_partitions(partitions as usize);
        let plain = SessionContext::new_with_config(session);
        let library = Functions::library();
        for udf in library.scalars() {
            let function = registered(&udf).context("every function of the library is one")?;
            let inner = function.inner();
            if counted.contains(&udf.name()) {
                builder = builder.function(function.card().clone(), ours.count(inner));
                plain.register_udf(plains.count(inner));
            } else {
                plain.register_udf(inner.as_ref().clone());
            }
        }
        for name in counted {
            ensure!(library.get(name).is_some(), "there is no function {name} to count");
        }
        let engine = builder.start().await?;
        let (clock, tables) = (Arc::clone(clock), BTreeMap::new());
        let session = engine.session();
        Ok(Self {
            engine,
            session,
            plain,
            partitions,
            tables,
            clock,
            ours,
            plains,
            _folder: folder,
        })
    }

    /// Makes a table on both sides, spread by the hash of `key` over one partition per core.
    ///
    /// # Errors
    /// What either side says.
    pub async fn add_table(
        &mut self,
        name: &str,
        schema: SchemaRef,
        key: &str,
        batches: Vec<RecordBatch>,
    ) -> Result<()> {
        let (columns, partitions) = (vec![key.to_owned()], self.partitions);
        let partitioning = Partitioning::Hash { columns, partitions };
        self.engine.create_memory_table(name, schema, partitioning.clone(), batches).await?;
        self.tables.insert(name.to_owned(), partitioning);
        self.mirror(name).await
    }

    /// Appends rows on both sides, in one commit.
    ///
    /// # Errors
    /// What either side says.
    pub async fn append(&self, name: &str, batches: Vec<RecordBatch>) -> Result<u64> {
        let rows = self.engine.append(name, batches).await?;
        self.mirror(name).await?;
        Ok(rows)
    }

    /// Gives the plain side the rows that the engine holds now, without a copy: its scan hands out
    /// the buffers themselves.
    ///
    /// # Errors
    /// What either side says.
    pub async fn mirror(&self, name: &str) -> Result<()> {
        let partitioning = self.tables.get(name).with_context(|| format!("no table {name}"))?;
        let mut stream = self.engine.session().sql(&format!("SELECT * FROM {name}")).await?;
        let schema = stream.schema();
        let layout = Layout::new(partitioning);
        let mut partitions = vec![vec![]; self.partitions as usize];
        while let Some(batch) = futures::StreamExt::next(&mut stream).await {
            let batch = batch?;
            let first = layout.deal_out(&batch.slice(0, batch.num_rows().min(1)))?;
            if let Some((ordinal, _)) = first.first() {
                let columns = batch.columns().to_vec();
                let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
                partitions[*ordinal as usize].push(batch);
            }
        }
        self.set_plain_rows(name, Arc::new(MemTable::try_new(schema, partitions)?))
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Throws away what the engine has stored, and checks that nothing is left.
    ///
    /// # Errors
    /// What the engine says, or if something is left.
    pub async fn empty(&self) -> Result<()> {
        self.engine.sql("CALL drop_stored()").await?;
        let bytes = self.stored_bytes().await?;
        ensure!(bytes == 0.0, "{bytes} bytes are still stored");
        Ok(())
    }

    /// Rows that the engine evaluated counted functions on.
    #[must_use]
    pub fn rows_ours(&self) -> u64 {
        self.ours.rows()
    }

    /// Rows that plain DataFusion evaluated counted functions on.
    #[must_use]
    pub fn rows_plain(&self) -> u64 {
        self.plains.rows()
    }

    /// The answer of plain DataFusion.
    ///
    /// # Errors
    /// What DataFusion says.
    pub async fn plain(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        Ok(self.plain.sql(sql).await?.collect().await?)
    }

    /// Asks the engine; gives its answer and the nanoseconds that it took.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn ask_engine(&self, sql: &str) -> Result<(Vec<RecordBatch>, u64)> {
        let start = self.clock.monotonic_ns();
        let answer = self.ours(sql).await.with_context(|| format!("in {sql}"))?;
        Ok((answer, self.clock.monotonic_ns().saturating_sub(start)))
    }

    /// Asks the engine, always in the same session.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn ours(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        Ok(self.session.sql(sql).await?.collect().await?)
    }

    /// Asks plain DataFusion; gives its answer and the nanoseconds that it took.
    ///
    /// # Errors
    /// What DataFusion says.
    pub async fn ask_plain(&self, sql: &str) -> Result<(Vec<RecordBatch>, u64)> {
        let start = self.clock.monotonic_ns();
        let answer = self.plain(sql).await.with_context(|| format!("in plain {sql}"))?;
        Ok((answer, self.clock.monotonic_ns().saturating_sub(start)))
    }

    /// Asks both sides, the engine first in even turns, compares the answers, and gives the
    /// nanoseconds that each side took. After each answer somebody thinks about it: what the engine
    /// does in the background must not run while the other side is timed.
    ///
    /// # Errors
    /// What either side says, or an answer that differs.
    pub async fn ask(&self, sql: &str, turn: usize) -> Result<Asked> {
        let (mut ours, mut plain) = (None, None);
        for arm in crate::arms::order(turn, 2) {
            match arm {
                0 => ours = Some(self.ask_engine(sql).await?),
                _ => plain = Some(self.ask_plain(sql).await?),
            }
            self.think().await;
        }
        let (Some((ours, ours_ns)), Some((plain, plain_ns))) = (ours, plain) else {
            return Err(anyhow!("a side was not asked"));
        };
        same(&ours, &plain).with_context(|| format!("the answers to {sql} differ"))?;
        let rows = plain.iter().map(|batch| batch.num_rows() as u64).sum();
        Ok(Asked { ours_ns, plain_ns, rows })
    }

    /// Waits as long as a person looks at an answer.
    pub async fn think(&self) {
        tokio::time::sleep(THINKING).await;
    }

    /// The rows of a table as the plain side has them now.
    ///
    /// # Errors
    /// If there is no such table.
    pub async fn plain_rows(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        Ok(self.plain.table_provider(name).await?)
    }

    /// Gives the plain side rows that it had before.
    ///
    /// # Errors
    /// If DataFusion does not take them.
    pub fn set_plain_rows(&self, name: &str, rows: Arc<dyn TableProvider>) -> Result<()> {
        self.plain.deregister_table(name)?;
        self.plain.register_table(name, rows)?;
        Ok(())
    }

    /// The one number that the engine answers to `sql`; zero for NULL.
    ///
    /// # Errors
    /// What the engine says, or if the answer is not one number.
    pub async fn number(&self, sql: &str) -> Result<f64> {
        one_number(&self.engine.sql(sql).await?).with_context(|| format!("in {sql}"))
    }

    /// The one number that plain DataFusion answers to `sql`; zero for NULL.
    ///
    /// # Errors
    /// What DataFusion says, or if the answer is not one number.
    pub async fn plain_number(&self, sql: &str) -> Result<f64> {
        one_number(&self.plain(sql).await?).with_context(|| format!("in plain {sql}"))
    }

    /// Bytes that a table's rows take.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn table_bytes(&self, name: &str) -> Result<f64> {
        let sql = "SELECT sum(bytes) FROM system.segments WHERE table_name =";
        self.number(&format!("{sql} '{name}'")).await
    }

    /// Bytes of all that is stored.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn stored_bytes(&self) -> Result<f64> {
        self.number(
            "SELECT sum(bytes) FROM (SELECT bytes FROM system.outputs \
             UNION ALL SELECT bytes FROM system.partials)",
        )
        .await
    }

    /// Stops the engine.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn stop(self) -> Result<()> {
        Ok(self.engine.shutdown().await?)
    }
}

/// One question to both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Time of the engine.
    pub ours_ns: u64,
    /// Time of plain DataFusion.
    pub plain_ns: u64,
    /// Rows of the answer.
    pub rows: u64,
}

fn one_number(answer: &[RecordBatch]) -> Result<f64> {
    let mut rows = answer.iter().filter(|batch| batch.num_rows() > 0);
    let (Some(batch), None) = (rows.next(), rows.next()) else {
        return Err(anyhow!("the answer is not one row"));
    };
    ensure!(batch.num_rows() == 1 && batch.num_columns() == 1, "the answer is not one number");
    let value = cast(batch.column(0), &DataType::Float64)?;
    Ok(value.as_primitive::<Float64Type>().iter().next().flatten().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use foreshard_actors::ports::SystemClock;

    use super::*;

    fn words(first: i64, words: &[&str]) -> RecordBatch {
        let ids = (first..).take(words.len()).collect::<Int64Array>();
        let words = StringArray::from_iter_values(words);
        RecordBatch::try_from_iter([
            ("id", Arc::new(ids) as ArrayRef),
            ("word", Arc::new(words) as ArrayRef),
        ])
        .unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn both_sides_have_the_same_rows_functions_and_answers() {
        let clock: SharedClock = Arc::new(SystemClock);
        let mut sides = Sides::start(&clock, &[("loop.mode", "off")], &["soundex"]).await.unwrap();
        let batch = words(1, &["Robert", "Rupert", "Ann"]);
        sides.add_table("people", batch.schema(), "id", vec![batch]).await.unwrap();
        assert_eq!(sides.append("people", vec![words(4, &["Anne"])]).await.unwrap(), 1);
        let sql = "SELECT soundex(word) AS code, count(*) AS n FROM people GROUP BY 1";
        assert_eq!(sides.ask(sql, 0).await.unwrap().rows, 2);
        assert_eq!((sides.rows_ours(), sides.rows_plain()), (4, 4));
        sides.engine().sql("DELETE FROM people WHERE id = 1").await.unwrap();
        let error = sides.ask(sql, 1).await.unwrap_err();
        assert!(format!("{error:#}").contains("differ"), "{error:#}");
        sides.mirror("people").await.unwrap();
        sides.ask(sql, 1).await.unwrap();
        assert!(sides.table_bytes("people").await.unwrap() > 0.0);
        assert_eq!(sides.stored_bytes().await.unwrap(), 0.0);
        assert_eq!(sides.plain_number("SELECT count(*) FROM people").await.unwrap(), 3.0);
        sides.stop().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_function_that_does_not_exist_is_not_counted_in_silence() {
        let clock: SharedClock = Arc::new(SystemClock);
        let error = Sides::start(&clock, &[], &["sondex"]).await.unwrap_err();
        assert!(error.to_string().contains("no function sondex"), "{error}");
    }
}
