//! What queries leave behind for each other: values of rows, whoever asked for them, and states of partial
//! aggregates. Each answer is compared with plain DataFusion's.

use std::sync::atomic::Ordering;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;

use crate::rig::{ROWS, Rig, batch, eventually};
use crate::support::functions::of_int;
use crate::support::oracle::{Rows, compare};
use crate::support::redefined::Redefined;
use crate::support::runtime;

/// Evaluated rows of `sql`, after the same answer as plain DataFusion's.
async fn evaluated(rig: &Rig, sql: &str) -> u64 {
    let (ours, plain) = rig.same(sql).await;
    assert!(ours <= plain, "{sql}: {ours} rows evaluated, plain evaluates {plain}");
    rig.settle().await;
    ours
}

#[test]
fn a_query_computes_only_rows_that_nobody_computed() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            for (sql, is_new) in [
                ("SELECT id, f(x) FROM t WHERE y < 2", true),
                ("SELECT id, f(x) FROM t WHERE y = 1", false),
                ("SELECT sum(f(x)) FROM t WHERE y IN (0, 1) AND id > 300", false),
                ("SELECT max(f(x)) FROM t WHERE y BETWEEN 1 AND 3", true),
                ("SELECT CASE WHEN y = 5 THEN f(x) WHEN y = 2 THEN -f(x) END FROM t", true),
                ("SELECT id FROM t WHERE y = 5 OR (y = 3 AND f(x) > 4)", false),
                (
                    "SELECT count(*) FILTER (WHERE f(x) > 9), sum(f(x)) FILTER (WHERE y < 4) FROM t",
                    true,
                ),
                ("SELECT id, f(x) FROM t ORDER BY f(x) DESC, id LIMIT 9", false),
                ("SELECT a.id FROM t a JOIN t b ON f(a.x) = b.id WHERE a.y = 6", false),
            ] {
                assert_eq!(evaluated(&rig, sql).await > 0, is_new, "{sql} on {nodes} nodes");
                assert_eq!(evaluated(&rig, sql).await, 0, "{sql} again on {nodes} nodes");
                rig.outputs_are_right();
            }
        }
    });
}

#[test]
fn what_a_query_computed_before_it_was_dropped_is_kept() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        rig.ask("SET datafusion.execution.batch_size = 10").await.unwrap();
        let answer = rig.ask("SELECT id FROM t WHERE f(x) > 0 LIMIT 3").await.unwrap();
        assert_eq!(answer.batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 3);
        // What reads the rows ends a moment after the answer.
        eventually("it is stored", || rig.outputs_are_right() >= 3).await;
        let kept = rig.outputs_are_right();
        assert!(kept < ROWS as usize, "{kept} rows");
    });
}

#[test]
fn queries_that_need_a_value_at_the_same_time_compute_it_once() {
    runtime::run(async {
        let (card, udf, rows) = of_int("slow", |value| {
            std::thread::sleep(std::time::Duration::from_micros(50));
            Ok(Some(value * 2))
        });
        let rig = Rig::start_with(1, 4, &[], vec![(card, udf)]).await;
        let queries = [
            "SELECT id, slow(x) FROM t",
            "SELECT max(slow(x)) FROM t",
            "SELECT id FROM t WHERE slow(x) > 7",
            "SELECT slow(x), count(*) FROM t GROUP BY 1",
        ];
        let answers = futures::future::join_all(queries.map(|sql| rig.ask(sql))).await;
        for answer in answers {
            answer.unwrap();
        }
        let together = rows.swap(0, Ordering::Relaxed);
        rig.ask("CALL drop_stored()").await.unwrap();
        rig.ask(queries[0]).await.unwrap();
        assert_eq!(together, rows.load(Ordering::Relaxed), "as many as one query alone");
    });
}

