//! What was called, where, how often and how long: the memory of the monitor.
//!
//! The history proper counts in ticks: a tick without calls takes no memory and counts as zero calls.
//! What is kept for longer goes from the [`Timeline`] to files, second by second and by the clock;
//! [`files`] decides what becomes of those.

mod calm;
mod codec;
pub mod files;
mod joins;
mod recall;
mod saved;
mod series;
mod sketch;
mod succession;
mod summary;
mod tail;
mod ticks;
mod timeline;
mod together;
mod view;

use std::collections::BTreeMap;

pub use joins::Joined;
pub use recall::Recalled;
pub use saved::Snapshot;
pub use series::{Bucket, Rolling, SeriesStats};
pub use sketch::{BINS_MAX, QuantileSketch};
pub use succession::Succession;
pub use summary::Summary;
pub use tail::TailTotals;
pub use ticks::TickClock;
pub use timeline::{Irregular, OTHERS, Resolution, Row, SKEW_MS_MAX, Timeline, added_up};
pub use together::Target;
pub use view::{Heir, HistoryView, SeriesView};

use crate::calls::CallRecord;
use crate::config::LoopConfig;
use crate::ids::{PartitionId, SeriesKey, Tick};
use joins::Joins;
use series::{HalfLives, Series};
use tail::Tail;
use together::Together;

/// Ticks in which views tell of a series that goes on where another was: whoever learns of series may come late.
const HEIR_TICKS: u64 = 8;

/// Series that views tell of in this way; of more, only the first.
const HEIRS_MAX: usize = 10_000;

/// A stored history cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The bytes are no history.
    #[error("stored history is unreadable: {reason}")]
    Corrupt {
        /// What the reader said.
        reason: String,
    },
    /// The bytes were written by another version.
    #[error("stored history has version {version}; it must be {expected}")]
    Version {
        /// The version found.
        version: u32,
        /// The version that can be read.
        expected: u32,
    },
}

impl HistoryError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => "FS-HISTORY-1",
            Self::Version { .. } => "FS-HISTORY-2",
        }
    }

    /// Whether the same bytes may be readable later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Call counts, rows and durations of every series, tick by tick.
///
/// Bounded three ways: `series-max` series (the least called is no longer counted by itself: its sums go
/// to the tail, which is of a fixed size), `history-ticks-max` ticks, and `monitor.buckets-max` ticks
/// with calls over all series.
#[derive(Clone, Debug)]
pub struct History {
    tick_ms: u64,
    season_ticks: Option<usize>,
    ticks_max: u64,
    series_max: usize,
    buckets_max: usize,
    half: HalfLives,
    now: Tick,
    oldest: Tick,
    series: BTreeMap<SeriesKey, Series>,
    buckets: usize,
    /// The last frame of the store whose calls are counted here.
    frame: u64,
    tail: Tail,
    together: Together,
    joins: Joins,
    /// Series that go on where others were, with these, and when that became known.
    heirs: Vec<(Tick, Heir)>,
}

impl History {
    /// An empty history in its first tick.
    #[must_use]
    pub fn new(config: &LoopConfig) -> Self {
        let monitor = config.monitor();
        Self {
            tick_ms: config.tick_ms(),
            season_ticks: config.season_ticks(),
            ticks_max: config.history_ticks_max() as u64,
            series_max: config.series_max(),
            buckets_max: monitor.buckets_max(),
            half: HalfLives { ticks: monitor.half_life_ticks(), calls: monitor.half_life_calls() },
            now: Tick(1),
            oldest: Tick(1),
            series: BTreeMap::new(),
            buckets: 0,
            frame: 0,
            tail: Tail::new(monitor.tail_cells()),
            together: Together::new(monitor.pairs_max()),
            joins: Joins::new(monitor.pairs_max()),
            heirs: Vec::new(),
        }
    }

    /// Counts one call in the tick that is open.
    pub fn record(&mut self, call: &CallRecord) {
        let key = call.series();
        self.together.record(call.query, (key.expression, key.partition.clone()));
        let (now, half) = (self.now, self.half);
        self.with_series(key, |series| series.record(call, now, half));
    }

    /// Counts the calls of a summary in the tick that is open, as after a restart from what was kept.
    /// Which calls went together is not known any more.
    pub fn replay(&mut self, key: SeriesKey, summary: &Summary) {
        let (now, half) = (self.now, self.half);
        self.with_series(key, |series| series.replay(summary, now, half));
    }

    fn with_series(&mut self, key: SeriesKey, change: impl FnOnce(&mut Series)) {
        if let Some(series) = self.series.get_mut(&key) {
            return change(series);
        }
        if self.series.len() >= self.series_max {
            // Some room at once, so that a flood of new series does not search for each of them.
            self.evict((self.series_max / 16).max(1));
        }
        change(self.series.entry(key).or_default());
    }

    /// The last frame of the store whose calls are counted here.
    #[must_use]
    pub fn frame(&self) -> u64 {
        self.frame
    }

