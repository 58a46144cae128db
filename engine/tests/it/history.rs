//! What was called, by the second, minute and hour: read in SQL, exported, imported, and there after a restart.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::util::pretty::pretty_format_batches;
use foreshard::Engine;
use foreshard_actors::history_store::HistoryStore;
use foreshard_actors::ports::Clock;
use foreshard_policy::config::LoopConfig;
use foreshard_policy::history::{Row, Summary};
use foreshard_policy::ids::{ExpressionId, PartitionId, SeriesKey, Tick};

use crate::rig;
use crate::support::functions::of_int;

const HOUR_MS: u64 = 3_600_000;

/// 14 November 2023, 22:00.
const NOW: u64 = 1_699_999_200_000;

async fn start(nodes: u32, folder: &Path) -> Engine {
    let config = rig::config(nodes, folder, &[("loop.monitor.seconds-kept", "700")]);
    let (card, udf, _) = of_int("f", |value| Ok(Some(value + 1)));
    let engine = Engine::builder().config(config).manual_ticks(true).keep_state(true);
    engine.function(card, udf).start().await.unwrap()
}

/// The time does not go on.
#[derive(Debug)]
struct Still(AtomicU64);

impl Clock for Still {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn monotonic_ns(&self) -> u64 {
        0
    }
}

async fn text(engine: &Engine, sql: &str) -> String {
    let batches = engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    pretty_format_batches(&batches).unwrap().to_string()
}

/// The single value of an answer, as text.
async fn value(engine: &Engine, sql: &str) -> String {
    let text = text(engine, sql).await;
    let line = text.lines().nth(3).unwrap_or_else(|| panic!("{sql}: {text}"));
    line.trim_matches(['|', ' ']).to_owned()
}

fn store(engine: &Engine) -> Arc<HistoryStore> {
    engine.control_loop().history_store().unwrap()
}

fn row(function: &str, ordinal: u32, start_ms: u64, calls: u64) -> Row {
    let key = SeriesKey {
        function: function.into(),
        expression: ExpressionId(1),
        partition: PartitionId::new("t", ordinal),
    };
    let summary = Summary { calls, ns: 1_000_000_000, ..Summary::default() };
    Row { key, start_ms, summary }
}

/// Three hours in a file each, with 12,000 series of `a` and one of `z`, and a fourth hour in a segment.
fn fill(store: &HistoryStore) {
    for hour in 0..4 {
        let start_ms = NOW + hour * HOUR_MS;
        let mut rows: Vec<Row> =
            (0..12_000).map(|ordinal| row("a", ordinal, start_ms, 1)).collect();
        rows.push(row("z", 0, start_ms + 1_000, 5));
        store.append(Tick(1), start_ms, true, rows);
        store.flush();
        if hour < 3 {
            store.tidy(NOW + 4 * HOUR_MS).unwrap();
        }
    }
}

