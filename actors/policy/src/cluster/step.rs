//! One change to the cluster, as it is planned, carried out, undone and shown.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{OutputView, RowsView};
use crate::calls::CallRecord;
use crate::ids::{ExpressionId, NodeId, PartitionId};
use crate::reshape::cut::Even;

/// A partition of another table that is split at the same place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SplitAlike {
    /// What is split.
    pub partition: PartitionId,
    /// Ordinals of the left and the right part: the next ones of its table.
    pub into: [u32; 2],
}

/// Neighbours in another table that are merged as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MergeAlike {
    /// The left one.
    pub partition: PartitionId,
    /// Ordinal of the right one.
    pub other: u32,
    /// Ordinal of both together: the next one of its table.
    pub into: u32,
}

/// One change, specific enough that carrying it out leaves nothing to choose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// Give `to` a replica of `partition`, copied from `from`.
    Copy {
        /// What is copied.
        partition: PartitionId,
        /// A node that holds it. The same as `to` if no live node does: then `to` loads it from
        /// the store.
        from: NodeId,
        /// The node that will hold it too.
        to: NodeId,
    },
    /// Give `to` the replica of `partition` that `from` has: a copy, and a drop once the copy is done. If
    /// only the copy succeeds, both have one.
    Move {
        /// What is moved.
        partition: PartitionId,
        /// The node that gives it up.
        from: NodeId,
        /// The node that will hold it.
        to: NodeId,
    },
    /// Remove the replica of `partition` from a node. Never the last one.
    Drop {
        /// What is given up.
        partition: PartitionId,
        /// The node that gives it up.
        from: NodeId,
    },
    /// Make two partitions of one.
    Split {
        /// What is split.
        partition: PartitionId,
        /// Ordinals of the left and the right part: the next ones of the table.
        into: [u32; 2],
        /// What both parts are to have half of.
        #[serde(default)]
        even: Even,
        /// Partitions of other tables with the same keys. What fails of them stays as it is.
        #[serde(default)]
        alike: Vec<SplitAlike>,
    },
    /// Make one partition of two neighbours.
    Merge {
        /// The left one.
        partition: PartitionId,
        /// Ordinal of the right one.
        other: u32,
        /// Ordinal of both together: the next one of the table.
        into: u32,
        /// Neighbours in other tables with the same keys. What fails of them stays as it is.
        #[serde(default)]
        alike: Vec<MergeAlike>,
    },
    /// Compute and store the missing outputs of `expression` over `partition` on each holder.
    Precompute {
        /// Name of the outermost function.
        function: Arc<str>,
        /// What is computed.
        expression: ExpressionId,
        /// Over which rows.
        partition: PartitionId,
    },
    /// Throw the stored outputs of `expression` over `partition` away.
    DropOutput {
        /// Name of the outermost function.
        function: Arc<str>,
        /// What is dropped.
        expression: ExpressionId,
        /// Of which partition.
        partition: PartitionId,
    },
    /// Read rows of `partition` into the memory of a node that holds it, before queries ask for them.
    Prefetch {
        /// What is read.
        partition: PartitionId,
        /// Where.
        node: NodeId,
    },
    /// Let the rows of `partition` go from the memory of a node; queries read them from the store.
    Release {
        /// What goes.
        partition: PartitionId,
        /// Where.
        node: NodeId,
    },
    /// Start one more node.
    AddNode {
        /// The name it will have.
        node: NodeId,
    },
    /// Remove a drained node.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
}

/// What a step does to what, whichever nodes do it: steps with the same aim are the same change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aim {
    /// Kind of step, as in [`Step::kind`].
    pub kind: &'static str,
    /// What is changed; none if it is nodes.
    pub partition: Option<PartitionId>,
    /// Outputs of what, if it is outputs.
    pub expression: Option<ExpressionId>,
}

impl Step {
    /// What the step does to what.
    #[must_use]
    pub fn aim(&self) -> Aim {
        let expression = match self {
            Self::Precompute { expression, .. } | Self::DropOutput { expression, .. } => {
                Some(*expression)
            }
            _ => None,
        };
        Aim { kind: self.kind(), partition: self.partition().cloned(), expression }
    }

    /// The partition that the step changes, or whose outputs it changes, if there is one.
    #[must_use]
    pub fn partition(&self) -> Option<&PartitionId> {
        match self {
            Self::Copy { partition, .. }
            | Self::Move { partition, .. }
            | Self::Drop { partition, .. }
            | Self::Split { partition, .. }
            | Self::Merge { partition, .. }
            | Self::Precompute { partition, .. }
            | Self::DropOutput { partition, .. }
            | Self::Prefetch { partition, .. }
            | Self::Release { partition, .. } => Some(partition),
            Self::AddNode { .. } | Self::RemoveNode { .. } => None,
        }
    }

    /// The partition whose replicas the step changes, if it does.
    #[must_use]
    pub fn partition_moved(&self) -> Option<&PartitionId> {
        match self {
            Self::Copy { partition, .. }
            | Self::Move { partition, .. }
            | Self::Drop { partition, .. } => Some(partition),
            _ => None,
        }
    }

