//! The folder of one process's files: its own, and gone with it.
//!
//! Several processes may spill below the same folder. Each has a folder in it, named in a file that it
//! keeps locked: whoever comes later removes those whose lock nobody holds.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Ends the name of the file that is locked as long as a folder is in use.
const LOCK: &str = "lock";

/// Held while folders come and go, so that none is taken for dead before it is locked.
const DOOR: &str = "door.lock";

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes an own folder below `base`, and removes those of processes that have ended.
    ///
    /// # Errors
    /// If `base` cannot be made, or nothing can be made in it.
    pub(super) fn open(base: &Path) -> io::Result<Self> {
        fs::create_dir_all(base)?;
        let door = locked(&base.join(DOOR))?;
        door.lock()?;
        sweep(base);
        let name = uuid::Uuid::new_v4().simple().to_string();
        let (path, lock_path) = (base.join(&name), base.join(format!("{name}.{LOCK}")));
        let lock = locked(&lock_path)?;
        lock.lock()?;
        fs::create_dir(&path)?;
        Ok(Self { path, lock_path, _lock: lock })
    }

    /// Where files go.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is in it.
    pub(super) fn remove(&self) {
        // What cannot be removed now is removed at the next start.
        drop(fs::remove_dir_all(&self.path));
        drop(fs::remove_file(&self.lock_path));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.remove();
    }
}

fn locked(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

/// Removes the folders of processes that have ended. One that resists stays until the next start.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_lock = path.extension().is_some_and(|ending| ending == LOCK);
        if !is_lock || path.file_name().is_some_and(|name| name == DOOR) {
            continue;
        }
        let is_dead = File::open(&path).is_ok_and(|lock| lock.try_lock().is_ok());
        if is_dead {
            let folder = path.with_extension("");
            let gone = !folder.exists() || fs::remove_dir_all(&folder).is_ok();
            if gone {
                drop(fs::remove_file(&path));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(base: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(base).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }

    #[test]
    fn what_an_ended_process_left_is_removed_and_what_a_living_one_has_stays() {
        let base = tempfile::tempdir().unwrap();
        let living = Folder::open(base.path()).unwrap();
        fs::write(living.path().join("1"), "kept").unwrap();
        // As a process leaves it that is killed: nobody holds the lock any more.
        fs::create_dir(base.path().join("dead")).unwrap();
        fs::write(base.path().join("dead/1"), "left").unwrap();
        fs::write(base.path().join("dead.lock"), "").unwrap();
        let next = Folder::open(base.path()).unwrap();
        assert!(!base.path().join("dead").exists() && !base.path().join("dead.lock").exists());
        assert_eq!(fs::read_to_string(living.path().join("1")).unwrap(), "kept");
        assert_eq!(folders(base.path()).len(), 2);
        drop(living);
        drop(next);
        assert_eq!(folders(base.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Folder::open(&file.join("below")).is_err());
    }
}
