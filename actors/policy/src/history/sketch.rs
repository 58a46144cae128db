//! Quantiles of durations in a few hundred bytes: a histogram of log-linear bins.
//!
//! An octave (a factor of two) has `2^bits` bins of equal width, as in an HDR histogram. Only bins
//! that are not empty are kept; when there are more than [`BINS_MAX`] of them, each pair of
//! neighbours becomes one, which doubles the error (the uniform collapse of UDDSketch). Integers
//! only, so the same values in any order and any grouping give the same sketch.
//!
//! # Source
//! Masson, Rim and Lee, "DDSketch" (VLDB 2019), for mergeable quantiles with a relative error;
//! Epicoco et al., "UDDSketch" (2020), for the collapse; Tene, "HdrHistogram", for the bins.

use serde::{Deserialize, Serialize};

use super::codec::{Malformed, Reader, Writer};

/// Bins that are kept; more make the bins wider.
pub const BINS_MAX: usize = 48;

/// Bins that there can be at all: one for each octave, and one for zero.
const BINS_EVER: usize = 65;

/// Bins of an octave at first, as a power of two: a value is at most 1/64 off.
const BITS_FIRST: u8 = 5;

/// Bins of values up to 2^64 - 1 with [`BITS_FIRST`] bits; an index is less than this.
const INDEXES: u64 = (64 - BITS_FIRST as u64 + 1) << BITS_FIRST;

/// Where values lie, so that quantiles can be told within a relative error.
///
/// The error of a quantile is at most `2^-(bits + 1)` of its value: 1.6 % as long as the values span
/// no more than [`BINS_MAX`] bins, doubled with each collapse; durations that span a factor of 256
/// are told within 6.3 %, any others within 50 %.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QuantileSketch {
    bits: u8,
    /// Index and count of each bin that is not empty, by index.
    bins: Vec<(u16, u32)>,
}

impl Default for QuantileSketch {
    fn default() -> Self {
        Self { bits: BITS_FIRST, bins: Vec::new() }
    }
}

impl QuantileSketch {
    /// A sketch of one value.
    #[must_use]
    pub fn of(value: u64) -> Self {
        let mut sketch = Self::default();
        sketch.add(value);
        sketch
    }

    /// Takes in one value.
    pub fn add(&mut self, value: u64) {
        self.add_to_bin(index(value, self.bits), 1);
        self.keep_bound();
    }

    /// Takes in all values of another sketch.
    pub fn merge(&mut self, other: &Self) {
        while self.bits > other.bits {
            self.collapse();
        }
        for (bin, count) in &other.bins {
            let bin = widened(*bin, other.bits, self.bits);
            self.add_to_bin(bin, *count);
        }
        self.keep_bound();
    }

    /// Values taken in.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// The value below which `share` of the values lie, `share` in `[0, 1]`; none if there are no
    /// values. The rank is that of the nearest-rank definition.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let rank = (share.clamp(0.0, 1.0) * count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let bin = self.bins.iter().find(|(_, count)| {
            below += u64::from(*count);
            below >= rank
        });
        bin.map(|(bin, _)| middle(*bin, self.bits))
    }

    /// Bins in use.
    #[must_use]
    pub fn bins(&self) -> usize {
        self.bins.len()
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.bins.capacity() * size_of::<(u16, u32)>()
    }

    /// Lets every value count half, so that old ones fade. A bin that counted one stays.
    pub(super) fn halve(&mut self) {
        for (_, count) in &mut self.bins {
            *count = count.div_ceil(2);
        }
    }

    /// Divides the values of each bin by shares that add up to one. The counts of each bin add up to
    /// what they were.
    pub(super) fn split(&self, shares: &[f64]) -> Vec<Self> {
        let empty = Self { bits: self.bits, bins: Vec::new() };
        let mut parts = vec![empty; shares.len()];
        for (bin, count) in &self.bins {
            let counts = super::summary::apportion(u64::from(*count), shares);
            for (part, count) in parts.iter_mut().zip(counts) {
                if count > 0 {
                    // A part of a u32 is one, too.
                    part.bins.push((*bin, u32::try_from(count).unwrap_or(u32::MAX)));
                }
            }
        }
        parts
    }

    fn add_to_bin(&mut self, bin: u16, count: u32) {
        match self.bins.binary_search_by_key(&bin, |(bin, _)| *bin) {
            Ok(position) => {
                let held = &mut self.bins[position].1;
                *held = held.saturating_add(count);
            }
            Err(position) => self.bins.insert(position, (bin, count)),
        }
    }

    fn keep_bound(&mut self) {
        while self.bins.len() > BINS_MAX && self.bits > 0 {
            self.collapse();
        }
    }

    /// Makes one bin of each two.
    fn collapse(&mut self) {
        let (from, to) = (self.bits, self.bits - 1);
        self.bits = to;
        let mut wide: Vec<(u16, u32)> = Vec::with_capacity(self.bins.len());
        for (bin, count) in &self.bins {
            let bin = widened(*bin, from, to);
            match wide.last_mut() {
                Some((last, held)) if *last == bin => *held = held.saturating_add(*count),
                _ => wide.push((bin, *count)),
            }
        }
        self.bins = wide;
    }

    /// Writes it: bits, number of bins, then for each the distance to the last one and its count.
    pub(super) fn write(&self, to: &mut Writer) {
        to.byte(self.bits);
        to.number(self.bins.len() as u64);
        let mut last = 0;
        for (bin, count) in &self.bins {
            to.number(u64::from(bin - last));
            to.number(u64::from(*count));
            last = *bin;
        }
    }

    /// Reads what [`write`](Self::write) wrote.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let bits = from.byte()?;
        let bins = from.number()?;
        if bits > BITS_FIRST || bins > BINS_EVER as u64 {
            return Err(Malformed("a sketch of durations is too large"));
        }
        let mut sketch = Self { bits, bins: Vec::with_capacity(bins as usize) };
        let mut last = None;
        for _ in 0..bins {
            let (distance, count) = (from.number()?, from.number()?);
            let bin = last.map_or(Some(distance), |last: u64| last.checked_add(distance));
            let bin = bin.filter(|bin| *bin < INDEXES && (last.is_none() || distance > 0));
            let (Some(bin), Ok(count)) = (bin, u32::try_from(count)) else {
                return Err(Malformed("the bins of a sketch of durations are out of order"));
            };
            sketch.bins.push((bin as u16, count));
            last = Some(bin);
        }
        Ok(sketch)
    }

    /// The sketch as bytes, for a column of a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        self.write(&mut writer);
        writer.finish()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; none if it is something else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let sketch = Self::read(&mut reader).ok()?;
        reader.is_at_end().then_some(sketch)
    }
}

