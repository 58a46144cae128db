//! INSERT, UPDATE, DELETE, TRUNCATE and a redefined function between queries never give a stale
//! answer: each state is compared with a model of the table.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use foreshard::Engine;
use foreshard_actors::partitioning::Partitioning;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::support::functions::of_int;
use crate::support::model::{self, Model};
use crate::support::oracle::{Answer, answer_of, compare};
use crate::support::{controller, runtime, setups};

/// Sequences over memory tables, and over managed tables.
const MEMORY_SEQUENCES: u64 = 1_000;
const MANAGED_SEQUENCES: u64 = 120;

/// Engines that work at the same time, each with its own sequences.
const LANES: u64 = 2;

/// What a generation of the function under test computes.
fn body(generation: i64) -> impl Fn(i64) -> i64 + Copy + Send + Sync + 'static {
    move |value| match generation % 4 {
        0 => value + generation,
        1 => 10 - value,
        2 => value * 2 - generation,
        _ => value % 7,
    }
}

/// One engine and the function that its sequences call and redefine.
struct Lane {
    engine: Engine,
    function: String,
    generation: i64,
    /// Where managed tables go; none for memory tables.
    folder: Option<PathBuf>,
}

impl Lane {
    fn redefine(&mut self) {
        self.generation += 1;
        let body = body(self.generation);
        let (card, udf, _) = of_int(&self.function, move |value| Ok(Some(body(value))));
        self.engine.register_function(card, udf).unwrap();
    }

    async fn create(&self, sequence: u64, model: &Model) -> (String, String) {
        let (table, keys) = (format!("t{sequence}"), format!("k{sequence}"));
        let partitions = [1, 2, 5][(sequence % 3) as usize];
        let hash = Partitioning::Hash { columns: vec!["id".into()], partitions };
        let range = Partitioning::Range {
            column: "id".into(),
            bounds: vec!["5".into(), "9".into(), "1000".into()],
        };
        let partitioning = if sequence.is_multiple_of(4) { range } else { hash };
        let rows = vec![model.batch()];
        match &self.folder {
            None => {
                let schema = model::schema();
                self.engine.create_memory_table(&table, schema, partitioning, rows).await.unwrap();
            }
            Some(folder) => {
                let url = format!("file://{}", folder.join(&table).display());
                let schema = model::schema();
                self.engine.create_managed_table(&table, &url, schema, partitioning).await.unwrap();
                self.engine.append(&table, rows).await.unwrap();
            }
        }
        let one = Partitioning::Hash { columns: vec!["k".into()], partitions: 1 };
        let key_rows = vec![model.keys_batch()];
        self.engine.create_memory_table(&keys, model::keys_schema(), one, key_rows).await.unwrap();
        (table, keys)
    }

    /// One sequence: changes and queries in a random order.
    async fn sequence(&mut self, sequence: u64) -> Result<u32, String> {
        let mut rng = StdRng::seed_from_u64(sequence);
        let rows = rng.random_range(0..16);
        let mut model = Model::random(&mut rng, rows);
        let (table, keys) = self.create(sequence, &model).await;
        let fill = |sql: &str, function: &str| {
            sql.replace("{table}", &table).replace("{keys}", &keys).replace("{function}", function)
        };
        let mut history = Vec::new();
        let mut queries = 0;
        for _ in 0..rng.random_range(4..=8) {
            match rng.random_range(0..100) {
                0..55 => {
                    let body = body(self.generation);
                    let change = model.change(&mut rng, &body);
                    let sql = fill(&change.sql, &self.function);
                    history.push(sql.clone());
                    let changed = self.engine.session().sql(&sql).await;
                    let counted = match changed {
                        Ok(stream) => stream.rows_affected(),
                        Err(error) => return Err(format!("{error}\n{}", history.join("\n"))),
                    };
                    if counted != Some(change.rows) && !sql.starts_with("TRUNCATE") {
                        let expected = change.rows;
                        let history = history.join("\n");
                        return Err(format!("{counted:?} rows, not {expected}\n{history}"));
                    }
                }
                55..67 => {
                    self.redefine();
                    history.push(format!("-- redefined: generation {}", self.generation));
                }
                67..80 => {
                    history.push(format!("-- {}", controller::step(&self.engine, &mut rng).await));
                }
                _ => {
                    queries += 1;
                    self.check(&mut rng, &model, &fill, &mut history).await?;
                }
            }
        }
        self.check(&mut rng, &model, &fill, &mut history).await?;
        for name in [&table, &keys] {
            self.engine.sql(&format!("DROP TABLE {name}")).await.map_err(|e| e.to_string())?;
        }
        Ok(queries + 1)
    }

