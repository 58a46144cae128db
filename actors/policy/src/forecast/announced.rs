//! Announced futures: peaks and lulls that people know of and no history shows.
//!
//! An announcement multiplies what is expected of one function for a while. Members never see it: from the
//! calls that they learn from the factor is taken out ([`Announced::calm`]), and it is put back into what
//! the ensemble says ([`Announced::put_into`]). So an announced peak is no surprise that changes weights and
//! intervals, and does not come back by itself a season later. If it does not come, its ticks look like a
//! lull to the members until it is taken back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Forecast;
use super::moments::Moments;
use crate::history::HistoryView;
use crate::ids::Tick;

/// Spans with a factor that are kept, over all functions.
pub const ANNOUNCEMENTS_MAX: usize = 1_000;

/// Smallest factor. Of a function that is said not to be called at all nothing can be learned.
pub const FACTOR_MIN: f64 = 0.001;

/// Largest factor.
pub const FACTOR_MAX: f64 = 1_000.0;

/// Calls of `function` are said to be `factor` times as many as they would be, from one moment to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// The function, on all partitions.
    pub function: Arc<str>,
    /// How many times as many calls, [`FACTOR_MIN`] to [`FACTOR_MAX`].
    pub factor: f64,
    /// The first moment, in milliseconds since the Unix epoch.
    pub from_ms: u64,
    /// The first moment after it.
    pub until_ms: u64,
}

/// An announcement that cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// The factor is no number or out of bounds.
    #[error("the factor is {factor}; it must be {FACTOR_MIN} to {FACTOR_MAX}")]
    Factor {
        /// The factor given.
        factor: f64,
    },
    /// It ends before it begins.
    #[error("the end must be after the beginning; it is {early_ms} ms before it")]
    Order {
        /// How much too early it ends.
        early_ms: u64,
    },
    /// It is over already.
    #[error("the end must be in the future; it was {ago_ms} ms ago")]
    Past {
        /// How long ago it ended.
        ago_ms: u64,
    },
    /// There are too many.
    #[error("{count} spans would be announced; at most {ANNOUNCEMENTS_MAX} are kept")]
    TooMany {
        /// How many it would be.
        count: usize,
    },
    /// Stored ones that overlap or are out of order.
    #[error("announcements of {function} overlap or are out of order")]
    Overlap {
        /// The function.
        function: Arc<str>,
    },
}

impl AnnounceError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Factor { .. } => "FS-ANNOUNCE-1",
            Self::Order { .. } => "FS-ANNOUNCE-2",
            Self::Past { .. } => "FS-ANNOUNCE-3",
            Self::TooMany { .. } => "FS-ANNOUNCE-4",
            Self::Overlap { .. } => "FS-ANNOUNCE-5",
        }
    }

    /// Whether the same announcement may be accepted later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::TooMany { .. })
    }
}

impl Announcement {
    fn checked(self) -> Result<Self, AnnounceError> {
        // Not a number is in no range.
        if !(FACTOR_MIN..=FACTOR_MAX).contains(&self.factor) {
            return Err(AnnounceError::Factor { factor: self.factor });
        }
        if self.until_ms <= self.from_ms {
            return Err(AnnounceError::Order { early_ms: self.from_ms - self.until_ms });
        }
        Ok(self)
    }

    /// Milliseconds of a span that lie in it.
    fn overlap_ms(&self, from_ms: u64, until_ms: u64) -> u64 {
        self.until_ms.min(until_ms).saturating_sub(self.from_ms.max(from_ms))
    }
}

/// All announcements. Those of one function never overlap: the last word counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Announcement>", into = "Vec<Announcement>")]
pub struct Announced {
    /// By function, then by time.
    spans: Vec<Announcement>,
}

impl From<Announced> for Vec<Announcement> {
    fn from(announced: Announced) -> Self {
        announced.spans
    }
}

impl TryFrom<Vec<Announcement>> for Announced {
    type Error = AnnounceError;

    fn try_from(spans: Vec<Announcement>) -> Result<Self, AnnounceError> {
        if spans.len() > ANNOUNCEMENTS_MAX {
            return Err(AnnounceError::TooMany { count: spans.len() });
        }
        let spans: Vec<_> =
            spans.into_iter().map(Announcement::checked).collect::<Result<_, _>>()?;
        for (one, next) in spans.iter().zip(spans.iter().skip(1)) {
            let in_order = one.function < next.function
                || (one.function == next.function && one.until_ms <= next.from_ms);
            if !in_order {
                return Err(AnnounceError::Overlap { function: Arc::clone(&next.function) });
            }
        }
        Ok(Self { spans })
    }
}

