//! Partitions are split and merged: no answer changes, nothing that is stored is computed again, replicas
//! and history go on where the rows are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt64Type};
use foreshard::{Config, Engine};
use foreshard_actors::partitioning::Partitioning;
use foreshard_actors::ports::NodeProvider;
use foreshard_policy::ids::{NodeId, PartitionId};
use futures::StreamExt;
use tokio::task::JoinSet;

use crate::follow::{Following, TABLES};
use crate::rig::{ROWS, Rig, batch, eventually};
use crate::support::runtime;

/// The partitions of a table, in the order of their keys.
fn ordinals(engine: &Engine, table: &str) -> Vec<u32> {
    let store = engine.members().store(table).unwrap();
    store.snapshot().layout.ordinals().to_vec()
}

/// The numbers in the only row of an answer.
async fn numbers(engine: &Engine, sql: &str) -> Vec<u64> {
    let answer = engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {}", error.line()));
    let row = &answer[0];
    row.columns().iter().map(|column| column.as_primitive::<UInt64Type>().value(0)).collect()
}

async fn refused(engine: &Engine, sql: &str) -> String {
    engine.sql(sql).await.unwrap_err().line()
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    let column =
        |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
    let mut ids: Vec<i64> = batches.iter().flat_map(column).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_function_is_not_called_again_after_a_split_and_after_a_merge() {
    runtime::run(async {
        for (nodes, partitions) in [(1, 1), (1, 4), (3, 4)] {
            let following = Following::start(nodes, partitions).await;
            let engine = &following.rig.engine;
            for table in TABLES {
                let what = format!("{table} on {nodes} nodes, {partitions} partitions");
                let all = format!("SELECT id, times(id) FROM {table}");
                assert_eq!(following.evaluated(&all, 2).await, ROWS as u64, "{what}");
                let first = ordinals(engine, table)[0];
                numbers(engine, &format!("CALL split_partition('{table}', {first})")).await;
                assert_eq!(following.evaluated(&all, 2).await, 0, "split of {what}");
                let has = ordinals(engine, table);
                assert_eq!(has.len(), partitions as usize + 1);
                for _ in 1..has.len() {
                    let has = ordinals(engine, table);
                    let sql = format!("CALL merge_partitions('{table}', {}, {})", has[0], has[1]);
                    numbers(engine, &sql).await;
                    assert_eq!(following.evaluated(&all, 2).await, 0, "{sql}: {what}");
                }
                assert_eq!(ordinals(engine, table).len(), 1, "{what}");
                let one = ordinals(engine, table)[0];
                let sql = format!("CALL split_partition('{table}', {one})");
                let parts = numbers(engine, &sql).await;
                assert_eq!(parts[1] + parts[3], ROWS as u64, "{what}");
                assert!(parts[1].abs_diff(parts[3]) <= 1, "{parts:?}");
                assert_eq!(following.evaluated(&all, 2).await, 0, "{sql}: {what}");
            }
        }
    });
}

#[test]
fn no_node_leaves_while_a_query_knows_it() {
    runtime::run(async {
        let rig = Rig::start(2, 4).await;
        let members = Arc::clone(rig.engine.members());
        // As a query keeps the one that it was planned on.
        let known = members.placement();
        let leaver = Arc::clone(&members);
        let mut leaving = JoinSet::new();
        leaving.spawn(async move { leaver.remove(NodeId(1)).await });
        eventually("it is in no new placement", || {
            members.placement().position(NodeId(1)).is_none()
        })
        .await;
        rig.same("SELECT f(id), x FROM t").await;
        assert!(leaving.try_join_next().is_none());
        assert_eq!(members.nodes(), [NodeId(0), NodeId(1)]);
        drop(known);
        leaving.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(members.nodes(), [NodeId(0)]);
        rig.same("SELECT f(id), x FROM t").await;
    });
}

#[test]
fn parts_begin_on_the_holders_of_the_old_partition_and_the_epoch_moves_on() {
    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        let members = rig.engine.members();
        let (old, all) = (PartitionId::new("t", 1), [NodeId(0), NodeId(1), NodeId(2)]);
        for node in all {
            members.copy(&old, node).await.unwrap();
        }
        members.drop_replica(&old, NodeId(2)).await.unwrap();
        let (before, held) = (members.placement().epoch, BTreeSet::from([NodeId(0), NodeId(1)]));
        members.split(&old, None).await.unwrap();
        let placement = members.placement();
        assert!(placement.epoch > before);
        assert!(!placement.holders.contains_key(&old));
        for ordinal in [4, 5] {
            assert_eq!(placement.holders[&PartitionId::new("t", ordinal)], held);
        }
        for node in rig.nodes() {
            assert!(node.replica(&old).is_none(), "{} holds what is no more", node.id);
        }
        // The larger one of two keeps its holders, and they get the other one's rows.
        members.merge(&"t".into(), (5, 2)).await.unwrap();
        let placement = members.placement();
        let merged = &placement.holders[&PartitionId::new("t", 6)];
        assert!(!merged.is_empty() && placement.holders.len() == 4, "{placement:?}");
        rig.same("SELECT id, x, f(x) FROM t").await;
        let rows: u64 = rig.engine.placement().partitions.values().map(|it| it.rows).sum();
        assert_eq!(rows, ROWS as u64);
    });
}

