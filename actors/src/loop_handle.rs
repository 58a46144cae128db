//! The loop as the engine holds it: start, drive by hand, read, wait, stop.

mod requests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::calls::CallRecord;
use foreshard_policy::config::{ConfigError, LoopConfig, Mode};
use foreshard_policy::decision::DecisionRow;
use foreshard_policy::forecast::announced::{AnnounceError, Announced, Announcement};
use foreshard_policy::forecast::{Forecast, Moments};
use foreshard_policy::history::{HistoryView, Irregular, Recalled, Succession};
use foreshard_policy::ids::Tick;
use foreshard_policy::trust::KindTrust;
use ractor::{Actor, ActorCell, ActorRef};

use crate::allocator::{AllocatorArgs, NODE_TIME_MAX};
use crate::announcements::{AnnouncementError, Announcements};
use crate::board::{Board, MemberFit, Role, Scores, TickToken};
use crate::calls::{BATCHES_MAX, CallSink};
use crate::controls::KeptControls;
use crate::history_store::{HistoryStore, HistoryStoreError, Imported};
use crate::manager::{ManagerArgs, PLAN_TIME_MAX, STEP_TIME_MAX};
use crate::monitor::{MonitorArgs, MonitorMessage};
use crate::next_calls::NextCalls;
use crate::ports::{Cluster, NodeProvider, Outlook, SharedClock, SystemClock};
use crate::predictor::{Members, PredictorArgs, neural_members};
use crate::state_file::{DiskFile, MemoryFile, StateFile};
use crate::supervisor::{LoopSupervisor, LoopSupervisorArgs, LoopSupervisorMessage};

/// Milliseconds that a shutdown may take before the caller gets an error.
const SHUTDOWN_MS_MAX: u64 = 60_000;

/// The loop cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoopError {
    /// An actor of the loop did not start.
    #[error("the loop did not start: {reason}")]
    Start {
        /// What the actor said.
        reason: String,
    },
    /// The actor is being started again, or the loop has been shut down.
    #[error("the {role} is not running")]
    Down {
        /// Who was needed.
        role: Role,
    },
    /// The loop did not stop in time.
    #[error("the loop did not stop within {ms} ms")]
    Stop {
        /// How long it was given.
        ms: u64,
    },
}

impl LoopError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Start { .. } => "FS-LOOP-1",
            Self::Down { .. } => "FS-LOOP-2",
            Self::Stop { .. } => "FS-LOOP-3",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Down { .. })
    }
}

/// When a tick is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ticks {
    /// Every `tick-ms`.
    #[default]
    ByClock,
    /// Whenever [`LoopHandle::tick`] is called.
    ByHand,
}

/// What a loop is born with.
#[derive(Clone)]
pub struct LoopArgs {
    /// Settings.
    pub config: LoopConfig,
    /// The time.
    pub clock: SharedClock,
    /// What the manager sees and changes.
    pub cluster: Arc<dyn Cluster>,
    /// What the allocator changes.
    pub provider: Arc<dyn NodeProvider>,
    /// When a tick is over.
    pub ticks: Ticks,
    /// Batches of calls that may wait for the monitor.
    pub batches_max: usize,
    /// Members of the ensemble besides the statistical ones.
    pub members: Members,
    /// What the planners are told instead of the forecast, in an experiment.
    pub outlook: Option<Arc<dyn Outlook>>,
    /// Where the history is kept.
    pub history_file: Arc<dyn StateFile>,
    /// Folder where calls are kept for longer, second by second; none keeps them nowhere.
    pub store_folder: Option<PathBuf>,
    /// Where the predictor's checkpoint is kept.
    pub checkpoint_file: Arc<dyn StateFile>,
    /// Where announcements are kept.
    pub announced_file: Arc<dyn StateFile>,
    /// Where it is kept what people let the loop do to each table.
    pub controls_file: Arc<dyn StateFile>,
    /// How long one step of the manager may take.
    pub step_time_max: Duration,
    /// How long one plan of the manager may take.
    pub plan_time_max: Duration,
    /// How long adding or removing a node may take.
    pub node_time_max: Duration,
}

impl fmt::Debug for LoopArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopArgs")
            .field("config", &self.config)
            .field("ticks", &self.ticks)
            .field("history_file", &self.history_file)
            .field("store_folder", &self.store_folder)
            .field("checkpoint_file", &self.checkpoint_file)
            .finish_non_exhaustive()
    }
}

