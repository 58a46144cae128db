//! Which functions will be called on which partitions in the coming ticks.
//!
//! A [`Member`] is one way to forecast; all of them see the same [`Window`] and answer with
//! [`Quantiles`]. The ensemble weighs them by what they were worth so far.

pub mod announced;
mod boosting;
mod concurrency;
mod decomposed;
mod direct;
pub mod drift;
mod effort;
pub mod ensemble;
mod features;
pub mod function;
mod kernel;
mod moments;
pub mod naive;
pub mod period;
mod ridge;
pub mod seasonal;
pub mod smoothing;
pub mod sparse;
pub mod trees;
mod trust;
mod window;

pub use boosting::{NewTreesMember, TreesMember};
use std::sync::Arc;

pub use concurrency::concurrency;
pub use decomposed::Decomposed;
pub use effort::Effort;
pub use kernel::KernelMember;
pub use moments::Moments;
pub use ridge::RidgeMember;
use serde::{Deserialize, Serialize};
pub use trust::reason;
pub use window::{Past, Series, Window};

use crate::history::{HistoryView, Joined};
use crate::ids::{SeriesKey, Tick};

/// Distribution of the calls in one coming tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// One in ten ticks has fewer calls.
    pub q10: f64,
    /// Half of the ticks have fewer calls.
    pub q50: f64,
    /// Nine in ten ticks have fewer calls.
    pub q90: f64,
}

impl Quantiles {
    /// All three at `calls`.
    #[must_use]
    pub fn exactly(calls: f64) -> Self {
        Self { q10: calls, q50: calls, q90: calls }
    }

    /// The same with `factor` times as many calls.
    #[must_use]
    pub fn times(&self, factor: f64) -> Self {
        Self { q10: self.q10 * factor, q50: self.q50 * factor, q90: self.q90 * factor }
    }

    /// The mean of a distribution with these quantiles, by Swanson's rule.
    #[must_use]
    pub fn mean(&self) -> f64 {
        0.3 * self.q10 + 0.4 * self.q50 + 0.3 * self.q90
    }

    /// Mean pinball loss of the three quantiles against what happened.
    #[must_use]
    pub fn pinball(&self, actual: f64) -> f64 {
        let loss = |level: f64, quantile: f64| {
            let miss = actual - quantile;
            (level * miss).max((level - 1.0) * miss)
        };
        (loss(0.1, self.q10) + loss(0.5, self.q50) + loss(0.9, self.q90)) / 3.0
    }

    /// Whether `actual` lies between the 10 % and the 90 % quantile; counts may touch them.
    #[must_use]
    pub fn holds(&self, actual: f64) -> bool {
        (self.q10 - 1e-9..=self.q90 + 1e-9).contains(&actual)
    }

    /// The same, made finite, not negative and in order.
    #[must_use]
    pub fn tidy(self) -> Self {
        let clean = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
        let mut all = [clean(self.q10), clean(self.q50), clean(self.q90)];
        all.sort_by(f64::total_cmp);
        Self { q10: all[0], q50: all[1], q90: all[2] }
    }
}

/// What is expected of one series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeriesForecast {
    /// The function expression and partition.
    pub key: SeriesKey,
    /// Calls per tick, nearest tick first.
    pub calls: Vec<Quantiles>,
    /// Nanoseconds that one call costs without stored outputs (mean of what was measured).
    pub ns_per_call: f64,
    /// Nanoseconds that one row costs without stored outputs.
    pub ns_per_row: f64,
    /// Bytes of the output of one row.
    pub bytes_per_row: f64,
    /// Weight of each member, by name; they sum to one.
    pub weights: Vec<(String, f64)>,
    /// Mean calls per tick over the last few known ticks: what reactive rules go by.
    pub calls_now: f64,
    /// Calls expected within one season, or within the known past if there is no season.
    pub calls_season: f64,
    /// How forecasts of the next tick have stood so far.
    #[serde(default)]
    pub standing: ensemble::Standing,
    /// Whether somebody announced what is to come in one of the ticks; the announced factor is in
    /// [`calls`](Self::calls).
    #[serde(default)]
    pub announced: bool,
}

impl SeriesForecast {
    /// Calls expected within the nearest `ticks` ticks.
    #[must_use]
    pub fn expected_calls(&self, ticks: usize) -> f64 {
        self.calls.iter().take(ticks).map(Quantiles::mean).sum()
    }

    /// The first tick, counted from one, by whose end half a call is expected.
    #[must_use]
    pub fn needed_in(&self) -> Option<usize> {
        let mut calls = 0.0;
        let position = self.calls.iter().position(|tick| {
            calls += tick.mean();
            calls >= 0.5
        })?;
        Some(position + 1)
    }
}