#[test]
fn a_segment_whose_stored_values_all_fail_a_filter_is_not_read() {
    runtime::run(async {
        // Rows of the files do not fit into memory; outputs do.
        let rig = Rig::start_with(1, 1, &[("loop.allocate.memory-bytes", "1048576")], vec![]).await;
        let files = tempfile::tempdir().unwrap();
        let wide = "SELECT value AS id, repeat(blake3_hex(CAST(value AS VARCHAR)), 2) AS pad \
                    FROM generate_series";
        for (file, range) in [("a", "(1, 10000)"), ("b", "(20001, 30000)")] {
            let file = files.path().join(format!("{file}.parquet"));
            let sql = format!("COPY ({wide}{range}) TO '{}' STORED AS PARQUET", file.display());
            rig.ask(&sql).await.unwrap();
        }
        let url = format!("file://{}", files.path().display());
        rig.engine.open_parquet_table("wide", &url, 1).await.unwrap();
        let ask = async |sql: &str| {
            let answer = rig.ask(sql).await.unwrap();
            arrow::util::pretty::pretty_format_batches(&answer.batches).unwrap().to_string()
        };
        assert!(ask("SELECT count(f(id)) FROM wide").await.contains("20000"));
        rig.settle().await;
        let sql = "SELECT count(*), max(pad) IS NULL FROM wide WHERE f(id) > 25000";
        assert!(ask(sql).await.contains("| 5001     | false"), "{}", ask(sql).await);
        let none = "SELECT id, pad FROM wide WHERE f(id) = 12500";
        let plan = ask(&format!("EXPLAIN ANALYZE {none}")).await;
        assert!(plan.contains("segments_skipped=2") && plan.contains("output_rows=0"), "{plan}");
        let plan = ask(&format!("EXPLAIN ANALYZE {}", none.replace("12500", "20500"))).await;
        assert!(plan.contains("segments_skipped=1"), "{plan}");
    });
}

#[test]
fn one_value_has_one_name_however_it_is_written() {
    runtime::run(async {
        let rig = Rig::start(1, 4).await;
        assert!(evaluated(&rig, "SELECT f(x + 1) FROM t").await > 0);
        for sql in [
            "SELECT f(1 + x) AS other, id FROM t",
            "SELECT id FROM (SELECT *, 1 + x AS z FROM t) WHERE f(z) > 3",
        ] {
            assert_eq!(evaluated(&rig, sql).await, 0, "{sql}");
        }
        assert!(evaluated(&rig, "SELECT f(x - 1) FROM t").await > 0, "another value");
    });
}

#[test]
fn rows_with_equal_arguments_are_evaluated_once() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        let rows = evaluated(&rig, "SELECT f(y) FROM t").await;
        // Seven values in each of six segments.
        assert_eq!(rows, 7 * 6);
    });
}

/// The counters of `sql`'s partial aggregates, summed up.
pub(crate) async fn counted(rig: &Rig, sql: &str, counter: &str) -> u64 {
    let answer = rig.ask(&format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
    let mut sum = 0;
    for batch in &answer.batches {
        for plan in batch.column(1).as_string::<i32>().iter().flatten() {
            let is_ours =
                |line: &&str| ["PartialReuse", "KeptGroups"].iter().any(|it| line.contains(it));
            let reuse = plan.lines().filter(is_ours);
            let found = reuse.filter_map(|line| line.split(&format!("{counter}=")).nth(1));
            let digits = |rest: &str| {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                rest[..end].parse::<u64>().unwrap()
            };
            sum += found.map(digits).sum::<u64>();
        }
    }
    sum
}

#[test]
fn a_repeated_aggregate_reads_its_states_and_an_append_adds_one_each() {
    let queries = [
        "SELECT y, count(*), sum(x), avg(x), min(x), max(id) FROM t GROUP BY y",
        "SELECT count(x), sum(id) FROM t WHERE y > 2",
        "SELECT y % 2 AS odd, sum(f(x)) FROM t WHERE id > 40 GROUP BY y % 2",
        "SELECT count(DISTINCT y), stddev(x), bool_and(x > 0), median(x) FROM t",
        "SELECT y, x % 2, count(*) FROM t GROUP BY ROLLUP (y, x % 2)",
        "SELECT DISTINCT y FROM t",
        "SELECT sum(x) FILTER (WHERE y = 1), count(*) FROM t HAVING count(*) > 3",
    ];
    runtime::run(async move {
        for (nodes, partitions) in [(1, 1), (1, 4), (3, 4)] {
            let rig = Rig::start(nodes, partitions).await;
            for sql in queries {
                rig.same(sql).await;
                rig.settle().await;
                let (again, _) = rig.same(sql).await;
                assert_eq!(again, 0, "{sql}");
                assert_eq!(counted(&rig, sql, "segments_computed").await, 0, "{sql}");
                let stored = counted(&rig, sql, "segments_stored").await;
                assert!(stored >= 6, "{sql}: {stored} states on {nodes} nodes");
            }
            rig.append(batch(ROWS..ROWS + 50)).await;
            for sql in queries {
                let before = counted(&rig, sql, "segments_stored").await;
                rig.settle().await;
                rig.same(sql).await;
                assert!(before >= 6 && counted(&rig, sql, "segments_computed").await == 0, "{sql}");
            }
        }
    });
}

#[test]
fn a_state_is_stored_if_it_is_much_smaller_than_its_rows_whatever_its_batches() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        rig.append(batch(ROWS..ROWS + 40_000)).await;
        // A state of 3,000 groups comes in 30 pieces of one buffer.
        rig.ask("SET datafusion.execution.batch_size = 100").await.unwrap();
        for (groups, is_stored) in [(3_000, true), (20_000, false)] {
            let sql = format!("SELECT id % {groups} AS g, sum(x), count(*) FROM t GROUP BY 1");
            for _ in 0..2 {
                rig.same(&sql).await;
                rig.settle().await;
            }
            let stored = counted(&rig, &sql, "segments_stored").await;
            assert_eq!(stored == 7, is_stored, "{groups} groups: {stored} states");
        }
    });
}