    /// The partitions that are no more once the step is done.
    #[must_use]
    pub fn partitions_ended(&self) -> Vec<PartitionId> {
        match self {
            Self::Split { partition, alike, .. } => {
                let alike = alike.iter().map(|twin| &twin.partition);
                [partition].into_iter().chain(alike).cloned().collect()
            }
            Self::Merge { partition, other, alike, .. } => {
                let alike = alike.iter().map(|twin| (&twin.partition, twin.other));
                let both = |(one, other): (&PartitionId, u32)| {
                    [one.clone(), PartitionId::new(Arc::clone(&one.table), other)]
                };
                [(partition, *other)].into_iter().chain(alike).flat_map(both).collect()
            }
            _ => vec![],
        }
    }

    /// Whether the placement is another one once the step is done.
    #[must_use]
    pub fn changes_placement(&self) -> bool {
        self.partition_moved().is_some() || !self.partitions_ended().is_empty()
    }

    /// What the step makes of the holders of the partition that it moves.
    pub(crate) fn change_holders(&self, holders: &mut BTreeSet<NodeId>) {
        match self {
            Self::Copy { to, .. } => drop(holders.insert(*to)),
            Self::Move { from, to, .. } => {
                holders.remove(from);
                holders.insert(*to);
            }
            Self::Drop { from, .. } => drop(holders.remove(from)),
            _ => {}
        }
    }

    /// What the step makes of the output that it computes or drops.
    pub(crate) fn change_output(&self, output: &mut OutputView) {
        match self {
            Self::Precompute { .. } => {
                output.rows_stored += output.rows_missing;
                output.rows_missing = 0;
            }
            Self::DropOutput { .. } => {
                output.rows_missing += output.rows_stored;
                output.rows_stored = 0;
                output.bytes = 0;
            }
            _ => {}
        }
    }

    /// What the step makes of the rows that it reads or lets go.
    pub(crate) fn change_rows(&self, rows: &mut RowsView) {
        match self {
            Self::Prefetch { .. } => {
                rows.bytes += rows.bytes_missing;
                rows.bytes_missing = 0;
            }
            Self::Release { .. } => {
                rows.bytes_missing += rows.bytes;
                rows.bytes = 0;
            }
            _ => {}
        }
    }

    /// Whether calls like this one may have been a reason for the step.
    #[must_use]
    pub fn concerns(&self, call: &CallRecord) -> bool {
        match self {
            Self::Copy { partition, .. }
            | Self::Move { partition, .. }
            | Self::Drop { partition, .. }
            | Self::Prefetch { partition, .. }
            | Self::Release { partition, .. } => call.partition == *partition,
            Self::Split { .. } | Self::Merge { .. } => {
                self.partitions_ended().contains(&call.partition)
            }
            Self::Precompute { expression, partition, .. }
            | Self::DropOutput { expression, partition, .. } => {
                call.expression == *expression && call.partition == *partition
            }
            Self::AddNode { .. } | Self::RemoveNode { .. } => true,
        }
    }

    /// The kind of step, as it stands in `system.decisions`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Copy { .. } => "copy",
            Self::Move { .. } => "move",
            Self::Drop { .. } => "drop",
            Self::Split { .. } => "split",
            Self::Merge { .. } => "merge",
            Self::Precompute { .. } => "precompute",
            Self::DropOutput { .. } => "drop output",
            Self::Prefetch { .. } => "prefetch",
            Self::Release { .. } => "release",
            Self::AddNode { .. } => "add node",
            Self::RemoveNode { .. } => "remove node",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy { partition, from, to } if from == to => {
                write!(f, "copy {partition} store -> {to}")
            }
            Self::Copy { partition, from, to } => write!(f, "copy {partition} {from} -> {to}"),
            Self::Move { partition, from, to } => write!(f, "move {partition} {from} -> {to}"),
            Self::Drop { partition, from } => write!(f, "drop {partition} {from}"),
            Self::Split { partition, into: [left, right], alike, .. } => {
                write!(f, "split {partition} -> {left}, {right}")?;
                alike.iter().try_for_each(|SplitAlike { partition, into: [left, right] }| {
                    write!(f, "; {partition} -> {left}, {right}")
                })
            }
            Self::Merge { partition, other, into, alike } => {
                write!(f, "merge {partition}, {other} -> {into}")?;
                alike.iter().try_for_each(|MergeAlike { partition, other, into }| {
                    write!(f, "; {partition}, {other} -> {into}")
                })
            }
            Self::Precompute { function, partition, .. } => {
                write!(f, "precompute {function} on {partition}")
            }
            Self::DropOutput { function, partition, .. } => {
                write!(f, "drop output {function} on {partition}")
            }
            Self::Prefetch { partition, node } => write!(f, "prefetch {partition} {node}"),
            Self::Release { partition, node } => write!(f, "release {partition} {node}"),
            Self::AddNode { node } => write!(f, "add node {node}"),
            Self::RemoveNode { node } => write!(f, "remove node {node}"),
        }
    }
}
