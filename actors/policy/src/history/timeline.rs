//! The calls since the last flush, by second and series: what goes to the store next.
//!
//! Rows only add up, so a row may be flushed in parts, late, or in any order: whoever reads adds rows
//! of the same series and second. So a clock that jumps spoils nothing that was flushed before.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::summary::Summary;
use crate::calls::CallRecord;
use crate::ids::{ExpressionId, PartitionId, SeriesKey};

/// A call that ended this far from the clock is counted at the clock's time.
pub const SKEW_MS_MAX: u64 = 60_000;

/// Flushes after a jump of the clock before it is believed again.
const CALM_FLUSHES: u32 = 600;

/// Name of what the calls of series that found no place are added up under.
pub const OTHERS: &str = "(others)";

/// How long a bucket is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Resolution {
    /// One second.
    #[default]
    Second,
    /// One minute.
    Minute,
    /// One hour.
    Hour,
}

impl Resolution {
    /// From the finest to the coarsest.
    pub const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    /// Length of a bucket in milliseconds.
    #[must_use]
    pub fn ms(self) -> u64 {
        match self {
            Self::Second => 1_000,
            Self::Minute => 60_000,
            Self::Hour => 3_600_000,
        }
    }

    /// Its name, as files and system tables have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
        }
    }

    /// The resolution of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resolution| resolution.name() == name)
    }

    /// The next coarser one.
    #[must_use]
    pub fn coarser(self) -> Option<Self> {
        match self {
            Self::Second => Some(Self::Minute),
            Self::Minute => Some(Self::Hour),
            Self::Hour => None,
        }
    }

    /// The beginning of the bucket that holds a moment.
    #[must_use]
    pub fn start(self, at_ms: u64) -> u64 {
        at_ms - at_ms % self.ms()
    }
}

/// One series in one bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The function expression and partition.
    pub key: SeriesKey,
    /// Beginning of the bucket, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// What was called in it.
    pub summary: Summary,
}

/// What was wrong with the time of calls and ticks, counted; nothing of it is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Irregular {
    /// Calls whose time was further than [`SKEW_MS_MAX`] from the clock; they count at its time.
    pub calls_skewed: u64,
    /// Calls of series that found no place in their second; they count as [`OTHERS`].
    pub calls_of_others: u64,
    /// Times that the clock went back.
    pub clock_back: u64,
    /// Times that the clock went ahead by more than the history is long, or by an hour between two
    /// flushes.
    pub clock_ahead: u64,
    /// Ticks that nobody closed in time, counted as ticks without calls.
    pub ticks_missing: u64,
    /// Ticks that came twice, which were left out.
    pub ticks_duplicate: u64,
}

impl Irregular {
    /// Each counter with its name.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 6] {
        [
            ("calls_skewed", self.calls_skewed),
            ("calls_of_others", self.calls_of_others),
            ("clock_back", self.clock_back),
            ("clock_ahead", self.clock_ahead),
            ("ticks_missing", self.ticks_missing),
            ("ticks_duplicate", self.ticks_duplicate),
        ]
    }
}

/// Adds up calls until they are flushed. Bounded by the series of one flush.
#[derive(Clone, Debug)]
pub struct Timeline {
    rows: BTreeMap<(SeriesKey, u64), Summary>,
    rows_max: usize,
    flushed_at_ms: u64,
    calm: u32,
    irregular: Irregular,
}

impl Timeline {
    /// Adds up at most `rows_max` series and seconds apart; the calls of others become one row.
    #[must_use]
    pub fn new(rows_max: usize) -> Self {
        Self {
            rows: BTreeMap::new(),
            rows_max,
            flushed_at_ms: 0,
            calm: CALM_FLUSHES,
            irregular: Irregular::default(),
        }
    }

