//! Mixes the members by what they were worth so far.
//!
//! Each tick: [`observe`](Ensemble::observe) scores what was said about the tick that ended,
//! [`forecast`](Ensemble::forecast) asks every member again and mixes the answers. The [`Mixer`] does
//! that for series by number; the ensemble keeps their past and that of their sums, looks for seasons, and
//! says whether steps may be taken ahead: the mix is trusted while it loses less than repeating the last
//! tick would, each series weighing what its calls cost.

mod band;
mod gate;
mod hierarchy;
mod lesson;
mod mixer;
mod pasts;
mod proportions;
mod reports;
mod saved;
mod stack;
mod track;
mod turn;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use gate::Standing;
pub use lesson::{Learnt, Lesson};
pub use mixer::{Mixer, Outlook};
pub use reports::MemberStanding;
pub use turn::{invert, repeat_current};

use self::hierarchy::Hierarchy;
use self::pasts::Pasts;
use self::waiting::{ALL_MAX, Waiting};
use super::naive::Naive;
use super::period::find_periods;
use super::seasonal::{Profile, SeasonalNaive, Which};
use super::smoothing::Smoothing;
use super::sparse::Sparse;
use super::{
    Decomposed, Forecast, ForecastError, KernelMember, Member, NewTreesMember, Quantiles,
    RidgeMember, Series, SeriesForecast, TotalForecast, TreesMember, Window,
};
use crate::config::LoopConfig;
use crate::history::{HistoryView, Rolling, SeriesView};
use crate::ids::{SeriesKey, Tick};

/// Series that are scored each tick, the costliest first; the others go by what is true of all.
const SCORED_MAX: usize = 2_000;

/// Horizons that members are asked for one by one; between further ones it is interpolated.
const ASKED_EACH: usize = 16;

/// Horizons that are asked for of each series when there are more than [`SCORED_MAX`].
const ASKED_OF_MANY: usize = 3;

/// Scored ticks before the mix can be trusted.
const TRUST_TICKS_MIN: u64 = 8;

/// Ticks of scores after which one counts half for trust.
const TRUST_HALF_LIFE: f64 = 500.0;

/// Share of the load that must be forecast better than by plain repetition to be trusted.
const TRUST_OPEN: f64 = 0.5;

/// Share of the load that never changes from which on early losses are let pass. Of each series one horizon
/// in three is judged soon.
const STEADY_MIN: f64 = 0.25;

/// Loss, in calls of each series per tick, that is let pass: on an idle load every guess loses more than
/// none.
const TRUST_FLOOR: f64 = 0.01;

const DAY_MS: u64 = 86_400_000;

/// Seasons that a series may have.
const SEASONS_MAX: usize = 3;

/// Share of the past that must have come since the last fit of the members that learn at once.
const GROWN: f64 = 1.0 / 5.0;

/// Fewest ticks between two such fits.
const FIT_TICKS_MIN: u64 = 16;

/// The members of this crate: all that is known without a neural network.
#[must_use]
pub fn statistical_members() -> Vec<Box<dyn Member>> {
    vec![
        Box::new(Naive),
        Box::new(SeasonalNaive(Which::Shortest)),
        Box::new(SeasonalNaive(Which::Longest)),
        Box::new(Profile(Which::Shortest)),
        Box::new(Profile(Which::Longest)),
        Box::new(Smoothing::default()),
        Box::new(Decomposed::default()),
        Box::new(Sparse),
        Box::new(RidgeMember::default()),
        Box::new(KernelMember::default()),
        Box::new(TreesMember::default()),
        Box::new(NewTreesMember::default()),
    ]
}

/// Horizons that are learned for when forecasts reach `horizon` ticks ahead.
#[must_use]
pub fn learned_horizons(horizon: usize) -> Vec<usize> {
    let all = BTreeSet::from([1, horizon.div_ceil(2), horizon.max(1)]);
    all.into_iter().collect()
}

/// Several members, the weight of each, and the intervals learned from past misses.
pub struct Ensemble {
    config: LoopConfig,
    /// The configured season, if there is one.
    configured: Vec<usize>,
    mixer: Mixer,
    learned: Learned,
    /// Wall clock at the start of tick 0, in milliseconds since 1970; 0 if ticks do not go by the clock.
    epoch_ms: i64,
    pasts: Pasts,
    hierarchy: Hierarchy,
    waiting: Waiting,
    pending: VecDeque<Pending>,
}

/// What survives a restart, besides the state of the mixer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Learned {
    /// Cost-weighted loss per tick of what was published and of the naive member.
    loss: Rolling,
    loss_naive: Rolling,
    /// What one call of each series cost.
    cost: Rolling,
    /// Ticks after which the load repeats.
    seasons: Seasons,
    /// The last tick at which members learned at once.
    fitted: u64,
    /// Drifts that were noticed until then.
    drifts: u64,
}

