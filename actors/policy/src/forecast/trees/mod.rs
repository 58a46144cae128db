//! Gradient-boosted regression trees by histograms: many small trees, each correcting those before.
//!
//! [`Booster::fit`] cuts every feature into at most 255 bins of about equally many rows, once. Each
//! tree then grows leaf by leaf, the one first that gains most, and a split is looked for in sums per
//! bin rather than in rows. Every tree sees another part of the rows and of the features, which is
//! what makes the mean of many better than the best of them. Same input and seed, same trees, on any
//! machine: gradients are summed as integers.

mod bins;
mod grow;
mod saved;
mod split;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::forecast::Effort;
use crate::random::SplitMix64;
use bins::Binned;
use grow::Grower;
use saved::SavedBooster;

/// Bins of a feature beside the one for missing values; a bin is one byte.
pub const BINS_MAX: usize = 255;

/// Features of a row.
pub const FEATURES_MAX: usize = 65_535;

/// Rows of a fit: counts take 24 bits of a histogram's entry.
pub const ROWS_MAX: usize = (1 << 24) - 1;

/// Trees of a booster.
pub const TREES_MAX: usize = 10_000;

/// Leaves of a tree.
pub const LEAVES_MAX: usize = 4_096;

/// Paths through trees that are gone at a time.
const LANES: usize = 8;

/// Rows of features, all of the same length.
///
/// A value that is not finite counts as missing.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    features: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// No rows yet, of `features` values each.
    #[must_use]
    pub fn new(features: usize) -> Self {
        Self { features, values: vec![] }
    }

    /// No rows yet, with room for `rows`.
    #[must_use]
    pub fn with_capacity(features: usize, rows: usize) -> Self {
        Self { features, values: Vec::with_capacity(features * rows) }
    }

    /// Adds one row.
    ///
    /// # Errors
    /// [`BoosterError::Row`] if it has another number of values.
    pub fn push(&mut self, row: &[f32]) -> Result<(), BoosterError> {
        if row.len() != self.features {
            return Err(BoosterError::Row { values: row.len(), features: self.features });
        }
        self.values.extend_from_slice(row);
        Ok(())
    }

    /// Values of a row.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len() / self.features.max(1)
    }

    /// All rows, first to last.
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.features.max(1))
    }
}

/// What the predictions are to come close to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The mean of the target: squared error.
    #[default]
    Squared,
    /// The quantile of the target at `level`: pinball loss. Leaves hold the quantile of what is
    /// left over in them.
    Pinball {
        /// In `(0, 1)`; 0.5 is the median.
        level: f64,
    },
}

/// How trees are grown. The default was chosen on the validation parts of real traces of 3,000 to 27,000
/// rows: seeing few rows and features per tree costs nothing there, and halves the time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoosterConfig {
    /// Number of trees, 1 to [`TREES_MAX`].
    pub trees: usize,
    /// Part of its correction that each tree makes, in `(0, 1]`.
    pub learning_rate: f64,
    /// Leaves of a tree, 2 to [`LEAVES_MAX`].
    pub leaves: usize,
    /// Rows that a leaf has at least, from 1.
    pub leaf_rows_min: usize,
    /// L2 regularisation: so many rows with nothing left over are added to each leaf, from 0.
    pub l2: f64,
    /// Part of the rows that a tree sees, in `(0, 1]`.
    pub row_share: f64,
    /// Part of the features that a tree sees, in `(0, 1]`.
    pub feature_share: f64,
    /// Bins of a feature, 2 to [`BINS_MAX`].
    pub bins: usize,
    /// What is fitted.
    pub loss: Loss,
    /// Seed of the choice of rows and features.
    pub seed: u64,
}

impl Default for BoosterConfig {
    fn default() -> Self {
        Self {
            trees: 400,
            learning_rate: 0.04,
            leaves: 31,
            leaf_rows_min: 20,
            l2: 1.0,
            row_share: 0.3,
            feature_share: 0.4,
            bins: BINS_MAX,
            loss: Loss::Squared,
            seed: 0,
        }
    }
}