    /// Puts one query twice, so that the second one may use what the first one stored.
    async fn check(
        &self,
        rng: &mut StdRng,
        model: &Model,
        fill: &impl Fn(&str, &str) -> String,
        history: &mut Vec<String>,
    ) -> Result<(), String> {
        let queries = [
            "SELECT id, g, s, v, {function}(g) AS fg, {function}(id) AS fi FROM {table}",
            "SELECT id, {function}(g) AS fg FROM {table} WHERE {function}(g) > 3",
            "SELECT {function}(g) AS fg, count(*) AS c, sum(v) AS v FROM {table} GROUP BY 1",
            "SELECT sum({function}(g + 1)) AS a, max({function}(id)) AS b, count(s) AS c FROM {table}",
        ];
        let sql = fill(queries[rng.random_range(0..queries.len())], &self.function);
        let expected = self.expected(model, &sql, fill).await;
        for time in ["first", "second"] {
            history.push(sql.clone());
            let ours = setups::ask(&self.engine, &sql).await;
            if let Err(difference) = compare(&expected, &ours, false) {
                let history = history.join("\n");
                return Err(format!("{difference}\nthe {time} time, at the end of\n{history}"));
            }
        }
        Ok(())
    }

    /// What plain DataFusion answers over the rows of the model.
    async fn expected(
        &self,
        model: &Model,
        sql: &str,
        fill: &impl Fn(&str, &str) -> String,
    ) -> Answer {
        let config = SessionConfig::new().with_target_partitions(1);
        let context = SessionContext::new_with_config(config);
        let body = body(self.generation);
        context.register_udf(of_int(&self.function, move |value| Ok(Some(body(value)))).1);
        let table = MemTable::try_new(model::schema(), vec![vec![model.batch()]]).unwrap();
        context.register_table(fill("{table}", ""), Arc::new(table)).unwrap();
        answer_of(&context, sql).await
    }
}

/// Runs `sequences` sequences on engines of 1 and 3 nodes.
async fn run_sequences(sequences: u64, are_managed: bool) {
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        lanes.spawn(async move {
            let nodes = if lane % 2 == 0 { 1 } else { 3 };
            let started = setups::engine(nodes, "reactive").await.unwrap();
            let folder = are_managed.then(|| started.folder.path().to_owned());
            let function = format!("score{lane}");
            let engine = started.engine.clone();
            let mut lane_state = Lane { engine, function, generation: 0, folder };
            lane_state.redefine();
            let mut queries = 0;
            let mut failures = Vec::new();
            for sequence in (0..sequences).filter(|sequence| sequence % LANES == lane) {
                match lane_state.sequence(sequence).await {
                    Ok(count) => queries += count,
                    Err(failure) => failures.push(format!("sequence {sequence}: {failure}")),
                }
            }
            started.engine.shutdown().await.unwrap();
            (queries, failures)
        });
    }
    let mut failures = Vec::new();
    let mut queries = 0;
    while let Some(ended) = lanes.join_next().await {
        let (of_lane, failed) = ended.unwrap();
        queries += of_lane;
        failures.extend(failed);
    }
    println!("{sequences} sequences with {queries} queries, {} failed", failures.len());
    let count = failures.len();
    failures.truncate(5);
    assert!(
        count == 0,
        "{count} of {sequences} failed; the first ones:\n{}",
        failures.join("\n\n")
    );
}

#[test]
fn no_sequence_of_changes_to_a_memory_table_gives_a_stale_answer() {
    runtime::run(run_sequences(MEMORY_SEQUENCES, false));
}

#[test]
fn no_sequence_of_changes_to_a_managed_table_gives_a_stale_answer() {
    runtime::run(run_sequences(MANAGED_SEQUENCES, true));
}
