//! Makes and opens managed tables.

use std::collections::HashMap;
use std::path::Path as FsPath;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;
use deltalake_core::kernel::transaction::TransactionError;
use deltalake_core::logstore::CommitOrBytes;
use object_store::ObjectStore;
use serde_json::json;
use tracing::{info, warn};
use url::Url;
use uuid::Uuid;

use super::{ManagedOptions, ManagedTable};
use crate::layout::Layout;
use crate::partitioning::Partitioning;
use crate::store::durable::{LEFTOVER_AGE_MS, sweep};
use crate::store::error::{StoreError, WRITE};
use crate::store::location::Location;
use crate::store::log::entry::{path_of, to_bytes};
use crate::store::log::load::Place;
use crate::store::log::view::{PARTITIONING_KEY, SCHEMA_KEY};
use crate::store::types;

impl ManagedTable {
    /// Makes an empty table at `url`, in `store` or in the one that the URL's scheme stands for.
    ///
    /// A given store is rooted where the URL's path begins: the bucket, or `/` of this machine.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is a table already, [`StoreError::UnsupportedType`] if a column
    /// cannot be kept exactly, or whatever the store says.
    pub async fn create(
        name: &str,
        url: &Url,
        store: Option<Arc<dyn ObjectStore>>,
        schema: SchemaRef,
        partitioning: Partitioning,
    ) -> Result<Self, StoreError> {
        let options = ManagedOptions::default();
        Self::create_with(name, url, store, schema, partitioning, options).await
    }

    /// As [`create`](Self::create), with settings.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn create_with(
        name: &str,
        url: &Url,
        store: Option<Arc<dyn ObjectStore>>,
        schema: SchemaRef,
        partitioning: Partitioning,
        options: ManagedOptions,
    ) -> Result<Self, StoreError> {
        partitioning.check(&schema)?;
        let storage = types::storage_schema(&schema, name)?;
        let location = Location::resolve(url, store.clone())?;
        let place = location.place();
        if !place.list().await?.is_empty() {
            return Err(StoreError::Exists { url: url.to_string() });
        }
        let commit = Uuid::new_v4();
        let now_ms = i64::try_from(options.clock.now_ms()).unwrap_or(i64::MAX);
        let bytes = first_entry(name, commit, now_ms, &schema, &storage, &partitioning)?;
        write_first(&place, commit, bytes).await?;
        Self::open_with(name, url, store, options).await
    }

    /// Opens the table at `url`, in `store` or in the one that the URL's scheme stands for.
    ///
    /// # Errors
    /// [`StoreError::NotATable`] if there is none, [`StoreError::Unsupported`] if Foreshard did not
    /// create it or another writer changed what it is, [`StoreError::Corrupt`] if its log has holes,
    /// or a torn or empty entry: such an entry may have been acknowledged, so it is not repaired.
    pub async fn open(
        name: &str,
        url: &Url,
        store: Option<Arc<dyn ObjectStore>>,
    ) -> Result<Self, StoreError> {
        Self::open_with(name, url, store, ManagedOptions::default()).await
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(
        name: &str,
        url: &Url,
        store: Option<Arc<dyn ObjectStore>>,
        options: ManagedOptions,
    ) -> Result<Self, StoreError> {
        let location = Location::resolve(url, store)?;
        if let Some(folder) = location.folder.clone() {
            let before_ms = options.clock.now_ms().saturating_sub(LEFTOVER_AGE_MS);
            let swept = tokio::task::spawn_blocking(move || sweep_table(&folder, before_ms));
            drop(swept.await);
        }
        let place = location.place();
        let view = Box::pin(place.load()).await?;
        let puts_settle = location.folder.is_some();
        Ok(Self::with_view(name, place, location.url, view, options, puts_settle))
    }
}

fn sweep_table(folder: &FsPath, before_ms: u64) {
    match sweep(folder, before_ms) {
        Ok(0) => {}
        Ok(removed) => info!(folder = %folder.display(), removed, "temporary files swept"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => warn!(folder = %folder.display(), %error, "temporary files not swept"),
    }
}

fn first_entry(
    name: &str,
    commit: Uuid,
    now_ms: i64,
    schema: &Schema,
    storage: &Schema,
    partitioning: &Partitioning,
) -> Result<Bytes, StoreError> {
    let protocol = if types::has_local_timestamps(storage) {
        json!({
            "minReaderVersion": 3, "minWriterVersion": 7,
            "readerFeatures": ["timestampNtz"], "writerFeatures": ["timestampNtz"],
        })
    } else {
        json!({ "minReaderVersion": 1, "minWriterVersion": 2 })
    };
    let unwritable = |what: String| StoreError::Unsupported { path: name.to_owned(), what };
    let partitioning = Layout::new(partitioning).to_text()?;
    let configuration = HashMap::from([
        (PARTITIONING_KEY, partitioning),
        (SCHEMA_KEY, types::schema_to_text(schema).map_err(|error| unwritable(error.to_string()))?),
    ]);
    let metadata = json!({
        "id": Uuid::new_v4().to_string(),
        "name": name,
        "format": { "provider": "parquet", "options": {} },
        "schemaString": types::delta_schema(storage),
        "partitionColumns": [types::PARTITION_COLUMN],
        "configuration": configuration,
        "createdTime": now_ms,
    });
    let actions: Result<Vec<_>, _> =
        [json!({ "protocol": protocol }), json!({ "metaData": metadata })]
            .into_iter()
            .map(serde_json::from_value)
            .collect();
    let actions = actions.map_err(|error| unwritable(error.to_string()))?;
    to_bytes(commit, "CREATE TABLE", now_ms, actions)
}

/// Writes version 0, or finds that somebody else did.
async fn write_first(place: &Place, commit: Uuid, bytes: Bytes) -> Result<(), StoreError> {
    let written =
        place.log_store.write_commit_entry(0, CommitOrBytes::LogBytes(bytes), Uuid::nil()).await;
    let error = match written {
        Ok(()) => return Ok(()),
        Err(TransactionError::VersionAlreadyExists(_)) => {
            StoreError::Exists { url: place.url.clone() }
        }
        Err(TransactionError::ObjectStore { source }) => StoreError::io(WRITE, &path_of(0), source),
        Err(error) => StoreError::delta("create", &place.url, error.into()),
    };
    // The answer may have been lost: an entry with our id is ours.
    match place.entry(0).await {
        Ok(Some(entry)) if entry.commit == Some(commit) => Ok(()),
        _ => Err(error),
    }
}
