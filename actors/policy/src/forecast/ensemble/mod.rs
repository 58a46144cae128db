//! Mixes the members by what they were worth so far.
//!
//! Each tick: [`observe`](Ensemble::observe) scores what was said about the tick that ended,
//! [`forecast`](Ensemble::forecast) asks every member again and mixes the answers. Weights are
//! earned per series and horizon by Hedge on the pinball loss, as a multiple of seasonal naive's;
//! intervals are tracked quantiles of past misses. The mix is trusted while it loses no more than
//! repeating the last tick would, each series weighing what its calls cost.

mod reports;
mod saved;
mod track;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use reports::MemberStanding;
pub use turn::{invert, repeat_current};

use super::naive::Naive;
use super::period::find_season;
use super::seasonal::{Profile, Which};
use super::smoothing::Smoothing;
use super::{FitReport, Forecast, ForecastError, Member, Past, Quantiles, Series, Window};
use crate::config::LoopConfig;
use crate::history::{HistoryView, Rolling, SeriesView};
use crate::ids::{SeriesKey, Tick};
use track::{Mixed, Track, mix, weights};

/// Positions of the members that the others are measured by.
const NAIVE: usize = 0;
const SEASONAL: usize = 1;

/// How much more than another member the seasonal one is believed once there is a season: it was
/// tested for, or the operator says so.
const SEASONAL_PRIOR: f64 = 4.0;

/// Horizons that are scored; the others share the weights of the nearest.
const CLASSES: usize = 3;

/// Most series that are scored each tick, the costliest first; the others go by what is true of
/// all.
const SCORED_MAX: usize = 2_000;

/// Most answers that wait for their ticks, over all series.
const PENDING_MAX: usize = 100_000;

/// Scored ticks before the mix can be trusted.
const TRUST_TICKS_MIN: u64 = 8;

/// Ticks of scores after which one counts half for trust.
const TRUST_HALF_LIFE: f64 = 500.0;

/// Busy series that are searched for a season when their sum has none.
const SEASON_SERIES: usize = 8;

/// Several members, the weight of each, and the intervals learned from past misses.
pub struct Ensemble {
    config: LoopConfig,
    members: Vec<Box<dyn Member>>,
    learned: Learned,
    pending: VecDeque<Pending>,
    observed: Tick,
}

/// What survives a restart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Learned {
    tracks: Vec<(SeriesKey, Tracks)>,
    all: Tracks,
    /// Cost-weighted loss per tick of the mix and of the naive member.
    loss: Rolling,
    loss_naive: Rolling,
    season: Option<usize>,
    /// Ticks that were known when a season was looked for.
    season_ticks_seen: usize,
}

type Tracks = [Track; CLASSES];

/// What was said at one tick about those that follow.
struct Pending {
    at: Tick,
    horizons: [usize; CLASSES],
    series: Vec<(SeriesKey, f64, [Said; CLASSES])>,
}

#[derive(Clone, Default)]
struct Said {
    members: Vec<Option<Quantiles>>,
    mixed: Mixed,
    quantiles: Quantiles,
}

/// What all members answered: by member, series, tick.
type Answers = Vec<Option<Vec<Vec<Quantiles>>>>;

impl fmt::Debug for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| member.name())).finish()
    }
}

impl Ensemble {
    /// The statistical members of this crate, and `more` (for example an LSTM).
    #[must_use]
    pub fn new(config: &LoopConfig, more: Vec<Box<dyn Member>>) -> Self {
        let mut members: Vec<Box<dyn Member>> = vec![
            Box::new(Naive),
            Box::new(Profile(Which::Shortest)),
            Box::new(Smoothing::default()),
        ];
        members.extend(more);
        Self {
            config: config.clone(),
            members,
            learned: Learned::default(),
            pending: VecDeque::new(),
            observed: Tick::default(),
        }
    }

    /// The season that forecasts go by: the configured one, or the one that was found.
    #[must_use]
    pub fn season_ticks(&self) -> Option<usize> {
        self.config.season_ticks().or(self.learned.season)
    }

    /// Lets every member learn from the view with at most `steps_max` training steps, and looks for
    /// a season now and then. A member that fails keeps its former state; its error is in the
    /// report.
    pub fn fit(
        &mut self,
        view: &HistoryView,
        steps_max: u32,
    ) -> Vec<(&'static str, Result<FitReport, ForecastError>)> {
        let calls = view.calls(view.at);
        self.look_for_season(view, &calls);
        let (seasons, pasts) = (Vec::from_iter(self.season_ticks()), pasts(calls));
        let series = all_series(view, &pasts, &seasons);
        let window = window(view, &series);
        let horizons: Vec<usize> = (1..=self.config.horizon_ticks()).collect();
        let members = self.members.iter_mut();
        members.map(|member| (member.name(), member.fit(&window, &horizons, steps_max))).collect()
    }

