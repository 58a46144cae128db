//! The nodes of the cluster, the placement of partitions on them, and the steps that change it.
//!
//! Every change of the placement goes through one lock and makes a new epoch. Queries never take it.

mod alike;
mod error;
mod leave;
mod nodes;
mod ports;
mod rates;
mod reshape;
mod stored;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use arc_swap::ArcSwap;
use foreshard_actors::calls::CallSink;
use foreshard_actors::expressions::Expressions;
use foreshard_actors::node::{NodeState, ProcessMemory, StorePolicy, Tables};
use foreshard_actors::ports::{Outcome, SharedClock};
use foreshard_actors::spill::Spill;
use foreshard_actors::table::{Committed, TableStore};
use foreshard_policy::budgets::Shares;
use foreshard_policy::ids::{NodeId, PartitionId};
use foreshard_policy::key_ranges::KeyRanges;
use url::Url;

pub use self::alike::ReshapedAlike;
pub use self::error::MemberError;
use self::rates::Rates;
pub use self::reshape::Reshaped;
use crate::catalog::Catalog;
use crate::cluster::place::Place;
use crate::cluster::{Arrivals, Endpoint, PlacedNode, Placement};
use crate::query::channel::Channels;
use crate::query::worker::WorkerParts;

/// What every new in-process node may use, and how fast copies come to any node.
#[derive(Clone, Copy, Debug)]
pub struct NodeBudget {
    /// Tasks that may compute functions at the same time.
    pub cpu_permits: u32,
    /// Bytes of resident segments and stored outputs.
    pub memory_bytes_max: u64,
    /// When outputs are stored.
    pub store_policy: StorePolicy,
    /// How fast copies may come to it; 0 for as fast as they can.
    pub io_bytes_per_s: u64,
}

/// One node and how it is reached.
#[derive(Clone, Debug)]
struct Member {
    place: Arc<dyn Place>,
    url: Url,
    state: Option<Arc<NodeState>>,
    in_flight: Arc<AtomicUsize>,
    /// The port of a node of this process, once other processes may join.
    endpoint: Option<Arc<Endpoint>>,
}

/// The cluster.
pub struct Members {
    catalog: Arc<Catalog>,
    expressions: Arc<Expressions>,
    channels: Channels,
    clock: SharedClock,
    worker: OnceLock<WorkerParts>,
    calls: OnceLock<CallSink>,
    /// Where outputs go that find no room in memory; none if they go for good.
    spill: OnceLock<Arc<Spill>>,
    /// Where nodes of this process open their ports; none as long as nobody may join.
    host: OnceLock<IpAddr>,
    budget: ArcSwap<NodeBudget>,
    /// Nodes that a provider starts in other processes.
    arrivals: Arrivals,
    /// The memory of the process, of which its nodes keep parts.
    memory: Arc<ProcessMemory>,
    members: ArcSwap<BTreeMap<NodeId, Member>>,
    placement: ArcSwap<Placement>,
    /// Placements before that one on which queries may still run.
    former: Mutex<Vec<Weak<Placement>>>,
    rates: Rates,
    /// Which keys queries ask for, by table that is partitioned by ranges.
    key_ranges: Mutex<BTreeMap<Arc<str>, KeyRanges>>,
    /// Which part of what nodes have each table gets.
    shares: ArcSwap<Shares>,
    change: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Members({} nodes)", self.members.load().len())
    }
}

impl Members {
    /// A cluster without nodes.
    #[must_use]
    pub fn new(
        catalog: Arc<Catalog>,
        expressions: Arc<Expressions>,
        channels: Channels,
        clock: SharedClock,
        (budget, memory): (NodeBudget, Arc<ProcessMemory>),
    ) -> Self {
        Self {
            catalog,
            expressions,
            channels,
            clock,
            worker: OnceLock::new(),
            calls: OnceLock::new(),
            spill: OnceLock::new(),
            host: OnceLock::new(),
            budget: ArcSwap::from_pointee(budget),
            arrivals: Arrivals::default(),
            memory,
            members: ArcSwap::default(),
            placement: ArcSwap::default(),
            former: Mutex::default(),
            rates: Rates::default(),
            key_ranges: Mutex::default(),
            shares: ArcSwap::default(),
            change: tokio::sync::Mutex::default(),
        }
    }

    /// Says where new nodes report their calls and how their workers are built. Once, before the
    /// first node.
    pub fn connect(&self, calls: CallSink, worker: WorkerParts) {
        // A second call would change nothing; there is none.
        drop(self.calls.set(calls));
        drop(self.worker.set(worker));
    }

    /// Gives nodes of this process a disk. Once, before the first node.
    pub fn spill_to(&self, spill: Arc<Spill>) {
        drop(self.spill.set(spill));
    }

    /// The disk of the nodes of this process.
    #[must_use]
    pub fn spill(&self) -> Option<&Arc<Spill>> {
        self.spill.get()
    }

