//! The part of an object store that is one process's own.
//!
//! Several processes may spill below the same prefix. Each has a prefix in it with an object `alive`, which it
//! writes again as long as it uses the others. Whoever comes later removes prefixes whose object was not
//! written for [`DEAD_AFTER`], by the store's own clock. A process that slept for so long finds its files
//! gone, and computes again.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Mutex;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, parse_url_opts};
use tokio::runtime::Handle;
use tokio::time::Instant;
use url::Url;

/// Last part of the name of the object that says whose prefix it is in lives.
const ALIVE: &str = "alive";

/// How long an object `alive` may be old until its prefix is taken for a dead process's.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(3_600);

/// How often a process that uses its prefix says that it lives.
const ALIVE_EVERY: Duration = Duration::from_secs(600);

/// Longest time for one request, with all that the store's client tries again.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Whether `place` is the URL of an object store and not a path of the local disk.
#[must_use]
pub fn is_url(place: &std::path::Path) -> bool {
    place.to_str().is_some_and(|place| place.contains("://"))
}

/// There is no object store to spill to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// It is no URL.
    #[error("{place} is not the URL of an object store: {source}")]
    Url {
        /// What was given.
        place: String,
        /// What is wrong with it.
        source: url::ParseError,
    },
    /// The store does not answer, or not as asked.
    #[error("object store {place}: {source}")]
    Store {
        /// The URL or prefix.
        place: String,
        /// What it said.
        source: object_store::Error,
    },
}

impl BucketError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Url { .. } => "FS-SPILL-1",
            Self::Store { .. } => "FS-SPILL-2",
        }
    }

    /// Whether the same may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store { .. })
    }
}

/// Objects of one process.
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Handle,
    /// When this process said last that it lives.
    alive_at: Mutex<Instant>,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.store, self.prefix)
    }
}

impl Bucket {
    /// Below the path of `url`, in the store that it names with the settings in the environment.
    pub(super) async fn open_url(url: &str) -> Result<Self, BucketError> {
        let place = || url.to_owned();
        let parsed = Url::parse(url);
        let parsed = parsed.map_err(|source| BucketError::Url { place: place(), source })?;
        let settings = std::env::vars().map(|(name, value)| (name.to_lowercase(), value));
        let (store, prefix) = parse_url_opts(&parsed, settings)
            .map_err(|source| BucketError::Store { place: place(), source })?;
        Self::open(Arc::from(store), prefix).await
    }

    /// Makes an own prefix below `base`, and removes those of processes that have ended.
    pub(super) async fn open(store: Arc<dyn ObjectStore>, base: Path) -> Result<Self, BucketError> {
        let prefix = base.clone().join(uuid::Uuid::new_v4().simple().to_string());
        let runtime = Handle::current();
        let alive_at = Mutex::new(Instant::now());
        let bucket = Self { store, prefix, runtime, alive_at };
        let checked = match bucket.say_alive().await {
            Ok(()) => bucket.sweep(&base).await,
            error => error,
        };
        let place = bucket.to_string();
        checked.map_err(|source| BucketError::Store { place, source })?;
        Ok(bucket)
    }

    async fn say_alive(&self) -> object_store::Result<()> {
        self.store.put(&self.prefix.clone().join(ALIVE), "".into()).await.map(drop)
    }

    /// Removes what processes left that were not alive for long. What resists stays until the next start.
    async fn sweep(&self, base: &Path) -> object_store::Result<()> {
        let own = self.store.head(&self.prefix.clone().join(ALIVE)).await?;
        let all: Vec<ObjectMeta> = self.store.list(Some(base)).try_collect().await?;
        let mut prefixes: BTreeMap<String, Vec<ObjectMeta>> = BTreeMap::new();
        for object in all {
            let parts = object.location.prefix_match(base).map(|mut parts| parts.next());
            if let Some(Some(first)) = parts {
                prefixes.entry(first.as_ref().to_owned()).or_default().push(object);
            }
        }
        for (name, objects) in prefixes {
            let mark = base.clone().join(name.as_str()).join(ALIVE);
            let mark = objects.iter().find(|object| object.location == mark);
            // What has no mark is not ours to remove.
            let is_dead = mark.is_some_and(|mark| {
                let age = own.last_modified.signed_duration_since(mark.last_modified);
                age.to_std().is_ok_and(|age| age > DEAD_AFTER)
            });
            if is_dead {
                self.delete_all(objects).await;
            }
        }
        Ok(())
    }

    async fn delete_all(&self, objects: Vec<ObjectMeta>) {
        let locations = futures::stream::iter(objects).map(|object| Ok(object.location));
        let mut deleted = self.store.delete_stream(locations.boxed());
        while let Some(result) = deleted.next().await {
            if let Err(error) = result {
                tracing::debug!(%error, store = %self.store, "spilled output not removed");
            }
        }
    }

    /// Runs a request on this thread, which may wait; says now and then that the process lives.
    fn request<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
        let is_due = {
            let mut alive_at = self.alive_at.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = alive_at.elapsed() > ALIVE_EVERY;
            if is_due {
                *alive_at = Instant::now();
            }
            is_due
        };
        self.runtime.block_on(async {
            if is_due && let Err(error) = self.say_alive().await {
                tracing::warn!(%error, store = %self.store, "the store does not take the sign of life");
            }
            match tokio::time::timeout(REQUEST_TIME_MAX, request).await {
                Ok(result) => Ok(result?),
                Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }

    pub(super) fn write(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        let location = self.prefix.clone().join(name);
        self.request(async { self.store.put(&location, bytes.into()).await.map(drop) })
    }

    pub(super) fn read(&self, name: &str, bytes: u64) -> Option<Vec<u8>> {
        let location = self.prefix.clone().join(name);
        let found = self.request(async {
            let found = self.store.get(&location).await?;
            // Before it is read: what was written over may be of any size.
            match found.meta.size == bytes {
                true => found.bytes().await.map(Some),
                false => Ok(None),
            }
        });
        Some(found.ok()??.to_vec())
    }

    pub(super) fn delete(&self, name: &str) {
        let location = self.prefix.clone().join(name);
        match self.request(async { self.store.delete(&location).await }) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%location, %error, "spilled output not removed"),
        }
    }

    pub(super) fn remove(&self) {
        let removed = self.request(async {
            let all = self.store.list(Some(&self.prefix)).try_collect().await?;
            self.delete_all(all).await;
            Ok(())
        });
        if let Err(error) = removed {
            // It is removed at a later start.
            tracing::debug!(%error, place = %self, "spilled outputs not removed");
        }
    }
}

#[cfg(test)]
mod tests;
