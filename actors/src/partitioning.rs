//! How the rows of a table are spread over its partitions.
//!
//! The hash is our own and never changes: partition maps are stored with the table, and the hash that
//! DataFusion uses for its own exchanges may differ from release to release.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{
    DataType, Decimal128Type, Float64Type, Int64Type, SchemaRef, TimeUnit, UInt64Type,
};
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};

/// Most partitions a table may have.
pub const PARTITIONS_MAX: u32 = 4_096;

/// Partition key and strategy of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "strategy")]
pub enum Partitioning {
    /// Rows go where the hash of the key columns says. NULL is a value like any other.
    Hash {
        /// Key columns, in order.
        columns: Vec<String>,
        /// Number of partitions, 1 to [`PARTITIONS_MAX`].
        partitions: u32,
    },
    /// Rows go by the value of one column: partition `i` holds values below `bounds[i]` that are not
    /// below `bounds[i - 1]`; the last one holds the rest; NULL and NaN go to the first and the last.
    Range {
        /// Key column.
        column: String,
        /// Strictly ascending bounds as text that casts to the column's type; one less than there are
        /// partitions.
        bounds: Vec<String>,
    },
    /// Existing files, dealt out in order: the rows say nothing about their partition.
    Files {
        /// Number of partitions, 1 to [`PARTITIONS_MAX`].
        partitions: u32,
    },
}

/// A table cannot be partitioned as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitioningError {
    /// The key column does not exist.
    #[error("partition key column {column:?} is not one of {columns:?}")]
    UnknownColumn {
        /// The column named.
        column: String,
        /// Columns of the table.
        columns: Vec<String>,
    },
    /// The number of partitions is out of bounds.
    #[error("number of partitions is {partitions}; it must be 1 to {PARTITIONS_MAX}")]
    Count {
        /// The number given.
        partitions: u32,
    },
    /// A key column has a type that cannot be hashed or compared.
    #[error(
        "partition key column {column:?} has type {data_type}; it must be a number, text, binary, boolean, date or timestamp"
    )]
    KeyType {
        /// The column.
        column: String,
        /// Its type.
        data_type: DataType,
    },
    /// A bound is not a value of the column, or the bounds do not ascend.
    #[error(
        "range bound {bound:?} of column {column:?} must be a {data_type} above the bound before it"
    )]
    Bound {
        /// The column.
        column: String,
        /// The bound.
        bound: String,
        /// Type of the column.
        data_type: DataType,
    },
    /// Arrow could not cast, compare or take rows.
    #[error("rows cannot be split into partitions: {source}")]
    Arrow {
        /// What Arrow said.
        #[from]
        source: arrow::error::ArrowError,
    },
    /// DataFusion could not compare values.
    #[error("partition bounds cannot be compared: {source}")]
    Compare {
        /// What DataFusion said.
        #[from]
        source: datafusion::error::DataFusionError,
    },
}

impl PartitioningError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownColumn { .. } => "FS-PARTITION-1",
            Self::Count { .. } => "FS-PARTITION-2",
            Self::KeyType { .. } => "FS-PARTITION-3",
            Self::Bound { .. } => "FS-PARTITION-4",
            Self::Arrow { .. } => "FS-PARTITION-5",
            Self::Compare { .. } => "FS-PARTITION-6",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

impl Partitioning {
    /// One partition that holds everything.
    #[must_use]
    pub fn single() -> Self {
        Self::Files { partitions: 1 }
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        match self {
            Self::Hash { partitions, .. } | Self::Files { partitions } => *partitions,
            Self::Range { bounds, .. } => u32::try_from(bounds.len()).map_or(u32::MAX, |n| n + 1),
        }
    }

    /// Columns of the partition key; empty for files.
    #[must_use]
    pub fn key_columns(&self) -> Vec<&str> {
        match self {
            Self::Hash { columns, .. } => columns.iter().map(String::as_str).collect(),
            Self::Range { column, .. } => vec![column],
            Self::Files { .. } => vec![],
        }
    }

