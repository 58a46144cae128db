//! Partitions of another process are split and merged.

use foreshard_actors::ports::Cluster as _;
use foreshard_policy::cluster::Step;
use foreshard_policy::reshape::cut::Even;

use super::*;

#[test]
fn partitions_are_split_and_merged_in_another_process_with_what_is_stored_of_them() {
    run(async {
        let cluster = Cluster::start().await;
        let (engine, other) = (cluster.engine(), cluster.other.id);
        for table in ["kept", "mem"] {
            cluster.move_away(table).await;
            let sql = format!("SELECT k, soundex(name) AS sound FROM {table} ORDER BY k");
            let right = ask(engine, &sql).await;
            let held = format!(
                "SELECT sum(rows) AS rows FROM system.outputs WHERE table_name = '{table}' AND node = '{other}'"
            );
            eventually(engine, &held, |answer| answer.contains("| 4000 |")).await;
            for (change, expected) in [
                (format!("CALL split_partition('{table}', 1)"), vec![0, 4, 5, 2, 3]),
                (format!("CALL merge_partitions('{table}', 5, 2)"), vec![0, 4, 6, 3]),
            ] {
                engine.sql(&change).await.unwrap();
                let store = engine.members().store(table).unwrap();
                assert_eq!(store.snapshot().layout.ordinals(), expected, "{change}");
                let placement = engine.members().placement();
                for ordinal in expected {
                    let holders = &placement.holders[&PartitionId::new(table, ordinal)];
                    assert!(holders.iter().eq([&other]), "{change}: {ordinal} is with {holders:?}");
                }
                eventually(engine, &held, |answer| answer.contains("| 4000 |")).await;
                let before = engine.calls().len();
                assert_eq!(ask(engine, &sql).await, right, "{change}");
                let stored = stored_of(engine, other, before, ROWS as u64).await;
                assert_eq!(stored, ROWS as u64, "{change}: nothing is computed again");
            }
            // By load: its calls are counted over there, so that rows stand for them here.
            let partition = PartitionId::new(table, 3);
            let (into, even) = ([7, 8], Even::Load);
            let split = Step::Split { partition, into, even, alike: vec![] };
            let epoch = engine.members().placement().epoch;
            let outcome = engine.members().carry_out(epoch, split).await;
            let Outcome::Reshaped { how, .. } = outcome else { panic!("{outcome:?}") };
            let told = format!("no load is counted; calls on {other} are not counted here");
            assert!(how.ends_with(&told), "{how}");
            assert_eq!(ask(engine, &sql).await, right);
            engine.append(table, vec![batch(ROWS..ROWS + 10)]).await.unwrap();
            let count = ask(engine, &format!("SELECT count(*) AS n, sum(k) FROM {table}")).await;
            assert!(count.contains("| 4010 "), "{count}");
        }
        cluster.stop().await;
    });
}
