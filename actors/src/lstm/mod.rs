//! The LSTM member: one small recurrent network, shared by every series, that learns their rhythm.
//!
//! It works on `log1p` of the counts, standardised by each series' own past, sees the phase and the
//! former seasons if a season is known, and answers several horizons at once with three quantiles
//! (pinball loss). Equal seeds give equal weights, bit by bit.
//!
//! # Threads
//! candle has no per-call thread setting: it reads `RAYON_NUM_THREADS` for matrix products and
//! `CANDLE_NUM_THREADS` for element-wise work. An operator may set both to 1. The member does not rely
//! on it: gemm goes parallel from 589,824 multiply-adds and candle's element-wise kernels from 65,536
//! elements, and [`LstmConfig::checked`] keeps every tensor of a step below both. So a fit
//! uses the thread that it runs on and no other.

mod inputs;
mod net;
mod state;

use foreshard_policy::config as policy;
use foreshard_policy::forecast::{FitReport, ForecastError, Member, Quantiles, Window};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use self::inputs::{Inputs, Normal};
use self::net::{Net, Trainer};

/// Name of the member in weights and scores.
pub const NAME: &str = "lstm";

/// Fewest ticks of a series from which the network forecasts; below, the last value is the forecast.
pub const TICKS_MIN: usize = 8;

/// Most multiply-adds of one matrix product; gemm would use more threads from 48 * 48 * 256 on.
const PRODUCT_MAX: usize = 48 * 48 * 256 - 1;

/// Most elements of one tensor; candle would use more threads from 64 * 1,024 on.
const ELEMENTS_MAX: usize = 64 * 1024 - 1;

/// Widest state whose recurrent weights stay below [`ELEMENTS_MAX`].
const HIDDEN_MAX: usize = 127;

/// Most ticks that a network answers at once, however long the forecast.
const HORIZON_MAX: usize = 16;

/// Series that the network is used for, the busiest; the others get their last value.
const SERIES_MAX: usize = 1_000;

/// Losses that the report averages over at both ends of a fit, because one batch is noisy.
const LOSS_SPAN: usize = 8;

/// Shape and training of the network. It is stored with the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LstmConfig {
    /// Width of the recurrent state.
    pub hidden: usize,
    /// Ticks of the past that the network reads.
    pub window: usize,
    /// Ticks that it forecasts at once; longer forecasts go on from its own median.
    pub horizon: usize,
    /// Windows per training step, and series per pass of a forecast.
    pub batch: usize,
    /// Learning rate of AdamW.
    pub learning_rate: f64,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// Largest norm of a step's gradient; a longer one is scaled down to it.
    pub gradient_norm_max: f64,
    /// Seed of weights and samples.
    pub seed: u64,
}

impl Default for LstmConfig {
    fn default() -> Self {
        Self {
            hidden: 24,
            window: 32,
            horizon: 8,
            batch: 32,
            learning_rate: 5e-3,
            weight_decay: 1e-3,
            gradient_norm_max: 1.0,
            seed: 17,
        }
    }
}

impl LstmConfig {
    /// The network that the operator's settings ask for, forecasting `horizon_ticks`, with batches
    /// small enough for one thread.
    #[must_use]
    pub fn for_settings(settings: &policy::LstmConfig, horizon_ticks: usize) -> Self {
        let mut config = Self {
            hidden: settings.hidden(),
            window: settings.window(),
            horizon: horizon_ticks.clamp(1, HORIZON_MAX),
            ..Self::default()
        };
        while config.batch > 1 && net::largest(&config).0 > PRODUCT_MAX {
            config.batch -= 1;
        }
        config
    }

