//! What a forecast turned out to be worth, once its ticks are over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::forecast::{Forecast, Quantiles, SeriesForecast};
use crate::history::{HistoryView, Rolling};
use crate::ids::{SeriesKey, Tick};

/// One expected number of calls against what happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The function expression and partition.
    pub series: SeriesKey,
    /// How many ticks ahead it was forecast, from one.
    pub horizon: usize,
    /// The tick that was forecast.
    pub at: Tick,
    /// Calls that were expected.
    pub expected: Quantiles,
    /// Calls that came.
    pub actual: f64,
    /// Mean pinball loss of the three quantiles, in calls.
    pub pinball: f64,
    /// The loss as a multiple of what repeating the last known tick usually loses; below one is
    /// good.
    pub scaled: f64,
}

/// Rolling means of the scores of one function at one horizon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreMeans {
    /// Scores so far.
    pub count: u64,
    /// Mean pinball loss in calls.
    pub pinball: f64,
    /// Mean scaled loss.
    pub scaled: f64,
    /// Share of ticks that fell between the 10 % and the 90 % quantile; 0.8 is right.
    pub coverage: f64,
}

/// Scores that are kept for reading.
const RECENT_MAX: usize = 10_000;

/// Functions whose means are kept; further ones are not scored.
const FUNCTIONS_MAX: usize = 1_000;

/// Series of one forecast that are kept, the busiest first.
const SERIES_MAX: usize = 2_000;

/// Ticks of all kept forecasts together.
const CELLS_MAX: usize = 2_000_000;

/// Scores after which a score counts half in the means.
const HALF_LIFE: f64 = 1_000.0;

/// Smallest usual loss that others are divided by, in calls.
const LOSS_FLOOR: f64 = 0.01;

/// Keeps forecasts until their ticks are over, then scores them. Memory is bounded.
#[derive(Clone, Debug, Default)]
pub struct Scorer {
    pending: VecDeque<Arc<Forecast>>,
    scored: Tick,
    recent: VecDeque<Score>,
    means: BTreeMap<(Arc<str>, usize), ScoreMeans>,
    /// What repeating the last known tick loses, by function and horizon.
    naive: BTreeMap<(Arc<str>, usize), Rolling>,
    functions: BTreeSet<Arc<str>>,
}

impl Scorer {
    /// Nothing kept yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a forecast until its ticks are over. Of very many series only the costliest are kept,
    /// and of very many forecasts only the newest.
    pub fn keep(&mut self, forecast: Arc<Forecast>) {
        let forecast =
            if forecast.series.len() > SERIES_MAX { costliest(&forecast) } else { forecast };
        self.pending.retain(|kept| kept.at != forecast.at);
        self.pending.push_back(forecast);
        let mut cells: usize = self.pending.iter().map(|kept| cells(kept)).sum();
        while cells > CELLS_MAX
            && let Some(oldest) = self.pending.pop_front()
        {
            cells -= self::cells(&oldest);
        }
    }

    /// Forgets what was expected of ticks that are not over: they have other numbers now.
    pub fn forget_pending(&mut self) {
        self.pending.clear();
    }

    /// Scores what was expected of the ticks that closed since the last call; answers the new
    /// scores.
    pub fn score(&mut self, view: &HistoryView) -> Vec<Score> {
        let mut scores = Vec::new();
        let pending = std::mem::take(&mut self.pending);
        for forecast in &pending {
            for series in &forecast.series {
                if let Some(seen) = view.get(&series.key) {
                    let last_known = seen.calls_at(forecast.at);
                    for (ahead, expected) in (1..).zip(&series.calls) {
                        let at = Tick(forecast.at.0 + ahead as u64);
                        if at > self.scored && at <= view.at {
                            let actual = (seen.calls_at(at), last_known);
                            scores.extend(self.one(&series.key, ahead, at, *expected, actual));
                        }
                    }
                }
            }
        }
        self.pending = pending.into_iter().filter(|kept| last_tick(kept) > view.at).collect();
        self.scored = view.at;
        self.recent.extend(scores.iter().cloned());
        let over = self.recent.len().saturating_sub(RECENT_MAX);
        self.recent.drain(..over);
        scores
    }

    fn one(
        &mut self,
        series: &SeriesKey,
        horizon: usize,
        at: Tick,
        expected: Quantiles,
        (actual, last_known): (f64, f64),
    ) -> Option<Score> {
        if !self.functions.contains(&series.function) {
            if self.functions.len() >= FUNCTIONS_MAX {
                return None;
            }
            self.functions.insert(series.function.clone());
        }
        let key = (series.function.clone(), horizon);
        let naive = self.naive.entry(key.clone()).or_default();
        naive.add(Quantiles::exactly(last_known).pinball(actual), HALF_LIFE);
        let pinball = expected.pinball(actual);
        let scaled = pinball / naive.mean.max(LOSS_FLOOR);
        self.means.entry(key).or_default().add(pinball, scaled, expected.holds(actual));
        Some(Score { series: series.clone(), horizon, at, expected, actual, pinball, scaled })
    }

    /// The newest scores, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &Score> {
        self.recent.iter()
    }

    /// Rolling means by function and horizon in ticks.
    #[must_use]
    pub fn means(&self) -> &BTreeMap<(Arc<str>, usize), ScoreMeans> {
        &self.means
    }
}