    /// Checks that a table of this schema can be partitioned so.
    ///
    /// # Errors
    /// Names the column, count or bound that does not fit.
    pub fn check(&self, schema: &SchemaRef) -> Result<(), PartitioningError> {
        let partitions = self.partitions();
        if partitions == 0 || partitions > PARTITIONS_MAX {
            return Err(PartitioningError::Count { partitions });
        }
        for column in self.key_columns() {
            let field = schema.field_with_name(column).map_err(|_unknown| {
                PartitioningError::UnknownColumn {
                    column: column.to_owned(),
                    columns: schema.fields().iter().map(|field| field.name().clone()).collect(),
                }
            })?;
            if canonical_type(field.data_type()).is_none() {
                return Err(PartitioningError::KeyType {
                    column: column.to_owned(),
                    data_type: field.data_type().clone(),
                });
            }
        }
        self.bounds(schema).map(drop)
    }

    /// Deals the rows of `batch` out: one entry per partition that gets any, in their order.
    ///
    /// Rows of a [`Files`](Self::Files) table all go to partition 0.
    ///
    /// # Errors
    /// As [`check`](Self::check), or if Arrow cannot cast a key.
    pub fn split(&self, batch: &RecordBatch) -> Result<Vec<(u32, RecordBatch)>, PartitioningError> {
        if batch.num_rows() == 0 {
            return Ok(vec![]);
        }
        let owner = match self {
            Self::Files { .. } => return Ok(vec![(0, batch.clone())]),
            _ if self.partitions() == 1 => return Ok(vec![(0, batch.clone())]),
            Self::Hash { columns, partitions } => hash_owners(batch, columns, *partitions)?,
            Self::Range { column, .. } => {
                range_owners(batch, column, &self.bounds(&batch.schema())?)?
            }
        };
        let mut rows_of: Vec<Vec<u32>> = vec![vec![]; self.partitions() as usize];
        for (row, owner) in (0u32..).zip(owner) {
            rows_of[owner as usize].push(row);
        }
        (0u32..)
            .zip(rows_of)
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(ordinal, rows)| {
                Ok((ordinal, take_record_batch(batch, &UInt32Array::from(rows))?))
            })
            .collect()
    }

    /// The partition that holds rows whose single hash key column equals `value`; `None` if that
    /// cannot be said.
    #[must_use]
    pub fn owner_of(&self, data_type: &DataType, value: &ScalarValue) -> Option<u32> {
        let Self::Hash { columns, partitions } = self else { return None };
        if columns.len() != 1 {
            return None;
        }
        let array = value.cast_to(data_type).ok()?.to_array_of_size(1).ok()?;
        let mut hashes = [SEED];
        hash_column(&array, &mut hashes).ok()?;
        Some(reduce(hashes[0], *partitions))
    }

    /// The bounds of a range partitioning as values of the key column's type.
    ///
    /// # Errors
    /// [`PartitioningError::Bound`] if one is no such value or does not ascend.
    pub fn bounds(&self, schema: &SchemaRef) -> Result<Vec<ScalarValue>, PartitioningError> {
        let Self::Range { column, bounds } = self else { return Ok(vec![]) };
        let field = schema.field_with_name(column)?;
        let mut values: Vec<ScalarValue> = Vec::with_capacity(bounds.len());
        for bound in bounds {
            let wrong = || PartitioningError::Bound {
                column: column.clone(),
                bound: bound.clone(),
                data_type: field.data_type().clone(),
            };
            let value = ScalarValue::Utf8(Some(bound.clone()))
                .cast_to(field.data_type())
                .map_err(|_no_cast| wrong())?;
            let ascends = values.last().is_none_or(|last| {
                matches!(last.partial_cmp(&value), Some(std::cmp::Ordering::Less))
            });
            if value.is_null() || !ascends {
                return Err(wrong());
            }
            values.push(value);
        }
        Ok(values)
    }
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const NULL_HASH: u64 = 0x6e75_6c6c_6e75_6c6c;

/// One round of splitmix64: every input bit reaches every output bit.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn fold(hash: u64, value: u64) -> u64 {
    mix(hash.rotate_left(23) ^ mix(value ^ SEED))
}

