//! Where files of outputs are: in a folder of the local disk, or in an object store.
//!
//! All that is here may wait, and is called on threads that may.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use super::bucket::Bucket;
use super::folder::Folder;

/// Holds the files of one process.
pub(super) enum Place {
    /// On the local disk.
    Folder(Folder),
    /// In an object store.
    Bucket(Bucket),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.path().display()),
            Self::Bucket(bucket) => write!(f, "{bucket}"),
        }
    }
}

impl Place {
    /// The folder, if it is one.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder.path()),
            Self::Bucket(_) => None,
        }
    }

    /// Writes a file.
    ///
    /// # Errors
    /// If the place does not take it; a part of it may be there.
    pub(super) fn write(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Folder(folder) => std::fs::write(folder.path().join(name), bytes),
            Self::Bucket(bucket) => bucket.write(name, bytes),
        }
    }

    /// What is in a file that had `bytes` bytes, and at most one byte more; `None` if it cannot be read.
    pub(super) fn read(&self, name: &str, bytes: u64) -> Option<Vec<u8>> {
        match self {
            Self::Folder(folder) => {
                let mut found = Vec::with_capacity(usize::try_from(bytes).ok()?);
                let open = std::fs::File::open(folder.path().join(name)).ok()?;
                open.take(bytes + 1).read_to_end(&mut found).ok()?;
                Some(found)
            }
            Self::Bucket(bucket) => bucket.read(name, bytes),
        }
    }

    /// Removes a file; one that is not there is as good as removed.
    pub(super) fn delete(&self, name: &str) {
        match self {
            Self::Folder(folder) => {
                let path = folder.path().join(name);
                if let Err(error) = std::fs::remove_file(&path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "spilled output not removed");
                }
            }
            Self::Bucket(bucket) => bucket.delete(name),
        }
    }

    /// Removes everything.
    pub(super) fn remove(&self) {
        match self {
            Self::Folder(folder) => folder.remove(),
            Self::Bucket(bucket) => bucket.remove(),
        }
    }
}
