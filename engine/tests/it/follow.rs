//! What is stored of rows that UPDATE and DELETE leave as they are goes with them into the new segments:
//! only rows that were changed, or never computed, are computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use foreshard_udfs::{Card, CostClass};

use crate::rig::{ROWS, Rig, batch, eventually, hashed, schema};
use crate::support::functions::of_int;
use crate::support::runtime;

/// Tables with the rows of the rig: `t` in memory, `managed` in files.
pub(crate) const TABLES: [&str; 2] = ["t", "managed"];

pub(crate) struct Following {
    pub(crate) rig: Rig,
    /// Rows that `times` was evaluated on.
    rows: Arc<AtomicU64>,
    folder: tempfile::TempDir,
}

impl Following {
    pub(crate) async fn start(nodes: u32, partitions: u32) -> Self {
        let (card, udf, rows) = of_int("times", |value| Ok(Some(value * 2)));
        let rig = Rig::start_with(nodes, partitions, &[], vec![(card, udf)]).await;
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let (engine, parts) = (&rig.engine, hashed(partitions));
        engine.create_managed_table("managed", &url, schema(), parts).await.unwrap();
        for first in (0..ROWS).step_by(300) {
            engine.append("managed", vec![batch(first..first + 300)]).await.unwrap();
        }
        Self { rig, rows, folder }
    }

    /// Rows that `sql` asks `times` for anew; fails unless each value is `id` that many times.
    pub(crate) async fn evaluated(&self, sql: &str, times: i64) -> u64 {
        self.rows.store(0, Ordering::Relaxed);
        let answer = self.rig.ask(sql).await.unwrap();
        for batch in &answer.batches {
            let column = |i: usize| batch.column(i).as_primitive::<Int64Type>().values();
            let is_right = |(id, value): (&i64, &i64)| id * times == *value;
            assert!(column(0).iter().zip(column(1)).all(is_right), "{sql}: {batch:?}");
        }
        self.rig.settle().await;
        self.rows.load(Ordering::Relaxed)
    }

    /// Rows that `sql` changes.
    async fn change(&self, sql: &str) -> u64 {
        let changed = self.rig.session.sql(sql).await.unwrap().rows_affected().unwrap();
        self.rig.settle().await;
        changed
    }

    fn redefine(&self, times: i64) -> Arc<AtomicU64> {
        let (_, udf, rows) = of_int("times", move |value| Ok(Some(value * times)));
        let card = Card::immutable("times", "1", CostClass::Dear, "made for tests", "times(1)");
        self.rig.engine.register_function(card, udf).unwrap();
        rows
    }
}

#[test]
fn only_rows_that_were_changed_are_computed_again() {
    runtime::run(async {
        for (nodes, partitions) in [(1, 1), (1, 4), (3, 4)] {
            let following = Following::start(nodes, partitions).await;
            for table in TABLES {
                let all = format!("SELECT id, times(id) FROM {table}");
                assert_eq!(following.evaluated(&all, 2).await, ROWS as u64);
                for (change, is_new) in [
                    ("DELETE FROM {t} WHERE id % 5 = 0", false),
                    ("UPDATE {t} SET y = 9 WHERE id % 7 = 1", true),
                    ("UPDATE {t} SET id = id + 5000 WHERE id % 7 = 2", true),
                    ("DELETE FROM {t} WHERE id < 400", false),
                    ("UPDATE {t} SET x = 3 WHERE id IN (701, 5003, 1199)", true),
                    ("DELETE FROM {t} WHERE y = 9", false),
                ] {
                    let what = format!("{change} on {nodes} nodes, {partitions} partitions");
                    let changed = following.change(&change.replace("{t}", table)).await;
                    assert!(changed > 0, "{what}");
                    let new = if is_new { changed } else { 0 };
                    assert_eq!(following.evaluated(&all, 2).await, new, "{table}: {what}");
                    assert_eq!(following.evaluated(&all, 2).await, 0, "{table}: {what}, again");
                }
            }
        }
    });
}

