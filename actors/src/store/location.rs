//! From a table's URL to the object store that it lives in.

use std::path::PathBuf;
use std::sync::Arc;

use deltalake_core::logstore::{StorageConfig, default_logstore};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, parse_url_opts};
use url::Url;

use super::durable::Durable;
use super::error::StoreError;
use super::log::load::Place;

/// A URL resolved: the store it lives in and the path below the root of that store.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    pub(crate) url: Url,
    /// Rooted where the URL's path begins (a bucket, or `/`).
    pub(crate) root: Arc<dyn ObjectStore>,
    pub(crate) path: Path,
    /// The folder, if it is on this machine and the store is the one that we chose.
    pub(crate) folder: Option<PathBuf>,
}

fn unsupported(url: &Url, what: impl std::fmt::Display) -> StoreError {
    StoreError::Unsupported { path: url.to_string(), what: what.to_string() }
}

impl Location {
    /// Resolves `url` in `store`, or in the store that its scheme stands for: the durable local one
    /// for `file`, else what `object_store` makes of it with the settings in the environment.
    pub(crate) fn resolve(
        url: &Url,
        store: Option<Arc<dyn ObjectStore>>,
    ) -> Result<Self, StoreError> {
        let path = Path::from_url_path(url.path()).map_err(|error| unsupported(url, error))?;
        let local = url.scheme() == "file";
        let (root, folder) = match store {
            Some(store) => (store, None),
            None if local => {
                let folder = url
                    .to_file_path()
                    .map_err(|()| unsupported(url, "it is not a path on this machine"))?;
                (Arc::new(Durable::new()) as Arc<dyn ObjectStore>, Some(folder))
            }
            None if url.scheme() == "memory" => {
                return Err(unsupported(url, "hand the store over that it lives in"));
            }
            None => {
                let settings = std::env::vars().map(|(name, value)| (name.to_lowercase(), value));
                let (store, _) =
                    parse_url_opts(url, settings).map_err(|error| unsupported(url, error))?;
                (Arc::from(store), None)
            }
        };
        Ok(Self { url: url.clone(), root, path, folder })
    }

    /// The store rooted at `path`.
    pub(crate) fn store_at(&self, path: &Path) -> Arc<dyn ObjectStore> {
        if path.as_ref().is_empty() {
            return Arc::clone(&self.root);
        }
        Arc::new(PrefixStore::new(Arc::clone(&self.root), path.clone()))
    }

    /// The place of a Delta table's log.
    pub(crate) fn place(&self) -> Place {
        let store = self.store_at(&self.path);
        let log_store = default_logstore(
            Arc::clone(&store),
            Arc::clone(&self.root),
            &self.url,
            &StorageConfig::default(),
        );
        Place { log_store, store, url: self.url.to_string() }
    }
}