    /// Scores the forecasts whose ticks are over, which moves weights, intervals and trust.
    /// Call it once per closed tick, before [`forecast`](Self::forecast).
    pub fn observe(&mut self, view: &HistoryView) {
        let mut tracks: BTreeMap<SeriesKey, Tracks> =
            std::mem::take(&mut self.learned.tracks).into_iter().collect();
        let first = self.pending.front().map_or(view.at, |pending| pending.at);
        for tick in self.observed.max(first).0 + 1..=view.at.0 {
            self.observe_tick(view, Tick(tick), &mut tracks);
        }
        self.observed = view.at;
        self.pending.retain(|pending| {
            pending.horizons.iter().any(|ahead| pending.at.0 + *ahead as u64 > view.at.0)
        });
        tracks.retain(|key, _| view.get(key).is_some());
        self.learned.tracks = tracks.into_iter().collect();
    }

    fn observe_tick(
        &mut self,
        view: &HistoryView,
        tick: Tick,
        tracks: &mut BTreeMap<SeriesKey, Tracks>,
    ) {
        let (mut loss, mut loss_naive, mut scored) = (0.0, 0.0, false);
        for pending in &self.pending {
            for (class, ahead) in pending.horizons.iter().enumerate() {
                let again = pending.horizons[..class].contains(ahead);
                if again || pending.at.0 + *ahead as u64 != tick.0 {
                    continue;
                }
                for (key, cost, said) in &pending.series {
                    let Some(series) = view.get(key) else { continue };
                    let actual = series.calls_at(tick);
                    let said = &said[class];
                    let own = tracks.entry(key.clone()).or_default();
                    own[class].score(&said.members, &said.mixed, actual);
                    self.learned.all[class].score(&said.members, &said.mixed, actual);
                    let naive = said.members.get(NAIVE).copied().flatten().unwrap_or_default();
                    loss += cost * said.quantiles.pinball(actual);
                    loss_naive += cost * naive.pinball(actual);
                    scored = true;
                }
            }
        }
        if scored {
            self.learned.loss.add(loss, TRUST_HALF_LIFE);
            self.learned.loss_naive.add(loss_naive, TRUST_HALF_LIFE);
        }
    }

    /// Forecasts every series for the next `horizon` ticks, at least one. A member that fails is
    /// left out.
    ///
    /// # Errors
    /// The last member's error if no member can forecast.
    pub fn forecast(
        &mut self,
        view: &HistoryView,
        horizon: usize,
    ) -> Result<Forecast, ForecastError> {
        let horizon = horizon.max(1);
        let (seasons, pasts) = (Vec::from_iter(self.season_ticks()), pasts(view.calls(view.at)));
        let series = all_series(view, &pasts, &seasons);
        let window = window(view, &series);
        let answers = self.ask(&window, horizon)?;
        let horizons = [1, horizon.div_ceil(2), horizon];
        let mut pending = Vec::new();
        let mut forecasts = Vec::new();
        for (position, series) in view.series.iter().enumerate() {
            let awake = self.awake(&answers, position);
            let (said, weights) = self.mix_series(series, position, &answers, &awake, horizons);
            forecasts.push(turn::describe(
                view,
                series,
                &self.config,
                seasons.first().copied(),
                said.iter().map(|said| said.quantiles).collect(),
                self.members.iter().map(|m| m.name().to_owned()).zip(weights).collect(),
            ));
            let cost = series.stats.ns_per_call.mean.max(1.0);
            if let Some(said) = at_horizons(&said, horizons) {
                pending.push((series.key.clone(), cost, said));
            }
        }
        self.keep(view, horizon, horizons, pending);
        Ok(Forecast {
            at: view.at,
            tick_ms: view.tick_ms,
            series: forecasts,
            trusted: self.is_trusted(),
            skill: self.skill(),
            season_ticks: seasons.first().copied(),
        })
    }

    /// Share of the naive member's loss that the mix avoided; negative if it lost more.
    #[must_use]
    pub fn skill(&self) -> f64 {
        let Learned { loss, loss_naive, .. } = &self.learned;
        if loss_naive.mean <= f64::EPSILON { 0.0 } else { 1.0 - loss.mean / loss_naive.mean }
    }

    fn is_trusted(&self) -> bool {
        let Learned { loss, loss_naive, .. } = &self.learned;
        // Rounding alone must not cost the trust on a load that never changes.
        loss.count >= TRUST_TICKS_MIN && loss.mean <= loss_naive.mean * (1.0 + 1e-9) + 1e-6
    }

    fn ask(&mut self, window: &Window<'_>, horizon: usize) -> Result<Answers, ForecastError> {
        let horizons: Vec<usize> = (1..=horizon).collect();
        let mut failure = None;
        let answers: Answers = self
            .members
            .iter_mut()
            .map(|member| match member.forecast(window, &horizons) {
                Ok(answer) => Some(answer),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            })
            .collect();
        match failure {
            Some(error) if answers.iter().all(Option::is_none) => Err(error),
            _ => Ok(answers),
        }
    }

