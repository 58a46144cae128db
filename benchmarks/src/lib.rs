//! Workloads and comparisons, and the program that runs them.
//!
//! `foreshard-benchmarks list` names the benchmarks, `foreshard-benchmarks run NAME` runs one. Each is a file of its own and ends
//! in a [`Report`](report::Report): rows for reading, figures with bounds for judging.

pub mod arms;
pub mod demo_day;
pub mod machine;
pub mod overhead;
pub mod program;
pub mod report;
pub mod slt;
