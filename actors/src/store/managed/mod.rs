//! Tables that this engine writes: Delta Lake in format, our own rules in commits.
//!
//! A commit writes one file per touched partition, then one log entry; commits of one process that
//! wait at the same time share an entry. It is acknowledged when the entry is durable, and it
//! carries on when the caller stops waiting. Checkpoints are made beside and may fail.

mod create;
mod maintain;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use deltalake_core::kernel::Add;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::{RwLock, Semaphore, oneshot};
use tracing::debug;

pub use self::maintain::VACUUM_AGE_MIN_MS;
use super::error::StoreError;
use super::log::entry::addition;
use super::log::load::Place;
use super::log::view::{Shape, View, new_file};
use super::log::{Log, Proposal, Verdict};
use super::read::{Footers, Pin, Request, read};
use super::rules::check_places;
use super::write::{Encoded, adopt_all, encode, put};
use crate::ports::{SharedClock, SystemClock};
use crate::segment::{Location, Rows, Segment};
use crate::table::{Change, Committed, Operation, Snapshot, Table, TableKind, TableStore};

/// Commits of one table that may be under way in one process.
const COMMITS_MAX: usize = 64;
/// Commits that share one log entry.
const GROUP_MAX: usize = 64;
/// Files of one commit that are written at the same time.
const FILES_AT_ONCE: usize = 4;

/// What can be set about a managed table.
#[derive(Clone, Debug)]
pub struct ManagedOptions {
    /// Where the time in the log comes from.
    pub clock: SharedClock,
    /// A checkpoint is made each time this many versions have passed; at least 1.
    pub checkpoint_every: u64,
}

impl Default for ManagedOptions {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), checkpoint_every: 100 }
    }
}

/// A Delta table that this process writes. Open it once per process: commits of one handle share
/// log entries, those of two handles compete.
#[derive(Clone, Debug)]
pub struct ManagedTable {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Arc<Table>,
    shape: Arc<Shape>,
    place: Place,
    options: ManagedOptions,
    newest: ArcSwap<Snapshot>,
    /// Held while an entry is written: one committer per table and process, first come first served.
    log: tokio::sync::Mutex<Log>,
    waiting: Mutex<VecDeque<Waiting>>,
    permits: Arc<Semaphore>,
    /// Commits hold it shared while their files are not in the log yet; vacuum holds it alone.
    files: RwLock<()>,
    footers: Footers,
    checkpointing: AtomicBool,
    tasks: Mutex<tokio::task::JoinSet<()>>,
}

/// A commit whose files are there, waiting for its turn.
#[derive(Debug)]
struct Waiting {
    proposal: Proposal,
    reply: oneshot::Sender<(Verdict, Arc<Snapshot>)>,
}

/// Clears a flag when it goes.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl ManagedTable {
    fn with_view(
        name: &str,
        place: Place,
        url: url::Url,
        view: View,
        options: ManagedOptions,
        puts_settle: bool,
    ) -> Self {
        let shape = Arc::clone(&view.shape);
        let table = Arc::new(Table {
            name: name.into(),
            schema: Arc::clone(&shape.logical),
            partitioning: view.layout.partitioning(),
            kind: TableKind::Managed,
            url: Some(url),
        });
        let newest = ArcSwap::new(view.snapshot(&table));
        let clock = Arc::clone(&options.clock);
        let log = Log::new(name, place.clone(), view, clock, puts_settle);
        let shared = Shared {
            table,
            shape,
            place,
            options,
            newest,
            log: tokio::sync::Mutex::new(log),
            waiting: Mutex::default(),
            permits: Arc::new(Semaphore::new(COMMITS_MAX)),
            files: RwLock::default(),
            footers: Footers::default(),
            checkpointing: AtomicBool::new(false),
            tasks: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The object store, rooted at the table: paths of segments are below it.
    #[must_use]
    pub fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.shared.place.store
    }

    /// Schema of the files, whose columns are those of the table in the same order.
    #[must_use]
    pub fn file_schema(&self) -> &arrow::datatypes::SchemaRef {
        &self.shared.shape.storage
    }
}

