//! What calls on the rows of one segment cost or would have cost, as one replica counts it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::buffer::BooleanBuffer;
use foreshard_policy::block_load::BlockLoad;

use crate::layout::RowLoad;

/// The counts of one segment; clones share them. Counting a batch takes a lock and an addition for each block.
#[derive(Clone, Debug)]
pub struct SegmentLoad(Arc<Mutex<BlockLoad>>);

impl SegmentLoad {
    /// Nothing yet, of a segment of so many rows.
    #[must_use]
    pub(crate) fn new(rows: u64) -> Self {
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        Self(Arc::new(Mutex::new(BlockLoad::new(rows))))
    }

    /// Counts a call on those rows of a batch that were `asked` for, each for `ns_per_row`; the batch begins
    /// with row `start` of the segment.
    pub fn count(&self, now_ns: u64, start: usize, asked: &BooleanBuffer, ns_per_row: f64) {
        let mut load = self.lock();
        for (from, to) in load.pieces(start, start + asked.len()) {
            let rows = asked.slice(from - start, to - from).count_set_bits();
            load.add(now_ns, from, rows as f64 * ns_per_row);
        }
    }

    /// Counts a call of which nobody knows on which rows it was.
    pub fn count_evenly(&self, now_ns: u64, ns: f64) {
        self.lock().add_evenly(now_ns, ns);
    }

    /// What was counted, as it counts now.
    #[must_use]
    pub fn now(&self, now_ns: u64) -> RowLoad {
        let load = self.lock();
        RowLoad { block_rows: load.block_rows(), by_row: load.by_row(now_ns) }
    }

    /// Goes on with what was counted of rows that a commit kept: those of removed segments, one after the
    /// other, are the first ones of this segment. What was counted here already stays alone.
    pub(crate) fn follow(&self, now_ns: u64, from: &[(Self, BooleanBuffer)]) {
        let parts: Vec<(RowLoad, &BooleanBuffer)> =
            from.iter().map(|(load, kept)| (load.now(now_ns), kept)).collect();
        let mut load = self.lock();
        if !load.by_row(now_ns).is_empty() {
            return;
        }
        let mut row = 0;
        for (old, kept) in parts {
            let block_rows = old.block_rows.max(1);
            for (block, start) in (0..kept.len()).step_by(block_rows).enumerate() {
                let rows = block_rows.min(kept.len() - start);
                let stay = kept.slice(start, rows).count_set_bits();
                let ns_per_row = old.by_row.get(block).copied().unwrap_or(0.0);
                if ns_per_row > 0.0 {
                    for (from, to) in load.pieces(row, row + stay) {
                        load.add(now_ns, from, ns_per_row * (to - from) as f64);
                    }
                }
                row += stay;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BlockLoad> {
        // Every change leaves the counts whole, so a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_count_on_the_rows_that_were_asked_for() {
        let load = SegmentLoad::new(3_000);
        let asked: BooleanBuffer = (0..2_000).map(|row| row >= 1_048).collect();
        load.count(5, 1_000, &asked, 2.0);
        assert_eq!(load.now(5).by_row, [0.0, 0.0, 952.0 * 2.0 / 952.0]);
        load.count_evenly(5, 3_000.0);
        assert_eq!(load.now(5).by_row, [1.0, 1.0, 3.0]);
    }

    #[test]
    fn what_was_counted_follows_rows_that_a_commit_kept() {
        let (one, two) = (SegmentLoad::new(1_024), SegmentLoad::new(1_024));
        one.count_evenly(5, 1_024.0);
        two.count_evenly(5, 3_072.0);
        let half: BooleanBuffer = (0..1_024).map(|row| row % 2 == 0).collect();
        let none: BooleanBuffer = (0..1_024).map(|_| false).collect();
        let new = SegmentLoad::new(1_536);
        let from = [(one.clone(), half.clone()), (one, none), (two, BooleanBuffer::new_set(1_024))];
        new.follow(5, &from);
        let by_row = new.now(5).by_row;
        assert_eq!(by_row, [(512.0 + 512.0 * 3.0) / 1_024.0, 3.0]);
        new.follow(5, &from);
        assert_eq!(new.now(5).by_row, by_row, "it is taken over once");
    }
}
