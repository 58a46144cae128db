//! Where the linear parts of the heads start: at least squares, so that training begins at the
//! strength of an autoregression.

use super::inputs::PER_HORIZON;
use super::net::{Net, Rows, Scaling};

/// Penalties on the squared weights, per row, that are tried.
const PENALTIES: [f64; 6] = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1];

/// Least standard deviation of an input that is used.
const VARIES_MIN: f64 = 1e-4;

/// Gives each head its scaling and its linear part, fitted on `learned` and, as to the penalty,
/// chosen on `checked` rows, by horizon.
pub(super) fn start(
    net: &mut Net,
    mut learned: Vec<Rows>,
    mut checked: Vec<Rows>,
) -> candle_core::Result<()> {
    for head in 0..net.horizons.len() {
        let (learned, checked) = (&mut learned[head], &mut checked[head]);
        let scaling = scaling(learned);
        for rows in [&mut *learned, &mut *checked] {
            scaling.apply(&mut rows.inputs);
            rows.targets.iter_mut().for_each(|target| *target /= scaling.target);
        }
        let (weights, starts) = fitted(learned, checked);
        net.scalings[head] = scaling;
        net.set_linear(head, &weights, starts)?;
    }
    Ok(())
}

fn scaling(rows: &Rows) -> Scaling {
    let n = rows.targets.len().max(1) as f64;
    let (mut mean, mut square) = (vec![0.0; PER_HORIZON], vec![0.0; PER_HORIZON]);
    for row in rows.inputs.chunks(PER_HORIZON) {
        for ((mean, square), input) in mean.iter_mut().zip(&mut square).zip(row) {
            *mean += f64::from(*input) / n;
            *square += f64::from(*input).powi(2) / n;
        }
    }
    let inverse = |(mean, square): (&f64, &f64)| {
        let deviation = (square - mean * mean).max(0.0).sqrt();
        if deviation < VARIES_MIN { 0.0 } else { (1.0 / deviation) as f32 }
    };
    let inverse = mean.iter().zip(&square).map(inverse).collect();
    let size = rows.targets.iter().map(|target| f64::from(*target).powi(2)).sum::<f64>() / n;
    let target = (size.sqrt() as f32).max(1e-3);
    Scaling { mean: mean.iter().map(|mean| *mean as f32).collect(), inverse, target }
}

/// Weights of the median, and where median and spreads start.
fn fitted(learned: &Rows, checked: &Rows) -> (Vec<f32>, [f32; 3]) {
    let n = learned.targets.len();
    if n == 0 {
        return (vec![0.0; PER_HORIZON], [0.0, 1.0, 1.0]);
    }
    let intercept = learned.targets.iter().map(|t| f64::from(*t)).sum::<f64>() / n as f64;
    let normal = Normal::new(learned, intercept);
    let judged = if checked.targets.is_empty() { learned } else { checked };
    let mut best: Option<(f64, Vec<f32>)> = None;
    for penalty in PENALTIES {
        let Some(weights) = normal.solved(penalty * n as f64) else { continue };
        let error: f64 = residuals(judged, &weights, intercept).map(f64::abs).sum();
        if error.is_finite() && best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, weights));
        }
    }
    let weights = best.map_or_else(|| vec![0.0; PER_HORIZON], |(_, weights)| weights);
    let mut left: Vec<f64> = residuals(learned, &weights, intercept).collect();
    left.sort_by(f64::total_cmp);
    let [low, median, high] = [0.1, 0.5, 0.9].map(|level| left[((n - 1) as f64 * level) as usize]);
    let starts = [intercept + median, median - low, high - median];
    (weights, starts.map(|start| start as f32))
}

fn residuals<'a>(
    rows: &'a Rows,
    weights: &'a [f32],
    intercept: f64,
) -> impl Iterator<Item = f64> + 'a {
    let dot = move |row: &[f32]| row.iter().zip(weights).map(|(x, w)| x * w).sum::<f32>();
    let rows = rows.inputs.chunks(PER_HORIZON).zip(&rows.targets);
    rows.map(move |(row, target)| f64::from(*target) - intercept - f64::from(dot(row)))
}

