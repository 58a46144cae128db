//! Grows one tree, the leaf first that gains most.

use super::bins::{Binned, ENTRIES};
use super::split::{self, Bounds, Entry, Split};
use super::{BoosterConfig, Loss, Node};

/// Grows trees over the same rows; what it holds are buffers and settings.
#[derive(Debug)]
pub(super) struct Grower<'a> {
    binned: &'a Binned,
    config: &'a BoosterConfig,
    gradients: Vec<f64>,
    /// Gradients in the order of `rows`.
    entries: Vec<Entry>,
    /// Entry of every row of a leaf, in its order.
    gathered: Vec<Entry>,
    /// Rows that the tree sees, leaf by leaf.
    rows: Vec<u32>,
    right: Vec<u32>,
    spare: Vec<Vec<Entry>>,
}

/// A leaf that may be split.
#[derive(Debug)]
struct Leaf {
    node: usize,
    /// Its part of the rows.
    from: usize,
    to: usize,
    histograms: Vec<Entry>,
    best: Option<Split>,
}

/// A node while its tree is grown.
#[derive(Clone, Copy, Debug)]
struct Growing {
    /// Where it was split, and by which feature.
    split: Option<(Split, usize)>,
    left: usize,
    value: f64,
}

impl<'a> Grower<'a> {
    pub(super) fn new(binned: &'a Binned, config: &'a BoosterConfig) -> Self {
        Self {
            binned,
            config,
            gradients: vec![],
            entries: vec![],
            gathered: vec![],
            rows: vec![],
            right: vec![],
            spare: vec![],
        }
    }

    /// One more tree for what is left over of each target, over the rows `sample` and `features`; its
    /// predictions are taken off `rest`. `None` if nothing is left over.
    pub(super) fn tree(
        &mut self,
        rest: &mut [f64],
        sample: Vec<u32>,
        features: &[u32],
    ) -> Option<Vec<Node>> {
        self.gradients.clear();
        let loss = self.config.loss;
        self.gradients.extend(rest.iter().map(|rest| match loss {
            Loss::Squared => *rest,
            Loss::Pinball { level } if *rest > 0.0 => level,
            Loss::Pinball { level } => level - 1.0,
        }));
        let gain_min = split::entries(&self.gradients, &mut self.entries)?;
        self.rows = sample;
        let bounds =
            Bounds { leaf_rows_min: self.config.leaf_rows_min, l2: self.config.l2, gain_min };
        let mut nodes = vec![Growing { split: None, left: 0, value: 0.0 }];
        let mut leaves = vec![self.first_leaf(features, bounds)];
        while leaves.len() < self.config.leaves {
            let Some(next) = most_gaining(&leaves) else { break };
            let leaf = leaves.swap_remove(next);
            let Some(split) = leaf.best else { break };
            let left = nodes.len();
            nodes[leaf.node].split = Some((split, features[split.position] as usize));
            nodes[leaf.node].left = left;
            nodes.extend([Growing { split: None, left: 0, value: 0.0 }; 2]);
            leaves.extend(self.parted(leaf, split, left, features, bounds));
        }
        for leaf in leaves {
            nodes[leaf.node].value = self.leaf_value(&leaf, rest);
            self.spare.push(leaf.histograms);
        }
        self.take_off(&nodes, rest);
        Some(nodes.iter().map(|node| self.finished(node)).collect())
    }

    fn first_leaf(&mut self, features: &[u32], bounds: Bounds) -> Leaf {
        let mut histograms = self.histograms(features.len());
        self.count(0, self.rows.len(), features, &mut histograms);
        let best = self.best(&histograms, features, bounds);
        Leaf { node: 0, from: 0, to: self.rows.len(), histograms, best }
    }

    /// The two leaves that `leaf` becomes. Only the smaller one's rows are counted.
    fn parted(
        &mut self,
        leaf: Leaf,
        split: Split,
        left: usize,
        features: &[u32],
        bounds: Bounds,
    ) -> [Leaf; 2] {
        let feature = features[split.position] as usize;
        let middle = self.part(&leaf, split, feature);
        let (from, to) = (leaf.from, leaf.to);
        let is_left_small = middle - from <= to - middle;
        let (small_from, small_to) = if is_left_small { (from, middle) } else { (middle, to) };
        let mut small = self.histograms(features.len());
        self.count(small_from, small_to, features, &mut small);
        let mut large = leaf.histograms;
        split::subtract(&mut large, &small);
        let (of_left, of_right) = if is_left_small { (small, large) } else { (large, small) };
        [(left, from, middle, of_left), (left + 1, middle, to, of_right)].map(
            |(node, from, to, histograms)| {
                let best = if to - from >= 2 * bounds.leaf_rows_min {
                    self.best(&histograms, features, bounds)
                } else {
                    None
                };
                Leaf { node, from, to, histograms, best }
            },
        )
    }

