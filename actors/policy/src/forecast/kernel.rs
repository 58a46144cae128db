//! What followed similar moments in the past: the member that has seen spikes before.

use serde::{Deserialize, Serialize};

use super::Effort;
use super::direct::{Direct, Regression};
use super::features::WIDTH;
use super::ridge::moments;

/// Moments that are remembered.
const MOMENTS_MAX: usize = 384;

/// Share of them that are kept for the change that followed: spikes are rare.
const SPIKES: f64 = 0.5;

/// Numbers of a row that similarity goes by: those that go along with what follows.
const NUMBERS: usize = 16;

/// Moments that count fully: the width of the kernel is the distance to so many.
const NEAREST: usize = 12;

/// Kernel regression on the numbers that go along most with what follows.
///
/// It remembers the moments before the largest changes and a sample of the others, and answers the
/// mean of what followed them, each weighing by its likeness to the present.
///
/// # Cost
/// An answer compares with at most 384 moments in 16 numbers.
///
/// # Source
/// Ma et al., *Query-based Workload Forecasting for Self-Driving Database Management Systems*,
/// SIGMOD 2018, section 6.1, who use kernel regression for spikes.
pub type KernelMember = Direct<Kernel>;

/// The regression.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kernel {
    /// Columns of the numbers, and what they are multiplied with.
    columns: Vec<(usize, f32)>,
    /// Scaled numbers of the moments, one after the other.
    moments: Vec<f32>,
    /// What followed each.
    targets: Vec<f32>,
    /// How many others each stands for.
    counts: Vec<f32>,
}

impl Regression for Kernel {
    const NAME: &'static str = "kernel";
    const ROWS_MIN: usize = 48;
    const ROWS_MAX: usize = 8_000;
    const OWN_MAX: usize = 64;

    fn learn(rows: &[f32], targets: &[f64], effort: Effort<'_>) -> Self {
        effort.pause();
        let columns = columns(rows, targets);
        let mean = targets.iter().sum::<f64>() / targets.len().max(1) as f64;
        let mut order: Vec<usize> = (0..targets.len()).collect();
        let size = |place: &usize| (targets[*place] - mean).abs();
        order.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.cmp(b)));
        let spikes = ((MOMENTS_MAX as f64 * SPIKES) as usize).min(targets.len() / 10);
        let (spikes, usual) = order.split_at(spikes.min(order.len()));
        let mut usual = usual.to_vec();
        usual.sort_unstable();
        let stride = usual.len().div_ceil(MOMENTS_MAX - spikes.len()).max(1);
        let mut kernel = Self { columns, ..Self::default() };
        let mut keep = |place: usize, count: f32| {
            let row = &rows[place * WIDTH..(place + 1) * WIDTH];
            kernel
                .moments
                .extend(kernel.columns.iter().map(|(column, scale)| row[*column] * scale));
            kernel.targets.push(targets[place] as f32);
            kernel.counts.push(count);
        };
        spikes.iter().for_each(|place| keep(*place, 1.0));
        usual.iter().rev().step_by(stride).for_each(|place| keep(*place, stride as f32));
        kernel
    }

    fn answer(&self, row: &[f32]) -> f64 {
        let mut now = [0.0_f32; NUMBERS];
        for (now, (column, scale)) in now.iter_mut().zip(&self.columns) {
            *now = row[*column] * scale;
        }
        let width = self.columns.len().max(1);
        let distance = |moment: &[f32]| -> f32 {
            moment.iter().zip(&now).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        let distances: Vec<f32> = self.moments.chunks_exact(width).map(distance).collect();
        let mut sorted = distances.clone();
        let nearest = NEAREST.min(sorted.len().saturating_sub(1));
        if sorted.is_empty() {
            return 0.0;
        }
        let (_, bandwidth, _) = sorted.select_nth_unstable_by(nearest, f32::total_cmp);
        let bandwidth = bandwidth.max(1e-6);
        let (mut sum, mut weights) = (0.0_f64, 0.0_f64);
        for ((distance, target), count) in distances.iter().zip(&self.targets).zip(&self.counts) {
            let weight = f64::from((-distance / bandwidth).exp() * count);
            sum += weight * f64::from(*target);
            weights += weight;
        }
        sum / weights.max(1e-12)
    }
}

/// The columns that go along most with the targets, scaled by how much they do.
fn columns(rows: &[f32], targets: &[f64]) -> Vec<(usize, f32)> {
    let (means, scales) = moments(rows, targets.len());
    let mean = targets.iter().sum::<f64>() / targets.len().max(1) as f64;
    let mut along = vec![0.0; WIDTH];
    let mut power = 0.0;
    for (row, target) in rows.chunks_exact(WIDTH).zip(targets) {
        // The sign alone would forget spikes, the square would see nothing else.
        let target = (target - mean).clamp(-2.0, 2.0);
        power += target * target;
        for (((along, value), mean), scale) in along.iter_mut().zip(row).zip(&means).zip(&scales) {
            *along += (f64::from(*value) - mean) * scale * target;
        }
    }
    let norm = (power * targets.len() as f64).sqrt().max(1e-12);
    let mut columns: Vec<(usize, f64)> =
        along.iter().map(|along| (along / norm).abs()).enumerate().collect();
    columns.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    columns.truncate(NUMBERS);
    let scaled = |(column, along): &(usize, f64)| (*column, (scales[*column] * along) as f32);
    columns.iter().map(scaled).collect()
}
