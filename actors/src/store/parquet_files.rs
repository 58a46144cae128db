//! Tables over Parquet files that exist already: never written, each row group a segment.
//!
//! A segment's id contains what the store says of its file (size, entity tag, time), and each read
//! asks for exactly that file: one that is replaced gives an error, not other rows. Files that were
//! replaced, added or removed are found when the table is refreshed, which a query does before it reads.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arrow::array::{Array, BooleanArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use foreshard_policy::ids::SegmentId;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::RowGroupMetaData;
use url::Url;

use super::error::{LIST, READ, StoreError};
use super::location::Location as Resolved;
use super::log::view::segment_id;
use super::read::{Footers, Pin, Request, read};
use crate::layout::Layout;
use crate::partitioning::Partitioning;
use crate::segment::{ColumnRange, Location, Segment};
use crate::table::{Change, Committed, Snapshot, Table, TableKind, TableStore};

/// Footers that are read at the same time.
const FOOTERS_AT_ONCE: usize = 16;

/// A read-only table over a file, a folder or a prefix of an object store.
#[derive(Debug)]
pub struct ParquetTable {
    table: Arc<Table>,
    source: Source,
    newest: ArcSwap<State>,
    refreshing: tokio::sync::Mutex<()>,
    footers: Footers,
}

/// What is listed.
#[derive(Debug)]
struct Source {
    url: Url,
    /// Rooted at the folder, or at the folder of the one file.
    store: Arc<dyn ObjectStore>,
    only: Option<Path>,
    /// Files in folders below count too. They do not where there were none when the table was opened:
    /// then it may stand for one that DataFusion would have made, which passes them over.
    is_nested: bool,
}

#[derive(Debug)]
struct State {
    snapshot: Arc<Snapshot>,
    files: Vec<Arc<ParquetFile>>,
    pins: HashMap<SegmentId, Pin>,
}

/// A file with its row groups; the partition of its segments is not set yet.
#[derive(Debug)]
struct ParquetFile {
    pin: Pin,
    modified_us: i64,
    schema: SchemaRef,
    segments: Vec<Segment>,
}

impl ParquetTable {
    /// Opens the Parquet file at `url`, or all files ending in `.parquet` below it, as a table of
    /// `partitions` partitions. Names that begin with `_` or `.` are passed over.
    ///
    /// # Errors
    /// [`StoreError::NotATable`] if there is no such file, [`StoreError::Corrupt`] naming the file
    /// that is not a whole Parquet file, [`StoreError::SchemaMismatch`] naming the file that
    /// has other columns than the first one.
    pub async fn open(
        name: &str,
        url: &Url,
        store: Option<Arc<dyn ObjectStore>>,
        partitions: u32,
    ) -> Result<Self, StoreError> {
        let mut source = Source::find(url, store).await?;
        let footers = Footers::default();
        let files = source.files(&footers, &[]).await?;
        if files.is_empty() {
            let what = "there is no such file and no file ending in .parquet below it";
            return Err(StoreError::NotATable { url: url.to_string(), what });
        }
        source.is_nested = files.iter().any(|file| is_below_a_folder(&file.pin.path));
        let schema = common_schema(&files)?;
        let partitioning = Partitioning::Files { partitions };
        partitioning.check(&schema)?;
        let kind = TableKind::Parquet;
        let url = Some(url.clone());
        let table = Arc::new(Table { name: name.into(), schema, partitioning, kind, url });
        let newest = ArcSwap::from_pointee(State::new(&table, 0, files));
        let refreshing = tokio::sync::Mutex::default();
        Ok(Self { table, source, newest, refreshing, footers })
    }

    /// The object store that paths of segments are in.
    #[must_use]
    pub fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.source.store
    }
}

