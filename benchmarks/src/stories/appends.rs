//! Rows come to four cities in every tick. Two of them are looked at now and then, and the new rows should be
//! computed by then; of the other two nothing should be computed, for nobody asks for them.
//!
//! Whoever refreshes all that was once used computes twice as much as is needed. Upside down, a forecast
//! expects that those are asked for that are not.

use anyhow::Result;
use foreshard_policy::decision::Outcome;

use super::expected::{Expected, done};
use super::fresh::{Fresh, city_computed};
use super::town::{CITIES, NewCalls, Town};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

/// Ticks between two looks, looks to learn from, and looks that count.
const EVERY: usize = 6;
const LEARNED: usize = 16;
const COUNTED: usize = 6;

/// The tick of a look.
const LOOK: usize = EVERY - 1;

/// Cities that rows come to, and of these those that are looked at.
const GROWING: i64 = 4;
const ASKED: i64 = 2;

/// Share of the new rows that should be ready when they are first asked for.
const READY_MIN: f64 = 0.9;

/// What came of one play.
#[derive(Default)]
struct Played {
    /// Of the looks that count.
    fresh: Fresh,
    wrong: u64,
    /// Steps that compute ahead for cities that are looked at.
    needed: usize,
    /// Rows that were computed for them, and for others.
    rows_needed: u64,
    rows_idle: u64,
}

impl Played {
    fn share_idle(&self) -> f64 {
        self.rows_idle as f64 / (self.rows_needed + self.rows_idle).max(1) as f64
    }
}

pub(super) async fn play(options: &Options) -> Result<Found> {
    let new = if options.quick { 2 } else { 20 };
    let reactive = play_in("reactive", new).await?;
    let forecast = play_in("forecast", new).await?;
    let inverted = play_in("inverted", new).await?;
    let row = |arm: &str, played: &Played| {
        let (needed, idle) = (played.rows_needed, played.rows_idle);
        Row::default()
            .with("story", "appends all day")
            .with("arm", arm)
            .with("found", format!("{needed} rows computed ahead, {idle} for nobody"))
            .with("value", played.fresh.share_ready())
    };
    let mut rows =
        vec![row("reactive", &reactive), row("forecast", &forecast), row("inverted", &inverted)];
    let each = (ASKED * COUNTED as i64) as f64;
    let (expected, plan) = Expected::of("appends all day")
        .with(
            "new rows are computed before each look",
            forecast.needed as f64,
            Bound::AtLeast(each),
        )
        .with("rows are computed where nobody asks", forecast.rows_idle as f64, Bound::Exactly(0.0))
        .told("appends_plan_missed");
    rows.extend(expected);
    let (ready, without) = (forecast.fresh.share_ready(), reactive.fresh.share_ready());
    let wrong = (reactive.wrong + forecast.wrong + inverted.wrong) as f64;
    let upside_down = inverted.fresh.share_ready();
    let figures = vec![
        plan,
        Figure::bounded("appends_ready", ready, "of new rows", Bound::AtLeast(READY_MIN)),
        Figure::bounded("appends_ready_reactive", without, "of new rows", Bound::AtMost(0.1)),
        Figure::bounded("appends_ready_inverted", upside_down, "of new rows", Bound::AtMost(0.5)),
        Figure::bounded(
            "appends_for_nobody",
            forecast.share_idle(),
            "of rows",
            Bound::AtMost(0.05),
        ),
        Figure::bounded("appends_wrong", wrong, "answers", Bound::Exactly(0.0)),
    ];
    Ok((rows, figures))
}

async fn play_in(mode: &str, new: i64) -> Result<Played> {
    let settings = [
        ("nodes", "1".to_owned()),
        ("loop.mode", mode.to_owned()),
        ("loop.season-ticks", EVERY.to_string()),
        ("loop.allocate.nodes-max", "1".to_owned()),
    ];
    let mut town = Town::start(5 * new, &settings).await?;
    let (mut played, mut calls) = (Played::default(), NewCalls::default());
    for tick in 0..(LEARNED + COUNTED) * EVERY {
        let cities = match tick {
            0 => 0..CITIES, // Everything was of interest once.
            tick if tick % EVERY == LOOK => 0..ASKED,
            _ => 0..0,
        };
        for city in cities {
            played.wrong += town.ask(Some(city), 0, 0).await?;
        }
        town.append(0..GROWING, new).await?;
        town.engine.tick().await;
        let asked = calls.of(&town);
        if tick >= LEARNED * EVERY {
            asked.iter().for_each(|call| played.fresh.add(call));
        }
    }
    let decisions = town.engine.decisions();
    for row in done(&decisions, None).filter(|row| row.tick.0 as usize > LEARNED * EVERY) {
        let Some(Outcome::Done { rows, .. }) = &row.outcome else { continue };
        match city_computed(row) {
            Some(city) if city < ASKED => {
                played.needed += 1;
                played.rows_needed += rows;
            }
            Some(_) => played.rows_idle += rows,
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
    fn rows_for_nobody_are_a_share_of_those_that_are_computed() {
        let played = Played { rows_needed: 30, rows_idle: 10, ..Played::default() };
        assert_eq!((played.share_idle(), Played::default().share_idle()), (0.25, 0.0));
    }
}
