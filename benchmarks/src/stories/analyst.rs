//! An analyst looks into another city every day, at a part of its readings after the other. Which city it will
//! be nobody knows; but while he reads, the rest of the city can be computed.
//!
//! ```text
//! readings of the city   |-------|-------|-------|-------|-------|-------|-------|-------|
//! question 1             [==============]
//! question 2                     [==============]
//! ..                                        [==============]
//! question 8             [===============================================================]
//! ```
//!
//! Half of what a question is about was in the one before. How quick that is compared with plain DataFusion is
//! what the benchmark `drill-down` tells; this tells what is computed between the questions.

use anyhow::Result;
use foreshard_policy::decision::Outcome;

use super::expected::{Expected, done};
use super::fresh::{Fresh, city_computed};
use super::town::{CITIES, NewCalls, Town};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

/// Ticks of a day, days to learn, and days that count.
const DAY: usize = 16;
const DAYS: usize = 6;
const COUNTED: usize = 2;

/// Hour of the first question, questions of a session, and parts of a city that they go by.
const FIRST: usize = 4;
const QUESTIONS: usize = 8;
const PARTS: i64 = 8;

/// Share of the rows that should be ready, and that is ready where only what was asked for is kept.
const READY_MIN: f64 = 0.8;
const READY_REACTIVE_MAX: f64 = 0.7;

/// What came of one play.
#[derive(Default)]
struct Played {
    /// Of the sessions that count.
    asked: Fresh,
    wrong: u64,
    /// Steps that compute the rest of the city that is looked at, and rows that are computed in others.
    rest: usize,
    rows_elsewhere: u64,
}

pub(super) async fn play(options: &Options) -> Result<Found> {
    let each = if options.quick { 2 } else { 40 };
    let reactive = play_in("reactive", each).await?;
    let forecast = play_in("forecast", each).await?;
    let inverted = play_in("inverted", each).await?;
    let row = |arm: &str, played: &Played| {
        let (rest, elsewhere) = (played.rest, played.rows_elsewhere);
        Row::default()
            .with("story", "analyst drill-down")
            .with("arm", arm)
            .with("found", format!("{rest} steps for what he is at, {elsewhere} rows elsewhere"))
            .with("value", played.asked.share_stored())
    };
    let mut rows =
        vec![row("reactive", &reactive), row("forecast", &forecast), row("inverted", &inverted)];
    let elsewhere = forecast.rows_elsewhere as f64 / (COUNTED as i64 * PARTS * each) as f64;
    let (expected, plan) = Expected::of("analyst drill-down")
        .with(
            "the rest of a city is computed while he looks into it",
            forecast.rest as f64,
            Bound::AtLeast(COUNTED as f64),
        )
        .with("rows of other cities, over those of his", elsewhere, Bound::AtMost(0.2))
        .told("analyst_plan_missed");
    rows.extend(expected);
    let wrong = (reactive.wrong + forecast.wrong + inverted.wrong) as f64;
    let ready = |played: &Played| played.asked.share_stored();
    let (with, without, upside_down) = (ready(&forecast), ready(&reactive), ready(&inverted));
    let not_worse = Bound::AtLeast(without);
    let figures = vec![
        plan,
        Figure::bounded("analyst_ready", with, "of rows", Bound::AtLeast(READY_MIN)),
        Figure::bounded(
            "analyst_ready_reactive",
            without,
            "of rows",
            Bound::AtMost(READY_REACTIVE_MAX),
        ),
        Figure::bounded("analyst_ready_inverted", upside_down, "of rows", not_worse),
        Figure::bounded("analyst_wrong", wrong, "answers", Bound::Exactly(0.0)),
    ];
    Ok((rows, figures))
}

/// The city of a day: another one each day, in an order that tells nothing.
fn city(day: usize) -> i64 {
    (3 * day as i64) % CITIES
}

async fn play_in(mode: &str, each: i64) -> Result<Played> {
    let settings = [
        ("nodes", "1".to_owned()),
        ("loop.mode", mode.to_owned()),
        ("loop.season-ticks", DAY.to_string()),
        ("loop.allocate.nodes-max", "1".to_owned()),
    ];
    let town = Town::start(PARTS * each, &settings).await?;
    let (mut played, mut calls) = (Played::default(), NewCalls::default());
    for tick in 0..(DAYS + COUNTED) * DAY {
        let (day, hour) = (tick / DAY, tick % DAY);
        if let Some(question) = hour.checked_sub(FIRST).filter(|at| *at < QUESTIONS) {
            let first = question as i64 * each;
            let some =
                if question + 1 < QUESTIONS { first..first + 2 * each } else { 0..PARTS * each };
            played.wrong += town.ask_some(city(day), some).await?;
        }
        town.engine.tick().await;
        let asked = calls.of(&town);
        if day >= DAYS {
            asked.iter().for_each(|call| played.asked.add(call));
        }
    }
    let decisions = town.engine.decisions();
    for row in done(&decisions, None).filter(|row| row.tick.0 as usize > DAYS * DAY) {
        let Some(Outcome::Done { rows, .. }) = &row.outcome else { continue };
        match city_computed(row) {
            Some(of) if of == city((row.tick.0 as usize - 1) / DAY) => played.rest += 1,
            Some(_) => played.rows_elsewhere += rows,
            None => {}
        }
    }
    town.engine.clone().shutdown().await?;
    Ok(played)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_city_is_looked_into_twice() {
        let mut cities: Vec<i64> = (0..DAYS + COUNTED).map(city).collect();
        cities.sort_unstable();
        cities.dedup();
        assert_eq!(cities.len(), DAYS + COUNTED);
    }
}
