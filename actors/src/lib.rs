//! Everything that is alive: nodes, partitions, the stores behind them, and the loop that forecasts.

pub mod allocator;
pub mod announcements;
pub mod board;
pub mod calls;
pub mod expressions;
pub mod history_store;
pub mod kept;
pub mod loop_handle;
pub mod lstm;
pub mod manager;
pub mod monitor;
pub mod node;
pub mod partition;
pub mod partitioning;
pub mod pins;
pub mod ports;
pub mod predicates;
pub mod predictor;
pub mod segment;
pub mod spill;
pub mod state_file;
pub mod steps;
pub mod store;
pub mod supervisor;
pub mod table;
pub mod trace;
