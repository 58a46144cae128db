//! What the stories are played on: one table of readings in cities, one partition a city, and a function
//! whose answers are known.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use foreshard::{Config, Engine};
use foreshard_actors::partitioning::Partitioning;
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
    /// Readings of each city.
    pub(super) readings: i64,
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
        let town = Self { engine, readings, _folder: folder };
        town.define(0)?;
        let bounds = (1..CITIES).map(|bound| bound.to_string()).collect();
        let partitioning = Partitioning::Range { column: "city".to_owned(), bounds };
        let batch = town.batch()?;
        town.engine.create_memory_table("readings", schema(), partitioning, vec![batch]).await?;
        Ok(town)
    }

    fn batch(&self) -> Result<RecordBatch> {
        let rows = 0..CITIES * self.readings;
        let city: Int64Array = rows.clone().map(|row| row % CITIES).collect();
        let x: Int64Array = rows.collect();
        Ok(RecordBatch::try_new(schema(), vec![Arc::new(city), Arc::new(x)])?)
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
        let of_city = city.map_or_else(String::new, |city| format!(" WHERE city = {city}"));
        let sql = format!("SELECT x, score(x + {more}) AS score FROM readings{of_city}");
        let rows = self.engine.sql(&sql).await.with_context(|| sql.clone())?;
        let (mut seen, mut wrong) = (0, 0);
        for batch in rows {
            let column = |place: usize| batch.column(place).as_primitive::<Int64Type>().values();
            seen += batch.num_rows() as i64;
            let pairs = column(0).iter().zip(column(1));
            wrong += pairs.filter(|(x, found)| **found != score(*x + more, version)).count();
        }
        let wanted = if city.is_some() { self.readings } else { CITIES * self.readings };
        Ok(wrong as u64 + wanted.abs_diff(seen))
    }
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
