//! Whether an output that finds no room in memory is worth its bytes on a local disk or in an object store.

/// Nanoseconds that it takes to open a file and to hand over to a thread that may wait, whatever its size.
const NS_PER_FILE: f64 = 200_000.0;

/// Nanoseconds that an object store takes to answer, before anything was measured.
const NS_PER_OBJECT_UNKNOWN: f64 = 30_000_000.0;

/// Weight of the newest measurement of how long a store takes to answer.
const OBJECT_WEIGHT: f64 = 0.2;

/// Nanoseconds that reading, checking and decoding a byte takes before anything was measured.
const NS_PER_BYTE_UNKNOWN: f64 = 1.0;

/// What computing must cost at least, in times that it takes to read the same values back.
const COMPUTING_OVER_READING: f64 = 2.0;

/// Smaller files tell nothing of what a byte takes.
const BYTES_MEASURED_MIN: u64 = 65_536;

/// Bytes of a file from which on a measurement counts in full: a quarter of the average.
const BYTES_OF_FULL_WEIGHT: f64 = 1_048_576.0;

/// What it takes to read values back, as measured so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadCost {
    ns_per_file: f64,
    ns_per_byte: f64,
    /// Whether what a file takes whatever its size is measured, too: of a local disk it is known.
    is_of_store: bool,
}

impl Default for ReadCost {
    fn default() -> Self {
        Self { ns_per_file: NS_PER_FILE, ns_per_byte: NS_PER_BYTE_UNKNOWN, is_of_store: false }
    }
}

impl ReadCost {
    /// What is expected of an object store of which nothing was read so far.
    #[must_use]
    pub fn of_store() -> Self {
        let ns_per_file = NS_PER_OBJECT_UNKNOWN;
        Self { ns_per_file, ns_per_byte: NS_PER_BYTE_UNKNOWN, is_of_store: true }
    }

    /// Nanoseconds that reading a file of `bytes` is expected to take.
    #[must_use]
    pub fn ns(&self, bytes: u64) -> f64 {
        self.ns_per_file + self.ns_per_byte * bytes as f64
    }

    /// Takes note that reading a file of `bytes` took `ns`. A small one tells how long a store takes to
    /// answer, and nothing of a local disk; a large one tells what a byte takes.
    pub fn measured(&mut self, bytes: u64, ns: u64) {
        if bytes < BYTES_MEASURED_MIN {
            if self.is_of_store {
                let now = (ns as f64 - self.ns_per_byte * bytes as f64).max(NS_PER_FILE);
                self.ns_per_file += OBJECT_WEIGHT * (now - self.ns_per_file);
            }
            return;
        }
        let now = (ns as f64 - self.ns_per_file).max(0.0) / bytes as f64;
        let weight = 0.25 * (bytes as f64 / BYTES_OF_FULL_WEIGHT).min(1.0);
        self.ns_per_byte += weight * (now - self.ns_per_byte);
    }

    /// Whether values that took `ns` to compute are worth their `bytes` on disk at all: reading them back
    /// must take less than half of that.
    #[must_use]
    pub fn is_worth_it(&self, ns: u64, bytes: u64) -> bool {
        ns as f64 >= COMPUTING_OVER_READING * self.ns(bytes)
    }

    /// Nanoseconds that one call of values on disk spares.
    #[must_use]
    pub fn ns_spared(&self, ns: u64, bytes: u64) -> f64 {
        (ns as f64 - self.ns(bytes)).max(0.0)
    }

    /// Nanoseconds that one call takes more if its values leave the memory: those of reading where the disk
    /// takes them over, those of computing where it does not.
    #[must_use]
    pub fn ns_without_memory(&self, ns: u64, bytes: u64) -> u64 {
        if self.is_worth_it(ns, bytes) { self.ns(bytes) as u64 } else { ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_quicker_to_compute_than_to_read_stays_off_the_disk() {
        let cost = ReadCost::default();
        assert!(!cost.is_worth_it(300_000, 8_192), "a third of a millisecond");
        assert!(cost.is_worth_it(3_000_000, 8_192));
        assert!(!cost.is_worth_it(3_000_000, 8 << 20), "as quick as it is large");
    }

    #[test]
    fn a_slow_disk_is_found_out_and_a_quick_one_too() {
        let mut cost = ReadCost::default();
        let (bytes, ns) = (4 << 20, 20_000_000);
        assert!(cost.is_worth_it(ns, bytes));
        (0..20).for_each(|_| cost.measured(bytes, 200_000_000));
        assert!(!cost.is_worth_it(ns, bytes), "{cost:?}");
        (0..40).for_each(|_| cost.measured(bytes, 2_000_000));
        assert!(cost.is_worth_it(ns, bytes), "{cost:?}");
    }

    #[test]
    fn a_store_is_worth_asking_for_what_takes_longer_than_its_answer() {
        let mut cost = ReadCost::of_store();
        assert!(!cost.is_worth_it(20_000_000, 8_192), "twenty milliseconds");
        assert!(cost.is_worth_it(200_000_000, 8_192));
        (0..40).for_each(|_| cost.measured(8_192, 2_000_000));
        assert!(cost.is_worth_it(20_000_000, 8_192), "it answers within two: {cost:?}");
        (0..40).for_each(|_| cost.measured(8_192, 900_000_000));
        assert!(!cost.is_worth_it(200_000_000, 8_192), "it got slow: {cost:?}");
    }

    #[test]
    fn a_tiny_file_that_took_long_says_nothing_of_the_disk() {
        let mut cost = ReadCost::default();
        (0..10).for_each(|_| cost.measured(100, 5_000_000));
        assert_eq!(cost, ReadCost::default());
    }

    proptest! {
        #[test]
        fn what_is_on_disk_spares_at_least_half_of_what_computing_takes(
            ns in 0u64..1 << 40,
            bytes in 0u64..1 << 32,
            reads in prop::collection::vec((0u64..1 << 24, 0u64..1 << 30), 0..20),
        ) {
            let mut cost = ReadCost::default();
            reads.into_iter().for_each(|(bytes, ns)| cost.measured(bytes, ns));
            prop_assert!(cost.ns(bytes) >= NS_PER_FILE);
            prop_assert!(cost.ns_without_memory(ns, bytes) <= ns);
            if cost.is_worth_it(ns, bytes) {
                prop_assert!(cost.ns_spared(ns, bytes) >= 0.5 * ns as f64);
            } else {
                prop_assert_eq!(cost.ns_without_memory(ns, bytes), ns);
            }
        }
    }
}
