//! One series: its calls tick by tick, and its rolling mean and deviation.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::sketch::QuantileSketch;
use super::summary::Summary;
use crate::calls::CallRecord;
use crate::ids::Tick;

/// Mean and deviation in which a value counts half after a number of further values.
///
/// Exponentially weighted, after West (1979); as long as fewer values than the half-life were seen
/// it is the plain mean and deviation, so that the first values do not weigh too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rolling {
    /// Values seen.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Mean squared distance from the mean.
    pub variance: f64,
}

impl Rolling {
    /// Takes in one value; values that are not finite are left out.
    pub fn add(&mut self, value: f64, half_life: f64) {
        if !value.is_finite() {
            return;
        }
        self.count += 1;
        let weight = (1.0 / self.count as f64).max(1.0 - 0.5_f64.powf(1.0 / half_life));
        let distance = value - self.mean;
        let shift = weight * distance;
        self.mean += shift;
        self.variance = (1.0 - weight) * (self.variance + distance * shift);
    }

    /// Takes in the same value `count` times at once; one that is not finite is left out.
    pub fn add_repeated(&mut self, value: f64, count: u64, half_life: f64) {
        if !value.is_finite() {
            return;
        }
        // Past a few hundred half-lives nothing else is left, so the loop has a bound.
        let steps = count.min((half_life * 64.0) as u64 + 64);
        (0..steps).for_each(|_| self.add(value, half_life));
        self.count += count - steps;
    }

    /// Standard deviation.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        self.variance.max(0.0).sqrt()
    }
}

/// What one series did in one tick. Ticks without calls have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// The tick.
    pub tick: Tick,
    /// Calls.
    pub calls: u32,
    /// Rows that were needed.
    pub rows: u64,
    /// Nanoseconds the calls would have cost without stored outputs.
    pub would_be_ns: u64,
}

/// Calls after which those before count half in the quantiles of durations.
const DURATIONS_HALVED_AT: u64 = 8_192;

/// Buckets by tick, oldest first.
pub(super) type Buckets = VecDeque<Bucket>;

/// What is known of one series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeriesStats {
    /// Calls since the history began.
    pub calls: u64,
    /// Rows that were needed.
    pub rows: u64,
    /// Of these, rows answered from stored outputs.
    pub rows_stored: u64,
    /// Rows in segments that were never asked for before.
    pub rows_fresh: u64,
    /// Of these, rows answered from stored outputs.
    pub rows_fresh_stored: u64,
    /// Nanoseconds spent computing.
    pub ns: u64,
    /// Nanoseconds that computing everything would have cost.
    pub would_be_ns: u64,
    /// Bytes of output that was computed.
    pub bytes: u64,
    /// Calls per closed tick, from the tick of the first call on.
    pub calls_per_tick: Rolling,
    /// Would-be nanoseconds per row, by call.
    pub ns_per_row: Rolling,
    /// Would-be nanoseconds per call.
    pub ns_per_call: Rolling,
    /// Bytes of output per computed row, by call.
    pub bytes_per_row: Rolling,
    /// Tick of the first call that is remembered.
    pub first_called: Tick,
    /// Tick of the last call.
    pub last_called: Tick,
}

/// How fast the rolling figures forget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HalfLives {
    pub(super) ticks: f64,
    pub(super) calls: f64,
}

/// One series as the history keeps it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Series {
    pub(super) stats: SeriesStats,
    /// Closed ticks with calls; shared with the views, copied when it changes under one.
    pub(super) buckets: Arc<Buckets>,
    /// The open tick.
    pub(super) open: Bucket,
    /// Would-be nanoseconds of the latest calls; shared with the views as the ticks are.
    pub(super) durations: Arc<QuantileSketch>,
}

impl Series {
    /// Counts one call in the open tick `now`.
    pub(super) fn record(&mut self, call: &CallRecord, now: Tick, half: HalfLives) {
        Arc::make_mut(&mut self.durations).add(call.would_be_ns);
        let durations = QuantileSketch::default();
        self.add(&Summary { durations, ..Summary::of(call) }, now, half);
    }

    /// Counts the calls of a summary in the open tick `now`. Rolling durations take in the mean of
    /// its calls as often as there are calls.
    pub(super) fn replay(&mut self, summary: &Summary, now: Tick, half: HalfLives) {
        Arc::make_mut(&mut self.durations).merge(&summary.durations);
        self.add(summary, now, half);
    }

