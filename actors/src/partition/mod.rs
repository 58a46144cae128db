//! Partition actors: each owns one replica's batches and stored outputs, within the node's budget.

mod actor;
mod compute;
mod view;

pub use actor::{OFFERS_MAX, Offer, Partition, PartitionArgs, PartitionMessage, PartitionRef};
pub use compute::{ComputeError, Computed, evaluate, read_columns};
pub use view::{Held, Replica, ReplicaView, Resident, StoredOutput};
