//! Whatever is put in, the answer is one clear error with a code; the engine goes on and loses nothing.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef};
use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use foreshard::serve::Servers;
use foreshard::{Config, Engine, EngineError};
use foreshard_actors::partitioning::Partitioning;
use foreshard_udfs::{Card, CostClass};
use parquet::arrow::ArrowWriter;

use crate::support::setups::Started;
use crate::support::{runtime, setups};

/// Terms of the chains that no planner should be given.
const TERMS: usize = 5_000;

/// Bytes of a text literal that is large and still allowed.
const LITERAL_BYTES: usize = 10 << 20;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("amount", DataType::Float64, true),
        Field::new("name", DataType::Utf8, true),
    ]))
}

fn hashed(partitions: u32) -> Partitioning {
    Partitioning::Hash { columns: vec!["id".into()], partitions }
}

/// An engine with the managed table `trades` of three rows.
async fn engine_with_trades() -> Started {
    let started = setups::engine(2, "reactive").await.unwrap();
    let url = format!("file://{}/trades", started.folder.path().display());
    started.engine.create_managed_table("trades", &url, schema(), hashed(2)).await.unwrap();
    let sql = "INSERT INTO trades VALUES (1, 1.5, 'one'), (2, 'NaN', ''), (3, NULL, NULL)";
    started.engine.sql(sql).await.unwrap();
    started
}

/// The number that `sql` answers.
async fn number(engine: &Engine, sql: &str) -> i64 {
    let batches = engine.sql(sql).await.unwrap();
    batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

/// The engine answers, and what was acknowledged is there.
async fn is_well(engine: &Engine) {
    assert_eq!(number(engine, "SELECT count(*) FROM trades").await, 3);
    assert_eq!(number(engine, "SELECT sum(id) FROM trades WHERE abs(id) > 0").await, 6);
}

/// `sql` is refused with `code` and a text that has all of `named`; the engine goes on.
async fn refused(engine: &Engine, sql: &str, code: &str, named: &[&str]) {
    let shown: String = sql.chars().take(80).collect();
    let error = match engine.sql(sql).await {
        Ok(rows) => panic!("{shown} must fail, but gives {rows:?}"),
        Err(error) => error,
    };
    is_clear(&error, code, named, &shown);
    is_well(engine).await;
}

fn is_clear(error: &EngineError, code: &str, named: &[&str], what: &str) {
    let text = error.to_string();
    assert_eq!(error.code(), code, "{what}: {text}");
    for name in named {
        assert!(text.contains(name), "{what}: {name:?} is not in {text:?}");
    }
    assert!(text.len() < 2_000, "{what}: an error of {} bytes", text.len());
}

#[test]
fn wrong_sql_says_where() {
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        refused(&engine, "SELEC 1", "FS-SQL-1", &["SELEC"]).await;
        refused(&engine, "SELECT id FROM trades WHERE", "FS-SQL-1", &[]).await;
        refused(&engine, "SELECT 'open", "FS-SQL-1", &[]).await;
        refused(&engine, "SELECT 1; SELECT 2", "FS-SQL-7", &["2"]).await;
        refused(&engine, "", "FS-SQL-7", &["0"]).await;
        refused(&engine, "SELECT \0 FROM trades", "FS-SQL-1", &[]).await;
    });
}

#[test]
fn an_unknown_table_column_or_function_is_named_with_the_nearest_one() {
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        refused(&engine, "SELECT * FROM trade", "FS-SQL-2", &["trade", "trades"]).await;
        refused(&engine, "INSERT INTO tradse VALUES (1)", "FS-SQL-2", &["tradse", "trades"]).await;
        refused(&engine, "SELECT amuont FROM trades", "FS-SQL-3", &["amuont", "amount"]).await;
        let sql = "SELECT jaro_winkle(name, 'a') FROM trades";
        refused(&engine, sql, "FS-SQL-4", &["jaro_winkle", "jaro_winkler"]).await;
        let error = engine.append("tradse", vec![]).await.unwrap_err();
        is_clear(&error, "FS-SQL-2", &["tradse", "trades"], "append");
    });
}

#[test]
fn arguments_of_the_wrong_type_are_named() {
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        for sql in [
            "SELECT unlucky(DATE '2024-01-01') FROM trades",
            "SELECT haversine_km('a', 'b', 'c') FROM trades",
            "SELECT name + INTERVAL '1 day' FROM trades",
        ] {
            let error = engine.sql(sql).await.unwrap_err();
            assert!(["FS-SQL-5", "FS-SQL-8"].contains(&error.code()), "{} {error}", error.code());
            is_well(&engine).await;
        }
        let sql = "SELECT CAST(name AS BIGINT) FROM trades WHERE name = 'one'";
        let error = engine.sql(sql).await.unwrap_err();
        assert!(error.to_string().contains("one"), "{error}");
        is_well(&engine).await;
    });
}

