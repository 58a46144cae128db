//! The monitor: remembers which functions were called where, how often and how long.
//!
//! ```text
//! query tasks --Calls--> monitor --HistoryReady, PastChanged--> predictor
//! import ----Recalled-----^ ^
//! timer or hand --TickDue--^ ^  `----TickClosed--> manager, allocator
//! timer --FlushDue-----------'  `-----------rows-> history store
//! ```
//!
//! It decides nothing: `policy::history` counts. If it dies, calls are dropped and counted until its
//! successor has taken up the last saved history, and what the store has had since then; ticks go on
//! where the board says they were. Without a store, up to a minute is forgotten with it.

use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::decision::Stamp;
use foreshard_policy::history::{
    History, HistoryView, Irregular, Recalled, Succession, TickClock, Timeline,
};
use foreshard_policy::ids::{Epoch, PartitionId, Tick};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;

use crate::allocator::AllocatorMessage;
use crate::board::{Board, TickToken};
use crate::calls::{CallBatch, Liar};
use crate::history_store::HistoryStore;
use crate::manager::ManagerMessage;
use crate::next_calls::{CALLED_MAX, Called};
use crate::ports::SharedClock;
use crate::predictor::PredictorMessage;
use crate::state_file::StateFile;

/// Ticks between two saves of the history.
pub const SAVE_EVERY_TICKS: u64 = 60;

/// Longest time between two flushes to the store: what a crash may cost.
pub const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Series and seconds that are told apart between two flushes; the calls of others are added up.
pub const ROWS_PER_FLUSH_MAX: usize = 65_536;

/// Bytes before the saved history: when it was saved, in milliseconds since the Unix epoch.
pub(crate) const STAMP_BYTES: usize = 8;

/// What the monitor can be told.
#[derive(Debug)]
pub enum MonitorMessage {
    /// Event: a task of a query is done and has called these functions.
    Calls(CallBatch),
    /// Event: a function gave another value than the stored one.
    LiarFound(Box<Liar>),
    /// Event: rows are in other partitions now, or functions have other bodies, and their series go on there.
    Succeeded(Box<Succession>),
    /// Event: a query joins these partitions by their keys.
    Joined(Vec<(PartitionId, PartitionId)>),
    /// Event: calls of former times were imported; the history is to have them, too.
    Recalled(Box<Recalled>),
    /// Timer, or Command of a caller who drives the ticks: the open tick is over.
    TickDue(TickToken),
    /// Timer: what was counted is to be handed to the store, though the tick goes on.
    FlushDue,
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
    /// Where calls are kept for longer, second by second; if they are.
    pub store: Option<Arc<HistoryStore>>,
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
    timeline: Timeline,
    /// The first calls of the tick that is open, for the predictor.
    called: Vec<Called>,
    ticks: TickClock,
    saving: Option<JoinHandle<()>>,
    is_save_due: bool,
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
        // After a restart nobody else knows it before the first tick is closed.
        args.board.tick_closed(Tick(history.now().0.saturating_sub(1)));
        let config = args.board.config.load_full();
        if args.timed {
            let period = Duration::from_millis(config.tick_ms());
            drop(myself.send_interval(period, || MonitorMessage::TickDue(TickToken::default())));
            if args.store.is_some() && period > FLUSH_EVERY {
                drop(myself.send_interval(FLUSH_EVERY, || MonitorMessage::FlushDue));
            }
        }
        Ok(MonitorState {
            history,
            timeline: Timeline::new(ROWS_PER_FLUSH_MAX),
            called: Vec::new(),
            ticks: TickClock::new(config.tick_ms(), config.history_ticks_max() as u64),
            saving: None,
            is_save_due: false,
            args,
        })
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
            MonitorMessage::Succeeded(what) => state.on_succeeded(&what),
            MonitorMessage::Joined(pairs) => state.history.join(pairs),
            MonitorMessage::Recalled(recalled) => state.on_recalled(*recalled),
            MonitorMessage::TickDue(token) => state.on_tick_due(&token),
            MonitorMessage::FlushDue => state.flush(),
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
        state.flush();
        let (args, history) = (state.args.clone(), state.history.clone());
        let save = move || {
            keep(&args, &history.save());
            if let Some(store) = &args.store {
                store.flush();
            }
        };
        tokio::task::spawn_blocking(save).await?;
        Ok(())
    }
}