    /// This configuration, if every value is in its bounds.
    ///
    /// # Errors
    /// [`ForecastError::Setting`] names the value that is not.
    pub fn checked(self) -> Result<Self, ForecastError> {
        let whole = [
            ("lstm.hidden", self.hidden, 1, HIDDEN_MAX, "1 to 127"),
            ("lstm.window", self.window, 2, 2_048, "2 to 2048"),
            ("lstm.horizon", self.horizon, 1, 64, "1 to 64"),
            ("lstm.batch", self.batch, 1, 256, "1 to 256"),
        ];
        for (name, value, min, max, bound) in whole {
            if !(min..=max).contains(&value) {
                return Err(setting(name, value as f64, bound));
            }
        }
        let real = [
            ("lstm.learning-rate", self.learning_rate, 1.0, "above 0, at most 1"),
            ("lstm.gradient-norm-max", self.gradient_norm_max, 1e6, "above 0, at most 1,000,000"),
        ];
        for (name, value, max, bound) in real {
            if !(value > 0.0 && value <= max) {
                return Err(setting(name, value, bound));
            }
        }
        if !(0.0..=1.0).contains(&self.weight_decay) {
            return Err(setting("lstm.weight-decay", self.weight_decay, "0 to 1"));
        }
        let (product, elements) = net::largest(&self);
        if product > PRODUCT_MAX || elements > ELEMENTS_MAX {
            let bound = "smaller: with this hidden width a step would use more than one thread";
            return Err(setting("lstm.batch", self.batch as f64, bound));
        }
        Ok(self)
    }
}

fn setting(name: &'static str, value: f64, bound: &'static str) -> ForecastError {
    ForecastError::Setting { name, value, bound }
}

fn numeric(error: &candle_core::Error) -> ForecastError {
    ForecastError::Numeric { member: NAME, reason: error.to_string() }
}

/// Places of the busiest series with at least `ticks_min` ticks, in their order.
fn busiest(window: &Window, ticks_min: usize) -> Vec<usize> {
    let long = |place: &usize| window.series[*place].len() >= ticks_min;
    let mut places: Vec<usize> = (0..window.series.len()).filter(long).collect();
    if places.len() > SERIES_MAX {
        let calls: Vec<f64> = window.series.iter().map(|series| series.iter().sum()).collect();
        places.sort_by(|a, b| calls[*b].total_cmp(&calls[*a]).then(a.cmp(b)));
        places.truncate(SERIES_MAX);
        places.sort_unstable();
    }
    places
}

/// The member. Cheap to make; learns in [`fit`](Member::fit).
#[derive(Debug)]
pub struct Lstm {
    config: LstmConfig,
    net: Net,
    trainer: Option<Trainer>,
    steps: u64,
}

impl Lstm {
    /// A network with fresh weights, drawn from the seed.
    ///
    /// # Errors
    /// [`ForecastError::Setting`] if a value is out of bounds; [`ForecastError::Numeric`] if candle fails.
    pub fn new(config: LstmConfig) -> Result<Self, ForecastError> {
        let config = config.checked()?;
        let net = Net::new(&config).map_err(|error| numeric(&error))?;
        Ok(Self { config, net, trainer: None, steps: 0 })
    }

