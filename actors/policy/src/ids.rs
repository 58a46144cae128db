//! Names for the things that are placed, called and counted.
//!
//! Every id is its own type, so that a node can never be passed where a partition is meant.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A range of one table's partition key, for example `trades/7`: the unit that is placed and copied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId {
    /// Table the partition belongs to.
    pub table: Arc<str>,
    /// Position of the partition within its table, counted from zero.
    pub ordinal: u32,
}

impl PartitionId {
    /// Names partition `ordinal` of `table`.
    #[must_use]
    pub fn new(table: impl Into<Arc<str>>, ordinal: u32) -> Self {
        Self { table: table.into(), ordinal }
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.table, self.ordinal)
    }
}

/// One node of the cluster: a process, or an in-process unit when the engine is embedded.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// Version of the placement. It only grows; a step or ticket of an older epoch is refused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Number of one tick of the loop, counted from the start of the history.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Tick(pub u64);

impl Tick {
    /// The tick that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

macro_rules! fingerprint {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:08x}..)", stringify!($name), self.0 >> 96)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(hex: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(hex, 16).map(Self)
            }
        }
    };
}

fingerprint! {
    /// Identity of an immutable set of rows. The rows behind an id never change.
    SegmentId
}

fingerprint! {
    /// Fingerprint of a function expression: function name and version, argument expressions over
    /// the table's columns, and the settings that change results. With a [`SegmentId`] it names one
    /// stored output.
    ExpressionId
}

fingerprint! {
    /// Fingerprint of a part of a plan that ends in a partial aggregate over one table, and of the
    /// settings that change its result. With a [`SegmentId`] it names one stored partial.
    FragmentId
}

fingerprint! {
    /// Fingerprint of what fragments have in common that differ in their literals only. What is
    /// expected of a fragment that is new is what the others of its shape came to.
    ShapeId
}

impl ShapeId {
    /// What calls of all its fragments are counted and forecast by, as those of an expression are.
    #[must_use]
    pub fn series(self) -> ExpressionId {
        ExpressionId(self.0)
    }
}

/// What calls are counted and forecast by: one function expression on one partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeriesKey {
    /// Name of the outermost function of the expression.
    pub function: Arc<str>,
    /// The expression.
    pub expression: ExpressionId,
    /// The partition it was called on.
    pub partition: PartitionId,
}

impl SeriesKey {
    /// A number that is the same for the same key on every machine, by FNV-1a: for state that is
    /// kept by series.
    #[must_use]
    pub fn id(&self) -> u64 {
        let expression = self.expression.0.to_le_bytes();
        let ordinal = self.partition.ordinal.to_le_bytes();
        let parts =
            [self.function.as_bytes(), &expression, self.partition.table.as_bytes(), &ordinal];
        parts.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

impl fmt::Display for SeriesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.function, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_survives_its_text_form() {
        let id = SegmentId(0x00ab_0000_0000_0000_0000_0000_0000_00cd);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 32);
    }
}
