//! Measures a period that shows only a few times, for which the spectrum is too coarse.

/// Waves of a season that are fitted: it and its first harmonics.
const WAVES: usize = 4;

/// Columns of the fit: a parabola, and two for each wave.
const COLUMNS: usize = 3 + 2 * WAVES;

/// Values per season that the series is averaged to.
const VALUES_PER_SEASON: f64 = 32.0;

/// Periods that are tried.
const TRIALS: usize = 48;

/// The period of `low` to `high` ticks whose waves explain most of the series, by least squares; a slow
/// drift is fitted with them.
///
/// # Cost
/// `O(n)` and about 20,000 multiplications per season that the series shows.
pub(super) fn refined(series: &[f64], low: f64, high: f64) -> f64 {
    let width = ((low / VALUES_PER_SEASON) as usize).max(1);
    let values: Vec<(f64, f64)> = series
        .chunks_exact(width)
        .enumerate()
        .map(|(chunk, ticks)| {
            let tick = chunk as f64 * width as f64 + (width - 1) as f64 / 2.0;
            (tick, ticks.iter().sum::<f64>() / width as f64)
        })
        .collect();
    let ticks = series.len() as f64;
    let explained = |period: f64| explained(&values, ticks, period);
    let step = (high - low) / TRIALS as f64;
    let trials = (0..=TRIALS).map(|trial| low + step * trial as f64);
    let best = trials
        .map(|period| (period, explained(period)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(low, |(period, _)| period);
    let (before, here, after) = (explained(best - step), explained(best), explained(best + step));
    let bend = before - 2.0 * here + after;
    let shift = if bend < 0.0 { 0.5 * (before - after) / bend } else { 0.0 };
    best + step * shift.clamp(-1.0, 1.0)
}

/// The part of the series' sum of squares that the waves of a period and a slow drift explain.
fn explained(values: &[(f64, f64)], ticks: f64, period: f64) -> f64 {
    let mut products = [[0.0; COLUMNS]; COLUMNS];
    let mut targets = [0.0; COLUMNS];
    for (tick, value) in values {
        let row = row(*tick, ticks, period);
        for (column, left) in row.iter().enumerate() {
            targets[column] += left * value;
            for (product, right) in products[column][..=column].iter_mut().zip(&row) {
                *product += left * right;
            }
        }
    }
    forward(&mut products, &mut targets);
    targets.iter().map(|target| target * target).sum()
}

fn row(tick: f64, ticks: f64, period: f64) -> [f64; COLUMNS] {
    let place = 2.0 * tick / ticks - 1.0;
    let mut row = [0.0; COLUMNS];
    (row[0], row[1], row[2]) = (1.0, place, place * place);
    let (sine, cosine) = (std::f64::consts::TAU * tick / period).sin_cos();
    let (mut s, mut c) = (sine, cosine);
    for wave in 0..WAVES {
        (row[3 + 2 * wave], row[4 + 2 * wave]) = (s, c);
        (s, c) = (s * cosine + c * sine, c * cosine - s * sine);
    }
    row
}

/// Cholesky factors of the lower half of `products`, and `targets` divided by them: the sum of their
/// squares is what the columns explain. Columns that others contain explain nothing.
fn forward(products: &mut [[f64; COLUMNS]; COLUMNS], targets: &mut [f64; COLUMNS]) {
    for column in 0..COLUMNS {
        for before in 0..=column {
            let (rows, row) = (&products[before], &products[column]);
            let taken: f64 = rows[..before].iter().zip(&row[..before]).map(|(a, b)| a * b).sum();
            let rest = row[before] - taken;
            products[column][before] = if before < column {
                let pivot = products[before][before];
                if pivot > 0.0 { rest / pivot } else { 0.0 }
            } else if rest > 1e-9 * row[column].max(1e-300) {
                rest.sqrt()
            } else {
                0.0
            };
        }
        let row = &products[column];
        let taken: f64 = row[..column].iter().zip(&targets[..column]).map(|(a, b)| a * b).sum();
        let pivot = row[column];
        targets[column] = if pivot > 0.0 { (targets[column] - taken) / pivot } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn three_seasons_under_noise_and_drift_are_enough_to_measure_one() {
        for seed in 0..20 {
            let mut random = SplitMix64::new(seed);
            let series: Vec<f64> = (0..504)
                .map(|tick| {
                    let phase = f64::from(tick) / 168.0 * std::f64::consts::TAU;
                    phase.sin() + 0.3 * random.normal() + f64::from(tick) / 200.0
                })
                .collect();
            let period = refined(&series, 150.0, 190.0);
            assert!((period / 168.0 - 1.0).abs() < 0.01, "seed {seed}: {period}");
        }
    }
}
