//! What was decided, why, and what came of it: the rows of `system.decisions`.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::calls::CallRecord;
use crate::cluster::Step;
use crate::config::Mode;
use crate::ids::{Epoch, ExpressionId, PartitionId, Tick};
use crate::reshape::Planned;

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was carried out.
    Done {
        /// Rows that were computed or copied.
        rows: u64,
        /// Bytes that were stored or copied.
        bytes: u64,
        /// Nanoseconds that it took.
        ns: u64,
    },
    /// It was not carried out.
    Failed {
        /// Stable code of the error.
        code: String,
        /// What happened.
        reason: String,
    },
}

/// One decision, before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// Number of the decision, growing.
    pub id: u64,
    /// Tick in which it was taken.
    pub tick: Tick,
    /// When it was taken, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Epoch of the plan it belongs to.
    pub epoch: Epoch,
    /// Kind of step.
    pub kind: String,
    /// The step in words.
    pub target: String,
    /// Mode of the loop.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// What was known.
    pub inputs: String,
    /// What was expected.
    pub forecast: String,
    /// What else was considered.
    pub alternatives: Vec<String>,
    /// Nanoseconds of waiting that queries shall be spared.
    pub expected_benefit_ns: f64,
    /// Nanoseconds of background work it shall take.
    pub expected_cost_ns: f64,
    /// How it ended; none while it is under way.
    pub outcome: Option<Outcome>,
    /// Nanoseconds of waiting that queries were spared so far; none where it is not measured.
    pub measured: Option<f64>,
}

/// The newest decisions. Older ones are forgotten.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    rows: VecDeque<DecisionRow>,
    rows_max: usize,
    next_id: u64,
    /// Newest precompute decision by what it computed.
    computed: BTreeMap<(ExpressionId, PartitionId), u64>,
}

impl Ledger {
    /// Keeps at most `rows_max` decisions.
    #[must_use]
    pub fn new(rows_max: usize) -> Self {
        Self { rows_max, next_id: 1, ..Self::default() }
    }

    /// Writes a planned step down and answers its number.
    pub fn decided(
        &mut self,
        planned: &Planned,
        epoch: Epoch,
        mode: Mode,
        tick: Tick,
        at_ms: u64,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if let Step::Precompute { expression, partition, .. } = &planned.step {
            self.computed.insert((*expression, partition.clone()), id);
        }
        self.rows.push_back(DecisionRow {
            id,
            tick,
            at_ms,
            epoch,
            kind: planned.step.kind().to_owned(),
            target: planned.step.to_string(),
            mode,
            reason: planned.reason.to_string(),
            inputs: planned.inputs.clone(),
            forecast: planned.forecast.clone(),
            alternatives: planned.alternatives.clone(),
            expected_benefit_ns: planned.worth.benefit_ns,
            expected_cost_ns: planned.worth.cost_ns,
            outcome: None,
            measured: None,
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
    pub fn found(
        &mut self,
        kind: &str,
        target: &str,
        reason: &str,
        mode: Mode,
        tick: Tick,
        at_ms: u64,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        self.rows.push_back(DecisionRow {
            id,
            tick,
            at_ms,
            epoch: Epoch::default(),
            kind: kind.to_owned(),
            target: target.to_owned(),
            mode,
            reason: reason.to_owned(),
            inputs: String::new(),
            forecast: String::new(),
            alternatives: vec![],
            expected_benefit_ns: 0.0,
            expected_cost_ns: 0.0,
            outcome: Some(Outcome::Done { rows: 0, bytes: 0, ns: 0 }),
            measured: None,
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

    /// Credits the stored rows that a call used for the first time to the decision that had them
    /// computed: what these rows would have cost.
    pub fn credit(&mut self, call: &CallRecord) {
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

    /// The decisions, oldest first.
    pub fn rows(&self) -> impl Iterator<Item = &DecisionRow> {
        self.rows.iter()
    }

    fn row(&mut self, id: u64) -> Option<&mut DecisionRow> {
        let position = self.rows.binary_search_by_key(&id, |row| row.id).ok()?;
        self.rows.get_mut(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;
    use crate::reshape::{Reason, Worth};

    fn planned() -> Planned {
        Planned {
            step: Step::Precompute {
                function: "embed".into(),
                expression: ExpressionId(1),
                partition: PartitionId::new("trades", 0),
            },
            reason: Reason::Needed { calls: 4.0, in_ms: 250.0, rows: 1_000, ns_per_row: 2_000.0 },
            worth: Worth { benefit_ns: 8e6, cost_ns: 2e6, bytes: 8e3 },
            inputs: "0 rows stored".to_owned(),
            forecast: "4.0 calls".to_owned(),
            alternatives: vec!["embed on trades/1: 0.4 calls expected".to_owned()],
        }
    }

    fn call(ordinal: u32, rows_fresh_stored: u64) -> CallRecord {
        CallRecord {
            at_ms: 0,
            query: 1,
            function: "embed".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("trades", ordinal),
            node: NodeId(0),
            rows: 1_000,
            rows_stored: rows_fresh_stored,
            rows_fresh: rows_fresh_stored,
            rows_fresh_stored,
            ns: 0,
            would_be_ns: 2_000_000,
            bytes: 0,
            traceparent: None,
        }
    }

    fn decide(ledger: &mut Ledger) -> u64 {
        ledger.decided(&planned(), Epoch(3), Mode::Forecast, Tick(9), 1_234)
    }

    #[test]
    fn a_decision_says_before_why_and_afterwards_what_it_was_worth() {
        let mut ledger = Ledger::new(10);
        let id = decide(&mut ledger);
        ledger.ended(id, Outcome::Done { rows: 1_000, bytes: 8_000, ns: 1_900_000 });
        ledger.credit(&call(0, 500));
        ledger.credit(&call(1, 500));
        let row = ledger.rows().next().unwrap();
        assert_eq!(row.target, "precompute embed on trades/0");
        assert_eq!(
            row.reason,
            "4.0 calls expected, the first within 250 ms; 1000 rows of 2.0 us are missing"
        );
        assert_eq!((row.expected_benefit_ns, row.expected_cost_ns), (8e6, 2e6));
        assert_eq!(row.outcome, Some(Outcome::Done { rows: 1_000, bytes: 8_000, ns: 1_900_000 }));
        assert_eq!(row.measured, Some(1e6));
    }

    #[test]
    fn old_decisions_are_forgotten_and_later_news_of_them_change_nothing() {
        let mut ledger = Ledger::new(2);
        let ids: Vec<_> = (0..5).map(|_| decide(&mut ledger)).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5]);
        ledger.ended(1, Outcome::Failed { code: "FS-MOVE-1".into(), reason: "late".into() });
        let kept: Vec<_> = ledger.rows().map(|row| (row.id, row.outcome.is_none())).collect();
        assert_eq!(kept, [(4, true), (5, true)]);
    }
}
