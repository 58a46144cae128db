//! How far a ratio of sums over days is to be believed.

use foreshard_policy::random::SplitMix64;

/// Draws of days.
const DRAWS: usize = 1_000;

/// 5 % and 95 % quantiles of the ratio of the sums of `ours` and `theirs` (one number a day), when whole
/// days are drawn anew.
///
/// # Source
/// Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of Statistics 17
/// (1989): blocks of days, since minutes depend on each other.
pub(super) fn interval(ours: &[f64], theirs: &[f64]) -> (f64, f64) {
    let days = ours.len().min(theirs.len());
    if days == 0 {
        return (f64::NAN, f64::NAN);
    }
    let mut dice = SplitMix64::new(1);
    let mut ratios: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let (mut a, mut b) = (0.0, 0.0);
            for _ in 0..days {
                let day = ((dice.uniform() * days as f64) as usize).min(days - 1);
                (a, b) = (a + ours[day], b + theirs[day]);
            }
            a / b.max(1.0)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[DRAWS / 20], ratios[DRAWS - 1 - DRAWS / 20])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_that_are_alike_say_more_than_days_that_are_not() {
        let (low, high) = interval(&[5.0; 14], &[10.0; 14]);
        assert!((low - 0.5).abs() < 1e-9 && (high - 0.5).abs() < 1e-9, "{low} to {high}");
        let uneven = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 70.0];
        let (low, high) = interval(&uneven, &[10.0; 7]);
        assert!(low < 0.2 && high > 1.8, "{low} to {high}");
        assert!(interval(&[], &[]).0.is_nan());
    }
}
