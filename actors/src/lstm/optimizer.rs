//! AdamW with moments that can be saved, and an average of the weights.
//!
//! candle's own keeps its moments to itself; a run that was interrupted could not go on as if it had
//! not been.
//!
//! # Source
//! Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2; the average is
//! Polyak's, with exponential weights.

use candle_core::{Device, Result, Tensor};

use super::LstmConfig;
use super::net::{Batch, Net};

/// How fast the moments forget.
const FIRST: f64 = 0.9;
const SECOND: f64 = 0.999;

/// Keeps the division by the second moment finite.
const EPSILON: f64 = 1e-8;

/// Steps within which the learning rate rises to its start.
const WARM_UP_STEPS: f64 = 20.0;

/// Least share of its start that the learning rate falls to.
const RATE_SHARE_MIN: f64 = 0.05;

/// Share of the average that each step keeps, once it has seen enough of them.
const AVERAGE_KEPT: f64 = 0.97;

/// The state of training.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Optimizer {
    /// Steps made.
    pub(super) steps: u64,
    /// First and second moment, and the average, each in the order of the network's variables.
    pub(super) first: Vec<Vec<f32>>,
    pub(super) second: Vec<Vec<f32>>,
    pub(super) average: Vec<Vec<f32>>,
}

impl Optimizer {
    /// Starts at the weights of `net`.
    pub(super) fn new(net: &Net) -> Result<Self> {
        let average = net.values()?;
        let zero: Vec<Vec<f32>> = average.iter().map(|values| vec![0.0; values.len()]).collect();
        Ok(Self { steps: 0, first: zero.clone(), second: zero, average })
    }

    /// One step; returns the loss before it. A loss or gradient that is no number changes nothing
    /// and is an error.
    pub(super) fn step(
        &mut self,
        net: &Net,
        config: &LstmConfig,
        batch: &mut Batch,
    ) -> Result<f64> {
        let loss = net.loss(batch)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            candle_core::bail!("loss is {value}");
        }
        let store = loss.backward()?;
        let gradients = net.vars().iter().map(|var| match store.get(var) {
            Some(gradient) => gradient.flatten_all()?.to_vec1(),
            None => Ok(vec![0.0; var.elem_count()]),
        });
        let mut gradients = gradients.collect::<Result<Vec<Vec<f32>>>>()?;
        clip(&mut gradients, config.gradient_norm_max)?;
        self.apply(net, config, &gradients)?;
        Ok(value)
    }

    fn apply(&mut self, net: &Net, config: &LstmConfig, gradients: &[Vec<f32>]) -> Result<()> {
        let n = (self.steps + 1) as f64;
        let rate = learning_rate(config, self.steps);
        let [first_share, second_share] = [FIRST, SECOND].map(|kept| 1.0 - kept.powf(n));
        let kept = AVERAGE_KEPT.min(n / (n + 10.0)) as f32;
        let mut all = net.values()?;
        for (var, (values, gradients)) in all.iter_mut().zip(gradients).enumerate() {
            let decay = if net.decays(var) { rate * config.weight_decay } else { 0.0 };
            let moments = self.first[var].iter_mut().zip(&mut self.second[var]);
            for ((value, gradient), (first, second)) in
                values.iter_mut().zip(gradients).zip(moments)
            {
                let gradient = f64::from(*gradient);
                *first = (FIRST * f64::from(*first) + (1.0 - FIRST) * gradient) as f32;
                *second =
                    (SECOND * f64::from(*second) + (1.0 - SECOND) * gradient * gradient) as f32;
                let size = (f64::from(*second) / second_share).sqrt() + EPSILON;
                let change = rate * (f64::from(*first) / first_share) / size;
                *value = (f64::from(*value) * (1.0 - decay) - change) as f32;
            }
        }
        for ((var, values), average) in net.vars().iter().zip(all).zip(&mut self.average) {
            for (average, value) in average.iter_mut().zip(&values) {
                *average = kept * *average + (1.0 - kept) * value;
            }
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
        }
        self.steps += 1;
        Ok(())
    }
}

/// Rises over the first steps, then falls with the root of the steps.
fn learning_rate(config: &LstmConfig, steps: u64) -> f64 {
    let steps = steps as f64;
    let rise = ((steps + 1.0) / WARM_UP_STEPS).min(1.0);
    let fall = (1.0 / (1.0 + steps / config.anneal_steps)).max(RATE_SHARE_MIN);
    config.learning_rate * rise * fall
}

