//! Tables made by SQL: their kinds, keys and options, what pruning leaves out, and what is there again
//! after a restart.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::util::pretty::pretty_format_batches;
use foreshard::Engine;
use parquet::arrow::ArrowWriter;

use crate::rig;
use crate::support::runtime;

async fn start(folder: &Path) -> Engine {
    let config = rig::config(1, folder, &[]);
    let engine = Engine::builder().config(config).manual_ticks(true).keep_state(true);
    engine.start().await.unwrap()
}

async fn text(engine: &Engine, sql: &str) -> String {
    let batches = engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    pretty_format_batches(&batches).unwrap().to_string()
}

async fn numbers(engine: &Engine, sql: &str) -> Vec<i64> {
    let batches = engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let values =
        |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
    batches.iter().flat_map(values).collect()
}

/// Segments that the scans of `sql` read.
async fn segments(engine: &Engine, sql: &str) -> Vec<usize> {
    let plan = rig::plan(&engine.session(), sql).await;
    let counts = plan.split("segments=").skip(1).map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    });
    counts.collect()
}

fn write_parquet(path: &Path, ids: std::ops::Range<i64>) {
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![ids]).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn a_lookup_by_key_reads_one_hash_partition() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        for (name, kind) in [("d", "DELTA"), ("m", "MEMORY")] {
            let create = format!(
                "CREATE EXTERNAL TABLE {name} (id BIGINT, v BIGINT) STORED AS {kind} \
                 PARTITIONED BY (id) LOCATION '' OPTIONS ('partitions' '8')"
            );
            engine.sql(&create).await.unwrap();
            let insert = format!("INSERT INTO {name} SELECT value, value * 2 FROM range(0, 400)");
            engine.sql(&insert).await.unwrap();
            assert_eq!(segments(&engine, &format!("SELECT v FROM {name}")).await, [8]);
            for filter in ["id = 5", "id = 5 AND v > 3", "id IN (5)"] {
                let sql = format!("SELECT v FROM {name} WHERE {filter}");
                assert_eq!(segments(&engine, &sql).await, [1], "{sql}");
                assert_eq!(numbers(&engine, &sql).await, [10], "{sql}");
            }
            for id in 0..40 {
                let sql = format!("SELECT v FROM {name} WHERE id = {id}");
                assert_eq!(numbers(&engine, &sql).await, [id * 2], "{sql}");
            }
            let none = format!("SELECT v FROM {name} WHERE id <> 5");
            assert_eq!(numbers(&engine, &none).await.len(), 399);
        }
    });
}

#[test]
fn a_range_of_keys_reads_the_partitions_it_touches() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        engine
            .sql(
                "CREATE EXTERNAL TABLE r (id BIGINT, v BIGINT) STORED AS DELTA PARTITIONED BY (id) \
                 LOCATION '' OPTIONS ('strategy' 'range', 'bounds' '100,200,300')",
            )
            .await
            .unwrap();
        engine.sql("INSERT INTO r SELECT value, value + 1 FROM range(0, 400)").await.unwrap();
        for (filter, reads, rows) in [
            ("id < 100", 1, 100),
            ("id <= 100", 2, 101),
            ("id BETWEEN 150 AND 250", 2, 101),
            ("id = 399", 1, 1),
            ("id >= 0", 4, 400),
        ] {
            let sql = format!("SELECT id FROM r WHERE {filter}");
            assert_eq!(segments(&engine, &sql).await, [reads], "{filter}");
            assert_eq!(numbers(&engine, &sql).await.len(), rows, "{filter}");
        }
        assert_eq!(numbers(&engine, "SELECT id FROM r WHERE id > 1000").await, Vec::<i64>::new());
    });
}

