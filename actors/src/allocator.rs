//! The allocator: keeps the number of nodes, and what each may use, close to what the forecasts ask for.
//!
//! ```text
//! predictor --ForecastReady--> allocator --add, remove, budgets--> NodeProvider port
//! monitor --TickClosed-----------^   ^--StepDone-------------------'
//! people --Approve---------------'
//! ```
//!
//! It decides nothing itself: `policy::allocate::plan` does. Each step has a deadline. If it dies, the
//! steps under way are cancelled; its successor starts from the nodes that then run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::allocate::{self, AllocateState, NodeBudget};
use foreshard_policy::cluster::Step;
use foreshard_policy::control::ControlError;
use foreshard_policy::decision::{By, Outcome as Recorded, Stamp};
use foreshard_policy::forecast::Forecast;
use foreshard_policy::ids::{Epoch, NodeId, Tick};
use foreshard_policy::reshape::Planned;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::board::{Board, Role, TickToken, recorded};
use crate::manager::FORECAST_WAIT_TICKS;
use crate::ports::{Cluster, NodeProvider, Outcome, SharedClock};
use crate::postponed::Postponed;
use crate::steps::{CODE_UNKNOWN, Steps, decision_span, start_afresh};

/// How long adding or removing a node may take unless told otherwise; a node is drained first.
pub const NODE_TIME_MAX: Duration = Duration::from_secs(300);

/// What the allocator can be told.
#[derive(Debug)]
pub enum AllocatorMessage {
    /// Event: there is a forecast for the ticks to come.
    ForecastReady(Arc<Forecast>, TickToken),
    /// Event: a tick was closed; its forecast may follow.
    TickClosed(Tick, TickToken),
    /// Command: carry a suggested step out; answers the number of the new decision.
    Approve(u64, RpcReplyPort<Result<u64, ControlError>>),
    /// Event: a node was added or removed, or could not be.
    StepDone {
        /// Epoch in which it was decided.
        epoch: Epoch,
        /// Number of the decision.
        id: u64,
        /// How it ended.
        outcome: Box<Outcome>,
    },
}

/// What an allocator is born with.
#[derive(Clone, Debug)]
pub struct AllocatorArgs {
    /// Where it finds settings, and writes decisions down.
    pub board: Arc<Board>,
    /// Dates the decisions.
    pub clock: SharedClock,
    /// What the cluster is.
    pub cluster: Arc<dyn Cluster>,
    /// The way out.
    pub provider: Arc<dyn NodeProvider>,
    /// How long one step may take.
    pub step_time_max: Duration,
}

/// The actor. All that changes lives in [`AllocatorState`].
#[derive(Debug)]
pub struct Allocator;

/// Memory of one allocator.
#[derive(Debug)]
pub struct AllocatorState {
    args: AllocatorArgs,
    steps: Steps,
    suggestions: Postponed,
    /// Nodes that wait because too many node-hours are used up.
    waiting: Postponed,
    policy: AllocateState,
    budgets: BTreeMap<NodeId, NodeBudget>,
    /// Tick of the newest forecast; before there is one, the tick before the first that was closed.
    forecast_at: Option<Tick>,
}

impl Actor for Allocator {
    type Msg = AllocatorMessage;
    type State = AllocatorState;
    type Arguments = AllocatorArgs;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        args: AllocatorArgs,
    ) -> Result<AllocatorState, ActorProcessingErr> {
        start_afresh(&args.board, Role::Allocator);
        Ok(AllocatorState {
            steps: Steps::new(args.step_time_max),
            suggestions: Postponed::new(By::Suggestion),
            waiting: Postponed::new(By::Limit),
            policy: AllocateState::default(),
            budgets: BTreeMap::new(),
            forecast_at: None,
            args,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: AllocatorMessage,
        state: &mut AllocatorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            AllocatorMessage::ForecastReady(forecast, _token) => {
                state.on_forecast_ready(&forecast, &myself);
            }
            AllocatorMessage::TickClosed(tick, _token) => state.on_tick_closed(tick, &myself),
            AllocatorMessage::Approve(id, reply) => drop(reply.send(state.approve(id, &myself))),
            AllocatorMessage::StepDone { epoch, id, outcome } => {
                state.on_step_done(epoch, id, &outcome);
            }
        }
        Ok(())
    }
}

impl AllocatorState {
    fn on_forecast_ready(&mut self, forecast: &Forecast, myself: &ActorRef<AllocatorMessage>) {
        self.forecast_at = Some(forecast.at);
        self.plan(Some(forecast), forecast.at, myself);
    }

