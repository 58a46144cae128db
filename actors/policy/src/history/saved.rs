//! The history as bytes, for restarts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::series::{Bucket, Series, SeriesStats};
use super::together::Target;
use super::{History, HistoryError};
use crate::config::LoopConfig;
use crate::ids::{SeriesKey, Tick};

/// Changes whenever the fields below do.
const VERSION: u32 = 1;

#[derive(Deserialize)]
struct Header {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    now: Tick,
    oldest: Tick,
    evicted: u64,
    series: Vec<SavedSeries>,
    pairs: Vec<(Target, Target, u64)>,
}

#[derive(Serialize, Deserialize)]
struct SavedSeries {
    key: SeriesKey,
    stats: SeriesStats,
    open: Bucket,
    buckets: Vec<Bucket>,
}

fn corrupt(reason: impl ToString) -> HistoryError {
    HistoryError::Corrupt { reason: reason.to_string() }
}

impl History {
    /// The whole state as bytes.
    ///
    /// # Errors
    /// [`HistoryError::Corrupt`] if a number cannot be written.
    pub fn save(&self) -> Result<Vec<u8>, HistoryError> {
        let series = self.series.iter().map(|(key, series)| SavedSeries {
            key: key.clone(),
            stats: series.stats,
            open: series.open,
            buckets: series.buckets.iter().copied().collect(),
        });
        let pairs = self.together.pairs.iter();
        let saved = Saved {
            version: VERSION,
            now: self.now,
            oldest: self.oldest,
            evicted: self.evicted,
            series: series.collect(),
            pairs: pairs.map(|((a, b), count)| (a.clone(), b.clone(), *count)).collect(),
        };
        serde_json::to_vec(&saved).map_err(corrupt)
    }

    /// Takes up what [`save`](Self::save) wrote, within the bounds of `config`.
    ///
    /// # Errors
    /// [`HistoryError::Version`] or [`HistoryError::Corrupt`] if it is something else.
    pub fn load(config: &LoopConfig, bytes: &[u8]) -> Result<Self, HistoryError> {
        let Header { version } = serde_json::from_slice(bytes).map_err(corrupt)?;
        if version != VERSION {
            return Err(HistoryError::Version { version, expected: VERSION });
        }
        let saved: Saved = serde_json::from_slice(bytes).map_err(corrupt)?;
        let mut history = Self::new(config);
        history.now = saved.now;
        history.oldest = saved.oldest;
        history.evicted = saved.evicted;
        history.together.restore(saved.pairs);
        for SavedSeries { key, stats, open, buckets } in saved.series {
            let in_order = buckets.is_sorted_by(|a, b| a.tick < b.tick);
            if !in_order || buckets.last().is_some_and(|last| last.tick >= saved.now) {
                return Err(corrupt(format!("ticks of {key} are out of order")));
            }
            history.buckets += buckets.len();
            let buckets = Arc::new(buckets.into());
            history.series.insert(key, Series { stats, buckets, open });
        }
        history.keep_bounds();
        Ok(history)
    }
}
