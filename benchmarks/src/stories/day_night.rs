//! By day there is work for three nodes, at night for less than one, and each node is paid for by the hour. How
//! many node-hours does a day take, and are the nodes there when the day begins?
//!
//! A tick is 20 ms, so that a day takes a second of computing. What a row costs is measured first, and the
//! questions are made so long that a day's load is that of 2.4 nodes. A tick is *violated* if it has more load
//! than its nodes carry.

use anyhow::Result;
use foreshard_policy::decision::DecisionRow;

use super::expected::{Expected, done};
use super::town::Town;
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};

/// Ticks of a night with the day that follows until midnight, days to learn, and days that count.
const DAY: usize = 48;
const DAYS: usize = 5;
const COUNTED: usize = 2;

/// The hours of the day's work.
const MORNING: usize = 16;
const EVENING: usize = 36;

/// Load of one question, in nodes, and questions of a tick by day and at night.
const QUESTION: f64 = 0.4;
const BY_DAY: i64 = 6;
const AT_NIGHT: i64 = 1;

/// Nodes that the day takes.
const PEAK: f64 = 3.0;

const TICK_MS: f64 = 20.0;
/// What one node may be busy, of a tick.
const UTILISATION: f64 = 0.7;
/// How far ahead is looked: so many ticks before the morning nodes may come.
const HORIZON: usize = 4;
/// Ticks that fewer nodes must have been enough.
const SCALE_IN: usize = 4;

/// Node-hours over those of as many nodes all day as the day takes, and over those of the reactive rule.
const HOURS_MAX: f64 = 0.8;
const HOURS_VS_REACTIVE_MAX: f64 = 1.15;

/// What came of the days that count.
#[derive(Default)]
struct Played {
    node_ticks: u64,
    violated: u64,
    wrong: u64,
    /// Nodes that came before the morning, in it or later, that left after the evening, and at other times.
    early: usize,
    late: usize,
    left: usize,
    other: usize,
}

impl Played {
    fn count(&mut self, row: &DecisionRow) {
        // A tick is known once it is over, so so many hours of the day were over.
        let hours = row.tick.0 as usize % DAY;
        let at = match row.kind.as_str() {
            "add node" if (MORNING - HORIZON..=MORNING).contains(&hours) => &mut self.early,
            "add node" => &mut self.late,
            "remove node" if !(MORNING - HORIZON..EVENING).contains(&hours) => &mut self.left,
            "remove node" => &mut self.other,
            _ => return,
        };
        *at += 1;
    }
}

pub(super) async fn play(options: &Options) -> Result<Found> {
    let readings = readings().await?;
    let days = if options.quick { 1 } else { DAYS };
    let reactive = play_in("reactive", readings, days).await?;
    let forecast = play_in("forecast", readings, days).await?;
    let always = PEAK * (COUNTED * DAY) as f64;
    let row = |arm: &str, played: &Played| {
        Row::default()
            .with("story", "day and night")
            .with("arm", arm)
            .with("found", format!("{} node-hours, always {always}", played.node_ticks))
            .with("value", played.violated)
    };
    let mut rows = vec![row("reactive", &reactive), row("forecast", &forecast)];
    let each = (PEAK - 1.0) * COUNTED as f64;
    let (expected, plan) = Expected::of("day and night")
        .with("nodes come before the morning", forecast.early as f64, Bound::AtLeast(each))
        .with("nodes come later", forecast.late as f64, Bound::Exactly(0.0))
        .with("nodes leave after the evening", forecast.left as f64, Bound::AtLeast(each))
        .with("nodes leave by day", forecast.other as f64, Bound::Exactly(0.0))
        .told("day_night_plan_missed");
    rows.extend(expected);
    let hours = forecast.node_ticks as f64;
    let (over, saved) = (hours / reactive.node_ticks as f64, hours / always);
    let wrong = (reactive.wrong + forecast.wrong) as f64;
    let figures = vec![
        plan,
        Figure::bounded(
            "day_night_violated",
            forecast.violated as f64,
            "ticks",
            Bound::Exactly(0.0),
        ),
        Figure::bounded(
            "day_night_violated_reactive",
            reactive.violated as f64,
            "ticks",
            Bound::AtLeast(1.0),
        ),
        Figure::bounded("day_night_hours", saved, "of always", Bound::AtMost(HOURS_MAX)),
        Figure::bounded(
            "day_night_hours_vs_reactive",
            over,
            "ratio",
            Bound::AtMost(HOURS_VS_REACTIVE_MAX),
        ),
        Figure::bounded("day_night_wrong", wrong, "answers", Bound::Exactly(0.0)),
    ];
    Ok((rows, figures))
}

