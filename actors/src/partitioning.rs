//! How a table is made: the key that its rows are spread by, and how many partitions it begins with.
//!
//! What becomes of the partitions later is a [`Layout`](crate::layout::Layout).

use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};

use crate::layout::canonical_type;

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
    /// The table has no such partition, or no more.
    #[error("there is no partition {ordinal}; there are {has:?}")]
    NoPartition {
        /// The ordinal given.
        ordinal: u32,
        /// The partitions that there are, in the order of their keys.
        has: Vec<u32>,
    },
    /// Two partitions that are to be merged do not stand side by side.
    #[error(
        "partitions {one} and {other} are not neighbours; in the order of their keys they are {has:?}"
    )]
    NotNeighbours {
        /// One of them.
        one: u32,
        /// The other one.
        other: u32,
        /// The partitions that there are, in the order of their keys.
        has: Vec<u32>,
    },
    /// A partition cannot be split where, or as, it was asked.
    #[error("partition {ordinal} cannot be split: {why}")]
    Indivisible {
        /// The partition.
        ordinal: u32,
        /// Why not.
        why: String,
    },
    /// The rows say nothing about their partition.
    #[error("a table without a partition key cannot have its partitions split or merged")]
    NoKey,
    /// What is stored of a layout contradicts itself.
    #[error("the stored layout of partitions is wrong: {what}")]
    Stored {
        /// What is wrong.
        what: String,
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
            Self::NoPartition { .. } => "FS-PARTITION-7",
            Self::NotNeighbours { .. } => "FS-PARTITION-8",
            Self::Indivisible { .. } => "FS-PARTITION-9",
            Self::NoKey => "FS-PARTITION-10",
            Self::Stored { .. } => "FS-PARTITION-11",
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

    /// The bounds of a range partitioning as values of the key column's type.
    ///
    /// # Errors
    /// [`PartitioningError::Bound`] if one is no such value or does not ascend.
    pub fn bounds(&self, schema: &SchemaRef) -> Result<Vec<ScalarValue>, PartitioningError> {
        let Self::Range { column, bounds } = self else { return Ok(vec![]) };
        typed(column, bounds, schema)
    }
}

/// Bounds as values of the type of `column`.
pub(crate) fn typed(
    column: &str,
    bounds: &[String],
    schema: &Schema,
) -> Result<Vec<ScalarValue>, PartitioningError> {
    let field = schema.field_with_name(column)?;
    let mut values: Vec<ScalarValue> = Vec::with_capacity(bounds.len());
    for bound in bounds {
        let wrong = || PartitioningError::Bound {
            column: column.to_owned(),
            bound: bound.clone(),
            data_type: field.data_type().clone(),
        };
        let value = ScalarValue::Utf8(Some(bound.clone()))
            .cast_to(field.data_type())
            .map_err(|_no_cast| wrong())?;
        let ascends = values
            .last()
            .is_none_or(|last| matches!(last.partial_cmp(&value), Some(std::cmp::Ordering::Less)));
        if value.is_null() || !ascends {
            return Err(wrong());
        }
        values.push(value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Field;

    use super::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
            Field::new("v", DataType::Float64, true),
        ]))
    }

    #[test]
    fn bad_keys_counts_and_bounds_are_named() {
        let schema = schema();
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
