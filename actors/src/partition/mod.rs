//! Partition actors: each owns one replica's batches and stored outputs, within the node's budget.

mod actor;
mod ahead;
mod compute;
mod distinct;
mod flight;
mod keep;
mod load;
mod output;
mod rows;
mod storing;
mod view;
mod worth;

pub use actor::{
    OFFERS_MAX, Offer, PartialOffer, Partition, PartitionArgs, PartitionMessage, PartitionRef,
};
pub use ahead::{Recipe, Sign, Wanted, stored_values};
pub use compute::{ComputeError, Computed, evaluate, read_columns};
pub use flight::{Flight, Flights, Turn};
pub use keep::keep_rows;
pub use load::SegmentLoad;
pub use output::{OutputValues, Selected};
pub use view::{Fragment, Held, Replica, ReplicaView, Resident, StoredOutput, StoredPartial};
