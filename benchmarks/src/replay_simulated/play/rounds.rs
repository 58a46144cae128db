//! Rounds of the loop: one forecast at a time, and a plan; beside them one lesson at a time, which waits for
//! queries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use foreshard_policy::courtesy::Courtesy;
use foreshard_policy::forecast::Forecast;
use foreshard_policy::forecast::ensemble::invert;
use foreshard_policy::history::HistoryView;

use super::{Due, Theatre, Then};
use crate::replay::arm::Arm;
use crate::replay_simulated::cores::Pool;

/// A round of the loop: forecast and plan.
pub(super) struct Round {
    seen: HistoryView,
    told: Arc<Forecast>,
}

/// A lesson that is under way. What it teaches is known from its beginning, which is a little too early.
pub(super) struct Learning {
    /// Pieces of it that are left.
    pieces_ns: VecDeque<f64>,
    courtesy: Option<Courtesy>,
}

impl Theatre<'_> {
    pub(super) fn begin_round(&mut self, seen: HistoryView) -> Result<()> {
        let forecast = self.the_loop.forecast(&seen)?;
        let told = match (self.arm, &self.outlook) {
            (Arm::Eager, _) => self.lately.told_of(&forecast, &seen, &self.view().outputs),
            (_, Some(outlook)) => outlook.told(&forecast, &seen),
            (Arm::Inverted, None) => Arc::new(invert(&forecast)),
            _ => Arc::clone(&forecast),
        };
        self.trusted = forecast.trusted;
        self.round = Some(Round { seen, told });
        self.cores.start(Pool::Rounds, self.costs.forecast_ns, Then::Forecast);
        Ok(())
    }

    /// There is a forecast: the manager plans, and the predictor learns unless it does already.
    pub(super) fn on_forecast(&mut self) -> Result<()> {
        let view = self.view();
        let Some(round) = self.round.take() else { return Ok(()) };
        let steps = self.the_loop.plan(&round.told, &view);
        self.carry_out(steps);
        if self.learning.is_none() {
            let pieces_ns = match self.the_loop.learn(&round.seen)? {
                true => self.costs.learn_ns.iter().copied().collect(),
                false => [self.costs.learn_little_ns].into(),
            };
            self.learning = Some(Learning { pieces_ns, courtesy: None });
            self.learn_on();
        }
        match self.next_round.take() {
            Some(next) => self.begin_round(next),
            None => Ok(()),
        }
    }

    /// Learns a piece, waits for queries, or ends the lesson.
    pub(super) fn learn_on(&mut self) {
        let traffic = self.traffic;
        let now = Duration::from_nanos(self.cores.now_ns());
        let share = self.the_loop.config.lstm().busy_share();
        let Some(learning) = &mut self.learning else { return };
        if let Some(piece_ns) = learning.pieces_ns.front().copied() {
            if let Some(courtesy) = &mut learning.courtesy
                && let Some(wait) = courtesy.wait(now, traffic)
            {
                let at = now + wait.max(Duration::from_nanos(1));
                self.put(at.as_nanos() as u64, Due::Look);
                return;
            }
            // Between two pieces, not before the first one.
            learning.courtesy.get_or_insert_with(|| Courtesy::new(share, now, traffic));
            learning.pieces_ns.pop_front();
            self.cores.start(Pool::Learning, piece_ns, Then::Learned);
            return;
        }
        self.learning = None;
    }
}
