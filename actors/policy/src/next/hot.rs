//! Which keys will be called most in the next hour.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Keys that are followed; beyond, the half that was called least is forgotten.
const KEYS_MAX: usize = 8_192;

/// Half-lives of the fading means of calls and of hours with calls, in hours.
const HALF_LIVES: [f64; 4] = [2.0, 8.0, 48.0, 336.0];

/// Share of a former day in the mean of the same hour of all days.
const DAY_SHARE: f64 = 0.3;

/// What is known of a key at the end of an hour, and a constant.
const FEATURES: usize = 16;

/// Length of a step of learning.
const STEP: f64 = 0.15;

/// A weight of zero is pulled to with so much strength.
const DECAY: f64 = 1e-4;

/// Ranks keys by how likely they are called within the next hour, and how often.
///
/// For each key it knows the calls of the last hour, fading means over hours to weeks, how these grow, and
/// the same hour of former days. A logistic regression over these, common to all keys, learns after each
/// hour which of them told the truth: where popularity changes from hour to hour the last hour gets the
/// weight, where there is a daily rhythm the former days.
///
/// # Source
/// Duchi, Hazan and Singer, "Adaptive subgradient methods", JMLR 12 (2011), for the steps of learning.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "K: Serialize", deserialize = "K: Deserialize<'de> + Ord"))]
pub struct HotKeys<K: Ord> {
    hours_per_day: usize,
    hours: usize,
    #[serde(with = "pairs")]
    keys: BTreeMap<K, Key>,
    model: Model,
}

/// What is known of one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Key {
    /// Calls in the hour that is not over.
    now: f64,
    /// Calls in the last hour.
    last: f64,
    /// Fading means of the logarithm of calls.
    calls: [f64; HALF_LIVES.len()],
    /// Fading means of whether there were any.
    active: [f64; HALF_LIVES.len()],
    /// Mean over former days of whether there were calls, by hour of the day.
    by_hour: Vec<f32>,
    hours_idle: f64,
    /// Whether an hour with calls of it is over.
    is_known: bool,
    /// Mean logarithm of the calls of an hour with calls.
    burst: f64,
    /// All its calls so far.
    total: f64,
}

impl<K: Clone + Ord> HotKeys<K> {
    /// Knows nothing yet. After `hours_per_day` hours the load is expected to repeat; zero is taken for
    /// one, which is no rhythm.
    #[must_use]
    pub fn new(hours_per_day: usize) -> Self {
        let (hours_per_day, keys) = (hours_per_day.max(1), BTreeMap::new());
        Self { hours_per_day, hours: 0, keys, model: Model::default() }
    }

    /// Takes note of calls within the hour.
    pub fn observe(&mut self, key: K, calls: f64) {
        if !(calls.is_finite() && calls > 0.0) {
            return;
        }
        let hours_per_day = self.hours_per_day;
        self.keys.entry(key).or_insert_with(|| Key::new(hours_per_day)).now += calls;
    }

    /// The hour is over: learns from how its calls were foreseen.
    ///
    /// # Cost
    /// `O(n)` for `n` keys, some 50 ns each.
    pub fn end_hour(&mut self) {
        let hour = self.hours % self.hours_per_day;
        for key in self.keys.values().filter(|key| key.is_known) {
            self.model.learn(&key.features(hour), key.now > 0.0);
        }
        self.keys.values_mut().for_each(|key| key.end_hour(hour));
        self.hours += 1;
        if self.keys.len() > KEYS_MAX {
            self.forget_idle_half();
        }
    }

    /// The keys most likely called most within the hour that is not over, with the chance of any call; at
    /// most `count`, the hottest first. It goes by the hours that are over.
    ///
    /// # Cost
    /// `O(n log n)` for `n` keys.
    #[must_use]
    pub fn hottest(&self, count: usize) -> Vec<(K, f64)> {
        let hour = self.hours % self.hours_per_day;
        let known = self.keys.iter().filter(|(_, key)| key.is_known);
        let mut ranked: Vec<(&K, f64, f64)> = known
            .map(|(name, key)| {
                let chance = self.model.chance(&key.features(hour));
                (name, chance, chance * key.prior())
            })
            .collect();
        ranked.sort_by(|a, b| b.2.total_cmp(&a.2));
        ranked.into_iter().take(count).map(|(key, chance, _)| (key.clone(), chance)).collect()
    }

