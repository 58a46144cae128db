//! Sums of gradients per bin, and the split that gains most by them.
//!
//! An entry is one integer: the sum of gradients in the upper 40 bits, in steps of a 2^37th of the sum
//! of their absolute values, and the number of rows in the lower 24. So one addition counts both, no
//! order of additions changes a result, and the difference of two histograms is exact.

use super::bins::{ENTRIES, MISSING};

/// Bits of an entry that count rows.
const COUNT_BITS: u32 = 24;

/// What the absolute gradients of all rows add up to, in steps.
const STEPS_ALL: f64 = (1_u64 << 37) as f64;

/// Part of the gradients' total square that a split must gain.
const GAIN_MIN: f64 = 1e-10;

/// Gradient and count of one or more rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry(i64);

impl Entry {
    fn add(&mut self, other: Self) {
        self.0 += other.0;
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }

    pub(super) fn count(self) -> usize {
        (self.0 & ((1 << COUNT_BITS) - 1)) as usize
    }

    fn steps(self) -> f64 {
        (self.0 >> COUNT_BITS) as f64
    }

    /// What a leaf with these rows takes off the squared error, in steps squared.
    fn worth(self, l2: f64) -> f64 {
        self.steps() * self.steps() / (self.count() as f64 + l2)
    }
}

/// The gradients of the rows as entries, and the least gain of a split; `None` if all are zero.
pub(super) fn entries(gradients: &[f64], entries: &mut Vec<Entry>) -> Option<f64> {
    let total: f64 = gradients.iter().map(|gradient| gradient.abs()).sum();
    let scale = STEPS_ALL / total;
    if !(scale.is_finite() && scale > 0.0) {
        return None;
    }
    entries.clear();
    entries.extend(
        gradients
            .iter()
            .map(|gradient| Entry((((gradient * scale).round() as i64) << COUNT_BITS) + 1)),
    );
    let power: f64 = gradients.iter().map(|gradient| (gradient * scale).powi(2)).sum();
    Some(GAIN_MIN * power)
}

/// Adds rows to the histogram of a feature, given the bin of every row.
pub(super) fn count(histogram: &mut [Entry], column: &[u8], rows: &[u32], entries: &[Entry]) {
    let Ok(histogram) = <&mut [Entry; ENTRIES]>::try_from(histogram) else { return };
    for (row, entry) in rows.iter().zip(entries) {
        histogram[usize::from(column[*row as usize])].add(*entry);
    }
}

/// Leaves what `histogram` has beyond `part`.
pub(super) fn subtract(histogram: &mut [Entry], part: &[Entry]) {
    for (all, part) in histogram.iter_mut().zip(part) {
        *all = all.without(*part);
    }
}

/// One split of a leaf in two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Split {
    pub(super) gain: f64,
    /// Position among the features that the tree sees.
    pub(super) position: usize,
    /// The last bin that goes left.
    pub(super) bin: u8,
    pub(super) is_missing_left: bool,
}

impl Split {
    /// Whether rows of `bin` go left.
    pub(super) fn is_left(self, bin: u8) -> bool {
        // The bin of missing values is zero; one less than that is beyond all.
        let offset = u8::from(!self.is_missing_left);
        bin.wrapping_sub(offset) <= self.bin - offset
    }
}

/// What a split must keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) leaf_rows_min: usize,
    pub(super) l2: f64,
    pub(super) gain_min: f64,
}

/// The best split by one feature, if one gains more than `best` does.
pub(super) fn better(
    best: Option<Split>,
    histogram: &[Entry],
    bin_last: u8,
    position: usize,
    bounds: Bounds,
) -> Option<Split> {
    let Ok(histogram) = <&[Entry; ENTRIES]>::try_from(histogram) else { return best };
    let missing = histogram[usize::from(MISSING)];
    let mut all = Entry::default();
    histogram.iter().for_each(|entry| all.add(*entry));
    let floor = all.worth(bounds.l2) + bounds.gain_min;
    let mut most = best.map_or(floor, |best| all.worth(bounds.l2) + best.gain);
    let mut found = best;
    let mut try_left = |left: Entry, bin: u8, is_missing_left: bool| {
        let right = all.without(left);
        if left.count() < bounds.leaf_rows_min || right.count() < bounds.leaf_rows_min {
            return;
        }
        let worth = left.worth(bounds.l2) + right.worth(bounds.l2);
        if worth > most {
            most = worth;
            let gain = worth - all.worth(bounds.l2);
            found = Some(Split { gain, position, bin, is_missing_left });
        }
    };
    let mut left = Entry::default();
    for bin in 1..bin_last {
        let entry = histogram[usize::from(bin)];
        if entry.count() == 0 {
            continue;
        }
        left.add(entry);
        if missing.count() == 0 {
            // Nothing tells where missing values belong: to the larger side.
            try_left(left, bin, 2 * left.count() > all.count());
        } else {
            try_left(left, bin, false);
            let mut with_missing = left;
            with_missing.add(missing);
            try_left(with_missing, bin, true);
        }
    }
    if missing.count() > 0 {
        try_left(all.without(missing), bin_last, false);
    }
    found
}
