//! Regressions that say directly what is to come at each horizon, from the same rows of numbers.
//!
//! The costliest series get a model of their own per horizon; the others share one, learned from a
//! sample of all their rows. Models answer the change from the last value, in logarithms.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::features::{Clock, SEASONS_MAX, WIDTH, push_row};
use super::{Effort, FitReport, ForecastError, Member, Quantiles, Series, Window};

/// A regression from rows of numbers to one number.
pub trait Regression: Clone + Default + Send + Serialize + DeserializeOwned {
    /// Name of the member that uses it.
    const NAME: &'static str;

    /// Fewest rows that a model is learned from.
    const ROWS_MIN: usize;

    /// Most rows that one model learns from.
    const ROWS_MAX: usize;

    /// Most series with models of their own.
    const OWN_MAX: usize;

    /// Share of the past, its newest part, that is learned from.
    const NEWEST: f64 = 1.0;

    /// Learns from `rows` of [`WIDTH`] numbers each, oldest first, and as many `targets`.
    fn learn(rows: &[f32], targets: &[f64], effort: Effort<'_>) -> Self;

    /// What it says about one row.
    fn answer(&self, row: &[f32]) -> f64;
}

/// Newest rows that are learned from however long the past is.
const ROWS_NEWEST_MIN: usize = 2_000;

/// Rows whose misses tell the width of the interval.
const MISSES_MAX: usize = 2_000;

/// Rows that are made or answered between two pauses: some milliseconds.
const ROWS_AT_ONCE: usize = 256;

/// The member.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Direct<R: Regression> {
    own: BTreeMap<u64, Vec<Model<R>>>,
    shared: Vec<Model<R>>,
}

/// One horizon.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(bound = "")]
struct Model<R: Regression> {
    ahead: usize,
    regression: R,
    /// What is added to the answer for the 10 % and 90 % quantiles, in logarithms.
    low: f64,
    high: f64,
}

/// Rows and targets for one horizon.
#[derive(Default)]
struct Sample {
    rows: Vec<f32>,
    targets: Vec<f64>,
}

impl Sample {
    /// Adds the rows of a series for origins so many ticks back, oldest first.
    fn add(
        &mut self,
        (window, effort): (&Window<'_>, Effort<'_>),
        series: &Series<'_>,
        ahead: usize,
        backs: &[usize],
    ) {
        let clock = Clock::new(window, series.len());
        for (row, back) in backs.iter().copied().enumerate() {
            if row.is_multiple_of(ROWS_AT_ONCE) {
                effort.pause();
            }
            let past = series.before(back);
            push_row(&mut self.rows, &past, clock.before(back), ahead);
            self.targets.push(series.log(back - ahead) - past.log(0));
        }
    }

    fn model<R: Regression>(&self, ahead: usize, effort: Effort<'_>) -> Option<Model<R>> {
        if self.targets.len() < R::ROWS_MIN {
            return None;
        }
        let regression = R::learn(&self.rows, &self.targets, effort);
        let skip = self.targets.len().saturating_sub(MISSES_MAX);
        let rows = self.rows.chunks_exact(WIDTH).zip(&self.targets).skip(skip);
        let miss = |(place, (row, target)): (usize, (&[f32], &f64))| {
            if place.is_multiple_of(ROWS_AT_ONCE) {
                effort.pause();
            }
            target - regression.answer(row)
        };
        let mut misses: Vec<f64> = rows.enumerate().map(miss).collect();
        misses.sort_by(f64::total_cmp);
        let quantile = |share: f64| misses[(share * (misses.len() - 1) as f64) as usize];
        let (low, high) = (quantile(0.1).min(0.0), quantile(0.9).max(0.0));
        Some(Model { ahead, regression, low, high })
    }
}

