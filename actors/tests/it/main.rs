//! Integration tests of the actors, in one binary.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy knows #[test], but not helpers and #[tokio::test]"
)]

mod history_kill;
mod loop_actors;
mod store;
