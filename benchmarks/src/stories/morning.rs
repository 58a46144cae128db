//! Rows come in the night; in the morning dashboards ask for some cities, in the evening for others. What is
//! asked for in the morning should be there by then.
//!
//! Upside down, a forecast expects the evening's cities in the morning.

use anyhow::Result;

use super::expected::{Expected, done};
use super::fresh::{Fresh, city_computed};
use super::town::{CITIES, NewCalls, Town};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

/// Ticks of a day, days to learn, and days that count.
const DAY: usize = 24;
const DAYS: usize = 7;
const COUNTED: usize = 2;

/// The hours in which rows come, and dashboards are looked at.
const NIGHT: usize = 2;
const MORNING: usize = 8;
const EVENING: usize = 18;

/// Cities that are looked at in the morning; the others are in the evening.
const EARLY: i64 = 4;

/// Dashboards of each city.
const DASHBOARDS: i64 = 2;

/// Share of the new rows that should be ready when they are first asked for.
const READY_MIN: f64 = 0.9;

/// What came of one play.
#[derive(Default)]
struct Played {
    /// Of the mornings that count.
    fresh: Fresh,
    wrong: u64,
    /// Steps that compute ahead for the early cities between the night and the morning, for the others
    /// before the evening, and at other times.
    early: usize,
    late: usize,
    other: usize,
}

pub(super) async fn play(options: &Options) -> Result<Found> {
    let new = if options.quick { 2 } else { 50 };
    let reactive = play_in("reactive", new).await?;
    let forecast = play_in("forecast", new).await?;
    let inverted = play_in("inverted", new).await?;
    let row = |arm: &str, played: &Played| {
        Row::default()
            .with("story", "morning dashboards")
            .with("arm", arm)
            .with("found", format!("{:.1} ms of calls in the mornings", played.fresh.ns / 1e6))
            .with("value", played.fresh.share_ready())
    };
    let mut rows =
        vec![row("reactive", &reactive), row("forecast", &forecast), row("inverted", &inverted)];
    let each = (EARLY * DASHBOARDS) as f64 * COUNTED as f64;
    let (expected, plan) = Expected::of("morning dashboards")
        .with(
            "what mornings show is computed after the rows came",
            forecast.early as f64,
            Bound::AtLeast(each),
        )
        .with(
            "what evenings show is computed before them",
            forecast.late as f64,
            Bound::AtLeast(each),
        )
        .with("anything is computed at other times", forecast.other as f64, Bound::Exactly(0.0))
        .told("morning_plan_missed");
    rows.extend(expected);
    let over = forecast.fresh.ns / reactive.fresh.ns;
    let (ready, without) = (forecast.fresh.share_ready(), reactive.fresh.share_ready());
    let wrong = (reactive.wrong + forecast.wrong + inverted.wrong) as f64;
    let figures = vec![
        plan,
        Figure::bounded("morning_ready", ready, "of new rows", Bound::AtLeast(READY_MIN)),
        Figure::bounded("morning_ready_reactive", without, "of new rows", Bound::AtMost(0.1)),
        Figure::bounded(
            "morning_ready_inverted",
            inverted.fresh.share_ready(),
            "of new rows",
            Bound::AtMost(0.5),
        ),
        Figure::bounded("morning_calls_vs_reactive", over, "ratio", Bound::AtMost(0.2)),
        Figure::bounded("morning_wrong", wrong, "answers", Bound::Exactly(0.0)),
    ];
    Ok((rows, figures))
}

async fn play_in(mode: &str, new: i64) -> Result<Played> {
    let settings = [
        ("nodes", "1".to_owned()),
        ("loop.mode", mode.to_owned()),
        ("loop.season-ticks", DAY.to_string()),
        ("loop.allocate.nodes-max", "1".to_owned()),
    ];
    let mut town = Town::start(2 * new, &settings).await?;
    let (mut played, mut calls) = (Played::default(), NewCalls::default());
    for tick in 0..(DAYS + COUNTED) * DAY {
        let cities = match tick % DAY {
            MORNING => 0..EARLY,
            EVENING => EARLY..CITIES,
            _ => 0..0,
        };
        if tick % DAY == NIGHT {
            town.append(0..CITIES, new).await?;
        }
        for city in cities {
            for dashboard in 0..DASHBOARDS {
                played.wrong += town.ask(Some(city), dashboard, 0).await?;
            }
        }
        town.engine.tick().await;
        let asked = calls.of(&town);
        if tick >= DAYS * DAY && tick % DAY == MORNING {
            asked.iter().for_each(|call| played.fresh.add(call));
        }
    }
    let decisions = town.engine.decisions();
    for row in done(&decisions, None).filter(|row| row.tick.0 as usize > DAYS * DAY) {
        // A tick is known once it is over, so so many hours of the day were over.
        let hours = row.tick.0 as usize % DAY;
        match city_computed(row) {
            Some(city) if city < EARLY && (NIGHT + 1..=MORNING).contains(&hours) => {
                played.early += 1;
            }
            Some(city) if city >= EARLY && (NIGHT + 1..=EVENING).contains(&hours) => {
                played.late += 1;
            }
            Some(_) => played.other += 1,
            None => {}
        }
    }
    town.engine.clone().shutdown().await?;
    Ok(played)
}
