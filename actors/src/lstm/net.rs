//! The network: candle's LSTM cell, a linear head for all horizons and quantiles, and its trainer.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::rnn::{LSTM, LSTMConfig, RNN};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::LstmConfig;
use super::inputs::{Inputs, PER_TICK, PER_WINDOW};

/// Quantiles that the network answers with, as it was trained.
pub(super) const QUANTILES: [f32; 3] = [0.1, 0.5, 0.9];

/// Names that candle's cell asks for.
const CELL: [&str; 3] = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"];
/// Names of the head.
const HEAD: [&str; 2] = ["head.weight", "head.bias"];

/// Largest start weight of the head: a fresh network forecasts about the last value.
const HEAD_START: f32 = 0.02;

/// Largest matrix product in multiply-adds and largest tensor in elements of one step.
pub(super) fn largest(config: &LstmConfig) -> (usize, usize) {
    let (gates, out) = (4 * config.hidden, config.horizon * QUANTILES.len());
    let features = head_inputs(config);
    let product = config.batch * (gates * config.hidden.max(PER_TICK)).max(features * out);
    let elements = (config.batch * gates)
        .max(config.batch * features.max(out))
        .max(gates * config.hidden.max(PER_TICK))
        .max(features * out);
    (product, elements)
}

fn head_inputs(config: &LstmConfig) -> usize {
    config.hidden + config.horizon + PER_WINDOW
}

