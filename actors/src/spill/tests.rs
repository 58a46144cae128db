//! What is spilled comes back as it was or not at all, and never takes more room than it may.

use arrow::array::{AsArray, Int64Array};
use arrow::datatypes::Int64Type;
use proptest::prelude::*;

use object_store::ObjectStore;

use super::*;
use crate::ports::SystemClock;

/// Nanoseconds that make anything of these sizes worth a file.
const DEAR: u64 = 1_000_000_000;

struct Rig {
    spill: Arc<Spill>,
    pins: Arc<Pins>,
    base: tempfile::TempDir,
}

fn rig(bytes_max: u64) -> Rig {
    let base = tempfile::tempdir().unwrap();
    let pins = Arc::<Pins>::default();
    let spill = Spill::open(base.path(), bytes_max, Arc::clone(&pins), Arc::new(SystemClock));
    Rig { spill: Arc::new(spill.unwrap()), pins, base }
}

fn output(id: u128, rows: usize, ns: u64) -> ToSpill {
    let values = Int64Array::from_iter_values(0..rows as i64);
    ToSpill {
        segment: SegmentId(1),
        expression: ExpressionId(id),
        table: "t".into(),
        values: OutputValues::whole(Arc::new(values)),
        ns,
        uses: Arc::default(),
    }
}

/// Bytes of all files that are there.
fn on_disk(spill: &Spill) -> u64 {
    let files = std::fs::read_dir(spill.folder().unwrap()).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

async fn is_back(rig: &Rig, file: &Arc<SpillFile>, rows: usize) -> bool {
    let Some(values) = rig.spill.read(file).await else { return false };
    let numbers = values.values().unwrap();
    assert!(numbers.as_primitive::<Int64Type>().values().iter().copied().eq(0..rows as i64));
    true
}

#[tokio::test]
async fn values_come_back_and_their_file_goes_with_the_last_who_holds_it() {
    let rig = rig(1 << 20);
    let file = rig.spill.write(output(1, 1_000, DEAR)).await.unwrap();
    assert_eq!((file.bytes(), rig.spill.bytes()), (on_disk(&rig.spill), file.bytes()));
    assert!(is_back(&rig, &file, 1_000).await);
    let held = Arc::clone(&file);
    drop(file);
    assert!(is_back(&rig, &held, 1_000).await);
    drop(held);
    while rig.spill.bytes() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(on_disk(&rig.spill), 0);
    let folder = rig.spill.folder().unwrap().to_owned();
    drop(rig.spill);
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_file_that_is_not_what_was_written_is_no_output_and_goes() {
    type Break = fn(&Path);
    let breaks: [Break; 4] = [
        |path| std::fs::write(path, b"no output").unwrap(),
        |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let last = bytes.len() - 200;
            bytes[last] ^= 1;
            std::fs::write(path, bytes).unwrap();
        },
        |path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        |path| std::fs::remove_file(path).unwrap(),
    ];
    for broken in breaks {
        let rig = rig(1 << 20);
        let file = rig.spill.write(output(1, 1_000, DEAR)).await.unwrap();
        broken(&file.path().unwrap());
        assert!(!is_back(&rig, &file, 1_000).await);
        assert!(file.is_gone());
        assert_eq!((rig.spill.bytes(), on_disk(&rig.spill)), (0, 0));
        let again = rig.spill.write(output(1, 1_000, DEAR)).await.unwrap();
        assert!(is_back(&rig, &again, 1_000).await);
    }
}

#[tokio::test]
async fn what_is_worth_least_gives_way_and_what_is_pinned_does_not() {
    let rig = rig(20_000);
    let cheap = rig.spill.write(output(1, 1_000, DEAR)).await.unwrap();
    let dear = rig.spill.write(output(2, 1_000, 9 * DEAR)).await.unwrap();
    let new = rig.spill.write(output(3, 1_000, 2 * DEAR)).await.unwrap();
    assert!(cheap.is_gone() && !dear.is_gone() && !new.is_gone());
    assert!(rig.spill.write(output(4, 1_000, DEAR)).await.is_none(), "worth less than both");
    assert!(!dear.is_gone() && !new.is_gone());
    assert!(rig.spill.write(output(5, 5_000, 90 * DEAR)).await.is_none(), "larger than all");
    assert!(!dear.is_gone() && !new.is_gone(), "what finds no room drives nothing out");
    rig.pins.change(|pinned| pinned.expressions.extend([ExpressionId(3)]));
    let last = rig.spill.write(output(6, 1_000, 90 * DEAR)).await.unwrap();
    assert!(dear.is_gone() && !new.is_gone() && !last.is_gone(), "the cheaper one is pinned");
    dear.set_in_memory(true);
    last.set_in_memory(true);
    let copy = rig.spill.write(output(7, 1_000, 3 * DEAR)).await.unwrap();
    assert!(last.is_gone() && is_back(&rig, &copy, 1_000).await, "memory has the same values");
}

#[tokio::test]
async fn what_is_as_quick_to_compute_is_not_written_and_what_is_there_not_again() {
    let rig = rig(1 << 20);
    assert!(rig.spill.write(output(1, 1_000, 100_000)).await.is_none());
    let first = rig.spill.write(output(1, 1_000, DEAR)).await.unwrap();
    let second = rig.spill.write(output(1, 900, DEAR)).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second), "the first knows more");
    let third = rig.spill.write(output(1, 1_100, DEAR)).await.unwrap();
    assert!(first.is_gone() && is_back(&rig, &third, 1_100).await);
    assert_eq!(rig.spill.bytes(), on_disk(&rig.spill));
}