    /// Counts one call that was reported at `now_ms`.
    pub fn record(&mut self, call: &CallRecord, now_ms: u64) {
        let at_ms = if call.at_ms.abs_diff(now_ms) > SKEW_MS_MAX {
            self.irregular.calls_skewed += 1;
            now_ms
        } else {
            call.at_ms
        };
        let mut key = (call.series(), Resolution::Second.start(at_ms));
        if let Some(summary) = self.rows.get_mut(&key) {
            return summary.add(call);
        }
        if self.rows.len() >= self.rows_max {
            self.irregular.calls_of_others += 1;
            key = (others(), Resolution::Second.start(now_ms));
        }
        self.rows.entry(key).or_default().add(call);
    }

    /// Everything since the last flush, by series and time.
    pub fn flush(&mut self, now_ms: u64) -> Vec<Row> {
        if now_ms < self.flushed_at_ms {
            self.irregular.clock_back += 1;
            self.calm = 0;
        } else if self.flushed_at_ms > 0 && now_ms - self.flushed_at_ms > Resolution::Hour.ms() {
            self.irregular.clock_ahead += 1;
            self.calm = 0;
        } else {
            self.calm = self.calm.saturating_add(1);
        }
        self.flushed_at_ms = now_ms;
        let rows = std::mem::take(&mut self.rows).into_iter();
        rows.map(|((key, start_ms), summary)| Row { key, start_ms, summary }).collect()
    }

    /// Whether the clock has not jumped lately, so that what it calls old may be thrown away.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.calm >= CALM_FLUSHES
    }

    /// What was wrong with times so far.
    #[must_use]
    pub fn irregular(&self) -> Irregular {
        self.irregular
    }
}

fn others() -> SeriesKey {
    let name: Arc<str> = OTHERS.into();
    SeriesKey {
        function: Arc::clone(&name),
        expression: ExpressionId(0),
        partition: PartitionId { table: name, ordinal: 0 },
    }
}