/// Weights and how they are used.
#[derive(Debug)]
pub(super) struct Net {
    /// Every variable with its name, always in the same order.
    vars: Vec<(&'static str, Var)>,
    cell: LSTM,
    horizon: usize,
}

impl Net {
    /// Draws fresh weights from the seed: candle cannot seed its CPU generator.
    pub(super) fn new(config: &LstmConfig) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(config.seed);
        let mut tensors = HashMap::new();
        for (name, shape, bound) in shapes(config) {
            let mut values: Vec<f32> =
                (0..shape.elem_count()).map(|_| rng.random_range(-bound..=bound)).collect();
            if name == CELL[2] {
                values.fill(0.0);
                // Gate order is input, forget, cell, output; an open forget gate lets it remember.
                values[config.hidden..2 * config.hidden].fill(1.0);
            }
            tensors.insert(name.to_string(), Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Self::from_tensors(config, &tensors)
    }

    /// Takes weights up; a missing one or a wrong shape is an error.
    pub(super) fn from_tensors(
        config: &LstmConfig,
        tensors: &HashMap<String, Tensor>,
    ) -> Result<Self> {
        let mut vars = Vec::new();
        for (name, shape, _) in shapes(config) {
            let Some(tensor) = tensors.get(name) else {
                candle_core::bail!("weight {name} is missing");
            };
            if tensor.shape() != &shape || tensor.dtype() != DType::F32 {
                candle_core::bail!(
                    "weight {name} is {:?} {:?}; it must be F32 {shape:?}",
                    tensor.dtype(),
                    tensor.shape()
                );
            }
            vars.push((name, Var::from_tensor(tensor)?));
        }
        let named = vars.iter().map(|(name, var)| ((*name).to_string(), var.as_tensor().clone()));
        let builder = VarBuilder::from_tensors(named.collect(), DType::F32, &Device::Cpu);
        let cell = LSTM::new(
            PER_TICK,
            config.hidden,
            LSTMConfig { b_hh_init: None, ..LSTMConfig::default() },
            builder,
        )?;
        Ok(Self { vars, cell, horizon: config.horizon })
    }

    /// Every weight with its name, in a fixed order.
    pub(super) fn vars(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        self.vars.iter().map(|(name, var)| (*name, var.as_tensor()))
    }

    /// A copy of the weights, for [`restore`](Self::restore).
    pub(super) fn weights(&self) -> Result<Vec<Tensor>> {
        self.vars.iter().map(|(_, var)| var.as_tensor().copy()).collect()
    }

    /// Goes back to weights that were copied before.
    pub(super) fn restore(&self, weights: &[Tensor]) -> Result<()> {
        self.vars.iter().zip(weights).try_for_each(|((_, var), weight)| var.set(weight))
    }

    fn var(&self, name: &str) -> Result<&Tensor> {
        match self.vars.iter().find(|(known, _)| *known == name) {
            Some((_, var)) => Ok(var.as_tensor()),
            None => candle_core::bail!("weight {name} is missing"),
        }
    }

    /// `[rows, horizon * quantiles]`: standardised changes from the last value.
    fn forward(&self, inputs: &Inputs) -> Result<Tensor> {
        let mut state = self.cell.zero_state(inputs.rows)?;
        for tick in &inputs.ticks {
            let tick = Tensor::from_slice(tick, (inputs.rows, PER_TICK), &Device::Cpu)?;
            state = self.cell.step(&tick, &state)?;
        }
        let width = self.horizon + PER_WINDOW;
        let ahead = Tensor::from_slice(&inputs.ahead, (inputs.rows, width), &Device::Cpu)?;
        Tensor::cat(&[state.h(), &ahead], 1)?
            .matmul(self.var(HEAD[0])?)?
            .broadcast_add(self.var(HEAD[1])?)
    }

    /// Mean pinball loss over rows, horizons and quantiles.
    fn loss(&self, inputs: &Inputs) -> Result<Tensor> {
        let out = self.forward(inputs)?.reshape((inputs.rows, self.horizon, QUANTILES.len()))?;
        let shape = (inputs.rows, self.horizon, 1);
        let targets = Tensor::from_slice(&inputs.targets, shape, &Device::Cpu)?;
        let missed = targets.broadcast_sub(&out)?;
        let quantiles = Tensor::new(&QUANTILES, &Device::Cpu)?;
        let under = missed.broadcast_mul(&quantiles)?;
        let over = missed.broadcast_mul(&(quantiles - 1.0)?)?;
        under.maximum(&over)?.mean_all()
    }

    /// Row by row, tick by tick, quantile by quantile.
    pub(super) fn quantiles(&self, inputs: &Inputs) -> Result<Vec<f32>> {
        self.forward(inputs)?.detach().flatten_all()?.to_vec1()
    }
}

/// Name, shape and largest start weight of every variable.
fn shapes(config: &LstmConfig) -> [(&'static str, Shape, f32); 5] {
    let (gates, out) = (4 * config.hidden, config.horizon * QUANTILES.len());
    let start = 1.0 / (config.hidden as f32).sqrt();
    [
        (CELL[0], Shape::from((gates, PER_TICK)), start),
        (CELL[1], Shape::from((gates, config.hidden)), start),
        (CELL[2], Shape::from(gates), start),
        (HEAD[0], Shape::from((head_inputs(config), out)), HEAD_START),
        (HEAD[1], Shape::from(out), HEAD_START),
    ]
}

/// AdamW with its moments, and the clipping of gradients.
#[derive(Debug)]
pub(super) struct Trainer {
    optimizer: AdamW,
    norm_max: f64,
}

impl Trainer {
    pub(super) fn new(net: &Net, config: &LstmConfig) -> Result<Self> {
        let vars = net.vars.iter().map(|(_, var)| var.clone()).collect();
        let params = ParamsAdamW {
            lr: config.learning_rate,
            weight_decay: config.weight_decay,
            ..ParamsAdamW::default()
        };
        Ok(Self { optimizer: AdamW::new(vars, params)?, norm_max: config.gradient_norm_max })
    }

    /// One step; returns the loss before it. A loss or gradient that is no number changes nothing.
    pub(super) fn step(&mut self, net: &Net, inputs: &Inputs) -> Result<f64> {
        let loss = net.loss(inputs)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            candle_core::bail!("loss is {value}");
        }
        let mut gradients = loss.backward()?;
        self.clip(net, &mut gradients)?;
        self.optimizer.step(&gradients)?;
        Ok(value)
    }

    fn clip(&self, net: &Net, gradients: &mut GradStore) -> Result<()> {
        let mut squares = 0.0;
        for (_, tensor) in net.vars() {
            if let Some(gradient) = gradients.get(tensor) {
                squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let norm = squares.sqrt();
        if !norm.is_finite() {
            candle_core::bail!("norm of the gradient is {norm}");
        }
        if norm <= self.norm_max {
            return Ok(());
        }
        for (_, tensor) in net.vars() {
            if let Some(gradient) = gradients.remove(tensor) {
                gradients.insert(tensor, (gradient * (self.norm_max / norm))?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use foreshard_policy::ids::Tick;

    use super::super::inputs::Normal;
    use super::*;

    fn batch(config: &LstmConfig) -> Inputs {
        let counts: Vec<f64> = (0..60).map(|t| f64::from(t % 7) * 3.0).collect();
        let series = Normal::new(&counts, Tick(59), Some(7));
        let mut inputs = Inputs::new(config);
        for end in [20, 30, 40, 50] {
            inputs.push(&series, end);
            inputs.push_target(&series, end);
        }
        inputs
    }

    fn norm(net: &Net, gradients: &GradStore) -> f32 {
        let square = |tensor| {
            let gradient = gradients.get(tensor).unwrap();
            gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        net.vars().map(|(_, tensor)| square(tensor)).sum::<f32>().sqrt()
    }

    #[test]
    fn a_long_gradient_is_scaled_down_and_a_short_one_left_alone() {
        let config = LstmConfig { window: 10, batch: 4, ..LstmConfig::default() };
        let net = Net::new(&config).unwrap();
        let mut gradients = net.loss(&batch(&config)).unwrap().backward().unwrap();
        let long = norm(&net, &gradients);
        for (norm_max, expected) in [(long * 2.0, long), (long / 4.0, long / 4.0)] {
            let settings = LstmConfig { gradient_norm_max: f64::from(norm_max), ..config.clone() };
            Trainer::new(&net, &settings).unwrap().clip(&net, &mut gradients).unwrap();
            assert!((norm(&net, &gradients) / expected - 1.0).abs() < 1e-3);
        }
    }

    #[test]
    fn weights_that_were_copied_come_back_bit_by_bit() {
        let config = LstmConfig { window: 10, batch: 4, ..LstmConfig::default() };
        let (net, inputs) = (Net::new(&config).unwrap(), batch(&config));
        let (before, weights) = (net.quantiles(&inputs).unwrap(), net.weights().unwrap());
        Trainer::new(&net, &config).unwrap().step(&net, &inputs).unwrap();
        assert_ne!(net.quantiles(&inputs).unwrap(), before);
        net.restore(&weights).unwrap();
        assert_eq!(net.quantiles(&inputs).unwrap(), before);
    }

    #[test]
    fn every_weight_learns_from_every_step() {
        let config = LstmConfig { window: 10, batch: 4, ..LstmConfig::default() };
        let net = Net::new(&config).unwrap();
        let inputs = batch(&config);
        let gradients = net.loss(&inputs).unwrap().backward().unwrap();
        for (name, tensor) in net.vars() {
            let gradient = gradients.get(tensor).unwrap_or_else(|| panic!("{name}"));
            let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0, "{name}");
        }
    }

    #[test]
    fn a_fresh_network_keeps_its_forget_gates_open() {
        let config = LstmConfig::default();
        let net = Net::new(&config).unwrap();
        let bias = net.var(CELL[2]).unwrap().to_vec1::<f32>().unwrap();
        let hidden = config.hidden;
        assert!(bias[hidden..2 * hidden].iter().all(|b| *b == 1.0));
        assert!(bias[..hidden].iter().chain(&bias[2 * hidden..]).all(|b| *b == 0.0));
    }
}
