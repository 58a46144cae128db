//! What one query may take: rows and bytes of its answer, and memory. The engine goes on. And how fast copies come.

use foreshard::{Engine, EngineError};
use foreshard_policy::ids::{NodeId, PartitionId};

use crate::rig::{Rig, config};
use crate::support::runtime;

async fn start(nodes: u32, settings: &[(&str, &str)]) -> (Engine, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = config(nodes, folder.path(), settings);
    (Engine::builder().config(config).manual_ticks(true).start().await.unwrap(), folder)
}

fn numbers(count: u64) -> String {
    format!("SELECT value FROM generate_series(1, {count})")
}

fn rows(answer: Result<Vec<arrow::array::RecordBatch>, EngineError>) -> usize {
    answer.unwrap().iter().map(arrow::array::RecordBatch::num_rows).sum()
}

fn is_refused(
    answer: Result<Vec<arrow::array::RecordBatch>, EngineError>,
    code: &str,
    named: &[&str],
) {
    let error = answer.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    assert!(named.iter().all(|name| text.contains(name)), "{text}");
}

#[test]
fn an_answer_may_have_as_many_rows_and_bytes_as_the_settings_say() {
    runtime::run(async {
        let (engine, _folder) = start(1, &[("limits.answer-rows-max", "10000")]).await;
        assert_eq!(rows(engine.sql(&numbers(10_000)).await), 10_000);
        let named = ["10000 rows", "limits.answer-rows-max"];
        is_refused(engine.sql(&numbers(10_001)).await, "FS-RUN-9", &named);
        // Rows that are no answer are not counted.
        engine.sql(&format!("CREATE TABLE n AS {}", numbers(20_000))).await.unwrap();
        assert_eq!(rows(engine.sql("SELECT max(value) FROM n").await), 1);
        engine.shutdown().await.unwrap();

        let (engine, _folder) = start(1, &[("limits.answer-bytes-max", "100000")]).await;
        assert_eq!(rows(engine.sql(&numbers(1_000)).await), 1_000);
        let named = ["100000 bytes", "limits.answer-bytes-max"];
        is_refused(engine.sql(&numbers(20_000)).await, "FS-RUN-9", &named);
        assert_eq!(rows(engine.sql(&numbers(1_000)).await), 1_000);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_query_takes_its_share_of_the_memory_and_others_go_on() {
    runtime::run(async {
        for nodes in [1, 3] {
            let settings = [("memory-bytes", "67108864"), ("limits.query-memory-percent", "2")];
            let (engine, _folder) = start(nodes, &settings).await;
            engine.sql(&format!("CREATE TABLE n AS {}", numbers(200_000))).await.unwrap();
            let join = "SELECT count(*) FROM n a JOIN n b ON a.value = b.value + 1";
            is_refused(engine.sql(join).await, "FS-RUN-3", &["limits.query-memory-percent"]);
            assert_eq!(rows(engine.sql("SELECT max(value) FROM n").await), 1);
            engine.shutdown().await.unwrap();

            let (engine, _folder) = start(nodes, &settings[..1]).await;
            engine.sql(&format!("CREATE TABLE n AS {}", numbers(200_000))).await.unwrap();
            assert_eq!(rows(engine.sql(join).await), 1, "with all of the memory");
            engine.shutdown().await.unwrap();
        }
    });
}

#[test]
fn copies_come_to_a_node_no_faster_than_the_settings_say() {
    runtime::run(async {
        let rig = Rig::start_with(3, 6, &[("loop.allocate.io-bytes-per-s", "1")], vec![]).await;
        let (members, part) = (rig.engine.members(), |ordinal| PartitionId::new("t", ordinal));
        members.copy(&part(0), NodeId(1)).await.unwrap();
        let error = members.copy(&part(3), NodeId(1)).await.unwrap_err();
        assert_eq!(error.code(), "FS-CLUSTER-12");
        let text = error.to_string();
        assert!(
            text.starts_with("the next copy to n1 would wait ") && text.contains("io-bytes-per-s")
        );
        assert!(!members.placement().holders[&part(3)].contains(&NodeId(1)));
        members.copy(&part(3), NodeId(2)).await.expect("nothing came there yet");
        // What nobody holds any more does not wait.
        members.forget(NodeId(0)).await;
        let placement = members.placement();
        assert!(placement.holders.values().all(|nodes| !nodes.is_empty()), "{placement:?}");
        rig.same("SELECT id, x FROM t ORDER BY id").await;
    });
}
