//! Outputs that give way to the disk, come back from it, and go with what they belong to; and those that
//! are pinned. Memory has room for two of the table's six outputs unless a test says otherwise.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::util::pretty::pretty_format_batches;
use foreshard::Engine;
use foreshard_actors::partition::{Held, StoredOutput};
use foreshard_actors::spill::Spill;
use foreshard_udfs::{Card, CostClass};

use crate::rig::{ROWS, Rig, batch, config, eventually};
use crate::support::functions::of_int;
use crate::support::runtime;

/// What one of the six outputs takes in memory, and a little.
const OUTPUT_BYTES: u64 = 1_900;

const MEMORY_BYTES: u64 = 2 * OUTPUT_BYTES;

const ALL: &str = "SELECT id, slow(id) FROM t";

struct Spilling {
    rig: Rig,
    /// Rows that `slow` was evaluated on.
    rows: Arc<AtomicU64>,
    folder: tempfile::TempDir,
}

/// A function that is worth a file: a tenth of a millisecond for each row, or more.
fn slow(
    name: &str,
    times: i64,
    sleep: Duration,
) -> (Card, datafusion::logical_expr::ScalarUDF, Arc<AtomicU64>) {
    of_int(name, move |value| {
        std::thread::sleep(sleep);
        Ok(Some(value * times))
    })
}

impl Spilling {
    async fn start(spill_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().to_str().unwrap().to_owned();
        Self::start_at(&place, Duration::from_micros(50), folder, spill_bytes).await
    }

    async fn start_at(
        place: &str,
        sleep: Duration,
        folder: tempfile::TempDir,
        spill_bytes: u64,
    ) -> Self {
        let ((card, udf, rows), (other_card, other, _)) =
            (slow("slow", 2, sleep), slow("other", 3, sleep));
        let settings = [("spill-dir", place), ("limits.spill-bytes", &spill_bytes.to_string())];
        let more = vec![(card, udf), (other_card, other)];
        let rig = Rig::start_with(1, 1, &settings, more).await;
        rig.nodes()[0].set_budget(2, MEMORY_BYTES);
        Self { rig, rows, folder }
    }

    fn spill(&self) -> &Arc<Spill> {
        self.rig.engine.members().spill().unwrap()
    }

    /// Asks for all rows and fails if one has another value; returns how many were evaluated.
    async fn evaluated(&self) -> u64 {
        self.rows.store(0, Ordering::Relaxed);
        let answer = self.rig.ask(ALL).await.unwrap();
        for batch in &answer.batches {
            let column = |i: usize| batch.column(i).as_primitive::<Int64Type>().values();
            assert!(column(0).iter().zip(column(1)).all(|(id, value)| id * 2 == *value));
        }
        self.rows.load(Ordering::Relaxed)
    }

    /// Outputs by place.
    fn held(&self) -> (usize, usize) {
        let view = self.rig.nodes()[0].replicas();
        let views: Vec<_> = view.values().map(|handle| handle.replica.view()).collect();
        let segments = || views.iter().flat_map(|view| view.segments.values());
        let on_disk = segments().map(|held| held.only_on_disk().count()).sum();
        (segments().map(|held| held.outputs.len()).sum(), on_disk)
    }

    /// All that is in memory, as a query that reads it holds it.
    fn outputs(&self) -> Vec<StoredOutput> {
        let view = self.rig.nodes()[0].replicas();
        let views: Vec<_> = view.values().map(|handle| handle.replica.view()).collect();
        let segments = views.iter().flat_map(|view| view.segments.values());
        segments.flat_map(|held| held.outputs.values().cloned()).collect()
    }

    /// Files that the view names.
    fn spill_files(&self) -> usize {
        let view = self.rig.nodes()[0].replicas();
        let views: Vec<_> = view.values().map(|handle| handle.replica.view()).collect();
        let segments = views.iter().flat_map(|view| view.segments.values());
        segments.flat_map(|held| held.spilled.values()).filter(|file| !file.is_gone()).count()
    }

