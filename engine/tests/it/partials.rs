//! States over segments of what is more than an aggregate of one table: joins with small tables, first rows;
//! and the order in which states are merged.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type};

use crate::reuse::counted;
use crate::rig::{ROWS, Rig, batch};
use crate::support::oracle::Rows;
use crate::support::runtime;

/// Runs a statement here and in plain DataFusion.
async fn both(rig: &Rig, sql: &str) {
    rig.ask(sql).await.unwrap();
    rig.plain.sql(sql).await.unwrap().collect().await.unwrap();
}

/// Fails unless `sql` is answered like plain DataFusion, from at least so many stored states the second time.
pub(crate) async fn stores(rig: &Rig, sql: &str, states: u64) {
    for _ in 0..2 {
        rig.same(sql).await;
        rig.settle().await;
    }
    let (again, _) = rig.same(sql).await;
    let stored = counted(rig, sql, "segments_stored").await;
    assert!(again == 0 && stored >= states, "{sql}: {stored} states\n{}", rig.plan(sql).await);
    assert_eq!(counted(rig, sql, "segments_computed").await, 0, "{sql}");
}

/// Aggregates of `t` joined with a small table.
const OVER_JOINS: [&str; 6] = [
    "SELECT d.name, count(*), sum(f(t.x)) FROM t JOIN d ON t.y = d.k GROUP BY d.name",
    "SELECT count(*), count(d.k), sum(d.k * t.x) FROM t LEFT JOIN d ON t.y = d.k AND t.id > d.k * 9",
    "SELECT sum(x) FROM t WHERE y IN (SELECT k FROM d WHERE name <> 'n2')",
    "SELECT y % 2, count(*) FROM t WHERE NOT EXISTS (SELECT 1 FROM d WHERE d.k = t.y) GROUP BY 1",
    "SELECT a.name, max(t.id) FROM t JOIN d a ON t.y = a.k JOIN d b ON t.x = b.k GROUP BY a.name",
    "SELECT count(*) FROM t WHERE EXISTS (SELECT 1 FROM d WHERE d.k = t.y) OR x = 3",
];

#[test]
fn states_below_a_join_with_a_small_table_are_stored_until_that_table_changes() {
    runtime::run(async move {
        for partitions in [1, 4] {
            let rig = Rig::start(1, partitions).await;
            both(&rig, "CREATE TABLE d AS SELECT * FROM (VALUES (1, 'n1'), (2, 'n2'), (4, 'n4')) v(k, name)")
                .await;
            for sql in OVER_JOINS {
                stores(&rig, sql, 6).await;
            }
            let named =
                "SELECT count(DISTINCT text) FROM system.partials WHERE text LIKE '% of t with d%'";
            assert_eq!(
                rig.ask(named).await.unwrap().batches[0]
                    .column(0)
                    .as_primitive::<Int64Type>()
                    .value(0),
                6
            );
            // The third time the plan is the same but for what it reads.
            for values in ["(3, 'n3')", "(2, 'again')", "(6, 'n6')"] {
                both(&rig, &format!("INSERT INTO d VALUES {values}")).await;
                for sql in OVER_JOINS {
                    assert_eq!(counted(&rig, sql, "segments_stored").await, 0, "{sql}");
                    stores(&rig, sql, 6).await;
                }
            }
            rig.settle().await;
            rig.append(batch(ROWS..ROWS + 50)).await;
            for sql in OVER_JOINS {
                assert!(counted(&rig, sql, "segments_stored").await >= 6, "{sql}");
                rig.settle().await;
                stores(&rig, sql, 7).await;
            }
        }
    });
}

#[test]
fn states_below_a_join_are_stored_on_several_nodes() {
    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        both(
            &rig,
            "CREATE TABLE d AS SELECT * FROM (VALUES (1, 'n1'), (2, 'n2'), (4, 'n4')) v(k, name)",
        )
        .await;
        for sql in OVER_JOINS {
            for _ in 0..3 {
                rig.same(sql).await;
                rig.settle().await;
            }
        }
        for sql in OVER_JOINS {
            assert_eq!(counted(&rig, sql, "segments_computed").await, 0, "{sql}");
        }
        let used = "SELECT count(DISTINCT text) FROM system.partials WHERE text LIKE '% of t with d%' \
                    AND uses > 0";
        let used = rig.ask(used).await.unwrap();
        assert_eq!(used.batches[0].column(0).as_primitive::<Int64Type>().value(0), 6);
        for values in ["(3, 'n3')", "(2, 'again')", "(6, 'n6')"] {
            both(&rig, &format!("INSERT INTO d VALUES {values}")).await;
            for sql in OVER_JOINS {
                for _ in 0..2 {
                    rig.same(sql).await;
                    rig.settle().await;
                }
            }
            rig.append(batch(ROWS + 1_000..ROWS + 1_040)).await;
        }
    });
}

#[test]
fn first_rows_by_a_function_are_stored() {
    let queries = [
        "SELECT id, f(x) FROM t ORDER BY f(x) DESC, id LIMIT 5",
        "SELECT id FROM t WHERE y < 4 ORDER BY f(x) NULLS FIRST, id DESC LIMIT 7 OFFSET 3",
        "SELECT f(x) FROM t WHERE f(y) > 2 ORDER BY f(x), 1 LIMIT 3",
    ];
    runtime::run(async move {
        for (nodes, partitions) in [(1, 1), (1, 4), (3, 4)] {
            let rig = Rig::start(nodes, partitions).await;
            for sql in queries {
                stores(&rig, sql, 6).await;
            }
            rig.append(batch(ROWS..ROWS + 50)).await;
            for sql in queries {
                stores(&rig, sql, 7).await;
            }
        }
    });
}

