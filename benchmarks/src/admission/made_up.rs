//! A load without a file, and what a key takes and costs where a trace does not say.

use foreshard_policy::caches::Call;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Trace;

/// Keys that are called again and again.
const KEYS: usize = 10_000;
/// The key of rank `r` is called in proportion to `1 / r` to this power.
const SKEW: f64 = 0.9;
/// Calls after which the ranks shift.
const SHIFT_CALLS: usize = 20_000;
/// Ranks by which they shift.
const SHIFT_RANKS: usize = 500;
/// Calls between two scans, and calls of a scan: of keys that are never called again.
const SCAN_EVERY: usize = 50_000;
const SCAN_CALLS: usize = 5_000;
/// Calls of the whole load.
const CALLS: usize = 400_000;
const CALLS_QUICK: usize = 60_000;

/// Bytes of an output: from the first to the second, the logarithm evenly spread.
const BYTES: (f64, f64) = (1_024.0, 65_536.0);
/// Nanoseconds that a row takes, likewise.
const NS_PER_ROW: (f64, f64) = (150.0, 2e6);
/// Bytes of one row of an output.
const BYTES_PER_ROW: u64 = 16;
/// Nanoseconds that a row takes to be looked up.
const LOOKUP_NS: f64 = 100.0;

/// Keys of which a few are called often; which ones changes, and scans come between.
pub(super) fn trace(seed: u64, quick: bool) -> Trace {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sum = 0.0;
    let ends: Vec<f64> = (1..=KEYS)
        .map(|rank| {
            sum += (rank as f64).powf(-SKEW);
            sum
        })
        .collect();
    let calls = if quick { CALLS_QUICK } else { CALLS };
    let key = |at: usize| {
        let is_scan = at % SCAN_EVERY >= SCAN_EVERY - SCAN_CALLS;
        let drawn = rng.random_range(0.0..sum);
        let rank = ends.partition_point(|end| *end <= drawn);
        if is_scan { KEYS + at } else { (rank + at / SHIFT_CALLS * SHIFT_RANKS) % KEYS }
    };
    let calls = (0..calls).map(key).map(|key| drawn(key as u64, seed)).collect();
    Trace { name: "made-up".into(), calls }
}

/// A call of a key whose size and cost are drawn by the key.
pub(super) fn drawn(key: u64, seed: u64) -> Call {
    let bytes = bytes(key, seed);
    let (low, high) = NS_PER_ROW;
    let ns_per_row = low * (high / low).powf(share(key, seed, 1));
    Call { key, bytes, ns: (bytes / BYTES_PER_ROW) as f64 * (ns_per_row - LOOKUP_NS) }
}

/// The size that is drawn by a key.
pub(super) fn bytes(key: u64, seed: u64) -> u64 {
    let (low, high) = BYTES;
    (low * (high / low).powf(share(key, seed, 2))) as u64
}

/// A number from 0 to 1, always the same for the same key.
fn share(key: u64, seed: u64, what: u64) -> f64 {
    let mixed = mix(mix(mix(key) ^ seed) ^ what);
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// Every bit of the result depends on every bit of `bits` (the finalizer of SplitMix64).
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_takes_and_costs_the_same_at_each_call_and_another_one_with_another_seed() {
        assert_eq!(drawn(7, 1), drawn(7, 1));
        assert_ne!(drawn(7, 1), drawn(7, 2));
        for key in 0..10_000 {
            let Call { bytes, ns, .. } = drawn(key, 3);
            assert!((1_024..=65_536).contains(&bytes), "{bytes}");
            let per_row = ns / (bytes / BYTES_PER_ROW) as f64;
            assert!((49.9..=2e6).contains(&per_row), "{per_row}");
        }
    }

    #[test]
    fn the_made_up_load_has_favourites_that_change_and_scans() {
        let trace = trace(1, true);
        let count = |key: u64, calls: &[Call]| calls.iter().filter(|it| it.key == key).count();
        let (early, late) = (&trace.calls[..20_000], &trace.calls[20_000..40_000]);
        assert!(count(0, early) > 500 && count(0, late) < 100);
        assert!(count(500, late) > 500);
        let scanned = trace.calls.iter().filter(|it| it.key >= KEYS as u64).count();
        assert_eq!(scanned, SCAN_CALLS);
    }
}
