//! What is expected of a whole function: the sum over its expressions and partitions.
//!
//! On a table with several of them the sum is forecast by itself; what tables, and partitions whose sum is
//! not forecast, come to together is summed up here.
//!
//! Quantiles of a sum are not the sums of quantiles. If all parts are high and low together, they are; if
//! the parts have nothing to do with each other, highs and lows cancel out and the interval grows by the
//! root of the sum of squares only. What holds in between is measured: the [`dependence`] of the parts in
//! the past. It says nothing of ticks that are unlike the past, and the independent part is taken to be
//! near a normal distribution, so the interval of a sum of a few parts that are seldom called is rough.

use std::collections::BTreeSet;

use super::{Forecast, Quantiles, SeriesForecast, TotalForecast, concurrency};
use crate::history::HistoryView;
use crate::ids::{SeriesKey, Tick};

/// Ticks that the dependence of parts is measured on.
const TICKS_MAX: usize = 256;

/// Ticks without which it cannot be measured.
const TICKS_MIN: usize = 16;

/// What is expected of a function, or of it on one table, in one coming tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FunctionTick {
    /// The tick.
    pub tick: Tick,
    /// Calls on all partitions together.
    pub calls: Quantiles,
    /// Calls under way at the same time, if nothing of their outputs is stored.
    pub concurrency: f64,
}

/// What is expected of a function in each coming tick, nearest first.
///
/// # Shape and units
/// * `table`: only partitions of this table count, if it is given.
/// * returns as many ticks as the forecast has; none if it knows nothing of the function.
///
/// # Cost
/// `O(tables * series + parts * (horizon + 256))`.
#[must_use]
pub fn of_function(
    forecast: &Forecast,
    history: &HistoryView,
    function: &str,
    table: Option<&str>,
) -> Vec<FunctionTick> {
    let parts: Vec<_> = series_of(forecast, function, table).collect();
    let ticks = parts.iter().map(|part| part.calls.len()).max().unwrap_or(0);
    let (known, others) = units(forecast, function, table);
    let dependence = dependence(&past_of(history, function, &known, &others));
    let tick = |ahead: usize| {
        let of_known = known.iter().map(|total| &total.calls);
        let of_others = others.iter().map(|part| &part.calls);
        let calls: Vec<Quantiles> =
            of_known.chain(of_others).filter_map(|calls| calls.get(ahead)).copied().collect();
        let busy = parts.iter().filter_map(|part| {
            let calls = part.calls.get(ahead)?.mean();
            Some(concurrency(calls, forecast.tick_ms, part.ns_per_call))
        });
        FunctionTick {
            tick: Tick(forecast.at.0 + 1 + ahead as u64),
            calls: total(&calls, dependence),
            concurrency: busy.sum(),
        }
    };
    (0..ticks).map(tick).collect()
}

/// What a function's forecast is summed up from: the totals of tables that have one, and the series of the
/// others.
fn units<'a>(
    forecast: &'a Forecast,
    function: &'a str,
    table: Option<&'a str>,
) -> (Vec<&'a TotalForecast>, Vec<&'a SeriesForecast>) {
    let is_asked = |name: &str| table.is_none_or(|table| table == name);
    let of_function = forecast.totals.iter().filter(|total| *total.function == *function);
    let known: Vec<_> = of_function.filter(|total| is_asked(&total.table)).collect();
    let has_total =
        |part: &SeriesForecast| forecast.total(function, &part.key.partition.table).is_some();
    let others = series_of(forecast, function, table).filter(|part| !has_total(part)).collect();
    (known, others)
}

/// The past of each unit.
fn past_of(
    history: &HistoryView,
    function: &str,
    known: &[&TotalForecast],
    others: &[&SeriesForecast],
) -> Vec<Vec<f64>> {
    let of_total = |total: &&TotalForecast| {
        let is_its = |key: &SeriesKey| is_part(key, function, Some(&total.table));
        let parts = past_calls(history, TICKS_MAX, is_its);
        let ticks = parts.first().map_or(0, Vec::len);
        (0..ticks).map(|tick| parts.iter().map(|part| part[tick]).sum()).collect()
    };
    let others: BTreeSet<&SeriesKey> = others.iter().map(|part| &part.key).collect();
    let others = past_calls(history, TICKS_MAX, |key| others.contains(key));
    known.iter().map(of_total).chain(others).collect()
}

