//! `CALL export_history('file'[, 'from', 'to'])` and `CALL import_history('file')`: what was called, as one
//! Parquet file, so that a day of one system is replayed in another.

use std::path::PathBuf;

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use foreshard_actors::history_store::HistoryStoreError;

use crate::error::EngineError;
use crate::query_stream::QueryStream;
use crate::session::Session;
use crate::statements::call::{counts, invalid};

/// Writes the history of a time, the end not included, or all of it.
pub(super) async fn export(
    session: &Session,
    file: &str,
    time: Option<(&str, &str)>,
) -> Result<QueryStream, EngineError> {
    let (from_ms, to_ms) = match time {
        None => (0, u64::MAX),
        Some((from, to)) => (moment(from)?, moment(to)?.saturating_sub(1)),
    };
    let file = PathBuf::from(file);
    let store = session.inner.the_loop.history_store();
    let work = move || store.ok_or(HistoryStoreError::Closed)?.export(&file, from_ms, to_ms);
    let exported = blocking(work).await?;
    counts(&[("rows", exported.rows), ("bytes", exported.bytes)])
}

/// Takes in such a file; forecasts learn from it as from the past of this system. `ticks` says of how many
/// ticks that are remembered.
pub(super) async fn import(session: &Session, file: &str) -> Result<QueryStream, EngineError> {
    let file = PathBuf::from(file);
    let the_loop = session.inner.the_loop.clone();
    let (imported, ticks) = blocking(move || the_loop.import_history(&file)).await?;
    counts(&[
        ("rows", imported.rows),
        ("unusable", imported.unusable),
        ("duplicate", imported.duplicate),
        ("ticks", ticks as u64),
    ])
}

/// Does something that waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HistoryStoreError> + Send + 'static,
) -> Result<T, EngineError> {
    let failed = |error: HistoryStoreError| invalid(format!("{error} ({})", error.code()));
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| invalid(error.to_string()))?.map_err(failed)
}

/// Milliseconds since 1970 of a moment that somebody wrote.
pub(crate) fn moment(text: &str) -> Result<u64, EngineError> {
    let ns = string_to_timestamp_nanos(text)
        .map_err(|error| invalid(format!("{text:?} is no moment: {error}")))?;
    let before = || invalid(format!("{text:?} is before 1970"));
    u64::try_from(ns / 1_000_000).map_err(|_negative| before())
}
