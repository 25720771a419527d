//! The journal: every answer, with the image where it may be kept, on disk in the order of arrival.
//!
//! It is the only road from the network to the shards. A killed run finds its answers here and asks for none
//! of them again; a running one puts them into the order of the rows from here, so that what waits for its
//! turn waits on disk and not in memory.
//!
//! The journal is a folder of append-only segments. A segment is a sequence of frames:
//!
//! ```text
//! magic "sdj2" | length of record, u32 LE | length of file, u64 LE | check | record, JSON | file
//! ```
//!
//! `check` is the SHA-256 of record and of the file's SHA-256, which most files have been given already. A frame
//! that is cut short or does not match it ends its segment: what follows was never promised.
//! Nothing is flushed to disk here; a power loss costs answers, which are then asked for again, and never
//! lets a wrong one through.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use shards::atomic::create_folder;
use shards::hash::HashingWriter;
use shards::{ContentHash, Error as StorageError};

use crate::error::{Error, Result};
use crate::measure::File;
use crate::record::Record;
use crate::row::RowId;

const MAGIC: [u8; 4] = *b"sdj2";
const HEAD: usize = 4 + 4 + 8 + 32;
/// A segment is closed when it is longer than this, and deleted when all of it is in published shards.
const SEGMENT_BYTES: u64 = 64 << 20;

/// The journal of one run.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    segments: Mutex<Segments>,
    /// What is being deleted, beside the run: to give up a gigabyte of cached pages takes a tenth of a second.
    removal: Mutex<Option<Removal>>,
}

type Removal = JoinHandle<Result<(), StorageError>>;

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    segment: u64,
    offset: u64,
    record_len: u32,
    file_len: u64,
}

#[derive(Debug)]
struct Segments {
    open: BTreeMap<u64, Segment>,
    current: u64,
}

#[derive(Debug)]
struct Segment {
    file: Arc<fs::File>,
    length: u64,
    /// Frames that are not yet in a published shard.
    live: u64,
}

impl Journal {
    /// Opens the journal in `folder`, making it where it is missing, and tells what it holds of rows after
    /// `committed`. Segments without such rows are deleted.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn open(folder: &Path, committed: Option<RowId>) -> Result<(Journal, BTreeMap<RowId, Location>)> {
        create_folder(folder)?;
        let mut held = BTreeMap::new();
        let mut open = BTreeMap::new();
        let mut next = 0;
        for number in numbered_files(folder)? {
            next = number + 1;
            let path = segment_path(folder, number);
            let mut live = 0;
            let length = replay(&path, number, |record, location| {
                // Keys are handed to one request each, so a second frame for one can only repeat it.
                if Some(record.candidate.key) > committed && held.insert(record.candidate.key, location).is_none() {
                    live += 1;
                }
            })?;
            if live == 0 {
                fs::remove_file(&path).map_err(StorageError::io("remove", &path))?;
            } else {
                let file = fs::File::open(&path).map_err(StorageError::io("open", &path))?;
                open.insert(number, Segment { file: Arc::new(file), length, live });
            }
        }
        // Old segments are never appended to: what follows a torn frame would not be read again.
        let segments = Mutex::new(Segments { open, current: next });
        Ok((Journal { folder: folder.to_owned(), segments, removal: Mutex::default() }, held))
    }

    /// Appends an answer.
    ///
    /// # Errors
    /// [`Error::Storage`] where the disk refuses; the frame is then not in the journal.
    pub fn append(&self, record: &Record, image: Option<&File<'_>>) -> Result<Location> {
        let record = serde_json::to_vec(record).expect("a record has a JSON form");
        let file = image.map_or(&[][..], |image| &image.bytes);
        let head = head(&record, file.len(), image.map_or_else(|| ContentHash::of(&[]), |image| image.sha256));
        let mut segments = lock(&self.segments);
        let (number, segment) = self.writable(&mut segments)?;
        let location = Location {
            segment: number,
            offset: segment.length,
            record_len: u32::try_from(record.len()).expect("a record is far below 4 GiB"),
            file_len: file.len() as u64,
        };
        let mut at = segment.length;
        for part in [&head[..], &record, file] {
            if let Err(error) = segment.file.write_all_at(part, at) {
                // What was written of the frame is overwritten by the next, or ends the segment when replayed.
                let path = segment_path(&self.folder, number);
                return Err(StorageError::io("write", path)(error).into());
            }
            at += part.len() as u64;
        }
        segment.length = at;
        segment.live += 1;
        Ok(location)
    }

    /// The answer at `location`, and in `buffer` the image file where one was stored.
    ///
    /// # Errors
    /// [`Error::Storage`]; [`Error::Inconsistent`] where the bytes are no longer those that were written.
    pub fn read(&self, location: Location, buffer: &mut Buffer) -> Result<(Record, Bytes)> {
        let path = segment_path(&self.folder, location.segment);
        let file = {
            let segments = lock(&self.segments);
            let segment = segments.open.get(&location.segment);
            segment.map(|s| s.file.clone()).ok_or_else(|| Error::inconsistent(&path, "was deleted too early"))?
        };
        let mut record = vec![0; location.record_len as usize];
        let file_len = usize::try_from(location.file_len).expect("it was in memory once");
        let at = location.offset + HEAD as u64;
        let image = file
            .read_exact_at(&mut record, at)
            .and_then(|()| buffer.fill(file_len, |to| file.read_exact_at(to, at + u64::from(location.record_len))))
            .map_err(StorageError::io("read", &path))?;
        let record = parse(&record).map_err(|e| Error::inconsistent(&path, e))?;
        Ok((record, image))
    }

    /// Notes that the frames at `locations` are in published shards, and begins to delete segments that hold no others.
    ///
    /// # Errors
    /// [`Error::Storage`] where segments that were released before could not be deleted.
    pub fn release(&self, locations: &[Location]) -> Result<()> {
        self.settle()?;
        let paths = self.take_published(locations);
        if paths.is_empty() {
            return Ok(());
        }
        let remove = move || paths.iter().try_for_each(|p| fs::remove_file(p).map_err(StorageError::io("remove", p)));
        let removal = thread::Builder::new().name("journal".into()).spawn(remove);
        *lock(&self.removal) = Some(removal.map_err(StorageError::io("clear", &self.folder))?);
        Ok(())
    }

    /// Counts the frames at `locations` as published, and takes the segments out that hold no others.
    fn take_published(&self, locations: &[Location]) -> Vec<PathBuf> {
        let mut segments = lock(&self.segments);
        for location in locations {
            if let Some(segment) = segments.open.get_mut(&location.segment) {
                segment.live -= 1;
            }
        }
        let current = segments.current;
        let done = segments.open.extract_if(.., |&number, segment| segment.live == 0 && number != current);
        done.map(|(number, _)| segment_path(&self.folder, number)).collect()
    }

    /// Waits until what was released is deleted.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn settle(&self) -> Result<()> {
        let removal = lock(&self.removal).take();
        Ok(removal.map_or(Ok(()), |removal| removal.join().unwrap_or(Ok(())))?)
    }

    /// The segment to append to, with its number.
    fn writable<'s>(&self, segments: &'s mut Segments) -> Result<(u64, &'s mut Segment)> {
        if segments.open.get(&segments.current).is_some_and(|s| s.length >= SEGMENT_BYTES) {
            segments.current += 1;
        }
        let number = segments.current;
        let segment = match segments.open.entry(number) {
            Slot::Occupied(slot) => slot.into_mut(),
            Slot::Vacant(slot) => {
                let path = segment_path(&self.folder, number);
                let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&path);
                let file = Arc::new(file.map_err(StorageError::io("create", &path))?);
                slot.insert(Segment { file, length: 0, live: 0 })
            }
        };
        Ok((number, segment))
    }
}

