//! How an asynchronous function is called: rows of a batch, batches at a time, timeout and retries.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::FunctionError;

/// Rows that one batch may have.
const BATCH_ROWS: RangeInclusive<usize> = 1..=1_000_000;

/// Batches that may be on their way at a time.
const CONCURRENCY: RangeInclusive<usize> = 1..=1_024;

/// Time that one batch may take.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3_600);

/// Attempts after the first one.
const RETRIES: RangeInclusive<u32> = 0..=20;

/// Pause before the second attempt.
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// How an asynchronous function is called: what [`crate::Functions::register_async`] is told besides the
/// card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsyncOptions {
    pub(super) batch_rows: Option<usize>,
    pub(super) concurrency: usize,
    pub(super) timeout: Duration,
    pub(super) retries: u32,
    pub(super) backoff: Duration,
}

impl Default for AsyncOptions {
    /// Batches of the function's ideal size, 8 at a time, 30 s for each, 3 retries from 100 ms on.
    fn default() -> Self {
        Self {
            batch_rows: None,
            concurrency: 8,
            timeout: Duration::from_secs(30),
            retries: 3,
            backoff: Duration::from_millis(100),
        }
    }
}

impl AsyncOptions {
    /// Rows of one batch, 1 to 1,000,000. Without it the function says what is ideal; if it does not
    /// say, all rows of a call are one batch.
    #[must_use]
    pub fn with_batch_rows(mut self, rows: usize) -> Self {
        self.batch_rows = Some(rows);
        self
    }

    /// Batches that are on their way at a time, 1 to 1,024: of all queries in this process together.
    #[must_use]
    pub fn with_concurrency(mut self, batches: usize) -> Self {
        self.concurrency = batches;
        self
    }

    /// Time that one attempt at a batch may take, 1 ms to 1 h. Waiting for its turn does not count.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Attempts after a first one that failed or took too long, 0 to 20. Only an immutable function is
    /// asked again: of any other nobody knows what the first attempt did.
    #[must_use]
    pub fn with_retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Pause before the second attempt, 1 ms to 60 s; it doubles with each further one, up to a minute,
    /// and up to a half of it is left out by chance, so that many who failed together do not come back
    /// together.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Duration) -> Self {
        self.backoff = backoff;
        self
    }

    /// These options if each is within its bounds.
    pub(super) fn checked(self, function: &str) -> Result<Self, FunctionError> {
        let refused = |what, value: String, low: String, high: String| FunctionError::Register {
            name: function.to_owned(),
            what,
            value,
            expected: format!("{low} to {high}"),
        };
        macro_rules! within {
            ($what:literal, $value:expr, $bounds:expr, $form:literal) => {
                if !$bounds.contains(&$value) {
                    let shown = |value| format!($form, value);
                    let (low, high) = (shown(*$bounds.start()), shown(*$bounds.end()));
                    return Err(refused($what, shown($value), low, high));
                }
            };
        }
        if let Some(rows) = self.batch_rows {
            within!("its number of rows in a batch", rows, BATCH_ROWS, "{}");
        }
        within!("its number of batches at a time", self.concurrency, CONCURRENCY, "{}");
        within!("its timeout", self.timeout, TIMEOUT, "{:?}");
        within!("its number of retries", self.retries, RETRIES, "{}");
        within!("its pause before a retry", self.backoff, BACKOFF, "{:?}");
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_out_of_its_bounds_is_refused_with_value_and_bound() {
        let options = AsyncOptions::default();
        assert_eq!(options.checked("f"), Ok(options));
        for (wrong, text) in [
            (
                options.with_batch_rows(0),
                "its number of rows in a batch is 0; it must be 1 to 1000000",
            ),
            (
                options.with_concurrency(0),
                "its number of batches at a time is 0; it must be 1 to 1024",
            ),
            (options.with_timeout(Duration::ZERO), "its timeout is 0ns; it must be 1ms to 3600s"),
            (options.with_retries(21), "its number of retries is 21; it must be 0 to 20"),
            (
                options.with_backoff(Duration::from_secs(61)),
                "its pause before a retry is 61s; it must be 1ms to 60s",
            ),
        ] {
            let error = wrong.checked("f").unwrap_err();
            assert_eq!(error.code(), "FS-FN-9");
            assert_eq!(error.to_string(), format!("function f cannot be registered: {text}"));
        }
    }
}
