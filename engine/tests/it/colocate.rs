//! Partitions are cut where the load is and few queries span the cut. What people declare to belong together
//! comes to one node, and is split and merged alike; no answer changes.

use arrow::array::AsArray;
use foreshard_actors::ports::{Cluster, Outcome};
use foreshard_policy::cluster::Step;
use foreshard_policy::ids::{NodeId, PartitionId};
use foreshard_policy::reshape::cut::Even;

use crate::rig::Rig;
use crate::support::runtime;

const JOIN: &str = "SELECT t.id, x, v FROM t JOIN u ON t.id = u.id";

/// Tables with a partition of the same keys on different nodes: `u` has the keys of `t`.
async fn start(settings: &[(&str, &str)]) -> Rig {
    let settings: Vec<(&str, &str)> =
        settings.iter().copied().chain([("loop.reshape.dwell-ticks", "0")]).collect();
    let rig = Rig::start_with(2, 4, &settings, vec![]).await;
    let rows = "SELECT id, 2 * x AS v FROM t";
    for (table, partitions) in [("u", 4), ("w", 3)] {
        let create = format!(
            "CREATE EXTERNAL TABLE {table} (id BIGINT, v BIGINT) STORED AS MEMORY PARTITIONED BY (id)
             LOCATION 'memory' OPTIONS ('partitions' '{partitions}')"
        );
        rig.ask(&create).await.unwrap();
        rig.ask(&format!("INSERT INTO {table} {rows}")).await.unwrap();
        let plain = rig.plain.sql(&format!("CREATE TABLE {table} AS {rows}")).await.unwrap();
        plain.collect().await.unwrap();
    }
    for setting in ["", "_rows"] {
        let name = format!("datafusion.optimizer.hash_join_single_partition_threshold{setting}");
        rig.ask(&format!("SET {name} = 0")).await.unwrap();
    }
    for ordinal in 0..4 {
        put(&rig, &PartitionId::new("t", ordinal), NodeId(ordinal % 2)).await;
        put(&rig, &PartitionId::new("u", ordinal), NodeId(1 - ordinal % 2)).await;
    }
    rig
}

async fn put(rig: &Rig, partition: &PartitionId, to: NodeId) {
    let members = rig.engine.members();
    members.copy(partition, to).await.unwrap();
    let holders = members.placement().holders[partition].clone();
    for other in holders.into_iter().filter(|node| *node != to) {
        members.drop_replica(partition, other).await.unwrap();
    }
}

async fn cells(rig: &Rig, sql: &str) -> Vec<String> {
    let answer = rig.ask(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let cell = |batch: &arrow::array::RecordBatch| -> Vec<String> {
        let texts = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8);
        texts.unwrap().as_string::<i32>().iter().flatten().map(ToOwned::to_owned).collect()
    };
    answer.batches.iter().flat_map(cell).collect()
}

fn layout(rig: &Rig, table: &str) -> foreshard_actors::layout::Layout {
    let store = rig.engine.members().store(table).unwrap();
    store.snapshot().layout.as_ref().clone()
}

async fn is_in_place(rig: &Rig) -> bool {
    rig.plan(JOIN).await.contains(", co-located groups=")
}

async fn tick(rig: &Rig) {
    rig.engine.tick().await;
    rig.engine.control_loop().settled().await;
}

#[test]
fn tables_that_people_declare_to_belong_together_come_to_one_node_and_stay_there() {
    runtime::run(async {
        let rig = start(&[]).await;
        assert!(!is_in_place(&rig).await);
        tick(&rig).await;
        assert!(!is_in_place(&rig).await, "nobody joins them");
        assert_eq!(cells(&rig, "CALL colocate('t', 'u')").await, ["1"]);
        assert_eq!(cells(&rig, "CALL colocate('u', 't')").await, ["0"]);
        let shown = "SELECT table_name || ' ' || ranges || ' ' || ranges_on_one_node
                     FROM system.colocated ORDER BY table_name";
        assert_eq!(cells(&rig, shown).await, ["t 4 0", "u 4 0"]);
        for _ in 0..8 {
            tick(&rig).await;
        }
        assert_eq!(cells(&rig, shown).await, ["t 4 4", "u 4 4"]);
        assert!(is_in_place(&rig).await);
        rig.same(JOIN).await;
        let why = "SELECT reason FROM system.decisions WHERE kind = 'move'";
        let reasons = cells(&rig, why).await;
        assert_eq!(reasons.len(), 4, "{reasons:?}");
        assert!(reasons.iter().all(|reason| reason.starts_with("declared: ")), "{reasons:?}");
        assert_eq!(cells(&rig, "CALL colocate_end('t')").await, ["1"]);
        assert_eq!(cells(&rig, shown).await, [] as [&str; 0]);
        assert_eq!(cells(&rig, "CALL colocate_end('u')").await, ["0"]);
    });
}

