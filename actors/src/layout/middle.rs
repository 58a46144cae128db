//! Where a partition is cut in two: `policy` says which of the places between two keys is best, from what is
//! known of the rows and of the queries.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::kernels::cmp::{gt, gt_eq};
use arrow::compute::{SortOptions, concat, partition, sort_to_indices, take};
use datafusion::common::ScalarValue;
use foreshard_policy::ids::SegmentId;
use foreshard_policy::key_ranges::{Edge, KeyRange};
use foreshard_policy::reshape::cut::{Border, Even, Whole, ranked};

use super::{Cut, Key, Layout, hashes, indivisible, key, positions};
use crate::partitioning::{PartitioningError, typed};

/// Boundaries between values that are tried before a partition counts as indivisible.
const TRIES_MAX: usize = 64;

/// Borders that are weighed if a partition has more: those next to the middle, as many evenly from all, and
/// those where a range ends.
const BORDERS_MAX: usize = 4_096;

/// What calls cost or would have cost on the rows of one segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowLoad {
    /// Rows of a block but the last one.
    pub block_rows: usize,
    /// Load of each row of a block, by block, in ns; nothing if none was counted.
    pub by_row: Vec<f64>,
}

impl RowLoad {
    /// Adds what was counted of the same segment elsewhere.
    pub fn add(&mut self, other: Self) {
        if self.by_row.len() < other.by_row.len() {
            self.by_row.resize(other.by_row.len(), 0.0);
        }
        self.block_rows = self.block_rows.max(other.block_rows);
        for (own, other) in self.by_row.iter_mut().zip(other.by_row) {
            *own += other;
        }
    }

    fn of(&self, row: usize) -> f64 {
        self.by_row.get(row / self.block_rows.max(1)).copied().unwrap_or(0.0)
    }
}

/// What is known of who asks for which keys of a partition.
#[derive(Clone, Debug, Default)]
pub struct KeyUse {
    /// What both parts are to have half of.
    pub even: Even,
    /// Load by segment.
    pub loads: HashMap<SegmentId, RowLoad>,
    /// Ranges of keys that queries ask for, with how often.
    pub ranges: Vec<(KeyRange, f64)>,
}

/// Rows of one segment of a partition with what calls cost on them.
pub(crate) type Loaded<'a> = (&'a RecordBatch, Option<&'a RowLoad>);

/// The places between the keys of sorted rows.
struct Borders {
    /// The first row right of each.
    starts: Vec<usize>,
    /// Load left of each.
    loads: Vec<f64>,
    rows: usize,
    load: f64,
}

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
        let rows: Vec<Loaded<'_>> = batches.iter().map(|batch| (batch, None)).collect();
        Ok(self.best_cut(ordinal, &rows, &KeyUse::default())?.0)
    }

    /// The best cut of `ordinal`, and why it is that: see [`ranked`].
    ///
    /// # Errors
    /// [`PartitioningError::Indivisible`] if no cut divides its rows, or its load if that is wanted.
    ///
    /// # Cost
    /// `O(n log n)` of the rows: their keys are sorted.
    pub(crate) fn best_cut(
        &self,
        ordinal: u32,
        rows: &[Loaded<'_>],
        used: &KeyUse,
    ) -> Result<(Cut, String), PartitioningError> {
        let at = self.place_of(ordinal)?;
        match &self.key {
            Key::Files => Err(PartitioningError::NoKey),
            Key::Hash { columns, cuts } => {
                let from = at.checked_sub(1).map_or(0, |before| cuts[before]);
                let to = cuts.get(at).map_or(u128::from(u64::MAX) + 1, |cut| u128::from(*cut));
                let mut all = vec![];
                for (batch, load) in rows {
                    let hashes = hashes(batch, columns)?.into_iter().enumerate();
                    all.extend(hashes.map(|(row, hash)| (hash, load.map_or(0.0, |it| it.of(row)))));
                }
                let (hash, why) = best_hash(ordinal, all, (from, to), used)?;
                Ok((Cut::Hash(hash), why))
            }
            Key::Range { column, .. } => {
                let (value, why) = best_value(ordinal, column, rows, used)?;
                Ok((Cut::Value(value), why))
            }
        }
    }
}

