//! Prepares the commit that splits a partition or merges two: their rows, dealt out anew.
//!
//! ```text
//! split: segments of 3 -> rows left of the cut -> segments of 5      merge: segments of 5 -.
//!                      `-> rows right of it ---> segments of 6              segments of 6 --`-> segments of 7
//! ```
//!
//! Rows keep their order, and what is stored of them can follow: [`Prepared::rewritten`] says where each
//! new segment has its rows from. Small segments become one on the way.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use foreshard_policy::ids::SegmentId;
use futures::TryStreamExt;

use super::error::StoreError;
use crate::layout::{Cut, KeyUse, Layout, Loaded, Relayout};
use crate::segment::{Rows, Segment};
use crate::table::{Change, NewLayout, Operation, Rewritten, Snapshot, TableKind, TableStore};

/// Resident bytes that a new segment is filled up to.
const SEGMENT_BYTES: u64 = 64 << 20;

/// What is to become of partitions.
#[derive(Clone, Copy, Debug)]
pub enum Reshape<'a> {
    /// One becomes two.
    Split {
        /// The partition.
        ordinal: u32,
        /// The key at which the right one begins; `None` for the middle of the rows.
        at: Option<&'a str>,
    },
    /// One becomes two, where few queries span the cut.
    SplitByUse {
        /// The partition.
        ordinal: u32,
        /// What is known of the queries.
        used: &'a KeyUse,
    },
    /// One becomes two, at the same place as one of another table.
    SplitAt {
        /// The partition.
        ordinal: u32,
        /// The place.
        cut: &'a Cut,
    },
    /// Two neighbours become one.
    Merge {
        /// One of them.
        one: u32,
        /// The other one.
        other: u32,
    },
}

impl Reshape<'_> {
    /// The partition that ends, or one of the two.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        match self {
            Self::Split { ordinal, .. }
            | Self::SplitByUse { ordinal, .. }
            | Self::SplitAt { ordinal, .. }
            | Self::Merge { one: ordinal, .. } => *ordinal,
        }
    }
}

/// A commit that is ready to be made.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The commit.
    pub change: Change,
    /// Partitions that end with it, in the order of their keys.
    pub gone: Vec<u32>,
    /// Partitions that begin with it, in the order of their keys, with their rows.
    pub new: Vec<(u32, u64)>,
    /// Where a partition is cut, and why there; none if two are merged.
    pub cut: Option<(Cut, String)>,
    /// Where each of the added entries has its rows from.
    origins: Vec<Vec<(SegmentId, BooleanBuffer)>>,
}

/// A new segment that is being filled.
#[derive(Default)]
struct Filling {
    batches: Vec<RecordBatch>,
    origin: Vec<(SegmentId, BooleanBuffer)>,
    bytes: u64,
}

impl Prepared {
    /// Notes that people asked for it: the loop keeps to as many partitions as they want.
    pub fn asked_for(&mut self) {
        if let Some(NewLayout { from, to }) = &mut self.change.layout {
            *to = Arc::new(Layout::clone(to).asked_for(from));
        }
    }

    /// Where the segments that the commit `added` have their rows from.
    #[must_use]
    pub fn rewritten(&self, added: &[(Arc<Segment>, Rows)]) -> Vec<Rewritten> {
        if added.len() != self.origins.len() {
            return vec![]; // A store that adds other segments than it is told.
        }
        let pairs = added.iter().zip(&self.origins);
        pairs
            .map(|((segment, _), kept)| Rewritten { segment: segment.id, kept: kept.clone() })
            .collect()
    }
}

/// Prepares what `reshape` asks for on the newest snapshot of `store`. Reads the rows of the partitions
/// into memory.
///
/// # Errors
/// [`StoreError::ReadOnly`] if the table is not written by us, what
/// [`Layout`](crate::layout::Layout) says against the split or merge, or a failure to read.
pub async fn prepare(store: &dyn TableStore, reshape: Reshape<'_>) -> Result<Prepared, StoreError> {
    let table = store.table();
    if table.kind == TableKind::Parquet {
        return Err(StoreError::ReadOnly { table: table.name.to_string() });
    }
    let snapshot = store.snapshot();
    let layout = &snapshot.layout;
    match reshape {
        Reshape::Split { ordinal, at: Some(key) } => {
            let cut = layout.cut_at(ordinal, key)?;
            let why = "that is where people wanted it".to_owned();
            split(store, &snapshot, ordinal, (cut, why)).await
        }
        Reshape::SplitAt { ordinal, cut } => {
            let why = "another table with the same keys is cut there".to_owned();
            split(store, &snapshot, ordinal, (cut.clone(), why)).await
        }
        Reshape::Split { ordinal, at: None } => {
            split_by_use(store, &snapshot, ordinal, &KeyUse::default()).await
        }
        Reshape::SplitByUse { ordinal, used } => {
            split_by_use(store, &snapshot, ordinal, used).await
        }
        Reshape::Merge { one, other } => {
            let relayout = layout.merge(one, other)?;
            let held = read(store, &snapshot, &relayout.gone).await?;
            deal_out(store, &snapshot, relayout, held)
        }
    }
}

