//! The traps of DataFusion's and datafusion-distributed's query path, each with the test that it is
//! not sprung: lost rows, poisoned outputs, shared plans, lost settings, hangs and aborts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{AsArray, StringArray};
use arrow::datatypes::DataType;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use foreshard::cluster::{HeldOutput, HeldPartial, Place, PlaceError};
use foreshard_actors::expressions::FunctionExpression;
use foreshard_actors::node::StorePolicy;
use foreshard_actors::partition::{OutputValues, PartialOffer, ReplicaView, Wanted};
use foreshard_actors::ports::Outcome;
use foreshard_actors::table::{Committed, Snapshot};
use foreshard_policy::cluster::NodeView;
use foreshard_policy::ids::{ExpressionId, FragmentId, NodeId, PartitionId, SegmentId};
use foreshard_udfs::{Card, CostClass};
use futures::StreamExt;

use crate::rig::{ROWS, Rig, eventually};
use crate::support::functions::of_int;
use crate::support::runtime;

/// Partition keys that the sort below writes otherwise, by what a join made equal.
const WINDOWS: [&str; 3] = [
    "SELECT a.id, first_value(a.y) OVER (PARTITION BY coalesce(b.x, b.id) ORDER BY a.id, b.id) FROM t a JOIN t b ON a.id = b.id ORDER BY a.id",
    "SELECT sum(a.y) OVER (PARTITION BY b.id + 1) FROM t a JOIN t b ON a.id = b.id",
    "SELECT a.id, sum(a.y) OVER (PARTITION BY abs(b.id), a.y ORDER BY b.x), count(*) OVER (PARTITION BY abs(b.id), a.y) FROM t a JOIN t b ON a.id = b.id ORDER BY a.id",
];

/// Makes every hash join a partitioned one.
const PARTITIONED: [&str; 2] = [
    "SET datafusion.optimizer.hash_join_single_partition_threshold = 0",
    "SET datafusion.optimizer.hash_join_single_partition_threshold_rows = 0",
];

const JOINS: [&str; 4] = [
    "SELECT count(*), sum(a.x), sum(b.s) FROM t a JOIN (SELECT id, sum(y) AS s FROM t GROUP BY id) b ON a.id = b.id",
    "SELECT a.id, b.y FROM t a JOIN t b ON a.id = b.id",
    "SELECT a.id, b.id FROM t a LEFT JOIN t b ON a.x = b.id",
    "SELECT a.id FROM t a WHERE a.id IN (SELECT x FROM t WHERE y < 5)",
];

#[test]
fn a_partitioned_join_of_a_scan_and_a_shuffle_keeps_all_rows() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for setting in PARTITIONED {
                rig.ask(setting).await.unwrap();
            }
            for sql in JOINS {
                rig.ask("SET foreshard.colocated_joins = true").await.unwrap();
                rig.same(sql).await;
                rig.ask("SET foreshard.colocated_joins = false").await.unwrap();
                let plan = rig.plan(sql).await;
                assert!(plan.contains("mode=Partitioned"), "{sql} on {nodes} nodes:\n{plan}");
                // Were a scan to declare a hash, its side would not be shuffled.
                let shuffles = plan.matches("partitioning=Hash").count();
                assert!(shuffles >= 2, "{sql} on {nodes} nodes:\n{plan}");
                rig.same(sql).await;
            }
        }
    });
}

#[test]
fn a_window_over_a_join_that_makes_its_keys_equal_runs_on_three_nodes() {
    runtime::run(async {
        for sql in WINDOWS {
            Rig::start(3, 4).await.same(sql).await;
        }
    });
}

