//! A second process joins: it holds replicas, answers queries, stores outputs, and may be killed.

mod reshaped;
mod rows;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use foreshard::Engine;
use foreshard::serve::control::ControlServer;
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::ports::{NodeProvider, Outcome};
use foreshard_policy::ids::{NodeId, PartitionId};
use tokio::task::JoinSet;

use crate::support::runtime::run;
use crate::support::setups::{Started, engine};

/// Polls of something that comes soon, 20 ms apart: two minutes.
const POLLS_MAX: u32 = 6_000;
const POLL: Duration = Duration::from_millis(20);

const ROWS: i64 = 4_000;
const PARTITIONS: u32 = 4;

/// Queries of the test that moves partitions, and how many run at a time.
const QUERIES: usize = 1_000;
const AT_A_TIME: usize = 8;

/// Moves of that test at least: every partition of both tables there and back.
const MOVES_MIN: usize = 4 * PARTITIONS as usize;

/// The only node of the coordinating process.
const HERE: NodeId = NodeId(0);

/// A node in a process of its own; killed with this.
struct Other {
    process: Child,
    id: NodeId,
    _folder: tempfile::TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may be dead already.
        let _dead = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl Other {
    /// Starts a process and waits until it is part of the cluster.
    async fn join(control: &ControlServer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_foreshard"))
            .args(["node", "--join", &control.address().to_string()])
            .env("FORESHARD_DATA_DIR", folder.path())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = process.stdout.take().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line).unwrap();
            line
        });
        let line = tokio::time::timeout(POLL * POLLS_MAX, reading).await.unwrap().unwrap();
        let said = line.strip_prefix("node n").and_then(|rest| rest.split_once(" joined "));
        let (id, _) = said.unwrap_or_else(|| panic!("the node said {line:?}"));
        Self { process, id: NodeId(id.parse().unwrap()), _folder: folder }
    }
}

/// A coordinator with one node and two tables, and another process that joined it.
struct Cluster {
    started: Started,
    control: ControlServer,
    other: Other,
}

impl Cluster {
    async fn start() -> Self {
        let started = engine(1, "reactive").await.unwrap();
        let control = started.engine.serve_control("127.0.0.1:0").await.unwrap();
        let partitioning =
            || Partitioning::Hash { columns: vec!["k".to_owned()], partitions: PARTITIONS };
        started
            .engine
            .create_memory_table("mem", schema(), partitioning(), vec![batch(0..ROWS)])
            .await
            .unwrap();
        started.engine.create_managed_table("kept", "", schema(), partitioning()).await.unwrap();
        let other = Other::join(&control).await;
        // A table that is made, and rows that come, after the node joined.
        started.engine.append("kept", vec![batch(0..ROWS)]).await.unwrap();
        Self { started, control, other }
    }

    fn engine(&self) -> &Engine {
        &self.started.engine
    }

    /// Gives every partition of `table` to the other process alone.
    async fn move_away(&self, table: &str) {
        let members = self.engine().members();
        for ordinal in 0..PARTITIONS {
            let partition = PartitionId::new(table, ordinal);
            members.copy(&partition, self.other.id).await.unwrap();
            let holders = members.placement().holders[&partition].clone();
            for node in holders.into_iter().filter(|node| *node != self.other.id) {
                members.drop_replica(&partition, node).await.unwrap();
            }
        }
    }

    async fn stop(self) {
        drop(self.other);
        self.control.stop().await;
        self.started.engine.shutdown().await.unwrap();
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, false),
        Field::new("v", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
    ]))
}

fn batch(keys: std::ops::Range<i64>) -> RecordBatch {
    let k = Int64Array::from_iter_values(keys.clone());
    let v: Int64Array = keys.clone().map(|k| (k % 11 != 0).then_some(k * 3)).collect();
    let name: StringArray = keys.map(|k| Some(format!("name {}", k % 97))).collect();
    RecordBatch::try_new(schema(), vec![Arc::new(k), Arc::new(v), Arc::new(name)]).unwrap()
}

/// The answer as a table of text.
async fn ask(engine: &Engine, sql: &str) -> String {
    match engine.sql(sql).await {
        Ok(batches) => pretty_format_batches(&batches).unwrap().to_string(),
        Err(error) => panic!("{sql}: {}", error.line()),
    }
}

