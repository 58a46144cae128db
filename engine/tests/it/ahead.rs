//! States of partial aggregates over new segments are computed before a query asks for them.

use foreshard_actors::ports::Outcome;

use crate::partials::stores;
use crate::reuse::counted;
use crate::rig::{ROWS, Rig, batch};
use crate::support::runtime;

/// Queries whose states can be computed without them, and the patterns of these.
const QUERIES: [(&str, &str); 4] = [
    (
        "SELECT y, sum(x), count(DISTINCT f(x)) FROM t WHERE id > 3 GROUP BY y",
        "sum(x) of t by y, f(x) where id > ?",
    ),
    ("SELECT max(f(x + 1)), min(y) FROM t", "max(f(x + ?)), min(y) of t"),
    ("SELECT y % 3, count(*) FROM t GROUP BY 1", "count(?) of t by y % ?"),
    ("SELECT id FROM t ORDER BY f(id) DESC, id LIMIT 5", "first rows of t by f(id), id"),
];

/// Computes all states that are missing, as the loop would if it expected calls; returns their rows.
async fn compute_ahead(rig: &Rig) -> u64 {
    let mut rows = 0;
    for ((series, partition), output) in rig.engine.placement().outputs {
        if !output.is_state || output.rows_missing == 0 {
            continue;
        }
        match rig.engine.members().precompute(series, &partition).await {
            Outcome::Done { rows: done, .. } => {
                assert_eq!(done, output.rows_missing, "{} on {partition}", output.function);
                rows += done;
            }
            failed => panic!("{failed:?}"),
        }
    }
    rows
}

#[test]
fn a_query_finds_the_states_of_new_segments_ready() {
    runtime::run(async {
        for (nodes, partitions) in [(1, 1), (1, 4), (3, 4)] {
            let rig = Rig::start(nodes, partitions).await;
            for (sql, _) in QUERIES {
                stores(&rig, sql, 6).await;
            }
            assert_eq!(compute_ahead(&rig).await, 0, "nothing is missing");
            rig.append(batch(ROWS..ROWS + 50)).await;
            // What was called until now is counted when a tick is over.
            rig.engine.tick().await;
            let calls = rig.engine.calls().len();
            assert_eq!(compute_ahead(&rig).await, 50 * QUERIES.len() as u64);
            rig.engine.tick().await;
            assert_eq!(rig.engine.calls().len(), calls, "nobody called");
            for (sql, _) in QUERIES {
                let (evaluated, _) = rig.same(sql).await;
                assert_eq!(evaluated, 0, "{sql}");
                assert_eq!(counted(&rig, sql, "segments_computed").await, 0, "{sql}");
            }
            rig.same("SELECT f(x) FROM t WHERE id > 1200").await;
        }
    });
}

#[test]
fn what_nobody_comes_back_to_is_not_computed_for_ever() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        let (sql, once) = (QUERIES[0].0, "SELECT y, avg(x) FROM t GROUP BY y");
        rig.same(once).await;
        stores(&rig, sql, 6).await;
        let mut rows = vec![];
        for first in (ROWS..).step_by(50).take(7) {
            rig.append(batch(first..first + 50)).await;
            rows.push(compute_ahead(&rig).await);
        }
        assert_eq!(rows, [50, 50, 50, 50, 0, 0, 0]);
        rig.same(sql).await;
        rig.settle().await;
        rig.append(batch(5_000..5_050)).await;
        assert_eq!(compute_ahead(&rig).await, 50, "it was asked for again");
    });
}

#[test]
fn states_are_counted_by_what_differs_in_literals_only() {
    runtime::run(async {
        let rig = Rig::start(1, 2).await;
        for (sql, _) in QUERIES {
            rig.same(sql).await;
        }
        for least in 0..5 {
            rig.same(&format!("SELECT y, sum(x) FROM t WHERE x > {least} GROUP BY y")).await;
        }
        rig.engine.tick().await;
        let called = |function: &str| {
            let calls = rig.engine.calls();
            calls.iter().filter(|call| *call.function == *function).count()
        };
        for (sql, pattern) in QUERIES {
            // Once by the query, once to see its plan; on two partitions.
            assert_eq!(called(pattern), 4, "{sql}");
        }
        assert_eq!(called("sum(x) of t by y where x > ?"), 5 * 4);
        let forecast = rig.engine.forecast();
        let of_shape =
            forecast.series.iter().filter(|series| series.key.function.contains("where x >"));
        assert_eq!(of_shape.count(), 2, "one for each partition");
    });
}
