//! The cause of steps that the loop takes by itself is found with one statement, the one in the README. That of
//! copies, and of steps that people approved or took back, is in `control.rs`.

use foreshard_policy::ids::{NodeId, PartitionId};

use crate::rig::{ROWS, Rig, batch};
use crate::support::runtime;

/// Nothing rests, and as little as can be asked for is a load.
const EAGER: [(&str, &str); 6] = [
    ("loop.lstm.enabled", "false"),
    ("loop.feedback.watch-ticks", "0"),
    ("loop.reshape.dwell-ticks", "0"),
    ("loop.reshape.blackout-ticks", "0"),
    ("loop.reshape.split-dwell-ticks", "1"),
    ("loop.reshape.balance-load-min", "0"),
];

/// Ticks within which the loop must have taken a step.
const TICKS_MAX: usize = 60;

/// The statement of the README, for this decision.
fn statement(id: &str) -> String {
    let readme = include_str!("../../../README.md");
    let mut blocks = readme.split("```sql\n").skip(1).filter_map(|block| block.split("```").next());
    let sql = blocks.find(|block| block.contains("WITH RECURSIVE cause"));
    let sql = sql.expect("the README has the statement");
    assert!(sql.contains("id = 13"), "{sql}");
    sql.replace("id = 13", &format!("id = {id}"))
}

/// An answer as text, cell by cell.
async fn cells(rig: &Rig, sql: &str) -> Vec<Vec<String>> {
    let rows = rig.ask(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let text = arrow::util::pretty::pretty_format_batches(&rows.batches).unwrap().to_string();
    let rows = text.lines().skip(3).filter(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// Asks and ticks until the loop has carried out a step of `kind`; answers the rows of its cause: kind, who
/// decided, reason, inputs and forecast of each decision, the first one first.
async fn cause(rig: &Rig, kind: &str, sql: Option<&str>) -> Vec<[String; 5]> {
    let done = format!(
        "SELECT id FROM system.decisions WHERE kind = '{kind}' AND decided_by = 'loop'
         AND outcome LIKE 'done%' ORDER BY id LIMIT 1"
    );
    for tick in 0..TICKS_MAX {
        if let Some([id]) = cells(rig, &done).await.first().map(Vec::as_slice) {
            return told(rig, id).await;
        }
        if let Some(sql) = sql {
            rig.ask(sql).await.unwrap();
        }
        if kind == "precompute" {
            let first = ROWS + 40 * tick as i64;
            rig.engine.append("t", vec![batch(first..first + 40)]).await.unwrap();
        }
        rig.engine.tick().await;
        rig.engine.control_loop().settled().await;
    }
    panic!(
        "no {kind}: {:?}",
        cells(rig, "SELECT kind, outcome, reason FROM system.decisions").await
    )
}

async fn told(rig: &Rig, id: &str) -> Vec<[String; 5]> {
    let rows = rig.ask(&statement(id)).await.unwrap();
    let columns = ["kind", "decided_by", "reason", "inputs", "forecast"];
    let mut told = Vec::new();
    for batch in &rows.batches {
        let column = |name: &str| {
            arrow::compute::cast(
                batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}")),
                &arrow::datatypes::DataType::Utf8,
            )
            .unwrap()
        };
        let columns = columns.map(column);
        for row in 0..batch.num_rows() {
            told.push(columns.each_ref().map(|column| {
                use arrow::array::AsArray;
                column.as_string::<i32>().value(row).to_owned()
            }));
        }
    }
    told
}

/// The only decision that a step goes back to.
fn only(rows: Vec<[String; 5]>) -> [String; 5] {
    let [row] = rows.try_into().unwrap_or_else(|rows| panic!("{rows:?}"));
    row
}

#[test]
fn the_cause_of_a_move_is_found_with_one_statement() {
    runtime::run(async {
        let mut settings = EAGER.to_vec();
        settings.extend([
            ("loop.reshape.copies-max", "1"),
            ("loop.reshape.payback-ticks", "1000000"),
            ("loop.reshape.colocate", "false"),
        ]);
        let rig = Rig::start_with(2, 4, &settings, vec![]).await;
        let members = rig.engine.members();
        for ordinal in 0..4 {
            let partition = PartitionId::new("t", ordinal);
            members.copy(&partition, NodeId(0)).await.unwrap();
            if members.placement().holders[&partition].contains(&NodeId(1)) {
                members.drop_replica(&partition, NodeId(1)).await.unwrap();
            }
        }
        let row = only(cause(&rig, "move", Some("SELECT id, unlucky(y + 20) FROM t")).await);
        assert!(row[2].starts_with("uneven: n0 carries "), "{row:?}");
        assert!(row[3].starts_with("holders [n0]") && row[4].contains(" ms/s "), "{row:?}");
        // What is predicted of it stands beside it from the start, and what it spared once it had its time.
        let predicted = "SELECT expected_measured_ns_q10 <= expected_measured_ns
            AND expected_measured_ns <= expected_measured_ns_q90 FROM system.decisions WHERE kind = 'move'";
        assert!(cells(&rig, predicted).await.iter().all(|row| row[0] == "true"));
        for _ in 0..14 {
            rig.ask("SELECT id, unlucky(y + 20) FROM t").await.unwrap();
            members.drop_outputs(None, &PartitionId::new("t", 0)).await.unwrap();
            rig.engine.tick().await;
        }
        let waited =
            "SELECT count(waited_ns) = count(*) FROM system.calls WHERE resolution = 'call'";
        assert_eq!(cells(&rig, waited).await[0][0], "true");
    });
}

#[test]
fn the_cause_of_a_split_and_of_a_merge_is_found_with_one_statement() {
    runtime::run(async {
        let mut settings = EAGER.to_vec();
        let bytes = (10 * ROWS).to_string();
        settings.extend([
            ("loop.reshape.copies-max", "1"),
            ("loop.reshape.split-bytes", bytes.as_str()),
        ]);
        let rig = Rig::start_with(2, 2, &settings, vec![]).await;
        let row = only(cause(&rig, "split", Some("SELECT f(x) FROM t")).await);
        assert!(row[2].starts_with("too large: ") && row[3].contains(" bytes"), "{row:?}");
        rig.ask("DELETE FROM t WHERE id % 16 > 0").await.unwrap();
        let row = only(cause(&rig, "merge", None).await);
        assert!(row[2].starts_with("small and cold: "), "{row:?}");
    });
}

#[test]
fn the_cause_of_what_is_computed_ahead_is_found_with_one_statement() {
    runtime::run(async {
        let mut settings = EAGER.to_vec();
        settings.push(("loop.mode", "forecast"));
        let rig = Rig::start_with(1, 2, &settings, vec![]).await;
        let row = only(cause(&rig, "precompute", Some("SELECT id, f(x) FROM t")).await);
        assert!(row[2].contains(" calls expected, the first within "), "{row:?}");
        assert!(row[3].contains(" rows stored, ") && row[4].contains(" calls in "), "{row:?}");
    });
}
