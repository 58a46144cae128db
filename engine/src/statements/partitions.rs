//! `CALL split_partition('t', 0)`, `CALL split_partition('t', 0, 'key')` and
//! `CALL merge_partitions('t', 0, 1)`: partitions are split and merged by hand.

use std::sync::Arc;

use foreshard_actors::ports::Cluster;
use foreshard_policy::alike;
use foreshard_policy::ids::PartitionId;

use crate::cluster::ReshapedAlike;
use crate::error::EngineError;
use crate::query_stream::QueryStream;
use crate::session::Session;
use crate::statements::call::{counts, invalid};

/// Makes two partitions of one, at the key where the right one is to begin or in the middle of its rows.
pub(super) async fn split(
    session: &Session,
    table: &str,
    partition: &str,
    at: Option<&str>,
) -> Result<QueryStream, EngineError> {
    let store = session.inner.writable(table)?;
    let partition = PartitionId::new(Arc::clone(&store.table().name), ordinal(partition)?);
    let twins = twins(session, &partition);
    let done = session.inner.members.split_alike(&partition, at, &twins).await?;
    let ReshapedAlike { first: done, alike, failed } = done;
    let (Some((left, left_rows)), Some((right, right_rows))) = (done.new.first(), done.new.last())
    else {
        return Err(invalid(format!("{partition} was split into nothing")));
    };
    let mut row = vec![
        ("left", u64::from(*left)),
        ("left_rows", *left_rows),
        ("right", u64::from(*right)),
        ("right_rows", *right_rows),
    ];
    if !twins.is_empty() {
        row.extend([("alike", alike), ("alike_failed", failed)]);
    }
    counts(&row)
}

/// Partitions of other tables with the same keys, which are split and merged alike.
fn twins(session: &Session, partition: &PartitionId) -> Vec<PartitionId> {
    let (members, the_loop) = (&session.inner.members, &session.inner.the_loop);
    let controls = the_loop.controls();
    let joined = &the_loop.forecast().joined;
    let mut twins = alike::twins(&members.view(), &controls, joined, partition);
    twins.retain(|twin| !controls.is_frozen(&twin.table));
    twins
}

/// Makes one partition of two neighbours.
pub(super) async fn merge(
    session: &Session,
    table: &str,
    one: &str,
    other: &str,
) -> Result<QueryStream, EngineError> {
    let store = session.inner.writable(table)?;
    let pair = (ordinal(one)?, ordinal(other)?);
    let name = &store.table().name;
    let id = |ordinal| PartitionId::new(Arc::clone(name), ordinal);
    let view = session.inner.members.view();
    // Both of a pair must have their like in the other table.
    let pairs = twins(session, &id(pair.0)).into_iter().filter_map(|twin| {
        let other = alike::twin(&view, &id(pair.1), &twin.table)?.ordinal;
        Some((twin, other))
    });
    let pairs: Vec<(PartitionId, u32)> = pairs.collect();
    let done = session.inner.members.merge_alike(name, pair, &pairs).await?;
    let ReshapedAlike { first: done, alike, failed } = done;
    let mut row: Vec<(&str, u64)> = done
        .new
        .iter()
        .flat_map(|(new, rows)| [("partition", u64::from(*new)), ("rows", *rows)])
        .collect();
    if !pairs.is_empty() {
        row.extend([("alike", alike), ("alike_failed", failed)]);
    }
    counts(&row)
}

fn ordinal(text: &str) -> Result<u32, EngineError> {
    text.parse().map_err(|_not_one| {
        invalid(format!("{text:?} is no number of a partition: see system.partitions"))
    })
}