/// What is expected of a function on all partitions of a table together. The means of its series add up to
/// those of the total, unless they are called so seldom that their quantiles do not tell their means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TotalForecast {
    /// Name of the function.
    pub function: Arc<str>,
    /// The table.
    pub table: Arc<str>,
    /// Calls per tick, nearest tick first.
    pub calls: Vec<Quantiles>,
    /// How forecasts of the total of the next tick have stood so far.
    pub standing: ensemble::Standing,
}

/// What the predictor expects, made at the end of tick `at`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// The last tick whose calls were known.
    pub at: Tick,
    /// Length of a tick in milliseconds.
    pub tick_ms: u64,
    /// Every series that was forecast, sorted by key.
    pub series: Vec<SeriesForecast>,
    /// Functions on tables with more than one series, the costliest of them, sorted by function and table.
    #[serde(default)]
    pub totals: Vec<TotalForecast>,
    /// Partitions that queries join by their keys, as in the last ticks; sorted.
    #[serde(default)]
    pub joined: Vec<Joined>,
    /// Whether steps may be taken ahead by it: so far it was not worse than repeating the last
    /// tick. If not, reactive rules act alone.
    pub trusted: bool,
    /// Share of the naive forecast's loss that was avoided so far; zero as long as nothing is
    /// known.
    pub skill: f64,
    /// Ticks after which the load repeats, if a period was found or configured.
    pub season_ticks: Option<usize>,
}

impl Forecast {
    /// Whether steps may be taken ahead by what is expected of `series`: it is proven, or somebody who
    /// knows announced it.
    #[must_use]
    pub fn may_act_on(&self, series: &SeriesForecast) -> bool {
        self.trusted || series.announced
    }

    /// What is expected of a function on a table as a whole, if that was forecast by itself.
    #[must_use]
    pub fn total(&self, function: &str, table: &str) -> Option<&TotalForecast> {
        let by = |total: &TotalForecast| (&*total.function, &*total.table).cmp(&(function, table));
        self.totals.binary_search_by(by).ok().map(|i| &self.totals[i])
    }

    /// The same, seen from the end of a later tick: what was expected of the ticks since is over, and what is
    /// called now is as `view` has it. `None` if that is no later tick, or nothing of it is still to come.
    ///
    /// * `current_ticks`: the last ticks whose mean counts as now.
    #[must_use]
    pub fn carried_to(&self, view: &HistoryView, current_ticks: usize) -> Option<Self> {
        let passed = usize::try_from(view.at.0.checked_sub(self.at.0)?).ok()?;
        let longest = self.series.iter().map(|series| series.calls.len()).max()?;
        if passed == 0 || passed >= longest {
            return None;
        }
        let to_come = |calls: &[Quantiles]| calls.get(passed..).unwrap_or_default().to_vec();
        let series = self.series.iter().map(|series| SeriesForecast {
            key: series.key.clone(),
            calls: to_come(&series.calls),
            calls_now: view
                .get(&series.key)
                .map_or(0.0, |seen| seen.calls_now(view.at, current_ticks)),
            // Nobody plans by them, and there may be very many series.
            weights: Vec::new(),
            ..*series
        });
        let totals = self.totals.iter();
        let totals =
            totals.map(|total| TotalForecast { calls: to_come(&total.calls), ..total.clone() });
        Some(Self {
            at: view.at,
            series: series.collect(),
            totals: totals.collect(),
            joined: view.joined.clone(),
            ..self.clone()
        })
    }

    /// The forecast of one series.
    #[must_use]
    pub fn get(&self, key: &SeriesKey) -> Option<&SeriesForecast> {
        self.series.binary_search_by(|series| series.key.cmp(key)).ok().map(|i| &self.series[i])
    }
}

/// What a fit did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FitReport {
    /// Training steps that were made; zero for members that need none.
    pub steps: u32,
    /// Loss before the first and after the last step, in the member's own unit.
    pub loss_first: f64,
    /// See [`loss_first`](Self::loss_first).
    pub loss_last: f64,
}

/// What a member says of itself, for `system.members`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemberReport {
    /// Training steps that its present state is made of, also those before a restart.
    pub steps: u64,
    /// Ticks of history that it learned from, if it keeps count.
    pub ticks: Option<u64>,
    /// The newest tick that it learned from or was checked by.
    pub at: Option<Tick>,
    /// Since when it does not learn, because learning made it worse.
    pub frozen_since: Option<Tick>,
}

