//! `curate --refilter`: answers from a finished run in place of the network.
//!
//! The tables are scanned and every rule is applied anew, over stored scores and measures. Stricter rules give
//! what a run with them would have given. Looser ones cannot bring back what was never requested or whose file
//! was not kept: such rows are counted as `stored.never_asked` and `stored.file_not_kept`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc;
use std::{iter, thread};

use shards::{ContentHash, Error as StorageError, Fingerprint, ShardReader};
use tokio::sync::mpsc as feed;

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::journal::{Journal, Location};
use crate::ledger::{Entry, Ledger};
use crate::measure::{File, judge};
use crate::reason::{Reason, Stored};
use crate::recipe::Recipe;
use crate::record::{Answer, Record, Rejection, Verdict};
use crate::row::{Candidate, RowId};
use crate::stop::Stop;
use crate::target::Target;

/// Entries of the ledger that are read ahead.
const AHEAD: usize = 1024;

/// A finished run whose answers are used again.
#[derive(Debug)]
pub struct StoredRun {
    target: Target,
    ledger: Ledger,
    /// Hash of its index.
    pub identity: ContentHash,
}

impl StoredRun {
    /// Opens the finished run in `folder`. `current` is the fingerprint of the new recipe and its tables.
    ///
    /// # Errors
    /// [`Error::Unfinished`]; [`Error::Changed`] where its rows or measures are not comparable.
    pub fn open(folder: Folder, current: &Fingerprint) -> Result<StoredRun> {
        let index = folder.index()?.ok_or_else(|| Error::Unfinished { folder: folder.root.clone() })?;
        let comparable = |fingerprint: &Fingerprint| {
            let shapes_answers = |name: &str| !is_rule(name);
            let parts = fingerprint.parts().filter(|(name, _)| shapes_answers(name));
            parts.fold(Fingerprint::new(), |all, (name, hash)| all.with(name, hash))
        };
        let differences = comparable(&index.fingerprint).difference(&comparable(current));
        if !differences.is_empty() {
            return Err(Error::Changed { folder: folder.root, differences });
        }
        let identity = ContentHash::of_file(folder.root.join(shards::index::INDEX))?;
        let ledger = Ledger::open(&folder.ledger(), 0)?;
        Ok(StoredRun { target: Target::of_run(&folder.root)?, ledger, identity })
    }

    /// Answers candidates, which come in the order of their keys, until they end or the run is to stop.
    pub fn answer(
        &self,
        mut candidates: feed::Receiver<Candidate>,
        recipe: &Recipe,
        journal: &Journal,
        answered: &mpsc::Sender<(RowId, Location)>,
        stop: &Stop,
    ) {
        thread::scope(|scope| {
            let (sender, entries) = mpsc::sync_channel(AHEAD);
            let mut later = HashMap::new();
            // The first round is in the order of the rows, and is read along with the candidates.
            let collected = self.ledger.entries(|round, entry| {
                if round > 0 {
                    later.insert(entry.record.candidate.key, entry);
                }
                Ok(())
            });
            scope.spawn(move || {
                // An error here is that nobody listens any more.
                let _ = self.ledger.entries(|round, entry| match round {
                    0 => sender.send(entry).map_err(|_| Error::Interrupted),
                    _ => Ok(()),
                });
            });
            let mut first_round = entries.into_iter().peekable();
            let mut files = Files { target: &self.target, open: None };
            let answer_all = || -> Result<()> {
                collected?;
                for candidate in iter::from_fn(|| candidates.blocking_recv()) {
                    if stop.is_raised() {
                        return Ok(());
                    }
                    let key = candidate.key;
                    while first_round.next_if(|entry| entry.record.candidate.key < key).is_some() {}
                    let stored = first_round.next_if(|entry| entry.record.candidate.key == key);
                    let (answer, file) = answer(later.remove(&key).or(stored), recipe, &mut files)?;
                    let location = journal.append(&Record { candidate, answer }, file.as_ref())?;
                    // Nobody listens any more where the run is stopping.
                    let _ = answered.send((key, location));
                }
                Ok(())
            };
            if let Err(error) = answer_all() {
                stop.raise(error);
            }
        });
    }
}

/// The part of a fingerprint that names the run whose answers were used.
pub const SOURCE_PART: &str = "run that gave the answers";

/// Whether a part of a fingerprint leaves stored answers what they are: a rule that can be applied to them
/// anew, or where they came from.
fn is_rule(part: &str) -> bool {
    matches!(part, SOURCE_PART | "image.rules" | "sharpness.rules" | "captions" | "duplicates" | "shards")
        || part.ends_with(": filter")
}

fn answer(stored: Option<Entry>, recipe: &Recipe, files: &mut Files<'_>) -> Result<(Answer, Option<File<'static>>)> {
    let Some(Entry { record, verdict }) = stored else {
        return Ok((Answer::None(Rejection::plain(Reason::Stored(Stored::NeverAsked))), None));
    };
    let mut measured = match record.answer {
        Answer::Image(measured) => measured,
        none => return Ok((none, None)),
    };
    measured.rejection = judge(&measured, recipe).err();
    let file = match verdict {
        Verdict::Kept { shard, place } if measured.rejection.is_none() => {
            let bytes = files.read(shard, place)?;
            Some(File { sha256: ContentHash::of(&bytes), bytes: bytes.into() })
        }
        _ => None,
    };
    Ok((Answer::Image(measured), file))
}

/// Image files of shards, read forward where that is possible.
struct Files<'a> {
    target: &'a Target,
    open: Option<OpenShard>,
}

struct OpenShard {
    number: u64,
    next: u64,
    reader: ShardReader,
}

impl Files<'_> {
    fn read(&mut self, shard: u64, place: u64) -> Result<Vec<u8>> {
        let name = format!("{shard:06}.tar");
        let mut open = match self.open.take() {
            Some(open) if open.number == shard && open.next <= place => open,
            _ => OpenShard { number: shard, next: 0, reader: self.target.open(&name)? },
        };
        let sample = open.reader.nth((place - open.next) as usize).transpose()?;
        open.next = place + 1;
        self.open = Some(open);
        let image = sample.and_then(|s| s.parts.into_iter().find(|part| !matches!(part.ext.as_str(), "json" | "txt")));
        image.map(|part| part.bytes).ok_or_else(|| missing(Path::new(&name), place))
    }
}

fn missing(path: &Path, place: u64) -> Error {
    StorageError::Malformed { path: path.to_owned(), reason: format!("has no image at place {place}") }.into()
}
