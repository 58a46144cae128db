//! Who calls what when: a trace compressed in time, popular pairs whose ranks shift, functions that take turns.
//!
//! A *pair* is a function on a partition. A day of the trace becomes so many *minutes*, each held flat, so
//! that nothing of a minute leaks into the one before. Calls come at random times (Poisson) with the rate
//!
//! ```text
//! calls a minute x trace(minute) x turn(function, minute) x popularity(pair, day) / sum over all pairs
//! ```

use anyhow::{Result, ensure};
use foreshard_policy::random::SplitMix64;

use crate::forecast::Trace;

const DAY_MS: u64 = 86_400_000;

/// Functions of the same cost: they take turns in being called much.
pub(crate) const VARIANTS: usize = 3;

/// What a function is called when it is another one's turn, as a share of what it is called in its own.
const OFF_TURN: f64 = 0.005;

/// Shares of a day that a turn may last.
const TURN_MIN: f64 = 0.15;
const TURN_MAX: f64 = 0.25;

/// Share of the pairs that have another rank on the next day.
const RANKS_SHIFTED: f64 = 0.3;

/// Minutes of a peak at least, and of less load within one.
pub(crate) const PEAK_MIN: usize = 8;
const PEAK_GAP: usize = 4;

/// How large everything is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Days that are learned from and days that are played.
    pub(crate) days: (usize, usize),
    /// Minutes of the last day that is learned from that are played too, and do not count.
    pub(crate) warm_up: usize,
    /// Minutes of a day.
    pub(crate) minutes: usize,
    /// Functions: [`VARIANTS`] of each cost.
    pub(crate) functions: usize,
    /// Partitions of the table.
    pub(crate) partitions: usize,
    /// Minutes whose rows a call asks for.
    pub(crate) window: usize,
}

impl Shape {
    /// Number of a pair.
    pub(crate) fn pair(&self, function: usize, partition: usize) -> usize {
        function * self.partitions + partition
    }

    /// All pairs.
    pub(crate) fn pairs(&self) -> usize {
        self.functions * self.partitions
    }

    /// Function and partition of a pair.
    pub(crate) fn of_pair(&self, pair: usize) -> (usize, usize) {
        (pair / self.partitions, pair % self.partitions)
    }
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Call {
    /// Minute since play begins, and how much of it is over.
    pub(crate) minute: usize,
    pub(crate) at: f64,
    pub(crate) pair: usize,
}

/// All rates.
pub(crate) struct Load {
    pub(crate) shape: Shape,
    /// The trace by minute: a mean of one over the days that are played.
    pub(crate) trace: Vec<f64>,
    /// Share of the calls of a minute that each pair has, by minute.
    shares: Vec<Vec<f64>>,
}

impl Load {
    /// # Errors
    /// A trace without any calls.
    pub(crate) fn new(trace: &Trace, shape: Shape, seed: u64) -> Result<Self> {
        let mut dice = SplitMix64::new(seed);
        let trace = compressed(trace, shape)?;
        let costs = shape.functions.div_ceil(VARIANTS);
        let turns: Vec<Vec<f64>> =
            (0..costs).flat_map(|_| turns(shape.minutes, &mut dice)).collect();
        let mut ranks: Vec<usize> = (0..shape.pairs()).collect();
        shuffle(&mut ranks, &mut dice);
        let mut shares = Vec::new();
        for _ in 0..shape.days.0 + shape.days.1 {
            let shares_at = |minute: usize| -> Vec<f64> {
                let share = |pair: usize| {
                    let (function, _) = shape.of_pair(pair);
                    turns[function][minute] / (ranks[pair] + 1) as f64
                };
                let all: Vec<f64> = (0..shape.pairs()).map(share).collect();
                let sum: f64 = all.iter().sum();
                all.into_iter().map(|share| share / sum).collect()
            };
            shares.extend((0..shape.minutes).map(shares_at));
            shift(&mut ranks, &mut dice);
        }
        Ok(Self { shape, trace, shares })
    }

    fn learned(&self) -> usize {
        self.shape.days.0 * self.shape.minutes - self.shape.warm_up
    }

    /// Minutes that are played, with those that do not count.
    pub(crate) fn played(&self) -> usize {
        self.shape.days.1 * self.shape.minutes + self.shape.warm_up
    }

    /// How often each pair was called in each minute that is learned from, with so many calls a minute.
    pub(crate) fn history(&self, calls: f64, seed: u64) -> Vec<Vec<u32>> {
        let mut dice = SplitMix64::new(seed ^ 0x1EA5);
        let minutes = self.trace.iter().zip(&self.shares).take(self.learned());
        let counts = minutes.map(|(load, shares)| {
            shares.iter().map(|share| dice.poisson(calls * load * share)).collect()
        });
        counts.collect()
    }