/// Room for one file at a time: of a new megabyte for each the kernel has to clear every page first.
#[derive(Debug, Default)]
pub struct Buffer(Bytes);

impl Buffer {
    /// Fills `length` bytes, over those of the last time where these are no longer held.
    fn fill(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
        let mut room = Vec::from(std::mem::take(&mut self.0));
        if room.len() < length {
            room = vec![0; length];
        }
        fill(&mut room[..length])?;
        self.0 = room.into();
        Ok(self.0.slice(..length))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Whoever opens the folder next must not meet files that are about to go.
        let _ = self.settle();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic under the lock a segment counts too many frames at worst, and stays for longer.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn head(record: &[u8], file_len: usize, file: ContentHash) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&(record.len() as u32).to_le_bytes());
    head[8..16].copy_from_slice(&(file_len as u64).to_le_bytes());
    let mut hasher = HashingWriter::new(io::sink());
    hasher.write_all(record).and_then(|()| hasher.write_all(file.as_bytes())).expect("a sink takes every byte");
    head[16..].copy_from_slice(hasher.finish().1.as_bytes());
    head
}

/// Reads the frames of a segment up to the first that is not whole; returns where that is.
fn replay(path: &Path, segment: u64, mut each: impl FnMut(Record, Location)) -> Result<u64> {
    let failed = || StorageError::io("read", path);
    let file = fs::File::open(path).map_err(failed())?;
    let size = file.metadata().map_err(failed())?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut offset = 0;
    loop {
        let mut found = [0; HEAD];
        let left = size - offset;
        if left < HEAD as u64 {
            return Ok(offset);
        }
        reader.read_exact(&mut found).map_err(failed())?;
        let record_len = u32::from_le_bytes(found[4..8].try_into().expect("4 bytes"));
        let file_len = u64::from_le_bytes(found[8..16].try_into().expect("8 bytes"));
        let length = (HEAD as u64).checked_add(u64::from(record_len)).and_then(|n| n.checked_add(file_len));
        let Some(length) = length.filter(|&length| found[..4] == MAGIC && length <= left) else {
            return Ok(offset);
        };
        let mut record = vec![0; record_len as usize];
        let mut image = vec![0; file_len as usize];
        reader.read_exact(&mut record).and_then(|()| reader.read_exact(&mut image)).map_err(failed())?;
        if head(&record, image.len(), ContentHash::of(&image)) != found {
            return Ok(offset);
        }
        let record = parse(&record).map_err(|e| Error::inconsistent(path, e))?;
        each(record, Location { segment, offset, record_len, file_len });
        offset += length;
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("holds a record of another version: {e}"))
}

