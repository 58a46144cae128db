//! Plans that cannot be sent to other nodes run on one, and give plain DataFusion's rows.

use crate::rig::Rig;
use crate::support::runtime;

/// Whether the statement has stages on other nodes.
async fn is_spread(rig: &Rig, sql: &str) -> bool {
    rig.stages(sql).await.contains("Stage 1")
}

#[test]
fn a_plan_with_a_node_that_cannot_be_encoded_runs_on_one_node() {
    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        rig.ask("SET datafusion.optimizer.enable_window_topn = true").await.unwrap();
        let top = "SELECT id, y FROM (SELECT *, row_number() OVER (PARTITION BY y ORDER BY id) AS n \
                   FROM t) WHERE n <= 3 ORDER BY id";
        let plan = rig.plan(top).await;
        assert!(plan.contains("PartitionedTopKExec"), "{plan}");
        assert!(!is_spread(&rig, top).await);
        rig.same(top).await;
        rig.ask("SHOW FUNCTIONS LIKE 'date_trunc'").await.unwrap();
        assert!(is_spread(&rig, "SELECT y, count(*) FROM t GROUP BY y").await);
    });
}

#[test]
fn a_scalar_subquery_may_stand_where_no_join_can_take_its_place() {
    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        for sql in [
            "SELECT id FROM t ORDER BY x + (SELECT max(y) FROM t), id",
            "SELECT sum(x + (SELECT max(y) FROM t)) FROM t",
            "SELECT a.id, b.id FROM t a JOIN t b ON a.id = b.id + (SELECT max(y) FROM t)",
            "SELECT id, sum(x + (SELECT max(y) FROM t)) OVER () FROM t",
            "SELECT (SELECT 42) AS k, max(f(x)) FROM t GROUP BY k",
        ] {
            assert!(!is_spread(&rig, sql).await, "{sql}");
            rig.same(sql).await;
        }
        let several = rig.ask("SELECT id FROM t ORDER BY x + (SELECT y FROM t)").await.unwrap_err();
        assert!(several.contains("more than one row"), "{several}");
    });
}

#[test]
fn a_literal_of_half_precision_stays_one() {
    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        let half = "arrow_cast(1.5, 'Float16')";
        rig.same(&format!("SELECT id, {half}, arrow_typeof({half}) FROM t")).await;
        rig.same(&format!("SELECT y, max(CASE WHEN y > 3 THEN {half} END) FROM t GROUP BY y"))
            .await;
    });
}

#[test]
fn a_recursive_query_over_a_join_asks_each_stage_once() {
    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        let sql = "WITH RECURSIVE chain AS (SELECT id, y FROM t WHERE id = 0 UNION ALL \
                   SELECT t.id, t.y FROM t JOIN chain ON t.id = chain.id + 1 WHERE t.id < 5) \
                   SELECT id, y FROM chain ORDER BY id";
        rig.same(sql).await;
    });
}

#[test]
fn a_column_that_is_selected_twice_is_in_order_under_both_names() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            rig.same("SELECT DISTINCT y AS first_seen FROM t ORDER BY y").await;
            rig.same("SELECT x AS a, x AS b, f(x) AS c, f(x) AS d FROM t ORDER BY x, c").await;
        }
    });
}