    /// Training steps made so far, over all fits.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn train(&mut self, window: &Window, steps: u32) -> Result<FitReport, candle_core::Error> {
        let series: Vec<Normal<'_>> = busiest(window, TICKS_MIN + self.config.horizon)
            .into_iter()
            .map(|place| Normal::new(&window.series[place], window.at, window.season_ticks))
            .collect();
        if series.is_empty() {
            return Ok(FitReport::default());
        }
        let mut rng = StdRng::seed_from_u64(self.config.seed ^ self.steps.rotate_left(32));
        let mut trainer = match self.trainer.take() {
            Some(trainer) => trainer,
            None => Trainer::new(&self.net, &self.config)?,
        };
        let mut losses = Vec::with_capacity(steps as usize);
        let mut inputs = Inputs::new(&self.config);
        for _ in 0..steps {
            inputs.clear();
            for _ in 0..self.config.batch {
                let one = &series[rng.random_range(0..series.len())];
                let end = rng.random_range(TICKS_MIN - 1..one.len() - self.config.horizon);
                inputs.push(one, end);
                inputs.push_target(one, end);
            }
            losses.push(trainer.step(&self.net, &inputs)?);
            self.steps += 1;
        }
        self.trainer = Some(trainer);
        let span = LOSS_SPAN.min(losses.len());
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        Ok(FitReport {
            steps,
            loss_first: mean(&losses[..span]),
            loss_last: mean(&losses[losses.len() - span..]),
        })
    }

    /// The next `config.horizon` ticks of each of `series`, at most `config.batch` of them.
    fn block(&self, series: &[Normal<'_>]) -> Result<Vec<Vec<Quantiles>>, candle_core::Error> {
        let mut inputs = Inputs::new(&self.config);
        for one in series {
            inputs.push(one, one.len() - 1);
        }
        let rows = self.net.quantiles(&inputs)?;
        Ok(series
            .iter()
            .zip(rows.chunks(self.config.horizon * net::QUANTILES.len()))
            .map(|(one, row)| row.chunks(net::QUANTILES.len()).map(|q| one.counts(q)).collect())
            .collect())
    }

    fn rolled(
        &self,
        window: &Window,
        places: &[usize],
        horizon: usize,
    ) -> Result<Vec<Vec<Quantiles>>, candle_core::Error> {
        let mut past: Vec<Vec<f64>> = places.iter().map(|&i| window.series[i].clone()).collect();
        let mut out = vec![Vec::with_capacity(horizon + self.config.horizon); places.len()];
        let mut at = window.at;
        for _ in 0..horizon.div_ceil(self.config.horizon) {
            let normal: Vec<Normal<'_>> =
                past.iter().map(|s| Normal::new(s, at, window.season_ticks)).collect();
            let blocks = self.block(&normal)?;
            drop(normal);
            for ((past, out), block) in past.iter_mut().zip(&mut out).zip(blocks) {
                past.extend(block.iter().map(|q| q.q50));
                out.extend(block);
            }
            at.0 += self.config.horizon as u64;
        }
        Ok(out)
    }
}

impl Member for Lstm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fit(&mut self, window: &Window, steps_max: u32) -> Result<FitReport, ForecastError> {
        if steps_max == 0 {
            return Ok(FitReport::default());
        }
        let (weights, steps) = (self.net.weights().map_err(|error| numeric(&error))?, self.steps);
        match self.train(window, steps_max) {
            Ok(report) => Ok(report),
            Err(error) => {
                // The moments of the optimizer belong to the weights that are given up.
                self.trainer = None;
                self.steps = steps;
                self.net.restore(&weights).map_err(|error| numeric(&error))?;
                Err(numeric(&error))
            }
        }
    }

    fn forecast(
        &self,
        window: &Window,
        horizon: usize,
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        let mut out: Vec<Vec<Quantiles>> = window
            .series
            .iter()
            .map(|series| {
                let last = series.last().copied().unwrap_or(0.0).max(0.0);
                vec![Quantiles { q10: last, q50: last, q90: last }; horizon]
            })
            .collect();
        if self.steps == 0 || horizon == 0 {
            return Ok(out);
        }
        for places in busiest(window, TICKS_MIN).chunks(self.config.batch) {
            let rolled = self.rolled(window, places, horizon).map_err(|error| numeric(&error))?;
            for (&place, mut calls) in places.iter().zip(rolled) {
                calls.truncate(horizon);
                out[place] = calls;
            }
        }
        Ok(out)
    }

    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        state::write(&self.config, self.steps, &self.net)
    }

    /// Also refuses weights of another shape than this member's settings ask for.
    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        let (stored, steps, net) = state::read(state)?;
        let shape = |config: &LstmConfig| (config.hidden, config.window, config.horizon);
        if shape(&stored) != shape(&self.config) {
            return Err(ForecastError::State {
                member: NAME,
                reason: format!(
                    "its (hidden, window, horizon) is {:?}; the settings ask for {:?}",
                    shape(&stored),
                    shape(&self.config)
                ),
            });
        }
        (self.net, self.steps, self.trainer) = (net, steps, None);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
