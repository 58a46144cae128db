//! The databases that records are put to: plain DataFusion, the same over rearranged rows, and ours.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use datafusion::common::internal_datafusion_err;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SessionConfig, SessionContext};
use foreshard::{Config, Engine, EngineError, Session};
use futures::{FutureExt, TryStreamExt};
use sqllogictest::{AsyncDB, DBOutput};

use super::values::{Letter, letters, rows};

/// Partitions of a query's operators, as in the reference runner.
const OPERATOR_PARTITIONS: usize = 4;

/// Partitions of each table of ours, dealt out to as many nodes as [`NODES`].
const TABLE_PARTITIONS: &str = "3";

const NODES: &str = "2";

/// A record that takes longer hangs.
const RECORD_TIME_MAX: Duration = Duration::from_secs(30);

/// Code of an error that none of the engines gave.
pub(super) const BROKEN: &str = "PANIC-OR-HANG";

/// Why a statement failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The code that the engine gives, or would give, to such an error.
    pub(super) code: &'static str,
    /// Its text.
    pub(super) text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        let text = format!("DataFusion error: {}", error.strip_backtrace());
        Self { code: EngineError::from_datafusion(error).code(), text }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self { code: error.code(), text: error.to_string() }
    }
}

/// Rows with their schema.
type Answer = (SchemaRef, Vec<RecordBatch>);

/// In which order the tables of plain DataFusion hold their rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrangement {
    /// As they came.
    AsTheyCame,
    /// Sorted by all columns, ascending.
    Ascending,
    /// Sorted by all columns, descending.
    Descending,
}

/// A database under test. Clones share everything.
#[derive(Clone, Debug)]
pub(super) struct Database {
    side: Side,
    last: Arc<Mutex<Option<Failure>>>,
}

#[derive(Clone)]
enum Side {
    Plain(SessionContext, Arrangement),
    Ours(Engine, Session),
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(..) => "plain DataFusion",
            Self::Ours(..) => "Foreshard",
        })
    }
}

impl Database {
    /// Plain DataFusion as the reference runner sets it up.
    pub(super) fn plain(arrangement: Arrangement) -> Self {
        let config = SessionConfig::new().with_target_partitions(OPERATOR_PARTITIONS);
        Self::of(Side::Plain(SessionContext::new_with_config(config), arrangement))
    }

    /// An engine of ours that stores whatever it may, in a data folder of its own.
    pub(super) async fn ours(data_folder: &Path) -> Result<Self> {
        let mut config = Config::default();
        for (key, value) in [
            ("data-dir", data_folder.display().to_string()),
            ("nodes", NODES.to_owned()),
            ("partitions", OPERATOR_PARTITIONS.to_string()),
            ("table-partitions", TABLE_PARTITIONS.to_owned()),
            ("limits.query-seconds", RECORD_TIME_MAX.as_secs().to_string()),
            ("loop.mode", "reactive".to_owned()),
            ("loop.precompute.min-ns-per-row", "0".to_owned()),
        ] {
            config = config.set(key, &value)?;
        }
        let engine = Engine::builder().config(config).manual_ticks(true).start().await?;
        let session = engine.session();
        // Ours has it from the start, plain has not, and the files begin with what plain has.
        drop(session.sql("SET datafusion.catalog.information_schema = false").await?);
        Ok(Self::of(Side::Ours(engine, session)))
    }

    fn of(side: Side) -> Self {
        Self { side, last: Arc::default() }
    }

    /// Whether rows come in the order in which the reference runner gets them.
    pub(super) fn keeps_order(&self) -> bool {
        matches!(self.side, Side::Plain(_, Arrangement::AsTheyCame))
    }

    /// Whether a query that is put again is answered from what was stored.
    pub(super) fn stores(&self) -> bool {
        matches!(self.side, Side::Ours(..))
    }

    /// What the last statement failed with.
    pub(super) fn last_failure(&self) -> Option<Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops an engine of ours.
    pub(super) async fn stop(self) {
        if let Side::Ours(engine, _) = self.side {
            // A file's answers are in; an engine that does not stop goes with its threads.
            drop(tokio::time::timeout(RECORD_TIME_MAX, engine.shutdown()).await);
        }
    }

    async fn answer(&self, sql: &str) -> Result<DBOutput<Letter>, Failure> {
        let (schema, batches) = match &self.side {
            Side::Plain(context, arrangement) => plain(context, *arrangement, sql).await?,
            Side::Ours(_, session) => ours(session, sql).await?,
        };
        let mut all = vec![];
        for batch in &batches {
            if !schema.contains(&batch.schema()) {
                let (schema, found) = (&schema, batch.schema());
                return Err(internal_datafusion_err!("{found:?} instead of {schema:?}").into());
            }
            all.extend(rows(batch).map_err(DataFusionError::from)?);
        }
        let types = letters(&schema);
        Ok(match (all.is_empty(), types.is_empty()) {
            (true, true) => DBOutput::StatementComplete(0),
            _ => DBOutput::Rows { types, rows: all },
        })
    }
}

