//! A function gets another body in the night. No answer is the former body's, and in the morning what is
//! asked for first is computed again first.
//!
//! Three dashboards ask for three expressions, each at its hour of a day of twelve ticks. Background time
//! is enough for one of them in two ticks. After days to learn, the function is defined anew at
//! midnight.

use std::collections::BTreeSet;

use anyhow::Result;

use super::expected::{Expected, done};
use super::town::{CITIES, NewCalls, Town};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

/// Ticks of a day, and days to learn.
const DAY: usize = 12;
const DAYS: usize = 6;

/// Hours of the dashboards; each asks for `score(x + its place)`.
const HOURS: [usize; 3] = [4, 7, 10];

/// Share of their rows that should be ready when the dashboards first ask for the new body.
const READY_MIN: f64 = 0.8;

/// What came of the day with the new body.
#[derive(Default)]
struct Played {
    stale: u64,
    rows: u64,
    ready: u64,
    /// Shares of their rows that were ready, dashboard by dashboard.
    shares: Vec<f64>,
    /// Steps that compute ahead on that day.
    steps: usize,
    /// Places of the dashboards, in the order in which their new values were begun.
    order: Vec<usize>,
}

impl Played {
    fn share_ready(&self) -> f64 {
        self.ready as f64 / self.rows.max(1) as f64
    }

    /// Dashboards that were begun before another that is asked earlier.
    fn out_of_order(&self) -> usize {
        self.order.windows(2).filter(|pair| pair[0] > pair[1]).count()
    }
}

pub(super) async fn play(options: &Options) -> Result<Found> {
    let readings = if options.quick { 10 } else { 100 };
    let reactive = play_in("reactive", readings).await?;
    let forecast = play_in("forecast", readings).await?;
    let row = |arm: &str, played: &Played| {
        Row::default()
            .with("story", "redefined function")
            .with("arm", arm)
            .with("found", format!("order {:?}, ready {:.2?}", played.order, played.shares))
            .with("value", played.share_ready())
    };
    let mut rows = vec![row("reactive", &reactive), row("forecast", &forecast)];
    let each = HOURS.len() as f64 * CITIES as f64;
    let (expected, plan) = Expected::of("redefined function")
        .with(
            "new values of each dashboard and city are computed",
            forecast.steps as f64,
            Bound::AtLeast(each),
        )
        .with("anything is without a forecast", reactive.steps as f64, Bound::Exactly(0.0))
        .told("redefined_plan_missed");
    rows.extend(expected);
    let stale = (reactive.stale + forecast.stale) as f64;
    let (ready, without) = (forecast.share_ready(), reactive.share_ready());
    let out_of_order = forecast.out_of_order() as f64;
    let figures = vec![
        plan,
        Figure::bounded("redefined_stale", stale, "answers", Bound::Exactly(0.0)),
        Figure::bounded("redefined_ready", ready, "ratio", Bound::AtLeast(READY_MIN)),
        Figure::bounded("redefined_ready_reactive", without, "ratio", Bound::AtMost(0.1)),
        Figure::bounded("redefined_out_of_order", out_of_order, "dashboards", Bound::Exactly(0.0)),
    ];
    Ok((rows, figures))
}

async fn play_in(mode: &str, readings: i64) -> Result<Played> {
    let rows = CITIES * readings;
    // One dashboard in two ticks.
    let share = rows as f64 * 20e-6 / 2.0;
    let settings = [
        ("nodes", "1".to_owned()),
        ("loop.mode", mode.to_owned()),
        ("loop.season-ticks", DAY.to_string()),
        ("loop.allocate.nodes-max", "1".to_owned()),
        ("loop.precompute.budget-share", format!("{share:.6}")),
    ];
    let town = Town::start(readings, &settings).await?;
    let mut played = Played::default();
    for tick in 0..DAYS * DAY {
        played.stale += hour(&town, tick % DAY, 0).await?;
        town.engine.tick().await;
    }
    town.define(1)?;
    let before = town.engine.decisions().iter().map(|row| row.id).max();
    let mut calls = NewCalls::default();
    calls.of(&town);
    for tick in 0..DAY {
        played.stale += hour(&town, tick, 1).await?;
        town.engine.tick().await;
        let mut asked = (0, 0);
        for call in calls.of(&town) {
            // Each is asked once after its definition.
            played.rows += call.rows;
            played.ready += call.rows_stored;
            asked.0 += call.rows;
            asked.1 += call.rows_stored;
        }
        if asked.0 > 0 {
            played.shares.push(asked.1 as f64 / asked.0 as f64);
        }
        let begun = begun(&town).into_iter().filter(|at| !played.order.contains(at));
        let begun: Vec<usize> = begun.collect();
        played.order.extend(begun);
    }
    let decisions = town.engine.decisions();
    played.steps = done(&decisions, before).filter(|row| row.kind == "precompute").count();
    town.engine.clone().shutdown().await?;
    Ok(played)
}

/// Places of the dashboards of which something is stored.
fn begun(town: &Town) -> BTreeSet<usize> {
    let texts: Vec<String> = HOURS.iter().enumerate().map(|(at, _)| format!("+ {at}")).collect();
    let outputs = town.engine.placement().outputs.into_iter();
    let stored = outputs.filter(|(_, output)| !output.is_state && output.rows_stored > 0);
    let known = stored.filter_map(|((id, _), _)| town.engine.members().expressions().get(id));
    known.filter_map(|it| texts.iter().position(|text| it.text.contains(text.as_str()))).collect()
}

/// What is asked in one hour; says how many answers are not those of definition `version`.
async fn hour(town: &Town, hour: usize, version: i64) -> Result<u64> {
    match HOURS.iter().position(|at| *at == hour) {
        Some(dashboard) => town.ask(None, dashboard as i64, version).await,
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dashboard_that_is_begun_before_an_earlier_one_is_out_of_order() {
        let order = |order: &[usize]| Played { order: order.to_vec(), ..Played::default() };
        assert_eq!(order(&[0, 1, 2]).out_of_order(), 0);
        assert_eq!(order(&[0, 2, 1]).out_of_order(), 1);
    }
}
