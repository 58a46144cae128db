//! The red noise that a load is without its seasons: an AR(1) process, and white noise on top.

/// One minus the memory of the AR(1) processes that are tried: from white noise to a random walk.
const FORGETTING: [f64; 19] = [
    1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05, 0.035, 0.025, 0.017, 0.012, 0.007, 0.003,
    1e-3, 3e-4, 1e-4, 0.0,
];

/// Each band of frequencies is so much wider than the one before.
const BAND_RATIO: f64 = 1.3;

/// The share of a band's powers that its level is read from. Below the median, since lines of a season
/// may fill a good part of a band.
const LEVEL_SHARE: f64 = 0.4;

/// Rounds in which red and white noise are told apart.
const FIT_ROUNDS: usize = 4;

/// Power by frequency of the noise, fitted to a periodogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Background {
    forgetting: f64,
    red: f64,
    white: f64,
}

/// Part of the frequencies.
#[derive(Clone, Copy, Debug)]
struct Band {
    frequency: f64,
    level: f64,
    weight: f64,
}

impl Background {
    /// Fits the noise to the powers at frequencies `position / length` that are to be counted.
    ///
    /// `ticks` is the length of the series, which says how many powers are independent. `None` if there
    /// are too few.
    pub(super) fn fit(
        powers: &[f64],
        is_counted: impl Fn(usize) -> bool,
        length: usize,
        ticks: usize,
    ) -> Option<Self> {
        let bands = bands(powers, is_counted, length, ticks);
        if bands.len() < 4 {
            return None;
        }
        let fits = FORGETTING.iter().map(|forgetting| Self::with_memory(&bands, *forgetting));
        fits.map(|fit| (fit, fit.misfit(&bands)))
            .filter(|(_, misfit)| misfit.is_finite())
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(fit, _)| fit)
    }

    /// Power at a frequency in cycles per tick.
    pub(super) fn power(&self, frequency: f64) -> f64 {
        self.red * ar1(self.forgetting, frequency) + self.white
    }

    /// The non-negative parts of red and white noise that fit best. The square of errors is relative to
    /// the fit before, not to the levels: low ones would count too much.
    fn with_memory(bands: &[Band], forgetting: f64) -> Self {
        let weights = bands.iter().map(|band| band.weight).sum::<f64>();
        let logarithms = bands.iter().map(|band| band.weight * band.level.ln()).sum::<f64>();
        let shapes = bands.iter().map(|band| band.weight * ar1(forgetting, band.frequency).ln());
        let red = ((logarithms - shapes.sum::<f64>()) / weights).exp();
        let mut fit = Self { forgetting, red, white: 0.0 };
        for _ in 0..FIT_ROUNDS {
            fit = fit.refined(bands);
        }
        fit
    }

    fn refined(&self, bands: &[Band]) -> Self {
        let (mut rr, mut rw, mut ww, mut ry, mut wy) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for band in bands {
            let scale = self.power(band.frequency);
            let red = ar1(self.forgetting, band.frequency) / scale;
            let (white, level) = (1.0 / scale, band.level / scale);
            rr += band.weight * red * red;
            rw += band.weight * red * white;
            ww += band.weight * white * white;
            ry += band.weight * red * level;
            wy += band.weight * white * level;
        }
        let determinant = rr * ww - rw * rw;
        let (red, white) = ((ry * ww - wy * rw) / determinant, (wy * rr - ry * rw) / determinant);
        let forgetting = self.forgetting;
        if determinant > 1e-12 * rr * ww && red >= 0.0 && white >= 0.0 {
            Self { forgetting, red, white }
        } else if white < 0.0 {
            Self { forgetting, red: ry / rr, white: 0.0 }
        } else {
            Self { forgetting, red: 0.0, white: wy / ww }
        }
    }

    fn misfit(&self, bands: &[Band]) -> f64 {
        let error = |band: &Band| (self.power(band.frequency) / band.level).ln().powi(2);
        bands.iter().map(|band| band.weight * error(band)).sum()
    }
}

/// Power of an AR(1) process with unit innovations.
fn ar1(forgetting: f64, frequency: f64) -> f64 {
    let memory = 1.0 - forgetting;
    let sine = (std::f64::consts::PI * frequency).sin();
    1.0 / (forgetting * forgetting + 4.0 * memory * sine * sine).max(1e-300)
}

/// Levels of the powers in bands of frequencies that widen by a constant ratio.
fn bands(
    powers: &[f64],
    is_counted: impl Fn(usize) -> bool,
    length: usize,
    ticks: usize,
) -> Vec<Band> {
    let oversampling = length as f64 / ticks as f64;
    let mut bands = vec![];
    let mut from = oversampling.ceil() as usize;
    let mut held = vec![];
    while from < powers.len() {
        let width = (from as f64 * (BAND_RATIO - 1.0)).max(2.0 * oversampling).ceil() as usize;
        let to = (from + width).min(powers.len());
        held.clear();
        held.extend((from..to).filter(|at| is_counted(*at)).map(|at| powers[at]));
        if let Some(last) = held.len().checked_sub(1) {
            let place = (last as f64 * LEVEL_SHARE) as usize;
            let (_, level, _) = held.select_nth_unstable_by(place, f64::total_cmp);
            // Powers of noise are exponentially distributed.
            let level = *level / -(1.0 - LEVEL_SHARE).ln();
            if level > 0.0 {
                let frequency = (from as f64 * to as f64).sqrt() / length as f64;
                let weight = (held.len() as f64 / oversampling).sqrt();
                bands.push(Band { frequency, level, weight });
            }
        }
        from = to;
    }
    bands
}

#[cfg(test)]
mod tests {
    use super::super::fourier::Fourier;
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn noise_of_any_memory_is_fitted_over_all_frequencies() {
        let (ticks, length) = (4_000, 8_192);
        let fourier = Fourier::new(length);
        for (memory, on_top) in [(0.0, 0.0), (0.9, 0.0), (0.99, 1.0), (1.0, 0.0)] {
            let mut random = SplitMix64::new(3);
            let mut level = 0.0;
            let series: Vec<f64> = (0..ticks)
                .map(|_| {
                    level = memory * level + random.normal();
                    level + on_top * random.normal()
                })
                .collect();
            let steps: Vec<f64> = series.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (_, powers) = fourier.powers(&series, &steps);
            let mut powers: Vec<f64> = powers.into_iter().map(|it| it / ticks as f64).collect();
            for (position, power) in powers.iter_mut().enumerate().skip(1) {
                *power *= ar1(0.0, position as f64 / length as f64);
            }
            let fit = Background::fit(&powers, |_| true, length, ticks).unwrap();
            for frequency in [0.003, 0.01, 0.1, 0.4] {
                let truth = ar1(1.0 - memory, frequency) + on_top * on_top;
                let ratio = fit.power(frequency) / truth;
                assert!((0.5..2.0).contains(&ratio), "{memory} {frequency}: {ratio} {fit:?}");
            }
        }
    }
}