    /// Notes that the calls of the store's frames up to this one are counted here.
    pub fn counted_until(&mut self, frame: u64) {
        self.frame = frame;
    }

    /// Ends the open tick and answers its number.
    pub fn close_tick(&mut self) -> Tick {
        let closed = self.now;
        for series in self.series.values_mut() {
            self.buckets += series.close(closed, self.half);
        }
        self.together.close();
        self.joins.close(self.half.ticks);
        self.heirs.retain(|(since, _)| closed.0 < since.0.saturating_add(HEIR_TICKS));
        self.now = closed.next();
        self.keep_bounds();
        closed
    }

    /// Closes the open tick, and then ticks without calls until `tick` is the open one; for the
    /// time a process was down. A tick that is over already changes nothing.
    pub fn advance_to(&mut self, tick: Tick) {
        if tick <= self.now {
            return;
        }
        let empty = tick.0 - self.close_tick().next().0;
        for series in self.series.values_mut() {
            series.stats.calls_per_tick.add_repeated(0.0, empty, self.half.ticks);
        }
        self.now = tick;
        self.keep_bounds();
    }

    /// The tick that is open. The first one is tick 1.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.now
    }

    /// Every series with its statistics, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&SeriesKey, SeriesStats)> {
        self.series.iter().map(|(key, series)| (key, series.stats))
    }

    /// Statistics of one series.
    #[must_use]
    pub fn stats(&self, key: &SeriesKey) -> Option<SeriesStats> {
        self.series.get(key).map(|series| series.stats)
    }

    /// Notes that a query joins these partitions.
    pub fn join(&mut self, pairs: impl IntoIterator<Item = (PartitionId, PartitionId)>) {
        pairs.into_iter().for_each(|(one, other)| self.joins.record(one, other));
    }

    /// How many of the queries that were looked at called both. All of them are, up to 64 a tick.
    #[must_use]
    pub fn together(&self, a: &Target, b: &Target) -> u64 {
        self.together.count(a, b)
    }

    /// What the series came to that are no longer counted one by one.
    #[must_use]
    pub fn tail(&self) -> TailTotals {
        self.tail.totals
    }

    /// Calls and would-be nanoseconds of a series, whether it is still counted by itself or not:
    /// exact if it never was forgotten, else never too little.
    #[must_use]
    pub fn at_most(&self, key: &SeriesKey) -> (u64, u64) {
        let (calls, would_be_ns) = self.tail.at_most(key);
        self.series.get(key).map_or((calls, would_be_ns), |series| {
            let stats = &series.stats;
            (calls.saturating_add(stats.calls), would_be_ns.saturating_add(stats.would_be_ns))
        })
    }

    /// Bytes that the history takes, by its own account: without the names in keys, which calls of one
    /// table and function share, and without views.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        // Nodes of a B-tree of random inserts are two thirds full.
        let entry = (size_of::<SeriesKey>() + size_of::<Series>()) * 3 / 2;
        let heap: usize = self.series.values().map(Series::heap_bytes).sum();
        self.series.len() * entry + heap + self.tail.heap_bytes()
    }

    /// What the predictor needs: plain data that later calls do not change. Cheap: series are
    /// shared.
    #[must_use]
    pub fn view(&self) -> HistoryView {
        let series = self.series.iter().map(|(key, series)| SeriesView {
            key: key.clone(),
            stats: series.stats,
            durations: series.durations.clone(),
            buckets: series.buckets.clone(),
        });
        HistoryView {
            at: Tick(self.now.0 - 1),
            oldest: self.oldest,
            tick_ms: self.tick_ms,
            season_ticks: self.season_ticks,
            series: series.collect(),
            joined: self.joins.joined(),
            heirs: self.heirs.iter().map(|(_, heir)| heir.clone()).collect(),
        }
    }

    /// Forgets what is over the bounds, the oldest ticks and the least called series first.
    fn keep_bounds(&mut self) {
        if let Some(over) = self.series.len().checked_sub(self.series_max + 1) {
            self.evict(over + 1);
        }
        self.forget(Tick(self.now.0.saturating_sub(self.ticks_max)));
        while self.buckets > self.buckets_max {
            let ticks = self.now.0 - self.oldest.0;
            self.forget(Tick(self.oldest.0 + (ticks / 16).max(1)));
        }
    }

    fn forget(&mut self, oldest: Tick) {
        if oldest <= self.oldest {
            return;
        }
        self.oldest = oldest;
        for series in self.series.values_mut() {
            self.buckets -= series.forget(oldest);
        }
    }

    fn evict(&mut self, count: usize) {
        let mut all: Vec<_> =
            self.series.iter().map(|(key, series)| (series.frequency(), key)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        let least: Vec<_> = all.into_iter().take(count).map(|(_, key)| key.clone()).collect();
        for key in least {
            if let Some(series) = self.series.remove(&key) {
                self.buckets -= series.buckets.len();
                self.tail.add(&key, &series.stats);
            }
        }
    }
}

#[cfg(test)]
mod tests;
