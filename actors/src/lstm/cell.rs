//! The recurrent cell: a whole sequence as one operation with a backward pass of its own.
//!
//! candle records every operation of every step; over a sequence that costs more than the
//! arithmetic. Here the steps are plain loops around one matrix product each, and the gradients of
//! all steps are summed up in place. No product is larger than that of one step, so that none is
//! spread over threads.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};

/// The recurrent state of a batch of rows.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// What the cell shows, `rows * hidden`.
    pub(super) shown: Vec<f32>,
    /// What it remembers, `rows * hidden`.
    pub(super) kept: Vec<f32>,
}

impl State {
    /// Nothing seen yet.
    pub(super) fn zero(rows: usize, hidden: usize) -> Self {
        Self { shown: vec![0.0; rows * hidden], kept: vec![0.0; rows * hidden] }
    }

    /// The state of one row.
    pub(super) fn row(&self, row: usize, hidden: usize) -> Self {
        let span = row * hidden..(row + 1) * hidden;
        Self { shown: self.shown[span.clone()].to_vec(), kept: self.kept[span].to_vec() }
    }

    /// Replaces the state of one row.
    pub(super) fn set_row(&mut self, row: usize, of: &Self) {
        let hidden = of.shown.len();
        let span = row * hidden..(row + 1) * hidden;
        self.shown[span.clone()].copy_from_slice(&of.shown);
        self.kept[span].copy_from_slice(&of.kept);
    }
}

/// Input and recurrent weights as one matrix `[inputs + hidden, 4 * hidden]`, and the bias. Gates lie
/// in the order input, forget, cell, output.
#[derive(Debug)]
pub(super) struct Weights {
    joined: Tensor,
    bias: Vec<f32>,
    inputs: usize,
    hidden: usize,
}

/// What the backward pass needs of one step.
#[derive(Debug)]
struct Step {
    /// `[rows, inputs + hidden]`.
    input: Tensor,
    /// After their activations, `rows * 4 * hidden`.
    gates: Vec<f32>,
    /// What was remembered before the step, `rows * hidden`.
    before: Vec<f32>,
    /// Hyperbolic tangent of what is remembered after it.
    squashed: Vec<f32>,
}

impl Weights {
    /// Joins `[inputs, 4 * hidden]`, `[hidden, 4 * hidden]` and `[4 * hidden]`.
    pub(super) fn new(input: &[f32], recurrent: &[f32], bias: &[f32]) -> Result<Self> {
        let gates = bias.len();
        let (inputs, hidden) = (input.len() / gates.max(1), recurrent.len() / gates.max(1));
        let joined = [input, recurrent].concat();
        let joined = Tensor::from_vec(joined, (inputs + hidden, gates), &Device::Cpu)?;
        Ok(Self { joined, bias: bias.to_vec(), inputs, hidden })
    }

    /// Width of the state.
    pub(super) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Moves `state` on by one tick of every row; `ticks` is `rows * inputs`.
    pub(super) fn advance(&self, ticks: &[f32], state: &mut State) -> Result<()> {
        self.step(ticks, state).map(drop)
    }

    fn step(&self, ticks: &[f32], state: &mut State) -> Result<Step> {
        let (rows, width) = (ticks.len() / self.inputs, self.inputs + self.hidden);
        let mut input = Vec::with_capacity(rows * width);
        for (tick, shown) in ticks.chunks(self.inputs).zip(state.shown.chunks(self.hidden)) {
            input.extend_from_slice(tick);
            input.extend_from_slice(shown);
        }
        let input = Tensor::from_vec(input, (rows, width), &Device::Cpu)?;
        let mut gates: Vec<f32> = input.matmul(&self.joined)?.flatten_all()?.to_vec1()?;
        let before = state.kept.clone();
        let mut squashed = vec![0.0; rows * self.hidden];
        for (((gates, kept), shown), squashed) in gates
            .chunks_mut(4 * self.hidden)
            .zip(state.kept.chunks_mut(self.hidden))
            .zip(state.shown.chunks_mut(self.hidden))
            .zip(squashed.chunks_mut(self.hidden))
        {
            gates.iter_mut().zip(&self.bias).for_each(|(gate, bias)| *gate += bias);
            activate(gates, kept, shown, squashed);
        }
        Ok(Step { input, gates, before, squashed })
    }
}

