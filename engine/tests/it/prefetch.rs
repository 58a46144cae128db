//! Rows of tables in files come into memory before they are asked for, go again, and answers stay the same; and
//! tables share what nodes have.

use std::sync::atomic::Ordering;

use foreshard::{Engine, EngineError};
use foreshard_actors::ports::{Cluster, Outcome};
use foreshard_policy::cluster::{RowsView, Step};
use foreshard_policy::ids::{Epoch, NodeId, PartitionId};

use crate::rig::{ROWS, Rig, batch, config, eventually, hashed, schema};
use crate::support::functions::of_int;
use crate::support::runtime;

const NODE: NodeId = NodeId(0);

/// Ticks after which a forecast of calls that are the same in each tick is trusted.
const TRUSTED_AFTER: usize = 40;

/// One node with the table `kept` in two partitions of files, the table `t` in memory, and the function `f`.
struct Filed {
    engine: Engine,
    folder: tempfile::TempDir,
}

fn part(table: &str) -> PartitionId {
    PartitionId::new(table, 0)
}

impl Filed {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = Self::engine(folder.path()).await;
        engine.create_memory_table("t", schema(), hashed(2), vec![]).await.unwrap();
        engine.create_managed_table("kept", "", schema(), hashed(2)).await.unwrap();
        for (table, rows) in [("t", 0..300), ("kept", 0..300), ("kept", 300..900)] {
            engine.append(table, vec![batch(rows)]).await.unwrap();
        }
        Self { engine, folder }
    }

    async fn engine(folder: &std::path::Path) -> Engine {
        let settings = [
            ("loop.mode", "forecast"),
            ("loop.lstm.enabled", "false"),
            ("loop.precompute.budget-share", "0"),
            ("loop.reshape.undone-ticks", "3"),
        ];
        let (card, udf, rows) = of_int("f", |value| Ok(Some(value + 1)));
        rows.store(0, Ordering::Relaxed);
        let builder = Engine::builder().config(config(1, folder, &settings)).manual_ticks(true);
        builder.keep_state(true).function(card, udf).start().await.unwrap()
    }

    async fn text(&self, sql: &str) -> String {
        let rows = self.engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string()
    }

    async fn error(&self, sql: &str) -> EngineError {
        self.engine.sql(sql).await.map(|rows| panic!("{sql}: {rows:?}")).unwrap_err()
    }

    /// Answers that need the rows of `kept`.
    async fn answers(&self) -> Vec<String> {
        let mut answers = vec![];
        for sql in [
            "SELECT count(*), sum(x), min(id), max(y) FROM kept",
            "SELECT id, f(x) FROM kept WHERE y = 3 ORDER BY id",
            "SELECT k.id, t.x FROM kept k JOIN t ON k.id = t.id WHERE k.y = 1 ORDER BY 1",
        ] {
            answers.push(self.text(sql).await);
        }
        answers
    }

    fn rows(&self) -> RowsView {
        self.engine.placement().rows[&(part("kept"), NODE)]
    }

    async fn carry_out(&self, step: Step) -> u64 {
        match self.engine.members().carry_out(Epoch::default(), step.clone()).await {
            Outcome::Done { bytes, .. } => bytes,
            failed => panic!("{step}: {failed:?}"),
        }
    }

    fn release() -> Step {
        Step::Release { partition: part("kept"), node: NODE }
    }

    fn prefetch() -> Step {
        Step::Prefetch { partition: part("kept"), node: NODE }
    }

    /// Ticks in each of which `f` is called on all of `kept`, to their end.
    async fn play(&self, ticks: usize) {
        for _ in 0..ticks {
            self.engine.sql("SELECT f(x) FROM kept").await.unwrap();
            self.engine.tick().await;
            self.engine.control_loop().settled().await;
        }
    }
}