#[tokio::test]
async fn calls_are_in_the_history_after_a_tick_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(1, folder.path()).await;
    let made = "CREATE EXTERNAL TABLE t (id BIGINT NOT NULL) STORED AS DELTA PARTITIONED BY (id) \
                OPTIONS ('partitions' '2') LOCATION ''";
    engine.sql(made).await.unwrap();
    engine.sql("INSERT INTO t SELECT value FROM generate_series(1, 100)").await.unwrap();
    engine.sql("SELECT sum(f(id)) FROM t").await.unwrap();
    engine.tick().await;
    store(&engine).flush();
    let calls = "SELECT sum(calls) FROM system.history WHERE function = 'f'";
    let rows = "SELECT sum(rows) FROM system.history WHERE function = 'f' AND table_name = 't'";
    let quantiles = "SELECT bool_and(duration_ns_p50 <= duration_ns_p95 \
                     AND duration_ns_p95 <= duration_ns_p99) FROM";
    assert_eq!(value(&engine, calls).await, "2");
    assert_eq!(value(&engine, rows).await, "100");
    for table in ["system.history", "system.function_stats"] {
        assert_eq!(value(&engine, &format!("{quantiles} {table}")).await, "true");
    }
    let recent = "SELECT count(*) FROM system.history WHERE start > now() - interval '1 hour'";
    assert_ne!(value(&engine, recent).await, "0");
    engine.shutdown().await.unwrap();

    let engine = start(1, folder.path()).await;
    assert_eq!(value(&engine, rows).await, "100");
    let written = "SELECT value FROM system.history_counters WHERE name = 'segments'";
    assert_eq!(value(&engine, written).await, "1");
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn files_outside_the_time_and_row_groups_of_other_functions_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(1, folder.path()).await;
    fill(&store(&engine));
    let all = "SELECT sum(calls) FROM system.history";
    assert_eq!(value(&engine, all).await, (4 * 12_005).to_string());

    let hour = "start >= '2023-11-14T23:00:00Z' AND start < '2023-11-15T00:00:00Z'";
    let sql = format!("{all} WHERE {hour}");
    assert_eq!(value(&engine, &sql).await, "12005");
    let plan = rig::plan(&engine.session(), &sql).await;
    assert!(plan.contains("HistoryExec: files=1, files_outside_the_time=2"), "{plan}");
    assert!(plan.contains("predicate=start"), "{plan}");

    let sql = format!("{all} WHERE {hour} AND function = 'z'");
    assert_eq!(value(&engine, &sql).await, "5");
    let ran = text(&engine, &format!("EXPLAIN ANALYZE {sql}")).await;
    assert!(ran.contains("row_groups_pruned_statistics=2 total"), "{ran}");
    assert!(ran.contains("1 matched"), "{ran}");
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn several_nodes_read_the_same_history() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(3, folder.path()).await;
    fill(&store(&engine));
    let sql = "SELECT function, count(DISTINCT start), sum(calls) FROM system.history \
               GROUP BY function ORDER BY function";
    let text = text(&engine, sql).await;
    let cells: Vec<Vec<&str>> =
        text.lines().skip(3).map(|line| line.split('|').map(str::trim).collect()).collect();
    assert_eq!(cells[0][1..4], ["a", "4", "48000"], "{text}");
    assert_eq!(cells[1][1..4], ["z", "4", "20"], "{text}");
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_day_is_exported_and_imported_by_sql() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let file = folder.path().join("day.parquet");
    let engine = start(1, &here).await;
    fill(&store(&engine));
    let export = format!(
        "CALL export_history('{}', '2023-11-14T23:00:00', '2023-11-15 00:00:00')",
        file.display()
    );
    assert!(text(&engine, &export).await.contains("| 12001 |"));
    let again = engine.sql(&export).await.unwrap_err().to_string();
    assert!(again.contains("FS-HISTORY-3"), "{again}");
    let wrong = "CALL export_history('x', 'yesterday', 'today')";
    assert!(
        engine.sql(wrong).await.unwrap_err().to_string().contains("\"yesterday\" is no moment")
    );
    engine.shutdown().await.unwrap();

    let engine = start(1, &there).await;
    let import = format!("CALL import_history('{}')", file.display());
    assert!(text(&engine, &import).await.contains("| 12001 | 0        | 0         |"));
    assert_eq!(value(&engine, "SELECT sum(calls) FROM system.history").await, "12005");
    let again = engine.sql(&import).await.unwrap_err().to_string();
    assert!(again.contains("was imported before (FS-HISTORY-7)"), "{again}");
    engine.shutdown().await.unwrap();
}

/// Five minutes of every ten, 20 calls a minute; a day, to a file.
fn day_with_a_rhythm(folder: &Path, file: &Path, end_ms: u64) {
    let store = HistoryStore::open(folder, LoopConfig::default().monitor()).unwrap();
    for minute in (1..=24 * 60_u64).filter(|back| (back - 1) % 10 < 5) {
        let start_ms = end_ms - minute * 60_000;
        store.append(Tick(1), start_ms, true, vec![row("f", 0, start_ms, 20)]);
        // As much as may wait for the disk at a time.
        if minute % 200 == 1 {
            store.flush();
        }
    }
    store.export(file, 0, u64::MAX).unwrap();
}

