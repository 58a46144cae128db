//! DELETE and UPDATE touch exactly the rows that their condition is true of, whatever it is made of,
//! and rows that fail halfway change nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use foreshard::Engine;
use foreshard_actors::partitioning::Partitioning;

use crate::support::setups::Started;
use crate::support::{runtime, setups};

const ROWS: i64 = 100;

/// A condition on the table `acct`, and the ids that it is true of.
type Case = (&'static str, fn(i64) -> bool);

/// `k` of a row: `id % 10`, but NULL for every 17th.
fn k(id: i64) -> Option<i64> {
    (id % 17 != 0).then_some(id % 10)
}

fn is_picked(value: i64) -> bool {
    [3, 5, 50].contains(&value)
}

const CASES: &[Case] = &[
    ("false", |_| false),
    ("NULL", |_| false),
    ("1 = 0", |_| false),
    ("true", |_| true),
    ("k = NULL", |_| false),
    ("k IS NULL", |id| k(id).is_none()),
    ("NOT (k = 3)", |id| k(id).is_some_and(|k| k != 3)),
    ("k = 3 OR NULL", |id| k(id) == Some(3)),
    ("id IN (SELECT k FROM pick)", is_picked),
    ("id NOT IN (SELECT k FROM pick)", |id| !is_picked(id)),
    ("id NOT IN (SELECT k FROM pick_null)", |_| false),
    ("id IN (SELECT k FROM pick WHERE k > 1000)", |_| false),
    ("id = 4 OR id IN (SELECT k FROM pick)", |id| id == 4 || is_picked(id)),
    ("id = 3 AND id IN (SELECT k FROM pick)", |id| id == 3),
    ("EXISTS (SELECT 1 FROM pick)", |_| true),
    ("EXISTS (SELECT 1 FROM pick WHERE false)", |_| false),
    ("EXISTS (SELECT 1 FROM pick p WHERE p.k = acct.k)", |id| k(id).is_some_and(is_picked)),
    ("NOT EXISTS (SELECT 1 FROM pick p WHERE p.k = acct.k)", |id| !k(id).is_some_and(is_picked)),
    ("id < (SELECT min(k) FROM pick)", |id| id < 3),
    ("k = (SELECT max(p.k) FROM pick p WHERE p.k = acct.k)", |id| k(id).is_some_and(is_picked)),
    ("id IN (SELECT a.id + 1 FROM acct a WHERE a.k = 9)", |id| id > 0 && k(id - 1) == Some(9)),
    ("s LIKE '%7'", |id| id % 10 == 7),
    ("id BETWEEN 10 AND 19 AND k <> 4", |id| {
        (10..20).contains(&id) && k(id).is_some_and(|k| k != 4)
    }),
];

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("k", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
    ]))
}

