//! What the calls of one series in one bucket of time add up to. Sums only, so buckets can be merged.

use serde::{Deserialize, Serialize};

use super::sketch::QuantileSketch;
use crate::calls::CallRecord;

/// Calls of one series in one bucket, added up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Calls.
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
    /// Sum of the squares of the would-be nanoseconds of each call.
    pub would_be_ns_squares: f64,
    /// Bytes of output that was computed.
    pub bytes: u64,
    /// Most calls in flight, as the highest mean of a second in the bucket.
    pub in_flight_max: f64,
    /// Would-be nanoseconds of each call.
    pub durations: QuantileSketch,
}

impl Summary {
    /// The summary of one call.
    #[must_use]
    pub fn of(call: &CallRecord) -> Self {
        Self {
            calls: 1,
            rows: call.rows,
            rows_stored: call.rows_stored,
            rows_fresh: call.rows_fresh,
            rows_fresh_stored: call.rows_fresh_stored,
            ns: call.ns,
            would_be_ns: call.would_be_ns,
            would_be_ns_squares: (call.would_be_ns as f64).powi(2),
            bytes: call.bytes,
            in_flight_max: 0.0,
            durations: QuantileSketch::of(call.would_be_ns),
        }
    }

    /// Adds one call.
    pub fn add(&mut self, call: &CallRecord) {
        self.add_sums(&Self { durations: QuantileSketch::default(), ..Self::of(call) });
        self.durations.add(call.would_be_ns);
    }

    /// Adds the calls of another bucket, or of another part of this one.
    pub fn merge(&mut self, other: &Self) {
        self.add_sums(other);
        self.durations.merge(&other.durations);
    }

    fn add_sums(&mut self, other: &Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.calls, other.calls);
        add(&mut self.rows, other.rows);
        add(&mut self.rows_stored, other.rows_stored);
        add(&mut self.rows_fresh, other.rows_fresh);
        add(&mut self.rows_fresh_stored, other.rows_fresh_stored);
        add(&mut self.ns, other.ns);
        add(&mut self.would_be_ns, other.would_be_ns);
        add(&mut self.bytes, other.bytes);
        self.would_be_ns_squares += other.would_be_ns_squares;
        self.in_flight_max = self.in_flight_max.max(other.in_flight_max);
    }

    /// Mean number of calls in flight over a bucket of `bucket_ms`: by Little's law, arrival rate
    /// times time in the system, which is the time spent per time passed. A call counts in the
    /// bucket in which it ended.
    #[must_use]
    pub fn in_flight(&self, bucket_ms: u64) -> f64 {
        self.ns as f64 / (bucket_ms.max(1) as f64 * 1e6)
    }

    /// Standard deviation of the would-be nanoseconds of a call.
    #[must_use]
    pub fn would_be_ns_deviation(&self) -> f64 {
        let calls = (self.calls as f64).max(1.0);
        let mean = self.would_be_ns as f64 / calls;
        (self.would_be_ns_squares / calls - mean * mean).max(0.0).sqrt()
    }
}

/// Divides a number by shares (non-negative, adding up to one): each part is its share rounded down or
/// up, and the parts add up to the number exactly (the method of the largest remainder).
pub(super) fn apportion(total: u64, shares: &[f64]) -> Vec<u64> {
    let sum: f64 = shares.iter().sum();
    let exact = |share: &f64| if sum > 0.0 { total as f64 * (share / sum) } else { 0.0 };
    let mut parts: Vec<u64> = shares.iter().map(|share| exact(share).floor() as u64).collect();
    // Above 2^53 the floors may be a little too much in all.
    let mut given = 0_u64;
    for part in &mut parts {
        *part = (*part).min(total - given);
        given += *part;
    }
    let mut order: Vec<usize> = (0..shares.len()).collect();
    let remainder = |part: &usize| exact(&shares[*part]).fract();
    order.sort_by(|a, b| remainder(b).total_cmp(&remainder(a)).then(a.cmp(b)));
    let mut left = total - given;
    for part in order {
        let more = left.min(1);
        parts[part] += more;
        left -= more;
    }
    if let Some(first) = parts.first_mut() {
        *first += left;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{ExpressionId, NodeId, PartitionId, SeriesKey};

    fn call(ns: u64) -> CallRecord {
        let series = SeriesKey {
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", 0),
        };
        let empty = CallRecord::empty(series, 1, NodeId(0), None);
        CallRecord { rows: 3, ns, would_be_ns: ns, bytes: 8, ..empty }
    }

    #[test]
    fn two_calls_of_half_a_second_each_keep_one_call_in_flight() {
        let mut summary = Summary::of(&call(500_000_000));
        summary.add(&call(500_000_000));
        assert_eq!((summary.calls, summary.rows, summary.bytes), (2, 6, 16));
        assert_eq!((summary.in_flight(1_000), summary.in_flight(60_000) * 60.0), (1.0, 1.0));
    }

    #[test]
    fn the_deviation_comes_from_the_sums() {
        let mut summary = Summary::of(&call(2));
        for ns in [4, 4, 4, 5, 5, 7, 9] {
            summary.add(&call(ns));
        }
        assert!((summary.would_be_ns_deviation() - 2.0).abs() < 1e-9);
        assert_eq!(Summary::default().would_be_ns_deviation(), 0.0);
    }

    proptest! {
        #[test]
        fn parts_add_up_and_are_their_share_rounded(
            total in prop_oneof![0u64..1_000, any::<u64>()],
            shares in prop::collection::vec(0.0f64..5.0, 1..8),
        ) {
            let parts = apportion(total, &shares);
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), total.into());
            let sum: f64 = shares.iter().sum();
            if total < 1_000 && sum > 0.0 {
                for (part, share) in parts.iter().zip(&shares) {
                    let distance = *part as f64 - total as f64 * share / sum;
                    prop_assert!(distance.abs() < 1.0 + 1e-9, "{part} for {share} of {total}");
                }
            }
        }
    }
}
