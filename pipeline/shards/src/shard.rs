//! Writing, reading and verifying one shard.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use serde::{Deserialize, Serialize};
use webdataset::TarWriter;
use webdataset::shard::{Compression, TarEntries};

use crate::atomic::AtomicFile;
use crate::hash::{ContentHash, HashingWriter};
use crate::sample::{Part, Sample};
use crate::{Error, Result};

/// What the index records of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name within the folder of shards.
    pub name: String,
    /// Number of samples.
    pub count: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Hash of the file.
    pub sha256: ContentHash,
}

/// Writes one shard under a temporary name and publishes it whole.
///
/// The bytes are a function of the samples alone: time, owner and mode of every member are fixed.
pub struct ShardWriter {
    archive: TarWriter,
    // The archive owns its sink and gives it back to nobody, so the sink sends itself home when it is dropped.
    returned: mpsc::Receiver<Sink>,
    path: PathBuf,
    name: String,
    count: u64,
    /// Bytes that the sink was given.
    written: Arc<AtomicU64>,
}

type Sink = HashingWriter<BufWriter<AtomicFile>>;

impl ShardWriter {
    /// Begins `folder/name`, making the folder where it is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: impl AsRef<Path>, name: impl Into<String>) -> Result<ShardWriter> {
        let name = name.into();
        let path = folder.as_ref().join(&name);
        let sink = HashingWriter::new(BufWriter::with_capacity(1 << 20, AtomicFile::create(&path)?));
        let (sender, returned) = mpsc::sync_channel(1);
        let written = Arc::default();
        let sink = ReturningSink { sink: Some(sink), home: sender, written: Arc::clone(&written) };
        let archive = TarWriter::new(Box::new(sink), Compression::None)
            .map_err(|e| writing(&path, e))?
            .with_owner("", "")
            .with_mtime(Some(0))
            .with_mode(0o644);
        Ok(ShardWriter { archive, returned, path, name, count: 0, written })
    }

    /// Adds a sample.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] and [`Error::InvalidPart`] before anything is written; [`Error::Io`].
    pub fn push(&mut self, sample: Sample) -> Result<()> {
        sample.validate()?;
        let mut record = webdataset::Sample::with_key(sample.key);
        for Part { ext, bytes } in sample.parts {
            record.insert(ext, webdataset::Value::Bytes(bytes));
        }
        self.archive.write(&record).map_err(|e| writing(&self.path, e))?;
        self.count += 1;
        Ok(())
    }

    /// The number of samples so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The bytes so far: where the next sample begins.
    pub fn offset(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Ends the archive and publishes it.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is then published.
    pub fn finish(self) -> Result<ShardEntry> {
        let ShardWriter { archive, returned, path, name, count, .. } = self;
        archive.close().map_err(|e| writing(&path, e))?;
        let lost = || Error::Malformed { path: path.clone(), reason: "the archive kept its file".into() };
        let (buffer, sha256, bytes) = returned.try_recv().map_err(|_| lost())?.finish();
        let file = buffer.into_inner().map_err(|e| Error::io("write", &path)(e.into_error()))?;
        file.commit()?;
        Ok(ShardEntry { name, count, bytes, sha256 })
    }
}

/// Keeps the system's reason where there is one, so that a full disk is told from a bad sample.
fn writing(path: &Path, error: webdataset::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = source {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            let kept = io.raw_os_error().map_or_else(|| io::Error::from(io.kind()), io::Error::from_raw_os_error);
            return Error::Io { action: "write", path: path.to_owned(), source: kept };
        }
        source = e.source();
    }
    Error::Malformed { path: path.to_owned(), reason: error.to_string() }
}

struct ReturningSink {
    sink: Option<Sink>,
    home: mpsc::SyncSender<Sink>,
    written: Arc<AtomicU64>,
}

impl Write for ReturningSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.as_mut().map_or(Err(io::ErrorKind::BrokenPipe.into()), |sink| sink.write(bytes))?;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for ReturningSink {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            // Nobody listens any more where the writer itself was dropped: the temporary file goes with it.
            let _ = self.home.try_send(sink);
        }
    }
}

/// Reads the samples of a shard in order.
///
/// Strict: a shard that ends without its end-of-archive marker, a bad checksum of a header, a member without
/// an extension and a member that belongs to another sample than its neighbours are errors, and the first
/// error ends the iteration.
pub struct ShardReader {
    entries: TarEntries<EndWatch<BufReader<File>>>,
    ended: std::rc::Rc<std::cell::Cell<bool>>,
    path: PathBuf,
    pending: Option<Sample>,
    last_key: Option<String>,
    done: bool,
}

