//! The part of the cache that belongs to one repository, in the layout of Python's `huggingface_hub`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::{Error, ModelName, Result};

/// One repository in the cache.
pub struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub fn new(cache: &Path, name: &ModelName) -> Self {
        let folder = format!("models--{}", name.repository().replace('/', "--"));
        Self { locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The folder of what a revision stood for when it was last fetched, where it was.
    pub fn snapshot_of(&self, revision: &str) -> Result<Option<PathBuf>> {
        let direct = self.snapshot(revision);
        if is_commit(revision) && direct.is_dir() {
            return Ok(Some(direct));
        }
        let path = self.folder.join("refs").join(revision);
        match fs::read_to_string(&path) {
            Ok(commit) if is_commit(commit.trim()) => Ok(Some(self.snapshot(commit.trim()))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { action: "read", path, source }),
        }
    }

    /// Notes what a revision stands for.
    pub fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_folder_of(&path)?;
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, commit).map_err(Error::io("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(Error::io("write", &path))
    }

    /// The contents that a server calls `etag`; a name that [`is_etag`] has seen.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Files the contents `etag` under a path of a commit.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        make_folder_of(&path)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let temporary = path.with_extension("tmp");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &temporary)(error));
            }
            _ => {}
        }
        symlink(&target, &temporary).map_err(Error::io("link", &temporary))?;
        fs::rename(&temporary, &path).map_err(Error::io("link", &path))
    }

    /// Waits for other processes that fetch from this repository, and keeps them waiting until it is dropped.
    pub fn lock(&self) -> Result<File> {
        let path = self.locks.join("stepdown.lock");
        make_folder_of(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }
}

/// Whether a text is the full name of a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a server's name for contents can be a file's name.
pub fn is_etag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.starts_with('.')
}

pub fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))
}
