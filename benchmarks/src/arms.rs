//! Plays several ways of doing the same thing against each other, so that a drifting machine favours
//! none of them.
//!
//! Arms take turns in one process: `A B`, `B A`, `A B`, .. Each arm first runs a few times without
//! being counted. What is compared are medians; how far to believe them says the spread.

use anyhow::Result;
use foreshard_actors::ports::Clock;

use crate::report::Row;

/// How often the arms are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// Rounds before counting starts.
    pub warm_up: usize,
    /// Rounds that count; at least one.
    pub counted: usize,
}

impl Rounds {
    /// Rounds of something long, which is played whole in each: enough to be believed, or just enough
    /// to see that it works.
    #[must_use]
    pub fn long(quick: bool) -> Self {
        if quick { Self { warm_up: 0, counted: 2 } } else { Self { warm_up: 1, counted: 5 } }
    }

    /// All rounds, each with whether it counts.
    pub fn all(self) -> impl Iterator<Item = (usize, bool)> {
        (0..self.warm_up + self.counted.max(1)).map(move |round| (round, round >= self.warm_up))
    }
}

/// The order in which `arms` arms run in `round`: forwards in even rounds, backwards in odd ones.
#[must_use]
pub fn order(round: usize, arms: usize) -> Vec<usize> {
    let forwards = 0..arms;
    if round.is_multiple_of(2) { forwards.collect() } else { forwards.rev().collect() }
}

/// Runs `ARMS` arms in turns and times them; `run` gets the position of the arm, and so does `prepare`,
/// whose time belongs to nobody.
///
/// # Errors
/// The first error of either; nothing is retried.
pub async fn interleave<const ARMS: usize>(
    clock: &dyn Clock,
    rounds: Rounds,
    mut prepare: impl AsyncFnMut(usize) -> Result<()>,
    mut run: impl AsyncFnMut(usize) -> Result<()>,
) -> Result<[Samples; ARMS]> {
    let mut samples = std::array::from_fn(|_| Samples::default());
    for (round, counts) in rounds.all() {
        for arm in order(round, ARMS) {
            prepare(arm).await?;
            let start = clock.monotonic_ns();
            run(arm).await?;
            let ns = clock.monotonic_ns().saturating_sub(start);
            if counts {
                samples[arm].push(ns);
            }
        }
    }
    Ok(samples)
}

/// Times of one arm in nanoseconds, in the order in which they were measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    ns: Vec<u64>,
}

impl Samples {
    /// Adds one time.
    pub fn push(&mut self, ns: u64) {
        self.ns.push(ns);
    }

    /// The times in the order in which they were measured.
    #[must_use]
    pub fn ns(&self) -> &[u64] {
        &self.ns
    }

    /// The middle time in nanoseconds (mean of the two middle ones if their number is even); NaN if
    /// there is none.
    #[must_use]
    pub fn median(&self) -> f64 {
        foreshard::demo::measure::quantile(&self.ns, 0.5)
    }

    /// Half of the times lie in a range of this width around the median, as a share of the median.
    #[must_use]
    pub fn spread(&self) -> f64 {
        let quantile = |q| foreshard::demo::measure::quantile(&self.ns, q);
        (quantile(0.75) - quantile(0.25)) / self.median()
    }
}

/// One arm's times over another's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Ratio of the medians.
    pub median: f64,
    /// Smallest ratio of two times of one round.
    pub min: f64,
    /// Largest ratio of two times of one round.
    pub max: f64,
}

impl Ratio {
    /// `ours` over `theirs`, which were measured in the same rounds.
    #[must_use]
    pub fn of(ours: &Samples, theirs: &Samples) -> Self {
        let paired = || ours.ns.iter().zip(&theirs.ns).map(|(a, b)| *a as f64 / *b as f64);
        Self {
            median: ours.median() / theirs.median(),
            min: paired().fold(f64::INFINITY, f64::min),
            max: paired().fold(0.0, f64::max),
        }
    }
}

