//! One process at a time in a folder of a run.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::atomic::create_folder;
use crate::{Error, Result};

/// An exclusive advisory lock on a folder, held until dropped. The system releases it when the process dies,
/// however it dies, so that a killed run needs no cleaning.
#[derive(Debug)]
pub struct RunLock {
    // Held for its lock alone.
    _file: File,
}

impl RunLock {
    /// Takes the lock of `folder` (the file `.lock` in it), making the folder where it is missing.
    ///
    /// # Errors
    /// [`Error::Locked`] at once where another process holds it; [`Error::Io`] where no lock can be made.
    pub fn acquire(folder: impl AsRef<Path>) -> Result<RunLock> {
        let folder = folder.as_ref();
        create_folder(folder)?;
        let path = folder.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io("open the lock", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(RunLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path }),
            Err(TryLockError::Error(source)) => Err(Error::Io { action: "lock", path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(dir.path()).unwrap();
        assert!(matches!(RunLock::acquire(dir.path()), Err(Error::Locked { .. })));
        drop(first);
        RunLock::acquire(dir.path()).unwrap();
    }
}
