//! Decides in which order predicates are evaluated on a batch of rows.
//!
//! Each predicate sees the rows that the ones before left. The cheapest order evaluates by descending
//! rank: rows dropped per nanosecond spent.

/// What is known of one predicate when the next one is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicate {
    /// Nanoseconds that one row costs now: stored outputs and values that are there already cost nothing.
    pub ns_per_row: f64,
    /// Share of rows that pass, in `[0, 1]`; `None` if it has seen none.
    pub passes: Option<f64>,
}

/// Share taken to pass before any row was seen.
const PASSES_UNKNOWN: f64 = 0.5;

/// Least cost of a row, so that what is free has a rank too.
const NS_PER_ROW_MIN: f64 = 0.1;

impl Predicate {
    /// Rows dropped per nanosecond.
    #[must_use]
    pub fn rank(&self) -> f64 {
        let passes = self.passes.unwrap_or(PASSES_UNKNOWN).clamp(0.0, 1.0);
        (1.0 - passes) / self.ns_per_row.max(NS_PER_ROW_MIN)
    }
}

/// Position of the predicate to evaluate next: the one with the highest rank; of equal ones the cheaper,
/// then the first. `None` if there is none.
///
/// # Cost
/// `O(n)`.
///
/// # Source
/// Hellerstein and Stonebraker, "Predicate migration" (SIGMOD 1993); the reuse-aware cost follows Xu et
/// al., "EVA" (SIGMOD 2022).
#[must_use]
pub fn next(predicates: impl IntoIterator<Item = Predicate>) -> Option<usize> {
    let mut best: Option<(usize, Predicate)> = None;
    for (position, predicate) in predicates.into_iter().enumerate() {
        let is_better = best.is_none_or(|(_, best)| {
            predicate
                .rank()
                .total_cmp(&best.rank())
                .then(best.ns_per_row.total_cmp(&predicate.ns_per_row))
                .is_gt()
        });
        if is_better {
            best = Some((position, predicate));
        }
    }
    best.map(|(position, _)| position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn predicate(ns_per_row: f64, passes: f64) -> Predicate {
        Predicate { ns_per_row, passes: Some(passes) }
    }

    /// Expected cost of one row under an order.
    fn cost(order: &[Predicate]) -> f64 {
        let mut left = 1.0;
        order.iter().fold(0.0, |cost, predicate| {
            let cost = cost + left * predicate.ns_per_row;
            left *= predicate.passes.unwrap_or(PASSES_UNKNOWN);
            cost
        })
    }

    fn ordered(mut rest: Vec<Predicate>) -> Vec<Predicate> {
        let mut order = vec![];
        while let Some(position) = next(rest.iter().copied()) {
            order.push(rest.remove(position));
        }
        order
    }

    fn orders(rest: &[Predicate]) -> Vec<Vec<Predicate>> {
        if rest.is_empty() {
            return vec![vec![]];
        }
        let mut all = vec![];
        for first in 0..rest.len() {
            let mut others = rest.to_vec();
            let first = others.remove(first);
            all.extend(orders(&others).into_iter().map(|order| [vec![first], order].concat()));
        }
        all
    }

    #[test]
    fn the_cheap_goes_before_the_dear_and_the_strict_before_the_lax() {
        let (cheap, dear) = (predicate(10.0, 0.5), predicate(1_000.0, 0.5));
        assert_eq!(next([dear, cheap]), Some(1));
        assert_eq!(next([predicate(10.0, 0.9), predicate(10.0, 0.1)]), Some(1));
        assert_eq!(next([predicate(1_000.0, 0.01), predicate(900.0, 0.99)]), Some(0));
        assert_eq!(next([cheap, cheap]), Some(0), "as written");
        assert_eq!(next([predicate(9.0, 1.0), predicate(5.0, 1.0)]), Some(1), "none drops a row");
        assert_eq!(next([]), None);
    }

    #[test]
    fn what_is_stored_goes_first_although_nothing_is_known_of_it() {
        let stored = Predicate { ns_per_row: 0.0, passes: None };
        assert_eq!(next([predicate(50.0, 0.1), stored]), Some(1));
    }

    proptest! {
        #[test]
        fn no_order_is_cheaper_than_the_chosen_one(
            predicates in prop::collection::vec((1.0..1e6, 0.0..1.0), 1..6),
        ) {
            let predicates: Vec<Predicate> =
                predicates.into_iter().map(|(ns, passes)| predicate(ns, passes)).collect();
            let chosen = cost(&ordered(predicates.clone()));
            for order in orders(&predicates) {
                prop_assert!(chosen <= cost(&order) * (1.0 + 1e-9));
            }
        }
    }
}
