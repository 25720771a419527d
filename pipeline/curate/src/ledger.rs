//! The ledger: every row that reached the network with its verdict.
//!
//! It grows by parts. A part covers the rows from the end of the part before it up to the last sample of one
//! shard, and is published after that shard: a run goes on behind its last part. Parts belong to rounds. Round
//! 0 has all rows in their order; a later round has the rows of one `--retry-failed`, and its entries stand in
//! the place of the earlier ones.
//!
//! A part may also replace a shard, and with it the entries of its samples: see [`sweep`](crate::sweep). It is of a
//! round of its own, after that which found that out.
//!
//! The ledger stays with the finished run: `samples.parquet` is made from it, and so is a second round.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shards::atomic::{AtomicFile, create_folder};
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

/// The first line of a part.
#[derive(Serialize, Deserialize)]
struct Begin {
    round: u32,
}

/// The last line of a part.
#[derive(Serialize, Deserialize)]
struct End {
    /// The shard that the part's samples are in; none where the part has no samples.
    shard: Option<ShardEntry>,
    /// The number of the earlier shard in whose place that one stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<u64>,
    /// The last row of the part.
    last: RowId,
}

/// Longest last line of a part.
const END_BYTES: u64 = 4096;

/// The published parts of a ledger.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
    /// The round that is being written, or was written last.
    round: u32,
    /// The round of each part.
    parts: Vec<u32>,
    /// Rows of rounds after the first, with their last round.
    later: HashMap<RowId, u32>,
    /// Shards of all parts, in order.
    pub shards: Vec<ShardEntry>,
    /// The last row that is in a part of this round.
    pub last: Option<RowId>,
}

/// A part that is being written.
pub struct Part {
    file: BufWriter<AtomicFile>,
    round: u32,
    keys: Vec<RowId>,
}

impl Ledger {
    /// Opens the ledger in `folder`, to go on with `round`.
    ///
    /// # Errors
    /// [`Error::Storage`]; [`Error::Inconsistent`] for a part that is not one.
    pub fn open(folder: &Path, round: u32) -> Result<Ledger> {
        create_folder(folder)?;
        let mut ledger = Ledger {
            folder: folder.to_owned(),
            round,
            parts: Vec::new(),
            later: HashMap::new(),
            shards: Vec::new(),
            last: None,
        };
        loop {
            let path = ledger.path(ledger.parts.len());
            if !path.exists() {
                return Ok(ledger);
            }
            let (begin, end) = ends(&path)?;
            let mut keys = Vec::new();
            if begin.round > 0 {
                read_part(&path, |entry| {
                    keys.push(entry.record.candidate.key);
                    Ok(())
                })?;
            }
            ledger.adopt(begin.round, end, &keys);
        }
    }

    /// Every row's current entry with its round, in the order of the verdicts.
    ///
    /// # Errors
    /// As [`open`](Ledger::open), and those of `each`.
    pub fn entries(&self, mut each: impl FnMut(u32, Entry) -> Result<()>) -> Result<()> {
        for (at, &round) in self.parts.iter().enumerate() {
            read_part(&self.path(at), |entry| {
                let current = self.later.get(&entry.record.candidate.key).copied().unwrap_or(0);
                if current == round { each(round, entry) } else { Ok(()) }
            })?;
        }
        Ok(())
    }

    /// The current entries of the samples in a shard, in their order.
    ///
    /// # Errors
    /// As [`open`](Ledger::open).
    pub fn entries_of_shard(&self, number: u64, mut each: impl FnMut(Entry)) -> Result<()> {
        self.entries(|_, entry| {
            if matches!(entry.verdict, Verdict::Kept { shard, .. } if shard == number) {
                each(entry);
            }
            Ok(())
        })
    }

    /// The round that is being written.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// The round after all that there are.
    pub fn next_round(&self) -> u32 {
        self.parts.iter().max().map_or(0, |last| last + 1)
    }

