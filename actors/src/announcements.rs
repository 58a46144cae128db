//! What people announced of the future, kept across restarts. Reading never waits.

use std::sync::Arc;

use foreshard_policy::forecast::announced::{AnnounceError, Announced};

use crate::kept_value::KeptValue;
use crate::state_file::{MemoryFile, StateFile};

/// A change of the announcements that did not take place.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnouncementError {
    /// It cannot be.
    #[error(transparent)]
    Refused(#[from] AnnounceError),
    /// It cannot be kept.
    #[error("the announcement was not saved: {reason}")]
    Unsaved {
        /// What the disk said.
        reason: String,
    },
}

impl AnnouncementError {
    /// Stable code for logs, metrics and the manual.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(error) => error.code(),
            Self::Unsaved { .. } => "FS-LOOP-4",
        }
    }

    /// Whether the same change may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(error) => error.is_retryable(),
            Self::Unsaved { .. } => true,
        }
    }
}

/// The announcements of one loop, as they are now and in their file.
#[derive(Debug)]
pub struct Announcements(KeptValue<Announced>);

impl Default for Announcements {
    fn default() -> Self {
        Self::kept(Arc::new(MemoryFile::default()))
    }
}

impl Announcements {
    /// Those that `file` keeps. What cannot be read is set aside: better none than wrong ones. Blocks.
    #[must_use]
    pub fn kept(file: Arc<dyn StateFile>) -> Self {
        Self(KeptValue::kept(file, "announcements"))
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Arc<Announced> {
        self.0.now()
    }

    /// Changes them, and returns when that is on disk. Blocks.
    ///
    /// # Errors
    /// [`AnnouncementError`]; nothing has changed then.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&mut Announced) -> Result<T, AnnounceError>,
    ) -> Result<T, AnnouncementError> {
        let change = |all: &mut Announced| Ok((true, change(all)?));
        self.0.change(change, |reason| AnnouncementError::Unsaved { reason })
    }
}

#[cfg(test)]
mod tests {
    use foreshard_policy::forecast::announced::Announcement;

    use super::*;
    use crate::state_file::DiskFile;

    fn peak() -> Announcement {
        Announcement { function: "f".into(), factor: 5.0, from_ms: 100, until_ms: 200 }
    }

    #[test]
    fn what_was_announced_is_there_after_a_restart() {
        let file = Arc::new(MemoryFile::default());
        let first = Announcements::kept(file.clone());
        first.change(|all| all.announce(peak(), 0)).unwrap();
        let second = Announcements::kept(file);
        assert_eq!(second.all(), first.all());
        assert_eq!(second.all().iter().next(), Some(&peak()));
    }

    #[test]
    fn a_refused_announcement_changes_nothing() {
        let kept = Announcements::default();
        kept.change(|all| all.announce(peak(), 0)).unwrap();
        let before = kept.all();
        let error = kept.change(|all| all.announce(peak(), 300)).unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("FS-ANNOUNCE-3", false));
        assert_eq!(kept.all(), before);
    }

    #[test]
    fn an_announcement_that_cannot_be_kept_is_an_error_and_does_not_count() {
        let folder = tempfile::tempdir().unwrap().path().join("gone");
        let kept = Announcements::kept(Arc::new(DiskFile::new(folder.join("announced"))));
        let error = kept.change(|all| all.announce(peak(), 0)).unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("FS-LOOP-4", true));
        assert_eq!(*kept.all(), Announced::default());
    }

    #[test]
    fn unreadable_announcements_are_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("announced");
        std::fs::write(&path, "[{}]").unwrap();
        let kept = Announcements::kept(Arc::new(DiskFile::new(&path)));
        assert_eq!(*kept.all(), Announced::default());
        assert!(folder.path().join("announced.unusable").exists());
    }
}
