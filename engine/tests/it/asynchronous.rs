//! Asynchronous functions: a model behind HTTP, asked in batches, not too much at a time, again if it
//! fails, and no more once its answers are stored or nobody waits for them.

mod service;

use std::time::Duration;

use datafusion::logical_expr::Volatility;
use foreshard::AsyncOptions;
use futures::StreamExt;

use self::service::{Service, formula, of_plain};
use crate::rig::{ROWS, Rig, batch, eventually};
use crate::support::oracle::{answer_of, compare};
use crate::support::runtime;

/// Batches at a time.
const LIMIT: usize = 3;

/// Rows of a batch.
const BATCH: usize = 64;

/// What frees a query's requests; most of it is for slow machines.
const FREED_WITHIN: Duration = Duration::from_secs(1);

fn options() -> AsyncOptions {
    AsyncOptions::default()
        .with_batch_rows(BATCH)
        .with_concurrency(LIMIT)
        .with_retries(2)
        .with_backoff(Duration::from_millis(1))
}

/// An engine that knows the service as `model` (immutable) and `dice` (volatile).
async fn rig(
    nodes: u32,
    partitions: u32,
    settings: &[(&str, &str)],
    options: AsyncOptions,
) -> (Rig, Service) {
    let service = Service::start().await;
    let rig = Rig::start_with(nodes, partitions, settings, vec![]).await;
    for (name, volatility) in [("model", Volatility::Immutable), ("dice", Volatility::Volatile)] {
        let (card, udf) = service.function(name, volatility);
        rig.engine.register_async_function(card, udf, options).unwrap();
    }
    rig.ask("SET foreshard.check_every = 0").await.unwrap();
    (rig, service)
}

async fn error(rig: &Rig, sql: &str) -> String {
    rig.ask(sql).await.unwrap_err()
}

#[test]
fn a_model_is_asked_in_batches_and_never_again_for_what_is_stored() {
    runtime::run(async {
        let (rig, service) = rig(1, 1, &[], options()).await;
        let sql = "SELECT id, model(id) FROM t";
        let segments = ROWS as usize / 200;
        rig.ask(sql).await.unwrap();
        assert_eq!(service.requests(), segments * 200_usize.div_ceil(BATCH));
        for _ in 0..2 {
            rig.settle().await;
            rig.ask(sql).await.unwrap();
            rig.ask("SELECT max(model(id)) FROM t WHERE model(id) % 2 = 0").await.unwrap();
        }
        assert_eq!(service.requests(), segments * 4, "nothing was asked twice");
        rig.append(batch(ROWS..ROWS + 65)).await;
        rig.ask(sql).await.unwrap();
        assert_eq!(service.requests(), segments * 4 + 2, "only new rows are asked for");
        // Equal arguments are one.
        let before = service.requests();
        rig.ask("SELECT model(y) FROM t").await.unwrap();
        assert_eq!(service.rows_of_requests_from(before).into_iter().max(), Some(7));
    });
}

#[test]
fn all_queries_together_never_have_more_on_their_way_than_the_limit() {
    runtime::run(async {
        let (rig, service) = rig(3, 4, &[], options().with_batch_rows(8)).await;
        let queries = [
            "SELECT id, model(id) FROM t",
            "SELECT sum(model(x + y)) FROM t",
            "SELECT id, dice(id) FROM t",
            "SELECT count(*) FROM t a JOIN t b ON a.id = b.id WHERE dice(a.x + b.y) > 50",
        ];
        let asked = queries.into_iter().chain(queries).map(|sql| rig.ask(sql));
        for answer in futures::future::join_all(asked).await {
            answer.unwrap();
        }
        // Each function has its own.
        assert_eq!(service.open_max("model"), LIMIT);
        assert_eq!(service.open_max("dice"), LIMIT);
    });
}

#[test]
fn answers_are_those_of_plain_datafusion() {
    let queries = [
        "SELECT id, model(x) FROM t",
        "SELECT id, model(x), model(x) + 1, model(y) FROM t WHERE model(x) > 20",
        "SELECT y, sum(model(x)), count(*) FROM t GROUP BY y",
        "SELECT model(x) AS m, count(*) FROM t GROUP BY model(x)",
        "SELECT id FROM t ORDER BY model(x) DESC, id LIMIT 9",
        "SELECT id, CASE WHEN y = 3 THEN model(x) WHEN y = 4 THEN -model(id) END FROM t",
        "SELECT id FROM t WHERE y = 1 OR model(id) % 5 = 0",
        "SELECT id, model(model(x) + y) FROM t WHERE id > 100",
        "SELECT id, f(model(x)), model(f(x)) FROM t",
        "SELECT a.id, model(a.x + b.y) FROM t a JOIN t b ON a.id = b.x WHERE model(b.id) > 9",
        "SELECT a.id FROM t a JOIN t b ON model(a.x) = b.id",
        "SELECT id, model(7), model(NULL) FROM t WHERE id < model(90)",
        "SELECT model(x) FROM t WHERE id < 0",
        "SELECT id, dice(x) FROM t WHERE dice(id) > 50",
        "SELECT model(41) AS m",
    ];
    runtime::run(async move {
        for (nodes, partitions) in [(1, 1), (3, 4)] {
            let (rig, service) = rig(nodes, partitions, &[], options()).await;
            let asynchronous = of_plain(|context| {
                for (name, volatility) in
                    [("model", Volatility::Immutable), ("dice", Volatility::Volatile)]
                {
                    context.register_udf(service.function(name, volatility).1.into_scalar_udf());
                }
            });
            let synchronous = of_plain(|context| {
                context.register_udf(formula("model", Volatility::Immutable));
                context.register_udf(formula("dice", Volatility::Volatile));
            });
            let mut asynchronous_too = 0;
            for sql in queries {
                let ours = rig.ask(sql).await;
                assert!(ours.is_ok(), "{sql}: {ours:?}");
                rig.settle().await;
                let again = rig.ask(sql).await;
                for plain in [&synchronous, &asynchronous] {
                    let plain = answer_of(plain, sql).await;
                    asynchronous_too += usize::from(plain.is_ok());
                    for ours in [&ours, &again] {
                        let same = compare(&plain, ours, sql.contains("ORDER BY"));
                        assert!(same.is_ok(), "{sql} on {nodes} nodes: {same:?}");
                    }
                }
            }
            // Plain cannot await in every place where a call may stand.
            assert!(asynchronous_too >= queries.len() + 4, "{asynchronous_too}");
        }
    });
}

