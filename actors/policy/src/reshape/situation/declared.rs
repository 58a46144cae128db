//! Partitions that people want on one node.

use std::collections::{BTreeMap, BTreeSet};

use super::{Place, Situation};
use crate::alike;
use crate::cluster::ClusterView;
use crate::ids::NodeId;

/// Sets of partitions with the same keys, of tables that were declared to belong together.
#[derive(Default)]
pub(in crate::reshape) struct Declared {
    sets: Vec<Vec<Place>>,
    of: BTreeMap<Place, usize>,
}

impl Declared {
    pub(super) fn new(situation: &Situation<'_>, view: &ClusterView) -> Self {
        let mut declared = Self::default();
        for group in situation.state.controls.groups() {
            for set in alike::sets(view, group) {
                let places = set.iter().map(|id| situation.place(id));
                // Partitions may have come or gone since the view was begun.
                let Some(places) = places.collect::<Option<Vec<Place>>>() else { continue };
                let number = declared.sets.len();
                declared.of.extend(places.iter().map(|place| (*place, number)));
                declared.sets.push(places);
            }
        }
        declared
    }

    /// All sets.
    pub(in crate::reshape) fn sets(&self) -> &[Vec<Place>] {
        &self.sets
    }

    /// The set that a partition is in, with it.
    fn of(&self, place: Place) -> Option<&[Place]> {
        self.of.get(&place).map(|number| self.sets[*number].as_slice())
    }
}

impl Situation<'_> {
    /// Live nodes that stay and hold all of a set, once a replica of one of them is gone from a node, and has
    /// come to another one, if it has.
    pub(in crate::reshape) fn homes(
        &self,
        set: &[Place],
        change: Option<(Place, NodeId, Option<NodeId>)>,
    ) -> BTreeSet<NodeId> {
        let mut homes: Option<BTreeSet<NodeId>> = None;
        for place in set {
            let mut holders: BTreeSet<NodeId> = self.staying(*place).collect();
            if let Some((_, from, to)) = change.filter(|(changed, ..)| changed == place) {
                holders.remove(&from);
                holders.extend(to);
            }
            homes = Some(match homes {
                None => holders,
                Some(homes) => homes.intersection(&holders).copied().collect(),
            });
        }
        homes.unwrap_or_default()
    }

    /// Whether partitions that people want together would be on one node no more if a replica left one, for
    /// another one if it goes there.
    pub(in crate::reshape) fn takes_apart(
        &self,
        place: Place,
        from: NodeId,
        to: Option<NodeId>,
    ) -> bool {
        let Some(set) = self.declared.of(place) else { return false };
        let change = Some((place, from, to));
        !self.homes(set, None).is_empty() && self.homes(set, change).is_empty()
    }

    /// What leaves `from` for `to` if a partition does: it alone, or all that people want together with it.
    pub(in crate::reshape) fn unit(&self, place: Place, from: NodeId, to: NodeId) -> Vec<Place> {
        match self.declared.of(place) {
            Some(set) if self.takes_apart(place, from, Some(to)) => set.to_vec(),
            _ => vec![place],
        }
    }
}
