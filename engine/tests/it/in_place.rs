//! Joins of tables that are partitioned by the keys they are joined by: without an exchange where partitions
//! lie together, and with the answers of plain DataFusion in any case.

use foreshard_policy::ids::{NodeId, PartitionId};

use crate::rig::Rig;
use crate::support::runtime;

/// Tables that are joined, as their partitions are made: `u` by its key like `t`, `w` by another column.
async fn start(nodes: u32, settings: &[(&str, &str)]) -> Rig {
    let rig = Rig::start_with(nodes, 4, settings, vec![]).await;
    for (table, key, rows) in [
        ("u", "id", "SELECT 2 * id AS id, x AS v FROM t"),
        ("w", "v", "SELECT id, CASE WHEN y > 0 THEN 3 * id END AS v FROM t"),
    ] {
        let create = format!(
            "CREATE EXTERNAL TABLE {table} (id BIGINT, v BIGINT) STORED AS MEMORY PARTITIONED BY ({key})
             LOCATION 'memory' OPTIONS ('partitions' '4')"
        );
        rig.ask(&create).await.unwrap();
        rig.ask(&format!("INSERT INTO {table} {rows}")).await.unwrap();
        let plain = rig.plain.sql(&format!("CREATE TABLE {table} AS {rows}")).await.unwrap();
        plain.collect().await.unwrap();
    }
    // Small tables are given to all nodes otherwise.
    for setting in ["", "_rows"] {
        let name = format!("datafusion.optimizer.hash_join_single_partition_threshold{setting}");
        rig.ask(&format!("SET {name} = 0")).await.unwrap();
    }
    rig
}

/// Puts each partition on the node of its number, all tables alike.
async fn put_together(rig: &Rig, nodes: u32, tables: &[&str]) {
    let members = rig.engine.members();
    for table in tables {
        for ordinal in 0..4 {
            let partition = PartitionId::new(*table, ordinal);
            let to = NodeId(ordinal % nodes);
            members.copy(&partition, to).await.unwrap();
            let holders = members.placement().holders[&partition].clone();
            for other in holders.into_iter().filter(|node| *node != to) {
                members.drop_replica(&partition, other).await.unwrap();
            }
        }
    }
}

async fn is_in_place(rig: &Rig, sql: &str) -> bool {
    let plan = rig.plan(sql).await;
    let scans = plan.matches("PartitionScanExec").count();
    let there = plan.matches(", co-located groups=").count();
    assert!(there == 0 || there == 2 || there == scans, "{sql}\n{plan}");
    assert!(there == 0 || there < scans || !plan.contains("partitioning=Hash([id"), "{plan}");
    there > 0
}

/// Joins of all kinds by the key of both tables.
const BY_KEY: [&str; 12] = [
    "SELECT a.id, x, v FROM t a JOIN u b ON a.id = b.id",
    "SELECT a.id, f(x), v FROM t a JOIN u b ON a.id = b.id WHERE y < 3 AND f(v) > 5",
    "SELECT a.id, x, v FROM t a LEFT JOIN u b ON a.id = b.id AND v > 20",
    "SELECT a.id, x, b.id, v FROM t a RIGHT JOIN u b ON b.id = a.id",
    "SELECT a.id, x, b.id, v FROM t a FULL JOIN u b ON a.id = b.id",
    "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.id = t.id AND u.v > t.y)",
    "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.id = t.id)",
    "SELECT a.id, count(*), sum(v) FROM t a JOIN u b ON a.id = b.id GROUP BY a.id",
    "SELECT y, count(*), sum(v), min(f(x)) FROM t a JOIN u b ON a.id = b.id GROUP BY y",
    "SELECT a.id, v FROM t a JOIN u b ON a.id = b.id ORDER BY v DESC NULLS LAST, a.id LIMIT 7",
    "SELECT count(*), sum(a.x + b.y) FROM t a JOIN t b ON a.id = b.id AND a.x <> b.y",
    "SELECT t.id, q.v FROM t JOIN (SELECT v, id AS k FROM u WHERE v > 3) q ON t.id = q.k",
];

