//! One play: an engine and plain DataFusion with the same tables; rounds of questions, and a change of
//! both between two rounds.
//!
//! A play is made from its seed alone. Within a round every question is put, and then every one again,
//! while a random controller copies, moves, drops and precomputes. So the second answer comes from what
//! the first left behind, and so does the first one from earlier rounds, where the change let it stand: some questions
//! are put again in later rounds.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use arrow::array::RecordBatch;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::SchemaRef;
use arrow::util::pretty::pretty_format_batches;
use foreshard::{Engine, Session};
use foreshard_policy::ids::{ExpressionId, PartitionId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::exact::changes::{change, setting_of_both, setting_of_ours, table};
use crate::exact::controller::step;
use crate::exact::data::{samples, twin};
use crate::exact::functions;
use crate::exact::layouts::Held;
use crate::exact::oracle::{Answer, Plain, Rows, Verdict};
use crate::exact::questions::{Question, Questions};
use crate::exact::redefined::Redefined;
use crate::exact::setups::{SHAPES, Setup, ask_in, plan, start_with};
use crate::exact::stored::{Happened, Stored};

/// Rounds of a play.
pub const ROUNDS: u64 = 25;

/// Questions of a round.
pub const QUESTIONS: u64 = 10;

/// Kinds of plays: one per shape of an engine, and one with little memory for queries.
pub const KINDS: u64 = SHAPES.len() as u64 + 1;

/// How many of the questions are of earlier rounds, once there are some.
const EARLIER_SHARE: f64 = 0.3;

/// Seed of the tables.
const DATA_SEED: u64 = 7;

/// Bytes that queries have for sorts and groups where they have little.
const QUERY_BYTES_SMALL: &str = "3000000";

/// Sorts more bytes than that.
const SPILLING: &str = "SELECT count(*) AS c0, sum(r * id % 1000) AS c1, max(shown) AS c2 FROM \
    (SELECT a.id, b.k, shown(a.f) AS shown, a.t, row_number() OVER (ORDER BY a.t DESC, b.k, a.id) AS r \
     FROM fact a CROSS JOIN dim b WHERE b.k < 40)";

/// Bytes of a node for what is stored, where that is little.
const STORED_BYTES_SMALL: u64 = 96 << 10;

/// What a play came to; those of several plays are added up.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Counts by what was counted.
    pub counts: BTreeMap<&'static str, u64>,
    /// Mismatches, each with how to see it again.
    pub mismatches: Vec<String>,
}

impl Tally {
    /// Counts.
    pub fn add(&mut self, what: &'static str, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }

    /// What was counted.
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// Adds another play's.
    pub fn merge(&mut self, other: Self) {
        for (what, count) in other.counts {
            self.add(what, count);
        }
        self.mismatches.extend(other.mismatches);
    }
}

/// The two sides, and what happened to them so far.
struct Play {
    seed: u64,
    rng: StdRng,
    setup: Setup,
    session: Session,
    plain: Plain,
    functions: Redefined,
    questions: Questions,
    tables: BTreeMap<&'static str, (SchemaRef, usize)>,
    history: Vec<String>,
    /// What was SET of settings of DataFusion that change no result.
    settings: BTreeMap<String, String>,
    /// Questions of earlier rounds.
    earlier: Vec<Question>,
    tally: Tally,
}

/// Plays the play of `seed`, with at most `questions` questions.
///
/// # Errors
/// If a side cannot be started or stopped.
pub async fn play(seed: u64, questions: u64) -> Result<Tally> {
    let mut play = Play::start(seed).await?;
    let mut left = questions;
    for round in 0..ROUNDS {
        if left == 0 {
            break;
        }
        if round > 0
            && let Err(error) = play.change().await
        {
            // From here on the sides have other rows.
            let report = format!("{}\na change fails: {error:#}", play.told());
            play.tally.mismatches.push(report);
            break;
        }
        let now = left.min(QUESTIONS);
        play.round(now).await?;
        left -= now;
    }
    if play.has_little_memory() {
        play.spill().await?;
    }
    play.setup.started.engine.shutdown().await?;
    Ok(play.tally)
}

impl Play {
    async fn start(seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tables = samples(DATA_SEED)?;
        tables.push(twin(DATA_SEED)?);
        let kind = (seed % KINDS) as usize;
        let setup = match SHAPES.get(kind) {
            Some(shape) => start_with(*shape, &tables, &[]).await?,
            None => start_with((2, 1), &tables, &[("memory-bytes", QUERY_BYTES_SMALL)]).await?,
        };
        let session = setup.started.engine.session();
        if kind >= SHAPES.len() {
            let sql = "SET datafusion.execution.sort_spill_reservation_bytes = 65536";
            session.sql(sql).await?;
        }
        let plain = Plain::new(&tables, &functions::all()?.0)?;
        let questions = Questions::new(seed, &mut rng);
        let tables = tables
            .iter()
            .map(|table| (table.name, (SchemaRef::clone(&table.schema), rows(&table.segments))));
        let tables = tables.collect();
        let functions = Redefined::default();
        let (history, earlier) = (vec![], vec![]);
        let (settings, tally) = (BTreeMap::new(), Tally::default());
        let play = Self {
            seed,
            rng,
            setup,
            session,
            plain,
            functions,
            questions,
            tables,
            history,
            settings,
            earlier,
            tally,
        };
        for index in 0..Redefined::COUNT {
            play.define(index)?;
        }
        Ok(play)
    }