#[test]
fn segments_are_left_out_by_their_smallest_and_largest_values() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        for (name, kind) in [("d", "DELTA"), ("m", "MEMORY")] {
            let create = format!(
                "CREATE EXTERNAL TABLE {name} (id BIGINT, v BIGINT) STORED AS {kind} \
                 PARTITIONED BY (id) LOCATION '' OPTIONS ('partitions' '1')"
            );
            engine.sql(&create).await.unwrap();
            for start in [0, 100, 200] {
                let rows = format!("SELECT value, value + {start} FROM range(0, 100)");
                engine.sql(&format!("INSERT INTO {name} {rows}")).await.unwrap();
            }
            for (filter, reads, rows) in [
                ("v > 150", 2, 149),
                ("v = 250", 1, 1),
                ("v < 300", 3, 300),
                ("v IS NOT NULL", 3, 300),
            ] {
                let sql = format!("SELECT v FROM {name} WHERE {filter}");
                assert_eq!(segments(&engine, &sql).await, [reads], "{sql}");
                assert_eq!(numbers(&engine, &sql).await.len(), rows, "{sql}");
            }
        }
    });
}

#[test]
fn a_wrong_option_is_an_error_that_says_what_was_meant() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        let create = |kind: &str, options: &str| {
            format!(
                "CREATE EXTERNAL TABLE t (id BIGINT) STORED AS {kind} PARTITIONED BY (id) \
                 LOCATION '' OPTIONS ({options})"
            )
        };
        for (sql, says) in [
            (create("DELTA", "'partitons' '4'"), "did you mean partitions"),
            (create("MEMORY", "'stategy' 'hash'"), "did you mean strategy"),
            (create("MEMORY", "'colour' 'red'"), "known are"),
            (create("DELTA", "'partitions' 'four'"), "\"four\""),
            (create("DELTA", "'partitions' '0'"), "0"),
            (create("DELTA", "'strategy' 'rnge'"), "hash or range"),
            (create("DELTA", "'strategy' 'range', 'bounds' '20,10'"), "bound"),
            (create("DELTA", "'strategy' 'range', 'bounds' '1,x'"), "x"),
            (create("AVRO", "'partitions' '4'"), "DELTA, MEMORY, PARQUET, CSV, JSON or ARROW"),
            (
                "CREATE EXTERNAL TABLE t (id BIGINT) STORED AS DELTA PARTITIONED BY (idd) LOCATION ''"
                    .to_owned(),
                "idd",
            ),
        ] {
            let error = engine.sql(&sql).await.expect_err(&sql);
            assert!(error.to_string().contains(says), "{sql}: {error}");
            assert!(error.code().starts_with("FS-"), "{error}");
        }
        // Nothing of it was left behind.
        engine.sql(&create("DELTA", "'partitions' '4'")).await.unwrap();
        assert_eq!(numbers(&engine, "SELECT count(*) FROM t").await, [0]);
    });
}

#[test]
fn tables_over_files_are_there_again_after_a_restart_and_memory_is_not() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let files = tempfile::tempdir().unwrap();
        write_parquet(&files.path().join("a.parquet"), 0..30);
        write_parquet(&files.path().join("b.parquet"), 30..50);
        let engine = start(folder.path()).await;
        let create = format!(
            "CREATE EXTERNAL TABLE p STORED AS PARQUET LOCATION '{}' OPTIONS ('partitions' '2')",
            files.path().display()
        );
        for sql in [
            "CREATE EXTERNAL TABLE d (id BIGINT NOT NULL) STORED AS DELTA PARTITIONED BY (id) LOCATION ''",
            "INSERT INTO d VALUES (1), (2), (3)",
            "CREATE EXTERNAL TABLE gone (id BIGINT) STORED AS DELTA PARTITIONED BY (id) LOCATION ''",
            "DROP TABLE gone",
            "CREATE TABLE m AS SELECT id FROM d",
            &create,
        ] {
            engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        assert_eq!(numbers(&engine, "SELECT count(*) FROM p").await, [50]);
        engine.shutdown().await.unwrap();

        let engine = start(folder.path()).await;
        assert_eq!(numbers(&engine, "SELECT id FROM d ORDER BY id").await, [1, 2, 3]);
        assert_eq!(numbers(&engine, "SELECT count(*) FROM p WHERE id >= 25").await, [25]);
        for gone in ["m", "gone"] {
            let error = engine.sql(&format!("SELECT * FROM {gone}")).await.unwrap_err();
            assert_eq!(error.code(), "FS-SQL-2", "{error}");
        }
        engine.sql("INSERT INTO d VALUES (4)").await.unwrap();
        assert_eq!(numbers(&engine, "SELECT count(*) FROM d").await, [4]);
        let error = engine.sql("INSERT INTO p VALUES (1)").await.unwrap_err();
        assert_eq!(error.code(), "FS-SQL-13", "{error}");
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_dropped_table_is_unknown_and_its_name_is_free() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        engine.sql("CREATE TABLE trades (id BIGINT) ").await.unwrap();
        let error = engine.sql("CREATE TABLE trades (id BIGINT)").await.unwrap_err();
        assert_eq!(error.code(), "FS-SQL-12");
        engine.sql("CREATE TABLE IF NOT EXISTS trades (other TEXT)").await.unwrap();
        let error = engine.sql("DROP TABLE trade").await.unwrap_err();
        assert!(error.to_string().contains("did you mean trades"), "{error}");
        engine.sql("DROP TABLE IF EXISTS trade").await.unwrap();
        engine.sql("DROP TABLE trades").await.unwrap();
        assert_eq!(engine.sql("SELECT * FROM trades").await.unwrap_err().code(), "FS-SQL-2");
        assert!(engine.placement().partitions.is_empty(), "its partitions are given up");
        engine.sql("CREATE TABLE trades (name TEXT)").await.unwrap();
        engine.sql("INSERT INTO trades VALUES ('a')").await.unwrap();
        assert!(text(&engine, "SELECT * FROM trades").await.contains("| a "));
    });
}

