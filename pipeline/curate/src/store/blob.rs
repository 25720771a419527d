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

    /// The same for every name of the same file.
    pub fn identity(&self) -> PathBuf {
        match &self.place {
            Place::File(path) => path.canonicalize().unwrap_or_else(|_| path.clone()),
            Place::Object(..) => self.path(),
        }
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
/// here or in a store; or why that is nothing. Files and folders below the part of a glob that is no pattern are passed
/// over if they are hidden, begin with `_` or are checksums (`.crc`): data sets and those who write them have such
/// beside their tables.
///
/// # Errors
/// [`Error::Store`] where the store cannot be asked.
pub fn find(written: &str) -> Result<Result<Vec<Blob>, String>> {
    if connect::is_url(written) { find_objects(written) } else { Ok(find_files(written)) }
}

/// `*` and `?` do not reach over a `/`, `**` does.
const GLOB: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

fn find_files(written: &str) -> Result<Vec<Blob>, String> {
    let file = |path: PathBuf| {
        let length = path.metadata().ok().filter(|found| found.is_file())?.len();
        Some(Blob { place: Place::File(path), length })
    };
    let plain = [Some(written.to_owned()), literal(written)];
    if let Some(path) = plain.iter().flatten().find(|path| Path::new(path).is_file()) {
        return Ok(file(path.into()).into_iter().collect());
    }
    let folder = plain.iter().flatten().find(|path| Path::new(path).is_dir());
    let pattern = match folder {
        Some(folder) => format!("{}/*.parquet", glob::Pattern::escape(folder.trim_end_matches('/'))),
        None => written.to_owned(),
    };
    let found = glob::glob_with(&pattern, GLOB).map_err(|error| format!("it is no glob: {error}"))?;
    let (found, unreadable): (Vec<_>, Vec<_>) = found.partition(std::result::Result::is_ok);
    let found = found.into_iter().flatten();
    let depth =
        Path::new(&pattern).components().take_while(|part| is_literal(&part.as_os_str().to_string_lossy())).count();
    let (tables, others): (Vec<PathBuf>, Vec<PathBuf>) = found
        .partition(|path| path.components().skip(depth).all(|part| is_of_tables(&part.as_os_str().to_string_lossy())));
    let blobs: Vec<Blob> = tables.into_iter().filter_map(file).collect();
    if !blobs.is_empty() {
        return Ok(blobs);
    }
    let in_another_case = || {
        let options = glob::MatchOptions { case_sensitive: false, ..GLOB };
        glob::glob_with(&pattern, options).into_iter().flatten().flatten().next()
    };
    Err(if let Some(Err(error)) = unreadable.into_iter().next() {
        format!("{} cannot be read: {}", error.path().display(), error.error())
    } else if let Some(other) = others.first() {
        format!("what is hidden, begins with _ or ends in .crc is passed over, as {}", other.display())
    } else if let Some(other) = in_another_case() {
        format!("{} is another name, by its case", other.display())
    } else if literal(written).is_some() && folder.is_none() {
        "there is no such file or folder".to_owned()
    } else {
        "nothing there has such a name".to_owned()
    })
}

/// A path as it is named by a glob in which nothing is a pattern; `glob::Pattern::escape` undone.
fn literal(glob: &str) -> Option<String> {
    let parts: Option<Vec<String>> = glob.split('/').map(literal_part).collect();
    parts.map(|parts| parts.join("/"))
}

fn literal_part(part: &str) -> Option<String> {
    let mut plain = String::new();
    let mut rest = part;
    while let Some(at) = rest.find(['*', '?', '[']) {
        let escaped = ["[*]", "[?]", "[[]", "[]]"].into_iter().find(|escaped| rest[at..].starts_with(escaped))?;
        plain += &rest[..at];
        plain += &escaped[1..2];
        rest = &rest[at + escaped.len()..];
    }
    Some(plain + rest)
}

fn is_literal(part: &str) -> bool {
    literal_part(part).is_some()
}

fn find_objects(written: &str) -> Result<Result<Vec<Blob>, String>> {
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
            Ok(found) => return Ok(Ok(vec![blob(found)])),
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
    let pattern = match glob::Pattern::new(&pattern) {
        Ok(pattern) => pattern,
        Err(error) => return Ok(Err(format!("it is no glob: {error}"))),
    };
    let prefix = if folder.is_empty() { None } else { Some(connect::key(&bucket, folder)?) };
    let listed: Vec<ObjectMeta> = wait(bucket.store.list(prefix.as_ref()).try_collect()).map_err(told)?;
    let listed_any = !listed.is_empty();
    let wanted = |found: &ObjectMeta| {
        let key = found.location.as_ref();
        let below = key.strip_prefix(folder).unwrap_or(key).trim_start_matches('/');
        pattern.matches_with(key, GLOB) && below.split('/').all(is_of_tables)
    };
    let blobs: Vec<Blob> = listed.into_iter().filter(wanted).map(blob).collect();
    if !blobs.is_empty() {
        return Ok(Ok(blobs));
    }
    let place = format!("{}/{folder}", bucket.url);
    Ok(Err(if listed_any {
        format!("no object under {place} has such a name")
    } else {
        format!("{place} holds no object")
    }))
}

/// Whether a file or folder of this name may be a table or hold some.
fn is_of_tables(name: &str) -> bool {
    !name.starts_with('.') && !name.starts_with('_') && !name.ends_with(".crc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_paths_are_told_from_patterns() {
        for path in ["/plain/x.parquet", "/a [b]/c?/*d*/]e[", ""] {
            assert_eq!(literal(&glob::Pattern::escape(path)).as_deref(), Some(path));
        }
        for pattern in ["/a/*.parquet", "/a[0-9]/x", "**/x", "/a/x?.parquet", "/open["] {
            assert_eq!(literal(pattern), None, "{pattern}");
        }
    }
}