    fn engine(&self) -> &Engine {
        &self.setup.started.engine
    }

    fn has_little_memory(&self) -> bool {
        self.seed % KINDS >= SHAPES.len() as u64
    }

    fn told(&self) -> String {
        format!("play {} on {}\n{}", self.seed, self.setup.name, self.history.join("\n"))
    }

    fn define(&self, index: usize) -> Result<()> {
        let (card, udf) = self.functions.definition(index);
        self.plain.define(&udf);
        self.engine().register_function(card, udf)?;
        Ok(())
    }

    /// A new question, or one of an earlier round: what is stored for it may be of rows that have changed, or
    /// have lost their neighbours.
    fn next_question(&mut self) -> Question {
        let is_earlier = self.rng.random_bool(EARLIER_SHARE);
        if let Some(earlier) = self.earlier.choose(&mut self.rng).filter(|_| is_earlier) {
            self.tally.add("questions of earlier rounds", 1);
            return earlier.clone();
        }
        self.questions.next(&mut self.rng)
    }

    /// Puts some questions, all of them twice.
    async fn round(&mut self, count: u64) -> Result<()> {
        let mut asked = vec![];
        for _ in 0..count {
            let question = self.next_question();
            let plain = self.plain.answer(&question.sql).await;
            self.tally.add("queries", 1);
            self.tally.add("queries that plain answers", u64::from(plain.is_ok()));
            let happened = self.put(&question, &plain).await?;
            asked.push((question, plain, happened));
        }
        self.settle().await?;
        for (question, plain, first) in asked {
            let second = self.put(&question, &plain).await?;
            let (outputs, partials) = (
                first.outputs_read || second.outputs_read,
                first.partials_read || second.partials_read,
            );
            self.tally.add("queries with stored outputs", u64::from(outputs));
            self.tally.add("queries with stored partials", u64::from(partials));
            let groups = first.groups_used || second.groups_used;
            self.tally.add("queries with kept groups", u64::from(groups));
            let anything = outputs || partials || groups;
            self.tally.add("queries with anything stored", u64::from(anything));
            self.earlier.push(question);
        }
        Ok(())
    }

