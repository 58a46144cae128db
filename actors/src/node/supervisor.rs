//! The node supervisor: starts, restarts and stops the partition actors of one node.
//!
//! ```text
//! cluster --Open, Close--> node supervisor --spawn, restart--> partition actors
//! ```
//!
//! A partition actor that dies is started again on the replica it published before. If the supervisor
//! itself dies, its partition actors stop; the replicas stay readable, and [`NodeHandle::revive`] starts
//! everything again on them.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use foreshard_policy::ids::PartitionId;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};

use crate::node::state::{NodeState, ReplicaHandle};
use crate::partition::{Partition, PartitionArgs, PartitionMessage, PartitionRef, Replica};

/// What a node supervisor can be told or asked.
#[derive(Debug)]
pub enum NodeMessage {
    /// Command: hold a replica of this partition; reply when its actor is there.
    Open(PartitionId, RpcReplyPort<bool>),
    /// Command: give the replica up.
    Close(PartitionId, RpcReplyPort<bool>),
    /// Query: the actors that run, for tests that kill them.
    GetPartitions(RpcReplyPort<Vec<PartitionId>>),
}

/// The actor. All that changes lives in [`NodeSupervisorState`].
#[derive(Debug)]
pub struct NodeSupervisor;

/// Memory of one node supervisor.
#[derive(Debug)]
pub struct NodeSupervisorState {
    node: Arc<NodeState>,
    partitions: HashMap<ActorId, PartitionId>,
}

impl Actor for NodeSupervisor {
    type Msg = NodeMessage;
    type State = NodeSupervisorState;
    type Arguments = Arc<NodeState>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        node: Arc<NodeState>,
    ) -> Result<NodeSupervisorState, ActorProcessingErr> {
        let mut state = NodeSupervisorState { node, partitions: HashMap::new() };
        for (partition, handle) in state.node.replicas().iter() {
            state.start(partition, handle.clone(), &myself).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: NodeMessage,
        state: &mut NodeSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeMessage::Open(partition, reply) => state.on_open(partition, reply, &myself).await,
            NodeMessage::Close(partition, reply) => state.on_close(&partition, reply),
            NodeMessage::GetPartitions(reply) => {
                drop(reply.send(state.partitions.values().cloned().collect()));
                Ok(())
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut NodeSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(who, error) => {
                state.on_partition_gone(who.get_id(), &error.to_string(), &myself).await
            }
            SupervisionEvent::ActorTerminated(who, _, reason) => {
                let reason = reason.unwrap_or_else(|| "stopped".to_owned());
                state.on_partition_gone(who.get_id(), &reason, &myself).await
            }
            _ => Ok(()),
        }
    }
}

impl NodeSupervisorState {
    async fn start(
        &mut self,
        partition: &PartitionId,
        handle: ReplicaHandle,
        myself: &ActorRef<NodeMessage>,
    ) -> Result<(), ActorProcessingErr> {
        let args = PartitionArgs {
            partition: partition.clone(),
            replica: handle.replica.clone(),
            node: self.node.clone(),
            reference: handle.actor.clone(),
        };
        let (actor, _) = Actor::spawn_linked(None, Partition, args, myself.get_cell()).await?;
        self.partitions.insert(actor.get_id(), partition.clone());
        self.node.set_replica(partition, Some(handle));
        Ok(())
    }

    async fn on_open(
        &mut self,
        partition: PartitionId,
        reply: RpcReplyPort<bool>,
        myself: &ActorRef<NodeMessage>,
    ) -> Result<(), ActorProcessingErr> {
        let is_new = self.node.handle(&partition).is_none();
        if is_new {
            let replica = Arc::new(Replica::new(partition.clone()));
            let handle = ReplicaHandle { replica, actor: PartitionRef::default() };
            self.start(&partition, handle, myself).await?;
        }
        drop(reply.send(is_new));
        Ok(())
    }

    fn on_close(
        &mut self,
        partition: &PartitionId,
        reply: RpcReplyPort<bool>,
    ) -> Result<(), ActorProcessingErr> {
        let handle = self.node.handle(partition);
        self.node.set_replica(partition, None);
        self.partitions.retain(|_, open| open != partition);
        if let Some(actor) = handle.as_ref().and_then(|handle| handle.actor.actor()) {
            actor.stop(Some("closed".to_owned()));
        }
        drop(reply.send(handle.is_some()));
        Ok(())
    }

