//! A function that never ends: its query fails in time and says why, and everything else goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::yield_now;

use crate::rig::{Rig, eventually};
use crate::support::functions::of_int;
use crate::support::runtime;

/// `endless`, which gives back what it is given as soon as it is let go.
struct Looping {
    rig: Rig,
    is_let_go: Arc<AtomicBool>,
}

impl Looping {
    async fn start(nodes: u32, settings: &[(&str, &str)]) -> Self {
        let is_let_go = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_let_go);
        let (card, udf, _) = of_int("endless", move |value| {
            while !flag.load(Ordering::Relaxed) {
                yield_now();
            }
            Ok(Some(value))
        });
        let rig = Rig::start_with(nodes, 4, settings, vec![(card, udf)]).await;
        Self { rig, is_let_go }
    }

    async fn error(&self, sql: &str) -> String {
        self.rig.ask(sql).await.map(|rows| panic!("{sql}: {rows:?}")).unwrap_err()
    }

    fn let_go(&self, is_let_go: bool) {
        self.is_let_go.store(is_let_go, Ordering::Relaxed);
    }

    /// Waits until nobody is refused any more.
    async fn all_ended(&self) {
        let sql = "SELECT endless(id + 1000) FROM t";
        while let Err(error) = self.rig.ask(sql).await {
            assert!(error.starts_with("FS-FN-14: "), "{error}");
            yield_now();
        }
    }
}

/// Calls in a scan, in a branch, above a join, for a statement that changes rows, and while planning.
const PLACES: [&str; 5] = [
    "SELECT endless(id) FROM t",
    "SELECT id, CASE WHEN y = 3 THEN endless(x) END FROM t",
    "SELECT count(*) FROM t a JOIN t b ON a.id = b.id WHERE endless(a.x + b.y) > 50",
    "UPDATE t SET y = endless(y + 1) WHERE id < 900",
    "SELECT endless(7)",
];

#[test]
fn a_function_that_loops_fails_its_query_alone_and_is_named() {
    runtime::run(async {
        for nodes in [1, 3] {
            // Long enough for the other queries where a looping one and other tests hold the cores.
            let looping = Looping::start(nodes, &[("limits.query-seconds", "5")]).await;
            for (number, sql) in PLACES.into_iter().enumerate() {
                let text = looping.error(sql).await;
                let named =
                    text.contains("; endless(Int64) over ") && text.contains(" rows had not ended");
                assert!(text.starts_with("FS-RUN-1: ") && named, "{sql}: {text}");
                looping.rig.same(&format!("SELECT f(id + {number}), x FROM t")).await;
                looping.let_go(true);
                looping.all_ended().await;
                looping.let_go(false);
            }
            looping.let_go(true);
            for sql in PLACES {
                looping.rig.ask(sql).await.unwrap();
            }
        }
    });
}

#[test]
fn a_function_that_loops_again_and_again_is_refused_until_it_ends() {
    runtime::run(async {
        let looping = Looping::start(1, &[("limits.query-seconds", "2")]).await;
        let mut refused = None;
        for number in 0..5 {
            let text = looping.error(&format!("SELECT endless(id + {number}) FROM t")).await;
            if text.starts_with("FS-FN-14: ") {
                refused = Some(text);
                break;
            }
        }
        let text = refused.unwrap();
        let named = ["endless(Int64) over ", " earlier calls of the function have not ended"];
        assert!(named.iter().all(|name| text.contains(name)), "{text}");
        looping.rig.same("SELECT f(id) FROM t").await;
        looping.let_go(true);
        looping.all_ended().await;
        looping.let_go(false);
        let text = looping.error("SELECT endless(y) FROM t").await;
        assert!(text.starts_with("FS-RUN-1: "), "{text}");
        // It does not keep the engine from ending, either.
        looping.rig.engine.clone().shutdown().await.unwrap();
        looping.let_go(true);
    });
}

#[test]
fn a_client_that_gives_up_a_function_that_loops_has_its_place_back() {
    runtime::run(async {
        let looping = Looping::start(1, &[]).await;
        for sql in &PLACES[..3] {
            let mut stream = looping.rig.session.sql(sql).await.unwrap();
            let next = std::pin::pin!(futures::StreamExt::next(&mut stream));
            assert!(futures::poll!(next).is_pending(), "{sql}");
            drop(stream);
            eventually("the query has ended", || {
                looping.rig.engine.metrics().contains("foreshard_queries_running 0")
            })
            .await;
            looping.let_go(true);
            looping.all_ended().await;
            looping.let_go(false);
        }
        looping.let_go(true);
    });
}
