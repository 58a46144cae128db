//! Checkpoints and vacuum of managed tables: done by the Delta library, beside the commits.

use std::sync::PoisonError;

use arrow::temporal_conversions::try_duration_ms_to_duration;
use deltalake_core::checkpoints::{cleanup_metadata, create_checkpoint};
use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::operations::vacuum::VacuumMode;
use tracing::{debug, warn};

use super::{ManagedTable, Shared};
use crate::store::error::StoreError;
use crate::table::TableStore;

/// Least age of a file that vacuum may remove: longer than any write takes, because files of a
/// writer in another process are not in the log yet.
pub const VACUUM_AGE_MIN_MS: u64 = 60 * 60 * 1000;

/// A thousand years.
const AGE_MS_MAX: i64 = 1_000 * 365 * 24 * 60 * 60 * 1_000;

impl Shared {
    /// Makes a checkpoint; a failure is logged and harms nothing.
    pub(super) async fn checkpoint_beside(&self, version: u64) {
        match Box::pin(self.checkpoint(version)).await {
            Ok(cleaned) => debug!(table = %self.table.name, version, cleaned, "checkpoint made"),
            Err(error) => {
                warn!(table = %self.table.name, version, %error, "checkpoint not made");
            }
        }
    }

    /// Makes a checkpoint of `version`, then removes log entries that are older than the table's
    /// log retention (30 days unless the table says otherwise).
    async fn checkpoint(&self, version: u64) -> Result<usize, StoreError> {
        let failed = |error| StoreError::delta("checkpoint", &self.place.url, error);
        let table = self.place.library_table(version).await?;
        Box::pin(create_checkpoint(&table, None)).await.map_err(failed)?;
        Box::pin(cleanup_metadata(&table, None)).await.map_err(failed)
    }
}

impl ManagedTable {
    /// Makes a checkpoint of the newest version now. Opening is faster with one; nothing else
    /// depends on it.
    ///
    /// # Errors
    /// If the Delta library cannot make one. The table is as good as before.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let version = self.snapshot().version;
        self.shared.checkpoint(version).await.map(drop)
    }

    /// Waits until checkpoints that are being made beside have ended.
    pub async fn settle(&self) {
        let mut tasks = {
            let mut tasks = self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        while tasks.join_next().await.is_some() {}
    }

    /// Removes files that no version needs that is newest or in `pinned`, if they were written or
    /// removed from the table more than `age_ms_min` ago. Returns their paths.
    ///
    /// `pinned` must name every version that a query may still read, in any process. Commits of
    /// this handle wait meanwhile; those of other processes are safe because of the age.
    ///
    /// # Errors
    /// [`StoreError::TooShort`] if `age_ms_min` is less than [`VACUUM_AGE_MIN_MS`], or whatever
    /// the Delta library says.
    pub async fn vacuum(&self, pinned: &[u64], age_ms_min: u64) -> Result<Vec<String>, StoreError> {
        if age_ms_min < VACUUM_AGE_MIN_MS {
            let what = "least age of files to vacuum";
            return Err(StoreError::TooShort { what, value: age_ms_min, least: VACUUM_AGE_MIN_MS });
        }
        // Above this many milliseconds nothing is old enough, and the library would overflow.
        let age_ms = i64::try_from(age_ms_min).unwrap_or(AGE_MS_MAX).min(AGE_MS_MAX);
        let Some(age) = try_duration_ms_to_duration(age_ms) else { return Ok(vec![]) };
        let _alone = self.shared.files.write().await;
        let version = self.refresh().await?.version;
        let table = self.shared.place.library_table(version).await?;
        let quiet = CommitProperties::default()
            .with_create_checkpoint(false)
            .with_cleanup_expired_logs(Some(false));
        let vacuum = table
            .vacuum()
            .with_mode(VacuumMode::Full)
            .with_retention_period(age)
            .with_enforce_retention_duration(false)
            .with_keep_versions(pinned)
            .with_commit_properties(quiet);
        let (_, metrics) = Box::pin(vacuum.into_future())
            .await
            .map_err(|error| StoreError::delta("vacuum", &self.shared.place.url, error))?;
        self.refresh().await?;
        Ok(metrics.files_deleted)
    }
}
