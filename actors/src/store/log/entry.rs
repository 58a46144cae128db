//! One entry of the commit log as bytes and back. An entry of ours says who wrote it and how many
//! actions it has, so that our own is recognised and a torn one is never taken for a whole one.

use std::collections::HashMap;
use std::collections::HashSet;

use bytes::Bytes;
use deltalake_core::kernel::{Action, Add, CommitInfo, Remove, Transaction};
use deltalake_core::logstore::{commit_uri_from_version, get_actions};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Proposal, View};
use crate::segment::{Location, Segment};
use crate::store::error::StoreError;
use crate::store::types::PARTITION_COLUMN;
use crate::table::Operation;

/// The folder of the log.
const LOG: &str = "_delta_log";
/// Key in `commitInfo`: which attempt to commit wrote the entry.
const COMMIT_KEY: &str = "foreshardCommit";
/// Key in `commitInfo`: number of other actions in the entry.
const ACTIONS_KEY: &str = "foreshardActions";

/// A log entry as read.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What it does.
    pub(crate) actions: Vec<Action>,
    /// Which attempt of ours wrote it; `None` for other writers.
    pub(crate) commit: Option<Uuid>,
}

/// Where the entry of a version is kept.
pub(crate) fn path_of(version: u64) -> String {
    commit_uri_from_version(Some(version)).to_string()
}

/// Reads the entry of `version`.
///
/// An empty or torn one may have been acknowledged by a writer that does not sync its files, so it
/// is reported and never repaired: dropping it could lose rows that somebody was promised.
pub(crate) fn parse(version: u64, bytes: &Bytes) -> Result<Entry, StoreError> {
    let corrupt = |what: String| StoreError::Corrupt { path: path_of(version), what };
    let actions = get_actions(version, bytes)
        .map_err(|error| corrupt(format!("not a whole log entry ({error})")))?;
    if actions.is_empty() {
        return Err(corrupt("empty".to_owned()));
    }
    let info = actions.iter().find_map(|action| match action {
        Action::CommitInfo(info) => Some(&info.info),
        _ => None,
    });
    let declared = info.and_then(|info| info.get(ACTIONS_KEY)).and_then(Value::as_u64);
    let found = actions.len() as u64 - 1;
    if let Some(declared) = declared.filter(|declared| *declared != found) {
        return Err(corrupt(format!("torn: it has {found} of {declared} actions")));
    }
    let commit = info
        .and_then(|info| info.get(COMMIT_KEY))
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok());
    Ok(Entry { actions, commit })
}

/// The bytes of an entry made of `actions`.
pub(crate) fn to_bytes(
    commit: Uuid,
    operation: &str,
    now_ms: i64,
    actions: Vec<Action>,
) -> Result<Bytes, StoreError> {
    let info = CommitInfo {
        timestamp: Some(now_ms),
        operation: Some(operation.to_owned()),
        operation_parameters: Some(HashMap::new()),
        engine_info: Some(concat!("foreshard/", env!("CARGO_PKG_VERSION")).to_owned()),
        info: HashMap::from([
            (COMMIT_KEY.to_owned(), json!(commit.to_string())),
            (ACTIONS_KEY.to_owned(), json!(actions.len())),
        ]),
        ..CommitInfo::default()
    };
    let mut bytes = Vec::new();
    for action in std::iter::once(Action::CommitInfo(info)).chain(actions) {
        serde_json::to_writer(&mut bytes, &action).map_err(|error| StoreError::Corrupt {
            path: LOG.to_owned(),
            what: format!("an action cannot be written as JSON ({error})"),
        })?;
        bytes.push(b'\n');
    }
    Ok(bytes.into())
}