#[test]
fn series_go_on_in_the_parts_and_in_what_is_merged() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        rig.same("SELECT id, f(x) FROM t").await;
        let the_loop = rig.engine.control_loop().clone();
        let rows_of = |partitions: &[u32]| {
            let history = the_loop.history();
            let series = history.series.iter().filter(|series| &*series.key.function == "f");
            let rows = series.map(|series| (series.key.partition.ordinal, series.stats.rows));
            let rows: Vec<(u32, u64)> = rows.collect();
            let has: Vec<u32> = rows.iter().map(|(ordinal, _)| *ordinal).collect();
            let sum: u64 = rows.iter().map(|(_, rows)| rows).sum();
            (has == partitions).then_some(sum)
        };
        let counted = || rig.engine.calls().iter().map(|call| call.rows).sum::<u64>();
        eventually("calls are reported", || counted() == ROWS as u64).await;
        rig.engine.tick().await;
        assert_eq!(rows_of(&[0]), Some(ROWS as u64));
        numbers(&rig.engine, "CALL split_partition('t', 0)").await;
        rig.engine.tick().await;
        assert_eq!(rows_of(&[1, 2]), Some(ROWS as u64));
        numbers(&rig.engine, "CALL merge_partitions('t', 2, 1)").await;
        rig.engine.tick().await;
        assert_eq!(rows_of(&[3]), Some(ROWS as u64));
    });
}

#[test]
fn a_query_that_began_before_reads_what_it_began_with() {
    runtime::run(async {
        let following = Following::start(3, 4).await;
        let engine = &following.rig.engine;
        let expected: Vec<i64> = (0..ROWS).collect();
        for table in TABLES {
            let session = engine.session();
            session.sql("SET datafusion.execution.batch_size = 10").await.unwrap();
            let select = format!("SELECT id FROM {table}");
            let unread = session.sql(&select).await.unwrap();
            let mut begun = session.sql(&select).await.unwrap();
            let first = begun.next().await.unwrap().unwrap();
            for sql in ["CALL split_partition('{t}', 0)", "CALL merge_partitions('{t}', 5, 1)"] {
                engine.sql(&sql.replace("{t}", table)).await.unwrap();
            }
            assert_eq!(ids(&unread.collect().await.unwrap()), expected, "{table}: planned before");
            let mut rest = begun.collect().await.unwrap();
            rest.push(first);
            assert_eq!(ids(&rest), expected, "{table}: begun before");
            assert_eq!(ids(&engine.sql(&select).await.unwrap()), expected, "{table}: after");
        }
    });
}