impl Shared {
    fn cut_off(&self, action: &'static str) -> StoreError {
        StoreError::CutOff { action, table: self.table.name.to_string() }
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.options.clock.now_ms()).unwrap_or(i64::MAX)
    }

    /// Everything of a commit: files, log entry, snapshot, checkpoint.
    async fn carry_out(self: Arc<Self>, change: Change) -> Result<Committed, StoreError> {
        let under_way = self.files.read().await;
        let written = self.write_files(&change).await?;
        let mut removed = change.removed;
        removed.sort_unstable();
        removed.dedup();
        let nothing = removed.is_empty() && written.is_empty() && change.layout.is_none();
        if nothing && change.transaction.is_none() {
            let snapshot = self.newest.load_full();
            return Ok(Committed { snapshot, added: vec![], rewritten: vec![] });
        }
        let proposal = Proposal {
            operation: change.operation,
            removed,
            added: written
                .iter()
                .map(|(segment, add, _)| (Arc::clone(segment), add.clone()))
                .collect(),
            layout: change.layout,
            transaction: change.transaction,
        };
        let (verdict, snapshot) = self.enter(proposal).await?;
        drop(under_way);
        match verdict {
            Verdict::Committed => {
                let added = written.into_iter().map(|(segment, _, rows)| (segment, rows));
                Ok(Committed { snapshot, added: added.collect(), rewritten: vec![] })
            }
            Verdict::Already => {
                self.discard(&written).await;
                Ok(Committed { snapshot, added: vec![], rewritten: vec![] })
            }
            Verdict::Refused(error) => {
                self.discard(&written).await;
                Err(error)
            }
            // The entry may still appear, and its files with it.
            Verdict::Failed(error) => Err(error),
        }
    }

    /// Writes the files of a change, several at once.
    async fn write_files(
        &self,
        change: &Change,
    ) -> Result<Vec<(Arc<Segment>, Add, Rows)>, StoreError> {
        let data_change = change.operation != Operation::Rewrite;
        let mut entries = Vec::with_capacity(change.added.len());
        check_places(&self.newest.load(), change)?;
        for (partition, batches) in &change.added {
            let rows = adopt_all(&self.table.name, &self.table.schema, batches)?;
            if !rows.is_empty() {
                entries.push((*partition, rows));
            }
        }
        let files = entries
            .into_iter()
            .map(|(partition, rows)| Box::pin(self.write_file(partition, rows, data_change)));
        futures::stream::iter(files).buffered(FILES_AT_ONCE).try_collect().await
    }

    async fn write_file(
        &self,
        partition: u32,
        rows: Vec<RecordBatch>,
        data_change: bool,
    ) -> Result<(Arc<Segment>, Add, Rows), StoreError> {
        let rows = Rows::from(rows);
        let (table, shape) = (Arc::clone(&self.table), Arc::clone(&self.shape));
        let input = Arc::clone(&rows);
        let encoded = tokio::task::spawn_blocking(move || {
            encode(&table.name, &shape.logical, &shape.storage, &input)
        });
        let encoded = encoded.await.map_err(|_ended| self.cut_off("write"))??;
        let Encoded { file, rows: count, resident_bytes, ranges, stats } = encoded;
        let path = new_file(partition, resident_bytes);
        let segment = Segment {
            id: self.shape.segment_id(&path),
            partition,
            rows: count,
            bytes: resident_bytes,
            columns: ranges,
            location: Location::Parquet {
                path: path.as_str().into(),
                file_bytes: file.len() as u64,
                row_group: None,
            },
            pinned: None,
        };
        let add = addition(&segment, stats, data_change, self.now_ms());
        let add = add.ok_or_else(|| StoreError::Corrupt {
            path: path.clone(),
            what: "it has more bytes than a log entry can say".to_owned(),
        })?;
        put(&self.place.store, &path, file).await?;
        Ok((Arc::new(segment), add, rows))
    }

    /// Removes files that no log entry names and none will. What stays behind, vacuum removes.
    async fn discard(&self, written: &[(Arc<Segment>, Add, Rows)]) {
        for (_, add, _) in written {
            if let Err(error) = self.place.store.delete(&Path::from(add.path.as_str())).await {
                debug!(path = add.path, %error, "file of a refused commit stays behind");
            }
        }
    }

    /// Gets a proposal into the log: whoever holds the log takes all that wait along.
    async fn enter(
        self: &Arc<Self>,
        proposal: Proposal,
    ) -> Result<(Verdict, Arc<Snapshot>), StoreError> {
        let (reply, mut answer) = oneshot::channel();
        self.queue().push_back(Waiting { proposal, reply });
        loop {
            let mut log = self.log.lock().await;
            match answer.try_recv() {
                Ok(answer) => return Ok(answer),
                Err(oneshot::error::TryRecvError::Closed) => return Err(self.cut_off("commit")),
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let group: Vec<Waiting> = {
                let mut queue = self.queue();
                let taken = queue.len().min(GROUP_MAX);
                queue.drain(..taken).collect()
            };
            let (proposals, replies): (Vec<_>, Vec<_>) =
                group.into_iter().map(|one| (one.proposal, one.reply)).unzip();
            let verdicts = Box::pin(log.commit(&proposals)).await;
            let snapshot = self.publish(log.view());
            for (reply, verdict) in replies.into_iter().zip(verdicts) {
                // The caller may be gone.
                drop(reply.send((verdict, Arc::clone(&snapshot))));
            }
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a new version to readers; makes a checkpoint if it is time.
    fn publish(self: &Arc<Self>, view: &View) -> Arc<Snapshot> {
        let shown = self.newest.load_full();
        if shown.version == view.version {
            return shown;
        }
        let snapshot = view.snapshot(&self.table);
        self.newest.store(Arc::clone(&snapshot));
        let every = self.options.checkpoint_every.max(1);
        let due = shown.version / every != view.version / every;
        if due && !self.checkpointing.swap(true, Ordering::AcqRel) {
            let shared = Arc::clone(self);
            let version = view.version;
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                // Also when the library panics.
                let _done = Done(&shared.checkpointing);
                shared.checkpoint_beside(version).await;
            });
        }
        snapshot
    }
}