#[test]
fn rows_of_the_wrong_shape_are_refused_and_nothing_is_written() {
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        for sql in [
            "INSERT INTO trades VALUES (NULL, 1.0, 'no id')",
            "INSERT INTO trades VALUES ('x', 1.0, 'no number')",
            "INSERT INTO trades VALUES (4, 1.0)",
            "INSERT INTO trades SELECT id, 1 / (id - 2), name FROM trades",
            "UPDATE trades SET id = NULL",
        ] {
            let error = engine.sql(sql).await.unwrap_err();
            assert!(error.code().starts_with("FS-"), "{sql}: {error}");
            is_well(&engine).await;
        }
        let column: ArrayRef = Arc::new(Int64Array::from(vec![4]));
        let batch = RecordBatch::try_from_iter([("other", column)]).unwrap();
        let error = engine.append("trades", vec![batch]).await.unwrap_err();
        assert!(error.code().starts_with("FS-"), "{error}");
        is_well(&engine).await;
    });
}

#[test]
fn null_nan_and_nothing_are_values_like_others() {
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        let count = "SELECT count(*) FROM trades WHERE";
        assert_eq!(number(&engine, &format!("{count} amount IS NULL")).await, 1);
        assert_eq!(number(&engine, &format!("{count} isnan(amount)")).await, 1);
        assert_eq!(number(&engine, &format!("{count} amount > 1e300")).await, 1);
        assert_eq!(number(&engine, &format!("{count} name = ''")).await, 1);
        assert_eq!(number(&engine, &format!("{count} soundex(name) IS NULL")).await, 1);
        let batches = engine.sql("SELECT max(amount) FROM trades").await.unwrap();
        assert!(batches[0].column(0).as_primitive::<Float64Type>().value(0).is_nan());
    });
}

#[test]
fn empty_tables_and_batches_are_tables_and_batches() {
    runtime::run(async {
        let Started { engine, folder, .. } = engine_with_trades().await;
        let none = Vec::new();
        engine.create_memory_table("in_memory", schema(), hashed(3), none).await.unwrap();
        let url = format!("file://{}/on_disk", folder.path().display());
        engine.create_managed_table("on_disk", &url, schema(), hashed(3)).await.unwrap();
        for table in ["in_memory", "on_disk"] {
            let empty = RecordBatch::new_empty(schema());
            assert_eq!(engine.append(table, vec![empty.clone(), empty]).await.unwrap(), 0);
            assert_eq!(engine.append(table, vec![]).await.unwrap(), 0);
            assert_eq!(number(&engine, &format!("SELECT count(*) FROM {table}")).await, 0);
            for sql in [
                format!("SELECT soundex(name), amount FROM {table} WHERE counted(id) > 1"),
                format!("SELECT soundex(name), count(*) FROM {table} GROUP BY 1"),
                format!("SELECT t.id FROM {table} t JOIN trades u ON t.id = u.id"),
            ] {
                let rows: usize =
                    engine.sql(&sql).await.unwrap().iter().map(RecordBatch::num_rows).sum();
                assert_eq!(rows, 0, "{sql}");
            }
            let changed = engine.session().sql(&format!("DELETE FROM {table}")).await.unwrap();
            assert_eq!(changed.rows_affected(), Some(0));
        }
        is_well(&engine).await;
    });
}

