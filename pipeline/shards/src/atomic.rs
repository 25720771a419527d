//! Publication of files: whole or not at all, and durable once visible.
//!
//! The order is temporary file, `fsync`, `rename`, `fsync` of the folder. A temporary file is named
//! `.NAME.tmp` beside its target; what a killed process leaves under such a name is replaced by the next.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Bytes after which a file that is still being written is flushed: its commit then has the last of them to wait for, and
/// not all.
const FLUSH_EVERY: usize = 64 << 20;

/// A file that appears under its name only at [`AtomicFile::commit`].
///
/// Dropped without a commit, it leaves nothing.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    unflushed: usize,
    committed: bool,
}

impl AtomicFile {
    /// Opens the temporary file for `target`, making the folders above it.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder or file cannot be made.
    pub fn create(target: impl AsRef<Path>) -> Result<AtomicFile> {
        let target = target.as_ref().to_owned();
        let temporary = temporary_name(&target)?;
        if let Some(folder) = parent(&target) {
            create_folder(folder)?;
        }
        // Never truncated: a leftover of [`link`] is a name of another file.
        remove_leftover(&temporary)?;
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        Ok(AtomicFile { file, temporary, target, unflushed: 0, committed: false })
    }

    /// Makes the bytes durable, then visible under the target's name.
    ///
    /// # Errors
    /// [`Error::Io`]; the target is then what it was before.
    pub fn commit(mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("flush to disk", &self.temporary))?;
        fs::rename(&self.temporary, &self.target).map_err(Error::io("rename into place", &self.target))?;
        self.committed = true;
        sync_folder_of(&self.target)
    }

    /// The name under which the file will appear.
    pub fn target(&self) -> &Path {
        &self.target
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unflushed += written;
        if self.unflushed >= FLUSH_EVERY {
            self.file.sync_data()?;
            // What is on disk is not read again soon, and its memory serves the next bytes. It is advice: no failure.
            let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
            self.unflushed = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: a leftover is overwritten by the next attempt and never listed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Publishes `bytes` as `path`.
///
/// # Errors
/// [`Error::Io`]; `path` is then what it was before.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(Error::io("write", file.target()))?;
    file.commit()
}

/// Publishes the file `from` under the name `to` as well; a copy where the file systems differ. Neither may be changed in
/// place afterwards.
///
/// # Errors
/// [`Error::Io`]; `to` is then what it was before.
pub fn link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let to = to.as_ref();
    // The file itself, not a link that it may be.
    let from = from.as_ref().canonicalize().map_err(Error::io("find", from.as_ref()))?;
    let temporary = temporary_name(to)?;
    if let Some(folder) = parent(to) {
        create_folder(folder)?;
    }
    remove_leftover(&temporary)?;
    if fs::hard_link(&from, &temporary).is_err() {
        return copy(&from, to);
    }
    fs::rename(&temporary, to).map_err(Error::io("rename into place", to))?;
    // A rename between two names of one file leaves both.
    remove_leftover(&temporary)?;
    sync_folder_of(to)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(Error::io("read", from))?;
    let mut file = AtomicFile::create(to)?;
    io::copy(&mut source, &mut file.file).map_err(Error::io("copy to", to))?;
    file.commit()
}

/// Publishes `value` as indented JSON with a final newline.
///
/// # Errors
/// [`Error::Io`], or [`Error::Malformed`] where the value has no JSON form.
pub fn write_json(path: impl AsRef<Path>, value: &impl serde::Serialize) -> Result<()> {
    let path = path.as_ref();
    write_atomic(path, &json_bytes(path, value)?)
}

/// What [`write_json`] writes.
pub(crate) fn json_bytes(path: &Path, value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Malformed { path: path.to_owned(), reason: e.to_string() })?;
    text.push(b'\n');
    Ok(text)
}

/// Reads a JSON document.
///
/// # Errors
/// [`Error::Io`], or [`Error::Malformed`] with line and column.
pub fn read_json<T: serde::de::DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let text = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| Error::Malformed { path: path.to_owned(), reason: e.to_string() })
}

