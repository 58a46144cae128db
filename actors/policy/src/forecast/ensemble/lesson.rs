//! Members learn beside the ensemble, which goes on forecasting with what they knew before.
//!
//! ```text
//! ensemble --lesson()--> copies of members, and the past --learn()--> ensemble.take_up()
//! ```
//!
//! Where queries leave learning little time it takes many ticks, and planners must not be without a forecast for
//! so long.

use std::fmt;

use super::pasts::Pasts;
use super::{Ensemble, FIT_TICKS_MIN, GROWN, Seasons};
use crate::forecast::{Effort, FitReport, ForecastError, Member, Window};
use crate::history::HistoryView;
use crate::ids::Tick;

/// What came of a lesson: the members by name, each with what it did.
pub type Learnt = Vec<(&'static str, Result<FitReport, ForecastError>)>;

/// Copies of members and what they learn from.
pub struct Lesson {
    pasts: Pasts,
    at: Tick,
    tick_ms: u64,
    epoch_ms: i64,
    configured: Vec<usize>,
    seasons: Seasons,
    horizons: Vec<usize>,
    /// Whether seasons are looked for.
    finds_seasons: bool,
    /// By their place in the ensemble.
    members: Vec<(usize, Box<dyn Member>)>,
    /// Those that could not be copied, or did not learn.
    failed: Learnt,
}

impl fmt::Debug for Lesson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.members.iter().map(|(_, member)| member.name());
        f.debug_list().entries(members).finish()
    }
}

impl Lesson {
    /// Lets each of the members learn with no more than `effort`, and answers what they did.
    pub fn learn(&mut self, effort: Effort<'_>) -> Learnt {
        if self.finds_seasons {
            self.seasons = self.pasts.seasons(self.tick_ms, effort);
        }
        let series = self.pasts.series(&self.configured, &self.seasons);
        let Self { at, tick_ms, epoch_ms, .. } = *self;
        let window = Window { at, tick_ms, epoch_ms, series: &series };
        let mut learnt = std::mem::take(&mut self.failed);
        self.members.retain_mut(|(_, member)| {
            let report = member.fit(&window, &self.horizons, effort);
            let has_learned = report.is_ok();
            learnt.push((member.name(), report));
            has_learned
        });
        learnt
    }
}

impl Ensemble {
    /// What the members that learn in steps have to learn from `view`, and all others too if the past has
    /// grown or drifted; seasons are looked for then as well.
    ///
    /// Copies the members, and shares the past.
    pub fn lesson(&mut self, view: &HistoryView) -> Lesson {
        self.pasts.take_in(view);
        let ticks = self.pasts.longest();
        let since = view.at.0.abs_diff(self.learned.fitted);
        let drifts = self.mixer.known.values().map(|known| known.drifts).sum::<u64>();
        let grown = since as f64 > (GROWN * ticks as f64).max(FIT_TICKS_MIN as f64);
        let drifted = drifts > self.learned.drifts && since > FIT_TICKS_MIN;
        let all = grown || drifted || self.learned.fitted == 0;
        if all {
            (self.learned.fitted, self.learned.drifts) = (view.at.0, drifts);
        }
        let (mut members, mut failed) = (Vec::new(), Vec::new());
        for (place, member) in self.mixer.members().enumerate() {
            if !all && !member.learns_in_steps() {
                continue;
            }
            match member.copy() {
                Ok(copy) => members.push((place, copy)),
                Err(error) => failed.push((member.name(), Err(error))),
            }
        }
        Lesson {
            pasts: self.pasts.clone(),
            at: view.at,
            tick_ms: view.tick_ms,
            epoch_ms: self.epoch_ms,
            configured: self.configured.clone(),
            seasons: self.learned.seasons.clone(),
            horizons: self.mixer.horizons().to_vec(),
            finds_seasons: all && self.config.season_ticks().is_none(),
            members,
            failed,
        }
    }

    /// Forecasts with what was learned from here on. A member that failed keeps its former state.
    pub fn take_up(&mut self, lesson: Lesson) {
        if lesson.finds_seasons {
            self.learned.seasons = lesson.seasons;
        }
        for (place, member) in lesson.members {
            self.mixer.replace(place, member);
        }
    }

    /// A lesson at once: see [`lesson`](Self::lesson).
    pub fn fit(&mut self, view: &HistoryView, effort: Effort<'_>) -> Learnt {
        let mut lesson = self.lesson(view);
        let learnt = lesson.learn(effort);
        self.take_up(lesson);
        learnt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallRecord;
    use crate::config::LoopConfig;
    use crate::history::History;
    use crate::ids::{ExpressionId, NodeId, PartitionId, SeriesKey};

    /// Closes ticks of a load that repeats after 24 of them, and forecasts after each.
    fn turn(ensemble: &mut Ensemble, history: &mut History, ticks: usize) {
        let partition = PartitionId::new("events", 0);
        let key = SeriesKey { function: "score".into(), expression: ExpressionId(1), partition };
        for _ in 0..ticks {
            let calls = if history.view().at.0 % 24 < 12 { 2 } else { 9 };
            for _ in 0..calls {
                history.record(&CallRecord::empty(key.clone(), 1, NodeId(0), None));
            }
            history.close_tick();
            ensemble.observe(&history.view());
            ensemble.forecast(&history.view(), 12).unwrap();
        }
    }

    #[test]
    fn forecasts_go_on_beside_a_lesson_and_know_what_was_learned_once_it_is_taken_up() {
        let config = LoopConfig::default().with_season_ticks(Some(24)).unwrap();
        let new = || (Ensemble::new(&config, Vec::new()), History::new(&config));
        let (mut at_once, mut history) = new();
        turn(&mut at_once, &mut history, 200);
        at_once.fit(&history.view(), Effort::steps(1));
        let (mut beside, mut history_beside) = new();
        turn(&mut beside, &mut history_beside, 200);
        let mut lesson = beside.lesson(&history_beside.view());
        for (ensemble, history) in
            [(&mut at_once, &mut history), (&mut beside, &mut history_beside)]
        {
            turn(ensemble, history, 3);
        }
        let states = |ensemble: &Ensemble| -> Vec<Vec<u8>> {
            ensemble
                .mixer
                .members()
                .filter(|member| member.name() != "holt_winters")
                .map(|member| member.save().unwrap())
                .collect()
        };
        assert!(states(&at_once) != states(&beside), "nothing is learned yet");
        for (name, report) in lesson.learn(Effort::steps(1)) {
            report.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        beside.take_up(lesson);
        assert!(states(&at_once) == states(&beside), "the past as it was when the lesson began");
    }
}
