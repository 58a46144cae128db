//! The loop without its actors: the same history, forecasts, plans and ledger, asked in the same order.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::{ClusterView, Step};
use foreshard_policy::config::LoopConfig;
use foreshard_policy::control::ControlError;
use foreshard_policy::decision::{By, Ledger, Outcome, Stamp};
use foreshard_policy::forecast::ensemble::Ensemble;
use foreshard_policy::forecast::{Effort, Forecast};
use foreshard_policy::harm::Harm;
use foreshard_policy::history::{History, HistoryView};
use foreshard_policy::ids::{Epoch, NodeId, PartitionId, Tick};
use foreshard_policy::reshape::{
    BackgroundBudget, MovedBytes, PlanState, Planned, Reason, churn, plan,
};
use foreshard_policy::undo::undo;

use super::costs::RoundTook;
use super::scene::{BYTES_PER_ROW, Scene};

/// Decisions that are remembered: all of them.
const DECISIONS_MAX: usize = 1_000_000;

/// What a loop knows of the past.
pub(super) struct Learned {
    history: Vec<u8>,
    ensemble: Vec<u8>,
    /// What the rounds took, newest last.
    pub(super) rounds: Vec<RoundTook>,
}

/// One loop.
pub(super) struct TheLoop {
    pub(super) config: LoopConfig,
    pub(super) ledger: Ledger,
    history: History,
    ensemble: Ensemble,
    budget: BackgroundBudget,
    moved: MovedBytes,
    changed: BTreeMap<PartitionId, Tick>,
    traded: BTreeMap<NodeId, Tick>,
    in_flight: BTreeMap<u64, Step>,
    /// What was charged to each holder for a step under way.
    charged: BTreeMap<u64, (Vec<NodeId>, f64)>,
    epoch: Epoch,
    tick: Tick,
}

/// Tells a loop the calls of the minutes before, and has it learn from them as it would have.
///
/// * `now_ns`: the time, to measure what rounds take; none of the rest depends on it.
///
/// # Errors
/// What a member says.
pub(super) fn learn(
    scene: &Scene,
    config: &LoopConfig,
    now_ns: &dyn Fn() -> u64,
) -> Result<Learned> {
    let (mut history, mut ensemble) = (History::new(config), Ensemble::new(config, Vec::new()));
    let (mut query, mut rounds) = (1 << 40, Vec::with_capacity(scene.past.len()));
    for minute in &scene.past {
        for (pair, count) in minute.iter().enumerate() {
            for _ in 0..*count {
                query += 1;
                history.record(&computed(scene, pair, usize::MAX, query));
            }
        }
        history.close_tick();
        let view = history.view();
        let began = now_ns();
        ensemble.observe(&view);
        ensemble.forecast(&view, config.horizon_ticks())?;
        let forecast_ns = now_ns().saturating_sub(began);
        let (last, pieces) = (Cell::new(now_ns()), RefCell::new(Vec::new()));
        let pause = || {
            let now = now_ns();
            pieces.borrow_mut().push(now.saturating_sub(last.replace(now)));
        };
        let is_new = fit(&mut ensemble, &view, Effort::steps(0).with_pauses(&pause))?;
        pause();
        rounds.push(RoundTook { forecast_ns, learn_ns: pieces.into_inner(), is_new });
    }
    Ok(Learned { history: history.save(), ensemble: ensemble.save()?, rounds })
}

/// A call that computes the rows of the last minutes that it asks for, at most so many.
fn computed(scene: &Scene, pair: usize, minutes: usize, query: u64) -> CallRecord {
    let part = &scene.parts[scene.pairs[pair].partition];
    let minutes = part.window.min(minutes);
    let rows = part.rows_kept + (part.rows_a_minute * minutes as f64).round() as u64;
    let ns = (rows as f64 * scene.pairs[pair].row_ns) as u64;
    CallRecord {
        rows,
        ns,
        would_be_ns: ns,
        bytes: BYTES_PER_ROW * rows,
        ..CallRecord::empty(scene.series(pair), query, NodeId(0), None)
    }
}

/// Lets members learn; answers whether they learned anew.
fn fit(ensemble: &mut Ensemble, view: &HistoryView, effort: Effort<'_>) -> Result<bool> {
    for (member, report) in ensemble.fit(view, effort) {
        report.map_err(|error| anyhow!("{member} did not learn: {error}"))?;
    }
    Ok(ensemble.standings().iter().any(|standing| standing.report.at == Some(view.at)))
}

