//! What each table may still take of one node's background time and memory.

use crate::budgets::{ByTable, Shares};

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
    pub(super) had: ByTable,
    /// What tables want besides, in any order.
    pub(super) wants: Vec<(usize, f64)>,
}

/// What a table may still take.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    part: f64,
    most: f64,
}

/// What each table, by its number, may still take of one pot; nothing is dealt out where there is one table.
#[derive(Default)]
pub(super) struct Parts(Option<(ByTable, Vec<Left>)>);

impl Parts {
    /// Deals the pot out. What a table has already counts as taken from its part.
    pub(super) fn new(pot: Pot, shares: &Shares) -> Self {
        if shares.is_of_one() {
            return Self(None);
        }
        let Pot { left, had, mut wants } = pot;
        let total = (left + had.amounts().iter().map(|(_, had)| had).sum::<f64>()).max(0.0);
        wants.extend_from_slice(had.amounts());
        let parts = shares.deal_numbered(total, &ByTable::sums(wants));
        let left = |(table, part): &(usize, f64)| {
            let (had, limit) = (had.get(*table), shares.numbered(*table).limit);
            let most = if limit < 1.0 { limit * total - had } else { f64::INFINITY };
            Left { part: part - had, most }
        };
        let left = parts.amounts().iter().map(left).collect();
        Self(Some((parts, left)))
    }

    /// What a table may still take in this round.
    pub(super) fn left(&self, table: usize, round: Round) -> f64 {
        let Some((parts, left)) = &self.0 else { return f64::INFINITY };
        let left = parts.place(table).map(|place| left[place]).unwrap_or_default();
        match round {
            Round::Part => left.part.min(left.most),
            Round::Rest => left.most,
        }
    }

    /// A table takes so much; a negative amount gives back.
    pub(super) fn take(&mut self, table: usize, amount: f64) {
        let Some((parts, left)) = &mut self.0 else { return };
        if let Some(place) = parts.place(table) {
            left[place].part -= amount;
            left[place].most -= amount;
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

    const A: usize = 0;
    const B: usize = 1;

    #[test]
    fn what_a_table_had_counts_and_what_others_do_not_want_is_its_own() {
        let had = || ByTable::sums(vec![(A, 40.0)]);
        let two = shares(1.0, &["a", "b"]);
        let pot = Pot { left: 60.0, had: had(), wants: vec![(B, 90.0), (A, 99.0), (B, 9.0)] };
        let mut parts = Parts::new(pot, &two);
        assert_eq!([parts.left(A, Round::Part), parts.left(B, Round::Part)], [10.0, 50.0]);
        assert_eq!(parts.left(A, Round::Rest), f64::INFINITY);
        parts.take(B, 30.0);
        assert_eq!(parts.left(B, Round::Part), 20.0);
        let alone = Pot { left: 60.0, had: had(), wants: vec![(A, 99.0)] };
        assert_eq!(Parts::new(alone, &two).left(A, Round::Part), 60.0);
    }

    #[test]
    fn a_limit_holds_also_for_what_others_leave_and_one_table_has_all() {
        let pot =
            || Pot { left: 90.0, had: ByTable::sums(vec![(A, 10.0)]), wants: vec![(A, 99.0)] };
        let mut parts = Parts::new(pot(), &shares(0.3, &["a"]));
        assert_eq!(parts.left(A, Round::Rest), 20.0);
        parts.take(A, 25.0);
        assert_eq!(parts.left(A, Round::Rest), -5.0);
        assert_eq!(Parts::new(pot(), &shares(1.0, &["a"])).left(A, Round::Part), f64::INFINITY);
    }
}