impl MonitorState {
    fn on_calls(&mut self, batch: CallBatch) {
        for call in batch.records.iter() {
            self.history.record(call);
        }
        let room = CALLED_MAX.saturating_sub(self.called.len());
        self.called.extend(batch.records.iter().take(room).map(Called::from));
        if self.args.store.is_some() {
            let now_ms = self.args.clock.now_ms();
            batch.records.iter().for_each(|call| self.timeline.record(call, now_ms));
        }
        {
            let mut ledger = self.args.board.ledger();
            batch.records.iter().for_each(|call| ledger.credit(call));
        }
        self.args.board.recent.record(batch.records.clone());
    }

    fn on_succeeded(&mut self, what: &Succession) {
        // What was called before is kept under the names that it was called by.
        self.flush();
        self.history.follow(what);
        self.is_save_due = true;
    }

    fn on_recalled(&mut self, recalled: Recalled) {
        self.history.recall(recalled, self.args.clock.now_ms());
        // At once: frames know nothing of it, and ticks have other numbers than in those before.
        self.save(&Arc::new(self.history.view()));
        self.args.board.predictor.cast(PredictorMessage::PastChanged);
    }

    fn on_liar_found(&self, liar: &Liar) {
        let board = &self.args.board;
        let mode = board.config.load().mode();
        let reason = format!(
            "{} gave another value than before for one of {} rows of {}, though it is declared immutable",
            liar.text, liar.rows, liar.partition
        );
        let stamp = Stamp { epoch: Epoch::default(), mode, tick: board.tick(), at_ms: liar.at_ms };
        board.ledger().found("quarantine", &liar.function, &reason, stamp);
    }

    fn on_tick_due(&mut self, token: &TickToken) {
        let board = self.args.board.clone();
        let by_timer = self.args.timed && !token.is_awaited();
        let ticks = if by_timer { self.ticks.due(self.args.clock.now_ms()) } else { 1 };
        let Some(missing) = ticks.checked_sub(1) else { return };
        self.flush();
        let closed = self.history.close_tick();
        let tick = Tick(closed.0 + missing);
        self.history.advance_to(tick.next());
        let view = Arc::new(self.history.view());
        board.tick_closed(tick);
        board.history.store(view.clone());
        board.irregular.store(Arc::new(self.irregular()));
        board.manager.cast(ManagerMessage::TickClosed(tick, token.clone()));
        board.allocator.cast(AllocatorMessage::TickClosed(tick, token.clone()));
        let before = closed.0.saturating_sub(1);
        self.is_save_due |= before / SAVE_EVERY_TICKS != tick.0 / SAVE_EVERY_TICKS;
        if self.is_save_due {
            self.save(&view);
        }
        let called = std::mem::take(&mut self.called);
        board.predictor.cast(PredictorMessage::HistoryReady(view, called, token.clone()));
    }

    /// Saves the history, or has it saved at the end of the tick if that is under way.
    fn save(&mut self, view: &Arc<HistoryView>) {
        self.is_save_due = self.saving.as_ref().is_some_and(|saving| !saving.is_finished());
        if self.is_save_due {
            return;
        }
        let (args, snapshot) = (self.args.clone(), self.history.snapshot(view));
        // Off the mailbox. Cheap: the series are those of the view.
        let save = move || keep(&args, &snapshot.save());
        self.saving = Some(tokio::task::spawn_blocking(save));
    }