impl ScoreMeans {
    fn add(&mut self, pinball: f64, scaled: f64, covered: bool) {
        self.count += 1;
        let weight = (1.0 / self.count as f64).max(1.0 - 0.5_f64.powf(1.0 / HALF_LIFE));
        self.pinball += weight * (pinball - self.pinball);
        self.scaled += weight * (scaled - self.scaled);
        self.coverage += weight * (f64::from(u8::from(covered)) - self.coverage);
    }
}

fn cells(forecast: &Forecast) -> usize {
    forecast.series.iter().map(|series| series.calls.len()).sum()
}

fn last_tick(forecast: &Forecast) -> Tick {
    let ticks = forecast.series.iter().map(|series| series.calls.len()).max().unwrap_or(0);
    Tick(forecast.at.0 + ticks as u64)
}

fn costliest(forecast: &Forecast) -> Arc<Forecast> {
    let mut series: Vec<_> = forecast.series.iter().collect();
    let cost = |series: &SeriesForecast| series.expected_calls(usize::MAX) * series.ns_per_call;
    series.sort_by(|a, b| cost(b).total_cmp(&cost(a)).then_with(|| a.key.cmp(&b.key)));
    series.truncate(SERIES_MAX);
    series.sort_by(|a, b| a.key.cmp(&b.key));
    let series = series.into_iter().cloned().collect();
    Arc::new(Forecast {
        at: forecast.at,
        tick_ms: forecast.tick_ms,
        series,
        totals: Vec::new(),
        joined: Vec::new(),
        trusted: forecast.trusted,
        skill: forecast.skill,
        season_ticks: forecast.season_ticks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallRecord;
    use crate::config::LoopConfig;
    use crate::forecast::ensemble::repeat_current;
    use crate::history::History;
    use crate::ids::{ExpressionId, NodeId, PartitionId};

    fn call() -> CallRecord {
        CallRecord {
            at_ms: 0,
            query: 1,
            function: "embed".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("trades", 0),
            node: NodeId(0),
            rows: 10,
            rows_stored: 0,
            rows_fresh: 0,
            rows_fresh_stored: 0,
            ns: 10,
            waited_ns: 0,
            would_be_ns: 10,
            bytes: 80,
            traceparent: None,
        }
    }

    /// Scores the forecasts of mode reactive, three ticks ahead.
    fn scored(calls: &[u32]) -> (Scorer, Vec<Score>) {
        let precompute = LoopConfig::default().precompute().clone().with_lead_ticks(1).unwrap();
        let config = LoopConfig::default().with_precompute(precompute).unwrap();
        let config = config.with_horizon_ticks(3).unwrap();
        let (mut history, mut scorer) = (History::new(&config), Scorer::new());
        let mut scores = Vec::new();
        for count in calls {
            (0..*count).for_each(|_| history.record(&call()));
            history.close_tick();
            scores.extend(scorer.score(&history.view()));
            scorer.keep(Arc::new(repeat_current(&history.view(), &config)));
        }
        (scorer, scores)
    }

    #[test]
    fn each_expected_tick_is_scored_once_when_it_is_over() {
        let (scorer, scores) = scored(&[2, 2, 2, 5]);
        let seen: Vec<_> =
            scores.iter().map(|score| (score.at.0, score.horizon, score.actual)).collect();
        assert_eq!(
            seen,
            [(2, 1, 2.0), (3, 2, 2.0), (3, 1, 2.0), (4, 3, 5.0), (4, 2, 5.0), (4, 1, 5.0)]
        );
        assert_eq!(scorer.recent().count(), 6);
        assert_eq!(scorer.pending.len(), 3);
    }

    #[test]
    fn a_miss_costs_its_pinball_loss_and_is_not_covered() {
        let (scorer, scores) = scored(&[2, 2, 2, 5]);
        assert_eq!(scores[0].pinball, 0.0);
        // Three calls more than each quantile: 3 * (0.1 + 0.5 + 0.9) / 3.
        assert!((scores[5].pinball - 1.5).abs() < 1e-9);
        let means = scorer.means()[&("embed".into(), 1)];
        assert_eq!(means.count, 3);
        assert!((means.pinball - 0.5).abs() < 1e-9);
        assert!((means.coverage - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_forecast_that_repeats_the_last_tick_scores_one() {
        let (scorer, _) = scored(&(0..200).map(|tick| tick * 7 % 5 * 10).collect::<Vec<_>>());
        let scaled = scorer.means()[&("embed".into(), 1)].scaled;
        assert!((0.5..1.2).contains(&scaled), "{scaled}");
    }

    #[test]
    fn memory_stays_bounded_when_nothing_is_ever_scored() {
        let mut scorer = Scorer::new();
        let series = SeriesForecast {
            key: call().series(),
            calls: vec![Quantiles::default(); 500_000],
            ns_per_call: 1.0,
            ns_per_row: 1.0,
            bytes_per_row: 1.0,
            weights: Vec::new(),
            calls_now: 0.0,
            calls_season: 0.0,
            standing: crate::forecast::ensemble::Standing::New,
            announced: false,
        };
        for at in 0..6 {
            let forecast =
                Forecast { at: Tick(at), series: vec![series.clone()], ..Forecast::default() };
            scorer.keep(Arc::new(forecast));
        }
        assert_eq!(scorer.pending.len(), 4);
        assert_eq!(scorer.pending[0].at, Tick(2));
    }
}
