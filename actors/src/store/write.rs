//! Makes one Parquet file of the rows of one segment, with the statistics that go into the log.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, WriteMultipart};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::error::{StoreError, WRITE};
use super::types::{cast_batch, cast_exact, has_dictionary};
use super::{stats, types};
use crate::segment::ColumnRange;

/// Files above this are uploaded in parts.
const ONE_PUT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Size of one part.
const PART_BYTES: usize = 16 * 1024 * 1024;

/// A segment's file before it has a place.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) file: Bytes,
    pub(crate) rows: u64,
    pub(crate) resident_bytes: u64,
    /// In logical types.
    pub(crate) ranges: Vec<ColumnRange>,
    /// As it stands in the log.
    pub(crate) stats: String,
}

/// Bytes that `rows` take in memory, counting a shared buffer only as far as it is used.
pub(crate) fn resident_bytes(rows: &[RecordBatch]) -> u64 {
    let columns = rows.iter().flat_map(RecordBatch::columns);
    columns
        .map(|column| {
            let data = column.to_data();
            data.get_slice_memory_size().unwrap_or_else(|_odd| data.get_array_memory_size()) as u64
        })
        .sum()
}

/// Encodes rows that have the logical schema. CPU-bound: call it off the runtime.
pub(crate) fn encode(
    table: &str,
    logical: &SchemaRef,
    storage: &SchemaRef,
    rows: &[RecordBatch],
) -> Result<Encoded, StoreError> {
    let arrow = |error| StoreError::arrow(table, error);
    let stored: Result<Vec<RecordBatch>, _> =
        rows.iter().map(|batch| cast_batch(batch, storage)).collect();
    let stored = stored.map_err(arrow)?;
    check_dictionaries(logical, &stored).map_err(arrow)?;
    let ranges = stats::measure(storage, &stored).map_err(|error| {
        StoreError::arrow(table, arrow::error::ArrowError::from_external_error(Box::new(error)))
    })?;
    let count = rows.iter().map(|batch| batch.num_rows() as u64).sum();
    Ok(Encoded {
        file: to_parquet(table, storage, &stored)?,
        rows: count,
        resident_bytes: resident_bytes(rows),
        stats: stats::to_stats(storage, count, &ranges),
        ranges: stats::to_logical(&ranges, logical),
    })
}

/// Makes sure that the keys of dictionary columns suffice for all values of the segment: batches
/// are cut differently when they are read.
fn check_dictionaries(
    logical: &SchemaRef,
    stored: &[RecordBatch],
) -> Result<(), arrow::error::ArrowError> {
    for (ordinal, field) in logical.fields().iter().enumerate() {
        if has_dictionary(field.data_type()) {
            let parts: Vec<&dyn Array> =
                stored.iter().map(|batch| batch.column(ordinal).as_ref()).collect();
            cast_exact(&arrow::compute::concat(&parts)?, field.data_type())?;
        }
    }
    Ok(())
}

fn to_parquet(
    table: &str,
    storage: &SchemaRef,
    stored: &[RecordBatch],
) -> Result<Bytes, StoreError> {
    let failed = |error| StoreError::parquet(table, error);
    let leaves = ArrowSchemaConverter::new().convert(storage).map_err(failed)?;
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(concat!("foreshard ", env!("CARGO_PKG_VERSION")).to_owned());
    for leaf in leaves.columns() {
        // Statistics ignore NaN; values inside lists and structs are not searched for it.
        let path = leaf.path();
        let top = storage.column_with_name(&path.parts()[0]);
        let unsafe_to_prune = match top {
            Some((ordinal, field)) if path.parts().len() == 1 => {
                !stats::is_bounded(field.data_type())
                    || stored.iter().any(|batch| stats::has_nan(batch.column(ordinal)))
            }
            _ => true,
        };
        if unsafe_to_prune {
            properties =
                properties.set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
        }
    }
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, Arc::clone(storage), Some(properties.build()))
        .map_err(failed)?;
    for batch in stored {
        writer.write(batch).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(file.into())
}

/// Stores a file under a name that nothing else has.
pub(crate) async fn put(
    store: &Arc<dyn ObjectStore>,
    path: &str,
    file: Bytes,
) -> Result<(), StoreError> {
    let at = Path::from(path);
    let failed = |error| StoreError::io(WRITE, path, error);
    if file.len() <= ONE_PUT_BYTES_MAX {
        // Not `Create`: the store may send it again when an answer is lost.
        let options = PutOptions::from(PutMode::Overwrite);
        return store.put_opts(&at, file.into(), options).await.map(drop).map_err(failed);
    }
    let upload = store.put_multipart(&at).await.map_err(failed)?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    upload.put(file);
    upload.finish().await.map(drop).map_err(failed)
}

/// Checks the batches of one entry of a change, drops empty ones, gives them the table's schema.
pub(crate) fn adopt_all(
    table: &str,
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<Vec<RecordBatch>, StoreError> {
    batches
        .iter()
        .filter(|batch| batch.num_rows() > 0)
        .map(|batch| types::adopt(batch, schema, table))
        .collect()
}
