//! The network: one recurrent cell for all series, and a head per horizon.
//!
//! A head adds a linear part, which reads the inputs of its horizon, and a small hidden layer, which
//! also reads the state of the cell. It answers a median and two spreads that cannot be negative, so
//! its quantiles are always in order.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::LstmConfig;
use super::cell::{Sequence, Weights};
use super::inputs::{PER_HORIZON, PER_TICK};

/// Quantiles that the network answers with, as it was trained.
pub(super) const QUANTILES: [f32; 3] = [0.1, 0.5, 0.9];

/// Width of a head's hidden layer.
const LAYER: usize = 24;

/// Most standard deviations that an input of a head is away from its mean.
const FAR_MAX: f32 = 6.0;

/// Most usual targets that a target is away from no change.
pub(super) const TARGET_MAX: f32 = 12.0;

/// Least and most that spreads are stretched by.
const STRETCH: [f32; 2] = [0.5, 2.0];

/// Variables of the cell, and of each head.
const OF_CELL: usize = 3;
const OF_HEAD: usize = 5;

/// Places of variables within a head.
const LINEAR: usize = 3;
const BIAS: usize = 4;

/// Largest matrix product in multiply-adds and largest tensor in elements for `windows` windows of
/// which each is asked for a forecast `asked` times.
pub(super) fn largest(hidden: usize, windows: usize, asked: usize) -> (usize, usize) {
    let (gates, seen) = (4 * hidden, hidden + PER_HORIZON);
    let rows = windows * asked;
    let product = (windows * gates * (hidden + PER_TICK)).max(rows * seen * LAYER);
    let elements = (windows * gates.max(hidden + PER_TICK)).max(rows * seen).max(gates * hidden);
    (product, elements)
}

/// How the numbers of one horizon are standardised; found once, when a network starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scaling {
    /// Of each input.
    pub(super) mean: Vec<f32>,
    /// One over the standard deviation of each input; zero for an input that does not vary.
    pub(super) inverse: Vec<f32>,
    /// Size of a usual target.
    pub(super) target: f32,
    /// Largest target that was seen, in usual ones: no quantile is further from no change.
    pub(super) reach: f32,
    /// What lower and upper spread are stretched by in forecasts, because spreads that were learned
    /// are too small for what was not learned from.
    pub(super) stretch: [f32; 2],
    /// Where the linear part started: a weight per input, and the median.
    pub(super) linear: Vec<f32>,
    /// The penalty it was found with.
    pub(super) penalty: f32,
}

impl Scaling {
    /// Nothing is known yet.
    pub(super) fn none() -> Self {
        Self {
            mean: vec![0.0; PER_HORIZON],
            inverse: vec![0.0; PER_HORIZON],
            target: 1.0,
            reach: TARGET_MAX,
            stretch: [1.0; 2],
            linear: vec![0.0; PER_HORIZON + 1],
            penalty: 0.0,
        }
    }

    /// Standardises rows of [`PER_HORIZON`] inputs in place.
    pub(super) fn apply(&self, inputs: &mut [f32]) {
        for row in inputs.chunks_mut(PER_HORIZON) {
            for ((input, mean), inverse) in row.iter_mut().zip(&self.mean).zip(&self.inverse) {
                *input = ((*input - mean) * inverse).clamp(-FAR_MAX, FAR_MAX);
            }
        }
    }
}

/// What a training step learns from. Rows of heads lie by time asked, then by window.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// One buffer of `windows * PER_TICK` per tick.
    pub(super) ticks: Vec<Vec<f32>>,
    /// Positions of `ticks` after which forecasts are made, ascending.
    pub(super) asked: Vec<usize>,
    /// By horizon.
    pub(super) heads: Vec<Rows>,
}

/// Rows of one horizon.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// `rows * PER_HORIZON`.
    pub(super) inputs: Vec<f32>,
    /// Changes in deviations of the series.
    pub(super) targets: Vec<f32>,
    /// Weight of each row in the loss; zero if its target is not to be seen.
    pub(super) weights: Vec<f32>,
}

