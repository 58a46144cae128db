//! Work ahead of calls leaves threads to whoever comes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foreshard_actors::ports::Outcome;
use foreshard_policy::ids::PartitionId;

use crate::rig::{Rig, batch, hashed, schema};
use crate::support::functions::of_int;

/// Longer than a slice of work in the background, so that each row is one.
const ROW: Duration = Duration::from_millis(3);

const ROWS: i64 = 40;

#[test]
fn between_two_slices_of_work_ahead_others_have_the_thread() {
    // All share the one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Box::pin(async {
        let (turns, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(BTreeSet::new())));
        let (of_now, seen_by) = (Arc::clone(&turns), Arc::clone(&seen));
        let (card, slow, _) = of_int("slow", move |value| {
            std::thread::sleep(ROW);
            seen_by.lock().unwrap().insert(of_now.load(Ordering::Relaxed));
            Ok(Some(value))
        });
        let rig = Rig::start_with(1, 1, &[], vec![(card, slow)]).await;
        rig.engine.create_memory_table("u", schema(), hashed(1), vec![]).await.unwrap();
        rig.engine.append("u", vec![batch(0..ROWS)]).await.unwrap();
        // From here on it is known what a row costs.
        rig.engine.sql("SELECT slow(id) FROM u WHERE id < 4").await.unwrap();
        rig.settle().await;
        seen.lock().unwrap().clear();
        let expressions = rig.engine.members().expressions().list();
        let slow = expressions.iter().find(|it| &*it.function == "slow").unwrap().id;
        let is_over = AtomicBool::new(false);
        let ahead = async {
            let outcome = rig.engine.members().precompute(slow, &PartitionId::new("u", 0)).await;
            is_over.store(true, Ordering::Relaxed);
            outcome
        };
        let other = async {
            while !is_over.load(Ordering::Relaxed) {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        };
        let (outcome, ()) = tokio::join!(ahead, other);
        assert!(matches!(outcome, Outcome::Done { rows: 36, .. }), "{outcome:?}");
        let turns_between = seen.lock().unwrap().len();
        assert!(turns_between >= 30, "{turns_between} turns between 36 slices");
    }));
}
