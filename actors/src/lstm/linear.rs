//! Where the linear parts of the heads start: at least squares, so that training begins at the
//! strength of an autoregression.

use foreshard_policy::forecast::Effort;

use super::inputs::{LEVELS, PER_HORIZON};
use super::net::{Net, Rows, Scaling, TARGET_MAX};

/// Penalties on the squared weights, per row, that are tried.
const PENALTIES: [f64; 7] = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1];

/// Rows that are added up between two pauses: about a millisecond.
const ROWS_AT_ONCE: usize = 512;

/// Fewest series of which the levels tell something: with few, a level is a clock that runs on.
const SERIES_MIN: usize = 8;

/// Least standard deviation of an input that is used.
const VARIES_MIN: f64 = 1e-4;

/// Gives each head its scaling and its linear part, fitted on `learned` and, as to the penalty,
/// chosen on `checked` rows, by horizon.
pub(super) fn start(
    net: &mut Net,
    (mut learned, mut checked): (Vec<Rows>, Vec<Rows>),
    series: usize,
    effort: Effort<'_>,
) -> candle_core::Result<()> {
    for head in 0..net.horizons.len() {
        let (learned, checked) = (&mut learned[head], &mut checked[head]);
        let mut scaling = scaling(learned);
        if series < SERIES_MIN {
            LEVELS.for_each(|input| scaling.inverse[input] = 0.0);
        }
        standardise(&scaling, learned);
        standardise(&scaling, checked);
        let judged = if checked.targets.is_empty() { &*learned } else { checked };
        let fit = Fit::chosen(learned, judged, effort);
        net.scalings[head] = Scaling { penalty: fit.penalty as f32, ..scaling };
        net.set_linear(head, &fit.weights, fit.starts)?;
    }
    Ok(())
}

/// What the linear parts of `net` would start at if they were fitted on `all` rows, by horizon: also
/// on those that were kept to check by, now that checking is over.
pub(super) fn starts(net: &Net, all: Vec<Rows>, effort: Effort<'_>) -> Vec<Vec<f32>> {
    let fitted = net.scalings.iter().zip(all).map(|(scaling, mut rows)| {
        standardise(scaling, &mut rows);
        match Fit::new(&Normal::new(&rows, effort), &rows, f64::from(scaling.penalty)) {
            Some(fit) => fit.weights.into_iter().chain([fit.starts[0]]).collect(),
            None => scaling.linear.clone(),
        }
    });
    fitted.collect()
}

fn standardise(scaling: &Scaling, rows: &mut Rows) {
    scaling.apply(&mut rows.inputs);
    rows.targets.iter_mut().for_each(|target| *target /= scaling.target);
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
    let mean = mean.iter().map(|mean| *mean as f32).collect();
    let mut scaling = Scaling { mean, inverse, ..Scaling::none() };
    bound(&mut scaling, rows);
    let largest = rows.targets.iter().fold(0.0_f32, |largest, target| largest.max(target.abs()));
    let reach = (largest / target).min(TARGET_MAX);
    Scaling { target, reach, ..scaling }
}

/// Bounds each input by what was seen of it.
fn bound(scaling: &mut Scaling, rows: &Rows) {
    let mut inputs = rows.inputs.clone();
    scaling.apply(&mut inputs);
    let (mut least, mut greatest) = (vec![0.0_f32; PER_HORIZON], vec![0.0_f32; PER_HORIZON]);
    for row in inputs.chunks(PER_HORIZON) {
        for ((least, greatest), input) in least.iter_mut().zip(&mut greatest).zip(row) {
            *least = least.min(*input);
            *greatest = greatest.max(*input);
        }
    }
    (scaling.least, scaling.greatest) = (least, greatest);
}

/// A linear part.
struct Fit {
    penalty: f64,
    /// Of the median.
    weights: Vec<f32>,
    /// Where median, lower and upper spread start.
    starts: [f32; 3],
}

