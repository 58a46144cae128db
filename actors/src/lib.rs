//! Everything that is alive: nodes, partitions, the stores behind them, and the loop that forecasts.

pub mod partitioning;
pub mod ports;
pub mod segment;
pub mod table;
pub mod expressions;
pub mod node;
pub mod partition;
pub mod allocator;
pub mod board;
pub mod calls;
pub mod loop_handle;
pub mod lstm;
pub mod manager;
pub mod monitor;
pub mod predictor;
pub mod state_file;
pub mod steps;
pub mod supervisor;
pub mod store;