impl Source {
    async fn find(url: &Url, store: Option<Arc<dyn ObjectStore>>) -> Result<Self, StoreError> {
        let location = Resolved::resolve(url, store)?;
        let url = url.clone();
        let Some(name) = location.path.filename().map(ToOwned::to_owned) else {
            return Ok(Self { url, store: location.root, only: None, is_nested: true });
        };
        match location.root.head(&location.path).await {
            Ok(_) => {
                let parts: Vec<_> = location.path.parts().collect();
                let folder = Path::from_iter(parts[..parts.len() - 1].iter().cloned());
                let only = Path::parse(name).ok();
                Ok(Self { url, store: location.store_at(&folder), only, is_nested: true })
            }
            Err(object_store::Error::NotFound { .. }) => Ok(Self {
                url,
                store: location.store_at(&location.path),
                only: None,
                is_nested: true,
            }),
            Err(error) => Err(StoreError::io(READ, location.path.as_ref(), error)),
        }
    }

    /// What is there now; nothing if all of it was removed.
    async fn list(&self) -> Result<Vec<ObjectMeta>, StoreError> {
        let failed = |error| StoreError::io(LIST, self.url.as_str(), error);
        if let Some(file) = &self.only {
            return match self.store.head(file).await {
                // A store with a prefix leaves the prefix in what `head` says.
                Ok(object) => Ok(vec![ObjectMeta { location: file.clone(), ..object }]),
                Err(object_store::Error::NotFound { .. }) => Ok(vec![]),
                Err(error) => Err(failed(error)),
            };
        }
        let mut objects: Vec<ObjectMeta> = match self.store.list(None).try_collect().await {
            Ok(objects) => objects,
            Err(object_store::Error::NotFound { .. }) => vec![],
            Err(error) => return Err(failed(error)),
        };
        objects.retain(|object| {
            is_data(&object.location) && (self.is_nested || !is_below_a_folder(&object.location))
        });
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(objects)
    }

    /// The files that are there now; footers of `known` ones are not read again.
    async fn files(
        &self,
        footers: &Footers,
        known: &[Arc<ParquetFile>],
    ) -> Result<Vec<Arc<ParquetFile>>, StoreError> {
        let known: HashMap<&Path, &Arc<ParquetFile>> =
            known.iter().map(|file| (&file.pin.path, file)).collect();
        let files = self.list().await?.into_iter().map(|object| {
            let pin = pin_of(&object);
            let known = known.get(&pin.path).filter(|file| file.is_still(&object));
            let known = known.map(|file| Arc::clone(file));
            async move {
                match known {
                    Some(file) => Ok(file),
                    None => {
                        footers.forget(&pin);
                        let footer = footers.of(&self.store, &pin).await?;
                        Ok(Arc::new(ParquetFile::new(pin, &object, &footer)?))
                    }
                }
            }
        });
        futures::stream::iter(files).buffered(FOOTERS_AT_ONCE).try_collect().await
    }
}

fn is_below_a_folder(path: &Path) -> bool {
    path.parts().nth(1).is_some()
}

fn is_data(path: &Path) -> bool {
    path.as_ref().to_lowercase().ends_with(".parquet")
        && !path.parts().any(|part| part.as_ref().starts_with(['_', '.']))
}

fn pin_of(object: &ObjectMeta) -> Pin {
    Pin { path: object.location.clone(), size: object.size, e_tag: object.e_tag.clone() }
}

impl ParquetFile {
    fn new(
        pin: Pin,
        object: &ObjectMeta,
        footer: &ArrowReaderMetadata,
    ) -> Result<Self, StoreError> {
        let groups = footer.metadata().row_groups();
        let modified_us = object.last_modified.timestamp_micros();
        let modified = modified_us.to_le_bytes();
        let e_tag = pin.e_tag.as_deref().unwrap_or_default().as_bytes();
        let file = [pin.path.as_ref().as_bytes(), &pin.size.to_le_bytes(), &modified, e_tag];
        let ranges = ranges_of(footer);
        let mut segments = Vec::with_capacity(groups.len());
        for ((number, group), columns) in (0u32..).zip(groups).zip(ranges) {
            let corrupt = |what: &str| StoreError::Corrupt {
                path: pin.path.to_string(),
                what: format!("row group {number} has a negative {what}"),
            };
            let rows = u64::try_from(group.num_rows()).map_err(|_negative| corrupt("row count"))?;
            let bytes =
                u64::try_from(group.total_byte_size()).map_err(|_negative| corrupt("size"))?;
            if rows == 0 {
                continue;
            }
            let [path, size, modified, e_tag] = file;
            segments.push(Segment {
                id: segment_id(&[path, size, modified, e_tag, &number.to_le_bytes()]),
                partition: 0,
                rows,
                bytes,
                columns,
                location: Location::Parquet {
                    path: pin.path.as_ref().into(),
                    file_bytes: pin.size,
                    row_group: (groups.len() > 1).then_some(number),
                },
                pinned: None,
            });
        }
        Ok(Self { pin, modified_us, schema: Arc::clone(footer.schema()), segments })
    }

