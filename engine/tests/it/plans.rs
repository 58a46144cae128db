//! What the physical plans of function calls look like: what moves into the scan, what stays where it is,
//! and that it is seen in the number of evaluations but not in the answer.

use crate::rig::{ROWS, Rig};
use crate::support::runtime;

/// The plan of `sql`, after a check that plain DataFusion gives the same rows and evaluates `f` on at
/// least as many. Outputs are stored; a second run evaluates `again` rows.
async fn checked(sql: &str, again: u64) -> String {
    for nodes in [3, 1] {
        let rig = Rig::start(nodes, 4).await;
        let (ours, plain) = rig.same(sql).await;
        assert!(ours <= plain, "{sql}: {ours} rows evaluated, plain evaluates {plain}");
        rig.settle().await;
        rig.same("SELECT f(x) FROM t").await;
        rig.settle().await;
        assert_eq!(rig.same(sql).await.0, again, "{sql}: the second time on {nodes} nodes");
    }
    Rig::start(1, 1).await.plan(sql).await
}

#[test]
fn a_selected_call_becomes_a_column_of_the_scan() {
    runtime::run(async {
        insta::assert_snapshot!(checked("SELECT f(x) FROM t", 0).await, @r"
        ProjectionExec: expr=[__call_1@1 as f(t.x)]
          PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, f(x@1) as __call_1]
        ");
        insta::assert_snapshot!(checked("SELECT id, f(x) + 1 FROM t", 0).await, @r"
        ProjectionExec: expr=[id@0 as id, __call_2@2 + 1 as f(t.x) + Int64(1)]
          PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[id, x, f(x@1) as __call_2]
        ");
    });
}

#[test]
fn a_filter_with_a_call_moves_into_the_scan_cheap_predicates_first() {
    runtime::run(async {
        let sql = "SELECT id FROM t WHERE f(x) > 1 AND y < 2";
        insta::assert_snapshot!(checked(sql, 0).await, @"PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[id], filters=[y@2 < 2; f(x@1) > 1]");
        let rig = Rig::start(1, 1).await;
        let (ours, _) = rig.same(sql).await;
        let passed = (0..ROWS).filter(|id| id % 7 < 2).count() as u64;
        assert!(0 < ours && ours <= passed, "only rows that the cheap predicate left");
    });
}

#[test]
fn a_filter_without_a_call_stays_above_the_scan() {
    runtime::run(async {
        insta::assert_snapshot!(checked("SELECT id FROM t WHERE y < 2", 0).await, @r"
        FilterExec: y@1 < 2, projection=[id@0]
          PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[id, y]
        ");
    });
}

#[test]
fn grouping_keys_and_arguments_of_aggregates_come_from_the_scan() {
    runtime::run(async {
        insta::assert_snapshot!(checked("SELECT f(x), count(*) FROM t GROUP BY f(x)", 0).await, @r"
        ProjectionExec: expr=[f(t.x)@0 as f(t.x), count(Int64(1))@1 as count(*)]
          AggregateExec: mode=FinalPartitioned, gby=[f(t.x)@0 as f(t.x)], aggr=[count(Int64(1))]
            RepartitionExec: partitioning=Hash([f(t.x)@0], 2), input_partitions=2
              PartialReuseExec
                AggregateExec: mode=Partial, gby=[__call_1@1 as f(t.x)], aggr=[count(Int64(1))]
                  PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, f(x@1) as __call_1]
        ");
        insta::assert_snapshot!(checked("SELECT sum(f(x)) FROM t", 0).await, @r"
        AggregateExec: mode=Final, gby=[], aggr=[sum(f(t.x))]
          CoalescePartitionsExec
            PartialReuseExec
              AggregateExec: mode=Partial, gby=[], aggr=[sum(f(t.x))]
                PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, f(x@1) as __call_1]
        ");
        insta::assert_snapshot!(checked("SELECT sum(f(x)), avg(f(x)) FROM t", 0).await, @r"
        AggregateExec: mode=Final, gby=[], aggr=[sum(f(t.x)), avg(f(t.x))]
          CoalescePartitionsExec
            PartialReuseExec
              AggregateExec: mode=Partial, gby=[], aggr=[sum(f(t.x)), avg(f(t.x))]
                ProjectionExec: expr=[__call_1@1 as __common_expr_1]
                  PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, f(x@1) as __call_1]
        ");
    });
}

#[test]
fn a_call_in_a_branch_moves_into_the_scan_with_the_branch() {
    runtime::run(async {
        let sql = "SELECT CASE WHEN y < 2 THEN f(x) END FROM t";
        insta::assert_snapshot!(checked(sql, 0).await, @r"
        ProjectionExec: expr=[__call_2@2 as CASE WHEN t.y < Int64(2) THEN f(t.x) END]
          PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, y, CASE WHEN y@2 < 2 THEN f(x@1) END as __call_2]
        ");
    });
}

#[test]
fn a_call_below_the_filter_of_an_aggregate_becomes_a_branch() {
    runtime::run(async {
        let sql = "SELECT sum(f(x)) FILTER (WHERE y < 2) FROM t";
        insta::assert_snapshot!(checked(sql, 0).await, @r"
        AggregateExec: mode=Final, gby=[], aggr=[sum(f(t.x)) FILTER (WHERE t.y < Int64(2))]
          CoalescePartitionsExec
            PartialReuseExec
              AggregateExec: mode=Partial, gby=[], aggr=[sum(f(t.x)) FILTER (WHERE t.y < Int64(2))]
                PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, y, CASE WHEN y@2 < 2 THEN f(x@1) END as __call_2]
        ");
    });
}

#[test]
fn a_call_never_passes_a_limit() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        insta::assert_snapshot!(rig.plan("SELECT f(v) FROM (SELECT x AS v FROM t LIMIT 5)").await, @r"
        ProjectionExec: expr=[__late_2@2 as f(v)]
          LateCallExec: calls=[f(x@0)]
            RepartitionExec: partitioning=RoundRobinBatch(2), input_partitions=1
              CoalescePartitionsExec: fetch=5
                PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, what is known of f(x@1) as __carried_1], fetch=5
        ");
        insta::assert_snapshot!(rig.plan("SELECT id FROM (SELECT * FROM t LIMIT 50) WHERE f(x) > 1").await, @r"
        FilterExec: __late_3@3 > 1, projection=[id@0]
          LateCallExec: calls=[f(x@1)]
            RepartitionExec: partitioning=RoundRobinBatch(2), input_partitions=1
              CoalescePartitionsExec: fetch=50
                PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[id, x, what is known of f(x@1) as __carried_2], fetch=50
        ");
        // The rows that a limit leaves may be any: only their number is known.
        for (nodes, sql) in [(1, "SELECT f(x) FROM t LIMIT 5"), (3, "SELECT f(x) FROM t LIMIT 5")] {
            let rig = Rig::start(nodes, 4).await;
            let answer = rig.ask(sql).await.unwrap();
            assert_eq!(answer.batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 5);
        }
    });
}

