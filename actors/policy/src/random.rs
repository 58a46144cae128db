//! Random numbers that are the same in every run and on every machine.

/// The SplitMix64 generator: small, fast, and good enough for sampling rows and features. Not for
/// secrets.
///
/// # Source
/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Numbers that depend on `seed` only.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number of `[0, 1)`, each equally likely.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The next number of the standard normal distribution, by the method of Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// How many of things that come independently of each other come, if `mean` do on average; for more than
    /// 40 by the normal distribution, which is near enough.
    ///
    /// # Source
    /// Knuth, The Art of Computer Programming, volume 2, section 3.4.1, algorithm Q.
    pub fn poisson(&mut self, mean: f64) -> u32 {
        const MANY: f64 = 40.0;
        if mean > MANY {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u32;
        }
        let (limit, mut product, mut count) = ((-mean).exp(), self.uniform(), 0);
        while product > limit {
            product *= self.uniform();
            count += 1;
        }
        count
    }

    /// The positions of about `share` of `count` things, ascending: exactly the rounded number of
    /// them, at least one if there are any, and each choice equally likely.
    ///
    /// # Source
    /// Knuth, The Art of Computer Programming, volume 2, section 3.4.2, algorithm S.
    pub fn sample(&mut self, count: usize, share: f64) -> Vec<u32> {
        let mut wanted = ((count as f64 * share).round() as usize).clamp(count.min(1), count);
        if wanted == count {
            return (0..count as u32).collect();
        }
        let mut chosen = Vec::with_capacity(wanted);
        for position in 0..count {
            if self.uniform() * (count - position) as f64 >= wanted as f64 {
                continue;
            }
            chosen.push(position as u32);
            wanted -= 1;
            if wanted == 0 {
                break;
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_reference_implementation() {
        let mut random = SplitMix64::new(1_234_567);
        assert_eq!(random.bits(), 6_457_827_717_110_365_317);
        assert_eq!(random.bits(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn a_sample_has_its_size_and_every_position_is_equally_likely() {
        let mut random = SplitMix64::new(1);
        let mut times = [0_u32; 10];
        for _ in 0..10_000 {
            let sample = random.sample(10, 0.3);
            assert_eq!(sample.len(), 3);
            assert!(sample.is_sorted_by(|a, b| a < b), "{sample:?}");
            sample.iter().for_each(|position| times[*position as usize] += 1);
        }
        assert!(times.iter().all(|times| (2_800..3_200).contains(times)), "{times:?}");
        assert_eq!(random.sample(5, 0.0).len(), 1, "at least one");
        assert_eq!(random.sample(5, 1.0), [0, 1, 2, 3, 4]);
        assert_eq!(random.sample(0, 0.5), [0_u32; 0]);
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut random = SplitMix64::new(2);
        let numbers: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let mean = numbers.iter().sum::<f64>() / 1e5;
        let power = numbers.iter().map(|number| number * number).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (power - 1.0).abs() < 0.02, "{mean} {power}");
    }

    #[test]
    fn counts_of_what_comes_independently_are_as_wide_as_their_mean() {
        for mean in [0.0, 0.3, 7.0, 39.0, 90.0] {
            let mut dice = SplitMix64::new(5);
            let all: Vec<f64> = (0..20_000).map(|_| f64::from(dice.poisson(mean))).collect();
            let average = all.iter().sum::<f64>() / 2e4;
            let spread = all.iter().map(|count| (count - average).powi(2)).sum::<f64>() / 2e4;
            assert!((average - mean).abs() <= 0.03 * mean, "{average} of {mean}");
            assert!((spread - mean).abs() <= 0.05 * mean, "{spread} of {mean}");
        }
    }
}
