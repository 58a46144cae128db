//! The predictor: says which functions will be called where in the coming ticks, and learns.
//!
//! ```text
//! monitor --HistoryReady--> predictor --ForecastReady--> manager, allocator
//!                              |  ^
//!                          round  ForecastDone, RoundOver     (a blocking thread)
//!                              |  ^
//!                         lesson  LessonOver                  (goes on on that thread, one at a time)
//! ```
//!
//! It decides nothing: `policy::forecast` does. One round (score, forecast) is under way at a time, outside
//! the mailbox and outside the threads that serve queries; should it take longer than a tick, planners are told
//! the last forecast, carried on to the tick that is closed. Learning is done on copies of the members, so that
//! forecasts go on however long it takes: it lets all other threads go first, waits while queries run
//! (`lstm.busy-share`), and is bounded by `lstm.steps-per-tick` and, when ticks go by the clock, by
//! [`LEARN_SHARE_MAX`]. If it dies, its successor takes up the last checkpoint; until then the last
//! forecast stands.

mod lesson;

use std::sync::Arc;

use foreshard_policy::config::{LoopConfig, Mode};
use foreshard_policy::forecast::announced::Announced;
use foreshard_policy::forecast::ensemble::{Ensemble, invert};
use foreshard_policy::forecast::{Forecast, ForecastError, Member, Moments};
use foreshard_policy::history::HistoryView;
use foreshard_policy::ids::Tick;
use foreshard_policy::score::Scorer;
use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr};
use tokio::task::JoinHandle;

pub use self::lesson::Taught;
use self::lesson::{Pupils, fits};
use crate::allocator::AllocatorMessage;
use crate::board::{Board, Scores, TickToken};
use crate::lstm::{Lstm, LstmConfig};
use crate::manager::ManagerMessage;
use crate::next_calls::{CALLED_MAX, Called};
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
    /// Event: the round under way has a forecast.
    ForecastDone(Box<ForecastDone>),
    /// Event: the round is over, and its tools are back; what it teaches goes on.
    RoundOver(Box<Tools>),
    /// Event: the copies of the members have learned.
    LessonOver(Box<Taught>, TickToken),
    /// Event: a round or a lesson panicked, and its tools are lost.
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
    /// None while a lesson is under way.
    pupils: Option<Box<Pupils>>,
    /// What was learned while the tools were away.
    taught: Option<Box<Taught>>,
    /// The newest round, and the newest one that teaches: they answer what could not be sent back.
    round: Option<JoinHandle<Unsent>>,
    lesson: Option<JoinHandle<Unsent>>,
    /// The newest forecast that planners were told.
    last: Option<Arc<Forecast>>,
    /// The newest history that came meanwhile; older ones need no forecast any more.
    next: Option<(Arc<HistoryView>, Moments, TickToken)>,
    /// What was called since the last lesson began.
    called: Vec<Called>,
    /// Whether the past has changed since then.
    is_new_past: bool,
}

