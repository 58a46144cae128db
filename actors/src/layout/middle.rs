//! Where a partition is cut so that its rows are divided evenly.

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::{SortOptions, concat, partition, sort};
use datafusion::common::ScalarValue;

use super::{Cut, Key, Layout, hashes, indivisible, key, positions};
use crate::partitioning::{PartitioningError, typed};

/// Boundaries between values that are tried before a partition counts as indivisible.
const TRIES_MAX: usize = 64;

impl Layout {
    /// The cut of `ordinal`, whose rows are `batches`, that has about as many rows on either side. Without
    /// rows, hashes are cut in the middle.
    ///
    /// # Errors
    /// [`PartitioningError::Indivisible`] if all rows have the same key, so that no cut divides them.
    ///
    /// # Cost
    /// `O(n log n)` of the rows: their keys are sorted.
    pub fn middle(&self, ordinal: u32, batches: &[RecordBatch]) -> Result<Cut, PartitioningError> {
        let at = self.place_of(ordinal)?;
        match &self.key {
            Key::Files => Err(PartitioningError::NoKey),
            Key::Hash { columns, cuts } => {
                let from = at.checked_sub(1).map_or(0, |before| cuts[before]);
                let to = cuts.get(at).map_or(u128::from(u64::MAX) + 1, |cut| u128::from(*cut));
                let mut all = vec![];
                for batch in batches {
                    all.extend(hashes(batch, columns)?);
                }
                middle_hash(ordinal, all, (from, to)).map(Cut::Hash)
            }
            Key::Range { column, .. } => middle_value(ordinal, column, batches).map(Cut::Value),
        }
    }
}

fn middle_hash(
    ordinal: u32,
    mut all: Vec<u64>,
    (from, to): (u64, u128),
) -> Result<u64, PartitioningError> {
    if all.is_empty() {
        let middle = u128::midpoint(u128::from(from), to);
        return u64::try_from(middle)
            .ok()
            .filter(|middle| *middle > from)
            .ok_or_else(|| indivisible(ordinal, "it holds one hash only"));
    }
    all.sort_unstable();
    let borders = (1..all.len()).filter(|row| all[row - 1] < all[*row]);
    let best = borders.min_by_key(|row| row.abs_diff(all.len() / 2));
    // Between the two, so that rows to come are divided as well.
    let between = |row: usize| all[row - 1] + (all[row] - all[row - 1]).div_ceil(2);
    best.map(between).ok_or_else(|| indivisible(ordinal, ONE_KEY))
}

const ONE_KEY: &str = "all its rows have the same key";

/// The text of a value that divides the rows. NULL is left of every cut.
fn middle_value(
    ordinal: u32,
    column: &str,
    batches: &[RecordBatch],
) -> Result<String, PartitioningError> {
    let keys: Vec<ArrayRef> =
        batches.iter().map(|batch| key(batch, column).cloned()).collect::<Result<_, _>>()?;
    let Some(first) = batches.first() else {
        return Err(indivisible(ordinal, "it has no rows: say at which key"));
    };
    let keys: Vec<&dyn Array> = keys.iter().map(AsRef::as_ref).collect();
    let options = SortOptions { descending: false, nulls_first: true };
    let sorted = sort(&concat(&keys)?, Some(options))?;
    let mut borders: Vec<usize> = partition(std::slice::from_ref(&sorted))?
        .ranges()
        .iter()
        .map(|range| range.start)
        .collect();
    borders.retain(|row| *row > 0);
    borders.sort_by_key(|row| row.abs_diff(sorted.len() / 2));
    for row in borders.into_iter().take(TRIES_MAX) {
        let value = ScalarValue::try_from_array(&sorted, row)?;
        let Ok(ScalarValue::Utf8(Some(text))) = value.cast_to(&arrow::datatypes::DataType::Utf8)
        else {
            continue;
        };
        // A text may stand for another value than the one that it was made of, or for none.
        let Ok(bound) = typed(column, std::slice::from_ref(&text), &first.schema()) else {
            continue;
        };
        let right: usize = positions(&sorted, &bound)?.into_iter().sum();
        if right > 0 && right < sorted.len() {
            return Ok(text);
        }
    }
    Err(indivisible(ordinal, ONE_KEY))
}
