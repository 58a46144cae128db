//! Rows of another process come into its memory and go.

use foreshard_actors::ports::{Cluster as _, Outcome};
use foreshard_policy::cluster::Step;
use foreshard_policy::ids::Epoch;

use super::*;

#[test]
fn rows_are_read_ahead_and_let_go_in_another_process() {
    run(async {
        let cluster = Cluster::start().await;
        let (engine, node) = (cluster.engine(), cluster.other.id);
        let right = questions(engine).await;
        cluster.move_away("kept").await;
        let held = |column: &str| {
            format!(
                "SELECT count(*) AS n FROM system.replicas
                 WHERE table_name = 'kept' AND node = '{node}' AND partition = 0 AND {column}"
            )
        };
        eventually(engine, &held("row_bytes > 0"), |answer| answer.contains("| 1 ")).await;
        let partition = PartitionId::new("kept", 0);
        let release = Step::Release { partition: partition.clone(), node };
        let prefetch = Step::Prefetch { partition, node };
        for (step, column) in [(release, "row_bytes = 0"), (prefetch, "row_bytes_in_files = 0")] {
            match engine.members().carry_out(Epoch::default(), step.clone()).await {
                Outcome::Done { bytes, .. } => assert!(bytes > 0, "{step}"),
                failed => panic!("{step}: {failed:?}"),
            }
            eventually(engine, &held(column), |answer| answer.contains("| 1 ")).await;
            for (sql, answer) in &right {
                assert_eq!(ask(engine, sql).await, *answer, "{sql} after {step}");
            }
        }
        cluster.stop().await;
    });
}
