//! The LSTM member: one recurrent network, shared by every series, that learns their rhythm.
//!
//! ```text
//! inputs ──▶ cell (h, c carried from tick to tick) ──┐
//!   └──────────────────────────────────────────▶ head per horizon ──▶ q10, q50, q90
//! ```
//!
//! It works on `log1p` of the calls, standardised by each series' own past; it sees phases of the
//! found seasons and of the calendar, and former seasons at the time of the target. Each head adds a
//! linear part, which starts at least squares, and what the recurrent state makes of it; it answers
//! three quantiles (pinball loss). Horizons between two heads are answered by both.
//!
//! # Learning
//! A [`fit`](Member::fit) makes a bounded number of small steps. Forecasts are made by the best
//! average of weights so far, judged by the newest share of each series, which is never learned from
//! before; only their linear parts are then fitted on all there is. If the average gets worse for a while, learning goes back to the best one and rests until
//! there is more to learn from; when the past has doubled, a fresh network is started, and takes over
//! once it is better. Equal seeds give equal weights, bit by bit, also across a restart.
//!
//! # Threads
//! candle has no per-call thread setting: it reads `RAYON_NUM_THREADS` for matrix products and
//! `CANDLE_NUM_THREADS` for element-wise work. An operator may set both to 1. The member does not rely
//! on it: gemm goes parallel from 589,824 multiply-adds and candle's element-wise kernels from 65,536
//! elements, and [`LstmConfig::checked`] keeps every tensor of a step below both. So a fit
//! uses the thread that it runs on and no other.
//!
//! # Source
//! Hochreiter and Schmidhuber, Long Short-Term Memory, 1997, with Gers' forget gates (2000); quantile
//! outputs for many horizons as in Wen and others, A Multi-Horizon Quantile Recurrent Forecaster, 2017.

mod carried;
mod cell;
mod checkpoint;
mod inputs;
mod lessons;
mod linear;
mod net;
mod next;
mod optimizer;
mod settings;
mod training;

use foreshard_policy::forecast::{
    Effort, FitReport, ForecastError, Member, MemberReport, Quantiles, Series, Window,
};

use self::carried::Carried;
use self::inputs::View;
use self::lessons::Lessons;
use self::net::Net;
pub use self::next::NextKeys;
pub use self::settings::LstmConfig;
pub use self::training::Progress;
use self::training::Training;

/// Name of the member in weights and scores.
pub const NAME: &str = "lstm";

/// Fewest ticks of a series from which the network forecasts.
pub const TICKS_MIN: usize = 8;

/// Most horizons that have a head of their own.
const HEADS_MAX: usize = 6;

/// Series that the network is used for, the busiest; it says nothing about the others.
pub const SERIES_MAX: usize = 10_000;

/// Newest ticks by which the busiest series are found.
const BUSY_TICKS: usize = 256;

fn numeric(error: &candle_core::Error) -> ForecastError {
    ForecastError::Numeric { member: NAME, reason: error.to_string() }
}

/// The member. Cheap to make; learns in [`fit`](Member::fit).
#[derive(Debug)]
pub struct Lstm {
    config: LstmConfig,
    training: Option<Training>,
    carried: Carried,
}

impl Lstm {
    /// A member that has learned nothing.
    ///
    /// # Errors
    /// [`ForecastError::Setting`] if a value is out of bounds.
    pub fn new(config: LstmConfig) -> Result<Self, ForecastError> {
        Ok(Self { config: config.checked()?, training: None, carried: Carried::default() })
    }

    /// Training steps made so far, over all fits.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.training.as_ref().map_or(0, |training| training.progress.steps)
    }

    /// How learning stands; none before the first fit.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        self.training.as_ref().map(|training| &training.progress)
    }

    fn train(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
        effort: Effort<'_>,
    ) -> candle_core::Result<FitReport> {
        let heads = heads(horizons);
        let places = busiest(window);
        let Some(lessons) = Lessons::new(window, places, &self.config, &heads) else {
            return Ok(FitReport::default());
        };
        // Worked on beside the present one, which stays if this fails.
        let present = self.training.as_ref().filter(|training| training.best.horizons == heads);
        let known = present.map(|training| training.progress.improvements);
        let mut training = match present {
            Some(training) => training.independent()?,
            None => Training::start(&self.config, &lessons, window.at, effort)?,
        };
        let report = training.learn(&self.config, &lessons, window.at, effort)?;
        if known != Some(training.progress.improvements) {
            self.carried.clear();
        }
        self.training = Some(training);
        Ok(report)
    }

    fn quantiles(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> candle_core::Result<Vec<Vec<Quantiles>>> {
        let mut out = vec![Vec::new(); window.series.len()];
        let Some(training) = &self.training else { return Ok(out) };
        let (net, cell) = (&training.used, training.used.cell()?);
        let mut places = busiest(window);
        places.retain(|place| window.series[*place].len() >= TICKS_MIN);
        let mut ids: Vec<u64> = places.iter().map(|place| window.series[*place].id).collect();
        ids.sort_unstable();
        self.carried.retain(&ids);
        for places in places.chunks(self.config.rows_max()) {
            let shown = self.carried.shown(&cell, window, places, self.config.window)?;
            let views: Vec<View<'_>> =
                places.iter().map(|place| View::new(window, &window.series[*place], 0)).collect();
            for horizon in horizons {
                let rows = ahead(net, &training.progress.losses, &views, &shown, *horizon)?;
                for ((place, view), row) in places.iter().zip(&views).zip(rows) {
                    let [q10, q50, q90] = row.map(|change| view.calls(change));
                    out[*place].push(Quantiles { q10, q50, q90 }.tidy());
                }
            }
        }
        Ok(out)
    }
}

