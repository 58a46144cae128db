//! The library in a plain DataFusion session: what a user types and what comes back.

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::DataType;
use arrow::util::pretty::pretty_format_batches;
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::{SessionConfig, SessionContext};
use foreshard_udfs::{
    Card, CostClass, FunctionError, Functions, quiet_function_panics, registered,
};

async fn answer(context: &SessionContext, sql: &str) -> Result<String, DataFusionError> {
    let batches = context.sql(sql).await?.collect().await?;
    let table = pretty_format_batches(&batches)?.to_string();
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(1);
    let cells = |row: &str| row.split('|').map(str::trim).collect::<Vec<_>>().join(" ");
    Ok(rows.map(|row| cells(row).trim().to_owned()).collect::<Vec<_>>().join("\n"))
}

fn session(functions: &Functions) -> SessionContext {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    functions.install(&context);
    context
}

fn function(name: &str, answer: fn() -> ColumnarValue) -> (Card, ScalarUDF) {
    let card = Card::immutable(name, "1", CostClass::Free, "A test.", "SELECT 1");
    let answer = Arc::new(move |_: &[ColumnarValue]| Ok(answer()));
    let types = vec![DataType::Utf8];
    (card, create_udf(name, types, DataType::Int64, Volatility::Immutable, answer))
}

#[tokio::test]
async fn every_example_of_the_library_runs() {
    let functions = Functions::library();
    let context = session(&functions);
    answer(&context, "CREATE TABLE sales AS VALUES (1.5, 2), (3.0, 1)").await.unwrap();
    let view = "CREATE VIEW v AS SELECT column1 AS price, column2 AS quantity FROM sales";
    answer(&context, view).await.unwrap();
    for listed in functions.list() {
        let example = listed.card.example.replace("FROM sales", "FROM v");
        let got = answer(&context, &example).await;
        assert!(got.is_ok_and(|rows| !rows.is_empty()), "{example}");
    }
    assert_eq!(
        answer(&context, "SELECT weighted_avg(price, quantity) FROM v").await.unwrap(),
        "2.0"
    );
}

#[tokio::test]
async fn functions_answer_over_a_table_with_nulls() {
    let context = session(&Functions::library());
    let rows = "(VALUES (1, 'Zürich', 'http://a.ch/?q=1'), (2, NULL, 'no'), (3, '', NULL)) AS t(id, city, url)";
    let sql = format!(
        "SELECT id, soundex(city), levenshtein_similarity(city, 'Zurich') > 0.8, url_host(url),
                url_query(url, 'q'), regex_extract(city, '(.)$', 1), haversine_km(0, id, 0, id)
         FROM {rows} ORDER BY id"
    );
    let got = answer(&context, &sql).await.unwrap();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let got: Vec<String> = got.lines().map(words).collect();
    assert_eq!(got, ["1 Z620 true a.ch 1 h 0.0", "2 0.0", "3 false 0.0"]);
}

#[tokio::test]
async fn named_arguments_work() {
    let context = session(&Functions::library());
    let sql = "SELECT haversine_km(longitude1 => 2.2945, latitude1 => 48.8584,
                                   latitude2 => 48.8584, longitude2 => 2.2945)";
    assert_eq!(answer(&context, sql).await.unwrap(), "0.0");
}

#[tokio::test]
async fn the_weighted_average_works_in_groups_and_in_sliding_windows() {
    let context = session(&Functions::library());
    let table = "CREATE TABLE t AS SELECT * FROM (VALUES
        (1, 'a', 1.0, 1.0), (2, 'a', 4.0, 2.0), (3, 'b', NULL, 1.0), (4, 'a', 7.0, 1.0)
    ) AS t(id, k, v, w)";
    answer(&context, table).await.unwrap();
    let groups = "SELECT k, weighted_avg(v, w) FROM t GROUP BY k ORDER BY k";
    assert_eq!(answer(&context, groups).await.unwrap(), "a 4.0\nb");
    let windows =
        "SELECT id, weighted_avg(v, w) OVER (ORDER BY id ROWS 1 PRECEDING) FROM t ORDER BY id";
    assert_eq!(answer(&context, windows).await.unwrap(), "1 1.0\n2 3.0\n3 4.0\n4 7.0");
    let distinct = answer(&context, "SELECT weighted_avg(DISTINCT v, w) FROM t").await;
    assert!(distinct.unwrap_err().to_string().contains("has no meaning"));
}