#[test]
fn a_limit_above_a_filter_with_a_call_counts_the_rows_that_passed() {
    runtime::run(async {
        let sql = "SELECT id FROM t WHERE f(x) > 38 LIMIT 5";
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for _ in 0..2 {
                let answer = rig.ask(sql).await.unwrap();
                assert_eq!(answer.batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 5);
                rig.same("SELECT f(x) FROM t").await;
                rig.settle().await;
            }
        }
        insta::assert_snapshot!(Rig::start(1, 1).await.plan(sql).await, @r"
        CoalescePartitionsExec: fetch=5
          PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[id], filters=[f(x@1) > 38], fetch=5
        ");
    });
}

#[test]
fn both_sides_of_a_join_compute_their_keys_in_the_scan() {
    runtime::run(async {
        let sql = "SELECT a.id FROM t a JOIN t b ON f(a.x) = f(b.x) WHERE a.y < 1 AND b.y < 1";
        insta::assert_snapshot!(checked(sql, 0).await, @r"
        HashJoinExec: mode=CollectLeft, join_type=Inner, on=[(f(b.x)@1, f(a.x)@2)], projection=[id@2]
          CoalescePartitionsExec
            ProjectionExec: expr=[x@0 as x, __call_1@1 as f(b.x)]
              ProjectionExec: expr=[x@0 as x, __call_2@2 as __call_1]
                PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, y, f(x@1) as __call_2], filters=[y@2 < 1]
          ProjectionExec: expr=[id@0 as id, x@1 as x, __call_2@2 as f(a.x)]
            ProjectionExec: expr=[id@0 as id, x@1 as x, __call_3@3 as __call_2]
              PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[id, x, y, f(x@1) as __call_3], filters=[y@2 < 1]
        ");
    });
}

#[test]
fn a_sorted_call_is_computed_below_the_sort() {
    runtime::run(async {
        let sql = "SELECT f(x) AS v FROM t ORDER BY v LIMIT 5";
        insta::assert_snapshot!(checked(sql, 0).await, @r"
        SortPreservingMergeExec: [v@0 ASC NULLS LAST], fetch=5
          SortExec: TopK(fetch=5), expr=[v@0 ASC NULLS LAST], preserve_partitioning=[true]
            PartialReuseExec
              SortExec: TopK(fetch=5), expr=[v@0 ASC NULLS LAST], preserve_partitioning=[true]
                ProjectionExec: expr=[__call_1@1 as v]
                  PartitionScanExec: table=t, segments=6, rows=1200, nodes=[n0], output=[x, f(x@1) as __call_1]
        ");
    });
}

#[test]
fn a_call_of_a_random_number_stays_above_it() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        let sql = "SELECT count(*) FROM (SELECT r, f(r) AS v FROM \
                   (SELECT CAST(random() * 1000 AS BIGINT) AS r FROM t)) WHERE v <> r + 1";
        let rows = rig.ask(sql).await.unwrap();
        let text = format!("{:?}", rows.batches[0].column(0));
        assert_eq!(text, "PrimitiveArray<Int64>\n[\n  0,\n]", "each number is drawn once");
    });
}