impl LoopArgs {
    /// Ticks by the machine's clock, the LSTM as the settings say, and states that live as long as the
    /// process.
    #[must_use]
    pub fn new(
        config: LoopConfig,
        cluster: Arc<dyn Cluster>,
        provider: Arc<dyn NodeProvider>,
    ) -> Self {
        Self {
            config,
            clock: Arc::new(SystemClock),
            cluster,
            provider,
            ticks: Ticks::ByClock,
            batches_max: BATCHES_MAX,
            members: Arc::new(neural_members),
            outlook: None,
            history_file: Arc::new(MemoryFile::default()),
            store_folder: None,
            checkpoint_file: Arc::new(MemoryFile::default()),
            announced_file: Arc::new(MemoryFile::default()),
            controls_file: Arc::new(MemoryFile::default()),
            step_time_max: STEP_TIME_MAX,
            plan_time_max: PLAN_TIME_MAX,
            node_time_max: NODE_TIME_MAX,
        }
    }

    /// Keeps history, calls, checkpoint, announcements and controls in `folder`, which must exist.
    #[must_use]
    pub fn in_folder(mut self, folder: &Path) -> Self {
        self.history_file = Arc::new(DiskFile::new(folder.join("history")));
        self.store_folder = Some(folder.join("calls"));
        self.checkpoint_file = Arc::new(DiskFile::new(folder.join("forecast")));
        self.announced_file = Arc::new(DiskFile::new(folder.join("announced")));
        self.controls_file = Arc::new(DiskFile::new(folder.join("controls")));
        self
    }

    /// Blocks while it reads what people said.
    fn born(self, store: Option<Arc<HistoryStore>>) -> LoopSupervisorArgs {
        let announced = Announcements::kept(self.announced_file);
        let calls = CallSink::new(self.batches_max);
        let controls = KeptControls::kept(self.controls_file);
        let board = Arc::new(Board::new(self.config, calls, announced, controls));
        let timed = self.ticks == Ticks::ByClock;
        let clock = self.clock;
        LoopSupervisorArgs {
            monitor: MonitorArgs {
                board: board.clone(),
                clock: clock.clone(),
                file: self.history_file,
                store,
                timed,
            },
            predictor: PredictorArgs {
                board: board.clone(),
                clock: clock.clone(),
                file: self.checkpoint_file,
                members: self.members,
                timed,
                outlook: self.outlook,
            },
            manager: ManagerArgs {
                board: board.clone(),
                clock: clock.clone(),
                cluster: self.cluster.clone(),
                step_time_max: self.step_time_max,
                plan_time_max: self.plan_time_max,
            },
            allocator: AllocatorArgs {
                board: board.clone(),
                clock,
                cluster: self.cluster,
                provider: self.provider,
                step_time_max: self.node_time_max,
            },
            board,
        }
    }
}

/// A running loop. Cloneable; reading never queues behind an actor.
#[derive(Clone, Debug)]
pub struct LoopHandle {
    board: Arc<Board>,
    clock: SharedClock,
    store: Option<Arc<HistoryStore>>,
    supervisor: ActorRef<LoopSupervisorMessage>,
}

impl LoopHandle {
    /// Starts the four actors, supervised, and below `parent` if there is one.
    ///
    /// # Errors
    /// [`LoopError::Start`] if one of them refuses its settings. An unreadable state is no error: it is
    /// set aside; nor is a store that cannot be opened: then calls are not kept for longer.
    pub async fn start(args: LoopArgs, parent: Option<ActorCell>) -> Result<Self, LoopError> {
        let failed = |error: &dyn fmt::Display| LoopError::Start { reason: error.to_string() };
        let (store, own) = (opened(&args).await, args);
        let kept = store.clone();
        let born = tokio::task::spawn_blocking(move || own.born(kept));
        let born = born.await.map_err(|error| failed(&error))?;
        let (board, clock) = (born.board.clone(), born.monitor.clock.clone());
        let spawned = match parent {
            Some(parent) => Actor::spawn_linked(None, LoopSupervisor, born, parent).await,
            None => Actor::spawn(None, LoopSupervisor, born).await,
        };
        let (supervisor, _) = spawned.map_err(|error| failed(&error))?;
        Ok(Self { board, clock, store, supervisor })
    }

    /// Takes measured calls from query tasks.
    #[must_use]
    pub fn calls(&self) -> CallSink {
        self.board.calls.clone()
    }

