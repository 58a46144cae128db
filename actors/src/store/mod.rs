//! Where the rows of a table are kept: Delta tables of our own, foreign Parquet files, or memory.
//!
//! | store | kind | segment |
//! |---|---|---|
//! | [`ManagedTable`] | Delta table, durable, written by us | one file |
//! | [`ParquetTable`] | existing Parquet files, read-only | one row group |
//! | [`MemoryTable`] | memory, lost with the process | the rows of one commit in one partition |
//!
//! All three obey the same rules for commits; see [`TableStore`](crate::table::TableStore).

mod durable;
mod error;
mod location;
mod log;
mod managed;
mod memory;
mod parquet_files;
mod read;
mod relayout;
mod rules;
mod stats;
mod types;
mod write;

pub use durable::{Durable, LEFTOVER_AGE_MS, sweep};
pub use error::{ConflictReason, StoreError};
pub use managed::{ManagedOptions, ManagedTable, VACUUM_AGE_MIN_MS};
pub use memory::MemoryTable;
pub use parquet_files::ParquetTable;
pub use relayout::{Prepared, Reshape, prepare};
