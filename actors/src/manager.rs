//! The partition manager: keeps replicas and stored outputs close to what the forecasts ask for.
//!
//! ```text
//! predictor --ForecastReady--> manager --steps--> Cluster port
//! monitor --TickClosed-----------^  ^--StepDone------'
//! people --Approve, Undo---------'
//! ```
//!
//! It decides nothing itself: `policy::reshape::plan` does. Each step has a deadline, each plan another
//! one, and what is under way counts in the next plan. Without a forecast for
//! [`FORECAST_WAIT_TICKS`] it plans without. If it dies, the steps under way are cancelled; its
//! successor starts from what the cluster then is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::budgets::Shares;
use foreshard_policy::cluster::{ClusterView, NodeView, Step};
use foreshard_policy::config::Mode;
use foreshard_policy::control::{Control, ControlError, Controls};
use foreshard_policy::decision::{By, DecisionRow, Outcome as Recorded, Stamp};
use foreshard_policy::forecast::Forecast;
use foreshard_policy::harm::Harm;
use foreshard_policy::ids::{Epoch, NodeId, PartitionId, Tick};
use foreshard_policy::reshape::{
    self, BackgroundBudget, KnownCosts, MovedBytes, PlanState, Planned, Reason, churn,
};
use foreshard_policy::undo;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::board::{Board, Role, TickToken, recorded};
use crate::ports::{Cluster, Outcome, SharedClock};
use crate::postponed::Postponed;
use crate::steps::{Steps, decision_span, late, start_afresh};

/// How long one step may take unless told otherwise.
pub const STEP_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a plan may take unless told otherwise: the last of its steps waits for those before it.
pub const PLAN_TIME_MAX: Duration = Duration::from_secs(90);

/// Ticks without a forecast after which plans are made without one.
pub const FORECAST_WAIT_TICKS: u64 = 2;

/// What the manager can be told or asked.
#[derive(Debug)]
pub enum ManagerMessage {
    /// Event: there is a forecast for the ticks to come.
    ForecastReady(Arc<Forecast>, TickToken),
    /// Event: a tick was closed; its forecast may follow.
    TickClosed(Tick, TickToken),
    /// Event: a step of the plan for `epoch` has ended.
    StepDone {
        /// Epoch of the plan.
        epoch: Epoch,
        /// Number of the decision.
        id: u64,
        /// How it ended.
        outcome: Box<Outcome>,
    },
    /// Command: carry a suggested step out; answers the number of the new decision.
    Approve(u64, RpcReplyPort<Result<u64, ControlError>>),
    /// Command: take a step back; answers the number of the new decision.
    Undo(u64, RpcReplyPort<Result<u64, ControlError>>),
    /// Timer: the plan whose last decision has this number has had its time.
    PlanExpired(u64),
    /// Query: the steps under way.
    GetInFlight(RpcReplyPort<Vec<Step>>),
}

/// What a manager is born with.
#[derive(Clone, Debug)]
pub struct ManagerArgs {
    /// Where it finds settings, and writes decisions down.
    pub board: Arc<Board>,
    /// Dates the decisions.
    pub clock: SharedClock,
    /// The way out.
    pub cluster: Arc<dyn Cluster>,
    /// How long one step may take.
    pub step_time_max: Duration,
    /// How long a plan may take.
    pub plan_time_max: Duration,
}

/// The actor. All that changes lives in [`ManagerState`].
#[derive(Debug)]
pub struct Manager;

