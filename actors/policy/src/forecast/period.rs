//! Finds the number of ticks after which a load repeats, or that it does not.

/// Shortest series that is searched.
const TICKS_MIN: usize = 24;

/// A series must show this many seasons.
const SEASONS_MIN: usize = 3;

/// Fewest values left when ticks are summed up to see slow rhythms.
const BINS_MIN: usize = 48;

/// Chance of finding a season in red noise that has none, over all lags that are tried.
const FALSE_ALARM: f64 = 1e-3;

/// Autocorrelation below which a season is no use, however certain it is.
const CORRELATION_MIN: f64 = 0.1;

/// The season of `calls` in ticks, oldest tick first; `None` if none is certain.
///
/// The series is summed up over 1, 2, 4 .. ticks. At each scale its square roots (which makes the
/// noise of counts even) are whitened against an AR(1) background: white noise, red noise and
/// random walks alike become white noise. Outliers are cut off. Then a lag counts as a season if
/// its autocorrelation is a peak beyond what white noise with such tails reaches over all lags
/// tried, if the load went elsewhere in between, and if the older and the newer half of the pairs
/// agree, which two outliers at some distance do not. Of several (a season repeats after two
/// seasons too) the shortest good one is taken, to the tick.
///
/// # Cost
/// `O(n^2 / 3)` multiplications; `n = 4,096` takes some 10 ms.
#[must_use]
pub fn find_season(calls: &[f64]) -> Option<usize> {
    if calls.len() < TICKS_MIN || calls.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut best: Option<Peak> = None;
    let mut bin = 1;
    while bin == 1 || calls.len() / bin >= BINS_MIN {
        let found = at_scale(calls, bin);
        if let Some(found) = found
            && best.as_ref().is_none_or(|best| found.certainty > best.certainty)
        {
            best = Some(found);
        }
        bin *= 2;
    }
    best.map(|peak| to_the_tick(calls, &peak))
}

struct Peak {
    lag: usize,
    bin: usize,
    /// Minus the logarithm of the chance that white noise gives as much.
    certainty: f64,
}

fn at_scale(calls: &[f64], bin: usize) -> Option<Peak> {
    let bins: Vec<f64> = calls
        .rchunks_exact(bin)
        .rev()
        .map(|ticks| (1.0 + ticks.iter().sum::<f64>()).sqrt())
        .collect();
    let noise = whitened(&bins)?;
    let lags = noise.len() / SEASONS_MIN;
    if lags < 3 {
        return None;
    }
    let correlations: Vec<f64> = (0..=lags + 1).map(|lag| correlation(&noise, lag)).collect();
    let tails = kurtosis(&noise);
    let certainty = |lag: usize| certainty(correlations[lag], noise.len() - lag, tails);
    let threshold = (lags as f64 / FALSE_ALARM).ln();
    let raw = centred(&bins);
    let raw: Vec<f64> = (0..=lags).map(|lag| correlation(&raw, lag)).collect();
    // The load must have gone elsewhere in between: slow noise is merely like itself a while ago.
    let comes_back = |lag: usize| {
        let least = raw[..lag].iter().copied().fold(f64::INFINITY, f64::min);
        raw[lag] - least >= CORRELATION_MIN * raw[0]
    };
    let is_season = |lag: &usize| {
        let peak = correlations[*lag];
        peak >= CORRELATION_MIN
            && peak >= correlations[lag - 1]
            && peak >= correlations[lag + 1]
            && certainty(*lag) > threshold
            && comes_back(*lag)
            && both_halves_agree(&noise, *lag)
    };
    let seasons: Vec<usize> = (2..=lags).filter(is_season).collect();
    let strongest = seasons.iter().copied().map(certainty).fold(0.0, f64::max);
    let lag = seasons.into_iter().find(|lag| certainty(*lag) >= 0.6 * strongest)?;
    Some(Peak { lag, bin, certainty: certainty(lag) })
}

/// The part of each value that an AR(1) process does not explain, with unit variance and without
/// outliers; `None` for a constant series.
fn whitened(values: &[f64]) -> Option<Vec<f64>> {
    let centred = centred(values);
    let power: f64 = centred.iter().map(|value| value * value).sum();
    if power <= 1e-9 * values.len() as f64 {
        return None;
    }
    let memory: f64 = centred.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / power;
    let rest: Vec<f64> = centred.windows(2).map(|pair| pair[1] - memory * pair[0]).collect();
    let deviation = deviation(&rest)?;
    let cut = rest.iter().map(|value| value.clamp(-3.0 * deviation, 3.0 * deviation));
    let cut = self::centred(&cut.collect::<Vec<_>>());
    let deviation = self::deviation(&cut)?;
    Some(cut.into_iter().map(|value| value / deviation).collect())
}

fn centred(values: &[f64]) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    values.iter().map(|value| value - mean).collect()
}

fn deviation(values: &[f64]) -> Option<f64> {
    let power = values.iter().map(|value| value * value).sum::<f64>();
    let deviation = (power / values.len().max(1) as f64).sqrt();
    (deviation > 1e-9).then_some(deviation)
}

fn correlation(noise: &[f64], lag: usize) -> f64 {
    let pairs = noise.iter().zip(&noise[lag..]);
    pairs.map(|(a, b)| a * b).sum::<f64>() / (noise.len() - lag) as f64
}

