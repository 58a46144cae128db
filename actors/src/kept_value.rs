//! A value in memory that people change and that is kept in a file. Reading never waits.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::state_file::StateFile;

/// The value as it is now, and its file.
#[derive(Debug)]
pub(crate) struct KeptValue<T> {
    now: ArcSwap<T>,
    file: Arc<dyn StateFile>,
    // One change at a time: none is lost, and what is shown is what is kept.
    writer: Mutex<()>,
}

impl<T: Clone + Default + Serialize + DeserializeOwned> KeptValue<T> {
    /// What `file` keeps. What cannot be read is set aside, and the default holds: better none than a wrong
    /// one. `what` names it in the log. Blocks.
    pub(crate) fn kept(file: Arc<dyn StateFile>, what: &'static str) -> Self {
        let now = match file.load() {
            Ok(None) => T::default(),
            Ok(Some(state)) => serde_json::from_slice(&state).unwrap_or_else(|error| {
                let aside = file.set_aside();
                tracing::warn!(%error, ?file, ?aside, what, "set aside");
                T::default()
            }),
            Err(error) => {
                tracing::warn!(%error, ?file, what, "cannot be read");
                T::default()
            }
        };
        Self { now: ArcSwap::from_pointee(now), file, writer: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Arc<T> {
        self.now.load_full()
    }

    /// Changes the value, and returns when that is on disk. `change` answers whether anything is new, and what
    /// to return. Blocks.
    ///
    /// # Errors
    /// That of `change`, or `unsaved` of what the disk said; nothing has changed then.
    pub(crate) fn change<D, E>(
        &self,
        change: impl FnOnce(&mut T) -> Result<(bool, D), E>,
        unsaved: impl Fn(String) -> E,
    ) -> Result<D, E> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = T::clone(&self.now.load());
        let (is_new, done) = change(&mut changed)?;
        if is_new {
            let state = serde_json::to_vec(&changed).map_err(|error| unsaved(error.to_string()))?;
            self.file.save(&state).map_err(|error| unsaved(error.to_string()))?;
            self.now.store(Arc::new(changed));
        }
        Ok(done)
    }
}
