//! Dynamic filters: what a top-k or a join learns while it runs leaves segments out of the scan below it,
//! and rows ahead of function calls, and never a row out of an answer.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::datasource::MemTable;
use foreshard_actors::partitioning::Partitioning;

use crate::explain::sum;
use crate::rig::Rig;
use crate::support::oracle::{Rows, answer_of, compare};
use crate::support::runtime;

/// Dynamic filters of top-k and of joins.
const OFF: [&str; 2] = [
    "SET datafusion.optimizer.enable_topk_dynamic_filter_pushdown = false",
    "SET datafusion.optimizer.enable_join_dynamic_filter_pushdown = false",
];

/// Makes a table of one partition here, one segment per batch, and the same in plain DataFusion.
async fn table(rig: &Rig, name: &str, batches: Vec<RecordBatch>) {
    let schema = batches[0].schema();
    let single = Partitioning::Hash { columns: vec!["id".to_owned()], partitions: 1 };
    rig.engine.create_memory_table(name, Arc::clone(&schema), single, vec![]).await.unwrap();
    for batch in &batches {
        rig.engine.append(name, vec![batch.clone()]).await.unwrap();
    }
    let plain = MemTable::try_new(schema, vec![batches]).unwrap();
    rig.plain.register_table(name, Arc::new(plain)).unwrap();
}

/// An engine with `t` in one partition of six segments, by ascending `id`, and `few` with two of its ids.
async fn rig(nodes: u32) -> Rig {
    let rig = Rig::start(nodes, 1).await;
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![7, 700]));
    let few = RecordBatch::try_from_iter_with_nullable([("id", ids, false)]).unwrap();
    table(&rig, "few", vec![few]).await;
    rig
}

/// Segments of the scans of `sql` that were not opened.
async fn pruned(rig: &Rig, sql: &str) -> u64 {
    let plan = rig.stages(sql).await;
    let lines: Vec<String> = plan.lines().map(str::to_owned).collect();
    sum(&lines, "segments_pruned")
}

/// Rows on which `f` is evaluated with dynamic filters and without; the answers are the same.
async fn evaluated(sql: &str) -> (u64, u64) {
    let (with, _) = rig(1).await.same(sql).await;
    let without = rig(1).await;
    for setting in OFF {
        without.ask(setting).await.unwrap();
    }
    (with, without.same(sql).await.0)
}

#[test]
fn a_top_k_reads_the_segments_that_may_hold_a_better_row() {
    runtime::run(async {
        let rig = rig(1).await;
        insta::assert_snapshot!(rig.plan("SELECT id, y FROM t ORDER BY id LIMIT 3").await, @r"
        SortPreservingMergeExec: [id@0 ASC NULLS LAST], fetch=3
          SortExec: TopK(fetch=3), expr=[id@0 ASC NULLS LAST], preserve_partitioning=[true]
            PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[id, y], dynamic=[DynamicFilter [ empty ]]
        ");
        // Two tasks with three segments each: the first one of each is read before anything is known.
        for (sql, least) in [
            ("SELECT id, y FROM t ORDER BY id LIMIT 3", 4),
            ("SELECT id, y FROM t ORDER BY id DESC LIMIT 3", 2),
            ("SELECT id, x FROM t ORDER BY id DESC, x LIMIT 200", 2),
            ("SELECT * FROM (SELECT id AS a, id + 1 AS b FROM t) ORDER BY a LIMIT 3", 4),
        ] {
            assert!(pruned(&rig, sql).await >= least, "{sql}\n{}", rig.stages(sql).await);
            rig.same(sql).await;
        }
        // Each segment holds some of the values of the next one.
        let overlapping = |first: i64| {
            let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + 10));
            RecordBatch::try_from_iter_with_nullable([("id", ids, false)]).unwrap()
        };
        let batches = (0..12).map(|number| overlapping(number * 4)).collect();
        table(&rig, "steps", batches).await;
        for order in ["ASC", "DESC"] {
            let sql = format!("SELECT id FROM steps ORDER BY id {order} LIMIT 5");
            assert!(pruned(&rig, &sql).await >= 4, "{sql}");
            rig.same(&sql).await;
        }
        // Every segment holds every y.
        let sql = "SELECT y FROM t ORDER BY y LIMIT 3";
        assert!(!rig.plan(sql).await.contains("dynamic="));
        rig.same(sql).await;
        rig.ask(OFF[0]).await.unwrap();
        assert_eq!(pruned(&rig, "SELECT id, y FROM t ORDER BY id LIMIT 3").await, 0);
    });
}