impl BoosterConfig {
    fn check(&self) -> Result<(), BoosterError> {
        let share = |value: f64| value > 0.0 && value <= 1.0;
        let level = match self.loss {
            Loss::Squared => 0.5,
            Loss::Pinball { level } => level,
        };
        let bounds = [
            ("trees", self.trees as f64, (1..=TREES_MAX).contains(&self.trees), "1 to 10,000"),
            ("learning_rate", self.learning_rate, share(self.learning_rate), "above 0, at most 1"),
            ("leaves", self.leaves as f64, (2..=LEAVES_MAX).contains(&self.leaves), "2 to 4,096"),
            ("leaf_rows_min", self.leaf_rows_min as f64, self.leaf_rows_min > 0, "at least 1"),
            ("l2", self.l2, self.l2 >= 0.0 && self.l2.is_finite(), "finite and at least 0"),
            ("row_share", self.row_share, share(self.row_share), "above 0, at most 1"),
            ("feature_share", self.feature_share, share(self.feature_share), "above 0, at most 1"),
            ("bins", self.bins as f64, (2..=BINS_MAX).contains(&self.bins), "2 to 255"),
            ("level", level, level > 0.0 && level < 1.0, "above 0, below 1"),
        ];
        match bounds.into_iter().find(|(_, _, holds, _)| !holds) {
            Some((name, value, _, bound)) => Err(BoosterError::Setting { name, value, bound }),
            None => Ok(()),
        }
    }
}

/// Trees cannot be grown, or a stored booster is none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BoosterError {
    /// A setting is out of bounds.
    #[error("{name} is {value}; it must be {bound}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// The value given.
        value: f64,
        /// What it must be.
        bound: &'static str,
    },
    /// A row has more or fewer values than there are features.
    #[error("a row has {values} values; there are {features} features")]
    Row {
        /// Values of the row.
        values: usize,
        /// Values that it must have.
        features: usize,
    },
    /// There is nothing to learn from, or too much.
    #[error("there are {rows} rows of {features} features; 1 to {ROWS_MAX} of 1 to {FEATURES_MAX}")]
    Shape {
        /// Rows given.
        rows: usize,
        /// Features given.
        features: usize,
    },
    /// There are not as many targets as rows.
    #[error("there are {targets} targets for {rows} rows")]
    Targets {
        /// Targets given.
        targets: usize,
        /// Rows given.
        rows: usize,
    },
    /// A target is no finite number.
    #[error("target {position} is {value}; it must be finite")]
    Target {
        /// Position, from zero.
        position: usize,
        /// The value given.
        value: f64,
    },
    /// A stored booster cannot be used.
    #[error("stored trees are unusable: {reason}")]
    Saved {
        /// What is wrong.
        reason: String,
    },
}

impl BoosterError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Setting { .. } => "FS-TREES-1",
            Self::Row { .. } => "FS-TREES-2",
            Self::Shape { .. } => "FS-TREES-3",
            Self::Targets { .. } => "FS-TREES-4",
            Self::Target { .. } => "FS-TREES-5",
            Self::Saved { .. } => "FS-TREES-6",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// One node of a tree. A split has two children that stand side by side.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    /// Rows up to here go left; of a leaf, its part of the prediction.
    threshold: f32,
    /// Position of the left child, or zero: a leaf.
    left: u32,
    feature: u16,
    is_missing_left: bool,
}

/// Trees that were fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SavedBooster", into = "SavedBooster")]
pub struct Booster {
    features: usize,
    base: f32,
    /// Nodes of all trees; children stand behind their parent.
    nodes: Vec<Node>,
    /// Position of each tree's first node.
    roots: Vec<u32>,
}

impl Booster {
    /// Grows trees that predict `targets` from the rows of `matrix`.
    ///
    /// # Shape and units
    /// * `matrix`: `n` rows, 1 to [`ROWS_MAX`], of 1 to [`FEATURES_MAX`] features; values that are not
    ///   finite are missing, and go to that side of each split where they fit better.
    /// * `targets`: one finite number per row, in any unit.
    ///
    /// Fewer trees than asked for are grown if nothing is left to correct.
    ///
    /// # Errors
    /// [`BoosterError`], naming the setting, shape or target that is out of bounds.
    ///
    /// # Cost
    /// Per tree about `rows * row_share * features * feature_share * log2(leaves) / 2` additions:
    /// 34,000 rows of 50 features and 300 trees of 31 leaves take about 1.5 seconds with all rows and
    /// features, 0.8 with the default's part of each. Memory: one byte per value, and 2 KiB per leaf and feature.
    ///
    /// # Source
    /// Friedman, "Greedy function approximation: a gradient boosting machine" (2001) and "Stochastic
    /// gradient boosting" (2002); growth by leaves and the difference of histograms as in Ke and
    /// others, "LightGBM" (2017).
    pub fn fit(
        matrix: &Matrix,
        targets: &[f64],
        config: &BoosterConfig,
    ) -> Result<Self, BoosterError> {
        Self::fit_within(matrix, targets, config, Effort::steps(0))
    }

