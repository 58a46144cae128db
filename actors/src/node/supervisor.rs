//! The node supervisor: starts, restarts and stops the partition actors of one node.
//!
//! ```text
//! cluster --Open, Close--> node supervisor --spawn, restart--> partition actors
//! ```
//!
//! A partition actor that dies is started again on the replica it published before, and catches up with
//! the commits it missed. If the supervisor itself dies, its partition actors stop; the replicas stay
//! readable, and the keeper task of its [`NodeHandle`] starts everything again on them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foreshard_policy::ids::PartitionId;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::sync::watch;
use tokio::task::JoinHandle;

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

/// The actor. All that changes lives in `NodeSupervisorState`.
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
            state.catch_up(partition);
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
        self.start(&partition, handle, myself).await?;
        self.catch_up(&partition);
        Ok(())
    }

    /// Sends the newest snapshot: what was committed while the actor was down went to its dead mailbox.
    fn catch_up(&self, partition: &PartitionId) {
        let actor = self.node.handle(partition).and_then(|handle| handle.actor.actor());
        if let (Some(actor), Some(store)) = (actor, self.node.tables.store(&partition.table)) {
            // If it has died again, its next start sends this again.
            drop(actor.cast(PartitionMessage::Load(store.snapshot(), None)));
        }
    }
}

/// A running node: its state, and its supervisor wherever it runs now.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    /// What scans see.
    pub state: Arc<NodeState>,
    supervisor: Arc<watch::Sender<Keeping>>,
}

/// What the keeper of a supervisor does.
#[derive(Clone, Debug, Default)]
enum Keeping {
    /// Starts it.
    #[default]
    Starting,
    /// Waits for its end.
    Running(ActorRef<NodeMessage>),
    /// Nothing: the node was stopped, or its supervisor could not be started again.
    Stopped,
}

impl Keeping {
    fn alive(&self) -> Option<&ActorRef<NodeMessage>> {
        let Self::Running(actor) = self else { return None };
        let status = actor.get_status();
        let is_alive = matches!(
            status,
            ractor::ActorStatus::Starting
                | ractor::ActorStatus::Running
                | ractor::ActorStatus::Upgrading
        );
        is_alive.then_some(actor)
    }
}

impl NodeHandle {
    /// Starts the supervisor of a node, and a task that starts it again whenever it dies.
    ///
    /// # Errors
    /// If the actor cannot be started.
    pub async fn start(state: Arc<NodeState>) -> Result<Self, ractor::SpawnErr> {
        let handle = Self { state, supervisor: Arc::default() };
        let running = handle.spawn().await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "ends when the node is stopped: it waits for the supervisor, which stop() ends"
        )]
        drop(tokio::spawn(handle.clone().keep(running)));
        Ok(handle)
    }

    async fn spawn(&self) -> Result<JoinHandle<()>, ractor::SpawnErr> {
        let (actor, running) = Actor::spawn(None, NodeSupervisor, self.state.clone()).await?;
        let was_stopped = !self.supervisor.send_if_modified(|keeping| {
            let goes_on = !matches!(keeping, Keeping::Stopped);
            if goes_on {
                *keeping = Keeping::Running(actor.clone());
            }
            goes_on
        });
        if was_stopped {
            actor.stop(Some("node stopped".to_owned()));
        }
        Ok(running)
    }

    async fn keep(self, mut running: JoinHandle<()>) {
        loop {
            // Its end is what counts, not how it ended.
            drop(running.await);
            if matches!(*self.supervisor.borrow(), Keeping::Stopped) {
                return;
            }
            tracing::warn!(node = %self.state.id, "node supervisor started again");
            running = match self.spawn().await {
                Ok(running) => running,
                Err(error) => {
                    tracing::error!(node = %self.state.id, %error, "node supervisor stays down");
                    self.supervisor.send_replace(Keeping::Stopped);
                    return;
                }
            };
        }
    }

    /// The supervisor; waits for its next start if it has just died.
    ///
    /// # Errors
    /// [`NodeError::NoAnswer`] if it does not run within [`CALL_MS_MAX`].
    pub async fn supervisor(&self) -> Result<ActorRef<NodeMessage>, NodeError> {
        let mut keeping = self.supervisor.subscribe();
        let settled = keeping
            .wait_for(|keeping| keeping.alive().is_some() || matches!(keeping, Keeping::Stopped));
        let settled = tokio::time::timeout(Duration::from_millis(CALL_MS_MAX), settled).await;
        let actor = match settled {
            Ok(Ok(keeping)) => keeping.alive().cloned(),
            _ => None,
        };
        actor.ok_or_else(|| NodeError::NoAnswer {
            node: self.state.id,
            reason: "its supervisor does not run".to_owned(),
        })
    }

    /// Opens a replica; true if it was not there before.
    ///
    /// # Errors
    /// [`NodeError::NoAnswer`] if the supervisor does not answer.
    pub async fn open(&self, partition: &PartitionId) -> Result<bool, NodeError> {
        let actor = self.supervisor().await?;
        ractor::call_t!(actor, NodeMessage::Open, CALL_MS_MAX, partition.clone())
            .map_err(|error| NodeError::NoAnswer { node: self.state.id, reason: error.to_string() })
    }

    /// Closes a replica; true if it was there.
    ///
    /// # Errors
    /// [`NodeError::NoAnswer`] if the supervisor does not answer.
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
        if let Keeping::Running(actor) = self.supervisor.send_replace(Keeping::Stopped) {
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
