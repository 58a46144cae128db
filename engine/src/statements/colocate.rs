//! `CALL colocate('a', 'b', ..)` and `CALL colocate_end('a')`: people say which tables belong together. The
//! loop keeps their partitions with the same keys on one node, and splits and merges them alike.

use std::collections::BTreeSet;
use std::sync::Arc;

use foreshard_actors::controls::RequestError;
use foreshard_actors::ports::Cluster;
use foreshard_policy::alike;
use foreshard_policy::control::{ControlError, Controls};

use crate::error::EngineError;
use crate::query::in_place::key_kind;
use crate::query_stream::QueryStream;
use crate::session::Session;
use crate::statements::call::{counts, store};

/// From now on these tables, and those that they belong together with already, belong together. Answers
/// whether that is new.
pub(super) async fn colocate(
    session: &Session,
    tables: &[&str],
) -> Result<QueryStream, EngineError> {
    let mut names = vec![];
    for table in tables {
        names.push(Arc::clone(&store(session, table)?.table().name));
    }
    let group = group(&session.inner.the_loop.controls(), &names);
    check(session, &group).map_err(|error| EngineError::Control(RequestError::Refused(error)))?;
    let the_loop = &session.inner.the_loop;
    let changed = the_loop.change_controls(move |all| all.colocate(&names)).await?;
    counts(&[("changed", u64::from(changed))])
}

/// From now on a table belongs together with no other one. Answers whether that is new.
pub(super) async fn end(session: &Session, table: &str) -> Result<QueryStream, EngineError> {
    let table = Arc::clone(&store(session, table)?.table().name);
    let the_loop = &session.inner.the_loop;
    let changed = the_loop.change_controls(move |all| all.colocate_end(&table)).await?;
    counts(&[("changed", u64::from(changed))])
}

/// These tables and all that they belong together with.
fn group(controls: &Controls, names: &[Arc<str>]) -> BTreeSet<Arc<str>> {
    let others = names.iter().filter_map(|name| controls.group_of(name)).flatten();
    names.iter().chain(others).cloned().collect()
}

/// Refuses tables whose partitions cannot hold the same keys.
fn check(session: &Session, group: &BTreeSet<Arc<str>>) -> Result<(), ControlError> {
    let Some(first) = group.first() else { return Ok(()) };
    let refused = |table: &Arc<str>, why: String| {
        let other = group.iter().find(|other| *other != table).unwrap_or(table);
        Err(ControlError::NotAlike { table: Arc::clone(table), other: Arc::clone(other), why })
    };
    if group.len() < 2 {
        return refused(first, "one table alone belongs together with itself".to_owned());
    }
    let mut first_kind = None;
    for name in group {
        let Ok(store) = store(session, name) else { continue };
        let layout = &store.snapshot().layout;
        let Some(kind) = key_kind(layout, &store.table().schema) else {
            let why = "it is not partitioned by keys that have one order (floats have two zeros)";
            return refused(name, why.to_owned());
        };
        let first_kind = first_kind.get_or_insert_with(|| kind.clone());
        if *first_kind != kind {
            return refused(
                name,
                format!("it is partitioned by {kind}, the other by {first_kind}"),
            );
        }
    }
    let view = session.inner.members.view();
    let partitions = |name: &Arc<str>| view.tables.get(name).map_or(0, |table| table.order.len());
    let most = group.iter().map(partitions).max().unwrap_or(0);
    if most > 1 && alike::sets(&view, group).len() < 2 {
        let counts: Vec<String> =
            group.iter().map(|name| format!("{name} has {}", partitions(name))).collect();
        let why =
            format!("there is no key at which all are cut; partitions: {}", counts.join(", "));
        return group.last().map_or(Ok(()), |last| refused(last, why));
    }
    Ok(())
}
