//! Errors as users meet them.

use std::sync::Arc;

use datafusion::error::DataFusionError;
use datafusion::execution::context::SessionContext;
use foreshard_udfs::FunctionError;

use super::{EngineError, Position};

async fn of(sql: &str) -> EngineError {
    let context = SessionContext::new();
    let failed = async {
        context.sql("CREATE TABLE trades (price BIGINT, name TEXT) AS VALUES (1, 'x')").await?;
        context.sql(sql).await?.collect().await
    };
    EngineError::from_datafusion(failed.await.expect_err(sql))
}

#[tokio::test]
async fn every_mistake_in_sql_gives_one_sentence_with_its_code() {
    let mut lines = String::new();
    for sql in [
        "SELECT price FORM trades WHERE",
        "SELECT * FROM tardes",
        "SELECT prise FROM trades",
        "SELECT t.price FROM trades AS t JOIN trades AS u ON t.price = u.prise",
        "SELECT sqroot(price) FROM trades",
        "SELECT price + name FROM trades",
        "SELECT sqrt(name, 1) FROM trades",
        "SELECT price / (price - price) FROM trades",
        "SELECT CAST(name AS BIGINT) FROM trades",
        "SELECT price FROM trades GROUP BY name",
        "SELECT 'open",
        "SELECT * FROM nothing('x')",
    ] {
        lines.push_str(&of(sql).await.line());
        lines.push('\n');
    }
    insta::assert_snapshot!(lines, @r#"
    error[FS-SQL-1]: expected: end of statement, found: trades at line 1, column 19
    error[FS-SQL-2]: unknown table tardes
    error[FS-SQL-3]: unknown column prise; did you mean price?
    error[FS-SQL-3]: unknown column u.prise; did you mean price?
    error[FS-SQL-4]: unknown function sqroot; did you mean sqrt?
    error[FS-SQL-5]: cannot coerce arithmetic expression Int64 + Utf8View to valid types
    error[FS-SQL-5]: no function matches the given name and argument types 'sqrt(Utf8View, Int64)'. You might need to add explicit type casts
    error[FS-SQL-15]: divide by zero error
    error[FS-SQL-15]: cannot cast string 'x' to value of Int64 type
    error[FS-SQL-8]: column in SELECT must be in GROUP BY or an aggregate function: While expanding wildcard, column "trades.price" must appear in the GROUP BY clause or must be part of an aggregate function, currently only "trades.name" appears in the SELECT clause satisfies this requirement
    error[FS-SQL-1]: unterminated string literal at line 1, column 8
    error[FS-SQL-4]: unknown function nothing
    "#);
}

#[tokio::test]
async fn a_syntax_error_knows_its_place() {
    let EngineError::Syntax { position, .. } = of("SELECT 1\nFROM x AS y z").await else {
        panic!("not a syntax error")
    };
    assert_eq!(position.map(|Position { line, .. }| line), Some(2));
}

#[tokio::test]
async fn an_unknown_table_suggests_the_nearest_of_the_catalog() {
    let error = of("SELECT * FROM tardes").await.with_nearest(["quotes", "trades"]);
    assert_eq!(error.line(), "error[FS-SQL-2]: unknown table tardes; did you mean trades?");
    assert_eq!((error.http_status(), error.sqlstate()), (404, "42P01"));
}

#[test]
fn a_function_error_keeps_its_code_through_every_wrapping() {
    let inner = FunctionError::Unknown { name: "f".to_owned(), nearest: None };
    let shared = Arc::new(DataFusionError::from(inner).context("while scanning"));
    let kept = Arc::clone(&shared);
    let error = EngineError::from_datafusion(DataFusionError::Shared(shared));
    assert_eq!((error.code(), error.to_string().as_str()), ("FS-FN-7", "unknown function f"));
    drop(kept);
}

#[test]
fn our_own_error_comes_back_whole_and_as_text_keeps_its_code() {
    let there = EngineError::Timeout { seconds: 3, during: String::new() }.into_datafusion();
    let text = there.to_string();
    assert!(matches!(EngineError::from_datafusion(there), EngineError::Timeout { seconds: 3, .. }));

    let remote = DataFusionError::Execution(text).context("stage 2");
    let error = EngineError::from_datafusion(remote);
    assert_eq!(error.code(), "FS-RUN-1");
    assert!(error.is_retryable());
    assert_eq!(error.to_string(), "the query took longer than 3 s (limits.query-seconds)");
}

#[test]
fn a_lost_node_is_told_by_its_grpc_status() {
    let lost = tonic::Status::unavailable("connection refused");
    let error = EngineError::from_datafusion(DataFusionError::External(Box::new(lost)));
    assert_eq!(error.code(), "FS-RUN-6");
    assert!(error.is_retryable());
}

#[test]
fn an_internal_error_is_reported_as_a_defect_without_advice_to_file_it_elsewhere() {
    let error = EngineError::from_datafusion(DataFusionError::Internal("Index 3 is odd".into()));
    assert_eq!(error.line(), "error[FS-RUN-5]: a defect of the engine: index 3 is odd");
    assert_eq!(error.grpc_code(), tonic::Code::Internal);
}

#[test]
fn a_grpc_status_carries_the_code_in_its_text() {
    let status = tonic::Status::from(EngineError::ReadOnly { name: "t".to_owned() });
    assert_eq!(status.message(), "[FS-SQL-13] table t is read-only");
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
}
