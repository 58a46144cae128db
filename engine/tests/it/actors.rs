//! Killing any one actor is survived, and what actors keep is bounded, right and never stale.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use foreshard::Engine;
use foreshard_actors::board::Role;
use foreshard_actors::calls::CallSink;
use foreshard_actors::expressions::{Expressions, FunctionExpression};
use foreshard_actors::node::{NodeState, NodeStateArgs, ProcessMemory, StorePolicy, Tables};
use foreshard_actors::partition::{
    OFFERS_MAX, Offer, OutputValues, Partition, PartitionArgs, PartitionRef, Replica,
};
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::ports::SystemClock;
use foreshard_actors::table::TableStore;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId, SegmentId};
use foreshard_udfs::{Card, CostClass};
use futures::StreamExt;
use ractor::{Actor, ActorCell};

use crate::rig::{self, ROWS, Rig, eventually};
use crate::support::functions::of_int;
use crate::support::runtime;

const QUERIES: [&str; 3] = [
    "SELECT id, f(x) FROM t",
    "SELECT y, sum(f(x)) FROM t GROUP BY y",
    "SELECT a.id, b.v FROM t a JOIN (SELECT id, f(x) AS v FROM t) b ON a.id = b.id",
];

/// The partition actors of all nodes.
fn partition_actors(rig: &Rig) -> Vec<ActorCell> {
    let handles = rig
        .nodes()
        .into_iter()
        .flat_map(|node| node.replicas().values().cloned().collect::<Vec<_>>());
    handles.map(|handle| handle.actor.actor().expect("it was started").get_cell()).collect()
}

/// Kills `cells` and waits until others have taken the places of all partition actors.
async fn kill(rig: &Rig, cells: &[ActorCell]) {
    let before: Vec<_> = partition_actors(rig).iter().map(ActorCell::get_id).collect();
    for cell in cells {
        cell.kill();
    }
    // Queries go on while nobody is there.
    for sql in QUERIES {
        rig.same(sql).await;
    }
    eventually("the actors come back", || {
        let now = partition_actors(rig);
        now.iter().all(|cell| !before.contains(&cell.get_id()))
    })
    .await;
}

/// Outputs that were there are used, and new ones are stored.
async fn works_as_before(rig: &Rig) {
    for sql in QUERIES {
        assert_eq!(rig.same(sql).await.0, 0, "{sql} finds all outputs");
    }
    rig.settle().await;
    assert_eq!(rig.outputs_are_right(), ROWS as usize);
    let partitions: Vec<PartitionId> = rig.engine.placement().partitions.into_keys().collect();
    for partition in partitions {
        rig.engine.members().drop_outputs(None, &partition).await.unwrap();
    }
    assert_eq!(rig.outputs_are_right(), 0);
    rig.same(QUERIES[0]).await;
    rig.settle().await;
    assert_eq!(rig.outputs_are_right(), ROWS as usize);
}

async fn with_outputs(nodes: u32) -> Rig {
    let rig = Rig::start(nodes, 4).await;
    rig.same(QUERIES[0]).await;
    rig.settle().await;
    assert_eq!(rig.outputs_are_right(), ROWS as usize);
    rig
}

#[test]
fn a_killed_partition_actor_is_started_again_on_what_it_had() {
    runtime::run(async {
        let rig = with_outputs(3).await;
        kill(&rig, &partition_actors(&rig)).await;
        works_as_before(&rig).await;
    });
}

#[test]
fn a_killed_node_supervisor_is_started_again_with_all_its_partitions() {
    runtime::run(async {
        let rig = with_outputs(3).await;
        let supervisors: Vec<ActorCell> = partition_actors(&rig)
            .iter()
            .map(|cell| cell.try_get_supervisor().expect("a node supervisor"))
            .collect();
        kill(&rig, &supervisors).await;
        works_as_before(&rig).await;
    });
}

