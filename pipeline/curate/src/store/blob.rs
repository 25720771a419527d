//! One file or object, read by ranges, and how a written path leads to some.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStoreExt};

use super::connect::{self, Bucket};
use super::{PART, PARTS_AT_ONCE, told, wait};
use crate::error::{Error, Result};

/// A file or object of known length.
#[derive(Debug, Clone)]
pub struct Blob {
    place: Place,
    /// Bytes.
    pub length: u64,
}

#[derive(Debug, Clone)]
enum Place {
    File(PathBuf),
    Object(Arc<Bucket>, Key),
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File(path) => write!(f, "{}", path.display()),
            Place::Object(bucket, key) => write!(f, "{}/{key}", bucket.url),
        }
    }
}

impl Blob {
    /// Path or URL.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.to_string())
    }

    /// The last part of its path.
    pub fn name(&self) -> String {
        self.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Reads some ranges at once.
    ///
    /// # Errors
    /// [`Error::Table`] for a file, [`Error::Store`] for an object, also where either is shorter than it was.
    pub fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Vec<u8>>> {
        match &self.place {
            Place::File(path) => {
                read_file(path, ranges).map_err(|e| Error::table(path, format!("cannot be read: {e}")))
            }
            Place::Object(bucket, key) => {
                wait(read_object(bucket, key, ranges)).map_err(|e| told(&self.to_string(), e))
            }
        }
    }

    /// Reads one range.
    ///
    /// # Errors
    /// As [`read`](Blob::read).
    pub fn read_one(&self, range: Range<u64>) -> Result<Vec<u8>> {
        self.read(&[range]).map(|mut read| read.swap_remove(0))
    }

    /// The last bytes of each of `blobs`, many at once where they lie far away.
    ///
    /// # Errors
    /// As [`read`](Blob::read).
    pub fn read_ends(blobs: &[Blob], most: u64) -> Result<Vec<Vec<u8>>> {
        const AT_ONCE: usize = 32;
        let reads = blobs.iter().map(|blob| async move {
            let range = blob.length.saturating_sub(most)..blob.length;
            match &blob.place {
                Place::File(_) => blob.read_one(range),
                Place::Object(bucket, key) => {
                    read_part(bucket, key, range).await.map_err(|e| told(&blob.to_string(), e))
                }
            }
        });
        wait(stream::iter(reads).buffered(AT_ONCE).try_collect())
    }
}

fn read_file(path: &Path, ranges: &[Range<u64>]) -> io::Result<Vec<Vec<u8>>> {
    let file = File::open(path)?;
    let read = |range: &Range<u64>| {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    };
    ranges.iter().map(read).collect()
}

/// Cuts the ranges into parts, reads a few of them at a time, and puts them together again.
async fn read_object(bucket: &Bucket, key: &Key, ranges: &[Range<u64>]) -> object_store::Result<Vec<Vec<u8>>> {
    let parts = ranges.iter().enumerate().flat_map(|(at, range)| {
        let range = range.clone();
        let starts = (range.start..range.end).step_by(PART as usize);
        starts.map(move |start| (at, start..range.end.min(start + PART)))
    });
    let reads = parts.map(|(at, part)| async move { read_part(bucket, key, part).await.map(|bytes| (at, bytes)) });
    let mut whole: Vec<Vec<u8>> = ranges.iter().map(|r| Vec::with_capacity((r.end - r.start) as usize)).collect();
    let mut arriving = stream::iter(reads).buffered(PARTS_AT_ONCE);
    while let Some((at, part)) = arriving.try_next().await? {
        whole[at].extend_from_slice(&part);
    }
    Ok(whole)
}

async fn read_part(bucket: &Bucket, key: &Key, range: Range<u64>) -> object_store::Result<Vec<u8>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let wanted = range.end - range.start;
    let bytes = bucket.store.get_range(key, range).await?;
    if bytes.len() as u64 == wanted {
        Ok(bytes.into())
    } else {
        let source = format!("{} bytes came where {wanted} were asked for", bytes.len()).into();
        Err(object_store::Error::Generic { store: "range", source })
    }
}

/// What a written path leads to: a file, the `*.parquet` of a folder, or all that a glob matches,
/// here or in a store. Hidden files, those that begin with `_` and checksums (`.crc`), which data sets ship beside
/// their tables, are passed over.
///
/// # Errors
/// [`Error::Store`] where the store cannot be asked.
pub fn find(written: &str) -> Result<Vec<Blob>> {
    if connect::is_url(written) { find_objects(written) } else { Ok(find_files(written)) }
}

/// `*` and `?` do not reach over a `/`, `**` does.
const GLOB: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

fn find_files(written: &str) -> Vec<Blob> {
    let file = |path: PathBuf| {
        let length = path.metadata().ok().filter(|found| found.is_file())?.len();
        is_table(&path.file_name()?.to_string_lossy()).then_some(Blob { place: Place::File(path), length })
    };
    let path = Path::new(written);
    if path.is_file() {
        return file(path.to_owned()).into_iter().collect();
    }
    let pattern = match path.is_dir() {
        true => format!("{}/*.parquet", glob::Pattern::escape(written.trim_end_matches('/'))),
        false => written.to_owned(),
    };
    glob::glob_with(&pattern, GLOB).into_iter().flatten().filter_map(|path| file(path.ok()?)).collect()
}

fn find_objects(written: &str) -> Result<Vec<Blob>> {
    let (bucket, key) = connect::open(written)?;
    let told = |error| told(written, error);
    let blob = |found: ObjectMeta| Blob { place: Place::Object(bucket.clone(), found.location), length: found.size };
    let is_glob = key.contains(['*', '?', '[']);
    if !bucket.can_list && (is_glob || key.is_empty() || key.ends_with('/')) {
        let reason = "a web server does not tell which files it has; name each by its URL".into();
        return Err(Error::Store { url: written.to_owned(), reason, wrong: true });
    }
    if !is_glob && !key.is_empty() && !key.ends_with('/') {
        let found = wait(bucket.store.head(&connect::key(&bucket, &key)?));
        match found {
            Ok(found) => return Ok(vec![blob(found)]),
            // It may be a folder.
            Err(object_store::Error::NotFound { .. }) if bucket.can_list => {}
            Err(error) => return Err(told(error)),
        }
    }
    let (folder, pattern) = if is_glob {
        let literal = key.split(['*', '?', '[']).next().unwrap_or_default();
        (literal.rsplit_once('/').map_or("", |(folder, _)| folder), key.clone())
    } else {
        let folder = key.trim_end_matches('/');
        let inside = if folder.is_empty() { String::new() } else { format!("{}/", glob::Pattern::escape(folder)) };
        (folder, format!("{inside}*.parquet"))
    };
    let pattern = glob::Pattern::new(&pattern).map_err(|error| Error::Store {
        url: written.to_owned(),
        reason: format!("is no glob: {error}"),
        wrong: true,
    })?;
    let prefix = if folder.is_empty() { None } else { Some(connect::key(&bucket, folder)?) };
    let listed: Vec<ObjectMeta> = wait(bucket.store.list(prefix.as_ref()).try_collect()).map_err(told)?;
    let wanted = |found: &ObjectMeta| {
        pattern.matches_with(found.location.as_ref(), GLOB) && is_table(found.location.filename().unwrap_or_default())
    };
    Ok(listed.into_iter().filter(wanted).map(blob).collect())
}

fn is_table(name: &str) -> bool {
    !name.starts_with('.') && !name.starts_with('_') && !name.ends_with(".crc")
}
