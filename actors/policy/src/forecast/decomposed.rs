//! Rhythms taken apart: one decomposition for all series that go up and down together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stlrs::Mstl;

use super::naive::{around, miss};
use super::{Effort, FitReport, ForecastError, Member, MemberReport, Quantiles, Series, Window};
use crate::ids::Tick;

const NAME: &str = "mstl";

/// Decompositions that are made at most: of the rhythms of the busiest series.
const CENTRES_MAX: usize = 16;

/// Newest ticks that are taken apart at most.
const TICKS_MAX: usize = 6_000;

/// Numbers by which the shapes of two series are compared.
const POINTS: usize = 48;

/// Correlation of shapes from which on two series have one rhythm.
const LIKE: f64 = 0.8;

/// Newest ticks by which the present level is told.
const LEVEL_TICKS: usize = 6;

/// Seasonal and trend decomposition of cluster centres, at today's level of each series.
///
/// Series with the same seasons whose newest seasons look alike are averaged, standardised by their own
/// means and deviations; the average is taken apart into one component per season and the rest. A series
/// is expected to stay at its level without the season, plus the newest cycle of each component. A series
/// that is not known for two seasons gets no answer.
///
/// # Cost
/// A fit takes at most 16 decompositions of 6,000 ticks apart.
///
/// # Source
/// Bandara, Hyndman and Bergmeir, *MSTL: A Seasonal-Trend Decomposition Algorithm for Time Series with
/// Multiple Seasonal Patterns* (2021); clusters as in Ma et al., *Query-based Workload Forecasting*, SIGMOD
/// 2018, section 5.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decomposed {
    centres: Vec<Centre>,
    /// Place of the centre of each series, and the deviation of the series.
    of: BTreeMap<u64, (usize, f64)>,
    at: Tick,
}

/// A rhythm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Centre {
    /// The newest cycle of each season, in deviations, by the number of the tick modulo the season.
    cycles: Vec<Vec<f32>>,
}

impl Centre {
    fn usual(&self, tick: u64) -> f64 {
        let one = |cycle: &Vec<f32>| f64::from(cycle[(tick % cycle.len() as u64) as usize]);
        self.cycles.iter().map(one).sum()
    }

    /// The logarithm `ahead` ticks after the newest one of `past`, which is tick `at`.
    fn log(&self, past: &Series<'_>, deviation: f64, at: u64, ahead: usize) -> f64 {
        let ticks = LEVEL_TICKS.min(past.len()).max(1);
        let excess =
            |back: usize| past.log(back) - deviation * self.usual(at.saturating_sub(back as u64));
        let level = (0..ticks).map(excess).sum::<f64>() / ticks as f64;
        level + deviation * self.usual(at + ahead as u64)
    }
}

/// Series that may share a centre, and what they look like.
struct Cluster {
    seasons: Vec<usize>,
    shape: Vec<f64>,
    /// Places in the window, with mean and deviation.
    members: Vec<(usize, f64, f64)>,
}

/// Seasons that are known at least twice in the newest ticks, ascending; none without a season.
fn seasons(series: &Series<'_>) -> Vec<usize> {
    let ticks = series.len().min(TICKS_MAX);
    let mut known: Vec<usize> = series.seasons.to_vec();
    known.retain(|season| *season >= 2 && 2 * season <= ticks);
    known.sort_unstable();
    known.dedup();
    known
}

/// What the newest two seasons look like, standardised, with their mean and deviation.
fn shape(series: &Series<'_>, longest: usize) -> Option<(Vec<f64>, f64, f64)> {
    let points = POINTS.min(2 * longest);
    let wide = 2 * longest / points;
    let mut shape: Vec<f64> = (0..points).map(|point| series.mean(point * wide, wide)).collect();
    let mean = shape.iter().sum::<f64>() / points as f64;
    let variance = shape.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / points as f64;
    let deviation = variance.sqrt();
    if deviation < 1e-6 {
        return None;
    }
    shape.iter_mut().for_each(|log| *log = (*log - mean) / deviation);
    Some((shape, mean, deviation))
}

