//! `curate --refilter`: answers from a finished run in place of the network.
//!
//! The tables are scanned and every rule is applied anew, over stored scores and measures. Stricter rules give
//! what a run with them would have given. Looser ones cannot bring back what was never requested or whose file
//! was not kept: such rows are counted as `stored.never_asked` and `stored.file_not_kept`. The file of a row that was
//! turned down as an exact copy is there: it is that of the sample that it copied.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::mpsc;
use std::{iter, thread};

use shards::{ContentHash, Error as StorageError, Fingerprint, ShardReader};
use tokio::sync::mpsc as feed;

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::journal::{Journal, Location};
use crate::ledger::{Entry, Ledger};
use crate::measure::{File, judge, judge_limits};
use crate::reason::{Duplicate, Reason, Stored};
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
    /// [`Error::Unfinished`]; [`Error::NotComparable`] where its rows or measures are others.
    pub fn open(folder: Folder, current: &Fingerprint) -> Result<StoredRun> {
        let index = folder.index()?.ok_or_else(|| Error::Unfinished { folder: folder.root.clone() })?;
        let comparable = |fingerprint: &Fingerprint| {
            let shapes_answers = |name: &str| !is_rule(name);
            let parts = fingerprint.parts().filter(|(name, _)| shapes_answers(name));
            parts.fold(Fingerprint::new(), |all, (name, hash)| all.with(name, hash))
        };
        let differences = comparable(&index.fingerprint).difference(&comparable(current));
        if !differences.is_empty() {
            return Err(Error::NotComparable { folder: folder.root, differences });
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
            let (mut later, mut copied) = (HashMap::new(), HashSet::new());
            // The first round is in the order of the rows, and is read along with the candidates.
            let collected = self.ledger.entries(|round, entry| {
                copied.extend(copied_content(&entry));
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
                let mut originals = self.originals(&copied)?;
                for candidate in iter::from_fn(|| candidates.blocking_recv()) {
                    if stop.is_raised() {
                        return Ok(());
                    }
                    let key = candidate.key;
                    while first_round.next_if(|entry| entry.record.candidate.key < key).is_some() {}
                    let stored = first_round.next_if(|entry| entry.record.candidate.key == key);
                    let (answer, place) = answer(later.remove(&key).or(stored), recipe, &mut originals);
                    let file = place.map(|place| files.read(place)).transpose()?;
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

/// Where the file of a sample lies: the number of its shard, and its place there.
type Place = (u64, u64);

impl StoredRun {
    /// The places of those samples whose contents were `copied`.
    fn originals(&self, copied: &HashSet<ContentHash>) -> Result<HashMap<ContentHash, Place>> {
        let mut originals = HashMap::new();
        if copied.is_empty() {
            return Ok(originals);
        }
        self.ledger.entries(|_, entry| {
            if let (Verdict::Kept { shard, place, .. }, Answer::Image(measured)) = (entry.verdict, entry.record.answer)
                && copied.contains(&measured.sha256)
            {
                originals.insert(measured.sha256, (shard, place));
            }
            Ok(())
        })?;
        Ok(originals)
    }
}

/// The content of a row that was turned down as an exact copy.
fn copied_content(entry: &Entry) -> Option<ContentHash> {
    match (&entry.verdict, &entry.record.answer) {
        (Verdict::Rejected(rejection), Answer::Image(measured)) if rejection.reason == EXACT => Some(measured.sha256),
        _ => None,
    }
}

const EXACT: Reason = Reason::Duplicate(Duplicate::Exact);

/// The part of a fingerprint that names the run whose answers were used.
pub const SOURCE_PART: &str = "run that gave the answers";

/// Whether a part of a fingerprint leaves stored answers what they are: a rule that can be applied to them
/// anew, or where they came from.
fn is_rule(part: &str) -> bool {
    matches!(part, SOURCE_PART | "image.rules" | "sharpness.rules" | "captions" | "duplicates" | "shards")
        || part.ends_with(": filter")
}

/// The answer by the rules of `recipe`, and where its file lies. `originals` are the samples that hold the files of
/// copies; one that was handed out is forgotten where no second row may have its content.
fn answer(
    stored: Option<Entry>,
    recipe: &Recipe,
    originals: &mut HashMap<ContentHash, Place>,
) -> (Answer, Option<Place>) {
    let Some(Entry { record, verdict }) = stored else {
        return (Answer::None(Rejection::plain(Reason::Stored(Stored::NeverAsked))), None);
    };
    let mut measured = match record.answer {
        Answer::Image(measured) => measured,
        none => return (none, None),
    };
    if let Err(rejection) = judge_limits(&measured, &recipe.image) {
        return (Answer::None(rejection), None);
    }
    measured.rejection = judge(&measured, recipe).err();
    let place = match verdict {
        _ if measured.rejection.is_some() => None,
        Verdict::Kept { shard, place, .. } => Some((shard, place)),
        Verdict::Rejected(rejection) if rejection.reason == EXACT => originals.get(&measured.sha256).copied(),
        Verdict::Rejected(_) => None,
    };
    if place.is_some() && recipe.duplicates.exact {
        originals.remove(&measured.sha256);
    }
    (Answer::Image(measured), place)
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
    fn read(&mut self, (shard, place): Place) -> Result<File<'static>> {
        let name = format!("{shard:06}.tar");
        let mut open = match self.open.take() {
            Some(open) if open.number == shard && open.next <= place => open,
            _ => OpenShard { number: shard, next: 0, reader: self.target.open(&name)? },
        };
        let sample = open.reader.nth((place - open.next) as usize).transpose()?;
        open.next = place + 1;
        self.open = Some(open);
        let image = sample.and_then(|s| s.parts.into_iter().find(|part| !matches!(part.ext.as_str(), "json" | "txt")));
        let bytes = image.map(|part| part.bytes).ok_or_else(|| missing(Path::new(&name), place))?;
        Ok(File { sha256: ContentHash::of(&bytes), bytes: Vec::from(bytes).into() })
    }
}

fn missing(path: &Path, place: u64) -> Error {
    StorageError::Malformed { path: path.to_owned(), reason: format!("has no image at place {place}") }.into()
}
