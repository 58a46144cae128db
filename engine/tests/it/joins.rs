//! Joins in which DataFusion panics.

use crate::rig::Rig;
use crate::support::runtime;

#[test]
fn nan_is_joined_with_nan_when_joins_are_to_be_merged() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for sql in [
                "CREATE TABLE a (id BIGINT, f DOUBLE)",
                "CREATE TABLE b (g DOUBLE)",
                "INSERT INTO a SELECT id, CASE WHEN id % 3 = 0 THEN CAST('NaN' AS DOUBLE) ELSE x END FROM t",
                "INSERT INTO b SELECT CASE WHEN id % 4 = 0 THEN CAST('NaN' AS DOUBLE) ELSE 2 * x END FROM t",
            ] {
                rig.ask(sql).await.unwrap();
                rig.plain.sql(sql).await.unwrap().collect().await.unwrap();
            }
            // A group of NaN goes on from batch to batch.
            for set in ["optimizer.prefer_hash_join = false", "execution.batch_size = 8"] {
                rig.ask(&format!("SET datafusion.{set}")).await.unwrap();
            }
            for sql in [
                "SELECT id FROM a WHERE EXISTS (SELECT 1 FROM b WHERE b.g = a.f)",
                "SELECT id FROM a WHERE NOT EXISTS (SELECT 1 FROM b WHERE b.g = a.f)",
                "SELECT id FROM a WHERE EXISTS (SELECT 1 FROM b WHERE b.g = a.f AND b.g > a.id - 600)",
                "SELECT id FROM a WHERE f IN (SELECT g FROM b) OR id = 7",
                "SELECT count(*) FROM a JOIN b ON a.f = b.g",
            ] {
                rig.same(sql).await;
            }
            let merged = rig.plan("SELECT id FROM t WHERE id IN (SELECT x FROM t)").await;
            assert!(merged.contains("SortMergeJoinExec"), "{merged}");
        }
    });
}

#[test]
fn merged_joins_keep_the_columns_that_only_their_filter_reads() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            rig.ask("SET datafusion.optimizer.prefer_hash_join = false").await.unwrap();
            for sql in [
                "SELECT a.id, b.id FROM t a JOIN t b ON a.x = b.id AND a.y <> b.y",
                "SELECT b.id FROM t a JOIN t b ON a.x = b.id AND a.y + 1 < b.y WHERE a.id > 3",
                "SELECT a.id FROM t a WHERE EXISTS (SELECT 1 FROM t b WHERE b.id = a.x AND b.y > a.y)",
                "SELECT count(*), sum(b.id) FROM t a LEFT JOIN t b ON a.x = b.id AND a.y < b.y",
            ] {
                let plan = rig.plan(sql).await;
                assert!(plan.contains("SortMergeJoinExec") && plan.contains("filter="), "{plan}");
                rig.same(sql).await;
            }
        }
    });
}
