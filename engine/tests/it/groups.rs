//! Groups that rows which came or went cannot belong to are kept, and answers stay those of plain DataFusion.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::util::pretty::pretty_format_batches;

use crate::reuse::counted;
use crate::rig::Rig;
use crate::support::runtime;

/// Groups by a column that later rows have larger values of: a day.
const BY_DAY: [&str; 4] = [
    "SELECT day, count(DISTINCT x) AS n FROM days GROUP BY day",
    "SELECT day, y, count(DISTINCT x), count(*) FROM days WHERE x <> 7 GROUP BY day, y",
    "SELECT day + 1, n FROM (SELECT count(DISTINCT y) AS n, day FROM days GROUP BY day) ORDER BY n, day LIMIT 4",
    "SELECT day, median(x), count(DISTINCT y) FROM days GROUP BY day HAVING count(DISTINCT y) > 1",
];

/// Runs a statement here and in plain DataFusion.
async fn both(rig: &Rig, sql: &str) {
    rig.ask(sql).await.unwrap();
    rig.plain.sql(sql).await.unwrap().collect().await.unwrap();
}

/// How often kept groups were used.
async fn uses(rig: &Rig) -> i64 {
    let answer =
        rig.ask("SELECT CAST(coalesce(sum(uses), 0) AS BIGINT) FROM system.groups").await.unwrap();
    answer.batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

async fn with_days(partitions: u32) -> Rig {
    let rig = Rig::start(1, partitions).await;
    both(&rig, "CREATE TABLE days AS SELECT id, x, y, nullif(id / 100, 99) AS day FROM t").await;
    rig
}

/// Appends 50 rows of the days from `day` on.
async fn append(rig: &Rig, day: i64) {
    let from = day * 100;
    let sql = format!(
        "INSERT INTO days SELECT id + {from}, x, y, (id + {from}) / 100 FROM t WHERE id < 50"
    );
    both(rig, &sql).await;
}

#[test]
fn groups_that_new_rows_do_not_belong_to_are_kept() {
    runtime::run(async {
        for partitions in [1, 4] {
            let rig = with_days(partitions).await;
            for sql in BY_DAY {
                rig.same(sql).await;
            }
            for day in 12..16 {
                append(&rig, day).await;
                let before = uses(&rig).await;
                for sql in BY_DAY {
                    rig.same(sql).await;
                    let kept = counted(&rig, sql, "groups_kept").await;
                    assert!(kept > 0, "{sql}\n{}", rig.plan(sql).await);
                }
                assert!(uses(&rig).await >= before + 4);
            }
            let plan = rig.ask(&format!("EXPLAIN {}", BY_DAY[0])).await.unwrap();
            let plan = pretty_format_batches(&plan.batches).unwrap().to_string();
            assert!(plan.contains("groups of days by day: all 16 groups are kept"), "{plan}");
        }
    });
}

#[test]
fn changed_and_deleted_rows_of_few_groups_leave_the_others() {
    runtime::run(async {
        let rig = with_days(2).await;
        for day in 12..16 {
            append(&rig, day).await;
        }
        for sql in BY_DAY {
            rig.same(sql).await;
        }
        for change in [
            "DELETE FROM days WHERE day = 15",
            "UPDATE days SET x = 0 WHERE day = 14",
            "UPDATE days SET day = 3 WHERE day = 13",
            "DELETE FROM days WHERE id % 3 = 0",
        ] {
            both(&rig, change).await;
            for sql in BY_DAY {
                rig.same(sql).await;
            }
        }
        append(&rig, 3).await;
        for sql in BY_DAY {
            rig.same(sql).await;
        }
    });
}

#[test]
fn rows_without_a_day_are_a_group_of_every_change() {
    runtime::run(async {
        let rig = with_days(2).await;
        both(&rig, "INSERT INTO days SELECT id + 9000, x, y, NULL FROM t WHERE id < 7").await;
        for sql in BY_DAY {
            rig.same(sql).await;
        }
        for more in [500, 600, 700] {
            // Segments of NULL alone have no bounds, and then nothing is used.
            both(
                &rig,
                &format!(
                    "INSERT INTO days SELECT id, x + {more}, y, CASE WHEN id % 3 > 0 THEN 20 END FROM t \
                     WHERE id < 60"
                ),
            )
            .await;
            for sql in BY_DAY {
                rig.same(sql).await;
            }
        }
        assert!(uses(&rig).await >= 12);
    });
}

#[test]
fn nothing_is_kept_of_what_any_row_may_belong_to_and_all_is_forgotten_at_once() {
    runtime::run(async {
        let rig = with_days(2).await;
        let others = [
            "SELECT count(DISTINCT x) FROM days",
            "SELECT day % 2, count(DISTINCT x) FROM days GROUP BY 1",
            "SELECT day, array_agg(x) FROM days WHERE id = 3 GROUP BY day",
            "SELECT day, count(DISTINCT f(x)) FROM days GROUP BY day",
            "SELECT day, count(DISTINCT x) FROM days GROUP BY CUBE(day)",
            "SELECT day, sum(x) FROM days GROUP BY day",
        ];
        for sql in others {
            rig.same(sql).await;
            append(&rig, 30).await;
            rig.same(sql).await;
        }
        let listed = "SELECT count(*) FROM system.groups";
        let count = |answer: crate::support::oracle::Rows| {
            answer.batches[0].column(0).as_primitive::<Int64Type>().value(0)
        };
        assert_eq!(count(rig.ask(listed).await.unwrap()), 0);
        for sql in BY_DAY {
            rig.same(sql).await;
        }
        assert_eq!(count(rig.ask(listed).await.unwrap()), 4);
        rig.ask("CALL drop_stored('t')").await.unwrap();
        assert_eq!(count(rig.ask(listed).await.unwrap()), 4);
        rig.ask("CALL drop_stored('days')").await.unwrap();
        assert_eq!(count(rig.ask(listed).await.unwrap()), 0);
        rig.same(BY_DAY[0]).await;
        both(&rig, "DROP TABLE days").await;
        assert_eq!(count(rig.ask(listed).await.unwrap()), 0);
    });
}
