//! Our own test files, for what plain DataFusion does not have. They are put to ours alone.

use anyhow::Result;
use tempfile::TempDir;

use super::corpus::Corpus;
use super::file::{self, Found};
use super::judge::Purpose;
use crate::report::{Bound, Figure, Row};

/// The files, by name.
const FILES: [(&str, &str); 7] = [
    ("errors.slt", include_str!("../../slt/errors.slt")),
    ("files.slt", include_str!("../../slt/files.slt")),
    ("functions.slt", include_str!("../../slt/functions.slt")),
    ("schemas.slt", include_str!("../../slt/schemas.slt")),
    ("session.slt", include_str!("../../slt/session.slt")),
    ("stored.slt", include_str!("../../slt/stored.slt")),
    ("tables.slt", include_str!("../../slt/tables.slt")),
];

const REASON: &str = "our own file: what plain does not have, put to ours alone";

/// The files in a folder.
pub(super) fn corpus() -> Result<Corpus> {
    let folder: TempDir = tempfile::tempdir()?;
    for (name, text) in FILES {
        std::fs::write(folder.path().join(name), text)?;
    }
    Corpus::of(folder.path())
}

/// Counts of the records of some files.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own {
    records: u64,
    passed: u64,
    passed_again: u64,
}

impl Own {
    /// All records of a file; what only has to succeed counts too.
    pub(super) fn of(found: &[Found]) -> Self {
        let counted: Vec<&Found> =
            found.iter().filter(|found| found.purpose != Purpose::Plan).collect();
        let count = |passed: fn(&Found) -> bool| {
            counted.iter().filter(|found| passed(found)).count() as u64
        };
        Self {
            records: counted.len() as u64,
            passed: count(|found| found.ours.passed()),
            passed_again: count(|found| found.ours.passed() && found.again.passed()),
        }
    }

    /// Adds those of another file.
    pub(super) fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.passed += other.passed;
        self.passed_again += other.passed_again;
    }

    /// Whether all passed, both times.
    pub(super) fn all_passed(&self) -> bool {
        self.records > 0 && self.passed_again == self.records
    }

    /// The row of a file.
    pub(super) fn row(&self, file: &str) -> Row {
        Row::default()
            .with("file", format!("own/{file}"))
            .with("records", self.records)
            .with("plain_passed", 0_u64)
            .with("ours_passed", self.passed)
            .with("ours_passed_again", self.passed_again)
            .with("skipped", 0_u64)
            .with("reason", REASON)
    }

    /// The figures of all files.
    pub(super) fn figures(&self) -> [Figure; 2] {
        let share = self.passed_again as f64 / self.records as f64;
        [
            Figure::bounded("own_pass_share", share, "ratio", Bound::Exactly(1.0)),
            Figure::reported("own_records", self.records as f64, "records"),
        ]
    }
}

/// Runs one of the files.
pub(super) async fn run(corpus: &Corpus, file: &str) -> Result<Vec<Found>> {
    file::run_ours(corpus, file).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn our_own_files_pass_twice() {
        let corpus = corpus().unwrap();
        let _back = super::super::WorkingFolder::change_to(corpus.root()).unwrap();
        assert_eq!(corpus.files().len(), FILES.len());
        let mut failures = vec![];
        for name in corpus.files() {
            let found = run(&corpus, name).await.unwrap();
            failures.extend(super::super::lost(name, &found, |found| {
                found.purpose != Purpose::Plan && !found.again.passed()
            }));
            assert!(!found.is_empty(), "{name}");
        }
        assert!(failures.is_empty(), "{}", failures.concat());
    }
}
