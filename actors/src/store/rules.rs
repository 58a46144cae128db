//! What a commit may do to partitions: rows are added to partitions that are there, and a layout takes the
//! place of the one that it was made of.

use std::sync::Arc;

use foreshard_policy::ids::SegmentId;

use super::error::{ConflictReason, StoreError};
use crate::layout::Layout;
use crate::segment::Segment;
use crate::table::{Change, NewLayout, Snapshot};

/// The partitions as the newest version has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    pub(super) layout: &'a Arc<Layout>,
    pub(super) partitions: &'a [Arc<Vec<Arc<Segment>>>],
}

impl Places<'_> {
    /// Judges a change that adds rows to partitions, removes segments, and may bring another layout.
    pub(super) fn judge(
        &self,
        mut added_to: impl Iterator<Item = u32>,
        is_removed: impl Fn(SegmentId) -> bool,
        new: Option<&NewLayout>,
    ) -> Result<(), ConflictReason> {
        if let Some(new) = new {
            if new.from != *self.layout {
                return Err(ConflictReason::LayoutChanged);
            }
            for ordinal in gone(new) {
                let segments = self.partitions.get(ordinal as usize);
                if segments.is_some_and(|all| all.iter().any(|one| !is_removed(one.id))) {
                    return Err(ConflictReason::PartitionWritten { ordinal });
                }
            }
        }
        let layout = new.map_or(self.layout, |new| &new.to);
        match added_to.find(|ordinal| !layout.has(*ordinal)) {
            Some(ordinal) => Err(ConflictReason::PartitionGone { ordinal }),
            None => Ok(()),
        }
    }
}

/// Partitions that end with a new layout.
pub(super) fn gone(new: &NewLayout) -> impl Iterator<Item = u32> {
    new.from.ordinals().iter().copied().filter(|ordinal| !new.to.has(*ordinal))
}

/// Refuses a change before its files are written, if it adds rows to partitions that are not there.
pub(super) fn check_places(snapshot: &Snapshot, change: &Change) -> Result<(), StoreError> {
    let layout = change.layout.as_ref().map_or(&snapshot.layout, |new| &new.to);
    let Some((ordinal, _)) = change.added.iter().find(|(ordinal, _)| !layout.has(*ordinal)) else {
        return Ok(());
    };
    let (table, ordinal) = (snapshot.table.name.to_string(), *ordinal);
    if layout.had(ordinal) {
        let reason = ConflictReason::PartitionGone { ordinal };
        return Err(StoreError::Conflict { table, reason });
    }
    let partitions = layout.partitions();
    Err(StoreError::NoSuchPartition { table, ordinal, partitions })
}