    /// Begins the next part.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn begin(&self) -> Result<Part> {
        self.begin_of(self.round)
    }

    /// Begins a part that replaces a shard.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn begin_replacement(&self) -> Result<Part> {
        self.begin_of(self.round + 1)
    }

    fn begin_of(&self, round: u32) -> Result<Part> {
        let file = AtomicFile::create(self.path(self.parts.len()))?;
        let mut part = Part { file: BufWriter::new(file), round, keys: Vec::new() };
        part.line(&Begin { round })?;
        Ok(part)
    }

    /// Publishes a part whose samples are in `shard`, which has to be published already.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn commit(&mut self, part: Part, shard: Option<ShardEntry>) -> Result<()> {
        self.publish(part, shard, None)
    }

    /// Publishes a part that tells the verdicts on all samples of a shard anew, which has been replaced already.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn replace(&mut self, part: Part, number: u64, shard: ShardEntry) -> Result<()> {
        self.publish(part, Some(shard), Some(number))
    }

    fn publish(&mut self, mut part: Part, shard: Option<ShardEntry>, replaces: Option<u64>) -> Result<()> {
        let Some(&last) = part.keys.last() else { return Ok(()) };
        let end = End { shard, replaces, last };
        part.line(&end)?;
        let path = self.path(self.parts.len());
        let file = part.file.into_inner().map_err(|e| StorageError::io("write", &path)(e.into_error()))?;
        file.commit()?;
        let keys = if part.round > 0 { part.keys } else { Vec::new() };
        self.adopt(part.round, end, &keys);
        Ok(())
    }

    fn adopt(&mut self, round: u32, end: End, keys: &[RowId]) {
        self.later.extend(keys.iter().map(|key| (*key, round)));
        match (end.replaces, end.shard) {
            (Some(number), Some(shard)) => self.shards[number as usize] = shard,
            (_, shard) => self.shards.extend(shard),
        }
        self.parts.push(round);
        if round == self.round {
            self.last = Some(end.last);
        }
    }

    /// The files of its parts.
    pub fn files(&self) -> Vec<PathBuf> {
        (0..self.parts.len()).map(|part| self.path(part)).collect()
    }

    fn path(&self, part: usize) -> PathBuf {
        self.folder.join(format!("{part:06}.jsonl"))
    }
}

impl Part {
    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn push(&mut self, entry: &Entry) -> Result<()> {
        self.keys.push(entry.record.candidate.key);
        self.line(entry)
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).expect("a line has a JSON form");
        text.push(b'\n');
        let path = self.file.get_ref().target().to_owned();
        Ok(self.file.write_all(&text).map_err(StorageError::io("write", path))?)
    }
}

/// The first and the last line of a part.
fn ends(path: &Path) -> Result<(Begin, End)> {
    let failed = || StorageError::io("read", path);
    let mut file = File::open(path).map_err(failed())?;
    let mut first = String::new();
    BufReader::new(&file).read_line(&mut first).map_err(failed())?;
    let length = file.seek(SeekFrom::End(0)).map_err(failed())?;
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(length.saturating_sub(END_BYTES)))
        .and_then(|_| file.read_to_end(&mut tail))
        .map_err(failed())?;
    let last = tail.trim_ascii_end().rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok((parse(path, first.as_bytes())?, parse(path, last)?))
}

fn read_part(path: &Path, mut each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(StorageError::io("open", path))?;
    let mut lines = BufReader::with_capacity(1 << 20, file).lines().skip(1).peekable();
    while let Some(line) = lines.next() {
        let line = line.map_err(StorageError::io("read", path))?;
        // The last line is the end.
        if lines.peek().is_some() {
            each(parse(path, line.as_bytes())?)?;
        }
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(path: &Path, line: &[u8]) -> Result<T> {
    serde_json::from_slice(line).map_err(|e| Error::inconsistent(path, format!("is no part of a ledger: {e}")))
}
