//! A load over time: rows of a file are counted or summed up into ticks.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use crate::loads::{self, Event};

/// Lengths of a tick: the shortest one that is not shorter than the usual distance of two rows.
const TICKS_MS: [u64; 5] = [1_000, 60_000, 300_000, 3_600_000, 86_400_000];

/// Single calls that a tick has on average at least, if any length of a tick gives as many.
const CALLS_MIN: f64 = 10.0;

/// Fewest ticks of a trace, first and last left out.
pub(crate) const TICKS_MIN: usize = 100;

/// Series that are forecast besides their sum, the busiest.
const SERIES_MAX: usize = 4;

/// Share of its ticks that a series must have values for.
const FILLED_MIN: f64 = 0.5;

/// One load, or several at the same time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trace {
    /// Name of the file without its endings, or of the family.
    pub name: String,
    /// Length of a tick in milliseconds.
    pub tick_ms: u64,
    /// Wall clock at the start of the first tick, in milliseconds since 1970.
    pub epoch_ms: i64,
    /// Names and calls per tick; all equally long. The name is empty if there is only one.
    pub series: Vec<(String, Vec<f64>)>,
    /// Values that were missing, negative, not finite or doubled.
    pub repaired: u64,
    /// Ticks in which the level jumped, where that was made up.
    pub shifts: Vec<usize>,
}

impl Trace {
    /// The trace in a file.
    ///
    /// # Errors
    /// It cannot be read, has no column of times, or too few ticks; it is named.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let (name, events) = loads::read(path)?;
        let few = || format!("{} has less than {} ticks", path.display(), TICKS_MIN + 2);
        from_events(&name, events).with_context(few)
    }

    /// Ticks that are known.
    pub(crate) fn ticks(&self) -> usize {
        self.series.first().map_or(0, |(_, calls)| calls.len())
    }
}

/// Sum and number of the values of one tick.
type Cell = (f64, u32);

/// The trace of these rows.
///
/// Rows without values are single calls and counted; a tick without any has none. Whole numbers are
/// counts and added up, other ones are rates and averaged; a tick without a value keeps the last one.
/// The first and the last tick are cut short by where the file begins and ends, and left out.
fn from_events(name: &str, mut events: Vec<Event>) -> Option<Trace> {
    let rows = events.len();
    let is_fine = |event: &Event| event.value.is_none_or(|value| value.is_finite() && value >= 0.0);
    events.retain(is_fine);
    let mut repaired = (rows - events.len()) as u64;
    let calls = events.iter().all(|event| event.value.is_none());
    let whole = |event: &Event| event.value.is_none_or(|value| value.fract() == 0.0);
    let adds = events.iter().all(whole);
    let (first, last) = span(&events)?;
    let tick_ms = if calls { tick_of_calls(events.len(), last - first) } else { tick_of(&events)? };
    let start = first.div_euclid(tick_ms as i64);
    let ticks = (last.div_euclid(tick_ms as i64) - start + 1) as usize;
    if ticks < TICKS_MIN + 2 {
        return None;
    }
    let mut cells: BTreeMap<&str, Vec<Cell>> = BTreeMap::new();
    for event in &events {
        let at = (event.at_ms.div_euclid(tick_ms as i64) - start) as usize;
        let cell = &mut cells.entry(&event.series).or_insert_with(|| vec![(0.0, 0); ticks])[at];
        *cell = (cell.0 + event.value.unwrap_or(1.0), cell.1 + 1);
    }
    let mut all: Vec<(String, Vec<f64>)> = Vec::new();
    for (name, cells) in &cells {
        let cells = &cells[1..ticks - 1];
        let filled = cells.iter().filter(|cell| cell.1 > 0).count();
        if !calls && (filled as f64) < FILLED_MIN * cells.len() as f64 {
            continue;
        }
        repaired += if calls { 0 } else { (cells.len() - filled) as u64 };
        all.push(((*name).to_owned(), values(cells, calls, adds)));
    }
    let series = busiest(all)?;
    let epoch_ms = (start + 1) * tick_ms as i64;
    Some(Trace { name: name.to_owned(), tick_ms, epoch_ms, series, repaired, shifts: Vec::new() })
}

fn span(events: &[Event]) -> Option<(i64, i64)> {
    let times = || events.iter().map(|event| event.at_ms);
    Some((times().min()?, times().max()?))
}

/// The tick for rows with values, by the middle distance of two rows of the same series.
fn tick_of(events: &[Event]) -> Option<u64> {
    let mut by_series: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for event in events {
        by_series.entry(&event.series).or_default().push(event.at_ms);
    }
    let mut gaps = Vec::new();
    for times in by_series.values_mut() {
        times.sort_unstable();
        gaps.extend(times.windows(2).map(|pair| pair[1] - pair[0]).filter(|gap| *gap > 0));
    }
    gaps.sort_unstable();
    // A little less than usual, so that a tick seldom goes without a row.
    let usual = *gaps.get(gaps.len() * 3 / 4)? as u64;
    Some(TICKS_MS.into_iter().find(|tick| *tick >= usual).unwrap_or(TICKS_MS[TICKS_MS.len() - 1]))
}

