//! A SQL engine that forecasts function calls and gets ready before they come.
//!
//! Tables are split into partitions that actors own; queries are plain DataFusion SQL with registered
//! functions; a loop measures every call, forecasts the next ones, and stores outputs, copies partitions
//! and adds nodes before they are needed. Answers are always those of plain DataFusion.
//!
//! ```
//! use foreshard::{Config, Engine};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder().config(Config::default()).start().await?;
//! engine.sql("CREATE TABLE reviews AS VALUES (1, 'I love it'), (2, 'I hate it')").await?;
//! let rows = engine.sql("SELECT column1, sentiment(column2) > 0 AS happy FROM reviews").await?;
//! assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
//! engine.shutdown().await?;
//! # Ok(())
//! # }
//! ```

pub mod builder;
pub mod catalog;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod encode;
pub mod engine;
pub mod error;
pub mod metrics;
pub mod query;
mod query_stream;
mod register;
pub mod serve;
pub mod session;
mod statements;
pub mod telemetry;
pub mod workload;

pub use builder::EngineBuilder;
pub use config::Config;
pub use engine::Engine;
pub use error::EngineError;
pub use foreshard_actors::partitioning::Partitioning;
pub use foreshard_udfs::{AsyncOptions, Card, CostClass, FunctionVersion};
pub use query_stream::QueryStream;
pub use session::{Prepared, Session};

/// The examples of the README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