/// The times of both sides of one thing, measured in the same rounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// Times of the engine.
    pub ours: Samples,
    /// Times of plain DataFusion.
    pub plain: Samples,
}

impl Pair {
    /// Adds one round.
    pub fn push(&mut self, ours_ns: u64, plain_ns: u64) {
        self.ours.push(ours_ns);
        self.plain.push(plain_ns);
    }

    /// Our time over plain's: below 1 is faster.
    #[must_use]
    pub fn ratio(&self) -> Ratio {
        Ratio::of(&self.ours, &self.plain)
    }

    /// Plain's time over ours: above 1 is faster.
    #[must_use]
    pub fn speedup(&self) -> Ratio {
        Ratio::of(&self.plain, &self.ours)
    }

    fn beside(&self, row: Row, name: &'static str, compared: Ratio) -> Row {
        row.with("foreshard_ms", self.ours.median() / 1e6)
            .with("datafusion_ms", self.plain.median() / 1e6)
            .with(name, compared.median)
            .with("min", compared.min)
            .with("max", compared.max)
            .with("foreshard_spread", self.ours.spread())
            .with("datafusion_spread", self.plain.spread())
            .with("runs", self.ours.ns().len() as u64)
    }

    /// Adds both medians and spreads, and our time over plain's in the column `ratio`.
    #[must_use]
    pub fn with_ratio(&self, row: Row) -> Row {
        self.beside(row, "ratio", self.ratio())
    }

    /// Adds both medians and spreads, and plain's time over ours in the column `speedup`.
    #[must_use]
    pub fn with_speedup(&self, row: Row) -> Row {
        self.beside(row, "speedup", self.speedup())
    }
}

/// Geometric mean of positive numbers; NaN if there are none.
#[must_use]
pub fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct HandClock(AtomicU64);

    impl Clock for HandClock {
        fn now_ms(&self) -> u64 {
            0
        }

        fn monotonic_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn arms_take_turns_and_warm_up_does_not_count() {
        let clock = HandClock::default();
        let mut played = Vec::new();
        let rounds = Rounds { warm_up: 1, counted: 3 };
        let samples = futures::executor::block_on(interleave::<2>(
            &clock,
            rounds,
            async |_| Ok(()),
            async |arm| {
                played.push(arm);
                clock.0.fetch_add(10 * (arm as u64 + 1), Ordering::Relaxed);
                Ok(())
            },
        ))
        .unwrap();
        assert_eq!(played, [0, 1, 1, 0, 0, 1, 1, 0]);
        assert_eq!(samples[0].ns(), [10, 10, 10]);
        assert_eq!(samples[1].ns(), [20, 20, 20]);
    }

    #[test]
    fn a_ratio_is_of_medians_and_its_range_of_paired_rounds() {
        let ours = Samples { ns: vec![10, 30, 20] };
        let theirs = Samples { ns: vec![10, 10, 40] };
        let ratio = Ratio::of(&ours, &theirs);
        assert_eq!(ratio, Ratio { median: 2.0, min: 0.5, max: 3.0 });
        assert!((ours.spread() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_pair_is_as_many_times_faster_as_the_other_is_slower() {
        let mut pair = Pair::default();
        pair.push(10, 40);
        pair.push(20, 80);
        assert_eq!((pair.ratio().median, pair.speedup().median), (0.25, 4.0));
        let counts: Vec<_> = Rounds { warm_up: 1, counted: 2 }.all().collect();
        assert_eq!(counts, [(0, false), (1, true), (2, true)]);
    }

    #[test]
    fn the_geometric_mean_of_a_ratio_and_its_inverse_is_one() {
        assert!((geometric_mean(&[4.0, 0.25]) - 1.0).abs() < 1e-12);
        assert!(geometric_mean(&[]).is_nan());
    }
}