impl ShardReader {
    /// Opens a shard.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<ShardReader> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io("open", path))?;
        Ok(ShardReader::of_file(file, path))
    }

    /// Reads a shard that is open already, from where the file stands. Errors call it `path`.
    pub fn of_file(file: File, path: impl AsRef<Path>) -> ShardReader {
        let path = path.as_ref().to_owned();
        let ended = std::rc::Rc::new(std::cell::Cell::new(false));
        let reader = EndWatch { inner: BufReader::with_capacity(1 << 18, file), ended: ended.clone() };
        ShardReader { entries: TarEntries::new(reader), ended, path, pending: None, last_key: None, done: false }
    }

    /// The samples that begin at these bytes of a shard that is open already; `None` at its end. Errors call it `path`.
    ///
    /// An item fails with [`Error::Io`], or with what reading its sample finds.
    pub fn samples_at<O: IntoIterator<Item = u64>>(
        file: File,
        path: PathBuf,
        offsets: O,
    ) -> impl Iterator<Item = Result<Option<Sample>>> + use<O> {
        offsets.into_iter().map(move |offset| {
            let at = |mut file: File| file.seek(SeekFrom::Start(offset)).map(|_| file);
            let file = file.try_clone().and_then(at).map_err(Error::io("read", &path))?;
            ShardReader::of_file(file, &path).next().transpose()
        })
    }

    fn advance(&mut self) -> Result<Option<Sample>> {
        loop {
            let Some(entry) = self.entries.next() else {
                // The reader stops at a zero block without touching what follows it; running into the end of
                // the file instead means that the marker is missing.
                if self.ended.get() {
                    return Err(Error::Truncated { path: self.path.clone() });
                }
                return Ok(self.pending.take());
            };
            let entry = entry.map_err(|e| self.reading(e))?;
            let Some((key, ext)) = entry.name.split_once('.') else {
                return Err(self.malformed(format!("member {:?} has no extension", entry.name)));
            };
            let part = Part { ext: ext.to_owned(), bytes: entry.data.into() };
            match &mut self.pending {
                Some(sample) if sample.key == key => sample.parts.push(part),
                _ => {
                    if self.last_key.as_deref() == Some(key) {
                        return Err(self.malformed(format!("sample {key} comes in two places")));
                    }
                    let fresh = Sample { key: key.to_owned(), parts: vec![part] };
                    fresh.validate()?;
                    if let Some(complete) = self.pending.replace(fresh) {
                        complete.validate()?;
                        self.last_key = Some(complete.key.clone());
                        return Ok(Some(complete));
                    }
                }
            }
        }
    }

    fn reading(&self, error: webdataset::Error) -> Error {
        if self.ended.get() {
            return Error::Truncated { path: self.path.clone() };
        }
        self.malformed(error.to_string())
    }

    fn malformed(&self, reason: String) -> Error {
        Error::Malformed { path: self.path.clone(), reason }
    }
}

impl Iterator for ShardReader {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Result<Sample>> {
        if self.done {
            return None;
        }
        let item = self.advance().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

/// Notes that the end of the file was met.
struct EndWatch<R> {
    inner: R,
    ended: std::rc::Rc<std::cell::Cell<bool>>,
}

impl<R: Read> Read for EndWatch<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.ended.set(true);
        }
        Ok(read)
    }
}

/// Proves that the shard in `folder` is the one that `entry` describes: hash, then readability and count.
///
/// # Errors
/// [`Error::Io`] where it is missing, [`Error::Checksum`], [`Error::Count`], or what [`ShardReader`] finds.
pub fn verify(folder: impl AsRef<Path>, entry: &ShardEntry) -> Result<()> {
    let path = folder.as_ref().join(&entry.name);
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    verify_file(file, &path, entry)
}

