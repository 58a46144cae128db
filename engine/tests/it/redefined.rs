//! A function gets another body while it is in use: no old value is seen, and what it was called on is
//! expected to be called again, so that the new values can be there before they are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foreshard_actors::ports::Outcome;
use foreshard_udfs::{Card, CostClass};

use crate::rig::{ROWS, Rig};
use crate::support::functions::of_int;
use crate::support::runtime;

/// Gives `f` a body that adds `more`, here and in plain DataFusion; counts the rows of ours.
fn redefine(rig: &Rig, more: i64) -> Arc<AtomicU64> {
    let (_, udf, rows) = of_int("f", move |value| Ok(Some(value + more)));
    let (_, plain, _) = of_int("f", move |value| Ok(Some(value + more)));
    let card = Card::immutable("f", "1", CostClass::Dear, "made for tests", "f(1)");
    rig.engine.register_function(card, udf).unwrap();
    rig.plain.register_udf(plain);
    rows
}

/// Computes all that is missing of function outputs; returns the rows.
async fn compute_ahead(rig: &Rig) -> u64 {
    let mut rows = 0;
    for ((expression, partition), output) in rig.engine.placement().outputs {
        if output.is_state || output.rows_missing == 0 {
            continue;
        }
        match rig.engine.members().precompute(expression, &partition).await {
            Outcome::Done { rows: done, .. } => rows += done,
            failed => panic!("{failed:?}"),
        }
    }
    rows
}

#[test]
fn the_new_body_is_expected_where_the_former_was_called_and_can_be_computed_ahead() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            let queries = ["SELECT id, f(x) FROM t", "SELECT id, f(f(x) + 1) FROM t WHERE y < 9"];
            for sql in queries {
                rig.same(sql).await;
            }
            rig.engine.tick().await;
            let expected = |rig: &Rig| {
                let forecast = rig.engine.forecast();
                let of_f = forecast.series.iter().filter(|series| &*series.key.function == "f");
                of_f.map(|series| series.key.clone()).collect::<Vec<_>>()
            };
            let before = expected(&rig);
            assert_eq!(before.len(), 2 * 4);
            let evaluated = redefine(&rig, 5);
            rig.engine.tick().await;
            let after = expected(&rig);
            assert_eq!(after.len(), before.len(), "{after:?}");
            assert!(after.iter().all(|key| !before.contains(key)), "they are other expressions");
            assert_eq!(compute_ahead(&rig).await, 2 * ROWS as u64);
            evaluated.store(0, Ordering::Relaxed);
            for sql in queries {
                rig.same(sql).await;
            }
            assert_eq!(evaluated.load(Ordering::Relaxed), 0, "on {nodes} nodes");
        }
    });
}

#[test]
fn a_body_that_takes_other_arguments_or_gives_another_type_is_not_expected_before_it_is_called() {
    use arrow::datatypes::DataType;
    use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};

    runtime::run(async {
        for (takes, gives) in
            [(DataType::Utf8, DataType::Int64), (DataType::Int64, DataType::Float64)]
        {
            let rig = Rig::start(1, 2).await;
            let same = Arc::new(|arguments: &[ColumnarValue]| Ok(arguments[0].clone()));
            rig.same("SELECT f(x) FROM t").await;
            let udf = create_udf("f", vec![takes], gives, Volatility::Immutable, same);
            let card = Card::immutable("f", "1", CostClass::Dear, "made for tests", "f(1)");
            rig.engine.register_function(card, udf).unwrap();
            assert_eq!(compute_ahead(&rig).await, 0);
        }
    });
}

#[test]
fn what_is_pinned_stays_pinned() {
    runtime::run(async {
        let rig = Rig::start(1, 2).await;
        rig.same("SELECT f(x), f(y) FROM t").await;
        rig.ask("CALL pin_stored('t', 'f(x)')").await.unwrap();
        let pinned = |rig: &Rig| {
            let outputs = rig.engine.placement().outputs.into_iter();
            outputs.filter(|(_, output)| output.pinned).map(|((id, _), _)| id).collect::<Vec<_>>()
        };
        let before = pinned(&rig);
        redefine(&rig, 3);
        let after = pinned(&rig);
        assert_eq!((before.len(), after.len()), (2, 2), "on two partitions");
        assert_ne!(before, after);
        rig.same("SELECT f(x), f(y) FROM t").await;
    });
}
