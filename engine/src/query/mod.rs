//! The path of a query: from SQL to batches.
//!
//! One optimizer rule per file; see `docs/architecture.md` for how they follow each other.

pub mod any_order;
pub mod channel;
pub mod codec;
pub mod complexity;
pub mod context;
mod dynamic;
pub mod explain;
mod filter_columns;
mod float_keys;
pub mod functions;
pub mod groups;
pub mod in_place;
pub(crate) mod key_range;
pub(crate) mod large_stack;
pub mod late;
mod memory;
mod mend;
mod merge_order;
pub(crate) mod newest_files;
pub mod one_node;
mod one_partition;
pub mod options;
pub mod own_task;
pub mod partial;
pub(crate) mod planning;
pub mod prune;
pub mod push_functions;
pub mod route;
pub mod scan;
pub mod single_row;
mod stream;
mod window_order;
pub mod worker;