/// Readings of a city that keep a node busy for a question's share.
async fn readings() -> Result<i64> {
    let settings = [("loop.mode", "off".to_owned()), ("loop.allocate.nodes-max", "1".to_owned())];
    let town = Town::start(100, &settings).await?;
    for _ in 0..3 {
        town.ask(None, 0, 0).await?;
    }
    town.engine.tick().await;
    let mut costs: Vec<f64> = (town.engine.calls().iter())
        .map(|call| call.would_be_ns as f64 / call.rows.max(1) as f64)
        .collect();
    costs.sort_by(f64::total_cmp);
    let ns_per_row = costs.get(costs.len() / 2).copied().unwrap_or(1.0).max(1.0);
    town.engine.clone().shutdown().await?;
    Ok((QUESTION * UTILISATION * TICK_MS * 1e6 / ns_per_row).round().max(1.0) as i64)
}

async fn play_in(mode: &str, readings: i64, days: usize) -> Result<Played> {
    let settings = [
        ("nodes", "1".to_owned()),
        ("loop.mode", mode.to_owned()),
        ("loop.tick-ms", TICK_MS.to_string()),
        ("loop.season-ticks", DAY.to_string()),
        ("loop.precompute.lead-ticks", HORIZON.to_string()),
        ("loop.horizon-ticks", HORIZON.to_string()),
        ("loop.precompute.min-ns-per-row", "1e9".to_owned()),
        ("loop.allocate.nodes-min", "1".to_owned()),
        ("loop.allocate.nodes-max", "4".to_owned()),
        ("loop.allocate.cpu-permits", "1".to_owned()),
        ("loop.allocate.target-utilisation", UTILISATION.to_string()),
        ("loop.allocate.scale-in-ticks", SCALE_IN.to_string()),
    ];
    let town = Town::start(readings, &settings).await?;
    let mut played = Played::default();
    for tick in 0..(days + COUNTED) * DAY {
        let questions = questions(tick);
        let view = town.engine.placement();
        let nodes = view.nodes.values().filter(|node| !node.draining).count();
        if tick >= days * DAY {
            played.node_ticks += nodes as u64;
            played.violated += u64::from(questions as f64 * QUESTION > nodes as f64);
        }
        for city in 0..questions {
            // Rows of a question are computed each time: nothing so cheap is kept.
            played.wrong += town.ask(Some(city), 0, 0).await?;
        }
        town.engine.tick().await;
    }
    let decisions = town.engine.decisions();
    let counted = done(&decisions, None).filter(|row| row.tick.0 as usize > days * DAY);
    counted.for_each(|row| played.count(row));
    town.engine.clone().shutdown().await?;
    Ok(played)
}

/// Questions of a tick, each about another city.
fn questions(tick: usize) -> i64 {
    if (MORNING..EVENING).contains(&(tick % DAY)) { BY_DAY } else { AT_NIGHT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_takes_three_nodes_and_the_night_one() {
        let load = |tick| questions(tick) as f64 * QUESTION;
        let nodes = |tick| load(tick).ceil();
        let all = [MORNING - 1, MORNING, EVENING - 1, EVENING, DAY + MORNING].map(nodes);
        assert_eq!(all, [1.0, PEAK, PEAK, 1.0, PEAK]);
    }
}