/// One row: activates the gates, and moves what is remembered and shown on.
fn activate(gates: &mut [f32], kept: &mut [f32], shown: &mut [f32], squashed: &mut [f32]) {
    let hidden = kept.len();
    let (enter, rest) = gates.split_at_mut(hidden);
    let (forget, rest) = rest.split_at_mut(hidden);
    let (cell, out) = rest.split_at_mut(hidden);
    let squashed = &mut squashed[..hidden];
    let (shown, out) = (&mut shown[..hidden], &mut out[..hidden]);
    for j in 0..hidden {
        enter[j] = sigmoid(enter[j]);
        forget[j] = sigmoid(forget[j]);
        cell[j] = tanh(cell[j]);
        out[j] = sigmoid(out[j]);
        kept[j] = forget[j] * kept[j] + enter[j] * cell[j];
        squashed[j] = tanh(kept[j]);
        shown[j] = out[j] * squashed[j];
    }
}

/// Hyperbolic tangent as Eigen's rational function, which compilers turn into vector code; exact to
/// a few units in the last place.
fn tanh(x: f32) -> f32 {
    let x = x.clamp(-7.9, 7.9);
    let y = x * x;
    let odd = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619e-4,
        4.893_525e-3,
    ];
    let even = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    let polynomial = |terms: &[f32]| terms.iter().fold(0.0, |sum, term| sum * y + term);
    x * polynomial(&odd) / polynomial(&even)
}

fn sigmoid(x: f32) -> f32 {
    0.5 * tanh(0.5 * x) + 0.5
}

/// The cell over `ticks`, from a zero state: `(input, recurrent, bias)` to what is shown after some
/// of the ticks, `[asked * rows, hidden]`.
#[derive(Debug)]
pub(super) struct Sequence {
    ticks: Vec<Vec<f32>>,
    /// Positions of `ticks` after which the state is asked for, ascending.
    asked: Vec<usize>,
    steps: Mutex<Vec<Step>>,
}

impl Sequence {
    /// `ticks`: one buffer of `rows * inputs` per tick.
    pub(super) fn new(ticks: Vec<Vec<f32>>, asked: Vec<usize>) -> Self {
        Self { ticks, asked, steps: Mutex::default() }
    }

    fn run(&self, weights: &Weights) -> Result<(Vec<f32>, Vec<Step>)> {
        let rows = self.ticks.first().map_or(0, |tick| tick.len() / weights.inputs);
        let mut state = State::zero(rows, weights.hidden);
        let mut steps = Vec::with_capacity(self.ticks.len());
        let mut out = Vec::with_capacity(self.asked.len() * rows * weights.hidden);
        for (position, tick) in self.ticks.iter().enumerate() {
            steps.push(weights.step(tick, &mut state)?);
            if self.asked.binary_search(&position).is_ok() {
                out.extend_from_slice(&state.shown);
            }
        }
        Ok((out, steps))
    }
}

fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("weights of the cell must be contiguous"),
    }
}