    /// Rows that have a value in memory or on disk.
    fn rows_known(&self) -> usize {
        let view = self.rig.nodes()[0].replicas();
        let views: Vec<_> = view.values().map(|handle| handle.replica.view()).collect();
        let segments = views.iter().flat_map(|view| view.segments.values());
        let of_segment = |held: &Held| {
            let in_memory = held.outputs.values().map(|output| output.values.rows_known());
            in_memory.chain(held.only_on_disk().map(|(_, file)| file.rows_known())).sum::<usize>()
        };
        segments.map(of_segment).sum()
    }

    /// Waits until as many outputs are held.
    async fn holds(&self, outputs: usize) {
        eventually(&format!("{outputs} outputs are held, not {:?}", self.held()), || {
            let (in_memory, on_disk) = self.held();
            in_memory + on_disk == outputs
        })
        .await;
        self.rig.settle().await;
    }

    async fn spilled() -> Self {
        let spilling = Self::start(1 << 20).await;
        assert_eq!(spilling.evaluated().await, ROWS as u64);
        spilling.holds(6).await;
        spilling
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let files = std::fs::read_dir(self.spill().folder().unwrap()).unwrap();
        files.map(|file| file.unwrap().path()).collect()
    }

    async fn text(&self, sql: &str) -> String {
        let rows = self.rig.ask(sql).await.unwrap();
        pretty_format_batches(&rows.batches).unwrap().to_string()
    }

    async fn number(&self, sql: &str) -> i64 {
        let rows = self.rig.ask(sql).await.unwrap();
        rows.batches[0].column(0).as_primitive::<Int64Type>().value(0)
    }

    /// Waits until nothing is on disk any more, neither counted nor there.
    async fn disk_is_empty(&self, why: &str) {
        eventually(&format!("the disk is empty: {why}"), || self.spill().bytes() == 0).await;
        assert!(self.files().is_empty(), "{why}: {:?}", self.files());
    }
}

#[test]
fn what_finds_no_room_in_memory_comes_back_from_disk() {
    runtime::run(async {
        let spilling = Spilling::spilled().await;
        let (in_memory, on_disk) = spilling.held();
        assert!(in_memory > 0 && on_disk >= 4, "{in_memory} in memory, {on_disk} on disk");
        for turn in 0..4 {
            assert_eq!(spilling.evaluated().await, 0, "turn {turn}");
            spilling.holds(6).await;
        }
        eventually("calls are reported", || {
            let calls = spilling.rig.engine.calls();
            let last = calls.iter().map(|call| call.query).max();
            let of_last = calls.iter().filter(|call| Some(call.query) == last);
            let rows = of_last.map(|call| (call.rows, call.rows_stored));
            let sum = rows.reduce(|a, b| (a.0 + b.0, a.1 + b.1));
            sum == Some((ROWS as u64, ROWS as u64))
        })
        .await;
        // Memory has room for two; they may be on their way in at the moment.
        let plan = spilling.text(&format!("EXPLAIN ANALYZE {ALL}")).await;
        assert!((4..=6).any(|read| plan.contains(&format!("outputs_from_disk={read}"))), "{plan}");
        eventually("memory is used", || spilling.held().0 > 0).await;
        let places = "SELECT place, count(*) AS outputs, sum(bytes) > 0 AS has_bytes \
                      FROM system.outputs GROUP BY place ORDER BY place";
        let places = spilling.text(places).await;
        assert!(places.contains("| disk "), "{places}");
        assert!(spilling.rig.engine.metrics().contains("foreshard_spilled_bytes"));
    });
}

#[test]
fn memory_and_disk_are_never_taken_beyond_their_budgets() {
    runtime::run(async {
        // Room for three files.
        const DISK_BYTES: u64 = 7_000;
        let spilling = Spilling::start(DISK_BYTES).await;
        let node = spilling.rig.nodes().remove(0);
        let asks = async {
            for turn in 0..4 {
                spilling.evaluated().await;
                spilling.rig.ask("SELECT other(id) FROM t").await.unwrap();
                let change = format!("UPDATE t SET y = 0 WHERE id = {}", 200 * turn);
                spilling.rig.ask(&change).await.unwrap();
            }
        };
        let mut asks = std::pin::pin!(asks);
        let (mut in_memory, mut on_disk) = (0, 0);
        loop {
            in_memory = in_memory.max(node.memory_bytes());
            on_disk = on_disk.max(spilling.spill().bytes());
            let files = spilling.files();
            // One may be gone before it is looked at.
            let there = files.iter().filter_map(|file| file.metadata().ok());
            on_disk = on_disk.max(there.map(|file| file.len()).sum());
            tokio::select! {
                biased;
                () = &mut asks => break,
                () = tokio::task::yield_now() => {}
            }
        }
        assert!(in_memory <= MEMORY_BYTES && on_disk <= DISK_BYTES, "{in_memory}, {on_disk}");
        assert!(in_memory > OUTPUT_BYTES / 2 && on_disk > DISK_BYTES / 2, "{in_memory}, {on_disk}");
    });
}

