//! Splits and merges partitions: rows, replicas, what is stored of them, and their history.
//!
//! ```text
//! replicas of the new partitions open on the holders of the old ones, empty
//! one commit: rows and layout ---- before it, queries find the old ones; after it, the new ones
//! the new replicas take over what the old ones have stored, and only then those are closed
//! ```
//!
//! Queries that run keep the snapshot and the placement that they began with. A crash leaves the old layout
//! or the new one; replicas are made from that at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foreshard_actors::layout::Cut;
use foreshard_actors::node::Tables;
use foreshard_actors::store::{Prepared, Reshape, StoreError, prepare};
use foreshard_actors::table::{Committed, TableStore};
use foreshard_policy::history::Succession;
use foreshard_policy::ids::{NodeId, PartitionId};

use super::{MemberError, Members};
use crate::engine::ATTEMPTS_MAX;

/// What a split or a merge came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reshaped {
    /// Partitions that are no more, in the order of their keys.
    pub gone: Vec<u32>,
    /// Partitions that there are instead, in the order of their keys, with their rows.
    pub new: Vec<(u32, u64)>,
    /// Resident bytes of the rows that were written anew.
    pub bytes: u64,
    /// Where a partition was cut, and why there; none if two were merged.
    pub cut: Option<(Cut, String)>,
}

/// Replicas of partitions, by node.
type Holders = BTreeMap<PartitionId, BTreeSet<NodeId>>;

impl Members {
    /// The store of a table, for tests that look into it.
    #[must_use]
    pub fn store(&self, table: &str) -> Option<Arc<dyn TableStore>> {
        self.catalog.store(table)
    }

    /// Makes two partitions of one: at the key `at` where the right one is to begin, or in the middle of its
    /// rows.
    ///
    /// # Errors
    /// [`MemberError::Store`] says what of the table is against it.
    pub async fn split(
        &self,
        partition: &PartitionId,
        at: Option<&str>,
    ) -> Result<Reshaped, MemberError> {
        let reshape = Reshape::Split { ordinal: partition.ordinal, at };
        self.reshape(&partition.table, reshape, None).await
    }

    /// Makes one partition of two neighbours.
    ///
    /// # Errors
    /// [`MemberError::Store`] says what of the table is against it.
    pub async fn merge(
        &self,
        table: &Arc<str>,
        (one, other): (u32, u32),
    ) -> Result<Reshaped, MemberError> {
        self.reshape(table, Reshape::Merge { one, other }, None).await
    }

    /// Carries out a split or a merge that was planned: the new partitions get the ordinals that were
    /// planned, or nothing is done.
    pub(super) async fn reshape_as_planned(
        &self,
        table: &Arc<str>,
        reshape: Reshape<'_>,
        into: &[u32],
    ) -> Result<Reshaped, MemberError> {
        self.reshape(table, reshape, Some(into)).await
    }

    pub(super) async fn reshape(
        &self,
        table: &Arc<str>,
        reshape: Reshape<'_>,
        planned: Option<&[u32]>,
    ) -> Result<Reshaped, MemberError> {
        let _changing = self.change.lock().await;
        let none = || {
            let partition = PartitionId::new(Arc::clone(table), reshape.ordinal());
            MemberError::NoPartition { partition }
        };
        let store = self.catalog.store(table).ok_or_else(none)?;
        self.close_ended(&*store).await;
        for _ in 0..ATTEMPTS_MAX {
            let mut prepared = prepare(&*store, reshape).await?;
            let new = || prepared.new.iter().map(|(ordinal, _)| *ordinal);
            if planned.is_some_and(|planned| !new().eq(planned.iter().copied())) {
                return Err(MemberError::Reshaped { table: Arc::clone(table) });
            }
            if planned.is_none() {
                prepared.asked_for();
            }
            let holders = self.holders_of(&*store, &prepared).await?;
            let opened = self.open_new(&*store, holders).await;
            match self.commit(&*store, &prepared).await {
                Ok(committed) => {
                    self.hand_over(&*store, &prepared, committed, opened).await;
                    self.tell_history(table, &prepared);
                    return Ok(reshaped(prepared));
                }
                Err(error) => {
                    self.close_all(opened).await;
                    let is_late = matches!(error, StoreError::Conflict { .. });
                    if !(is_late && error.is_retryable()) {
                        return Err(error.into());
                    }
                    store.refresh().await?;
                }
            }
        }
        Err(MemberError::TooManyConflicts { table: Arc::clone(table), attempts: ATTEMPTS_MAX })
    }