impl Rows {
    /// Mean pinball loss of forecasting no change, and the weight that it is a mean over.
    pub(super) fn of_last(&self) -> (f32, f32) {
        let weighted = self.targets.iter().zip(&self.weights);
        let sum: f32 = weighted.map(|(target, weight)| 0.5 * target.abs() * weight).sum();
        let total: f32 = self.weights.iter().sum();
        (sum / total.max(1.0), total)
    }
}

/// Weights and how they are used.
#[derive(Clone, Debug)]
pub(super) struct Net {
    hidden: usize,
    /// Ticks ahead of each head, ascending.
    pub(super) horizons: Vec<usize>,
    /// By horizon.
    pub(super) scalings: Vec<Scaling>,
    /// Of the cell, then of head after head.
    vars: Vec<Var>,
}

impl Net {
    /// Draws fresh weights from the seed: candle cannot seed its CPU generator.
    pub(super) fn new(config: &LstmConfig, horizons: &[usize]) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(config.seed);
        let values = shapes(config.hidden, horizons.len()).into_iter().map(|(shape, bound)| {
            (0..shape.elem_count()).map(|_| bound * rng.random_range(-1.0_f32..=1.0)).collect()
        });
        let mut values: Vec<Vec<f32>> = values.collect();
        if let Some(bias) = values.get_mut(OF_CELL - 1) {
            // An open forget gate lets the cell remember from the start.
            bias[config.hidden..2 * config.hidden].fill(1.0);
        }
        let scalings = vec![Scaling::none(); horizons.len()];
        Self::from_values(config.hidden, horizons, scalings, values)
    }

    /// Takes weights up, in the order of [`values`](Self::values); another number is an error.
    pub(super) fn from_values(
        hidden: usize,
        horizons: &[usize],
        scalings: Vec<Scaling>,
        values: Vec<Vec<f32>>,
    ) -> Result<Self> {
        let shapes = shapes(hidden, horizons.len());
        if shapes.len() != values.len() {
            candle_core::bail!("{} variables; there must be {}", values.len(), shapes.len());
        }
        let vars = shapes.into_iter().zip(values).map(|((shape, _), values)| {
            Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)
        });
        let vars = vars.collect::<Result<_>>()?;
        Ok(Self { hidden, horizons: horizons.to_vec(), scalings, vars })
    }

    /// Every variable, in a fixed order.
    pub(super) fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// Which variables weight decay is meant for: matrices, but not the linear parts.
    pub(super) fn decays(&self, var: usize) -> bool {
        let linear = var >= OF_CELL && (var - OF_CELL) % OF_HEAD == LINEAR;
        self.vars.get(var).is_some_and(|var| var.rank() == 2) && !linear
    }

    /// The values of every variable.
    pub(super) fn values(&self) -> Result<Vec<Vec<f32>>> {
        self.vars.iter().map(|var| var.flatten_all()?.to_vec1()).collect()
    }

    /// A network of the same shape and scalings with other weights.
    pub(super) fn with_values(&self, values: Vec<Vec<f32>>) -> Result<Self> {
        Self::from_values(self.hidden, &self.horizons, self.scalings.clone(), values)
    }

    /// Replaces the linear part of a head: `[PER_HORIZON]` weights of the median in standardised
    /// units, and the starts of median and spreads.
    pub(super) fn set_linear(
        &mut self,
        head: usize,
        linear: &[f32],
        starts: [f32; 3],
    ) -> Result<()> {
        self.scalings[head].linear = linear.iter().copied().chain([starts[0]]).collect();
        let mut weights = vec![0.0; PER_HORIZON * QUANTILES.len()];
        for (row, weight) in weights.chunks_mut(QUANTILES.len()).zip(linear) {
            row[0] = *weight;
        }
        let bias = [starts[0], unsoftplus(starts[1]), unsoftplus(starts[2])];
        let vars = self.head(head);
        vars[LINEAR].set(&Tensor::from_vec(weights, vars[LINEAR].shape(), &Device::Cpu)?)?;
        vars[BIAS].set(&Tensor::new(&bias, &Device::Cpu)?)
    }

    /// The network with each linear part moved by as much as its start would be if it were `starts`.
    pub(super) fn moved(&self, starts: &[Vec<f32>]) -> Result<Self> {
        let mut values = self.values()?;
        for (head, (scaling, start)) in self.scalings.iter().zip(starts).enumerate() {
            let mut moves = start.iter().zip(&scaling.linear).map(|(new, old)| new - old);
            let of_head = OF_CELL + head * OF_HEAD;
            let weights = values[of_head + LINEAR].chunks_mut(QUANTILES.len());
            weights.zip(moves.by_ref()).for_each(|(row, by)| row[0] += by);
            values[of_head + BIAS][0] += moves.next().unwrap_or(0.0);
        }
        self.with_values(values)
    }

    fn head(&self, head: usize) -> &[Var] {
        &self.vars[OF_CELL + head * OF_HEAD..OF_CELL + (head + 1) * OF_HEAD]
    }

    /// The cell's weights, for moving states on.
    pub(super) fn cell(&self) -> Result<Weights> {
        let [input, recurrent, bias] =
            [0, 1, 2].map(|var: usize| self.vars[var].flatten_all()?.to_vec1::<f32>());
        Weights::new(&input?, &recurrent?, &bias?)
    }

    /// Median, lower and upper spread of one head, `[rows, 3]`, in units of the usual target.
    /// `inputs` are standardised.
    fn quantities(&self, head: usize, shown: &Tensor, inputs: &Tensor) -> Result<Tensor> {
        let vars = self.head(head);
        let layer = Tensor::cat(&[shown, inputs], 1)?
            .matmul(&vars[0])?
            .broadcast_add(&vars[1])?
            .relu()?
            .matmul(&vars[2])?;
        let out = (layer + inputs.matmul(&vars[LINEAR])?)?.broadcast_add(&vars[BIAS])?;
        let spreads = softplus(&out.narrow(1, 1, 2)?)?;
        Tensor::cat(&[&out.narrow(1, 0, 1)?, &spreads], 1)
    }

    /// What the heads say about their rows, `[rows, 3]` each, and the targets, `[rows, 1]`, all in
    /// units of the usual target.
    fn forward(&self, batch: &mut Batch) -> Result<Vec<(Tensor, Tensor)>> {
        let sequence =
            Sequence::new(std::mem::take(&mut batch.ticks), std::mem::take(&mut batch.asked));
        let shown = self.vars[0].apply_op3(&self.vars[1], &self.vars[2], sequence)?;
        let mut all = Vec::with_capacity(self.horizons.len());
        for (head, (rows, scaling)) in batch.heads.iter_mut().zip(&self.scalings).enumerate() {
            let n = rows.targets.len();
            scaling.apply(&mut rows.inputs);
            rows.targets.iter_mut().for_each(|target| {
                *target = (*target / scaling.target).clamp(-TARGET_MAX, TARGET_MAX);
            });
            let inputs = Tensor::from_slice(&rows.inputs, (n, PER_HORIZON), &Device::Cpu)?;
            let targets = Tensor::from_slice(&rows.targets, (n, 1), &Device::Cpu)?;
            all.push((self.quantities(head, &shown, &inputs)?, targets));
        }
        Ok(all)
    }

    /// Mean pinball loss of each head, in units of its usual target.
    fn losses(&self, batch: &mut Batch) -> Result<Vec<Tensor>> {
        let mut losses = Vec::with_capacity(self.horizons.len());
        for ((out, targets), rows) in self.forward(batch)?.into_iter().zip(&batch.heads) {
            let weights = Tensor::from_slice(&rows.weights, (rows.weights.len(), 1), &Device::Cpu)?;
            let total: f32 = rows.weights.iter().sum();
            let missed = (targets - out.narrow(1, 0, 1)?)?;
            let low = (&missed + out.narrow(1, 1, 1)?)?;
            let high = (&missed - out.narrow(1, 2, 1)?)?;
            let pinball = (pinball(&low, QUANTILES[0])?
                + pinball(&missed, QUANTILES[1])?
                + pinball(&high, QUANTILES[2])?)?;
            let share = f64::from(1.0 / (3.0 * total.max(1.0)));
            losses.push(((pinball * weights)?.sum_all()? * share)?);
        }
        Ok(losses)
    }

    /// Stretches the spreads of each head so that as many targets of `batches` lie beyond them as
    /// should; half of the way, because rows near each other are much alike.
    pub(super) fn stretch(&mut self, batches: impl Iterator<Item = Batch>) -> Result<()> {
        let mut ratios = vec![[Vec::new(), Vec::new()]; self.horizons.len()];
        for mut batch in batches {
            let all = self.forward(&mut batch)?;
            for ((ratios, rows), (out, _)) in ratios.iter_mut().zip(&batch.heads).zip(all) {
                let out: Vec<f32> = out.flatten_all()?.to_vec1()?;
                let seen = rows.targets.iter().zip(&rows.weights).zip(out.chunks(3));
                for ((target, _), out) in seen.filter(|((_, weight), _)| **weight > 0.0) {
                    ratios[0].push((out[0] - target) / out[1].max(1e-6));
                    ratios[1].push((target - out[0]) / out[2].max(1e-6));
                }
            }
        }
        for (scaling, ratios) in self.scalings.iter_mut().zip(&mut ratios) {
            for (stretch, ratios) in scaling.stretch.iter_mut().zip(ratios) {
                ratios.sort_by(f32::total_cmp);
                let place = (ratios.len() as f32 * QUANTILES[2]) as usize;
                let wanted = ratios.get(place).map_or(1.0, |ratio| ratio.max(0.0).sqrt());
                *stretch = wanted.clamp(STRETCH[0], STRETCH[1]);
            }
        }
        Ok(())
    }

    /// Mean over the heads of their losses, for the backward pass.
    pub(super) fn loss(&self, batch: &mut Batch) -> Result<Tensor> {
        let losses = self.losses(batch)?;
        let n = losses.len().max(1) as f64;
        let zero = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        losses.into_iter().try_fold(zero, |sum, loss| sum + loss)? / n
    }

    /// Loss of each head.
    pub(super) fn scored(&self, batch: &mut Batch) -> Result<Vec<f32>> {
        self.losses(batch)?.iter().map(Tensor::to_scalar).collect()
    }

    /// Quantiles of the change, in deviations of the series, for each row of inputs that are not yet
    /// standardised.
    pub(super) fn quantiles(
        &self,
        head: usize,
        shown: &[f32],
        inputs: &mut [f32],
    ) -> Result<Vec<[f32; 3]>> {
        let n = inputs.len() / PER_HORIZON;
        let scaling = &self.scalings[head];
        scaling.apply(inputs);
        let inputs = Tensor::from_slice(inputs, (n, PER_HORIZON), &Device::Cpu)?;
        let shown = Tensor::from_slice(shown, (n, self.hidden), &Device::Cpu)?;
        let out: Vec<f32> =
            self.quantities(head, &shown, &inputs)?.detach().flatten_all()?.to_vec1()?;
        let [low, high] = scaling.stretch;
        let row = |row: &[f32]| {
            let quantiles = [row[0] - low * row[1], row[0], row[0] + high * row[2]];
            quantiles.map(|change| change.clamp(-scaling.reach, scaling.reach) * scaling.target)
        };
        Ok(out.chunks_exact(QUANTILES.len()).map(row).collect())
    }
}

