//! The discrete Fourier transform of lengths that are powers of two.

/// A complex number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

impl Complex {
    pub(super) fn new(re: f64, im: f64) -> Self {
        Self { re, im }
    }

    fn turned(angle: f64) -> Self {
        Self { re: angle.cos(), im: angle.sin() }
    }

    fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    fn minus(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }

    fn times(self, other: Self) -> Self {
        Self {
            re: self.re * other.re - self.im * other.im,
            im: self.re * other.im + self.im * other.re,
        }
    }

    pub(super) fn power(self) -> f64 {
        self.re * self.re + self.im * self.im
    }
}

/// What transforms of one length have in common.
#[derive(Clone, Debug)]
pub(super) struct Fourier {
    /// The roots of unity of the first half.
    roots: Vec<Complex>,
}

impl Fourier {
    /// Transforms of `length` values, a power of two.
    pub(super) fn new(length: usize) -> Self {
        let step = -std::f64::consts::TAU / length as f64;
        let roots = (0..length / 2).map(|position| Complex::turned(step * position as f64));
        Self { roots: roots.collect() }
    }

    pub(super) fn length(&self) -> usize {
        self.roots.len() * 2
    }

    /// Transforms in place, by the iterative radix-2 algorithm of Cooley and Tukey. What has another
    /// length is left alone.
    pub(super) fn transform(&self, values: &mut [Complex]) {
        let length = self.length();
        if values.len() != length || !length.is_power_of_two() {
            return;
        }
        let bits = length.trailing_zeros();
        for position in 0..length {
            let reversed = position.reverse_bits() >> (usize::BITS - bits);
            if position < reversed {
                values.swap(position, reversed);
            }
        }
        let mut half = 1;
        while half < length {
            let stride = self.roots.len() / half;
            for block in values.chunks_exact_mut(2 * half) {
                let (even, odd) = block.split_at_mut(half);
                let roots = self.roots.iter().step_by(stride);
                for ((even, odd), root) in even.iter_mut().zip(odd).zip(roots) {
                    let turned = odd.times(*root);
                    *odd = even.minus(turned);
                    *even = even.plus(turned);
                }
            }
            half *= 2;
        }
    }

    /// Power spectra of two real series at once, each of at most as many values as the transform, up to
    /// the highest frequency.
    pub(super) fn powers(&self, first: &[f64], second: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let length = self.length();
        let value = |series: &[f64], position: usize| series.get(position).copied().unwrap_or(0.0);
        let mut both: Vec<Complex> = (0..length)
            .map(|position| Complex::new(value(first, position), value(second, position)))
            .collect();
        self.transform(&mut both);
        // The parts are told apart by their symmetry.
        (0..=length / 2)
            .map(|position| {
                let (here, there) = (both[position], both[(length - position) % length]);
                let mirrored = Complex::new(there.re, -there.im);
                (here.plus(mirrored).power() / 4.0, here.minus(mirrored).power() / 4.0)
            })
            .unzip()
    }

    /// The autocovariance that belongs to a power spectrum: at lag `l` the sum over all frequencies of
    /// power times `cos(2 pi l f)`, up to half of the length.
    pub(super) fn autocovariance(&self, powers: &[f64]) -> Vec<f64> {
        let length = self.length();
        let mut values: Vec<Complex> = (0..length)
            .map(|position| position.min(length - position))
            .map(|position| Complex::new(powers.get(position).copied().unwrap_or(0.0), 0.0))
            .collect();
        self.transform(&mut values);
        values[..=length / 2].iter().map(|value| value.re).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn the_transform_is_the_sum_that_defines_it() {
        let mut random = SplitMix64::new(1);
        for length in [2, 8, 64] {
            let values: Vec<Complex> =
                (0..length).map(|_| Complex::new(random.normal(), random.normal())).collect();
            let mut fast = values.clone();
            Fourier::new(length).transform(&mut fast);
            for (position, fast) in fast.iter().enumerate() {
                let mut slow = Complex::default();
                for (tick, value) in values.iter().enumerate() {
                    let turns = (tick * position % length) as f64 / length as f64;
                    let root = Complex::turned(-std::f64::consts::TAU * turns);
                    slow = slow.plus(value.times(root));
                }
                assert!(fast.minus(slow).power() < 1e-18, "{length} {position}");
            }
        }
    }

    #[test]
    fn two_spectra_at_once_are_those_of_each_and_give_the_autocovariance() {
        let mut random = SplitMix64::new(2);
        let (length, ticks) = (256, 100);
        let series =
            |random: &mut SplitMix64| -> Vec<f64> { (0..ticks).map(|_| random.normal()).collect() };
        let (first, second) = (series(&mut random), series(&mut random));
        let fourier = Fourier::new(length);
        let (of_first, of_second) = fourier.powers(&first, &second);
        for (series, powers) in [(first, of_first), (second, of_second)] {
            let covariance = fourier.autocovariance(&powers);
            for lag in [0, 1, 7, 99, 120] {
                let pairs = series.iter().zip(series.iter().skip(lag));
                let direct: f64 = pairs.map(|(a, b)| a * b).sum();
                let indirect = covariance[lag] / length as f64;
                assert!((direct - indirect).abs() < 1e-9, "{lag}: {direct} {indirect}");
            }
        }
    }
}
