use std::io;
use std::path::{Path, PathBuf};

use crate::hash::ContentHash;

/// What can be wrong with a file of a run. Every variant names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot *create*".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process works on the same folder.
    #[error("{}: another process is working here; wait for it to end, or choose another --run", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The archive ends before its end-of-archive marker.
    #[error("{}: the shard is cut short", path.display())]
    Truncated {
        /// The shard.
        path: PathBuf,
    },
    /// The file is not what its name promises.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A sample key holds something else than `a-z`, `0-9`, `_` and `-`.
    #[error("sample key {key:?}: only a-z, 0-9, '_' and '-' are allowed")]
    InvalidKey {
        /// The key as given.
        key: String,
    },
    /// A sample holds one extension twice, or one that hides behind a metadata name.
    #[error("sample {key}: the extension {extension:?} is {reason}")]
    InvalidPart {
        /// The sample's key.
        key: String,
        /// The extension.
        extension: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// A sample lacks a part that its reader needs.
    #[error("sample {key}: the part .{extension} is missing")]
    MissingPart {
        /// The sample's key.
        key: String,
        /// The extension that was looked for.
        extension: String,
    },
    /// The bytes are not those that the index recorded.
    #[error("{}: SHA-256 is {found}, the index says {expected}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// From the index.
        expected: ContentHash,
        /// From the bytes.
        found: ContentHash,
    },
    /// The number of samples is not the one that the index recorded.
    #[error("{}: holds {found} samples, the index says {expected}", path.display())]
    Count {
        /// The shard.
        path: PathBuf,
        /// From the index.
        expected: u64,
        /// From the archive.
        found: u64,
    },
    /// Not an array in NumPy's format, or not of the wanted type or shape.
    #[error("array: {0}")]
    Array(String),
    /// Not a SHA-256 in hexadecimal.
    #[error("{0:?} is not a SHA-256 of 64 hexadecimal digits")]
    InvalidHash(String),
}

impl Error {
    /// An [`Error::Io`] for `path`, to be used with `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { action, path, source }
    }

    /// Whether the disk, and not the data, is at fault: no space, quota, or a read-only file system.
    pub fn is_storage(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        matches!(self, Error::Io { source, .. }
            if matches!(source.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | FileTooLarge))
    }
}