    fn forget_idle_half(&mut self) {
        let mut means: Vec<f64> = self.keys.values().map(Key::worth).collect();
        means.sort_by(f64::total_cmp);
        let mut gone_max = means.len() / 2;
        let Some(middle) = means.get(gone_max).copied() else { return };
        self.keys.retain(|_, key| {
            let goes = key.worth() <= middle && gone_max > 0;
            gone_max -= usize::from(goes);
            !goes
        });
    }
}

/// Power to which the size of a key's bursts counts beside its chance to be called.
const BURST_POWER: f64 = 0.5;

/// The same of all its calls so far: of keys that are as likely, the popular one is called more often.
const POPULARITY_POWER: f64 = 0.1;

impl Key {
    fn new(hours_per_day: usize) -> Self {
        Self {
            now: 0.0,
            last: 0.0,
            calls: Default::default(),
            active: Default::default(),
            by_hour: vec![0.0; hours_per_day],
            hours_idle: 0.0,
            is_known: false,
            burst: 0.0,
            total: 0.0,
        }
    }

    fn worth(&self) -> f64 {
        self.calls.iter().sum()
    }

    /// How often it is called if it is, up to a factor that all have in common.
    fn prior(&self) -> f64 {
        self.burst.powf(BURST_POWER) * (1.0 + self.total).powf(POPULARITY_POWER)
    }

    fn features(&self, hour: usize) -> [f64; FEATURES] {
        let at = |hour: usize| f64::from(self.by_hour.get(hour).copied().unwrap_or_default());
        let day = self.by_hour.len().max(1);
        let around = (at((hour + day - 1) % day) + at((hour + 1) % day)) / 2.0;
        let [c0, c1, c2, c3] = self.calls;
        let [a0, a1, a2, a3] = self.active;
        let is_last = f64::from(u8::from(self.last > 0.0));
        let trend = self.last.ln_1p() - c0;
        let idle = 1.0 / (1.0 + self.hours_idle);
        let last = self.last.ln_1p();
        [
            1.0,
            last,
            is_last,
            c0,
            c1,
            c2,
            c3,
            a0,
            a1,
            a2.sqrt(),
            a3.sqrt(),
            trend,
            at(hour) + around,
            idle,
            self.total.ln_1p() / 4.0,
            (self.total.ln_1p() / 8.0).powi(2),
        ]
    }

    fn end_hour(&mut self, hour: usize) {
        let calls = self.now.ln_1p();
        self.total += self.now;
        let is_active = f64::from(u8::from(self.now > 0.0));
        for (half_life, (mean, active)) in
            HALF_LIVES.iter().zip(self.calls.iter_mut().zip(&mut self.active))
        {
            let share = 1.0 - (-std::f64::consts::LN_2 / half_life).exp();
            *mean += share * (calls - *mean);
            *active += share * (is_active - *active);
        }
        if let Some(mean) = self.by_hour.get_mut(hour) {
            *mean += (DAY_SHARE * (is_active - f64::from(*mean))) as f32;
        }
        if self.now > 0.0 {
            let share = if self.burst == 0.0 { 1.0 } else { 0.1 };
            self.burst += share * (calls - self.burst);
            self.hours_idle = 0.0;
        } else {
            self.hours_idle += 1.0;
        }
        (self.last, self.now, self.is_known) = (self.now, 0.0, true);
    }
}

/// A logistic regression that learns one example at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Model {
    weights: [f64; FEATURES],
    squares: [f64; FEATURES],
}

impl Default for Model {
    /// Goes by recent activity as long as nothing is learned.
    fn default() -> Self {
        let mut weights = [0.0; FEATURES];
        (weights[0], weights[2], weights[3], weights[8], weights[10]) = (-3.0, 0.5, 1.0, 2.0, 2.0);
        Self { weights, squares: [1.0; FEATURES] }
    }
}

impl Model {
    fn chance(&self, features: &[f64; FEATURES]) -> f64 {
        let sum: f64 = self.weights.iter().zip(features).map(|(weight, it)| weight * it).sum();
        1.0 / (1.0 + (-sum).exp())
    }

