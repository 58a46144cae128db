//! Data and queries that the demo, the tests and the benchmarks share.

pub mod tpch;
