//! Plays what somebody's own system was called with: a history that `CALL export_history` wrote.
//!
//! The history knows calls by pair and second, and sums of rows and nanoseconds; so calls come at any time of
//! their tick, each pair's calls cost the same, and all calls of a partition ask for the same rows: those
//! that came lately, as many as were new to its most eager reader, and others that stay.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use foreshard_actors::history_store::HistoryStore;
use foreshard_policy::history::{Resolution, Row};
use foreshard_policy::ids::{ExpressionId, PartitionId};
use foreshard_policy::random::SplitMix64;

use super::scene::{Pair, Part, Scene};
use crate::replay::load::{Call, PEAK_MIN, first_tenths};

/// Lengths of a tick that are tried, and ticks that are played with at most: each takes a forecast.
const TICKS_MS: [u64; 6] = [1_000, 10_000, 60_000, 600_000, 3_600_000, 86_400_000];
const TICKS_MAX: u64 = 1_500;
const TICKS_MIN: u64 = 50;

/// Share of the ticks that is only learned from.
const LEARNED: f64 = 0.8;

/// Ticks whose rows a call asks for at most; what it asks for beyond them stays.
const WINDOW_MAX: usize = 16;

/// Share of the permits that the calls would keep busy without anything stored.
const BUSY: f64 = 0.5;

const DAY_MS: u64 = 86_400_000;

/// What a pair came to.
#[derive(Clone, Debug, Default)]
struct Sums {
    calls: u64,
    rows: u64,
    would_be_ns: u64,
    /// Calls and fresh rows by tick.
    ticks: BTreeMap<u64, (u64, u64)>,
}

/// A history as what is played, and for each tick that is played whether it begins a peak.
///
/// # Errors
/// The file is no such history, or has too few ticks; it is named.
pub(super) fn read(path: &Path, seed: u64) -> Result<(Scene, Vec<bool>)> {
    let mut rows = Vec::new();
    HistoryStore::rows_of_export(path, |resolution, row| rows.push((resolution, row)))
        .with_context(|| format!("{} is no exported history", path.display()))?;
    of_rows(&rows, seed).with_context(|| format!("in {}", path.display()))
}

fn of_rows(rows: &[(Resolution, Row)], seed: u64) -> Result<(Scene, Vec<bool>)> {
    let coarsest = rows.iter().map(|(resolution, _)| resolution.ms()).max();
    let first_ms = rows.iter().map(|(_, row)| row.start_ms).min();
    let last_ms = rows.iter().map(|(resolution, row)| row.start_ms + resolution.ms()).max();
    let (Some(coarsest), Some(first_ms), Some(last_ms)) = (coarsest, first_ms, last_ms) else {
        anyhow::bail!("there are no calls")
    };
    let ticks = |tick_ms: u64| (last_ms - first_ms).div_ceil(tick_ms);
    let fits = |tick_ms: &u64| *tick_ms >= coarsest && ticks(*tick_ms) <= TICKS_MAX;
    let tick_ms = TICKS_MS.into_iter().find(fits).context("it is too long")?;
    let ticks = ticks(tick_ms);
    ensure!(ticks >= TICKS_MIN, "it has {ticks} ticks of {tick_ms} ms; it must have {TICKS_MIN}");
    let mut sums: BTreeMap<(PartitionId, ExpressionId, Arc<str>), Sums> = BTreeMap::new();
    for (_, Row { key, start_ms, summary }) in rows {
        let pair = (key.partition.clone(), key.expression, Arc::clone(&key.function));
        let of = sums.entry(pair).or_default();
        of.calls += summary.calls;
        of.rows += summary.rows;
        of.would_be_ns += summary.would_be_ns;
        let tick = of.ticks.entry((start_ms - first_ms) / tick_ms).or_default();
        *tick = (tick.0 + summary.calls, tick.1 + summary.rows_fresh);
    }
    sums.retain(|_, of| of.calls > 0 && of.rows > 0);
    ensure!(!sums.is_empty(), "no call asked for a row");
    Ok(scene(&sums, (tick_ms, ticks), seed))
}