#[test]
fn a_state_is_stored_for_nothing_that_could_make_it_another() {
    runtime::run(async {
        let rig = Rig::start(1, 4).await;
        for sql in [
            "SELECT y FROM t GROUP BY y LIMIT 2",
            "SELECT count(*) FROM (SELECT * FROM t LIMIT 50)",
            "SELECT sum(CAST(random() * 10 AS BIGINT)) FROM t",
            "SELECT array_agg(x) FROM t WHERE y = 1",
            "SELECT count(*) FROM t a FULL JOIN t b ON a.id = b.x",
            "SELECT count(*) FROM t a JOIN (SELECT x FROM t LIMIT 9) b ON a.id = b.x",
            "SELECT count(*) FROM t a JOIN (SELECT x FROM t WHERE f(x) > 3) b ON a.id = b.x",
            "SELECT id, x FROM t ORDER BY id LIMIT 4",
            "SELECT id FROM t ORDER BY f(x) + random() LIMIT 4",
        ] {
            let plan = rig.plan(sql).await;
            assert!(!plan.contains("PartialReuseExec"), "{sql}\n{plan}");
        }
        rig.ask("SET foreshard.use_partials = false").await.unwrap();
        let plan = rig.plan("SELECT count(x) FROM t").await;
        assert!(!plan.contains("PartialReuseExec"), "{plan}");
    });
}

#[test]
fn a_redefined_function_has_no_old_states() {
    use crate::support::functions::of_int;
    use foreshard_udfs::{Card, CostClass};

    runtime::run(async {
        let rig = Rig::start(3, 4).await;
        let sql = "SELECT sum(f(x)) FROM t WHERE y < 5";
        let sum = |rows: &Rows| rows.batches[0].column(0).as_primitive::<Int64Type>().value(0);
        let first = sum(&rig.ask(sql).await.unwrap());
        let rows = rig.ask("SELECT count(x) FROM t WHERE y < 5").await.unwrap();
        let rows = sum(&rows);
        for more in 2..5 {
            rig.settle().await;
            let (_, udf, _) = of_int("f", move |value| Ok(Some(value + more)));
            let card = Card::immutable("f", "1", CostClass::Dear, "made for tests", "f(1)");
            rig.engine.register_function(card, udf).unwrap();
            for _ in 0..2 {
                assert_eq!(sum(&rig.ask(sql).await.unwrap()), first + rows * (more - 1));
                rig.settle().await;
            }
        }
    });
}

#[test]
fn a_function_that_answers_by_a_setting_has_no_values_of_another_setting() {
    runtime::run(async {
        let here = Redefined::default().named("here").unwrap();
        let rig = Rig::start_with(3, 4, &[], vec![here]).await;
        let wanted = [
            ("time_zone = '+05:00'", "+05:00, permissive"),
            ("enable_ansi_mode = true", "+05:00, ansi"),
            ("time_zone = '-08:00'", "-08:00, ansi"),
            ("enable_ansi_mode = false", "-08:00, permissive"),
        ];
        for (setting, answer) in wanted {
            rig.ask(&format!("SET datafusion.execution.{setting}")).await.unwrap();
            for sql in ["SELECT here(id) FROM t", "SELECT min(here(id)) FROM t"] {
                for _ in 0..2 {
                    let rows = rig.ask(sql).await.unwrap();
                    for batch in rows.batches.iter().filter(|batch| batch.num_rows() > 0) {
                        let values = batch.column(0).as_string::<i32>();
                        let text = values.value(0);
                        assert!(text.contains(answer), "{text} after SET {setting}: {sql}");
                    }
                    rig.settle().await;
                }
            }
        }
    });
}