fn clusters(window: &Window<'_>, effort: Effort<'_>) -> Vec<Cluster> {
    let mut order: Vec<usize> = (0..window.series.len()).collect();
    let level = |place: &usize| window.series[*place].mean(0, TICKS_MAX);
    order.sort_by(|a, b| level(b).total_cmp(&level(a)).then(a.cmp(b)));
    let mut all: Vec<Cluster> = Vec::new();
    for place in order {
        effort.pause();
        let seasons = seasons(&window.series[place]);
        let Some(longest) = seasons.last() else { continue };
        let Some((shape, mean, deviation)) = shape(&window.series[place], *longest) else {
            continue;
        };
        let like = |cluster: &Cluster| {
            let products = cluster.shape.iter().zip(&shape).map(|(a, b)| a * b);
            cluster.seasons == seasons && products.sum::<f64>() >= LIKE * shape.len() as f64
        };
        let member = (place, mean, deviation);
        match all.iter().position(like) {
            Some(cluster) => all[cluster].members.push(member),
            None if all.len() < CENTRES_MAX => {
                all.push(Cluster { seasons, shape, members: vec![member] });
            }
            None => {}
        }
    }
    all
}

/// The mean of a cluster, taken apart.
fn centre(window: &Window<'_>, cluster: &Cluster) -> Result<Centre, ForecastError> {
    let lens = cluster.members.iter().map(|(place, ..)| window.series[*place].len());
    let ticks = lens.min().unwrap_or(0).min(TICKS_MAX);
    let mut mean = vec![0.0; ticks];
    for (place, middle, deviation) in &cluster.members {
        let logs = window.series[*place].logs.iter().rev();
        let standard = logs.map(|log| (log - middle) / deviation);
        mean.iter_mut().rev().zip(standard).for_each(|(sum, log)| *sum += log);
    }
    let members = cluster.members.len().max(1) as f64;
    let mean: Vec<f32> = mean.into_iter().map(|sum: f64| (sum / members) as f32).collect();
    let parts = Mstl::fit(&mean, &cluster.seasons)
        .map_err(|error| ForecastError::Numeric { member: NAME, reason: error.to_string() })?;
    let first = (window.at.0 + 1).saturating_sub(ticks as u64);
    let cycle = |(part, season): (&Vec<f32>, &usize)| {
        let mut cycle = vec![0.0; *season];
        for (position, value) in part.iter().enumerate().skip(ticks.saturating_sub(*season)) {
            let tick = first + position as u64;
            cycle[(tick % *season as u64) as usize] = *value;
        }
        cycle
    };
    Ok(Centre { cycles: parts.seasonal().iter().zip(&cluster.seasons).map(cycle).collect() })
}

