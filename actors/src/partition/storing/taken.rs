//! What gives way is taken out of a view first, and put back if a query has just begun to read it.

use std::sync::Arc;

use foreshard_policy::ids::{ExpressionId, FragmentId, SegmentId};

use crate::partition::view::{ReplicaView, StoredOutput, StoredPartial};
use crate::partition::worth::{Key, Stored};

/// Something that was taken out of a view.
pub(super) enum Taken {
    Output(SegmentId, ExpressionId, StoredOutput),
    Partial(SegmentId, FragmentId, StoredPartial),
}

impl Taken {
    /// Takes `key` out of a view.
    pub(super) fn out_of(view: &mut ReplicaView, (segment, stored): Key) -> Option<Self> {
        let held = view.segments.get_mut(&segment)?;
        Some(match stored {
            Stored::Output(id) => {
                let output = held.outputs.remove(&id)?;
                Self::Output(segment, id, output)
            }
            Stored::Partial(id) => Self::Partial(segment, id, held.partials.remove(&id)?),
        })
    }

    pub(super) fn put_back(self, view: &mut ReplicaView) {
        match self {
            Self::Output(segment, id, output) => {
                let held = view.segments.get_mut(&segment);
                held.map(|held| held.outputs.insert(id, output));
            }
            Self::Partial(segment, id, partial) => {
                let held = view.segments.get_mut(&segment);
                held.map(|held| held.partials.insert(id, partial));
            }
        }
    }

    /// Whether nobody else holds its charge: letting it go gives its bytes back.
    pub(super) fn is_ours(&self) -> bool {
        let (Self::Output(.., StoredOutput { charge, .. })
        | Self::Partial(.., StoredPartial { charge, .. })) = self;
        Arc::strong_count(charge) == 1
    }
}