fn write_parquet(path: &Path, rows: i64) -> Vec<u8> {
    let columns: [(&str, ArrayRef); 2] = [
        ("id", Arc::new(Int64Array::from_iter_values(0..rows))),
        ("v", Arc::new(Float64Array::from_iter_values((0..rows).map(|id| id as f64)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn a_truncated_parquet_file_is_named_whether_it_was_cut_before_or_after_it_was_opened() {
    runtime::run(async {
        let Started { engine, folder, .. } = engine_with_trades().await;
        let data = folder.path().join("files");
        std::fs::create_dir(&data).unwrap();
        write_parquet(&data.join("a.parquet"), 500);
        let cut = data.join("cut.parquet");
        let bytes = write_parquet(&cut, 500);
        std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();

        let url = data.display().to_string();
        let error = engine.open_parquet_table("files", &url, 2).await.unwrap_err();
        assert!(error.code().starts_with("FS-"), "{error}");
        assert!(error.to_string().contains("cut.parquet"), "{error}");
        is_well(&engine).await;

        std::fs::write(&cut, &bytes).unwrap();
        engine.open_parquet_table("files", &url, 2).await.unwrap();
        assert_eq!(number(&engine, "SELECT count(id) FROM files WHERE v >= 0").await, 1_000);
        let later = data.join("later");
        std::fs::create_dir(&later).unwrap();
        let cut = later.join("later.parquet");
        let bytes = write_parquet(&cut, 500);
        let url = later.display().to_string();
        engine.open_parquet_table("later", &url, 1).await.unwrap();
        for node in engine.placement().nodes.keys() {
            // Resident rows would be read from memory, rightly.
            let partition = foreshard_policy::ids::PartitionId::new("later", 0);
            let _may_be_the_last = engine.members().drop_replica(&partition, *node).await;
        }
        std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        match engine.sql("SELECT sum(v) FROM later").await {
            Ok(batches) => {
                let sum = batches[0].column(0).as_primitive::<Float64Type>().value(0);
                assert_eq!(sum, 124_750.0, "half a file is no answer");
            }
            Err(error) => {
                assert!(error.code().starts_with("FS-"), "{error}");
                assert!(error.to_string().contains("later.parquet"), "{error}");
            }
        }
        is_well(&engine).await;
    });
}

#[test]
fn a_missing_folder_is_named() {
    runtime::run(async {
        let Started { engine, folder, .. } = engine_with_trades().await;
        let missing = folder.path().join("not").join("there");
        let url = missing.display().to_string();
        let error = engine.open_parquet_table("files", &url, 2).await.unwrap_err();
        assert!(error.code().starts_with("FS-"), "{error}");
        assert!(error.to_string().contains("not/there"), "{error}");
        is_well(&engine).await;
    });
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    runtime::run(async {
        let Started { engine, folder, .. } = engine_with_trades().await;
        // Below a regular file nobody can make a folder, not even root.
        let file = folder.path().join("a_file");
        std::fs::write(&file, "x").unwrap();
        let url = format!("file://{}/table", file.display());
        let error =
            engine.create_managed_table("lost", &url, schema(), hashed(1)).await.unwrap_err();
        assert!(error.code().starts_with("FS-"), "{error}");
        assert!(error.to_string().contains("a_file"), "{error}");
        assert!(engine.sql("SELECT * FROM lost").await.is_err());
        is_well(&engine).await;

        let config = Config::default().with_data_dir(file.join("data")).unwrap();
        let started = Engine::builder().config(config).keep_state(true).start().await;
        let error = started.map(|_| ()).unwrap_err();
        is_clear(&error, error.code(), &["a_file"], "data folder");
    });
}

#[test]
fn a_bad_setting_names_key_value_and_bound() {
    let error = Config::default().set("limits.query-seconds", "0").unwrap_err();
    assert_eq!(error.code(), "FS-CONFIG-1");
    assert_eq!(error.to_string(), "limits.query-seconds is 0; it must be 1 to 86400");
    let error = Config::default().set("limits.query-second", "5").unwrap_err();
    assert_eq!(error.code(), "FS-CONFIG-3");
    assert!(error.to_string().contains("limits.query-seconds"), "{error}");
    assert!(Config::default().set("nodes", "many").is_err());
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        let error = engine.sql("SET datafusion.execution.batch_sise = 5").await.unwrap_err();
        assert!(error.code().starts_with("FS-"), "{error}");
        assert!(error.to_string().contains("batch_sise"), "{error}");
        is_well(&engine).await;
    });
}

#[test]
fn a_port_in_use_is_named() {
    runtime::run(async {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let folder = tempfile::tempdir().unwrap();
        let config = Config::default()
            .with_data_dir(folder.path().to_owned())
            .and_then(|config| config.set("serve.flight-address", "off"))
            .and_then(|config| config.set("serve.http-address", &address))
            .unwrap();
        let engine = Engine::builder().config(config).manual_ticks(true).start().await.unwrap();
        let error = Servers::start(&engine).await.map(|_| ()).unwrap_err();
        is_clear(&error, "FS-NET-1", &[&address], "a port in use");
        assert_eq!(number(&engine, "SELECT 7").await, 7);
        engine.shutdown().await.unwrap();
    });
}

/// What a function of the test below does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    Panics,
    Shortens,
    Lengthens,
    ChangesType,
}

/// A function of one BIGINT that goes wrong when it meets 2.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Faulty {
    fault: Fault,
    name: String,
    signature: Signature,
}

impl ScalarUDFImpl for Faulty {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> DataFusionResult<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let array = call.args[0].to_array(call.number_rows)?;
        let values = array.as_primitive::<Int64Type>();
        if !values.iter().any(|value| value == Some(2)) {
            return Ok(ColumnarValue::Array(array));
        }
        let rows = values.len() as i64;
        let answer: ArrayRef = match self.fault {
            Fault::Panics => panic!("two is too much"),
            Fault::Shortens => Arc::new(Int64Array::from_iter_values(1..rows)),
            Fault::Lengthens => Arc::new(Int64Array::from_iter_values(0..=rows)),
            Fault::ChangesType => {
                Arc::new(Float64Array::from_iter_values((0..rows).map(|row| row as f64)))
            }
        };
        Ok(ColumnarValue::Array(answer))
    }
}