impl Announced {
    /// Adds an announcement at `now_ms`. Where it meets others of its function it takes their place; with
    /// a factor of 1 it only does that.
    ///
    /// # Errors
    /// [`AnnounceError`] if it cannot be; nothing has changed then.
    pub fn announce(&mut self, new: Announcement, now_ms: u64) -> Result<(), AnnounceError> {
        let new = new.checked()?;
        if new.until_ms <= now_ms {
            return Err(AnnounceError::Past { ago_ms: now_ms - new.until_ms });
        }
        let mut spans = Vec::with_capacity(self.spans.len() + 2);
        for old in &self.spans {
            if old.function != new.function || old.overlap_ms(new.from_ms, new.until_ms) == 0 {
                spans.push(old.clone());
                continue;
            }
            let before = Announcement { until_ms: new.from_ms, ..old.clone() };
            let after = Announcement { from_ms: new.until_ms, ..old.clone() };
            spans.extend([before, after].into_iter().filter(|part| part.from_ms < part.until_ms));
        }
        if new.factor != 1.0 {
            spans.push(new);
        }
        if spans.len() > ANNOUNCEMENTS_MAX {
            return Err(AnnounceError::TooMany { count: spans.len() });
        }
        spans.sort_by(|a, b| a.function.cmp(&b.function).then(a.from_ms.cmp(&b.from_ms)));
        self.spans = spans;
        Ok(())
    }

    /// Takes back all that was announced of a function, also what is over; answers how many spans.
    pub fn take_back(&mut self, function: &str) -> usize {
        let before = self.spans.len();
        self.spans.retain(|span| *span.function != *function);
        before - self.spans.len()
    }

    /// Forgets what was over before `ms`: no tick that is remembered knows of it.
    pub fn forget_before(&mut self, ms: u64) {
        self.spans.retain(|span| span.until_ms > ms);
    }

    /// All of them, by function, then by time.
    pub fn iter(&self) -> impl Iterator<Item = &Announcement> {
        self.spans.iter()
    }

    /// Whether anything of a function is announced for a moment from `from_ms` up to `until_ms`.
    #[must_use]
    pub fn has(&self, function: &str, from_ms: u64, until_ms: u64) -> bool {
        self.of(function).iter().any(|span| span.overlap_ms(from_ms, until_ms) > 0)
    }

    /// The mean factor of a function over a span of time; 1 where nothing is announced.
    #[must_use]
    pub fn factor(&self, function: &str, from_ms: u64, until_ms: u64) -> f64 {
        let length_ms = until_ms.saturating_sub(from_ms).max(1) as f64;
        let more = |span: &Announcement| {
            (span.factor - 1.0) * span.overlap_ms(from_ms, until_ms) as f64 / length_ms
        };
        1.0 + self.of(function).iter().map(more).sum::<f64>()
    }

    fn of(&self, function: &str) -> &[Announcement] {
        let start = self.spans.partition_point(|span| *span.function < *function);
        let spans = self.spans.get(start..).unwrap_or_default();
        let end = spans.partition_point(|span| *span.function == *function);
        spans.get(..end).unwrap_or_default()
    }

    fn factor_of_tick(&self, function: &str, tick: Tick, moments: &Moments) -> f64 {
        self.factor(function, moments.start_ms(tick), moments.start_ms(tick.next()))
    }

    /// The history as it would have been without what was announced; `None` if that is the same.
    #[must_use]
    pub fn calm(&self, view: &HistoryView, moments: &Moments) -> Option<HistoryView> {
        let known_ms = (moments.start_ms(view.oldest), moments.start_ms(view.at.next()));
        let spans_known =
            self.spans.iter().filter(|span| span.overlap_ms(known_ms.0, known_ms.1) > 0);
        let mut calm: Option<HistoryView> = None;
        let mut last = None;
        for span in spans_known {
            // One pass over a function does for all of its spans.
            if last.replace(&span.function) == Some(&span.function) {
                continue;
            }
            let factor = |tick: Tick| self.factor_of_tick(&span.function, tick, moments);
            calm.get_or_insert_with(|| view.clone()).divide_calls(&span.function, factor);
        }
        calm
    }

    /// Multiplies what is expected of the announced functions, all quantiles alike, and marks their series
    /// as [announced](super::SeriesForecast::announced). What was measured of them is taken from `view`, as
    /// the mean of the last `current_ticks`: the ensemble saw a calmed history.
    pub fn put_into(
        &self,
        forecast: &mut Forecast,
        view: &HistoryView,
        moments: &Moments,
        current_ticks: usize,
    ) {
        for series in &mut forecast.series {
            let spans = self.of(&series.key.function);
            if spans.is_empty() {
                continue;
            }
            if let Some(seen) = view.get(&series.key) {
                series.calls_now = seen.calls_now(view.at, current_ticks);
            }
            for (ahead, calls) in (1..).zip(&mut series.calls) {
                let tick = Tick(forecast.at.0 + ahead);
                let factor = self.factor_of_tick(&series.key.function, tick, moments);
                *calls = calls.times(factor);
                series.announced |= factor != 1.0;
            }
        }
        for total in &mut forecast.totals {
            for (ahead, calls) in (1..).zip(&mut total.calls) {
                let tick = Tick(forecast.at.0 + ahead);
                *calls = calls.times(self.factor_of_tick(&total.function, tick, moments));
            }
        }
    }
}

#[cfg(test)]
mod tests;
