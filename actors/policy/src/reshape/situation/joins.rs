//! Partitions that queries join, and what has to be copied for it from node to node.

use std::collections::{BTreeMap, BTreeSet};

use super::{Place, Situation};
use crate::history::Joined;
use crate::ids::NodeId;
use crate::reshape::replicate::COPY_NS_PER_BYTE;

/// A partition that another one is joined with.
#[derive(Clone, Copy, Debug)]
pub(in crate::reshape) struct Join {
    pub(in crate::reshape) with: Place,
    /// Queries per tick.
    pub(in crate::reshape) queries: f64,
    /// Copying where no node holds both, in ms per s: the smaller of the two travels.
    pub(in crate::reshape) copied_ms: f64,
}

/// Joins by partition.
#[derive(Default)]
pub(in crate::reshape) struct Joins {
    of: BTreeMap<Place, Vec<Join>>,
}

impl Joins {
    pub(super) fn new(situation: &Situation<'_>, joined: &[Joined]) -> Self {
        let mut joins = Self::default();
        for Joined { a, b, queries } in joined {
            let (Some(a), Some(b)) = (situation.place(a), situation.place(b)) else { continue };
            let bytes = situation.parts[a].view.bytes.min(situation.parts[b].view.bytes) as f64;
            let a_second = queries / (situation.config.tick_ns() / 1e9);
            let copied_ms = a_second * bytes * COPY_NS_PER_BYTE / 1e6;
            for (of, with) in [(a, b), (b, a)] {
                let join = Join { with, queries: *queries, copied_ms };
                joins.of.entry(of).or_default().push(join);
            }
        }
        joins
    }

    pub(in crate::reshape) fn of(&self, place: Place) -> &[Join] {
        self.of.get(&place).map_or(&[], Vec::as_slice)
    }

    /// Partitions that are joined with others, in order.
    pub(in crate::reshape) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.of.keys().copied()
    }
}

impl Situation<'_> {
    /// Joins of a partition with those that no node holds with it, if it is held by `holders`.
    pub(in crate::reshape) fn apart<'s>(
        &'s self,
        place: Place,
        holders: &'s BTreeSet<NodeId>,
    ) -> impl Iterator<Item = Join> + 's {
        let joins = self.joins.of(place).iter().copied();
        joins.filter(|join| self.parts[join.with].holders().is_disjoint(holders))
    }

    /// Copying for joins that is spared if a partition's holders change to these, in ms per s; less than
    /// none if there is more of it.
    pub(in crate::reshape) fn joins_spared_ms(
        &self,
        place: Place,
        holders: &BTreeSet<NodeId>,
    ) -> f64 {
        let copied = |holders: &BTreeSet<NodeId>| -> f64 {
            self.apart(place, holders).map(|join| join.copied_ms).sum()
        };
        if self.joins.of(place).is_empty() {
            return 0.0;
        }
        copied(self.parts[place].holders()) - copied(holders)
    }
}