impl CustomOp3 for Sequence {
    fn name(&self) -> &'static str {
        "lstm-sequence"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        of_input: &Layout,
        recurrent: &CpuStorage,
        of_recurrent: &Layout,
        bias: &CpuStorage,
        of_bias: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let weights = Weights::new(
            floats(input, of_input)?,
            floats(recurrent, of_recurrent)?,
            floats(bias, of_bias)?,
        )?;
        let (out, steps) = self.run(&weights)?;
        let shape = Shape::from((out.len() / weights.hidden, weights.hidden));
        *self.steps.lock().unwrap_or_else(PoisonError::into_inner) = steps;
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(
        &self,
        input: &Tensor,
        recurrent: &Tensor,
        bias: &Tensor,
        _shown: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (inputs, gates) = input.dims2()?;
        let hidden = gates / 4;
        let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
        let rows = gradient.len() / hidden / self.asked.len().max(1);
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let mut back = Back::new(recurrent, inputs, rows)?;
        for (position, step) in steps.iter().enumerate().rev() {
            if let Ok(asked) = self.asked.binary_search(&position) {
                let part = &gradient[asked * rows * hidden..(asked + 1) * rows * hidden];
                back.shown.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            back.step(step)?;
        }
        let recurrent = back.weights.split_off(inputs * gates);
        Ok((
            Some(Tensor::from_vec(back.weights, input.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(recurrent, (hidden, gates), &Device::Cpu)?),
            Some(Tensor::from_vec(back.bias, bias.shape(), &Device::Cpu)?),
        ))
    }
}

/// Gradients on their way back through the steps.
struct Back {
    /// `[4 * hidden, hidden]`.
    recurrent: Tensor,
    rows: usize,
    /// Gradient of what is shown and remembered after the step, `rows * hidden`.
    shown: Vec<f32>,
    kept: Vec<f32>,
    /// Sums over the steps: `(inputs + hidden) * 4 * hidden` and `4 * hidden`.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Back {
    fn new(recurrent: &Tensor, inputs: usize, rows: usize) -> Result<Self> {
        let (hidden, gates) = recurrent.dims2()?;
        Ok(Self {
            recurrent: recurrent.detach().t()?.contiguous()?,
            rows,
            shown: vec![0.0; rows * hidden],
            kept: vec![0.0; rows * hidden],
            weights: vec![0.0; (inputs + hidden) * gates],
            bias: vec![0.0; gates],
        })
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let hidden = self.shown.len() / self.rows.max(1);
        let mut gates = vec![0.0; self.rows * 4 * hidden];
        for (row, gates) in gates.chunks_mut(4 * hidden).enumerate() {
            let span = row * hidden..(row + 1) * hidden;
            let activated = &step.gates[row * 4 * hidden..(row + 1) * 4 * hidden];
            let (before, squashed) = (&step.before[span.clone()], &step.squashed[span.clone()]);
            let (shown, kept) = (&self.shown[span.clone()], &mut self.kept[span]);
            before_activation(gates, activated, before, squashed, shown, kept);
            self.bias.iter_mut().zip(&*gates).for_each(|(sum, gate)| *sum += gate);
        }
        let gates = Tensor::from_vec(gates, (self.rows, 4 * hidden), &Device::Cpu)?;
        let part: Vec<f32> = step.input.t()?.matmul(&gates)?.flatten_all()?.to_vec1()?;
        self.weights.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        self.shown = gates.matmul(&self.recurrent)?.flatten_all()?.to_vec1()?;
        Ok(())
    }
}

/// One row: gradient of the gates before their activations; `kept` becomes that of the step before.
fn before_activation(
    gates: &mut [f32],
    activated: &[f32],
    before: &[f32],
    squashed: &[f32],
    shown: &[f32],
    kept: &mut [f32],
) {
    let hidden = kept.len();
    for j in 0..hidden {
        let [enter, forget, cell, out] = [0, 1, 2, 3].map(|gate| activated[gate * hidden + j]);
        let grown = kept[j] + shown[j] * out * (1.0 - squashed[j] * squashed[j]);
        gates[j] = grown * cell * enter * (1.0 - enter);
        gates[hidden + j] = grown * before[j] * forget * (1.0 - forget);
        gates[2 * hidden + j] = grown * enter * (1.0 - cell * cell);
        gates[3 * hidden + j] = shown[j] * squashed[j] * out * (1.0 - out);
        kept[j] = grown * forget;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};
    use candle_nn::VarBuilder;
    use candle_nn::rnn::{LSTM, LSTMConfig, RNN};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const INPUTS: usize = 3;
    const HIDDEN: usize = 5;
    const ROWS: usize = 4;

    fn random(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    fn weights() -> [Var; 3] {
        let var = |seed, shape: Shape| {
            let values = random(seed, shape.elem_count());
            Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
        };
        [
            var(1, (INPUTS, 4 * HIDDEN).into()),
            var(2, (HIDDEN, 4 * HIDDEN).into()),
            var(3, (4 * HIDDEN).into()),
        ]
    }

    fn ticks(n: usize) -> Vec<Vec<f32>> {
        (0..n).map(|tick| random(10 + tick as u64, ROWS * INPUTS)).collect()
    }

    /// The same by candle's own cell, operation by operation.
    fn step_by_step(weights: &[Var; 3], ticks: &[Vec<f32>], asked: &[usize]) -> Tensor {
        let named = [
            ("weight_ih_l0", weights[0].t().unwrap()),
            ("weight_hh_l0", weights[1].t().unwrap()),
            ("bias_ih_l0", weights[2].as_tensor().clone()),
        ];
        let named = named.map(|(name, tensor)| (name.to_string(), tensor)).into();
        let builder = VarBuilder::from_tensors(named, DType::F32, &Device::Cpu);
        let config = LSTMConfig { b_hh_init: None, ..LSTMConfig::default() };
        let cell = LSTM::new(INPUTS, HIDDEN, config, builder).unwrap();
        let mut state = cell.zero_state(ROWS).unwrap();
        let mut shown = Vec::new();
        for (position, tick) in ticks.iter().enumerate() {
            let tick = Tensor::from_slice(tick, (ROWS, INPUTS), &Device::Cpu).unwrap();
            state = cell.step(&tick, &state).unwrap();
            if asked.contains(&position) {
                shown.push(state.h().clone());
            }
        }
        Tensor::cat(&shown, 0).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.shape(), b.shape());
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn states_and_gradients_are_those_of_candles_own_cell() {
        let (weights, ticks, asked) = (weights(), ticks(9), [3, 6, 8]);
        let sequence = Sequence::new(ticks.clone(), asked.into());
        let [input, recurrent, bias] = &weights;
        let fused = input.apply_op3(recurrent, bias, sequence).unwrap();
        let single = step_by_step(&weights, &ticks, &asked);
        assert!(difference(&fused, &single) < 1e-5);

        let factors = random(99, asked.len() * ROWS * HIDDEN);
        let factors = Tensor::from_vec(factors, fused.shape(), &Device::Cpu).unwrap();
        let gradients = |out: &Tensor| (out * &factors).unwrap().sum_all().unwrap().backward();
        let (fused, single) = (gradients(&fused).unwrap(), gradients(&single).unwrap());
        for var in &weights {
            let (fused, single) = (fused.get(var).unwrap(), single.get(var).unwrap());
            assert!(difference(fused, single) < 1e-4, "{fused} {single}");
        }
    }

    #[test]
    fn a_state_that_is_carried_on_is_that_of_the_whole_sequence() {
        let ([input, recurrent, bias], ticks) = (weights(), ticks(7));
        let flat = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let weights = Weights::new(&flat(&input), &flat(&recurrent), &flat(&bias)).unwrap();
        let (whole, _) = Sequence::new(ticks.clone(), vec![6]).run(&weights).unwrap();
        let mut state = State::zero(ROWS, HIDDEN);
        for tick in &ticks {
            weights.advance(tick, &mut state).unwrap();
        }
        assert_eq!(whole, state.shown);
    }

    #[test]
    fn the_rational_tangent_is_close_to_the_true_one() {
        for step in -1_000..=1_000 {
            let x = step as f32 / 100.0;
            assert!((tanh(x) - x.tanh()).abs() < 1e-6, "{x}");
        }
    }
}