impl Member for Decomposed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fit(
        &mut self,
        window: &Window<'_>,
        _: &[usize],
        effort: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        let mut next = Self { at: window.at, ..Self::default() };
        for cluster in clusters(window, effort) {
            effort.pause();
            next.centres.push(centre(window, &cluster)?);
            let place = next.centres.len() - 1;
            let members = cluster.members.iter();
            next.of
                .extend(members.map(|(series, _, deviation)| {
                    (window.series[*series].id, (place, *deviation))
                }));
        }
        *self = next;
        Ok(FitReport::default())
    }

    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let one = |series: &Series<'_>| {
            let Some((centre, deviation)) = self.of.get(&series.id) else { return Vec::new() };
            let centre = &self.centres[*centre];
            let tick = |ahead: &usize| {
                let rule = |past: &Series<'_>| {
                    let at = window.at.0.saturating_sub((series.len() - past.len()) as u64);
                    centre.log(past, *deviation, at, *ahead)
                };
                around(rule(series), miss(series, *ahead, LEVEL_TICKS, rule))
            };
            horizons.iter().map(tick).collect()
        };
        Ok(window.series.iter().map(one).collect())
    }

    fn report(&self) -> MemberReport {
        let at = (!self.centres.is_empty()).then_some(self.at);
        MemberReport { at, ..MemberReport::default() }
    }

    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        Ok(Box::new(self.clone()))
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        serde_json::to_vec(self)
            .map_err(|error| ForecastError::Numeric { member: NAME, reason: error.to_string() })
    }

    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        let unusable = |reason: String| ForecastError::State { member: NAME, reason };
        let loaded: Self =
            serde_json::from_slice(state).map_err(|error| unusable(error.to_string()))?;
        let whole = loaded.centres.iter().flat_map(|centre| &centre.cycles);
        if whole.into_iter().any(Vec::is_empty)
            || loaded.of.values().any(|(centre, _)| *centre >= loaded.centres.len())
        {
            return Err(unusable("a series or a season of it is nowhere".to_owned()));
        }
        *self = loaded;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Past;

    fn rhythm(tick: usize, size: f64) -> f64 {
        let day = (tick as f64 / 24.0 * std::f64::consts::TAU).sin();
        let week = if (tick / 24) % 7 < 5 { 0.4 } else { -0.6 };
        (size * (day + week) + 3.0).exp_m1()
    }

    /// Twelve weeks less a day of two series with one rhythm, and one without any.
    fn pasts() -> [Past; 3] {
        let of = |size: f64| Past::new((0..7 * 24 * 12 - 24).map(|tick| rhythm(tick, size)));
        [of(1.0), of(0.5), Past::new((0..500).map(|tick| f64::from(tick % 7 == 0)))]
    }

    fn window<'a>(series: &'a [Series<'a>]) -> Window<'a> {
        let at = Tick(series[0].len() as u64 - 1);
        Window { at, tick_ms: 3_600_000, epoch_ms: 0, series }
    }

    #[test]
    fn two_seasons_at_once_are_repeated_at_the_level_of_each_series() {
        let pasts = pasts();
        let seasons: [&[usize]; 3] = [&[24, 168], &[24, 168], &[]];
        let series: Vec<Series<'_>> = (0..)
            .zip(pasts.iter().zip(seasons))
            .map(|(id, (past, seasons))| past.series(past.len(), id, seasons))
            .collect();
        let window = window(&series);
        let mut member = Decomposed::default();
        assert_eq!(member.forecast(&window, &[1]).unwrap(), [[], [], []]);
        member.fit(&window, &[], Effort::steps(0)).unwrap();
        assert_eq!(member.centres.len(), 1, "one rhythm in two sizes");
        let horizons = [1, 30, 60];
        let said = member.forecast(&window, &horizons).unwrap();
        assert!(said[2].is_empty(), "{:?}", said[2]);
        for (place, size) in [(0, 1.0), (1, 0.5)] {
            for (said, ahead) in said[place].iter().zip(horizons) {
                let actual = rhythm(series[0].len() - 1 + ahead, size).ln_1p();
                let missed = (said.q50.ln_1p() - actual).abs();
                assert!(missed < 0.25 * size, "{ahead}: missed {missed:.2}");
            }
        }
    }

    #[test]
    fn a_state_is_taken_up_and_a_broken_one_is_refused() {
        let pasts = pasts();
        let series = [pasts[0].series(pasts[0].len(), 4, &[24])];
        let window = window(&series);
        let mut member = Decomposed::default();
        member.fit(&window, &[], Effort::steps(0)).unwrap();
        let mut other = Decomposed::default();
        other.load(&member.save().unwrap()).unwrap();
        assert_eq!(other, member);
        let lost = r#"{"centres":[],"of":{"4":[0,1.0]},"at":3}"#;
        assert_eq!(other.load(lost.as_bytes()).unwrap_err().code(), "FS-FORECAST-1");
        assert_eq!(other, member);
    }

    #[test]
    fn series_that_do_not_go_together_are_taken_apart_one_by_one() {
        let opposite = |tick: usize| rhythm(tick + 12, 1.0);
        let pasts =
            [Past::new((0..400).map(|tick| rhythm(tick, 1.0))), Past::new((0..400).map(opposite))];
        let series = [0, 1].map(|id| pasts[id].series(400, id as u64, &[24]));
        let mut member = Decomposed::default();
        member.fit(&window(&series), &[], Effort::steps(0)).unwrap();
        assert_eq!(member.centres.len(), 2);
    }
}