    /// The same with the pauses of `effort`, after each tree.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn fit_within(
        matrix: &Matrix,
        targets: &[f64],
        config: &BoosterConfig,
        effort: Effort<'_>,
    ) -> Result<Self, BoosterError> {
        config.check()?;
        let (rows, features) = (matrix.rows(), matrix.features());
        if !(1..=ROWS_MAX).contains(&rows) || !(1..=FEATURES_MAX).contains(&features) {
            return Err(BoosterError::Shape { rows, features });
        }
        if targets.len() != rows {
            return Err(BoosterError::Targets { targets: targets.len(), rows });
        }
        let broken = targets.iter().enumerate().find(|(_, target)| !target.is_finite());
        if let Some((position, value)) = broken {
            return Err(BoosterError::Target { position, value: *value });
        }
        let base = match config.loss {
            Loss::Squared => targets.iter().sum::<f64>() / rows as f64,
            Loss::Pinball { level } => grow::quantile(&mut targets.to_vec(), level),
        } as f32;
        let mut booster = Self { features, base, nodes: vec![], roots: vec![] };
        let binned = Binned::new(matrix, config.bins, effort);
        let mut grower = Grower::new(&binned, config);
        let mut rest: Vec<f64> = targets.iter().map(|target| target - f64::from(base)).collect();
        let mut random = SplitMix64::new(config.seed);
        for _ in 0..config.trees {
            effort.pause();
            let sample = random.sample(rows, config.row_share);
            let chosen = random.sample(features, config.feature_share);
            let Some(tree) = grower.tree(&mut rest, sample, &chosen) else { break };
            let root = booster.nodes.len() as u32;
            booster.roots.push(root);
            booster.nodes.extend(tree.into_iter().map(|mut node| {
                node.left += if node.left == 0 { 0 } else { root };
                node
            }));
        }
        Ok(booster)
    }

    /// Values that a row must have.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// Number of trees.
    #[must_use]
    pub fn trees(&self) -> usize {
        self.roots.len()
    }

    /// Predicts the target of one row. Values that the row lacks count as missing, further ones are
    /// not looked at.
    ///
    /// # Cost
    /// One comparison per tree and level: about 10 microseconds for 300 trees of 31 leaves. For many
    /// rows [`predict_all`](Self::predict_all) is faster.
    #[must_use]
    pub fn predict(&self, row: &[f32]) -> f64 {
        let row = whole(row, self.features);
        let mut sum = f64::from(self.base);
        for roots in self.roots.chunks(LANES) {
            let leaves = self.leaves(roots.iter().map(|root| (*root, row.as_ref())));
            leaves[..roots.len()].iter().for_each(|leaf| sum += f64::from(*leaf));
        }
        sum
    }

    /// Predicts the target of every row, in their order.
    ///
    /// # Cost
    /// As [`predict`](Self::predict), a fifth less: rows that go through the same tree share its nodes.
    #[must_use]
    pub fn predict_all(&self, matrix: &Matrix) -> Vec<f64> {
        if matrix.features() < self.features {
            return matrix.iter().map(|row| self.predict(row)).collect();
        }
        let mut all = vec![f64::from(self.base); matrix.rows()];
        let values = matrix.values.chunks(LANES * matrix.features());
        for (sums, values) in all.chunks_mut(LANES).zip(values) {
            for root in &self.roots {
                let rows = values.chunks_exact(matrix.features());
                let leaves = self.leaves(rows.map(|row| (*root, row)));
                sums.iter_mut().zip(leaves).for_each(|(sum, leaf)| *sum += f64::from(leaf));
            }
        }
        all
    }

    /// What trees, given by their roots, add for rows. Several paths are gone at a time, step by step:
    /// one alone would mostly wait for its next node.
    fn leaves<'a>(&self, paths: impl Iterator<Item = (u32, &'a [f32])>) -> [f32; LANES] {
        let (mut nodes, mut rows, mut count) = ([0_u32; LANES], [&[] as &[f32]; LANES], 0);
        for (root, row) in paths.take(LANES) {
            (nodes[count], rows[count]) = (root, row);
            count += 1;
        }
        loop {
            let mut is_moving = false;
            for (position, row) in nodes[..count].iter_mut().zip(&rows) {
                let node = self.nodes[*position as usize];
                let value = row[usize::from(node.feature)];
                // Written so that it needs no jump, which could not be foretold.
                let is_left = (value <= node.threshold) & value.is_finite()
                    | (node.is_missing_left & !value.is_finite());
                let child = node.left + u32::from(!is_left);
                *position = if node.left == 0 { *position } else { child };
                is_moving |= node.left != 0;
            }
            if !is_moving {
                break;
            }
        }
        nodes.map(|position| self.nodes.get(position as usize).map_or(0.0, |node| node.threshold))
    }
}

/// The row, with missing values for those that it lacks.
fn whole(row: &[f32], features: usize) -> Cow<'_, [f32]> {
    if row.len() >= features {
        return Cow::Borrowed(row);
    }
    let missing = std::iter::repeat(f32::NAN);
    Cow::Owned(row.iter().copied().chain(missing).take(features).collect())
}