    /// Nodes that a provider starts in other processes, by name.
    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// The newest placement.
    #[must_use]
    pub fn placement(&self) -> Arc<Placement> {
        self.placement.load_full()
    }

    /// The nodes that live in this process.
    #[must_use]
    pub fn local_states(&self) -> HashMap<NodeId, Arc<NodeState>> {
        let members = self.members.load();
        members
            .iter()
            .filter_map(|(id, member)| Some((*id, Arc::clone(member.state.as_ref()?))))
            .collect()
    }

    /// The ways to all nodes.
    #[must_use]
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Function expressions known to this process.
    #[must_use]
    pub fn expressions(&self) -> &Arc<Expressions> {
        &self.expressions
    }

    fn member(&self, node: NodeId) -> Result<Member, MemberError> {
        self.members.load().get(&node).cloned().ok_or(MemberError::NoNode { node })
    }

    /// When nodes store outputs.
    #[must_use]
    pub fn store_policy(&self) -> StorePolicy {
        self.budget.load().store_policy
    }

    /// Tells nodes of other processes that a query is over: what is left of it there stops.
    pub fn query_ended(&self, query: u64, placement: &Placement) {
        for node in placement.nodes.iter().filter(|node| !node.is_local) {
            if let Ok(member) = self.member(node.id) {
                member.place.query_ended(query);
            }
        }
    }

    /// A node that does not exist yet.
    #[must_use]
    pub fn next_id(&self) -> NodeId {
        let last = self.members.load().keys().next_back().copied();
        last.map_or(NodeId(0), |NodeId(last)| NodeId(last + 1))
    }

    /// Makes a new placement out of the old one, with the nodes as they are now.
    fn publish(&self, edit: impl FnOnce(&mut BTreeMap<PartitionId, BTreeSet<NodeId>>)) {
        let old = self.placement.load();
        let mut holders = old.holders.clone();
        edit(&mut holders);
        let holds = |id: &NodeId| holders.values().any(|nodes| nodes.contains(id));
        let nodes = self
            .members
            .load()
            .iter()
            // One that is drained and empty is there for queries that know it, and for no new ones.
            .filter(|(id, member)| !member.place.view().draining || holds(id))
            .map(|(id, member)| PlacedNode {
                id: *id,
                url: member.url.clone(),
                is_local: member.state.is_some(),
                in_flight: Arc::clone(&member.in_flight),
            })
            .collect();
        let new = Placement { epoch: old.epoch.next(), nodes, holders };
        drop(old);
        let old = self.placement.swap(Arc::new(new));
        let mut former = self.former();
        former.retain(|placement| placement.strong_count() > 0);
        former.push(Arc::downgrade(&old));
    }

    /// Places the partitions of a new table and waits until their replicas are there.
    ///
    /// # Errors
    /// If a node fails.
    pub async fn table_created(&self, store: &dyn TableStore) -> Result<(), MemberError> {
        let _changing = self.change.lock().await;
        let snapshot = store.snapshot();
        let members = self.members.load_full();
        let nodes: Vec<NodeId> = members
            .iter()
            .filter(|(_, member)| !member.place.view().draining)
            .map(|(id, _)| *id)
            .collect();
        if nodes.is_empty() {
            return Ok(());
        }
        for member in members.values() {
            member.place.table_created(store.table()).await?;
        }
        let mut placed = BTreeMap::new();
        for (ordinal, node) in snapshot.layout.ordinals().iter().zip(nodes.iter().cycle()) {
            let partition = PartitionId::new(Arc::clone(&store.table().name), *ordinal);
            members[node].place.open(&partition, &snapshot, None).await?;
            placed.insert(partition, BTreeSet::from([*node]));
        }
        self.publish(|holders| holders.extend(placed));
        Ok(())
    }

    /// Gives up all replicas of a table.
    pub async fn table_dropped(&self, table: &str) {
        self.forget_ranges(table);
        let _changing = self.change.lock().await;
        let gone: Vec<(PartitionId, BTreeSet<NodeId>)> = self
            .placement()
            .holders
            .iter()
            .filter(|(partition, _)| &*partition.table == table)
            .map(|(partition, nodes)| (partition.clone(), nodes.clone()))
            .collect();
        self.publish(|holders| holders.retain(|partition, _| &*partition.table != table));
        for (partition, nodes) in gone {
            for node in nodes {
                if let Ok(member) = self.member(node)
                    && let Err(error) = member.place.close(&partition).await
                {
                    tracing::warn!(%partition, %node, code = error.code(), %error, "replica not closed");
                }
            }
        }
        for member in self.members.load_full().values() {
            member.place.table_dropped(table).await;
        }
        self.expressions.forget(|expression| &*expression.table == table);
        self.pin(|pinned| pinned.tables.retain(|pinned| **pinned != *table));
    }

    /// Tells every node that a table changed.
    pub fn committed(&self, change: Committed) {
        let change = Arc::new(change);
        for member in self.members.load().values() {
            member.place.committed(&change);
        }
    }