#[test]
fn no_dynamic_filter_sits_below_what_is_stored() {
    let queries = [
        "SELECT a.id, f(b.x) FROM t a JOIN t b ON a.id = b.x WHERE a.y = 3",
        "SELECT id, f(x) FROM t WHERE f(x) > 3 ORDER BY id LIMIT 5",
        "SELECT f(x) AS v, id FROM t ORDER BY v DESC, id LIMIT 9",
        "SELECT min(f(x)), max(id) FROM t",
        "SELECT max(f(x)) FROM t WHERE f(x) < 20",
    ];
    runtime::run(async move {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            rig.ask("SET datafusion.optimizer.enable_dynamic_filter_pushdown = true")
                .await
                .unwrap();
            for setting in PARTITIONED {
                rig.ask(setting).await.unwrap();
            }
            for sql in queries {
                let plan = rig.plan(sql).await + &rig.stages(sql).await;
                assert!(plan.contains("PartitionScanExec"), "{sql}:\n{plan}");
                let is_stored = plan.contains("PartialReuseExec");
                assert!(!is_stored || !plan.contains("DynamicFilter"), "{plan}");
                rig.same(sql).await;
                rig.same(sql).await;
            }
        }
    });
}

#[test]
fn what_is_stored_of_an_output_is_right_whatever_query_asked_for_it() {
    let partial = [
        "SELECT f(x) FROM t WHERE y < 2 AND x > 100",
        "SELECT sum(f(x)) FROM t WHERE y < 2",
        "SELECT id FROM t WHERE y = 3 AND f(x) > 7",
    ];
    let others = [
        "SELECT f(x) AS v FROM t ORDER BY v LIMIT 3",
        "SELECT min(f(x)) FROM t",
        "SELECT f(x) AS v, id FROM t WHERE f(x) > 12 ORDER BY id LIMIT 4",
        "SELECT a.id, b.v FROM t a JOIN (SELECT x, f(x) AS v FROM t) b ON a.id = b.x",
        "SELECT id, f(x) FROM t",
    ];
    runtime::run(async move {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for sql in partial {
                rig.same(sql).await;
                rig.settle().await;
                let stored = rig.outputs_are_right();
                assert!(stored < ROWS as usize, "{sql} asked for some rows");
                assert_eq!(rig.same(sql).await.0, 0, "{sql} has its rows");
            }
            rig.ask("SELECT f(x) FROM t LIMIT 7").await.unwrap();
            for sql in others {
                rig.same(sql).await;
                rig.settle().await;
                rig.outputs_are_right();
            }
            assert_eq!(rig.outputs_are_right(), ROWS as usize);
            for sql in partial.into_iter().chain(others) {
                let (ours, _) = rig.same(sql).await;
                assert_eq!(ours, 0, "{sql} has nothing left to compute");
            }
        }
    });
}

#[test]
fn tasks_of_one_process_never_share_a_plan() {
    let queries = [
        "SELECT y, count(*), sum(f(x)) FROM t GROUP BY y ORDER BY y",
        "SELECT a.y, count(*) FROM t a JOIN t b ON a.x = b.id GROUP BY a.y ORDER BY a.y",
        "SELECT count(DISTINCT f(x)) FROM t",
    ];
    runtime::run(async move {
        let rig = Rig::start(3, 6).await;
        for sql in queries {
            let stages = rig.stages(sql).await;
            assert!(stages.contains("NetworkShuffleExec"), "{sql} has one stage:\n{stages}");
            for _ in 0..8 {
                rig.same(sql).await;
            }
        }
    });
}

/// A stable function that answers two settings of the task that it runs in.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Settings(Signature);

impl ScalarUDFImpl for Settings {
    fn name(&self) -> &str {
        "settings_here"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _arguments: &[DataType]) -> datafusion::common::Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(
        &self,
        call: ScalarFunctionArgs,
    ) -> datafusion::common::Result<ColumnarValue> {
        let execution = &call.config_options.execution;
        let text = format!("{} {:?}", execution.batch_size, execution.time_zone);
        let answers = StringArray::from(vec![text; call.number_rows]);
        Ok(ColumnarValue::Array(Arc::new(answers)))
    }
}

