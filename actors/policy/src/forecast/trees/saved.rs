//! Trees as they are stored, checked when they are read.

use serde::{Deserialize, Serialize};

use super::{Booster, BoosterError, FEATURES_MAX, LEAVES_MAX, Node, TREES_MAX};

/// Changes whenever the fields below do.
const VERSION: u32 = 1;

/// A booster by columns, which is shorter than node by node.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedBooster {
    version: u32,
    features: usize,
    base: f32,
    roots: Vec<u32>,
    /// Per node: its threshold, or what a leaf adds.
    thresholds: Vec<f32>,
    /// Per node: its left child, zero for a leaf.
    lefts: Vec<u32>,
    /// Per node: twice its feature, and one more if missing values go left.
    features_and_sides: Vec<u32>,
}

impl From<Booster> for SavedBooster {
    fn from(booster: Booster) -> Self {
        let nodes = booster.nodes.iter();
        Self {
            version: VERSION,
            features: booster.features,
            base: booster.base,
            roots: booster.roots,
            thresholds: nodes.clone().map(|node| node.threshold).collect(),
            lefts: nodes.clone().map(|node| node.left).collect(),
            features_and_sides: nodes
                .map(|node| 2 * u32::from(node.feature) + u32::from(node.is_missing_left))
                .collect(),
        }
    }
}

impl TryFrom<SavedBooster> for Booster {
    type Error = BoosterError;

    fn try_from(saved: SavedBooster) -> Result<Self, BoosterError> {
        saved.check().map_err(|reason| BoosterError::Saved { reason })?;
        let columns = saved.thresholds.iter().zip(&saved.lefts).zip(&saved.features_and_sides);
        let nodes = columns.map(|((threshold, left), feature_and_side)| Node {
            threshold: *threshold,
            left: *left,
            feature: (feature_and_side / 2) as u16,
            is_missing_left: feature_and_side % 2 == 1,
        });
        let (features, base) = (saved.features, saved.base);
        Ok(Self { features, base, nodes: nodes.collect(), roots: saved.roots })
    }
}

impl SavedBooster {
    fn check(&self) -> Result<(), String> {
        let nodes = self.thresholds.len();
        let ensure =
            |holds: bool, reason: &str| if holds { Ok(()) } else { Err(reason.to_owned()) };
        ensure(self.version == VERSION, "of another version")?;
        ensure((1..=FEATURES_MAX).contains(&self.features), "number of features out of bounds")?;
        ensure(self.roots.len() <= TREES_MAX, "too many trees")?;
        ensure(nodes <= self.roots.len() * 2 * LEAVES_MAX, "too many nodes")?;
        ensure(self.lefts.len() == nodes, "columns differ in length")?;
        ensure(self.features_and_sides.len() == nodes, "columns differ in length")?;
        ensure(self.base.is_finite(), "base is not finite")?;
        ensure(self.thresholds.iter().all(|value| value.is_finite()), "threshold is not finite")?;
        ensure(self.roots.iter().all(|root| (*root as usize) < nodes), "root out of bounds")?;
        for (position, (left, feature)) in
            self.lefts.iter().zip(&self.features_and_sides).enumerate()
        {
            let (left, feature) = (*left as usize, *feature as usize / 2);
            // A child behind its parent leaves no way round in a circle.
            let is_child = left > position && left + 1 < nodes;
            ensure(left == 0 || is_child, "child out of bounds")?;
            ensure(feature < self.features, "feature out of bounds")?;
        }
        Ok(())
    }
}
