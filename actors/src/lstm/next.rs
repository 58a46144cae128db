//! The same cell as a predictor of the next key: it reads calls one by one.

use std::collections::{BTreeMap, VecDeque};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::optim::{AdamW, Optimizer as _, ParamsAdamW};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::cell::{Sequence, State, Weights};
use super::numeric;
use foreshard_policy::forecast::{Effort, ForecastError};

/// Keys that are told apart, the newest; all others are one.
const KEYS_MAX: usize = 63;

/// Width of an input and of an output: the keys, and one place for all others.
const WIDTH: usize = KEYS_MAX + 1;

/// Place of the others.
const OTHERS: usize = 0;

/// Width of the state.
const HIDDEN: usize = 32;

/// Calls that are learned from, the newest.
const SEEN_MAX: usize = 4_096;

/// Calls without which nothing is learned.
const SEEN_MIN: usize = 64;

/// Calls in a row that a lesson has, and lessons of a step.
const LESSON: usize = 24;
const LESSONS: usize = 8;

/// Length of a step.
const RATE: f64 = 3e-2;

/// Share of lessons that come from the newest quarter of the calls: habits change.
const NEWEST: f64 = 0.5;

/// Learns which key follows a series of keys.
///
/// It holds the newest 63 keys, and knows the newest 4,096 calls. Equal seeds and calls give equal
/// weights, bit by bit. It is not kept over restarts: what it knows is learned again within some thousand
/// calls.
///
/// # Cost
/// Taking note of a call moves one state on, some 10 us; a step of learning takes some milliseconds, on the
/// thread that asks for it.
pub struct NextKeys<K> {
    /// Place of each key.
    places: BTreeMap<K, usize>,
    /// Keys by place, and the call that each was seen in last.
    keys: Vec<Option<(K, u64)>>,
    calls: u64,
    seen: VecDeque<usize>,
    net: Net,
    state: State,
    random: StdRng,
}

impl<K> std::fmt::Debug for NextKeys<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NextKeys").field("calls", &self.calls).finish_non_exhaustive()
    }
}

struct Net {
    /// Input, recurrent weights and bias of the cell; weights and bias of the output.
    vars: [Var; 5],
    optimizer: AdamW,
    /// The cell as it is now, to move a state on.
    cell: Weights,
    /// `HIDDEN * WIDTH` and `WIDTH`, likewise.
    out: Vec<f32>,
    bias: Vec<f32>,
    steps: u64,
}

impl Net {
    fn new(random: &mut StdRng) -> Result<Self> {
        let mut var = |shape: (usize, usize), size: f32| {
            let values = (0..shape.0 * shape.1).map(|_| random.random_range(-size..size));
            Var::from_tensor(&Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu)?)
        };
        let size = 1.0 / (HIDDEN as f32).sqrt();
        let (input, recurrent) =
            (var((WIDTH, 4 * HIDDEN), size)?, var((HIDDEN, 4 * HIDDEN), size)?);
        let out = var((HIDDEN, WIDTH), size)?;
        // Gates lie in the order input, forget, cell, output; what is not forgotten at first can be learned.
        let open = |gate: usize| if gate / HIDDEN == 1 { 1.0 } else { 0.0 };
        let bias: Vec<f32> = (0..4 * HIDDEN).map(open).collect();
        let bias = Var::from_tensor(&Tensor::new(bias, &Device::Cpu)?)?;
        let vars = [input, recurrent, bias, out, Var::zeros(WIDTH, DType::F32, &Device::Cpu)?];
        let params = ParamsAdamW { lr: RATE, ..ParamsAdamW::default() };
        let optimizer = AdamW::new(vars.to_vec(), params)?;
        let cell = Weights::new(
            &[0.0; WIDTH * 4 * HIDDEN],
            &[0.0; HIDDEN * 4 * HIDDEN],
            &[0.0; 4 * HIDDEN],
        )?;
        let mut net = Self { vars, optimizer, cell, out: vec![], bias: vec![], steps: 0 };
        net.take_up()?;
        Ok(net)
    }

    /// Makes the weights as they are now those that states are moved on by.
    fn take_up(&mut self) -> Result<()> {
        let flat = |var: &Var| var.flatten_all()?.to_vec1::<f32>();
        let [input, recurrent, bias, out, out_bias] = &self.vars;
        self.cell = Weights::new(&flat(input)?, &flat(recurrent)?, &flat(bias)?)?;
        (self.out, self.bias) = (flat(out)?, flat(out_bias)?);
        Ok(())
    }

    /// Mean negative logarithm of the chances of what followed, in `lessons` of places.
    fn loss(&self, lessons: &[Vec<usize>]) -> Result<Tensor> {
        let [input, recurrent, bias, out, out_bias] = &self.vars;
        let ticks = (0..LESSON)
            .map(|tick| lessons.iter().flat_map(|lesson| one_hot(lesson[tick])).collect());
        let sequence = Sequence::new(ticks.collect(), (0..LESSON).collect());
        let shown = input.apply_op3(recurrent, bias, sequence)?;
        let logits = shown.matmul(out)?.broadcast_add(out_bias)?;
        let followed = |tick: usize| lessons.iter().map(move |lesson| lesson[tick + 1] as u32);
        let followed: Vec<u32> = (0..LESSON).flat_map(followed).collect();
        let followed = Tensor::new(followed, &Device::Cpu)?.unsqueeze(D::Minus1)?;
        let chances = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
        chances.gather(&followed, D::Minus1)?.mean_all()?.neg()
    }

    fn chances(&self, state: &State) -> Vec<f64> {
        let mut logits: Vec<f64> = self.bias.iter().map(|bias| f64::from(*bias)).collect();
        for (shown, weights) in state.shown.iter().zip(self.out.chunks(WIDTH)) {
            logits
                .iter_mut()
                .zip(weights)
                .for_each(|(sum, weight)| *sum += f64::from(shown * weight));
        }
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        logits.iter_mut().for_each(|logit| *logit = (*logit - most).exp());
        let sum: f64 = logits.iter().sum();
        logits.into_iter().map(|chance| chance / sum).collect()
    }
}

