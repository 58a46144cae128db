//! What people let the loop do to each table, kept across restarts. Reading never waits.

use std::sync::Arc;

use foreshard_policy::control::{ControlError, Controls};

use crate::kept_value::KeptValue;
use crate::state_file::{MemoryFile, StateFile};

/// What people asked of the loop did not take place.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It cannot be.
    #[error(transparent)]
    Refused(#[from] ControlError),
    /// It cannot be kept.
    #[error("the change was not saved: {reason}")]
    Unsaved {
        /// What the disk said.
        reason: String,
    },
    /// Who would do it is being started again, or the loop has been shut down.
    #[error("the {role} is not running")]
    Down {
        /// Who was needed.
        role: crate::board::Role,
    },
}

impl RequestError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(error) => error.code(),
            Self::Unsaved { .. } => "FS-LOOP-5",
            Self::Down { .. } => "FS-LOOP-2",
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(error) => error.is_retryable(),
            Self::Unsaved { .. } | Self::Down { .. } => true,
        }
    }
}

/// The controls of one loop, as they are now and in their file.
#[derive(Debug)]
pub struct KeptControls(KeptValue<Controls>);

impl Default for KeptControls {
    fn default() -> Self {
        Self::kept(Arc::new(MemoryFile::default()))
    }
}

impl KeptControls {
    /// Those that `file` keeps. What cannot be read is set aside: then the setting holds for all tables.
    /// Blocks.
    #[must_use]
    pub fn kept(file: Arc<dyn StateFile>) -> Self {
        Self(KeptValue::kept(file, "controls of tables"))
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Arc<Controls> {
        self.0.now()
    }

    /// Changes them, and returns when that is on disk; answers whether anything is new. Blocks.
    ///
    /// # Errors
    /// [`RequestError::Unsaved`]; nothing has changed then.
    pub fn change(&self, change: impl FnOnce(&mut Controls) -> bool) -> Result<bool, RequestError> {
        let change = |all: &mut Controls| {
            let is_new = change(all);
            Ok((is_new, is_new))
        };
        self.0.change(change, |reason| RequestError::Unsaved { reason })
    }
}

#[cfg(test)]
mod tests {
    use foreshard_policy::control::Control;

    use super::*;
    use crate::state_file::DiskFile;

    #[test]
    fn what_people_said_of_tables_is_there_after_a_restart() {
        let file = Arc::new(MemoryFile::default());
        let first = KeptControls::kept(file.clone());
        assert_eq!(first.change(|all| all.set("t", Some(Control::Suggest))), Ok(true));
        assert_eq!(first.change(|all| all.freeze("u")), Ok(true));
        assert_eq!(first.change(|all| all.freeze("u")), Ok(false), "it is nothing new");
        assert_eq!(first.change(|all| all.colocate(&["t".into(), "u".into()])), Ok(true));
        let second = KeptControls::kept(file);
        assert_eq!(second.all(), first.all());
        assert!(second.all().is_frozen("u"));
        assert!(second.all().group_of("t").is_some_and(|group| group.contains("u")));
    }

    #[test]
    fn what_cannot_be_kept_is_an_error_and_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let kept = KeptControls::kept(Arc::new(DiskFile::new(gone.join("controls"))));
        let error = kept.change(|all| all.freeze("t")).unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("FS-LOOP-5", true));
        assert_eq!(*kept.all(), Controls::default());
    }

    #[test]
    fn unreadable_controls_are_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controls");
        std::fs::write(&path, "no controls").unwrap();
        let kept = KeptControls::kept(Arc::new(DiskFile::new(&path)));
        assert_eq!(*kept.all(), Controls::default());
        assert!(folder.path().join("controls.unusable").exists());
    }
}
