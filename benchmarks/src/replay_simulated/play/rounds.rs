//! Rounds of the loop: one forecast at a time, a plan, and learning that waits for queries.

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

/// A round of the loop: forecast, plan, learn.
pub(super) struct Round {
    seen: HistoryView,
    told: Arc<Forecast>,
    /// Pieces of learning that are left.
    learn_ns: VecDeque<f64>,
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
        self.round = Some(Round { seen, told, learn_ns: VecDeque::new(), courtesy: None });
        self.cores.start(Pool::Rounds, self.costs.forecast_ns, Then::Forecast);
        Ok(())
    }

    /// There is a forecast: the manager plans, and the predictor learns.
    pub(super) fn on_forecast(&mut self) -> Result<()> {
        let view = self.view();
        let Some(round) = &mut self.round else { return Ok(()) };
        let steps = self.the_loop.plan(&round.told, &view);
        let is_new = self.the_loop.learn(&round.seen)?;
        round.learn_ns = match is_new {
            true => self.costs.learn_ns.iter().copied().collect(),
            false => [self.costs.learn_little_ns].into(),
        };
        self.carry_out(steps);
        self.learn_on()
    }

    /// Learns a piece, waits for queries, or ends the round.
    pub(super) fn learn_on(&mut self) -> Result<()> {
        let traffic = self.traffic;
        let now = Duration::from_nanos(self.cores.now_ns());
        let share = self.the_loop.config.lstm().busy_share();
        let Some(round) = &mut self.round else { return Ok(()) };
        if let Some(piece_ns) = round.learn_ns.front().copied() {
            if let Some(courtesy) = &mut round.courtesy
                && let Some(wait) = courtesy.wait(now, traffic)
            {
                let at = now + wait.max(Duration::from_nanos(1));
                self.put(at.as_nanos() as u64, Due::Look);
                return Ok(());
            }
            // Between two pieces, not before the first one.
            round.courtesy.get_or_insert_with(|| Courtesy::new(share, now, traffic));
            round.learn_ns.pop_front();
            self.cores.start(Pool::Learning, piece_ns, Then::Learned);
            return Ok(());
        }
        let ended = round.seen.at;
        self.first.get_or_init(|| ended.0);
        self.round = None;
        match self.next_round.take() {
            Some(next) => self.begin_round(next),
            None => Ok(()),
        }
    }
}
