//! EXPLAIN says what is stored of what a query asks for, EXPLAIN ANALYZE what came of each call.

use std::time::Duration;

use arrow::array::AsArray;

use crate::rig::{Rig, batch};
use crate::support::functions::of_int;
use crate::support::runtime;

/// Lines of the plan of this type.
async fn lines(rig: &Rig, sql: &str, kind: &str) -> Vec<String> {
    let answer = rig.ask(sql).await.unwrap();
    let mut lines = vec![];
    for batch in &answer.batches {
        let kinds = batch.column(0).as_string::<i32>();
        let texts = batch.column(1).as_string::<i32>();
        for (found, text) in kinds.iter().zip(texts) {
            if found == Some(kind) {
                lines.extend(text.unwrap_or_default().lines().map(str::to_owned));
            }
        }
    }
    lines
}

async fn stored(rig: &Rig, sql: &str) -> Vec<String> {
    lines(rig, &format!("EXPLAIN {sql}"), "stored").await
}

/// The line that begins so, without its times.
fn of<'a>(lines: &'a [String], begin: &str) -> &'a str {
    let line = lines.iter().find(|line| line.starts_with(begin));
    let line = line.unwrap_or_else(|| panic!("{begin} is not in {lines:?}"));
    line.split(';').next().unwrap_or_default()
}

#[test]
fn explain_says_what_is_stored_of_each_call_and_each_partial_aggregate() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        assert!(stored(&rig, "SELECT id, x FROM t WHERE y = 1").await.is_empty());
        let calls = "SELECT id, f(x), f(y) FROM t";
        let before = stored(&rig, calls).await;
        assert_eq!(
            before,
            ["f(x@1) of t: 0 of 1200 rows are stored", "f(y@2) of t: 0 of 1200 rows are stored"]
        );
        rig.ask("SELECT f(x) FROM t WHERE id < 200").await.unwrap();
        rig.settle().await;
        let lines = stored(&rig, calls).await;
        assert_eq!(of(&lines, "f(x@1)"), "f(x@1) of t: 200 of 1200 rows are stored");
        assert_eq!(of(&lines, "f(y@2)"), "f(y@2) of t: 0 of 1200 rows are stored");
        assert!(lines[0].contains("; spares ") && lines[0].ends_with(" to compute"), "{lines:?}");
        let sum = "SELECT y, sum(f(x)) FROM t GROUP BY y";
        let lines = stored(&rig, sum).await;
        assert_eq!(
            of(&lines, "sum(f(t.x)) of t by y"),
            "sum(f(t.x)) of t by y: 0 of 6 states are stored"
        );
        assert_eq!(of(&lines, "f(x@1)"), "f(x@1) of t: 200 of 1200 rows are stored");
        rig.ask(sum).await.unwrap();
        rig.settle().await;
        rig.append(batch(1_200..1_250)).await;
        let lines = stored(&rig, sum).await;
        assert_eq!(
            of(&lines, "sum(f(t.x)) of t by y"),
            "sum(f(t.x)) of t by y: 6 of 7 states are stored"
        );
        assert_eq!(
            of(&lines, "f(x@1)"),
            "f(x@1) of t: 0 of 50 rows are stored",
            "the others are not read"
        );
        let plain = lines_of_plan(&rig, sum).await;
        assert!(plain.iter().any(|line| line.contains("PartialReuseExec")), "{plain:?}");
        rig.ask("EXPLAIN VERBOSE SELECT f(x) FROM t").await.unwrap();
    });
}

async fn lines_of_plan(rig: &Rig, sql: &str) -> Vec<String> {
    lines(rig, &format!("EXPLAIN {sql}"), "physical_plan").await
}

/// The values of a metric in the answer of EXPLAIN ANALYZE, summed up.
pub(crate) fn sum(lines: &[String], metric: &str) -> u64 {
    let found = lines.iter().filter_map(|line| line.split(&format!("{metric}=")).nth(1));
    let digits = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse::<u64>().unwrap_or_default()
    };
    found.map(digits).sum()
}

#[test]
fn explain_analyze_tells_calls_apart_and_what_was_waited_for() {
    const ROWS: u64 = 400;
    runtime::run(async {
        let (card, udf, _) = of_int("slow", |value| {
            std::thread::sleep(Duration::from_micros(50));
            Ok(Some(value * 2))
        });
        let rig = Rig::start_with(1, 1, &[], vec![(card, udf)]).await;
        let sql = format!("EXPLAIN ANALYZE SELECT slow(x), slow(y) FROM t WHERE id < {ROWS}");
        let asked = || lines(&rig, &sql, "Plan with Metrics");
        let (one, two) = tokio::join!(asked(), asked());
        let both = [one, two].concat();
        for call in [" of slow(x@1)", " of slow(y@2)"] {
            let counts = ["rows_stored", "rows_waited", "rows_computed"];
            let [stored, waited, computed] =
                counts.map(|name| sum(&both, &format!("{name}{call}")));
            assert_eq!(stored + waited + computed, 2 * ROWS, "{call}: {both:?}");
            assert!(
                computed == ROWS && waited > 0,
                "{call}: {waited} waited for, {computed} computed"
            );
        }
        let all =
            sum(&both, "rows_computed") + sum(&both, "rows_waited") + sum(&both, "rows_stored");
        assert_eq!(all, 2 * 2 * ROWS, "{both:?}");
    });
}