#[test]
fn a_table_can_be_made_of_a_query_and_a_view_of_a_table() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        engine
            .sql("CREATE TABLE n AS SELECT value AS id, value % 3 AS k FROM range(0, 9)")
            .await
            .unwrap();
        engine.sql("CREATE VIEW v AS SELECT k, count(*) AS c FROM n GROUP BY k").await.unwrap();
        assert_eq!(numbers(&engine, "SELECT c FROM v").await, [3, 3, 3]);
        engine.sql("INSERT INTO n VALUES (9, 0), (10, 0)").await.unwrap();
        assert_eq!(numbers(&engine, "SELECT c FROM v ORDER BY c DESC LIMIT 1").await, [5]);
        // The view keeps the rows that it was made over.
        engine.sql("CREATE OR REPLACE TABLE n AS SELECT 7 AS id").await.unwrap();
        assert_eq!(numbers(&engine, "SELECT c FROM v ORDER BY c DESC LIMIT 1").await, [5]);
        // Rows in files are not kept in memory for it.
        let durable = "CREATE EXTERNAL TABLE d (id BIGINT) STORED AS DELTA LOCATION ''";
        for sql in [durable, "INSERT INTO d VALUES (1)", "CREATE VIEW w AS SELECT id FROM d"] {
            engine.sql(sql).await.unwrap();
        }
        let error = engine.sql("DROP TABLE d").await.unwrap_err();
        assert!(error.to_string().contains("view w reads table d"), "{error}");
        assert_eq!(error.code(), "FS-SQL-8");
        assert_eq!(numbers(&engine, "SELECT id FROM w").await, [1]);
        engine.sql("DROP VIEW v").await.unwrap();
        assert_eq!(engine.sql("SELECT * FROM v").await.unwrap_err().code(), "FS-SQL-2");
        engine.sql("CREATE OR REPLACE TABLE n AS SELECT 1 AS id").await.unwrap();
        assert_eq!(numbers(&engine, "SELECT id FROM n").await, [1]);
    });
}

#[test]
fn a_column_that_takes_no_null_gets_none() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        for (name, kind) in [("d", "DELTA"), ("m", "MEMORY")] {
            let create = format!(
                "CREATE EXTERNAL TABLE {name} (id BIGINT NOT NULL, v BIGINT) STORED AS {kind} \
                 PARTITIONED BY (id) LOCATION ''"
            );
            engine.sql(&create).await.unwrap();
            engine.sql(&format!("INSERT INTO {name} VALUES (1, NULL), (2, 5)")).await.unwrap();
            for sql in [
                format!("INSERT INTO {name} VALUES (3, 1), (NULL, 2)"),
                format!("INSERT INTO {name} (v) VALUES (8)"),
                format!("UPDATE {name} SET id = v"),
            ] {
                let error = engine.sql(&sql).await.expect_err(&sql);
                assert!(error.to_string().contains("id"), "{sql}: {error}");
            }
            let ids = format!("SELECT id FROM {name} ORDER BY id");
            assert_eq!(numbers(&engine, &ids).await, [1, 2], "none of it was committed");
        }
    });
}

