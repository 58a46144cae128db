//! Workloads and comparisons, and the program that runs them.
//!
//! `foreshard-benchmarks list` names the benchmarks, `foreshard-benchmarks run NAME` runs one. Each is a file of its own and ends
//! in a [`Report`](report::Report): rows for reading, figures with bounds for judging.

pub mod admission;
pub mod adversarial;
pub mod analyst;
pub mod answers;
pub mod arms;
pub mod counted;
pub mod dashboard;
pub mod demo_day;
pub mod drill_down;
pub mod exact;
pub mod feedback;
pub mod forecast;
pub mod forecast_cost;
pub mod hits;
mod loads;
pub mod machine;
pub mod moves;
pub mod next_calls;
pub mod orders;
pub mod overhead;
pub mod plan_cost;
pub mod posts;
pub mod predicates;
pub mod program;
pub mod replay;
pub mod replay_simulated;
pub mod replicate;
pub mod report;
pub mod reuse;
pub mod sides;
pub mod simulate;
pub mod slt;
pub mod stories;
mod threads;