/// Memory of one manager.
#[derive(Debug)]
pub struct ManagerState {
    args: ManagerArgs,
    steps: Steps,
    suggestions: Postponed,
    /// Copies that wait because too much was moved within the hour.
    waiting: Postponed,
    /// Steps that are left out to measure what others like them spare.
    held_back: Postponed,
    moved: MovedBytes,
    /// What was charged to each holder for a step under way, by number of the decision.
    charged: BTreeMap<u64, (Vec<NodeId>, f64)>,
    budget: BackgroundBudget,
    /// What nodes were told of the parts of tables.
    shares: Arc<Shares>,
    changed: BTreeMap<PartitionId, Tick>,
    /// What rows cost before the replicas of a partition changed, or change.
    costs: KnownCosts,
    /// When a partition of a table was last split or merged.
    reshaped: BTreeMap<Arc<str>, Tick>,
    traded: BTreeMap<NodeId, Tick>,
    /// Epoch of the newest plan; the cluster may not have reached it yet.
    epoch: Epoch,
    /// Tick of the newest forecast; before there is one, the tick before the first that was closed.
    forecast_at: Option<Tick>,
}

impl Actor for Manager {
    type Msg = ManagerMessage;
    type State = ManagerState;
    type Arguments = ManagerArgs;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        args: ManagerArgs,
    ) -> Result<ManagerState, ActorProcessingErr> {
        start_afresh(&args.board, Role::Manager);
        Ok(ManagerState {
            steps: Steps::new(args.step_time_max),
            suggestions: Postponed::new(By::Suggestion),
            waiting: Postponed::new(By::Limit),
            held_back: Postponed::new(By::Holdback),
            moved: MovedBytes::default(),
            charged: BTreeMap::new(),
            budget: BackgroundBudget::default(),
            shares: Arc::default(),
            changed: BTreeMap::new(),
            costs: KnownCosts::default(),
            reshaped: BTreeMap::new(),
            traded: BTreeMap::new(),
            epoch: Epoch::default(),
            forecast_at: None,
            args,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: ManagerMessage,
        state: &mut ManagerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ManagerMessage::ForecastReady(forecast, _token) => {
                state.on_forecast_ready(&forecast, &myself);
            }
            ManagerMessage::TickClosed(tick, _token) => state.on_tick_closed(tick, &myself),
            ManagerMessage::StepDone { epoch, id, outcome } => {
                state.on_step_done(epoch, id, &outcome);
            }
            ManagerMessage::Approve(id, reply) => drop(reply.send(state.approve(id, &myself))),
            ManagerMessage::Undo(id, reply) => drop(reply.send(state.undo(id, &myself))),
            ManagerMessage::PlanExpired(last) => state.on_plan_expired(last),
            ManagerMessage::GetInFlight(reply) => drop(reply.send(state.steps.in_flight())),
        }
        Ok(())
    }
}

impl ManagerState {
    fn on_forecast_ready(&mut self, forecast: &Forecast, myself: &ActorRef<ManagerMessage>) {
        self.forecast_at = Some(forecast.at);
        self.plan(Some(forecast), forecast.at, myself);
    }

    fn on_tick_closed(&mut self, tick: Tick, myself: &ActorRef<ManagerMessage>) {
        let config = self.args.board.config.load();
        let nodes = self.args.cluster.view().nodes;
        self.budget.refill(nodes.keys().copied(), &config);
        let rests = (config.reshape().dwell_ticks(), config.reshape().blackout_ticks());
        let split_dwell = config.reshape().split_dwell_ticks();
        drop(config);
        self.judge(tick, &nodes, myself);
        self.changed.retain(|_, changed| tick.0 <= changed.0.saturating_add(rests.0));
        let changing = self.steps.in_flight();
        self.costs.keep(|partition| {
            let changes = |step: &Step| step.partition_moved() == Some(partition);
            self.changed.contains_key(partition) || changing.iter().any(changes)
        });
        self.reshaped.retain(|_, at| tick.0 <= at.0.saturating_add(split_dwell));
        self.traded.retain(|_, traded| tick.0 <= traded.0.saturating_add(rests.1));
        let since = *self.forecast_at.get_or_insert(Tick(tick.0.saturating_sub(1)));
        if tick.0 > since.0 + FORECAST_WAIT_TICKS {
            self.plan(None, tick, myself);
        }
    }