#[test]
fn writers_and_readers_meet_every_row_once_while_partitions_are_split_and_merged() {
    const TURNS: i64 = 8;
    runtime::run(async {
        let following = Following::start(3, 4).await;
        let engine = &following.rig.engine;
        for table in TABLES {
            let (is_over, written) = (AtomicBool::new(false), AtomicUsize::new(0));
            let write = async {
                for turn in 0..TURNS {
                    let from = ROWS + turn * 10;
                    engine.append(table, vec![batch(from..from + 10)]).await.unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                    let which = format!("WHERE id % 50 = {}", turn * 3);
                    let sql = format!("UPDATE {table} SET id = id + 100000 {which}");
                    engine.sql(&sql).await.unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                    engine.sql(&format!("DELETE FROM {table} {which}")).await.unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
                is_over.store(true, Ordering::Relaxed);
            };
            let reshape = async {
                let mut done = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let has = ordinals(engine, table);
                    let at = done % (has.len() - 1);
                    let sql = if done % 2 == 0 {
                        format!("CALL split_partition('{table}', {})", has[at])
                    } else {
                        format!("CALL merge_partitions('{table}', {}, {})", has[at], has[at + 1])
                    };
                    // No more than one for each statement, so that writers get through.
                    let before = written.load(Ordering::Relaxed);
                    engine.sql(&sql).await.unwrap_or_else(|e| panic!("{sql}: {}", e.line()));
                    done += 1;
                    while written.load(Ordering::Relaxed) == before {
                        if is_over.load(Ordering::Relaxed) {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                }
                done
            };
            let read = async {
                while !is_over.load(Ordering::Relaxed) {
                    let sql = format!("SELECT id, times(id) FROM {table}");
                    let answer = engine.sql(&sql).await.unwrap();
                    for batch in &answer {
                        let column = |i: usize| batch.column(i).as_primitive::<Int64Type>();
                        let mut pairs = column(0).values().iter().zip(column(1).values());
                        assert!(pairs.all(|(id, value)| id * 2 == *value), "{table}");
                    }
                    let ids = ids(&answer);
                    assert!(ids.is_sorted_by(|one, next| one < next), "{table}: a row is twice");
                }
            };
            let ((), done, ()) = futures::join!(write, reshape, read);
            assert!(done > 0);
            let mut expected: BTreeSet<i64> = (0..ROWS).collect();
            for turn in 0..TURNS {
                let from = ROWS + turn * 10;
                expected.extend(from..from + 10);
                let hit = |id: &i64| id % 50 == turn * 3;
                let moved: Vec<i64> = expected.iter().copied().filter(hit).collect();
                expected.retain(|id| !moved.contains(id));
                expected.extend(moved.iter().map(|id| id + 100_000));
                expected.retain(|id| !hit(id));
            }
            let left = ids(&engine.sql(&format!("SELECT id FROM {table}")).await.unwrap());
            assert_eq!(left, expected.into_iter().collect::<Vec<_>>(), "{table}");
            following.evaluated(&format!("SELECT id, times(id) FROM {table}"), 2).await;
        }
    });
}

#[test]
fn a_layout_survives_a_restart_and_keys_find_their_rows() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let start = async || {
            let config = Config::default().with_data_dir(folder.path().to_owned()).unwrap();
            let engine = Engine::builder().config(config).manual_ticks(true).keep_state(true);
            engine.start().await.unwrap()
        };
        let engine = start().await;
        engine
            .sql(
                "CREATE EXTERNAL TABLE r (id BIGINT, v BIGINT) STORED AS DELTA PARTITIONED BY (id) \
                 LOCATION '' OPTIONS ('strategy' 'range', 'bounds' '100')",
            )
            .await
            .unwrap();
        engine.sql("INSERT INTO r SELECT value, value * 2 FROM range(0, 300)").await.unwrap();
        assert_eq!(numbers(&engine, "CALL split_partition('r', 0, '40')").await, [2, 40, 3, 60]);
        assert_eq!(numbers(&engine, "CALL merge_partitions('r', 3, 1)").await, [4, 260]);
        engine.shutdown().await.unwrap();
        let engine = start().await;
        assert_eq!(ordinals(&engine, "r"), [2, 4]);
        let sql = "SELECT \"partition\", \"range\", rows FROM system.partitions ORDER BY 1";
        let rows = arrow::util::pretty::pretty_format_batches(&engine.sql(sql).await.unwrap());
        let rows = rows.unwrap().to_string();
        assert!(rows.contains("| 2         | id < 40  | 40 "), "{rows}");
        assert!(rows.contains("| 4         | id >= 40 | 260 "), "{rows}");
        engine.sql("INSERT INTO r VALUES (39, 0), (40, 0), (NULL, 0)").await.unwrap();
        for (key, count) in [("= 39", 2), ("= 40", 2), ("= 299", 1), ("IS NULL", 1)] {
            let sql = format!("SELECT id FROM r WHERE id {key}");
            let found: usize =
                engine.sql(&sql).await.unwrap().iter().map(RecordBatch::num_rows).sum();
            assert_eq!(found, count, "{sql}");
        }
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_hash_key_finds_its_rows_in_the_part_that_has_them() {
    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        for sql in [
            "CALL split_partition('t', 0)",
            "CALL split_partition('t', 3)",
            "CALL merge_partitions('t', 5, 1)",
        ] {
            numbers(&rig.engine, sql).await;
        }
        for id in [0, 1, 2, 3, 77, 500, ROWS - 1, ROWS + 5] {
            rig.same(&format!("SELECT id, x, f(x) FROM t WHERE id = {id}")).await;
            rig.same(&format!("SELECT id, y FROM t WHERE id IN ({id}, {})", id / 2)).await;
        }
        rig.append(batch(ROWS..ROWS + 50)).await;
        rig.same("SELECT y, count(*), sum(f(x)) FROM t GROUP BY y").await;
        rig.same(&format!("SELECT id, f(x) FROM t WHERE id = {}", ROWS + 5)).await;
    });
}

