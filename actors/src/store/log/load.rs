//! Opening a log: the newest usable checkpoint through the Delta library, then our own replay.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use deltalake_core::kernel::{Action, Add, Remove};
use deltalake_core::logstore::LogStoreRef;
use deltalake_core::{DeltaTable, DeltaTableError};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use tracing::warn;

use super::entry::{self, Entry, path_of};
use super::view::{Shape, View, as_json, check_protocol, declared};
use crate::store::error::{LIST, READ, StoreError};
use crate::store::read::{FileReader, Pin};

/// The folder of the log.
const LOG: &str = "_delta_log";

/// Where the log of a table is kept.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// What the Delta library calls a table's storage.
    pub(crate) log_store: LogStoreRef,
    /// The object store, rooted at the table.
    pub(crate) store: Arc<dyn ObjectStore>,
    /// Location of the table, for messages.
    pub(crate) url: String,
}

/// What is in the folder of a log.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    commits: BTreeSet<u64>,
    checkpoints: BTreeSet<u64>,
    checkpoint_files: Vec<(u64, Path, u64)>,
}

impl Listing {
    /// Whether there is no table.
    pub(crate) fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.checkpoints.is_empty()
    }
}

impl Place {
    /// Lists the log.
    pub(crate) async fn list(&self) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        let mut objects = self.store.list(Some(&Path::from(LOG)));
        while let Some(object) = objects.next().await {
            let object = match object {
                Ok(object) => object,
                Err(object_store::Error::NotFound { .. }) => break,
                Err(source) => return Err(StoreError::io(LIST, LOG, source)),
            };
            let name = object.location.filename().unwrap_or_default();
            let Some((version, rest)) = name.split_at_checked(20) else { continue };
            let Ok(version) = version.parse::<u64>() else { continue };
            if rest == ".json" {
                listing.commits.insert(version);
            } else if rest.starts_with(".checkpoint.") {
                listing.checkpoints.insert(version);
                listing.checkpoint_files.push((version, object.location.clone(), object.size));
            }
        }
        Ok(listing)
    }

    /// Reads the entry of `version`; `None` if there is none.
    pub(crate) async fn entry(&self, version: u64) -> Result<Option<Entry>, StoreError> {
        let bytes = match self.log_store.read_commit_entry(version).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(DeltaTableError::ObjectStore { source }) => {
                return Err(StoreError::io(READ, &path_of(version), source));
            }
            Err(error) => return Err(StoreError::delta(READ, &self.url, error)),
        };
        entry::parse(version, &bytes).map(Some)
    }

    /// Reads the newest version of the table.
    pub(crate) async fn load(&self) -> Result<View, StoreError> {
        let listing = self.list().await?;
        if listing.is_empty() {
            let what = "there is no log entry and no checkpoint in its _delta_log";
            return Err(StoreError::NotATable { url: self.url.clone(), what });
        }
        let mut view = self.start(&listing).await?;
        let newest = listing.commits.last().copied().unwrap_or(view.version);
        while view.version < newest {
            let next = view.version + 1;
            let entry = self.entry(next).await?.ok_or_else(|| StoreError::Corrupt {
                path: path_of(next),
                what: format!("it is missing, although version {newest} is there"),
            })?;
            view.apply(next, &entry)?;
        }
        Ok(view)
    }

    /// The view that replay starts from: the newest checkpoint that can be read, else version 0.
    async fn start(&self, listing: &Listing) -> Result<View, StoreError> {
        let mut unusable = None;
        for version in listing.checkpoints.iter().rev().copied() {
            match self.checkpointed(version, listing).await {
                Ok(view) => return Ok(view),
                Err(error @ StoreError::Unsupported { .. }) => return Err(error),
                Err(error) => {
                    warn!(url = self.url, version, %error, "checkpoint cannot be read");
                    unusable = Some(error);
                }
            }
        }
        match self.entry(0).await? {
            Some(first) => View::first(&first, &self.url),
            None => Err(unusable.unwrap_or_else(|| StoreError::Corrupt {
                path: path_of(0),
                what: "it is missing and there is no checkpoint".to_owned(),
            })),
        }
    }

    /// The table at `version` as the Delta library has it.
    pub(crate) async fn library_table(&self, version: u64) -> Result<DeltaTable, StoreError> {
        let mut table = DeltaTable::new(Arc::clone(&self.log_store));
        let loaded = Box::pin(table.load_version(version)).await;
        loaded.map_err(|error| StoreError::delta("load", &self.url, error))?;
        Ok(table)
    }

    async fn checkpointed(&self, version: u64, listing: &Listing) -> Result<View, StoreError> {
        let table = self.library_table(version).await?;
        let failed = |error| StoreError::delta("load", &self.url, error);
        let snapshot = table.snapshot().map_err(failed)?;
        let (metadata, protocol) = (as_json(snapshot.metadata()), as_json(snapshot.protocol()));
        check_protocol(&protocol, &self.url)?;
        let shape = Arc::new(Shape::from_metadata(&metadata, &self.url)?);
        let layout = shape.layout(&metadata, &self.url)?;
        let declared = declared(&metadata, &protocol);
        let mut view = View::empty((shape, layout), metadata, declared, version);
        let files = snapshot.log_data();
        let adds: Vec<Add> = files
            .iter()
            .map(|file| Add {
                path: file.object_store_path().to_string(),
                partition_values: file.partition_values_map(),
                size: file.size(),
                stats: file.stats(),
                deletion_vector: file.deletion_vector_descriptor(),
                ..Add::default()
            })
            .collect();
        view.add_checkpointed(&adds)?;
        view.transactions = self.transactions(version, listing).await?;
        Ok(view)
    }

    /// Application transactions of a checkpoint. The library looks up single names only.
    async fn transactions(
        &self,
        version: u64,
        listing: &Listing,
    ) -> Result<HashMap<String, i64>, StoreError> {
        let mut transactions = HashMap::new();
        for (_, path, size) in listing.checkpoint_files.iter().filter(|file| file.0 == version) {
            if !path.as_ref().ends_with(".parquet") {
                let what = "its checkpoint is not a Parquet file".to_owned();
                return Err(StoreError::Unsupported { path: path.to_string(), what });
            }
            self.transactions_in(path, *size, &mut transactions).await?;
        }
        Ok(transactions)
    }

    async fn transactions_in(
        &self,
        path: &Path,
        size: u64,
        transactions: &mut HashMap<String, i64>,
    ) -> Result<(), StoreError> {
        let failed = |error| StoreError::parquet(path.as_ref(), error);
        let pin = Pin { path: path.clone(), size, e_tag: None };
        let reader = FileReader::new(Arc::clone(&self.store), pin);
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(failed)?;
        let Some(root) = builder.schema().fields().iter().position(|field| field.name() == "txn")
        else {
            return Ok(());
        };
        let mask = ProjectionMask::roots(builder.parquet_schema(), [root]);
        let batches: Vec<_> = builder
            .with_projection(mask)
            .build()
            .map_err(failed)?
            .try_collect()
            .await
            .map_err(failed)?;
        for batch in batches {
            let Some(rows) = batch.column(0).as_struct_opt() else { continue };
            let (Some(names), Some(versions)) =
                (rows.column_by_name("appId"), rows.column_by_name("version"))
            else {
                continue;
            };
            let (Some(names), Some(versions)) =
                (names.as_string_opt::<i32>(), versions.as_primitive_opt::<Int64Type>())
            else {
                let what = "its transactions have types other than text and long".to_owned();
                return Err(StoreError::Corrupt { path: path.to_string(), what });
            };
            for row in (0..rows.len()).filter(|row| rows.is_valid(*row) && names.is_valid(*row)) {
                transactions.insert(names.value(row).to_owned(), versions.value(row));
            }
        }
        Ok(())
    }

    /// Whether the table at `view` contains what `actions`, written at `now_ms`, did: an added file
    /// is there or is a tombstone, or a removed one is a tombstone of that very moment.
    pub(crate) async fn contains(
        &self,
        view: &View,
        actions: &[Action],
    ) -> Result<bool, StoreError> {
        let added: Vec<&Add> = actions
            .iter()
            .filter_map(|action| if let Action::Add(add) = action { Some(add) } else { None })
            .collect();
        if added.iter().any(|add| view.has(view.shape.segment_id(&add.path))) {
            return Ok(true);
        }
        let removed: Vec<&Remove> = actions
            .iter()
            .filter_map(|action| if let Action::Remove(gone) = action { Some(gone) } else { None })
            .collect();
        let table = self.library_table(view.version).await?;
        let failed = |error| StoreError::delta("load", &self.url, error);
        let snapshot = table.snapshot().map_err(failed)?;
        let mut tombstones = snapshot.all_tombstones(self.log_store.as_ref());
        while let Some(tombstone) = tombstones.next().await {
            let tombstone = tombstone.map_err(failed)?;
            let path = tombstone.path();
            let ours = added.iter().any(|add| add.path == path)
                || removed.iter().any(|gone| {
                    gone.path == path && gone.deletion_timestamp == tombstone.deletion_timestamp()
                });
            if ours {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Version of the newest checkpoint as its hint says; `None` if there is none.
    pub(crate) async fn last_checkpoint(&self) -> Result<Option<u64>, StoreError> {
        let path = Path::from(LOG).join("_last_checkpoint");
        let read = async {
            self.store.get_opts(&path, object_store::GetOptions::default()).await?.bytes().await
        };
        match read.await {
            // The hint is written over in place by some stores' writers: unreadable is no hint.
            Ok(bytes) => Ok(serde_json::from_slice::<serde_json::Value>(&bytes)
                .ok()
                .and_then(|hint| hint["version"].as_u64())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(StoreError::io(READ, path.as_ref(), source)),
        }
    }
}