    /// Brings the rows that go left before those that go right, each in their order, and tells where
    /// these begin.
    fn part(&mut self, leaf: &Leaf, split: Split, feature: usize) -> usize {
        let column = self.binned.column(feature);
        self.right.clear();
        let mut middle = leaf.from;
        for position in leaf.from..leaf.to {
            let row = self.rows[position];
            if split.is_left(column[row as usize]) {
                self.rows[middle] = row;
                middle += 1;
            } else {
                self.right.push(row);
            }
        }
        self.rows[middle..leaf.to].copy_from_slice(&self.right);
        middle
    }

    /// Empty histograms.
    fn histograms(&mut self, features: usize) -> Vec<Entry> {
        let mut histograms = self.spare.pop().unwrap_or_default();
        histograms.clear();
        histograms.resize(features * ENTRIES, Entry::default());
        histograms
    }

    fn count(&mut self, from: usize, to: usize, features: &[u32], histograms: &mut [Entry]) {
        let rows = &self.rows[from..to];
        self.gathered.clear();
        self.gathered.extend(rows.iter().map(|row| self.entries[*row as usize]));
        for (feature, histogram) in features.iter().zip(histograms.chunks_exact_mut(ENTRIES)) {
            split::count(histogram, self.binned.column(*feature as usize), rows, &self.gathered);
        }
    }

    fn best(&self, histograms: &[Entry], features: &[u32], bounds: Bounds) -> Option<Split> {
        let mut best = None;
        let all = features.iter().zip(histograms.chunks_exact(ENTRIES)).enumerate();
        for (position, (feature, histogram)) in all {
            let bin_last = self.binned.bin_last(*feature as usize);
            best = split::better(best, histogram, bin_last, position, bounds);
        }
        best
    }

    /// What the rows of a leaf lack, regularised and times the learning rate.
    fn leaf_value(&self, leaf: &Leaf, rest: &[f64]) -> f64 {
        let rows = &self.rows[leaf.from..leaf.to];
        let lacking = rows.iter().map(|row| rest[*row as usize]);
        let count = rows.len() as f64;
        let mean = match self.config.loss {
            Loss::Squared => lacking.sum::<f64>() / (count + self.config.l2).max(1.0),
            Loss::Pinball { level } => {
                quantile(&mut lacking.collect::<Vec<_>>(), level) * count
                    / (count + self.config.l2).max(1.0)
            }
        };
        // As the tree will say it, which keeps 32 bits.
        f64::from((self.config.learning_rate * mean) as f32)
    }

    /// Takes the tree's predictions off what is left over, of rows that it did not see too.
    fn take_off(&mut self, nodes: &[Growing], rest: &mut [f64]) {
        for (row, rest) in rest.iter_mut().enumerate() {
            let mut node = &nodes[0];
            while let Some((split, feature)) = node.split {
                let is_left = split.is_left(self.binned.column(feature)[row]);
                node = &nodes[node.left + usize::from(!is_left)];
            }
            *rest -= node.value;
        }
    }

    fn finished(&self, node: &Growing) -> Node {
        match node.split {
            None => {
                Node { threshold: node.value as f32, left: 0, feature: 0, is_missing_left: false }
            }
            Some((split, feature)) => Node {
                threshold: self.binned.threshold(feature, split.bin),
                left: node.left as u32,
                feature: feature as u16,
                is_missing_left: split.is_missing_left,
            },
        }
    }
}

/// The leaf whose split gains most; of equals the first.
fn most_gaining(leaves: &[Leaf]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (position, leaf) in leaves.iter().enumerate() {
        if let Some(Split { gain, .. }) = leaf.best
            && best.is_none_or(|(_, most)| gain > most)
        {
            best = Some((position, gain));
        }
    }
    best.map(|(position, _)| position)
}

/// The quantile of `values` at `level`, between its two nearest values; zero if there are none.
pub(super) fn quantile(values: &mut [f64], level: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let place = level * last as f64;
    let (_, low, above) = values.select_nth_unstable_by(place as usize, f64::total_cmp);
    let high = above.iter().copied().min_by(f64::total_cmp).unwrap_or(*low);
    *low + (high - *low) * place.fract()
}
