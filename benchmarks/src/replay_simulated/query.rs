//! One query in virtual time.

use std::collections::VecDeque;

use foreshard_policy::calls::CallRecord;
use foreshard_policy::ids::{NodeId, SeriesKey};

use super::scene::BYTES_PER_ROW;

/// A query, and what it has come to so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    /// When its call is due.
    pub(super) due_ns: u64,
    pub(super) node: NodeId,
    /// Segments that it has still to read, and the one that it reads.
    pub(super) segments: VecDeque<i64>,
    pub(super) segment: i64,
    /// Rows of that one, whether nobody asked for it before, and rows that are still to be computed.
    rows_here: u64,
    is_fresh: bool,
    pub(super) rows_left: u64,
    /// From when it was due until its last row was there.
    pub(super) ns_answered: u64,
    rows: u64,
    rows_stored: u64,
    rows_fresh: u64,
    rows_fresh_stored: u64,
    ns: u64,
    spared_ns: u64,
}

impl Query {
    /// Comes to a segment.
    pub(super) fn opens(&mut self, rows: u64, is_fresh: bool) {
        (self.rows_here, self.rows_left, self.is_fresh) = (rows, rows, is_fresh);
        self.rows += rows;
        self.rows_fresh += if is_fresh { rows } else { 0 };
    }

    /// Finds the segment stored.
    pub(super) fn finds(&mut self, row_ns: u64) {
        self.rows_stored += self.rows_here;
        self.rows_fresh_stored += if self.is_fresh { self.rows_here } else { 0 };
        self.spared_ns += self.rows_here * row_ns;
        self.rows_left = 0;
    }

    /// Computed rows of it; answers how many are left.
    pub(super) fn computed(&mut self, rows: u64, ns: u64) -> u64 {
        self.ns += ns;
        self.rows_left -= rows.min(self.rows_left);
        self.rows_left
    }

    /// What it tells the monitor.
    pub(super) fn record(&self, series: SeriesKey, number: u64) -> CallRecord {
        CallRecord {
            rows: self.rows,
            rows_stored: self.rows_stored,
            rows_fresh: self.rows_fresh,
            rows_fresh_stored: self.rows_fresh_stored,
            ns: self.ns,
            would_be_ns: self.ns + self.spared_ns,
            bytes: BYTES_PER_ROW * (self.rows - self.rows_stored),
            ..CallRecord::empty(series, number, self.node, None)
        }
    }
}