#[test]
fn a_broken_file_is_computed_again_and_no_error() {
    type Break = fn(&Path);
    let breaks: [Break; 3] = [
        |path| std::fs::write(path, b"no output").unwrap(),
        |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            std::fs::write(path, bytes).unwrap();
        },
        |path| std::fs::remove_file(path).unwrap(),
    ];
    runtime::run(async move {
        for broken in breaks {
            let spilling = Spilling::spilled().await;
            let (in_memory, on_disk) = spilling.held();
            spilling.files().iter().for_each(|file| broken(file));
            let evaluated = spilling.evaluated().await;
            assert_eq!(evaluated, 200 * on_disk as u64, "{in_memory} outputs are in memory");
            // The file of an output that is in memory, too, is found broken when that gives way.
            let mut evaluated = vec![];
            while evaluated.last() != Some(&0) && evaluated.len() < 4 {
                spilling.holds(6).await;
                evaluated.push(spilling.evaluated().await);
            }
            assert_eq!(evaluated.last(), Some(&0), "they were stored again: {evaluated:?}");
        }
    });
}

#[test]
fn files_go_with_their_rows_their_table_and_their_function() {
    runtime::run(async {
        for (sql, left) in [
            // What is left is in one segment.
            ("DELETE FROM t WHERE id % 100 = 0", 1),
            ("UPDATE t SET y = 0 WHERE id % 100 = 0", 1),
            ("DELETE FROM t", 0),
            ("TRUNCATE TABLE t", 0),
            ("DROP TABLE t", 0),
            ("CALL drop_stored('t')", 0),
            ("INSERT INTO t VALUES (100000, 1, 1)", 6),
        ] {
            let spilling = Spilling::spilled().await;
            spilling.rig.ask(sql).await.unwrap();
            match left {
                0 => spilling.disk_is_empty(sql).await,
                left => spilling.holds(left).await,
            }
        }
        let spilling = Spilling::spilled().await;
        let (_, udf, _) = slow("slow", 5, Duration::from_micros(50));
        let card = Card::immutable("slow", "1", CostClass::Dear, "made for tests", "slow(1)");
        spilling.rig.engine.register_function(card, udf).unwrap();
        spilling.disk_is_empty("redefined").await;
        let answer = spilling.rig.ask("SELECT id, slow(id) FROM t WHERE id = 7").await.unwrap();
        let value = answer.batches.iter().find(|batch| batch.num_rows() > 0).unwrap();
        assert_eq!(value.column(1).as_primitive::<Int64Type>().value(0), 35);
    });
}

#[test]
fn what_is_on_disk_follows_its_rows_into_new_segments() {
    runtime::run(async {
        for (sql, left, segments, new) in [
            ("DELETE FROM t WHERE id = 7", 1_199, 6, 0),
            ("DELETE FROM t WHERE id % 100 = 0", 1_188, 1, 0),
            ("UPDATE t SET y = 0 WHERE id < 350 AND id % 100 = 0", 1_200, 5, 4),
            ("UPDATE t SET x = 0 WHERE id % 2 = 0", 1_200, 1, 600),
        ] {
            let spilling = Spilling::spilled().await;
            spilling.rig.ask(sql).await.unwrap();
            let has_followed = || spilling.rows_known() as u64 == left - new;
            eventually("what was stored has followed", has_followed).await;
            spilling.holds(segments).await;
            assert_eq!(spilling.evaluated().await, new, "{sql}");
            let is_whole = || spilling.rows_known() as u64 == left;
            eventually("what was computed is stored, too", is_whole).await;
            let files = || spilling.files().len() == spilling.spill_files();
            eventually("files of removed segments are gone", files).await;
            assert_eq!(spilling.evaluated().await, 0, "{sql}, again");
        }
    });
}

