//! What calls cost by block of the rows of a segment: the history knows partitions, and a cut needs keys.

/// Rows of a block, unless the segment has more than [`BLOCKS_MAX`] of them.
pub const BLOCK_ROWS: usize = 1_024;

/// Blocks of one segment, which bounds what is remembered of it to 16 KiB.
pub const BLOCKS_MAX: usize = 4_096;

/// What was counted counts half after so long.
const HALF_LIFE_NS: f64 = 300e9;

/// All is scaled at once when so much of a half-life is over.
const SCALE_AT: f64 = 1.0 / 64.0;

/// Load by block of rows, in which older calls count less. Nothing is allocated before the first call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockLoad {
    block_rows: usize,
    rows: usize,
    /// Moment at which the counts count whole.
    at_ns: u64,
    /// What calls cost or would have cost, in ns.
    ns: Vec<f32>,
}

impl BlockLoad {
    /// Nothing yet, of a segment of so many rows.
    #[must_use]
    pub fn new(rows: usize) -> Self {
        let block_rows = rows.div_ceil(BLOCKS_MAX).max(BLOCK_ROWS);
        Self { block_rows, rows, at_ns: 0, ns: Vec::new() }
    }

    /// The rows from `start` to `end`, block by block: where each piece begins and ends.
    pub fn pieces(&self, start: usize, end: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (block_rows, end) = (self.block_rows.max(1), end.min(self.rows));
        let mut next = start;
        std::iter::from_fn(move || {
            let from = next;
            next = ((from / block_rows + 1) * block_rows).min(end);
            (from < end).then_some((from, next))
        })
    }

    /// Adds what a call cost or would have cost on rows of one block, `row` among them.
    pub fn add(&mut self, now_ns: u64, row: usize, ns: f64) {
        if row >= self.rows {
            return;
        }
        if self.ns.is_empty() {
            self.ns = vec![0.0; self.rows.div_ceil(self.block_rows.max(1))];
            self.at_ns = now_ns;
        }
        let scale = self.scale(now_ns);
        if scale < 0.5_f64.powf(SCALE_AT) {
            self.ns.iter_mut().for_each(|block| *block = (f64::from(*block) * scale) as f32);
            self.at_ns = now_ns;
        }
        if let Some(block) = self.ns.get_mut(row / self.block_rows.max(1)) {
            *block += ns as f32;
        }
    }

    /// Adds the same to each row: of a call of which nobody knows on which rows it was.
    pub fn add_evenly(&mut self, now_ns: u64, ns: f64) {
        let ns_per_row = ns / self.rows.max(1) as f64;
        for (from, to) in self.pieces(0, self.rows) {
            self.add(now_ns, from, ns_per_row * (to - from) as f64);
        }
    }

    /// Load of each row of a block, by block, in ns; empty if there is none.
    #[must_use]
    pub fn by_row(&self, now_ns: u64) -> Vec<f64> {
        let scale = self.scale(now_ns);
        let block_rows = self.block_rows.max(1);
        let of = |(block, ns): (usize, &f32)| {
            let rows = (self.rows - block * block_rows).min(block_rows).max(1);
            f64::from(*ns) * scale / rows as f64
        };
        self.ns.iter().enumerate().map(of).collect()
    }

    /// Rows of a block but the last one, which may be shorter.
    #[must_use]
    pub fn block_rows(&self) -> usize {
        self.block_rows
    }

    fn scale(&self, now_ns: u64) -> f64 {
        let passed = now_ns.saturating_sub(self.at_ns) as f64;
        0.5_f64.powf(passed / HALF_LIFE_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_count_on_their_blocks_and_less_as_time_passes() {
        let mut load = BlockLoad::new(2_500);
        assert_eq!(load.by_row(0), [] as [f64; 0]);
        let pieces: Vec<_> = load.pieces(1_000, 9_999).collect();
        assert_eq!(pieces, [(1_000, 1_024), (1_024, 2_048), (2_048, 2_500)]);
        load.add(7, 2_100, 452.0);
        load.add(7, 9_999, 1e9);
        assert_eq!(load.by_row(7), [0.0, 0.0, 1.0], "the last block is shorter");
        assert_eq!(load.by_row(7 + 600_000_000_000), [0.0, 0.0, 0.25]);
        load.add(7 + 600_000_000_000, 0, 1_024.0);
        assert_eq!(load.by_row(7 + 600_000_000_000), [1.0, 0.0, 0.25]);
    }

    #[test]
    fn what_is_known_of_all_rows_is_divided_evenly() {
        let mut load = BlockLoad::new(2_500);
        load.add_evenly(7, 5_000.0);
        assert!(load.by_row(7).iter().all(|ns| (ns - 2.0).abs() < 1e-6), "{load:?}");
    }

    #[test]
    fn a_large_segment_has_larger_blocks_and_an_empty_one_none() {
        let mut load = BlockLoad::new(50_000_000);
        load.add(1, 49_999_999, 1.0);
        assert!(load.by_row(1).len() <= BLOCKS_MAX);
        assert_eq!(load.by_row(1).iter().filter(|ns| **ns > 0.0).count(), 1);
        let mut nothing = BlockLoad::new(0);
        nothing.add_evenly(1, 1.0);
        nothing.add(1, 0, 1.0);
        assert_eq!(nothing.by_row(1), [] as [f64; 0]);
    }
}
