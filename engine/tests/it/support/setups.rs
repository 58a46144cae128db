//! Engines of several shapes over the same tables.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arrow::array::RecordBatch;
use foreshard::{Config, Engine};
use foreshard_actors::partitioning::Partitioning;
use futures::FutureExt;
use parquet::arrow::ArrowWriter;

use super::data::Sample;
use super::functions::made_for_tests;
use super::oracle::{Answer, Rows};

/// Partitions of each table and nodes of each set-up.
pub(crate) const SHAPES: [(u32, u32); 6] = [(1, 1), (2, 1), (7, 1), (1, 3), (2, 3), (7, 3)];

/// A query that takes longer than this hangs.
const QUERY_TIME_MAX: Duration = Duration::from_secs(120);

/// An engine whose loop turns only when told to, with the functions made for tests.
pub(crate) struct Started {
    pub(crate) engine: Engine,
    /// Rows that `counted` was evaluated on.
    pub(crate) counted: Arc<AtomicU64>,
    /// Its data folder, which goes when this goes.
    pub(crate) folder: tempfile::TempDir,
}

/// An engine with its tables.
pub(crate) struct Setup {
    pub(crate) name: String,
    pub(crate) started: Started,
}

/// Starts an engine of `nodes` nodes that stores the outputs of functions however cheap they are.
pub(crate) async fn engine(nodes: u32, mode: &str) -> Started {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::default()
        .with_nodes(nodes)
        .and_then(|config| config.with_partitions(2))
        .and_then(|config| config.with_data_dir(folder.path().to_owned()))
        .and_then(|config| config.set("loop.mode", mode))
        .and_then(|config| config.set("loop.precompute.min-ns-per-row", "0"))
        .unwrap();
    let (functions, counted) = made_for_tests();
    let mut builder = Engine::builder().config(config).manual_ticks(true);
    for (card, udf) in functions {
        builder = builder.function(card, udf);
    }
    Started { engine: builder.start().await.unwrap(), counted, folder }
}

/// Starts an engine of one of the [`SHAPES`] with `tables`, segment by segment: in memory, or, with 7
/// partitions, in managed tables and (those of one segment) in Parquet files.
pub(crate) async fn start(shape: (u32, u32), tables: &[Sample]) -> Setup {
    let (partitions, nodes) = shape;
    let mode = if nodes == 1 { "reactive" } else { "forecast" };
    let started = engine(nodes, mode).await;
    let is_on_disk = partitions == 7;
    for table in tables {
        let partitioning = Partitioning::Hash { columns: vec![table.key.to_owned()], partitions };
        let (name, schema) = (table.name, Arc::clone(&table.schema));
        let Started { engine, folder, .. } = &started;
        let folder = folder.path().join(name);
        let url = format!("file://{}", folder.display());
        let mut segments = table.segments.clone();
        if is_on_disk && segments.len() == 1 {
            std::fs::create_dir(&folder).unwrap();
            write_parquet(&folder.join("rows.parquet"), &segments.remove(0));
            engine.open_parquet_table(name, &url, partitions).await.unwrap();
        } else if is_on_disk {
            engine.create_managed_table(name, &url, schema, partitioning).await.unwrap();
        } else {
            let first = vec![segments.remove(0)];
            engine.create_memory_table(name, schema, partitioning, first).await.unwrap();
        }
        for segment in segments {
            engine.append(name, vec![segment]).await.unwrap();
        }
    }
    let place = if is_on_disk { "on disk" } else { "in memory" };
    Setup { name: format!("{partitions} partitions {place} on {nodes} nodes, {mode}"), started }
}

fn write_parquet(path: &Path, rows: &RecordBatch) {
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
}

/// What `engine` answers; a panic and a hang are errors that say so.
pub(crate) async fn ask(engine: &Engine, sql: &str) -> Answer {
    let asked = AssertUnwindSafe(tokio::time::timeout(QUERY_TIME_MAX, run(engine, sql)));
    match asked.catch_unwind().await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(format!("HANGS: no answer within {QUERY_TIME_MAX:?}")),
        Err(panic) => Err(format!("PANICS: {:?}", panic.downcast_ref::<String>())),
    }
}

async fn run(engine: &Engine, sql: &str) -> Answer {
    let failed = |error: foreshard::EngineError| format!("{}: {error}", error.code());
    let stream = engine.session().sql(sql).await.map_err(failed)?;
    let schema = stream.schema();
    let batches = stream.collect().await.map_err(failed)?;
    Ok(Rows { schema, batches })
}

/// The physical plan of `sql` on `engine`, for a report.
pub(crate) async fn plan(engine: &Engine, sql: &str) -> String {
    let rows = match ask(engine, &format!("EXPLAIN {sql}")).await {
        Ok(rows) => super::rows::rows(&rows.batches),
        Err(error) => return format!("no plan: {error}"),
    };
    rows.last().map_or_else(String::new, |row| format!("{:?}", row).replace("\\n", "\n"))
}
