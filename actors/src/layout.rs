//! Which partition holds which rows: a list of partitions, each with a range of hashes or of values.
//!
//! ```text
//! hash:   0 ------ 0x4000.. ------ 0x8000.. -- 0xc000.. ---- 2^64       range:  .. --- "10" ---- "50" --- ..
//!            4            5             1          2                             0         3        2
//! ```
//!
//! An ordinal stands for one range for ever: a split ends one partition and begins two, a merge ends two
//! and begins one, and what began has ordinals that none had before. So rows that were dealt out by an
//! older layout are right as long as their partition is still there.

mod hash;
mod middle;
mod stored;
mod together;

use std::collections::BTreeMap;
use std::fmt;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ScalarValue;
use foreshard_policy::cluster::fingerprint;

pub(crate) use self::hash::canonical_type;
use self::hash::{SEED, hash_column};
pub(crate) use self::middle::Loaded;
pub use self::middle::{KeyUse, RowLoad};
pub use self::together::SharedRange;
use crate::partitioning::{PARTITIONS_MAX, Partitioning, PartitioningError, typed};

/// Ordinals that a table may use up: each split takes two, each merge one.
pub const ORDINALS_MAX: u32 = 1 << 20;

/// Where a partition is cut in two: the right part begins there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A hash.
    Hash(u64),
    /// A value of the key as text that casts to its type.
    Value(String),
}

/// What spreads the rows, and the places between one partition and the next, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Hash { columns: Vec<String>, cuts: Vec<u64> },
    Range { column: String, bounds: Vec<String> },
    Files,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash(hash) => write!(f, "hash {hash:016x}"),
            Self::Value(value) => write!(f, "{value:?}"),
        }
    }
}

/// The partitions of one version of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    key: Key,
    /// In the order of hashes or values.
    ordinals: Vec<u32>,
    /// The ordinal that the next new partition gets.
    next: u32,
    /// Number of partitions that people want at least.
    made: u32,
}

/// Another layout, and what became of partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayout {
    /// The layout.
    pub to: Layout,
    /// Partitions that end, in the order of their keys.
    pub gone: Vec<u32>,
    /// Partitions that begin and hold the rows of those, in the order of their keys.
    pub new: Vec<u32>,
}

impl Layout {
    /// The layout that a table is made with: ordinals from 0, and hashes divided evenly.
    #[must_use]
    pub fn new(partitioning: &Partitioning) -> Self {
        let count = partitioning.partitions();
        let key = match partitioning {
            Partitioning::Hash { columns, .. } => {
                Key::Hash { columns: columns.clone(), cuts: even_cuts(count) }
            }
            Partitioning::Range { column, bounds } => {
                Key::Range { column: column.clone(), bounds: bounds.clone() }
            }
            Partitioning::Files { .. } => Key::Files,
        };
        Self { key, ordinals: (0..count).collect(), next: count, made: count }
    }

    /// The same as a table would be made with; its ordinals count from 0.
    #[must_use]
    pub fn partitioning(&self) -> Partitioning {
        let partitions = self.partitions();
        match &self.key {
            Key::Hash { columns, .. } => {
                Partitioning::Hash { columns: columns.clone(), partitions }
            }
            Key::Range { column, bounds } => {
                Partitioning::Range { column: column.clone(), bounds: bounds.clone() }
            }
            Key::Files => Partitioning::Files { partitions },
        }
    }

    /// The partitions, in the order of their hashes or values.
    #[must_use]
    pub fn ordinals(&self) -> &[u32] {
        &self.ordinals
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        u32::try_from(self.ordinals.len()).unwrap_or(u32::MAX)
    }

    /// One more than the highest ordinal that was ever used.
    #[must_use]
    pub fn places(&self) -> u32 {
        self.next
    }

    /// Number of partitions that people want at least: as many as the table was made with, one more for each
    /// split that they asked for, and one less for each merge.
    #[must_use]
    pub fn made(&self) -> u32 {
        self.made
    }