    /// Asks what sorts more than there is memory for, and counts the times that the sort spilled.
    async fn spill(&mut self) -> Result<()> {
        // Merging holds a batch of each run.
        for setting in ["batch_size = 512", "target_partitions = 1"] {
            self.session.sql(&format!("SET datafusion.execution.{setting}")).await?;
        }
        let question = Question { sql: SPILLING.to_owned(), ordered: false };
        let plain = self.plain.answer(SPILLING).await;
        self.put(&question, &plain).await?;
        self.put(&question, &plain).await?;
        let sql = format!("EXPLAIN ANALYZE {SPILLING}");
        let Ok(plan) = ask_in(&self.session, &sql).await else { return Ok(()) };
        let text = pretty_format_batches(&plan.batches)?.to_string();
        let counts = text.split("spill_count=").skip(1).map(|rest| {
            let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
            rest[..digits].parse().unwrap_or(0)
        });
        self.tally.add("spills", counts.sum());
        Ok(())
    }

    /// Puts one question to the engine, and judges its answer.
    async fn put(&mut self, question: &Question, plain: &Answer) -> Result<Happened> {
        let before = Stored::look(self.engine());
        let (ours, step) = if self.rng.random_bool(0.25) {
            let mut rng = StdRng::seed_from_u64(self.rng.random());
            let engine = self.engine().clone();
            tokio::join!(ask_in(&self.session, &question.sql), step(&engine, &mut rng))
        } else {
            (ask_in(&self.session, &question.sql).await, "nothing")
        };
        if step != "nothing" {
            self.history.push(format!("-- meanwhile: {step}"));
            self.tally.add("steps of the controller", 1);
            self.tally.add("copies and moves", u64::from(matches!(step, "copy" | "move")));
            self.tally.add("precomputes", u64::from(step == "precompute all"));
        }
        let happened = Stored::look(self.engine()).since(&before);
        if step == "nothing" {
            self.tally.add("evictions", happened.gone);
        }
        self.history.push(question.sql.clone());
        let verdict = self.plain.judge(&question.sql, question.ordered, plain, &ours).await;
        let is_excused = verdict.is_err() && self.is_of_the_layout(question, &ours).await;
        let verdict = if is_excused { Ok(Verdict::PlainVaries) } else { verdict };
        let name = match (&verdict, &ours) {
            (Ok(Verdict::Same), _) => "same answers",
            (Ok(Verdict::BothFail), _) => "both fail",
            (Ok(Verdict::OnlyPlainFails), _) => "only plain fails",
            (Ok(Verdict::PlainVaries), _) => "plain varies with its layout",
            (Err(_), Err(error)) if is_out_of_memory(error) => "too little memory",
            (Err(difference), _) => {
                let plan = plan(&self.session, &question.sql).await;
                let report = format!("{}\n{difference}\n{plan}", self.told());
                self.tally.mismatches.push(report);
                "mismatches"
            }
        };
        self.tally.add(name, 1);
        Ok(happened)
    }

    /// Whether plain DataFusion gives this answer over the rows as the engine holds them, with its settings.
    async fn is_of_the_layout(&self, question: &Question, ours: &Answer) -> bool {
        let names = self.tables.keys().copied().collect();
        let held = Held::read(self.engine(), names, &self.settings).await;
        let Ok(mut held) = held else { return false };
        held.is_short_of_memory = self.has_little_memory();
        let like = self.plain.context();
        let layout = held.excuse(like, &question.sql, question.ordered, ours).await;
        if let Some(layout) = &layout {
            let (seed, sql) = (self.seed, &question.sql);
            eprintln!("play {seed}: plain DataFusion answers so too, over {layout}: {sql}");
        }
        layout.is_some()
    }

    /// Waits until every partition actor has handled what it was sent before.
    async fn settle(&self) -> Result<()> {
        let partitions: Vec<PartitionId> =
            self.engine().placement().partitions.into_keys().collect();
        for partition in partitions {
            let nothing = Some(ExpressionId(0));
            self.engine().members().drop_outputs(nothing, &partition).await?;
        }
        Ok(())
    }