fn fold_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let length = bytes.len() as u64;
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(fold(hash, length), fold)
}

fn reduce(hash: u64, partitions: u32) -> u32 {
    // Multiply-shift keeps the high bits, which mix best; the result is below `partitions`.
    u32::try_from((u128::from(hash) * u128::from(partitions)) >> 64).unwrap_or(0)
}

/// The type a key is hashed as, so that equal values of related types meet.
fn canonical_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::Date32 => DataType::Int64,
        DataType::Date64 | DataType::Timestamp(TimeUnit::Millisecond, _) => DataType::Int64,
        DataType::Timestamp(_, _) => DataType::Int64,
        DataType::UInt64 => DataType::UInt64,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
        DataType::Decimal128(precision, scale) => DataType::Decimal128(*precision, *scale),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::BinaryView,
        DataType::Dictionary(_, value) => return canonical_type(value),
        _ => return None,
    })
}

fn hash_column(array: &ArrayRef, hashes: &mut [u64]) -> Result<(), PartitioningError> {
    let Some(canonical) = canonical_type(array.data_type()) else {
        return Err(PartitioningError::KeyType {
            column: String::new(),
            data_type: array.data_type().clone(),
        });
    };
    // Dates and timestamps cast to their number in two steps where Arrow knows no direct way.
    let array = match array.data_type() {
        DataType::Date32 => cast(&cast(array, &DataType::Int32)?, &DataType::Int64)?,
        _ => cast(array, &canonical)?,
    };
    let fold_all = |hashes: &mut [u64], value: &dyn Fn(usize, u64) -> u64| {
        for (row, hash) in hashes.iter_mut().enumerate() {
            *hash = if array.is_null(row) { fold(*hash, NULL_HASH) } else { value(row, *hash) };
        }
    };
    match &canonical {
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>();
            fold_all(hashes, &|row, hash| fold(hash, values.value(row).cast_unsigned()));
        }
        DataType::UInt64 => {
            let values = array.as_primitive::<UInt64Type>();
            fold_all(hashes, &|row, hash| fold(hash, values.value(row)));
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            fold_all(hashes, &|row, hash| {
                let value = values.value(row);
                let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
                fold(hash, value.to_bits())
            });
        }
        DataType::Decimal128(..) => {
            let values = array.as_primitive::<Decimal128Type>();
            fold_all(hashes, &|row, hash| fold_bytes(hash, &values.value(row).to_le_bytes()));
        }
        DataType::Utf8View => {
            let values = array.as_string_view();
            fold_all(hashes, &|row, hash| fold_bytes(hash, values.value(row).as_bytes()));
        }
        _ => {
            let values = array.as_binary_view();
            fold_all(hashes, &|row, hash| fold_bytes(hash, values.value(row)));
        }
    }
    Ok(())
}

fn key<'a>(batch: &'a RecordBatch, column: &str) -> Result<&'a ArrayRef, PartitioningError> {
    batch.column_by_name(column).ok_or_else(|| PartitioningError::UnknownColumn {
        column: column.to_owned(),
        columns: batch.schema().fields().iter().map(|field| field.name().clone()).collect(),
    })
}

fn hash_owners(
    batch: &RecordBatch,
    columns: &[String],
    partitions: u32,
) -> Result<Vec<u32>, PartitioningError> {
    let mut hashes = vec![SEED; batch.num_rows()];
    for column in columns {
        hash_column(key(batch, column)?, &mut hashes)?;
    }
    Ok(hashes.into_iter().map(|hash| reduce(hash, partitions)).collect())
}

fn range_owners(
    batch: &RecordBatch,
    column: &str,
    bounds: &[ScalarValue],
) -> Result<Vec<u32>, PartitioningError> {
    let values = key(batch, column)?;
    let mut owners = vec![0; values.len()];
    for bound in bounds {
        let at_or_above = arrow::compute::kernels::cmp::gt_eq(values, &bound.to_scalar()?)?;
        for (row, owner) in owners.iter_mut().enumerate() {
            *owner += u32::from(at_or_above.is_valid(row) && at_or_above.value(row));
        }
    }
    Ok(owners)
}