#[test]
fn tables_that_cannot_hold_the_same_keys_are_refused_and_told_why() {
    runtime::run(async {
        let rig = start(&[]).await;
        let create = |table: &str, columns: &str, options: &str| {
            format!(
                "CREATE EXTERNAL TABLE {table} ({columns}) STORED AS MEMORY PARTITIONED BY (k)
                 LOCATION 'memory' OPTIONS ({options})"
            )
        };
        rig.ask(&create("text", "k VARCHAR", "'partitions' '4'")).await.unwrap();
        rig.ask(&create("floats", "k DOUBLE", "'partitions' '4'")).await.unwrap();
        let range = "'strategy' 'range', 'bounds' '10,20'";
        rig.ask(&create("ranges", "k BIGINT", range)).await.unwrap();
        for (call, says) in [
            ("colocate('t', 'w')", "partitions: t has 4, w has 3"),
            ("colocate('t', 'text')", "hash of Utf8View, the other by hash of Int64"),
            ("colocate('t', 'ranges')", "range of Int64"),
            ("colocate('t', 'floats')", "two zeros"),
            ("colocate('t', 't')", "one table alone"),
            ("colocate('t', 'gone')", "gone"),
            ("colocate('t')", "there is no procedure"),
        ] {
            let error = rig.ask(&format!("CALL {call}")).await.unwrap_err();
            assert!(error.contains(says), "{call}: {error}");
        }
        let error = rig.ask("CALL colocate('t', 'w')").await.unwrap_err();
        assert!(error.starts_with("FS-CONTROL-9: "), "{error}");
        assert_eq!(cells(&rig, "SELECT table_name FROM system.colocated").await, [] as [&str; 0]);
    });
}

#[test]
fn partitions_with_the_same_keys_are_split_and_merged_alike_by_hand() {
    runtime::run(async {
        let rig = start(&[]).await;
        cells(&rig, "CALL colocate('t', 'u')").await;
        for _ in 0..8 {
            tick(&rig).await;
        }
        rig.ask("CALL split_partition('t', 2)").await.unwrap();
        let (t, u) = (layout(&rig, "t"), layout(&rig, "u"));
        assert_eq!((t.ordinals(), t.cut_marks()), (u.ordinals(), u.cut_marks()));
        assert_eq!((t.partitions(), t.made(), u.made()), (5, 5, 5));
        assert!(is_in_place(&rig).await);
        rig.same(JOIN).await;
        rig.ask("CALL merge_partitions('u', 4, 5)").await.unwrap();
        assert_eq!((layout(&rig, "t").partitions(), layout(&rig, "u").partitions()), (4, 4));
        rig.same(JOIN).await;
        // One that is split already stays as it is, and so does one that is frozen.
        rig.ask("CALL freeze('u')").await.unwrap();
        rig.ask("CALL split_partition('t', 0)").await.unwrap();
        assert_eq!((layout(&rig, "t").partitions(), layout(&rig, "u").partitions()), (5, 4));
        rig.same(JOIN).await;
    });
}

#[test]
fn the_loop_splits_alike_and_undo_merges_alike() {
    runtime::run(async {
        let settings =
            [("loop.reshape.split-bytes", "6000"), ("loop.reshape.split-dwell-ticks", "1000")];
        let rig = start(&settings).await;
        cells(&rig, "CALL colocate('t', 'u')").await;
        let id = "SELECT id FROM system.decisions
                  WHERE kind = 'split' AND outcome LIKE 'done: %; cut at hash %% of the rows%alike'";
        for _ in 0..12 {
            tick(&rig).await;
        }
        let ids = cells(&rig, id).await;
        let all = "SELECT target || ' ' || outcome FROM system.decisions";
        assert_eq!(ids.len(), 1, "{:?}", cells(&rig, all).await);
        let (t, u) = (layout(&rig, "t"), layout(&rig, "u"));
        assert_eq!((t.partitions(), t.cut_marks()), (5, u.cut_marks()));
        rig.same(JOIN).await;
        cells(&rig, &format!("CALL undo({})", ids[0])).await;
        rig.engine.control_loop().settled().await;
        let (t, u) = (layout(&rig, "t"), layout(&rig, "u"));
        assert_eq!((t.partitions(), u.partitions()), (4, 4));
        assert_eq!(t.cut_marks(), u.cut_marks());
        rig.same(JOIN).await;
    });
}