/// Ticks after which the load repeats, strongest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Seasons {
    /// Of all series together.
    all: Vec<usize>,
    /// Of the busiest series, by their numbers.
    of: BTreeMap<u64, Vec<usize>>,
}

/// What was published for the next tick.
struct Pending {
    at: Tick,
    series: Vec<(SeriesKey, f64, Quantiles, f64)>,
}

impl fmt::Debug for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mixer.fmt(f)
    }
}

impl Ensemble {
    /// The statistical members of this crate, and `more` (for example an LSTM).
    #[must_use]
    pub fn new(config: &LoopConfig, more: Vec<Box<dyn Member>>) -> Self {
        let mut members = statistical_members();
        members.extend(more);
        let horizons = learned_horizons(config.horizon_ticks());
        Self {
            config: config.clone(),
            configured: Vec::from_iter(config.season_ticks()),
            mixer: Mixer::new(members, horizons.clone()),
            learned: Learned::default(),
            epoch_ms: 0,
            pasts: Pasts::default(),
            hierarchy: Hierarchy::new(horizons),
            waiting: Waiting::default(),
            pending: VecDeque::new(),
        }
    }

    /// Says when tick 0 began, in milliseconds since 1970 (UTC): members then know hours and weekdays.
    pub fn set_epoch_ms(&mut self, epoch_ms: i64) {
        self.epoch_ms = epoch_ms;
    }

    /// The season that forecasts go by: the configured one, or the strongest that was found.
    #[must_use]
    pub fn season_ticks(&self) -> Option<usize> {
        self.config.season_ticks().or(self.learned.seasons.all.first().copied())
    }