    async fn on_partition_gone(
        &mut self,
        who: ActorId,
        reason: &str,
        myself: &ActorRef<NodeMessage>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(partition) = self.partitions.remove(&who) else { return Ok(()) };
        let Some(handle) = self.node.handle(&partition) else { return Ok(()) };
        tracing::warn!(node = %self.node.id, %partition, reason, "partition actor started again");
        self.start(&partition, handle, myself).await
    }
}

/// A running node: its state, and its supervisor wherever it runs now.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    /// What scans see.
    pub state: Arc<NodeState>,
    supervisor: Arc<ArcSwapOption<ActorRef<NodeMessage>>>,
}

impl NodeHandle {
    /// Starts the supervisor of a node, linked to `parent` if there is one.
    ///
    /// # Errors
    /// If the actor cannot be started.
    pub async fn start(state: Arc<NodeState>) -> Result<Self, ractor::SpawnErr> {
        let handle = Self { state, supervisor: Arc::default() };
        handle.revive().await?;
        Ok(handle)
    }

    /// Starts the supervisor again if it is dead; its partition actors go on from their replicas.
    ///
    /// # Errors
    /// If the actor cannot be started.
    pub async fn revive(&self) -> Result<(), ractor::SpawnErr> {
        let (actor, _) = Actor::spawn(None, NodeSupervisor, self.state.clone()).await?;
        self.supervisor.store(Some(Arc::new(actor)));
        Ok(())
    }

    /// The supervisor, started again first if it is dead.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn supervisor(&self) -> Result<ActorRef<NodeMessage>, ractor::SpawnErr> {
        let is_alive = |actor: &ActorRef<NodeMessage>| {
            matches!(
                actor.get_status(),
                ractor::ActorStatus::Starting
                    | ractor::ActorStatus::Running
                    | ractor::ActorStatus::Upgrading
            )
        };
        if let Some(actor) = self.supervisor.load_full()
            && is_alive(&actor)
        {
            return Ok(ActorRef::clone(&actor));
        }
        self.revive().await?;
        match self.supervisor.load_full() {
            Some(actor) => Ok(ActorRef::clone(&actor)),
            None => Err(ractor::SpawnErr::StartupFailed("the supervisor was stopped while it started".into())),
        }
    }

    /// Opens a replica; true if it was not there before.
    ///
    /// # Errors
    /// If the supervisor is gone and cannot be started again.
    pub async fn open(&self, partition: &PartitionId) -> Result<bool, NodeError> {
        let actor = self.supervisor().await?;
        ractor::call_t!(actor, NodeMessage::Open, CALL_MS_MAX, partition.clone())
            .map_err(|error| NodeError::NoAnswer { node: self.state.id, reason: error.to_string() })
    }

    /// Closes a replica; true if it was there.
    ///
    /// # Errors
    /// If the supervisor is gone and cannot be started again.
    pub async fn close(&self, partition: &PartitionId) -> Result<bool, NodeError> {
        let actor = self.supervisor().await?;
        ractor::call_t!(actor, NodeMessage::Close, CALL_MS_MAX, partition.clone())
            .map_err(|error| NodeError::NoAnswer { node: self.state.id, reason: error.to_string() })
    }

    /// Sends a message to the actor of a replica; false if there is none.
    pub fn tell(&self, partition: &PartitionId, message: PartitionMessage) -> bool {
        self.state
            .handle(partition)
            .and_then(|handle| handle.actor.actor())
            .is_some_and(|actor| actor.cast(message).is_ok())
    }

    /// Stops the supervisor and with it all partition actors.
    pub fn stop(&self) {
        if let Some(actor) = self.supervisor.swap(None) {
            actor.stop(Some("node stopped".to_owned()));
        }
    }
}

/// Longest wait for a node supervisor's answer, in milliseconds.
pub const CALL_MS_MAX: u64 = 10_000;

/// A node did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The supervisor cannot be started.
    #[error("node supervisor cannot be started: {0}")]
    Start(#[from] ractor::SpawnErr),
    /// The supervisor gave no answer in time.
    #[error("{node} gave no answer within {CALL_MS_MAX} ms: {reason}")]
    NoAnswer {
        /// The node.
        node: foreshard_policy::ids::NodeId,
        /// What happened.
        reason: String,
    },
}

impl NodeError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Start(_) => "FS-NODE-1",
            Self::NoAnswer { .. } => "FS-NODE-2",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        true
    }
}