/// As [`verify`], for a shard that is open already. Errors call it `path`.
///
/// # Errors
/// As [`verify`].
pub fn verify_file(mut file: File, path: &Path, entry: &ShardEntry) -> Result<()> {
    let found = ContentHash::of_rest(&file).map_err(Error::io("read", path))?;
    if found != entry.sha256 {
        return Err(Error::Checksum { path: path.to_owned(), expected: entry.sha256, found });
    }
    file.rewind().map_err(Error::io("read", path))?;
    let mut found = 0;
    for sample in ShardReader::of_file(file, path) {
        sample?;
        found += 1;
    }
    if found != entry.count {
        return Err(Error::Count { path: path.to_owned(), expected: entry.count, found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn samples(n: usize) -> Vec<Sample> {
        (0..n)
            .map(|i| {
                Sample::new(format!("s00-{i:09}"))
                    .with("jpg", vec![i as u8; 700 + i])
                    .with("json", format!("{{\"i\":{i}}}"))
                    .with("latent.npy", vec![7; 1024])
            })
            .collect()
    }

    fn write(folder: &Path, name: &str, samples: &[Sample]) -> ShardEntry {
        let mut writer = ShardWriter::create(folder, name).unwrap();
        samples.iter().for_each(|s| writer.push(s.clone()).unwrap());
        writer.finish().unwrap()
    }

    fn read(path: &Path) -> Result<Vec<Sample>> {
        ShardReader::open(path)?.collect()
    }

    #[test]
    fn what_is_written_is_read_and_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let samples = samples(5);
        let entry = write(dir.path(), "000000.tar", &samples);
        assert_eq!((entry.count, entry.bytes), (5, fs::metadata(dir.path().join("000000.tar")).unwrap().len()));
        assert_eq!(read(&dir.path().join("000000.tar")).unwrap(), samples);
        verify(dir.path(), &entry).unwrap();
    }

    #[test]
    fn each_sample_is_found_where_it_was_said_to_begin() {
        let dir = tempfile::tempdir().unwrap();
        let samples = samples(7);
        let mut writer = ShardWriter::create(dir.path(), "000000.tar").unwrap();
        let offset_of = |sample: &Sample| {
            let offset = writer.offset();
            writer.push(sample.clone()).unwrap();
            offset
        };
        let offsets: Vec<u64> = samples.iter().map(offset_of).collect();
        let end = writer.offset();
        writer.finish().unwrap();
        let path = dir.path().join("000000.tar");
        let at = |offsets: &[u64]| -> Vec<_> {
            ShardReader::samples_at(File::open(&path).unwrap(), path.clone(), offsets.iter().copied()).collect()
        };
        for order in [&[0, 1, 2, 3, 4, 5, 6][..], &[6, 0, 3, 3]] {
            let found = at(&order.iter().map(|&place: &usize| offsets[place]).collect::<Vec<_>>());
            for (place, sample) in order.iter().zip(found) {
                assert_eq!(sample.unwrap().as_ref(), Some(&samples[*place]), "{place} of {order:?}");
            }
        }
        assert!(matches!(at(&[offsets[6], end])[..], [Ok(Some(_)), Ok(None)]));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(matches!(at(&[0, offsets[6]])[..], [Ok(Some(_)), Err(Error::Truncated { .. })]));
    }

    #[test]
    fn same_samples_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (write(dir.path(), "a.tar", &samples(3)), write(dir.path(), "b.tar", &samples(3)));
        assert_eq!((a.sha256, a.bytes), (b.sha256, b.bytes));
    }

    #[test]
    fn an_unfinished_shard_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "000000.tar").unwrap();
        writer.push(samples(1).remove(0)).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn every_cut_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("whole.tar");
        write(dir.path(), "whole.tar", &samples(2));
        let whole = fs::read(&path).unwrap();
        // The marker is two zero blocks; the second says nothing that the first did not.
        let last_needed = whole.len() - 512;
        for length in (0..last_needed).step_by(97).chain([last_needed - 1, 512, 1024]) {
            fs::write(&path, &whole[..length]).unwrap();
            let outcome = read(&path);
            assert!(matches!(outcome, Err(Error::Truncated { .. })), "cut to {length}: {outcome:?}");
        }
    }

    #[test]
    fn verification_names_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let entry = write(dir.path(), "000000.tar", &samples(2));
        let path = dir.path().join("000000.tar");
        let wrong_count = ShardEntry { count: 3, ..entry.clone() };
        assert!(matches!(verify(dir.path(), &wrong_count), Err(Error::Count { expected: 3, found: 2, .. })));
        let mut bytes = fs::read(&path).unwrap();
        bytes[600] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(verify(dir.path(), &entry), Err(Error::Checksum { .. })));
        fs::remove_file(&path).unwrap();
        assert!(verify(dir.path(), &entry).unwrap_err().to_string().contains("000000.tar"));
    }

    #[test]
    fn hostile_members_are_refused_and_touch_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../escape.txt", "/etc/passwd.x", "no_extension", "Upper.txt", "a.b/../../c"] {
            let path = dir.path().join("hostile.tar");
            let mut archive = tar_with(name);
            archive.extend([0; 1024]);
            fs::write(&path, archive).unwrap();
            let outcome = read(&path);
            assert!(
                matches!(outcome, Err(Error::InvalidKey { .. } | Error::InvalidPart { .. } | Error::Malformed { .. })),
                "{name}: {outcome:?}"
            );
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// A header in ustar's format for a regular file of one byte, whatever its name, and the byte's block.
    fn tar_with(name: &str) -> Vec<u8> {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(b"00000000001\0");
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut block = header.to_vec();
        block.extend([b'x'; 1]);
        block.extend([0; 511]);
        block
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_an_error_or_samples_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("noise.tar");
            fs::write(&path, bytes).unwrap();
            let _ = read(&path);
        }

        #[test]
        fn a_flipped_byte_never_goes_unnoticed(at in 0usize..6000, bit in 0u8..8) {
            let dir = tempfile::tempdir().unwrap();
            let entry = write(dir.path(), "000000.tar", &samples(2));
            let path = dir.path().join("000000.tar");
            let mut bytes = fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            fs::write(&path, bytes).unwrap();
            prop_assert!(verify(dir.path(), &entry).is_err());
        }
    }
}
