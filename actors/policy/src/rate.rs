//! How fast bytes may be moved: a bucket of tokens, kept as the time at which it will be full again.

/// Bytes of so many nanoseconds may be moved at once after a rest.
const BURST_NS: u64 = 1_000_000_000;

/// Longest wait for a turn, in nanoseconds: who would wait for longer is refused.
pub const WAIT_NS_MAX: u64 = 60_000_000_000;

/// What was moved to one place, against what may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// When all that was granted will have been moved at the rate that is allowed.
    moved_at_ns: u64,
}

impl Rate {
    /// How long to wait, in nanoseconds, until `bytes` more may be moved at `bytes_per_s` (0: as fast as one
    /// likes); they count from now on. The clock is any that does not go back.
    ///
    /// After a rest the bytes of one second may go at once, and the last of them may be as many as one likes: a
    /// partition is moved as a whole, and those after it wait for longer.
    ///
    /// # Errors
    /// The wait, if it is above [`WAIT_NS_MAX`]: then nothing counts.
    pub fn take(&mut self, bytes: u64, bytes_per_s: u64, now_ns: u64) -> Result<u64, u64> {
        if bytes_per_s == 0 {
            return Ok(0);
        }
        let begun = self.moved_at_ns.max(now_ns);
        let wait = (begun - now_ns).saturating_sub(BURST_NS);
        if wait > WAIT_NS_MAX {
            return Err(wait);
        }
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_s);
        self.moved_at_ns = begun.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX));
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_second_goes_at_once_and_what_follows_waits_for_its_turn() {
        let mut rate = Rate::default();
        let mut take = |bytes, at| rate.take(bytes, 100, at * SECOND);
        assert_eq!(take(60, 5), Ok(0));
        assert_eq!(take(500, 5), Ok(0), "within the first second");
        assert_eq!(take(1, 5), Ok(4_600_000_000));
        assert_eq!(take(1, 20), Ok(0), "all of it is over");
    }

    #[test]
    fn who_would_wait_for_too_long_is_refused_and_does_not_count() {
        let mut rate = Rate::default();
        assert_eq!(rate.take(6_300, 100, 0), Ok(0));
        assert_eq!(rate.take(1, 100, 0), Err(62 * SECOND));
        assert_eq!(rate.take(1, 100, 2 * SECOND), Ok(60 * SECOND));
        assert_eq!(rate.take(u64::MAX, 0, 0), Ok(0), "no bound");
        assert_eq!(rate.take(u64::MAX, 1, 90 * SECOND), Ok(0));
        assert!(rate.take(1, 1, 91 * SECOND).is_err());
    }

    proptest! {
        #[test]
        fn in_no_span_of_time_is_more_moved_than_the_rate_a_second_and_one_piece_allow(
            pieces in prop::collection::vec((0_u64..3 * SECOND, 1_u64..500), 1..60),
        ) {
            let (mut rate, mut now, mut moved) = (Rate::default(), 0, Vec::new());
            for (pause, bytes) in pieces {
                now += pause;
                if let Ok(wait) = rate.take(bytes, 100, now) {
                    // In turn, as those who wait go on.
                    moved.push((now + wait, bytes));
                }
            }
            for (first, (start, _)) in moved.iter().enumerate() {
                let mut bytes = 0;
                for (at, more) in &moved[first..] {
                    let seconds = at.saturating_sub(*start) as f64 / SECOND as f64;
                    // What came before this piece, which may be as large as it likes.
                    prop_assert!(bytes as f64 <= 100.0 * (seconds + 1.0) + 500.0 + 1e-3);
                    bytes += more;
                }
            }
        }
    }
}