fn faulty(fault: Fault) -> (Card, ScalarUDF) {
    let name = format!("{fault:?}").to_lowercase();
    let signature = Signature::exact(vec![DataType::Int64], Volatility::Immutable);
    let card =
        Card::immutable(&name, "1", CostClass::Dear, "goes wrong on 2", format!("{name}(1)"));
    (card, ScalarUDF::new_from_impl(Faulty { fault, name, signature }))
}

#[test]
fn a_function_that_panics_or_returns_the_wrong_length_or_type_fails_its_query_only() {
    runtime::run(async {
        foreshard_udfs::quiet_function_panics();
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        let faults = [
            (Fault::Panics, "FS-FN-1", "two is too much"),
            (Fault::Shortens, "FS-FN-2", "rows"),
            (Fault::Lengthens, "FS-FN-2", "rows"),
            (Fault::ChangesType, "FS-FN-3", "Float64"),
        ];
        for (fault, code, said) in faults {
            let (card, udf) = faulty(fault);
            let name = card.name.clone();
            engine.register_function(card, udf).unwrap();
            for sql in [
                format!("SELECT {name}(id) FROM trades"),
                format!("SELECT id FROM trades WHERE {name}(id) > 0"),
                format!("SELECT {name}(id), count(*) FROM trades GROUP BY 1"),
                format!("SELECT sum({name}(id)) FROM trades"),
                format!("UPDATE trades SET amount = 0.0 WHERE {name}(id) > 0"),
            ] {
                refused(&engine, &sql, code, &[&name, said]).await;
            }
            let spared = format!("SELECT count({name}(id)) FROM trades WHERE id <> 2");
            assert_eq!(number(&engine, &spared).await, 2);
            engine.tick().await;
        }
    });
}

#[test]
fn a_chain_of_five_thousand_terms_is_an_error_and_no_crash() {
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        let sum = vec!["1"; TERMS].join("+");
        refused(&engine, &format!("SELECT {sum}"), "FS-SQL-6", &["5000", "1000"]).await;
        for (word, bracket) in [("OR", false), ("AND", false), ("OR", true)] {
            let terms: Vec<String> = (0..TERMS).map(|term| format!("id <> {term}")).collect();
            let chain = match bracket {
                true => terms.iter().map(|term| format!("({term})")).collect::<Vec<_>>(),
                false => terms,
            };
            let chain = chain.join(&format!(" {word} "));
            let sql = format!("SELECT id FROM trades WHERE {chain}");
            refused(&engine, &sql, "FS-SQL-6", &["1000"]).await;
        }
        let text = vec!["name"; TERMS].join(" || ");
        refused(&engine, &format!("SELECT {text} FROM trades"), "FS-SQL-6", &["1000"]).await;
        let deep = format!("SELECT {}1{}", "(".repeat(TERMS), ")".repeat(TERMS));
        let error = engine.sql(&deep).await.unwrap_err();
        assert!(error.code().starts_with("FS-SQL-"), "{error}");
        let calls = format!("SELECT {}1{}", "abs(".repeat(TERMS), ")".repeat(TERMS));
        let error = engine.sql(&calls).await.unwrap_err();
        assert!(error.code().starts_with("FS-SQL-"), "{error}");
        let unions = vec!["SELECT 1"; TERMS].join(" UNION ALL ");
        let error = engine.sql(&unions).await.unwrap_err();
        assert_eq!(error.code(), "FS-SQL-6");
        is_well(&engine).await;
        // A list is no chain.
        let list: Vec<String> = (0..3_000).map(|item| item.to_string()).collect();
        let sql = format!("SELECT count(*) FROM trades WHERE id IN ({})", list.join(", "));
        assert_eq!(number(&engine, &sql).await, 3);
    });
}

#[test]
fn a_chain_just_below_the_bound_is_planned() {
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        let sum = vec!["1"; 600].join("+");
        assert_eq!(number(&engine, &format!("SELECT {sum}")).await, 600);
    });
}

#[test]
fn a_literal_of_ten_megabytes_is_a_text_like_others() {
    runtime::run(async {
        let Started { engine, folder: _folder, .. } = engine_with_trades().await;
        let text = "ä".repeat(LITERAL_BYTES / 2);
        let length =
            number(&engine, &format!("SELECT CAST(octet_length('{text}') AS BIGINT)")).await;
        assert_eq!(length, LITERAL_BYTES as i64);
        let sql = format!("SELECT count(*) FROM trades WHERE name || 'x' = '{text}'");
        assert_eq!(number(&engine, &sql).await, 0);
        let error = engine.sql(&format!("SELECT nothing('{text}')")).await.unwrap_err();
        is_clear(&error, "FS-SQL-4", &["nothing"], "a huge argument");
        is_well(&engine).await;
    });
}
