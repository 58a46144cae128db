//! The board of the loop: what its actors publish, and everybody reads without queueing.
//!
//! It outlives every actor: a successor finds here where the others are and which tick it is.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use foreshard_policy::allocate::AllocateState;
use foreshard_policy::config::LoopConfig;
use foreshard_policy::decision::{DecisionRow, Ledger, Outcome as Recorded};
use foreshard_policy::forecast::ensemble::MemberStanding;
use foreshard_policy::forecast::{FitReport, Forecast, Moments};
use foreshard_policy::history::{HistoryView, Irregular};
use foreshard_policy::ids::Tick;
use foreshard_policy::reshape::PlanState;
use foreshard_policy::score::{Score, ScoreMeans};
use ractor::{ActorCell, ActorRef};
use tokio::sync::{mpsc, watch};

use crate::allocator::AllocatorMessage;
use crate::announcements::Announcements;
use crate::calls::{CallSink, RECENT_MAX, RecentCalls};
use crate::controls::KeptControls;
use crate::manager::ManagerMessage;
use crate::monitor::MonitorMessage;
use crate::next_calls::NextCalls;
use crate::ports::Outcome;
use crate::predictor::PredictorMessage;
use crate::traffic::TrafficGauge;

/// Decisions that are kept for `system.decisions`.
pub const DECISIONS_MAX: usize = 2_000;

/// The actors of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Remembers what was called.
    Monitor,
    /// Expects what will be called.
    Predictor,
    /// Changes replicas and outputs.
    Manager,
    /// Changes nodes.
    Allocator,
}

impl Role {
    /// Every role, in the order in which they are started.
    pub const ALL: [Self; 4] = [Self::Allocator, Self::Manager, Self::Predictor, Self::Monitor];

    const fn place(self) -> usize {
        match self {
            Self::Monitor => 0,
            Self::Predictor => 1,
            Self::Manager => 2,
            Self::Allocator => 3,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Monitor => "monitor",
            Self::Predictor => "predictor",
            Self::Manager => "manager",
            Self::Allocator => "allocator",
        })
    }
}

/// What earlier forecasts turned out to be worth.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// The newest scores, oldest first.
    pub recent: Vec<Score>,
    /// Rolling means by function and horizon.
    pub means: BTreeMap<(Arc<str>, usize), ScoreMeans>,
}

/// One member of the ensemble, and what it did when it learned last.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberFit {
    /// What it knows and what it was worth.
    pub standing: MemberStanding,
    /// The last fit in which it did something, since the process started.
    pub last: FitReport,
    /// Why it could not learn the last time, if it could not; it goes on with what it knew.
    pub error: Option<String>,
}

/// Goes along with the messages of one tick; once every copy is dropped, the tick is over.
///
/// A message that dies with its receiver drops its copy too, so a tick ends whoever dies.
#[derive(Clone, Debug, Default)]
pub struct TickToken {
    alive: Option<mpsc::Sender<Infallible>>,
}

impl TickToken {
    /// A token, and what resolves when all of its copies are gone.
    #[must_use]
    pub fn pair() -> (Self, TickEnd) {
        let (alive, end) = mpsc::channel(1);
        (Self { alive: Some(alive) }, TickEnd { end })
    }

    /// Whether somebody waits for the end of the tick: then it was not the timer's.
    pub(crate) fn is_awaited(&self) -> bool {
        self.alive.is_some()
    }
}

/// Waits for the copies of one [`TickToken`].
#[derive(Debug)]
pub struct TickEnd {
    end: mpsc::Receiver<Infallible>,
}

impl TickEnd {
    /// Returns when the tick is over.
    pub async fn wait(mut self) {
        // Nothing is ever sent, so this is `None` as soon as the last sender is dropped.
        let _ = self.end.recv().await;
    }
}

/// Everything that the loop shows, and where its actors are.
#[derive(Debug)]
pub struct Board {
    /// Settings; only the mode changes while the loop runs.
    pub config: ArcSwap<LoopConfig>,
    /// Takes measured calls.
    pub calls: CallSink,
    /// The newest raw calls.
    pub recent: RecentCalls,
    /// History up to the last closed tick.
    pub history: ArcSwap<HistoryView>,
    /// What was wrong with the time of calls and ticks.
    pub irregular: ArcSwap<Irregular>,
    /// What is expected, as the predictor believes it (never inverted).
    pub forecast: ArcSwap<Forecast>,
    /// Where the ticks of the forecast lie on the clock.
    pub moments: ArcSwap<Moments>,
    /// What is expected to be called next.
    pub next_calls: ArcSwap<NextCalls>,
    /// Queries under way: learning waits for them.
    pub traffic: Arc<TrafficGauge>,
    /// What people announced of the future.
    pub announced: Announcements,
    /// What people let the loop do to each table.
    pub controls: KeptControls,
    /// What the next plan of replicas and outputs starts from, besides the cluster and the forecast.
    pub reshaping: ArcSwap<PlanState>,
    /// What the next plan of nodes starts from, besides them.
    pub allocating: ArcSwap<AllocateState>,
    /// What forecasts were worth.
    pub scores: ArcSwap<Scores>,
    /// The members of the ensemble, and what they did when they learned last.
    pub fits: ArcSwap<Vec<MemberFit>>,
    ledger: Mutex<Ledger>,
    tick: AtomicU64,
    restarts: [AtomicU64; 4],
    open_steps: watch::Sender<[usize; 4]>,
    pub(crate) monitor: Seat<MonitorMessage>,
    pub(crate) predictor: Seat<PredictorMessage>,
    pub(crate) manager: Seat<ManagerMessage>,
    pub(crate) allocator: Seat<AllocatorMessage>,
}