/// Adds rows up by series and bucket. The rows come in any order and leave by series and time; those
/// of seconds learn how many calls were in flight.
#[must_use]
pub fn added_up(rows: impl IntoIterator<Item = Row>, to: Resolution) -> Vec<Row> {
    let mut sums: BTreeMap<(SeriesKey, u64), Summary> = BTreeMap::new();
    for Row { key, start_ms, summary } in rows {
        sums.entry((key, to.start(start_ms))).or_default().merge(&summary);
    }
    let rows = sums.into_iter().map(|((key, start_ms), summary)| Row { key, start_ms, summary });
    let mut rows: Vec<Row> = rows.collect();
    if to == Resolution::Second {
        rows.iter_mut().for_each(|row| row.summary.in_flight_max = row.summary.in_flight(to.ms()));
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::NodeId;

    const NOW: u64 = 1_700_000_000_000;

    fn call(ordinal: u32, at_ms: u64) -> CallRecord {
        let series = SeriesKey {
            function: "f".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("t", ordinal),
        };
        let empty = CallRecord::empty(series, 1, NodeId(0), None);
        CallRecord { at_ms, rows: 2, ns: 500_000_000, would_be_ns: 700, ..empty }
    }

    #[test]
    fn calls_are_added_up_by_second_and_series_and_flushed_once() {
        let mut timeline = Timeline::new(100);
        for at_ms in [NOW, NOW + 999, NOW + 1_000] {
            timeline.record(&call(0, at_ms), NOW + 1_000);
        }
        timeline.record(&call(1, NOW), NOW + 1_000);
        let rows = timeline.flush(NOW + 1_000);
        let calls: Vec<(u32, u64, u64)> = rows
            .iter()
            .map(|row| (row.key.partition.ordinal, row.start_ms - NOW, row.summary.calls))
            .collect();
        assert_eq!(calls, [(0, 0, 2), (0, 1_000, 1), (1, 0, 1)]);
        assert_eq!(timeline.flush(NOW + 2_000), []);
    }

    #[test]
    fn a_call_whose_time_is_far_from_the_clock_counts_now_and_is_counted() {
        let mut timeline = Timeline::new(100);
        for at_ms in [0, NOW - SKEW_MS_MAX - 1, NOW + SKEW_MS_MAX + 1, u64::MAX] {
            timeline.record(&call(0, at_ms), NOW);
        }
        timeline.record(&call(0, NOW - SKEW_MS_MAX), NOW);
        let starts: Vec<u64> = timeline.flush(NOW).iter().map(|row| row.start_ms).collect();
        assert_eq!(starts, [NOW - SKEW_MS_MAX, NOW]);
        assert_eq!(timeline.irregular().calls_skewed, 4);
    }

    #[test]
    fn series_without_a_place_are_added_up_together_and_none_is_lost() {
        let mut timeline = Timeline::new(3);
        (0..10).for_each(|ordinal| timeline.record(&call(ordinal, NOW), NOW));
        let rows = timeline.flush(NOW);
        assert_eq!(rows.len(), 4);
        assert_eq!(rows.iter().map(|row| row.summary.calls).sum::<u64>(), 10);
        let others = rows.iter().find(|row| &*row.key.function == OTHERS).unwrap();
        assert_eq!((others.summary.calls, timeline.irregular().calls_of_others), (7, 7));
    }

    #[test]
    fn after_a_jump_the_clock_is_not_believed_for_a_while() {
        let mut timeline = Timeline::new(3);
        timeline.flush(NOW);
        assert!(timeline.is_calm());
        timeline.flush(NOW + 5 * Resolution::Hour.ms());
        assert!(!timeline.is_calm());
        timeline.flush(NOW);
        (1..CALM_FLUSHES).for_each(|_| drop(timeline.flush(NOW)));
        assert!(!timeline.is_calm());
        timeline.flush(NOW);
        assert!(timeline.is_calm());
        timeline.flush(NOW - 1);
        assert!(!timeline.is_calm());
        let Irregular { clock_back, clock_ahead, .. } = timeline.irregular();
        assert_eq!((clock_back, clock_ahead), (2, 1));
    }

    #[test]
    fn the_peak_of_a_minute_is_its_busiest_second() {
        let row = |at_ms, ns| {
            let call = CallRecord { ns, ..call(0, at_ms) };
            Row { key: call.series(), start_ms: at_ms, summary: Summary::of(&call) }
        };
        // The second is flushed in two parts.
        let parts = [row(NOW, 1_000_000_000), row(NOW + 5_000, 9), row(NOW, 2_000_000_000)];
        let minute = added_up(added_up(parts, Resolution::Second), Resolution::Minute);
        assert_eq!(minute.len(), 1);
        assert_eq!(minute[0].start_ms, Resolution::Minute.start(NOW));
        assert_eq!(minute[0].summary.in_flight_max, 3.0);
        assert!((minute[0].summary.in_flight(60_000) - 0.05).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn rolling_up_in_steps_loses_nothing_and_gives_the_same_as_at_once(
            calls in prop::collection::vec((0u32..3, 0u64..20_000_000), 1..60),
        ) {
            let mut timeline = Timeline::new(1_000);
            let calls: Vec<_> = calls.into_iter().map(|(p, at)| call(p, NOW + at)).collect();
            let mut rows = vec![];
            for call in &calls {
                timeline.record(call, call.at_ms);
                rows.extend(timeline.flush(call.at_ms));
            }
            let seconds = added_up(rows, Resolution::Second);
            let minutes = added_up(seconds.clone(), Resolution::Minute);
            let hours = added_up(minutes, Resolution::Hour);
            prop_assert_eq!(&hours, &added_up(seconds, Resolution::Hour));
            let total: u64 = hours.iter().map(|row| row.summary.calls).sum();
            prop_assert_eq!(total, calls.len() as u64);
            let ns: u64 = hours.iter().map(|row| row.summary.ns).sum();
            prop_assert_eq!(ns, calls.iter().map(|call| call.ns).sum::<u64>());
        }
    }
}
