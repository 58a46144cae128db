//! Calls on partitions whose popularity drifts.

use std::f64::consts::TAU;

use foreshard_policy::calls::CallRecord;
use foreshard_policy::config::LoopConfig;
use foreshard_policy::forecast::ensemble::Standing;
use foreshard_policy::forecast::{Forecast, Quantiles, SeriesForecast};
use foreshard_policy::history::History;
use foreshard_policy::ids::{ExpressionId, NodeId, PartitionId, SeriesKey, Tick};
use foreshard_policy::random::SplitMix64;

/// Exponent of Zipf's law.
const ZIPF: f64 = 1.2;

/// Calls in a tick, on average, and what one costs: half of what eight nodes of two CPUs can do.
const CALLS: f64 = 4_000.0;
pub(super) const CALL_NS: u64 = 2_000_000;

/// Ticks after which the rhythm repeats, and by how much a partition is more popular at its best hour.
const SEASON: f64 = 60.0;
const RHYTHM: f64 = 2.0;

/// Deviation of the logarithm of what drifts, and ticks after which a third of it is left.
const DRIFT: f64 = 0.3;
const DRIFT_TICKS: f64 = 60.0;

/// Ticks after which two of the most popular partitions exchange places, how many those are, and ticks that
/// the exchange takes.
const EXCHANGE_EVERY: u64 = 40;
const EXCHANGED: f64 = 20.0;
const EXCHANGE_TICKS: f64 = 10.0;

/// Ticks that are laid out ahead, for whoever knows what will come.
const AHEAD: usize = 64;

/// Popularity of one partition.
struct Part {
    /// Logarithm of its place by Zipf's law: where it was, and where it goes to since a tick.
    from: f64,
    to: f64,
    since: f64,
    phase: f64,
    drift: f64,
}

impl Part {
    fn log(&self, tick: f64) -> f64 {
        let gone = ((tick - self.since) / EXCHANGE_TICKS).clamp(0.0, 1.0);
        let rhythm = RHYTHM.ln() * (TAU * (tick / SEASON + self.phase)).sin();
        self.from + gone * (self.to - self.from) + rhythm + self.drift
    }
}

/// All partitions, tick by tick.
pub(super) struct World {
    parts: Vec<Part>,
    /// Expected calls by tick, from tick 0, and by partition.
    rates: Vec<Vec<f64>>,
    drifting: SplitMix64,
    calling: SplitMix64,
}

impl World {
    pub(super) fn new(partitions: u32, seed: u64) -> Self {
        let mut drifting = SplitMix64::new(seed);
        let part = |rank: u32| {
            let log = -ZIPF * f64::from(rank).ln();
            let phase = drifting.uniform();
            Part { from: log, to: log, since: 0.0, phase, drift: DRIFT * drifting.normal() }
        };
        let parts = (1..=partitions).map(part).collect();
        Self { parts, rates: Vec::new(), drifting, calling: SplitMix64::new(!seed) }
    }

    /// Expected calls on each partition in a tick.
    fn rates(&mut self, tick: usize) -> &[f64] {
        while self.rates.len() <= tick {
            let next = self.rates.len();
            self.drift(next as u64);
            let weights: Vec<f64> =
                self.parts.iter().map(|part| part.log(next as f64).exp()).collect();
            let all: f64 = weights.iter().sum();
            self.rates.push(weights.iter().map(|weight| CALLS * weight / all).collect());
        }
        &self.rates[tick]
    }

    fn drift(&mut self, tick: u64) {
        let keep = 1.0 - 1.0 / DRIFT_TICKS;
        let more = DRIFT * (1.0 - keep * keep).sqrt();
        for part in &mut self.parts {
            part.drift = keep * part.drift + more * self.drifting.normal();
        }
        if tick % EXCHANGE_EVERY == EXCHANGE_EVERY - 1 {
            let mut places: Vec<usize> = (0..self.parts.len()).collect();
            places.sort_by(|a, b| self.parts[*b].to.total_cmp(&self.parts[*a].to));
            let mut one = || places[(self.drifting.uniform() * EXCHANGED) as usize];
            let (a, b) = (one(), one());
            let (to_a, to_b) = (self.parts[a].to, self.parts[b].to);
            for (at, to) in [(a, to_b), (b, to_a)] {
                let part = &mut self.parts[at];
                (part.from, part.to, part.since) = (part.to, to, tick as f64);
            }
        }
    }

    /// The partition of each call of a tick, in the order in which they come.
    pub(super) fn calls(&mut self, tick: u64) -> Vec<u32> {
        let rates = self.rates(tick as usize).to_vec();
        let mut calls = Vec::new();
        for (at, rate) in (0..).zip(rates) {
            let count = self.calling.poisson(rate) as usize;
            calls.extend(std::iter::repeat_n(at, count));
        }
        // Calls on all partitions come at the same time.
        for at in (1..calls.len()).rev() {
            calls.swap(at, (self.calling.uniform() * (at + 1) as f64) as usize);
        }
        calls
    }

    /// A forecast that is right about all means.
    pub(super) fn will_come(&mut self, tick: u64, config: &LoopConfig) -> Forecast {
        let horizon = config.horizon_ticks().min(AHEAD);
        let ahead: Vec<Vec<f64>> =
            (0..=horizon).map(|ahead| self.rates(tick as usize + ahead).to_vec()).collect();
        let series = (0..self.parts.len()).map(|at| SeriesForecast {
            key: series(at as u32),
            calls: ahead[1..].iter().map(|rates| Quantiles::exactly(rates[at])).collect(),
            ns_per_call: CALL_NS as f64,
            ns_per_row: CALL_NS as f64,
            bytes_per_row: 8.0,
            weights: Vec::new(),
            calls_now: ahead[0][at],
            calls_season: ahead[0][at],
            standing: Standing::New,
            announced: false,
        });
        let series = series.collect();
        let tick_ms = config.tick_ms();
        Forecast { at: Tick(tick), tick_ms, series, trusted: true, ..Forecast::default() }
    }
}

/// Partition number `at`.
pub(super) fn partition(at: u32) -> PartitionId {
    PartitionId::new("t", at)
}

fn series(at: u32) -> SeriesKey {
    SeriesKey { function: "score".into(), expression: ExpressionId(1), partition: partition(at) }
}

/// Counts the calls of a tick.
pub(super) fn record(history: &mut History, calls: &[u32]) {
    for at in calls {
        let call = CallRecord {
            rows: 1,
            ns: CALL_NS,
            would_be_ns: CALL_NS,
            ..CallRecord::empty(series(*at), 0, NodeId(0), None)
        };
        history.record(&call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_come_as_often_as_they_are_expected_and_the_first_are_the_most_popular() {
        let mut world = World::new(50, 3);
        let mut counts = vec![0_u64; 50];
        for tick in 0..100 {
            world.calls(tick).into_iter().for_each(|at| counts[at as usize] += 1);
        }
        let all: u64 = counts.iter().sum();
        assert!((380_000..420_000).contains(&all), "{all}");
        assert!(counts[..10].iter().sum::<u64>() * 2 > all, "{counts:?}");
    }
}
