//! Parquet files that others write over, add and remove: the next query reads what is there, as plain
//! DataFusion does, and no value that was stored for the old rows.

use std::path::Path;

use crate::rig::Rig;
use crate::support::oracle::answer_of;
use crate::support::runtime;

const NODES: [u32; 2] = [1, 3];

const QUERIES: [&str; 6] = [
    "SELECT id, f(x) FROM many ORDER BY 1, 2",
    "SELECT count(*), sum(x), max(f(x)) FROM many",
    "SELECT x % 3, count(*), sum(f(x)) FROM many GROUP BY 1 ORDER BY 1",
    "SELECT id FROM seen WHERE f(x) > 20 ORDER BY id",
    "SELECT a.id, f(b.x) FROM many a JOIN one b ON a.x = b.x ORDER BY 1, 2",
    "SELECT (SELECT count(*) FROM one), sum(f(x)) FROM one",
];

async fn plainly(rig: &Rig, sql: &str) {
    answer_of(&rig.plain, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Writes `rows` rows, of which `seed` makes the values: files of as many rows are as large.
async fn write(rig: &Rig, file: &Path, rows: u32, seed: u32) {
    let select = format!("SELECT value AS id, (value * {seed}) % 41 AS x FROM range(0, {rows})");
    plainly(rig, &format!("COPY ({select}) TO '{}' STORED AS PARQUET", file.display())).await;
}

/// Asks everything twice, so that the second answer comes from what the first one left.
async fn ask(rig: &Rig, when: &str) {
    for sql in QUERIES.iter().chain(&QUERIES) {
        rig.same(sql).await;
        rig.settle().await;
    }
    let (evaluated, _plain) = rig.same("SELECT sum(f(x)) FROM many WHERE id >= 0").await;
    assert_eq!(evaluated, 0, "{when}: values of the new files are stored too");
}

#[test]
fn the_next_query_sees_files_that_were_written_over_added_and_removed() {
    runtime::run(async {
        for nodes in NODES {
            let rig = Rig::start(nodes, 2).await;
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            // What plain remembers of a folder it would never look at again.
            plainly(&rig, "SET datafusion.runtime.list_files_cache_limit = '0K'").await;
            std::fs::create_dir(at("many")).unwrap();
            write(&rig, &at("many/a.parquet"), 300, 7).await;
            write(&rig, &at("many/b.parquet"), 200, 11).await;
            write(&rig, &at("one.parquet"), 90, 5).await;
            for (name, file) in [("many", "many/"), ("one", "one.parquet")] {
                let file = at(file);
                let sql = format!(
                    "CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION '{}/'",
                    file.display()
                );
                let sql = sql.replace(".parquet/", ".parquet").replace("//", "/");
                plainly(&rig, &sql).await;
                rig.ask(&sql).await.unwrap();
            }
            let view = "CREATE VIEW seen AS SELECT * FROM many WHERE id % 2 = 0";
            plainly(&rig, view).await;
            rig.ask(view).await.unwrap();
            ask(&rig, "at first").await;

            write(&rig, &at("many/a.parquet"), 300, 13).await;
            write(&rig, &at("one.parquet"), 90, 3).await;
            ask(&rig, "written over with as many rows").await;
            write(&rig, &at("many/c.parquet"), 40, 17).await;
            std::fs::create_dir(at("many/below")).unwrap();
            write(&rig, &at("many/below/d.parquet"), 40, 17).await;
            ask(&rig, "added").await;
            std::fs::remove_file(at("many/b.parquet")).unwrap();
            write(&rig, &at("one.parquet"), 10, 2).await;
            ask(&rig, "removed").await;
            for file in ["many/a.parquet", "many/c.parquet", "one.parquet"] {
                std::fs::remove_file(at(file)).unwrap();
            }
            ask(&rig, "all removed").await;
            write(&rig, &at("many/a.parquet"), 300, 7).await;
            ask(&rig, "back again").await;
            rig.engine.shutdown().await.unwrap();
        }
    });
}

#[test]
fn a_file_with_other_columns_is_an_error_that_names_it() {
    runtime::run(async {
        let rig = Rig::start(1, 2).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.parquet");
        write(&rig, &file, 30, 7).await;
        let location = file.display();
        let sql = format!("CREATE EXTERNAL TABLE one STORED AS PARQUET LOCATION '{location}'");
        rig.ask(&sql).await.unwrap();
        rig.ask("SELECT sum(f(x)) FROM one").await.unwrap();
        let other = format!("COPY (SELECT 'a' AS id, 1 AS x) TO '{location}' STORED AS PARQUET");
        plainly(&rig, &other).await;
        let error = rig.ask("SELECT sum(f(x)) FROM one").await.unwrap_err();
        assert!(error.contains("a.parquet") && error.contains("id Utf8"), "{error}");
        rig.engine.shutdown().await.unwrap();
    });
}