#[test]
fn rows_go_and_come_back_and_answers_stay_the_same() {
    runtime::run(async {
        let it = Filed::start().await;
        let right = it.answers().await;
        let whole = it.rows();
        assert!(whole.bytes > 0 && whole.bytes_missing == 0, "{whole:?}: appended rows are there");
        let memory = it.engine.placement().nodes[&NODE].memory_bytes;
        assert_eq!(it.carry_out(Filed::release()).await, whole.bytes);
        let gone = it.rows();
        assert_eq!((gone.bytes, gone.bytes_missing), (0, whole.bytes));
        assert_eq!(it.engine.placement().nodes[&NODE].memory_bytes, memory - whole.bytes);
        assert_eq!(it.answers().await, right);
        assert_eq!(it.carry_out(Filed::prefetch()).await, whole.bytes);
        let back = it.rows();
        assert_eq!((back.bytes, back.bytes_missing), (whole.bytes, 0));
        assert_eq!(it.answers().await, right);
        assert_eq!(it.carry_out(Filed::prefetch()).await, 0, "nothing is missing");
        let of_memory = (part("t"), NODE);
        assert!(!it.engine.placement().rows.contains_key(&of_memory), "rows in memory are there");
    });
}

#[test]
fn rows_that_do_not_fit_stay_in_files_and_the_step_says_so() {
    runtime::run(async {
        let it = Filed::start().await;
        it.carry_out(Filed::release()).await;
        let right = it.answers().await;
        let state = it.engine.members().local_states()[&NODE].clone();
        state.set_budget(2, state.memory_bytes() + 100);
        let outcome = it.engine.members().carry_out(Epoch::default(), Filed::prefetch()).await;
        let Outcome::Failed { code, reason } = outcome else { panic!("{outcome:?}") };
        assert_eq!(code, "FS-ROWS-1");
        assert!(reason.contains("bytes are taken"), "{reason}");
        assert_eq!(it.answers().await, right);
    });
}

#[test]
fn the_loop_reads_ahead_what_calls_are_expected_on_says_why_and_takes_it_back() {
    runtime::run(async {
        let it = Filed::start().await;
        it.play(TRUSTED_AFTER).await;
        let right = it.answers().await;
        it.carry_out(Filed::release()).await;
        it.play(2).await;
        assert_eq!(
            it.rows().bytes_missing,
            0,
            "{}",
            it.text("SELECT * FROM system.decisions").await
        );
        let why = "SELECT kind, reason FROM system.decisions WHERE kind = 'prefetch'";
        let why = it.text(why).await;
        assert!(
            why.contains("calls expected, the first within") && why.contains("from files"),
            "{why}"
        );
        let shown = "SELECT row_bytes > 0, row_bytes_in_files FROM system.replicas
                     WHERE table_name = 'kept' AND partition = 0";
        let shown = it.text(shown).await;
        assert!(shown.contains("| true ") && shown.contains("| 0 "), "{shown}");
        assert_eq!(it.answers().await, right);

        let id = "SELECT max(id) AS id FROM system.decisions WHERE kind = 'prefetch'";
        let id = it.text(id).await;
        let id: u64 = id.lines().nth(3).unwrap().trim_matches(['|', ' ']).parse().unwrap();
        it.text(&format!("CALL undo({id})")).await;
        it.engine.control_loop().settled().await;
        assert!(it.rows().bytes_missing > 0);
        it.play(1).await;
        assert!(it.rows().bytes_missing > 0, "it is not read again at once");
        assert_eq!(it.answers().await, right);
    });
}

#[test]
fn where_people_are_asked_nothing_is_read_before_they_say_yes() {
    runtime::run(async {
        let it = Filed::start().await;
        it.play(TRUSTED_AFTER).await;
        it.text("CALL control('kept', 'suggest')").await;
        it.carry_out(Filed::release()).await;
        it.play(2).await;
        assert!(it.rows().bytes_missing > 0);
        let what = "SELECT outcome FROM system.decisions WHERE kind = 'prefetch'";
        let what = it.text(what).await;
        assert!(what.contains("suggested"), "{what}");
    });
}

