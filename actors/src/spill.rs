//! Outputs that gave way from memory and are worth a place on the local disk, or in an object store.
//!
//! ```text
//! partition --write--> spill --file--> replica's view --read--> query
//!                        '--takes away what is worth least when the budget is full
//! ```
//!
//! A file may be gone at any time: taken away for a worthier one, broken, removed by hand. Whoever finds
//! it gone computes again; nothing here is an error to a query. The budget counts every byte from before
//! it is written until after it is removed.

mod bucket;
mod encode;
mod folder;
mod place;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use foreshard_policy::admit::{Admission, Stored};
use foreshard_policy::disk::ReadCost;
use foreshard_policy::ids::{ExpressionId, SegmentId};
use object_store::ObjectStore;
use tokio::sync::Semaphore;

use crate::partition::OutputValues;
use crate::pins::Pins;
use crate::ports::SharedClock;
use crate::spill::bucket::Bucket;
use crate::spill::encode::{decode, encode};
use crate::spill::folder::Folder;
use crate::spill::place::Place;

pub use crate::spill::bucket::{BucketError, is_url};

/// Files that are written at the same time: each is in memory twice meanwhile.
const WRITES_AT_ONCE: usize = 1;

/// Names what is stored in a file.
type Key = (SegmentId, ExpressionId);

/// An output on its way to the disk.
#[derive(Debug)]
pub struct ToSpill {
    /// The segment.
    pub segment: SegmentId,
    /// The expression.
    pub expression: ExpressionId,
    /// Table of both.
    pub table: Arc<str>,
    /// The values.
    pub values: OutputValues,
    /// Nanoseconds that they took.
    pub ns: u64,
    /// How often a query read them.
    pub uses: Arc<AtomicU64>,
}

/// The spill of one process: all its nodes share the place and the budget.
pub struct Spill {
    shared: Arc<Shared>,
    pins: Arc<Pins>,
    clock: SharedClock,
    turns: Semaphore,
    numbers: AtomicU64,
}

/// What files outlive the spill with: the last one closes the folder.
struct Shared {
    place: Place,
    bytes_max: u64,
    state: Mutex<State>,
    /// Apart from the state: actors ask for it, and must not wait for a disk.
    cost: Mutex<ReadCost>,
}

#[derive(Default)]
struct State {
    bytes: u64,
    /// Nothing is written any more.
    is_closed: bool,
    admission: Admission<Key>,
    files: BTreeMap<Key, Weak<SpillFile>>,
    /// Uses of files that were counted already.
    counted: HashMap<Key, u64>,
}

impl fmt::Debug for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, bytes_max) = (self.bytes(), self.bytes_max());
        write!(f, "Spill({bytes} of {bytes_max} bytes in {})", self.shared.place)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole, so a poisoned lock is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cost(&self) -> MutexGuard<'_, ReadCost> {
        self.cost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes files, and gives the bytes of each back when it is deleted. Nobody waits for the state
    /// meanwhile.
    fn delete(&self, files: impl IntoIterator<Item = Ended>) {
        for file in files {
            self.place.delete(&file.name);
            let mut state = self.state();
            state.bytes = state.bytes.saturating_sub(file.bytes);
        }
    }
}

/// Values of one output in a file. It is removed when nobody holds this any more.
#[derive(Debug)]
pub struct SpillFile {
    key: Key,
    table: Arc<str>,
    name: String,
    bytes: u64,
    checksum: blake3::Hash,
    rows: usize,
    rows_known: usize,
    is_packed: bool,
    ns: u64,
    uses: Arc<AtomicU64>,
    is_in_memory: AtomicBool,
    is_gone: AtomicBool,
    shared: Arc<Shared>,
}

impl SpillFile {
    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows of the segment that have a value.
    #[must_use]
    pub fn rows_known(&self) -> usize {
        self.rows_known
    }

    /// Nanoseconds that the values took.
    #[must_use]
    pub fn ns(&self) -> u64 {
        self.ns
    }

    /// How often a query read the values.
    #[must_use]
    pub fn uses(&self) -> &Arc<AtomicU64> {
        &self.uses
    }

    /// Whether the file was taken away, or found broken.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// Where it is on the local disk, for tests that break it.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        Some(self.shared.place.folder()?.join(&self.name))
    }

    /// Says whether the same values are in memory, too: then they are the first to go from the disk.
    pub(crate) fn set_in_memory(&self, is_in_memory: bool) {
        self.is_in_memory.store(is_in_memory, Ordering::Relaxed);
    }

    /// Ends the file, once; what is to be deleted then.
    fn end(&self, state: &mut State) -> Option<Ended> {
        if self.is_gone.swap(true, Ordering::Relaxed) {
            return None;
        }
        let is_this = |file: &Weak<Self>| std::ptr::eq(file.as_ptr(), self);
        if state.files.get(&self.key).is_some_and(is_this) {
            state.files.remove(&self.key);
            state.counted.remove(&self.key);
        }
        Some(Ended { name: self.name.clone(), bytes: self.bytes })
    }
}