/// Quantiles of the change of each view `horizon` ticks ahead: of the head for it, or between those
/// of the two nearest heads by the logarithm of the horizon.
fn ahead(
    net: &Net,
    losses: &[f32],
    views: &[View<'_>],
    shown: &[f32],
    horizon: usize,
) -> candle_core::Result<Vec<[f32; 3]>> {
    let mut inputs = Vec::with_capacity(views.len() * inputs::PER_HORIZON);
    views.iter().for_each(|view| view.ahead(horizon, &mut inputs));
    let last = net.horizons.len().saturating_sub(1);
    let above = net.horizons.partition_point(|head| *head < horizon).min(last);
    let below = if net.horizons[above] > horizon { above.saturating_sub(1) } else { above };
    let trusted = |head: usize, inputs: &mut Vec<f32>| -> candle_core::Result<Vec<[f32; 3]>> {
        let trust = trust(losses.get(head).copied().unwrap_or(1.0));
        let rows = net.quantiles(head, shown, inputs)?;
        Ok(rows.into_iter().map(|row| row.map(|change| trust * change)).collect())
    };
    if below == above {
        return trusted(above, &mut inputs);
    }
    let lower = trusted(below, &mut inputs.clone())?;
    let upper = trusted(above, &mut inputs)?;
    let log = |horizon: usize| (horizon as f32).ln();
    let [from, to] = [below, above].map(|head| log(net.horizons[head]));
    let share = (log(horizon) - from) / (to - from);
    let between = |(lower, upper): ([f32; 3], [f32; 3])| {
        std::array::from_fn(|q| lower[q] + share * (upper[q] - lower[q]))
    };
    Ok(lower.into_iter().zip(upper).map(between).collect())
}

/// Share of what a head says that is left of it, by its loss over that of no change on what it was not
/// learned from: with little to learn from, a network may be worse than none.
fn trust(loss: f32) -> f32 {
    if loss.is_finite() { loss.max(1.0).powi(-4) } else { 0.0 }
}

/// The horizons that get a head: all, or some spread evenly by their logarithm, with both ends.
fn heads(horizons: &[usize]) -> Vec<usize> {
    let (Some(first), Some(last)) = (horizons.first(), horizons.last()) else { return Vec::new() };
    if horizons.len() <= HEADS_MAX {
        return horizons.to_vec();
    }
    let growth = (*last as f64 / *first as f64).powf(1.0 / (HEADS_MAX - 1) as f64);
    let mut heads: Vec<usize> = (0..HEADS_MAX)
        .filter_map(|head| {
            let wanted = *first as f64 * growth.powi(head as i32);
            let distance = |horizon: usize| (horizon as f64 / wanted).ln().abs();
            horizons.iter().copied().min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
        })
        .collect();
    heads.dedup();
    heads
}

/// Places of the busiest series, in their order.
fn busiest(window: &Window<'_>) -> Vec<usize> {
    let mut places: Vec<usize> = (0..window.series.len()).collect();
    if places.len() > SERIES_MAX {
        let busy = |series: &Series<'_>| series.mean(0, BUSY_TICKS);
        let calls: Vec<f64> = window.series.iter().map(busy).collect();
        places.sort_by(|a, b| calls[*b].total_cmp(&calls[*a]).then(a.cmp(b)));
        places.truncate(SERIES_MAX);
        places.sort_unstable();
    }
    places
}

impl Member for Lstm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn learns_in_steps(&self) -> bool {
        true
    }

    fn fit(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
        effort: Effort<'_>,
    ) -> Result<FitReport, ForecastError> {
        if effort.steps_max == 0 {
            return Ok(FitReport::default());
        }
        self.train(window, horizons, effort).map_err(|error| numeric(&error))
    }

    fn forecast(
        &mut self,
        window: &Window<'_>,
        horizons: &[usize],
    ) -> Result<Vec<Vec<Quantiles>>, ForecastError> {
        self.quantiles(window, horizons).map_err(|error| numeric(&error))
    }

    fn report(&self) -> MemberReport {
        self.progress().map_or_else(MemberReport::default, |progress| MemberReport {
            steps: progress.steps,
            ticks: Some(progress.ticks),
            at: Some(progress.at),
            frozen_since: progress.frozen_since,
        })
    }

    fn copy(&self) -> Result<Box<dyn Member>, ForecastError> {
        let training = self.training.as_ref().map(Training::independent).transpose();
        let training = training.map_err(|error| numeric(&error))?;
        let (config, carried) = (self.config.clone(), self.carried.clone());
        Ok(Box::new(Self { config, training, carried }))
    }

    /// Weights, moments of the optimizer and the progress of training; not the carried states, which
    /// follow from them and the window.
    fn save(&self) -> Result<Vec<u8>, ForecastError> {
        checkpoint::write(&self.config, self.training.as_ref())
    }

    /// Also refuses weights of another shape than this member's settings ask for.
    fn load(&mut self, state: &[u8]) -> Result<(), ForecastError> {
        self.training = checkpoint::read(state, &self.config)?;
        self.carried.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
