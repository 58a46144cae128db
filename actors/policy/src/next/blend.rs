//! Several predictors of the next key, mixed by what each was worth.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Chance that a predictor is taken to have given to what it did not name at all.
const CHANCE_MIN: f64 = 1e-4;

/// Share of all trust that is spread evenly after each call, so that whoever was bad can come back.
const SHARED: f64 = 0.01;

/// Trust in each predictor, by the chances that it gave to what then came.
///
/// # Source
/// Herbster and Warmuth, "Tracking the best expert", Machine Learning 32 (1998): fixed share, with
/// logarithmic loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blend {
    weights: Vec<f64>,
}

impl Blend {
    /// Trusts so many predictors equally.
    #[must_use]
    pub fn new(predictors: usize) -> Self {
        Self { weights: vec![1.0 / predictors.max(1) as f64; predictors] }
    }

    /// Trust in each predictor; it sums to one.
    #[must_use]
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Takes note of the chance that each predictor had given to what came. One that is not between 0 and
    /// 1 counts as none.
    pub fn score(&mut self, chances: &[f64]) {
        for (weight, chance) in self.weights.iter_mut().zip(chances) {
            let chance = if (0.0..=1.0).contains(chance) { *chance } else { 0.0 };
            *weight *= chance.max(CHANCE_MIN);
        }
        let sum: f64 = self.weights.iter().sum();
        let even = 1.0 / self.weights.len().max(1) as f64;
        for weight in &mut self.weights {
            *weight = (1.0 - SHARED) * *weight / sum.max(f64::MIN_POSITIVE) + SHARED * even;
        }
    }

    /// The keys that all predictors together find most likely, with their chances; at most `count`, the
    /// likeliest first. `said` has what each predictor says, in the order of the weights.
    #[must_use]
    pub fn likeliest<K: Clone + Ord>(&self, said: &[Vec<(K, f64)>], count: usize) -> Vec<(K, f64)> {
        let mut chances: BTreeMap<&K, f64> = BTreeMap::new();
        for (weight, said) in self.weights.iter().zip(said) {
            for (key, chance) in said {
                *chances.entry(key).or_default() += weight * chance;
            }
        }
        let mut likeliest: Vec<(&K, f64)> = chances.into_iter().collect();
        likeliest.sort_by(|a, b| b.1.total_cmp(&a.1));
        likeliest.into_iter().take(count).map(|(key, chance)| (key.clone(), chance)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knew_is_trusted_and_can_lose_the_trust_again() {
        let mut blend = Blend::new(2);
        (0..500).for_each(|_| blend.score(&[0.9, 0.1]));
        assert!(blend.weights()[0] > 0.98, "{:?}", blend.weights());
        (0..20).for_each(|_| blend.score(&[f64::NAN, 0.9]));
        assert!(blend.weights()[1] > 0.98, "{:?}", blend.weights());
        assert!((blend.weights().iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn chances_are_added_up_by_trust() {
        let blend = Blend::new(2);
        let said = [vec![(1, 0.6), (2, 0.4)], vec![(2, 1.0)]];
        assert_eq!(blend.likeliest(&said, 9), [(2, 0.7), (1, 0.3)]);
        assert_eq!(blend.likeliest(&said, 1).len(), 1);
        assert_eq!(Blend::new(0).likeliest::<u8>(&[], 3), []);
    }
}
