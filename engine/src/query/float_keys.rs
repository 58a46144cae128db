//! Hashes joins of the SEMI, ANTI and mark kind by floats, where sorting and merging was asked for.
//!
//! Before: `SortMergeJoinExec(LeftAnti)` on a column of floats, after
//! `SET datafusion.optimizer.prefer_hash_join = false`. After: `HashJoinExec` on the same.
//!
//! What makes it necessary: where a group of equal keys goes on in the next batch, DataFusion compares them
//! in a way that knows no NaN, and panics. Which queries meet that depends on how rows fall into batches.
//! Inside a batch it takes a NaN to equal a NaN, as a hash join does.

use std::sync::Arc;

use datafusion::common::{JoinType, Result};
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode, SortMergeJoinExec};

use crate::query::mend::Plan;

/// What a join that would panic becomes. To be asked first: the order of a merged join must not have been
/// counted on yet.
pub(super) fn mended(node: &Plan) -> Result<Option<Plan>> {
    let join = match node.downcast_ref::<SortMergeJoinExec>() {
        Some(join) if panics_on_nan(join)? => join,
        _ => return Ok(None),
    };
    let hashed = HashJoinExec::try_new(
        Arc::clone(join.left()),
        Arc::clone(join.right()),
        join.on().to_vec(),
        join.filter().clone(),
        &join.join_type(),
        None,
        PartitionMode::Auto,
        join.null_equality(),
        false,
    )?;
    Ok(Some(Arc::new(hashed)))
}

/// Whether a join compares floats that go on from one batch to the next.
fn panics_on_nan(join: &SortMergeJoinExec) -> Result<bool> {
    use JoinType::{LeftAnti, LeftMark, LeftSemi, RightAnti, RightMark, RightSemi};
    if !matches!(
        join.join_type(),
        LeftAnti | LeftMark | LeftSemi | RightAnti | RightMark | RightSemi
    ) {
        return Ok(false);
    }
    for (left, _) in join.on() {
        if left.data_type(&join.left().schema())?.is_floating() {
            return Ok(true);
        }
    }
    Ok(false)
}
