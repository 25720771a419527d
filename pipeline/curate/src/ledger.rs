//! The ledger: every row that reached the network with its verdict, in the order of the rows.
//!
//! It grows by parts. A part covers the rows from the end of the part before it up to the last sample of one
//! shard, and is published after that shard: a run goes on behind its last part. When all rows are through,
//! the parts become `samples.parquet`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shards::atomic::AtomicFile;
use shards::{Error as StorageError, ShardEntry};

use crate::error::{Error, Result};
use crate::record::{Record, Verdict};
use crate::row::RowId;

/// One row's line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The row and the answer to its request.
    pub record: Record,
    /// What was made of it.
    pub verdict: Verdict,
}

/// The last line of a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct End {
    /// The shard that the part's samples are in; none where the part has no samples.
    shard: Option<ShardEntry>,
    /// The last row of the part.
    last: RowId,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<E> {
    Entry(E),
    End(End),
}

/// The published parts of a ledger.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
    parts: u64,
    /// Shards of all parts, in order.
    pub shards: Vec<ShardEntry>,
    /// The last row that is in a part.
    pub last: Option<RowId>,
}

/// A part that is being written.
pub struct Part {
    file: BufWriter<AtomicFile>,
    last: Option<RowId>,
}

impl Ledger {
    /// Reads the parts in `folder`, handing each entry to `each` in order.
    ///
    /// # Errors
    /// [`Error::Storage`]; [`Error::Inconsistent`] for a part that is not one.
    pub fn open(folder: &Path, mut each: impl FnMut(Entry) -> Result<()>) -> Result<Ledger> {
        fs::create_dir_all(folder).map_err(StorageError::io("create the folder", folder))?;
        let mut ledger = Ledger { folder: folder.to_owned(), parts: 0, shards: Vec::new(), last: None };
        while let path = ledger.part_path()
            && path.exists()
        {
            let end = read_part(&path, &mut each)?;
            ledger.adopt(end);
        }
        Ok(ledger)
    }

    /// Reads all parts again.
    ///
    /// # Errors
    /// As [`open`](Ledger::open).
    pub fn entries(&self, each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        Ledger::open(&self.folder, each).map(drop)
    }

    /// Begins the next part.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn begin(&self) -> Result<Part> {
        Ok(Part { file: BufWriter::new(AtomicFile::create(self.part_path())?), last: None })
    }

    /// Publishes a part whose samples are in `shard`, which has to be published already.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn commit(&mut self, mut part: Part, shard: Option<ShardEntry>) -> Result<()> {
        let Some(last) = part.last else { return Ok(()) };
        let end = End { shard, last };
        part.line(&Line::End(end.clone()))?;
        let path = self.part_path();
        let file = part.file.into_inner().map_err(|e| StorageError::io("write", &path)(e.into_error()))?;
        file.commit()?;
        self.adopt(end);
        Ok(())
    }

    fn adopt(&mut self, end: End) {
        self.shards.extend(end.shard);
        self.last = Some(end.last);
        self.parts += 1;
    }

    fn part_path(&self) -> PathBuf {
        self.folder.join(format!("{:06}.jsonl", self.parts))
    }
}

impl Part {
    /// Adds a row, which comes after all rows before it.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn push(&mut self, entry: &Entry) -> Result<()> {
        self.last = Some(entry.record.candidate.key);
        self.line(&Line::Entry(entry))
    }

    fn line(&mut self, line: &Line<&Entry>) -> Result<()> {
        let mut text = serde_json::to_vec(line).expect("a line has a JSON form");
        text.push(b'\n');
        let path = self.file.get_ref().target().to_owned();
        Ok(self.file.write_all(&text).map_err(StorageError::io("write", path))?)
    }
}

fn read_part(path: &Path, each: &mut impl FnMut(Entry) -> Result<()>) -> Result<End> {
    let file = File::open(path).map_err(StorageError::io("open", path))?;
    for line in BufReader::with_capacity(1 << 20, file).lines() {
        let line = line.map_err(StorageError::io("read", path))?;
        match serde_json::from_str(&line).map_err(|e| Error::inconsistent(path, e))? {
            Line::Entry(entry) => each(entry)?,
            Line::End(end) => return Ok(end),
        }
    }
    Err(Error::inconsistent(path, "ends without its last line"))
}
