//! Aggregate functions of users: one that panics or never ends fails its query alone, and is named.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::yield_now;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{Accumulator, AccumulatorFactoryFunction, Volatility, create_udaf};
use foreshard_udfs::{Card, CostClass};

use crate::rig::Rig;
use crate::support::runtime;

/// The largest value; does something else first with values that are not of its taste.
#[derive(Debug)]
struct Largest {
    largest: Option<i64>,
    taste: fn(i64, &AtomicBool),
    is_let_go: Arc<AtomicBool>,
}

impl Largest {
    fn see(&mut self, values: &ArrayRef) {
        for value in values.as_primitive::<Int64Type>().iter().flatten() {
            (self.taste)(value, &self.is_let_go);
            self.largest = self.largest.max(Some(value));
        }
    }
}

impl Accumulator for Largest {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.see(&values[0]);
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.see(&states[0]);
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64(self.largest))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

fn register(rig: &Rig, name: &str, taste: fn(i64, &AtomicBool)) -> Arc<AtomicBool> {
    let is_let_go = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_let_go);
    let accumulator: AccumulatorFactoryFunction = Arc::new(move |_| {
        Ok(Box::new(Largest { largest: None, taste, is_let_go: Arc::clone(&flag) }))
    });
    let (of, int) = (vec![DataType::Int64], Arc::new(DataType::Int64));
    let state = Arc::new(vec![DataType::Int64]);
    let udaf = create_udaf(name, of, int, Volatility::Immutable, accumulator, state);
    let card = Card::immutable(name, "1", CostClass::Free, "made for tests", "SELECT largest(1)");
    rig.engine.register_aggregate(card, udaf).unwrap();
    is_let_go
}

/// Where an aggregate may stand.
fn places(name: &str) -> [String; 5] {
    [
        format!("SELECT {name}(id) FROM t"),
        format!("SELECT y, {name}(id) FROM t GROUP BY y"),
        format!("SELECT {name}(id) FILTER (WHERE x > 5) FROM t GROUP BY x HAVING {name}(id) > 3"),
        format!("SELECT id, {name}(id) OVER (PARTITION BY y ORDER BY id) FROM t"),
        format!("SELECT {name}(id) OVER () FROM t"),
    ]
}

#[test]
fn an_aggregate_that_panics_is_an_error_that_names_it() {
    runtime::run(async {
        for nodes in [1, 3] {
            let rig = Rig::start(nodes, 4).await;
            register(&rig, "largest", |value, _| assert!(value != 777, "not {value}"));
            for sql in places("largest") {
                let text = rig.ask(&sql).await.unwrap_err();
                let is_named = text.contains("largest(Int64) over ") && text.contains("not 777");
                assert!(text.starts_with("FS-FN-1: ") && is_named, "{sql}: {text}");
                rig.same("SELECT f(id), x FROM t").await;
            }
            let answer = rig.ask("SELECT largest(id) FROM t WHERE id < 777").await.unwrap();
            assert_eq!(answer.batches[0].column(0).as_primitive::<Int64Type>().value(0), 776);
        }
    });
}

#[test]
fn an_aggregate_that_loops_fails_its_query_alone_and_is_named() {
    runtime::run(async {
        for nodes in [1, 3] {
            let settings = [("limits.query-seconds", "2")];
            let rig = Rig::start_with(nodes, 4, &settings, vec![]).await;
            for sql in places("endless") {
                let let_go = register(&rig, "endless", |_, is_let_go| {
                    while !is_let_go.load(Ordering::Relaxed) {
                        yield_now();
                    }
                });
                let text = rig.ask(&sql).await.unwrap_err();
                let is_named = text.contains("; endless(Int64) over ");
                assert!(text.starts_with("FS-RUN-1: ") && is_named, "{sql}: {text}");
                rig.same("SELECT f(id), x FROM t").await;
                let_go.store(true, Ordering::Relaxed);
            }
        }
    });
}
