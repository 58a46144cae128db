//! Export to one Parquet file, and import of such a file: a day of one system replayed in another.

use std::collections::BTreeMap;
use std::path::Path;

use foreshard_policy::history::files::StoredFile;
use foreshard_policy::history::{Resolution, Row, added_up};

use super::error::HistoryStoreError;
use super::file::{self, FileWriter};
use super::writer::{Order, Writer};
use super::{HistoryStore, rows};

/// Rows that are imported at once; a file with more is refused, because they are held in memory.
const IMPORT_ROWS_MAX: usize = 4_000_000;

/// Imports that are told from new ones.
const IMPORTS_REMEMBERED: usize = 1_000;

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Rows written.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Rows that are there now.
    pub rows: u64,
    /// Rows that say something impossible; they are left out.
    pub unusable: u64,
    /// Rows of a series and bucket that came before in the file; they were added to it.
    pub duplicate: u64,
    /// When the last bucket ends, in milliseconds since the Unix epoch; 0 without rows.
    pub until_ms: u64,
}

impl HistoryStore {
    /// Writes every row of buckets that begin from `from_ms` to `to_ms`, both included, to one file.
    /// Each moment is there once, in the finest buckets that are kept of it. Blocks.
    ///
    /// # Errors
    /// [`HistoryStoreError`] if something cannot be read, or the file cannot be written or is there
    /// already. Then there is no new file.
    pub fn export(
        &self,
        path: &Path,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<Exported, HistoryStoreError> {
        if path.exists() {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(HistoryStoreError::io("create", path)(source));
        }
        self.flush();
        let listing = self.list(from_ms, to_ms)?;
        let mut writer = FileWriter::create(path.to_owned())?;
        let is_asked = |row: &Row| (from_ms..=to_ms).contains(&row.start_ms);
        for file in &listing.files {
            for row in file::rows(&file.path)? {
                let row = row?;
                if is_asked(&row) {
                    writer.push(row, file.about.resolution)?;
                }
            }
        }
        for row in rows::from_batch(&listing.live)?.into_iter().filter(is_asked) {
            writer.push(row, Resolution::Second)?;
        }
        let made = writer.finish()?;
        Ok(Exported { rows: made.rows, bytes: made.bytes })
    }

    /// Takes in a file that [`export`](Self::export) wrote. Its rows are there beside those of this
    /// system, and age as they do. Blocks.
    ///
    /// # Errors
    /// [`HistoryStoreError::ImportedBefore`] if the same file was imported before, and
    /// [`HistoryStoreError`] if it is none or has too many rows. Then nothing of it is there.
    pub fn import(&self, path: &Path) -> Result<Imported, HistoryStoreError> {
        let path = path.to_owned();
        self.ask(|done| Order::Import(path, done))?
    }

    /// Hands over each row of a file that [`export`](Self::export) wrote, without taking it in. Blocks.
    ///
    /// # Errors
    /// [`HistoryStoreError`] if it is none.
    pub fn rows_of_export(
        path: &Path,
        mut take: impl FnMut(Resolution, Row),
    ) -> Result<(), HistoryStoreError> {
        for parsed in file::batches(path)? {
            parsed?.rows.into_iter().for_each(|(resolution, row)| take(resolution, row));
        }
        Ok(())
    }

    /// Hands over each row of the files with buckets that begin from `from_ms` to `to_ms`, and of these
    /// files perhaps others; what is in no file yet is left out. Blocks.
    ///
    /// # Errors
    /// [`HistoryStoreError`] if something cannot be read.
    pub fn rows_of_files(
        &self,
        from_ms: u64,
        to_ms: u64,
        mut take: impl FnMut(Resolution, Row),
    ) -> Result<(), HistoryStoreError> {
        let files = self.shared.catalog().files.clone();
        let is_asked = |about: &StoredFile| about.last_ms >= from_ms && about.first_ms <= to_ms;
        for file in files.iter().filter(|file| is_asked(&file.about)) {
            for row in file::rows(&file.path)? {
                take(file.about.resolution, row?);
            }
        }
        Ok(())
    }
}

/// An hour of seconds, a day of minutes or a month of hours, so that what ages together is one file.
fn period(resolution: Resolution, start_ms: u64) -> u64 {
    const DAY_MS: u64 = 86_400_000;
    let length_ms = match resolution {
        Resolution::Second => Resolution::Hour.ms(),
        Resolution::Minute => DAY_MS,
        Resolution::Hour => 32 * DAY_MS,
    };
    start_ms - start_ms % length_ms
}

impl Writer {
    pub(super) fn import(&mut self, path: &Path) -> Result<Imported, HistoryStoreError> {
        let fingerprint = fingerprint(path)?;
        if self.shared.catalog().manifest.imported.contains(&fingerprint) {
            return Err(HistoryStoreError::ImportedBefore { path: path.to_owned() });
        }
        let mut imported = Imported::default();
        let mut periods: BTreeMap<(Resolution, u64), Vec<Row>> = BTreeMap::new();
        let mut count = 0;
        for parsed in file::batches(path)? {
            let parsed = parsed?;
            imported.unusable += parsed.unusable;
            count += parsed.rows.len();
            if count > IMPORT_ROWS_MAX {
                let (path, rows_max) = (path.to_owned(), IMPORT_ROWS_MAX);
                return Err(HistoryStoreError::TooLarge { path, rows_max });
            }
            for (resolution, row) in parsed.rows {
                imported.until_ms = imported.until_ms.max(row.start_ms + resolution.ms());
                periods
                    .entry((resolution, period(resolution, row.start_ms)))
                    .or_default()
                    .push(row);
            }
        }
        let mut made = Vec::new();
        for ((resolution, _), rows) in periods {
            let count = rows.len();
            let rows = added_up(rows, resolution);
            imported.duplicate += (count - rows.len()) as u64;
            imported.rows += rows.len() as u64;
            made.push(self.make(resolution, |writer| {
                rows.into_iter().try_for_each(|row| writer.push(row, resolution))
            })?);
        }
        self.shared.counters.rows_unusable.add(imported.unusable);
        self.shared.counters.rows_duplicate.add(imported.duplicate);
        self.replace(&[], made, |catalog| {
            let known = &mut catalog.manifest.imported;
            known.push(fingerprint);
            known.drain(..known.len().saturating_sub(IMPORTS_REMEMBERED));
        })?;
        Ok(imported)
    }
}

fn fingerprint(path: &Path) -> Result<String, HistoryStoreError> {
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path).map_err(HistoryStoreError::io("open", path))?;
    std::io::copy(&mut file, &mut hasher).map_err(HistoryStoreError::io("read", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}