/// What is expected of a function, series by series; of one table only, if it is given.
pub fn series_of<'a>(
    forecast: &'a Forecast,
    function: &'a str,
    table: Option<&'a str>,
) -> impl Iterator<Item = &'a SeriesForecast> {
    forecast.series.iter().filter(move |series| is_part(&series.key, function, table))
}

fn is_part(key: &SeriesKey, function: &str, table: Option<&str>) -> bool {
    *key.function == *function && table.is_none_or(|table| *key.partition.table == *table)
}

/// Calls of the series that `is_part` holds for, over the newest `ticks` known ticks, oldest first.
#[must_use]
pub fn past_calls(
    history: &HistoryView,
    ticks: usize,
    is_part: impl Fn(&SeriesKey) -> bool,
) -> Vec<Vec<f64>> {
    // Tick 0 is no tick: the first one that closes is tick 1.
    let oldest = history.oldest.0.max((history.at.0 + 1).saturating_sub(ticks as u64)).max(1);
    let parts = history.series.iter().filter(|series| is_part(&series.key));
    let calls = parts.map(|part| (oldest..=history.at.0).map(|tick| part.calls_at(Tick(tick))));
    calls.map(Iterator::collect).collect()
}

/// How much of the ups and downs from tick to tick the parts share: 0 if they have nothing to do with each
/// other, 1 if all go up and down together.
///
/// It is the mean correlation between the changes of two parts, each pair weighing by its deviations:
/// what the variance of the sum has beyond the sum of variances, over what it could have at most.
///
/// # Shape and units
/// * `parts`: calls per tick of each part, oldest first, all of the same length.
/// * returns 0 to 1; 1 if it cannot be measured, which gives the widest interval.
///
/// # Cost
/// `O(parts * ticks)`.
#[must_use]
pub fn dependence(parts: &[Vec<f64>]) -> f64 {
    let ticks = parts.iter().map(Vec::len).min().unwrap_or(0);
    if ticks < TICKS_MIN {
        return 1.0;
    }
    let changes = |calls: &[f64]| calls.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>();
    let mut sum = vec![0.0; ticks];
    let (mut variances, mut deviations) = (0.0, 0.0);
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, calls)| *sum += calls);
        let variance = variance(&changes(part));
        variances += variance;
        deviations += variance.sqrt();
    }
    let shared_max = deviations * deviations - variances;
    // One part alone, or parts that never change.
    if shared_max <= f64::EPSILON * variances.max(1.0) {
        return 1.0;
    }
    ((variance(&changes(&sum)) - variances) / shared_max).clamp(0.0, 1.0)
}

fn variance(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count
}

/// The distribution of the sum of parts that share `dependence` (0 to 1) of their ups and downs.
///
/// The median lies between the sum of means (independent parts) and the sum of medians (parts that go
/// together); the squared distances of the other quantiles from it lie between the sum of squares and the
/// square of the sum. One part alone, and parts with dependence 1, are summed exactly.
#[must_use]
pub fn total(parts: &[Quantiles], dependence: f64) -> Quantiles {
    let sum = |of: fn(&Quantiles) -> f64| parts.iter().map(of).sum::<f64>();
    let together = Quantiles { q10: sum(|q| q.q10), q50: sum(|q| q.q50), q90: sum(|q| q.q90) };
    if parts.len() < 2 {
        return together.tidy();
    }
    let shared = if dependence.is_finite() { dependence.clamp(0.0, 1.0) } else { 1.0 };
    let apart = 1.0 - shared;
    let half_squared = |q: &Quantiles| ((q.q90 - q.q10) / 2.0) * ((q.q90 - q.q10) / 2.0);
    let own = apart * parts.iter().map(half_squared).sum::<f64>();
    let middle = apart * sum(Quantiles::mean) + shared * together.q50;
    let wide = |distance: f64| (own + shared * distance * distance).sqrt();
    Quantiles {
        q10: middle - wide(together.q50 - together.q10),
        q50: middle,
        q90: middle + wide(together.q90 - together.q50),
    }
    .tidy()
}

#[cfg(test)]
mod tests;
