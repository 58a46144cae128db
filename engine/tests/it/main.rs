//! Integration tests: one binary, since each links all of DataFusion.

mod bad_input;
mod dml_properties;
mod dml_rows;
mod cli;
mod flight;
mod http;
mod telemetry;
mod kill;
mod oracle;
mod random_queries;
mod support;
mod tpch;
