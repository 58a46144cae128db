//! Puts the records of one file to plain DataFusion and to ours, and ours twice.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use sqllogictest::{Record, RecordOutput, Runner, parse_file, strict_column_validator};

use super::corpus::Corpus;
use super::database::{Arrangement, BROKEN, Database, Failure};
use super::judge::{Purpose, in_any_order, in_order, made, manner, mentions, normal, purpose};
use super::values::Letter;

/// Label that the reference runner gives itself; files have records for it alone.
const LABEL: &str = "Datafusion";

/// A file that takes longer hangs.
const FILE_TIME_MAX: Duration = Duration::from_secs(400);

/// Stack of the threads that plan queries; debug builds need more than the system's default.
const STACK_BYTES: usize = 32 << 20;

/// What came of a record on one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was not put.
    #[default]
    NotRun,
    /// As expected.
    Passed,
    /// As expected but for the text of the error: its code is that of plain's error.
    PassedByCode,
    /// Not as expected, and how.
    Failed(String),
}

impl Verdict {
    /// Whether it came as expected.
    pub(super) fn passed(&self) -> bool {
        matches!(self, Self::Passed | Self::PassedByCode)
    }
}

/// A record of a file and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Line of the file that has it.
    pub(super) line: u32,
    /// Its SQL.
    pub(super) sql: String,
    /// What it is there for.
    pub(super) purpose: Purpose,
    /// On plain DataFusion.
    pub(super) plain: Verdict,
    /// On ours.
    pub(super) ours: Verdict,
    /// On ours when it was put again at once.
    pub(super) again: Verdict,
    /// Plain itself answers otherwise if the rows of its tables are in another order.
    pub(super) varies: bool,
    /// It reads a table over files that ours refuses to make.
    pub(super) refused: bool,
    /// What plain failed with, as it should.
    failure: Option<Failure>,
}

/// Number of records of a file that compare rows or want an error.
///
/// # Errors
/// If the file cannot be parsed.
pub(super) fn count(corpus: &Corpus, file: &str) -> Result<u64> {
    let found = blank(&records(corpus, file)?);
    let counts = |found: &&Found| matches!(found.purpose, Purpose::Rows | Purpose::Error);
    Ok(found.iter().filter(counts).count() as u64)
}

fn records(corpus: &Corpus, file: &str) -> Result<Vec<Record<Letter>>> {
    let mut records = parse_file(corpus.path(file)).map_err(|error| anyhow!("{error}"))?;
    if let Some(halt) = records.iter().position(|record| matches!(record, Record::Halt { .. })) {
        records.truncate(halt);
    }
    Ok(records)
}

fn blank(records: &[Record<Letter>]) -> Vec<Found> {
    let blank = |(sql, line, purpose): (&str, u32, Purpose)| Found {
        line,
        sql: sql.to_owned(),
        purpose,
        plain: Verdict::default(),
        ours: Verdict::default(),
        again: Verdict::default(),
        varies: false,
        refused: false,
        failure: None,
    };
    records.iter().filter_map(purpose).map(blank).collect()
}

/// Runs a file on threads of its own, so that nothing it does can hold up the others.
///
/// # Errors
/// If the file cannot be parsed or an engine not be started.
pub(super) async fn run(corpus: &Corpus, file: &str) -> Result<Vec<Found>> {
    run_on(corpus, file, false).await
}

/// Runs a file on ours alone.
///
/// # Errors
/// As [`run`].
pub(super) async fn run_ours(corpus: &Corpus, file: &str) -> Result<Vec<Found>> {
    run_on(corpus, file, true).await
}

async fn run_on(corpus: &Corpus, file: &str, ours_only: bool) -> Result<Vec<Found>> {
    let records = records(corpus, file)?;
    let board: Board = Arc::new(Mutex::new(blank(&records)));
    let scratch = scratch(corpus, file)?;
    let (done, ended) = tokio::sync::oneshot::channel();
    let work = Work { board: Arc::clone(&board), records, scratch, ours_only };
    std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || done.send(work.run()))
        .context("cannot start a thread")?;
    match tokio::time::timeout(FILE_TIME_MAX, ended).await {
        Ok(Ok(result)) => result?,
        // What was not put by then counts as failed.
        Ok(Err(_broke_off)) => eprintln!("{file}: broke off"),
        Err(_elapsed) => eprintln!("{file}: not done within {FILE_TIME_MAX:?}"),
    }
    let found = board.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(found)
}

/// The records of a file, as they are judged.
type Board = Arc<Mutex<Vec<Found>>>;

fn scratch(corpus: &Corpus, file: &str) -> Result<PathBuf> {
    let stem = Path::new(file).file_stem().context("a file has a name")?;
    Ok(corpus.root().join("test_files/scratch").join(stem))
}