fn accounts(ids: std::ops::Range<i64>) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(ids.clone().map(k).collect::<Int64Array>()),
        Arc::new(StringArray::from_iter_values(ids.map(|id| format!("s{id}")))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// An engine with `pick` and `pick_null`, and a folder for managed tables.
struct World {
    engine: Engine,
    folder: tempfile::TempDir,
    tables_made: AtomicU64,
}

impl World {
    async fn start() -> Self {
        let Started { engine, folder, .. } = setups::engine(3, "reactive").await.unwrap();
        for (name, keys) in [("pick", "(3), (5), (50)"), ("pick_null", "(3), (NULL)")] {
            let sql = format!("CREATE TABLE {name} AS SELECT column1 AS k FROM (VALUES {keys})");
            engine.sql(&sql).await.unwrap();
        }
        Self { engine, folder, tables_made: AtomicU64::new(0) }
    }

    /// Makes `acct` anew, in two segments a partition.
    async fn fresh(&self, is_managed: bool, partitioning: Partitioning) {
        let _was_not_there = self.engine.sql("DROP TABLE IF EXISTS acct").await.unwrap();
        if is_managed {
            let number = self.tables_made.fetch_add(1, Ordering::Relaxed);
            let url = format!("file://{}/acct{number}", self.folder.path().display());
            self.engine.create_managed_table("acct", &url, schema(), partitioning).await.unwrap();
        } else {
            let nothing = Vec::new();
            self.engine.create_memory_table("acct", schema(), partitioning, nothing).await.unwrap();
        }
        for ids in [0..60, 60..ROWS] {
            self.engine.append("acct", vec![accounts(ids)]).await.unwrap();
        }
    }

    /// The ids that `sql` answers, of which none may come twice.
    async fn ids(&self, sql: &str) -> BTreeSet<i64> {
        let batches = self.engine.sql(sql).await.unwrap();
        let mut ids = BTreeSet::new();
        for batch in &batches {
            for id in batch.column(0).as_primitive::<Int64Type>().values() {
                assert!(ids.insert(*id), "{id} comes twice from {sql}");
            }
        }
        ids
    }

    async fn change(&self, sql: &str) -> u64 {
        let stream = self.engine.session().sql(sql).await;
        let stream = stream.unwrap_or_else(|error| panic!("{error}\n{sql}"));
        stream.rows_affected().unwrap_or_else(|| panic!("no count from {sql}"))
    }
}

fn by_id() -> Partitioning {
    Partitioning::Hash { columns: vec!["id".into()], partitions: 3 }
}

fn ids_where(hit: impl Fn(i64) -> bool) -> BTreeSet<i64> {
    (0..ROWS).filter(|id| hit(*id)).collect()
}

async fn touch_exactly_the_right_rows(is_managed: bool) {
    let world = World::start().await;
    let mut wrong = Vec::new();
    for (condition, hit) in CASES {
        let hits = ids_where(hit);
        world.fresh(is_managed, by_id()).await;
        let count = world.change(&format!("DELETE FROM acct WHERE {condition}")).await;
        let left = world.ids("SELECT id FROM acct").await;
        if left != ids_where(|id| !hit(id)) || count != hits.len() as u64 {
            wrong.push(format!("DELETE WHERE {condition}: count {count}, left {left:?}"));
        }

        world.fresh(is_managed, by_id()).await;
        let count = world.change(&format!("UPDATE acct SET s = 'hit' WHERE {condition}")).await;
        let hit_now = world.ids("SELECT id FROM acct WHERE s = 'hit'").await;
        let all = world.ids("SELECT id FROM acct").await.len() as i64;
        if hit_now != hits || count != hits.len() as u64 || all != ROWS {
            wrong.push(format!("UPDATE WHERE {condition}: count {count}, {hit_now:?} of {all}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn delete_and_update_of_a_memory_table_touch_exactly_the_right_rows() {
    runtime::run(touch_exactly_the_right_rows(false));
}

#[test]
fn delete_and_update_of_a_managed_table_touch_exactly_the_right_rows() {
    runtime::run(touch_exactly_the_right_rows(true));
}

#[test]
fn a_statement_without_a_condition_touches_every_row_and_truncate_empties_the_table() {
    runtime::run(async {
        let world = World::start().await;
        for is_managed in [false, true] {
            world.fresh(is_managed, by_id()).await;
            assert_eq!(world.change("UPDATE acct SET k = id").await, ROWS as u64);
            assert_eq!(world.ids("SELECT k FROM acct").await, ids_where(|_| true));
            assert_eq!(world.change("DELETE FROM acct").await, ROWS as u64);
            assert!(world.ids("SELECT id FROM acct").await.is_empty());

            world.fresh(is_managed, by_id()).await;
            world.engine.sql("TRUNCATE TABLE acct").await.unwrap();
            assert!(world.ids("SELECT id FROM acct").await.is_empty());
            world.engine.append("acct", vec![accounts(5..7)]).await.unwrap();
            assert_eq!(world.ids("SELECT id FROM acct").await, BTreeSet::from([5, 6]));
        }
    });
}

#[test]
fn an_update_of_the_key_moves_rows_to_their_new_partition_and_keeps_each_once() {
    runtime::run(async {
        let world = World::start().await;
        let bounds = vec!["20".into(), "50".into(), "1000".into()];
        let by_range = Partitioning::Range { column: "id".into(), bounds };
        for (is_managed, partitioning) in
            [(false, by_range.clone()), (true, by_range), (false, by_id()), (true, by_id())]
        {
            world.fresh(is_managed, partitioning).await;
            let sql = "UPDATE acct SET id = id + 1000 WHERE id % 3 = 0";
            assert_eq!(world.change(sql).await, 34);
            let expected: BTreeSet<i64> =
                (0..ROWS).map(|id| if id % 3 == 0 { id + 1_000 } else { id }).collect();
            assert_eq!(world.ids("SELECT id FROM acct").await, expected);
            // By key, so that a row in the wrong partition would be pruned away.
            for id in [1_000, 1_099, 1, 98] {
                let found = world.ids(&format!("SELECT id FROM acct WHERE id = {id}")).await;
                assert_eq!(found, BTreeSet::from([id]));
            }
            assert!(world.ids("SELECT id FROM acct WHERE id = 3").await.is_empty());
        }
    });
}

#[test]
fn a_value_is_computed_only_for_rows_that_the_condition_is_true_of() {
    runtime::run(async {
        let world = World::start().await;
        for is_managed in [false, true] {
            world.fresh(is_managed, by_id()).await;
            let sql = "UPDATE acct SET k = 100 / (id - 7) WHERE id <> 7";
            assert_eq!(world.change(sql).await, 99);
            assert_eq!(world.ids("SELECT id FROM acct WHERE k = 100").await, BTreeSet::from([8]));
            assert_eq!(world.ids("SELECT k FROM acct WHERE id = 7").await, BTreeSet::from([7]));
        }
    });
}

#[test]
fn a_statement_that_fails_on_one_row_changes_none() {
    runtime::run(async {
        let world = World::start().await;
        for is_managed in [false, true] {
            world.fresh(is_managed, by_id()).await;
            for sql in [
                "UPDATE acct SET k = 100 / (id - 7)",
                "DELETE FROM acct WHERE 100 / (id - 7) > 0",
                "UPDATE acct SET id = NULL WHERE id = 9",
                "INSERT INTO acct SELECT 100 / (id - 7), k, s FROM acct",
            ] {
                assert!(world.engine.sql(sql).await.is_err(), "{sql} must fail");
            }
            assert_eq!(world.ids("SELECT id FROM acct").await, ids_where(|_| true));
            let unchanged = "SELECT id FROM acct WHERE k = id % 10 OR k IS NULL";
            assert_eq!(world.ids(unchanged).await, ids_where(|_| true));
        }
    });
}
