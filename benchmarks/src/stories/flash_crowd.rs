//! One city is suddenly asked about by everybody. How long does one node carry more than its share?
//!
//! Nothing is stored, so that each question is work. The load of a node is what it computed between two
//! ticks; it should be back below one and a half times the mean once the crowd is noticed (the load is a mean
//! over `loop.monitor.current-ticks`), a copy was made, and a tick later. Nobody can foresee a crowd: a
//! forecast must not make it worse than the reactive rule.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use foreshard_policy::cluster::Step;
use foreshard_policy::decision::DecisionRow;
use foreshard_policy::ids::NodeId;
use tokio::task::JoinSet;

use super::expected::{Expected, done};
use super::town::{CITIES, NewCalls, Town};
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

const NODES: u32 = 4;

/// Ticks before the crowd comes, and with it.
const CALM: usize = 20;
const CROWD: usize = 20;

/// Questions about each city in a tick, and about the one that the crowd is at.
const ASKED: usize = 2;
const ASKED_BY_CROWD: usize = 40;
const CROWDED: i64 = 3;

/// Questions at a time.
const AT_ONCE: usize = 4;

/// Load of the busiest node over the mean that counts as balanced.
const BALANCED: f64 = 1.5;

/// Ticks until the crowd counts in full, for the copy, and one more.
const TICKS_MAX: f64 = 3.0 + 1.0 + 1.0;

/// The busiest node's load over the mean, tick by tick.
#[derive(Default)]
struct Played {
    imbalance: Vec<f64>,
    wrong: u64,
    /// Copies of the city that the crowd is at within the ticks that there are for it, and all copies.
    in_time: usize,
    copies: usize,
}

impl Played {
    /// Ticks of the crowd until the load is balanced; all of them if it never is.
    fn ticks(&self) -> f64 {
        let crowd = &self.imbalance[CALM..];
        crowd.iter().position(|over| *over <= BALANCED).map_or(crowd.len(), |at| at + 1) as f64
    }

    /// The middle of the last ticks.
    fn at_the_end(&self) -> f64 {
        let mut last = self.imbalance[self.imbalance.len() - CROWD / 4..].to_vec();
        last.sort_by(f64::total_cmp);
        last[last.len() / 2]
    }
}

pub(super) async fn play(options: &Options) -> Result<Found> {
    let readings = if options.quick { 10 } else { 200 };
    let reactive = play_in("reactive", readings).await?;
    let forecast = play_in("forecast", readings).await?;
    let row = |arm: &str, played: &Played| {
        Row::default()
            .with("story", "flash crowd")
            .with("arm", arm)
            .with("found", format!("{:.2} over the mean at the end", played.at_the_end()))
            .with("value", played.ticks())
    };
    let mut rows = vec![row("reactive", &reactive), row("forecast", &forecast)];
    let (in_time, besides) = (forecast.in_time, forecast.copies - forecast.in_time);
    let others = f64::from(NODES - 1);
    let (expected, plan) = Expected::of("flash crowd")
        .with("its city is copied to all nodes in time", in_time as f64, Bound::AtLeast(others))
        .with("anything is copied besides", besides as f64, Bound::AtMost(1.0))
        .told("flash_plan_missed");
    rows.extend(expected);
    let over = forecast.ticks() / reactive.ticks();
    let figures = vec![
        plan,
        Figure::bounded("flash_ticks", forecast.ticks(), "ticks", Bound::AtMost(TICKS_MAX)),
        Figure::bounded("flash_ticks_vs_reactive", over, "ratio", Bound::AtMost(1.0)),
        Figure::bounded("flash_end", forecast.at_the_end(), "ratio", Bound::AtMost(BALANCED)),
        Figure::bounded(
            "flash_wrong",
            (forecast.wrong + reactive.wrong) as f64,
            "answers",
            Bound::Exactly(0.0),
        ),
    ];
    Ok((rows, figures))
}

async fn play_in(mode: &str, readings: i64) -> Result<Played> {
    // A replica that would be busy for more than twice its calm share is too much.
    let calm_ms = readings as f64 * 0.02 * ASKED as f64;
    let settings = [
        ("nodes", NODES.to_string()),
        ("loop.mode", mode.to_owned()),
        ("loop.allocate.nodes-min", NODES.to_string()),
        ("loop.allocate.nodes-max", NODES.to_string()),
        ("loop.precompute.min-ns-per-row", "1e9".to_owned()),
        ("loop.reshape.drop-below", format!("{:.3}", calm_ms * 1.5)),
        ("loop.reshape.copy-above", format!("{:.3}", calm_ms * 4.0)),
    ];
    let town = Arc::new(Town::start(readings, &settings).await?);
    let (mut played, mut calls) = (Played::default(), NewCalls::default());
    for tick in 0..CALM + CROWD {
        let mut cities: Vec<i64> = (0..CITIES).flat_map(|city| [city; ASKED]).collect();
        if tick >= CALM {
            cities.extend([CROWDED; ASKED_BY_CROWD]);
        }
        played.wrong += ask(&town, &cities).await?;
        town.engine.tick().await;
        let mut loads: BTreeMap<NodeId, u64> =
            town.engine.placement().nodes.into_keys().map(|node| (node, 0)).collect();
        for call in calls.of(&town) {
            *loads.entry(call.node).or_default() += call.ns;
        }
        let most = loads.values().copied().max().unwrap_or(0) as f64;
        let mean = loads.values().sum::<u64>() as f64 / loads.len().max(1) as f64;
        played.imbalance.push(most / mean.max(1.0));
    }
    let decisions = town.engine.decisions();
    for (row, city) in done(&decisions, None).filter_map(|row| Some((row, city_copied(row)?))) {
        let ticks = row.tick.0.saturating_sub(CALM as u64) as f64;
        played.copies += 1;
        played.in_time += usize::from(city == CROWDED && (1.0..=TICKS_MAX).contains(&ticks));
    }
    town.engine.clone().shutdown().await?;
    Ok(played)
}

/// The city that a decision copies, if it does.
fn city_copied(row: &DecisionRow) -> Option<i64> {
    match &row.step {
        Some(Step::Copy { partition, .. }) => Some(i64::from(partition.ordinal)),
        _ => None,
    }
}

async fn ask(town: &Arc<Town>, cities: &[i64]) -> Result<u64> {
    let mut wrong = 0;
    for cities in cities.chunks(AT_ONCE) {
        let mut asked = JoinSet::new();
        for city in cities.iter().copied() {
            let town = Arc::clone(town);
            asked.spawn(async move { town.ask(Some(city), 0, 0).await });
        }
        while let Some(answered) = asked.join_next().await {
            wrong += answered??;
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_count_until_the_load_is_balanced() {
        let mut imbalance = vec![1.0; CALM];
        imbalance.extend([3.0, 2.9, 1.4]);
        imbalance.extend([1.2; CROWD - 3]);
        let played = Played { imbalance, ..Played::default() };
        assert_eq!((played.ticks(), played.at_the_end()), (3.0, 1.2));
        let never = Played { imbalance: vec![2.0; CALM + CROWD], ..Played::default() };
        assert_eq!(never.ticks(), CROWD as f64);
    }
}