#[test]
fn a_partition_actor_catches_up_with_the_commit_that_it_slept_through() {
    runtime::run(async {
        let rig = with_outputs(1).await;
        for cell in partition_actors(&rig) {
            cell.kill();
        }
        // Whether this reaches the old mailbox or the new one, nobody knows.
        rig.engine.append("t", vec![rig::batch(ROWS..ROWS + 100)]).await.unwrap();
        eventually("the replicas hold the new segments", || {
            let nodes = rig.nodes();
            let replicas =
                nodes.iter().flat_map(|node| node.replicas().values().cloned().collect::<Vec<_>>());
            replicas.map(|handle| handle.replica.view().segments.len()).sum::<usize>() == 4 * 7
        })
        .await;
        let rows = rig.ask("SELECT f(x) FROM t").await.unwrap();
        assert_eq!(rows.batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 1_300);
    });
}

#[test]
fn killing_an_actor_of_the_loop_disturbs_no_query_and_it_comes_back() {
    runtime::run(async {
        let rig = with_outputs(3).await;
        let the_loop = rig.engine.control_loop().clone();
        for role in Role::ALL {
            let before = the_loop.restarts(role);
            the_loop.kill(role);
            for sql in QUERIES {
                assert_eq!(rig.same(sql).await.0, 0, "{sql} without a {role}");
            }
            eventually(&format!("the {role} comes back"), || the_loop.restarts(role) > before)
                .await;
        }
        rig.engine.tick().await;
        let tick = the_loop.last_tick();
        rig.same(QUERIES[0]).await;
        rig.engine.tick().await;
        assert!(the_loop.last_tick() > tick, "the loop turns");
        assert!(!the_loop.history().series.is_empty(), "and counts calls");
    });
}

#[test]
fn outputs_stop_at_the_memory_budget_and_answers_do_not() {
    const WIDE: i64 = 400_000;
    const BUDGET: u64 = 1 << 20;
    runtime::run(async {
        let settings = [("loop.allocate.memory-bytes", "1048576")];
        let rig = Rig::start_with(1, 1, &settings, vec![]).await;
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let partitioning = Partitioning::Hash { columns: vec!["n".into()], partitions: 2 };
        rig.engine
            .create_memory_table("wide", Arc::clone(&schema), partitioning, vec![])
            .await
            .unwrap();
        for start in (0..WIDE).step_by(40_000) {
            let values: ArrayRef = Arc::new(Int64Array::from_iter_values(start..start + 40_000));
            let batch = RecordBatch::try_new(Arc::clone(&schema), vec![values]).unwrap();
            rig.engine.append("wide", vec![batch]).await.unwrap();
        }
        let node = rig.nodes().remove(0);
        let asks = async {
            for _ in 0..3 {
                let answer = rig.ask("SELECT sum(f(n)) FROM wide").await.unwrap();
                let sum = answer.batches[0].column(0).as_primitive::<Int64Type>().value(0);
                assert_eq!(sum, WIDE * (WIDE - 1) / 2 + WIDE);
                rig.settle().await;
            }
        };
        let mut asks = std::pin::pin!(asks);
        let mut most = 0;
        loop {
            most = most.max(node.memory_bytes());
            tokio::select! {
                biased;
                () = &mut asks => break,
                () = tokio::task::yield_now() => {}
            }
        }
        let held = node.memory_bytes();
        assert!(most.max(held) <= BUDGET, "{most} bytes of {BUDGET}");
        assert!(held > BUDGET / 2, "{held} bytes: outputs were stored as long as they fitted");
    });
}

#[derive(Debug)]
struct NoTables;

impl Tables for NoTables {
    fn store(&self, _table: &str) -> Option<Arc<dyn TableStore>> {
        None
    }
}

