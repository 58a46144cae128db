//! What each table may still take of one node's background time and memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::budgets::Shares;

/// Whether a table keeps to its part, or takes of what others leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// First each table has its part.
    Part,
    /// Then what is left is anybody's, up to the limit of each.
    Rest,
}

/// What one budget is, and who wants how much of it.
#[derive(Default)]
pub(super) struct Pot {
    /// What can still be had.
    pub(super) left: f64,
    /// What each table has of it already.
    pub(super) had: BTreeMap<Arc<str>, f64>,
    /// What each table wants besides.
    pub(super) wants: BTreeMap<Arc<str>, f64>,
}

/// What a table may still take.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    part: f64,
    most: f64,
}

/// What each table may still take of one pot; nothing is dealt out where there is one table.
#[derive(Default)]
pub(super) struct Parts(Option<BTreeMap<Arc<str>, Left>>);

impl Parts {
    /// Deals the pot out. What a table has already counts as taken from its part.
    pub(super) fn new(pot: &Pot, shares: &Shares) -> Self {
        if shares.is_of_one() {
            return Self(None);
        }
        let total = (pot.left + pot.had.values().sum::<f64>()).max(0.0);
        let had = |table: &Arc<str>| pot.had.get(table).copied().unwrap_or(0.0);
        let mut wants = pot.had.clone();
        for (table, wanted) in &pot.wants {
            *wants.entry(Arc::clone(table)).or_default() += wanted;
        }
        let left = |(table, part): (Arc<str>, f64)| {
            let (had, limit) = (had(&table), shares.of(&table).limit);
            let most = if limit < 1.0 { limit * total - had } else { f64::INFINITY };
            (table, Left { part: part - had, most })
        };
        Self(Some(shares.deal(total, &wants).into_iter().map(left).collect()))
    }

    /// What a table may still take in this round.
    pub(super) fn left(&self, table: &str, round: Round) -> f64 {
        let left = self.0.as_ref().map(|tables| tables.get(table).copied().unwrap_or_default());
        match (left, round) {
            (None, _) => f64::INFINITY,
            (Some(left), Round::Part) => left.part.min(left.most),
            (Some(left), Round::Rest) => left.most,
        }
    }

    /// A table takes so much; a negative amount gives back.
    pub(super) fn take(&mut self, table: &str, amount: f64) {
        if let Some(left) = self.0.as_mut().and_then(|tables| tables.get_mut(table)) {
            left.part -= amount;
            left.most -= amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budgets::TableBudget;
    use crate::cluster::{ClusterView, PartitionView};
    use crate::config::LoopConfig;
    use crate::control::Controls;
    use crate::ids::PartitionId;

    fn shares(limit: f64, tables: &[&str]) -> Shares {
        let mut controls = Controls::default();
        controls.set_budget("a", TableBudget::default().with_limit(limit).unwrap());
        let part = |table: &&str| (PartitionId::new(*table, 0), PartitionView::default());
        let partitions = tables.iter().map(part).collect();
        let view = ClusterView { partitions, ..ClusterView::default() };
        Shares::new(&view, None, &controls, &LoopConfig::default())
    }

    fn of(amounts: &[(&str, f64)]) -> BTreeMap<Arc<str>, f64> {
        amounts.iter().map(|(table, amount)| (Arc::from(*table), *amount)).collect()
    }

    #[test]
    fn what_a_table_had_counts_and_what_others_do_not_want_is_its_own() {
        let pot =
            Pot { left: 60.0, had: of(&[("a", 40.0)]), wants: of(&[("a", 99.0), ("b", 99.0)]) };
        let mut parts = Parts::new(&pot, &shares(1.0, &["a", "b"]));
        assert_eq!([parts.left("a", Round::Part), parts.left("b", Round::Part)], [10.0, 50.0]);
        assert_eq!(parts.left("a", Round::Rest), f64::INFINITY);
        parts.take("b", 30.0);
        assert_eq!(parts.left("b", Round::Part), 20.0);
        let alone = Pot { wants: of(&[("a", 99.0)]), ..pot };
        assert_eq!(Parts::new(&alone, &shares(1.0, &["a", "b"])).left("a", Round::Part), 60.0);
    }

    #[test]
    fn a_limit_holds_also_for_what_others_leave_and_one_table_has_all() {
        let pot = Pot { left: 90.0, had: of(&[("a", 10.0)]), wants: of(&[("a", 99.0)]) };
        let mut parts = Parts::new(&pot, &shares(0.3, &["a"]));
        assert_eq!(parts.left("a", Round::Rest), 20.0);
        parts.take("a", 25.0);
        assert_eq!(parts.left("a", Round::Rest), -5.0);
        assert_eq!(Parts::new(&pot, &shares(1.0, &["a"])).left("a", Round::Part), f64::INFINITY);
    }
}