#[test]
fn a_join_reads_the_segments_that_may_hold_a_match() {
    runtime::run(async {
        let rig = rig(1).await;
        let sql = "SELECT t.id, t.y FROM t JOIN few ON t.id = few.id ORDER BY t.id";
        // Rows 7 and 700 lie in the first and the fourth segment.
        assert_eq!(pruned(&rig, sql).await, 4, "{}", rig.stages(sql).await);
        rig.same(sql).await;
    });
}

#[test]
fn a_call_is_evaluated_on_rows_that_a_top_k_or_a_join_may_take() {
    runtime::run(async {
        // No two rows have the same argument: each one is evaluated. `f` also filters the rows of `few`.
        for (sql, most) in [
            ("SELECT id FROM t WHERE f(id) > 5 ORDER BY id DESC LIMIT 10", 800),
            ("SELECT id, f(id) FROM t WHERE f(id) > 5 ORDER BY y, id LIMIT 1", 400),
            ("SELECT t.id FROM t JOIN few ON t.id = few.id WHERE f(t.id) > 5", 10),
            (
                "SELECT t.id, t.v FROM (SELECT id, f(id) AS v FROM t) t \
                 JOIN few ON t.id = few.id WHERE v > 5",
                10,
            ),
            ("SELECT id FROM t WHERE f(id) > 5 AND id IN (SELECT id FROM few)", 10),
        ] {
            let (with, without) = evaluated(sql).await;
            assert!(0 < with && with <= most && with < without, "{sql}: {with} of {without} rows");
        }
    });
}

#[test]
fn what_was_computed_for_some_rows_is_stored_for_these_and_no_others() {
    runtime::run(async {
        let rig = rig(1).await;
        rig.same("SELECT t.id FROM t JOIN few ON t.id = few.id WHERE f(t.x) > 5").await;
        rig.same("SELECT id FROM t WHERE f(x) > 5 ORDER BY y, id LIMIT 1").await;
        rig.settle().await;
        assert!(rig.outputs_are_right() > 0);
        rig.same("SELECT id, f(x) FROM t").await;
        rig.settle().await;
        assert_eq!(rig.same("SELECT sum(f(x)) FROM t").await.0, 0);
    });
}

#[test]
fn a_state_stands_for_its_whole_segment_whatever_joins_what_is_above_it() {
    let states = [
        "SELECT id, sum(f(x)) FROM t GROUP BY id",
        "SELECT min(id), max(y + 1), max(f(x)) FROM t",
        "SELECT y, count(*) FROM t GROUP BY y",
    ];
    runtime::run(async move {
        for nodes in [1, 3] {
            let rig = rig(nodes).await;
            for sql in [
                "SELECT g.id, g.s FROM (SELECT id, sum(f(x)) AS s FROM t GROUP BY id) g JOIN few ON g.id = few.id",
                "SELECT id, sum(f(x)) FROM t GROUP BY id ORDER BY id DESC LIMIT 3",
                "SELECT sum(f(t.x)) FROM t JOIN few ON t.id = few.id",
                "SELECT min(id), max(y + 1), max(f(x)) FROM t",
                "SELECT y, count(*) FROM t GROUP BY y ORDER BY y LIMIT 1",
            ] {
                rig.same(sql).await;
                rig.settle().await;
                for state in states {
                    rig.same(state).await;
                }
                rig.settle().await;
                rig.same(sql).await;
            }
            rig.ask("SET foreshard.use_partials = false").await.unwrap();
            for state in states {
                rig.same(state).await;
            }
        }
    });
}