/// Pinball loss of what a quantile missed the target by.
fn pinball(missed: &Tensor, level: f32) -> Result<Tensor> {
    let level = f64::from(level);
    (missed * level)?.maximum(&(missed * (level - 1.0))?)
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

fn unsoftplus(y: f32) -> f32 {
    let y = y.clamp(1e-3, 20.0);
    y + (-(-y).exp_m1()).ln()
}

/// Shape and largest start weight of every variable.
fn shapes(hidden: usize, heads: usize) -> Vec<(Shape, f32)> {
    let (gates, seen, out) = (4 * hidden, hidden + PER_HORIZON, QUANTILES.len());
    let root = |n: usize| 1.0 / (n as f32).sqrt();
    let mut shapes = vec![
        (Shape::from((PER_TICK, gates)), root(hidden)),
        (Shape::from((hidden, gates)), root(hidden)),
        (Shape::from(gates), 0.0),
    ];
    for _ in 0..heads {
        shapes.extend([
            (Shape::from((seen, LAYER)), root(seen)),
            (Shape::from(LAYER), 0.0),
            (Shape::from((LAYER, out)), 0.02),
            (Shape::from((PER_HORIZON, out)), 0.0),
            (Shape::from(out), 0.0),
        ]);
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_network_keeps_its_forget_gates_open() {
        let net = Net::new(&LstmConfig { hidden: 6, ..LstmConfig::default() }, &[1]).unwrap();
        let bias = &net.values().unwrap()[OF_CELL - 1];
        assert!(bias[6..12].iter().all(|bias| *bias == 1.0));
        assert!(bias[..6].iter().chain(&bias[12..]).all(|bias| *bias == 0.0));
    }

    #[test]
    fn quantiles_are_in_order_whatever_the_inputs() {
        let mut net = Net::new(&LstmConfig { hidden: 6, ..LstmConfig::default() }, &[1]).unwrap();
        net.scalings[0].inverse.fill(1.0);
        net.set_linear(0, &[3.0; PER_HORIZON], [0.1, 0.0, 40.0]).unwrap();
        for value in [-1e9, -1.0, 0.0, 0.3, 1e9] {
            let rows = net.quantiles(0, &[0.5; 6], &mut [value; PER_HORIZON]).unwrap();
            assert!(rows[0].is_sorted() && rows[0].iter().all(|q| q.is_finite()), "{rows:?}");
        }
    }

    #[test]
    fn the_linear_part_and_the_starts_are_those_that_were_set() {
        let mut net = Net::new(&LstmConfig { hidden: 6, ..LstmConfig::default() }, &[1]).unwrap();
        let mut values = net.values().unwrap();
        values[OF_CELL + 2].fill(0.0); // Nothing from the hidden layer.
        net = net.with_values(values).unwrap();
        net.scalings[0].inverse.fill(1.0);
        net.scalings[0].target = 2.0;
        let mut linear = [0.0; PER_HORIZON];
        linear[4] = 0.5;
        net.set_linear(0, &linear, [0.25, 0.3, 1.5]).unwrap();
        let mut inputs = [0.0; PER_HORIZON];
        inputs[4] = 3.0;
        let [q10, q50, q90] = net.quantiles(0, &[0.7; 6], &mut inputs).unwrap()[0];
        let wanted = [2.0 * (1.75 - 0.3), 3.5, 2.0 * (1.75 + 1.5)];
        for (q, wanted) in [q10, q50, q90].into_iter().zip(wanted) {
            assert!((q - wanted).abs() < 1e-4, "{q} {wanted}");
        }
    }

    #[test]
    fn spreads_are_stretched_half_way_to_what_lies_beyond_them() {
        let mut net = Net::new(&LstmConfig { hidden: 6, ..LstmConfig::default() }, &[1]).unwrap();
        let mut values = net.values().unwrap();
        values[OF_CELL + 2].fill(0.0); // Nothing from the hidden layer.
        net = net.with_values(values).unwrap();
        net.set_linear(0, &[0.0; PER_HORIZON], [0.0, 1.0, 1.0]).unwrap();
        // Spread evenly from -4 to 4: one in ten is beyond 3.2 at either end; the last one is hidden.
        let batch = || {
            let targets: Vec<f32> =
                (0..1_000).map(|i| i as f32 / 125.0 - 4.0).chain([900.0]).collect();
            let mut weights = vec![1.0; targets.len()];
            weights[1_000] = 0.0;
            let inputs = vec![0.0; targets.len() * PER_HORIZON];
            let ticks = vec![vec![0.0; targets.len() * PER_TICK]];
            Batch { ticks, asked: vec![0], heads: vec![Rows { inputs, targets, weights }] }
        };
        net.stretch([batch(), batch()].into_iter()).unwrap();
        for stretch in net.scalings[0].stretch {
            assert!((stretch - 3.2_f32.sqrt()).abs() < 0.01, "{stretch}");
        }
    }
}