/// The normal equations of one head.
struct Normal {
    /// Lower triangle by rows.
    products: Vec<f64>,
    with_target: Vec<f64>,
}

impl Normal {
    fn new(rows: &Rows, intercept: f64) -> Self {
        let mut products = vec![0.0; PER_HORIZON * PER_HORIZON];
        let mut with_target = vec![0.0; PER_HORIZON];
        for (row, target) in rows.inputs.chunks(PER_HORIZON).zip(&rows.targets) {
            let row: Vec<f64> = row.iter().map(|input| f64::from(*input)).collect();
            let target = f64::from(*target) - intercept;
            for (i, input) in row.iter().enumerate() {
                with_target[i] += input * target;
                let line = &mut products[i * PER_HORIZON..i * PER_HORIZON + i + 1];
                line.iter_mut().zip(&row).for_each(|(sum, other)| *sum += input * other);
            }
        }
        Self { products, with_target }
    }

    /// Weights by Cholesky's decomposition; none if the penalty is too small for it.
    fn solved(&self, penalty: f64) -> Option<Vec<f32>> {
        let n = PER_HORIZON;
        let mut lower = self.products.clone();
        for i in 0..n {
            for j in 0..=i {
                let known: f64 = (0..j).map(|k| lower[i * n + k] * lower[j * n + k]).sum();
                let left = lower[i * n + j] - known;
                if i != j {
                    lower[i * n + j] = left / lower[j * n + j];
                } else if left + penalty > 0.0 {
                    lower[i * n + i] = (left + penalty).sqrt();
                } else {
                    return None;
                }
            }
        }
        let mut weights = self.with_target.clone();
        for i in 0..n {
            let known: f64 = (0..i).map(|k| lower[i * n + k] * weights[k]).sum();
            weights[i] = (weights[i] - known) / lower[i * n + i];
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|k| lower[k * n + i] * weights[k]).sum();
            weights[i] = (weights[i] - known) / lower[i * n + i];
        }
        Some(weights.iter().map(|weight| *weight as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn rows(seed: u64, n: usize) -> Rows {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rows = Rows::default();
        for _ in 0..n {
            let inputs: Vec<f32> = (0..PER_HORIZON).map(|_| rng.random_range(-1.0..1.0)).collect();
            let noise = rng.random_range(-0.1..0.1);
            rows.targets.push(2.0 * inputs[3] - inputs[40] + 0.5 + noise);
            rows.weights.push(1.0);
            rows.inputs.extend(inputs);
        }
        rows
    }

    #[test]
    fn least_squares_finds_the_inputs_that_matter_and_the_spread_that_is_left() {
        let (weights, starts) = fitted(&rows(1, 2_000), &rows(2, 300));
        for (input, weight) in weights.iter().enumerate() {
            let truth = [(3, 2.0), (40, -1.0)].iter().find(|(i, _)| *i == input);
            let truth = truth.map_or(0.0, |(_, weight)| *weight);
            assert!((weight - truth).abs() < 0.05, "{input}: {weight}");
        }
        assert!((starts[0] - 0.5).abs() < 0.05, "{starts:?}");
        assert!(starts[1..].iter().all(|spread| (spread - 0.08).abs() < 0.02), "{starts:?}");
    }

    #[test]
    fn an_input_that_does_not_vary_is_left_out() {
        let mut rows = rows(3, 50);
        rows.inputs.chunks_mut(PER_HORIZON).for_each(|row| row[7] = 4.0);
        let scaling = scaling(&rows);
        assert_eq!(scaling.inverse[7], 0.0);
        let mut row = vec![0.0; PER_HORIZON];
        row[7] = 1e6;
        scaling.apply(&mut row);
        assert_eq!(row[7], 0.0);
    }

    #[test]
    fn fewer_rows_than_inputs_and_none_at_all_give_finite_weights() {
        for n in [0, 1, 5] {
            let (weights, starts) = fitted(&rows(4, n), &Rows::default());
            assert!(weights.iter().chain(&starts).all(|weight| weight.is_finite()));
        }
    }
}
