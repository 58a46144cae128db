//! Nodes come: started in this process, or joined from another one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use foreshard_actors::calls::CallSink;
use foreshard_actors::node::{NodeHandle, NodeState, NodeStateArgs, Tables};
use foreshard_policy::ids::NodeId;
use foreshard_udfs::call_threads;
use url::Url;

use super::{Member, MemberError, Members};
use crate::cluster::place::{Place, PlaceError};
use crate::cluster::{Endpoint, LocalNode};

impl Members {
    /// Starts an in-process node.
    ///
    /// # Errors
    /// If its actors cannot be started.
    pub async fn add_local(&self, id: NodeId) -> Result<(), MemberError> {
        let budget = **self.budget.load();
        let state = Arc::new(NodeState::new(NodeStateArgs {
            id,
            tables: Arc::clone(&self.catalog) as Arc<dyn Tables>,
            expressions: Arc::clone(&self.expressions),
            calls: self.calls.get().cloned().unwrap_or_else(|| CallSink::new(1)),
            clock: Arc::clone(&self.clock),
            cpu_permits: budget.cpu_permits,
            memory: Arc::clone(&self.memory),
            memory_bytes_max: budget.memory_bytes_max,
            store_policy: budget.store_policy,
            spill: self.spill.get().cloned(),
        }));
        state.set_shares(self.shares.load_full());
        let handle = NodeHandle::start(Arc::clone(&state)).await.map_err(|error| {
            MemberError::Place(PlaceError::Node(foreshard_actors::node::NodeError::Start(error)))
        })?;
        let url = local_url(id)?;
        if let Some(parts) = self.worker.get() {
            self.channels.add(url.clone(), parts.worker(Arc::clone(&state)));
        }
        let place = Arc::new(LocalNode { handle });
        let _changing = self.change.lock().await;
        if self.member(id).is_ok() {
            self.channels.remove(&url);
            return Err(MemberError::Taken { node: id });
        }
        let member =
            Member { place, url, state: Some(state), in_flight: Arc::default(), endpoint: None };
        let member = self.reachable(id, member).await?;
        self.add(id, member);
        Ok(())
    }

    /// Adds a node of another process. It knows all tables before a query is sent to it.
    ///
    /// # Errors
    /// [`MemberError::Taken`], or what the node says.
    pub async fn add_remote(
        &self,
        id: NodeId,
        place: Arc<dyn Place>,
        url: Url,
    ) -> Result<(), MemberError> {
        let _changing = self.change.lock().await;
        if self.member(id).is_ok() {
            return Err(MemberError::Taken { node: id });
        }
        place.set_store_policy(self.store_policy());
        place.set_pins(&self.expressions.pins.all());
        place.set_shares(&self.shares.load_full());
        for store in self.catalog.stores() {
            place.table_created(store.table()).await?;
        }
        let in_flight = Arc::default();
        self.add(id, Member { place, url, state: None, in_flight, endpoint: None });
        Ok(())
    }

    /// Lets other processes join: from now on nodes of this process have ports on `host`, and the
    /// placement names them. Queries that run keep the old names, which stay valid here.
    ///
    /// # Errors
    /// [`MemberError::NoPort`].
    pub async fn open_ports(&self, host: IpAddr) -> Result<(), MemberError> {
        let _changing = self.change.lock().await;
        // At a second call the ports are open already.
        let _open = self.host.set(host);
        for (id, member) in self.members.load_full().iter() {
            let member = self.reachable(*id, member.clone()).await?;
            self.add(*id, member);
        }
        Ok(())
    }

    /// Gives a node of this process a port, if nodes have ports and it has none.
    async fn reachable(&self, id: NodeId, member: Member) -> Result<Member, MemberError> {
        let Some(host) = self.host.get().copied() else { return Ok(member) };
        let Some(worker) = self.channels.local(&member.url) else { return Ok(member) };
        if member.endpoint.is_some() {
            return Ok(member);
        }
        // The same worker as for calls within the process: a task that was planned here is fetched
        // from there.
        let no_port = |source| MemberError::NoPort { node: id, host, source };
        let threads = call_threads().map_err(no_port)?;
        let endpoint = Endpoint::open(host, worker.clone(), &threads).await.map_err(no_port)?;
        let url = endpoint.url().clone();
        self.channels.add(url.clone(), worker);
        Ok(Member { url, endpoint: Some(Arc::new(endpoint)), ..member })
    }

    fn add(&self, id: NodeId, member: Member) {
        self.members.rcu(|members| {
            let mut members = BTreeMap::clone(members);
            members.insert(id, member.clone());
            members
        });
        self.publish(|_| {});
    }
}

/// Address of a node that lives in this process: never dialled.
pub(super) fn local_url(id: NodeId) -> Result<Url, MemberError> {
    Url::parse(&format!("http://{id}.in-process:1"))
        .map_err(|_invalid| MemberError::NoNode { node: id })
}
