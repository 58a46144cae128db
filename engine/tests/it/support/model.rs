//! A table as plain Rust: what INSERT, UPDATE, DELETE and TRUNCATE must do to its rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// One row of the table under test.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) g: Option<i64>,
    pub(crate) s: Option<String>,
    pub(crate) v: Option<f64>,
}

/// The table `{table}` and the table `{keys}` that its subqueries read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) rows: Vec<Row>,
    pub(crate) keys: Vec<Option<i64>>,
    next_id: i64,
}

/// A statement, in SQL with `{table}`, `{keys}` and `{function}` to fill in, and how many rows it
/// touches.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) sql: String,
    pub(crate) rows: u64,
}

type Function<'a> = &'a dyn Fn(i64) -> i64;

/// A condition on a row: true, false or NULL.
type Condition = Box<dyn Fn(&Row, &Model, Function<'_>) -> Option<bool>>;

/// Schema of the table under test.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("g", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("v", DataType::Float64, true),
    ]))
}

/// Schema of the table that subqueries read.
pub(crate) fn keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]))
}

impl Model {
    /// A table of `rows` rows and one of keys.
    pub(crate) fn random(rng: &mut StdRng, rows: usize) -> Self {
        let mut model = Self { keys: keys(rng), ..Self::default() };
        for _ in 0..rows {
            let row = model.new_row(rng);
            model.rows.push(row);
        }
        model
    }

    /// The rows as a batch.
    pub(crate) fn batch(&self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.rows.iter().map(|row| Some(row.id)).collect::<Int64Array>()),
            Arc::new(self.rows.iter().map(|row| row.g).collect::<Int64Array>()),
            Arc::new(self.rows.iter().map(|row| row.s.clone()).collect::<StringArray>()),
            Arc::new(self.rows.iter().map(|row| row.v).collect::<Float64Array>()),
        ];
        RecordBatch::try_new(schema(), columns).unwrap()
    }

    /// The keys as a batch.
    pub(crate) fn keys_batch(&self) -> RecordBatch {
        let column: ArrayRef = Arc::new(self.keys.iter().copied().collect::<Int64Array>());
        RecordBatch::try_new(keys_schema(), vec![column]).unwrap()
    }

    fn new_row(&mut self, rng: &mut StdRng) -> Row {
        self.next_id += 1;
        Row {
            id: self.next_id,
            g: rng.random_bool(0.85).then(|| rng.random_range(-5..20)),
            s: rng
                .random_bool(0.8)
                .then(|| (*["", "a", "b", "äö", "it's"].choose(rng).unwrap()).to_owned()),
            v: rng.random_bool(0.8).then(|| f64::from(rng.random_range(-40..40)) / 4.0),
        }
    }

    /// A random change, made here and written as SQL. `function` is what `{function}` computes now.
    pub(crate) fn change(&mut self, rng: &mut StdRng, function: Function<'_>) -> Change {
        match rng.random_range(0..100) {
            0..34 => self.insert(rng),
            34..64 => self.update(rng, function),
            64..96 => self.delete(rng, function),
            _ => {
                let rows = self.rows.len() as u64;
                self.rows.clear();
                Change { sql: "TRUNCATE TABLE {table}".into(), rows }
            }
        }
    }

    fn insert(&mut self, rng: &mut StdRng) -> Change {
        if rng.random_bool(0.15) {
            return self.insert_select();
        }
        let added: Vec<Row> = (0..rng.random_range(1..6)).map(|_| self.new_row(rng)).collect();
        let values: Vec<String> = added.iter().map(literal).collect();
        self.rows.extend_from_slice(&added);
        Change {
            sql: format!("INSERT INTO {{table}} (id, g, s, v) VALUES {}", values.join(", ")),
            rows: added.len() as u64,
        }
    }

    /// Copies some rows under new ids.
    fn insert_select(&mut self) -> Change {
        self.next_id += 1_000;
        let shift = self.next_id;
        let copies: Vec<Row> = self
            .rows
            .iter()
            .filter(|row| row.g.is_some_and(|g| g > 8))
            .map(|row| Row { id: row.id + shift, ..row.clone() })
            .collect();
        self.next_id += copies.iter().map(|row| row.id).max().unwrap_or(0);
        let rows = copies.len() as u64;
        self.rows.extend(copies);
        Change {
            sql: format!(
                "INSERT INTO {{table}} SELECT id + {shift}, g, s, v FROM {{table}} WHERE g > 8"
            ),
            rows,
        }
    }

    fn delete(&mut self, rng: &mut StdRng, function: Function<'_>) -> Change {
        let (sql, condition) = condition(rng, 2, false);
        let hit: Vec<bool> =
            self.rows.iter().map(|row| condition(row, self, function) == Some(true)).collect();
        let mut hits = hit.iter();
        self.rows.retain(|_| hits.next() == Some(&false));
        Change {
            sql: format!("DELETE FROM {{table}} WHERE {sql}"),
            rows: hit.iter().filter(|hit| **hit).count() as u64,
        }
    }

    fn update(&mut self, rng: &mut StdRng, function: Function<'_>) -> Change {
        let (condition_sql, condition) = condition(rng, 2, false);
        let choice = rng.random_range(0..8);
        let shift = 10_000 + self.next_id;
        let highest_key = self.keys.iter().flatten().max().copied();
        let set = match choice {
            0 => "g = g + 1".to_owned(),
            1 => "s = concat(s, 'x'), v = v * 2".to_owned(),
            2 => {
                self.next_id += shift;
                format!("id = id + {shift}")
            }
            3 => "g = {function}(g)".to_owned(),
            4 => "g = (SELECT max(k) FROM {keys})".to_owned(),
            5 => "g = NULL, s = 'gone'".to_owned(),
            6 => "g = CASE WHEN g > 5 THEN id ELSE g END".to_owned(),
            _ => "v = CAST(g AS DOUBLE), g = id".to_owned(),
        };
        let mut after = self.rows.clone();
        let mut rows = 0;
        for row in &mut after {
            if condition(row, self, function) != Some(true) {
                continue;
            }
            rows += 1;
            match choice {
                0 => row.g = row.g.map(|g| g + 1),
                1 => {
                    // concat() reads NULL as nothing.
                    row.s = Some(format!("{}x", row.s.as_deref().unwrap_or("")));
                    row.v = row.v.map(|v| v * 2.0);
                }
                2 => row.id += shift,
                3 => row.g = row.g.map(function),
                4 => row.g = highest_key,
                5 => {
                    row.g = None;
                    row.s = Some("gone".into());
                }
                6 => row.g = if row.g > Some(5) { Some(row.id) } else { row.g },
                _ => {
                    row.v = row.g.map(|g| g as f64);
                    row.g = Some(row.id);
                }
            }
        }
        self.rows = after;
        Change { sql: format!("UPDATE {{table}} SET {set} WHERE {condition_sql}"), rows }
    }
}