    /// Judges earlier steps by what they brought, and takes back those that did harm.
    fn judge(
        &mut self,
        tick: Tick,
        nodes: &BTreeMap<NodeId, NodeView>,
        myself: &ActorRef<ManagerMessage>,
    ) {
        let config = self.args.board.config.load_full();
        let harms = self.args.board.ledger().close_tick(tick, &config, nodes);
        for harm in harms {
            if let Err(error) = self.revert(harm, myself) {
                let reason = harmed(harm);
                tracing::warn!(id = harm.id, code = error.code(), %error, %reason, "harm stays");
                let config = self.args.board.config.load_full();
                let stamp = self.stamp(self.epoch, config.mode(), tick);
                let text = format!("{reason}; it is not taken back: {error}");
                let target = format!("decision {}", harm.id);
                self.args.board.ledger().found("harm", &target, &text, stamp);
            }
        }
    }

    fn revert(
        &mut self,
        harm: Harm,
        myself: &ActorRef<ManagerMessage>,
    ) -> Result<u64, ControlError> {
        let row = self.args.board.ledger().get(harm.id)?.clone();
        let config = self.args.board.config.load_full();
        let table = row.step.as_ref().and_then(Step::partition).map(|it| it.table.clone());
        let controls = self.args.board.controls.all();
        let usual = config.control();
        if let Some(table) = table.filter(|table| controls.of(table, usual) != Control::Auto) {
            return Err(ControlError::NotAuto { table });
        }
        let planned = self.inverse(&row, harmed(harm))?;
        Ok(self.by_hand(planned, By::Revert { of: harm.id }, myself))
    }

    fn on_step_done(&mut self, epoch: Epoch, id: u64, outcome: &Outcome) {
        let Some(open) = self.steps.end(epoch, id) else {
            return tracing::debug!(epoch = epoch.0, id, "answer to a step of a plan that is over");
        };
        if let Some((holders, charged_ns)) = self.charged.remove(&id)
            && let Outcome::Done { ns, .. } = outcome
        {
            let over_ns = *ns as f64 / holders.len().max(1) as f64 - charged_ns;
            if let Some(partition) = open.step.partition() {
                let table = &partition.table;
                holders.into_iter().for_each(|node| self.budget.charge(node, table, over_ns));
            }
        }
        self.note_reshaped(&open.step, outcome);
        if let (Step::Prefetch { .. }, Outcome::Failed { .. }) = (&open.step, outcome) {
            self.avoid(&open.step);
        }
        match (outcome, &open.step) {
            (Outcome::Failed { code, reason }, step) => {
                tracing::warn!(code, epoch = open.epoch.0, %step, reason, "step failed");
            }
            (_, step) => {
                let now = self.args.board.tick();
                if let Some(partition) = step.partition_moved() {
                    self.changed.insert(partition.clone(), now);
                    let config = self.args.board.config.load();
                    let mut ledger = self.args.board.ledger();
                    let ticks = config.feedback().watch_ticks();
                    if ticks > 0 {
                        ledger.watch(id, Tick(now.0.saturating_add(ticks)));
                    }
                    ledger.follow(id, now, config.horizon_ticks() as u64);
                }
                if let Step::Move { from, to, .. } = step {
                    self.traded.extend([(*from, now), (*to, now)]);
                }
            }
        }
        let mut ledger = self.args.board.ledger();
        ledger.ended(id, recorded(outcome));
        if let Outcome::Reshaped { how, .. } = outcome {
            ledger.note(id, how);
        }
        drop(ledger);
        self.show_state();
        self.args.board.show_open_steps(Role::Manager, self.steps.len());
    }

    /// A table rests after a split or a merge. One that failed may fail for the same reason again: it is not
    /// tried again soon.
    fn note_reshaped(&mut self, step: &Step, outcome: &Outcome) {
        let now = self.args.board.tick();
        let ended = step.partitions_ended();
        if ended.is_empty() {
            return;
        }
        self.reshaped.extend(ended.into_iter().map(|partition| (partition.table, now)));
        if matches!(outcome, Outcome::Failed { .. }) {
            self.avoid(step);
        }
    }

