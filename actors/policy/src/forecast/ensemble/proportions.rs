//! What partitions are expected to be called by their shares in the calls of their function.
//!
//! A partition that is called now and then says little about when, and much about how often: its function's
//! rhythm is plain, and its share in that changes slowly. How far that is believed, beside what each partition's
//! own past says, is measured: the weight with which both together would have missed least.
//!
//! # Source
//! Top-down forecasts by historical proportions: Gross and Sohl, *Disaggregation methods to expedite product
//! line forecasting*, Journal of Forecasting 1990. The weight is that of Bates and Granger, *The combination
//! of forecasts*, 1969, for two of them.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Partitions of a function of which shares are known at most; of more, none are.
const PARTS_MAX: usize = 1_000;

/// Calls for each partition after which earlier ones count half: shares adapt by calls, not by time.
const HALF_LIFE_CALLS: f64 = 10.0;

/// Calls that each partition has in advance.
const PRIOR: f64 = 0.5;

/// Ticks that count half as much as the newest one for the weight.
const HALF_LIFE_TICKS: f64 = 50.0;

/// Ticks that must be known before shares have a weight.
const TICKS_MIN: f64 = 8.0;

/// Least calls that misses are measured by: of seldom called ones none counts for much.
const CALLS_MIN: f64 = 0.1;

/// Ticks that are waited for at most.
const PENDING_MAX: usize = 16;

/// What was expected of one partition: by its own past, and by its share.
#[derive(Clone, Copy, Debug)]
struct Said {
    series: u64,
    own: f64,
    by_share: f64,
}

/// Proportions of the partitions of one function on one table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Proportions {
    /// Calls, by series; earlier ones count less.
    calls: BTreeMap<u64, f64>,
    /// Of the weight that would have missed least: numerator and denominator.
    products: f64,
    squares: f64,
    ticks: f64,
    #[serde(skip)]
    pending: VecDeque<(u64, Vec<Said>)>,
}

impl Proportions {
    pub(super) fn forget_said(&mut self) {
        self.pending.clear();
    }

    /// Takes in a closed tick; `calls` answers what a series was called in it.
    pub(super) fn observe(&mut self, tick: u64, parts: &[u64], calls: impl Fn(u64) -> f64) {
        if parts.len() > PARTS_MAX {
            *self = Self::default();
            return;
        }
        let sum: f64 = parts.iter().map(|series| calls(*series)).sum();
        let keep = 0.5_f64.powf(sum / (HALF_LIFE_CALLS * parts.len() as f64));
        self.calls = parts
            .iter()
            .map(|series| {
                let before = self.calls.get(series).copied().unwrap_or(0.0);
                (*series, keep * before + calls(*series))
            })
            .collect();
        while self.pending.front().is_some_and(|(due, _)| *due <= tick) {
            let Some((due, said)) = self.pending.pop_front() else { break };
            if due == tick {
                self.judge(&said, &calls);
            }
        }
    }

    fn judge(&mut self, said: &[Said], calls: impl Fn(u64) -> f64) {
        let keep = 0.5_f64.powf(1.0 / HALF_LIFE_TICKS);
        (self.products, self.squares) = (keep * self.products, keep * self.squares);
        self.ticks += 1.0;
        for Said { series, own, by_share } in said {
            let scale = own + by_share + CALLS_MIN;
            let (miss, apart) = (calls(*series) - own, by_share - own);
            self.products += miss * apart / scale;
            self.squares += apart * apart / scale;
        }
    }

    /// How far shares are believed, 0 to 1.
    pub(super) fn weight(&self) -> f64 {
        if self.ticks < TICKS_MIN || self.squares <= 0.0 {
            return 0.0;
        }
        (self.products / self.squares).clamp(0.0, 1.0)
    }

    /// The share of each of `parts`; none if nothing is known of them.
    pub(super) fn of(&self, parts: &[u64]) -> Option<Vec<f64>> {
        if self.calls.is_empty() {
            return None;
        }
        let of = |series: &u64| PRIOR + self.calls.get(series).copied().unwrap_or(0.0);
        let sum: f64 = parts.iter().map(of).sum();
        Some(parts.iter().map(|series| of(series) / sum).collect())
    }

    /// Waits for tick `due`, to see whether `own` or `by_share` is nearer to what comes.
    pub(super) fn said(&mut self, due: u64, parts: &[u64], own: &[f64], by_share: &[f64]) {
        let both = own.iter().zip(by_share);
        let said = parts.iter().zip(both).map(|(series, (own, by_share))| Said {
            series: *series,
            own: *own,
            by_share: *by_share,
        });
        self.pending.retain(|(other, _)| *other != due);
        self.pending.push_back((due, said.collect()));
        if self.pending.len() > PENDING_MAX {
            self.pending.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    const PARTS: [u64; 3] = [1, 2, 3];

    #[test]
    fn shares_go_by_the_newest_calls_and_nobody_has_none() {
        let mut shares = Proportions::default();
        assert_eq!(shares.of(&PARTS), None);
        (0..20).for_each(|tick| {
            shares.observe(tick, &PARTS, |part| [8.0, 2.0, 0.0][part as usize - 1])
        });
        let of = shares.of(&PARTS).unwrap();
        assert!((of.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{of:?}");
        assert!(of[0] > 3.5 * of[1] && of[2] > 0.0, "{of:?}");
        // A day without calls changes nothing, and thirty calls for each partition do.
        (20..80).for_each(|tick| shares.observe(tick, &PARTS, |_| 0.0));
        assert_eq!(shares.of(&PARTS).unwrap(), of);
        (80..89).for_each(|tick| {
            shares.observe(tick, &PARTS, |part| [0.0, 2.0, 8.0][part as usize - 1])
        });
        let now = shares.of(&PARTS).unwrap();
        assert!(now[2] > 3.0 * now[0], "{now:?}");
    }

    /// The weight after so many ticks in which partitions come as one of both says.
    fn weight(by_own: bool) -> f64 {
        let (mut shares, mut random) = (Proportions::default(), SplitMix64::new(3));
        for tick in 0..100_u64 {
            let own = [0.2, 1.0, 3.0].map(|mean| mean * 2.0 * random.uniform());
            let by_share = [1.0, 2.0, 4.0].map(|mean| mean * 2.0 * random.uniform());
            let rates = if by_own { own } else { by_share };
            let came = rates.map(|rate| f64::from(random.poisson(rate)));
            shares.said(tick + 1, &PARTS, &own, &by_share);
            shares.observe(tick + 1, &PARTS, |part| came[part as usize - 1]);
        }
        shares.weight()
    }

    #[test]
    fn whoever_is_right_gets_the_weight() {
        let (of_own, of_shares) = (weight(true), weight(false));
        assert!(of_own < 0.25 && of_shares > 0.75, "{of_own} {of_shares}");
    }

    #[test]
    fn before_some_ticks_are_judged_shares_have_no_weight_and_very_many_partitions_none_at_all() {
        let mut shares = Proportions::default();
        for tick in 1..8 {
            shares.said(tick, &PARTS, &[0.0; 3], &[1.0; 3]);
            shares.observe(tick, &PARTS, |_| 1.0);
        }
        assert_eq!(shares.weight(), 0.0);
        shares.said(8, &PARTS, &[0.0; 3], &[1.0; 3]);
        shares.observe(8, &PARTS, |_| 1.0);
        assert_eq!(shares.weight(), 1.0);
        let many: Vec<u64> = (0..PARTS_MAX as u64 + 1).collect();
        shares.observe(9, &many, |_| 1.0);
        assert_eq!((shares.weight(), shares.of(&many)), (0.0, None));
    }
}