    /// Closes a tick and returns when everybody is done with it: counted, forecast, learned, planned,
    /// steps sent (see [`settled`](Self::settled) for their end). Answers the tick that was closed.
    ///
    /// # Errors
    /// [`LoopError::Down`] if the monitor is not running; it may be a moment later.
    pub async fn tick(&self) -> Result<Tick, LoopError> {
        let (token, end) = TickToken::pair();
        let before = self.board.tick();
        let sent = self.board.monitor.cast(MonitorMessage::TickDue(token));
        end.wait().await;
        let tick = self.board.tick();
        if !sent || tick == before {
            return Err(LoopError::Down { role: Role::Monitor });
        }
        Ok(tick)
    }

    /// Returns when no step is under way. With ticks by hand, none is added meanwhile.
    pub async fn settled(&self) {
        let mut open = self.board.open_steps();
        // The sender lives in the board, so this cannot fail.
        drop(open.wait_for(|open| open.iter().sum::<usize>() == 0).await);
    }

    /// The last closed tick.
    #[must_use]
    pub fn last_tick(&self) -> Tick {
        self.board.tick()
    }

    /// Settings, with the mode as it is now.
    #[must_use]
    pub fn config(&self) -> Arc<LoopConfig> {
        self.board.config.load_full()
    }

    /// Changes what the loop may do, from the next plan on.
    ///
    /// # Errors
    /// [`ConfigError`] if the settings do not allow it.
    pub fn set_mode(&self, mode: Mode) -> Result<(), ConfigError> {
        let config = LoopConfig::clone(&self.board.config.load()).with_mode(mode)?;
        self.board.config.store(Arc::new(config));
        Ok(())
    }

    /// History up to the last closed tick.
    #[must_use]
    pub fn history(&self) -> Arc<HistoryView> {
        self.board.history.load_full()
    }

    /// What was called for longer, on disk; if it is kept.
    #[must_use]
    pub fn history_store(&self) -> Option<Arc<HistoryStore>> {
        self.store.clone()
    }

    /// Takes in a file that [`HistoryStore::export`] wrote: its rows are kept beside those of this system,
    /// and forecasts learn from them as from its own past, from the next tick on. What ended more than a
    /// day ago counts for them as if it had ended within the last one, at the same hours. Blocks.
    ///
    /// Answers also the ticks of the past in which something was called by the file; none of those that a
    /// history does not remember (`history-ticks-max`).
    ///
    /// # Errors
    /// As [`HistoryStore::import`]; [`HistoryStoreError::Closed`] if no history is kept on disk.
    pub fn import_history(&self, path: &Path) -> Result<(Imported, usize), HistoryStoreError> {
        let store = self.store.as_ref().ok_or(HistoryStoreError::Closed)?;
        let imported = store.import(path)?;
        let (config, now_ms) = (self.config(), self.clock.now_ms());
        let ticks_max = config.history_ticks_max() as u64;
        let recalled = Recalled::new(config.tick_ms(), ticks_max, now_ms);
        let mut recalled = recalled.moved_to_the_last_day(imported.until_ms, now_ms);
        HistoryStore::rows_of_export(path, |resolution, row| recalled.add(resolution, row))?;
        let ticks = recalled.ticks();
        self.board.monitor.cast(MonitorMessage::Recalled(Box::new(recalled)));
        Ok((imported, ticks))
    }

    /// What was wrong with the time of calls and ticks.
    #[must_use]
    pub fn irregular(&self) -> Irregular {
        **self.board.irregular.load()
    }

    /// Says that rows are in other partitions now, a table has another name, or a function another body: the
    /// series of the history go on there. Does not wait; `false` if the monitor is not running.
    pub fn follow(&self, what: Succession) -> bool {
        self.board.monitor.cast(MonitorMessage::Succeeded(Box::new(what)))
    }

    /// What is expected, as the predictor believes it (never inverted).
    #[must_use]
    pub fn forecast(&self) -> Arc<Forecast> {
        self.board.forecast.load_full()
    }

    /// Where the ticks of the newest forecast lie on the clock.
    #[must_use]
    pub fn moments(&self) -> Moments {
        *self.board.moments.load_full()
    }

    /// What is expected to be called next.
    #[must_use]
    pub fn next_calls(&self) -> Arc<NextCalls> {
        self.board.next_calls.load_full()
    }