/// What a round works with.
#[derive(Debug)]
pub struct Tools {
    ensemble: Ensemble,
    scorer: Scorer,
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
        let pupils = Pupils::new(&args.board.config.load())?;
        Ok(PredictorState {
            args,
            tools: Some(Box::new(tools)),
            pupils: Some(Box::new(pupils)),
            taught: None,
            round: None,
            lesson: None,
            last: None,
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
            PredictorMessage::LessonOver(taught, _token) => state.on_lesson_over(taught),
            PredictorMessage::RoundLost => return Err("a round of the predictor panicked".into()),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut PredictorState,
    ) -> Result<(), ActorProcessingErr> {
        let (mut tools, mut taught) = (state.tools.take(), state.taught.take());
        for thread in [state.round.take(), state.lesson.take()].into_iter().flatten() {
            let unsent = thread.await?; // It has at most one forecast and one lesson before it.
            tools = tools.or(unsent.tools);
            taught = taught.or(unsent.taught);
        }
        if let (Some(tools), Some(taught)) = (&mut tools, taught) {
            tools.ensemble.take_up(taught.lesson);
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
            None => {
                self.carry_on(&view, &token);
                self.next = Some((view, moments, token));
            }
        }
    }

    /// Tells planners what the last forecast says from `view` on, so that they need not wait for the next one.
    fn carry_on(&self, view: &HistoryView, token: &TickToken) {
        let config = self.args.board.config.load();
        let current_ticks = config.monitor().current_ticks();
        let carried = self.last.as_ref().and_then(|last| last.carried_to(view, current_ticks));
        if let Some(carried) = carried {
            self.tell_planners(told(&self.args, &Arc::new(carried), view), token);
        }
    }

    fn tell_planners(&self, told: Arc<Forecast>, token: &TickToken) {
        let board = &self.args.board;
        board.manager.cast(ManagerMessage::ForecastReady(Arc::clone(&told), token.clone()));
        board.allocator.cast(AllocatorMessage::ForecastReady(told, token.clone()));
    }

    fn begin(
        &mut self,
        tools: Box<Tools>,
        (view, moments, token): (Arc<HistoryView>, Moments, TickToken),
        myself: &ActorRef<PredictorMessage>,
    ) {
        let (args, myself) = (self.args.clone(), Some(myself.clone()));
        let pupils = self.pupils.take();
        let teaches = pupils.is_some();
        let called = if teaches { std::mem::take(&mut self.called) } else { Vec::new() };
        let is_new_past = std::mem::take(&mut self.is_new_past);
        let round = Round { args, view, called, is_new_past, moments, token, myself };
        let round = tokio::task::spawn_blocking(move || round.run(tools, pupils));
        match teaches {
            true => self.lesson = Some(round),
            false => self.round = Some(round),
        }
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
        board.forecast.store(Arc::clone(&forecast));
        self.last = Some(forecast);
        self.tell_planners(told, &token);
    }

    fn on_round_over(&mut self, tools: Box<Tools>, myself: &ActorRef<PredictorMessage>) {
        self.round = None;
        self.tools = Some(tools);
        if let Some(taught) = self.taught.take() {
            self.on_lesson_over(taught);
        }
        if let Some(next) = self.next.take()
            && let Some(tools) = self.tools.take()
        {
            self.begin(tools, next, myself);
        }
    }

    fn on_lesson_over(&mut self, taught: Box<Taught>) {
        let Some(tools) = &mut self.tools else {
            self.taught = Some(taught); // A round is under way.
            return;
        };
        let Taught { lesson, pupils, reports } = *taught;
        tools.ensemble.take_up(lesson);
        let (board, standings) = (&self.args.board, tools.ensemble.standings());
        board.fits.store(Arc::new(fits(&board.fits.load(), standings, reports)));
        self.pupils = Some(pupils);
        self.lesson = None;
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
        let announced = args.board.announced.all();
        Ok(Self { ensemble, scorer: Scorer::new(), announced })
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

/// What could not be sent back, because the predictor takes no messages any more.
#[derive(Debug, Default)]
struct Unsent {
    tools: Option<Box<Tools>>,
    taught: Option<Box<Taught>>,
}

/// One round and what it teaches, on a thread of its own. Dropped before its end, it says that it is lost.
struct Round {
    args: PredictorArgs,
    view: Arc<HistoryView>,
    /// What was called since the last lesson, if it teaches.
    called: Vec<Called>,
    /// Whether the past before was another one.
    is_new_past: bool,
    moments: Moments,
    /// Held until all is over, so that a tick by hand ends with what was learned from it.
    token: TickToken,
    myself: Option<ActorRef<PredictorMessage>>,
}

impl Round {
    /// Sends the tools back, then what the pupils learned; answers what was not taken.
    fn run(mut self, mut tools: Box<Tools>, pupils: Option<Box<Pupils>>) -> Unsent {
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
        let lesson = pupils.map(|pupils| (pupils, tools.ensemble.lesson(seen)));
        if self.view.at.0.is_multiple_of(CHECKPOINT_EVERY_TICKS) {
            tools.save(&*self.args.file);
        }
        let mut unsent = Unsent::default();
        let myself = self.myself.clone();
        let cast = |message| myself.as_ref().and_then(|myself| myself.cast(message).err());
        if let Some(MessagingErr::SendErr(PredictorMessage::RoundOver(tools))) =
            cast(PredictorMessage::RoundOver(tools))
        {
            unsent.tools = Some(tools);
        }
        if let Some((pupils, lesson)) = lesson {
            let taught = pupils.learn(lesson, &self.called, self.moments, &self.args);
            let over = PredictorMessage::LessonOver(Box::new(taught), self.token.clone());
            if let Some(MessagingErr::SendErr(PredictorMessage::LessonOver(taught, _))) = cast(over)
            {
                unsent.taught = Some(taught);
            }
        }
        self.myself = None;
        unsent
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
        let told = told(&self.args, &forecast, seen);
        let (moments, token) = (self.moments, self.token.clone());
        let done = ForecastDone { forecast, told, moments, token };
        if let Some(myself) = &self.myself {
            drop(myself.cast(PredictorMessage::ForecastDone(Box::new(done))));
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

/// What planners are told of a forecast made of `seen`.
fn told(args: &PredictorArgs, forecast: &Arc<Forecast>, seen: &HistoryView) -> Arc<Forecast> {
    match (&args.outlook, args.board.config.load().mode()) {
        (Some(outlook), _) => outlook.told(forecast, seen),
        (None, Mode::Inverted) => Arc::new(invert(forecast)),
        // In modes off and reactive the planners themselves look at what is measured only.
        (None, Mode::Off | Mode::Reactive | Mode::Forecast) => Arc::clone(forecast),
    }
}
