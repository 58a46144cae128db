//! What people let the loop do to tables, and how they find out why it did something.

use foreshard::EngineError;
use foreshard_policy::ids::PartitionId;

use crate::rig::Rig;
use crate::support::runtime;

/// Any load at all is too much for one replica, and a table rests for no time.
const HOT: [(&str, &str); 6] = [
    ("loop.feedback.watch-ticks", "0"),
    ("loop.lstm.enabled", "false"),
    ("loop.reshape.drop-below", "0"),
    ("loop.reshape.copy-above", "0.000001"),
    ("loop.reshape.dwell-ticks", "0"),
    ("loop.reshape.undone-ticks", "4"),
];

struct Controlled(Rig);

impl Controlled {
    /// Two nodes and the table `t` in two partitions, each on one of them.
    async fn start() -> Self {
        Self(Rig::start_with(2, 2, &HOT, vec![]).await)
    }

    async fn text(&self, sql: &str) -> String {
        let rows = self.0.ask(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        arrow::util::pretty::pretty_format_batches(&rows.batches).unwrap().to_string()
    }

    /// The cells of the only column.
    async fn cells(&self, sql: &str) -> Vec<String> {
        let text = self.text(sql).await;
        let rows = text.lines().skip(3).filter(|line| line.starts_with('|'));
        rows.map(|line| line.trim_matches(['|', ' ']).to_owned()).collect()
    }

    async fn number(&self, sql: &str) -> u64 {
        let cells = self.cells(sql).await;
        cells
            .first()
            .and_then(|cell| cell.parse().ok())
            .unwrap_or_else(|| panic!("{sql}: {cells:?}"))
    }

    async fn error(&self, sql: &str) -> EngineError {
        self.0.engine.sql(sql).await.map(|rows| panic!("{sql}: {rows:?}")).unwrap_err()
    }

    /// Ticks with calls of `f` on both partitions, to their end.
    async fn play(&self, ticks: usize) {
        for _ in 0..ticks {
            self.0.engine.members().drop_outputs(None, &part(0)).await.unwrap();
            self.0.engine.sql("SELECT f(x) FROM t").await.unwrap();
            self.0.engine.tick().await;
            self.0.engine.control_loop().settled().await;
        }
    }

    fn replicas(&self, ordinal: u32) -> usize {
        self.0.engine.placement().partitions[&part(ordinal)].holders.len()
    }
}

fn part(ordinal: u32) -> PartitionId {
    PartitionId::new("t", ordinal)
}

#[test]
fn suggested_steps_wait_are_approved_and_undone_and_one_statement_says_why_each_was_taken() {
    runtime::run(async {
        let it = Controlled::start().await;
        assert_eq!(it.number("CALL control('t', 'suggest')").await, 1);
        it.play(3).await;
        assert_eq!((it.replicas(0), it.replicas(1)), (1, 1));
        let waiting = "SELECT outcome FROM system.decisions WHERE kind = 'copy'";
        assert_eq!(it.cells(waiting).await, ["suggested"; 2], "each once, whatever ticks pass");

        let copy = "SELECT id FROM system.decisions WHERE target LIKE 'copy t/0 %'";
        let suggestion = it.number(copy).await;
        let approved = it.number(&format!("CALL approve({suggestion})")).await;
        it.0.engine.control_loop().settled().await;
        assert_eq!((it.replicas(0), it.replicas(1)), (2, 1));
        let undone = it.number(&format!("CALL undo({approved})")).await;
        it.0.engine.control_loop().settled().await;
        assert_eq!((it.replicas(0), it.replicas(1)), (1, 1));

        // The cause of any step, from the last one back to what the loop saw.
        let chain = it
            .text(&format!(
                "WITH RECURSIVE cause AS (
                   SELECT * FROM system.decisions WHERE id = {undone}
                   UNION ALL SELECT d.* FROM system.decisions d JOIN cause c ON d.id = c.follows)
                 SELECT decided_by, kind, reason LIKE 'hot: %' AS hot, inputs LIKE 'holders [n%' AS inputs,
                        forecast LIKE '%ms/s measured' AS forecast, follows FROM cause ORDER BY id"
            ))
            .await;
        let expected = [
            "| suggestion | copy | true  | true   | true     |         |".to_owned(),
            format!("| approval   | copy | true  | true   | true     | {suggestion:<7} |"),
            format!("| undo       | drop | false | true   | true     | {approved:<7} |"),
        ];
        for row in &expected {
            assert!(chain.contains(row.as_str()), "{row}\n{chain}");
        }
        let reason = format!("SELECT reason FROM system.decisions WHERE id = {undone}");
        assert_eq!(it.cells(&reason).await, [format!("somebody undid decision {approved}")]);
        let outcome = format!("SELECT outcome FROM system.decisions WHERE id = {suggestion}");
        let left = format!("left: approved, see decision {approved}");
        assert_eq!(it.cells(&outcome).await, [left]);
    });
}