#[async_trait]
impl TableStore for ManagedTable {
    fn table(&self) -> &Arc<Table> {
        &self.shared.table
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.newest.load_full()
    }

    async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError> {
        let mut log = self.shared.log.lock().await;
        let refreshed = Box::pin(log.refresh()).await;
        // What was read before an error is part of the table.
        let snapshot = self.shared.publish(log.view());
        refreshed.map(|()| snapshot)
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let cut_off = |_ended| self.shared.cut_off("commit");
        let permit = Arc::clone(&self.shared.permits)
            .acquire_owned()
            .await
            .map_err(|_closed| self.shared.cut_off("commit"))?;
        let shared = Arc::clone(&self.shared);
        let commit = Box::pin(async move {
            let _permit = permit;
            shared.carry_out(change).await
        });
        #[expect(
            clippy::disallowed_methods,
            reason = "a commit outlives the caller that waits for it"
        )]
        let commit = tokio::spawn(commit);
        commit.await.map_err(cut_off)?
    }

    async fn read(
        &self,
        segment: &Segment,
        projection: Option<&[usize]>,
    ) -> Result<SendableRecordBatchStream, StoreError> {
        let Location::Parquet { path, file_bytes, row_group } = &segment.location else {
            let table = self.shared.table.name.to_string();
            return Err(StoreError::NoSuchSegment { table, segment: segment.id });
        };
        let request = Request {
            pin: Pin { path: Path::from(path.as_ref()), size: *file_bytes, e_tag: None },
            row_group: *row_group,
            schema: &self.shared.table.schema,
            projection,
        };
        read(&self.shared.place.store, &self.shared.footers, request).await
    }
}
