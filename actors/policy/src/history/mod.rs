//! What was called, where, how often and how long: the memory of the monitor.
//!
//! Time is counted in ticks. A tick without calls takes no memory and counts as zero calls.

mod calm;
mod saved;
mod series;
mod together;
mod view;

use std::collections::BTreeMap;

pub use series::{Bucket, Rolling, SeriesStats};
pub use together::Target;
pub use view::{HistoryView, SeriesView};

use crate::calls::CallRecord;
use crate::config::LoopConfig;
use crate::ids::{SeriesKey, Tick};
use series::{HalfLives, Series};
use together::Together;

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
/// Bounded three ways: `series-max` series (the least called is forgotten and counted),
/// `history-ticks-max` ticks, and `monitor.buckets-max` ticks with calls over all series.
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
    evicted: u64,
    together: Together,
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
            evicted: 0,
            together: Together::new(monitor.pairs_max()),
        }
    }

    /// Counts one call in the tick that is open.
    pub fn record(&mut self, call: &CallRecord) {
        let key = call.series();
        self.together.record(call.query, (key.expression, key.partition.clone()));
        if let Some(series) = self.series.get_mut(&key) {
            series.record(call, self.now, self.half);
            return;
        }
        if self.series.len() >= self.series_max {
            // Some room at once, so that a flood of new series does not search for each of them.
            self.evict((self.series_max / 16).max(1));
        }
        let mut series = Series::default();
        series.record(call, self.now, self.half);
        self.series.insert(key, series);
    }

    /// Ends the open tick and answers its number.
    pub fn close_tick(&mut self) -> Tick {
        let closed = self.now;
        for series in self.series.values_mut() {
            self.buckets += series.close(closed, self.half);
        }
        self.together.close();
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
            series.stats.calls_per_tick.add_zeros(empty, self.half.ticks);
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

    /// How many of the queries that were looked at called both. All of them are, up to 64 a tick.
    #[must_use]
    pub fn together(&self, a: &Target, b: &Target) -> u64 {
        self.together.count(a, b)
    }

    /// Series that were forgotten because there were too many.
    #[must_use]
    pub fn series_evicted(&self) -> u64 {
        self.evicted
    }

    /// What the predictor needs: plain data that later calls do not change. Cheap: series are
    /// shared.
    #[must_use]
    pub fn view(&self) -> HistoryView {
        let series = self.series.iter().map(|(key, series)| SeriesView {
            key: key.clone(),
            stats: series.stats,
            buckets: series.buckets.clone(),
        });
        HistoryView {
            at: Tick(self.now.0 - 1),
            oldest: self.oldest,
            tick_ms: self.tick_ms,
            season_ticks: self.season_ticks,
            series: series.collect(),
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
                self.evicted += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
