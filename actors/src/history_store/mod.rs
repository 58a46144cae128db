//! The history on disk: what was called, second by second, then by the minute and by the hour.
//!
//! ```text
//! monitor --append--> [queue] --> writer --frames--> segments --after minutes--> Parquet files
//!                                                        `------list----> system.history <--'
//! ```
//!
//! Nobody waits for it: a frame that finds the queue full is dropped and counted. One thread writes;
//! it syncs what it wrote before it looks at the queue again, so a crash costs what was flushed since,
//! which is a second's worth. What becomes of files as they get older `policy::history::files` decides.
//! A file is in the manifest or it does not exist; readers hold the files they read, and a file that was
//! replaced is removed when the last of them lets go.

mod counters;
mod error;
mod file;
mod manifest;
mod rows;
mod segment;
mod transfer;
mod writer;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use arrow::array::RecordBatch;
use foreshard_policy::config::MonitorConfig;
use foreshard_policy::history::files::{Keep, StoredFile};
use foreshard_policy::history::{Resolution, Row, added_up};
use foreshard_policy::ids::Tick;

pub use self::counters::StoreCounters;
pub use self::error::HistoryStoreError;
pub use self::rows::{FUNCTION, START, schema};
pub use self::segment::Frame;
pub use self::transfer::{Exported, Imported};

use self::counters::Counters;
use self::manifest::Manifest;
use self::segment::Entry;
use self::writer::{Order, Writer};
use crate::state_file::{DiskFile, StateFile};

/// Frames that may wait for the writer; one comes a second.
const FRAMES_WAITING_MAX: usize = 256;

/// Rows that may wait for the writer in all, of some hundred bytes each.
const ROWS_WAITING_MAX: usize = 262_144;

/// Ends the names of segments.
const SEGMENT: &str = "segment";

/// Ends the names of files.
const PARQUET: &str = "parquet";

/// A file of the history. It is removed when it was replaced and nobody reads it any more.
#[derive(Debug)]
pub struct HistoryFile {
    /// What it holds.
    pub about: StoredFile,
    /// Where it is.
    pub path: PathBuf,
    is_replaced: AtomicBool,
}

impl Drop for HistoryFile {
    fn drop(&mut self) {
        if self.is_replaced.load(Ordering::Acquire) {
            // What cannot be removed now is no longer in the manifest, so the next start removes it.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

impl HistoryFile {
    fn new(folder: &Path, about: StoredFile) -> Self {
        let name = format!("{}-{:08}.{PARQUET}", about.resolution.name(), about.id);
        Self { path: folder.join(name), about, is_replaced: AtomicBool::new(false) }
    }
}

/// A segment with its whole frames.
#[derive(Clone, Debug)]
struct Live {
    number: u64,
    path: PathBuf,
    entries: Vec<Entry>,
    bytes: u64,
}

/// What there is at one moment.
#[derive(Debug, Default)]
struct Catalog {
    manifest: Manifest,
    files: Vec<Arc<HistoryFile>>,
    /// By number; the writer appends to the last one.
    live: Vec<Live>,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    keep: Keep,
    catalog: Mutex<Catalog>,
    counters: Counters,
    rows_waiting: AtomicUsize,
    last_frame: AtomicU64,
    manifest_file: DiskFile,
}

impl Shared {
    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        // Every change leaves the catalog whole, so a poisoned lock is as good as any.
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:08}.{SEGMENT}"))
    }
}

/// What is to be read for a time, and stays readable as long as it is held.
#[derive(Debug)]
pub struct Listing {
    /// Files with buckets that begin in that time, by time.
    pub files: Vec<Arc<HistoryFile>>,
    /// Rows that are in no file yet, by series and time.
    pub live: RecordBatch,
    /// Files that were left out.
    pub files_skipped: usize,
    /// Frames that were read for [`live`](Self::live), and frames that were left out.
    pub frames: (usize, usize),
}

/// The history on disk. Dropping it ends the writer once it is done with what waits for it.
#[derive(Debug)]
pub struct HistoryStore {
    shared: Arc<Shared>,
    orders: Mutex<Option<SyncSender<Order>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl HistoryStore {
    /// Opens the store in `folder`, which is made if it is not there, and takes up what a former process
    /// left: torn ends are cut off, and damage is skipped; both are counted. Blocks.
    ///
    /// # Errors
    /// [`HistoryStoreError::InUse`] if another process has it open; [`HistoryStoreError::Io`] if the disk
    /// refuses. A manifest that is unreadable is set aside, and then every file counts.
    pub fn open(folder: &Path, config: &MonitorConfig) -> Result<Self, HistoryStoreError> {
        std::fs::create_dir_all(folder).map_err(HistoryStoreError::io("create", folder))?;
        let lock = locked(folder)?;
        let manifest_file = DiskFile::new(folder.join("manifest.json"));
        let counters = Counters::default();
        let catalog = found(folder, &manifest_file, &counters)?;
        let frames = catalog.live.iter().flat_map(|live| &live.entries);
        let last_frame = frames.map(|entry| entry.number).max().unwrap_or(0);
        let last_frame = last_frame.max(catalog.manifest.last_frame);
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            keep: Keep::from(config),
            catalog: Mutex::new(catalog),
            counters,
            rows_waiting: AtomicUsize::new(0),
            last_frame: AtomicU64::new(last_frame),
            manifest_file,
        });
        let (orders, queue) = sync_channel(FRAMES_WAITING_MAX);
        let writer = Writer::new(Arc::clone(&shared), lock);
        let writer = std::thread::Builder::new()
            .name("history-store".into())
            .spawn(move || writer.run(&queue))
            .map_err(HistoryStoreError::io("start the writer of", folder))?;
        let (orders, writer) = (Mutex::new(Some(orders)), Mutex::new(Some(writer)));
        Ok(Self { shared, orders, writer })
    }

