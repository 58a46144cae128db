//! What is least worth keeping of what one replica has stored.

use std::sync::atomic::Ordering;

use foreshard_policy::ids::{ExpressionId, FragmentId, SegmentId};

use crate::expressions::Expressions;
use crate::partition::view::ReplicaView;

/// Something that is stored for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// The output of an expression.
    Output(ExpressionId),
    /// A partial aggregate.
    Partial(FragmentId),
}

/// Nanoseconds spared per byte by something that took `ns` and was used `uses` times.
pub(super) fn worth(ns: u64, uses: u64, bytes: u64) -> f64 {
    ns as f64 * uses as f64 / bytes.max(1) as f64
}

/// What is worth least, and how much; of equals the first by segment.
pub(super) fn least_worth(
    view: &ReplicaView,
    expressions: &Expressions,
) -> Option<(f64, SegmentId, Stored)> {
    let all = view.segments.iter().flat_map(|(segment, held)| {
        let outputs = held.outputs.iter().map(move |(id, output)| {
            let ns_per_row = expressions.get(*id).map_or(0, |known| known.ns_per_row());
            let ns = ns_per_row.saturating_mul(output.values.rows_known() as u64);
            let uses = output.uses.load(Ordering::Relaxed);
            (worth(ns, uses, output.bytes), *segment, Stored::Output(*id))
        });
        let partials = held.partials.iter().map(move |(id, partial)| {
            let uses = partial.uses.load(Ordering::Relaxed);
            (worth(partial.ns, uses, partial.bytes), *segment, Stored::Partial(*id))
        });
        outputs.chain(partials)
    });
    all.min_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)))
}
