//! Linear regression with a penalty: sparse periodic auto-regression with calendar terms.

use serde::{Deserialize, Serialize};

use super::Effort;
use super::direct::{Direct, Regression};
use super::features::WIDTH;

/// Penalties that are tried, per row learned from.
const PENALTIES: [f64; 4] = [1e-3, 1e-2, 1e-1, 0.5];

/// Share of the rows, the newest, on which the penalty is chosen.
const HELD_OUT: f64 = 0.2;

/// Part of the noise of a logarithm, as a variance, that does not shrink with the level.
const NOISE: f64 = 0.02;

/// Rows that are added up between two pauses: about a millisecond.
const ROWS_AT_ONCE: usize = 512;

/// Furthest that a number of a row counts from its mean, in deviations.
const FAR_MAX: f64 = 6.0;

/// Ridge regression on lags, seasonal lags, means and calendar terms.
///
/// The penalty is chosen on the newest fifth of the rows, and whether busy ticks, whose logarithms
/// are less noisy, weigh more; then all rows are learned from.
///
/// # Cost
/// A fit of `n` rows takes `n * width^2` multiplications; an answer takes `width`.
///
/// # Source
/// Taft et al., *P-Store: An Elastic Database System with Predictive Provisioning*, SIGMOD 2018,
/// section 4, whose SPAR has the seasonal lags and the recent deviations from them.
pub type RidgeMember = Direct<Ridge>;

/// The regression.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ridge {
    means: Vec<f64>,
    /// One over the deviation of each number; zero for one that never changes.
    scales: Vec<f64>,
    weights: Vec<f64>,
    intercept: f64,
    reach: f64,
}

impl Regression for Ridge {
    const NAME: &'static str = "ridge";
    const ROWS_MIN: usize = 48;
    const ROWS_MAX: usize = 20_000;
    const OWN_MAX: usize = 64;

    fn learn(rows: &[f32], targets: &[f64], effort: Effort<'_>) -> Self {
        let count = targets.len();
        let (means, scales) = moments(rows, count);
        let first = ((1.0 - HELD_OUT) * count as f64) as usize;
        let (older, newer) = rows.split_at(first * WIDTH);
        let loss = |ridge: &Self| -> f64 {
            let pairs = newer.chunks_exact(WIDTH).zip(&targets[first..]);
            pairs.map(|(row, target)| (ridge.answer(row) - target).abs()).sum()
        };
        let reach = targets.iter().fold(0.0_f64, |reach, target| reach.max(target.abs()));
        let mut best: Option<(f64, Self)> = None;
        for by_level in [false, true] {
            let of = |rows, targets| {
                let pieces = Pieces { rows, targets, effort };
                Normal::of(&pieces, (&means, &scales), by_level)
            };
            let old = of(older, &targets[..first]);
            let mut all = of(newer, &targets[first..]);
            all.add(&old);
            for penalty in PENALTIES {
                let solved = |normal: &Normal| {
                    let (weights, intercept) = normal.solve(penalty);
                    let (means, scales) = (means.clone(), scales.clone());
                    Self { means, scales, weights, intercept, reach }
                };
                let loss = loss(&solved(&old));
                if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                    best = Some((loss, solved(&all)));
                }
            }
        }
        best.map(|(_, ridge)| ridge).unwrap_or_default()
    }

    fn answer(&self, row: &[f32]) -> f64 {
        let mut sum = self.intercept;
        for (((value, mean), scale), weight) in
            row.iter().zip(&self.means).zip(&self.scales).zip(&self.weights)
        {
            sum += ((f64::from(*value) - mean) * scale).clamp(-FAR_MAX, FAR_MAX) * weight;
        }
        sum.clamp(-self.reach, self.reach)
    }
}

/// Mean and one over the deviation of each column.
pub(super) fn moments(rows: &[f32], count: usize) -> (Vec<f64>, Vec<f64>) {
    let n = count.max(1) as f64;
    let mut means = vec![0.0; WIDTH];
    for row in rows.chunks_exact(WIDTH) {
        means.iter_mut().zip(row).for_each(|(mean, value)| *mean += f64::from(*value));
    }
    means.iter_mut().for_each(|mean| *mean /= n);
    let mut squares = vec![0.0; WIDTH];
    for row in rows.chunks_exact(WIDTH) {
        for ((square, value), mean) in squares.iter_mut().zip(row).zip(&means) {
            *square += (f64::from(*value) - mean).powi(2);
        }
    }
    let scale = |square: &f64| {
        let deviation = (square / n).sqrt();
        if deviation > 1e-6 { 1.0 / deviation } else { 0.0 }
    };
    let scales = squares.iter().map(scale).collect();
    (means, scales)
}

