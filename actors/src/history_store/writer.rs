//! The one thread that changes what is on the disk.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use foreshard_policy::history::files::{FileStep, StoredFile, next_step};
use foreshard_policy::history::{Resolution, Row, added_up};

use super::error::HistoryStoreError;
use super::file::{self, FileWriter};
use super::manifest::Manifest;
use super::segment::{self, Frame, Segment};
use super::transfer::Imported;
use super::{Catalog, HistoryFile, Live, Shared};
use crate::state_file::StateFile;

/// A segment that is longer is not appended to any more.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// Segments that wait to become a file at most, whatever their age.
const SEGMENTS_WAITING_MAX: usize = 8;

/// Time after the last frame of a segment at which it becomes a file. Before that its frames say at
/// which tick a call was counted, for a history that is saved once a minute.
const SEGMENT_AGE_MS: u64 = 300_000;

/// Time between two looks at what has become old.
const TIDY_MS: u64 = 10_000;

/// Steps at one look, so that frames do not wait for long.
const STEPS_MAX: usize = 4;

/// What the writer can be told.
#[derive(Debug)]
pub(super) enum Order {
    /// Write this.
    Frame(Box<Frame>),
    /// Say when everything before is on the disk.
    Flush(SyncSender<()>),
    /// Make files of all segments, and do all that is due at this time.
    Tidy(u64, SyncSender<Result<(), HistoryStoreError>>),
    /// Take in a file of somebody else.
    Import(PathBuf, SyncSender<Result<Imported, HistoryStoreError>>),
}