/// A member cannot do what was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ForecastError {
    /// A stored state is not one of this member's.
    #[error("state of member {member} is unusable: {reason}")]
    State {
        /// The member.
        member: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The numeric library failed.
    #[error("member {member} failed: {reason}")]
    Numeric {
        /// The member.
        member: &'static str,
        /// What it said.
        reason: String,
    },
    /// A setting is out of bounds.
    #[error("{name} is {value}; it must be {bound}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// The value given.
        value: f64,
        /// What it must be.
        bound: &'static str,
    },
}

impl ForecastError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::State { .. } => "FS-FORECAST-1",
            Self::Numeric { .. } => "FS-FORECAST-2",
            Self::Setting { .. } => "FS-FORECAST-3",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// One way to forecast all series.
///
/// Members work on logarithms of calls (see [`Series::logs`]) and answer in calls. They must give the
/// same answers for the same calls of `fit` and `forecast`, and must never keep a tick that is later
/// than the window they were shown.
pub trait Member: Send {
    /// Short name, as it stands in `system.forecasts`.
    fn name(&self) -> &'static str;

    /// Whether [`fit`](Self::fit) goes on where it stopped, a few training steps at a time. Such a
    /// member learns at every tick, the others anew when the past has grown.
    fn learns_in_steps(&self) -> bool {
        false
    }

    /// Learns from `window`, for forecasts `horizons` ticks ahead (ascending, each at least one),
    /// with no more than `effort`, which pauses between pieces of the work. Called now and then, not each
    /// tick; members that need no training steps may learn even if there are to be none.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if training fails; the member then keeps its former state.
    fn fit(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
        effort: Effort<'_>,
    ) -> Result<FitReport, ForecastError>;

    /// Expected calls of each series of `window`: outer by series, inner one for each of `horizons`
    /// (ticks ahead, ascending, each at least one; mostly those of the last fit). The inner list is
    /// empty for a series that the member has nothing of its own to say about: too short, too
    /// seldom called, not among the costliest, not fitted yet.
    ///
    /// Called once per tick with growing windows, so state may be carried from tick to tick by
    /// [`Series::id`]; a window may also be shown again, or ticks may be left out.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if the numeric library fails.
    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError>;

    /// What there is to say of what it learned.
    fn report(&self) -> MemberReport {
        MemberReport::default()
    }

    /// One that knows the same and shares nothing that changes: it learns beside this one.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if the numeric library fails.
    fn copy(&self) -> Result<Box<dyn Member>, ForecastError>;

    /// What must be kept to forecast the same after a restart.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if the state cannot be written.
    fn save(&self) -> Result<Vec<u8>, ForecastError>;

    /// Takes up a state that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`ForecastError::State`] if it is not one.
    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallRecord;
    use crate::config::LoopConfig;
    use crate::history::History;
    use crate::ids::{ExpressionId, NodeId, PartitionId};

    #[test]
    fn a_forecast_is_carried_on_until_all_that_it_says_is_over() {
        let partition = PartitionId::new("events", 0);
        let key = SeriesKey { function: "score".into(), expression: ExpressionId(1), partition };
        let config = LoopConfig::default();
        let mut history = History::new(&config);
        let mut views = Vec::new();
        for calls in [1, 1, 6, 6, 6, 6] {
            (0..calls).for_each(|call| {
                history.record(&CallRecord::empty(key.clone(), call, NodeId(0), None));
            });
            history.close_tick();
            views.push(history.view());
        }
        let series = SeriesForecast {
            key,
            calls: [5.0, 6.0, 7.0].map(Quantiles::exactly).to_vec(),
            ns_per_call: 1e6,
            ns_per_row: 1e3,
            bytes_per_row: 8.0,
            weights: vec![("naive".to_owned(), 1.0)],
            calls_now: 1.0,
            calls_season: 9.0,
            standing: ensemble::Standing::New,
            announced: true,
        };
        let total = TotalForecast {
            function: "score".into(),
            table: "events".into(),
            calls: series.calls.clone(),
            standing: ensemble::Standing::New,
        };
        let (at, trusted) = (views[1].at, true);
        let made = Forecast {
            at,
            trusted,
            series: vec![series],
            totals: vec![total],
            ..Default::default()
        };
        assert_eq!(made.carried_to(&views[0], 3), None);
        assert_eq!(made.carried_to(&views[1], 3), None, "it is of that tick");
        let carried = made.carried_to(&views[3], 2).unwrap();
        assert_eq!((carried.at, carried.trusted), (views[3].at, true));
        let left = [Quantiles::exactly(7.0)];
        assert_eq!((&*carried.series[0].calls, &*carried.totals[0].calls), (&left[..], &left[..]));
        assert_eq!((carried.series[0].calls_now, carried.series[0].announced), (6.0, true));
        assert_eq!(made.carried_to(&views[4], 3), None, "nothing is left of it");
    }
}