impl Fit {
    /// The one of all penalties that errs least on `judged`.
    fn chosen(learned: &Rows, judged: &Rows, effort: Effort<'_>) -> Self {
        let normal = Normal::new(learned, effort);
        let fits = PENALTIES.iter().filter_map(|penalty| {
            effort.pause();
            Self::new(&normal, learned, *penalty)
        });
        let scored = fits.map(|fit| {
            let error: f64 = fit.residuals(judged).map(f64::abs).sum();
            (error, fit)
        });
        let least =
            scored.filter(|(error, _)| error.is_finite()).min_by(|a, b| a.0.total_cmp(&b.0));
        least.map_or_else(Self::none, |(_, fit)| fit)
    }

    fn none() -> Self {
        Self { penalty: 1.0, weights: vec![0.0; PER_HORIZON], starts: [0.0, 1.0, 1.0] }
    }

    /// None if there are no rows, or too few for so small a penalty.
    fn new(normal: &Normal, rows: &Rows, penalty: f64) -> Option<Self> {
        let n = rows.targets.len();
        let weights = normal.solved(penalty * n as f64)?;
        let mut fit = Self { penalty, weights, starts: [normal.intercept as f32, 0.0, 0.0] };
        let mut left: Vec<f64> = fit.residuals(rows).collect();
        left.sort_by(f64::total_cmp);
        let at = |level: f64| left.get((n.saturating_sub(1) as f64 * level) as usize).copied();
        let (low, median, high) = (at(0.1)?, at(0.5)?, at(0.9)?);
        fit.starts = [normal.intercept + median, median - low, high - median].map(|x| x as f32);
        Some(fit)
    }

    fn residuals<'a>(&'a self, rows: &'a Rows) -> impl Iterator<Item = f64> + 'a {
        let dot = |row: &[f32]| row.iter().zip(&self.weights).map(|(x, w)| x * w).sum::<f32>();
        let rows = rows.inputs.chunks(PER_HORIZON).zip(&rows.targets);
        rows.map(move |(row, target)| f64::from(*target) - f64::from(self.starts[0] + dot(row)))
    }
}

/// The normal equations of one head.
struct Normal {
    /// Lower triangle by rows.
    products: Vec<f64>,
    with_target: Vec<f64>,
    /// Mean target.
    intercept: f64,
}

impl Normal {
    fn new(rows: &Rows, effort: Effort<'_>) -> Self {
        let n = rows.targets.len().max(1) as f64;
        let intercept = rows.targets.iter().map(|target| f64::from(*target)).sum::<f64>() / n;
        let mut products = vec![0.0; PER_HORIZON * PER_HORIZON];
        let mut with_target = vec![0.0; PER_HORIZON];
        let pairs = rows.inputs.chunks(PER_HORIZON).zip(&rows.targets);
        for (place, (row, target)) in pairs.enumerate() {
            if place.is_multiple_of(ROWS_AT_ONCE) {
                effort.pause();
            }
            let row: Vec<f64> = row.iter().map(|input| f64::from(*input)).collect();
            let target = f64::from(*target) - intercept;
            for (i, input) in row.iter().enumerate() {
                with_target[i] += input * target;
                let line = &mut products[i * PER_HORIZON..i * PER_HORIZON + i + 1];
                line.iter_mut().zip(&row).for_each(|(sum, other)| *sum += input * other);
            }
        }
        Self { products, with_target, intercept }
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
        let Fit { weights, starts, .. } =
            { Fit::chosen(&rows(1, 2_000), &rows(2, 300), Effort::steps(0)) };
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
    fn an_input_counts_no_further_than_what_was_learned_from() {
        let rows = rows(5, 200);
        let scaling = scaling(&rows);
        let (mut seen, mut beyond) = ([0.99; PER_HORIZON], [50.0; PER_HORIZON]);
        scaling.apply(&mut seen);
        scaling.apply(&mut beyond);
        assert_eq!(beyond.to_vec(), scaling.greatest);
        assert!(seen[0] > 1.0 && beyond[0] < 2.5, "{} {}", seen[0], beyond[0]);
    }

    #[test]
    fn fewer_rows_than_inputs_and_none_at_all_give_finite_weights() {
        for n in [0, 1, 5] {
            let rows = rows(4, n);
            let Fit { weights, starts, .. } = Fit::chosen(&rows, &rows, Effort::steps(0));
            assert!(weights.iter().chain(&starts).all(|weight| weight.is_finite()));
        }
    }
}
