//! The predictor: says which functions will be called where in the coming ticks, and learns.
//!
//! ```text
//! monitor --HistoryReady--> predictor --ForecastReady--> manager, allocator
//!                              |  ^
//!                          round  ForecastDone, RoundOver     (a blocking thread, one at a time)
//! ```
//!
//! It decides nothing: `policy::forecast` does. One round (score, forecast, learn) is under way at a
//! time, outside the mailbox and outside the threads that serve queries; learning lets all other threads
//! go first, waits while queries run (`lstm.busy-share`), and is bounded by `lstm.steps-per-tick` and, when
//! ticks go by the clock, by [`LEARN_SHARE_MAX`]. If it dies, its successor takes up the last checkpoint; until then the last
//! forecast stands.

use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::config::{LoopConfig, Mode};
use foreshard_policy::forecast::announced::Announced;
use foreshard_policy::forecast::ensemble::{Ensemble, MemberStanding, invert};
use foreshard_policy::forecast::{Effort, FitReport, Forecast, ForecastError, Member, Moments};
use foreshard_policy::history::HistoryView;
use foreshard_policy::ids::Tick;
use foreshard_policy::score::Scorer;
use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr};
use tokio::task::JoinHandle;

use crate::allocator::AllocatorMessage;
use crate::background::{behind_others, pauses};
use crate::board::{Board, MemberFit, Scores, TickToken};
use crate::lstm::{Lstm, LstmConfig};
use crate::manager::ManagerMessage;
use crate::next_calls::{CALLED_MAX, Called, NextPredictor};
use crate::ports::{Outlook, SharedClock};
use crate::state_file::StateFile;

/// Ticks between two checkpoints of weights and trust.
pub const CHECKPOINT_EVERY_TICKS: u64 = 60;

/// Share of a tick that learning may take, when ticks go by the clock.
pub const LEARN_SHARE_MAX: f64 = 0.25;

/// What the predictor can be told.
#[derive(Debug)]
pub enum PredictorMessage {
    /// Event: a tick was closed, in which this was called.
    HistoryReady(Arc<HistoryView>, Vec<Called>, TickToken),
    /// Event: the past is another one than it was, from the next history on.
    PastChanged,
    /// Event: the round under way has a forecast; learning goes on.
    ForecastDone(Box<ForecastDone>),
    /// Event: the round is over, and its tools are back.
    RoundOver(Box<Tools>),
    /// Event: the round panicked, and its tools are lost.
    RoundLost,
}

/// The first half of a round.
#[derive(Debug)]
pub struct ForecastDone {
    /// What is expected.
    forecast: Arc<Forecast>,
    /// What the manager and the allocator are told, by mode.
    told: Arc<Forecast>,
    moments: Moments,
    token: TickToken,
}

/// Makes the members that are added to the statistical ones.
pub type Members =
    Arc<dyn Fn(&LoopConfig) -> Result<Vec<Box<dyn Member>>, ForecastError> + Send + Sync>;

/// What a predictor is born with.
#[derive(Clone)]
pub struct PredictorArgs {
    /// Where it publishes, and finds the others.
    pub board: Arc<Board>,
    /// Measures how long learning takes.
    pub clock: SharedClock,
    /// Where weights and trust are kept.
    pub file: Arc<dyn StateFile>,
    /// Makes the members besides the statistical ones; [`neural_members`] unless a test says otherwise.
    pub members: Members,
    /// Whether ticks go by the clock.
    pub timed: bool,
    /// What the planners are told instead of what is expected, in an experiment.
    pub outlook: Option<Arc<dyn Outlook>>,
}

impl std::fmt::Debug for PredictorArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PredictorArgs").field("file", &self.file).finish_non_exhaustive()
    }
}

/// The LSTM, if the settings have it.
///
/// # Errors
/// [`ForecastError`] if a setting is out of bounds or candle fails.
pub fn neural_members(config: &LoopConfig) -> Result<Vec<Box<dyn Member>>, ForecastError> {
    if !config.lstm().enabled() {
        return Ok(Vec::new());
    }
    let settings = LstmConfig::for_settings(config.lstm());
    Ok(vec![Box::new(Lstm::new(settings)?)])
}

/// The actor. All that changes lives in [`PredictorState`].
#[derive(Debug)]
pub struct Predictor;

