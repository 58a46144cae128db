//! Engines of several shapes over the same tables.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Result;
use arrow::array::RecordBatch;
use foreshard::{Config, Engine, Session};
use foreshard_actors::partitioning::Partitioning;
use futures::FutureExt;
use parquet::arrow::ArrowWriter;

use crate::exact::data::Sample;
use crate::exact::functions::made_for_tests;
use crate::exact::oracle::{Answer, Rows};

/// Partitions of each table and nodes of each set-up.
pub const SHAPES: [(u32, u32); 6] = [(1, 1), (2, 1), (7, 1), (1, 3), (2, 3), (7, 3)];

/// A query that takes longer than this hangs.
const QUERY_TIME_MAX: Duration = Duration::from_secs(120);

/// An engine whose loop turns only when told to, with the functions made for tests.
#[derive(Debug)]
pub struct Started {
    /// The engine.
    pub engine: Engine,
    /// Rows that `counted` was evaluated on.
    pub counted: Arc<AtomicU64>,
    /// Its data folder, which goes when this goes.
    pub folder: tempfile::TempDir,
}

/// An engine with its tables.
#[derive(Debug)]
pub struct Setup {
    /// What it is, in words.
    pub name: String,
    /// The engine and its folder.
    pub started: Started,
}

/// Starts an engine of `nodes` nodes that stores the outputs of functions however cheap they are.
///
/// # Errors
/// What the engine says.
pub async fn engine(nodes: u32, mode: &str) -> Result<Started> {
    engine_with(nodes, mode, &[]).await
}

/// As [`engine`], with more settings.
///
/// # Errors
/// What the engine says.
pub async fn engine_with(nodes: u32, mode: &str, settings: &[(&str, &str)]) -> Result<Started> {
    let folder = tempfile::tempdir()?;
    let mut config = Config::default()
        .with_nodes(nodes)
        .and_then(|config| config.with_partitions(2))
        .and_then(|config| config.with_data_dir(folder.path().to_owned()))
        .and_then(|config| config.set("loop.mode", mode))
        .and_then(|config| config.set("loop.precompute.min-ns-per-row", "0"))?;
    for (key, value) in settings {
        config = config.set(key, value)?;
    }
    let (functions, counted) = made_for_tests();
    let mut builder = Engine::builder().config(config).manual_ticks(true);
    for (card, udf) in functions {
        builder = builder.function(card, udf);
    }
    Ok(Started { engine: builder.start().await?, counted, folder })
}

/// Starts an engine of one of the [`SHAPES`] with `tables`, segment by segment: in memory, or, with 7
/// partitions, in managed tables and (those of one segment) in Parquet files.
///
/// # Errors
/// What the engine or the disk says.
pub async fn start(shape: (u32, u32), tables: &[Sample]) -> Result<Setup> {
    start_with(shape, tables, &[]).await
}

/// As [`start`], with more settings.
///
/// # Errors
/// What the engine or the disk says.
pub async fn start_with(
    shape: (u32, u32),
    tables: &[Sample],
    settings: &[(&str, &str)],
) -> Result<Setup> {
    let (partitions, nodes) = shape;
    let mode = if nodes == 1 { "reactive" } else { "forecast" };
    let started = engine_with(nodes, mode, settings).await?;
    let is_on_disk = partitions == 7;
    for table in tables {
        let partitioning = Partitioning::Hash { columns: vec![table.key.to_owned()], partitions };
        let (name, schema) = (table.name, Arc::clone(&table.schema));
        let Started { engine, folder, .. } = &started;
        let folder = folder.path().join(name);
        let url = format!("file://{}", folder.display());
        let mut segments = table.segments.clone();
        if is_on_disk && segments.len() == 1 {
            std::fs::create_dir(&folder)?;
            write_parquet(&folder.join("rows.parquet"), &segments.remove(0))?;
            engine.open_parquet_table(name, &url, partitions).await?;
        } else if is_on_disk {
            engine.create_managed_table(name, &url, schema, partitioning).await?;
        } else {
            let first = vec![segments.remove(0)];
            engine.create_memory_table(name, schema, partitioning, first).await?;
        }
        for segment in segments {
            engine.append(name, vec![segment]).await?;
        }
    }
    let place = if is_on_disk { "on disk" } else { "in memory" };
    Ok(Setup { name: format!("{partitions} partitions {place} on {nodes} nodes, {mode}"), started })
}

fn write_parquet(path: &Path, rows: &RecordBatch) -> Result<()> {
    let file = std::fs::File::create(path)?;
    let mut writer = ArrowWriter::try_new(file, rows.schema(), None)?;
    writer.write(rows)?;
    writer.close()?;
    Ok(())
}

/// What `engine` answers; a panic and a hang are errors that say so.
pub async fn ask(engine: &Engine, sql: &str) -> Answer {
    ask_in(&engine.session(), sql).await
}

/// As [`ask`], with what was SET in a session.
pub async fn ask_in(session: &Session, sql: &str) -> Answer {
    let asked = AssertUnwindSafe(tokio::time::timeout(QUERY_TIME_MAX, run(session, sql)));
    match asked.catch_unwind().await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(format!("HANGS: no answer within {QUERY_TIME_MAX:?}")),
        Err(panic) => Err(format!("PANICS: {:?}", panic.downcast_ref::<String>())),
    }
}

async fn run(session: &Session, sql: &str) -> Answer {
    let failed = |error: foreshard::EngineError| format!("{}: {error}", error.code());
    let stream = session.sql(sql).await.map_err(failed)?;
    let schema = stream.schema();
    let batches = stream.collect().await.map_err(failed)?;
    Ok(Rows { schema, batches })
}

/// The physical plan of `sql` in `session`, for a report.
pub async fn plan(session: &Session, sql: &str) -> String {
    let rows = match ask_in(session, &format!("EXPLAIN {sql}")).await {
        Ok(rows) => crate::exact::rows::rows(&rows.batches),
        Err(error) => return format!("no plan: {error}"),
    };
    rows.iter().map(|row| format!("{row:?}\n").replace("\\n", "\n")).collect()
}
