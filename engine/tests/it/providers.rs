//! Nodes that the loop starts and stops as processes of their own.

mod kubernetes;

use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use foreshard::Engine;
use foreshard::serve::control::ControlServer;
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::ports::NodeProvider;
use foreshard_policy::decision::Outcome;
use foreshard_policy::ids::{NodeId, PartitionId};
use tokio::task::JoinSet;

use crate::kill::request;
use crate::support::runtime::run;
use crate::support::setups::{Started, engine_with};

/// Polls of something that comes soon, 20 ms apart: two minutes.
const POLLS_MAX: u32 = 6_000;
const POLL: Duration = Duration::from_millis(20);

const ROWS: i64 = 2_000;
const PARTITIONS: u32 = 4;
const HERE: NodeId = NodeId(0);

/// A load of 1.4 CPUs takes more than one node, and two are the most.
const SETTINGS: [(&str, &str); 4] = [
    ("loop.allocate.nodes-max", "2"),
    ("loop.allocate.scale-in-ticks", "3"),
    ("loop.monitor.current-ticks", "1"),
    ("loop.tick-ms", "20"),
];

/// An engine with a table whose rows are in memory and one whose rows are in files.
struct Cluster {
    started: Started,
    control: ControlServer,
}

impl Cluster {
    /// Nodes are processes of `program`.
    async fn start(program: &str) -> Self {
        Self::start_with(&[("loop.allocate.provider", "process"), ("provider.program", program)])
            .await
    }

    async fn start_with(settings: &[(&str, &str)]) -> Self {
        let settings = [&SETTINGS, settings].concat();
        let started = engine_with(1, "reactive", &settings).await.unwrap();
        let engine = &started.engine;
        let control = engine.serve_control("127.0.0.1:0").await.unwrap();
        let by_key =
            || Partitioning::Hash { columns: vec!["k".to_owned()], partitions: PARTITIONS };
        engine.create_memory_table("mem", schema(), by_key(), vec![rows()]).await.unwrap();
        engine.create_managed_table("kept", "", schema(), by_key()).await.unwrap();
        engine.append("kept", vec![rows()]).await.unwrap();
        Self { started, control }
    }

    fn engine(&self) -> &Engine {
        &self.started.engine
    }

    /// Keeps more than one node busy for a tick: no two turns call the same.
    async fn work(&self, turn: u32) {
        let sql = format!(
            "SELECT max(levenshtein_similarity(repeat(concat(name, CAST(k AS VARCHAR)), 12), \
             repeat('a{turn}bcdefghi', 12))) FROM mem"
        );
        ask(self.engine(), &sql).await.unwrap();
    }

    /// Turns the loop until there are so many nodes.
    async fn turn_until(&self, nodes: usize, is_busy: bool) {
        for turn in 0..POLLS_MAX {
            if self.engine().members().nodes().len() == nodes {
                return;
            }
            if is_busy {
                self.work(turn).await;
            }
            self.engine().tick().await;
        }
        panic!("there are still {:?}", self.engine().members().nodes());
    }

    /// Leaves nothing here, so that all must come back when the node leaves.
    async fn give_all_to(&self, node: NodeId) {
        let members = self.engine().members();
        for ordinal in 0..PARTITIONS {
            for table in ["mem", "kept"] {
                let partition = PartitionId::new(table, ordinal);
                members.copy(&partition, node).await.unwrap();
                if members.placement().holders[&partition].contains(&HERE) {
                    members.drop_replica(&partition, HERE).await.unwrap();
                }
            }
        }
    }

