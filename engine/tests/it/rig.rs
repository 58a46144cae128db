//! A small engine for tests of the query path: one table of numbers, functions that count the rows they
//! are evaluated on, and plain DataFusion over the same rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{SessionConfig, SessionContext};
use foreshard::{Config, Engine, Session};
use foreshard_actors::node::NodeState;
use foreshard_actors::partition::OutputValues;
use foreshard_actors::partitioning::Partitioning;
use foreshard_policy::ids::{ExpressionId, PartitionId};
use foreshard_udfs::{Card, Functions};

use crate::support::functions::{made_for_tests, of_int};
use crate::support::oracle::{Answer, Rows, answer_of, compare};

/// Rows of the table `t`.
pub(crate) const ROWS: i64 = 1_200;

/// Rows of each append, which makes one segment in every partition.
const APPENDED: i64 = 200;

/// Longest wait for something that must happen.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// An engine with table `t (id, x, y)` and the functions `f` (adds one, counts rows), `unlucky` (fails
/// on 13) and `counted`.
pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) session: Session,
    f_rows: Arc<AtomicU64>,
    pub(crate) plain: SessionContext,
    plain_rows: Arc<AtomicU64>,
    _folder: tempfile::TempDir,
}

/// The value of `x` in the row `id`: NULL for every 11th.
pub(crate) fn x(id: i64) -> Option<i64> {
    (id % 11 != 0).then_some(id % 40)
}

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("x", DataType::Int64, true),
        Field::new("y", DataType::Int64, false),
    ]))
}