#[test]
fn joins_by_the_keys_of_both_tables_take_no_exchange_where_partitions_lie_together() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = start(nodes, &[]).await;
            put_together(&rig, nodes, &["t", "u"]).await;
            for sql in BY_KEY {
                assert!(is_in_place(&rig, sql).await, "{sql}\n{}", rig.plan(sql).await);
                rig.same(sql).await;
            }
            // A split of one side: both parts are in the range of the other side's partition.
            let old = PartitionId::new("t", 2);
            rig.engine.members().split(&old, None).await.unwrap();
            for sql in BY_KEY {
                assert!(is_in_place(&rig, sql).await, "{sql}");
                rig.same(sql).await;
            }
            rig.ask("SET foreshard.colocated_joins = false").await.unwrap();
            assert!(!is_in_place(&rig, BY_KEY[0]).await);
            rig.same(BY_KEY[0]).await;
        }
    });
}

/// Joins in which rows of equal keys need not be in partitions of the same number, or where another input
/// counts on the number.
const OTHERS: [&str; 6] = [
    "SELECT a.id, w.id FROM t a JOIN w ON a.id = w.id",
    "SELECT a.id, b.id FROM t a JOIN u b ON a.id = b.v",
    "SELECT a.id, b.id FROM t a JOIN u b ON a.id = b.id + 1",
    "SELECT a.id, w.id FROM t a JOIN u b ON a.id = b.id JOIN w ON w.id = a.id",
    "SELECT a.id FROM (SELECT id FROM t LIMIT 50) a JOIN u b ON a.id = b.id",
    "SELECT a.id, n FROM (SELECT id, count(*) AS n FROM t GROUP BY id) a JOIN u b ON a.id = b.id",
];

#[test]
fn other_joins_stay_as_they_are() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = start(nodes, &[]).await;
            put_together(&rig, nodes, &["t", "u", "w"]).await;
            for sql in OTHERS {
                assert!(!is_in_place(&rig, sql).await, "{sql}\n{}", rig.plan(sql).await);
                // Which fifty is not said.
                if !sql.contains("LIMIT") {
                    rig.same(sql).await;
                }
            }
            // By the key of `w`, which may be NULL.
            let sql = "SELECT a.id, w.id FROM t a FULL JOIN w ON a.id = w.v";
            assert!(is_in_place(&rig, sql).await);
            rig.same(sql).await;
        }
    });
}

#[test]
fn the_loop_brings_what_is_joined_to_one_node_and_says_why() {
    runtime::run(async {
        // Rows are few here, and a tick is short: each join counts.
        let settings =
            [("loop.reshape.dwell-ticks", "0"), ("loop.reshape.payback-ticks", "100000")];
        let rig = start(2, &settings).await;
        let members = rig.engine.members();
        for ordinal in 0..4 {
            let (here, there) = (NodeId(ordinal % 2), NodeId(1 - ordinal % 2));
            for (table, to, other) in [("t", here, there), ("u", there, here)] {
                let partition = PartitionId::new(table, ordinal);
                members.copy(&partition, to).await.unwrap();
                if members.placement().holders[&partition].contains(&other) {
                    members.drop_replica(&partition, other).await.unwrap();
                }
            }
        }
        let sql = "SELECT f(a.id), v FROM t a JOIN u b ON a.id = b.id";
        assert!(!is_in_place(&rig, sql).await);
        let mut ticks = 0;
        while !is_in_place(&rig, sql).await {
            for _ in 0..20 {
                rig.same(sql).await;
            }
            rig.engine.tick().await;
            ticks += 1;
            assert!(ticks < 60, "{}", rig.plan(sql).await);
        }
        let why =
            "SELECT reason FROM system.decisions WHERE kind = 'move' AND reason LIKE 'joined: %'
                   AND outcome LIKE 'done%'";
        assert!(rig.ask(why).await.unwrap().batches.iter().any(|rows| rows.num_rows() > 0));
    });
}