#[tokio::test]
async fn a_day_that_is_imported_into_a_fresh_engine_is_forecast_on_with_its_rhythm() {
    let folder = tempfile::tempdir().unwrap();
    let (here, file) = (folder.path().join("here"), folder.path().join("day.parquet"));
    let end_ms = NOW + 1_000 * 24 * HOUR_MS;
    day_with_a_rhythm(&folder.path().join("there"), &file, NOW);
    let clock = Arc::new(Still(AtomicU64::new(end_ms + 20_000)));
    let start = async || {
        let settings = [
            ("loop.tick-ms", "60000"),
            ("loop.horizon-ticks", "24"),
            ("loop.lstm.enabled", "false"),
        ];
        let (card, udf, _) = of_int("f", |value| Ok(Some(value + 1)));
        let engine = Engine::builder().config(rig::config(1, &here, &settings));
        let engine = engine.manual_ticks(true).keep_state(true).clock(clock.clone());
        engine.function(card, udf).start().await.unwrap()
    };
    let tick = async |engine: &Engine| {
        clock.0.fetch_add(60_000, Ordering::Relaxed);
        engine.tick().await;
    };
    let engine = start().await;
    // Its ticks are before those of the day.
    tick(&engine).await;
    clock.0.fetch_sub(60_000, Ordering::Relaxed);
    let import = format!("CALL import_history('{}')", file.display());
    let said = text(&engine, &import).await;
    assert!(said.contains("| 720  | 0        | 0         | 720   |"), "{said}");
    // It learns from the day at the end of the first tick, and goes by that at the end of the second.
    tick(&engine).await;
    tick(&engine).await;
    // Of ten minutes the last five are busy; so many are over.
    let rhythm = |minutes: u32| {
        format!(
            "WITH ahead AS (SELECT calls_q50 AS calls,
                 ({minutes} - 1 + row_number() OVER (ORDER BY tick)) % 10 >= 5 AS is_busy
               FROM forecast('f'))
             SELECT avg(calls) FILTER (WHERE is_busy) > 2 * avg(calls) FILTER (WHERE NOT is_busy)
               FROM ahead"
        )
    };
    assert_eq!(value(&engine, &rhythm(2)).await, "true");
    assert_eq!(value(&engine, &rhythm(7)).await, "false", "it is no other one");
    let past = "SELECT sum(calls) FROM past('f', 1442)";
    assert_eq!(value(&engine, past).await, "14400.0");
    engine.shutdown().await.unwrap();

    let engine = start().await;
    tick(&engine).await;
    assert_eq!(value(&engine, past).await, "14400.0", "it is in the past after a restart, too");
    assert_eq!(value(&engine, &rhythm(3)).await, "true");
    engine.shutdown().await.unwrap();

    // The history is lost: what files have of it is there, where the clock says that it belongs.
    std::fs::remove_file(here.join("loop/history")).unwrap();
    clock.0.store(NOW + 20_000, Ordering::Relaxed);
    let engine = start().await;
    tick(&engine).await;
    assert_eq!(value(&engine, past).await, "14400.0");
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn former_calls_are_read_from_disk_as_sums_beside_the_newest_ones() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(1, folder.path()).await;
    fill(&store(&engine));
    let calls = "SELECT sum(calls) FROM system.calls";
    assert_eq!(value(&engine, calls).await, (4 * 12_005).to_string());
    let sql = format!(
        "{calls} WHERE at >= '2023-11-14T23:00:00Z' AND at < '2023-11-15T00:00:00Z' AND function = 'z'"
    );
    assert_eq!(value(&engine, &sql).await, "5");
    let ran = text(&engine, &format!("EXPLAIN ANALYZE {sql}")).await;
    assert!(ran.contains("HistoryExec: files=1, files_outside_the_time=2"), "{ran}");
    assert!(ran.contains("row_groups_pruned_statistics=2 total"), "{ran}");

    engine.sql("CREATE TABLE u AS SELECT value AS id FROM generate_series(1, 10)").await.unwrap();
    engine.sql("SELECT sum(f(id)) FROM u").await.unwrap();
    engine.tick().await;
    store(&engine).flush();
    let one = "SELECT count(*) FROM system.calls WHERE function = 'f' AND resolution = 'call'";
    assert_ne!(value(&engine, one).await, "0");
    let sums = "SELECT count(*) FROM system.calls WHERE function = 'f' AND resolution <> 'call'";
    assert_eq!(value(&engine, sums).await, "0", "no call is told twice");
    engine.shutdown().await.unwrap();

    let engine = start(1, folder.path()).await;
    assert_eq!(value(&engine, one).await, "0", "single calls are gone with the process");
    assert_ne!(value(&engine, sums).await, "0");
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_functions_came_to_in_a_time_is_added_up_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(1, folder.path()).await;
    fill(&store(&engine));
    let stats = "function_stats('2023-11-14T23:00:00', '2023-11-15T01:00:00') WHERE function = 'z'";
    let sql =
        format!("SELECT calls, ns, in_flight_mean * 3600, calls_per_s_mean * 720 FROM {stats}");
    let said = text(&engine, &sql).await;
    assert!(said.lines().nth(3).unwrap().contains("| 10    | 2000000000 | 1.0 "), "{said}");
    let plan = rig::plan(&engine.session(), &sql).await;
    assert!(plan.contains("HistoryExec: files=2, files_outside_the_time=1"), "{plan}");
    assert!(plan.contains("function@2 = z"), "{plan}");
    for (wrong, message) in [
        ("function_stats()", "takes two moments"),
        ("function_stats('2023-11-15', '2023-11-14')", "must be before \"2023-11-14\""),
        ("function_stats('soon', '2023-11-14')", "\"soon\" is no moment"),
    ] {
        let error = engine.sql(&format!("SELECT * FROM {wrong}")).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_engine_that_keeps_nothing_has_an_empty_history() {
    let rig = rig::Rig::start(1, 1).await;
    assert_eq!(value(&rig.engine, "SELECT count(*) FROM system.history").await, "0");
    let error = rig.engine.sql("CALL export_history('x')").await.unwrap_err().to_string();
    assert!(error.contains("no history is kept on disk (FS-HISTORY-9)"), "{error}");
}
