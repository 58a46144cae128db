//! The history as it would have been if some ticks had been calmer, for members to learn from.

use std::sync::Arc;

use super::HistoryView;
use crate::ids::Tick;

impl HistoryView {
    /// Divides the calls of every series of a function, tick by tick. Calls stay whole numbers: what is
    /// rounded away in one tick is added in the next, so that a series that is seldom called does not
    /// vanish.
    pub fn divide_calls(&mut self, function: &str, by: impl Fn(Tick) -> f64) {
        for series in self.series.iter_mut().filter(|series| *series.key.function == *function) {
            let mut left_over = 0.0;
            for bucket in Arc::make_mut(&mut series.buckets) {
                let factor = by(bucket.tick);
                if factor == 1.0 {
                    continue;
                }
                let calls = f64::from(bucket.calls) / factor + left_over;
                // The cast saturates.
                bucket.calls = calls.round().max(0.0) as u32;
                left_over = calls - f64::from(bucket.calls);
            }
        }
    }
}
