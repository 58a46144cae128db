//! What the predictor sees of the history: plain data that later calls do not change.

use std::sync::Arc;

use super::joins::Joined;
use super::series::{Buckets, SeriesStats};
use super::sketch::QuantileSketch;
use crate::ids::{SeriesKey, Tick};

/// Values of [`HistoryView::calls`] over all series; with more series each gets a shorter past.
const CELLS_MAX: usize = 4_000_000;

/// Shortest past that a series gets in [`HistoryView::calls`], however many series there are.
const TICKS_MIN: usize = 64;

/// One series of a [`HistoryView`].
#[derive(Clone, Debug)]
pub struct SeriesView {
    /// The function expression and partition.
    pub key: SeriesKey,
    /// Its statistics at the time of the view.
    pub stats: SeriesStats,
    /// Would-be nanoseconds of its latest calls.
    pub durations: Arc<QuantileSketch>,
    pub(super) buckets: Arc<Buckets>,
}

/// The history up to the last closed tick.
#[derive(Clone, Debug, Default)]
pub struct HistoryView {
    /// The last closed tick; tick 0 if there is none.
    pub at: Tick,
    /// Oldest tick that is remembered.
    pub oldest: Tick,
    /// Length of a tick in milliseconds.
    pub tick_ms: u64,
    /// Ticks after which the load repeats, if configured.
    pub season_ticks: Option<usize>,
    /// Every series, sorted by key.
    pub series: Vec<SeriesView>,
    /// Series that took the place of others not long ago.
    pub heirs: Vec<Heir>,
    /// Partitions that queries join by their keys, sorted.
    pub joined: Vec<Joined>,
}

/// A series that goes on where another one was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heir {
    /// The series.
    pub key: SeriesKey,
    /// The one that it goes on from.
    pub of: SeriesKey,
}

impl SeriesView {
    /// Calls in one tick.
    #[must_use]
    pub fn calls_at(&self, tick: Tick) -> f64 {
        match self.buckets.binary_search_by_key(&tick, |bucket| bucket.tick) {
            Ok(position) => f64::from(self.buckets[position].calls),
            Err(_) => 0.0,
        }
    }

    /// Calls in the `ticks` ticks up to `at`.
    #[must_use]
    pub fn calls_until(&self, at: Tick, ticks: usize) -> f64 {
        let after = at.0.saturating_sub(ticks as u64);
        let newest_first = self.buckets.iter().rev().skip_while(|bucket| bucket.tick > at);
        newest_first
            .take_while(|bucket| bucket.tick.0 > after)
            .map(|bucket| f64::from(bucket.calls))
            .sum()
    }

    /// Mean calls per tick over the last `ticks` ticks before and with `at`.
    #[must_use]
    pub fn calls_now(&self, at: Tick, ticks: usize) -> f64 {
        let known = (at.0.saturating_sub(self.stats.first_called.0) + 1).min(ticks as u64).max(1);
        self.calls_until(at, ticks) / known as f64
    }

    pub(crate) fn calls(&self, at: Tick, ticks: usize, oldest: Tick) -> Vec<f64> {
        let start = oldest.0.max((at.0 + 1).saturating_sub(ticks as u64));
        let mut calls = vec![0.0; (at.0 + 1).saturating_sub(start) as usize];
        for bucket in self.buckets.iter() {
            let position = bucket.tick.0.checked_sub(start).map(|position| position as usize);
            if let Some(calls) = position.and_then(|position| calls.get_mut(position)) {
                *calls = f64::from(bucket.calls);
            }
        }
        calls
    }
}

impl HistoryView {
    /// Calls per tick of every series up to `at` and not a tick further, in the order of
    /// [`series`](Self::series), oldest tick first. Ticks before the first call of a series count as
    /// zero calls.
    #[must_use]
    pub fn calls(&self, at: Tick) -> Vec<Vec<f64>> {
        let ticks = (CELLS_MAX / self.series.len().max(1)).max(TICKS_MIN);
        let at = at.min(self.at);
        self.series.iter().map(|series| series.calls(at, ticks, self.oldest)).collect()
    }

    /// One series.
    #[must_use]
    pub fn get(&self, key: &SeriesKey) -> Option<&SeriesView> {
        self.series.binary_search_by(|series| series.key.cmp(key)).ok().map(|i| &self.series[i])
    }
}