    /// Changes both sides.
    async fn change(&mut self) -> Result<()> {
        match self.rng.random_range(0..100) {
            0..35 => self.change_rows().await?,
            35..60 => self.redefine()?,
            60..80 => self.change_setting().await?,
            80..86 => self.drop_stored().await?,
            86..93 => self.precompute().await,
            _ => self.change_budget(),
        }
        // Layouts of the engine change now and then, whatever else does.
        if self.rng.random_bool(0.3) {
            let sql = setting_of_ours(&mut self.rng);
            self.history.push(sql.clone());
            self.session.sql(&sql).await?;
            if let Some((key, value)) = sql["SET ".len()..].split_once(" = ")
                && key.starts_with("datafusion.")
            {
                self.settings.insert(key.to_owned(), value.to_owned());
            }
            self.tally.add("settings changed", 1);
        }
        Ok(())
    }

    async fn change_rows(&mut self) -> Result<()> {
        let name = table(&mut self.rng);
        let (schema, rows_now) = self.tables[name].clone();
        let change = change(&mut self.rng, name, rows_now);
        self.history.push(change.statement.clone());
        let Ok(after) = self.plain.answer(&change.rows_after).await else {
            // Such as NaN beside a number that a setting made a decimal: there is nothing to compare.
            self.tally.add("changes that plain refuses", 1);
            return Ok(());
        };
        let segments = as_table(&schema, &after)?;
        self.plain.set_rows(name, &schema, &segments)?;
        let done = ask_in(&self.session, &change.statement).await;
        done.map_err(|error| anyhow!("{error} in {}", change.statement))?;
        self.tables.insert(name, (schema, rows(&segments)));
        self.tally.add("statements that change rows", 1);
        Ok(())
    }

    fn redefine(&mut self) -> Result<()> {
        let index = self.rng.random_range(0..Redefined::COUNT);
        let name = self.functions.redefine(index);
        self.history.push(format!("-- {name} is defined anew"));
        self.tally.add("functions defined anew", 1);
        self.define(index)
    }

    async fn change_setting(&mut self) -> Result<()> {
        let sql = setting_of_both(&mut self.rng);
        self.history.push(sql.clone());
        self.plain.set(&sql).await?;
        self.session.sql(&sql).await?;
        self.tally.add("settings changed", 1);
        Ok(())
    }

    async fn drop_stored(&mut self) -> Result<()> {
        let sql = ["CALL drop_stored()", "CALL drop_stored('fact')"][self.rng.random_range(0..2)];
        self.history.push(sql.to_owned());
        self.session.sql(sql).await?;
        self.tally.add("all thrown away", 1);
        Ok(())
    }

    /// Computes a call ahead by hand. Calls that the engine does not store are refused.
    async fn precompute(&mut self) {
        let name = ["fact", "twin"][self.rng.random_range(0..2)];
        let call = self.questions.call_over(name, &mut self.rng);
        let sql = format!("CALL precompute('{name}', '{}')", call.replace('\'', "''"));
        self.history.push(sql.clone());
        let done = self.session.sql(&sql).await;
        self.tally.add("precomputes", u64::from(done.is_ok()));
    }

    /// Takes memory for stored values away, or gives it back.
    fn change_budget(&mut self) {
        for (id, node) in self.engine().members().local_states() {
            let bytes = if self.rng.random_bool(0.7) { STORED_BYTES_SMALL } else { 1 << 30 };
            node.set_budget(node.permits_max(), bytes);
            self.history.push(format!("-- node {id} may store {bytes} bytes"));
        }
        self.tally.add("budgets changed", 1);
    }
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// An answer as the rows of a table, in three batches.
fn as_table(schema: &SchemaRef, answer: &Rows) -> Result<Vec<RecordBatch>> {
    let all = concat_batches(&answer.schema, &answer.batches)?;
    let columns = all.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| cast(column, field.data_type()));
    let all = RecordBatch::try_new(SchemaRef::clone(schema), columns.collect::<Result<_, _>>()?)?;
    let each = all.num_rows().div_ceil(3);
    let starts = (0..all.num_rows()).step_by(each.max(1));
    Ok(starts.map(|start| all.slice(start, each.min(all.num_rows() - start))).collect())
}

/// Whether the engine refused for want of memory, which plain DataFusion has more of.
fn is_out_of_memory(error: &str) -> bool {
    error.contains("memory")
}
