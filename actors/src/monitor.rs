//! The monitor: remembers which functions were called where, how often and how long.
//!
//! ```text
//! query tasks --Calls--> monitor --HistoryReady--> predictor
//! timer or hand --TickDue--^    `----TickClosed--> manager, allocator
//! ```
//!
//! It decides nothing: `policy::history` counts. If it dies, calls are dropped and counted until its
//! successor has taken up the last saved history; ticks go on where the board says they were.

use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::history::History;
use foreshard_policy::ids::Tick;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;

use crate::allocator::AllocatorMessage;
use crate::board::{Board, TickToken};
use crate::calls::{CallBatch, Liar};
use crate::manager::ManagerMessage;
use crate::ports::SharedClock;
use crate::predictor::PredictorMessage;
use crate::state_file::StateFile;

/// Ticks between two saves of the history.
pub const SAVE_EVERY_TICKS: u64 = 60;

/// Bytes before the saved history: when it was saved, in milliseconds since the Unix epoch.
pub(crate) const STAMP_BYTES: usize = 8;

/// What the monitor can be told.
#[derive(Debug)]
pub enum MonitorMessage {
    /// Event: a task of a query is done and has called these functions.
    Calls(CallBatch),
    /// Event: a function gave another value than the stored one.
    LiarFound(Box<Liar>),
    /// Timer, or Command of a caller who drives the ticks: the open tick is over.
    TickDue(TickToken),
}

/// What a monitor is born with.
#[derive(Clone, Debug)]
pub struct MonitorArgs {
    /// Where it publishes, and finds the others.
    pub board: Arc<Board>,
    /// The time, for what passed while the process was down.
    pub clock: SharedClock,
    /// Where the history is kept.
    pub file: Arc<dyn StateFile>,
    /// Whether ticks are due by the clock; otherwise somebody sends [`MonitorMessage::TickDue`].
    pub timed: bool,
}

/// The actor. All that changes lives in [`MonitorState`].
#[derive(Debug)]
pub struct Monitor;

/// Memory of one monitor.
#[derive(Debug)]
pub struct MonitorState {
    args: MonitorArgs,
    history: History,
    saving: Option<JoinHandle<()>>,
}

impl Actor for Monitor {
    type Msg = MonitorMessage;
    type State = MonitorState;
    type Arguments = MonitorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: MonitorArgs,
    ) -> Result<MonitorState, ActorProcessingErr> {
        let of_file = args.clone();
        let mut history = tokio::task::spawn_blocking(move || kept_history(&of_file)).await?;
        let open = args.board.tick().next();
        if history.now() < open {
            history.advance_to(open); // It was killed after its last save; ticks never go back.
        }
        if args.timed {
            let period = Duration::from_millis(args.board.config.load().tick_ms());
            drop(myself.send_interval(period, || MonitorMessage::TickDue(TickToken::default())));
        }
        Ok(MonitorState { args, history, saving: None })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: MonitorMessage,
        state: &mut MonitorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MonitorMessage::Calls(batch) => state.on_calls(batch),
            MonitorMessage::LiarFound(liar) => state.on_liar_found(&liar),
            MonitorMessage::TickDue(token) => state.on_tick_due(&token),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut MonitorState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(saving) = state.saving.take() {
            saving.await?;
        }
        state.save().await?;
        Ok(())
    }
}

impl MonitorState {
    fn on_calls(&mut self, batch: CallBatch) {
        for call in batch.records.iter() {
            self.history.record(call);
        }
        {
            let mut ledger = self.args.board.ledger();
            batch.records.iter().for_each(|call| ledger.credit(call));
        }
        self.args.board.recent.record(batch.records.clone());
    }

    fn on_liar_found(&self, liar: &Liar) {
        let board = &self.args.board;
        let mode = board.config.load().mode();
        let reason = format!(
            "{} gave another value than before for one of {} rows of {}, though it is declared immutable",
            liar.text, liar.rows, liar.partition
        );
        board.ledger().found("quarantine", &liar.function, &reason, mode, board.tick(), liar.at_ms);
    }

    fn on_tick_due(&mut self, token: &TickToken) {
        let board = self.args.board.clone();
        let tick = self.history.close_tick();
        let view = Arc::new(self.history.view());
        board.tick_closed(tick);
        board.history.store(view.clone());
        board.manager.cast(ManagerMessage::TickClosed(tick, token.clone()));
        board.allocator.cast(AllocatorMessage::TickClosed(tick, token.clone()));
        board.predictor.cast(PredictorMessage::HistoryReady(view, token.clone()));
        if tick.0.is_multiple_of(SAVE_EVERY_TICKS)
            && self.saving.as_ref().is_none_or(JoinHandle::is_finished)
        {
            self.saving = Some(self.save());
        }
    }

    /// Writes a copy of the history, off the mailbox. The copy is cheap: series are shared.
    fn save(&self) -> JoinHandle<()> {
        let (args, history) = (self.args.clone(), self.history.clone());
        tokio::task::spawn_blocking(move || {
            let mut state = args.clock.now_ms().to_le_bytes().to_vec();
            match history.save() {
                Ok(history) => state.extend(history),
                Err(error) => return tracing::warn!(%error, "history cannot be written"),
            }
            if let Err(error) = args.file.save(&state) {
                tracing::warn!(%error, file = ?args.file, "history was not saved");
            }
        })
    }
}

/// The history that was saved last. What cannot be read is set aside: better none than a wrong one.
fn kept_history(args: &MonitorArgs) -> History {
    let config = args.board.config.load();
    let state = match args.file.load() {
        Ok(Some(state)) => state,
        Ok(None) => return History::new(&config),
        Err(error) => {
            tracing::warn!(%error, file = ?args.file, "history cannot be read; it starts empty");
            return History::new(&config);
        }
    };
    let (stamp, bytes) = state.split_first_chunk::<STAMP_BYTES>().unwrap_or((&[0; 8], &[]));
    match History::load(&config, bytes) {
        Ok(mut history) => {
            if args.timed {
                let down_ms = args.clock.now_ms().saturating_sub(u64::from_le_bytes(*stamp));
                let open = Tick(history.now().0 + down_ms / config.tick_ms());
                history.advance_to(open);
            }
            history
        }
        Err(error) => {
            let aside = args.file.set_aside();
            tracing::warn!(%error, file = ?args.file, ?aside, "history is set aside; it starts empty");
            History::new(&config)
        }
    }
}