#[test]
fn what_is_thrown_away_while_it_is_read_from_disk_does_not_come_back() {
    runtime::run(async {
        for _ in 0..8 {
            let spilling = Spilling::spilled().await;
            spilling.rig.ask("DELETE FROM t WHERE id % 100 = 0").await.unwrap();
            spilling.rig.ask("CALL drop_stored('t')").await.unwrap();
            spilling.disk_is_empty("thrown away").await;
            assert_eq!(spilling.rows_known(), 0);
            let evaluated = spilling.evaluated().await;
            assert_eq!(evaluated, ROWS as u64 - 12);
        }
    });
}

#[test]
fn what_is_on_disk_in_part_is_completed() {
    runtime::run(async {
        let spilling = Spilling::start(1 << 20).await;
        let mut known = 0;
        for (filter, new) in [("y < 2", 343), ("y < 4", 343), ("y > 2", 514), ("y < 9", 0)] {
            spilling.rows.store(0, Ordering::Relaxed);
            let sql = format!("SELECT id, slow(id) FROM t WHERE {filter}");
            spilling.rig.ask(&sql).await.unwrap();
            let evaluated = spilling.rows.load(Ordering::Relaxed);
            assert!(evaluated.abs_diff(new) <= 3, "{evaluated} rows where {filter}, not {new}");
            known += evaluated as usize;
            let what = format!("{known} rows are held where {filter}");
            eventually(&what, || spilling.rows_known() == known).await;
        }
        assert_eq!(spilling.evaluated().await, 0);
    });
}

#[test]
fn a_pinned_output_stays_and_those_of_new_rows_are_pinned_too() {
    runtime::run(async {
        let spilling = Spilling::start(0).await;
        assert!(spilling.rig.engine.members().spill().is_none(), "nothing is spilled");
        // Eight outputs.
        spilling.rig.nodes()[0].set_budget(2, 8 * OUTPUT_BYTES);
        spilling.evaluated().await;
        spilling.holds(6).await;
        spilling.rig.ask("CALL pin_stored('t', 'slow(id)')").await.unwrap();
        let ask_others = async |turns: usize| {
            for _ in 0..turns {
                spilling.rig.ask("SELECT other(id) FROM t").await.unwrap();
                spilling.rig.settle().await;
            }
        };
        ask_others(4).await;
        assert_eq!(spilling.evaluated().await, 0, "other calls pushed nothing out");
        let pinned = "SELECT count(*) FROM system.outputs WHERE pinned";
        assert_eq!(spilling.number(pinned).await, 6);
        spilling.rig.engine.append("t", vec![batch(ROWS..ROWS + 200)]).await.unwrap();
        assert_eq!(spilling.evaluated().await, 200);
        spilling.rig.settle().await;
        assert_eq!(spilling.number(pinned).await, 7, "it took the place of another");
        ask_others(4).await;
        assert_eq!(spilling.evaluated().await, 0);
        let read: Vec<StoredOutput> = spilling.outputs();
        spilling.rig.ask("UPDATE t SET y = 0 WHERE id = 7").await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(spilling.number(pinned).await, 6, "all that could give way is read");
        drop(read);
        eventually("it stays over new segments", || spilling.held().0 == 8).await;
        spilling.rig.settle().await;
        assert_eq!(spilling.number(pinned).await, 7, "it stays over new segments");
        ask_others(4).await;
        assert_eq!(spilling.evaluated().await, 1);
        spilling.rig.ask("CALL unpin_stored('t')").await.unwrap();
        assert_eq!(spilling.number(pinned).await, 0);
        ask_others(9).await;
        assert!(spilling.evaluated().await > 0, "they give way again");
    });
}

