//! Where a partition is cut in two: with about half of its load on either side, and where few queries span
//! it.
//!
//! Among the borders between two keys that leave 40 to 60 % of the load on the left, that is best which the
//! fewest of the remembered ranges span: a query over a range that a cut parts reads two partitions for ever.
//! Rows stand for load where the partition is split because of its size, or no calls are counted.
//!
//! # Source
//! That a cut weighs balance against the transactions that span it is Schism's (Curino and others, VLDB
//! 2010); that it is looked for in samples of keys, and that what cannot be divided is left whole, TiKV's
//! load-based split.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The share on either side from which on a cut counts as even.
const EVEN_SHARE: f64 = 0.4;

/// A split by load that leaves less of it on one side is not worth its rewriting.
pub const LOAD_SHARE_MIN: f64 = 0.1;

/// What both sides of a cut are to have half of.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Even {
    /// The rows.
    #[default]
    Rows,
    /// The load.
    Load,
}

/// A place between two keys of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Border {
    /// Rows left of it.
    pub rows: u64,
    /// Load left of it, in the unit of [`Whole::load`].
    pub load: f64,
    /// Weight of the remembered ranges that have keys on both sides of it.
    pub spanned: f64,
}

/// All of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Whole {
    /// Its rows.
    pub rows: u64,
    /// What calls on it cost or would have cost; zero if nothing is known.
    pub load: f64,
    /// Weight of the remembered ranges that have keys in it.
    pub ranges: f64,
}

/// No cut is worth making.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NoCut {
    /// All rows have the same key.
    #[error("all its rows have the same key")]
    OneKey,
    /// The load is on one key, or next to one end.
    #[error(
        "the most even cut leaves {:.0} % of its load on one side, which is less than {:.0} %: \
         most of it is on one key",
        share * 100.0, LOAD_SHARE_MIN * 100.0
    )]
    OneKeyIsHot {
        /// The smaller share of the load at the most even cut.
        share: f64,
    },
}

/// Why a partition is cut there. Its text is what `system.decisions` shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    border: Border,
    whole: Whole,
    /// What was wanted.
    wanted: Even,
    /// Weight of the ranges that the most even cut would have parted.
    spanned_in_the_middle: f64,
}