    /// Hands rows over to be written, and answers the number of their frame. Never waits: if the writer
    /// is behind they are dropped and counted. Without rows there is no frame, and the answer is the
    /// number of the last one.
    pub fn append(&self, tick: Tick, at_ms: u64, calm: bool, rows: Vec<Row>) -> u64 {
        let shared = &self.shared;
        if rows.is_empty() {
            return shared.last_frame.load(Ordering::Acquire);
        }
        let number = shared.last_frame.fetch_add(1, Ordering::AcqRel) + 1;
        let count = rows.len();
        let waiting = shared.rows_waiting.fetch_add(count, Ordering::AcqRel);
        let frame = Frame { number, tick, at_ms, calm, rows };
        let has_room = waiting == 0 || waiting + count <= ROWS_WAITING_MAX;
        if !has_room || !self.try_order(Order::Frame(Box::new(frame))) {
            shared.rows_waiting.fetch_sub(count, Ordering::AcqRel);
            shared.counters.frames_dropped.add(1);
            shared.counters.rows_dropped.add(count as u64);
        }
        number
    }

    /// Returns when everything that was handed over before is on the disk, or was refused by it.
    /// Blocks.
    pub fn flush(&self) {
        // An error says that the writer has ended, and then nothing waits for it.
        drop(self.ask(Order::Flush));
    }

    /// Makes files of what is in segments, as the writer does by itself after some minutes, and carries
    /// out what the age and the size of the files ask for. Blocks.
    ///
    /// * `now_ms`: the time that files are as old as.
    ///
    /// # Errors
    /// [`HistoryStoreError`] if the disk refuses; then everything is as it was.
    pub fn tidy(&self, now_ms: u64) -> Result<(), HistoryStoreError> {
        self.ask(|done| Order::Tidy(now_ms, done))?
    }

    /// Ends the writer, once everything that waits for it is on the disk. Blocks. What is handed over
    /// from now on is dropped; what is there stays readable.
    pub fn close(&self) {
        drop(self.orders.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of the history panicked");
        }
    }

    /// Frames after the one of this number, in their order, as far as they are not yet in files; for a
    /// history that was saved when that frame was the last. Blocks.
    ///
    /// # Errors
    /// [`HistoryStoreError`] if a segment cannot be read.
    pub fn frames_after(
        &self,
        number: u64,
        mut take: impl FnMut(Frame),
    ) -> Result<(), HistoryStoreError> {
        let live = self.shared.catalog().live.clone();
        for segment in &live {
            let mut entries = segment.entries.iter().filter(|entry| entry.number > number);
            let Some(first) = entries.next() else { continue };
            let mut file =
                File::open(&segment.path).map_err(HistoryStoreError::io("open", &segment.path))?;
            for entry in std::iter::once(first).chain(entries) {
                take(segment::read(&mut file, &segment.path, entry)?);
            }
        }
        Ok(())
    }

    /// What is to be read for buckets that begin from `from_ms` to `to_ms`, both included. Blocks for as
    /// long as it takes to read the frames of that time.
    ///
    /// # Errors
    /// [`HistoryStoreError`] if a segment cannot be read.
    pub fn list(&self, from_ms: u64, to_ms: u64) -> Result<Listing, HistoryStoreError> {
        let (files, live) = {
            let catalog = self.shared.catalog();
            let mut live = Vec::new();
            for segment in catalog.live.iter().filter(|segment| !segment.entries.is_empty()) {
                // Opened under the lock: the file may be gone a moment later.
                let file = File::open(&segment.path)
                    .map_err(HistoryStoreError::io("open", &segment.path))?;
                live.push((file, segment.clone()));
            }
            (catalog.files.clone(), live)
        };
        let (mut read, mut skipped, mut rows) = (0, 0, Vec::new());
        for (mut file, segment) in live {
            for entry in &segment.entries {
                if entry.last_ms < from_ms || entry.first_ms > to_ms {
                    skipped += 1;
                    continue;
                }
                rows.extend(segment::read(&mut file, &segment.path, entry)?.rows);
                read += 1;
            }
        }
        let of_time =
            |file: &Arc<HistoryFile>| file.about.last_ms >= from_ms && file.about.first_ms <= to_ms;
        let count = files.len();
        let mut files: Vec<_> = files.into_iter().filter(of_time).collect();
        files.sort_by_key(|file| (file.about.first_ms, file.about.id));
        let live = rows::to_batch(&added_up(rows, Resolution::Second), Resolution::Second)?;
        let files_skipped = count - files.len();
        Ok(Listing { files, live, files_skipped, frames: (read, skipped) })
    }

