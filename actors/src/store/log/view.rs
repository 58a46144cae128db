//! The table as the log tells it up to one version, kept up to date in time proportional to what
//! changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use deltalake_core::kernel::{Action, Add};
use foreshard_policy::ids::SegmentId;
use serde_json::Value;

use super::entry::{Entry, path_of};
use crate::layout::{self, Layout};
use crate::segment::{Location, Segment};
use crate::store::error::StoreError;
use crate::store::{stats, types};
use crate::table::{Snapshot, Table};

/// Table property: the logical Arrow schema.
pub(crate) const SCHEMA_KEY: &str = "foreshard.schema";
/// Table property: the partitioning as JSON.
pub(crate) const PARTITIONING_KEY: &str = "foreshard.partitioning";
/// What the names of our files begin with: their statistics are exact.
pub(crate) const FILE_PREFIX: &str = "foreshard-";
/// Guess of resident bytes per byte of a file that another writer made.
const EXPANSION: u64 = 4;

/// Features of the Delta protocol that change neither how we read nor how we write.
const FEATURES: [&str; 6] = [
    "timestampNtz",
    "appendOnly",
    "invariants",
    "v2Checkpoint",
    "vacuumProtocolCheck",
    "domainMetadata",
];

/// What a table's metadata says and what never changes while it is open.
#[derive(Debug, PartialEq)]
pub(crate) struct Shape {
    /// Identity of the table, part of every segment's id.
    pub(crate) id: String,
    /// Schema that queries see.
    pub(crate) logical: SchemaRef,
    /// Schema that files have.
    pub(crate) storage: SchemaRef,
}

impl Shape {
    /// Reads it from a `metaData` action.
    pub(crate) fn from_metadata(metadata: &Value, location: &str) -> Result<Self, StoreError> {
        let unsupported =
            |what: String| StoreError::Unsupported { path: location.to_owned(), what };
        let configuration = &metadata["configuration"];
        let property = |key: &str| {
            configuration[key].as_str().ok_or_else(|| {
                unsupported(format!("it has no property {key:?}: Foreshard did not create it"))
            })
        };
        for (key, accepted) in [("delta.columnMapping.mode", "none"), ("delta.appendOnly", "false")]
        {
            if let Some(value) = configuration[key].as_str().filter(|value| *value != accepted) {
                return Err(unsupported(format!("its property {key} is {value:?}")));
            }
        }
        let logical = types::schema_from_text(property(SCHEMA_KEY)?)
            .map_err(|error| unsupported(format!("its property {SCHEMA_KEY}: {error}")))?;
        let storage = types::storage_schema(&logical, location)?;
        let written = metadata["schemaString"].as_str().unwrap_or_default();
        let same = serde_json::from_str::<Value>(written).ok()
            == serde_json::from_str::<Value>(&types::delta_schema(&storage)).ok();
        if !same {
            return Err(unsupported("another writer changed its schema".to_owned()));
        }
        let id = metadata["id"].as_str().unwrap_or_default().to_owned();
        Ok(Self { id, logical, storage })
    }

    /// Reads which partition holds which rows from a `metaData` action.
    pub(crate) fn layout(&self, metadata: &Value, location: &str) -> Result<Layout, StoreError> {
        let wrong = |error: String| StoreError::Unsupported {
            path: location.to_owned(),
            what: format!("its property {PARTITIONING_KEY}: {error}"),
        };
        let Some(text) = metadata["configuration"][PARTITIONING_KEY].as_str() else {
            return Err(wrong("it is not there: Foreshard did not create the table".to_owned()));
        };
        let layout = Layout::from_text(text).map_err(|error| wrong(error.to_string()))?;
        layout::check(&layout, &self.logical)?;
        Ok(layout)
    }

    /// Identity of the segment that is kept in the file `path`.
    pub(crate) fn segment_id(&self, path: &str) -> SegmentId {
        segment_id(&[self.id.as_bytes(), path.as_bytes()])
    }