#[test]
fn below_a_limit_and_an_aggregate_no_filter_is_used() {
    runtime::run(async {
        let rig = rig(1).await;
        for sql in [
            "SELECT t.id FROM few JOIN (SELECT id FROM t WHERE y < 2 LIMIT 50) t ON t.id = few.id",
            "SELECT t.id FROM few JOIN (SELECT id FROM t LIMIT 50) t ON t.id = few.id",
            "SELECT t.id FROM few JOIN (SELECT id FROM t WHERE f(x) > 2 LIMIT 50) t ON t.id = few.id",
            "SELECT g.s FROM few JOIN (SELECT id, sum(y) AS s FROM t GROUP BY id) g ON g.id = few.id",
            "SELECT min(id), max(y + 1) FROM t",
            "SELECT f(x) AS v FROM t ORDER BY v LIMIT 5",
        ] {
            let plan = rig.plan(sql).await;
            let of_t = plan.lines().filter(|line| line.contains("table=t,"));
            assert!(of_t.clone().count() > 0, "{plan}");
            assert!(!of_t.into_iter().any(|line| line.contains("dynamic=")), "{sql}\n{plan}");
        }
    });
}

#[test]
fn joins_of_all_kinds_give_the_rows_of_plain_datafusion() {
    let partitioned = [
        "SET datafusion.optimizer.hash_join_single_partition_threshold = 0",
        "SET datafusion.optimizer.hash_join_single_partition_threshold_rows = 0",
    ];
    runtime::run(async move {
        for nodes in [1, 3] {
            let rig = rig(nodes).await;
            for settings in [&[][..], &partitioned] {
                for setting in settings {
                    rig.ask(setting).await.unwrap();
                }
                for sql in [
                    "SELECT t.id, f(t.x) FROM t LEFT JOIN few ON t.id = few.id WHERE f(t.x) > 30",
                    "SELECT t.id, few.id FROM few LEFT JOIN t ON t.id = few.id + 1 AND f(t.x) > 3",
                    "SELECT t.id, few.id FROM few FULL JOIN t ON t.id = few.id WHERE f(t.y) > 5",
                    "SELECT id FROM t WHERE f(x) > 3 AND id NOT IN (SELECT id FROM few)",
                    "SELECT id FROM few WHERE id NOT IN (SELECT x FROM t WHERE f(y) > 3)",
                    "SELECT id FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.x = few.id AND f(t.y) > 3)",
                    "SELECT id FROM few WHERE EXISTS (SELECT 1 FROM t WHERE t.x = few.id AND f(t.y) > 3)",
                    "SELECT id FROM few WHERE id > 100 OR id IN (SELECT x FROM t WHERE f(y) > 3)",
                    "SELECT a.id, b.id FROM t a JOIN t b ON a.x = b.id AND a.y = b.y WHERE f(b.x) > 3",
                    "SELECT count(*) FROM t a JOIN t b ON a.x IS NOT DISTINCT FROM b.x WHERE f(a.y) > 3 AND b.id < 12",
                    "SELECT x, id FROM t WHERE f(y) > 1 INTERSECT SELECT x, id FROM t WHERE id > 1000",
                    "SELECT a.id FROM t a JOIN few ON a.id = few.id JOIN t b ON b.id = a.x WHERE f(b.x) > 3 ORDER BY a.id LIMIT 4",
                    "SELECT t.id FROM t JOIN (SELECT id FROM few WHERE id > 10000) none ON t.id = none.id WHERE f(t.x) > 3",
                ] {
                    rig.same(sql).await;
                    rig.settle().await;
                    rig.same(sql).await;
                }
            }
        }
    });
}