    /// Commits, and finds out whether that happened if the answer was lost.
    async fn commit(
        &self,
        store: &dyn TableStore,
        prepared: &Prepared,
    ) -> Result<Committed, StoreError> {
        let error = match store.commit(prepared.change.clone()).await {
            Ok(committed) => {
                let rewritten = prepared.rewritten(&committed.added);
                return Ok(Committed { rewritten, ..committed });
            }
            Err(error @ StoreError::Conflict { .. }) => return Err(error),
            Err(error) => error,
        };
        let Ok(snapshot) = store.refresh().await else { return Err(error) };
        let is_there = prepared.change.layout.as_ref().is_some_and(|new| snapshot.layout == new.to);
        match is_there {
            // Which segments are which is not known any more: what is stored stays behind.
            true => Ok(Committed { snapshot, added: vec![], rewritten: vec![] }),
            false => Err(error),
        }
    }

    /// Where the new partitions begin: on the live holders of the old one, or of the larger of two. Those get
    /// the smaller one as well first, so that nothing stored is lost.
    async fn holders_of(
        &self,
        store: &dyn TableStore,
        prepared: &Prepared,
    ) -> Result<Holders, MemberError> {
        let snapshot = store.snapshot();
        let table = &store.table().name;
        let rows = |ordinal: &u32| -> u64 {
            let segments = snapshot.partitions.get(*ordinal as usize);
            segments.map_or(0, |all| all.iter().map(|segment| segment.rows).sum())
        };
        let largest = prepared.gone.iter().copied().max_by_key(rows).unwrap_or_default();
        let home = PartitionId::new(Arc::clone(table), largest);
        let placement = self.placement();
        let is_live = |node: &NodeId| placement.position(*node).is_some();
        let held = placement.holders.get(&home).into_iter().flatten().copied();
        let holders: BTreeSet<NodeId> = held.filter(is_live).collect();
        for other in prepared.gone.iter().filter(|ordinal| **ordinal != largest) {
            let other = PartitionId::new(Arc::clone(table), *other);
            for node in &holders {
                let has = placement.holders.get(&other).is_some_and(|nodes| nodes.contains(node));
                if !has {
                    self.copy_while_changing(&other, *node).await?;
                }
            }
        }
        let id = |(new, _): &(u32, u64)| PartitionId::new(Arc::clone(table), *new);
        Ok(prepared.new.iter().map(|new| (id(new), holders.clone())).collect())
    }

    /// Opens replicas that have no segments yet, and places them. A node that fails goes without.
    async fn open_new(&self, store: &dyn TableStore, holders: Holders) -> Holders {
        let snapshot = store.snapshot();
        let mut opened = Holders::new();
        for (partition, nodes) in holders {
            let at = opened.entry(partition.clone()).or_default();
            for node in nodes {
                let Ok(member) = self.member(node) else { continue };
                match member.place.open(&partition, &snapshot, None).await {
                    Ok(()) => {
                        at.insert(node);
                    }
                    Err(error) => {
                        tracing::warn!(%partition, %node, code = error.code(), %error, "no replica");
                    }
                }
            }
        }
        self.publish(|placed| placed.extend(opened.clone()));
        opened
    }

