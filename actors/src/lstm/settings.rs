//! Shape and training of the network, within bounds that keep it on one thread.

use foreshard_policy::config as policy;
use foreshard_policy::forecast::ForecastError;
use serde::{Deserialize, Serialize};

use super::net;

/// Most multiply-adds of one matrix product; gemm would use more threads from 48 * 48 * 256 on.
const PRODUCT_MAX: usize = 48 * 48 * 256 - 1;

/// Most elements of one tensor; candle would use more threads from 64 * 1,024 on.
const ELEMENTS_MAX: usize = 64 * 1024 - 1;

/// Widest state whose recurrent weights stay below [`ELEMENTS_MAX`].
const HIDDEN_MAX: usize = 127;

/// Shape and training of the network. It is stored with the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LstmConfig {
    /// Width of the recurrent state.
    pub hidden: usize,
    /// Most ticks of the past that a recurrent state has seen; it has seen at least half of them.
    pub window: usize,
    /// Windows per training step.
    pub batch: usize,
    /// Ticks of each window after which a forecast is learned.
    pub asked: usize,
    /// Learning rate of AdamW at the start.
    pub learning_rate: f64,
    /// Steps after which it has fallen to a half.
    pub anneal_steps: f64,
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
            window: 48,
            batch: 56,
            asked: 3,
            learning_rate: 3e-3,
            anneal_steps: 200.0,
            weight_decay: 1e-2,
            gradient_norm_max: 1.0,
            seed: 17,
        }
    }
}

impl LstmConfig {
    /// The network that the operator's settings ask for, with batches small enough for one thread.
    #[must_use]
    pub fn for_settings(settings: &policy::LstmConfig) -> Self {
        let mut config =
            Self { hidden: settings.hidden(), window: settings.window(), ..Self::default() };
        while config.batch > 1 && !config.is_for_one_thread() {
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
            ("lstm.batch", self.batch, 1, 256, "1 to 256"),
            ("lstm.asked", self.asked, 1, 16, "1 to 16"),
        ];
        for (name, value, min, max, bound) in whole {
            if !(min..=max).contains(&value) {
                return Err(setting(name, value as f64, bound));
            }
        }
        let real = [
            ("lstm.learning-rate", self.learning_rate, 1.0, "above 0, at most 1"),
            ("lstm.anneal-steps", self.anneal_steps, 1e9, "above 0, at most 1,000,000,000"),
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
        if !self.is_for_one_thread() {
            let bound = "smaller: with this hidden width a step would use more than one thread";
            return Err(setting("lstm.batch", self.batch as f64, bound));
        }
        Ok(self)
    }

    /// Series that a forecast takes at once, so that it too stays on its thread.
    pub(super) fn rows_max(&self) -> usize {
        let fits = |rows: usize| is_small(net::largest(self.hidden, rows, 1));
        (1..=256).take_while(|rows| fits(*rows)).last().unwrap_or(1)
    }

    fn is_for_one_thread(&self) -> bool {
        is_small(net::largest(self.hidden, self.batch, self.asked))
    }
}

fn is_small((product, elements): (usize, usize)) -> bool {
    product <= PRODUCT_MAX && elements <= ELEMENTS_MAX
}

fn setting(name: &'static str, value: f64, bound: &'static str) -> ForecastError {
    ForecastError::Setting { name, value, bound }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_bounds_is_named_and_big_tensors_are_refused() {
        let error = LstmConfig { window: 1, ..LstmConfig::default() }.checked().unwrap_err();
        assert_eq!(error.to_string(), "lstm.window is 1; it must be 2 to 2048");
        let error = LstmConfig { learning_rate: f64::NAN, ..LstmConfig::default() };
        let error = error.checked().unwrap_err();
        assert!(error.to_string().starts_with("lstm.learning-rate is NaN"), "{error}");
        let wide = LstmConfig { hidden: 100, batch: 256, ..LstmConfig::default() };
        assert!(wide.checked().unwrap_err().to_string().contains("more than one thread"));
        LstmConfig::default().checked().unwrap();
    }

    #[test]
    fn the_widest_network_gets_batches_that_stay_on_one_thread() {
        let widest = policy::LstmConfig::default().with_hidden(127).unwrap();
        let config = LstmConfig::for_settings(&widest).checked().unwrap();
        assert!((1..20).contains(&config.batch), "{config:?}");
        let more = LstmConfig { batch: config.batch + 1, ..config.clone() };
        assert!(more.checked().is_err());
        assert!(config.rows_max() >= config.batch);
    }
}
