//! The list of files that belong to the store. What is not in it was left by a crash, and is removed.

use foreshard_policy::history::Resolution;
use foreshard_policy::history::files::StoredFile;
use serde::{Deserialize, Serialize};

/// Changes whenever the fields below do.
const VERSION: u32 = 1;

/// What the store consists of, besides segments from `segments_from` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    /// Number of the next file.
    pub(super) next_file: u64,
    /// Segments before this one are in files.
    pub(super) segments_from: u64,
    /// The last frame of those segments.
    pub(super) last_frame: u64,
    /// Fingerprints of files that were imported.
    pub(super) imported: Vec<String>,
    pub(super) files: Vec<File>,
}

/// A [`StoredFile`] as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    id: u64,
    resolution: Resolution,
    first_ms: u64,
    last_ms: u64,
    bytes: u64,
}

impl From<&StoredFile> for File {
    fn from(file: &StoredFile) -> Self {
        let StoredFile { id, resolution, first_ms, last_ms, bytes } = *file;
        Self { id, resolution, first_ms, last_ms, bytes }
    }
}

impl From<&File> for StoredFile {
    fn from(file: &File) -> Self {
        let File { id, resolution, first_ms, last_ms, bytes } = *file;
        Self { id, resolution, first_ms, last_ms, bytes }
    }
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            version: VERSION,
            next_file: 1,
            segments_from: 1,
            last_frame: 0,
            imported: Vec::new(),
            files: Vec::new(),
        }
    }
}

impl Manifest {
    /// Reads what [`to_bytes`](Self::to_bytes) wrote; else why not.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if manifest.version != VERSION {
            return Err(format!("it has version {}; it must be {VERSION}", manifest.version));
        }
        Ok(manifest)
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }
}