/// Splits many batches and gathers the pieces of each partition, in their order.
///
/// # Errors
/// As [`Partitioning::split`].
pub fn split_all(
    partitioning: &Partitioning,
    batches: &[RecordBatch],
) -> Result<Vec<(u32, Vec<RecordBatch>)>, PartitioningError> {
    let mut gathered: std::collections::BTreeMap<u32, Vec<RecordBatch>> = Default::default();
    for batch in batches {
        for (ordinal, piece) in partitioning.split(batch)? {
            gathered.entry(ordinal).or_default().push(piece);
        }
    }
    Ok(gathered.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
            Field::new("v", DataType::Float64, true),
        ]);
        RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(Int64Array::from_iter((0..100).map(|i| (i != 7).then_some(i)))),
                Arc::new(StringArray::from_iter_values((0..100).map(|i| format!("näme {i}")))),
                Arc::new(Float64Array::from_iter_values((0..100).map(f64::from))),
            ],
        )
        .unwrap()
    }

    #[test]
    fn every_row_lands_in_exactly_one_partition() {
        let hash =
            |column: &str| Partitioning::Hash { columns: vec![column.into()], partitions: 7 };
        let range =
            Partitioning::Range { column: "v".into(), bounds: vec!["10".into(), "50".into()] };
        for partitioning in [hash("id"), hash("name"), hash("v"), range, Partitioning::single()] {
            partitioning.check(&batch().schema()).unwrap();
            let pieces = partitioning.split(&batch()).unwrap();
            let rows: usize = pieces.iter().map(|(_, piece)| piece.num_rows()).sum();
            assert_eq!(rows, 100, "{partitioning:?}");
            assert!(pieces.iter().all(|(ordinal, _)| *ordinal < partitioning.partitions()));
        }
    }

    #[test]
    fn a_range_holds_its_lower_bound_and_not_its_upper_one() {
        let range =
            Partitioning::Range { column: "v".into(), bounds: vec!["10".into(), "50".into()] };
        let sizes: Vec<usize> =
            range.split(&batch()).unwrap().iter().map(|(_, piece)| piece.num_rows()).collect();
        assert_eq!(sizes, [10, 40, 50]);
    }

    #[test]
    fn the_owner_of_a_value_is_where_its_row_went() {
        let hash = Partitioning::Hash { columns: vec!["id".into()], partitions: 5 };
        for (ordinal, piece) in hash.split(&batch()).unwrap() {
            for id in piece.column(0).as_primitive::<Int64Type>() {
                let value = ScalarValue::Int32(id.map(|id| i32::try_from(id).unwrap()));
                assert_eq!(hash.owner_of(&DataType::Int64, &value), Some(ordinal));
            }
        }
    }

    #[test]
    fn the_hash_never_changes() {
        let hash = Partitioning::Hash { columns: vec!["id".into()], partitions: 1_000 };
        let owners: Vec<_> = [0i64, 1, -1, i64::MAX]
            .map(|id| hash.owner_of(&DataType::Int64, &ScalarValue::Int64(Some(id))))
            .into();
        assert_eq!(owners, STORED_OWNERS.map(Some).to_vec());
    }

    const STORED_OWNERS: [u32; 4] = [379, 409, 756, 413];

    #[test]
    fn bad_keys_counts_and_bounds_are_named() {
        let schema = batch().schema();
        let text =
            |partitioning: Partitioning| partitioning.check(&schema).unwrap_err().to_string();
        assert!(text(Partitioning::Files { partitions: 0 }).contains("must be 1 to 4096"));
        let unknown = Partitioning::Hash { columns: vec!["idd".into()], partitions: 2 };
        assert!(text(unknown).contains("\"idd\" is not one of"));
        let bounds = |bounds: &[&str]| Partitioning::Range {
            column: "v".into(),
            bounds: bounds.iter().map(|bound| (*bound).into()).collect(),
        };
        assert!(text(bounds(&["5", "5"])).contains("above the bound before it"));
        assert!(text(bounds(&["x"])).contains("\"x\""));
    }
}