    /// The members of the ensemble, and what they did when they learned last.
    #[must_use]
    pub fn fits(&self) -> Arc<Vec<MemberFit>> {
        self.board.fits.load_full()
    }

    /// What people announced of the future, and of the past that is remembered.
    #[must_use]
    pub fn announced(&self) -> Arc<Announced> {
        self.board.announced.all()
    }

    /// Adds an announcement, to forecasts from the next one on. It is on disk when this returns, if the
    /// loop's state is.
    ///
    /// # Errors
    /// [`AnnouncementError`] if it cannot be, or cannot be kept.
    pub async fn announce(&self, announcement: Announcement) -> Result<(), AnnouncementError> {
        let (now_ms, config) = (self.clock.now_ms(), self.config());
        let remembered_ms = config.tick_ms().saturating_mul(config.history_ticks_max() as u64);
        self.change_announced(move |all| {
            all.forget_before(now_ms.saturating_sub(remembered_ms));
            all.announce(announcement, now_ms)
        })
        .await
    }

    /// Takes back all that was announced of a function; answers how many spans that were.
    ///
    /// # Errors
    /// [`AnnouncementError`] if that cannot be kept.
    pub async fn take_back(&self, function: &str) -> Result<usize, AnnouncementError> {
        let function = function.to_owned();
        self.change_announced(move |all| Ok(all.take_back(&function))).await
    }

    async fn change_announced<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Announced) -> Result<T, AnnounceError> + Send + 'static,
    ) -> Result<T, AnnouncementError> {
        let board = self.board.clone();
        let done = tokio::task::spawn_blocking(move || board.announced.change(change)).await;
        done.unwrap_or_else(|error| Err(AnnouncementError::Unsaved { reason: error.to_string() }))
    }

    /// What earlier forecasts turned out to be worth.
    #[must_use]
    pub fn scores(&self) -> Arc<Scores> {
        self.board.scores.load_full()
    }

    /// The decisions that are remembered, oldest first.
    #[must_use]
    pub fn decisions(&self) -> Vec<DecisionRow> {
        self.board.decisions()
    }

    /// What the steps of each kind were worth, and how far it is trusted.
    #[must_use]
    pub fn trust(&self) -> Vec<KindTrust> {
        self.board.ledger().trust().kinds().collect()
    }

    /// The newest raw calls, oldest first.
    #[must_use]
    pub fn recent_calls(&self) -> Vec<CallRecord> {
        self.board.recent.records()
    }

    /// Kills one actor, as a fault would. For tests and experiments; its successor starts at once.
    pub fn kill(&self, role: Role) {
        if let Some(cell) = self.board.cell(role) {
            cell.kill();
        }
    }

    /// How often an actor was started again.
    #[must_use]
    pub fn restarts(&self, role: Role) -> u64 {
        self.board.restarts(role)
    }

    /// Everything that the actors publish.
    #[must_use]
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Stops the loop and saves history and checkpoint. Steps under way are cancelled.
    ///
    /// # Errors
    /// [`LoopError::Stop`] if it takes too long. A loop that is stopped already is no error.
    pub async fn shutdown(&self) -> Result<(), LoopError> {
        let stopped = match ractor::call_t!(
            self.supervisor,
            LoopSupervisorMessage::Shutdown,
            SHUTDOWN_MS_MAX
        ) {
            Err(ractor::RactorErr::Timeout) => Err(LoopError::Stop { ms: SHUTDOWN_MS_MAX }),
            _ => Ok(()),
        };
        if let Some(store) = self.store.clone() {
            // A panic of its thread was logged; it is as good as closed.
            drop(tokio::task::spawn_blocking(move || store.close()).await);
        }
        stopped
    }
}

/// The store, if there is to be one and it can be opened.
async fn opened(args: &LoopArgs) -> Option<Arc<HistoryStore>> {
    let folder = args.store_folder.clone()?;
    let monitor = args.config.monitor().clone();
    let of_folder = folder.clone();
    let open = move || HistoryStore::open(&of_folder, &monitor);
    match tokio::task::spawn_blocking(open).await {
        Ok(Ok(store)) => Some(Arc::new(store)),
        Ok(Err(error)) => {
            tracing::warn!(%error, "calls are not kept on disk");
            None
        }
        Err(error) => {
            tracing::warn!(%error, ?folder, "the history store did not start");
            None
        }
    }
}