fn settings_here() -> (Card, ScalarUDF) {
    let name = "settings_here";
    let card = Card::immutable(name, "1", CostClass::Free, "made for tests", format!("{name}(1)"))
        .with_volatility(Volatility::Stable);
    let signature = Signature::exact(vec![DataType::Int64], Volatility::Stable);
    (card, ScalarUDF::new_from_impl(Settings(signature)))
}

#[test]
fn the_settings_of_a_session_reach_the_tasks_on_every_node() {
    runtime::run(async {
        let rig = Rig::start_with(3, 6, &[], vec![settings_here()]).await;
        let sql = "SELECT settings_here(id), count(*) FROM t GROUP BY settings_here(id)";
        assert!(rig.stages(sql).await.contains("tasks=3"), "it runs on the nodes");
        rig.ask("SET datafusion.execution.time_zone = '+05:00'").await.unwrap();
        rig.ask("SET datafusion.execution.batch_size = 1234").await.unwrap();
        let rows = rig.ask(sql).await.unwrap();
        let seen: Vec<String> = rows
            .batches
            .iter()
            .flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten().map(String::from))
            .collect();
        assert_eq!(seen, ["1234 Some(\"+05:00\")"]);
    });
}

#[test]
fn every_listener_of_grpc_sends_small_packets_at_once() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![sources];
    let mut listeners = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("TcpListenerStream"), "{} forgets TCP_NODELAY", path.display());
            for line in text.lines().filter(|line| line.contains("TcpIncoming::")) {
                listeners += 1;
                assert!(line.contains(".with_nodelay(Some(true))"), "{}: {line}", path.display());
            }
        }
    }
    assert!(listeners > 0, "no listener was found: this test looks for the wrong name");
}

#[test]
fn dropping_a_query_stops_its_scans_on_all_nodes() {
    let (card, udf, rows) = of_int("slow", |value| {
        std::thread::sleep(Duration::from_millis(2));
        Ok(Some(value))
    });
    runtime::run(async move {
        let rig = Rig::start_with(3, 3, &[], vec![(card, udf)]).await;
        let sql = "SELECT y, sum(slow(id)) FROM t GROUP BY y";
        let stages = rig.stages(&sql.replace("slow", "f")).await;
        assert!(stages.contains("NetworkShuffleExec"), "it has a shuffle:\n{stages}");
        let mut stream = rig.session.sql(sql).await.unwrap();
        tokio::select! {
            batch = stream.next() => panic!("over before it could be dropped: {batch:?}"),
            () = eventually("a first row", || rows.load(Ordering::Relaxed) > 0) => {}
        }
        drop(stream);
        let at_drop = rows.load(Ordering::Relaxed);
        // Twice the time that all rows would take on two cores.
        let all = eventually("all rows", || rows.load(Ordering::Relaxed) >= ROWS as u64);
        let goes_on = tokio::time::timeout(Duration::from_secs(5), all).await.is_ok();
        let at_end = rows.load(Ordering::Relaxed);
        assert!(!goes_on, "{at_end} rows, {at_drop} of them before the drop");
        // Each of at most six streams ends the batch that it was in: 67 rows or so.
        assert!(at_end <= at_drop + 6 * 80, "{at_end} rows, {at_drop} of them before the drop");
    });
}

/// Runs `test` on threads with the stack that threads have when nobody asks for more.
fn on_ordinary_stacks<T: Send + 'static>(test: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_stack_size(2 << 20)
            .enable_all()
            .build()
            .unwrap()
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    thread.spawn(move || runtime().block_on(test)).unwrap().join().unwrap()
}

fn chain(term: &str, operator: &str, terms: usize) -> String {
    vec![term; terms].join(operator)
}