impl Borders {
    /// Between rows whose keys begin at `starts`, the first row left out; `load_of` says what each row carries.
    fn new(starts: Vec<usize>, rows: usize, load_of: impl Fn(usize) -> f64) -> Self {
        let (mut loads, mut load, mut row) = (Vec::with_capacity(starts.len()), 0.0, 0);
        for start in &starts {
            load += (row..*start).map(&load_of).sum::<f64>();
            row = *start;
            loads.push(load);
        }
        load += (row..rows).map(&load_of).sum::<f64>();
        Self { starts, loads, rows, load }
    }

    /// The borders to be cut at, best first: the first row on the right, and why.
    fn best(
        &self,
        spans: &[(usize, usize, f64)],
        even: Even,
        ordinal: u32,
    ) -> Result<Vec<(usize, String)>, PartitioningError> {
        let weighed = self.weighed(spans, even);
        let border = |at: &usize| {
            let start = self.starts[*at];
            let spans = spans.iter().filter(|(from, to, _)| *from < start && start < *to);
            let spanned = spans.map(|(.., weight)| weight).sum();
            Border { rows: start as u64, load: self.loads[*at], spanned }
        };
        let borders: Vec<Border> = weighed.iter().map(border).collect();
        let ranges = spans.iter().map(|(.., weight)| weight).sum();
        let whole = Whole { rows: self.rows as u64, load: self.load, ranges };
        let ranked = ranked(&borders, whole, even)
            .map_err(|no_cut| indivisible(ordinal, &no_cut.to_string()))?;
        let all = ranked.into_iter();
        Ok(all.map(|(at, why)| (self.starts[weighed[at]], why.to_string())).collect())
    }

