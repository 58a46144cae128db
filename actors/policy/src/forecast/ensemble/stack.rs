//! Weights that would have made the mix miss least, by least squares over the recent past.

/// Steps of the search.
const STEPS: usize = 100;

/// How strongly weights are held near those they start from, as a share of the best member's loss.
const PULL: f64 = 1.0;

/// Smallest weight that can grow again.
const WEIGHT_MIN: f64 = 1e-9;

/// Non-negative weights with sum one that make `w' products w` small, near `start`.
///
/// `products` are the summed products of the misses of each two members, `n * n` numbers. Members of
/// weight zero in `start` keep it.
///
/// # Cost
/// 100 times `n^2` multiplications.
///
/// # Source
/// Kivinen and Warmuth, *Exponentiated gradient versus gradient descent for linear predictors*,
/// Information and Computation 1997; stacking after Breiman, *Stacked regressions*, 1996.
pub(super) fn stacked(products: &[f64], start: &[f64]) -> Vec<f64> {
    let n = start.len();
    let mut weights = start.to_vec();
    let squares = (0..n).filter(|i| start[*i] > 0.0).map(|i| products[i * n + i]);
    let unit = squares.fold(f64::INFINITY, f64::min);
    if !unit.is_finite() || unit <= 1e-12 {
        return weights;
    }
    for step in 0..STEPS {
        // Long steps first, so that it arrives; short ones later, so that it stays.
        let length = 1.0 / (1.0 + 0.1 * step as f64);
        let slopes: Vec<f64> = (0..n)
            .map(|i| {
                let line = products[i * n..(i + 1) * n].iter().zip(&weights);
                let slope: f64 = line.map(|(product, weight)| product * weight).sum();
                2.0 * slope / unit + 2.0 * PULL * (weights[i] - start[i])
            })
            .collect();
        let steepest = slopes.iter().fold(0.0_f64, |most, slope| most.max(slope.abs()));
        if steepest <= 1e-9 {
            break;
        }
        for ((weight, slope), start) in weights.iter_mut().zip(&slopes).zip(start) {
            let least = if *start > 0.0 { WEIGHT_MIN } else { 0.0 };
            *weight = (*weight * (-length * slope / steepest).exp()).max(least);
        }
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum.max(1e-12));
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_members_that_miss_on_opposite_sides_come_to_share_the_weight() {
        // Misses of 1 and -1: half of each misses nothing, but that is far from the start.
        let weights = stacked(&[100.0, -100.0, -100.0, 100.0], &[0.9, 0.1]);
        assert!((0.5..0.75).contains(&weights[0]), "{weights:?}");
    }

    #[test]
    fn the_better_of_two_that_miss_alike_gets_nearly_all() {
        let weights = stacked(&[100.0, 200.0, 200.0, 400.0], &[0.5, 0.5]);
        assert!(weights[0] > 0.85, "{weights:?}");
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_member_that_is_silent_stays_without_weight() {
        assert_eq!(stacked(&[1.0, 0.0, 0.0, 0.0], &[1.0, 0.0]), [1.0, 0.0]);
    }

    #[test]
    fn without_any_misses_the_weights_stay() {
        assert_eq!(stacked(&[0.0; 4], &[0.3, 0.7]), [0.3, 0.7]);
    }
}
