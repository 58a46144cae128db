//! Small states that outlive their actor: one named blob each, on disk or in memory.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where an actor keeps what its successor needs. The methods block: call them off the mailbox.
pub trait StateFile: Debug + Send + Sync + 'static {
    /// What was saved last, if anything was.
    ///
    /// # Errors
    /// What the disk said.
    fn load(&self) -> io::Result<Option<Vec<u8>>>;

    /// Replaces what is kept; after a crash there is either the former or the new state, never a mix.
    ///
    /// # Errors
    /// What the disk said; the former state is then still there.
    fn save(&self, state: &[u8]) -> io::Result<()>;

    /// Moves an unusable state out of the way, for somebody to look at.
    ///
    /// # Errors
    /// What the disk said.
    fn set_aside(&self) -> io::Result<()>;
}

/// A state in one file: written beside, synced, then renamed over the former one.
#[derive(Debug)]
pub struct DiskFile {
    path: PathBuf,
    // A killed actor's last save may still run when its successor saves.
    writer: Mutex<()>,
}

impl DiskFile {
    /// Keeps the state at `path`; its folder must exist.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), writer: Mutex::new(()) }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }
}

impl StateFile for DiskFile {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(&self.path) {
            Ok(state) => Ok(Some(state)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn save(&self, state: &[u8]) -> io::Result<()> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.beside(".new");
        let mut file = File::create(&new)?;
        file.write_all(state)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&new, &self.path)?;
        // The rename itself is durable once the folder is synced.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn set_aside(&self) -> io::Result<()> {
        fs::rename(&self.path, self.beside(".unusable"))
    }
}

/// A state that is looked at only: saving it and setting it aside do nothing.
#[derive(Debug)]
pub struct ReadOnly<F>(pub F);

impl<F: StateFile> StateFile for ReadOnly<F> {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        self.0.load()
    }

    fn save(&self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn set_aside(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A state that lives as long as the process: survives the actor, not the machine.
#[derive(Debug, Default)]
pub struct MemoryFile {
    state: Mutex<Option<Vec<u8>>>,
}

impl StateFile for MemoryFile {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&self, state: &[u8]) -> io::Result<()> {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state.to_vec());
        Ok(())
    }

    fn set_aside(&self) -> io::Result<()> {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_state_replaces_the_former_one_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = DiskFile::new(folder.path().join("history"));
        assert_eq!(file.load().unwrap(), None);
        file.save(b"one").unwrap();
        file.save(b"two").unwrap();
        assert_eq!(file.load().unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unusable_state_is_kept_for_somebody_to_look_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = DiskFile::new(folder.path().join("history"));
        file.save(b"broken").unwrap();
        file.set_aside().unwrap();
        assert_eq!(file.load().unwrap(), None);
        assert_eq!(fs::read(folder.path().join("history.unusable")).unwrap(), b"broken");
    }

    #[test]
    fn a_folder_that_is_gone_is_an_error_and_not_a_panic() {
        let folder = tempfile::tempdir().unwrap().path().join("gone");
        let file = DiskFile::new(folder.join("history"));
        assert_eq!(file.load().unwrap(), None);
        assert_eq!(file.save(b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