    /// Positions of the borders that are looked at.
    fn weighed(&self, spans: &[(usize, usize, f64)], even: Even) -> Vec<usize> {
        let count = self.starts.len();
        if count <= BORDERS_MAX {
            return (0..count).collect();
        }
        let middle = match even {
            Even::Load if self.load > 0.0 => {
                self.loads.partition_point(|load| *load < self.load / 2.0)
            }
            _ => self.starts.partition_point(|start| *start < self.rows / 2),
        };
        let near = BORDERS_MAX / 4;
        let around = middle.saturating_sub(near)..(middle + near).min(count);
        let spread = (0..count).step_by(count.div_ceil(near));
        let ends = spans.iter().flat_map(|(from, to, _)| [*from, *to]);
        let ends = ends.filter_map(|row| self.starts.binary_search(&row).ok());
        let mut all: Vec<usize> = around.chain(spread).chain(ends).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn best_hash(
    ordinal: u32,
    mut all: Vec<(u64, f64)>,
    (from, to): (u64, u128),
    used: &KeyUse,
) -> Result<(u64, String), PartitioningError> {
    if all.is_empty() {
        let middle = u128::midpoint(u128::from(from), to);
        let middle = u64::try_from(middle).ok().filter(|middle| *middle > from);
        let middle = middle.ok_or_else(|| indivisible(ordinal, "it holds one hash only"))?;
        return Ok((middle, "it has no rows: in the middle of its hashes".to_owned()));
    }
    all.sort_unstable_by_key(|(hash, _)| *hash);
    let starts = (1..all.len()).filter(|row| all[row - 1].0 < all[*row].0).collect();
    let borders = Borders::new(starts, all.len(), |row| all[row].1);
    // Hashes of a range of keys are everywhere.
    let best = borders.best(&[], used.even, ordinal)?;
    let first = best.into_iter().next();
    let (row, why) = first.ok_or_else(|| indivisible(ordinal, ONE_KEY))?;
    // Between the two, so that rows to come are divided as well.
    let (left, right) = (all[row - 1].0, all[row].0);
    Ok((left + (right - left).div_ceil(2), why))
}

const ONE_KEY: &str = "all its rows have the same key";

/// The text of a value that divides the rows. NULL is left of every cut.
fn best_value(
    ordinal: u32,
    column: &str,
    rows: &[Loaded<'_>],
    used: &KeyUse,
) -> Result<(String, String), PartitioningError> {
    let keys: Vec<ArrayRef> =
        rows.iter().map(|(batch, _)| key(batch, column).cloned()).collect::<Result<_, _>>()?;
    let Some((first, _)) = rows.first() else {
        return Err(indivisible(ordinal, "it has no rows: say at which key"));
    };
    let keys: Vec<&dyn Array> = keys.iter().map(AsRef::as_ref).collect();
    let options = SortOptions { descending: false, nulls_first: true };
    let all = concat(&keys)?;
    let order = sort_to_indices(&all, Some(options), None)?;
    let sorted = take(&all, &order, None)?;
    let mut starts: Vec<usize> = partition(std::slice::from_ref(&sorted))?
        .ranges()
        .iter()
        .map(|range| range.start)
        .collect();
    starts.retain(|row| *row > 0);
    let loads = loads_of(rows);
    let load_of = |row: usize| {
        let at = order.values().get(row).map_or(0, |at| *at as usize);
        loads.get(at).map_or(0.0, |load| f64::from(*load))
    };
    let borders = Borders::new(starts, sorted.len(), load_of);
    let spans = spans(column, &sorted, first, &used.ranges)?;
    for (row, why) in borders.best(&spans, used.even, ordinal)?.into_iter().take(TRIES_MAX) {
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
            return Ok((text, why));
        }
    }
    Err(indivisible(ordinal, ONE_KEY))
}

/// Load of each row, segment after segment; nothing if none is known.
fn loads_of(rows: &[Loaded<'_>]) -> Vec<f32> {
    if rows.iter().all(|(_, load)| load.is_none()) {
        return vec![];
    }
    let mut loads = vec![];
    for (batch, load) in rows {
        let of = |row| load.map_or(0.0, |load| load.of(row) as f32);
        loads.extend((0..batch.num_rows()).map(of));
    }
    loads
}

/// The rows of each range among `sorted` ones: the first one, the one behind the last, and how often they are
/// asked for. What is not of the type of the keys is left out, as are ranges without rows.
fn spans(
    column: &str,
    sorted: &ArrayRef,
    batch: &RecordBatch,
    ranges: &[(KeyRange, f64)],
) -> Result<Vec<(usize, usize, f64)>, PartitioningError> {
    let mut spans = vec![];
    for (range, weight) in ranges {
        let row_of = |edge: &Option<Edge>, open: usize| -> Result<_, PartitioningError> {
            let Some(edge) = edge else { return Ok(Some(open)) };
            let key = std::slice::from_ref(&edge.key);
            let Ok(bound) = typed(column, key, &batch.schema()) else { return Ok(None) };
            let Some(bound) = bound.first() else { return Ok(None) };
            Ok(Some(rows_before(sorted, bound, edge.is_after)?))
        };
        let (from, to) = (row_of(&range.from, 0)?, row_of(&range.to, sorted.len())?);
        if let (Some(from), Some(to)) = (from, to)
            && from < to
        {
            spans.push((from, to, *weight));
        }
    }
    Ok(spans)
}

/// Rows of `sorted` keys that are below a bound, or at it as well.
fn rows_before(
    sorted: &ArrayRef,
    bound: &ScalarValue,
    or_at: bool,
) -> Result<usize, PartitioningError> {
    let bound = bound.to_scalar()?;
    let (mut from, mut to) = (0, sorted.len());
    while from < to {
        let middle = usize::midpoint(from, to);
        let one = sorted.slice(middle, 1);
        let is_behind = if or_at { gt(&one, &bound)? } else { gt_eq(&one, &bound)? };
        match is_behind.is_valid(0) && is_behind.value(0) {
            true => to = middle,
            false => from = middle + 1,
        }
    }
    Ok(from)
}
