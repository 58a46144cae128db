//! Do copies and moves of partitions keep nodes evenly loaded while popularity drifts? Eight nodes in
//! virtual time, with the planner, the history and the forecasts of the engine.
//!
//! Each tick calls come at random, by a popularity that is Zipf's law times a rhythm and a drift of each
//! partition, and of which partitions exchange places now and then. Each call goes to the less busy of two
//! holders, as the engine routes. A copy takes two ticks. Arms: no steps, the rules without a forecast, by
//! forecast, by the forecast upside down, and by what will come.

mod arm;
mod world;

use anyhow::Result;
use foreshard_policy::config::{LoopConfig, Mode};
use foreshard_policy::forecast::Effort;
use foreshard_policy::forecast::ensemble::{Ensemble, invert, repeat_current};
use foreshard_policy::history::History;

use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use arm::Arm;
use world::World;

/// Partitions that are played with.
const PARTITIONS: [u32; 2] = [100, 1_000];

const SEEDS: u64 = 3;

/// Ticks that are played, and of these those that are only learned from.
const TICKS: u64 = 480;
const LEARNED: u64 = 240;
const TICKS_QUICK: u64 = 60;
const LEARNED_QUICK: u64 = 20;

/// Ticks after which members learn again.
const FIT_EVERY: u64 = 20;

/// What the busiest node may carry, over the mean: in the middle tick, and in 19 of 20.
const MEDIAN_MAX: f64 = 1.15;
const P95_MAX: f64 = 1.5;

/// Copies and moves in a tick.
const COPIES_MAX: f64 = 0.25;

/// Runs the benchmark.
///
/// # Errors
/// A setting out of bounds, or a member that fails.
pub async fn run(options: Options) -> Result<Found> {
    tokio::task::spawn_blocking(move || {
        let (mut rows, mut figures) = (Vec::new(), Vec::new());
        let seeds = if options.quick { 1 } else { SEEDS };
        for partitions in PARTITIONS {
            let mut played: Vec<Arm> = Vec::new();
            for seed in options.seed..options.seed + seeds {
                let arms = play(partitions, seed, options.quick)?;
                if played.is_empty() {
                    played = arms;
                } else {
                    played.iter_mut().zip(arms).for_each(|(all, arm)| all.add(arm));
                }
                eprintln!("{partitions} partitions, seed {seed}: played");
            }
            rows.extend(played.iter().map(|arm| row(partitions, arm)));
            figures.extend(judged(partitions, &played));
        }
        Ok((rows, figures))
    })
    .await?
}

/// Plays all arms side by side: calls do not depend on where partitions are.
fn play(partitions: u32, seed: u64, quick: bool) -> Result<Vec<Arm>> {
    let (ticks, learned) = if quick { (TICKS_QUICK, LEARNED_QUICK) } else { (TICKS, LEARNED) };
    let config = LoopConfig::default();
    let monitor = config.monitor().clone().with_pairs_max(0)?;
    let config = config.with_monitor(monitor)?;
    let mut world = World::new(partitions, seed);
    let mut history = History::new(&config);
    let mut ensemble = Ensemble::new(&config, Vec::new());
    let arm = |name, mode| Arm::new(name, mode, &config, partitions, seed);
    let mut arms = [
        arm("none", Mode::Off)?,
        arm("reactive", Mode::Reactive)?,
        arm("forecast", Mode::Forecast)?,
        arm("inverted", Mode::Inverted)?,
        arm("oracle", Mode::Forecast)?,
    ];
    for tick in 0..ticks {
        let calls = world.calls(tick);
        for arm in &mut arms {
            arm.serve(&calls, tick >= learned);
        }
        world::record(&mut history, &calls);
        history.close_tick();
        let view = history.view();
        ensemble.observe(&view);
        let fitted = if tick.is_multiple_of(FIT_EVERY) {
            ensemble.fit(&view, Effort::steps(0))
        } else {
            Vec::new()
        };
        for (member, report) in fitted {
            report.map_err(|error| anyhow::anyhow!("{member} did not learn: {error}"))?;
        }
        let forecast = ensemble.forecast(&view, config.horizon_ticks())?;
        let measured = repeat_current(&view, &config);
        let inverted = invert(&forecast);
        let true_one = world.will_come(tick, &config);
        for (arm, forecast) in
            arms.iter_mut().zip([&measured, &measured, &forecast, &inverted, &true_one])
        {
            arm.plan(forecast, tick);
        }
    }
    Ok(arms.into())
}

fn row(partitions: u32, arm: &Arm) -> Row {
    let uneven = arm.loads.iter().filter(|load| **load > P95_MAX).count() as f64;
    let ticks = arm.loads.len().max(1) as f64;
    Row::default()
        .with("partitions", u64::from(partitions))
        .with("arm", arm.name)
        .with("max_over_mean_p50", arm.quantile(0.5))
        .with("max_over_mean_p95", arm.quantile(0.95))
        .with("ticks_above_1.5", uneven / ticks)
        .with("copies_a_tick", arm.copies as f64 / ticks)
        .with("moves_a_tick", arm.moves as f64 / ticks)
        .with("drops_a_tick", arm.drops as f64 / ticks)
        .with("replicas", arm.replicas as f64 / ticks / f64::from(partitions))
}

fn judged(partitions: u32, arms: &[Arm]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for arm in arms {
        let steps = (arm.copies + arm.moves) as f64 / arm.loads.len().max(1) as f64;
        let measures = [
            ("p50", arm.quantile(0.5), "ratio", MEDIAN_MAX),
            ("p95", arm.quantile(0.95), "ratio", P95_MAX),
            ("copies", steps, "a tick", COPIES_MAX),
        ];
        for (what, value, unit, most) in measures {
            let name = format!("replicate_{}_{what}_of_{partitions}", arm.name);
            figures.push(if arm.name == "forecast" {
                Figure::bounded(&name, value, unit, Bound::AtMost(most))
            } else {
                Figure::reported(&name, value, unit)
            });
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_by_what_will_come_make_loads_more_even_than_none() {
        let arms = play(100, 1, true).unwrap();
        let p50 = |name: &str| arms.iter().find(|arm| arm.name == name).unwrap().quantile(0.5);
        assert!(p50("oracle") < 0.7 * p50("none"), "{} {}", p50("oracle"), p50("none"));
        assert_eq!(judged(100, &arms).iter().filter(|figure| figure.bound.is_some()).count(), 3);
    }
}