    /// Scores the forecasts whose ticks are over, which moves weights, intervals and trust.
    /// Call it once per closed tick, before [`forecast`](Self::forecast).
    pub fn observe(&mut self, view: &HistoryView) {
        self.pasts.take_in(view);
        let series = self.pasts.series(&self.configured, &self.learned.seasons);
        for heir in &view.heirs {
            self.mixer.inherit(heir.key.id(), heir.of.id());
        }
        self.mixer.observe(&window(view, self.epoch_ms, &series));
        self.hierarchy.keep(self.pasts.families());
        for family in self.pasts.families() {
            let log_at = |tick| self.pasts.sum_log(family.id, tick);
            self.hierarchy.observe(family.id, view.at.0, log_at);
            let parts = self.pasts.numbers(family);
            let calls = |series| self.pasts.last(series);
            self.hierarchy.observe_parts((family.id, view.at.0), &parts, calls);
        }
        while let Some(pending) = self.pending.front()
            && pending.at < view.at
        {
            let Some(pending) = self.pending.pop_front() else { break };
            let (mut loss, mut loss_naive, mut costs) = (0.0, 0.0, 0.0);
            for (key, cost, published, naive) in &pending.series {
                let Some(series) = view.get(key) else { continue };
                let actual = series.calls_at(pending.at.next());
                costs += cost;
                loss += cost * published.pinball(actual);
                loss_naive += cost * Quantiles::exactly(*naive).pinball(actual);
            }
            self.learned.loss.add(loss, TRUST_HALF_LIFE);
            self.learned.loss_naive.add(loss_naive, TRUST_HALF_LIFE);
            self.learned.cost.add(costs, TRUST_HALF_LIFE);
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
        self.pasts.take_in(view);
        let horizon = horizon.max(1);
        let asked = asked(horizon, view.series.len());
        let scored = costliest(view, SCORED_MAX);
        let due = self.waiting.due(view, &scored);
        let all = self.pasts.series(&self.configured, &self.learned.seasons);
        let (parts, sums) = all.split_at(view.series.len());
        let series: Vec<Series<'_>> =
            due.iter().map(|place| parts[*place]).chain(sums.iter().copied()).collect();
        let window = window(view, self.epoch_ms, &series);
        let kept = |asked: usize| due.get(asked).is_none_or(|place| scored.contains(place));
        let outlooks = self.mixer.forecast(&window, &asked, kept)?;
        if 2 * self.mixer.begun as usize > due.len() {
            // What the mix was worth without a season says little from now on.
            (self.learned.loss, self.learned.loss_naive) = Default::default();
        }
        let current_ticks = self.config.monitor().current_ticks();
        let known =
            |series: &SeriesView| self.waiting.calls(series, (view.at, current_ticks), horizon);
        let mut expected: Vec<Expected> = Vec::with_capacity(view.series.len());
        let mut answers = due.iter().zip(&outlooks).peekable();
        for (place, series) in view.series.iter().enumerate() {
            let answer = answers.next_if(|(due, _)| **due == place);
            expected.push(
                match answer.and_then(|(_, outlooks)| Some((outlooks, outlooks.first()?))) {
                    Some((outlooks, first)) => Expected {
                        calls: interpolated(&asked, outlooks, horizon),
                        standing: first.standing,
                        weights: Some(&first.weights),
                    },
                    None => {
                        let (calls, standing) = known(series);
                        Expected { calls, standing, weights: None }
                    }
                },
            );
        }
        let mut calls: Vec<Vec<Quantiles>> =
            expected.iter_mut().map(|expected| std::mem::take(&mut expected.calls)).collect();
        let of_sums = &outlooks[due.len()..];
        let totals =
            agreed(&mut self.hierarchy, (&self.pasts, of_sums), view.at, &mut calls, |outlooks| {
                interpolated(&asked, outlooks, horizon)
            });
        let names: Vec<String> =
            self.mixer.members().map(|member| member.name().to_owned()).collect();
        let season = self.season_ticks();
        let mut pending = Vec::new();
        let mut forecasts = Vec::with_capacity(view.series.len());
        for (place, ((series, expected), calls)) in
            view.series.iter().zip(&expected).zip(calls).enumerate()
        {
            let is_scored = scored.contains(&place);
            if let Some(next) = calls.first().filter(|_| is_scored) {
                let cost = series.stats.ns_per_call.mean.max(1.0);
                let last = self.pasts.last(series.key.id());
                pending.push((series.key.clone(), cost, *next, last));
            }
            if !is_scored && expected.weights.is_some() && view.series.len() > ALL_MAX {
                let (id, calls) = (series.key.id(), calls.clone());
                self.waiting.keep(id, view.at, calls, expected.standing);
            }
            let weights = expected.weights.filter(|_| is_scored).into_iter().flatten();
            let weights = names.iter().cloned().zip(weights.copied()).collect();
            let described = turn::describe(view, series, &self.config, season, calls, weights);
            forecasts.push(SeriesForecast { standing: expected.standing, ..described });
        }
        self.waiting.forget(view);
        self.pending.retain(|pending| pending.at != view.at);
        self.pending.push_back(Pending { at: view.at, series: pending });
        Ok(Forecast {
            at: view.at,
            tick_ms: view.tick_ms,
            series: forecasts,
            totals,
            joined: view.joined.clone(),
            trusted: self.is_trusted(view),
            skill: self.skill(),
            season_ticks: season,
        })
    }

    /// Share of the naive member's loss that the mix avoided; negative if it lost more.
    #[must_use]
    pub fn skill(&self) -> f64 {
        let Learned { loss, loss_naive, .. } = &self.learned;
        if loss_naive.mean <= f64::EPSILON { 0.0 } else { 1.0 - loss.mean / loss_naive.mean }
    }

    fn is_trusted(&self, view: &HistoryView) -> bool {
        let Learned { loss, loss_naive, cost, .. } = &self.learned;
        let most = loss_naive.mean + TRUST_FLOOR * cost.mean;
        if loss.count < TRUST_TICKS_MIN {
            return false;
        }
        let cost = |series: &SeriesView| {
            series.stats.calls_per_tick.mean * series.stats.ns_per_call.mean.max(1.0)
        };
        let costs: BTreeMap<u64, f64> =
            view.series.iter().map(|series| (series.key.id(), cost(series))).collect();
        let load = |id: u64| costs.get(&id).copied().unwrap_or(0.0);
        // What was lost before it was known that nothing changes says nothing of a load that never does.
        let is_steady = |standing: &Standing| *standing == Standing::Steady;
        let is_open = |standing: &Standing| standing.is_proven() || *standing == Standing::New;
        let is_known = loss.mean <= most || self.mixer.share(load, is_steady) >= STEADY_MIN;
        is_known && self.mixer.share(load, is_open) >= TRUST_OPEN
    }

    /// Takes in the whole past again at the next call: it is another one than it was.
    pub fn look_again(&mut self) {
        self.pasts.clear();
    }

    /// Takes note that the past is another one than it was, and may be longer: it is taken in again, all
    /// members learn from it at the next [`fit`](Self::fit), and what was said of ticks to come, which may
    /// have other numbers now, is not judged.
    pub fn past_changed(&mut self) {
        self.look_again();
        self.learned.fitted = 0;
        self.pending.clear();
        self.mixer.forget_said();
        self.hierarchy.forget_said();
        self.waiting = Waiting::default();
    }
}

/// What is expected of one series.
struct Expected<'a> {
    calls: Vec<Quantiles>,
    standing: Standing,
    /// None if it was not forecast now.
    weights: Option<&'a Vec<f64>>,
}

