//! Integration tests: one binary, since each links all of DataFusion.

mod bad_input;
mod cli;
mod cluster;
mod config_doc;
mod dml_properties;
mod dml_rows;
mod flight;
mod http;
mod kill;
mod oracle;
mod random_queries;
mod support;
mod telemetry;
mod tidy;
mod tpch;
