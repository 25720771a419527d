//! Answers in the order of the rows to shards and ledger.
//!
//! What is in a shard, and where one ends, follows from the rows and their answers alone: not from the order
//! of arrival, the number of connections or where an earlier process was killed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use pixels::{Format, PerceptualHash};
use serde::Serialize;
use shards::index::SHARDS;
use shards::{ContentHash, Sample, ShardWriter};

use crate::caption::Rule;
use crate::counts::Counts;
use crate::duplicates::Duplicates;
use crate::error::Result;
use crate::journal::{Buffer, Journal, Location};
use crate::ledger::{Entry, Ledger, Part};
use crate::reason::{Duplicate, Reason, Stored};
use crate::recipe::{Recipe, ShardRules, Store};
use crate::record::{Answer, Measured, Record, Rejection, Verdict};
use crate::row::{Candidate, RowId, Size};
use crate::score::Score;
use crate::target::Target;

/// Puts answers in order into shards.
pub struct Assembler<'a> {
    journal: &'a Journal,
    ledger: Ledger,
    tally: Tally,
    rules: ShardRules,
    stored: Store,
    target: &'a Target,
    /// `RUN/curated/shards`.
    folder: PathBuf,
    shard: Option<OpenShard>,
    part: Option<Part>,
    /// Frames that the open part needs.
    in_part: Vec<Location>,
    /// What files are read into.
    buffer: Buffer,
}

/// What the rows so far came to, and what later rows are judged by.
#[derive(Debug)]
pub struct Tally {
    /// Samples.
    pub kept: u64,
    /// Rows that reached the network and are no samples.
    pub rejected: Counts,
    duplicates: Duplicates,
}

impl Tally {
    /// Of no rows.
    pub fn new(recipe: &Recipe) -> Tally {
        Tally { kept: 0, rejected: Counts::default(), duplicates: Duplicates::new(recipe.duplicates) }
    }

    /// Adds one row.
    pub fn note(&mut self, entry: &Entry) {
        self.bring(&entry.record);
        match (&entry.verdict, &entry.record.answer) {
            (Verdict::Rejected(rejection), _) => self.rejected.add(rejection.reason, 1),
            (Verdict::Kept { .. }, Answer::Image(measured)) => {
                self.kept += 1;
                self.duplicates.keep(measured.sha256, look(measured));
            }
            (Verdict::Kept { .. }, Answer::None(_)) => self.kept += 1,
        }
    }
}

impl Tally {
    /// Counts the URL of a row that brought an image.
    fn bring(&mut self, record: &Record) {
        if let Answer::Image(measured) = &record.answer {
            self.duplicates.bring(measured.sha256, &record.candidate.url);
        }
    }

    /// Whether so many URLs have brought a content that it is a placeholder.
    pub fn is_placeholder(&self, content: ContentHash) -> bool {
        self.duplicates.is_placeholder(content)
    }

    /// Counts a row as a placeholder that was counted as a copy of one.
    pub fn call_copy_placeholder(&mut self) {
        self.rejected.remove(Reason::Duplicate(Duplicate::Exact), 1);
        self.rejected.add(Reason::Duplicate(Duplicate::Placeholder), 1);
    }

    /// Counts a sample as dropped that turned out to be a placeholder.
    pub fn drop_placeholder(&mut self) {
        self.kept -= 1;
        self.rejected.add(Reason::Duplicate(Duplicate::Placeholder), 1);
    }
}

struct OpenShard {
    writer: ShardWriter,
    number: u64,
    bytes: u64,
}

/// What is filed as `KEY.json` beside the image and its caption.
#[derive(Serialize)]
struct SampleRecord<'a> {
    key: RowId,
    source: u16,
    row: u64,
    url: &'a str,
    caption: &'a str,
    caption_original: &'a str,
    caption_changed_by: &'a [Rule],
    width: u32,
    height: u32,
    orientation: u8,
    claimed: Option<Size>,
    scores: &'a BTreeMap<Score, f64>,
    sharpness: Option<pixels::Sharpness>,
    sharpness_version: u32,
    perceptual_hash: Option<String>,
    sha256: ContentHash,
}

impl<'a> Assembler<'a> {
    /// Goes on behind the published parts of `ledger`, which came to `tally`. Shards go to `target`.
    pub fn resume(journal: &'a Journal, ledger: Ledger, tally: Tally, recipe: &Recipe, target: &'a Target) -> Self {
        Assembler {
            journal,
            ledger,
            tally,
            rules: recipe.shards.clone(),
            stored: recipe.image.store,
            target,
            folder: target.folder().join(SHARDS),
            shard: None,
            part: None,
            in_part: Vec::new(),
            buffer: Buffer::default(),
        }
    }

