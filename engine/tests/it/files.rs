//! Tables over files that DataFusion reads itself, and schemas of one's own: the same answers as plain
//! DataFusion on several nodes, and what is there again after a restart.

use std::path::Path;

use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionContext;
use foreshard::Engine;

use crate::rig;
use crate::support::runtime;

async fn start(folder: &Path, nodes: u32) -> Engine {
    let config = rig::config(nodes, folder, &[]);
    let engine = Engine::builder().config(config).manual_ticks(true).keep_state(true);
    engine.start().await.unwrap()
}

async fn text(engine: &Engine, sql: &str) -> String {
    let batches = engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    pretty_format_batches(&batches).unwrap().to_string()
}

async fn plain(context: &SessionContext, sql: &str) -> String {
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    pretty_format_batches(&batches).unwrap().to_string()
}

/// Writes files of all kinds below `folder`, and returns the statements that make tables of them.
async fn prepare(context: &SessionContext, folder: &Path) -> Vec<String> {
    let at = |name: &str| folder.join(name).display().to_string();
    let (years, csv, json) = (at("years/"), at("c.csv"), at("j.json"));
    let rows = "(VALUES (1, 'a', 2024), (2, 'b', 2025), (3, NULL, 2025))";
    for copy in [
        format!("COPY {rows} TO '{years}' STORED AS PARQUET PARTITIONED BY (column3)"),
        format!("COPY {rows} TO '{csv}' STORED AS CSV OPTIONS ('format.has_header' 'true')"),
        format!("COPY {rows} TO '{json}' STORED AS JSON"),
    ] {
        plain(context, &copy).await;
    }
    let inner = at("years/column3=2025/");
    vec![
        format!("CREATE EXTERNAL TABLE years STORED AS PARQUET LOCATION '{years}'"),
        format!(
            "CREATE EXTERNAL TABLE typed (column1 VARCHAR, extra INT) STORED AS PARQUET \
             LOCATION '{inner}' WITH ORDER (column1)"
        ),
        format!(
            "CREATE EXTERNAL TABLE c STORED AS CSV LOCATION '{csv}' OPTIONS ('has_header' 'true')"
        ),
        format!("CREATE EXTERNAL TABLE j STORED AS JSON LOCATION '{json}'"),
    ]
}

const QUERIES: [&str; 6] = [
    "SELECT column1, column2, column3, arrow_typeof(column3) FROM years ORDER BY column1",
    "SELECT column3, count(*), max(column2) FROM years GROUP BY column3 ORDER BY column3",
    "SELECT column1, extra, arrow_typeof(column1) FROM typed ORDER BY column1",
    "SELECT c.column1, j.column2 FROM c JOIN j ON c.column1 = j.column1 ORDER BY 1",
    "SELECT m.k, y.column3 FROM m JOIN years y ON m.k = y.column1 ORDER BY 1",
    "SELECT file_row_index() AS i, column1 FROM typed ORDER BY 1",
];

#[test]
fn files_are_read_as_plain_datafusion_reads_them_and_after_a_restart_too() {
    runtime::run(async {
        let (folder, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let context = SessionContext::new();
        let engine = start(folder.path(), 3).await;
        let creates = prepare(&context, files.path()).await;
        let memory = "CREATE TABLE m AS SELECT value AS k FROM generate_series(1, 100)";
        for create in creates.iter().map(String::as_str).chain([memory]) {
            plain(&context, create).await;
            text(&engine, create).await;
        }
        for sql in QUERIES {
            assert_eq!(text(&engine, sql).await, plain(&context, sql).await, "{sql}");
        }
        let stored = "SELECT count(*) AS n FROM system.partitions WHERE table_name <> 'm'";
        assert!(text(&engine, stored).await.contains("| 0 |"), "they are in no partitions");
        engine.shutdown().await.unwrap();

        let engine = start(folder.path(), 1).await;
        text(&engine, memory).await;
        for sql in QUERIES {
            assert_eq!(text(&engine, sql).await, plain(&context, sql).await, "{sql}");
        }
        let error = engine.sql("DELETE FROM c").await.unwrap_err();
        assert_eq!(error.code(), "FS-SQL-9", "{error}");
        let error = engine.sql("CREATE TABLE c AS VALUES (1)").await.unwrap_err();
        assert_eq!(error.code(), "FS-SQL-12", "{error}");
        text(&engine, "DROP TABLE c").await;
        engine.shutdown().await.unwrap();

        let engine = start(folder.path(), 1).await;
        assert_eq!(engine.sql("SELECT * FROM c").await.unwrap_err().code(), "FS-SQL-2");
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_schema_with_a_durable_table_comes_back_with_it() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path(), 1).await;
        for sql in [
            "CREATE SCHEMA sales",
            "CREATE EXTERNAL TABLE sales.orders (id BIGINT) STORED AS DELTA PARTITIONED BY (id) LOCATION ''",
            "CREATE TABLE orders AS VALUES (0)",
            "INSERT INTO sales.orders VALUES (1), (2)",
        ] {
            text(&engine, sql).await;
        }
        engine.shutdown().await.unwrap();

        let engine = start(folder.path(), 1).await;
        text(&engine, "UPDATE sales.orders SET id = 7 WHERE id = 2").await;
        assert!(text(&engine, "SELECT sum(id) FROM sales.orders").await.contains("| 8 "));
        assert_eq!(engine.sql("SELECT * FROM orders").await.unwrap_err().code(), "FS-SQL-2");
        let error = engine.sql("DROP SCHEMA sales").await.unwrap_err().to_string();
        assert!(error.contains("sales.orders"), "{error}");
        text(&engine, "DROP SCHEMA sales CASCADE").await;
        let error = engine.sql("CREATE TABLE sales.t AS VALUES (1)").await.unwrap_err().to_string();
        assert!(error.contains("there is no schema sales"), "{error}");
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_view_keeps_the_rows_of_a_dropped_memory_table_as_in_plain_datafusion() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        for nodes in [1, 3] {
            let engine = start(folder.path(), nodes).await;
            let context = SessionContext::new();
            for sql in [
                "CREATE TABLE t AS SELECT value AS k FROM generate_series(1, 50)",
                "CREATE VIEW v AS SELECT k, k % 3 AS g FROM t WHERE k > 10",
                "CREATE VIEW w AS SELECT g, (SELECT max(k) FROM v) AS most FROM v",
                "DROP TABLE t",
                "CREATE TABLE t AS VALUES ('another')",
            ] {
                plain(&context, sql).await;
                text(&engine, sql).await;
            }
            let sql = "SELECT g, most, count(*) FROM w GROUP BY g, most ORDER BY g";
            assert_eq!(text(&engine, sql).await, plain(&context, sql).await);
            engine.shutdown().await.unwrap();
        }
    });
}