    /// What was written, dropped and found so far.
    #[must_use]
    pub fn counters(&self) -> StoreCounters {
        let catalog = self.shared.catalog();
        let live: u64 = catalog.live.iter().map(|live| live.bytes).sum();
        let files: u64 = catalog.files.iter().map(|file| file.about.bytes).sum();
        StoreCounters {
            files: catalog.files.len() as u64,
            segments: catalog.live.len() as u64,
            bytes: live + files,
            ..self.shared.counters.read()
        }
    }

    fn try_order(&self, order: Order) -> bool {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.as_ref().is_some_and(|orders| match orders.try_send(order) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        })
    }

    /// Asks the writer for something, and waits until it is done.
    fn ask<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order) -> Result<T, HistoryStoreError> {
        let (done, answer) = sync_channel(1);
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let orders = orders.ok_or(HistoryStoreError::Closed)?;
        orders.send(order(done)).map_err(|_ended| HistoryStoreError::Closed)?;
        drop(orders);
        answer.recv().map_err(|_ended| HistoryStoreError::Closed)
    }
}

/// Locks the folder for this process, as long as the file is open.
fn locked(folder: &Path) -> Result<File, HistoryStoreError> {
    let path = folder.join("lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let lock = lock.map_err(HistoryStoreError::io("open", &path))?;
    lock.try_lock().map_err(|_held| HistoryStoreError::InUse { path: folder.to_owned() })?;
    Ok(lock)
}

/// What a former process left in the folder.
fn found(
    folder: &Path,
    manifest_file: &DiskFile,
    counters: &Counters,
) -> Result<Catalog, HistoryStoreError> {
    let Names { files, segments } = names(folder)?;
    let kept =
        manifest_file.load().map_err(HistoryStoreError::io("read the manifest of", folder))?;
    let manifest = match kept.as_deref().map(Manifest::from_bytes) {
        None => Manifest::default(),
        Some(Ok(manifest)) => manifest,
        Some(Err(reason)) => {
            let aside = manifest_file.set_aside();
            tracing::warn!(reason, ?aside, "the manifest of the history is unreadable");
            writer::manifest_of(&files)?
        }
    };
    let mut catalog = Catalog { manifest, ..Catalog::default() };
    for about in &catalog.manifest.files {
        let file = HistoryFile::new(folder, about.into());
        if file.path.exists() {
            catalog.files.push(Arc::new(file));
        } else {
            counters.files_missing.add(1);
            tracing::warn!(path = ?file.path, "a file of the history is missing");
        }
    }
    for path in files {
        if !catalog.files.iter().any(|file| file.path == path) {
            std::fs::remove_file(&path).map_err(HistoryStoreError::io("remove", &path))?;
        }
    }
    for (number, path) in segments {
        if number < catalog.manifest.segments_from {
            std::fs::remove_file(&path).map_err(HistoryStoreError::io("remove", &path))?;
            continue;
        }
        let found = segment::scan(&path)?;
        counters.bytes_torn.add(found.torn_bytes);
        counters.bytes_damaged.add(found.damaged_bytes);
        if found.torn_bytes > 0 {
            segment::cut(&path, &found)?;
        }
        if found.torn_bytes + found.damaged_bytes > 0 {
            let (torn, damaged) = (found.torn_bytes, found.damaged_bytes);
            tracing::warn!(?path, torn, damaged, "bytes of the history were no whole frames");
        }
        let bytes = std::fs::metadata(&path).map_err(HistoryStoreError::io("look at", &path))?;
        catalog.live.push(Live { number, path, entries: found.entries, bytes: bytes.len() });
    }
    Ok(catalog)
}

/// What lies in the folder.
#[derive(Default)]
struct Names {
    files: Vec<PathBuf>,
    /// By number.
    segments: BTreeMap<u64, PathBuf>,
}

/// Paths of files and segments. What was being written when a process died is removed.
fn names(folder: &Path) -> Result<Names, HistoryStoreError> {
    let mut names = Names::default();
    let entries = std::fs::read_dir(folder).map_err(HistoryStoreError::io("list", folder))?;
    for entry in entries {
        let path = entry.map_err(HistoryStoreError::io("list", folder))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        match (ending, stem.and_then(|stem| stem.parse().ok())) {
            (Some(PARQUET), _) => names.files.push(path),
            (Some(SEGMENT), Some(number)) => drop(names.segments.insert(number, path)),
            (Some("new"), _) => {
                std::fs::remove_file(&path).map_err(HistoryStoreError::io("remove", &path))?;
            }
            _ => {}
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
