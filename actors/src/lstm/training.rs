//! Learning in small steps: keeps the best weights, goes back to them, rests, and starts afresh.

use candle_core::Result;
use foreshard_policy::forecast::{Effort, FitReport};
use foreshard_policy::ids::Tick;
use serde::{Deserialize, Serialize};

use super::LstmConfig;
use super::lessons::Lessons;
use super::linear;
use super::net::Net;
use super::optimizer::Optimizer;

/// Steps between two checks.
const CHECK_STEPS: u64 = 20;

/// Checks in a row without a better average after which learning goes back and rests.
const PATIENCE: u32 = 8;

/// Learning rests, and linear parts stay, until the past has grown by one in so many ticks.
const REST_SHARE: u64 = 16;

/// Losses that the report averages over at both ends of a fit, because one batch is noisy.
const LOSS_SPAN: usize = 8;

/// How learning stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Training steps made so far.
    pub steps: u64,
    /// Newest tick that was learned from or checked by.
    pub at: Tick,
    /// Ticks of the longest series then: the history that the weights know.
    pub ticks: u64,
    /// Ticks of the longest series that the linear parts know.
    pub linear_ticks: u64,
    /// Ticks of the longest series when the network under training was started.
    pub started_ticks: u64,
    /// Pinball loss of the weights in use over that of the last value, by horizon, at the last
    /// check; above one, the network is worse than no network.
    pub losses: Vec<f32>,
    /// Times that better weights were taken into use.
    pub improvements: u64,
    /// Checks in a row that found nothing better.
    pub worse: u32,
    /// Times that learning got worse and went back to the best weights.
    pub reverts: u32,
    /// Tick since which learning rests, because it got worse.
    pub frozen_since: Option<Tick>,
}

/// The network in use, and the one under training.
#[derive(Debug)]
pub(super) struct Training {
    pub(super) best: Net,
    /// The best one, with linear parts that also know the rows that it was checked by: what forecasts
    /// are made with.
    pub(super) used: Net,
    pub(super) live: Net,
    pub(super) optimizer: Optimizer,
    pub(super) progress: Progress,
}

impl Training {
    /// A fresh network whose linear parts are fitted, in use at once.
    pub(super) fn start(
        config: &LstmConfig,
        lessons: &Lessons<'_>,
        at: Tick,
        effort: Effort<'_>,
    ) -> Result<Self> {
        let live = fresh(config, lessons, effort)?;
        let mut best = live.with_values(live.values()?)?;
        best.stretch(lessons.checks())?;
        let optimizer = Optimizer::new(&live)?;
        let ticks = lessons.ticks() as u64;
        let losses = checked(&best, lessons, effort)?;
        let progress = Progress {
            steps: 0,
            at,
            ticks,
            linear_ticks: ticks,
            started_ticks: ticks,
            losses,
            improvements: 0,
            worse: 0,
            reverts: 0,
            frozen_since: None,
        };
        let used = best.moved(&linear::starts(&best, lessons.linear_whole(effort), effort))?;
        Ok(Self { best, used, live, optimizer, progress })
    }

    /// A copy that shares no variables.
    pub(super) fn independent(&self) -> Result<Self> {
        Ok(Self {
            best: self.best.clone(),
            used: self.used.clone(),
            live: self.live.with_values(self.live.values()?)?,
            optimizer: self.optimizer.clone(),
            progress: self.progress.clone(),
        })
    }