#[test]
fn an_offer_to_a_full_queue_is_refused_and_a_drained_one_takes_more() {
    // One thread: the actor does nothing until the test waits.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let node = Arc::new(NodeState::new(NodeStateArgs {
            id: NodeId(0),
            tables: Arc::new(NoTables),
            expressions: Arc::new(Expressions::default()),
            calls: CallSink::new(1),
            clock: Arc::new(SystemClock),
            cpu_permits: 1,
            memory: Arc::new(ProcessMemory::new(0)),
            memory_bytes_max: 1 << 20,
            store_policy: StorePolicy { enabled: true, ns_per_row_min: 0 },
            spill: None,
        }));
        let partition = PartitionId::new("t", 0);
        let reference = PartitionRef::default();
        let column = datafusion::physical_expr::expressions::Column::new("x", 0);
        let expression = Arc::new(FunctionExpression::new(
            ExpressionId(1),
            vec!["f".into()],
            "t".into(),
            Arc::new(column),
        ));
        let offer = || Offer {
            segment: SegmentId(1),
            expression: Arc::clone(&expression),
            values: OutputValues::whole(Arc::new(Int64Array::from(vec![1]))),
            flight: None,
        };
        assert!(!reference.offer(offer()), "there is no actor yet");
        let args = PartitionArgs {
            partition: partition.clone(),
            replica: Arc::new(Replica::new(partition)),
            node,
            reference: reference.clone(),
        };
        let (actor, running) = Actor::spawn(None, Partition, args).await.unwrap();
        let taken = (0..OFFERS_MAX + 10).filter(|_| reference.offer(offer())).count();
        assert_eq!(taken, OFFERS_MAX);
        eventually("the queue drains", || reference.offer(offer())).await;
        actor.stop(None);
        running.await.unwrap();
        assert!(!reference.offer(offer()), "the actor is gone");
    });
}

#[test]
fn a_redefined_function_never_gives_an_old_value() {
    runtime::run(async {
        let rig = with_outputs(3).await;
        for generation in 2..6_i64 {
            let (_, udf, rows) = of_int("f", move |value| Ok(Some(value + generation)));
            let card = Card::immutable("f", "1", CostClass::Dear, "made for tests", "f(1)");
            rig.engine.register_function(card, udf).unwrap();
            for (turn, is_new) in [(0, true), (1, false)] {
                rows.store(0, Ordering::Relaxed);
                let answer = rig.ask("SELECT x, f(x) FROM t").await.unwrap();
                for batch in &answer.batches {
                    let (x, f) = (batch.column(0), batch.column(1));
                    let x = x.as_primitive::<Int64Type>().iter();
                    for (x, f) in x.zip(f.as_primitive::<Int64Type>()) {
                        assert_eq!(f, x.map(|x| x + generation), "in generation {generation}");
                    }
                }
                let evaluated = rows.load(Ordering::Relaxed);
                assert_eq!(evaluated > 0, is_new, "generation {generation}, turn {turn}");
                rig.settle().await;
            }
        }
    });
}

async fn sees_its_snapshot(engine: &Engine, table: &str) {
    let session = engine.session();
    session.sql("SET datafusion.execution.batch_size = 10").await.unwrap();
    let ids = |batches: Vec<RecordBatch>| {
        let mut ids: Vec<i64> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        ids.sort_unstable();
        ids
    };
    let select = format!("SELECT id FROM {table}");
    let unread = session.sql(&select).await.unwrap();
    let mut begun = session.sql(&select).await.unwrap();
    let first = begun.next().await.unwrap().unwrap();
    engine.sql(&format!("INSERT INTO {table} VALUES (1000), (1001)")).await.unwrap();
    engine.sql(&format!("DELETE FROM {table} WHERE id % 2 = 0")).await.unwrap();
    engine.sql(&format!("UPDATE {table} SET id = id + 5000 WHERE id < 50")).await.unwrap();
    let old: Vec<i64> = (0..300).collect();
    assert_eq!(ids(unread.collect().await.unwrap()), old, "{table}: planned before");
    let mut rest = begun.collect().await.unwrap();
    rest.push(first);
    assert_eq!(ids(rest), old, "{table}: begun before");
    let now: Vec<i64> =
        (50..300).chain([1001]).chain(5_000..5_050).filter(|id| id % 2 == 1).collect();
    assert_eq!(ids(session.sql(&select).await.unwrap().collect().await.unwrap()), now, "{table}");
}

#[test]
fn a_query_sees_the_snapshot_that_it_began_with() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 2).await;
            for (name, kind) in [("d", "DELTA"), ("m", "MEMORY")] {
                let create = format!(
                    "CREATE EXTERNAL TABLE {name} (id BIGINT) STORED AS {kind} \
                     PARTITIONED BY (id) LOCATION '' OPTIONS ('partitions' '4')"
                );
                rig.engine.sql(&create).await.unwrap();
                let insert = format!("INSERT INTO {name} SELECT value FROM range(0, 300)");
                rig.engine.sql(&insert).await.unwrap();
                sees_its_snapshot(&rig.engine, name).await;
            }
        }
    });
}
