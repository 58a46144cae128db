//! Do steps bring what is predicted of them? Days of at least 200 steps of a kind are played in virtual time, with
//! the planner and the ledger of the engine: outputs that are computed ahead on one node, and copies and
//! moves on 32 nodes whose CPUs calls queue for.
//!
//! The forecast knows what was: now, times how yesterday went on from this hour. Of each day the total that steps
//! spared is compared with what was predicted of them, and each step with its 80 % interval. What copies and
//! moves spare is also known from twins of the cluster, each of which leaves one step of three out. With the forecast
//! upside down the days must miss, or their bound says nothing.

mod ahead;
mod days;
mod load;
mod outlook;
mod spread;

use anyhow::{Result, ensure};
use foreshard_policy::config::LoopConfig;

use crate::forecast::trace::Trace;
use crate::program::{Found, Options};
use crate::report::{Bound, Figure, Row};
use days::Days;
use load::Load;
use spread::Spread;

/// Days that are played: the first ones are only learned from.
const DAYS: usize = 14;
const DAYS_QUICK: usize = 3;

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// Days whose total must be near what was predicted.
const NEAR_MIN: f64 = 0.8;

/// How far the share of steps within their interval may be from 80 %.
const COVERAGE: f64 = 0.8;
const COVERAGE_OFF: f64 = 0.04;

/// How far the account of what steps spared may be from what their twins say.
const ACCOUNT: f64 = 0.3;

/// Runs the benchmark.
///
/// # Errors
/// A file that cannot be played, or a setting out of bounds.
pub async fn run(options: Options) -> Result<Found> {
    tokio::task::spawn_blocking(move || {
        let days = if options.quick { DAYS_QUICK } else { DAYS };
        let (mut rows, mut figures) = (Vec::new(), Vec::new());
        for (name, load) in loads(&options, days)? {
            let config = config(&load)?;
            for is_inverted in [false, true] {
                let arm = if is_inverted { "inverted" } else { "forecast" };
                let ahead = ahead::play(&load, options.seed, &config, is_inverted);
                let spread = spread::play(&load, options.seed, &config, is_inverted);
                rows.push(row(&name, arm, "precompute", &ahead));
                rows.push(with_truth(row(&name, arm, "copy, move", &spread.days), &spread));
                figures.extend(judged(&name, arm, "precompute", &ahead));
                figures.extend(judged(&name, arm, "placement", &spread.days));
                if !is_inverted {
                    figures.push(account(&name, &spread));
                }
                eprintln!("{name}, {arm}: played");
            }
        }
        Ok((rows, figures))
    })
    .await?
}

/// The settings of the engine, but that trust is earned by the day.
fn config(load: &Load) -> Result<LoopConfig> {
    let config = LoopConfig::default();
    let feedback = config.feedback().clone().with_window_ticks(load.day_ticks as u64)?;
    Ok(config.with_feedback(feedback)?)
}

/// A load that is made up, or those of the files.
fn loads(options: &Options, days: usize) -> Result<Vec<(String, Load)>> {
    if options.traces.is_empty() {
        return Ok(vec![("made_up".to_owned(), Load::made_up(days, options.seed))]);
    }
    let mut loads = Vec::new();
    for file in &options.traces {
        let trace = Trace::read(file)?;
        let values_a_day = (DAY_MS / trace.tick_ms) as usize;
        let values = trace.series.first().map_or(&[][..], |(_, values)| values.as_slice());
        let whole = values.len() / values_a_day;
        ensure!(whole > days::LEARNED, "{} has {whole} whole days only", file.display());
        loads.push((trace.name.clone(), Load::of_trace(values, values_a_day, days.min(whole))));
    }
    Ok(loads)
}

fn row(load: &str, arm: &str, kinds: &str, days: &Days) -> Row {
    let ratios: Vec<f64> = days.totals().iter().map(|(said, came)| came / said).collect();
    Row::default()
        .with("load", load)
        .with("forecast", arm)
        .with("kinds", kinds)
        .with("days", days.count() as u64)
        .with("steps", days.steps() as u64)
        .with("days_near", days.near())
        .with("coverage", days.coverage())
        .with("least_of_predicted", ratios.iter().copied().fold(f64::NAN, f64::min))
        .with("most_of_predicted", ratios.iter().copied().fold(f64::NAN, f64::max))
}

fn with_truth(row: Row, spread: &Spread) -> Row {
    let held: u64 = spread.by_holdback.iter().map(|(_, held, ..)| held).sum();
    row.with("account_over_twins", spread.account_ns / spread.truth_ns)
        .with("spared_of_waiting", spread.truth_ns / spread.waited_ns)
        .with("held_back", held)
}

fn account(load: &str, spread: &Spread) -> Figure {
    let off = (spread.account_ns / spread.truth_ns - 1.0).abs();
    let name = format!("feedback_account_off_twins_{load}");
    Figure::bounded(&name, off, "ratio", Bound::AtMost(ACCOUNT))
}

fn judged(load: &str, arm: &str, kinds: &str, days: &Days) -> Vec<Figure> {
    let name = |what: &str| format!("feedback_{kinds}_{arm}_{what}_{load}");
    if arm == "inverted" {
        let near = name("days_near");
        return vec![Figure::bounded(&near, days.near(), "ratio", Bound::Below(NEAR_MIN))];
    }
    let off = (days.coverage() - COVERAGE).abs();
    vec![
        Figure::bounded(&name("days_near"), days.near(), "ratio", Bound::AtLeast(NEAR_MIN)),
        Figure::bounded(&name("coverage_off"), off, "ratio", Bound::AtMost(COVERAGE_OFF)),
        Figure::reported(&name("coverage"), days.coverage(), "ratio"),
        Figure::reported(&name("days"), days.count() as f64, "days"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_computed_ahead_brings_what_is_predicted_and_by_a_forecast_upside_down_it_does_not() {
        let load = Load::made_up(DAYS_QUICK, 1);
        let config = config(&load).unwrap();
        let right = ahead::play(&load, 1, &config, false);
        assert!(right.count() > 0 && right.near() == 1.0, "{:?}", right.totals());
        assert!((right.coverage() - COVERAGE).abs() < 0.1, "{}", right.coverage());
        let inverted = ahead::play(&load, 1, &config, true);
        assert!(inverted.near() < NEAR_MIN, "{:?}", inverted.totals());
    }
}