    /// Whether `object` is this file, not one that was written in its place.
    fn is_still(&self, object: &ObjectMeta) -> bool {
        self.pin == pin_of(object) && self.modified_us == object.last_modified.timestamp_micros()
    }
}

/// The schema of all files: nullable where any of them is.
fn common_schema(files: &[Arc<ParquetFile>]) -> Result<SchemaRef, StoreError> {
    let Some(first) = files.first() else { return Ok(Arc::new(Schema::empty())) };
    for file in files {
        check_schema(&first.schema, file)?;
    }
    let field = |(ordinal, field): (usize, &FieldRef)| {
        let nullable = files.iter().any(|file| file.schema.field(ordinal).is_nullable());
        Field::new(field.name(), field.data_type().clone(), nullable)
    };
    let fields: Vec<Field> = first.schema.fields().iter().enumerate().map(field).collect();
    Ok(Arc::new(Schema::new(fields)))
}

fn check_schema(expected: &Schema, file: &ParquetFile) -> Result<(), StoreError> {
    let columns = |schema: &Schema| -> Vec<String> {
        let fields = schema.fields().iter();
        fields.map(|field| format!("{} {}", field.name(), field.data_type())).collect()
    };
    let (expected, found) = (columns(expected), columns(&file.schema));
    if expected == found {
        return Ok(());
    }
    let differs = expected.iter().zip(&found).find(|(a, b)| a != b);
    let path = file.pin.path.to_string();
    Err(match differs {
        Some((expected, found)) => StoreError::SchemaMismatch {
            path,
            expected: format!("column {expected:?} as in the first file"),
            found: format!("column {found:?}"),
        },
        None => StoreError::SchemaMismatch {
            path,
            expected: format!("{} columns as in the first file", expected.len()),
            found: format!("{} columns", found.len()),
        },
    })
}

/// Bounds of each column of each row group, as far as the footer can be believed.
fn ranges_of(footer: &ArrowReaderMetadata) -> Vec<Vec<ColumnRange>> {
    let groups = footer.metadata().row_groups();
    let fields = footer.schema().fields();
    let mut ranges = vec![Vec::with_capacity(fields.len()); groups.len()];
    for field in fields {
        let column = column_ranges(footer, field)
            .filter(|column| column.len() == groups.len())
            .unwrap_or_else(|| vec![ColumnRange::UNKNOWN; groups.len()]);
        for (group, range) in ranges.iter_mut().zip(column) {
            group.push(range);
        }
    }
    ranges
}

fn column_ranges(footer: &ArrowReaderMetadata, field: &Field) -> Option<Vec<ColumnRange>> {
    let groups = footer.metadata().row_groups();
    let converter =
        StatisticsConverter::try_new(field.name(), footer.schema(), footer.parquet_schema())
            .ok()?
            .with_missing_null_counts_as_zero(false);
    let leaf = converter.parquet_column_index()?;
    let nulls = converter.row_group_null_counts(groups).ok()?;
    let bounds = bound_kind(field.data_type()).and_then(|cut| {
        let min = converter.row_group_mins(groups).ok()?;
        let max = converter.row_group_maxes(groups).ok()?;
        let min_exact = converter.row_group_is_min_value_exact(groups).ok()?;
        let max_exact = converter.row_group_is_max_value_exact(groups).ok()?;
        Some((cut, min, max, min_exact, max_exact))
    });
    let range = |row: usize| {
        let mut range = ColumnRange::UNKNOWN;
        range.nulls = nulls.is_valid(row).then(|| nulls.value(row));
        if let Some((cut, min, max, min_exact, max_exact)) = &bounds
            && in_order(&groups[row], leaf)
        {
            range.min = bound(min.as_ref(), row, is_exact(min_exact, row, *cut));
            range.max = bound(max.as_ref(), row, is_exact(max_exact, row, *cut));
        }
        range
    };
    Some((0..groups.len()).map(range).collect())
}