/// How many ticks back the origins lie that are learned from, oldest first: all whose target is
/// known, or `rows_max` of them, the denser the newer.
///
/// The first season is left out, since its rows know nothing of what came before.
fn origins(series: &Series<'_>, ahead: usize, rows_max: usize, newest: f64) -> Vec<usize> {
    let season = series.seasons.iter().take(SEASONS_MAX).copied().max().unwrap_or(0);
    let wanted = if season > 0 { ahead.div_ceil(season) * season + 1 } else { 24 };
    let first = wanted.min(series.len() / 3);
    let usable = series.len().saturating_sub(first + ahead);
    let usable = ((usable as f64 * newest) as usize).max(usable.min(ROWS_NEWEST_MIN));
    if usable <= rows_max {
        return (ahead..ahead + usable).rev().collect();
    }
    let place = |row: usize| {
        let share = (row as f64 + 0.5) / rows_max as f64;
        ahead + (usable as f64 * share * share) as usize
    };
    let mut backs: Vec<usize> = (0..rows_max).rev().map(place).collect();
    backs.dedup();
    backs
}

impl<R: Regression> Direct<R> {
    fn learn(&mut self, window: &Window<'_>, horizons: &[usize], effort: Effort<'_>) {
        let mut places: Vec<usize> = (0..window.series.len()).collect();
        let busy = |place: &usize| window.series[*place].mean(0, usize::MAX / 2);
        places.sort_by(|a, b| busy(b).total_cmp(&busy(a)).then(a.cmp(b)));
        let own_count = places.len().min(R::OWN_MAX);
        let (own, others) = places.split_at(own_count);
        let mut models = BTreeMap::new();
        for series in own.iter().map(|place| &window.series[*place]) {
            let of = |ahead: &usize| {
                let mut sample = Sample::default();
                let backs = origins(series, *ahead, R::ROWS_MAX, R::NEWEST);
                sample.add((window, effort), series, *ahead, &backs);
                sample.model(*ahead, effort)
            };
            let found: Vec<Model<R>> = horizons.iter().filter_map(of).collect();
            if !found.is_empty() {
                models.insert(series.id, found);
            }
        }
        self.own = models;
        if !others.is_empty() {
            let shared = |ahead: &usize| self.share((window, effort), others, *ahead);
            self.shared = horizons.iter().filter_map(shared).collect();
        }
    }

    fn share(
        &self,
        (window, effort): (&Window<'_>, Effort<'_>),
        places: &[usize],
        ahead: usize,
    ) -> Option<Model<R>> {
        let mut sample = Sample::default();
        // With more series than rows, some series lend none.
        let lending = places.iter().step_by((places.len() / R::ROWS_MAX).max(1));
        let each = (R::ROWS_MAX / lending.len().max(1)).max(1);
        for place in lending {
            let series = &window.series[*place];
            let backs = origins(series, ahead, each, R::NEWEST);
            sample.add((window, effort), series, ahead, &backs);
        }
        sample.model(ahead, effort)
    }
}

impl<R: Regression + 'static> Member for Direct<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn fit(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
        effort: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        self.learn(window, horizons, effort);
        Ok(FitReport::default())
    }

    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let mut row = Vec::with_capacity(WIDTH);
        let one = |series: &Series<'_>| {
            let models = self.own.get(&series.id).unwrap_or(&self.shared);
            if models.is_empty() || series.is_empty() {
                return Vec::new();
            }
            let clock = Clock::new(window, series.len());
            let last = series.log(0);
            let answer = |ahead: &usize| {
                let model = models.iter().min_by_key(|model| model.ahead.abs_diff(*ahead))?;
                row.clear();
                // Between learned horizons the nearest model sees the row of the tick asked for.
                push_row(&mut row, series, clock, *ahead);
                let centre = last + model.regression.answer(&row);
                Some(from_logs(centre + model.low, centre, centre + model.high))
            };
            horizons.iter().filter_map(answer).collect()
        };
        Ok(window.series.iter().map(one).collect())
    }

    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        Ok(Box::new(self.clone()))
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        serde_json::to_vec(self)
            .map_err(|error| ForecastError::Numeric { member: R::NAME, reason: error.to_string() })
    }

    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        *self = serde_json::from_slice(state)
            .map_err(|error| ForecastError::State { member: R::NAME, reason: error.to_string() })?;
        Ok(())
    }
}

/// Quantiles of calls from those of their logarithms.
pub(super) fn from_logs(low: f64, centre: f64, high: f64) -> Quantiles {
    // Beyond this a number of calls is no number any more.
    let calls = |log: f64| log.min(60.0).exp_m1();
    Quantiles { q10: calls(low), q50: calls(centre), q90: calls(high) }.tidy()
}