    /// Takes the next row's answer. Returns whether the row was kept.
    ///
    /// # Errors
    /// [`Error::Storage`](crate::error::Error::Storage).
    pub fn push(&mut self, location: Location) -> Result<bool> {
        let (record, file) = self.journal.read(location, &mut self.buffer)?;
        self.tally.bring(&record);
        let verdict = match self.judge(&record, &file) {
            Ok(measured) => self.file(sample(&record.candidate, measured, file, self.stored))?,
            Err(rejection) => Verdict::Rejected(rejection),
        };
        let entry = Entry { record, verdict };
        self.tally.note(&entry);
        let part = match &mut self.part {
            Some(part) => part,
            none => none.insert(self.ledger.begin()?),
        };
        part.push(&entry)?;
        self.in_part.push(location);
        if self.shard.as_ref().is_some_and(|s| s.is_full(&self.rules)) {
            self.commit()?;
        }
        Ok(matches!(entry.verdict, Verdict::Kept { .. }))
    }

    /// Publishes what is left, after the last row.
    ///
    /// # Errors
    /// [`Error::Storage`](crate::error::Error::Storage).
    pub fn finish(mut self) -> Result<(Ledger, Tally)> {
        self.commit()?;
        Ok((self.ledger, self.tally))
    }

    /// The measured image, unless something speaks against it.
    fn judge<'r>(&self, record: &'r Record, file: &[u8]) -> Result<&'r Measured, Rejection> {
        let measured = match &record.answer {
            Answer::None(rejection) => return Err(rejection.clone()),
            Answer::Image(measured) => measured,
        };
        if let Some(rejection) = &measured.rejection {
            return Err(rejection.clone());
        }
        match self.tally.duplicates.judge(measured.sha256, look(measured)) {
            Ok(()) if file.is_empty() => Err(Rejection::plain(Reason::Stored(Stored::FileNotKept))),
            Ok(()) => Ok(measured),
            Err(duplicate) => Err(Rejection::plain(Reason::Duplicate(duplicate))),
        }
    }

    /// Adds a sample to the open shard, or to a new one, and tells where.
    fn file(&mut self, sample: Sample) -> Result<Verdict> {
        let shard = match &mut self.shard {
            Some(shard) => shard,
            none => {
                let number = self.ledger.shards.len() as u64;
                let writer = ShardWriter::create(&self.folder, format!("{number:06}.tar"))?;
                none.insert(OpenShard { writer, number, bytes: 0 })
            }
        };
        let kept =
            Verdict::Kept { shard: shard.number, place: shard.writer.count(), offset: Some(shard.writer.offset()) };
        shard.bytes += sample.parts.iter().map(|part| part.bytes.len() as u64).sum::<u64>();
        shard.writer.push(sample)?;
        Ok(kept)
    }

    /// Publishes the open shard, then the part of the ledger that names it, then forgets the frames behind it.
    fn commit(&mut self) -> Result<()> {
        let shard = self.shard.take().map(|shard| shard.writer.finish()).transpose()?;
        if let Some(shard) = &shard {
            self.target.store(shard)?;
        }
        if let Some(part) = self.part.take() {
            self.ledger.commit(part, shard.clone())?;
        }
        if let Some(shard) = &shard {
            self.target.forget(shard)?;
        }
        self.journal.release(&std::mem::take(&mut self.in_part))
    }
}

impl OpenShard {
    fn is_full(&self, rules: &ShardRules) -> bool {
        self.writer.count() >= rules.samples || self.bytes >= rules.max_bytes
    }
}

fn look(measured: &Measured) -> u64 {
    measured.pixels.map_or(0, |p| p.perceptual_hash)
}

fn sample(candidate: &Candidate, measured: &Measured, image: Bytes, stored: Store) -> Sample {
    let record = SampleRecord {
        key: candidate.key,
        source: candidate.key.source,
        row: candidate.key.row,
        url: &candidate.url,
        caption: &candidate.caption.text,
        caption_original: &candidate.caption_original,
        caption_changed_by: &candidate.caption.changed_by,
        width: measured.size.width,
        height: measured.size.height,
        orientation: measured.orientation,
        claimed: candidate.claimed,
        scores: &candidate.scores,
        sharpness: measured.pixels.map(|p| p.sharpness),
        sharpness_version: pixels::SHARPNESS_VERSION,
        perceptual_hash: measured.pixels.map(|p| PerceptualHash(p.perceptual_hash).to_string()),
        sha256: measured.sha256,
    };
    let json = serde_json::to_vec(&record).expect("a sample's record has a JSON form");
    let extension = match stored {
        Store::Original => measured.format.extension(),
        Store::SquareJpeg { .. } => Format::Jpeg.extension(),
    };
    Sample::new(candidate.key.to_string())
        .with(extension, image)
        .with("json", json)
        .with("txt", candidate.caption.text.clone())
}