    /// Hands what was counted since the last time to the store.
    fn flush(&mut self) {
        let Some(store) = &self.args.store else { return };
        let now_ms = self.args.clock.now_ms();
        let rows = self.timeline.flush(now_ms);
        let frame = store.append(self.history.now(), now_ms, self.timeline.is_calm(), rows);
        self.history.counted_until(frame);
    }

    fn irregular(&self) -> Irregular {
        let (calls, ticks) = (self.timeline.irregular(), self.ticks.irregular());
        Irregular {
            clock_back: calls.clock_back + ticks.clock_back,
            clock_ahead: calls.clock_ahead + ticks.clock_ahead,
            ticks_missing: ticks.ticks_missing,
            ticks_duplicate: ticks.ticks_duplicate,
            ..calls
        }
    }
}

/// Saves a history, with the time.
fn keep(args: &MonitorArgs, history: &[u8]) {
    let mut state = args.clock.now_ms().to_le_bytes().to_vec();
    state.extend(history);
    if let Err(error) = args.file.save(&state) {
        tracing::warn!(%error, file = ?args.file, "history was not saved");
    }
}

/// The history that was saved last, with what the store has had since then.
fn kept_history(args: &MonitorArgs) -> History {
    let tick_ms = args.board.config.load().tick_ms();
    let (mut history, saved_ms) = saved_history(args);
    let mut seen = saved_ms.map(|at_ms| (at_ms, history.now()));
    if let Some(store) = &args.store {
        store.flush(); // What the last monitor handed over.
        let since = history.frame();
        let replayed = store.frames_after(since, |frame| {
            history.advance_to(frame.tick);
            seen = Some((frame.at_ms, history.now()));
            frame.rows.into_iter().for_each(|row| history.replay(row.key, &row.summary));
            history.counted_until(frame.number);
        });
        if let Err(error) = replayed {
            tracing::warn!(%error, "calls since the history was saved cannot be read");
        }
    }
    if let Some((at_ms, open)) = seen
        && args.timed
    {
        let down_ms = args.clock.now_ms().saturating_sub(at_ms);
        history.advance_to(Tick(open.0 + down_ms / tick_ms));
    }
    if let Some(store) = args.store.as_ref().filter(|_| saved_ms.is_none()) {
        recall_files(&mut history, store, args);
    }
    history
}

/// Puts into a history that was not saved, or whose save is lost, what files still have of its ticks.
fn recall_files(history: &mut History, store: &HistoryStore, args: &MonitorArgs) {
    let (config, now_ms) = (args.board.config.load(), args.clock.now_ms());
    let ticks_max = config.history_ticks_max() as u64;
    let mut recalled = Recalled::new(config.tick_ms(), ticks_max, now_ms);
    let from_ms = now_ms.saturating_sub(ticks_max.saturating_mul(config.tick_ms()));
    match store.rows_of_files(from_ms, now_ms, |resolution, row| recalled.add(resolution, row)) {
        Ok(()) => history.recall(recalled, now_ms),
        Err(error) => tracing::warn!(%error, "calls before the history was lost cannot be read"),
    }
}

/// The history that was saved last, and when. What cannot be read is set aside: better none than a wrong
/// one.
fn saved_history(args: &MonitorArgs) -> (History, Option<u64>) {
    let config = args.board.config.load();
    let state = match args.file.load() {
        Ok(Some(state)) => state,
        Ok(None) => return (History::new(&config), None),
        Err(error) => {
            tracing::warn!(%error, file = ?args.file, "history cannot be read; it starts empty");
            return (History::new(&config), None);
        }
    };
    let (stamp, bytes) = state.split_first_chunk::<STAMP_BYTES>().unwrap_or((&[0; 8], &[]));
    match History::load(&config, bytes) {
        Ok(history) => (history, Some(u64::from_le_bytes(*stamp))),
        Err(error) => {
            let aside = args.file.set_aside();
            tracing::warn!(%error, file = ?args.file, ?aside, "history is set aside; it starts empty");
            (History::new(&config), None)
        }
    }
}
