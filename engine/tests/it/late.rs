//! Calls above joins, sorts and limits: evaluated where plain DataFusion evaluates them, but never on a row
//! whose value somebody stored, and once for a row that a join repeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::rig::{ROWS, Rig, batch};
use crate::support::functions::of_int;
use crate::support::runtime;

/// Queries whose call no scan can take, and rows that are evaluated again each time: those that an outer
/// join makes up, once per task.
const QUERIES: [(&str, u64); 11] = [
    ("SELECT a.id, b.id, slow(a.x) FROM t a JOIN t b ON a.id = b.y WHERE b.id < 300", 0),
    ("SELECT slow(a.x), count(*) FROM t a JOIN t b ON a.id = b.y GROUP BY 1", 0),
    ("SELECT a.id, slow(b.x) FROM t a LEFT JOIN t b ON a.id = b.id + 900", 8),
    (
        "SELECT a.id FROM t a LEFT JOIN t b ON a.id = b.id + 900 WHERE slow(a.x) > coalesce(b.y, 3)",
        0,
    ),
    (
        "SELECT a.id, slow(b.x) FROM t a FULL JOIN t b ON a.id = b.id + 900 WHERE a.y < 5 OR b.y < 3",
        8,
    ),
    ("SELECT slow(x), id FROM (SELECT x, id FROM t ORDER BY id DESC LIMIT 50)", 0),
    ("SELECT slow(c), id FROM (SELECT x + y AS c, id FROM t WHERE y IN (SELECT x FROM t))", 0),
    ("SELECT sum(slow(a.x)), min(slow(b.x)) FROM t a, t b WHERE b.id < 9 AND a.id < b.id + 20", 0),
    (
        "SELECT CASE WHEN slow(a.x) > 5 THEN slow(a.x) END, slow(a.y) FROM t a JOIN t b ON a.id = b.y",
        0,
    ),
    (
        "SELECT slow(a.y) FROM t a LEFT JOIN t b ON a.id = b.id + 900 \
         WHERE slow(a.x) > coalesce(b.y, 3)",
        0,
    ),
    ("SELECT a.id, slow(slow(a.x)) + slow(b.x) FROM t a JOIN t b ON a.y = b.id AND a.id > b.x", 0),
];

async fn rig(nodes: u32) -> (Rig, Arc<AtomicU64>) {
    let (card, udf, rows) = of_int("slow", |value| {
        std::thread::sleep(Duration::from_micros(10));
        Ok(Some(value * 2))
    });
    (Rig::start_with(nodes, 4, &[], vec![(card, udf)]).await, rows)
}

/// Rows on which `slow` is evaluated: here, and in plain DataFusion, whose answer is the same.
async fn evaluated(rig: &Rig, rows: &AtomicU64, sql: &str) -> (u64, u64) {
    rows.store(0, Ordering::Relaxed);
    rig.ask(sql).await.unwrap();
    let ours = rows.swap(0, Ordering::Relaxed);
    rig.settle().await;
    rig.same(sql).await;
    rig.settle().await;
    (ours, rows.load(Ordering::Relaxed))
}

#[test]
fn a_call_above_a_join_is_evaluated_once_for_each_row_of_its_table() {
    runtime::run(async {
        for nodes in [1, 3] {
            for (sql, again) in QUERIES {
                let (rig, rows) = rig(nodes).await;
                let plan = rig.plan(sql).await;
                assert!(plan.contains("LateCallExec"), "{sql}\n{plan}");
                let (first, plain) = evaluated(&rig, &rows, sql).await;
                assert!(0 < first && first <= plain, "{sql}: {first} rows, plain {plain}");
                let (second, _) = evaluated(&rig, &rows, sql).await;
                assert!(second <= again, "{sql} on {nodes} nodes: {second} rows the second time");
            }
        }
    });
}

#[test]
fn joins_that_sort_and_sessions_that_store_nothing() {
    runtime::run(async {
        let (rig, rows) = rig(3).await;
        rig.ask("SET datafusion.optimizer.prefer_hash_join = false").await.unwrap();
        for (sql, again) in QUERIES {
            let (_, plain) = evaluated(&rig, &rows, sql).await;
            assert!(plain > 0, "{sql}");
            let (second, _) = evaluated(&rig, &rows, sql).await;
            assert!(second <= again, "{sql}: {second} rows the second time");
        }
        rig.ask("SET foreshard.use_outputs = false").await.unwrap();
        let (sql, _) = QUERIES[0];
        let (first, _) = evaluated(&rig, &rows, sql).await;
        assert!(first > 0, "nothing stored is read");
        assert!(!rig.plan(sql).await.contains("LateCallExec"));
    });
}

#[test]
fn a_row_that_a_join_repeats_is_evaluated_once() {
    runtime::run(async {
        let (rig, rows) = rig(1).await;
        // Seven rows of a, each some 170 times, in two tasks.
        let sql = "SELECT b.id, slow(a.x) FROM t a JOIN t b ON a.id = b.y";
        rig.ask(sql).await.unwrap();
        let ours = rows.load(Ordering::Relaxed);
        assert!((1..=14).contains(&ours), "{ours} rows evaluated");
    });
}

#[test]
fn an_appended_row_is_evaluated_and_the_others_are_not() {
    runtime::run(async {
        let (rig, rows) = rig(3).await;
        let sql = "SELECT a.id, slow(a.x) FROM t a JOIN t b ON a.id = b.id";
        evaluated(&rig, &rows, sql).await;
        rig.append(batch(ROWS..ROWS + 30)).await;
        let (ours, _) = evaluated(&rig, &rows, sql).await;
        assert!((1..=30).contains(&ours), "{ours} rows evaluated");
    });
}

#[test]
fn what_fails_fails_and_branches_are_not_evaluated_early() {
    runtime::run(async {
        let (rig, _) = rig(1).await;
        let fails = "SELECT unlucky(a.x) FROM t a JOIN t b ON a.id = b.id";
        let error = rig.ask(fails).await.unwrap_err();
        assert!(error.contains("unlucky value 13"), "{error}");
        rig.same(
            "SELECT CASE WHEN a.x <> 13 THEN unlucky(a.x) END FROM t a JOIN t b ON a.id = b.id",
        )
        .await;
        rig.same("SELECT unlucky(a.x) FROM t a JOIN t b ON a.id = b.id AND a.x <> 13").await;
    });
}