#[tokio::test]
async fn wrong_argument_types_are_a_planning_error_that_names_the_function() {
    let context = session(&Functions::library());
    for (sql, name) in [
        ("SELECT soundex(1)", "soundex"),
        ("SELECT best_match('a', 1)", "best_match"),
        ("SELECT h3_cell('north', 1, 1)", "h3_cell"),
        ("SELECT embedding_similarity('a', 'b')", "embedding_similarity"),
        ("SELECT levenshtein_similarity('a')", "levenshtein_similarity"),
        ("SELECT weighted_avg('a', 'b')", "weighted_avg"),
    ] {
        let error = context.sql(sql).await.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_lying_function_fails_its_query_with_its_code_and_the_session_goes_on() {
    let functions = Functions::library();
    let long: fn() -> ColumnarValue = || {
        let array: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![1; 99]));
        ColumnarValue::Array(array)
    };
    let wrong: fn() -> ColumnarValue = || {
        let array: ArrayRef = Arc::new(StringArray::from(vec!["a"; 2]));
        ColumnarValue::Array(array)
    };
    for (card, udf) in [
        function("panics", || panic!("boom")),
        function("lengthens", long),
        function("mistypes", wrong),
    ] {
        functions.register(card, udf).unwrap();
    }
    let context = session(&functions);
    let table = "CREATE TABLE t AS SELECT * FROM (VALUES ('a'), ('b')) AS t(x)";
    answer(&context, table).await.unwrap();
    for (name, code) in [("panics", "FS-FN-1"), ("lengthens", "FS-FN-2"), ("mistypes", "FS-FN-3")] {
        let error = answer(&context, &format!("SELECT {name}(x) FROM t")).await.unwrap_err();
        let found = FunctionError::of(&error).map(FunctionError::code);
        assert_eq!(found, Some(code), "{error}");
        assert!(error.to_string().contains(&format!("{name}(Utf8) over 2 rows")), "{error}");
        assert!(!error.to_string().contains("backtrace"), "{error}");
    }
    assert_eq!(answer(&context, "SELECT count(soundex(x)) FROM t").await.unwrap(), "2");
    assert!(!registered(&functions.get("panics").unwrap()).unwrap().is_storable());
}

#[tokio::test]
async fn two_definitions_in_one_plan_are_two_expressions() {
    let functions = Functions::new();
    let (card, one) = function("f", || ColumnarValue::Scalar(ScalarValue::from(1_i64)));
    functions.register(card.clone(), one).unwrap();
    let before = functions.get("f").unwrap();
    let (_, two) = function("f", || ColumnarValue::Scalar(ScalarValue::from(2_i64)));
    functions.register(card, two).unwrap();
    let after = functions.get("f").unwrap();
    let context = session(&functions);
    let x = || vec![datafusion::prelude::col("x")];
    let table = context.sql("SELECT * FROM (VALUES ('a'), ('b')) AS t(x)").await.unwrap();
    let both = table.select(vec![before.call(x()).alias("before"), after.call(x()).alias("after")]);
    let batches = both.unwrap().collect().await.unwrap();
    let table = pretty_format_batches(&batches).unwrap().to_string();
    assert!(table.contains("| 1      | 2     |"), "{table}");
}

#[tokio::test]
async fn a_redefined_function_answers_anew_after_it_is_installed_again() {
    let functions = Functions::new();
    let (card, one) = function("f", || ColumnarValue::Scalar(ScalarValue::from(1_i64)));
    functions.register(card.clone(), one).unwrap();
    let context = session(&functions);
    assert_eq!(answer(&context, "SELECT f('x')").await.unwrap(), "1");
    let (_, two) = function("f", || ColumnarValue::Scalar(ScalarValue::from(2_i64)));
    functions.register(card, two).unwrap();
    functions.install(&context);
    assert_eq!(answer(&context, "SELECT f('x')").await.unwrap(), "2");
}

#[tokio::test]
async fn no_function_of_the_library_hides_one_of_datafusion() {
    let plain = SessionContext::new();
    for listed in Functions::library().list() {
        let name = &listed.card.name;
        assert!(plain.udf(name).is_err() && plain.udaf(name).is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_panic_that_becomes_an_error_is_not_printed_and_any_other_is() {
    static PRINTED: AtomicU64 = AtomicU64::new(0);
    let earlier = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PRINTED.fetch_add(1, Ordering::SeqCst);
        earlier(info);
    }));
    quiet_function_panics();
    quiet_function_panics();
    let functions = Functions::new();
    let (card, udf) = function("panics", || panic!("boom"));
    functions.register(card, udf).unwrap();
    let sql = "SELECT panics(x) FROM (VALUES ('a'), ('b')) AS t(x)";
    let error = answer(&session(&functions), sql).await.unwrap_err();
    assert_eq!(FunctionError::of(&error).map(FunctionError::code), Some("FS-FN-1"));
    assert_eq!(PRINTED.load(Ordering::SeqCst), 0);
    assert!(panic::catch_unwind(|| panic!("another")).is_err());
    assert_eq!(PRINTED.load(Ordering::SeqCst), 1);
}