    fn segment(&self, add: &Add, layout: &Layout) -> Result<Segment, StoreError> {
        let corrupt =
            |what: &str| StoreError::Corrupt { path: add.path.clone(), what: what.to_owned() };
        if add.deletion_vector.is_some() {
            return Err(StoreError::Unsupported {
                path: add.path.clone(),
                what: "another writer deleted rows by a deletion vector".to_owned(),
            });
        }
        let partition = add
            .partition_values
            .get(types::PARTITION_COLUMN)
            .and_then(|value| value.as_ref()?.parse().ok())
            .filter(|ordinal: &u32| layout.has(*ordinal))
            .ok_or_else(|| corrupt("its partition is not one of the table's"))?;
        let file_bytes =
            u64::try_from(add.size).map_err(|_negative| corrupt("its size is negative"))?;
        let resident = resident_bytes(&add.path);
        let stats = add.stats.as_deref().unwrap_or_default();
        let (rows, columns) =
            stats::from_stats(stats, &self.logical, &self.storage, resident.is_some())
                .ok_or_else(|| corrupt("the log does not say how many rows it has"))?;
        Ok(Segment {
            id: self.segment_id(&add.path),
            partition,
            rows,
            bytes: resident.unwrap_or(file_bytes.saturating_mul(EXPANSION)),
            columns,
            location: Location::Parquet {
                path: add.path.as_str().into(),
                file_bytes,
                row_group: None,
            },
            pinned: None,
        })
    }
}

/// The first 16 bytes of a hash of `parts`, each with its length.
pub(crate) fn segment_id(parts: &[&[u8]]) -> SegmentId {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    SegmentId(u128::from_be_bytes(id))
}

/// The name of a new file: unique, and it says how many bytes its rows take when resident, because
/// the log of a table that was checkpointed keeps nothing else of ours.
pub(crate) fn new_file(partition: u32, resident_bytes: u64) -> String {
    let unique = uuid::Uuid::new_v4().simple();
    let column = types::PARTITION_COLUMN;
    format!("{column}={partition}/{FILE_PREFIX}{unique}-{resident_bytes}.parquet")
}

/// What [`new_file`] wrote into the name; `None` for files of other writers.
fn resident_bytes(path: &str) -> Option<u64> {
    let name = path.rsplit('/').next()?.strip_prefix(FILE_PREFIX)?;
    name.strip_suffix(".parquet")?.rsplit_once('-')?.1.parse().ok()
}

/// The table up to one version.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// What the metadata says and never changes.
    pub(crate) shape: Arc<Shape>,
    /// Which partition holds which rows.
    pub(crate) layout: Arc<Layout>,
    /// The newest metadata, whole.
    pub(crate) metadata: Arc<Value>,
    /// Newest version that is contained.
    pub(crate) version: u64,
    /// What metadata and protocol declare; see [`declared`].
    pub(crate) declared: Arc<Value>,
    /// Newest version known to have changed that.
    pub(crate) metadata_version: u64,
    /// Segments by partition.
    pub(crate) partitions: Vec<Arc<Vec<Arc<Segment>>>>,
    /// Newest sequence of each application transaction.
    pub(crate) transactions: HashMap<String, i64>,
    /// Partition of each segment.
    owners: HashMap<SegmentId, u32>,
}

