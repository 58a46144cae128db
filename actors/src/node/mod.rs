//! Nodes: what scans see of one, and the supervisor that owns its partition actors.

mod memory;
mod permits;
mod state;
mod supervisor;

pub use memory::ProcessMemory;
pub use permits::{Permit, Permits};
pub use state::{ActiveTask, NodeState, NodeStateArgs, ReplicaHandle, StorePolicy, Tables};
pub use supervisor::{CALL_MS_MAX, NodeError, NodeHandle, NodeMessage, NodeSupervisor};