    /// Makes steps, no more than `effort` has.
    pub(super) fn learn(
        &mut self,
        config: &LstmConfig,
        lessons: &Lessons<'_>,
        at: Tick,
        effort: Effort<'_>,
    ) -> Result<FitReport> {
        let ticks = lessons.ticks() as u64;
        let improvements = self.progress.improvements;
        if ticks >= 2 * self.progress.started_ticks {
            self.live = fresh(config, lessons, effort)?;
            self.optimizer = Optimizer::new(&self.live)?;
            (self.progress.started_ticks, self.progress.worse) = (ticks, 0);
            self.progress.frozen_since = None;
            self.check(lessons, effort)?;
        }
        if let Some(since) = self.progress.frozen_since {
            if at.0.saturating_sub(since.0) < ticks / REST_SHARE {
                self.refresh(lessons, (ticks, improvements), effort)?;
                return Ok(FitReport::default());
            }
            self.progress.frozen_since = None;
        }
        (self.progress.at, self.progress.ticks) = (at, ticks);
        let mut losses = Vec::with_capacity(effort.steps_max as usize);
        while (losses.len() as u32) < effort.steps_max && self.progress.frozen_since.is_none() {
            effort.pause();
            let mut batch = lessons.batch(self.progress.steps);
            losses.push(self.optimizer.step(&self.live, config, &mut batch)?);
            self.progress.steps += 1;
            if self.progress.steps.is_multiple_of(CHECK_STEPS) {
                self.check(lessons, effort)?;
                if self.progress.worse >= PATIENCE {
                    self.revert(at)?;
                }
            }
        }
        self.refresh(lessons, (ticks, improvements), effort)?;
        let span = LOSS_SPAN.min(losses.len());
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        Ok(FitReport {
            steps: losses.len() as u32,
            loss_first: mean(&losses[..span]),
            loss_last: mean(&losses[losses.len() - span..]),
        })
    }

    /// Takes the average of the weights under training into use, if it is better on what is newest.
    fn check(&mut self, lessons: &Lessons<'_>, effort: Effort<'_>) -> Result<()> {
        let mut average = self.live.with_values(self.optimizer.average.clone())?;
        let new = checked(&average, lessons, effort)?;
        let old = checked(&self.best, lessons, effort)?;
        let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len().max(1) as f32;
        if mean(&new) < mean(&old) {
            average.stretch(lessons.checks())?;
            (self.best, self.progress.losses, self.progress.worse) = (average, new, 0);
            self.progress.improvements += 1;
        } else {
            self.progress.losses = old;
            self.progress.worse += 1;
        }
        Ok(())
    }

    /// Fits the linear parts of the network in use on all rows, if it is another one than before
    /// or if there are enough new ones.
    fn refresh(
        &mut self,
        lessons: &Lessons<'_>,
        (ticks, improvements): (u64, u64),
        effort: Effort<'_>,
    ) -> Result<()> {
        let grown = ticks.saturating_sub(self.progress.linear_ticks) >= ticks / REST_SHARE;
        if grown || self.progress.improvements != improvements {
            let rows = lessons.linear_whole(effort);
            self.used = self.best.moved(&linear::starts(&self.best, rows, effort))?;
            self.progress.linear_ticks = ticks;
        }
        Ok(())
    }

    fn revert(&mut self, at: Tick) -> Result<()> {
        self.live = self.best.with_values(self.best.values()?)?;
        let steps = self.optimizer.steps;
        self.optimizer = Optimizer { steps, ..Optimizer::new(&self.live)? };
        self.progress.frozen_since = Some(at);
        (self.progress.worse, self.progress.reverts) = (0, self.progress.reverts + 1);
        Ok(())
    }
}

fn fresh(config: &LstmConfig, lessons: &Lessons<'_>, effort: Effort<'_>) -> Result<Net> {
    let mut net = Net::new(config, lessons.horizons())?;
    let rows = lessons.linear(effort);
    linear::start(&mut net, rows, lessons.series(), effort)?;
    Ok(net)
}

/// Loss over that of the last value, by head.
fn checked(net: &Net, lessons: &Lessons<'_>, effort: Effort<'_>) -> Result<Vec<f32>> {
    let mut sums = vec![(0.0, 0.0); net.horizons.len()];
    for mut batch in lessons.checks() {
        effort.pause();
        let last: Vec<(f32, f32)> = batch.heads.iter().map(super::net::Rows::of_last).collect();
        let losses = net.scored(&mut batch)?;
        for (head, (sum, (last, rows))) in sums.iter_mut().zip(last).enumerate() {
            sum.0 += losses[head] * net.scalings[head].target * rows;
            sum.1 += last * rows;
        }
    }
    // A series that never changes is forecast by its last value: nothing to be better than.
    Ok(sums.into_iter().map(|(own, last)| if last > 0.0 { own / last } else { 1.0 }).collect())
}