pub(crate) fn batch(ids: std::ops::Range<i64>) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(ids.clone().map(x).collect::<Int64Array>()),
        Arc::new(Int64Array::from_iter_values(ids.map(|id| id % 7))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn batches() -> Vec<RecordBatch> {
    (0..ROWS / APPENDED).map(|i| batch(i * APPENDED..(i + 1) * APPENDED)).collect()
}

pub(crate) fn hashed(partitions: u32) -> Partitioning {
    Partitioning::Hash { columns: vec!["id".to_owned()], partitions }
}

fn f() -> (Card, ScalarUDF, Arc<AtomicU64>) {
    of_int("f", |value| Ok(Some(value + 1)))
}

pub(crate) fn config(nodes: u32, folder: &std::path::Path, settings: &[(&str, &str)]) -> Config {
    let config = Config::default()
        .with_nodes(nodes)
        .and_then(|config| config.with_partitions(2))
        .and_then(|config| config.with_data_dir(folder.to_owned()))
        .and_then(|config| config.set("loop.mode", "reactive"))
        .and_then(|config| config.set("loop.precompute.min-ns-per-row", "0"))
        .unwrap();
    settings.iter().fold(config, |config, (key, value)| config.set(key, value).unwrap())
}

impl Rig {
    pub(crate) async fn start(nodes: u32, partitions: u32) -> Self {
        Self::start_with(nodes, partitions, &[], vec![]).await
    }

    pub(crate) async fn start_with(
        nodes: u32,
        partitions: u32,
        settings: &[(&str, &str)],
        more: Vec<(Card, ScalarUDF)>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (card, udf, f_rows) = f();
        let config = config(nodes, folder.path(), settings);
        let mut builder = Engine::builder().config(config).manual_ticks(true).function(card, udf);
        for (card, udf) in made_for_tests().0.into_iter().chain(more.clone()) {
            builder = builder.function(card, udf);
        }
        let engine = builder.start().await.unwrap();
        engine.create_memory_table("t", schema(), hashed(partitions), vec![]).await.unwrap();
        for batch in batches() {
            engine.append("t", vec![batch]).await.unwrap();
        }
        let (plain, plain_rows) = plain();
        for (_, udf) in more {
            plain.register_udf(udf);
        }
        let session = engine.session();
        Self { engine, session, f_rows, plain, plain_rows, _folder: folder }
    }

    /// What the session of this rig answers.
    pub(crate) async fn ask(&self, sql: &str) -> Answer {
        let failed = |error: foreshard::EngineError| format!("{}: {error}", error.code());
        let stream = self.session.sql(sql).await.map_err(failed)?;
        let schema = stream.schema();
        Ok(Rows { schema, batches: stream.collect().await.map_err(failed)? })
    }

    /// Asks, and fails the test unless plain DataFusion gives the same rows. Returns on how many rows
    /// `f` was evaluated: here, and in plain.
    pub(crate) async fn same(&self, sql: &str) -> (u64, u64) {
        self.f_rows.store(0, Ordering::Relaxed);
        self.plain_rows.store(0, Ordering::Relaxed);
        let plain = answer_of(&self.plain, sql).await;
        let ours = self.ask(sql).await;
        if let Err(difference) = compare(&plain, &ours, sql.contains("ORDER BY")) {
            panic!("{sql}\n{difference}\n{}", self.plan(sql).await);
        }
        assert!(ours.is_ok(), "{sql}: {ours:?}");
        (self.f_rows.load(Ordering::Relaxed), self.plain_rows.load(Ordering::Relaxed))
    }

    /// Adds rows, here and in plain DataFusion.
    pub(crate) async fn append(&self, rows: RecordBatch) {
        self.engine.append("t", vec![rows.clone()]).await.unwrap();
        let rows = self.plain.read_batch(rows).unwrap();
        rows.write_table("t", DataFrameWriteOptions::new()).await.unwrap();
    }

    /// The physical plan, one node per line.
    pub(crate) async fn plan(&self, sql: &str) -> String {
        plan(&self.session, sql).await
    }

    /// The plan as it is run on all nodes, stage by stage; runs it.
    pub(crate) async fn stages(&self, sql: &str) -> String {
        let rows = self.ask(&format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
        arrow::util::pretty::pretty_format_batches(&rows.batches).unwrap().to_string()
    }

    /// Waits until every partition actor has handled what it was sent before.
    pub(crate) async fn settle(&self) {
        let partitions: Vec<PartitionId> = self.engine.placement().partitions.into_keys().collect();
        for partition in partitions {
            let nothing = Some(ExpressionId(0));
            self.engine.members().drop_outputs(nothing, &partition).await.unwrap();
        }
    }

    pub(crate) fn nodes(&self) -> Vec<Arc<NodeState>> {
        self.engine.members().local_states().into_values().collect()
    }

    /// Every stored output with the rows of its segment.
    pub(crate) fn outputs(&self) -> Vec<(OutputValues, Vec<RecordBatch>)> {
        let mut outputs = vec![];
        for node in self.nodes() {
            for handle in node.replicas().values() {
                for held in handle.replica.view().segments.values() {
                    let rows = held.segment.pinned.as_ref().expect("a memory table").to_vec();
                    let of_segment = held.outputs.values();
                    outputs.extend(of_segment.map(|output| (output.values.clone(), rows.clone())));
                }
            }
        }
        outputs
    }

    /// Fails unless each stored output is `x + 1` on every row that it has a value for; returns how
    /// many rows they cover.
    pub(crate) fn outputs_are_right(&self) -> usize {
        let mut covered = 0;
        for (values, rows) in self.outputs() {
            let expected = rows.iter().flat_map(|batch| {
                let x = batch.column(1).as_primitive::<Int64Type>();
                x.iter().map(|x| x.map(|x| x + 1)).collect::<Vec<_>>()
            });
            let all: Vec<Option<i64>> = expected.collect();
            let known =
                (0..all.len()).filter(|row| values.known().is_none_or(|bits| bits.value(*row)));
            let expected: Int64Array = known.map(|row| all[row]).collect();
            assert_eq!(values.rows(), all.len());
            assert_eq!(values.values().unwrap().as_primitive::<Int64Type>(), &expected);
            covered += values.rows_known();
        }
        covered
    }
}

/// Plain DataFusion over the rows of `t`, and what its `f` counts.
pub(crate) fn plain() -> (SessionContext, Arc<AtomicU64>) {
    let functions = Functions::library();
    let (card, udf, rows) = f();
    functions.register(card, udf).unwrap();
    for (card, udf) in made_for_tests().0 {
        functions.register(card, udf).unwrap();
    }
    let config = SessionConfig::new().with_target_partitions(2).with_information_schema(true);
    let context = SessionContext::new_with_config(config);
    functions.install(&context);
    let (even, odd): (Vec<_>, Vec<_>) =
        batches().into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
    let spread = [even, odd].map(|part| part.into_iter().map(|(_, batch)| batch).collect());
    let table = MemTable::try_new(schema(), spread.to_vec()).unwrap();
    context.register_table("t", Arc::new(table)).unwrap();
    (context, rows)
}

/// The physical plan of `sql`, one node per line.
pub(crate) async fn plan(session: &Session, sql: &str) -> String {
    let rows = session.sql(&format!("EXPLAIN {sql}")).await.unwrap().collect().await.unwrap();
    let mut plan = String::new();
    for batch in rows {
        let kinds = batch.column(0).as_string::<i32>();
        let plans = batch.column(1).as_string::<i32>();
        for (kind, text) in kinds.iter().zip(plans) {
            if kind == Some("physical_plan") {
                plan.push_str(text.unwrap());
            }
        }
    }
    plan.trim_end().to_owned()
}

/// Waits until `holds`; fails if it does not for a minute.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(WAIT_MAX, waiting).await.is_ok(), "never happened: {what}");
}