#[async_trait]
impl AsyncDB for Database {
    type Error = Failure;
    type ColumnType = Letter;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Letter>, Failure> {
        let broken = |text| Failure { code: BROKEN, text };
        let asked = AssertUnwindSafe(tokio::time::timeout(RECORD_TIME_MAX, self.answer(sql)));
        let answer = match asked.catch_unwind().await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_elapsed)) => Err(broken(format!("no answer within {RECORD_TIME_MAX:?}"))),
            Err(panic) => Err(broken(format!("panic: {}", words(panic.as_ref())))),
        };
        let failure = answer.as_ref().err().cloned();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        answer
    }

    async fn shutdown(&mut self) {}

    async fn sleep(duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

async fn plain(
    context: &SessionContext,
    arrangement: Arrangement,
    sql: &str,
) -> Result<Answer, DataFusionError> {
    let frame = context.sql(sql).await?;
    let tasks = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    let schema = plan.schema();
    let batches = execute_stream(plan, tasks)?.try_collect().await?;
    if arrangement != Arrangement::AsTheyCame && !super::judge::manner(sql).repeatable {
        rearrange(context, arrangement).await?;
    }
    Ok((schema, batches))
}

async fn ours(session: &Session, sql: &str) -> Result<Answer, EngineError> {
    let stream = session.sql(sql).await?;
    Ok((stream.schema(), stream.collect().await?))
}

/// Sorts the rows of all tables in memory, so that answers show whether they depend on their order.
async fn rearrange(
    context: &SessionContext,
    arrangement: Arrangement,
) -> Result<(), DataFusionError> {
    for catalog in context.catalog_names().iter().filter_map(|name| context.catalog(name)) {
        for schema in catalog.schema_names().iter().filter_map(|name| catalog.schema(name)) {
            for name in schema.table_names() {
                let table = schema.table(&name).await?;
                let Some(table) = table.as_ref().and_then(|table| table.downcast_ref::<MemTable>())
                else {
                    continue;
                };
                for part in &table.batches {
                    let mut batches = part.write().await;
                    if let Some(sorted) = sorted(&batches, arrangement)? {
                        *batches = vec![sorted];
                    }
                }
            }
        }
    }
    Ok(())
}

/// `None` if there is nothing to sort, or no order of the values.
fn sorted(
    batches: &[RecordBatch],
    arrangement: Arrangement,
) -> Result<Option<RecordBatch>, DataFusionError> {
    let Some(first) = batches.first() else { return Ok(None) };
    let all = concat_batches(&first.schema(), batches)?;
    let fields = all.columns().iter().map(|column| SortField::new(column.data_type().clone()));
    let Ok(converter) = RowConverter::new(fields.collect()) else { return Ok(None) };
    let Ok(keys) = converter.convert_columns(all.columns()) else { return Ok(None) };
    let mut positions: Vec<u32> = (0..).take(all.num_rows()).collect();
    positions.sort_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize)));
    if arrangement == Arrangement::Descending {
        positions.reverse();
    }
    Ok(Some(take_record_batch(&all, &UInt32Array::from(positions))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a test on a thread whose stack is large enough to plan queries in a debug build.
    fn run(test: impl Future<Output = ()> + Send + 'static) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_stack_size(32 << 20)
            .build()
            .unwrap();
        let task = runtime.spawn(test);
        runtime.block_on(task).unwrap();
    }

    async fn text(database: &mut Database, sql: &str) -> String {
        match database.run(sql).await {
            Ok(DBOutput::Rows { rows, .. }) => rows.concat().join(" "),
            Ok(_) => "done".to_owned(),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn rearranged_rows_come_in_another_order() {
        run(async {
            let arranged =
                [Arrangement::AsTheyCame, Arrangement::Ascending, Arrangement::Descending];
            for (arrangement, expected) in arranged.into_iter().zip(["2 1 3", "1 2 3", "3 2 1"]) {
                let mut database = Database::plain(arrangement);
                text(&mut database, "CREATE TABLE t AS VALUES (2), (1)").await;
                text(&mut database, "INSERT INTO t VALUES (3)").await;
                assert_eq!(text(&mut database, "SELECT * FROM t").await, expected);
            }
        });
    }

    #[test]
    fn tables_of_ours_are_in_partitions_and_errors_have_the_code_that_plain_errors_would_have() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let mut ours = Database::ours(folder.path()).await.unwrap();
            text(&mut ours, "CREATE TABLE t (k INT, v TEXT) AS VALUES (2, 'b'), (1, 'a')").await;
            text(&mut ours, "INSERT INTO t VALUES (3, 'c')").await;
            assert_eq!(text(&mut ours, "SELECT * FROM t ORDER BY k").await, "1 a 2 b 3 c");
            let partitions = "SELECT count(*) FROM system.partitions";
            assert_eq!(text(&mut ours, partitions).await, "3");
            let mut plain = Database::plain(Arrangement::AsTheyCame);
            for database in [&mut ours, &mut plain] {
                text(database, "SELECT * FROM u").await;
                assert_eq!(database.last_failure().unwrap().code, "FS-SQL-2");
            }
            ours.stop().await;
        });
    }
}
