//! What the store counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count that anybody may add to.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) frames_written: Count,
    pub(super) frames_dropped: Count,
    pub(super) rows_dropped: Count,
    pub(super) writes_failed: Count,
    pub(super) bytes_torn: Count,
    pub(super) bytes_damaged: Count,
    pub(super) files_missing: Count,
    pub(super) rows_unusable: Count,
    pub(super) rows_duplicate: Count,
}

impl Counters {
    pub(super) fn read(&self) -> StoreCounters {
        StoreCounters {
            frames_written: self.frames_written.read(),
            frames_dropped: self.frames_dropped.read(),
            rows_dropped: self.rows_dropped.read(),
            writes_failed: self.writes_failed.read(),
            bytes_torn: self.bytes_torn.read(),
            bytes_damaged: self.bytes_damaged.read(),
            files_missing: self.files_missing.read(),
            rows_unusable: self.rows_unusable.read(),
            rows_duplicate: self.rows_duplicate.read(),
            ..StoreCounters::default()
        }
    }
}

/// What the store holds, and what it counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Parquet files.
    pub files: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Frames that were written.
    pub frames_written: u64,
    /// Frames that found the writer behind, or gone.
    pub frames_dropped: u64,
    /// Rows of those.
    pub rows_dropped: u64,
    /// Writes that the disk refused.
    pub writes_failed: u64,
    /// Bytes at the end of segments that a crash cut short.
    pub bytes_torn: u64,
    /// Bytes within segments that were not what was written.
    pub bytes_damaged: u64,
    /// Files that the manifest names and that are gone.
    pub files_missing: u64,
    /// Rows of imports that say something impossible: a negative number, or one that is not finite.
    pub rows_unusable: u64,
    /// Rows of imports for a series and bucket that came before in the same file; they add up.
    pub rows_duplicate: u64,
}

impl StoreCounters {
    /// Each count with its name.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 12] {
        [
            ("files", self.files),
            ("segments", self.segments),
            ("bytes", self.bytes),
            ("frames_written", self.frames_written),
            ("frames_dropped", self.frames_dropped),
            ("rows_dropped", self.rows_dropped),
            ("writes_failed", self.writes_failed),
            ("bytes_torn", self.bytes_torn),
            ("bytes_damaged", self.bytes_damaged),
            ("files_missing", self.files_missing),
            ("rows_unusable", self.rows_unusable),
            ("rows_duplicate", self.rows_duplicate),
        ]
    }
}