#[test]
fn what_was_undone_is_not_done_again_before_its_time() {
    runtime::run(async {
        let it = Controlled::start().await;
        it.play(2).await;
        assert_eq!((it.replicas(0), it.replicas(1)), (2, 2));
        let copy = "SELECT id FROM system.decisions WHERE target LIKE 'copy t/0 %'";
        let copied = it.number(copy).await;
        it.number(&format!("CALL undo({copied})")).await;
        it.0.engine.control_loop().settled().await;
        it.play(3).await;
        assert_eq!((it.replicas(0), it.replicas(1)), (1, 2));
        let error = it.error(&format!("CALL undo({copied})")).await;
        assert_eq!(error.code(), "FS-CONTROL-5", "{error}");
        it.play(2).await;
        assert_eq!((it.replicas(0), it.replicas(1)), (2, 2));
    });
}

#[test]
fn nothing_of_a_frozen_or_observed_table_changes_until_people_let_it() {
    runtime::run(async {
        let it = Controlled::start().await;
        let shown = "SELECT control || ' ' || is_default || ' ' || frozen FROM system.controls
                     WHERE table_name = 't'";
        assert_eq!(it.cells(shown).await, ["auto true false"]);
        assert_eq!(it.number("CALL freeze('t')").await, 1);
        assert_eq!(it.number("CALL freeze('t')").await, 0);
        assert_eq!(it.cells(shown).await, ["auto true true"]);
        it.play(3).await;
        assert_eq!(it.number("SELECT count(*) FROM system.decisions").await, 0);
        assert_eq!(it.number("CALL control('t', 'observe')").await, 1);
        assert_eq!(it.number("CALL unfreeze('t')").await, 1);
        it.play(3).await;
        assert_eq!(it.number("SELECT count(*) FROM system.decisions").await, 0);
        assert!(it.number("SELECT count(*) FROM system.calls").await > 0, "it is measured");
        assert_eq!(it.number("CALL control('t', 'default')").await, 1);
        it.play(2).await;
        assert_eq!((it.replicas(0), it.replicas(1)), (2, 2));
        // What is frozen is not undone either, and a new table of this name is another one.
        it.number("CALL freeze('t')").await;
        let error = it.error("CALL undo(1)").await;
        assert_eq!(error.to_string(), "t is frozen; CALL unfreeze('t') first");
        it.0.engine.sql("DROP TABLE t").await.unwrap();
        it.0.engine.sql("CREATE TABLE t AS VALUES (1)").await.unwrap();
        assert_eq!(it.cells(shown).await, ["auto true false"]);
    });
}

#[test]
fn what_people_ask_of_the_loop_that_cannot_be_says_why() {
    runtime::run(async {
        let it = Controlled::start().await;
        it.play(2).await;
        for (sql, code, message) in [
            ("control('tt', 'auto')", "FS-SQL-2", "unknown table tt"),
            (
                "control('t', 'manual')",
                "FS-CONTROL-1",
                "it must be auto, suggest, observe, or default",
            ),
            ("freeze('tt')", "FS-SQL-2", "unknown table tt"),
            ("approve(99)", "FS-CONTROL-2", "there is no decision 99"),
            (
                "approve(1)",
                "FS-CONTROL-3",
                "decision 1 does not wait for approval: it is done: 0 rows",
            ),
            ("undo(99)", "FS-CONTROL-2", "there is no decision 99"),
            ("undo('soon')", "FS-SQL-8", "must be an id of system.decisions, not \"soon\""),
            ("undo()", "FS-SQL-8", "CALL undo(decision)"),
        ] {
            let error = it.error(&format!("CALL {sql}")).await;
            assert_eq!(error.code(), code, "{sql}: {error}");
            assert!(error.to_string().contains(message), "{sql}: {error}");
        }
    });
}