async fn split(
    store: &dyn TableStore,
    snapshot: &Snapshot,
    ordinal: u32,
    (cut, why): (Cut, String),
) -> Result<Prepared, StoreError> {
    // Before anything is read.
    let relayout = snapshot.layout.split(&store.table().schema, ordinal, &cut)?;
    let held = read(store, snapshot, &[ordinal]).await?;
    Ok(Prepared { cut: Some((cut, why)), ..deal_out(store, snapshot, relayout, held)? })
}

async fn split_by_use(
    store: &dyn TableStore,
    snapshot: &Snapshot,
    ordinal: u32,
    used: &KeyUse,
) -> Result<Prepared, StoreError> {
    let held = read(store, snapshot, &[ordinal]).await?;
    let rows = held.iter().map(|(segment, rows)| (rows, used.loads.get(&segment.id)));
    let rows: Vec<Loaded<'_>> = rows.collect();
    let (cut, why) = snapshot.layout.best_cut(ordinal, &rows, used)?;
    let relayout = snapshot.layout.split(&store.table().schema, ordinal, &cut)?;
    Ok(Prepared { cut: Some((cut, why)), ..deal_out(store, snapshot, relayout, held)? })
}

async fn read(
    store: &dyn TableStore,
    snapshot: &Snapshot,
    ordinals: &[u32],
) -> Result<Vec<(Arc<Segment>, RecordBatch)>, StoreError> {
    let table = store.table();
    let mut held = vec![];
    let of = |ordinal: &u32| snapshot.partitions.get(*ordinal as usize);
    for segment in ordinals.iter().filter_map(of).flat_map(|segments| segments.iter()) {
        let stream = store.read(segment, None).await?;
        let batches: Vec<RecordBatch> =
            stream.try_collect().await.map_err(|error| StoreError::rows(&table.name, error))?;
        let rows = arrow::compute::concat_batches(&table.schema, &batches)
            .map_err(|error| StoreError::arrow(&table.name, error))?;
        held.push((Arc::clone(segment), rows));
    }
    Ok(held)
}

/// Gathers the rows of each new partition in their order.
fn deal_out(
    store: &dyn TableStore,
    snapshot: &Snapshot,
    relayout: Relayout,
    held: Vec<(Arc<Segment>, RecordBatch)>,
) -> Result<Prepared, StoreError> {
    let name = &store.table().name;
    let mut filling: BTreeMap<u32, Filling> = BTreeMap::new();
    let mut full: Vec<(u32, Filling)> = vec![];
    let mut rows_of: BTreeMap<u32, u64> = BTreeMap::new();
    let mut removed = vec![];
    for (segment, rows) in held {
        removed.push(segment.id);
        // What is merged is merged whole, wherever its keys belong.
        let owners = match relayout.new.as_slice() {
            [only] => vec![*only; rows.num_rows()],
            _ => relayout.to.owners(&rows)?,
        };
        for new in &relayout.new {
            let mask: BooleanBuffer = owners.iter().map(|owner| owner == new).collect();
            let count = mask.count_set_bits();
            if count == 0 {
                continue;
            }
            let piece = filter_record_batch(&rows, &BooleanArray::from(mask.clone()))
                .map_err(|error| StoreError::arrow(name, error))?;
            let share = count as f64 / rows.num_rows() as f64;
            let bytes = (segment.bytes as f64 * share) as u64;
            let into = filling.entry(*new).or_default();
            if !into.batches.is_empty() && into.bytes + bytes > SEGMENT_BYTES {
                full.push((*new, std::mem::take(into)));
            }
            into.batches.push(piece);
            into.origin.push((segment.id, mask));
            into.bytes += bytes;
            *rows_of.entry(*new).or_default() += count as u64;
        }
        if let Some(stray) = owners.iter().find(|owner| !relayout.new.contains(owner)) {
            // Not a row may be left behind.
            return Err(StoreError::Corrupt {
                path: segment.id.to_string(),
                what: format!("it has a row that belongs to partition {stray}"),
            });
        }
    }
    full.extend(filling);
    let (mut added, mut origins) = (vec![], vec![]);
    for (ordinal, filled) in full {
        added.push((ordinal, filled.batches));
        origins.push(filled.origin);
    }
    let new = relayout.new.iter().map(|new| (*new, rows_of.get(new).copied().unwrap_or(0)));
    let layout = NewLayout { from: Arc::clone(&snapshot.layout), to: Arc::new(relayout.to) };
    Ok(Prepared {
        new: new.collect(),
        gone: relayout.gone,
        cut: None,
        change: Change {
            operation: Operation::Rewrite,
            removed,
            added,
            layout: Some(layout),
            transaction: None,
        },
        origins,
    })
}
