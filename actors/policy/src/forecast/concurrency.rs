//! How many calls are under way at the same time, by Little's law.

use super::SeriesForecast;

/// Calls that are under way at the same time, on average over a tick: the rate at which they come times
/// the time that one takes.
///
/// # Shape and units
/// * `calls`: mean calls that begin in one tick.
/// * `tick_ms`: length of a tick in ms; a tick without length has no calls under way.
/// * `ns_per_call`: mean duration of one call in ns.
/// * returns calls under way, 0 and more, finite.
///
/// It holds whatever the distributions of arrivals and durations are, as long as the load lasts for longer
/// than one call: a call that outlasts its tick is counted in the tick in which it began.
///
/// # Source
/// Little, "A Proof for the Queuing Formula L = lambda W", Operations Research 9 (1961).
#[must_use]
pub fn concurrency(calls: f64, tick_ms: u64, ns_per_call: f64) -> f64 {
    if tick_ms == 0 {
        return 0.0;
    }
    let (calls_per_s, s_per_call) = (calls * 1e3 / tick_ms as f64, ns_per_call / 1e9);
    let under_way = calls_per_s * s_per_call;
    if under_way.is_finite() { under_way.max(0.0) } else { 0.0 }
}

impl SeriesForecast {
    /// Calls that are expected to be under way at the same time in each coming tick, nearest first, if
    /// nothing of their outputs is stored: durations are those that computing takes.
    pub fn concurrency(&self, tick_ms: u64) -> impl Iterator<Item = f64> {
        self.calls.iter().map(move |calls| concurrency(calls.mean(), tick_ms, self.ns_per_call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_calls_a_second_of_half_a_second_each_are_twenty_at_a_time() {
        assert!((concurrency(40.0, 1_000, 5e8) - 20.0).abs() < 1e-12);
        assert!((concurrency(2_400.0, 60_000, 5e8) - 20.0).abs() < 1e-12);
    }

    #[test]
    fn it_is_what_a_queue_holds_on_average() {
        // Calls come every 250 ms and take 700 ms: counted every 10 ms, away from the beginning.
        let began = || (0..4_000_u64).map(|call| call * 250);
        let under_way =
            |now: u64| began().filter(move |start| (*start..start + 700).contains(&now));
        let moments = (100_000..110_000_u64).step_by(10);
        let mean = moments.clone().map(|now| under_way(now).count()).sum::<usize>() as f64
            / moments.count() as f64;
        assert!((concurrency(4.0, 1_000, 7e8) - mean).abs() < 0.01, "{mean}");
    }

    #[test]
    fn what_is_no_number_is_no_call() {
        for (calls, tick_ms, ns) in [(1.0, 0, 1.0), (f64::NAN, 1, 1.0), (1.0, 1, f64::INFINITY)] {
            assert_eq!(concurrency(calls, tick_ms, ns), 0.0);
        }
        assert_eq!(concurrency(-1.0, 1, 1.0), 0.0);
    }
}
