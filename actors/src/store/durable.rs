//! A local object store that survives power loss: bytes reach the disk before they get their name,
//! and the name before the caller hears of it.
//!
//! The local store of the `object_store` crate never calls fsync; after a power loss an
//! acknowledged log entry could be there, empty.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};

/// Temporary files older than this belong to no writer any more.
pub const LEFTOVER_AGE_MS: u64 = 60 * 60 * 1000;

/// Deepest folder that [`sweep`] looks into, counted from the table's root.
const SWEEP_DEPTH_MAX: u32 = 8;

/// The local file system, rooted at `/`, with fsync.
#[derive(Clone, Debug)]
pub struct Durable {
    inner: Arc<LocalFileSystem>,
    written: Arc<AtomicU64>,
}

impl Durable {
    /// The whole file system.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::new(LocalFileSystem::new()), written: Arc::default() }
    }
}

impl Default for Durable {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Durable")
    }
}

/// Maps an error of the file system, keeping apart what callers act upon.
fn failed(path: &FsPath, source: io::Error) -> Error {
    let path = path.display().to_string();
    let source = Box::new(source);
    match source.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source },
        io::ErrorKind::NotFound => Error::NotFound { path, source },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::PermissionDenied { path, source }
        }
        _ => Error::Generic { store: "Durable", source },
    }
}

fn parent(path: &FsPath) -> io::Result<&FsPath> {
    path.parent().ok_or_else(|| io::Error::other("the root of the file system is no file"))
}

fn sync_folder(path: &FsPath) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Makes missing folders, each of them durable.
fn make_folders(path: &FsPath) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path)?;
    make_folders(above)?;
    match fs::create_dir(path) {
        Ok(()) => sync_folder(above),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_synced(temporary: &FsPath, payload: &PutPayload) -> io::Result<()> {
    let mut file = fs::File::create_new(temporary)?;
    payload.iter().try_for_each(|bytes| file.write_all(bytes))?;
    file.sync_data()
}

/// Gives a synced file its name. A hard link fails if the name is taken; a rename replaces.
fn name_synced(temporary: &FsPath, path: &FsPath, create: bool) -> io::Result<()> {
    if create {
        fs::hard_link(temporary, path)?;
        // The name is there: a temporary file that stays behind is swept later.
        drop(fs::remove_file(temporary));
    } else {
        fs::rename(temporary, path)?;
    }
    sync_folder(parent(path)?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|source| Error::JoinError { source })?
}

#[async_trait]
impl ObjectStore for Durable {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => {
                return Err(Error::NotImplemented {
                    operation: "put with PutMode::Update".into(),
                    implementer: self.to_string(),
                });
            }
        };
        let path = self.inner.path_to_filesystem(location)?;
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        blocking(move || {
            let folder = parent(&path).map_err(|error| failed(&path, error))?;
            make_folders(folder).map_err(|error| failed(folder, error))?;
            // `#` and digits hide it from listings, as with the store underneath.
            let nonce = uuid::Uuid::new_v4().simple();
            let temporary = folder.join(format!(".{nonce}.tmp#{number}"));
            let written = write_synced(&temporary, &payload)
                .and_then(|()| name_synced(&temporary, &path, create));
            if let Err(error) = written {
                drop(fs::remove_file(&temporary));
                return Err(failed(&path, error));
            }
            Ok(PutResult { e_tag: None, version: None })
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.inner.path_to_filesystem(location)?;
        let at = path.clone();
        blocking(move || {
            let folder = parent(&at).map_err(|error| failed(&at, error))?;
            make_folders(folder).map_err(|error| failed(folder, error))
        })
        .await?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(DurableUpload { inner, path }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        let path = self.inner.path_to_filesystem(to)?;
        blocking(move || sync_file(&path)).await
    }
}

/// Syncs a file that has its name already, then the name.
fn sync_file(path: &FsPath) -> Result<()> {
    let synced = fs::File::open(path)
        .and_then(|file| file.sync_data())
        .and_then(|()| sync_folder(parent(path)?));
    synced.map_err(|error| failed(path, error))
}

/// An upload whose completion is durable. Between its name and its sync a power loss may leave a
/// short file, which no log entry names yet.
#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    path: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let path = self.path.clone();
        blocking(move || sync_file(&path)).await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

/// Removes temporary files (`name#digits`) below `root` that were last written before `before_ms`
/// (milliseconds since the Unix epoch) and returns how many there were.
///
/// A writer that was killed leaves them behind; listings hide them, so nothing else removes them.
///
/// # Errors
/// If a folder cannot be read. A file that cannot be removed is left.
pub fn sweep(root: &FsPath, before_ms: u64) -> io::Result<u64> {
    sweep_below(root, before_ms, SWEEP_DEPTH_MAX)
}

fn sweep_below(folder: &FsPath, before_ms: u64, depth: u32) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            removed += sweep_below(&entry.path(), before_ms, depth - 1)?;
        } else if kind.is_file()
            && is_leftover(&entry.file_name().to_string_lossy())
            && written_before(&entry, before_ms)
            && fs::remove_file(entry.path()).is_ok()
        {
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_leftover(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, digits)| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn written_before(entry: &fs::DirEntry, before_ms: u64) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
    modified
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .is_some_and(|since| since.as_millis() < u128::from(before_ms))
}
