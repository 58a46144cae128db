//! The loop splits partitions that are too large or too hot, and merges what is small and cold again; no
//! answer changes, and nothing that is stored is computed again.

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use foreshard_policy::ids::PartitionId;

use crate::rig::{ROWS, Rig};
use crate::support::runtime;

/// Bytes of one of the two partitions that the rig begins with, roughly.
const PART_BYTES: u64 = 10 * ROWS as u64;

fn ordinals(rig: &Rig) -> Vec<u32> {
    let store = rig.engine.members().store("t").unwrap();
    store.snapshot().layout.ordinals().to_vec()
}

async fn number(rig: &Rig, sql: &str) -> u64 {
    let answer = rig.ask(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    answer.batches[0].column(0).as_primitive::<UInt64Type>().value(0)
}

async fn decided(rig: &Rig, kind: &str, reason: &str) -> u64 {
    let sql = format!(
        "SELECT arrow_cast(count(*), 'UInt64') FROM system.decisions
         WHERE kind = '{kind}' AND decided_by = 'loop' AND outcome LIKE 'done%' AND reason LIKE '{reason}%'"
    );
    number(rig, &sql).await
}

async fn tick(rig: &Rig, sql: &str) {
    rig.same(sql).await;
    rig.engine.tick().await;
}

fn settings(split_bytes: &str) -> Vec<(&str, &str)> {
    vec![
        ("loop.reshape.copies-max", "1"),
        ("loop.reshape.split-bytes", split_bytes),
        ("loop.reshape.split-dwell-ticks", "1"),
        ("loop.reshape.dwell-ticks", "0"),
    ]
}

#[test]
fn what_is_too_large_is_split_and_what_is_small_is_merged_down_to_what_the_table_was_made_with() {
    runtime::run(async {
        let bytes = PART_BYTES.to_string();
        let rig = Rig::start_with(2, 2, &settings(&bytes), vec![]).await;
        let sql = "SELECT id, f(x) FROM t";
        rig.same(sql).await;
        rig.settle().await;
        for _ in 0..8 {
            tick(&rig, sql).await;
        }
        let split = ordinals(&rig);
        assert_eq!(split.len(), 4, "{split:?}");
        assert_eq!(decided(&rig, "split", "too large").await, 2);
        assert_eq!(rig.same(sql).await.0, 0, "nothing is computed again");
        let sizes = rig.engine.members().store("t").unwrap().snapshot().partitions.clone();
        let rows = |ordinal: &u32| sizes[*ordinal as usize].iter().map(|it| it.rows).sum::<u64>();
        assert!(split.iter().all(|ordinal| rows(ordinal).abs_diff(ROWS as u64 / 4) < 60));

        rig.ask("DELETE FROM t WHERE id % 16 > 0").await.unwrap();
        for _ in 0..8 {
            rig.engine.tick().await;
        }
        let merged = ordinals(&rig);
        assert_eq!(merged.len(), 2, "{merged:?}");
        assert_eq!(decided(&rig, "merge", "small and cold").await, 2);
        assert_eq!(number(&rig, "SELECT arrow_cast(count(*), 'UInt64') FROM t").await, 75);
    });
}

#[test]
fn a_split_of_the_loop_is_undone_by_its_number_and_not_made_again_at_once() {
    runtime::run(async {
        let bytes = (2 * PART_BYTES).to_string();
        let rig = Rig::start_with(1, 1, &settings(&bytes), vec![]).await;
        let sql = "SELECT f(id), x FROM t";
        while ordinals(&rig).len() == 1 {
            tick(&rig, sql).await;
        }
        let id = "SELECT id FROM system.decisions WHERE kind = 'split'";
        let id = number(&rig, id).await;
        let undone = number(&rig, &format!("CALL undo({id})")).await;
        rig.engine.control_loop().settled().await;
        assert_eq!(ordinals(&rig), [3]);
        let sql = format!(
            "SELECT arrow_cast(count(*), 'UInt64') FROM system.decisions
             WHERE id = {undone} AND kind = 'merge' AND follows = {id}"
        );
        assert_eq!(number(&rig, &sql).await, 1);
    });
}

#[test]
fn a_step_that_was_planned_before_another_split_changes_nothing() {
    runtime::run(async {
        use foreshard_actors::ports::{Cluster, Outcome};
        use foreshard_policy::cluster::Step;
        use foreshard_policy::reshape::cut::Even;
        let rig = Rig::start(1, 2).await;
        let members = rig.engine.members();
        let view = members.view();
        assert_eq!((view.tables["t"].next, view.tables["t"].made), (2, 2));
        members.split(&PartitionId::new("t", 0), None).await.unwrap();
        let late = Step::Split {
            partition: PartitionId::new("t", 1),
            into: [2, 3],
            even: Even::Rows,
            alike: vec![],
        };
        let outcome = members.carry_out(view.epoch, late).await;
        assert!(matches!(&outcome, Outcome::Failed { code: "FS-CLUSTER-13", .. }), "{outcome:?}");
        assert_eq!(ordinals(&rig), [2, 3, 1]);
        rig.same("SELECT f(id), x FROM t").await;
        let view = members.view();
        assert_eq!((view.tables["t"].order.as_slice(), view.tables["t"].made), (&[2, 3, 1][..], 3));
    });
}