/// The positions in `borders` of the cuts that are worth making, best first, each with why.
///
/// # Shape and units
/// * `borders`: in the order of their keys, each with rows on both sides.
/// * returns at most as many as there are borders; the first one is to be taken if nothing is against it.
///
/// # Errors
/// [`NoCut`] if there is no border, or a split by load would hardly divide it.
///
/// # Cost
/// `O(n log n)` of the borders.
pub fn ranked(
    borders: &[Border],
    whole: Whole,
    wanted: Even,
) -> Result<Vec<(usize, Chosen)>, NoCut> {
    let is_by_load = wanted == Even::Load && whole.load > 0.0;
    let smaller = |left: f64, all: f64| left.min(all - left) / all.max(f64::MIN_POSITIVE);
    // Of cuts that leave the same load on either side, that with the same rows.
    let row_share = |border: &Border| smaller(border.rows as f64, whole.rows as f64);
    let share = |border: &Border| {
        if is_by_load { smaller(border.load, whole.load) } else { row_share(border) }
    };
    let mut all: Vec<usize> = (0..borders.len()).collect();
    let more_even = |a: &usize, b: &usize| {
        let (one, other) = (&borders[*a], &borders[*b]);
        (share(other).total_cmp(&share(one)))
            .then(row_share(other).total_cmp(&row_share(one)))
            .then(a.cmp(b))
    };
    let most_even = all.iter().copied().min_by(more_even).ok_or(NoCut::OneKey)?;
    let best_share = share(&borders[most_even]);
    if is_by_load && best_share < LOAD_SHARE_MIN {
        return Err(NoCut::OneKeyIsHot { share: best_share.max(0.0) });
    }
    let is_even = |at: &usize| share(&borders[*at]) >= EVEN_SHARE;
    all.sort_by(|a, b| {
        let by_spans = || borders[*a].spanned.total_cmp(&borders[*b].spanned);
        match (is_even(a), is_even(b)) {
            (true, true) => by_spans().then_with(|| more_even(a, b)),
            (one, other) => other.cmp(&one).then_with(|| more_even(a, b)),
        }
    });
    all.retain(|at| !is_by_load || share(&borders[*at]) >= LOAD_SHARE_MIN);
    let spanned_in_the_middle = borders[most_even].spanned;
    let chosen = |at: usize| Chosen { border: borders[at], whole, wanted, spanned_in_the_middle };
    Ok(all.into_iter().map(|at| (at, chosen(at))).collect())
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { border, whole, wanted, .. } = self;
        let rows = 100.0 * border.rows as f64 / whole.rows.max(1) as f64;
        match wanted {
            Even::Load if whole.load > 0.0 => {
                let load = 100.0 * border.load / whole.load;
                write!(f, "{load:.0} % of the load and {rows:.0} % of the rows are left of it")?;
            }
            Even::Load => write!(f, "{rows:.0} % of the rows are left of it; no load is counted")?,
            Even::Rows => write!(f, "{rows:.0} % of the rows are left of it")?,
        }
        if whole.ranges <= 0.0 {
            return Ok(());
        }
        let of = |weight: f64| 100.0 * weight / whole.ranges;
        write!(f, "; {:.0} % of the ranges that queries ask for span it", of(border.spanned))?;
        if border.spanned < self.spanned_in_the_middle {
            write!(f, ", {:.0} % the middle", of(self.spanned_in_the_middle))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A partition of so many keys of one row each; `load` says what each carries.
    fn partition(
        keys: u64,
        load: impl Fn(u64) -> f64,
        ranges: &[(u64, u64)],
    ) -> (Vec<Border>, Whole) {
        let borders = (1..keys).map(|left| Border {
            rows: left,
            load: (0..left).map(&load).sum(),
            spanned: ranges.iter().filter(|(from, to)| *from < left && left < *to).count() as f64,
        });
        let whole =
            Whole { rows: keys, load: (0..keys).map(&load).sum(), ranges: ranges.len() as f64 };
        (borders.collect(), whole)
    }

    /// Number of rows left of the best cut, and why it is that.
    fn best((borders, whole): (Vec<Border>, Whole), wanted: Even) -> (u64, String) {
        let ranked = ranked(&borders, whole, wanted).unwrap();
        let (at, chosen) = ranked[0];
        (borders[at].rows, chosen.to_string())
    }

    #[test]
    fn a_skewed_load_is_halved_wherever_the_rows_are() {
        let skewed = || partition(100, |key| if key < 10 { 90.0 } else { 1.0 }, &[]);
        let (left, why) = best(skewed(), Even::Load);
        assert_eq!(left, 6);
        assert_eq!(why, "55 % of the load and 6 % of the rows are left of it");
        let (left, why) = best(skewed(), Even::Rows);
        assert_eq!((left, why.as_str()), (50, "50 % of the rows are left of it"));
    }

    #[test]
    fn rows_are_halved_where_no_load_is_known() {
        let (left, why) = best(partition(100, |_| 0.0, &[]), Even::Load);
        assert_eq!(left, 50);
        assert_eq!(why, "50 % of the rows are left of it; no load is counted");
    }

    #[test]
    fn a_partition_with_all_its_load_on_one_key_is_left_whole() {
        let (borders, whole) = partition(100, |key| if key == 30 { 1e9 } else { 1.0 }, &[]);
        let error = ranked(&borders, whole, Even::Load).unwrap_err();
        assert!(error.to_string().starts_with("the most even cut leaves 0 % of its load"));
        assert!(ranked(&borders, whole, Even::Rows).is_ok(), "its size can be halved");
        // Two hot keys can be parted.
        let two = partition(100, |key| if key == 30 || key == 31 { 1e9 } else { 0.0 }, &[]);
        assert_eq!(best(two, Even::Load).0, 31);
        assert_eq!(ranked(&[], whole, Even::Rows), Err(NoCut::OneKey));
    }

    #[test]
    fn of_cuts_that_are_about_even_that_is_best_which_the_fewest_ranges_span() {
        let ranges = [(40, 56), (44, 56), (45, 90), (0, 46)];
        let (left, why) = best(partition(100, |_| 1.0, &ranges), Even::Load);
        assert_eq!(left, 56);
        assert_eq!(
            why,
            "56 % of the load and 56 % of the rows are left of it; 25 % of the ranges that queries \
             ask for span it, 75 % the middle"
        );
        // What no range spans is out of bounds: 35 % of the load.
        let (left, _) = best(partition(100, |_| 1.0, &[(35, 90)]), Even::Load);
        assert_eq!(left, 50);
        let (left, _) = best(partition(100, |_| 1.0, &[(0, 41), (41, 100)]), Even::Rows);
        assert_eq!(left, 41, "also where it is split because of its size");
    }

    #[test]
    fn what_is_even_comes_before_what_is_not_and_hopeless_cuts_are_left_out() {
        let (borders, whole) = partition(100, |_| 1.0, &[(0, 100)]);
        let all = ranked(&borders, whole, Even::Load).unwrap();
        let shares: Vec<f64> =
            all.iter().map(|(at, _)| borders[*at].load.min(100.0 - borders[*at].load)).collect();
        assert_eq!(shares[0], 50.0);
        assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        assert_eq!((all.len(), shares.last()), (81, Some(&10.0)));
        assert_eq!(ranked(&borders, whole, Even::Rows).unwrap().len(), 99);
    }
}