#[test]
fn a_pin_that_does_not_fit_is_refused_with_what_it_takes() {
    runtime::run(async {
        let spilling = Spilling::spilled().await;
        let budget = format!("it has {MEMORY_BYTES} (loop.allocate.memory-bytes)");
        for (call, named) in [
            ("CALL pin_stored('t', 'slow(id)')", budget.as_str()),
            ("CALL pin_stored('t')", budget.as_str()),
            ("CALL pin_stored('nowhere')", "unknown table nowhere"),
            ("CALL pin_stored('t', 'id + 1')", "id + 1 is not stored"),
            ("CALL unpin_stored()", "no procedure unpin_stored with 0 arguments"),
        ] {
            let error = spilling.rig.ask(call).await.unwrap_err();
            assert!(error.contains(named), "{call}: {error}");
        }
        let bytes = spilling.number("SELECT CAST(sum(bytes) AS BIGINT) FROM system.outputs").await;
        let error = spilling.rig.ask("CALL pin_stored('t')").await.unwrap_err();
        assert!(error.contains(&format!("n0 would hold {bytes} bytes")), "{error}");
        assert_eq!(spilling.number("SELECT count(*) FROM system.outputs WHERE pinned").await, 0);
    });
}

#[test]
fn what_finds_no_room_in_memory_comes_back_from_an_object_store() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let place = url::Url::from_directory_path(folder.path()).unwrap();
        // An object store takes longer to answer than a disk, until it was asked.
        let sleep = Duration::from_micros(500);
        let spilling = Spilling::start_at(place.as_str(), sleep, folder, 1 << 20).await;
        assert!(spilling.spill().folder().is_none());
        assert_eq!(spilling.evaluated().await, ROWS as u64);
        spilling.holds(6).await;
        for turn in 0..3 {
            assert_eq!(spilling.evaluated().await, 0, "turn {turn}");
            spilling.holds(6).await;
        }
        let own = || std::fs::read_dir(spilling.folder.path()).unwrap();
        let prefix = own().next().unwrap().unwrap().path();
        let (mut broken, names) = (0, std::fs::read_dir(&prefix).unwrap());
        for file in names.map(|name| name.unwrap().path()) {
            if file.extension().is_some() {
                std::fs::write(file, "no output").unwrap();
                broken += 1;
            }
        }
        assert!(broken >= 4, "{broken}");
        assert!(spilling.evaluated().await > 0, "what is broken is computed again, and right");
        spilling.rig.engine.clone().shutdown().await.unwrap();
        assert!(!prefix.join("alive").exists(), "all is removed at the end");
    });
}

#[test]
fn an_engine_spills_where_it_keeps_its_state_or_is_told_to() {
    runtime::run(async {
        let folder = tempfile::tempdir().unwrap();
        let start = async |keeps: bool, settings: &[(&str, &str)]| {
            let config = config(1, folder.path(), settings);
            let builder = Engine::builder().config(config).manual_ticks(true).keep_state(keeps);
            builder.start().await
        };
        assert!(start(false, &[]).await.unwrap().members().spill().is_none());
        let off = start(true, &[("limits.spill-bytes", "0")]).await.unwrap();
        assert!(off.members().spill().is_none());
        off.shutdown().await.unwrap();
        let base = folder.path().join("spill");
        std::fs::create_dir_all(base.join("left")).unwrap();
        std::fs::write(base.join("left/1.arrow"), "left by a process that was killed").unwrap();
        std::fs::write(base.join("left.lock"), "").unwrap();
        let on = start(true, &[]).await.unwrap();
        assert!(on.members().spill().unwrap().folder().unwrap().starts_with(&base));
        assert!(!base.join("left").exists(), "it is removed at the start");
        on.shutdown().await.unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = start(false, &[("spill-dir", file.to_str().unwrap())]).await.unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
        let error = start(false, &[("spill-dir", "teapot://bucket/x")]).await.unwrap_err();
        assert_eq!(error.code(), "FS-SPILL-2");
        assert!(error.to_string().contains("teapot://bucket/x"), "{error}");
    });
}

#[test]
fn the_folder_is_gone_with_the_engine() {
    runtime::run(async {
        let Spilling { rig, folder, .. } = Spilling::spilled().await;
        let own = rig.engine.members().spill().unwrap().folder().unwrap().to_owned();
        assert!(own.exists());
        rig.engine.clone().shutdown().await.unwrap();
        drop(rig);
        eventually("the folder is removed", || !own.exists()).await;
        drop(folder);
    });
}
