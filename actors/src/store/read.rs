//! Reads one Parquet segment: chosen columns, cast exactly to the table's schema, in batches.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::error::{READ, StoreError};
use super::types::cast_exact;

/// Rows of one batch.
pub(crate) const BATCH_ROWS: usize = 8_192;
/// Bytes read from the end of a file at once, in the hope that they hold its footer.
const FOOTER_BYTES: usize = 64 * 1024;
/// Footers that are remembered per table.
const FOOTERS_MAX: usize = 256;

/// A file as it was when the snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pin {
    /// Path below the root of the table.
    pub(crate) path: Path,
    /// Size in bytes.
    pub(crate) size: u64,
    /// What the store calls this version of the file; each request asks for exactly this one.
    pub(crate) e_tag: Option<String>,
}

/// Reads ranges of one pinned file.
#[derive(Clone, Debug)]
pub(crate) struct FileReader {
    store: Arc<dyn ObjectStore>,
    pin: Pin,
}

impl FileReader {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, pin: Pin) -> Self {
        Self { store, pin }
    }

    async fn range(&self, range: Range<u64>) -> Result<Bytes, ParquetError> {
        let failed = |error| {
            ParquetError::External(Box::new(StoreError::io(READ, self.pin.path.as_ref(), error)))
        };
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: self.pin.e_tag.clone(),
            ..GetOptions::default()
        };
        let object = self.store.get_opts(&self.pin.path, options).await.map_err(failed)?;
        if object.meta.size != self.pin.size {
            let path = self.pin.path.to_string();
            return Err(ParquetError::External(Box::new(StoreError::Changed { path })));
        }
        object.bytes().await.map_err(failed)
    }
}

impl AsyncFileReader for FileReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        self.range(range).boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move {
            let this = &*self;
            object_store::coalesce_ranges(
                &ranges,
                |range| this.range(range),
                object_store::OBJECT_STORE_COALESCE_DEFAULT,
            )
            .await
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let size = self.pin.size;
            let reader = ParquetMetaDataReader::new()
                .with_arrow_reader_options(options)
                .with_prefetch_hint(Some(FOOTER_BYTES));
            Ok(Arc::new(reader.load_and_finish(self, size).await?))
        }
        .boxed()
    }
}

/// Footers of files that were read lately.
#[derive(Debug, Default)]
pub(crate) struct Footers(Mutex<HashMap<Pin, ArrowReaderMetadata>>);

impl Footers {
    /// Reads the footer anew when it is asked for again: the file may be another one, of which a store
    /// without entity tags says the same.
    pub(crate) fn forget(&self, pin: &Pin) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(pin);
    }

    /// The footer of a file, from memory if it was read before.
    pub(crate) async fn of(
        &self,
        store: &Arc<dyn ObjectStore>,
        pin: &Pin,
    ) -> Result<ArrowReaderMetadata, StoreError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(pin).cloned();
        if let Some(footer) = known {
            return Ok(footer);
        }
        let mut reader = FileReader::new(Arc::clone(store), pin.clone());
        let options = ArrowReaderOptions::new();
        let footer = ArrowReaderMetadata::load_async(&mut reader, options)
            .await
            .map_err(|error| StoreError::parquet(pin.path.as_ref(), error))?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= FOOTERS_MAX {
            known.clear();
        }
        known.insert(pin.clone(), footer.clone());
        Ok(footer)
    }
}

/// Which part of which file is read as what.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) pin: Pin,
    pub(crate) row_group: Option<u32>,
    pub(crate) schema: &'a SchemaRef,
    pub(crate) projection: Option<&'a [usize]>,
}

/// The rows of one segment, in their order, with the projected columns in the order asked for.
pub(crate) async fn read(
    store: &Arc<dyn ObjectStore>,
    footers: &Footers,
    request: Request<'_>,
) -> Result<SendableRecordBatchStream, StoreError> {
    let Request { pin, row_group, schema, projection } = request;
    let path = pin.path.to_string();
    let schema = match projection {
        None => Arc::clone(schema),
        Some(columns) => {
            Arc::new(schema.project(columns).map_err(|error| StoreError::arrow(&path, error))?)
        }
    };
    let footer = footers.of(store, &pin).await?;
    let roots: Result<Vec<usize>, StoreError> = schema
        .fields()
        .iter()
        .map(|field| {
            footer.schema().index_of(field.name()).map_err(|_unknown| StoreError::SchemaMismatch {
                path: path.clone(),
                expected: format!("a column {:?}", field.name()),
                found: format!("{} columns without it", footer.schema().fields().len()),
            })
        })
        .collect();
    let roots = roots?;
    let reader = FileReader::new(Arc::clone(store), pin);
    let mask = ProjectionMask::roots(footer.parquet_schema(), roots.iter().copied());
    let mut builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, footer)
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS);
    if let Some(row_group) = row_group {
        builder = builder.with_row_groups(vec![row_group as usize]);
    }
    let batches = builder.build().map_err(|error| StoreError::parquet(&path, error))?;
    let order = order_of(&roots);
    let shaped = Arc::clone(&schema);
    let rows = batches.map(move |batch| {
        let batch = batch.map_err(|error| StoreError::parquet(&path, error))?;
        shape(&batch, &order, &shaped).map_err(|error| StoreError::arrow(&path, error))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.map_err(Into::into))))
}

/// Position of each root among the roots in the file's order, which is how the reader gives them.
fn order_of(roots: &[usize]) -> Vec<usize> {
    let in_file: std::collections::BTreeSet<usize> = roots.iter().copied().collect();
    roots.iter().map(|root| in_file.range(..root).count()).collect()
}

fn shape(
    batch: &RecordBatch,
    order: &[usize],
    schema: &SchemaRef,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let columns: Result<Vec<_>, _> = order
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| cast_exact(batch.column(*column), field.data_type()))
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns?, &options)
}

#[cfg(test)]
mod tests {
    use super::order_of;

    #[test]
    fn columns_come_back_in_the_order_asked_for() {
        assert_eq!(order_of(&[7, 2, 5]), [2, 0, 1]);
        assert_eq!(order_of(&[3, 3, 1]), [1, 1, 0]);
        assert_eq!(order_of(&[]), [0; 0]);
    }
}
