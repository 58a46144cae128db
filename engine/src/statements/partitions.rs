//! `CALL split_partition('t', 0)`, `CALL split_partition('t', 0, 'key')` and
//! `CALL merge_partitions('t', 0, 1)`: partitions are split and merged by hand.

use std::sync::Arc;

use foreshard_policy::ids::PartitionId;

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
    let done = session.inner.members.split(&partition, at).await?;
    let (Some((left, left_rows)), Some((right, right_rows))) = (done.new.first(), done.new.last())
    else {
        return Err(invalid(format!("{partition} was split into nothing")));
    };
    counts(&[
        ("left", u64::from(*left)),
        ("left_rows", *left_rows),
        ("right", u64::from(*right)),
        ("right_rows", *right_rows),
    ])
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
    let done = session.inner.members.merge(&store.table().name, pair).await?;
    let rows: Vec<(&str, u64)> = done
        .new
        .iter()
        .flat_map(|(new, rows)| [("partition", u64::from(*new)), ("rows", *rows)])
        .collect();
    counts(&rows)
}

fn ordinal(text: &str) -> Result<u32, EngineError> {
    text.parse().map_err(|_not_one| {
        invalid(format!("{text:?} is no number of a partition: see system.partitions"))
    })
}