fn scene(
    sums: &BTreeMap<(PartitionId, ExpressionId, Arc<str>), Sums>,
    (tick_ms, ticks): (u64, u64),
    seed: u64,
) -> (Scene, Vec<bool>) {
    let mut functions: BTreeMap<ExpressionId, (usize, Arc<str>)> = BTreeMap::new();
    let mut parts: BTreeMap<&PartitionId, Vec<&Sums>> = BTreeMap::new();
    for ((partition, expression, function), of) in sums {
        let place = functions.len();
        functions.entry(*expression).or_insert_with(|| {
            // Names tell calls apart for those who know what will come.
            (place, format!("{function} #{place}").into())
        });
        parts.entry(partition).or_default().push(of);
    }
    let parts: Vec<Part> = parts.into_iter().map(|(id, sums)| part(id, &sums)).collect();
    let learned = (ticks as f64 * LEARNED) as u64;
    let mut past = vec![vec![0; sums.len()]; learned as usize];
    let (mut pairs, mut calls) = (Vec::new(), Vec::new());
    let (mut dice, mut busy_ns) = (SplitMix64::new(seed ^ 0x9A57), 0.0);
    for (number, ((partition, expression, _), of)) in sums.iter().enumerate() {
        let place = parts.iter().position(|part| part.id == *partition).unwrap_or_default();
        let function = functions.get(expression).map_or(0, |(place, _)| *place);
        let ns_per_call = of.would_be_ns as f64 / of.calls as f64;
        let row_ns = ns_per_call / parts[place].rows_asked().max(1.0);
        pairs.push(Pair { function, partition: place, row_ns });
        busy_ns += of.would_be_ns as f64;
        for (tick, (count, _)) in &of.ticks {
            match tick.checked_sub(learned) {
                None => past[*tick as usize][number] += *count as u32,
                Some(minute) => calls.extend((0..*count).map(|_| Call {
                    minute: minute as usize,
                    at: dice.uniform(),
                    pair: number,
                })),
            }
        }
    }
    calls.sort_by(|a, b| (a.minute as f64 + a.at).total_cmp(&(b.minute as f64 + b.at)));
    let minutes = (ticks - learned) as usize;
    let permits = busy_ns / (ticks as f64 * tick_ms as f64 * 1e6);
    let mut names: Vec<(usize, Arc<str>)> = functions.into_values().collect();
    names.sort();
    let scene = Scene {
        seed,
        nodes: ((permits / BUSY).ceil() as u32).max(2),
        permits: 1,
        tick: Duration::from_millis(tick_ms),
        minutes,
        warm_up: 0,
        day: (DAY_MS / tick_ms).max(1) as usize,
        turn: minutes,
        functions: names.into_iter().map(|(_, name)| name).collect(),
        parts,
        pairs,
        past,
        opening: vec![],
        calls,
    };
    let begins = begins(&scene);
    (scene, begins)
}

/// A partition of which these pairs were called.
fn part(id: &PartitionId, sums: &[&Sums]) -> Part {
    let (rows, calls) = sums.iter().fold((0, 0), |all, of| (all.0 + of.rows, all.1 + of.calls));
    let rows_asked = rows as f64 / calls as f64;
    // At first everything is fresh; what is fresh afterwards came meanwhile.
    let came = sums.iter().filter_map(|of| {
        let (first, _) = of.ticks.first_key_value()?;
        let (last, _) = of.ticks.last_key_value()?;
        let fresh: u64 = of.ticks.values().skip(1).map(|(_, fresh)| fresh).sum();
        (last > first).then(|| fresh as f64 / (last - first) as f64)
    });
    let rows_a_minute = came.fold(0.0, f64::max).min(rows_asked);
    let window = (rows_asked / rows_a_minute.max(f64::MIN_POSITIVE)).clamp(1.0, WINDOW_MAX as f64);
    let window = window as usize;
    let rows_kept = (rows_asked - rows_a_minute * window as f64).round().max(0.0) as u64;
    Part { id: id.clone(), rows_kept, rows_a_minute, window }
}

fn begins(scene: &Scene) -> Vec<bool> {
    let mut loads = vec![0.0; scene.minutes];
    scene.calls.iter().for_each(|call| loads[call.minute] += 1.0);
    let mean = scene.calls.len() as f64 / scene.minutes.max(1) as f64;
    loads.iter_mut().for_each(|load| *load /= mean.max(f64::MIN_POSITIVE));
    first_tenths(&loads, PEAK_MIN.min(scene.minutes / 4))
}

#[cfg(test)]
mod tests {
    use foreshard_policy::history::Summary;
    use foreshard_policy::ids::SeriesKey;

    use super::*;

    fn row(
        minute: u64,
        function: &str,
        expression: u128,
        calls: u64,
        fresh: u64,
    ) -> (Resolution, Row) {
        let key = SeriesKey {
            function: function.into(),
            expression: ExpressionId(expression),
            partition: PartitionId::new("t", 0),
        };
        let (rows, would_be_ns) = (100 * calls, 100 * calls * 5_000);
        let summary = Summary { calls, rows, would_be_ns, rows_fresh: fresh, ..Summary::default() };
        (Resolution::Minute, Row { key, start_ms: 7_200_000 + minute * 60_000, summary })
    }

    #[test]
    fn calls_rows_and_costs_of_a_history_are_those_that_are_played() {
        let mut rows: Vec<_> = (0..100).map(|minute| row(minute, "f", 9, 2, 25)).collect();
        rows.extend((0..100).step_by(2).map(|minute| row(minute, "f", 4, 1, 50)));
        let (scene, begins) = of_rows(&rows, 1).unwrap();
        assert_eq!(
            (scene.tick, scene.past.len(), scene.minutes),
            (Duration::from_secs(60), 80, 20)
        );
        assert_eq!((begins.len(), scene.calls.len()), (20, 50));
        assert_eq!(scene.past.iter().flatten().sum::<u32>(), 200);
        let part = &scene.parts[0];
        assert_eq!((part.rows_a_minute, part.window, part.rows_kept), (25.0, 4, 0));
        assert!(scene.pairs.iter().all(|pair| pair.row_ns == 5_000.0), "{:?}", scene.pairs);
        assert_ne!(scene.functions[0], scene.functions[1], "two expressions of one function");
    }

    #[test]
    fn rows_that_never_come_again_stay() {
        let rows: Vec<_> = (0..60)
            .map(|minute| row(minute, "f", 1, 1, if minute == 0 { 100 } else { 0 }))
            .collect();
        let (scene, _) = of_rows(&rows, 1).unwrap();
        assert_eq!((scene.parts[0].rows_kept, scene.parts[0].rows_a_minute), (100, 0.0));
        assert!(of_rows(&rows[..9], 1).unwrap_err().to_string().contains("it must have 50"));
        assert_eq!(of_rows(&[], 1).unwrap_err().to_string(), "there are no calls");
    }
}