/// Makes a folder and those above it that are missing, each durable in the one that holds it: a file that is flushed
/// into a folder is lost with the folder's name.
///
/// # Errors
/// [`Error::Io`] where one cannot be made or flushed.
pub fn create_folder(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
    missing.into_iter().try_for_each(sync_folder_of)
}

/// Makes a rename or removal in the folder of `path` durable.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be opened or flushed.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = parent(path).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("flush the folder", folder))
}

/// Whether `path` is named as a temporary file of this module.
pub fn is_temporary(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with('.') && n.ends_with(".tmp"))
}

fn remove_leftover(temporary: &Path) -> Result<()> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", temporary)(error)),
        _ => Ok(()),
    }
}

fn temporary_name(target: &Path) -> Result<PathBuf> {
    let name = target
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| Error::Malformed { path: target.to_owned(), reason: "not the name of a file".into() })?;
    Ok(target.with_file_name(format!(".{name}.tmp")))
}

fn parent(path: &Path) -> Option<&Path> {
    path.parent().filter(|p| !p.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_visible_before_commit_and_nothing_is_left_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/file.bin");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);

        write_atomic(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_atomic(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new, but nobody commits it").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_leftover_of_a_killed_process_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000000.tar");
        fs::write(dir.path().join(".000000.tar.tmp"), b"much longer rubbish than the new content").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(is_temporary(&dir.path().join(".000000.tar.tmp")) && !is_temporary(&path));
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Also where the name is another file's, or the file's own already, and for what a symbolic link points to.
    #[test]
    fn a_file_gets_a_second_name_and_nothing_else_appears() {
        let dir = tempfile::tempdir().unwrap();
        let (from, seen, to) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("deep/c"));
        fs::write(&from, b"weights").unwrap();
        std::os::unix::fs::symlink(&from, &seen).unwrap();
        write_atomic(&to, b"another").unwrap();
        for _ in 0..2 {
            link(&seen, &to).unwrap();
            assert!(!fs::symlink_metadata(&to).unwrap().is_symlink());
            assert_eq!(fs::read(&to).unwrap(), b"weights");
            assert_eq!(names(to.parent().unwrap()), ["c"]);
        }
        copy(&from, &to).unwrap();
        assert_eq!((fs::read(&to).unwrap(), names(to.parent().unwrap())), (b"weights".to_vec(), vec!["c".to_owned()]));

        let message = link(dir.path().join("absent"), &to).unwrap_err().to_string();
        assert!(message.contains("absent"), "{message}");
        assert_eq!(fs::read(&to).unwrap(), b"weights");
    }

    /// Killed before its rename, a link leaves a temporary name of the file that it was to give another.
    #[test]
    fn a_leftover_of_a_link_is_never_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("model.safetensors"), dir.path().join("other.safetensors"));
        fs::write(&from, b"weights").unwrap();
        let leftover = dir.path().join(".other.safetensors.tmp");
        fs::hard_link(&from, &leftover).unwrap();
        write_atomic(&to, b"written").unwrap();
        fs::hard_link(&from, &leftover).unwrap();
        link(&from, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), b"weights");
        assert_eq!(names(dir.path()), ["model.safetensors", "other.safetensors"]);
    }

    #[test]
    fn folders_are_made_with_those_above_them() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_folder(&deep).unwrap();
        create_folder(&deep).unwrap();
        assert!(deep.is_dir());
        let blocked = dir.path().join("file");
        fs::write(&blocked, b"").unwrap();
        assert!(create_folder(&blocked.join("below")).unwrap_err().to_string().contains("below"));
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        fs::write(&blocked, b"").unwrap();
        let message = write_atomic(blocked.join("below/x.json"), b"").unwrap_err().to_string();
        assert!(message.contains("below"), "{message}");
        let message = read_json::<u8>(dir.path().join("absent.json")).unwrap_err().to_string();
        assert!(message.contains("absent.json"), "{message}");
    }
}