async fn eventually(engine: &Engine, sql: &str, is_there: impl Fn(&str) -> bool) {
    let mut last = String::new();
    for _ in 0..POLLS_MAX {
        last = ask(engine, sql).await;
        if is_there(&last) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("{sql} still answers\n{last}");
}

/// Waits until `node` has reported calls over `rows` rows after the first `before`, and says for how many of
/// them it had values.
async fn stored_of(engine: &Engine, node: NodeId, before: usize, rows: u64) -> u64 {
    for _ in 0..POLLS_MAX {
        let calls = engine.calls();
        let there = || calls.iter().skip(before).filter(|call| call.node == node);
        if there().map(|call| call.rows).sum::<u64>() >= rows {
            return there().map(|call| call.rows_stored).sum();
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("calls over {rows} rows were not reported");
}

/// Queries with one stage and with shuffles, and their right answers.
async fn questions(engine: &Engine) -> Vec<(String, String)> {
    let mut questions = vec![];
    for table in ["mem", "kept"] {
        for sql in [
            format!("SELECT count(*), sum(v), min(k), max(name) FROM {table}"),
            format!("SELECT k % 7 AS g, count(v), sum(k) FROM {table} GROUP BY g ORDER BY g"),
            format!("SELECT k, v, name FROM {table} WHERE k = 1234"),
            format!("SELECT k, soundex(name) FROM {table} WHERE k < 50 ORDER BY k"),
            format!(
                "SELECT a.name, count(*), sum(b.v) FROM {table} a JOIN mem b ON a.v = b.k \
                 GROUP BY a.name ORDER BY a.name LIMIT 5"
            ),
        ] {
            let answer = ask(engine, &sql).await;
            questions.push((sql, answer));
        }
    }
    questions
}

#[test]
fn a_second_process_holds_partitions_and_answers_for_them() {
    run(async {
        let cluster = Cluster::start().await;
        let engine = cluster.engine();
        let right = questions(engine).await;
        cluster.move_away("mem").await;
        cluster.move_away("kept").await;
        let other = cluster.other.id;
        let nodes = ask(engine, "SELECT node FROM system.nodes WHERE NOT in_this_process").await;
        assert!(nodes.contains(&format!("| {other} ")), "{nodes}");
        let holders = ask(engine, "SELECT DISTINCT node FROM system.replicas").await;
        assert!(holders.contains(&other.to_string()) && !holders.contains("n0"), "{holders}");
        let resident = "SELECT count(*) AS n FROM system.replicas WHERE segments_resident = 1";
        eventually(engine, resident, |answer| answer.contains("| 8 ")).await;
        for (sql, answer) in right {
            assert_eq!(ask(engine, &sql).await, answer, "{sql}");
        }
        // What is committed now is read at once, whether or not the replica knows of it yet.
        engine.append("mem", vec![batch(ROWS..ROWS + 10)]).await.unwrap();
        engine.append("kept", vec![batch(ROWS..ROWS + 10)]).await.unwrap();
        for table in ["mem", "kept"] {
            let count = ask(
                engine,
                &format!("SELECT count(v) + count(*) AS n, sum(k) FROM {table} WHERE k >= 3990"),
            )
            .await;
            assert!(count.contains("| 38 | 79990 "), "{count}");
        }
        cluster.stop().await;
    });
}

/// Moves every partition away and back, again and again, until `is_enough` of the moves made so far.
async fn keep_moving(cluster: &Cluster, is_enough: impl Fn(usize) -> bool) -> usize {
    let members = cluster.engine().members();
    let (mut moves, there) = (0, cluster.other.id);
    loop {
        for (from, to) in [(HERE, there), (there, HERE)] {
            for ordinal in 0..PARTITIONS {
                for table in ["mem", "kept"] {
                    let partition = PartitionId::new(table, ordinal);
                    members.copy(&partition, to).await.unwrap();
                    members.drop_replica(&partition, from).await.unwrap();
                    moves += 1;
                    if is_enough(moves) {
                        return moves;
                    }
                }
            }
        }
    }
}

#[test]
fn partitions_move_between_processes_under_a_thousand_queries() {
    run(async {
        let cluster = Cluster::start().await;
        let right = Arc::new(questions(cluster.engine()).await);
        let (asked, has_moved) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut asking = JoinSet::new();
        for _ in 0..AT_A_TIME {
            let (engine, right) = (cluster.engine().clone(), Arc::clone(&right));
            let (asked, has_moved) = (Arc::clone(&asked), Arc::clone(&has_moved));
            asking.spawn(async move {
                let mut wrong = vec![];
                loop {
                    let turn = asked.fetch_add(1, Ordering::Relaxed);
                    if turn >= QUERIES && has_moved.load(Ordering::Relaxed) {
                        return wrong;
                    }
                    let (sql, answer) = &right[turn % right.len()];
                    let got = match engine.sql(sql).await {
                        Ok(batches) => pretty_format_batches(&batches).unwrap().to_string(),
                        Err(error) => error.line(),
                    };
                    if got != *answer {
                        wrong.push(format!("{sql}\n{got}\ninstead of\n{answer}"));
                    }
                }
            });
        }
        let is_enough = |moves| moves >= MOVES_MIN && asked.load(Ordering::Relaxed) >= QUERIES;
        let moves = keep_moving(&cluster, is_enough).await;
        has_moved.store(true, Ordering::Relaxed);
        let wrong: Vec<String> = asking.join_all().await.into_iter().flatten().collect();
        println!("{} queries, {moves} moves", asked.load(Ordering::Relaxed) - AT_A_TIME);
        assert!(wrong.is_empty(), "{} wrong answers: {}", wrong.len(), wrong[0]);
        cluster.stop().await;
    });
}

#[test]
fn a_killed_process_is_forgotten_and_its_partitions_are_read_elsewhere() {
    run(async {
        let mut cluster = Cluster::start().await;
        let right = questions(cluster.engine()).await;
        cluster.move_away("mem").await;
        cluster.move_away("kept").await;
        cluster.other.process.kill().unwrap();
        cluster.other.process.wait().unwrap();
        let engine = cluster.engine();
        let mut polls = 0;
        while engine.members().nodes().contains(&cluster.other.id) {
            assert!(polls < POLLS_MAX, "the dead node is still there");
            polls += 1;
            tokio::time::sleep(POLL).await;
        }
        for (sql, answer) in right {
            assert_eq!(ask(engine, &sql).await, answer, "{sql}");
        }
        let held = "SELECT count(*) AS n FROM system.replicas WHERE node = 'n0'";
        eventually(engine, held, |answer| answer.contains("| 8 ")).await;
        // Another process takes its place, under another number.
        let again = Other::join(&cluster.control).await;
        assert!(engine.members().nodes().contains(&again.id));
        drop(again);
        cluster.stop().await;
    });
}

#[test]
fn outputs_are_computed_and_used_in_the_other_process() {
    run(async {
        let cluster = Cluster::start().await;
        let (engine, other) = (cluster.engine(), cluster.other.id);
        cluster.move_away("kept").await;
        let sql = "SELECT max(soundex(name)), count(soundex(name)) FROM kept";
        let right = ask(engine, sql).await;
        let called = format!(
            "SELECT DISTINCT function, node FROM system.calls WHERE node = '{other}' AND function = 'soundex'"
        );
        eventually(engine, &called, |answer| answer.contains("soundex")).await;
        let expressions = engine.members().expressions().list();
        let soundex = expressions.iter().find(|known| &*known.function == "soundex").unwrap();
        let mut rows_computed = 0;
        for ordinal in 0..PARTITIONS {
            let partition = PartitionId::new("kept", ordinal);
            engine.members().drop_outputs(Some(soundex.id), &partition).await.unwrap();
            match engine.members().precompute(soundex.id, &partition).await {
                Outcome::Done { rows, .. } => rows_computed += rows,
                failed => panic!("{failed:?}"),
            }
        }
        assert_eq!(rows_computed, ROWS as u64);
        let stored = format!("SELECT count(*) AS n FROM system.outputs WHERE node = '{other}'");
        eventually(engine, &stored, |answer| answer.contains("| 4 ")).await;
        let before = engine.calls().len();
        assert_eq!(ask(engine, sql).await, right);
        let used = || {
            let calls = engine.calls();
            let of_query = calls.iter().skip(before).filter(|call| call.node == other);
            of_query.map(|call| call.rows_stored).sum::<u64>()
        };
        let mut polls = 0;
        while used() < ROWS as u64 {
            assert!(polls < POLLS_MAX, "only {} rows came from stored outputs", used());
            polls += 1;
            tokio::time::sleep(POLL).await;
        }
        cluster.stop().await;
    });
}

#[test]
fn what_is_stored_follows_its_partitions_to_another_process_and_back() {
    run(async {
        let cluster = Cluster::start().await;
        let (engine, other) = (cluster.engine(), cluster.other.id);
        let sql = "SELECT k, soundex(name) AS sound FROM kept ORDER BY k";
        let right = ask(engine, sql).await;
        let held = |node| {
            format!(
                "SELECT count(*) AS n, sum(rows) AS rows FROM system.outputs WHERE node = '{node}'"
            )
        };
        let all = |answer: &str| answer.contains("| 4 | 4000 |");
        let lengths = "SELECT length(soundex(name)) AS n, avg(k / 7e0) AS k FROM kept GROUP BY 1";
        let of_lengths = ask(engine, lengths).await;
        let states = |node| {
            format!(
                "SELECT count(*) AS n, min(uses) AS uses FROM system.partials WHERE node = '{node}'"
            )
        };
        eventually(engine, &held(HERE), all).await;
        eventually(engine, &states(HERE), |answer| answer.contains("| 4 | 0 ")).await;
        cluster.move_away("kept").await;
        eventually(engine, &held(other), all).await;
        assert_eq!(ask(engine, lengths).await, of_lengths);
        eventually(engine, &states(other), |answer| answer.contains("| 4 | 1 ")).await;
        let before = engine.calls().len();
        assert_eq!(ask(engine, sql).await, right);
        let stored = stored_of(engine, other, before, ROWS as u64).await;
        assert_eq!(stored, ROWS as u64, "nothing is computed again");
        let members = engine.members();
        for ordinal in 0..PARTITIONS {
            let partition = PartitionId::new("kept", ordinal);
            members.copy(&partition, HERE).await.unwrap();
            members.drop_replica(&partition, other).await.unwrap();
        }
        eventually(engine, &held(HERE), all).await;
        assert_eq!(ask(engine, sql).await, right);
        cluster.stop().await;
    });
}

#[test]
fn stored_outputs_follow_their_rows_into_new_segments_of_another_process() {
    run(async {
        let cluster = Cluster::start().await;
        let (engine, other) = (cluster.engine(), cluster.other.id);
        for table in ["kept", "mem"] {
            cluster.move_away(table).await;
            let sql = format!("SELECT k, soundex(name) AS sound FROM {table} ORDER BY k");
            ask(engine, &sql).await;
            let held = format!(
                "SELECT sum(rows) AS rows FROM system.outputs WHERE table_name = '{table}' AND node = '{other}'"
            );
            eventually(engine, &held, |answer| answer.contains("| 4000 |")).await;
            // The second one may be there before the other process was told of the first.
            for change in [
                format!("UPDATE {table} SET name = 'Zurich' WHERE k % 10 = 0"),
                format!("DELETE FROM {table} WHERE k % 10 = 1"),
            ] {
                engine.sql(&change).await.unwrap();
            }
            eventually(engine, &held, |answer| answer.contains("| 3200 |")).await;
            let before = engine.calls().len();
            let answer = ask(engine, &sql).await;
            assert!(answer.contains("| 3990 | Z620 ") && !answer.contains("| 3991 |"), "{answer}");
            eventually(engine, &held, |answer| answer.contains("| 3600 |")).await;
            let stored = stored_of(engine, other, before, 3_600).await;
            assert_eq!(stored, 3_200, "only changed rows are computed: {table}");
        }
        cluster.stop().await;
    });
}

#[test]
fn a_function_that_the_other_process_lacks_is_a_clear_error() {
    run(async {
        let cluster = Cluster::start().await;
        cluster.move_away("kept").await;
        // Registered by the tests' engine only.
        let error = cluster.engine().sql("SELECT sum(counted(k)) FROM kept").await.unwrap_err();
        assert!(error.to_string().contains("counted"), "{}", error.line());
        assert!(!error.is_retryable(), "{}", error.line());
        cluster.stop().await;
    });
}

#[test]
fn the_end_of_a_query_is_told_to_the_other_process_and_stops_its_tasks() {
    run(async {
        let cluster = Cluster::start().await;
        let engine = cluster.engine().clone();
        cluster.move_away("kept").await;
        // Seconds of work in one process, told in batches: tasks look at the end between two.
        let session = engine.session();
        session.sql("SET datafusion.execution.batch_size = 20").await.unwrap();
        let sql = "SELECT name, max(levenshtein_similarity(concat(name, repeat('x', 600)), \
                   repeat('y', 600))) FROM kept GROUP BY name";
        let mut running = JoinSet::new();
        running.spawn(async move { session.sql(sql).await.unwrap().collect().await });
        // Somebody keeps the stream, so that only the news can stop the tasks. It is the newest query.
        let placement = engine.members().placement();
        let ended = loop {
            (0..100).for_each(|id| engine.members().query_ended(id, &placement));
            if let Ok(ended) = tokio::time::timeout(POLL, running.join_next()).await {
                break ended.unwrap().unwrap();
            }
        };
        let error = ended.unwrap_err();
        assert!(error.to_string().contains("cancelled"), "{}", error.line());
        cluster.stop().await;
    });
}