#[test]
fn what_was_not_computed_before_a_change_is_not_known_after_it() {
    runtime::run(async {
        for partitions in [1, 4] {
            let following = Following::start(1, partitions).await;
            for table in TABLES {
                let all = format!("SELECT id, times(id) FROM {table}");
                following.evaluated(&format!("{all} WHERE y < 4"), 2).await;
                let sql = format!("UPDATE {table} SET x = 1 WHERE id % 10 = 0");
                assert_eq!(following.change(&sql).await, ROWS as u64 / 10);
                let unknown = (0..ROWS).filter(|id| id % 7 >= 4 || id % 10 == 0).count();
                assert_eq!(following.evaluated(&all, 2).await, unknown as u64, "{table}");
            }
        }
    });
}

#[test]
fn a_value_follows_its_row_as_no_call_and_its_first_call_is_no_first_one() {
    runtime::run(async {
        let following = Following::start(1, 4).await;
        let all = "SELECT id, times(id) FROM t";
        following.evaluated(all, 2).await;
        let changed = following.change("DELETE FROM t WHERE id % 3 = 0").await;
        let calls = || {
            let calls = following.rig.engine.calls();
            let last = calls.iter().map(|call| call.query).max();
            let of_last = calls.iter().filter(|call| Some(call.query) == last);
            let rows = of_last.map(|call| (call.rows, call.rows_stored, call.rows_fresh));
            rows.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2))
        };
        eventually("calls are reported", || calls() == (ROWS as u64, 0, ROWS as u64)).await;
        following.evaluated(all, 2).await;
        let left = ROWS as u64 - changed;
        eventually("calls are reported", || calls() == (left, left, 0)).await;
    });
}

#[test]
fn a_function_that_was_redefined_has_no_old_values_in_new_segments() {
    runtime::run(async {
        let following = Following::start(1, 4).await;
        for table in TABLES {
            following.redefine(2);
            let all = format!("SELECT id, times(id) FROM {table}");
            following.evaluated(&all, 2).await;
            let rows = following.redefine(3);
            let deleted = following.change(&format!("DELETE FROM {table} WHERE id % 5 = 0")).await;
            following.evaluated(&all, 3).await;
            let left = ROWS as u64 - deleted;
            assert_eq!(rows.load(Ordering::Relaxed), left, "{table}: redefined before");
            following.change(&format!("UPDATE {table} SET y = 0 WHERE id % 5 = 1")).await;
            let rows = following.redefine(4);
            following.evaluated(&all, 4).await;
            assert_eq!(rows.load(Ordering::Relaxed), left, "{table}: redefined after");
        }
    });
}

#[test]
fn queries_and_writers_at_the_same_time_meet_no_value_of_another_row() {
    const CHANGES: i64 = 12;
    runtime::run(async {
        let following = Following::start(3, 4).await;
        for table in TABLES {
            let is_over = AtomicBool::new(false);
            let write = async |digit: i64| {
                for turn in 0..CHANGES {
                    let which = format!("WHERE id % 100 = {}", 10 * turn % 100 + digit);
                    let sql = match turn % 3 {
                        0 => format!("DELETE FROM {table} {which}"),
                        1 => format!("UPDATE {table} SET y = y + 1 {which}"),
                        _ => format!("UPDATE {table} SET id = id + 10000 {which}"),
                    };
                    following.rig.engine.sql(&sql).await.unwrap();
                }
            };
            let writers = async {
                futures::join!(write(1), write(2));
                is_over.store(true, Ordering::Relaxed);
            };
            let read = async {
                while !is_over.load(Ordering::Relaxed) {
                    following.evaluated(&format!("SELECT id, times(id) FROM {table}"), 2).await;
                }
            };
            futures::join!(writers, read);
            following.evaluated(&format!("SELECT id, times(id) FROM {table}"), 2).await;
        }
        assert!(following.folder.path().exists());
    });
}
