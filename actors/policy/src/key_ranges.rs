//! Which ranges of keys queries ask for: a sample for each table, so that few of them span a cut.

use std::collections::BTreeMap;

/// Ranges of one table that are remembered; beyond it the rarest is forgotten.
pub const RANGES_MAX: usize = 256;

/// What was asked for counts half after so long.
const HALF_LIFE_NS: f64 = 1_800e9;

/// What counts less is forgotten.
const WEIGHT_MIN: f64 = 0.01;

/// A place before or after all rows with a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// The key as text that casts to its type.
    pub key: String,
    /// Whether rows with the key are before it.
    pub is_after: bool,
}

/// Keys from one edge to another one; `None` for all before or after.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRange {
    /// Where it begins.
    pub from: Option<Edge>,
    /// Where it ends.
    pub to: Option<Edge>,
}

/// How often queries asked for ranges of the keys of one table. Bounded; older queries count less.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyRanges {
    weights: BTreeMap<KeyRange, f64>,
    /// Moment at which the weights count whole.
    at_ns: u64,
}

impl KeyRanges {
    /// Notes that a query asks for these keys. All keys are no range: every cut is as good for them.
    ///
    /// # Cost
    /// `O(n)` of [`RANGES_MAX`].
    pub fn record(&mut self, now_ns: u64, range: KeyRange) {
        if range == KeyRange::default() {
            return;
        }
        let scale = self.scale(now_ns);
        self.at_ns = now_ns;
        self.weights.values_mut().for_each(|weight| *weight *= scale);
        *self.weights.entry(range).or_insert(0.0) += 1.0;
        self.weights.retain(|_, weight| *weight >= WEIGHT_MIN);
        if self.weights.len() > RANGES_MAX {
            let rarest = self.weights.iter().min_by(|a, b| a.1.total_cmp(b.1));
            if let Some(rarest) = rarest.map(|(range, _)| range.clone()) {
                self.weights.remove(&rarest);
            }
        }
    }

    /// The ranges, with how often they were asked for.
    #[must_use]
    pub fn now(&self, now_ns: u64) -> Vec<(KeyRange, f64)> {
        let scale = self.scale(now_ns);
        let all = self.weights.iter();
        all.map(|(range, weight)| (range.clone(), weight * scale)).collect()
    }

    fn scale(&self, now_ns: u64) -> f64 {
        0.5_f64.powf(now_ns.saturating_sub(self.at_ns) as f64 / HALF_LIFE_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(key: u32) -> KeyRange {
        let edge = Edge { key: format!("{key:05}"), is_after: false };
        KeyRange { from: Some(edge), to: None }
    }

    #[test]
    fn ranges_count_as_often_as_they_are_asked_for_and_fade() {
        let mut ranges = KeyRanges::default();
        ranges.record(0, from(7));
        ranges.record(0, from(7));
        ranges.record(0, from(9));
        ranges.record(0, KeyRange::default());
        assert_eq!(ranges.now(0), [(from(7), 2.0), (from(9), 1.0)]);
        assert_eq!(ranges.now(1_800_000_000_000), [(from(7), 1.0), (from(9), 0.5)]);
        ranges.record(18_000_000_000_000, from(8));
        assert_eq!(ranges.now(18_000_000_000_000), [(from(8), 1.0)], "the others are forgotten");
    }

    #[test]
    fn beyond_the_bound_the_rarest_is_forgotten() {
        let mut ranges = KeyRanges::default();
        for key in 0..1_000 {
            ranges.record(0, from(key));
            ranges.record(0, from(7));
        }
        let now = ranges.now(0);
        assert_eq!(now.len(), RANGES_MAX);
        assert!(now.iter().any(|(range, weight)| *range == from(7) && *weight > 900.0));
    }
}