    /// Lets the plan not do the same again for a while.
    fn avoid(&self, step: &Step) {
        let (board, now) = (&self.args.board, self.args.board.tick());
        let ticks = board.config.load().reshape().undone_ticks();
        board.ledger().avoid(step.aim(), Tick(now.0.saturating_add(ticks)));
    }

    fn on_plan_expired(&mut self, last: u64) {
        let ids = self.steps.expire(last);
        if ids.is_empty() {
            return;
        }
        tracing::warn!(last, steps = ids.len(), "plan expired");
        let outcome = recorded(&late(self.args.plan_time_max));
        for id in ids {
            self.charged.remove(&id);
            self.args.board.ledger().ended(id, outcome.clone());
        }
        self.args.board.show_open_steps(Role::Manager, self.steps.len());
    }

    fn plan(&mut self, forecast: Option<&Forecast>, now: Tick, myself: &ActorRef<ManagerMessage>) {
        let config = self.args.board.config.load_full();
        let mut view = self.args.cluster.view();
        view.epoch = view.epoch.max(self.epoch);
        let state = self.state(now);
        let shares = Shares::new(&view, forecast, &state.controls, &config);
        if shares.differs(&self.shares) {
            self.shares = Arc::new(shares);
            self.args.cluster.set_shares(&self.shares);
        }
        let plan = reshape::plan(&view, forecast, &state, &config, now);
        if let Some(forecast) = forecast {
            self.costs.note(&plan.steps, forecast);
        }
        let stamp = self.stamp(plan.epoch, config.mode(), now);
        self.suggestions.renew(plan.suggested, &mut self.args.board.ledger(), stamp);
        self.waiting.renew(plan.waiting, &mut self.args.board.ledger(), stamp);
        self.held_back.renew(plan.held_back, &mut self.args.board.ledger(), stamp);
        self.send(plan.steps, By::Loop, stamp, &view, myself);
        self.show_state();
    }

    /// What the next plan would start from, besides the view.
    fn state(&self, now: Tick) -> PlanState {
        let mut ledger = self.args.board.ledger();
        PlanState {
            in_flight: self.steps.in_flight(),
            changed: self.changed.clone(),
            costs: self.costs.clone(),
            reshaped: self.reshaped.clone(),
            traded: self.traded.clone(),
            background_ns: self.budget.free_ns().clone(),
            background_spent: self.budget.spent().clone(),
            controls: Controls::clone(&self.args.board.controls.all()),
            avoided: ledger.avoided(now),
            moved: self.moved.clone(),
            trust: ledger.trust().now(),
            known: ledger.trust().known(),
        }
    }

    fn show_state(&self) {
        let state = self.state(self.args.board.tick());
        self.args.board.reshaping.store(Arc::new(state));
    }

    fn stamp(&self, epoch: Epoch, mode: Mode, tick: Tick) -> Stamp {
        Stamp { epoch, mode, tick, at_ms: self.args.clock.now_ms() }
    }

    fn approve(&mut self, id: u64, myself: &ActorRef<ManagerMessage>) -> Result<u64, ControlError> {
        let board = self.args.board.clone();
        let kept = board.ledger().get(id)?.step.clone();
        if let Some(partition) = kept.as_ref().and_then(Step::partition)
            && board.controls.all().is_frozen(&partition.table)
        {
            return Err(ControlError::Frozen { table: partition.table.clone() });
        }
        let planned = self.suggestions.approve(id, &board.ledger())?;
        let new = self.by_hand(planned, By::Approval { of: id }, myself);
        let reason = format!("approved, see decision {new}");
        board.ledger().ended(id, Recorded::Left { reason });
        Ok(new)
    }

