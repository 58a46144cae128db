//! Loads that are made up: each has one thing that forecasts can stumble over.

use foreshard_policy::random::SplitMix64;

use super::trace::Trace;

/// Ticks of five minutes.
const TICK_MS: u64 = 300_000;

/// Ticks of a day.
const DAY: usize = 288;

/// Days of a whole and of a quick trace.
const DAYS: usize = 28;
const DAYS_QUICK: usize = 7;

/// Wall clock of the first tick: some Tuesday.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// What drives a family from tick to tick.
struct State {
    dice: SplitMix64,
    /// Slow noise, in logarithms.
    noise: f64,
    /// Level that a shift or burst left, in logarithms.
    level: f64,
    ticks: usize,
}

/// Calls of one tick.
type Family = fn(&mut State, usize) -> f64;

/// The families by name.
const FAMILIES: [(&str, Family); 8] = [
    ("season", season),
    ("two_seasons", two_seasons),
    ("trend", trend),
    (LEVEL_SHIFT, level_shift),
    ("bursts", bursts),
    ("sparse", sparse),
    (RANDOM_WALK, random_walk),
    ("anti_periodic", anti_periodic),
];

/// The family whose level jumps now and then.
const LEVEL_SHIFT: &str = "level_shift";

/// The family that nothing can be known of.
pub(crate) const RANDOM_WALK: &str = "random_walk";

/// One trace of each family.
pub(crate) fn all(seed: u64, quick: bool) -> Vec<Trace> {
    let ticks = DAY * if quick { DAYS_QUICK } else { DAYS };
    let one = |(at, (name, next)): (u64, &(&str, Family))| {
        let dice = SplitMix64::new(seed.wrapping_mul(1_000) + at);
        let mut state = State { dice, noise: 0.0, level: 0.0, ticks };
        let (mut calls, mut shifts) = (Vec::with_capacity(ticks), Vec::new());
        for tick in 0..ticks {
            let before = state.level;
            calls.push(next(&mut state, tick));
            if *name == LEVEL_SHIFT && state.level != before {
                shifts.push(tick);
            }
        }
        let series = vec![(String::new(), calls)];
        Trace {
            name: (*name).to_owned(),
            tick_ms: TICK_MS,
            epoch_ms: EPOCH_MS,
            series,
            repaired: 0,
            shifts,
        }
    };
    (0..).zip(&FAMILIES).map(one).collect()
}

impl State {
    /// The next value of AR(1) noise.
    fn drift(&mut self, memory: f64, deviation: f64) -> f64 {
        self.noise = memory * self.noise + deviation * self.dice.normal();
        self.noise
    }

    /// Calls at random at this rate (Poisson).
    fn calls(&mut self, rate: f64) -> f64 {
        if rate > 50.0 {
            return (rate + rate.sqrt() * self.dice.normal()).round().max(0.0);
        }
        let (end, mut product, mut calls) = ((-rate).exp(), 1.0, 0.0);
        loop {
            product *= self.dice.uniform();
            if product <= end {
                return calls;
            }
            calls += 1.0;
        }
    }
}

fn day(tick: usize) -> f64 {
    (tick as f64 / DAY as f64 * std::f64::consts::TAU).sin()
}

fn season(state: &mut State, tick: usize) -> f64 {
    let noise = state.drift(0.9, 0.05).exp();
    let twice = (2.0 * tick as f64 / DAY as f64 * std::f64::consts::TAU).cos();
    state.calls(60.0 * (1.0 + 0.7 * day(tick) + 0.2 * twice) * noise)
}

fn two_seasons(state: &mut State, tick: usize) -> f64 {
    let noise = state.drift(0.9, 0.05).exp();
    let weekend = if (tick / DAY) % 7 >= 5 { 0.4 } else { 1.0 };
    state.calls(80.0 * (1.0 + 0.7 * day(tick)) * weekend * noise)
}

fn trend(state: &mut State, tick: usize) -> f64 {
    let noise = state.drift(0.95, 0.05).exp();
    state.calls(30.0 * (1.0 + 4.0 * tick as f64 / state.ticks as f64) * noise)
}

fn level_shift(state: &mut State, _: usize) -> f64 {
    if state.dice.uniform() < 1.0 / 700.0 {
        state.level = (state.dice.uniform() - 0.5) * 2.5;
    }
    let log = state.level + state.drift(0.8, 0.08);
    state.calls(100.0 * log.exp())
}

fn bursts(state: &mut State, _: usize) -> f64 {
    if state.dice.uniform() < 1.0 / 120.0 {
        state.level = 1.0 + 2.0 * state.dice.uniform();
    }
    state.level *= 0.93;
    let log = state.level + state.drift(0.9, 0.05);
    state.calls(20.0 * log.exp())
}

fn sparse(state: &mut State, tick: usize) -> f64 {
    let is_busy = (100..200).contains(&(tick % DAY));
    let times = state.calls(if is_busy { 0.12 } else { 0.01 });
    times * (1.0 + (state.dice.uniform() * 3.0).floor())
}

fn random_walk(state: &mut State, _: usize) -> f64 {
    let log = state.drift(1.0, 0.02).clamp(-3.0, 3.0);
    (2_000.0 * log.exp()).round()
}

/// Each day is yesterday upside down.
fn anti_periodic(state: &mut State, tick: usize) -> f64 {
    let noise = state.drift(0.9, 0.05).exp();
    let side = if (tick / DAY).is_multiple_of(2) { 1.0 } else { -1.0 };
    state.calls(60.0 * (1.0 + 0.8 * side * day(tick)) * noise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_loads_and_another_one_others() {
        assert_eq!(all(1, true), all(1, true));
        assert_ne!(all(1, true), all(2, true));
        assert!(all(1, true).iter().all(|trace| trace.ticks() == DAY * DAYS_QUICK));
    }

    #[test]
    fn a_sparse_load_rests_most_of_the_time() {
        let sparse = all(3, true).into_iter().find(|trace| trace.name == "sparse").unwrap();
        let calls = &sparse.series[0].1;
        assert!(calls.iter().filter(|calls| **calls == 0.0).count() * 10 > calls.len() * 8);
        assert!(calls.iter().sum::<f64>() > 10.0);
    }
}