#[test]
fn an_immutable_function_is_asked_again_and_a_volatile_one_is_not() {
    runtime::run(async {
        let (rig, service) = rig(1, 1, &[], options()).await;
        service.fail_next(2);
        rig.ask("SELECT model(id) FROM t").await.unwrap();
        assert_eq!(service.requests(), 6 * 4 + 2);
        service.fail_next(1);
        let before = service.requests();
        let text = error(&rig, "SELECT dice(id) FROM t").await;
        assert!(text.starts_with("FS-FN-12: dice(Int64) over 200 rows, in rows "), "{text}");
        assert!(text.contains("in 1 attempt: ") && text.contains("503"), "{text}");
        // Two partitions, four batches each.
        assert!(service.requests() - before <= 2 * 4, "a second attempt at nothing");
        service.fail_next(usize::MAX);
        let text = error(&rig, "SELECT model(id + 1) FROM t").await;
        assert!(text.contains("in 3 attempts: ") && text.contains("503"), "{text}");
        service.fail_next(0);
        rig.ask("SELECT model(id + 1), dice(id) FROM t").await.unwrap();
    });
}

#[test]
fn a_model_that_takes_too_long_is_an_error_that_names_it() {
    runtime::run(async {
        let short = options().with_timeout(Duration::from_millis(50)).with_retries(1);
        let (rig, service) = rig(3, 4, &[], short).await;
        service.hang(true);
        for (sql, attempts) in [
            ("SELECT model(id) FROM t", "2 attempts"),
            ("SELECT dice(id) FROM t", "1 attempt"),
            ("SELECT model(3)", "2 attempts"),
        ] {
            let text = error(&rig, sql).await;
            let function = if sql.contains("dice") { "dice" } else { "model" };
            for part in [
                format!("FS-FN-12: {function}(Int64) over "),
                format!("in {attempts}: it gave no answer within 50ms"),
            ] {
                assert!(text.contains(&part), "{sql}: {text}");
            }
        }
        eventually("no request is left", || service.open() == 0).await;
        service.hang(false);
        rig.ask("SELECT model(id), dice(id), model(3) FROM t").await.unwrap();
    });
}

/// Calls that a scan awaits, that hold up a thread above it, and that hold up one while planning.
const PLACES: [&str; 4] = [
    "SELECT model(id) FROM t",
    "SELECT dice(id) FROM t",
    "SELECT count(*) FROM t a JOIN t b ON a.id = b.id WHERE model(a.x + b.y) > 50",
    "SELECT id, CASE WHEN y = 3 THEN model(x) END FROM t",
];

#[test]
fn a_query_that_is_given_up_frees_its_requests_and_asks_no_more() {
    runtime::run(async {
        let (rig, service) = rig(3, 4, &[], options()).await;
        service.hang(true);
        for sql in PLACES {
            let mut stream = rig.session.sql(sql).await.unwrap();
            {
                // The client goes on while it waits, and has had enough at some point.
                let next = stream.next();
                let waiting = eventually("a request is on its way", || service.open() > 0);
                tokio::select! {
                    answer = next => panic!("{sql}: {answer:?}"),
                    () = waiting => {}
                }
            }
            drop(stream);
            let freed = eventually("nothing is on its way", || service.open() == 0);
            assert!(tokio::time::timeout(FREED_WITHIN, freed).await.is_ok(), "{sql}");
            let asked = service.requests();
            let running = eventually("the query has ended", || {
                rig.engine.metrics().contains("foreshard_queries_running 0")
            });
            assert!(tokio::time::timeout(FREED_WITHIN, running).await.is_ok(), "{sql}");
            assert_eq!(service.requests(), asked, "{sql} went on asking");
        }
        service.hang(false);
        for sql in PLACES {
            rig.ask(sql).await.unwrap();
        }
    });
}

#[test]
fn the_time_of_a_query_runs_out_while_it_waits_for_a_model() {
    runtime::run(async {
        let (rig, service) = rig(1, 1, &[("limits.query-seconds", "1")], options()).await;
        service.hang(true);
        for sql in PLACES.into_iter().chain(["SELECT model(5)"]) {
            let text = error(&rig, sql).await;
            assert!(text.starts_with("FS-RUN-1: "), "{sql}: {text}");
            eventually(&format!("no request of {sql} is left"), || service.open() == 0).await;
        }
    });
}