#[test]
fn every_system_table_answers_and_names_what_is_there() {
    runtime::run(async {
        let rig = rig::Rig::start(2, 4).await;
        rig.ask("SELECT f(x) FROM t").await.unwrap();
        rig.settle().await;
        rig.engine.tick().await;
        rig.engine.tick().await;
        for (table, holds) in [
            ("nodes", "n0"),
            ("partitions", "| t "),
            ("segments", "| t "),
            ("replicas", "| t "),
            ("functions", "| f "),
            ("calls", "| f "),
            ("function_stats", "| f "),
            ("forecasts", ""),
            ("scores", ""),
            ("decisions", ""),
            ("outputs", "| t "),
            ("settings", "loop.mode"),
        ] {
            let rows = text(&rig.engine, &format!("SELECT * FROM system.{table}")).await;
            assert!(rows.contains(holds), "system.{table}:\n{rows}");
            let error = rig.engine.sql(&format!("DELETE FROM system.{table}")).await.unwrap_err();
            assert_eq!(error.code(), "FS-SQL-13", "{error}");
        }
        let outputs =
            numbers(&rig.engine, "SELECT CAST(count(*) AS BIGINT) FROM system.outputs").await;
        assert_eq!(outputs, [24], "four partitions of six segments each");
    });
}

#[test]
fn a_table_describes_itself() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        engine.sql("CREATE TABLE n (id BIGINT NOT NULL, name TEXT)").await.unwrap();
        let described = text(&engine, "DESCRIBE n").await;
        assert!(described.contains("id") && described.contains("Int64"), "{described}");
        assert!(described.contains("name") && described.contains("Utf8"), "{described}");
        let tables = text(&engine, "SHOW TABLES").await;
        assert!(tables.contains("| n ") && tables.contains("decisions"), "{tables}");
        let columns = text(&engine, "SHOW COLUMNS FROM n").await;
        assert!(columns.contains("name"), "{columns}");
    });
}

#[test]
fn create_table_keeps_defaults_and_keys_and_makes_as_many_partitions_as_the_settings_say() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let config = rig::config(1, folder.path(), &[("table-partitions", "3")]);
        let engine = Engine::builder().config(config).manual_ticks(true).start().await.unwrap();
        let create = "CREATE TABLE t (l BIGINT[], k BIGINT PRIMARY KEY, v BIGINT DEFAULT 2 * 21)";
        engine.sql(create).await.unwrap();
        assert_eq!(engine.placement().partitions.len(), 3);
        engine.sql("INSERT INTO t (k) VALUES (1), (2), (3), (4)").await.unwrap();
        assert_eq!(numbers(&engine, "SELECT v FROM t GROUP BY k ORDER BY k").await, [42; 4]);
        engine.sql("CREATE OR REPLACE TABLE t (k BIGINT, v BIGINT)").await.unwrap();
        engine.sql("INSERT INTO t (k) VALUES (1)").await.unwrap();
        assert_eq!(numbers(&engine, "SELECT k FROM t WHERE v IS NULL").await, [1]);
        let error = engine.sql("SELECT v FROM t GROUP BY k").await.unwrap_err();
        assert!(error.to_string().contains("GROUP BY"), "{error}");
        // A list has no hash.
        engine.sql("CREATE TABLE only_lists (l BIGINT[])").await.unwrap();
        assert_eq!(engine.placement().partitions.len(), 4);
    });
}

#[test]
fn statements_are_read_in_the_dialect_of_their_session() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path()).await;
        let session = engine.session();
        let query = "SELECT array_transform([1, 2], v -> v * 10)";
        assert_eq!(session.sql(query).await.unwrap_err().code(), "FS-SQL-3");
        session.sql("SET datafusion.sql_parser.dialect = 'databricks'").await.unwrap();
        let rows = session.sql(query).await.unwrap().collect().await.unwrap();
        let text = pretty_format_batches(&rows).unwrap().to_string();
        assert!(text.contains("[10, 20]"), "{text}");
    });
}
