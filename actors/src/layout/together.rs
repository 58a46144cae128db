//! Which partitions of two tables hold rows with the same keys.

use super::{Key, Layout};

/// Partitions of one table and of another one, by ordinal, that together hold all rows of one range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRange {
    /// Partitions of the first table, in the order of their keys.
    pub left: Vec<u32>,
    /// Partitions of the second table.
    pub right: Vec<u32>,
}

impl Layout {
    /// The ranges that both layouts are cut into, in the order of their keys: rows of two tables whose keys
    /// are equal are in the same one. `None` if one is laid out by hashes and the other one is not, by
    /// hashes of more columns, or by no key.
    ///
    /// Keys are equal only if their types are, which the caller checks. Bounds count as the same if their
    /// text is; ranges are wider, and not wrong, if it is not.
    ///
    /// # Cost
    /// `O(p q)` for ranges of values, `O(p + q)` for hashes, of `p` and `q` partitions.
    #[must_use]
    pub fn ranges_shared_with(&self, other: &Self) -> Option<Vec<SharedRange>> {
        let (left, right): (Vec<bool>, Vec<bool>) = match (&self.key, &other.key) {
            (Key::Hash { columns, cuts }, Key::Hash { columns: other_columns, cuts: others })
                if columns.len() == other_columns.len() =>
            {
                let ends = |cuts: &[u64], others: &[u64]| {
                    cuts.iter().map(|cut| others.binary_search(cut).is_ok()).collect()
                };
                (ends(cuts, others), ends(others, cuts))
            }
            (Key::Range { bounds, .. }, Key::Range { bounds: others, .. }) => {
                let ends = |bounds: &[String], others: &[String]| {
                    bounds.iter().map(|bound| others.contains(bound)).collect()
                };
                (ends(bounds, others), ends(others, bounds))
            }
            _ => return None,
        };
        let left = gathered(&self.ordinals, &left);
        let right = gathered(&other.ordinals, &right);
        let both = left.into_iter().zip(right);
        Some(both.map(|(left, right)| SharedRange { left, right }).collect())
    }
}

/// The ordinals, in lists that end where a shared cut is: `is_end` says so of each cut.
fn gathered(ordinals: &[u32], is_end: &[bool]) -> Vec<Vec<u32>> {
    let mut lists = vec![vec![]];
    for (at, ordinal) in ordinals.iter().enumerate() {
        if let Some(list) = lists.last_mut() {
            list.push(*ordinal);
        }
        if is_end.get(at) == Some(&true) {
            lists.push(vec![]);
        }
    }
    lists
}
