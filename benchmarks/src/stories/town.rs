//! What the stories are played on: one table of readings in cities, one partition a city, and a function
//! whose answers are known.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use foreshard::{Config, Engine};
use foreshard_actors::partitioning::Partitioning;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::random::SplitMix64;
use tempfile::TempDir;

use crate::exact::functions::of_int;

/// Cities, which are the partitions.
pub(super) const CITIES: i64 = 8;

/// Mixing rounds of the function: some 20 us.
const MIXED: u32 = 8_000;

/// An engine with the table `readings (city, x)` and the function `score`.
pub(super) struct Town {
    pub(super) engine: Engine,
    /// Readings of each city at the start.
    pub(super) readings: i64,
    /// Readings that came since then, by city.
    appended: [i64; CITIES as usize],
    _folder: TempDir,
}

impl Town {
    /// Starts an engine whose loop turns when told.
    pub(super) async fn start(readings: i64, settings: &[(&str, String)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut config = Config::default()
            .set("data-dir", &folder.path().to_string_lossy())?
            .set("loop.lstm.enabled", "false")?;
        for (key, value) in settings {
            config = config.set(key, value)?;
        }
        let engine = Engine::builder().config(config).manual_ticks(true).start().await?;
        let town = Self { engine, readings, appended: [0; CITIES as usize], _folder: folder };
        town.define(0)?;
        let bounds = (1..CITIES).map(|bound| bound.to_string()).collect();
        let partitioning = Partitioning::Range { column: "city".to_owned(), bounds };
        let batch = batch((0..CITIES * readings).collect())?;
        town.engine.create_memory_table("readings", schema(), partitioning, vec![batch]).await?;
        Ok(town)
    }

    /// Appends `each` readings to each of these cities, in one commit.
    pub(super) async fn append(&mut self, cities: Range<i64>, each: i64) -> Result<()> {
        let mut xs = Vec::new();
        for city in cities {
            let first = self.in_city(city);
            xs.extend((first..first + each).map(|at| city + CITIES * at));
            self.appended[city as usize] += each;
        }
        self.engine.append("readings", vec![batch(xs)?]).await?;
        Ok(())
    }

    /// Readings of one city.
    pub(super) fn in_city(&self, city: i64) -> i64 {
        self.readings + self.appended[city as usize]
    }

    /// Gives `score` its definition number `version`.
    pub(super) fn define(&self, version: i64) -> Result<()> {
        let (card, udf, _) = of_int("score", move |x| Ok(Some(score(x, version))));
        self.engine.register_function(card, udf)?;
        Ok(())
    }

    /// Asks for `score(x + more)` of each reading of one city, or of all; says how many answers are not
    /// those of definition `version`.
    pub(super) async fn ask(&self, city: Option<i64>, more: i64, version: i64) -> Result<u64> {
        let Some(city) = city else {
            let all = (0..CITIES).map(|city| self.in_city(city)).sum();
            return self.ask_where("", all, (more, version)).await;
        };
        let rows = format!(" WHERE city = {city}");
        self.ask_where(&rows, self.in_city(city), (more, version)).await
    }

    /// The same, in the first definition, of some readings of a city, which are counted in the order in which
    /// they came.
    pub(super) async fn ask_some(&self, city: i64, some: Range<i64>) -> Result<u64> {
        let (from, to) = (city + CITIES * some.start, city + CITIES * some.end);
        let rows = format!(" WHERE city = {city} AND x >= {from} AND x < {to}");
        self.ask_where(&rows, some.end - some.start, (0, 0)).await
    }

    async fn ask_where(&self, rows: &str, wanted: i64, (more, version): (i64, i64)) -> Result<u64> {
        let sql = format!("SELECT x, score(x + {more}) AS score FROM readings{rows}");
        let rows = self.engine.sql(&sql).await.with_context(|| sql.clone())?;
        let (mut seen, mut wrong) = (0, 0);
        for batch in rows {
            let column = |place: usize| batch.column(place).as_primitive::<Int64Type>().values();
            seen += batch.num_rows() as i64;
            let pairs = column(0).iter().zip(column(1));
            wrong += pairs.filter(|(x, found)| **found != score(*x + more, version)).count();
        }
        Ok(wrong as u64 + wanted.abs_diff(seen))
    }
}

/// Tells calls that are new from those that were there before.
#[derive(Debug, Default)]
pub(super) struct NewCalls {
    seen: BTreeSet<u64>,
}

impl NewCalls {
    /// The calls since the last time, of the ticks that are closed.
    pub(super) fn of(&mut self, town: &Town) -> Vec<CallRecord> {
        let mut calls = town.engine.calls();
        let now = calls.iter().map(|call| call.query).collect();
        let seen = std::mem::replace(&mut self.seen, now);
        calls.retain(|call| !seen.contains(&call.query));
        calls
    }
}

/// Readings with these numbers; the city is what is left of a number.
fn batch(xs: Vec<i64>) -> Result<RecordBatch> {
    let city: Int64Array = xs.iter().map(|x| x % CITIES).collect();
    Ok(RecordBatch::try_new(schema(), vec![Arc::new(city), Arc::new(Int64Array::from(xs))])?)
}

fn schema() -> SchemaRef {
    let field = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![field("city"), field("x")]))
}

fn score(x: i64, version: i64) -> i64 {
    let mut dice = SplitMix64::new(x.cast_unsigned());
    let mixed = (0..MIXED).fold(0_u64, |mixed, _| mixed ^ dice.bits());
    // The answers differ by definition; all of the work is needed for each.
    (mixed >> 8).cast_signed().wrapping_add(version)
}