/// Scales all gradients down to a norm of `norm_max`, if they are longer.
fn clip(gradients: &mut [Vec<f32>], norm_max: f64) -> Result<()> {
    let squares: f64 = gradients.iter().flatten().map(|g| f64::from(*g).powi(2)).sum();
    let norm = squares.sqrt();
    if !norm.is_finite() {
        candle_core::bail!("norm of the gradient is {norm}");
    }
    if norm > norm_max {
        let factor = (norm_max / norm) as f32;
        gradients.iter_mut().flatten().for_each(|gradient| *gradient *= factor);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lstm::inputs::{PER_HORIZON, PER_TICK};
    use crate::lstm::net::Rows;

    fn config() -> LstmConfig {
        LstmConfig { hidden: 4, ..LstmConfig::default() }
    }

    fn batch() -> Batch {
        let number = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 9.0;
        let rows = Rows {
            inputs: (0..6 * PER_HORIZON).map(number).collect(),
            targets: (0..6).map(number).collect(),
            weights: vec![1.0; 6],
        };
        Batch {
            ticks: (0..5).map(|t| (0..3 * PER_TICK).map(|i| number(i + t)).collect()).collect(),
            asked: vec![2, 4],
            heads: vec![rows],
        }
    }

    /// A network whose inputs all count.
    fn net() -> Net {
        let mut net = Net::new(&config(), &[1]).unwrap();
        net.scalings[0].inverse.fill(1.0);
        net
    }

    #[test]
    fn every_weight_learns_from_every_step() {
        let net = net();
        let before = net.values().unwrap();
        let settings = LstmConfig { weight_decay: 0.0, ..config() };
        Optimizer::new(&net).unwrap().step(&net, &settings, &mut batch()).unwrap();
        for (var, (before, after)) in before.iter().zip(net.values().unwrap()).enumerate() {
            assert_ne!(*before, after, "variable {var}");
        }
    }

    #[test]
    fn a_step_goes_downhill_as_adamw_asks_for() {
        let net = net();
        let settings = config();
        let before = net.values().unwrap();
        let mut optimizer = Optimizer::new(&net).unwrap();
        let gradients: Vec<Vec<f32>> =
            before.iter().map(|values| vec![0.5; values.len()]).collect();
        optimizer.apply(&net, &settings, &gradients).unwrap();
        // With equal gradients the first step is the learning rate, whatever their size.
        let rate = learning_rate(&settings, 0) as f32;
        for (var, (before, after)) in before.iter().zip(net.values().unwrap()).enumerate() {
            let decay = if net.decays(var) { rate * settings.weight_decay as f32 } else { 0.0 };
            let wanted = before[0] * (1.0 - decay) - rate;
            assert!((after[0] - wanted).abs() < 1e-6, "variable {var}: {} {wanted}", after[0]);
        }
        let loss = |net: &Net| net.scored(&mut batch()).unwrap()[0];
        let start = loss(&net);
        for _ in 0..40 {
            optimizer.step(&net, &settings, &mut batch()).unwrap();
        }
        assert!(loss(&net) < 0.8 * start, "{start} {}", loss(&net));
    }

    #[test]
    fn a_long_gradient_is_scaled_down_and_a_short_one_left_alone() {
        let gradients = [vec![3.0_f32], vec![4.0]];
        for (norm_max, wanted) in [(10.0, [3.0, 4.0]), (2.5, [1.5, 2.0])] {
            let mut clipped = gradients.to_vec();
            clip(&mut clipped, norm_max).unwrap();
            assert_eq!([clipped[0][0], clipped[1][0]], wanted);
        }
        assert!(clip(&mut [vec![f32::NAN]], 1.0).is_err());
    }

    #[test]
    fn a_loss_that_is_no_number_changes_nothing() {
        let net = net();
        let before = net.values().unwrap();
        let mut optimizer = Optimizer::new(&net).unwrap();
        let mut broken = batch();
        broken.heads[0].targets[0] = f32::NAN;
        assert!(optimizer.step(&net, &config(), &mut broken).is_err());
        assert_eq!(net.values().unwrap(), before);
        assert_eq!(optimizer.steps, 0);
    }

    #[test]
    fn the_learning_rate_rises_and_falls_and_stays_above_zero() {
        let rate = |steps| learning_rate(&config(), steps) / config().learning_rate;
        assert!(rate(0) < 0.1 && rate(30) > 0.8);
        assert!((rate(200) - 0.5).abs() < 0.01 && rate(1 << 40) == RATE_SHARE_MIN);
    }
}