#[test]
fn people_give_tables_budgets_which_are_shown_and_kept() {
    runtime::run(async {
        let it = Filed::start().await;
        it.play(3).await;
        let shares = |limit: &str| {
            format!(
                "SELECT table_name, weight, share_limit, share < 0.2 AS little, share > 0.8 AS much,
                        load_ms_per_s > 0 AS loaded
                 FROM system.budgets WHERE share_limit = {limit} ORDER BY 1"
            )
        };
        let before = it.text(&shares("1")).await;
        for row in [
            "| kept       | 1.0    | 1.0         | false  | true  | true   |",
            "| t          | 1.0    | 1.0         | true   | false | false  |",
        ] {
            assert!(before.contains(row), "{before}");
        }
        let changed = it.text("CALL budget('t', 'weight', 50)").await;
        assert!(changed.contains("| 1 "), "{changed}");
        it.text("CALL budget('t', 'limit', 0.5)").await;
        let error = it.error("CALL budget('t', 'weight', 0)").await;
        assert!(
            error.to_string().contains("budget weight is 0; it must be 0.01 to 100"),
            "{error}"
        );
        let error = it.error("CALL budget('t', 'depth', 1)").await;
        assert!(error.to_string().contains("weight or limit"), "{error}");
        assert_eq!(it.error("CALL budget('nowhere', 'weight', 1)").await.code(), "FS-SQL-2");
        let Filed { engine, folder } = it;
        engine.shutdown().await.unwrap();
        let engine = Filed::engine(folder.path()).await;
        engine.create_memory_table("t", schema(), hashed(2), vec![]).await.unwrap();
        let it = Filed { engine, folder };
        let after = it.text(&shares("0.5")).await;
        assert!(after.contains("| t          | 50.0   | 0.5         |"), "{after}");
        it.text("CALL budget('t', 'limit', 'default')").await;
        assert!(it.text(&shares("1")).await.contains("| t          | 50.0   | 1.0         |"));
    });
}

#[test]
fn a_table_with_less_than_its_part_of_memory_gets_it_from_one_with_more() {
    runtime::run(async {
        let rig = Rig::start(1, 1).await;
        rig.engine.create_memory_table("u", schema(), hashed(1), vec![]).await.unwrap();
        rig.engine.append("u", vec![batch(0..ROWS)]).await.unwrap();
        let stored = |table: &str| -> u64 {
            let outputs = rig.engine.placement().outputs;
            let of = outputs.iter().filter(|((_, partition), _)| &*partition.table == table);
            of.map(|(_, output)| output.bytes).sum()
        };
        for sql in ["SELECT f(x), f(id), f(y) FROM t", "SELECT f(x) FROM u"] {
            rig.engine.sql(sql).await.unwrap();
            rig.settle().await;
        }
        // By their calls alone the part of the second table might be just too small for its output.
        rig.engine.sql("CALL budget('u', 'weight', 100)").await.unwrap();
        // The loop says which part each table gets. It says how much memory the node has, too, so no tick is
        // closed once that is set below.
        rig.engine.tick().await;
        let part = || rig.nodes()[0].shares().of("u").part;
        eventually("the node knows the parts", || part() > 0.4).await;
        let (all, of_u) = (stored("t"), stored("u"));
        assert!(of_u > 0 && of_u < all / 2, "{of_u} of {all}");
        rig.engine.sql("CALL drop_stored('u')").await.unwrap();
        let node = &rig.nodes()[0];
        // As much as the outputs of one table take; the rows are there anyway.
        node.set_budget(2, all);
        for _ in 0..200 {
            for sql in ["SELECT f(x), f(id), f(y) FROM t", "SELECT f(x) FROM u"] {
                rig.engine.sql(sql).await.unwrap();
            }
            rig.settle().await;
            if stored("u") > 0 {
                break;
            }
        }
        let (t, u) = (stored("t"), stored("u"));
        assert!(u > 0 && t + u <= all, "{t} and {u} of {all}");
        // An output goes as a whole, and there are eighteen.
        assert!(t + all / 9 >= all / 2, "{t} of {all}: it keeps its part");
    });
}
