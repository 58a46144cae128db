//! Series that are no longer counted one by one: their calls in sketches of a fixed size.

use datasketches::countmin::CountMinSketch;

use super::codec::{Malformed, Reader, Writer};
use super::series::SeriesStats;
use crate::ids::SeriesKey;

/// Rows of a sketch: an estimate is off by more than its bound with a chance of e^-4.
const HASHES: u8 = 4;

/// What the forgotten series came to: sums exactly, each series as an upper bound.
#[derive(Clone, Debug)]
pub(super) struct Tail {
    pub(super) totals: TailTotals,
    cells: u32,
    /// Made when the first series is forgotten.
    sketches: Option<Sketches>,
}

#[derive(Clone, Debug)]
struct Sketches {
    calls: CountMinSketch<u64>,
    would_be_ns: CountMinSketch<u64>,
}

/// What the forgotten series came to in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TailTotals {
    /// Times that a series was forgotten; the same one may come back and be forgotten again.
    pub series: u64,
    /// Their calls.
    pub calls: u64,
    /// Rows that these needed.
    pub rows: u64,
    /// Nanoseconds that computing everything would have cost.
    pub would_be_ns: u64,
}

impl Sketches {
    fn new(cells: u32) -> Option<Self> {
        // The bounds of the setting are narrower than those of the sketch, so this does not fail.
        let sketch = || CountMinSketch::new(HASHES, cells).ok();
        Some(Self { calls: sketch()?, would_be_ns: sketch()? })
    }
}

impl Tail {
    /// With sketches of `cells` cells in each of their rows.
    pub(super) fn new(cells: usize) -> Self {
        let cells = u32::try_from(cells).unwrap_or(u32::MAX);
        Self { totals: TailTotals::default(), cells, sketches: None }
    }

    pub(super) fn add(&mut self, key: &SeriesKey, stats: &SeriesStats) {
        let totals = &mut self.totals;
        totals.series += 1;
        totals.calls = totals.calls.saturating_add(stats.calls);
        totals.rows = totals.rows.saturating_add(stats.rows);
        totals.would_be_ns = totals.would_be_ns.saturating_add(stats.would_be_ns);
        if self.sketches.is_none() {
            self.sketches = Sketches::new(self.cells);
        }
        let Some(sketches) = &mut self.sketches else { return };
        add(&mut sketches.calls, key, stats.calls);
        add(&mut sketches.would_be_ns, key, stats.would_be_ns);
    }

    /// Calls and would-be nanoseconds of a series while it was counted here, or more.
    pub(super) fn at_most(&self, key: &SeriesKey) -> (u64, u64) {
        self.sketches.as_ref().map_or((0, 0), |sketches| {
            (sketches.calls.estimate(key), sketches.would_be_ns.estimate(key))
        })
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.sketches.as_ref().map_or(0, |sketches| {
            sketches.calls.estimated_size() + sketches.would_be_ns.estimated_size()
        })
    }

    pub(super) fn write(&self, to: &mut Writer) {
        let TailTotals { series, calls, rows, would_be_ns } = self.totals;
        [series, calls, rows, would_be_ns].into_iter().for_each(|sum| to.number(sum));
        let sketches = self.sketches.as_ref();
        let sketches = sketches.map(|held| [&held.calls, &held.would_be_ns].map(|s| s.serialize()));
        for bytes in sketches.unwrap_or_default() {
            to.number(bytes.len() as u64);
            to.raw(&bytes);
        }
    }

    /// Reads what [`write`](Self::write) wrote. Sketches of another size than the settings ask for
    /// now are let go: then the sums stay, and series are estimated anew.
    pub(super) fn read(from: &mut Reader<'_>, cells: usize) -> Result<Self, Malformed> {
        let mut tail = Self::new(cells);
        tail.totals = TailTotals {
            series: from.number()?,
            calls: from.number()?,
            rows: from.number()?,
            would_be_ns: from.number()?,
        };
        let (calls, would_be_ns) = (read_sketch(from)?, read_sketch(from)?);
        if let (Some(calls), Some(would_be_ns)) = (calls, would_be_ns)
            && calls.num_buckets() == tail.cells
        {
            tail.sketches = Some(Sketches { calls, would_be_ns });
        }
        Ok(tail)
    }
}

/// Adds to a sketch no more than it can hold in all: it would panic otherwise.
fn add(sketch: &mut CountMinSketch<u64>, key: &SeriesKey, weight: u64) {
    let room = u64::MAX - sketch.total_weight();
    sketch.update_with_weight(key, weight.min(room));
}

fn read_sketch(from: &mut Reader<'_>) -> Result<Option<CountMinSketch<u64>>, Malformed> {
    let length = from.length()?;
    if length == 0 {
        return Ok(None);
    }
    let sketch = CountMinSketch::deserialize(from.raw(length)?);
    sketch.map(Some).map_err(|_unreadable| Malformed("a sketch of forgotten series is unreadable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ExpressionId, PartitionId};

    fn key(ordinal: u32) -> SeriesKey {
        SeriesKey {
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", ordinal),
        }
    }

    fn stats(calls: u64) -> SeriesStats {
        SeriesStats { calls, rows: 2 * calls, would_be_ns: 1_000 * calls, ..SeriesStats::default() }
    }

    #[test]
    fn a_forgotten_series_is_never_estimated_below_what_it_was_and_seldom_far_above() {
        let mut tail = Tail::new(4_096);
        let calls = |ordinal: u32| u64::from(ordinal % 10 + 1);
        (0..10_000).for_each(|ordinal| tail.add(&key(ordinal), &stats(calls(ordinal))));
        assert_eq!(tail.totals.calls, (0..10_000).map(calls).sum::<u64>());
        let bound = (std::f64::consts::E / 4_096.0 * tail.totals.calls as f64) as u64;
        let over = |ordinal: u32| tail.at_most(&key(ordinal)).0 - calls(ordinal);
        let far = (0..10_000).filter(|ordinal| over(*ordinal) > bound).count();
        assert!(far < 400, "{far} of 10,000 are off by more than {bound}");
        assert_eq!(tail.heap_bytes() / (2 * 4 * 4_096 * 8), 1);
    }

    #[test]
    fn absurd_numbers_fill_the_sketch_and_are_no_panic() {
        let mut tail = Tail::new(64);
        (0..3).for_each(|_| tail.add(&key(1), &stats(u64::MAX / 2_000)));
        (0..3).for_each(|_| {
            tail.add(&key(1), &SeriesStats { calls: u64::MAX, ..SeriesStats::default() });
        });
        assert_eq!(tail.totals.calls, u64::MAX);
        assert_eq!(tail.at_most(&key(1)).0, u64::MAX);
    }

    #[test]
    fn sums_survive_another_size_and_estimates_the_same_size() {
        let mut tail = Tail::new(64);
        tail.add(&key(1), &stats(9));
        let mut writer = Writer::default();
        tail.write(&mut writer);
        let bytes = writer.finish();
        let read = |cells| Tail::read(&mut Reader::new(&bytes), cells).unwrap();
        assert_eq!((read(64).totals, read(64).at_most(&key(1))), (tail.totals, (9, 9_000)));
        assert_eq!((read(128).totals, read(128).at_most(&key(1))), (tail.totals, (0, 0)));
    }
}