impl TheLoop {
    /// A loop that knows what was learned, and that each function was called once since then.
    ///
    /// # Errors
    /// What was learned cannot be read.
    pub(super) fn new(scene: &Scene, config: LoopConfig, learned: &Learned) -> Result<Self> {
        let mut history = History::load(&config, &learned.history)?;
        let mut ensemble = Ensemble::new(&config, Vec::new());
        ensemble.load(&learned.ensemble)?;
        for (query, pair) in scene.opening.iter().enumerate() {
            history.record(&computed(scene, *pair, 1, query as u64));
        }
        let (budget, moved, changed, traded) = Default::default();
        Ok(Self {
            ledger: Ledger::new(DECISIONS_MAX),
            history,
            ensemble,
            budget,
            moved,
            changed,
            traded,
            in_flight: BTreeMap::new(),
            charged: BTreeMap::new(),
            epoch: Epoch(1),
            tick: Tick(0),
            config,
        })
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes note of a call that has ended.
    pub(super) fn record(&mut self, call: &CallRecord) {
        self.history.record(call);
        self.ledger.credit(call);
    }

    /// Ends a tick: budgets are filled, earlier steps are judged, and what did harm is taken back. Answers
    /// what is known of the past, and the steps.
    pub(super) fn close_tick(&mut self, view: &ClusterView) -> (HistoryView, Vec<(u64, Step)>) {
        self.tick = self.history.close_tick();
        self.budget.refill(view.nodes.keys().copied(), &self.config);
        let reverts: Vec<(u64, Step)> = self
            .ledger
            .close_tick(self.tick, &self.config, &view.nodes)
            .into_iter()
            // What cannot be taken back any more stays.
            .filter_map(|harm| self.revert(harm, view).ok())
            .collect();
        let reshape = self.config.reshape();
        let (dwell, blackout) = (reshape.dwell_ticks(), reshape.blackout_ticks());
        let now = self.tick.0;
        self.changed.retain(|_, changed| now <= changed.0.saturating_add(dwell));
        self.traded.retain(|_, traded| now <= traded.0.saturating_add(blackout));
        (self.history.view(), reverts)
    }

    fn revert(&mut self, harm: Harm, view: &ClusterView) -> Result<(u64, Step), ControlError> {
        let Harm { id, slower, chance } = harm;
        let row = self.ledger.get(id)?.clone();
        let in_flight: Vec<Step> = self.in_flight.values().cloned().collect();
        let reason = Reason::Harmed { id, slower, chance };
        let planned = undo(&row, view, &in_flight, &Default::default(), reason)?;
        if let Some(step) = &row.step {
            let ticks = self.config.reshape().undone_ticks();
            self.ledger.avoid(step.aim(), Tick(self.tick.0.saturating_add(ticks)));
        }
        Ok(self.send(planned, By::Revert { of: id }, view, self.tick))
    }

    /// Scores what was expected, and expects anew.
    ///
    /// # Errors
    /// No member can forecast.
    pub(super) fn forecast(&mut self, seen: &HistoryView) -> Result<Arc<Forecast>> {
        self.ensemble.observe(seen);
        Ok(Arc::new(self.ensemble.forecast(seen, self.config.horizon_ticks())?))
    }

    /// Learns; answers whether members learned anew.
    ///
    /// # Errors
    /// What a member says.
    pub(super) fn learn(&mut self, seen: &HistoryView) -> Result<bool> {
        fit(&mut self.ensemble, seen, Effort::steps(0))
    }

    /// Plans; answers the steps with the numbers of their decisions.
    pub(super) fn plan(&mut self, told: &Forecast, view: &ClusterView) -> Vec<(u64, Step)> {
        let state = PlanState {
            in_flight: self.in_flight.values().cloned().collect(),
            changed: self.changed.clone(),
            traded: self.traded.clone(),
            background_ns: self.budget.free_ns().clone(),
            background_spent: self.budget.spent().clone(),
            avoided: self.ledger.avoided(told.at),
            moved: self.moved.clone(),
            trust: self.ledger.trust().now(),
            ..PlanState::default()
        };
        let plan = plan(view, Some(told), &state, &self.config, told.at);
        self.epoch = self.epoch.max(plan.epoch);
        let steps = plan.steps.into_iter();
        steps.map(|planned| self.send(planned, By::Loop, view, told.at)).collect()
    }

    fn send(&mut self, planned: Planned, by: By, view: &ClusterView, at: Tick) -> (u64, Step) {
        let mode = self.config.mode();
        let id = self.ledger.decided(
            &planned,
            by,
            Stamp { epoch: self.epoch, mode, tick: at, at_ms: 0 },
        );
        let lead = self.config.precompute().lead_ticks() as u64;
        self.ledger.judge_at(id, Tick(at.0.saturating_add(lead + 1)));
        if let Some(bytes) = churn::bytes_copied(&planned) {
            self.moved.charge(at, bytes as u64, &self.config);
        }
        let Planned { step, worth, .. } = planned;
        if let Step::Precompute { partition, .. } = &step
            && let Some(seen) = view.partitions.get(partition)
        {
            let holders: Vec<NodeId> = seen.holders.iter().copied().collect();
            let each_ns = worth.cost_ns / holders.len().max(1) as f64;
            holders.iter().for_each(|node| self.budget.charge(*node, &partition.table, each_ns));
            self.charged.insert(id, (holders, each_ns));
        }
        self.in_flight.insert(id, step.clone());
        (id, step)
    }

    /// A step was carried out.
    pub(super) fn ended(&mut self, id: u64, outcome: Outcome) {
        let Some(step) = self.in_flight.remove(&id) else { return };
        if let Some((holders, charged_ns)) = self.charged.remove(&id)
            && let Outcome::Done { ns, .. } = &outcome
            && let Some(partition) = step.partition()
        {
            let table = &partition.table;
            let over_ns = *ns as f64 / holders.len().max(1) as f64 - charged_ns;
            holders.into_iter().for_each(|node| self.budget.charge(node, table, over_ns));
        }
        if let Some(partition) = step.partition_moved() {
            self.changed.insert(partition.clone(), self.tick);
            let ticks = self.config.feedback().watch_ticks();
            if ticks > 0 {
                self.ledger.watch(id, Tick(self.tick.0.saturating_add(ticks)));
            }
        }
        if let Step::Move { from, to, .. } = step {
            self.traded.extend([(from, self.tick), (to, self.tick)]);
        }
        self.ledger.ended(id, outcome);
    }
}
