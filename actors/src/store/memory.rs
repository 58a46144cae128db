//! Tables in memory: the rules of a commit without files. The rows here are the only ones.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use foreshard_policy::ids::SegmentId;

use super::error::{ConflictReason, StoreError};
use super::rules::{Places, check_places};
use super::stats;
use super::write::{adopt_all, resident_bytes};
use crate::layout::Layout;
use crate::partitioning::Partitioning;
use crate::segment::{Location, Rows, Segment};
use crate::table::{Change, Committed, Snapshot, Table, TableKind, TableStore};

/// A table whose rows are lost when the process ends.
///
/// Rows of a removed segment stay readable as long as a snapshot that has it is alive.
#[derive(Debug)]
pub struct MemoryTable {
    table: Arc<Table>,
    newest: ArcSwap<State>,
    writer: Mutex<Writer>,
}

/// What readers see: swapped as a whole.
#[derive(Debug)]
struct State {
    snapshot: Arc<Snapshot>,
    rows: HashMap<SegmentId, Rows>,
}

/// What only writers need.
#[derive(Debug, Default)]
struct Writer {
    transactions: HashMap<String, i64>,
    /// Rows of removed segments that a snapshot may still ask for.
    retired: Vec<(std::sync::Weak<Segment>, Rows)>,
}

impl MemoryTable {
    /// Makes an empty table.
    ///
    /// # Errors
    /// If the table cannot be partitioned as asked.
    pub fn create(
        name: &str,
        schema: SchemaRef,
        partitioning: Partitioning,
    ) -> Result<Self, StoreError> {
        partitioning.check(&schema)?;
        let layout = Arc::new(Layout::new(&partitioning));
        let partitions = vec![Arc::default(); layout.places() as usize];
        let kind = TableKind::Memory;
        let table = Arc::new(Table { name: name.into(), schema, partitioning, kind, url: None });
        let snapshot = Snapshot { table: Arc::clone(&table), version: 0, layout, partitions };
        let snapshot = Arc::new(snapshot);
        let newest = ArcSwap::from_pointee(State { snapshot, rows: HashMap::new() });
        Ok(Self { table, newest, writer: Mutex::default() })
    }