impl View {
    /// A table without segments.
    pub(crate) fn empty(
        (shape, layout): (Arc<Shape>, Layout),
        metadata: Value,
        declared: Value,
        version: u64,
    ) -> Self {
        let partitions = layout.places() as usize;
        Self {
            shape,
            layout: Arc::new(layout),
            metadata: Arc::new(metadata),
            version,
            declared: Arc::new(declared),
            metadata_version: version,
            partitions: vec![Arc::default(); partitions],
            transactions: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    /// The table as readers see it.
    pub(crate) fn snapshot(&self, table: &Arc<Table>) -> Arc<Snapshot> {
        let (layout, partitions) = (Arc::clone(&self.layout), self.partitions.clone());
        let (table, version) = (Arc::clone(table), self.version);
        Arc::new(Snapshot { table, version, layout, partitions })
    }

    /// Starts from the first entry of a log.
    pub(crate) fn first(entry: &Entry, location: &str) -> Result<Self, StoreError> {
        let metadata = entry.actions.iter().find_map(|action| match action {
            Action::Metadata(metadata) => Some(as_json(metadata)),
            _ => None,
        });
        let metadata = metadata.ok_or_else(|| StoreError::Corrupt {
            path: path_of(0),
            what: "the first log entry has no metadata".to_owned(),
        })?;
        let shape = Arc::new(Shape::from_metadata(&metadata, location)?);
        let layout = shape.layout(&metadata, location)?;
        let mut view = Self::empty((shape, layout), metadata, Value::Null, 0);
        view.apply(0, entry)?;
        Ok(view)
    }

    /// An active segment.
    pub(crate) fn segment(&self, id: SegmentId) -> Option<Arc<Segment>> {
        let owner = *self.owners.get(&id)?;
        self.partitions[owner as usize].iter().find(|segment| segment.id == id).cloned()
    }

    /// Whether a segment is active.
    pub(crate) fn has(&self, id: SegmentId) -> bool {
        self.owners.contains_key(&id)
    }

    /// Takes the entry of the next version in: all of it or, on an error, nothing.
    pub(crate) fn apply(&mut self, version: u64, entry: &Entry) -> Result<(), StoreError> {
        let mut removed = HashSet::new();
        let mut added = Vec::new();
        let mut transactions = Vec::new();
        let mut protocol = self.declared["protocol"].clone();
        let newer = entry.actions.iter().find_map(|action| match action {
            Action::Metadata(metadata) => Some(Arc::new(as_json(metadata))),
            _ => None,
        });
        let metadata = newer.unwrap_or_else(|| Arc::clone(&self.metadata));
        let layout = self.newer_layout(version, &metadata)?;
        for action in &entry.actions {
            match action {
                Action::Add(add) => added.push(Arc::new(self.shape.segment(add, &layout)?)),
                Action::Remove(remove) => drop(removed.insert(self.shape.segment_id(&remove.path))),
                Action::Txn(txn) => transactions.push((txn.app_id.clone(), txn.version)),
                Action::Metadata(_) => {}
                Action::Protocol(newer) => {
                    protocol = as_json(newer);
                    check_protocol(&protocol, &path_of(version))?;
                }
                Action::CommitInfo(_) | Action::Cdc(_) | Action::DomainMetadata(_) => {}
            }
        }
        self.lay_out(layout);
        self.change(&removed, added);
        self.transactions.extend(transactions);
        let declared = declared(&metadata, &protocol);
        self.metadata = metadata;
        if declared != *self.declared {
            self.declared = Arc::new(declared);
            self.metadata_version = version;
        }
        self.version = version;
        Ok(())
    }

    /// The layout that newer metadata has; fails if anything else of the table is another.
    fn newer_layout(&self, version: u64, metadata: &Arc<Value>) -> Result<Arc<Layout>, StoreError> {
        if Arc::ptr_eq(metadata, &self.metadata) {
            return Ok(Arc::clone(&self.layout));
        }
        let path = path_of(version);
        let layout = self.shape.layout(metadata, &path)?;
        let is_same = Shape::from_metadata(metadata, &path)? == *self.shape
            && layout.key_columns() == self.layout.key_columns();
        if !is_same {
            let what = "another writer changed its schema or its partition key".to_owned();
            return Err(StoreError::Unsupported { path, what });
        }
        Ok(if layout == *self.layout { Arc::clone(&self.layout) } else { Arc::new(layout) })
    }

    /// From now on rows are laid out so. Segments of partitions that are gone are removed beside.
    pub(crate) fn lay_out(&mut self, layout: Arc<Layout>) {
        self.partitions.resize(layout.places() as usize, Arc::default());
        self.layout = layout;
    }

    /// The metadata that says that rows are laid out as in `layout`.
    pub(crate) fn metadata_with(&self, layout: &Layout) -> Result<Value, StoreError> {
        let mut metadata = Value::clone(&self.metadata);
        metadata["configuration"][PARTITIONING_KEY] = Value::String(layout.to_text()?);
        Ok(metadata)
    }

    /// Removes and adds segments; only the vectors of touched partitions are copied.
    pub(crate) fn change(&mut self, removed: &HashSet<SegmentId>, added: Vec<Arc<Segment>>) {
        // A path that is added again (new statistics) replaces the old one.
        let gone = removed.iter().copied().chain(added.iter().map(|segment| segment.id));
        let touched: HashSet<u32> = gone.filter_map(|id| self.owners.remove(&id)).collect();
        for partition in touched {
            Arc::make_mut(&mut self.partitions[partition as usize])
                .retain(|segment| self.owners.contains_key(&segment.id));
        }
        for segment in added {
            self.owners.insert(segment.id, segment.partition);
            Arc::make_mut(&mut self.partitions[segment.partition as usize]).push(segment);
        }
    }

    /// Takes a file in that a checkpoint names.
    pub(crate) fn add_checkpointed(&mut self, adds: &[Add]) -> Result<(), StoreError> {
        let added: Result<Vec<_>, _> =
            adds.iter().map(|add| self.shape.segment(add, &self.layout).map(Arc::new)).collect();
        self.change(&HashSet::new(), added?);
        Ok(())
    }
}

/// Actions of the Delta library as JSON: their fields are not public.
pub(crate) fn as_json<T: serde::Serialize>(action: &T) -> Value {
    serde_json::to_value(action).unwrap_or(Value::Null)
}

/// What a commit relies on: a change of it makes handles that were opened before refuse to commit.
pub(crate) fn declared(metadata: &Value, protocol: &Value) -> Value {
    let keep = |from: &Value, keys: &[&str]| -> Value {
        let kept = keys.iter().map(|key| {
            let mut value = from[*key].clone();
            if let Some(names) = value.as_array_mut() {
                names.sort_by_key(ToString::to_string);
            }
            ((*key).to_owned(), value)
        });
        Value::Object(kept.collect())
    };
    // A layout may change: each commit is judged by the one that it is made of.
    let mut metadata = keep(metadata, &["id", "schemaString", "partitionColumns", "configuration"]);
    if let Some(configuration) = metadata["configuration"].as_object_mut() {
        configuration.remove(PARTITIONING_KEY);
    }
    serde_json::json!({
        "metadata": metadata,
        "protocol": keep(
            protocol,
            &["minReaderVersion", "minWriterVersion", "readerFeatures", "writerFeatures"],
        ),
    })
}

/// Refuses a table that asks for more than we do.
pub(crate) fn check_protocol(protocol: &Value, path: &str) -> Result<(), StoreError> {
    let unsupported = |what: String| StoreError::Unsupported { path: path.to_owned(), what };
    let version = |key: &str| protocol[key].as_i64().unwrap_or(0);
    let (reader, writer) = (version("minReaderVersion"), version("minWriterVersion"));
    if !matches!(reader, 1 | 3) || !matches!(writer, 1 | 2 | 7) {
        return Err(unsupported(format!("it asks for protocol {reader}/{writer}")));
    }
    for key in ["readerFeatures", "writerFeatures"] {
        let features = protocol[key].as_array().into_iter().flatten();
        let unknown = features.filter_map(Value::as_str).find(|name| !FEATURES.contains(name));
        if let Some(name) = unknown {
            return Err(unsupported(format!("it asks for the feature {name:?}")));
        }
    }
    Ok(())
}
