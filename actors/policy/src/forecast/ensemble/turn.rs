//! Forecasts that no member makes: upside down for experiments, standing still for mode reactive.

use crate::config::LoopConfig;
use crate::forecast::ensemble::Standing;
use crate::forecast::{Forecast, Quantiles, SeriesForecast};
use crate::history::{HistoryView, SeriesView};

/// Turns a forecast upside down: in every tick the hottest series becomes the coldest.
///
/// Each quantile of each series becomes highest plus lowest minus itself, over all series of that
/// tick; the calls of a season likewise; totals are left out. For experiments: it must make nothing worse (promise P10),
/// and where being ready depends on the forecast it must not help.
#[must_use]
pub fn invert(forecast: &Forecast) -> Forecast {
    let mut turned = Forecast { totals: Vec::new(), ..forecast.clone() };
    let ticks = forecast.series.iter().map(|series| series.calls.len()).max().unwrap_or(0);
    for tick in 0..ticks {
        let at = |of: fn(&Quantiles) -> f64| {
            mirror(forecast.series.iter().filter_map(|series| series.calls.get(tick)).map(of))
        };
        let (q10, q50, q90) = (at(|q| q.q10), at(|q| q.q50), at(|q| q.q90));
        for series in &mut turned.series {
            if let Some(calls) = series.calls.get_mut(tick) {
                let Quantiles { q10: a, q50: b, q90: c } = *calls;
                *calls = Quantiles { q10: q10 - a, q50: q50 - b, q90: q90 - c }.tidy();
            }
        }
    }
    let season = mirror(forecast.series.iter().map(|series| series.calls_season));
    for series in &mut turned.series {
        series.calls_season = season - series.calls_season;
    }
    turned
}

/// Highest plus lowest value.
fn mirror(values: impl Iterator<Item = f64>) -> f64 {
    let range = values
        .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if range.0.is_finite() { range.0 + range.1 } else { 0.0 }
}

/// A forecast for mode reactive: every tick like the last few. It is never trusted, so nothing is
/// done ahead by it.
#[must_use]
pub fn repeat_current(view: &HistoryView, config: &LoopConfig) -> Forecast {
    let series = view.series.iter().map(|series| {
        let now = series.calls_now(view.at, config.monitor().current_ticks());
        let calls = vec![Quantiles::exactly(now); config.horizon_ticks()];
        describe(view, series, config, view.season_ticks, calls, vec![("current".to_owned(), 1.0)])
    });
    Forecast {
        at: view.at,
        tick_ms: view.tick_ms,
        series: series.collect(),
        totals: Vec::new(),
        joined: view.joined.clone(),
        trusted: false,
        skill: 0.0,
        season_ticks: view.season_ticks,
    }
}

/// Adds to a series' expected calls what is known of it.
pub(super) fn describe(
    view: &HistoryView,
    series: &SeriesView,
    config: &LoopConfig,
    season_ticks: Option<usize>,
    calls: Vec<Quantiles>,
    weights: Vec<(String, f64)>,
) -> SeriesForecast {
    SeriesForecast {
        key: series.key.clone(),
        calls,
        ns_per_call: series.stats.ns_per_call.mean,
        ns_per_row: series.stats.ns_per_row.mean,
        bytes_per_row: series.stats.bytes_per_row.mean,
        weights,
        calls_now: series.calls_now(view.at, config.monitor().current_ticks()),
        calls_season: series.calls_until(view.at, season_ticks.unwrap_or(usize::MAX)),
        standing: Standing::New,
        announced: false,
    }
}
