//! What a loop that does not run would say: its last forecast, made again from the files it left. They stay
//! as they are, so that a look never costs a running loop anything, either.

use std::path::Path;
use std::sync::Arc;

use foreshard_policy::config::LoopConfig;
use foreshard_policy::forecast::ensemble::Ensemble;
use foreshard_policy::forecast::{Forecast, ForecastError, Moments};
use foreshard_policy::history::{History, HistoryView};

use crate::announcements::Announcements;
use crate::monitor::STAMP_BYTES;
use crate::predictor::neural_members;
use crate::state_file::{DiskFile, ReadOnly, StateFile};

/// What files cannot tell.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    /// A file is damaged, or of another version.
    #[error("{file} cannot be read: {reason}")]
    Unreadable {
        /// Which.
        file: &'static str,
        /// What its reader said.
        reason: String,
    },
    /// The members can make no forecast of it.
    #[error(transparent)]
    Forecast(#[from] ForecastError),
}

/// The state of a loop at the end of its last tick.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What was called.
    pub history: HistoryView,
    /// What is expected.
    pub forecast: Forecast,
    /// Where the ticks lie on the clock.
    pub moments: Moments,
    /// How many ticks are forecast.
    pub horizon: usize,
}

fn unreadable(file: &'static str, reason: &dyn std::fmt::Display) -> KeptError {
    KeptError::Unreadable { file, reason: reason.to_string() }
}

/// Reads the state in `folder`, as it was saved last; `None` if no loop left anything there. Blocks.
///
/// # Errors
/// [`KeptError`] if a file is unusable or no member can forecast.
pub fn look(config: &LoopConfig, folder: &Path) -> Result<Option<Kept>, KeptError> {
    let file = |name: &str| DiskFile::new(folder.join(name));
    let Some((saved_ms, history)) = history(&file("history"), config)? else { return Ok(None) };
    let view = history.view();
    let moments = Moments { at: view.at, closed_ms: saved_ms, tick_ms: view.tick_ms };
    let mut ensemble = Ensemble::new(config, neural_members(config)?);
    let checkpoint = file("forecast").load();
    if let Some(checkpoint) = checkpoint.map_err(|error| unreadable("forecast", &error))? {
        ensemble.load(&checkpoint)?;
    }
    let announced = Announcements::kept(Arc::new(ReadOnly(file("announced")))).all();
    let calm = announced.calm(&view, &moments);
    let horizon = config.horizon_ticks();
    let mut forecast = ensemble.forecast(calm.as_ref().unwrap_or(&view), horizon)?;
    let current_ticks = config.monitor().current_ticks();
    announced.put_into(&mut forecast, &view, &moments, current_ticks);
    Ok(Some(Kept { history: view, forecast, moments, horizon }))
}

/// The history, and when it was saved, in milliseconds since the Unix epoch.
fn history(file: &dyn StateFile, config: &LoopConfig) -> Result<Option<(u64, History)>, KeptError> {
    let state = file.load().map_err(|error| unreadable("history", &error))?;
    let Some(state) = state else { return Ok(None) };
    let (stamp, bytes) = state.split_first_chunk::<STAMP_BYTES>().unwrap_or((&[0; 8], &[]));
    let history = History::load(config, bytes).map_err(|error| unreadable("history", &error))?;
    Ok(Some((u64::from_le_bytes(*stamp), history)))
}