    /// Gives `to` a replica as soon as the bytes that come to it may be more; nothing happens if it has one.
    ///
    /// # Errors
    /// [`MemberError`] names what is missing.
    pub async fn copy(&self, partition: &PartitionId, to: NodeId) -> Result<u64, MemberError> {
        self.turn(to, partition, self.bytes_of(partition)).await?;
        self.copy_now(partition, to).await
    }

    /// Reads rows of a replica into memory as soon as the bytes that come to its node may be more.
    ///
    /// # Errors
    /// [`MemberError`] if there is no such node, or its turn would not come for too long.
    async fn prefetch(
        &self,
        partition: &PartitionId,
        node: NodeId,
    ) -> Result<Outcome, MemberError> {
        let place = self.place(node)?;
        let bytes = place.rows(partition).map_or(0, |rows| rows.bytes_missing);
        self.turn(node, partition, bytes).await?;
        Ok(place.prefetch(partition).await)
    }

    /// Waits until bytes of a partition may come to a node.
    async fn turn(
        &self,
        node: NodeId,
        partition: &PartitionId,
        bytes: u64,
    ) -> Result<(), MemberError> {
        let of = (&partition.table, self.shares.load().of(&partition.table).part);
        let limit = (self.budget.load().io_bytes_per_s, &self.clock);
        self.rates.turn(node, of, bytes, limit).await
    }

    /// Bytes of the newest rows of a partition.
    fn bytes_of(&self, partition: &PartitionId) -> u64 {
        let snapshot = self.catalog.store(&partition.table).map(|store| store.snapshot());
        let segments =
            snapshot.as_ref().and_then(|it| it.partitions.get(partition.ordinal as usize));
        segments.into_iter().flat_map(|it| it.iter()).map(|segment| segment.bytes).sum()
    }

    async fn copy_now(&self, partition: &PartitionId, to: NodeId) -> Result<u64, MemberError> {
        let _changing = self.change.lock().await;
        self.copy_while_changing(partition, to).await
    }

    /// The same for who has the lock.
    async fn copy_while_changing(
        &self,
        partition: &PartitionId,
        to: NodeId,
    ) -> Result<u64, MemberError> {
        let store = self
            .catalog
            .store(&partition.table)
            .filter(|store| store.snapshot().layout.has(partition.ordinal))
            .ok_or_else(|| MemberError::NoPartition { partition: partition.clone() })?;
        let target = self.member(to)?;
        let from = self
            .placement()
            .holders
            .get(partition)
            .into_iter()
            .flatten()
            .find_map(|node| (*node != to).then(|| self.member(*node).ok()).flatten());
        let from = from.as_ref().map(|member| &*member.place);
        target.place.open(partition, &store.snapshot(), from).await?;
        self.publish(|holders| {
            holders.entry(partition.clone()).or_default().insert(to);
        });
        // A commit that came while the replica was opening is caught up with here.
        target.place.open(partition, &store.snapshot(), None).await?;
        if let Some(from) = from {
            self.stored_follows(partition, from, &*target.place).await;
        }
        Ok(self.bytes_of(partition))
    }

    /// Takes the replica of `partition` from a node.
    ///
    /// # Errors
    /// [`MemberError::LastReplica`] if no other live node holds one.
    pub async fn drop_replica(
        &self,
        partition: &PartitionId,
        from: NodeId,
    ) -> Result<(), MemberError> {
        let _changing = self.change.lock().await;
        let placement = self.placement();
        let holders = placement
            .holders
            .get(partition)
            .ok_or_else(|| MemberError::NoPartition { partition: partition.clone() })?;
        let is_live = |node: &&NodeId| placement.position(**node).is_some() && **node != from;
        if holders.contains(&from) && holders.iter().filter(is_live).count() == 0 {
            return Err(MemberError::LastReplica { partition: partition.clone(), node: from });
        }
        self.publish(|holders| {
            if let Some(nodes) = holders.get_mut(partition) {
                nodes.remove(&from);
            }
        });
        if let Ok(member) = self.member(from) {
            member.place.close(partition).await?;
        }
        Ok(())
    }

    /// Sets when all nodes store outputs, those that come later too.
    pub fn set_store_policy(&self, store_policy: StorePolicy) {
        self.budget.store(Arc::new(NodeBudget { store_policy, ..**self.budget.load() }));
        for member in self.members.load().values() {
            member.place.set_store_policy(store_policy);
        }
    }

    /// Stops every node.
    pub async fn stop(&self) {
        for member in self.members.load().values() {
            member.place.stop().await;
        }
        if let Some(spill) = self.spill() {
            spill.close().await;
        }
    }

    /// The place of a node, for tests that look into it.
    ///
    /// # Errors
    /// [`MemberError::NoNode`].
    pub fn place(&self, node: NodeId) -> Result<Arc<dyn Place>, MemberError> {
        Ok(self.member(node)?.place)
    }
}

fn failed(error: &MemberError) -> Outcome {
    Outcome::Failed { code: error.code(), reason: error.to_string() }
}