    /// Which members have something of their own to say about a series.
    fn awake(&self, answers: &Answers, position: usize) -> Vec<bool> {
        let said =
            |answer: &Vec<Vec<Quantiles>>| answer.get(position).is_some_and(|s| !s.is_empty());
        answers.iter().map(|answer| answer.as_ref().is_some_and(said)).collect()
    }

    fn mix_series(
        &self,
        series: &SeriesView,
        position: usize,
        answers: &Answers,
        awake: &[bool],
        horizons: [usize; CLASSES],
    ) -> (Vec<Said>, Vec<f64>) {
        let found = self.learned.tracks.binary_search_by(|(key, _)| key.cmp(&series.key));
        let own = found.ok().map(|at| &self.learned.tracks[at].1);
        let priors: Vec<f64> = (0..self.members.len())
            .map(|member| if member == SEASONAL { SEASONAL_PRIOR } else { 1.0 })
            .collect();
        let by_class: [Vec<f64>; CLASSES] = std::array::from_fn(|class| {
            let own = own.map(|own| &own[class]);
            weights(own, &self.learned.all[class], &priors, awake, SEASONAL)
        });
        let said = (1..=horizons[CLASSES - 1]).map(|ahead| {
            let class = class_of(ahead, horizons);
            let member = |answer: &Option<Vec<Vec<Quantiles>>>, awake: &bool| {
                let tick = answer.as_ref()?.get(position)?.get(ahead - 1)?;
                awake.then(|| tick.tidy())
            };
            let members: Vec<_> =
                answers.iter().zip(awake).map(|(answer, awake)| member(answer, awake)).collect();
            let mixed = mix(&members, &by_class[class]);
            let quantiles = own.unwrap_or(&self.learned.all)[class].quantiles(&mixed);
            Said { members, mixed, quantiles }
        });
        let said = said.collect();
        (said, by_class[0].clone())
    }

    /// Keeps what was said until its ticks are over, for the costliest series.
    fn keep(
        &mut self,
        view: &HistoryView,
        horizon: usize,
        horizons: [usize; CLASSES],
        mut series: Vec<(SeriesKey, f64, [Said; CLASSES])>,
    ) {
        let most = SCORED_MAX.min(PENDING_MAX / horizon).max(16);
        if series.len() > most {
            let load = |key: &SeriesKey, cost: f64| {
                view.get(key).map_or(0.0, |series| series.stats.calls_per_tick.mean * cost)
            };
            series.sort_by(|a, b| {
                (load(&b.0, b.1).total_cmp(&load(&a.0, a.1))).then_with(|| a.0.cmp(&b.0))
            });
            series.truncate(most);
        }
        self.pending.retain(|pending| pending.at != view.at);
        self.pending.push_back(Pending { at: view.at, horizons, series });
    }

    fn look_for_season(&mut self, view: &HistoryView, calls: &[Vec<f64>]) {
        let ticks = calls.iter().map(Vec::len).max().unwrap_or(0);
        let seen = self.learned.season_ticks_seen;
        let grown = (view.at.0 as usize).abs_diff(seen) > (ticks / 8).max(8);
        if self.config.season_ticks().is_some() || !grown {
            return;
        }
        self.learned.season_ticks_seen = view.at.0 as usize;
        let mut total = vec![0.0; ticks];
        for series in calls {
            total.iter_mut().rev().zip(series.iter().rev()).for_each(|(sum, calls)| *sum += calls);
        }
        let mut busiest: Vec<_> = calls.iter().collect();
        busiest.sort_by(|a, b| b.iter().sum::<f64>().total_cmp(&a.iter().sum::<f64>()));
        self.learned.season = find_season(&total)
            .or_else(|| busiest.into_iter().take(SEASON_SERIES).find_map(|one| find_season(one)));
    }
}

fn pasts(calls: Vec<Vec<f64>>) -> Vec<Past> {
    calls.into_iter().map(Past::new).collect()
}

fn all_series<'a>(view: &HistoryView, pasts: &'a [Past], seasons: &'a [usize]) -> Vec<Series<'a>> {
    let ids = view.series.iter().map(|series| series.key.id());
    ids.zip(pasts).map(|(id, past)| past.series(past.len(), id, seasons)).collect()
}

fn window<'a>(view: &HistoryView, series: &'a [Series<'a>]) -> Window<'a> {
    Window { at: view.at, tick_ms: view.tick_ms, epoch_ms: 0, series }
}

/// The scored horizon that is nearest to `ahead`.
fn class_of(ahead: usize, horizons: [usize; CLASSES]) -> usize {
    let near = horizons.iter().enumerate().min_by_key(|(_, scored)| scored.abs_diff(ahead));
    near.map_or(0, |(class, _)| class)
}

fn at_horizons(said: &[Said], horizons: [usize; CLASSES]) -> Option<[Said; CLASSES]> {
    let mut kept: [Said; CLASSES] = Default::default();
    for (kept, ahead) in kept.iter_mut().zip(horizons) {
        *kept = said.get(ahead - 1)?.clone();
    }
    Some(kept)
}

#[cfg(test)]
mod tests;