#[test]
fn a_chain_of_five_thousand_terms_is_an_error_within_a_second() {
    on_ordinary_stacks(async {
        let rig = Rig::start(1, 1).await;
        for sql in [
            format!("SELECT {}", chain("1", "+", 5_000)),
            format!("SELECT id FROM t WHERE {}", chain("id = 1", " OR ", 5_000)),
            format!("SELECT id FROM t WHERE {}", chain("id = 1", " AND ", 5_000)),
            format!("DELETE FROM t WHERE {}", chain("id = 1", " OR ", 5_000)),
            format!("SELECT {}", chain("'a'", " || ", 5_000)),
        ] {
            let asked = tokio::time::timeout(Duration::from_secs(1), rig.session.sql(&sql)).await;
            let error = asked.expect("within a second").unwrap_err();
            assert_eq!(error.code(), "FS-SQL-6", "{error}");
        }
        rig.same("SELECT count(*) FROM t").await;
    });
}

#[test]
fn a_chain_of_a_thousand_terms_is_planned_and_run() {
    on_ordinary_stacks(async {
        let rig = Rig::start(1, 1).await;
        let (sum, most) = (chain("1", "+", 1_000), chain("1", "+", 999));
        let rows = rig.ask(&format!("SELECT {sum}")).await.unwrap();
        assert_eq!(
            format!("{:?}", rows.batches[0].column(0)),
            "PrimitiveArray<Int64>\n[\n  1000,\n]"
        );
        let ors: Vec<String> = (0..300).map(|i| format!("id + y = {}", i * 3)).collect();
        let ors = ors.join(" OR ");
        rig.ask(&format!("SELECT count(*) FROM t WHERE {ors}")).await.unwrap();
        // The text of these is short, or is not what is planned.
        rig.ask(&format!("CREATE VIEW long AS SELECT id, id+{most} AS s FROM t")).await.unwrap();
        let rows = rig.ask("SELECT max(s) FROM long").await.unwrap();
        assert_eq!(
            format!("{:?}", rows.batches[0].column(0)),
            "PrimitiveArray<Int64>\n[\n  2198,\n]"
        );
        rig.ask(&format!("CREATE TABLE copied AS SELECT id FROM t WHERE {ors}")).await.unwrap();
        rig.ask(&format!("INSERT INTO copied SELECT {sum}")).await.unwrap();
        rig.ask(&format!("DELETE FROM copied WHERE {}", ors.replace("y", "1"))).await.unwrap();
        rig.ask(&format!("PREPARE p AS SELECT id+{most} FROM t")).await.unwrap();
        rig.ask("EXECUTE p").await.unwrap();
    });
}

#[test]
fn a_chain_of_a_thousand_terms_runs_on_three_nodes() {
    on_ordinary_stacks(async {
        let rig = Rig::start(3, 6).await;
        let ors: Vec<String> = (0..300).map(|i| format!("f(x) + y = {}", i * 3)).collect();
        let sql = format!("SELECT y, count(*) FROM t WHERE {} GROUP BY y", ors.join(" OR "));
        let rows = rig.ask(&sql).await.unwrap();
        assert!(rows.batches.iter().any(|batch| batch.num_rows() > 0));
    });
}

#[test]
fn three_hundred_nested_parentheses_are_a_clear_error() {
    on_ordinary_stacks(async {
        let rig = Rig::start(1, 1).await;
        let sql = format!("SELECT {}1{}", "(".repeat(300), ")".repeat(300));
        let error = rig.session.sql(&sql).await.unwrap_err();
        assert!(error.code().starts_with("FS-SQL-"), "{}: {error}", error.code());
        assert!(error.to_string().len() < 300, "{error}");
        rig.same("SELECT count(*) FROM t").await;
    });
}

/// A node whose process hangs: it takes connections and never says a word.
#[derive(Debug)]
struct Hung;

#[async_trait::async_trait]
impl Place for Hung {
    fn view(&self) -> NodeView {
        NodeView { memory_bytes_max: 1, cpu_permits: 1, ..NodeView::default() }
    }

    fn outputs(&self, _partition: &PartitionId) -> Vec<HeldOutput> {
        vec![]
    }