#[test]
fn what_cannot_be_split_or_merged_says_why() {
    runtime::run(async {
        let rig = Rig::start(1, 4).await;
        let engine = &rig.engine;
        let (schema, rows) = (batch(0..9).schema(), vec![batch(0..9)]);
        engine.create_memory_table("plain", schema, Partitioning::single(), rows).await.unwrap();
        for (sql, expected) in [
            ("CALL split_partition('t', 9)", "FS-PARTITION-7"),
            ("CALL split_partition('t', 0, '5')", "leave the key value out"),
            ("CALL split_partition('t', 'x')", "see system.partitions"),
            ("CALL merge_partitions('t', 0, 2)", "not neighbours"),
            ("CALL merge_partitions('t', 0, 0)", "FS-PARTITION-8"),
            ("CALL split_partition('nobody', 0)", "FS-SQL-2"),
            ("CALL split_partition('plain', 0)", "FS-PARTITION-10"),
            ("CALL merge_partitions('t', 0)", "there is no procedure"),
        ] {
            let error = refused(engine, sql).await;
            assert!(error.contains(expected), "{sql}: {error}");
        }
        // All rows of one key stay together.
        engine
            .sql(
                "CREATE EXTERNAL TABLE one (id BIGINT) STORED AS MEMORY PARTITIONED BY (id) \
                 LOCATION 'memory' OPTIONS ('partitions' '1')",
            )
            .await
            .unwrap();
        engine.sql("INSERT INTO one VALUES (7), (7), (7)").await.unwrap();
        let error = refused(engine, "CALL split_partition('one', 0)").await;
        assert!(error.contains("all its rows have the same key"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.parquet");
        let copy = format!("COPY plain TO '{}' STORED AS PARQUET", file.display());
        engine.sql(&copy).await.unwrap();
        let create =
            format!("CREATE EXTERNAL TABLE files STORED AS PARQUET LOCATION '{}'", file.display());
        engine.sql(&create).await.unwrap();
        let error = refused(engine, "CALL split_partition('files', 0)").await;
        assert!(error.contains("read-only"), "{error}");
        assert_eq!(ordinals(engine, "t"), [0, 1, 2, 3]);
    });
}