/// Whether bounds of this type are used, and if so, whether writers may cut them.
///
/// Floats are not: statistics ignore NaN.
fn bound_kind(data_type: &DataType) -> Option<bool> {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(true),
        data_type if data_type.is_integer() => Some(false),
        DataType::Boolean
        | DataType::Date32
        | DataType::Timestamp(_, _)
        | DataType::Decimal128(_, _) => Some(false),
        _ => None,
    }
}

/// Old writers compared unsigned and text values as if they were signed numbers.
fn in_order(group: &RowGroupMetaData, leaf: usize) -> bool {
    group.column(leaf).statistics().is_some_and(|known| !known.is_min_max_deprecated())
}

fn is_exact(flags: &BooleanArray, row: usize, may_be_cut: bool) -> bool {
    if flags.is_valid(row) { flags.value(row) } else { !may_be_cut }
}

fn bound(values: &dyn Array, row: usize, exact: bool) -> Option<ScalarValue> {
    let value = ScalarValue::try_from_array(values, row).ok()?;
    (exact && !value.is_null()).then_some(value)
}

impl State {
    fn new(table: &Arc<Table>, version: u64, files: Vec<Arc<ParquetFile>>) -> Self {
        let count = table.partitioning.partitions();
        let mut partitions = vec![vec![]; count as usize];
        let mut pins = HashMap::new();
        let all = files.iter().flat_map(|file| file.segments.iter().map(move |one| (file, one)));
        for ((file, segment), partition) in all.zip((0..count).cycle()) {
            let mut segment = segment.clone();
            segment.partition = partition;
            pins.insert(segment.id, file.pin.clone());
            partitions[partition as usize].push(Arc::new(segment));
        }
        let partitions = partitions.into_iter().map(Arc::new).collect();
        let layout = Arc::new(Layout::new(&table.partitioning));
        let table = Arc::clone(table);
        let snapshot = Arc::new(Snapshot { table, version, layout, partitions });
        Self { snapshot, files, pins }
    }
}

#[async_trait]
impl TableStore for ParquetTable {
    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.newest.load().snapshot)
    }

    async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError> {
        let _alone = self.refreshing.lock().await;
        let known = self.newest.load_full();
        let files = self.source.files(&self.footers, &known.files).await?;
        let is_same = |(a, b): (&Arc<ParquetFile>, &Arc<ParquetFile>)| Arc::ptr_eq(a, b);
        if files.len() == known.files.len() && files.iter().zip(&known.files).all(is_same) {
            return Ok(Arc::clone(&known.snapshot));
        }
        for file in &files {
            check_schema(&self.table.schema, file)?;
        }
        let state = State::new(&self.table, known.snapshot.version + 1, files);
        let snapshot = Arc::clone(&state.snapshot);
        self.newest.store(Arc::new(state));
        Ok(snapshot)
    }

    async fn commit(&self, _change: Change) -> Result<Committed, StoreError> {
        Err(StoreError::ReadOnly { table: self.table.name.to_string() })
    }

    async fn read(
        &self,
        segment: &Segment,
        projection: Option<&[usize]>,
    ) -> Result<SendableRecordBatchStream, StoreError> {
        let Location::Parquet { path, row_group, .. } = &segment.location else {
            let table = self.table.name.to_string();
            return Err(StoreError::NoSuchSegment { table, segment: segment.id });
        };
        // A segment that is not known any more was part of a file that was replaced or removed.
        let pin = self.newest.load().pins.get(&segment.id).cloned();
        let pin = pin.ok_or_else(|| StoreError::Changed { path: path.to_string() })?;
        let schema = &self.table.schema;
        let request = Request { pin, row_group: *row_group, schema, projection };
        read(&self.source.store, &self.footers, request).await
    }
}
