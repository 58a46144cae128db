//! Two tables are joined city by city, and which cities are asked for drifts through the day. How many joins
//! find both partitions on one node?
//!
//! At the beginning no city has its readings and its visits on one node. A join that finds them there takes
//! no exchange, which `EXPLAIN` says. After a day of drift most should.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use foreshard::Session;
use foreshard_actors::partitioning::Partitioning;
use foreshard_policy::ids::{NodeId, PartitionId};

use super::expected::{Expected, done};
use super::town::{CITIES, Town};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

const NODES: u32 = 4;

/// Ticks of a day, and ticks after it in which joins are counted.
const DAY: usize = 24;
const COUNTED: usize = 12;

/// Most joins of one city in a tick.
const ASKED: f64 = 4.0;

/// Share of the joins that should find both partitions on one node after the first day.
const TOGETHER_MIN: f64 = 0.8;

/// Joins, and how many of them were in place.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    joins: u64,
    in_place: u64,
}

impl Share {
    fn of_joins(self) -> f64 {
        self.in_place as f64 / self.joins.max(1) as f64
    }
}

/// What came of one play.
#[derive(Default)]
struct Played {
    first: Share,
    last: Share,
    wrong: u64,
    /// Copies and moves of what is joined, on the day and after it.
    on_the_day: usize,
    after_it: usize,
}

pub(super) async fn play(options: &Options) -> Result<Found> {
    let readings = if options.quick { 500 } else { 4_000 };
    let without = play_with(false, readings).await?;
    let played = play_with(true, readings).await?;
    let row = |arm: &str, played: &Played| {
        Row::default()
            .with("story", "drifting joins")
            .with("arm", arm)
            .with("found", format!("{:.2} in place in the first hour", played.first.of_joins()))
            .with("value", played.last.of_joins())
    };
    let mut rows = vec![row("stays", &without), row("comes together", &played)];
    let (expected, plan) = Expected::of("drifting joins")
        .with(
            "cities come to where they are joined on the first day",
            played.on_the_day as f64,
            Bound::AtLeast(TOGETHER_MIN * CITIES as f64),
        )
        .with("there are steps after it", played.after_it as f64, Bound::AtMost(CITIES as f64))
        .told("drift_plan_missed");
    rows.extend(expected);
    let wrong = (without.wrong + played.wrong) as f64;
    let figures = vec![
        plan,
        Figure::bounded(
            "drift_in_place",
            played.last.of_joins(),
            "of joins",
            Bound::AtLeast(TOGETHER_MIN),
        ),
        Figure::reported("drift_in_place_without", without.last.of_joins(), "of joins"),
        Figure::bounded("drift_wrong", wrong, "answers", Bound::Exactly(0.0)),
    ];
    Ok((rows, figures))
}

async fn play_with(colocates: bool, readings: i64) -> Result<Played> {
    let settings = [
        ("nodes", NODES.to_string()),
        ("loop.mode", "reactive".to_owned()),
        ("loop.allocate.nodes-min", NODES.to_string()),
        ("loop.allocate.nodes-max", NODES.to_string()),
        ("loop.reshape.colocate", colocates.to_string()),
        ("loop.reshape.dwell-ticks", "2".to_owned()),
    ];
    let town = Town::start(readings, &settings).await?;
    add_visits(&town).await?;
    let session = town.engine.session();
    for suffix in ["", "_rows"] {
        // Small tables would be given to all nodes.
        let setting = format!("hash_join_single_partition_threshold{suffix}");
        ask(&session, &format!("SET datafusion.optimizer.{setting} = 0")).await?;
    }
    let mut played = Played::default();
    for tick in 0..DAY + COUNTED {
        let mut share = Share::default();
        for city in asked(tick) {
            let sql = format!(
                "SELECT count(*), sum(v.y) FROM readings r JOIN visits v \
                 ON r.city = v.city AND r.x = v.x WHERE r.city = {city}"
            );
            share.joins += 1;
            share.in_place += u64::from(is_in_place(&session, &sql).await?);
            let rows = ask(&session, &sql).await?;
            let number = |at: usize| rows[0].column(at).as_primitive::<Int64Type>().value(0);
            let of_city = (0..CITIES * readings).filter(|x| x % CITIES == city);
            let right = (readings, of_city.map(|x| 3 * x).sum());
            played.wrong += u64::from((number(0), number(1)) != right);
        }
        if tick == 0 {
            played.first = share;
        }
        if tick >= DAY {
            played.last.joins += share.joins;
            played.last.in_place += share.in_place;
        }
        town.engine.tick().await;
    }
    let decisions = town.engine.decisions();
    for row in done(&decisions, None).filter(|row| matches!(row.kind.as_str(), "copy" | "move")) {
        let is_on_the_day = row.tick.0 <= DAY as u64;
        played.on_the_day += usize::from(is_on_the_day);
        played.after_it += usize::from(!is_on_the_day);
    }
    town.engine.clone().shutdown().await?;
    Ok(played)
}

/// The table `visits (city, x, y)`: three times `x`, each city two nodes away from its readings.
async fn add_visits(town: &Town) -> Result<()> {
    let field = |name: &str| Field::new(name, DataType::Int64, false);
    let schema: SchemaRef = Arc::new(Schema::new(vec![field("city"), field("x"), field("y")]));
    let rows = 0..CITIES * town.readings;
    let city: Int64Array = rows.clone().map(|row| row % CITIES).collect();
    let x: Int64Array = rows.clone().collect();
    let y: Int64Array = rows.map(|row| 3 * row).collect();
    let columns: Vec<Arc<dyn Array>> = vec![Arc::new(city), Arc::new(x), Arc::new(y)];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let bounds = (1..CITIES).map(|bound| bound.to_string()).collect();
    let partitioning = Partitioning::Range { column: "city".to_owned(), bounds };
    town.engine.create_memory_table("visits", schema, partitioning, vec![batch]).await?;
    let members = town.engine.members();
    let at = |table: &str, city: u32| {
        let partition = PartitionId::new(table, city);
        let holder =
            members.placement().holders.get(&partition).and_then(|all| all.first().copied());
        holder.map(|holder| (partition, holder))
    };
    for city in 0..CITIES as u32 {
        let (_, readings) = at("readings", city).context("readings are placed")?;
        let (partition, from) = at("visits", city).context("visits are placed")?;
        let to = NodeId((readings.0 + 2) % NODES);
        if from != to {
            members.copy(&partition, to).await?;
            members.drop_replica(&partition, from).await?;
        }
    }
    Ok(())
}

/// The cities that are asked for in a tick: what is asked for most moves once around in a day.
fn asked(tick: usize) -> Vec<i64> {
    let mut asked = Vec::new();
    for city in 0..CITIES {
        let phase = city as f64 / CITIES as f64 - tick as f64 / DAY as f64;
        let joins = ASKED * (0.5 + 0.5 * (phase * std::f64::consts::TAU).cos());
        asked.extend(std::iter::repeat_n(city, joins.round() as usize));
    }
    asked
}

async fn is_in_place(session: &Session, sql: &str) -> Result<bool> {
    let rows = ask(session, &format!("EXPLAIN {sql}")).await?;
    let plan = arrow::util::pretty::pretty_format_batches(&rows)?.to_string();
    Ok(plan.contains("co-located"))
}

async fn ask(session: &Session, sql: &str) -> Result<Vec<RecordBatch>> {
    let stream = session.sql(sql).await.with_context(|| sql.to_owned())?;
    Ok(stream.collect().await?)
}
