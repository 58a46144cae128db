//! Work ahead of calls leaves threads to whoever comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foreshard_actors::ports::Outcome;
use foreshard_policy::ids::PartitionId;
use foreshard_udfs::call_threads;
use futures::future::join_all;

use crate::rig::{Rig, batch, hashed, schema};
use crate::support::functions::of_int;
use crate::support::runtime;

/// Longer than a slice of work in the background, so that each row is one.
const ROW: Duration = Duration::from_millis(3);

/// Rows of each partition, about.
const ROWS: u64 = 40;

#[test]
fn who_comes_while_work_ahead_has_all_threads_waits_for_slices_and_not_for_its_end() {
    runtime::run(async {
        let slices = Arc::new(AtomicU64::new(0));
        let begun = Arc::clone(&slices);
        let (card, slow, _) = of_int("slow", move |value| {
            begun.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(ROW);
            Ok(Some(value))
        });
        let rig = Rig::start_with(1, 1, &[], vec![(card, slow)]).await;
        rig.nodes()[0].set_budget(1_000, 1 << 30);
        // Twice as many as there are threads for calls, so that none of these is free.
        let parts = 2 * std::thread::available_parallelism().unwrap().get() as u32;
        let rows = ROWS * u64::from(parts);
        rig.engine.create_memory_table("u", schema(), hashed(parts), vec![]).await.unwrap();
        rig.engine.append("u", vec![batch(0..rows as i64)]).await.unwrap();
        // From here on it is known what a row costs.
        rig.engine.sql("SELECT slow(id) FROM u WHERE id < 4").await.unwrap();
        rig.settle().await;
        let expressions = rig.engine.members().expressions().list();
        let slow = expressions.iter().find(|it| &*it.function == "slow").unwrap().id;
        let members = rig.engine.members();
        let ids: Vec<PartitionId> = (0..parts).map(|part| PartitionId::new("u", part)).collect();
        let ahead = join_all(ids.iter().map(|id| members.precompute(slow, id)));
        // Until half of it is done every thread has work.
        let others = async {
            let mut served = 0;
            while slices.load(Ordering::Relaxed) < rows / 2 {
                call_threads().unwrap().spawn(async {}).await.unwrap();
                // Not before it has begun.
                served += u64::from(slices.load(Ordering::Relaxed) > u64::from(parts));
            }
            served
        };
        let (outcomes, served) = tokio::join!(ahead, others);
        for outcome in outcomes {
            assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
        }
        assert!(served >= 5, "{served} others were served while {} slices began", rows / 2);
    });
}