    /// The calls that are played, in order, with so many a minute. With fewer a minute some are left out,
    /// and the others stay.
    pub(crate) fn calls(&self, calls: f64, calls_max: f64, seed: u64) -> Vec<Call> {
        let mut dice = SplitMix64::new(seed ^ 0xCA115);
        let mut all = Vec::new();
        for minute in 0..self.played() {
            let (load, shares) =
                (self.trace[self.learned() + minute], &self.shares[self.learned() + minute]);
            for (pair, share) in shares.iter().enumerate() {
                for _ in 0..dice.poisson(calls_max * load * share) {
                    let call = Call { minute, at: dice.uniform(), pair };
                    if dice.uniform() * calls_max < calls {
                        all.push(call);
                    }
                }
            }
        }
        all.sort_by(|a, b| (a.minute as f64 + a.at).total_cmp(&(b.minute as f64 + b.at)));
        all
    }

    /// For each minute that is played whether it counts and is in the first tenth of a peak.
    pub(crate) fn peak_begins(&self) -> Vec<bool> {
        let shortest = PEAK_MIN.min(self.shape.minutes / 4);
        let mut begins = first_tenths(&self.trace[self.learned()..], shortest);
        begins[..self.shape.warm_up].fill(false);
        begins
    }
}

/// For each minute whether it is in the first tenth of a peak of at least so many minutes: of a time with more
/// load than one, which is the mean, short gaps in it or not.
pub(crate) fn first_tenths(loads: &[f64], shortest: usize) -> Vec<bool> {
    let mut is_high: Vec<bool> = loads.iter().map(|load| *load > 1.0).collect();
    let mut last = None;
    for minute in 0..is_high.len() {
        if !is_high[minute] {
            continue;
        }
        if let Some(last) = last.filter(|last| minute - last <= PEAK_GAP) {
            is_high[last..minute].fill(true);
        }
        last = Some(minute);
    }
    let mut begins = vec![false; is_high.len()];
    let mut minute = 0;
    while minute < is_high.len() {
        let length = is_high[minute..].iter().take_while(|high| **high).count();
        if length >= shortest {
            begins[minute..minute + length.div_ceil(10)].fill(true);
        }
        minute += length.max(1);
    }
    begins
}

/// The trace by minutes of the days that are learned from and played, the latter around its middle. A trace
/// that is shorter than all these days is stretched over them: then its own days are no days here.
fn compressed(trace: &Trace, shape: Shape) -> Result<Vec<f64>> {
    let days = shape.days.0 + shape.days.1;
    let minutes = days * shape.minutes;
    let calls = &trace.series[0].1;
    let ticks_a_day = DAY_MS as f64 / trace.tick_ms as f64;
    let known = calls.len() as f64 / ticks_a_day;
    let (first, ticks_a_minute) = if known >= days as f64 + 1.0 {
        // Days begin at midnight.
        let into = trace.epoch_ms.rem_euclid(DAY_MS as i64) as f64 / DAY_MS as f64;
        let until_midnight = (1.0 - into).fract();
        let spare = (known - until_midnight - days as f64).max(0.0);
        let skipped = (spare / 2.0).floor() + until_midnight;
        (skipped * ticks_a_day, ticks_a_day / shape.minutes as f64)
    } else {
        (0.0, calls.len() as f64 / minutes as f64)
    };
    let mean = |minute: usize| {
        let from = first + minute as f64 * ticks_a_minute;
        let ticks = from as usize..((from + ticks_a_minute).ceil() as usize).min(calls.len());
        let ticks = if ticks_a_minute < 1.0 { ticks.start..ticks.start + 1 } else { ticks };
        calls[ticks.clone()].iter().sum::<f64>() / ticks.len().max(1) as f64
    };
    let mut all: Vec<f64> = (0..minutes).map(mean).collect();
    let played = &all[shape.days.0 * shape.minutes..];
    let level = played.iter().sum::<f64>() / played.len() as f64;
    ensure!(level > 0.0, "{} has no calls in the days that are played", trace.name);
    all.iter_mut().for_each(|load| *load /= level);
    Ok(all)
}

/// How much each of the functions of one cost is called in each minute of a day.
fn turns(minutes: usize, dice: &mut SplitMix64) -> Vec<Vec<f64>> {
    let mut all = vec![vec![OFF_TURN; minutes]; VARIANTS];
    let mut variant = (dice.uniform() * VARIANTS as f64) as usize;
    let mut minute = 0;
    while minute < minutes {
        let share = TURN_MIN + (TURN_MAX - TURN_MIN) * dice.uniform();
        let end = minutes.min(minute + (share * minutes as f64).ceil() as usize);
        all[variant][minute..end].fill(1.0);
        variant = (variant + 1 + (dice.uniform() * (VARIANTS - 1) as f64) as usize) % VARIANTS;
        minute = end;
    }
    all
}

fn shuffle(ranks: &mut [usize], dice: &mut SplitMix64) {
    for place in (1..ranks.len()).rev() {
        ranks.swap(place, (dice.uniform() * (place + 1) as f64) as usize);
    }
}

/// Deals the ranks of some pairs out among them anew.
fn shift(ranks: &mut [usize], dice: &mut SplitMix64) {
    let chosen = dice.sample(ranks.len(), RANKS_SHIFTED);
    let mut dealt: Vec<usize> = chosen.iter().map(|pair| ranks[*pair as usize]).collect();
    shuffle(&mut dealt, dice);
    chosen.iter().zip(dealt).for_each(|(pair, rank)| ranks[*pair as usize] = rank);
}

/// Nanoseconds that must be computed in each minute if what a call computed is kept and nothing else is:
/// a call finds the rows of the minutes since the last call of its pair missing.
///
/// * `row_ns`: nanoseconds of one row of each function.
/// * `rows`: rows that each partition gets a minute.
pub(crate) fn kept_at_first_use(
    calls: &[Call],
    shape: &Shape,
    minutes: usize,
    row_ns: &[f64],
    rows: usize,
) -> Vec<f64> {
    let mut last: Vec<Option<usize>> = vec![None; shape.pairs()];
    let mut all = vec![0.0; minutes];
    for call in calls {
        let since = last[call.pair].map_or(shape.window, |last| call.minute - last);
        last[call.pair] = Some(call.minute);
        let missing = since.min(shape.window) * rows;
        all[call.minute] += missing as f64 * row_ns[shape.of_pair(call.pair).0];
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { days: (2, 2), warm_up: 0, minutes: 24, functions: 3, partitions: 5, window: 4 };

    fn trace(days: usize, tick_ms: u64) -> Trace {
        let ticks = days * (DAY_MS / tick_ms) as usize;
        let hour = |tick: usize| (tick as u64 * tick_ms % DAY_MS) as f64 / 3.6e6;
        let calls = (0..ticks).map(|tick| if hour(tick) < 12.0 { 10.0 } else { 30.0 });
        Trace {
            name: "made up".to_owned(),
            tick_ms,
            epoch_ms: 0,
            series: vec![(String::new(), calls.collect())],
            repaired: 0,
            shifts: Vec::new(),
        }
    }

    #[test]
    fn finer_and_coarser_traces_are_compressed_to_the_same_minutes_of_days_that_begin_at_midnight()
    {
        for tick_ms in [60_000, 3_600_000, 7_200_000] {
            let load = compressed(&trace(6, tick_ms), SHAPE).unwrap();
            assert_eq!(load.len(), 96);
            for day in load.chunks(24) {
                assert!(day[..12].iter().all(|load| (load - 0.5).abs() < 1e-9), "{day:?}");
                assert!(day[12..].iter().all(|load| (load - 1.5).abs() < 1e-9), "{day:?}");
            }
        }
    }

    #[test]
    fn a_short_trace_is_stretched_over_all_days_and_an_empty_one_is_refused() {
        assert_eq!(compressed(&trace(1, 60_000), SHAPE).unwrap().len(), 96);
        let mut none = trace(6, 60_000);
        none.series[0].1.fill(0.0);
        let error = compressed(&none, SHAPE).unwrap_err().to_string();
        assert_eq!(error, "made up has no calls in the days that are played");
    }

    #[test]
    fn the_first_tenth_of_what_lies_above_the_mean_begins_a_peak() {
        let load = Load::new(&trace(6, 3_600_000), SHAPE, 1).unwrap();
        let begins = load.peak_begins();
        let minutes: Vec<usize> = (0..begins.len()).filter(|minute| begins[*minute]).collect();
        assert_eq!(minutes, [12, 13, 36, 37]);
    }

    #[test]
    fn fewer_calls_a_minute_are_some_of_the_same_calls_and_follow_the_trace() {
        let load = Load::new(&trace(6, 3_600_000), SHAPE, 1).unwrap();
        let (many, few) = (load.calls(40.0, 40.0, 3), load.calls(10.0, 40.0, 3));
        assert!(few.iter().all(|call| many.contains(call)));
        assert!((200..700).contains(&few.len()), "{}", few.len());
        let by_day = |calls: &[Call]| calls.iter().filter(|call| call.minute % 24 < 12).count();
        assert!(by_day(&many) * 2 < many.len() - by_day(&many));
        let told: u32 = load.history(40.0, 3).iter().flatten().sum();
        assert!((1_600..2_400).contains(&told), "{told}");
    }

    #[test]
    fn what_is_kept_at_first_use_is_computed_once_and_no_further_back_than_the_window() {
        let call = |minute, pair| Call { minute, at: 0.5, pair };
        let calls = [call(0, 0), call(0, 0), call(2, 0), call(3, 5), call(23, 0)];
        let ns = kept_at_first_use(&calls, &SHAPE, 24, &[1.0, 10.0, 100.0], 2);
        assert_eq!((ns[0], ns[2], ns[3], ns[23]), (8.0, 4.0, 80.0, 8.0));
        assert_eq!(ns.iter().sum::<f64>(), 100.0);
    }

    #[test]
    fn ranks_shift_from_day_to_day_and_the_same_seed_gives_the_same_load() {
        let load = |seed| Load::new(&trace(6, 3_600_000), SHAPE, seed).unwrap().shares;
        assert_eq!(load(4), load(4));
        assert_ne!(load(4), load(5));
        let shares = load(4);
        assert_ne!(shares[0], shares[24]);
        assert!(shares.iter().all(|all| (all.iter().sum::<f64>() - 1.0).abs() < 1e-9));
    }
}