    fn undo(&mut self, id: u64, myself: &ActorRef<ManagerMessage>) -> Result<u64, ControlError> {
        let board = self.args.board.clone();
        let row = board.ledger().get(id)?.clone();
        let planned = self.inverse(&row, Reason::Undone { id })?;
        let new = self.by_hand(planned, By::Undo { of: id }, myself);
        self.show_state();
        Ok(new)
    }

    /// What takes a step back; from now on the plan does not do the same again for a while.
    fn inverse(&self, row: &DecisionRow, reason: Reason) -> Result<Planned, ControlError> {
        let (board, in_flight) = (&self.args.board, self.steps.in_flight());
        let (view, controls) = (self.args.cluster.view(), board.controls.all());
        let planned = undo::undo(row, &view, &in_flight, &controls, reason)?;
        if let Some(step) = &row.step {
            self.avoid(step);
        }
        Ok(planned)
    }

    /// Sends one step that somebody asked for; answers the number of its decision.
    fn by_hand(&mut self, planned: Planned, by: By, myself: &ActorRef<ManagerMessage>) -> u64 {
        let view = self.args.cluster.view();
        let epoch = view.epoch.max(self.epoch);
        let moves = planned.step.changes_placement();
        let epoch = if moves { epoch.next() } else { epoch };
        let mode = self.args.board.config.load().mode();
        let stamp = self.stamp(epoch, mode, self.args.board.tick());
        self.send(vec![planned], by, stamp, &view, myself).unwrap_or_default()
    }

    /// Sends steps; answers the number of the last decision.
    fn send(
        &mut self,
        steps: Vec<Planned>,
        by: By,
        stamp: Stamp,
        view: &ClusterView,
        myself: &ActorRef<ManagerMessage>,
    ) -> Option<u64> {
        let epoch = stamp.epoch;
        self.epoch = self.epoch.max(epoch);
        let mut last = None;
        for planned in steps {
            let id = self.args.board.ledger().decided(&planned, by, stamp);
            let lead = self.args.board.config.load().precompute().lead_ticks() as u64;
            self.args.board.ledger().judge_at(id, Tick(stamp.tick.0.saturating_add(lead + 1)));
            let span = decision_span(&self.args.board, id, epoch, &planned);
            span.in_scope(|| tracing::info!("step sent"));
            if let Some(bytes) = churn::bytes_copied(&planned) {
                let config = self.args.board.config.load();
                self.moved.charge(stamp.tick, bytes as u64, &config);
            }
            let Planned { step, worth, .. } = planned;
            self.charge(id, &step, worth.cost_ns, view);
            let (cluster, carried) = (self.args.cluster.clone(), step.clone());
            let work = async move { cluster.carry_out(epoch, carried).await };
            let myself = myself.clone();
            self.steps.start((id, epoch, step), span, work, move |outcome| {
                drop(myself.cast(ManagerMessage::StepDone { epoch, id, outcome }));
            });
            last = Some(id);
        }
        let last = last?;
        self.args.board.show_open_steps(Role::Manager, self.steps.len());
        let expired = move || ManagerMessage::PlanExpired(last);
        drop(myself.send_after(self.args.plan_time_max, expired));
        Some(last)
    }

    /// Takes what a computation is expected to cost from the accounts of the nodes that will do it.
    fn charge(&mut self, id: u64, step: &Step, cost_ns: f64, view: &ClusterView) {
        let Step::Precompute { partition: id_of, .. } = step else { return };
        let Some(partition) = view.partitions.get(id_of) else { return };
        let holders: Vec<NodeId> = partition.holders.iter().copied().collect();
        let each_ns = cost_ns / holders.len().max(1) as f64;
        let table = &id_of.table;
        holders.iter().for_each(|node| self.budget.charge(*node, table, each_ns));
        self.charged.insert(id, (holders, each_ns));
    }
}

fn harmed(harm: Harm) -> Reason {
    let Harm { id, slower, chance } = harm;
    Reason::Harmed { id, slower, chance }
}