    /// The same, made of `before` because people asked for it.
    #[must_use]
    pub fn asked_for(self, before: &Self) -> Self {
        let made = (before.made + self.partitions()).saturating_sub(before.partitions());
        Self { made: made.max(1), ..self }
    }

    /// Whether a partition is there.
    #[must_use]
    pub fn has(&self, ordinal: u32) -> bool {
        self.ordinals.contains(&ordinal)
    }

    /// Whether a partition was there and is no more.
    #[must_use]
    pub fn had(&self, ordinal: u32) -> bool {
        ordinal < self.next && !self.has(ordinal)
    }

    /// Columns of the partition key; empty for files.
    #[must_use]
    pub fn key_columns(&self) -> Vec<&str> {
        match &self.key {
            Key::Hash { columns, .. } => columns.iter().map(String::as_str).collect(),
            Key::Range { column, .. } => vec![column],
            Key::Files => vec![],
        }
    }

    /// By what rows are dealt out: `hash`, `range` or `files`.
    #[must_use]
    pub fn strategy(&self) -> &'static str {
        match self.key {
            Key::Hash { .. } => "hash",
            Key::Range { .. } => "range",
            Key::Files => "files",
        }
    }

    /// A number for each place between one partition and the next, the same in all tables that are cut there.
    #[must_use]
    pub fn cut_marks(&self) -> Vec<u64> {
        match &self.key {
            Key::Hash { cuts, .. } => cuts.clone(),
            Key::Range { bounds, .. } => bounds.iter().map(|bound| fingerprint(bound)).collect(),
            Key::Files => vec![],
        }
    }

    /// The range of a partition in words; `None` if there is none, or the table has no key.
    #[must_use]
    pub fn range(&self, ordinal: u32) -> Option<String> {
        let at = self.position(ordinal)?;
        match &self.key {
            Key::Hash { cuts, .. } => {
                let from = at.checked_sub(1).map_or(0, |before| cuts[before]);
                let to = cuts.get(at).map_or(u64::MAX, |cut| cut - 1);
                Some(format!("hash {from:016x} to {to:016x}"))
            }
            Key::Range { column, bounds } => {
                let from =
                    at.checked_sub(1).map(|before| format!("{column} >= {}", bounds[before]));
                let to = bounds.get(at).map(|bound| format!("{column} < {bound}"));
                let both: Vec<String> = from.into_iter().chain(to).collect();
                Some(if both.is_empty() { "all".to_owned() } else { both.join(" and ") })
            }
            Key::Files => None,
        }
    }

    /// Deals the rows of `batch` out: one entry per partition that gets any, by ordinal, the rows in their
    /// order. Rows of a table without a key all go to its first partition.
    ///
    /// # Errors
    /// As [`Partitioning::check`], or if Arrow cannot cast a key.
    pub fn deal_out(
        &self,
        batch: &RecordBatch,
    ) -> Result<Vec<(u32, RecordBatch)>, PartitioningError> {
        if batch.num_rows() == 0 {
            return Ok(vec![]);
        }
        if let [only] = self.ordinals.as_slice() {
            return Ok(vec![(*only, batch.clone())]);
        }
        let mut rows_of: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (row, owner) in (0u32..).zip(self.owners(batch)?) {
            rows_of.entry(owner).or_default().push(row);
        }
        rows_of
            .into_iter()
            .map(|(ordinal, rows)| {
                Ok((ordinal, take_record_batch(batch, &UInt32Array::from(rows))?))
            })
            .collect()
    }

    /// The partition of each row.
    ///
    /// # Errors
    /// As [`deal_out`](Self::deal_out).
    pub fn owners(&self, batch: &RecordBatch) -> Result<Vec<u32>, PartitioningError> {
        let positions: Vec<usize> = match &self.key {
            Key::Files => vec![0; batch.num_rows()],
            Key::Hash { columns, cuts } => {
                let hashes = hashes(batch, columns)?.into_iter();
                hashes.map(|hash| cuts.partition_point(|cut| *cut <= hash)).collect()
            }
            Key::Range { column, bounds } => {
                positions(key(batch, column)?, &typed(column, bounds, &batch.schema())?)?
            }
        };
        Ok(positions.into_iter().map(|position| self.ordinals[position]).collect())
    }

    /// The partition that holds rows whose single hash key column equals `value`; `None` if that
    /// cannot be said.
    #[must_use]
    pub fn owner_of(&self, data_type: &DataType, value: &ScalarValue) -> Option<u32> {
        let Key::Hash { columns, cuts } = &self.key else { return None };
        if columns.len() != 1 {
            return None;
        }
        let array = value.cast_to(data_type).ok()?.to_array_of_size(1).ok()?;
        let mut hashes = [SEED];
        hash_column(&array, &mut hashes).ok()?;
        Some(self.ordinals[cuts.partition_point(|cut| *cut <= hashes[0])])
    }

    /// The cut that a key value stands for.
    ///
    /// # Errors
    /// [`PartitioningError::Indivisible`] if the table is not partitioned by ranges.
    pub fn cut_at(&self, ordinal: u32, value: &str) -> Result<Cut, PartitioningError> {
        match &self.key {
            Key::Range { .. } => Ok(Cut::Value(value.to_owned())),
            Key::Hash { .. } => Err(indivisible(
                ordinal,
                "it holds hashes of keys, not keys from one to another: leave the key value out",
            )),
            Key::Files => Err(PartitioningError::NoKey),
        }
    }

    /// The layout in which `ordinal` is two partitions, left and right of `cut`.
    ///
    /// # Errors
    /// If there is no such partition, the cut is not inside of it, or there are too many.
    pub fn split(
        &self,
        schema: &SchemaRef,
        ordinal: u32,
        cut: &Cut,
    ) -> Result<Relayout, PartitioningError> {
        let at = self.place_of(ordinal)?;
        let mut key = self.key.clone();
        match (&mut key, cut) {
            (Key::Hash { cuts, .. }, Cut::Hash(hash)) => {
                let from = at.checked_sub(1).map_or(0, |before| cuts[before]);
                let is_inside = *hash > from && cuts.get(at).is_none_or(|to| hash < to);
                if !is_inside {
                    return Err(indivisible(ordinal, &format!("{hash:016x} is not inside of it")));
                }
                cuts.insert(at, *hash);
            }
            (Key::Range { column, bounds }, Cut::Value(value)) => {
                bounds.insert(at, value.clone());
                typed(column, bounds, schema).map_err(|_not_inside| {
                    let own = self.range(ordinal).unwrap_or_default();
                    indivisible(ordinal, &format!("{value:?} is no key inside of it ({own})"))
                })?;
            }
            (Key::Files, _) => return Err(PartitioningError::NoKey),
            _ => return Err(indivisible(ordinal, "the cut is of another kind than its key")),
        }
        let new = [self.next, self.next.saturating_add(1)];
        let mut ordinals = self.ordinals.clone();
        drop(ordinals.splice(at..=at, new));
        let to = Self { key, ordinals, next: self.next.saturating_add(2), made: self.made };
        to.within_bounds()?;
        Ok(Relayout { to, gone: vec![ordinal], new: new.to_vec() })
    }

    /// The layout in which two neighbours are one partition.
    ///
    /// # Errors
    /// If one is not there, or they do not stand side by side.
    pub fn merge(&self, one: u32, other: u32) -> Result<Relayout, PartitioningError> {
        let (a, b) = (self.place_of(one)?, self.place_of(other)?);
        let at = a.min(b);
        if a.abs_diff(b) != 1 {
            let has = self.ordinals.clone();
            return Err(PartitioningError::NotNeighbours { one, other, has });
        }
        let mut key = self.key.clone();
        match &mut key {
            Key::Hash { cuts, .. } => {
                cuts.remove(at);
            }
            Key::Range { bounds, .. } => {
                bounds.remove(at);
            }
            Key::Files => return Err(PartitioningError::NoKey),
        }
        let mut ordinals = self.ordinals.clone();
        let gone: Vec<u32> = ordinals.splice(at..=at + 1, [self.next]).collect();
        let to = Self { key, ordinals, next: self.next.saturating_add(1), made: self.made };
        to.within_bounds()?;
        Ok(Relayout { to, gone, new: vec![self.next] })
    }

    fn position(&self, ordinal: u32) -> Option<usize> {
        self.ordinals.iter().position(|own| *own == ordinal)
    }

    fn place_of(&self, ordinal: u32) -> Result<usize, PartitioningError> {
        let has = || self.ordinals.clone();
        self.position(ordinal).ok_or_else(|| PartitioningError::NoPartition { ordinal, has: has() })
    }

    fn within_bounds(&self) -> Result<(), PartitioningError> {
        let partitions = self.partitions();
        if partitions > PARTITIONS_MAX {
            return Err(PartitioningError::Count { partitions });
        }
        if self.next > ORDINALS_MAX {
            let what = format!("{} ordinals are used up of {ORDINALS_MAX}", self.next);
            return Err(PartitioningError::Stored { what });
        }
        Ok(())
    }
}