    fn add(&mut self, of: &Summary, now: Tick, half: HalfLives) {
        if of.calls == 0 {
            return;
        }
        let stats = &mut self.stats;
        if stats.calls == 0 {
            stats.first_called = now;
        }
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut stats.calls, of.calls);
        add(&mut stats.rows, of.rows);
        add(&mut stats.rows_stored, of.rows_stored);
        add(&mut stats.rows_fresh, of.rows_fresh);
        add(&mut stats.rows_fresh_stored, of.rows_fresh_stored);
        add(&mut stats.ns, of.ns);
        add(&mut stats.would_be_ns, of.would_be_ns);
        add(&mut stats.bytes, of.bytes);
        stats.last_called = now;
        let per_call = of.would_be_ns as f64 / of.calls as f64;
        stats.ns_per_call.add_repeated(per_call, of.calls, half.calls);
        if of.rows > 0 {
            let per_row = of.would_be_ns as f64 / of.rows as f64;
            stats.ns_per_row.add_repeated(per_row, of.calls, half.calls);
        }
        let computed = of.rows.saturating_sub(of.rows_stored);
        if computed > 0 {
            let per_row = of.bytes as f64 / computed as f64;
            stats.bytes_per_row.add_repeated(per_row, of.calls, half.calls);
        }
        let calls = u32::try_from(of.calls).unwrap_or(u32::MAX);
        self.open.calls = self.open.calls.saturating_add(calls);
        add(&mut self.open.rows, of.rows);
        add(&mut self.open.would_be_ns, of.would_be_ns);
    }

    /// Ends the open tick `now`; answers how many buckets that added.
    pub(super) fn close(&mut self, now: Tick, half: HalfLives) -> usize {
        self.stats.calls_per_tick.add(f64::from(self.open.calls), half.ticks);
        if self.open.calls == 0 {
            return 0;
        }
        let bucket = Bucket { tick: now, ..std::mem::take(&mut self.open) };
        Arc::make_mut(&mut self.buckets).push_back(bucket);
        if self.durations.count() >= DURATIONS_HALVED_AT {
            Arc::make_mut(&mut self.durations).halve();
        }
        1
    }

    /// Forgets ticks before `floor`; answers how many buckets that freed.
    pub(super) fn forget(&mut self, floor: Tick) -> usize {
        let old = self.buckets.partition_point(|bucket| bucket.tick < floor);
        if old > 0 {
            Arc::make_mut(&mut self.buckets).drain(..old);
        }
        old
    }

    /// Bytes on the heap, with what the allocator adds to each block.
    pub(super) fn heap_bytes(&self) -> usize {
        let buckets = size_of::<Buckets>() + self.buckets.capacity() * size_of::<Bucket>();
        let durations = size_of::<QuantileSketch>() + self.durations.heap_bytes();
        // Two counters before what an `Arc` shares, and eight bytes before each of four blocks.
        buckets + durations + 2 * 16 + 4 * 8
    }

    /// Calls per tick with the open tick counted, so that a new series is not taken for an idle
    /// one.
    pub(super) fn frequency(&self) -> f64 {
        let Rolling { count, mean, .. } = self.stats.calls_per_tick;
        (mean * count as f64 + f64::from(self.open.calls)) / (count as f64 + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_values_give_the_plain_mean_and_deviation() {
        let mut rolling = Rolling::default();
        for value in [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0] {
            rolling.add(value, 1e6);
        }
        assert!((rolling.mean - 5.0).abs() < 1e-9);
        assert!((rolling.deviation() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn old_values_count_half_after_the_half_life() {
        let mut rolling = Rolling::default();
        (0..1_000).for_each(|_| rolling.add(8.0, 10.0));
        rolling.add_repeated(0.0, 10, 10.0);
        assert!((rolling.mean - 4.0).abs() < 1e-6, "{rolling:?}");
    }

    #[test]
    fn many_zeros_at_once_leave_nothing_and_take_no_time() {
        let mut rolling = Rolling::default();
        rolling.add(8.0, 10.0);
        rolling.add_repeated(0.0, u64::MAX / 2, 10.0);
        assert!(rolling.mean < 1e-6 && rolling.deviation() < 1e-3, "{rolling:?}");
        assert_eq!(rolling.count, u64::MAX / 2 + 1);
    }

    #[test]
    fn a_value_that_is_no_number_is_left_out() {
        let mut rolling = Rolling::default();
        for value in [1.0, f64::NAN, f64::INFINITY] {
            rolling.add(value, 10.0);
        }
        assert_eq!((rolling.count, rolling.mean), (1, 1.0));
    }
}