impl Board {
    /// A board with nothing on it but what people said before.
    #[must_use]
    pub fn new(
        config: LoopConfig,
        calls: CallSink,
        announced: Announcements,
        controls: KeptControls,
    ) -> Self {
        Self {
            config: ArcSwap::from_pointee(config),
            calls,
            recent: RecentCalls::new(RECENT_MAX),
            history: ArcSwap::default(),
            irregular: ArcSwap::default(),
            forecast: ArcSwap::default(),
            moments: ArcSwap::default(),
            next_calls: ArcSwap::default(),
            traffic: Arc::default(),
            announced,
            controls,
            reshaping: ArcSwap::default(),
            allocating: ArcSwap::default(),
            scores: ArcSwap::default(),
            fits: ArcSwap::default(),
            ledger: Mutex::new(Ledger::new(DECISIONS_MAX)),
            tick: AtomicU64::new(0),
            restarts: Default::default(),
            open_steps: watch::Sender::new([0; 4]),
            monitor: Seat::default(),
            predictor: Seat::default(),
            manager: Seat::default(),
            allocator: Seat::default(),
        }
    }

    /// The last closed tick of any monitor; it never goes back.
    #[must_use]
    pub fn tick(&self) -> Tick {
        Tick(self.tick.load(Ordering::Acquire))
    }

    pub(crate) fn tick_closed(&self, tick: Tick) {
        self.tick.fetch_max(tick.0, Ordering::AcqRel);
    }

    /// The decisions that are remembered, oldest first.
    #[must_use]
    pub fn decisions(&self) -> Vec<DecisionRow> {
        self.ledger().rows().cloned().collect()
    }

    /// The ledger, for as long as it takes to write some rows.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A row that a panicking actor left half written is worth less than all the others.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often an actor was started again.
    #[must_use]
    pub fn restarts(&self, role: Role) -> u64 {
        self.restarts[role.place()].load(Ordering::Acquire)
    }

    pub(crate) fn restarted(&self, role: Role) {
        self.restarts[role.place()].fetch_add(1, Ordering::AcqRel);
    }

    /// How many steps of all actors are under way; changes are signalled.
    #[must_use]
    pub fn open_steps(&self) -> watch::Receiver<[usize; 4]> {
        self.open_steps.subscribe()
    }

    pub(crate) fn show_open_steps(&self, role: Role, open: usize) {
        self.open_steps
            .send_if_modified(|all| std::mem::replace(&mut all[role.place()], open) != open);
    }

    /// The cell of the actor that now plays `role`.
    #[must_use]
    pub fn cell(&self, role: Role) -> Option<ActorCell> {
        match role {
            Role::Monitor => self.monitor.cell(),
            Role::Predictor => self.predictor.cell(),
            Role::Manager => self.manager.cell(),
            Role::Allocator => self.allocator.cell(),
        }
    }
}

/// Where the actor of a role is found. A successor takes the seat; its predecessor's reference is dead.
pub(crate) struct Seat<M> {
    actor: ArcSwapOption<ActorRef<M>>,
}

impl<M> Default for Seat<M> {
    fn default() -> Self {
        Self { actor: ArcSwapOption::empty() }
    }
}

impl<M> fmt::Debug for Seat<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seat({})", self.actor.load().is_some())
    }
}

impl<M: ractor::Message> Seat<M> {
    pub(crate) fn take(&self, actor: ActorRef<M>) {
        self.actor.store(Some(Arc::new(actor)));
    }

    /// Sends to whoever sits here. A message to nobody is dropped; `false` says so.
    pub(crate) fn cast(&self, message: M) -> bool {
        self.actor.load().as_ref().is_some_and(|actor| actor.cast(message).is_ok())
    }

    fn cell(&self) -> Option<ActorCell> {
        self.actor.load().as_ref().map(|actor| actor.get_cell())
    }
}

/// The outcome as it stands in a decision's row.
pub(crate) fn recorded(outcome: &Outcome) -> Recorded {
    match outcome {
        Outcome::Done { rows, bytes, ns } => Recorded::Done { rows: *rows, bytes: *bytes, ns: *ns },
        Outcome::Reshaped { bytes, .. } => Recorded::Done { rows: 0, bytes: *bytes, ns: 0 },
        Outcome::Failed { code, reason } => {
            Recorded::Failed { code: (*code).into(), reason: reason.clone() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tick_is_over_when_the_last_copy_of_its_token_is_gone() {
        let (token, end) = TickToken::pair();
        let copy = token.clone();
        drop(token);
        let end = end.wait();
        tokio::pin!(end);
        let second = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(second, &mut end).await.is_err());
        drop(copy);
        tokio::time::timeout(second, end).await.unwrap();
    }
}