    fn partials(&self, _partition: &PartitionId) -> Vec<HeldPartial> {
        vec![]
    }

    async fn open(
        &self,
        _partition: &PartitionId,
        _snapshot: &Arc<Snapshot>,
        _from: Option<&dyn Place>,
    ) -> Result<(), PlaceError> {
        Ok(())
    }

    async fn close(&self, _partition: &PartitionId) -> Result<(), PlaceError> {
        Ok(())
    }

    fn committed(&self, _change: &Arc<Committed>) {}

    async fn take_over(&self, _change: &Arc<Committed>) -> Result<(), PlaceError> {
        Ok(())
    }

    async fn precompute(&self, _partition: &PartitionId, _wanted: &Wanted) -> Outcome {
        Outcome::Done { rows: 0, bytes: 0, ns: 0 }
    }

    async fn prefetch(&self, _partition: &PartitionId) -> Outcome {
        Outcome::Done { rows: 0, bytes: 0, ns: 0 }
    }

    async fn release(&self, _partition: &PartitionId) -> Result<u64, PlaceError> {
        Ok(0)
    }

    async fn output(
        &self,
        _partition: &PartitionId,
        _expression: ExpressionId,
        _segment: SegmentId,
    ) -> Result<Option<OutputValues>, PlaceError> {
        Ok(None)
    }

    async fn adopt(
        &self,
        _partition: &PartitionId,
        _expression: &Arc<FunctionExpression>,
        _segment: SegmentId,
        _values: OutputValues,
    ) -> Result<(), PlaceError> {
        Ok(())
    }

    async fn state(
        &self,
        _partition: &PartitionId,
        _fragment: FragmentId,
        _segment: SegmentId,
    ) -> Result<Option<PartialOffer>, PlaceError> {
        Ok(None)
    }

    async fn adopt_state(
        &self,
        _partition: &PartitionId,
        _state: PartialOffer,
    ) -> Result<(), PlaceError> {
        Ok(())
    }

    async fn drop_outputs(
        &self,
        _partition: &PartitionId,
        _which: Option<ExpressionId>,
    ) -> Result<u64, PlaceError> {
        Ok(0)
    }

    fn replica(&self, _partition: &PartitionId) -> Option<Arc<ReplicaView>> {
        None
    }

    fn set_budget(&self, _cpu_permits: u32, _memory_bytes_max: u64) {}

    fn set_store_policy(&self, _policy: StorePolicy) {}

    fn set_draining(&self, _draining: bool) {}

    async fn stop(&self) {}
}

#[test]
fn a_query_on_a_node_that_hangs_ends_within_the_keepalive_bound() {
    /// A silent connection is tested after 5 s and given up after 5 more; the rest is for slow machines.
    const BOUND: Duration = Duration::from_secs(30);
    runtime::run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut taken = tokio::task::JoinSet::new();
        taken.spawn(async move {
            let mut connections = vec![];
            while let Ok((connection, _)) = listener.accept().await {
                connections.push(connection);
            }
        });
        let rig = Rig::start(1, 1).await;
        rig.engine.members().add_remote(NodeId(9), Arc::new(Hung), url).await.unwrap();
        rig.ask(
            "CREATE EXTERNAL TABLE u (id BIGINT) STORED AS DELTA PARTITIONED BY (id) \
             LOCATION '' OPTIONS ('partitions' '4')",
        )
        .await
        .unwrap();
        rig.ask("INSERT INTO u SELECT value FROM range(0, 100)").await.unwrap();
        let asked = rig.session.sql("SELECT id % 3 AS k, count(*) FROM u WHERE id > -1 GROUP BY k");
        let asked = async { asked.await?.collect().await };
        let answer = tokio::time::timeout(BOUND, asked).await.expect("the query hangs");
        let error = answer.expect_err("half of the rows are out of reach");
        assert!(error.is_retryable(), "{}: {error}", error.code());
        rig.same("SELECT count(*) FROM t").await;
    });
}