fn indivisible(ordinal: u32, why: &str) -> PartitioningError {
    PartitioningError::Indivisible { ordinal, why: why.to_owned() }
}

/// The first hash of every partition but the first one. Partition `i` of `n` has the hashes whose product
/// with `n` has `i` above its lowest 64 bits: those from `i * 2^64 / n`, rounded up.
fn even_cuts(partitions: u32) -> Vec<u64> {
    let n = u128::from(partitions);
    let cut = |i: u32| (u128::from(i) << 64).div_ceil(n);
    (1..partitions).map(|i| u64::try_from(cut(i)).unwrap_or(u64::MAX)).collect()
}

fn key<'a>(batch: &'a RecordBatch, column: &str) -> Result<&'a ArrayRef, PartitioningError> {
    batch.column_by_name(column).ok_or_else(|| PartitioningError::UnknownColumn {
        column: column.to_owned(),
        columns: batch.schema().fields().iter().map(|field| field.name().clone()).collect(),
    })
}

fn hashes(batch: &RecordBatch, columns: &[String]) -> Result<Vec<u64>, PartitioningError> {
    let mut hashes = vec![SEED; batch.num_rows()];
    for column in columns {
        hash_column(key(batch, column)?, &mut hashes)?;
    }
    Ok(hashes)
}

