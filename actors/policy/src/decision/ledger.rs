//! The newest decisions, what their steps did afterwards, and what follows from that for later ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{By, DecisionRow, Outcome, Stamp};
use crate::calls::CallRecord;
use crate::cluster::{Aim, NodeView, Step};
use crate::config::LoopConfig;
use crate::control::ControlError;
use crate::harm::{Harm, HarmWatch, Verdict};
use crate::ids::{ExpressionId, NodeId, PartitionId, Tick};
use crate::reshape::{Planned, Reason};
use crate::trust::{Expected, Predicted, TrustBook};
use crate::waits::{Spared, Waits};

/// Windows of trust that are closed at the same time.
const WINDOWS_AT_ONCE_MAX: u64 = 20;

/// Kinds of which is measured what they spare: of other steps of these kinds nothing is learned.
const MEASURED: [&str; 3] = ["precompute", "copy", "move"];

/// What a step must be expected to spare to be judged by it: so many tasks fewer that wait, on average.
const MATERIAL: f64 = 0.01;

/// Aims that are remembered as to be avoided; beyond it those are forgotten that are over first.
const AVOIDED_MAX: usize = 10_000;

/// The newest decisions. Older ones are forgotten.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    rows: VecDeque<DecisionRow>,
    rows_max: usize,
    next_id: u64,
    /// Newest precompute decision by what it computed.
    computed: BTreeMap<(ExpressionId, PartitionId), u64>,
    /// What the plan must not do again before this tick.
    avoided: BTreeMap<Aim, Tick>,
    trust: TrustBook,
    harm: HarmWatch,
    waits: Waits,
    /// Decisions that are judged by what was measured once this tick is closed.
    due: VecDeque<(Tick, u64)>,
    /// The window of trust that is open.
    window: u64,
}

impl Ledger {
    /// Keeps at most `rows_max` decisions.
    #[must_use]
    pub fn new(rows_max: usize) -> Self {
        Self { rows_max, next_id: 1, ..Self::default() }
    }