/// The forecasts of all sums, after they and those of their parts in `calls` were made to agree.
fn agreed(
    hierarchy: &mut Hierarchy,
    (pasts, outlooks): (&Pasts, &[Vec<Outlook>]),
    at: Tick,
    calls: &mut [Vec<Quantiles>],
    ticks: impl Fn(&[Outlook]) -> Vec<Quantiles>,
) -> Vec<TotalForecast> {
    let mut totals = Vec::with_capacity(outlooks.len());
    for (family, outlooks) in pasts.families().iter().zip(outlooks) {
        let mut sum = ticks(outlooks);
        let aheads: Vec<usize> = (1..=sum.len()).collect();
        let mut parts: Vec<&mut [Quantiles]> = Vec::with_capacity(family.parts.len());
        let mut rest = &mut *calls;
        let mut passed = 0;
        for place in &family.parts {
            let (part, later) = rest[place - passed..].split_at_mut(1);
            parts.push(&mut part[0]);
            (rest, passed) = (later, place + 1);
        }
        let series = pasts.numbers(family);
        hierarchy.agree((family.id, at.0), &aheads, &mut sum, (&series, &mut parts));
        totals.push(TotalForecast {
            function: family.function.clone(),
            table: family.table.clone(),
            calls: sum,
            standing: outlooks.first().map(|outlook| outlook.standing).unwrap_or_default(),
        });
    }
    totals.sort_by(|a, b| (&a.function, &a.table).cmp(&(&b.function, &b.table)));
    totals
}

/// The seasons of a series of logarithms, strongest first; one that is about a day or a week is one.
#[must_use]
pub fn seasons(logs: &[f64], tick_ms: u64) -> Vec<usize> {
    let calendar = [DAY_MS, 7 * DAY_MS].map(|ms| (ms / tick_ms.max(1)) as usize);
    let mut all = Vec::new();
    for period in find_periods(logs, SEASONS_MAX) {
        let near = |known: &usize| period.ticks.abs_diff(*known) * 100 <= *known;
        let ticks = calendar.into_iter().find(near).unwrap_or(period.ticks);
        if !all.contains(&ticks) {
            all.push(ticks);
        }
    }
    all
}

fn window<'a>(view: &HistoryView, epoch_ms: i64, series: &'a [Series<'a>]) -> Window<'a> {
    Window { at: view.at, tick_ms: view.tick_ms, epoch_ms, series }
}

/// Places of the series whose calls cost most.
fn costliest(view: &HistoryView, most: usize) -> BTreeSet<usize> {
    let mut places: Vec<usize> = (0..view.series.len()).collect();
    if places.len() > most {
        let load = |place: &usize| {
            let stats = &view.series[*place].stats;
            stats.calls_per_tick.mean * stats.ns_per_call.mean.max(1.0)
        };
        places.sort_by(|a, b| load(b).total_cmp(&load(a)).then(a.cmp(b)));
        places.truncate(most);
    }
    places.into_iter().collect()
}

/// Horizons that members are asked for: all, or the learned ones and some between them.
fn asked(horizon: usize, series: usize) -> Vec<usize> {
    let each = if series > SCORED_MAX { 0 } else { ASKED_EACH.min(horizon) };
    let mut all: BTreeSet<usize> = (1..=each).chain(learned_horizons(horizon)).collect();
    let more = if series > SCORED_MAX { ASKED_OF_MANY } else { ASKED_EACH };
    all.extend((1..=more).map(|part| (horizon * part / more).max(1)));
    all.into_iter().collect()
}

/// What is expected of every tick up to `horizon`, from the outlooks for the ticks ahead that were asked for
/// (ascending, at least one): between two of them logarithms go straight.
#[must_use]
pub fn interpolated(asked: &[usize], outlooks: &[Outlook], horizon: usize) -> Vec<Quantiles> {
    let mut calls = Vec::with_capacity(horizon);
    for ahead in 1..=horizon {
        let after = asked.partition_point(|other| *other < ahead).min(asked.len() - 1);
        let before = if asked[after] == ahead { after } else { after.saturating_sub(1) };
        let (from, to) = (asked[before] as f64, asked[after] as f64);
        let share = if to > from { (ahead as f64 - from) / (to - from) } else { 0.0 };
        let (a, b) = (&outlooks[before].quantiles, &outlooks[after].quantiles);
        let mix = |a: f64, b: f64| ((1.0 - share) * a.ln_1p() + share * b.ln_1p()).exp_m1();
        let one =
            Quantiles { q10: mix(a.q10, b.q10), q50: mix(a.q50, b.q50), q90: mix(a.q90, b.q90) };
        calls.push(if before == after { *a } else { one.tidy() });
    }
    calls
}

#[cfg(test)]
mod tests;
