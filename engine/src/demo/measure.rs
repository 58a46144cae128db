//! Quantiles and shares of what was measured.

/// The value that a share `q` of `values` does not exceed, linear between neighbours.
///
/// # Shape and units
/// * `values`: in any order; the result has their unit, and is NaN if there are none.
/// * `q`: 0 for the smallest, 0.5 for the median, 1 for the largest.
///
/// # Source
/// Hyndman and Fan, Sample Quantiles in Statistical Packages (1996), definition 7.
#[must_use]
pub fn quantile(values: &[u64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    let (low, high) = (sorted[below] as f64, sorted[above] as f64);
    low + (high - low) * (position - below as f64)
}

/// `part` of `whole`; NaN if there is nothing to have a part of.
#[must_use]
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { f64::NAN } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_values_around_them() {
        let values = [40, 10, 30, 20];
        assert_eq!(quantile(&values, 0.0), 10.0);
        assert_eq!(quantile(&values, 0.5), 25.0);
        assert_eq!(quantile(&values, 1.0), 40.0);
        assert!((quantile(&values, 0.95) - 38.5).abs() < 1e-9);
        assert_eq!(quantile(&[7], 0.95), 7.0);
    }

    #[test]
    fn nothing_has_no_quantile_and_no_share() {
        assert!(quantile(&[], 0.5).is_nan());
        assert!(share(0, 0).is_nan());
        assert_eq!(share(1, 4), 0.25);
    }
}