struct Work {
    board: Board,
    records: Vec<Record<Letter>>,
    scratch: PathBuf,
    ours_only: bool,
}

impl Work {
    fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(2)
            .thread_stack_size(STACK_BYTES)
            .build()?;
        let result = runtime.block_on(self.sides());
        // A worker that never yields again is left behind.
        runtime.shutdown_background();
        result
    }

    async fn sides(&self) -> Result<()> {
        if !self.ours_only {
            let plain = Database::plain(Arrangement::AsTheyCame);
            self.put_all(&plain, |found, verdict, _| {
                found.failure = plain.last_failure();
                found.plain = verdict;
            })
            .await?;
        }
        let folder = tempfile::tempdir()?;
        let ours = Database::ours(folder.path()).await?;
        self.put_all(&ours, |found, verdict, is_again| {
            let verdict = found.forgiving(verdict, ours.last_failure());
            match is_again {
                true => found.again = verdict,
                false => (found.ours, found.again) = (verdict.clone(), verdict),
            }
        })
        .await?;
        ours.stop().await;
        if self.ours_only {
            return Ok(());
        }
        mark_refused(&mut self.board());
        let lost = |found: &Found| !found.refused && found.plain.passed() && !found.again.passed();
        if !self.board().iter().any(lost) {
            return Ok(());
        }
        for arrangement in [Arrangement::Ascending, Arrangement::Descending] {
            let rearranged = Database::plain(arrangement);
            self.put_all(&rearranged, |found, verdict, _| {
                found.varies |= found.purpose == Purpose::Rows && !verdict.passed();
            })
            .await?;
        }
        Ok(())
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Vec<Found>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts all records to a database, those that change nothing twice, and notes what came of them.
    async fn put_all(
        &self,
        database: &Database,
        mut note: impl FnMut(&mut Found, Verdict, bool),
    ) -> Result<()> {
        if self.scratch.exists() {
            std::fs::remove_dir_all(&self.scratch)?;
        }
        std::fs::create_dir_all(&self.scratch)?;
        let mut runner = Runner::new(|| std::future::ready(Ok::<_, Failure>(database.clone())));
        runner.add_label(LABEL);
        runner.with_column_validator(strict_column_validator);
        runner.with_normalizer(normal);
        let mut position = 0;
        for record in &self.records {
            let Some((sql, _, purpose)) = purpose(record) else {
                // Settings of the runner itself.
                drop(runner.run_async(record.clone()).await);
                continue;
            };
            if purpose != Purpose::Plan {
                let manner = manner(sql);
                let strict = manner.ordered || database.keeps_order();
                runner.with_validator(if strict { in_order } else { in_any_order });
                let times = if manner.repeatable && database.stores() { 2 } else { 1 };
                for time in 0..times {
                    let verdict = match runner.run_async(record.clone()).await {
                        Ok(RecordOutput::Nothing) => Verdict::NotRun,
                        Ok(_) => Verdict::Passed,
                        Err(error) => Verdict::Failed(error.to_string()),
                    };
                    let has_failed = matches!(verdict, Verdict::Failed(_));
                    if let Some(found) = self.board().get_mut(position) {
                        note(found, verdict, time > 0);
                    }
                    if has_failed {
                        break;
                    }
                }
            }
            position += 1;
        }
        Ok(())
    }
}

/// Marks failed records that read a table over files that ours refused to make, itself or through
/// tables and views that could not be made over it.
fn mark_refused(records: &mut [Found]) {
    let mut names: Vec<String> = vec![];
    for found in records {
        if found.ours.passed() {
            continue;
        }
        let reads_one = names.iter().any(|name| mentions(&found.sql, name));
        if found.purpose == Purpose::SetUp {
            let made = made(&found.sql).filter(|made| made.external || reads_one);
            names.extend(made.map(|made| made.name));
        } else {
            found.refused = reads_one;
        }
    }
}

impl Found {
    /// Our texts of errors are our own: one with the code of plain's error is as good.
    fn forgiving(&self, verdict: Verdict, failure: Option<Failure>) -> Verdict {
        let (Verdict::Failed(_), Purpose::Error) = (&verdict, self.purpose) else {
            return verdict;
        };
        match (&self.failure, failure) {
            (Some(plain), Some(ours)) if ours.code == plain.code && ours.code != BROKEN => {
                Verdict::PassedByCode
            }
            (Some(plain), Some(ours)) => Verdict::Failed(format!(
                "{} ({}) instead of {} ({})",
                ours.code, ours.text, plain.code, plain.text
            )),
            _ => verdict,
        }
    }
}