/// Memory of one predictor.
#[derive(Debug)]
pub struct PredictorState {
    args: PredictorArgs,
    /// None while a round is under way.
    tools: Option<Box<Tools>>,
    /// The newest round; it answers its tools if they could not be sent back.
    round: Option<JoinHandle<Option<Box<Tools>>>>,
    /// The newest history that came meanwhile; older ones need no forecast any more.
    next: Option<(Arc<HistoryView>, Moments, TickToken)>,
    /// What was called since the last round began.
    called: Vec<Called>,
    /// Whether the past has changed since then.
    is_new_past: bool,
}

/// What a round works with.
#[derive(Debug)]
pub struct Tools {
    ensemble: Ensemble,
    scorer: Scorer,
    next_calls: NextPredictor,
    /// Training steps that the next round may make.
    steps_max: u32,
    /// What was announced in the last round.
    announced: Arc<Announced>,
}

impl Actor for Predictor {
    type Msg = PredictorMessage;
    type State = PredictorState;
    type Arguments = PredictorArgs;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        args: PredictorArgs,
    ) -> Result<PredictorState, ActorProcessingErr> {
        let of_file = args.clone();
        let tools = tokio::task::spawn_blocking(move || Tools::kept(&of_file)).await??;
        let tools = Some(Box::new(tools));
        Ok(PredictorState {
            args,
            tools,
            round: None,
            next: None,
            called: Vec::new(),
            is_new_past: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: PredictorMessage,
        state: &mut PredictorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PredictorMessage::HistoryReady(view, called, token) => {
                state.on_history_ready(view, called, token, &myself);
            }
            PredictorMessage::PastChanged => state.is_new_past = true,
            PredictorMessage::ForecastDone(done) => state.on_forecast_done(*done),
            PredictorMessage::RoundOver(tools) => state.on_round_over(tools, &myself),
            PredictorMessage::RoundLost => return Err("a round of the predictor panicked".into()),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut PredictorState,
    ) -> Result<(), ActorProcessingErr> {
        let mut tools = state.tools.take();
        if tools.is_none()
            && let Some(round) = state.round.take()
        {
            tools = round.await?; // It has at most one forecast and one fit before it.
        }
        if let Some(tools) = tools {
            let file = state.args.file.clone();
            tokio::task::spawn_blocking(move || tools.save(&*file)).await?;
        }
        Ok(())
    }
}

impl PredictorState {
    fn on_history_ready(
        &mut self,
        view: Arc<HistoryView>,
        mut called: Vec<Called>,
        token: TickToken,
        myself: &ActorRef<PredictorMessage>,
    ) {
        called.truncate(CALLED_MAX.saturating_sub(self.called.len()));
        self.called.append(&mut called);
        let closed_ms = self.args.clock.now_ms();
        let moments = Moments { at: view.at, closed_ms, tick_ms: view.tick_ms };
        match self.tools.take() {
            Some(tools) => self.begin(tools, (view, moments, token), myself),
            None => self.next = Some((view, moments, token)),
        }
    }

    fn begin(
        &mut self,
        tools: Box<Tools>,
        (view, moments, token): (Arc<HistoryView>, Moments, TickToken),
        myself: &ActorRef<PredictorMessage>,
    ) {
        let (args, myself) = (self.args.clone(), Some(myself.clone()));
        let called = std::mem::take(&mut self.called);
        let is_new_past = std::mem::take(&mut self.is_new_past);
        let round = Round { args, view, called, is_new_past, moments, token, myself };
        self.round = Some(tokio::task::spawn_blocking(move || round.run(tools)));
    }

    fn on_forecast_done(&mut self, done: ForecastDone) {
        let ForecastDone { forecast, told, moments, token } = done;
        let board = &self.args.board;
        tracing::debug!(
            at = forecast.at.0,
            series = forecast.series.len(),
            trusted = forecast.trusted,
            skill = forecast.skill,
            "forecast ready"
        );
        board.moments.store(Arc::new(moments));
        board.forecast.store(forecast);
        board.manager.cast(ManagerMessage::ForecastReady(told.clone(), token.clone()));
        board.allocator.cast(AllocatorMessage::ForecastReady(told, token));
    }

    fn on_round_over(&mut self, tools: Box<Tools>, myself: &ActorRef<PredictorMessage>) {
        self.round = None;
        match self.next.take() {
            Some(next) => self.begin(tools, next, myself),
            None => self.tools = Some(tools),
        }
    }
}

impl Tools {
    /// New ones, with the state of the last checkpoint if there is a usable one.
    fn kept(args: &PredictorArgs) -> Result<Self, ForecastError> {
        let config = args.board.config.load();
        let fresh = || (args.members)(&config).map(|members| Ensemble::new(&config, members));
        let mut ensemble = fresh()?;
        match args.file.load() {
            Ok(None) => {}
            Ok(Some(state)) => {
                if let Err(error) = ensemble.load(&state) {
                    let aside = args.file.set_aside();
                    tracing::warn!(%error, file = ?args.file, ?aside, "checkpoint is set aside");
                    ensemble = fresh()?; // A state that was taken up in part is none.
                }
            }
            Err(error) => tracing::warn!(%error, file = ?args.file, "checkpoint cannot be read"),
        }
        let steps_max = config.lstm().steps_per_tick();
        let announced = args.board.announced.all();
        let next_calls = NextPredictor::new(config.lstm().enabled())?;
        Ok(Self { ensemble, scorer: Scorer::new(), next_calls, steps_max, announced })
    }

    fn save(&self, file: &dyn StateFile) {
        match self.ensemble.save() {
            Ok(state) => {
                if let Err(error) = file.save(&state) {
                    tracing::warn!(%error, ?file, "checkpoint was not saved");
                }
            }
            Err(error) => tracing::warn!(%error, "checkpoint cannot be written"),
        }
    }
}

/// One round, on a thread of its own. Dropped before its end, it says that it is lost.
struct Round {
    args: PredictorArgs,
    view: Arc<HistoryView>,
    /// What was called since the last round.
    called: Vec<Called>,
    /// Whether the past before was another one.
    is_new_past: bool,
    moments: Moments,
    /// Held until the round is over, so that a tick by hand ends with what was learned from it.
    token: TickToken,
    myself: Option<ActorRef<PredictorMessage>>,
}

impl Round {
    /// Sends the tools back, or answers them if the predictor takes no messages any more.
    fn run(mut self, mut tools: Box<Tools>) -> Option<Box<Tools>> {
        let config = self.args.board.config.load_full();
        let announced = self.args.board.announced.all();
        if std::mem::replace(&mut tools.announced, announced.clone()) != announced {
            tools.ensemble.look_again();
        }
        if self.is_new_past {
            tools.ensemble.past_changed();
            tools.scorer.forget_pending();
        }
        // Members learn nothing from what was announced, and are not judged by it.
        let calm = announced.calm(&self.view, &self.moments);
        let seen = calm.as_ref().unwrap_or(&self.view);
        self.forecast(&mut tools, &config, seen, &announced);
        self.expect_next(&mut tools.next_calls);
        self.learn(&mut tools, &config, seen);
        if self.view.at.0.is_multiple_of(CHECKPOINT_EVERY_TICKS) {
            tools.save(&*self.args.file);
        }
        match self.myself.take()?.cast(PredictorMessage::RoundOver(tools)) {
            Err(MessagingErr::SendErr(PredictorMessage::RoundOver(tools))) => Some(tools),
            _ => None,
        }
    }

    fn forecast(
        &self,
        tools: &mut Tools,
        config: &LoopConfig,
        seen: &HistoryView,
        announced: &Announced,
    ) {
        let board = &self.args.board;
        if self.args.timed {
            // Ticks that are closed by hand lie nowhere on the calendar.
            let epoch_ms = self.moments.start_ms(Tick(0));
            tools.ensemble.set_epoch_ms(i64::try_from(epoch_ms).unwrap_or(0));
        }
        tools.ensemble.observe(seen);
        drop(tools.scorer.score(&self.view));
        let recent = tools.scorer.recent().cloned().collect();
        board.scores.store(Arc::new(Scores { recent, means: tools.scorer.means().clone() }));
        let forecast = match tools.ensemble.forecast(seen, config.horizon_ticks()) {
            Ok(mut forecast) => {
                let current_ticks = config.monitor().current_ticks();
                announced.put_into(&mut forecast, &self.view, &self.moments, current_ticks);
                Arc::new(forecast)
            }
            // The manager and the allocator go on without: they know the ticks from the monitor.
            Err(error) => return tracing::warn!(code = error.code(), %error, "no forecast"),
        };
        tools.scorer.keep(forecast.clone());
        // In modes off and reactive the planners themselves look at what is measured only.
        let told = match (&self.args.outlook, config.mode()) {
            (Some(outlook), _) => outlook.told(&forecast, seen),
            (None, Mode::Inverted) => Arc::new(invert(&forecast)),
            (None, Mode::Off | Mode::Reactive | Mode::Forecast) => forecast.clone(),
        };
        let (moments, token) = (self.moments, self.token.clone());
        let done = ForecastDone { forecast, told, moments, token };
        if let Some(myself) = &self.myself {
            drop(myself.cast(PredictorMessage::ForecastDone(Box::new(done))));
        }
    }

    fn expect_next(&self, next_calls: &mut NextPredictor) {
        if let Err(error) = next_calls.observe(&self.called) {
            tracing::warn!(code = error.code(), %error, "next calls are expected without the network");
        }
        let expected = next_calls.expected(self.moments.closed_ms);
        self.args.board.next_calls.store(Arc::new(expected));
    }

    fn learn(&self, tools: &mut Tools, config: &LoopConfig, seen: &HistoryView) {
        let started_ns = self.args.clock.monotonic_ns();
        let (ensemble, next_calls) = (&mut tools.ensemble, &mut tools.next_calls);
        let steps_max = tools.steps_max;
        let (share, gauge) = (config.lstm().busy_share(), &*self.args.board.traffic);
        let clock = &*self.args.clock;
        let (reports, learned) = behind_others(|| {
            let pause = pauses(share, gauge, clock, std::thread::sleep);
            let effort = Effort::steps(steps_max).with_pauses(&pause);
            (ensemble.fit(seen, effort), next_calls.learn(effort))
        });
        if let Err(error) = learned {
            tracing::warn!(code = error.code(), %error, "the next calls were not learned from");
        }
        for (member, report) in &reports {
            if let Err(error) = report {
                tracing::warn!(member, code = error.code(), %error, "member did not learn");
            }
        }
        let board = &self.args.board;
        let standings = tools.ensemble.standings();
        board.fits.store(Arc::new(fits(&board.fits.load(), standings, reports)));
        if self.args.timed {
            let took = Duration::from_nanos(self.args.clock.monotonic_ns() - started_ns);
            let share = took.as_secs_f64() * 1e3 / config.tick_ms() as f64;
            tools.steps_max = steps_within(tools.steps_max, share, config.lstm().steps_per_tick());
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if let Some(myself) = self.myself.take() {
            drop(myself.cast(PredictorMessage::RoundLost));
        }
    }
}

/// What is known of each member after it learned once more.
fn fits(
    before: &[MemberFit],
    standings: Vec<MemberStanding>,
    reports: Vec<(&'static str, Result<FitReport, ForecastError>)>,
) -> Vec<MemberFit> {
    let fit = |standing: MemberStanding| {
        let is_its = |name: &str| name == standing.member;
        let known = before.iter().find(|fit| is_its(fit.standing.member));
        let known = known.map(|fit| fit.last).unwrap_or_default();
        match reports.iter().find(|(member, _)| is_its(member)) {
            // One that had nothing to do says so with zeros.
            Some((_, Ok(last))) if *last != FitReport::default() => {
                MemberFit { standing, last: *last, error: None }
            }
            Some((_, Err(error))) => {
                MemberFit { standing, last: known, error: Some(error.to_string()) }
            }
            _ => MemberFit { standing, last: known, error: None },
        }
    };
    standings.into_iter().map(fit).collect()
}

/// Training steps for the next round, after `steps` took `share` of a tick: fewer at once, more slowly.
fn steps_within(steps: u32, share: f64, steps_max: u32) -> u32 {
    if share > LEARN_SHARE_MAX {
        return ((f64::from(steps) * LEARN_SHARE_MAX / share) as u32)
            .clamp(1.min(steps_max), steps_max);
    }
    (steps + 1).min(steps_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_that_takes_too_much_of_a_tick_is_cut_at_once_and_grows_back_slowly() {
        assert_eq!(steps_within(100, 0.5, 100), 50);
        assert_eq!(steps_within(50, 0.1, 100), 51);
        assert_eq!(steps_within(100, 0.1, 100), 100);
        assert_eq!(steps_within(2, 90.0, 100), 1);
        assert_eq!(steps_within(0, 90.0, 0), 0);
    }
}