/// Segments of floats with NaN and both zeros, of NULLs alone, of texts and of numbers, all disjoint.
fn odd() -> Vec<RecordBatch> {
    let (nan, minus_zero) = (Some(f64::NAN), Some(-0.0));
    let floats = [
        [Some(1.5), Some(2.5), nan],
        [None, None, None],
        [minus_zero, Some(0.0), Some(-3.0)],
        [Some(-f64::NAN), Some(f64::INFINITY), None],
        [Some(9.0), Some(8.0), Some(7.0)],
    ];
    let numbers = [
        [Some(10), Some(11), None],
        [None, None, None],
        [Some(30), Some(31), Some(32)],
        [Some(i64::MAX), None, Some(40)],
        [Some(-5), Some(-4), Some(i64::MIN)],
    ];
    let texts =
        [["b", "c", "d"], ["e", "f", "g"], ["", "a", "aa"], ["z", "é", "y"], ["h", "i", "j"]];
    let segment = |(number, floats): (usize, &[Option<f64>; 3])| {
        let first = 3 * number as i64;
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + 3));
        let floats: ArrayRef = Arc::new(Float64Array::from(floats.to_vec()));
        let numbers: ArrayRef = Arc::new(Int64Array::from(numbers[number].to_vec()));
        let texts: ArrayRef = Arc::new(StringArray::from(texts[number].to_vec()));
        RecordBatch::try_from_iter_with_nullable([
            ("id", ids, false),
            ("v", floats, true),
            ("n", numbers, true),
            ("s", texts, false),
        ])
        .unwrap()
    };
    floats.iter().enumerate().map(segment).collect()
}

#[test]
fn keys_that_are_null_nan_or_zero_lose_no_row() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        table(&rig, "odd", odd()).await;
        for key in ["v", "n", "s", "n % 7", "-v"] {
            for order in ["ASC", "DESC", "ASC NULLS FIRST", "DESC NULLS LAST"] {
                for limit in [1, 2, 4, 7, 14] {
                    for filter in ["true", "f(id) > 2"] {
                        rig.same(&format!(
                            "SELECT id, v, n, s FROM odd WHERE {filter} ORDER BY {key} {order}, id LIMIT {limit}"
                        ))
                        .await;
                    }
                }
            }
        }
        for key in ["v", "n", "s"] {
            for filter in ["a.id < 9", "a.id > 5", "a.n IS NULL", "a.v = 0.0"] {
                for op in ["=", "IS NOT DISTINCT FROM"] {
                    rig.same(&format!(
                        "SELECT a.id, b.id FROM odd a JOIN odd b ON a.{key} {op} b.{key} WHERE {filter} AND f(b.id) > 0"
                    ))
                    .await;
                }
            }
        }
        assert!(pruned(&rig, "SELECT id FROM odd ORDER BY n DESC NULLS LAST LIMIT 1").await > 0);
        assert!(pruned(&rig, "SELECT id FROM odd ORDER BY n NULLS FIRST LIMIT 1").await > 0);
        assert!(!rig.plan("SELECT id FROM odd ORDER BY v LIMIT 1").await.contains("dynamic="));
    });
}

#[test]
fn a_prepared_statement_starts_with_no_filter_each_time() {
    runtime::run(async {
        let rig = rig(1).await;
        for sql in [
            "SELECT id FROM t WHERE f(x) > 5 ORDER BY id DESC LIMIT 10",
            "SELECT t.id FROM t JOIN few ON t.id = few.id WHERE f(t.x) > 5 ORDER BY t.id",
        ] {
            let plain = answer_of(&rig.plain, sql).await;
            let prepared = rig.session.prepare(sql).await.unwrap();
            for _ in 0..3 {
                let stream = rig.session.execute(&prepared, vec![]).await.unwrap();
                let schema = stream.schema();
                let ours = Ok(Rows { schema, batches: stream.collect().await.unwrap() });
                compare(&plain, &ours, true).unwrap();
                rig.settle().await;
            }
        }
    });
}

#[test]
fn each_round_of_a_recursive_query_starts_with_no_filter() {
    runtime::run(async {
        let rig = rig(1).await;
        rig.ask("SET datafusion.optimizer.join_reordering = false").await.unwrap();
        for next in [
            "SELECT t.id, r.n + 1 FROM r JOIN t ON t.id = r.id + 200 WHERE r.n < 3",
            "SELECT t.id, r.n + 1 FROM r, (SELECT id FROM t WHERE f(x) > 1 ORDER BY id LIMIT 3) t \
             WHERE r.n < 2",
        ] {
            let rounds =
                format!("WITH RECURSIVE r (id, n) AS (SELECT id, 0 FROM few UNION ALL {next})");
            let sql = format!("{rounds} SELECT id, n FROM r ORDER BY id, n");
            let plan = rig.plan(&sql).await;
            assert!(plan.contains("dynamic="), "{plan}");
            rig.same(&sql).await;
        }
    });
}