/// A file that nobody finds any more, and that is still there.
struct Ended {
    name: String,
    bytes: u64,
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        if self.is_gone.swap(true, Ordering::Relaxed) {
            return;
        }
        let (name, bytes, key) = (std::mem::take(&mut self.name), self.bytes, self.key);
        let shared = Arc::clone(&self.shared);
        let remove = move || {
            shared.delete([Ended { name, bytes }]);
            let mut state = shared.state();
            if state.files.get(&key).is_some_and(|file| file.strong_count() == 0) {
                state.files.remove(&key);
                state.counted.remove(&key);
            }
        };
        match tokio::runtime::Handle::try_current() {
            // Whoever lets go last may be an actor.
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_outside) => remove(),
        }
    }
}

impl Spill {
    /// Spills below `folder`, at most `bytes_max` at a time; removes what ended processes left there.
    ///
    /// # Errors
    /// If nothing can be made in the folder.
    pub fn open(
        folder: &Path,
        bytes_max: u64,
        pins: Arc<Pins>,
        clock: SharedClock,
    ) -> std::io::Result<Self> {
        let place = Place::Folder(Folder::open(folder)?);
        Ok(Self::at(place, ReadCost::default(), bytes_max, pins, clock))
    }

    /// Spills to the object store that `url` names (`s3://bucket/folder`), at most `bytes_max` at a time;
    /// removes what ended processes left there.
    ///
    /// # Errors
    /// If the URL names no store, or nothing can be written there.
    pub async fn open_url(
        url: &str,
        bytes_max: u64,
        pins: Arc<Pins>,
        clock: SharedClock,
    ) -> Result<Self, BucketError> {
        let bucket = Bucket::open_url(url).await?;
        Ok(Self::at(Place::Bucket(bucket), ReadCost::of_store(), bytes_max, pins, clock))
    }