    fn learn(&mut self, features: &[f64; FEATURES], is_active: bool) {
        let miss = f64::from(u8::from(is_active)) - self.chance(features);
        let parts = self.weights.iter_mut().zip(&mut self.squares).zip(features);
        for ((weight, square), feature) in parts {
            let slope = miss * feature - DECAY * *weight;
            *square += slope * slope;
            *weight += STEP * slope / square.sqrt();
        }
    }
}

/// A map as a list of pairs: JSON has only strings for names.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Key;

    pub(super) fn serialize<K: Serialize, S: Serializer>(
        keys: &BTreeMap<K, Key>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys)
    }

    pub(super) fn deserialize<'de, K: Deserialize<'de> + Ord, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<K, Key>, D::Error> {
        Ok(Vec::<(K, Key)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// What is expected after hours in which `calls` says how often each key is called.
    fn after(hours: usize, calls: impl Fn(usize) -> Vec<(u32, f64)>) -> HotKeys<u32> {
        let mut hot = HotKeys::new(24);
        for hour in 0..hours {
            calls(hour).into_iter().for_each(|(key, calls)| hot.observe(key, calls));
            hot.end_hour();
        }
        hot
    }

    fn keys(hot: &HotKeys<u32>, count: usize) -> Vec<u32> {
        hot.hottest(count).into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn a_key_that_is_called_at_the_same_hour_every_day_is_expected_then_and_not_before() {
        let mut random = SplitMix64::new(1);
        let noise: Vec<u32> = (0..24 * 40).map(|_| 10 + (random.bits() % 30) as u32).collect();
        let calls = |hour: usize| {
            let daily = if hour % 24 == 9 { vec![(1, 5.0)] } else { vec![] };
            daily.into_iter().chain([(noise[hour], 5.0)]).collect()
        };
        assert_eq!(keys(&after(24 * 30 + 9, calls), 1), [1], "at nine");
        assert!(!keys(&after(24 * 30 + 15, calls), 5).contains(&1), "in the afternoon");
    }

    #[test]
    fn where_the_last_hour_tells_all_it_is_followed_rather_than_what_was_popular_once() {
        // Each key is called for twelve hours, then never again.
        let hot = after(12 * 30 + 3, |hour| vec![((hour / 12) as u32, 3.0)]);
        assert_eq!(keys(&hot, 1), [30]);
        assert!(hot.hottest(1)[0].1 > 0.6, "{:?}", hot.hottest(3));
    }

    #[test]
    fn chances_are_about_right() {
        let mut random = SplitMix64::new(2);
        let mut hot = HotKeys::new(24);
        let (mut expected, mut came) = (0.0, 0.0);
        for hour in 0..1_000 {
            let chances = hot.hottest(10);
            let called: Vec<u32> =
                (0..10).filter(|key| random.uniform() < 0.05 + 0.06 * f64::from(*key)).collect();
            if hour >= 200 {
                expected += chances.iter().map(|(_, chance)| chance).sum::<f64>();
                came += called.len() as f64;
            }
            called.into_iter().for_each(|key| hot.observe(key, 1.0));
            hot.end_hour();
        }
        assert!((expected / came - 1.0).abs() < 0.15, "{expected} {came}");
    }

    #[test]
    fn ever_new_keys_that_come_once_do_not_fill_the_memory_nor_push_out_the_hot_one() {
        let hot = after(60, |hour| {
            let passing = (0..1_000).map(|key| (1_000 + 1_000 * hour as u32 + key, 1.0));
            passing.chain([(7, 3.0)]).collect()
        });
        assert!(hot.keys.len() <= KEYS_MAX, "{}", hot.keys.len());
        assert_eq!(keys(&hot, 1), [7]);
    }

    #[test]
    fn after_a_restart_the_same_is_expected() {
        let hot = after(100, |hour| vec![((hour % 7) as u32, 2.0), ((hour % 3) as u32, 1.0)]);
        let stored = serde_json::to_vec(&hot).unwrap();
        let read: HotKeys<u32> = serde_json::from_slice(&stored).unwrap();
        assert_eq!(keys(&read, 7), keys(&hot, 7));
        assert_eq!(keys(&HotKeys::new(0), 3), [0_u32; 0], "nothing known");
    }
}