/// Normal equations of standardised rows: lower triangle of the products, and the products with
/// the targets.
struct Normal {
    products: Vec<f64>,
    with_target: Vec<f64>,
    sums: Vec<f64>,
    target: f64,
    count: f64,
}

/// Rows and targets, a piece at a time.
struct Pieces<'a> {
    rows: &'a [f32],
    targets: &'a [f64],
    effort: Effort<'a>,
}

impl Normal {
    /// The first number of a row is the logarithm of the level.
    fn of(of: &Pieces<'_>, (means, scales): (&[f64], &[f64]), by_level: bool) -> Self {
        let mut products = vec![0.0; WIDTH * WIDTH];
        let (mut with_target, mut sums) = (vec![0.0; WIDTH], vec![0.0; WIDTH]);
        let mut z = vec![0.0; WIDTH];
        let (mut count, mut sum) = (0.0, 0.0);
        for (place, (row, target)) in of.rows.chunks_exact(WIDTH).zip(of.targets).enumerate() {
            if place.is_multiple_of(ROWS_AT_ONCE) {
                of.effort.pause();
            }
            let noise = NOISE + (-f64::from(row[0])).exp();
            let weight = if by_level { (NOISE + 1.0) / noise } else { 1.0 };
            count += weight;
            sum += weight * target;
            for (((z, value), mean), scale) in z.iter_mut().zip(row).zip(means).zip(scales) {
                *z = ((f64::from(*value) - mean) * scale).clamp(-FAR_MAX, FAR_MAX);
            }
            for (i, zi) in z.iter().enumerate() {
                let zi = zi * weight;
                with_target[i] += zi * target;
                sums[i] += zi;
                let line = &mut products[i * WIDTH..=i * WIDTH + i];
                line.iter_mut().zip(&z).for_each(|(product, zj)| *product += zi * zj);
            }
        }
        Self { products, with_target, sums, target: sum, count }
    }

    fn add(&mut self, other: &Self) {
        let add = |a: &mut [f64], b: &[f64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        add(&mut self.products, &other.products);
        add(&mut self.with_target, &other.with_target);
        add(&mut self.sums, &other.sums);
        self.target += other.target;
        self.count += other.count;
    }

    /// Weights and intercept for a penalty per row, by Cholesky's decomposition of the centred
    /// products.
    fn solve(&self, penalty: f64) -> (Vec<f64>, f64) {
        let n = self.count.max(1.0);
        let mean = self.target / n;
        let mut a = self.products.clone();
        let mut w: Vec<f64> =
            self.with_target.iter().zip(&self.sums).map(|(xy, x)| xy - x * mean).collect();
        for i in 0..WIDTH {
            for j in 0..=i {
                a[i * WIDTH + j] -= self.sums[i] * self.sums[j] / n;
            }
            a[i * WIDTH + i] += penalty * n + 1e-9;
        }
        for i in 0..WIDTH {
            for j in 0..=i {
                let (head, tail) = a.split_at_mut(i * WIDTH);
                let line_j = if j < i { &head[j * WIDTH..j * WIDTH + j] } else { &[][..] };
                let line_i = &tail[..=i];
                let dot: f64 = if j < i {
                    line_i.iter().zip(line_j).map(|(a, b)| a * b).sum()
                } else {
                    line_i[..i].iter().map(|a| a * a).sum()
                };
                let rest = tail[j] - dot;
                tail[j] = if i == j { rest.max(1e-12).sqrt() } else { rest / head[j * WIDTH + j] };
            }
        }
        for i in 0..WIDTH {
            let dot: f64 = (0..i).map(|k| a[i * WIDTH + k] * w[k]).sum();
            w[i] = (w[i] - dot) / a[i * WIDTH + i];
        }
        for i in (0..WIDTH).rev() {
            let dot: f64 = (i + 1..WIDTH).map(|k| a[k * WIDTH + i] * w[k]).sum();
            w[i] = (w[i] - dot) / a[i * WIDTH + i];
        }
        let shift: f64 = w.iter().zip(&self.sums).map(|(w, sum)| w * sum / n).sum();
        (w, mean - shift)
    }
}