    /// The same below `prefix` of a store that is there.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub async fn open_store(
        store: Arc<dyn ObjectStore>,
        prefix: object_store::path::Path,
        bytes_max: u64,
        pins: Arc<Pins>,
        clock: SharedClock,
    ) -> Result<Self, BucketError> {
        let bucket = Bucket::open(store, prefix).await?;
        Ok(Self::at(Place::Bucket(bucket), ReadCost::of_store(), bytes_max, pins, clock))
    }

    fn at(
        place: Place,
        cost: ReadCost,
        bytes_max: u64,
        pins: Arc<Pins>,
        clock: SharedClock,
    ) -> Self {
        let (state, cost) = (Mutex::default(), Mutex::new(cost));
        let shared = Arc::new(Shared { place, bytes_max, state, cost });
        let turns = Semaphore::new(WRITES_AT_ONCE);
        Self { shared, pins, clock, turns, numbers: AtomicU64::new(0) }
    }

    /// Removes all files and their folder: what was in them is gone, and nothing is written any more.
    pub async fn close(self: &Arc<Self>) {
        let this = Arc::clone(self);
        drop(tokio::task::spawn_blocking(move || this.close_now()).await);
    }

    fn close_now(&self) {
        let mut state = self.shared.state();
        state.is_closed = true;
        let files: Vec<Arc<SpillFile>> = state.files.values().filter_map(Weak::upgrade).collect();
        let ended: Vec<Ended> = files.iter().filter_map(|file| file.end(&mut state)).collect();
        // No file may be let go of for the last time while the state is locked.
        drop(state);
        self.shared.delete(ended);
        self.shared.place.remove();
    }

    /// Bytes that are on disk, or about to be.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.state().bytes
    }

    /// Bytes that may be on disk.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.shared.bytes_max
    }

    /// The folder of this process's files, if they are on the local disk.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.shared.place.folder()
    }

    /// What reading back takes, as measured so far.
    #[must_use]
    pub fn read_cost(&self) -> ReadCost {
        *self.shared.cost()
    }

    /// Writes an output; `None` if it is not worth it, finds no room, or the disk does not take it. The
    /// file that is there stays if it has as many values.
    pub async fn write(self: &Arc<Self>, output: ToSpill) -> Option<Arc<SpillFile>> {
        let _turn = self.turns.acquire().await.ok()?;
        let this = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || this.write_now(output));
        written.await.ok().flatten()
    }

    fn write_now(&self, output: ToSpill) -> Option<Arc<SpillFile>> {
        let key = (output.segment, output.expression);
        let there = self.shared.state().files.get(&key).and_then(Weak::upgrade);
        let is_enough = |there: &Arc<SpillFile>| {
            !there.is_gone() && there.rows_known >= output.values.rows_known()
        };
        if let Some(there) = there.filter(is_enough) {
            return Some(there);
        }
        let bytes = encode(&output.values)
            .inspect_err(|error| tracing::debug!(%error, "output cannot be spilled"))
            .ok()?;
        let size = bytes.len() as u64;
        if !self.take_room(&output, size) {
            return None;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let name = format!("{number}.arrow");
        let checksum = blake3::hash(&bytes);
        if let Err(error) = self.shared.place.write(&name, bytes) {
            tracing::warn!(name, place = %self.shared.place, %error, "output not spilled");
            self.shared.delete([Ended { name, bytes: size }]);
            return None;
        }
        let file = Arc::new(SpillFile {
            key,
            table: output.table,
            name,
            bytes: size,
            checksum,
            rows: output.values.rows(),
            rows_known: output.values.rows_known(),
            is_packed: output.values.is_packed(),
            ns: output.ns,
            uses: output.uses,
            is_in_memory: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            shared: Arc::clone(&self.shared),
        });
        let mut state = self.shared.state();
        let before = state.files.insert(key, Arc::downgrade(&file)).and_then(|it| it.upgrade());
        let before = before.and_then(|before| before.end(&mut state));
        state.counted.insert(key, file.uses.load(Ordering::Relaxed));
        let stored = state.files.len();
        state.admission.set_stored(stored);
        drop(state);
        self.shared.delete(before);
        Some(file)
    }

    /// Charges `bytes` to the budget; takes away what is worth least if that makes room, and nothing
    /// otherwise.
    fn take_room(&self, output: &ToSpill, bytes: u64) -> bool {
        let cost = self.read_cost();
        if !cost.is_worth_it(output.ns, bytes) {
            return false;
        }
        let mut state = self.shared.state();
        if state.is_closed {
            return false;
        }
        let key = (output.segment, output.expression);
        let calls = output.uses.load(Ordering::Relaxed).max(1);
        let spared = cost.ns_spared(output.ns, bytes);
        let worth = state.admission.called(key, calls, spared, bytes);
        let is_pinned = self.pins.has_output(&output.table, output.expression);
        let worth = if is_pinned { f64::INFINITY } else { worth };
        let lacking = (state.bytes.saturating_add(bytes)).saturating_sub(self.shared.bytes_max);
        if lacking > 0 {
            let files: Vec<Arc<SpillFile>> =
                state.files.values().filter_map(Weak::upgrade).collect();
            let mut stored: Vec<Stored<Key>> = files
                .iter()
                .filter(|file| !self.pins.has_output(&file.table, file.key.1))
                .map(|file| state.look(file, cost))
                .collect();
            stored.sort_by(|a, b| a.worth.total_cmp(&b.worth).then_with(|| a.key.cmp(&b.key)));
            let Some(gone) = state.admission.make_room(worth, lacking, stored) else {
                // No file may be let go of for the last time while the state is locked.
                drop(state);
                return false;
            };
            let gone = files.iter().filter(|file| gone.contains(&file.key));
            let ended: Vec<Ended> = gone.filter_map(|file| file.end(&mut state)).collect();
            drop(state);
            self.shared.delete(ended);
            // Nobody else takes room: one output is written at a time.
            self.shared.state().bytes += bytes;
            return true;
        }
        state.bytes += bytes;
        true
    }

    /// Reads values back; `None` if the file is gone or is not what was written. Such a file is removed.
    pub async fn read(self: &Arc<Self>, file: &Arc<SpillFile>) -> Option<OutputValues> {
        let (this, file) = (Arc::clone(self), Arc::clone(file));
        tokio::task::spawn_blocking(move || this.read_now(&file)).await.ok().flatten()
    }

    fn read_now(&self, file: &SpillFile) -> Option<OutputValues> {
        if file.is_gone() {
            return None;
        }
        let start = self.clock.monotonic_ns();
        let values = contents(file);
        let ns = self.clock.monotonic_ns().saturating_sub(start);
        if values.is_some() {
            self.shared.cost().measured(file.bytes, ns);
        } else if !file.is_gone() {
            let (name, place) = (&file.name, &self.shared.place);
            tracing::warn!(name, %place, "spilled output is broken and is dropped");
            let ended = file.end(&mut self.shared.state());
            self.shared.delete(ended);
        }
        values
    }
}

/// The values in a file, if it holds what was written.
fn contents(file: &SpillFile) -> Option<OutputValues> {
    let bytes = file.shared.place.read(&file.name, file.bytes)?;
    if bytes.len() as u64 != file.bytes || blake3::hash(&bytes) != file.checksum {
        return None;
    }
    let values = decode(&bytes, file.is_packed).ok().flatten()?;
    (values.rows() == file.rows && values.rows_known() == file.rows_known).then_some(values)
}

impl State {
    /// What a file is worth: nothing if memory has the same, else what its calls of late spared.
    fn look(&mut self, file: &SpillFile, cost: ReadCost) -> Stored<Key> {
        let (key, bytes) = (file.key, file.bytes);
        if file.is_in_memory.load(Ordering::Relaxed) {
            return Stored { key, worth: 0.0, bytes };
        }
        let uses = file.uses.load(Ordering::Relaxed);
        let calls = uses.saturating_sub(self.counted.insert(key, uses).unwrap_or(0));
        let worth = match self.admission.worth(key) {
            Some(worth) if calls == 0 => worth,
            _ => {
                let spared = cost.ns_spared(file.ns, bytes);
                self.admission.called(key, calls, spared, bytes)
            }
        };
        Stored { key, worth, bytes }
    }
}

#[cfg(test)]
mod tests;