/// How many of `bounds` each value is not below: NULL is below all, NaN below none.
fn positions(values: &ArrayRef, bounds: &[ScalarValue]) -> Result<Vec<usize>, PartitioningError> {
    let mut positions = vec![0; values.len()];
    for bound in bounds {
        let at_or_above = arrow::compute::kernels::cmp::gt_eq(values, &bound.to_scalar()?)?;
        for (row, position) in positions.iter_mut().enumerate() {
            *position += usize::from(at_or_above.is_valid(row) && at_or_above.value(row));
        }
    }
    Ok(positions)
}

/// Checks that a table of this schema can be laid out so.
///
/// # Errors
/// Names the column, count or bound that does not fit.
pub(crate) fn check(layout: &Layout, schema: &SchemaRef) -> Result<(), PartitioningError> {
    layout.partitioning().check(schema)
}

/// Deals many batches out and gathers the pieces of each partition, in their order.
///
/// # Errors
/// As [`Layout::deal_out`].
pub fn deal_out_all(
    layout: &Layout,
    batches: &[RecordBatch],
) -> Result<Vec<(u32, Vec<RecordBatch>)>, PartitioningError> {
    let mut gathered: BTreeMap<u32, Vec<RecordBatch>> = BTreeMap::new();
    for batch in batches {
        for (ordinal, piece) in layout.deal_out(batch)? {
            gathered.entry(ordinal).or_default().push(piece);
        }
    }
    Ok(gathered.into_iter().collect())
}

#[cfg(test)]
mod tests;