    /// Writes a planned step down and answers its number.
    pub fn decided(&mut self, planned: &Planned, by: By, stamp: Stamp) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if let Step::Precompute { expression, partition, .. } = &planned.step
            && !matches!(by, By::Suggestion | By::Limit | By::Holdback)
        {
            self.computed.insert((*expression, partition.clone()), id);
        }
        if matches!(by, By::Loop | By::Approval { .. }) {
            self.trust.begun(planned.step.kind());
        }
        let Stamp { epoch, mode, tick, at_ms } = stamp;
        if let Reason::HeldBack { until, ticks, .. } = planned.reason
            && tick.0.saturating_add(ticks) <= until.0
        {
            self.waits.watch(id, &planned.step, true, tick, ticks);
        }
        let expected = planned.reason.expected();
        self.rows.push_back(DecisionRow {
            id,
            tick,
            at_ms,
            epoch,
            kind: planned.step.kind().to_owned(),
            target: planned.step.to_string(),
            step: Some(planned.step.clone()),
            by,
            mode,
            reason: planned.reason.to_string(),
            inputs: planned.inputs.clone(),
            forecast: planned.forecast.clone(),
            alternatives: planned.alternatives.clone(),
            expected_benefit_ns: planned.worth.benefit_ns,
            expected_cost_ns: planned.worth.cost_ns,
            expected,
            predicted: expected.map(|of| self.trust.predict(planned.step.kind(), of)),
            outcome: None,
            measured: None,
            note: None,
        });
        while self.rows.len() > self.rows_max {
            self.rows.pop_front();
        }
        let oldest = self.rows.front().map_or(self.next_id, |row| row.id);
        if self.computed.len() > self.rows_max {
            self.computed.retain(|_, id| *id >= oldest);
        }
        id
    }

    /// Writes down what was found and done at once, without a plan.
    pub fn found(&mut self, kind: &str, target: &str, reason: &str, stamp: Stamp) {
        let Stamp { epoch, mode, tick, at_ms } = stamp;
        let id = self.next_id;
        self.next_id += 1;
        self.rows.push_back(DecisionRow {
            id,
            tick,
            at_ms,
            epoch,
            kind: kind.to_owned(),
            target: target.to_owned(),
            step: None,
            by: By::Loop,
            mode,
            reason: reason.to_owned(),
            inputs: String::new(),
            forecast: String::new(),
            alternatives: vec![],
            expected_benefit_ns: 0.0,
            expected_cost_ns: 0.0,
            expected: None,
            predicted: None,
            outcome: Some(Outcome::Done { rows: 0, bytes: 0, ns: 0 }),
            measured: None,
            note: None,
        });
        while self.rows.len() > self.rows_max {
            self.rows.pop_front();
        }
    }

    /// Writes down how a decision ended. A number that is forgotten already changes nothing.
    pub fn ended(&mut self, id: u64, outcome: Outcome) {
        if let Some(row) = self.row(id) {
            row.outcome = Some(outcome);
        }
    }

    /// Adds to a decision how it was carried out.
    pub fn note(&mut self, id: u64, how: &str) {
        if let Some(row) = self.row(id) {
            row.note = Some(how.to_owned());
        }
    }

    /// Credits the stored rows that a call used for the first time to the decision that had them
    /// computed: what these rows would have cost.
    pub fn credit(&mut self, call: &CallRecord) {
        self.harm.record(call);
        self.waits.record(call);
        if call.rows_fresh_stored == 0 || call.rows == 0 {
            return;
        }
        let target = (call.expression, call.partition.clone());
        let Some(id) = self.computed.get(&target).copied() else { return };
        if let Some(row) = self.row(id) {
            let share = call.rows_fresh_stored as f64 / call.rows as f64;
            *row.measured.get_or_insert(0.0) += share * call.would_be_ns as f64;
        }
    }

    /// From here on a computation ahead waits to be judged: what was measured of it by the end of tick `at`
    /// counts for the trust in its kind, if it was carried out. Steps of other kinds are judged once they
    /// were [followed](Self::follow).
    pub fn judge_at(&mut self, id: u64, at: Tick) {
        let is_ahead = |row: &DecisionRow| matches!(row.step, Some(Step::Precompute { .. }));
        if self.get(id).is_ok_and(|row| is_ahead(row) && row.expected.is_some()) {
            self.due.push_back((at, id));
        }
    }

    /// A decision was carried out that moved load: what it spares in the `ticks` ticks after `now` is measured,
    /// if it was for that.
    pub fn follow(&mut self, id: u64, now: Tick, ticks: u64) {
        let Ok(DecisionRow { step: Some(step), expected: Some(_), .. }) = self.get(id) else {
            return;
        };
        let step = step.clone();
        self.waits.watch(id, &step, false, now, ticks);
    }

    /// A decision was carried out that changed the replicas of a partition: it is watched for harm until
    /// `until` is closed, if the loop took it.
    pub fn watch(&mut self, id: u64, until: Tick) {
        let Ok(row) = self.get(id) else { return };
        let moved = row.step.as_ref().and_then(Step::partition_moved).cloned();
        let by_loop = matches!(row.by, By::Loop | By::Approval { .. });
        if let Some(partition) = moved.filter(|_| by_loop) {
            self.harm.watch(id, &partition, until);
        }
    }

    /// Ends a tick: judges what is due, and answers which decisions did harm. A window of trust ends every
    /// `feedback.window-ticks`. The live `nodes` say how many tasks may compute on each.
    pub fn close_tick(
        &mut self,
        now: Tick,
        config: &LoopConfig,
        nodes: &BTreeMap<NodeId, NodeView>,
    ) -> Vec<Harm> {
        self.judge_due(now);
        let spared = self.waits.close_tick(now, config.tick_ns(), nodes);
        spared.into_iter().for_each(|spared| self.judge_spared(spared, config));
        let harms = self.judge_harm(now);
        let window = now.0 / config.feedback().window_ticks().max(1);
        // After a long pause everything is forgotten: a few windows do that.
        for _ in self.window..window.min(self.window.saturating_add(WINDOWS_AT_ONCE_MAX)) {
            self.trust.close_window();
        }
        self.window = self.window.max(window);
        harms
    }

    /// Judges computations ahead whose time is over.
    fn judge_due(&mut self, now: Tick) {
        let due = std::mem::take(&mut self.due);
        for (at, id) in due {
            if now < at {
                self.due.push_back((at, id));
            } else if let Ok(row) = self.get(id)
                && let Some((kind, expected, predicted)) = row.judged()
                && matches!(row.outcome, Some(Outcome::Done { .. }))
            {
                let measured = row.measured.unwrap_or(0.0);
                self.trust.judge(kind, expected, predicted, measured);
            }
        }
    }

    /// Judges a step that moved load, or was held back.
    fn judge_spared(&mut self, spared: Spared, config: &LoopConfig) {
        let Some(row) = self.row(spared.id) else { return };
        row.measured = spared.measured_ns;
        let is_held_back = row.by == By::Holdback;
        let Some((kind, expected, predicted)) = row.judged() else { return };
        // Where hardly anybody waits there is nothing to spare, and nothing to learn from it but harm.
        let least = MATERIAL * config.horizon_ticks() as f64 * config.tick_ns();
        let is_harm = spared.measured_ns.is_some_and(|measured_ns| measured_ns < -least);
        if expected.mean_ns < least && !is_harm {
            return;
        }
        if let Some(less_ns) = spared.less_ns {
            self.trust.tried(kind, expected, is_held_back, less_ns);
        }
        if let Some(measured_ns) = spared.measured_ns {
            self.trust.judge(kind, expected, predicted, measured_ns);
        }
    }

    /// Judges steps that are watched for harm.
    fn judge_harm(&mut self, now: Tick) -> Vec<Harm> {
        let mut harms = Vec::new();
        for verdict in self.harm.close_tick(now) {
            let (id, harmless) = match verdict {
                Verdict::Harmful(harm) => {
                    harms.push(harm);
                    (harm.id, 0.0)
                }
                Verdict::Harmless { ticks: 0, .. } => continue,
                Verdict::Harmless { id, .. } => (id, 1.0),
            };
            let Ok(row) = self.get(id) else { continue };
            match (row.judged(), row.step.as_ref().map(Step::kind)) {
                // What it spares is measured by itself, unless it did harm.
                (Some(_), _) if harmless > 0.0 => {}
                (Some((kind, expected, predicted)), _) => {
                    self.waits.forget(id);
                    self.trust.judge(kind, expected, predicted, 0.0);
                }
                (None, Some(kind)) if !MEASURED.contains(&kind) => {
                    self.trust.judge(kind, Expected::HARMLESS, Predicted::HARMLESS, harmless);
                }
                (None, _) => {}
            }
        }
        harms
    }

    /// How far the expectations of each kind of step are trusted, and why.
    #[must_use]
    pub fn trust(&self) -> &TrustBook {
        &self.trust
    }

    /// The decisions, oldest first.
    pub fn rows(&self) -> impl Iterator<Item = &DecisionRow> {
        self.rows.iter()
    }

    /// The decision with this number.
    ///
    /// # Errors
    /// [`ControlError::Unknown`] if it is forgotten, or never was.
    pub fn get(&self, id: u64) -> Result<&DecisionRow, ControlError> {
        let position = self.rows.binary_search_by_key(&id, |row| row.id);
        let row = position.ok().and_then(|position| self.rows.get(position));
        row.ok_or(ControlError::Unknown { id })
    }

    /// From now on the plan does nothing with this aim, before `until` is closed.
    pub fn avoid(&mut self, aim: Aim, until: Tick) {
        self.avoided.insert(aim, until);
        if self.avoided.len() > AVOIDED_MAX {
            let first = self.avoided.iter().min_by_key(|(_, until)| **until);
            if let Some(first) = first.map(|(aim, _)| aim.clone()) {
                self.avoided.remove(&first);
            }
        }
    }

    /// What the plan must not do at `now`.
    pub fn avoided(&mut self, now: Tick) -> BTreeSet<Aim> {
        self.avoided.retain(|_, until| now < *until);
        self.avoided.keys().cloned().collect()
    }

    fn row(&mut self, id: u64) -> Option<&mut DecisionRow> {
        let position = self.rows.binary_search_by_key(&id, |row| row.id).ok()?;
        self.rows.get_mut(position)
    }
}

#[cfg(test)]
mod tests;