/// All that a plan could have changed.
async fn everything(it: &Controlled) -> String {
    let board = it.0.engine.control_loop().board().clone();
    let decisions = it.text("SELECT * FROM system.decisions").await;
    format!(
        "{:?}\n{:?}\n{:?}\n{decisions}",
        it.0.engine.placement(),
        board.reshaping.load(),
        board.allocating.load()
    )
}

#[test]
fn what_would_be_planned_otherwise_is_a_table_and_changes_nothing() {
    runtime::run(async {
        let mut settings = HOT.to_vec();
        settings.extend([("loop.mode", "forecast"), ("loop.precompute.budget-share", "0")]);
        let it = Controlled(Rig::start_with(2, 2, &settings, vec![]).await);
        it.number("CALL control('t', 'suggest')").await;
        it.play(3).await;
        let before = everything(&it).await;
        let of = |what: &str| format!("SELECT decided_by || ' ' || target FROM what_if({what})");
        let now = it.cells(&of("")).await;
        assert_eq!(now.len(), 2, "{now:?}");
        assert!(now.iter().all(|step| step.starts_with("suggestion copy t/")), "{now:?}");
        // One node only: what the other one holds must go there at once, whoever approves.
        let one = it.cells(&of("'nodes', 1")).await;
        let moved = ["loop copy t/1 n1 -> n0".to_owned()];
        assert_eq!(one, moved);
        let why = "SELECT reason FROM what_if('nodes', 1, 'budget', 0.25, 'memory', 1073741824)";
        assert_eq!(it.cells(why).await, ["n1 is draining"]);
        let factor = "SELECT max(expected_benefit_ns) FROM what_if('factor', 100, 'function', 'f')";
        let usual = "SELECT max(expected_benefit_ns) FROM what_if()";
        let more = it.cells(&format!("SELECT ({factor}) > ({usual})")).await;
        assert_eq!(more, ["true"]);
        assert_eq!(everything(&it).await, before);
    });
}

#[test]
fn what_cannot_be_supposed_is_refused_with_the_name_and_its_bound() {
    runtime::run(async {
        let it = Controlled::start().await;
        it.play(1).await;
        for (arguments, code, message) in [
            ("'nodes'", "FS-SQL-8", "a name has no value"),
            ("'node', 2", "FS-SQL-8", "there is no \"node\""),
            ("2, 'nodes'", "FS-SQL-5", "the name of an argument of what_if must be one of nodes"),
            ("'nodes', 'two'", "FS-SQL-5", "the nodes argument of what_if must be a whole number"),
            ("'nodes', 0", "FS-CONFIG-1", "nodes is 0; it must be 1 to 100000"),
            ("'budget', 2", "FS-CONFIG-1", "precompute.budget-share is 2; it must be 0 to 1"),
            ("'factor', -1.5", "FS-CONFIG-1", "factor is -1.5; it must be 0.001 to 1000"),
            ("'function', 'f'", "FS-SQL-8", "a function needs a factor"),
            ("'factor', 2, 'function', 'ff'", "FS-SQL-4", "unknown function ff"),
        ] {
            let error = it.error(&format!("SELECT * FROM what_if({arguments})")).await;
            assert_eq!(error.code(), code, "{arguments}: {error}");
            assert!(error.to_string().contains(message), "{arguments}: {error}");
        }
    });
}

#[test]
fn copies_that_would_move_too_much_within_the_hour_wait_and_say_so() {
    runtime::run(async {
        let mut settings = HOT.to_vec();
        settings.push(("loop.reshape.moved-bytes-per-hour-max", "100"));
        let it = Controlled(Rig::start_with(2, 2, &settings, vec![]).await);
        it.play(4).await;
        assert_eq!((it.replicas(0), it.replicas(1)), (1, 1));
        let why =
            "SELECT outcome || ': ' || reason FROM system.decisions WHERE decided_by = 'limit'";
        let rows = it.cells(why).await;
        assert_eq!(rows.len(), 2, "{rows:?}");
        for row in rows {
            assert!(
                row.starts_with("waiting: ") && row.contains("100 of the 100 of an hour"),
                "{row}"
            );
        }
    });
}