fn segment_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}.segment"))
}

fn numbered_files(folder: &Path) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).map_err(StorageError::io("read the folder", folder))? {
        let path = entry.map_err(StorageError::io("read the folder", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        numbers.extend(name.strip_suffix(".segment").and_then(|n| n.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caption;
    use crate::reason::Reason;
    use crate::record::{Answer, Rejection};
    use crate::row::Candidate;

    fn record(row: u64) -> Record {
        let candidate = Candidate {
            key: RowId { source: 0, row },
            url: format!("https://a.example/{row}"),
            caption: caption::clean("words", &[]),
            caption_original: "words".into(),
            claimed: None,
            scores: BTreeMap::new(),
        };
        Record { candidate, answer: Answer::None(Rejection::plain(Reason::Decode("corrupt"))) }
    }

    fn append(journal: &Journal, row: u64, file: &[u8]) -> Location {
        journal.append(&record(row), Some(&File { bytes: file.into(), sha256: ContentHash::of(file) })).unwrap()
    }

    fn key(row: u64) -> RowId {
        RowId { source: 0, row }
    }

    #[test]
    fn answers_come_back_in_this_process_and_in_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, held) = Journal::open(dir.path(), None).unwrap();
        let mut buffer = Buffer::default();
        assert!(held.is_empty());
        for row in [5, 3, 4] {
            let location = append(&journal, row, &[row as u8; 100]);
            assert_eq!(journal.read(location, &mut buffer).unwrap(), (record(row), vec![row as u8; 100].into()));
        }
        drop(journal);
        let (journal, held) = Journal::open(dir.path(), Some(key(3))).unwrap();
        assert_eq!(held.keys().copied().collect::<Vec<_>>(), [key(4), key(5)]);
        assert_eq!(journal.read(held[&key(5)], &mut buffer).unwrap(), (record(5), vec![5; 100].into()));
        let location = journal.append(&record(6), None).unwrap();
        assert_eq!(journal.read(location, &mut buffer).unwrap(), (record(6), Bytes::new()));
    }

    #[test]
    fn a_buffer_is_filled_again_once_its_bytes_are_gone() {
        let mut buffer = Buffer::default();
        let mut fill = |with: u8, length| {
            let write = |to: &mut [u8]| {
                to.fill(with);
                Ok(())
            };
            buffer.fill(length, write).unwrap()
        };
        let first = fill(1, 10);
        let (place, second) = (first.as_ptr(), fill(2, 8));
        assert_eq!((&first[..], &second[..]), (&[1; 10][..], &[2; 8][..]), "what is held is left alone");
        assert_ne!(second.as_ptr(), place);
        let place = second.as_ptr();
        drop(second);
        let third = fill(3, 4);
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 4][..]));
    }

    #[test]
    fn of_a_torn_segment_the_whole_frames_before_the_tear_are_held() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path(), None).unwrap();
        let ends: Vec<u64> = (0..3)
            .map(|row| {
                let location = append(&journal, row, &[7; 50]);
                location.offset + HEAD as u64 + u64::from(location.record_len) + location.file_len
            })
            .collect();
        drop(journal);
        let path = segment_path(dir.path(), 0);
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            for torn in [whole[..cut].to_vec(), [&whole[..cut], &vec![0; whole.len() - cut][..]].concat()] {
                fs::write(&path, torn).unwrap();
                let (_, held) = Journal::open(dir.path(), None).unwrap();
                let wanted = ends.iter().filter(|&&end| end <= cut as u64).count();
                assert_eq!(held.len(), wanted, "cut at {cut}");
                fs::write(&path, &whole).unwrap();
            }
        }
    }

    #[test]
    fn a_segment_goes_when_all_of_it_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path(), None).unwrap();
        append(&journal, 1, b"x");
        append(&journal, 2, b"x");
        drop(journal);
        let (journal, held) = Journal::open(dir.path(), None).unwrap();
        journal.release(&[held[&key(1)]]).unwrap();
        journal.settle().unwrap();
        assert_eq!(numbered_files(dir.path()).unwrap(), [0]);
        journal.release(&[held[&key(2)]]).unwrap();
        journal.settle().unwrap();
        assert!(numbered_files(dir.path()).unwrap().is_empty());
        append(&journal, 3, b"x");
        assert_eq!(numbered_files(dir.path()).unwrap(), [1], "numbers are not used twice");
    }
}