    /// Gives the new replicas their segments and what is stored of them, then closes the old ones.
    async fn hand_over(
        &self,
        store: &dyn TableStore,
        prepared: &Prepared,
        committed: Committed,
        opened: Holders,
    ) {
        let committed = Arc::new(committed);
        let nodes: BTreeSet<NodeId> = opened.values().flatten().copied().collect();
        for node in nodes {
            let Ok(member) = self.member(node) else { continue };
            if let Err(error) = member.place.take_over(&committed).await {
                tracing::warn!(%node, code = error.code(), %error, "what is stored stays behind");
            }
        }
        // Behind that in the queues: when this is answered, nobody needs the old replicas.
        for (partition, nodes) in &opened {
            for node in nodes {
                let Ok(member) = self.member(*node) else { continue };
                if let Err(error) = member.place.open(partition, &store.snapshot(), None).await {
                    tracing::warn!(%partition, %node, code = error.code(), %error, "not caught up");
                }
            }
        }
        let table = &store.table().name;
        let id = |ordinal: &u32| PartitionId::new(Arc::clone(table), *ordinal);
        let old: BTreeSet<PartitionId> = prepared.gone.iter().map(id).collect();
        let placement = self.placement();
        let closing = placement.holders.iter().filter(|(partition, _)| old.contains(partition));
        self.close_all(closing.map(|(id, nodes)| (id.clone(), nodes.clone())).collect()).await;
    }

    /// Closes replicas of partitions that another process split or merged.
    async fn close_ended(&self, store: &dyn TableStore) {
        let (placement, snapshot) = (self.placement(), store.snapshot());
        let has_ended = |partition: &PartitionId| {
            partition.table == store.table().name && snapshot.layout.had(partition.ordinal)
        };
        let ended = placement.holders.iter().filter(|(partition, _)| has_ended(partition));
        let ended: Holders = ended.map(|(id, nodes)| (id.clone(), nodes.clone())).collect();
        if !ended.is_empty() {
            self.close_all(ended).await;
        }
    }

    /// Takes partitions out of the placement and closes their replicas.
    async fn close_all(&self, closing: Holders) {
        self.publish(|placed| placed.retain(|partition, _| !closing.contains_key(partition)));
        for (partition, nodes) in closing {
            for node in nodes {
                let Ok(member) = self.member(node) else { continue };
                if let Err(error) = member.place.close(&partition).await {
                    tracing::warn!(%partition, %node, code = error.code(), %error, "replica not closed");
                }
            }
        }
    }

    /// Tells the history of partitions that a query joins.
    pub(crate) fn joined(&self, pairs: Vec<(PartitionId, PartitionId)>) {
        if let Some(calls) = self.calls.get() {
            calls.joined(pairs);
        }
    }

    /// Series go on where the rows are.
    fn tell_history(&self, table: &Arc<str>, prepared: &Prepared) {
        let Some(calls) = self.calls.get() else { return };
        let id = |ordinal: u32| PartitionId::new(Arc::clone(table), ordinal);
        match (prepared.gone.as_slice(), prepared.new.as_slice()) {
            ([from], into) => {
                // Of a partition without rows each part gets the same.
                let rows: u64 = into.iter().map(|(_, rows)| rows).sum();
                let share = |rows_of: u64| if rows == 0 { 1.0 } else { rows_of as f64 };
                let into = into.iter().map(|(new, rows_of)| (id(*new), share(*rows_of))).collect();
                calls.follow(Succession::Split { from: id(*from), into });
            }
            (from, [(into, _)]) => {
                let from = from.iter().map(|ordinal| id(*ordinal)).collect();
                calls.follow(Succession::Merged { from, into: id(*into) });
            }
            _ => {}
        }
    }
}

fn reshaped(prepared: Prepared) -> Reshaped {
    let rows = prepared.change.added.iter().flat_map(|(_, batches)| batches);
    let bytes = rows.map(|batch| batch.get_array_memory_size() as u64).sum();
    Reshaped { gone: prepared.gone, new: prepared.new, bytes, cut: prepared.cut }
}