/// How unlikely white noise with such tails makes this correlation of so many pairs, as minus the
/// logarithm of its chance, by the form of Bennett's inequality: rare spikes coincide more often
/// than normal noise would.
fn certainty(correlation: f64, pairs: usize, tails: f64) -> f64 {
    let excess = tails * correlation.max(0.0);
    pairs as f64 / (tails * tails) * ((1.0 + excess) * excess.ln_1p() - excess)
}

/// Mean fourth power of values with unit variance: 3 for normal noise, more for rare spikes.
fn kurtosis(noise: &[f64]) -> f64 {
    noise.iter().map(|value| value.powi(4)).sum::<f64>() / noise.len().max(1) as f64
}

fn both_halves_agree(noise: &[f64], lag: usize) -> bool {
    let half = (noise.len() - lag) / 2;
    let sum = |from: usize, to: usize| -> f64 {
        (from..to).map(|position| noise[position] * noise[position + lag]).sum()
    };
    let (older, newer) = (sum(0, half), sum(half, noise.len() - lag));
    older.min(newer) >= 0.2 * (older + newer)
}

/// The lag around the peak at which the ticks agree best with those one, two, three .. lags ago.
fn to_the_tick(calls: &[f64], peak: &Peak) -> usize {
    let roots = centred(&calls.iter().map(|value| (1.0 + value).sqrt()).collect::<Vec<_>>());
    let agreement = |lag: usize| -> f64 {
        (lag..=calls.len() * 2 / 3).step_by(lag).map(|lag| correlation(&roots, lag)).sum::<f64>()
            / (calls.len() * 2 / 3 / lag).max(1) as f64
    };
    let centre = peak.lag * peak.bin;
    let width = peak.bin.max(centre / 12);
    let near = centre.saturating_sub(width).max(2)..=(centre + width).min(calls.len() / 2);
    near.max_by(|a, b| agreement(*a).total_cmp(&agreement(*b))).unwrap_or(centre)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform numbers in -1..1 that are the same in every run.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self) -> f64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 11) as f64 / (1u64 << 53) as f64) * 2.0 - 1.0
        }

        /// About normal.
        fn normal(&mut self) -> f64 {
            (0..6).map(|_| self.roll()).sum::<f64>() / 1.414
        }
    }

    fn series(seed: u64, ticks: usize, mut next: impl FnMut(usize, &mut Dice) -> f64) -> Vec<f64> {
        let mut dice = Dice(seed * 7_919 + 1);
        (0..ticks).map(|tick| next(tick, &mut dice).max(0.0)).collect()
    }

    #[test]
    fn a_noisy_day_is_found_to_the_tick() {
        for seed in 0..10 {
            let day = series(seed, 24 * 10, |tick, dice| {
                let phase = tick as f64 / 24.0 * std::f64::consts::TAU;
                50.0 + 40.0 * phase.sin() + 8.0 * dice.normal()
            });
            assert_eq!(find_season(&day), Some(24), "seed {seed}");
        }
    }

    #[test]
    fn a_slow_rhythm_under_noise_is_found_nearly_to_the_tick() {
        let day = series(1, 288 * 6, |tick, dice| {
            let phase = tick as f64 / 288.0 * std::f64::consts::TAU;
            50.0 + 30.0 * phase.sin() + 12.0 * dice.normal()
        });
        let found = find_season(&day).unwrap();
        assert!(found.abs_diff(288) <= 6, "{found}");
    }

    #[test]
    fn a_morning_rush_is_found() {
        let rush = series(
            2,
            40 * 4,
            |tick, dice| {
                if tick % 40 < 3 { 30.0 + 5.0 * dice.normal() } else { 0.0 }
            },
        );
        assert_eq!(find_season(&rush), Some(40));
    }

    #[test]
    fn noise_of_any_colour_has_no_season() {
        let mut alarms = Vec::new();
        for seed in 0..30 {
            for ticks in [60, 300, 900] {
                let white = series(seed, ticks, |_, dice| 20.0 + 10.0 * dice.roll());
                let mut level = 0.0;
                let red = series(seed, ticks, |_, dice| {
                    level = 0.9 * level + 5.0 * dice.normal();
                    60.0 + level
                });
                let mut level = 500.0;
                let walk = series(seed, ticks, |_, dice| {
                    level += 5.0 * dice.normal();
                    level
                });
                let spikes =
                    series(seed, ticks, |_, dice| if dice.roll() > 0.97 { 50.0 } else { 0.0 });
                for (name, noise) in
                    [("white", white), ("red", red), ("walk", walk), ("spikes", spikes)]
                {
                    alarms.extend(find_season(&noise).map(|lag| (name, ticks, seed, lag)));
                }
            }
        }
        assert!(alarms.len() <= 2, "of 360: {alarms:?}");
    }

    #[test]
    fn constant_short_and_broken_series_have_no_season() {
        assert_eq!(find_season(&[5.0; 500]), None);
        assert_eq!(find_season(&[0.0; 500]), None);
        assert_eq!(find_season(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]), None);
        assert_eq!(find_season(&[]), None);
        assert_eq!(find_season(&[f64::NAN; 100]), None);
    }

    #[test]
    fn two_outliers_make_no_season() {
        let mut calls = vec![1.0; 300];
        calls[100] = 500.0;
        calls[180] = 500.0;
        assert_eq!(find_season(&calls), None);
    }
}