    async fn stop(self) {
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

fn rows() -> RecordBatch {
    let k = Int64Array::from_iter_values(0..ROWS);
    let v: Int64Array = (0..ROWS).map(|k| (k % 11 != 0).then_some(k * 3)).collect();
    let name: StringArray = (0..ROWS).map(|k| Some(format!("name {}", k % 97))).collect();
    RecordBatch::try_new(schema(), vec![Arc::new(k), Arc::new(v), Arc::new(name)]).unwrap()
}

async fn ask(engine: &Engine, sql: &str) -> Result<String, String> {
    let rows = engine.sql(sql).await.map_err(|error| error.line())?;
    Ok(pretty_format_batches(&rows).unwrap().to_string())
}

/// Queries and their right answers: those that call nothing and so are no load, and those that aggregate.
async fn questions(engine: &Engine, is_load: bool) -> Vec<(String, String)> {
    let templates: &[&str] = match is_load {
        false => &[
            "SELECT k, v, name FROM {} WHERE k = 1234",
            "SELECT k, v FROM {} WHERE k < 60 ORDER BY k",
            "SELECT a.k, b.v FROM {} a JOIN mem b ON a.v = b.k WHERE a.k < 90 ORDER BY a.k",
        ],
        true => &[
            "SELECT count(*), sum(v), min(k), max(name) FROM {}",
            "SELECT k % 7 AS g, count(v), sum(k) FROM {} GROUP BY g ORDER BY g",
        ],
    };
    let mut questions = vec![];
    for table in ["mem", "kept"] {
        for template in templates {
            let sql = template.replace("{}", table);
            let answer = ask(engine, &sql).await.unwrap();
            questions.push((sql, answer));
        }
    }
    questions
}

/// Keeps the engine busy for some ticks, and says why the one node that was asked for did not come.
async fn failure_of_the_only_addition(cluster: &Cluster) -> (String, String) {
    for turn in 0..6 {
        cluster.work(turn).await;
        cluster.engine().tick().await;
    }
    let decisions = cluster.engine().decisions();
    let added: Vec<_> = decisions.iter().filter(|row| row.kind == "add node").collect();
    assert_eq!(added.len(), 1, "one try, then a rest: {added:?}");
    match added[0].outcome.clone() {
        Some(Outcome::Failed { code, reason }) => (code, reason),
        other => panic!("{other:?}"),
    }
}

async fn check(engine: &Engine, right: &[(String, String)]) {
    for (sql, answer) in right {
        assert_eq!(ask(engine, sql).await.as_ref(), Ok(answer), "{sql}");
    }
}

/// Waits until nobody listens at `address`, which a process does until it ends.
fn nobody_listens(address: &str) {
    for _ in 0..POLLS_MAX {
        if TcpStream::connect(address).is_err() {
            return;
        }
        std::thread::park_timeout(POLL);
    }
    panic!("the process at {address} lives on");
}

fn address(url: &str) -> String {
    url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

#[test]
fn a_load_gets_one_more_process_and_gives_it_back_and_every_answer_is_right() {
    run(async {
        let cluster = Cluster::start(env!("CARGO_BIN_EXE_foreshard")).await;
        let engine = cluster.engine();
        let aggregates = questions(engine, true).await;
        let quiet = Arc::new(questions(engine, false).await);
        let is_over = Arc::new(AtomicBool::new(false));
        let mut asking = JoinSet::new();
        let (asker, right, ends) = (engine.clone(), Arc::clone(&quiet), Arc::clone(&is_over));
        asking.spawn(async move {
            let (mut asked, mut wrong) = (0, vec![]);
            while !ends.load(Ordering::Relaxed) {
                for (sql, answer) in right.iter() {
                    let got = ask(&asker, sql).await;
                    if got.as_ref() != Ok(answer) {
                        wrong.push(format!("{sql}\n{got:?}\ninstead of\n{answer}"));
                    }
                    asked += 1;
                }
            }
            (asked, wrong)
        });
        cluster.turn_until(2, true).await;
        let other = {
            let placement = engine.members().placement();
            placement.nodes.iter().find(|node| node.id != HERE).unwrap().clone()
        };
        assert!(!other.is_local, "{other:?}");
        let view = engine.placement().nodes[&other.id].clone();
        assert!(!view.joined && view.leaves == 1, "it is ours, and leaves first: {view:?}");
        cluster.give_all_to(other.id).await;
        check(engine, &aggregates).await;
        cluster.turn_until(1, false).await;
        assert_eq!(engine.members().nodes(), [HERE]);
        nobody_listens(&address(other.url.as_str()));
        is_over.store(true, Ordering::Relaxed);
        check(engine, &aggregates).await;
        let (asked, wrong) = asking.join_next().await.unwrap().unwrap();
        assert!(wrong.is_empty(), "{} of {asked} answers: {}", wrong.len(), wrong[0]);
        assert!(asked > 0);
        cluster.stop().await;
    });
}

#[cfg(unix)]
#[test]
fn a_process_that_ends_at_once_is_a_failed_step_and_no_loop() {
    run(async {
        for (program, code) in [("/bin/false", "FS-PROVIDER-3"), ("/no/such/file", "FS-PROVIDER-2")]
        {
            let cluster = Cluster::start(program).await;
            let (found, reason) = failure_of_the_only_addition(&cluster).await;
            assert_eq!(found, code, "{reason}");
            assert!(reason.contains("joined") || reason.contains(program), "{reason}");
            assert_eq!(cluster.engine().members().nodes(), [HERE]);
            cluster.stop().await;
        }
    });
}

#[test]
fn processes_end_with_the_engine_that_started_them() {
    run(async {
        let cluster = Cluster::start(env!("CARGO_BIN_EXE_foreshard")).await;
        cluster.turn_until(2, true).await;
        let placement = cluster.engine().members().placement();
        let other = placement.nodes.iter().find(|node| node.id != HERE).unwrap();
        cluster.stop().await;
        assert!(TcpStream::connect(address(other.url.as_str())).is_err(), "it lives on");
    });
}

#[test]
fn processes_end_when_the_server_that_started_them_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let http = {
        let any = TcpListener::bind("127.0.0.1:0").unwrap();
        any.local_addr().unwrap().to_string()
    };
    let mut server = Command::new(env!("CARGO_BIN_EXE_foreshard"))
        .args(["serve", "--http", &http, "--flight", "off"])
        .args(["--set", "loop.allocate.provider=process", "--set", "loop.allocate.nodes-min=2"])
        .args(["--set", "loop.tick-ms=50"])
        .env("FORESHARD_DATA_DIR", folder.path())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let sql = "SELECT url FROM system.nodes WHERE NOT in_this_process";
    let answered = || match request(&http, "POST", "/v1/sql", sql) {
        Some((200, body)) => body.lines().nth(1).map(address),
        _ => None,
    };
    let mut other = None;
    for _ in 0..POLLS_MAX {
        other = answered();
        if other.is_some() || server.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::park_timeout(POLL);
    }
    let lives = other.as_ref().map(TcpStream::connect);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(matches!(lives, Some(Ok(_))), "no process was started: {other:?}");
    nobody_listens(&other.unwrap());
}