/// Queries in which some rows must not be given to a function that fails on them.
#[test]
fn a_function_sees_no_row_that_plain_datafusion_keeps_from_it() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for sql in [
                // Computed for the output, guarded in the filter.
                "SELECT id, unlucky(x) FROM t WHERE CASE WHEN x <> 13 THEN unlucky(x) ELSE 0 END > 1",
                "SELECT sum(unlucky(x)) FROM t WHERE CASE WHEN x <> 13 THEN unlucky(x) ELSE 0 END > 1",
                "SELECT CASE WHEN x = 13 THEN 0 ELSE unlucky(x) END FROM t",
                "SELECT coalesce(x, unlucky(13)) FROM t WHERE x IS NOT NULL",
                "SELECT unlucky(x) FROM t WHERE x > 20",
                "SELECT sum(unlucky(x)) FILTER (WHERE x <> 13) FROM t",
                "SELECT x, f(x) FROM t WHERE x <> 13 AND (x < 13 OR unlucky(x) > 4)",
                "SELECT v FROM (SELECT x, unlucky(x) AS v FROM t WHERE x > 13) WHERE v > 20",
            ] {
                rig.same(sql).await;
                rig.settle().await;
                rig.same(sql).await;
            }
        }
    });
}

/// Filters that DataFusion simplifies after they were pushed down, or that lie beside sub-queries.
#[test]
fn no_filter_is_lost_on_the_way_to_the_scan() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for sql in [
                "SELECT id FROM (SELECT id, x, 1 AS one FROM t) WHERE f(one) > x",
                "SELECT id FROM (SELECT *, 1 AS one FROM t) WHERE CASE WHEN one = 1 THEN y ELSE f(x) END > 4",
                "SELECT id FROM t WHERE f(x) = (SELECT max(x) FROM t) AND y < 2",
                "SELECT id FROM t WHERE f(x) IN (SELECT x FROM t WHERE y = 1) AND y < 2",
                "SELECT id FROM t WHERE f(x) IS NULL AND y < 2",
                "SELECT id FROM t WHERE NOT (f(x) > 5) AND id > 100",
                "SELECT id FROM t WHERE f(x) > 5 AND f(f(x)) < 30 AND f(y) <> 3 AND x + f(x) > 20",
                "SELECT count(*) FROM t WHERE f(x) > 5 OR y = 2",
                "SELECT count(*) FROM t WHERE f(x) > 5 AND NULL",
                "SELECT 1 FROM t WHERE f(x) = 7",
                "SELECT count(*) FROM t WHERE f(f(x)) = f(y) + 20",
            ] {
                for _ in 0..2 {
                    rig.same(sql).await;
                    rig.settle().await;
                }
            }
        }
    });
}

#[test]
fn a_session_that_wants_no_stored_outputs_computes_all() {
    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        rig.same("SELECT f(x) FROM t").await;
        rig.settle().await;
        assert_eq!(rig.same("SELECT f(x) FROM t").await.0, 0);
        rig.ask("SET foreshard.use_outputs = false").await.unwrap();
        assert!(rig.same("SELECT f(x) FROM t").await.0 > 0);
    });
}

#[test]
fn a_scalar_sub_query_gives_one_row_or_an_error_on_any_number_of_nodes() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for sql in [
                "SELECT (SELECT x FROM t)",
                "SELECT id FROM t WHERE x = (SELECT y FROM t WHERE id < 2)",
                "SELECT id, (SELECT x FROM t WHERE y < 3 ORDER BY id LIMIT 2) FROM t",
            ] {
                let error = rig.ask(sql).await.unwrap_err();
                assert!(error.contains("more than one row"), "{sql}: {error}");
            }
            for sql in [
                "SELECT (SELECT x FROM t WHERE id = 7) AS seven, (SELECT x FROM t WHERE id < 0) AS none",
                "SELECT id FROM t WHERE x = (SELECT x FROM t WHERE id = 5) AND y > (SELECT min(y) FROM t)",
                "SELECT id FROM t WHERE x > (SELECT id FROM t WHERE id = (SELECT max(y) FROM t))",
                "SELECT a.id FROM t a WHERE a.x > (SELECT avg(b.x) FROM t b WHERE b.y = a.y)",
                "SELECT id + (SELECT y FROM t WHERE id = 4) AS more FROM t ORDER BY more LIMIT 3",
            ] {
                rig.same(sql).await;
            }
        }
    });
}
