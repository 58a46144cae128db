//! DataFusion's own SQL logic tests, put to plain DataFusion and to us by the same runner.
//!
//! What counts are the records that compare rows or want an error, and that plain DataFusion passes. Ours
//! holds the tables in partitions on two nodes and stores whatever it may; each query is put to it
//! twice. Order is compared where a query asks for one, an error by its text or by its code. A record
//! on which plain itself answers otherwise once the rows of its tables are in another order is left out,
//! as are the texts of plans, and records over tables of files that ours refuses to make (CSV, JSON).
//!
//! Besides, our own files (`benchmarks/slt`) say what ours has and plain has not. All of their records must
//! pass, also when put again; they are no part of the share.
//!
//! `FORESHARD_SLT_CORPUS` names the folder of the files; `FORESHARD_SLT_FILES` runs only files whose path
//! holds one of its comma-separated parts; `FORESHARD_SLT_FAILURES` names a file for all records that
//! plain passes and ours does not. Without it the first of each file go to stderr.

mod corpus;
mod database;
mod file;
mod judge;
mod own;
mod values;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use self::corpus::{Corpus, lacks, skipped};
use self::file::{Found, Verdict};
use self::judge::Purpose;
use self::own::Own;
use crate::program::{Found as Report, Options};
use crate::report::{Bound, Figure, Row};

const FILES_VARIABLE: &str = "FORESHARD_SLT_FILES";
const FAILURES_VARIABLE: &str = "FORESHARD_SLT_FAILURES";

/// Share of the records that plain passes which ours must pass.
const SHARE_MIN: f64 = 0.99;

/// Failing records of a file that are shown when no file is named for all of them.
const SHOWN_MAX: usize = 3;

/// The files of a quick run: little of everything.
const QUICK: [&str; 8] = [
    "array/array_sort.slt",
    "cte.slt",
    "dml_delete.slt",
    "insert.slt",
    "limit.slt",
    "pg_compat/pg_compat_window.slt",
    "subquery.slt",
    "unnest.slt",
];

/// Runs the files and compares.
///
/// # Errors
/// If the files cannot be had, or one of them cannot be run.
pub async fn run(options: Options) -> Result<Report> {
    let corpus = Corpus::find()?;
    let failures = std::env::var_os(FAILURES_VARIABLE).map(std::path::absolute).transpose()?;
    let _back = WorkingFolder::change_to(corpus.root())?;
    let chosen: Vec<&String> =
        corpus.files().iter().filter(|file| is_chosen(file, options.quick)).collect();
    ensure!(!chosen.is_empty(), "{FILES_VARIABLE} names no file");
    let mut failed = match &failures {
        Some(path) => Some(
            std::fs::File::create(path)
                .with_context(|| format!("cannot write {}", path.display()))?,
        ),
        None => None,
    };
    let (mut rows, mut sum) = (vec![], Tally::default());
    let mut figures = own_files(&mut rows).await?;
    for file in chosen {
        if let Some(reason) = skipped(file) {
            let records = file::count(&corpus, file)?;
            sum.files_skipped += 1;
            sum.records_skipped += records;
            rows.push(Tally { records, ..Tally::default() }.row(file, reason));
            continue;
        }
        let start = options.clock.monotonic_ns();
        let found = file::run(&corpus, file).await.with_context(|| file.clone())?;
        let tally = Tally::of(&found);
        let seconds = options.clock.monotonic_ns().saturating_sub(start) / 1_000_000_000;
        eprintln!("{file}: {} of {} in {seconds} s", tally.ours_twice, tally.counted());
        let text = std::fs::read_to_string(corpus.path(file))?;
        let all = describe(file, &found);
        match &mut failed {
            Some(file) => file.write_all(all.concat().as_bytes())?,
            None => all.iter().take(SHOWN_MAX).for_each(|failure| eprint!("{failure}")),
        }
        rows.push(tally.row(file, &tally.reason(lacks(file, &text))));
        sum.add(&tally);
    }
    figures.splice(0..0, sum.figures());
    Ok((rows, figures))
}

/// Runs our own files; their records are not those that the share is of.
async fn own_files(rows: &mut Vec<Row>) -> Result<Vec<Figure>> {
    let corpus = own::corpus()?;
    let _back = WorkingFolder::change_to(corpus.root())?;
    let mut sum = Own::default();
    for file in corpus.files() {
        let found = own::run(&corpus, file).await.with_context(|| file.clone())?;
        let tally = Own::of(&found);
        if !tally.all_passed() {
            let failed = lost(file, &found, |found| !found.again.passed());
            failed.iter().for_each(|failure| eprint!("{failure}"));
        }
        rows.push(tally.row(file));
        sum.add(&tally);
    }
    Ok(sum.figures().into())
}

fn is_chosen(file: &str, quick: bool) -> bool {
    match std::env::var(FILES_VARIABLE) {
        Ok(parts) => parts.split(',').any(|part| file.contains(part)),
        Err(_) => !quick || QUICK.contains(&file),
    }
}

/// Records of a file that plain passes and ours does not, one text each.
fn describe(file: &str, found: &[Found]) -> Vec<String> {
    lost(file, found, |found| found.plain.passed() && !found.again.passed())
}

/// The records of a file that are `lost`, one text each.
fn lost(file: &str, found: &[Found], lost: impl Fn(&Found) -> bool) -> Vec<String> {
    let all = found.iter().filter(|found| lost(found));
    all.map(|found| {
        let when = if found.ours.passed() { ", the second time" } else { "" };
        let when = if found.varies { ", and plain's answer varies" } else { when };
        let when = if found.refused { ", over a table that ours refuses" } else { when };
        let how = match &found.again {
            Verdict::Failed(how) => how.trim_end().to_owned(),
            _ => format!("not run\n{}", found.sql),
        };
        format!("==== {file}:{}{when}\n{how}\n", found.line)
    })
    .collect()
}