/// The shortest tick with enough calls on average that leaves enough ticks.
fn tick_of_calls(calls: usize, span_ms: i64) -> u64 {
    let span = span_ms.max(1) as f64;
    let enough = |tick: &u64| calls as f64 * *tick as f64 / span >= CALLS_MIN;
    let long = |tick: &u64| span / *tick as f64 >= TICKS_MIN as f64 + 2.0;
    let mut fits = TICKS_MS.into_iter().filter(long);
    fits.clone().find(enough).or_else(|| fits.next_back()).unwrap_or(TICKS_MS[0])
}

fn values(cells: &[Cell], calls: bool, adds: bool) -> Vec<f64> {
    let mut last = 0.0;
    let value = |(sum, count): &Cell| {
        if *count > 0 {
            last = if adds { *sum } else { sum / f64::from(*count) };
        }
        if *count > 0 || !calls { last } else { 0.0 }
    };
    cells.iter().map(value).collect()
}

/// The sum of all series, and the busiest ones; the only one if there is only one.
fn busiest(mut all: Vec<(String, Vec<f64>)>) -> Option<Vec<(String, Vec<f64>)>> {
    if all.len() <= 1 {
        return all.pop().map(|(_, calls)| vec![(String::new(), calls)]);
    }
    let sum = |calls: &[f64]| calls.iter().sum::<f64>();
    all.sort_by(|a, b| sum(&b.1).total_cmp(&sum(&a.1)).then_with(|| a.0.cmp(&b.0)));
    let mut total = vec![0.0; all[0].1.len()];
    for (_, calls) in &all {
        total.iter_mut().zip(calls).for_each(|(total, calls)| *total += calls);
    }
    all.truncate(SERIES_MAX);
    all.insert(0, ("all".to_owned(), total));
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at_s: i64, value: Option<f64>, series: &str) -> Event {
        Event { at_ms: at_s * 1_000, value, series: series.to_owned() }
    }

    #[test]
    fn single_calls_are_counted_and_a_tick_without_any_has_none() {
        // Twelve calls in every second minute of three hours and a half.
        let calls = (0..105).flat_map(|n| (0..12).map(move |k| event(n * 120 + k, None, "")));
        let trace = from_events("calls", calls.collect()).unwrap();
        assert_eq!((trace.tick_ms, trace.ticks()), (60_000, 207));
        assert_eq!(trace.series[0].1[..4], [0.0, 12.0, 0.0, 12.0]);
    }

    #[test]
    fn half_hours_are_added_up_to_hours_and_the_first_and_last_are_left_out() {
        let rows = (0..240).map(|n| event(n * 1_800, Some(f64::from(n as i32)), "")).collect();
        let trace = from_events("taxi", rows).unwrap();
        assert_eq!((trace.tick_ms, trace.ticks(), trace.epoch_ms), (3_600_000, 118, 3_600_000));
        assert_eq!(trace.series[0].1[..2], [5.0, 9.0]);
    }

    #[test]
    fn rates_are_averaged_and_what_is_missing_or_broken_is_mended_and_counted() {
        let value = |n: i64| match n {
            50 => None,
            60 => Some(f64::NAN),
            61 => Some(-1.0),
            _ => Some(0.5 + n as f64),
        };
        let rows = (0..120).filter(|n| *n != 50).map(|n| event(n * 60, value(n), "")).collect();
        let trace = from_events("rates", rows).unwrap();
        assert_eq!(trace.series[0].1[48..51], [49.5, 49.5, 51.5]);
        assert_eq!(trace.series[0].1[58..62], [59.5, 59.5, 59.5, 62.5]);
        assert_eq!(trace.repaired, 5);
    }

    #[test]
    fn of_many_series_the_sum_and_the_busiest_are_forecast() {
        let series =
            |n: i64| (0..6).map(move |s| event(n * 60, Some((s + 1) as f64), &s.to_string()));
        let trace = from_events("many", (0..150).flat_map(series).collect()).unwrap();
        let names: Vec<&str> = trace.series.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["all", "5", "4", "3", "2"]);
        assert_eq!(trace.series[0].1[0], 21.0);
    }

    #[test]
    fn a_few_rows_are_no_trace() {
        assert_eq!(
            from_events("few", (0..50).map(|n| event(n * 60, Some(1.0), "")).collect()),
            None
        );
        assert_eq!(from_events("none", Vec::new()), None);
    }
}
