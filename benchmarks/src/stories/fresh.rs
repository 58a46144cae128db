//! Rows that are asked for the first time, and what was computed of them before.

use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::Step;
use foreshard_policy::decision::DecisionRow;

/// Rows of some calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fresh {
    /// Rows that were asked for the first time, and of these those that were stored.
    rows: u64,
    ready: u64,
    /// All rows, and those that were stored.
    asked: u64,
    stored: u64,
    /// Nanoseconds that the calls computed for.
    pub(super) ns: f64,
}

impl Fresh {
    pub(super) fn add(&mut self, call: &CallRecord) {
        self.rows += call.rows_fresh;
        self.ready += call.rows_fresh_stored;
        self.asked += call.rows;
        self.stored += call.rows_stored;
        self.ns += call.ns as f64;
    }

    /// Share of the new rows that were ready; none if there were no new rows.
    pub(super) fn share_ready(&self) -> f64 {
        self.ready as f64 / self.rows.max(1) as f64
    }

    /// Share of all rows that were stored.
    pub(super) fn share_stored(&self) -> f64 {
        self.stored as f64 / self.asked.max(1) as f64
    }
}

/// The city that a decision computes ahead for, if it does.
pub(super) fn city_computed(row: &DecisionRow) -> Option<i64> {
    match &row.step {
        Some(Step::Precompute { partition, .. }) => Some(i64::from(partition.ordinal)),
        _ => None,
    }
}