fn one_hot(place: usize) -> [f32; WIDTH] {
    let mut input = [0.0; WIDTH];
    input[place] = 1.0;
    input
}

impl<K: Clone + Ord> NextKeys<K> {
    /// Knows nothing yet.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if the network cannot be made.
    pub fn new(seed: u64) -> std::result::Result<Self, ForecastError> {
        let mut random = StdRng::seed_from_u64(seed);
        let net = Net::new(&mut random).map_err(|error| numeric(&error))?;
        Ok(Self {
            places: BTreeMap::new(),
            keys: vec![None; WIDTH],
            calls: 0,
            seen: VecDeque::new(),
            net,
            state: State::zero(1, HIDDEN),
            random,
        })
    }

    /// Steps of learning so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.net.steps
    }

    /// Takes note of a call.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if the network fails.
    pub fn observe(&mut self, key: K) -> std::result::Result<(), ForecastError> {
        self.calls += 1;
        let place = self.place(key);
        self.seen.push_back(place);
        if self.seen.len() > SEEN_MAX {
            self.seen.pop_front();
        }
        self.net.cell.advance(&one_hot(place), &mut self.state).map_err(|error| numeric(&error))
    }

    /// The place of a key; that of the key that was not called for longest if there is no free one.
    fn place(&mut self, key: K) -> usize {
        if let Some(place) = self.places.get(&key) {
            self.keys[*place] = Some((key, self.calls));
            return *place;
        }
        let age = |place: &usize| self.keys[*place].as_ref().map_or(0, |(_, call)| *call);
        let place = (OTHERS + 1..WIDTH).min_by_key(age).unwrap_or(OTHERS);
        if let Some((former, _)) = self.keys[place].take() {
            self.places.remove(&former);
            self.seen.iter_mut().filter(|seen| **seen == place).for_each(|seen| *seen = OTHERS);
        }
        self.places.insert(key.clone(), place);
        self.keys[place] = Some((key, self.calls));
        place
    }

    /// Learns from what it has seen, in as many steps as `effort` has; does nothing after too few calls.
    ///
    /// # Errors
    /// [`ForecastError::Numeric`] if the network fails.
    pub fn learn(&mut self, effort: Effort<'_>) -> std::result::Result<(), ForecastError> {
        if self.seen.len() < SEEN_MIN || effort.steps_max == 0 {
            return Ok(());
        }
        self.train(effort).map_err(|error| numeric(&error))
    }

    fn train(&mut self, effort: Effort<'_>) -> Result<()> {
        let starts = self.seen.len() - LESSON;
        for _ in 0..effort.steps_max {
            effort.pause();
            let lesson = |random: &mut StdRng| {
                let from =
                    if random.random::<f64>() < NEWEST { starts - starts.div_ceil(4) } else { 0 };
                let start = random.random_range(from..starts);
                self.seen.range(start..=start + LESSON).copied().collect::<Vec<usize>>()
            };
            let lessons: Vec<_> = (0..LESSONS).map(|_| lesson(&mut self.random)).collect();
            let loss = self.net.loss(&lessons)?;
            let value = loss.to_scalar::<f32>()?;
            if !value.is_finite() {
                candle_core::bail!("loss is {value}");
            }
            self.net.optimizer.backward_step(&loss)?;
            self.net.steps += 1;
        }
        self.net.take_up()?;
        // What is remembered of the last calls, as these weights remember it.
        self.state = State::zero(1, HIDDEN);
        for place in self.seen.range(self.seen.len().saturating_sub(2 * LESSON)..) {
            self.net.cell.advance(&one_hot(*place), &mut self.state)?;
        }
        Ok(())
    }

    /// All keys with the chance that each is called next, the likeliest first; none as long as nothing was
    /// learned. What is left to one is the chance of keys that are not told apart.
    #[must_use]
    pub fn likeliest(&self) -> Vec<(K, f64)> {
        if self.net.steps == 0 {
            return Vec::new();
        }
        let chances = self.net.chances(&self.state);
        let known = self.keys.iter().zip(chances);
        let mut all: Vec<(K, f64)> =
            known.filter_map(|(key, chance)| Some((key.as_ref()?.0.clone(), chance))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }

    /// The chance that this key is called next; zero for one that is not told apart.
    #[must_use]
    pub fn chance(&self, key: &K) -> f64 {
        match self.places.get(key) {
            Some(place) if self.net.steps > 0 => self.net.chances(&self.state)[*place],
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes after the second of three calls depends on the first one.
    fn song(verse: usize) -> [u32; 3] {
        if verse.is_multiple_of(2) { [1, 5, 2] } else { [3, 5, 4] }
    }

    fn learned(calls: impl IntoIterator<Item = u32>) -> NextKeys<u32> {
        let mut next = NextKeys::new(7).unwrap();
        calls.into_iter().for_each(|key| next.observe(key).unwrap());
        next.learn(Effort::steps(300)).unwrap();
        next
    }

    #[test]
    fn what_lies_two_calls_back_is_remembered() {
        // By chance, so that nothing before it tells the last call of a verse.
        let verses = || {
            let mut random = StdRng::seed_from_u64(5);
            (0..300).flat_map(move |_| song(random.random_range(0..2)))
        };
        for (first, last) in [(1, 2), (3, 4)] {
            let next = learned(verses().chain([first, 5]));
            let likeliest = next.likeliest();
            assert_eq!(likeliest[0].0, last, "{likeliest:?}");
            assert!(likeliest[0].1 > 0.8, "{likeliest:?}");
            assert!((next.chance(&last) - likeliest[0].1).abs() < 1e-12);
        }
    }

    #[test]
    fn nothing_is_said_before_anything_was_learned_and_equal_calls_give_equal_chances() {
        let mut next = NextKeys::new(1).unwrap();
        (0..10).for_each(|key| next.observe(key).unwrap());
        next.learn(Effort::steps(5)).unwrap();
        assert_eq!((next.likeliest(), next.steps(), next.chance(&3)), (vec![], 0, 0.0));
        let calls = || (0..100).flat_map(song);
        assert_eq!(learned(calls()).likeliest(), learned(calls()).likeliest());
    }

    #[test]
    fn a_flood_of_new_keys_takes_no_more_room() {
        let mut next = learned((0..100).flat_map(song));
        (100..1_000).for_each(|key| next.observe(key).unwrap());
        next.learn(Effort::steps(2)).unwrap();
        let all = next.likeliest();
        assert_eq!(all.len(), KEYS_MAX);
        assert!(all.iter().all(|(key, _)| *key >= 100), "the newest stay");
        assert_eq!(next.chance(&1), 0.0);
        assert!(all.iter().map(|(_, chance)| chance).sum::<f64>() <= 1.0 + 1e-9);
    }
}
