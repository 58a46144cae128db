//! What DataFusion takes for constant and is not: keys of sorts, groups of grouping sets, partitions of
//! windows. Answers are right all the same, on one node and on three.

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;

use crate::rig::{ROWS, Rig};
use crate::support::runtime;

/// Rows in the order of the answer, NULL as -1.
async fn ordered_rows(rig: &Rig, sql: &str) -> Vec<Vec<i64>> {
    let answer = rig.ask(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let of_batch = |batch: &RecordBatch| -> Vec<Vec<i64>> {
        let columns: Vec<_> =
            batch.columns().iter().map(|c| c.as_primitive::<Int64Type>()).collect();
        let value =
            |row: usize| move |c: &&Int64Array| if c.is_null(row) { -1 } else { c.value(row) };
        (0..batch.num_rows()).map(|row| columns.iter().map(value(row)).collect()).collect()
    };
    answer.batches.iter().flat_map(of_batch).collect()
}

#[test]
fn a_sort_key_that_is_constant_before_an_outer_join_is_still_sorted_by() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            let sql = "SELECT b.y, a.id FROM t a LEFT JOIN (SELECT * FROM t WHERE y = 1) b ON a.id = b.id + 1 \
                       ORDER BY 1 NULLS FIRST, 2";
            for parallel in [2, 3] {
                let set = format!("SET datafusion.execution.target_partitions = {parallel}");
                rig.ask(&set).await.unwrap();
                let rows = ordered_rows(&rig, sql).await;
                assert_eq!(rows.len(), ROWS as usize);
                assert!(rows.is_sorted(), "{parallel} on {nodes} nodes\n{}", rig.plan(sql).await);
            }
        }
    });
}

#[test]
fn a_group_that_is_constant_in_one_grouping_set_comes_once() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for set in ["execution.batch_size = 17", "optimizer.repartition_aggregations = false"] {
                rig.ask(&format!("SET datafusion.{set}")).await.unwrap();
                for join in
                    ["", "LEFT ANTI JOIN (SELECT id AS k FROM t WHERE id < 9) b ON a.id = k"]
                {
                    let sql = format!(
                        "SELECT count(*), sum(a.id) FROM t a {join} GROUP BY CUBE ((a.id = a.id))"
                    );
                    let rows = ordered_rows(&rig, &sql).await;
                    assert_eq!(rows.len(), 2, "{rows:?} of {sql}\n{}", rig.plan(&sql).await);
                }
            }
        }
    });
}

#[test]
fn a_window_may_be_partitioned_by_a_constant_on_several_nodes() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for sql in [
                "SELECT max(n) OVER (PARTITION BY c) FROM (SELECT CASE WHEN id IS NULL THEN 1 END AS c, \
                 count(DISTINCT y) AS n FROM t GROUP BY 1)",
                "SELECT id, sum(x) OVER (PARTITION BY y ORDER BY id) FROM t WHERE y = 3",
                "SELECT id, y, count(*) OVER (PARTITION BY y, x) FROM t WHERE y = 3 AND x > 5",
            ] {
                rig.same(sql).await;
            }
        }
    });
}

#[test]
fn a_window_over_all_rows_sees_all_of_them_in_one_partition() {
    runtime::run(async {
        for nodes in [1, 2, 3] {
            let rig = Rig::start(nodes, 4).await;
            rig.ask("SET datafusion.execution.target_partitions = 1").await.unwrap();
            for sql in [
                "SELECT sum(id) OVER () AS c, max(x) OVER (PARTITION BY y % 5) AS d FROM t WHERE x > y",
                "SELECT max(a.x) OVER (PARTITION BY v.y % 5) AS c, sum(a.id) OVER () AS d FROM t a \
                 JOIN (VALUES (1), (2), (7)) v (y) ON a.y < v.y OR a.id < 20",
                "SELECT max(a.x) OVER (PARTITION BY upper(v.y)) AS c, sum(a.id) OVER () AS d FROM t a \
                 CROSS JOIN (VALUES ('a'), ('b'), (NULL)) v (y) WHERE v.y <> 'a' OR a.id < 21",
            ] {
                // What stands beside it is what brings the shuffle to several nodes.
                for beside in [
                    "",
                    "EXCEPT SELECT a.x, a.id + b.id FROM t a JOIN t b ON a.x = b.id",
                    "UNION ALL SELECT y, x FROM t GROUP BY y, x",
                ] {
                    rig.same(&format!("SELECT * FROM ({sql}) {beside}")).await;
                }
            }
        }
    });
}

#[test]
fn rows_are_not_left_out_by_the_sign_of_a_zero() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        rig.ask("CREATE TABLE z (f DOUBLE)").await.unwrap();
        let plain = rig.plain.sql("CREATE TABLE z (f DOUBLE)").await.unwrap();
        plain.collect().await.unwrap();
        for values in ["(0.0), (0.0)", "(CAST('-0.0' AS DOUBLE))", "(-0.0), (0.0)"] {
            let sql = format!("INSERT INTO z VALUES {values}");
            rig.ask(&sql).await.unwrap();
            rig.plain.sql(&sql).await.unwrap().collect().await.unwrap();
        }
        for zero in ["0.0", "-0.0", "CAST('-0.0' AS DOUBLE)"] {
            for predicate in [
                format!("f = {zero}"),
                format!("f <> {zero}"),
                format!("f < {zero}"),
                format!("f >= {zero}"),
                format!("f IN ({zero}, 1.5, 2.5, 3.5, 4.5)"),
                format!("f NOT IN ({zero}, 1.5, 2.5, 3.5, 4.5)"),
                format!("NOT (f IN (1.5, {zero}))"),
                format!("f BETWEEN {zero} AND 1.0"),
            ] {
                rig.same(&format!("SELECT f FROM z WHERE {predicate}")).await;
            }
        }
    });
}
