//! The rows of a segment: from memory if they are there, else from the store.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use foreshard_actors::node::NodeState;
use foreshard_actors::partition::{ComputeError, Held};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::query::scan::ScanSegment;
use crate::query::stream::work::Work;

/// The rows of a segment over the columns that are needed, in slices of at most a batch.
///
/// Looks at its arguments before the first wait, and holds none of them while it waits.
pub(super) fn read(
    work: &Work,
    most: usize,
    node: &NodeState,
    scan: &ScanSegment,
    held: Option<&Held>,
) -> impl Future<Output = Result<Batches>> + Send + use<> {
    let resident = held.and_then(|held| held.rows.as_ref()).map(|rows| Arc::clone(&rows.rows));
    let resident = resident.or_else(|| scan.segment.pinned.clone());
    let columns = work.columns.clone();
    let store = node.tables.store(&work.table);
    let (table, segment) = (Arc::clone(&work.table), Arc::clone(&scan.segment));
    async move {
        if let Some(rows) = resident {
            return Ok(stream::iter(slices(rows, columns, most)).boxed());
        }
        let store = store
            .ok_or_else(|| DataFusionError::External(Box::new(ComputeError::NoTable { table })))?;
        let read = store.read(&segment, Some(&columns)).await;
        Ok(read.map_err(|error| DataFusionError::External(Box::new(error)))?.boxed())
    }
}

pub(super) type Batches = BoxStream<'static, Result<RecordBatch>>;

pub(super) fn slices(
    rows: foreshard_actors::segment::Rows,
    columns: Vec<usize>,
    most: usize,
) -> impl Iterator<Item = Result<RecordBatch>> + Send {
    (0..rows.len()).flat_map(move |i| {
        let batch = rows[i].project(&columns);
        let all = rows[i].num_rows();
        (0..all).step_by(most).map(move |start| match &batch {
            Ok(batch) => Ok(batch.slice(start, most.min(all - start))),
            Err(error) => Err(exec_datafusion_err!("segment has no such column: {error}")),
        })
    })
}
