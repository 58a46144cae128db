//! Nodes leave: drained and let go once no query knows them any more, or gone.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError, Weak};
use std::time::Duration;

use foreshard_policy::ids::{NodeId, PartitionId};

use super::{Member, MemberError, Members, nodes};
use crate::cluster::Placement;

/// How long a node that is drained waits for the queries that know it.
const QUERIES_END_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether they have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Members {
    /// Drains a node, and stops it.
    ///
    /// # Errors
    /// As of [`Self::drain`].
    pub async fn remove(&self, node: NodeId) -> Result<(), MemberError> {
        let member = self.member(node)?;
        self.drain(node).await?;
        member.place.stop().await;
        Ok(())
    }

    /// Drains a node: its partitions get another holder, then it is no part of the cluster any more.
    ///
    /// # Errors
    /// [`MemberError::LastNode`] if there is no other; or that of a partition that cannot be held elsewhere,
    /// and then the node goes on.
    pub async fn drain(&self, node: NodeId) -> Result<(), MemberError> {
        let member = self.member(node)?;
        let drained = self.empty(node, &member).await;
        match &drained {
            Ok(()) => {
                self.let_queries_end(node).await;
                self.forget(node).await;
            }
            Err(_) => {
                member.place.set_draining(false);
                let _changing = self.change.lock().await;
                self.publish(|_| ());
            }
        }
        drained
    }

    /// Waits until no query runs on a placement that names a node, which no new query is planned for any
    /// more; for at most [`QUERIES_END_MAX`].
    async fn let_queries_end(&self, node: NodeId) {
        {
            let _changing = self.change.lock().await;
            self.publish(|_| ());
        }
        let names_it = |placement: &Weak<Placement>| {
            placement.upgrade().is_some_and(|placement| placement.position(node).is_some())
        };
        let over = async {
            while self.former().iter().any(names_it) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        if tokio::time::timeout(QUERIES_END_MAX, over).await.is_err() {
            tracing::warn!(%node, "leaves though queries may still run on it");
        }
    }

    pub(super) fn former(&self) -> MutexGuard<'_, Vec<Weak<Placement>>> {
        // Every change is one push or one removal.
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn empty(&self, node: NodeId, member: &Member) -> Result<(), MemberError> {
        let others: Vec<NodeId> =
            self.members.load().keys().filter(|other| **other != node).copied().collect();
        if others.is_empty() {
            return Err(MemberError::LastNode { node });
        }
        member.place.set_draining(true);
        let held: Vec<PartitionId> = self
            .placement()
            .holders
            .iter()
            .filter(|(_, nodes)| nodes.contains(&node))
            .map(|(partition, _)| partition.clone())
            .collect();
        for (partition, to) in held.iter().zip(others.iter().cycle()) {
            let holders = self.placement().holders.get(partition).cloned().unwrap_or_default();
            if holders.iter().all(|holder| *holder == node) {
                self.copy(partition, *to).await?;
            }
            self.drop_replica(partition, node).await?;
        }
        Ok(())
    }

    /// Takes a node off the list at once: it is gone. Its partitions are read elsewhere, and those that
    /// had no other holder get one.
    pub async fn forget(&self, node: NodeId) {
        let orphans = {
            let _changing = self.change.lock().await;
            let Ok(member) = self.member(node) else { return };
            self.members.rcu(|members| {
                let mut members = BTreeMap::clone(members);
                members.remove(&node);
                members
            });
            self.publish(|holders| {
                for nodes in holders.values_mut() {
                    nodes.remove(&node);
                }
            });
            self.channels.remove(&member.url);
            self.rates.forget(node);
            if let (Some(_), Ok(name)) = (&member.endpoint, nodes::local_url(node)) {
                self.channels.remove(&name);
            }
            let placement = self.placement();
            let orphans = placement.holders.iter().filter(|(_, nodes)| nodes.is_empty());
            orphans.map(|(partition, _)| partition.clone()).collect::<Vec<_>>()
        };
        let nodes: Vec<NodeId> = self.members.load().keys().copied().collect();
        for (partition, to) in orphans.iter().zip(nodes.iter().cycle()) {
            // Nobody holds it, so it does not wait for its turn.
            if let Err(error) = self.copy_now(partition, *to).await {
                tracing::warn!(%partition, %to, code = error.code(), %error, "no new holder");
            }
        }
    }
}
