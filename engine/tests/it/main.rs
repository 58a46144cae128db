//! Integration tests: one binary, since each links all of DataFusion.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy knows #[test], but not helpers"
)]

mod actors;
mod aggregates;
mod ahead;
mod asynchronous;
mod bad_input;
mod cause;
mod changed_files;
mod cli;
mod cluster;
mod colocate;
mod config_doc;
mod constants;
mod control;
mod dml_properties;
mod dml_rows;
mod dynamic;
mod explain;
mod files;
mod flight;
mod follow;
mod forecasts;
mod giving_way;
mod groups;
mod history;
mod http;
mod in_place;
mod joins;
mod kill;
mod late;
mod limits;
mod loops;
mod one_node;
mod partials;
mod plans;
mod prefetch;
mod providers;
mod redefined;
mod reshape;
mod reuse;
mod rig;
mod scaler;
mod shards;
mod spill;
mod support;
mod tables;
mod telemetry;
mod tidy;
mod tpch;
mod traps;