/// Memory of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    segment: Option<Segment>,
    /// Hour of the first frame of the segment.
    hour: u64,
    tidied_ms: u64,
    _lock: File,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, lock: File) -> Self {
        Self { shared, segment: None, hour: 0, tidied_ms: 0, _lock: lock }
    }

    /// Carries orders out until nobody can give any more. What came while it was busy is synced at once.
    pub(super) fn run(mut self, queue: &Receiver<Order>) {
        while let Ok(first) = queue.recv() {
            let mut latest = None;
            let mut next = Some(first);
            while let Some(order) = next {
                match order {
                    Order::Frame(frame) => {
                        latest = Some((frame.at_ms, frame.calm));
                        self.on_frame(&frame);
                    }
                    other => {
                        self.sync();
                        self.on_request(other);
                    }
                }
                next = queue.try_recv().ok();
            }
            self.sync();
            if let Some((now_ms, calm)) = latest {
                self.on_time(now_ms, calm);
            }
        }
        self.sync();
    }

    fn on_request(&mut self, order: Order) {
        // Whoever asked and went away does not want to know.
        match order {
            Order::Frame(frame) => self.on_frame(&frame),
            Order::Flush(done) => drop(done.send(())),
            Order::Tidy(now_ms, done) => drop(done.send(self.tidy(now_ms))),
            Order::Import(path, done) => drop(done.send(self.import(&path))),
        }
    }

    fn on_frame(&mut self, frame: &Frame) {
        let written = self.append(frame);
        self.shared.rows_waiting.fetch_sub(frame.rows.len(), Ordering::AcqRel);
        match written {
            Ok(()) => self.shared.counters.frames_written.add(1),
            Err(error) => {
                self.shared.counters.writes_failed.add(1);
                self.shared.counters.rows_dropped.add(frame.rows.len() as u64);
                tracing::warn!(%error, "calls are not kept on disk");
            }
        }
    }

    fn append(&mut self, frame: &Frame) -> Result<(), HistoryStoreError> {
        let hour = Resolution::Hour.start(frame.at_ms);
        let is_full = |segment: &Segment| segment.bytes() >= SEGMENT_BYTES_MAX || hour != self.hour;
        if self.segment.as_ref().is_some_and(is_full) {
            self.sync();
            self.segment = None;
        }
        let segment = match &mut self.segment {
            Some(segment) => segment,
            None => {
                let mut catalog = self.shared.catalog();
                let last = catalog.live.last().map_or(0, |last| last.number);
                let number = (last + 1).max(catalog.manifest.segments_from);
                let path = self.shared.segment_path(number);
                let segment = Segment::create(path.clone())?;
                catalog.live.push(Live { number, path, entries: Vec::new(), bytes: 0 });
                self.hour = hour;
                self.segment.insert(segment)
            }
        };
        let entry = segment.append(frame)?;
        if let Some(live) = self.shared.catalog().live.last_mut() {
            live.entries.push(entry);
            live.bytes = segment.bytes();
        }
        Ok(())
    }

    fn sync(&mut self) {
        let Some(Err(error)) = self.segment.as_mut().map(Segment::sync) else { return };
        self.shared.counters.writes_failed.add(1);
        tracing::warn!(%error, "calls may not survive a crash of the machine");
        // What the disk kept of it is not known; the next frames go elsewhere.
        self.segment = None;
    }

    /// Now and then: what is old becomes coarser, a little at a time.
    fn on_time(&mut self, now_ms: u64, calm: bool) {
        if now_ms.abs_diff(self.tidied_ms) < TIDY_MS {
            return;
        }
        self.tidied_ms = now_ms;
        let is_old = |live: &Live| {
            let last_ms = live.entries.last().map_or(0, |last| last.at_ms());
            now_ms.abs_diff(last_ms) >= SEGMENT_AGE_MS
        };
        let done = self
            .close_segments(is_old)
            .and_then(|()| self.carry_out_steps(now_ms, calm, STEPS_MAX));
        if let Err(error) = done {
            self.shared.counters.writes_failed.add(1);
            tracing::warn!(%error, "the history on disk was not tidied");
        }
    }

    fn tidy(&mut self, now_ms: u64) -> Result<(), HistoryStoreError> {
        self.segment = None;
        self.close_segments(|_| true)?;
        self.carry_out_steps(now_ms, true, usize::MAX)
    }

    /// Makes files of the oldest segments that are not appended to: those that `is_due`, and those that
    /// are too many.
    fn close_segments(&mut self, is_due: impl Fn(&Live) -> bool) -> Result<(), HistoryStoreError> {
        while self.close_some(&is_due)? {}
        Ok(())
    }

    /// Makes one file of as many segments as fit into memory; answers whether there were any.
    fn close_some(&mut self, is_due: impl Fn(&Live) -> bool) -> Result<bool, HistoryStoreError> {
        let mut closed = self.shared.catalog().live.clone();
        if self.segment.is_some() {
            closed.pop();
        }
        let surplus = closed.len().saturating_sub(SEGMENTS_WAITING_MAX);
        let due = closed.iter().enumerate().take_while(|(at, live)| *at < surplus || is_due(live));
        let mut bytes = 0;
        let fits = |(_, live): &(usize, &Live)| {
            bytes += live.bytes;
            bytes <= 2 * SEGMENT_BYTES_MAX || bytes == live.bytes
        };
        let due: Vec<&Live> = due.take_while(fits).map(|(_, live)| live).collect();
        let Some(last) = due.last().map(|live| live.number) else { return Ok(false) };
        let mut rows = Vec::new();
        let mut last_frame = 0;
        for live in &due {
            let mut file =
                File::open(&live.path).map_err(HistoryStoreError::io("open", &live.path))?;
            for entry in &live.entries {
                let frame = segment::read(&mut file, &live.path, entry)?;
                last_frame = last_frame.max(frame.number);
                rows.extend(frame.rows);
            }
        }
        let added = added_up(rows, Resolution::Second);
        let mut made = Vec::new();
        if !added.is_empty() {
            made.push(self.make(Resolution::Second, |writer| {
                added.into_iter().try_for_each(|row| writer.push(row, Resolution::Second))
            })?);
        }
        let paths: Vec<PathBuf> = due.iter().map(|live| live.path.clone()).collect();
        self.replace(&[], made, |catalog| {
            catalog.manifest.segments_from = last + 1;
            catalog.manifest.last_frame = catalog.manifest.last_frame.max(last_frame);
            catalog.live.retain(|live| live.number > last);
        })?;
        for path in paths {
            std::fs::remove_file(&path).map_err(HistoryStoreError::io("remove", &path))?;
        }
        Ok(true)
    }

    fn carry_out_steps(
        &mut self,
        now_ms: u64,
        calm: bool,
        steps_max: usize,
    ) -> Result<(), HistoryStoreError> {
        for _ in 0..steps_max {
            let (files, live) = {
                let catalog = self.shared.catalog();
                let about = catalog.files.iter().map(|file| file.about.clone());
                (about.collect::<Vec<_>>(), catalog.live.iter().map(|live| live.bytes).sum())
            };
            let keep = self.shared.keep.beside(live);
            match next_step(&files, now_ms, calm, &keep) {
                None => return Ok(()),
                Some(FileStep::Drop { file }) => self.replace(&[file], Vec::new(), |_| {})?,
                Some(FileStep::AddUp { files, to }) => self.add_up(&files, to)?,
            }
        }
        Ok(())
    }

    fn add_up(&mut self, ids: &[u64], to: Resolution) -> Result<(), HistoryStoreError> {
        let files: Vec<Arc<HistoryFile>> = {
            let catalog = self.shared.catalog();
            let named = catalog.files.iter().filter(|file| ids.contains(&file.about.id));
            named.cloned().collect()
        };
        let mut sources = Vec::new();
        for file in &files {
            match file::rows(&file.path) {
                Ok(rows) => sources.push(rows),
                // It would stand in the way for ever.
                Err(error) => {
                    self.shared.counters.files_missing.add(1);
                    tracing::warn!(%error, "a file of the history is given up");
                }
            }
        }
        let made = self.make(to, |writer| file::merge(sources, to, |row| writer.push(row, to)))?;
        self.replace(ids, vec![made], |_| {})
    }

    /// Writes a file under the next number.
    pub(super) fn make(
        &mut self,
        resolution: Resolution,
        write: impl FnOnce(&mut FileWriter) -> Result<(), HistoryStoreError>,
    ) -> Result<HistoryFile, HistoryStoreError> {
        let id = {
            let mut catalog = self.shared.catalog();
            catalog.manifest.next_file += 1;
            catalog.manifest.next_file - 1
        };
        let about = StoredFile { id, resolution, first_ms: 0, last_ms: 0, bytes: 0 };
        let mut file = HistoryFile::new(&self.shared.folder, about);
        let mut writer = FileWriter::create(file.path.clone())?;
        write(&mut writer)?;
        let made = writer.finish()?;
        file.about.first_ms = made.first_ms;
        file.about.last_ms = made.last_ms;
        file.about.bytes = made.bytes;
        Ok(file)
    }

    /// Puts files in the place of others: first in the manifest, then for readers.
    pub(super) fn replace(
        &mut self,
        old: &[u64],
        new: Vec<HistoryFile>,
        change: impl FnOnce(&mut Catalog),
    ) -> Result<(), HistoryStoreError> {
        let shared = &self.shared;
        let mut next = {
            let catalog = shared.catalog();
            Catalog {
                manifest: catalog.manifest.clone(),
                files: catalog.files.clone(),
                live: catalog.live.clone(),
            }
        };
        change(&mut next);
        let (gone, mut files): (Vec<_>, Vec<_>) =
            next.files.drain(..).partition(|file| old.contains(&file.about.id));
        files.extend(new.into_iter().map(Arc::new));
        next.manifest.files = files.iter().map(|file| (&file.about).into()).collect();
        next.files = files;
        let bytes = next.manifest.to_bytes();
        let bytes =
            bytes.map_err(|error| HistoryStoreError::Unwritable { reason: error.to_string() })?;
        let saved = shared.manifest_file.save(&bytes);
        saved.map_err(HistoryStoreError::io("write the manifest of", &shared.folder))?;
        *shared.catalog() = next;
        gone.iter().for_each(|file| file.is_replaced.store(true, Ordering::Release));
        Ok(())
    }
}

/// The manifest that files without one seem to have had. A file that a crash left beside those it was
/// to replace counts twice; that is rare, and better than none.
pub(super) fn manifest_of(files: &[PathBuf]) -> Result<Manifest, HistoryStoreError> {
    let mut manifest = Manifest::default();
    for path in files {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let named = stem.split_once('-').and_then(|(resolution, id)| {
            Some((Resolution::named(resolution)?, id.parse::<u64>().ok()?))
        });
        let Some((resolution, id)) = named else { continue };
        let Ok(rows) = file::rows(path) else { continue };
        let starts: Vec<u64> = rows.flatten().map(|row: Row| row.start_ms).collect();
        let bytes = std::fs::metadata(path).map_err(HistoryStoreError::io("look at", path))?.len();
        let first_ms = starts.iter().copied().min().unwrap_or(0);
        let last_ms = starts.iter().copied().max().unwrap_or(0);
        manifest.files.push((&StoredFile { id, resolution, first_ms, last_ms, bytes }).into());
        manifest.next_file = manifest.next_file.max(id + 1);
    }
    Ok(manifest)
}