/// The process's working folder, which the files' relative paths start from; put back when this goes.
struct WorkingFolder(PathBuf);

impl WorkingFolder {
    fn change_to(folder: &std::path::Path) -> Result<Self> {
        let before = std::env::current_dir()?;
        std::env::set_current_dir(folder)?;
        Ok(Self(before))
    }
}

impl Drop for WorkingFolder {
    fn drop(&mut self) {
        // If the folder is gone there is nowhere to go back to.
        drop(std::env::set_current_dir(&self.0));
    }
}

/// Counts of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    records: u64,
    plain: u64,
    varying: u64,
    refused: u64,
    ours: u64,
    ours_twice: u64,
    by_code: u64,
    errors: u64,
    set_up: u64,
    set_up_ours: u64,
    plans: u64,
    files: u64,
    files_skipped: u64,
    records_skipped: u64,
}

impl Tally {
    fn of(found: &[Found]) -> Self {
        let mut tally = Self { files: 1, ..Self::default() };
        for found in found {
            tally.count(found);
        }
        tally
    }

    fn count(&mut self, found: &Found) {
        let one = u64::from;
        match found.purpose {
            Purpose::Plan => self.plans += 1,
            Purpose::SetUp => {
                self.set_up += one(found.plain.passed());
                self.set_up_ours += one(found.plain.passed() && found.ours.passed());
            }
            Purpose::Rows | Purpose::Error => {
                self.records += 1;
                self.plain += one(found.plain.passed());
                let passed_twice = found.ours.passed() && found.again.passed();
                if found.plain.passed() && found.refused {
                    self.refused += 1;
                } else if found.plain.passed() && found.varies && !passed_twice {
                    self.varying += 1;
                } else if found.plain.passed() {
                    self.ours += one(found.ours.passed());
                    self.ours_twice += one(passed_twice);
                    self.errors += one(found.purpose == Purpose::Error);
                    self.by_code += one(found.ours == Verdict::PassedByCode);
                }
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.plain += other.plain;
        self.varying += other.varying;
        self.refused += other.refused;
        self.ours += other.ours;
        self.ours_twice += other.ours_twice;
        self.by_code += other.by_code;
        self.errors += other.errors;
        self.set_up += other.set_up;
        self.set_up_ours += other.set_up_ours;
        self.plans += other.plans;
        self.files += other.files;
    }

    /// Records that ours is held to.
    fn counted(&self) -> u64 {
        self.plain - self.varying - self.refused
    }

    /// Why some records of a file do not count.
    fn reason(&self, lacks: &str) -> String {
        let failed = self.records - self.plain;
        let reasons = [
            (failed, lacks),
            (self.varying, "plain's answer depends on the order of rows"),
            (self.refused, "reads files as a table that ours refuses to make"),
        ];
        let some = reasons.iter().filter(|(count, _)| *count > 0);
        Vec::from_iter(some.map(|(count, reason)| format!("{count}: {reason}"))).join("; ")
    }

    fn row(&self, file: &str, reason: &str) -> Row {
        Row::default()
            .with("file", file)
            .with("records", self.records)
            .with("plain_passed", self.plain)
            .with("ours_passed", self.ours)
            .with("ours_passed_again", self.ours_twice)
            .with("skipped", self.records - self.counted())
            .with("reason", reason)
    }

    fn figures(&self) -> Vec<Figure> {
        let share = |part: u64, whole: u64| part as f64 / whole as f64;
        let bounded = |name, part| {
            let value = share(part, self.counted());
            Figure::bounded(name, value, "ratio", Bound::AtLeast(SHARE_MIN))
        };
        let count = |name, count: u64| Figure::reported(name, count as f64, "records");
        vec![
            bounded("pass_share", self.ours),
            bounded("pass_share_again", self.ours_twice),
            Figure::reported("set_up_share", share(self.set_up_ours, self.set_up), "ratio"),
            count("records", self.records),
            count("plain_passed", self.plain),
            count("plain_varies", self.varying),
            count("refused", self.refused),
            count("ours_passed", self.ours),
            count("ours_passed_again", self.ours_twice),
            count("errors", self.errors),
            count("errors_by_code", self.by_code),
            count("plans_left_out", self.plans),
            count("records_of_skipped_files", self.records_skipped),
            Figure::reported("files", self.files as f64, "files"),
            Figure::reported("files_skipped", self.files_skipped as f64, "files"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_are_put_to_both_and_what_plain_does_not_pass_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let script = "statement ok\nCREATE TABLE t AS VALUES (1), (2)\n\n\
            query I\nSELECT * FROM t\n----\n1\n2\n\n\
            query I\nSELECT column1 FROM t LIMIT 1\n----\n1\n\n\
            query I\nSELECT 1\n----\n2\n\n\
            query TT\nEXPLAIN SELECT 1\n----\nanything at all\n\n\
            query error No field named nothing\nSELECT nothing FROM t\n";
        std::fs::write(folder.path().join("a.slt"), script).unwrap();
        let corpus = Corpus::of(folder.path()).unwrap();
        let tally = Tally::of(&file::run(&corpus, "a.slt").await.unwrap());
        assert_eq!((tally.records, tally.plain, tally.plans, tally.set_up_ours), (4, 3, 1, 1));
        assert_eq!(tally.ours_twice, tally.counted());
        assert!((2..=3).contains(&tally.counted()), "{tally:?}");
        let figures = tally.figures();
        assert!(figures[0].holds && figures[1].holds);
        assert_eq!(tally.reason("lacking").split(':').next(), Some("1"));
    }
}
