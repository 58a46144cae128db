//! `CALL export_history('file'[, 'from', 'to'])` and `CALL import_history('file')`: what was called, as one
//! Parquet file, so that a day of one system is replayed in another.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use foreshard_actors::history_store::{HistoryStore, HistoryStoreError};

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
    let exported = on_store(session, move |store| store.export(&file, from_ms, to_ms)).await?;
    counts(&[("rows", exported.rows), ("bytes", exported.bytes)])
}

/// Takes in such a file.
pub(super) async fn import(session: &Session, file: &str) -> Result<QueryStream, EngineError> {
    let file = PathBuf::from(file);
    let imported = on_store(session, move |store| store.import(&file)).await?;
    counts(&[
        ("rows", imported.rows),
        ("unusable", imported.unusable),
        ("duplicate", imported.duplicate),
    ])
}

/// Does something that waits for the disk.
async fn on_store<T: Send + 'static>(
    session: &Session,
    work: impl FnOnce(Arc<HistoryStore>) -> Result<T, HistoryStoreError> + Send + 'static,
) -> Result<T, EngineError> {
    let failed = |error: HistoryStoreError| invalid(format!("{error} ({})", error.code()));
    let store = session.inner.the_loop.history_store();
    let store = store.ok_or_else(|| failed(HistoryStoreError::Closed))?;
    let done = tokio::task::spawn_blocking(move || work(store)).await;
    done.map_err(|error| invalid(error.to_string()))?.map_err(failed)
}

fn moment(text: &str) -> Result<u64, EngineError> {
    let ns = string_to_timestamp_nanos(text)
        .map_err(|error| invalid(format!("{text:?} is no moment: {error}")))?;
    let before = || invalid(format!("{text:?} is before 1970"));
    u64::try_from(ns / 1_000_000).map_err(|_negative| before())
}