    fn on_tick_closed(&mut self, tick: Tick, myself: &ActorRef<AllocatorMessage>) {
        let since = *self.forecast_at.get_or_insert(Tick(tick.0.saturating_sub(1)));
        if tick.0 > since.0 + FORECAST_WAIT_TICKS {
            self.plan(None, tick, myself);
        }
    }

    fn on_step_done(&mut self, epoch: Epoch, id: u64, outcome: &Outcome) {
        let Some(open) = self.steps.end(epoch, id) else {
            return tracing::debug!(epoch = epoch.0, id, "answer to a step that is over");
        };
        if let Outcome::Failed { code, reason } = outcome {
            tracing::warn!(code, step = %open.step, reason, "step failed");
        }
        // It is neither coming nor going any more, so the policy may ask again.
        match (&open.step, outcome) {
            (Step::AddNode { node }, Outcome::Done { .. }) => self.policy.added(*node),
            (Step::AddNode { node }, Outcome::Failed { .. }) => {
                self.policy.not_added(*node, self.args.board.tick());
            }
            (Step::RemoveNode { node }, Outcome::Failed { .. }) => self.policy.not_removed(*node),
            _ => {}
        }
        self.args.board.ledger().ended(id, recorded(outcome));
        self.args.board.show_open_steps(Role::Allocator, self.steps.len());
    }

    fn plan(
        &mut self,
        forecast: Option<&Forecast>,
        now: Tick,
        myself: &ActorRef<AllocatorMessage>,
    ) {
        let config = self.args.board.config.load_full();
        let view = self.args.cluster.view();
        self.policy.clock_ms = Some(self.args.clock.now_ms());
        let plan = allocate::plan(&view, forecast, &self.policy, &config, now);
        self.policy = plan.state;
        self.args.board.allocating.store(Arc::new(self.policy.clone()));
        self.set_budgets(plan.budgets);
        let at_ms = self.args.clock.now_ms();
        let stamp = Stamp { epoch: view.epoch, mode: config.mode(), tick: now, at_ms };
        self.suggestions.renew(plan.suggested, &mut self.args.board.ledger(), stamp);
        self.waiting.renew(plan.waiting, &mut self.args.board.ledger(), stamp);
        for planned in plan.steps {
            self.send(&planned, By::Loop, stamp, myself);
        }
    }

    fn approve(
        &mut self,
        id: u64,
        myself: &ActorRef<AllocatorMessage>,
    ) -> Result<u64, ControlError> {
        let board = self.args.board.clone();
        let planned = self.suggestions.approve(id, &board.ledger())?;
        // From here on the policy counts on it.
        match &planned.step {
            Step::AddNode { node } => drop(self.policy.adding.insert(*node)),
            Step::RemoveNode { node } => drop(self.policy.removing.insert(*node)),
            _ => {}
        }
        let stamp = Stamp {
            epoch: self.args.cluster.view().epoch,
            mode: board.config.load().mode(),
            tick: board.tick(),
            at_ms: self.args.clock.now_ms(),
        };
        let new = self.send(&planned, By::Approval { of: id }, stamp, myself);
        let reason = format!("approved, see decision {new}");
        board.ledger().ended(id, Recorded::Left { reason });
        Ok(new)
    }

    /// Tells the provider what is new only.
    fn set_budgets(&mut self, budgets: BTreeMap<NodeId, NodeBudget>) {
        for (node, budget) in &budgets {
            if self.budgets.get(node) != Some(budget) {
                self.args.provider.set_budget(*node, budget.cpu_permits, budget.memory_bytes);
            }
        }
        self.budgets = budgets;
    }

    /// Sends one step; answers the number of its decision.
    fn send(
        &mut self,
        planned: &Planned,
        by: By,
        stamp: Stamp,
        myself: &ActorRef<AllocatorMessage>,
    ) -> u64 {
        let epoch = stamp.epoch;
        let id = self.args.board.ledger().decided(planned, by, stamp);
        let step = planned.step.clone();
        let span = decision_span(&self.args.board, id, epoch, planned);
        span.in_scope(|| tracing::info!("step sent"));
        let (provider, carried) = (self.args.provider.clone(), step.clone());
        let work = async move {
            match carried {
                Step::AddNode { node } => provider.add(node).await,
                Step::RemoveNode { node } => provider.remove(node).await,
                step => Outcome::Failed {
                    code: CODE_UNKNOWN,
                    reason: format!("the allocator cannot {step}"),
                },
            }
        };
        let myself = myself.clone();
        self.steps.start((id, epoch, step), span, work, move |outcome| {
            drop(myself.cast(AllocatorMessage::StepDone { epoch, id, outcome }));
        });
        self.args.board.show_open_steps(Role::Allocator, self.steps.len());
        id
    }
}