#[test]
fn first_rows_by_a_column_are_stored_where_the_sort_leaves_out_no_segment() {
    let stored = [
        "SELECT y, x FROM t ORDER BY y DESC, x LIMIT 5",
        "SELECT y FROM t WHERE x > 3 ORDER BY y LIMIT 7 OFFSET 3",
    ];
    runtime::run(async move {
        for (nodes, partitions) in [(1, 1), (1, 4), (3, 4)] {
            let rig = Rig::start(nodes, partitions).await;
            for sql in stored {
                stores(&rig, sql, 6).await;
            }
            rig.append(batch(ROWS..ROWS + 50)).await;
            for sql in stored {
                stores(&rig, sql, 7).await;
            }
            // The sort tells the scan that newer segments have all of the first rows, or which rows are
            // not worth a call.
            for sql in [
                "SELECT id FROM t ORDER BY id DESC LIMIT 5",
                "SELECT f(x), y FROM t ORDER BY y, x LIMIT 5",
            ] {
                rig.same(sql).await;
                assert!(!rig.plan(sql).await.contains("PartialReuse"), "{sql}");
            }
        }
    });
}

#[test]
fn first_rows_of_a_segment_are_its_own_whatever_others_have() {
    runtime::run(async {
        for (nodes, partitions) in [(1, 1), (1, 4), (3, 2)] {
            let rig = Rig::start(nodes, partitions).await;
            let queries = [
                "SELECT id FROM t ORDER BY f(id) LIMIT 3",
                "SELECT id FROM t ORDER BY f(id) DESC LIMIT 4",
                "SELECT id, y FROM t ORDER BY f(y), id LIMIT 5",
            ];
            for least in [0, 200, 400] {
                both(&rig, &format!("DELETE FROM t WHERE id < {least} OR id > {}", 1_250 - least))
                    .await;
                for sql in queries {
                    stores(&rig, sql, 1).await;
                }
            }
        }
    });
}

/// Groups with the bits of two floats each.
fn bits(answer: &Rows) -> BTreeMap<i64, [u64; 2]> {
    let of_batch = |batch: &arrow::array::RecordBatch| {
        let groups = batch.column(0).as_primitive::<Int64Type>().clone();
        let bits = |column: usize, row: usize| {
            batch.column(column).as_primitive::<Float64Type>().value(row).to_bits()
        };
        let rows =
            (0..batch.num_rows()).map(|row| (groups.value(row), [1, 2].map(|c| bits(c, row))));
        rows.collect::<Vec<_>>()
    };
    answer.batches.iter().flat_map(of_batch).collect()
}

#[test]
fn a_repeated_query_gives_floats_of_the_same_bits() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            rig.ask("SET datafusion.execution.target_partitions = 4").await.unwrap();
            for id in (ROWS..ROWS + 400).step_by(10) {
                rig.append(batch(id..id + 10)).await;
            }
            for sql in [
                "SELECT 0, sum(1e0 / (id + 1)), stddev(1e0 / (id + 2)) FROM t",
                "SELECT y, sum(1e0 / (id + 1)), stddev(1e0 / (id + 2)) FROM t GROUP BY y",
            ] {
                let first = bits(&rig.ask(sql).await.unwrap());
                for _ in 0..40 {
                    let again = bits(&rig.ask(sql).await.unwrap());
                    assert_eq!(again, first, "{sql} on {nodes} nodes");
                }
            }
        }
    });
}

/// How many fragments, and how many shapes of them, there are states of.
async fn fragments_and_shapes(rig: &Rig) -> (i64, i64) {
    let sql = "SELECT count(DISTINCT fragment), count(DISTINCT shape) FROM system.partials";
    let answer = rig.ask(sql).await.unwrap();
    let count =
        |column: usize| answer.batches[0].column(column).as_primitive::<Int64Type>().value(0);
    (count(0), count(1))
}

#[test]
fn queries_that_differ_in_their_literals_only_have_one_shape_and_states_of_their_own() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 1).await;
            let mut expected = (0, 0);
            for (queries, fragments) in [
                (["SELECT sum(x) FROM t WHERE y > 2", "SELECT sum(x) FROM t WHERE y > 5"], 2),
                (["SELECT max(x) FROM t WHERE y > 2", "SELECT max(x) FROM t WHERE y > -1"], 2),
                (
                    [
                        "SELECT y, sum(f(x + 1)) FROM t GROUP BY y",
                        "SELECT y, sum(f(x + 2)) FROM t GROUP BY y",
                    ],
                    2,
                ),
                (
                    [
                        "SELECT id FROM t ORDER BY f(id) LIMIT 3",
                        "SELECT id FROM t ORDER BY f(id) LIMIT 4",
                    ],
                    2,
                ),
            ] {
                for sql in queries {
                    for _ in 0..2 {
                        rig.same(sql).await;
                        rig.settle().await;
                    }
                }
                expected = (expected.0 + fragments, expected.1 + 1);
                assert_eq!(fragments_and_shapes(&rig).await, expected, "{queries:?}");
            }
        }
    });
}