#[tokio::test]
async fn a_disk_that_takes_nothing_is_no_error_and_costs_no_budget() {
    let rig = rig(1 << 20);
    std::fs::remove_dir_all(rig.spill.folder().unwrap()).unwrap();
    assert!(rig.spill.write(output(1, 1_000, DEAR)).await.is_none());
    assert_eq!(rig.spill.bytes(), 0);
    assert!(rig.base.path().exists());
}

proptest! {
    #[test]
    fn the_disk_never_holds_more_than_it_may(
        calls in prop::collection::vec((0u128..12, 1usize..3_000, 1u64..9, any::<bool>()), 1..40),
        bytes_max in 0u64..60_000,
    ) {
        let rig = rig(bytes_max);
        let mut held: BTreeMap<u128, Arc<SpillFile>> = BTreeMap::new();
        for (id, rows, ns, is_dropped) in calls {
            if is_dropped {
                held.remove(&id);
            } else if let Some(file) = rig.spill.write_now(output(id, rows, ns * DEAR)) {
                prop_assert!(rig.spill.read_now(&file).is_some());
                held.insert(id, file);
            }
            prop_assert!(on_disk(&rig.spill) <= bytes_max);
            prop_assert_eq!(on_disk(&rig.spill), rig.spill.bytes());
            let live = held.values().filter(|file| !file.is_gone());
            prop_assert_eq!(live.map(|file| file.bytes()).sum::<u64>(), rig.spill.bytes());
        }
    }
}

#[tokio::test]
async fn an_object_store_takes_outputs_like_a_disk_within_the_budget() {
    let store = Arc::new(object_store::memory::InMemory::new());
    let prefix = object_store::path::Path::from("spill");
    let clock = Arc::new(SystemClock);
    let spill = Spill::open_store(store.clone(), prefix, 20_000, Arc::default(), clock).await;
    let spill = Arc::new(spill.unwrap());
    let first = spill.write(output(1, 1_000, DEAR)).await.unwrap();
    let second = spill.write(output(2, 1_000, 9 * DEAR)).await.unwrap();
    let values = spill.read(&second).await.unwrap().values().unwrap();
    assert!(values.as_primitive::<Int64Type>().values().iter().copied().eq(0..1_000));
    let third = spill.write(output(3, 1_000, 2 * DEAR)).await.unwrap();
    assert!(first.is_gone() && !second.is_gone() && !third.is_gone(), "the cheapest gave way");
    assert!(spill.bytes() <= 20_000 && spill.bytes() == second.bytes() + third.bytes());
    assert!(spill.write(output(4, 1_000, 10_000_000)).await.is_none(), "computed as quickly");
    drop(third);
    while spill.bytes() > second.bytes() {
        tokio::task::yield_now().await;
    }
    spill.close().await;
    assert!(second.is_gone() && spill.write(output(5, 1_000, DEAR)).await.is_none());
    let left: Vec<_> = futures::TryStreamExt::try_collect(store.list(None)).await.unwrap();
    assert_eq!(left.len(), 0, "{left:?}");
}
