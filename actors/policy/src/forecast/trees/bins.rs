//! Features as bins of about equally many rows, stored feature by feature.

use super::Matrix;
use crate::forecast::Effort;

/// Entries of a histogram: one per bin, the first for missing values.
pub(super) const ENTRIES: usize = 256;

/// The bin of missing values.
pub(super) const MISSING: u8 = 0;

/// A matrix in bins.
#[derive(Debug)]
pub(super) struct Binned {
    rows: usize,
    /// Bin of every value, feature by feature.
    bins: Vec<u8>,
    /// Per feature, the values between its bins, ascending.
    cuts: Vec<Vec<f32>>,
}

impl Binned {
    pub(super) fn new(matrix: &Matrix, bins_max: usize, effort: Effort<'_>) -> Self {
        let rows = matrix.rows();
        let mut bins = Vec::with_capacity(rows * matrix.features());
        let mut all_cuts = Vec::with_capacity(matrix.features());
        let mut sorted = Vec::with_capacity(rows);
        for feature in 0..matrix.features() {
            effort.pause();
            let column = || matrix.iter().map(|row| row[feature]);
            sorted.clear();
            sorted.extend(column().filter(|value| value.is_finite()));
            sorted.sort_unstable_by(f32::total_cmp);
            let cuts = cuts(&sorted, bins_max);
            bins.extend(column().map(|value| bin(value, &cuts)));
            all_cuts.push(cuts);
        }
        Self { rows, bins, cuts: all_cuts }
    }

    /// Bin of every row.
    pub(super) fn column(&self, feature: usize) -> &[u8] {
        &self.bins[feature * self.rows..(feature + 1) * self.rows]
    }

    /// The last bin that has values; the first is one.
    pub(super) fn bin_last(&self, feature: usize) -> u8 {
        (self.cuts[feature].len() + 1) as u8
    }

    /// The greatest value of `bin` and those before it.
    pub(super) fn threshold(&self, feature: usize, bin: u8) -> f32 {
        self.cuts[feature].get(usize::from(bin).wrapping_sub(1)).copied().unwrap_or(f32::MAX)
    }
}

fn bin(value: f32, cuts: &[f32]) -> u8 {
    if !value.is_finite() {
        return MISSING;
    }
    (cuts.partition_point(|cut| *cut < value) + 1) as u8
}

/// At most `bins_max - 1` values, half way between neighbouring ones of `sorted`, that part it into
/// about equal numbers. A value that many rows share gets a bin of its own and costs no other.
fn cuts(sorted: &[f32], bins_max: usize) -> Vec<f32> {
    let mut cuts = vec![];
    let distinct = sorted.chunk_by(|a, b| a == b).count();
    let (mut rows_left, mut held) = (sorted.len(), 0);
    let mut runs = sorted.chunk_by(|a, b| a == b).peekable();
    while let Some(run) = runs.next() {
        held += run.len();
        let Some(next) = runs.peek() else { break };
        let bins_left = bins_max - cuts.len();
        if bins_left < 2 {
            break;
        }
        let share = rows_left as f64 / bins_left as f64;
        let is_next_large = next.len() as f64 >= share && held as f64 >= share / 2.0;
        if distinct <= bins_max || held as f64 >= share || is_next_large {
            cuts.push(between(run[0], next[0]));
            rows_left -= held;
            held = 0;
        }
    }
    cuts
}

/// A value in `[low, high)`.
fn between(low: f32, high: f32) -> f32 {
    let middle = low / 2.0 + high / 2.0;
    if (low..high).contains(&middle) { middle } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_about_equally_many_rows_and_common_values_cost_no_other_bin() {
        let even: Vec<f32> = (0..10_000).map(|value| value as f32).collect();
        let binned = cuts(&even, 100);
        assert_eq!(binned.len(), 99);
        assert!(binned.windows(2).all(|pair| (90.0..110.0).contains(&(pair[1] - pair[0]))));
        let mut mostly_zero = vec![0.0; 30_000];
        mostly_zero.extend(even.iter().map(|value| value + 1.0));
        let binned = cuts(&mostly_zero, 100);
        assert_eq!(binned[0], 0.5);
        assert!(binned.len() > 90, "{}", binned.len());
    }

    #[test]
    fn few_values_are_each_a_bin_and_missing_ones_are_apart() {
        let mut matrix = Matrix::new(1);
        let values = [3.0, f32::NAN, 1.0, 2.0, f32::INFINITY, 2.0];
        values.iter().for_each(|value| matrix.push(&[*value]).unwrap());
        let binned = Binned::new(&matrix, 3, Effort::steps(0));
        assert_eq!(binned.column(0), [3, 0, 1, 2, 0, 2]);
        assert_eq!(binned.threshold(0, 1), 1.5);
        assert_eq!(binned.bin_last(0), 3);
    }

    #[test]
    fn neighbouring_numbers_are_told_apart() {
        for low in [1.0_f32, -1.0, 1e-45, f32::MAX.next_down(), f32::MIN] {
            let high = low.next_up();
            let cut = between(low, high);
            assert!(low <= cut && cut < high, "{low}");
        }
    }
}
