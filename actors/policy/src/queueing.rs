//! How long work waits on a node, by how busy it is.

/// Share of its CPUs from which on a node's queue is taken to grow evenly: within a tick or a few it cannot
/// become as long as it would in the end.
const FULL: f64 = 0.85;

/// Mean number of tasks that wait where tasks keep `busy_cpus` of `permits` CPUs busy: so many nanoseconds
/// are waited for in each nanosecond. Tasks are taken to come at random, and to last as differently as they
/// do on average.
///
/// # Source
/// Sakasegawa, "An approximation formula Lq = a·ρ^β / (1 - ρ)", Annals of the Institute of Statistical
/// Mathematics 29, 1977, with `β = sqrt(2(c + 1))`; exact for one CPU (M/M/1).
///
/// # Cost
/// `O(1)`.
#[must_use]
pub fn waiting(busy_cpus: f64, permits: f64) -> f64 {
    let permits = permits.max(1.0);
    let share = (busy_cpus / permits).max(0.0);
    let exponent = (2.0 * (permits + 1.0)).sqrt();
    let queue = |share: f64| share.powf(exponent) / (1.0 - share);
    if share <= FULL {
        return queue(share);
    }
    let slope = queue(FULL) * (exponent / FULL + 1.0 / (1.0 - FULL));
    queue(FULL) + (share - FULL) * slope
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_cpu_that_is_busy_half_of_the_time_has_half_a_task_wait() {
        assert!((waiting(0.5, 1.0) - 0.5).abs() < 1e-12);
        assert_eq!(waiting(0.0, 4.0), 0.0);
        assert!(waiting(1.0, 2.0) < waiting(0.5, 1.0), "two CPUs share one queue");
    }

    proptest! {
        #[test]
        fn the_busier_the_longer_and_ever_faster(busy in 0.0..8.0f64, permits in 1u32..5) {
            let at = |busy: f64| waiting(busy, f64::from(permits));
            prop_assert!(at(busy + 0.1) > at(busy));
            prop_assert!(at(busy + 0.2) - at(busy + 0.1) >= at(busy + 0.1) - at(busy) - 1e-9);
        }
    }
}