/// The actions of several proposals that go into one entry, and what the entry calls them.
pub(crate) fn actions_of(
    proposals: &[&Proposal],
    view: &View,
    now_ms: i64,
) -> Result<(&'static str, Vec<Action>), StoreError> {
    let mut actions = Vec::new();
    if let Some(new) = proposals.iter().rev().find_map(|proposal| proposal.layout.as_ref()) {
        let metadata = json!({ "metaData": view.metadata_with(&new.to)? });
        let metadata = serde_json::from_value(metadata).map_err(|error| StoreError::Corrupt {
            path: LOG.to_owned(),
            what: format!("the metadata of the table cannot be written ({error})"),
        })?;
        actions.push(metadata);
    }
    let mut transactions: HashMap<&str, i64> = HashMap::new();
    for proposal in proposals {
        let data_change = proposal.operation != Operation::Rewrite;
        for segment in proposal.removed.iter().filter_map(|id| view.segment(*id)) {
            actions.extend(removal(&segment, data_change, now_ms).map(Action::Remove));
        }
        actions.extend(proposal.added.iter().map(|(_, add)| Action::Add(add.clone())));
        if let Some((application, sequence)) = &proposal.transaction {
            let newest = transactions.entry(application).or_insert(*sequence);
            *newest = (*newest).max(*sequence);
        }
    }
    let mut transactions: Vec<_> = transactions.into_iter().collect();
    transactions.sort_unstable();
    actions.extend(transactions.into_iter().map(|(application, sequence)| {
        Action::Txn(Transaction::new_with_last_update(application, sequence, Some(now_ms)))
    }));
    let names: HashSet<&str> =
        proposals.iter().map(|proposal| operation_name(proposal.operation)).collect();
    let name = if names.len() == 1 { names.into_iter().next() } else { None };
    Ok((name.unwrap_or("FORESHARD GROUP"), actions))
}

fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "WRITE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Truncate => "TRUNCATE",
        Operation::Rewrite => "OPTIMIZE",
    }
}

fn partition_values(ordinal: u32) -> HashMap<String, Option<String>> {
    HashMap::from([(PARTITION_COLUMN.to_owned(), Some(ordinal.to_string()))])
}

fn removal(segment: &Segment, data_change: bool, now_ms: i64) -> Option<Remove> {
    let Location::Parquet { path, file_bytes, .. } = &segment.location else { return None };
    Some(Remove {
        path: path.to_string(),
        data_change,
        deletion_timestamp: Some(now_ms),
        extended_file_metadata: Some(true),
        partition_values: Some(partition_values(segment.partition)),
        size: i64::try_from(*file_bytes).ok(),
        ..Remove::default()
    })
}

/// The `add` action of a segment's file.
pub(crate) fn addition(
    segment: &Segment,
    stats: String,
    data_change: bool,
    now_ms: i64,
) -> Option<Add> {
    let Location::Parquet { path, file_bytes, .. } = &segment.location else { return None };
    Some(Add {
        path: path.to_string(),
        partition_values: partition_values(segment.partition),
        size: i64::try_from(*file_bytes).ok()?,
        modification_time: now_ms,
        data_change,
        stats: Some(stats),
        ..Add::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_lost_its_last_lines_is_not_taken_for_a_whole_one() {
        let commit = Uuid::from_u128(7);
        let add = |path: &str| Action::Add(Add { path: path.to_owned(), ..Add::default() });
        let bytes = to_bytes(commit, "WRITE", 1, vec![add("a"), add("b")]).unwrap();
        let whole = parse(3, &bytes).unwrap();
        assert_eq!((whole.actions.len(), whole.commit), (3, Some(commit)));
        for length in 0..bytes.len() - 1 {
            let torn = parse(3, &bytes.slice(..length));
            assert!(
                matches!(torn, Err(StoreError::Corrupt { .. })),
                "{length} of {} bytes were accepted",
                bytes.len()
            );
        }
    }

    #[test]
    fn an_entry_of_another_writer_needs_no_count() {
        let bytes = Bytes::from_static(b"{\"commitInfo\":{\"operation\":\"VACUUM START\"}}\n");
        let entry = parse(1, &bytes).unwrap();
        assert_eq!(entry.commit, None);
    }
}