/// The bin of a value.
fn index(value: u64, bits: u8) -> u16 {
    let linear = 1_u64 << bits;
    if value < linear {
        return value as u16;
    }
    let octave = u64::from(63 - value.leading_zeros()) - u64::from(bits);
    let within = (value >> octave) - linear;
    (((octave + 1) << bits) + within) as u16
}

/// The least value of a bin, and how many values it has.
fn span(bin: u16, bits: u8) -> (u64, u64) {
    let (bin, linear) = (u64::from(bin), 1_u64 << bits);
    if bin < linear {
        return (bin, 1);
    }
    let octave = (bin >> bits) - 1;
    ((linear + (bin & (linear - 1))) << octave, 1 << octave)
}

fn middle(bin: u16, bits: u8) -> f64 {
    let (least, width) = span(bin, bits);
    least as f64 + (width - 1) as f64 / 2.0
}

/// The bin that a bin lies in when there are fewer bits. Bins nest, so its least value tells.
fn widened(bin: u16, from: u8, to: u8) -> u16 {
    if from == to { bin } else { index(span(bin, from).0, to) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch(values: &[u64]) -> QuantileSketch {
        let mut sketch = QuantileSketch::default();
        values.iter().for_each(|value| sketch.add(*value));
        sketch
    }

    #[test]
    fn a_sketch_without_values_has_no_quantile() {
        assert_eq!(QuantileSketch::default().quantile(0.5), None);
        assert_eq!(QuantileSketch::of(7).quantile(0.99), Some(7.0));
    }

    #[test]
    fn the_largest_value_has_a_bin() {
        assert!(u64::from(index(u64::MAX, BITS_FIRST)) < INDEXES);
        assert!(QuantileSketch::of(u64::MAX).quantile(1.0).unwrap() > 1.8e19);
    }

    #[test]
    fn bytes_that_are_no_sketch_are_refused() {
        let whole = sketch(&[1, 5, 900]).to_bytes();
        assert!(QuantileSketch::from_bytes(&whole).is_some());
        for bytes in [&whole[..whole.len() - 1], &[9, 0], &[5, 2, 3, 1, 0, 1], &[]] {
            assert_eq!(QuantileSketch::from_bytes(bytes), None, "{bytes:?}");
        }
    }

    /// Values of any size.
    fn values() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec((0u32..64, any::<u64>()).prop_map(|(shift, v)| v >> shift), 1..200)
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_the_error_of_the_exact_one(values in values(), share in 0.0f64..1.0) {
            let sketch = sketch(&values);
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = ((share * values.len() as f64).ceil() as usize).max(1);
            let exact = sorted[rank - 1] as f64;
            let error = (sketch.quantile(share).unwrap() - exact).abs();
            let bound = exact * 0.5_f64.powi(i32::from(sketch.bits) + 1);
            prop_assert!(error <= bound * (1.0 + 1e-12), "{error} of {exact}, {} bits", sketch.bits);
            prop_assert!(sketch.bins() <= BINS_EVER);
        }

        #[test]
        fn merging_parts_gives_the_sketch_of_the_whole(a in values(), b in values()) {
            let whole = sketch(&[a.clone(), b.clone()].concat());
            let (mut ab, mut ba) = (sketch(&a), sketch(&b));
            ab.merge(&sketch(&b));
            ba.merge(&sketch(&a));
            prop_assert_eq!(&ab, &ba);
            prop_assert_eq!(ab.count(), whole.count());
            prop_assert_eq!(&ab, &whole);
        }

        #[test]
        fn a_sketch_survives_its_bytes(values in values()) {
            let sketch = sketch(&values);
            prop_assert_eq!(QuantileSketch::from_bytes(&sketch.to_bytes()), Some(sketch));
        }
    }
}