#[test]
fn a_change_of_rows_replaces_the_states_of_their_segments() {
    runtime::run(async {
        let rig = Rig::start(1, 4).await;
        let sql = "SELECT y, count(*), sum(x) FROM t GROUP BY y";
        rig.same(sql).await;
        rig.settle().await;
        for change in ["UPDATE t SET x = x + 100 WHERE y = 3", "DELETE FROM t WHERE id % 5 = 0"] {
            rig.ask(change).await.unwrap();
            let unstored = "SELECT y, count(*), sum(x) FROM (SELECT *, random() AS r FROM t) \
                            WHERE r >= 0 GROUP BY y";
            let plain = rig.ask(unstored).await.unwrap();
            for _ in 0..2 {
                let ours = rig.ask(sql).await.unwrap();
                compare(&Ok(plain.clone()), &Ok(ours), false).unwrap();
                rig.settle().await;
            }
        }
    });
}

#[test]
fn a_function_that_only_pretends_to_be_immutable_is_found_out() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use crate::support::functions::of_int;
    use foreshard_udfs::{Card, CostClass};

    runtime::run(async {
        let sum_of_ids = (0..ROWS).sum::<i64>();
        for (sql, first, calls) in [
            ("SELECT id, moody(id) FROM t ORDER BY id LIMIT 1", 0, 1),
            ("SELECT count(*), sum(moody(id)) FROM t", sum_of_ids, ROWS),
        ] {
            let drift = Arc::new(AtomicI64::new(0));
            let outer = Arc::clone(&drift);
            let (_, udf, _) =
                of_int("moody", move |value| Ok(Some(value + outer.load(Ordering::Relaxed))));
            let card = Card::immutable("moody", "1", CostClass::Dear, "made for tests", "moody(1)");
            let rig = Rig::start_with(3, 4, &[], vec![(card, udf)]).await;
            rig.ask("SET foreshard.check_every = 1").await.unwrap();
            let value = async || {
                let rows = rig.ask(sql).await.unwrap();
                rig.settle().await;
                rows.batches[0].column(1).as_primitive::<Int64Type>().value(0)
            };
            let found = async || {
                let sql = "SELECT count(*) FROM system.decisions WHERE kind = 'quarantine'";
                let rows = rig.ask(sql).await.unwrap();
                rows.batches[0].column(0).as_primitive::<Int64Type>().value(0)
            };
            assert_eq!((value().await, value().await, found().await), (first, first, 0), "{sql}");
            drift.store(7, Ordering::Relaxed);
            value().await;
            while found().await == 0 {
                tokio::task::yield_now().await;
            }
            rig.settle().await;
            let rows = rig.ask("SELECT * FROM system.outputs").await.unwrap();
            assert!(
                rows.batches.iter().all(|batch| batch.num_rows() == 0),
                "nothing of it is left"
            );
            assert_eq!(value().await, first + 7 * calls, "it is called again: {sql}");
            drift.store(8, Ordering::Relaxed);
            assert_eq!(value().await, first + 8 * calls, "and not stored: {sql}");
        }
    });
}

#[test]
fn outputs_are_computed_and_thrown_away_by_hand() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            // What was computed is stored when the statement has ended, not some time later.
            for _ in 0..20 {
                rig.ask("CALL drop_stored('t')").await.unwrap();
                rig.ask("CALL precompute('t', 'f(x)')").await.unwrap();
                assert_eq!(rig.outputs_are_right(), ROWS as usize);
            }
            assert_eq!(evaluated(&rig, "SELECT f(x) FROM t").await, 0);
            rig.ask("call drop_stored('t')").await.unwrap();
            assert_eq!(rig.outputs_are_right(), 0);
            assert!(evaluated(&rig, "SELECT f(x) FROM t").await > 0);
            rig.ask("CALL drop_stored()").await.unwrap();
            for (sql, code) in [
                ("CALL precompute('nowhere', 'f(x)')", "unknown table nowhere"),
                ("CALL precompute('t', 'f(z)')", "unknown column z"),
                ("CALL precompute('t', 'x + 1')", "x + 1 is not stored"),
                ("CALL precompute('t')", "no procedure precompute with 1 arguments"),
                ("CALL drop_stored(t)", "arguments are texts"),
                ("CALL nothing()", "no procedure nothing"),
            ] {
                let error = rig.ask(sql).await.unwrap_err();
                assert!(error.contains(code), "{sql}: {error}");
            }
        }
    });
}