#[test]
fn what_fails_of_the_others_stays_as_it_is_and_the_decision_says_so() {
    runtime::run(async {
        let rig = start(&[]).await;
        let members = rig.engine.members();
        let twin = |table: &str, into: [u32; 2]| foreshard_policy::cluster::SplitAlike {
            partition: PartitionId::new(table, 1),
            into,
        };
        let step = Step::Split {
            partition: PartitionId::new("t", 1),
            into: [4, 5],
            even: Even::Rows,
            // Those of `w` were planned before others were made.
            alike: vec![twin("w", [9, 10]), twin("u", [4, 5])],
        };
        let outcome = members.carry_out(members.view().epoch, step).await;
        let Outcome::Reshaped { how, .. } = outcome else { panic!("{outcome:?}") };
        assert!(how.contains("; u/1 alike"), "{how}");
        assert!(how.contains("; w/1 stays as it is: "), "{how}");
        assert!(how.contains("(FS-CLUSTER-13)"), "{how}");
        assert_eq!(layout(&rig, "w").ordinals(), [0, 1, 2]);
        assert_eq!(layout(&rig, "t").cut_marks(), layout(&rig, "u").cut_marks());
        rig.same(JOIN).await;
        rig.same("SELECT t.id, v FROM t JOIN w ON t.id = w.id").await;
    });
}

/// A table of one range of keys below 5,000, of which those below 1,000 are called.
async fn ranged() -> Rig {
    let rig = Rig::start(2, 2).await;
    rig.ask(
        "CREATE EXTERNAL TABLE r (id BIGINT) STORED AS MEMORY PARTITIONED BY (id)
         LOCATION 'memory' OPTIONS ('strategy' 'range', 'bounds' '5000')",
    )
    .await
    .unwrap();
    let rows = "SELECT value AS id FROM generate_series(0, 4999)";
    rig.ask(&format!("INSERT INTO r {rows}")).await.unwrap();
    let plain = rig.plain.sql(&format!("CREATE TABLE r AS {rows}")).await.unwrap();
    plain.collect().await.unwrap();
    rig
}

async fn carried_out(rig: &Rig, even: Even) -> (Vec<u64>, String) {
    let members = rig.engine.members();
    let partition = PartitionId::new("r", 0);
    let step = Step::Split { partition, into: [2, 3], even, alike: vec![] };
    let outcome = members.carry_out(members.view().epoch, step).await;
    let Outcome::Reshaped { how, .. } = outcome else { panic!("{outcome:?}") };
    let snapshot = members.store("r").unwrap().snapshot();
    let rows = |ordinal: usize| snapshot.partitions[ordinal].iter().map(|it| it.rows).sum();
    ((2..4).map(rows).collect(), how)
}

#[test]
fn a_split_by_load_halves_what_is_called_and_says_where_and_why() {
    runtime::run(async {
        let rig = ranged().await;
        for _ in 0..3 {
            rig.same("SELECT id, f(id) FROM r WHERE id < 1000").await;
        }
        let (rows, how) = carried_out(&rig, Even::Load).await;
        assert!(rows[0] > 400 && rows[0] < 620, "{rows:?} {how}");
        assert!(how.starts_with("cut at \"") && how.contains(" % of the load and "), "{how}");
        rig.same("SELECT id, f(id) FROM r").await;
        // What was counted follows the rows: the parts of the hot part are halved again.
        let members = rig.engine.members();
        let partition = PartitionId::new("r", 2);
        let (into, even) = ([4, 5], Even::Load);
        let again = Step::Split { partition, into, even, alike: vec![] };
        let outcome = members.carry_out(members.view().epoch, again).await;
        let Outcome::Reshaped { how, .. } = outcome else { panic!("{outcome:?}") };
        assert!(how.contains(" % of the load and "), "{how}");
    });
}

#[test]
fn a_split_because_of_size_keeps_off_the_ranges_that_queries_ask_for() {
    runtime::run(async {
        let rig = ranged().await;
        for _ in 0..3 {
            rig.same("SELECT count(*) FROM r WHERE id BETWEEN 2400 AND 2699").await;
            rig.same("SELECT count(*) FROM r WHERE id >= 2450 AND id < 2500").await;
        }
        let (rows, how) = carried_out(&rig, Even::Rows).await;
        assert!([2_400, 2_700].contains(&rows[0]), "{rows:?} {how}");
        assert!(how.contains("0 % of the ranges that queries ask for span it"), "{how}");
        rig.same("SELECT id, f(id) FROM r").await;
    });
}

#[test]
fn rows_are_halved_where_no_call_was_counted() {
    runtime::run(async {
        let rig = ranged().await;
        let (rows, how) = carried_out(&rig, Even::Load).await;
        assert_eq!(rows, [2_500, 2_500]);
        assert!(how.ends_with("no load is counted"), "{how}");
    });
}