    /// The rows of a segment without copying them; `None` if no snapshot that has it is alive.
    #[must_use]
    pub fn rows(&self, segment: SegmentId) -> Option<Rows> {
        if let Some(rows) = self.newest.load().rows.get(&segment) {
            return Some(Arc::clone(rows));
        }
        let writer = self.writer();
        let retired = writer.retired.iter();
        let mut alive = retired.filter_map(|(kept, rows)| Some((kept.upgrade()?, rows)));
        alive.find(|(kept, _)| kept.id == segment).map(|(_, rows)| Arc::clone(rows))
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits in one step, without waiting for anything but other commits.
    ///
    /// # Errors
    /// As [`TableStore::commit`].
    pub fn commit_now(&self, change: Change) -> Result<Committed, StoreError> {
        let added = self.segments_of(&change)?;
        let mut writer = self.writer();
        let state = self.newest.load_full();
        if let Some((application, sequence)) = &change.transaction {
            match writer.transactions.get(application) {
                Some(newest) if newest == sequence => {
                    let snapshot = Arc::clone(&state.snapshot);
                    return Ok(Committed { snapshot, added: vec![], rewritten: vec![] });
                }
                Some(newest) if newest > sequence => {
                    return Err(StoreError::Fenced {
                        table: self.table.name.to_string(),
                        application: application.clone(),
                        sequence: *sequence,
                        newest: *newest,
                    });
                }
                _ => {}
            }
        }
        let removed: HashSet<SegmentId> = change.removed.iter().copied().collect();
        let conflict = |reason| StoreError::Conflict { table: self.table.name.to_string(), reason };
        if let Some(segment) = change.removed.iter().find(|id| !state.rows.contains_key(id)) {
            return Err(conflict(ConflictReason::SegmentGone { segment: *segment }));
        }
        let places =
            Places { layout: &state.snapshot.layout, partitions: &state.snapshot.partitions };
        let added_to = added.iter().map(|(segment, _)| segment.partition);
        places
            .judge(added_to, |id| removed.contains(&id), change.layout.as_ref())
            .map_err(conflict)?;
        let nothing = removed.is_empty() && added.is_empty() && change.layout.is_none();
        if nothing && change.transaction.is_none() {
            let snapshot = Arc::clone(&state.snapshot);
            return Ok(Committed { snapshot, added, rewritten: vec![] });
        }
        let layout = change.layout.map(|layout| layout.to);
        let next = Arc::new(state.next(&removed, &added, layout));
        writer.retire(&state, &removed);
        writer.transactions.extend(change.transaction);
        self.newest.store(Arc::clone(&next));
        Ok(Committed { snapshot: Arc::clone(&next.snapshot), added, rewritten: vec![] })
    }

    fn segments_of(&self, change: &Change) -> Result<Vec<(Arc<Segment>, Rows)>, StoreError> {
        let mut added = Vec::with_capacity(change.added.len());
        check_places(&self.newest.load().snapshot, change)?;
        for (partition, batches) in &change.added {
            let rows = adopt_all(&self.table.name, &self.table.schema, batches)?;
            if rows.is_empty() {
                continue;
            }
            let columns = stats::measure_logical(&self.table.schema, &rows);
            let bytes = resident_bytes(&rows);
            let rows = Rows::from(rows);
            let segment = Segment {
                id: SegmentId(uuid::Uuid::new_v4().as_u128()),
                partition: *partition,
                rows: rows.iter().map(|batch| batch.num_rows() as u64).sum(),
                bytes,
                columns,
                location: Location::Memory,
                pinned: Some(Arc::clone(&rows)),
            };
            added.push((Arc::new(segment), rows));
        }
        Ok(added)
    }
}

impl State {
    fn next(
        &self,
        removed: &HashSet<SegmentId>,
        added: &[(Arc<Segment>, Rows)],
        layout: Option<Arc<Layout>>,
    ) -> Self {
        let layout = layout.unwrap_or_else(|| Arc::clone(&self.snapshot.layout));
        let mut partitions = self.snapshot.partitions.clone();
        partitions.resize(layout.places() as usize, Arc::default());
        for partition in &mut partitions {
            if partition.iter().any(|segment| removed.contains(&segment.id)) {
                Arc::make_mut(partition).retain(|segment| !removed.contains(&segment.id));
            }
        }
        let mut rows = self.rows.clone();
        rows.retain(|id, _| !removed.contains(id));
        for (segment, batches) in added {
            let partition = &mut partitions[segment.partition as usize];
            Arc::make_mut(partition).push(Arc::clone(segment));
            rows.insert(segment.id, Arc::clone(batches));
        }
        let table = Arc::clone(&self.snapshot.table);
        let version = self.snapshot.version + 1;
        Self { snapshot: Arc::new(Snapshot { table, version, layout, partitions }), rows }
    }
}

impl Writer {
    /// Keeps the rows of removed segments for snapshots that still have them.
    fn retire(&mut self, state: &State, removed: &HashSet<SegmentId>) {
        self.retired.retain(|(segment, _)| segment.strong_count() > 0);
        let gone = state.snapshot.segments().filter(|segment| removed.contains(&segment.id));
        for segment in gone {
            if let Some(rows) = state.rows.get(&segment.id) {
                self.retired.push((Arc::downgrade(segment), Arc::clone(rows)));
            }
        }
    }
}

#[async_trait]
impl TableStore for MemoryTable {
    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.newest.load().snapshot)
    }

    async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError> {
        Ok(self.snapshot())
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        self.commit_now(change)
    }

    async fn read(
        &self,
        segment: &Segment,
        projection: Option<&[usize]>,
    ) -> Result<SendableRecordBatchStream, StoreError> {
        let table = &self.table.name;
        let rows = self.rows(segment.id).ok_or_else(|| StoreError::NoSuchSegment {
            table: table.to_string(),
            segment: segment.id,
        })?;
        let arrow = |error| StoreError::arrow(table, error);
        let (schema, rows) = match projection {
            None => (Arc::clone(&self.table.schema), rows.to_vec()),
            Some(columns) => {
                let schema = self.table.schema.project(columns).map_err(arrow)?;
                let rows: Result<Vec<_>, _> =
                    rows.iter().map(|batch| batch.project(columns)).collect();
                (Arc::new(schema), rows.map_err(arrow)?)
            }
        };
        let rows = futures::stream::iter(rows.into_iter().map(Ok));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}