fn keys(rng: &mut StdRng) -> Vec<Option<i64>> {
    (0..rng.random_range(0..6))
        .map(|_| rng.random_bool(0.85).then(|| rng.random_range(-5..20)))
        .collect()
}

fn literal(row: &Row) -> String {
    let or_null = |value: Option<String>| value.unwrap_or_else(|| "NULL".into());
    format!(
        "({}, {}, {}, {})",
        row.id,
        or_null(row.g.map(|g| g.to_string())),
        or_null(row.s.as_ref().map(|s| format!("'{}'", s.replace('\'', "''")))),
        or_null(row.v.map(|v| format!("{v:?}"))),
    )
}

/// A condition in SQL and as what it means.
fn condition(rng: &mut StdRng, depth: u32, is_negated: bool) -> (String, Condition) {
    if depth > 0 && rng.random_bool(0.4) {
        let choice = rng.random_range(0..3);
        let is_negated = is_negated || choice == 2;
        let (left_sql, left) = condition(rng, depth - 1, is_negated);
        let (right_sql, right) = condition(rng, depth - 1, is_negated);
        return match choice {
            0 => (
                format!("({left_sql} AND {right_sql})"),
                Box::new(move |r, m, f| and(left(r, m, f), right(r, m, f))),
            ),
            1 => (
                format!("({left_sql} OR {right_sql})"),
                Box::new(move |r, m, f| not(and(not(left(r, m, f)), not(right(r, m, f))))),
            ),
            _ => (format!("NOT ({left_sql})"), Box::new(move |r, m, f| not(left(r, m, f)))),
        };
    }
    simple(rng, is_negated)
}

fn simple(rng: &mut StdRng, is_negated: bool) -> (String, Condition) {
    let bound = rng.random_range(-5..20_i64);
    match rng.random_range(0..15) {
        0 => (format!("id = {bound}"), Box::new(move |r, _, _| Some(r.id == bound))),
        1 => (format!("id > {bound}"), Box::new(move |r, _, _| Some(r.id > bound))),
        2 | 3 => (format!("g < {bound}"), Box::new(move |r, _, _| r.g.map(|g| g < bound))),
        4 => ("g IS NULL".into(), Box::new(|r, _, _| Some(r.g.is_none()))),
        5 => ("s = 'a'".into(), Box::new(|r, _, _| r.s.as_ref().map(|s| s == "a"))),
        6 => ("v >= 0.5".into(), Box::new(|r, _, _| r.v.map(|v| v >= 0.5))),
        7 => {
            let list = [bound, bound + 3, bound + 7];
            (
                format!("id IN ({}, {}, {})", list[0], list[1], list[2]),
                Box::new(move |r, _, _| Some(list.contains(&r.id))),
            )
        }
        8 => ("false".into(), Box::new(|_, _, _| Some(false))),
        9 => ("NULL".into(), Box::new(|_, _, _| None)),
        // DataFusion 55.2 takes the NULL of an IN with a subquery for false, which shows under NOT.
        10 if is_negated => (
            "(g IS NOT NULL AND g IN (SELECT k FROM {keys} WHERE k IS NOT NULL))".into(),
            Box::new(|r, m, _| Some(r.g.is_some() && m.keys.contains(&r.g))),
        ),
        10 => ("g IN (SELECT k FROM {keys})".into(), Box::new(|r, m, _| is_in(r.g, &m.keys))),
        11 => (
            "EXISTS (SELECT 1 FROM {keys} q WHERE q.k = {table}.g)".into(),
            Box::new(|r, m, _| Some(r.g.is_some() && m.keys.contains(&r.g))),
        ),
        12 => (
            "NOT EXISTS (SELECT 1 FROM {keys} q WHERE q.k = {table}.id)".into(),
            Box::new(|r, m, _| Some(!m.keys.contains(&Some(r.id)))),
        ),
        _ => (
            format!("{{function}}(g) > {bound}"),
            Box::new(move |r, _, f| r.g.map(|g| f(g) > bound)),
        ),
    }
}

fn and(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn not(condition: Option<bool>) -> Option<bool> {
    condition.map(|condition| !condition)
}

fn is_in(value: Option<i64>, list: &[Option<i64>]) -> Option<bool> {
    if list.is_empty() {
        return Some(false);
    }
    let value = value?;
    if list.contains(&Some(value)) {
        return Some(true);
    }
    if list.contains(&None) { None } else { Some(false) }
}
