//! A run: everything that the other modules do, in its order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread;

use serde::{Deserialize, Serialize};
use shards::atomic::{read_json, write_json};
use shards::index::{INDEX, SHARDS};
use shards::{ContentHash, Error as StorageError, Fingerprint, Index, RunLock};
use tokio::sync::mpsc as feed;

use crate::assemble::{Assembler, Tally};
use crate::counts::Counts;
use crate::error::{Error, Result};
use crate::folder::{FORMAT, Folder, Totals, VERSION};
use crate::journal::{Journal, Location};
use crate::ledger::Ledger;
use crate::progress::{Display, Progress};
use crate::reason::Reason;
use crate::recipe::Recipe;
use crate::record::{Rejection, Verdict};
use crate::refilter::StoredRun;
use crate::row::{Candidate, RowId};
use crate::scan::scan;
use crate::stop::Stop;
use crate::sweep::sweep;
use crate::tables::Tables;
use crate::target::Target;
use crate::work::{STOP_POLL, Worker};
use crate::{refilter, report, samples};

/// Rows that may be answered before the one whose turn it is. Bounds the journal's index in memory, and is
/// large enough that a host which answers after minutes holds nobody up.
const WINDOW: usize = 1 << 16;

/// How a run ended well.
#[derive(Debug)]
pub enum Outcome {
    /// It finished.
    Finished(Totals),
    /// There was nothing to do.
    AlreadyDone(Totals),
}

/// Where answers come from.
#[derive(Debug, Clone)]
pub enum Answers {
    /// Of all rows, the network.
    Network,
    /// The network, for the rows of a finished run that failed for one of these reasons. What they bring is
    /// added in shards of its own.
    Again(Vec<Reason>),
    /// The finished run in this folder.
    StoredIn(PathBuf),
}

/// Curates, from where an earlier process stopped.
///
/// # Errors
/// Whatever stops the run; it can be started again.
pub fn curate(recipe: Recipe, folder: &Folder, answers: Answers, stop: &Stop) -> Result<Outcome> {
    let tables = Tables::open(&recipe)?;
    let mut fingerprint = tables.add_to(recipe.fingerprint());
    let (retry, stored) = match answers {
        Answers::Network => (None, None),
        Answers::Again(reasons) => (Some(reasons), None),
        Answers::StoredIn(run) => (None, Some(StoredRun::open(Folder::of_run(&run), &fingerprint)?)),
    };
    if let Some(stored) = &stored {
        fingerprint = fingerprint.with(refilter::SOURCE_PART, stored.identity);
    }
    let _lock = RunLock::acquire(&folder.root)?;
    let task = match take_up(folder, &fingerprint, retry, recipe.shards.target.as_deref())? {
        Todo::Task(task) => task,
        Todo::Nothing(totals) => return Ok(Outcome::AlreadyDone(totals)),
    };
    let target = Target::of_run(&folder.root)?;
    target.clear_local_shards()?;

    let recipe = Arc::new(recipe);
    let ledger = Ledger::open(&folder.ledger(), task.round)?;
    let mut tally = Tally::new(&recipe);
    let mut again = BTreeSet::new();
    ledger.entries(|round, entry| {
        match entry.verdict {
            Verdict::Rejected(Rejection { reason, .. }) if round < task.round && task.retry.contains(&reason) => {
                again.insert(entry.record.candidate.key);
            }
            _ => tally.note(&entry),
        }
        Ok(())
    })?;
    let rows = if task.round == 0 { Rows::After(ledger.last) } else { Rows::Only(again) };
    let (journal, held) = Journal::open(&folder.answers(), ledger.last)?;
    let journal = Arc::new(journal);
    let progress = Progress::default();
    Progress::add(&progress.kept, tally.kept);
    Progress::add(&progress.rejected, tally.rejected.total());
    let assembler = Assembler::resume(&journal, ledger, tally, &recipe, &target);
    let collection =
        Collection { tables: &tables, recipe: &recipe, journal: &journal, stop, progress: &progress, stored };
    let (scanned, mut ledger, mut tally) = collection.run(assembler, held, &rows)?;
    sweep(&mut ledger, &mut tally, &target, stop)?;

    let mut reasons = scanned.rejected;
    reasons.add_all(&tally.rejected);
    let totals = Totals { rows: scanned.rows, kept: tally.kept, reasons, files: BTreeMap::new() };
    if totals.rows != totals.kept + totals.reasons.total() {
        return Err(Error::inconsistent(&folder.root, format!("the rows do not add up: {totals:?}")));
    }
    let totals = publish(folder, &target, &recipe, &ledger, totals, fingerprint)?;
    journal.settle()?;
    remove_journal(folder)?;
    Ok(Outcome::Finished(totals))
}

/// Publishes what is made from the ledger, the index last.
fn publish(
    folder: &Folder,
    target: &Target,
    recipe: &Recipe,
    ledger: &Ledger,
    mut totals: Totals,
    fingerprint: Fingerprint,
) -> Result<Totals> {
    samples::publish(ledger, &folder.root.join(samples::SAMPLES))?;
    report::publish(ledger, recipe, &totals, target)?;
    for file in ledger.files().into_iter().chain([folder.root.join(samples::SAMPLES)]) {
        let name = file.strip_prefix(&folder.root).unwrap_or(&file).to_string_lossy().into_owned();
        totals.files.insert(name, ContentHash::of_file(&file)?);
    }
    let shards = ledger.shards.clone();
    let index = Index { format: FORMAT.to_owned(), version: VERSION, fingerprint, shards, totals };
    target.store_results(&index)?;
    index.publish(&folder.root)?;
    Ok(index.totals)
}

/// What a run folder is being worked on for, as `journal/task.json` has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    /// The recipe and the tables.
    fingerprint: Fingerprint,
    /// 0 for the first round.
    round: u32,
    /// What is asked for again in a later round.
    retry: Vec<Reason>,
    /// The index that this round will replace.
    replaces: Option<ContentHash>,
}

enum Todo {
    Task(Task),
    Nothing(Totals),
}

/// Which rows are to have a verdict.
#[derive(Debug)]
enum Rows {
    /// Those behind a row, or all.
    After(Option<RowId>),
    /// These.
    Only(BTreeSet<RowId>),
}

impl Rows {
    fn contains(&self, key: RowId) -> bool {
        match self {
            Rows::After(last) => Some(key) > *last,
            Rows::Only(keys) => keys.contains(&key),
        }
    }
}

/// Finds what there is to do: an unfinished task, a new one, or none. Refuses to mix the work of two recipes.
fn take_up(
    folder: &Folder,
    fingerprint: &Fingerprint,
    retry: Option<Vec<Reason>>,
    target: Option<&str>,
) -> Result<Todo> {
    let same_run = |recorded: &Fingerprint| {
        let differences = recorded.difference(fingerprint);
        if differences.is_empty() { Ok(()) } else { Err(Error::Changed { folder: folder.root.clone(), differences }) }
    };
    let index_file = folder.root.join(INDEX);
    let published = if index_file.exists() { Some(ContentHash::of_file(&index_file)?) } else { None };
    if folder.task().exists() {
        let task: Task = read_json(folder.task())?;
        same_run(&task.fingerprint)?;
        if task.replaces == published {
            return if retry.is_none_or(|asked| asked == task.retry) {
                Ok(Todo::Task(task))
            } else {
                Err(Error::InTheMiddle { folder: folder.root.clone() })
            };
        }
        // The index of this task is published; its process was killed before it could clean up.
        remove_journal(folder)?;
    }
    let Some(index) = folder.index()? else {
        if retry.is_some() {
            return Err(Error::Unfinished { folder: folder.root.clone() });
        }
        remove_folder(&folder.ledger())?;
        Target::claim(&folder.root, target, fingerprint)?;
        return Ok(Todo::Task(begin(folder, fingerprint, 0, Vec::new(), None)?));
    };
    same_run(&index.fingerprint)?;
    let target = Target::of_run(&folder.root)?;
    index.shards.iter().try_for_each(|shard| target.look_at(shard))?;
    match retry {
        None => Ok(Todo::Nothing(index.totals)),
        Some(retry) => {
            let round = Ledger::open(&folder.ledger(), 0)?.next_round();
            Ok(Todo::Task(begin(folder, fingerprint, round, retry, published)?))
        }
    }
}

/// Writes down a new task.
fn begin(
    folder: &Folder,
    fingerprint: &Fingerprint,
    round: u32,
    retry: Vec<Reason>,
    replaces: Option<ContentHash>,
) -> Result<Task> {
    let task = Task { fingerprint: fingerprint.clone(), round, retry, replaces };
    write_json(folder.task(), &task)?;
    Ok(task)
}

/// Proves a finished run: every shard, `samples.parquet` and the ledger against the index, and the counts against each
/// other.
///
/// # Errors
/// The first thing that is not as the index says.
pub fn verify(folder: &Folder) -> Result<Totals> {
    let index = folder.index()?.ok_or_else(|| Error::Unfinished { folder: folder.root.clone() })?;
    let target = Target::of_run(&folder.root)?;
    index.shards.iter().try_for_each(|shard| target.verify(shard))?;
    let known: BTreeSet<&str> = index.shards.iter().map(|shard| shard.name.as_str()).collect();
    if let Some(stray) = target.shards()?.into_iter().find(|name| !known.contains(name.as_str())) {
        return Err(Error::inconsistent(&folder.root.join(SHARDS).join(stray), "is not in the index"));
    }
    let totals = &index.totals;
    for (name, &hash) in &totals.files {
        let path = folder.root.join(name);
        let found = ContentHash::of_file(&path)?;
        if found != hash {
            return Err(Error::inconsistent(&path, format!("SHA-256 is {found}, the index says {hash}")));
        }
    }
    if totals.kept != index.count() || totals.rows != totals.kept + totals.reasons.total() {
        return Err(Error::inconsistent(&folder.root.join("index.json"), "the counts do not add up"));
    }
    samples::verify(&folder.root.join(samples::SAMPLES), totals)?;
    Ok(index.totals)
}

fn remove_journal(folder: &Folder) -> Result<()> {
    remove_folder(&folder.journal())
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StorageError::io("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}

/// What the tables came to.
#[derive(Debug, Default)]
struct Scanned {
    rows: u64,
    rejected: Counts,
}

/// One message from the tables to the assembler.
enum Turn {
    /// The next row that is to have a verdict.
    Row(RowId),
    /// There is no other. A channel that closes without it says that the tables were not read to their end.
    End,
}

/// The threads of a run and what they share.
struct Collection<'a> {
    tables: &'a Tables,
    recipe: &'a Arc<Recipe>,
    journal: &'a Arc<Journal>,
    stop: &'a Stop,
    progress: &'a Progress,
    /// Answers these in place of the network.
    stored: Option<StoredRun>,
}

impl Collection<'_> {
    /// Runs until the last of `rows` has its verdict. `held` are answers of earlier processes.
    fn run(
        &self,
        assembler: Assembler<'_>,
        held: BTreeMap<RowId, Location>,
        rows: &Rows,
    ) -> Result<(Scanned, Ledger, Tally)> {
        let network = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(StorageError::io("start threads", "/"))?;
        let (turns, order) = mpsc::sync_channel(WINDOW);
        let (candidates, to_fetch) = feed::channel(self.recipe.fetch.concurrency);
        let (answered, answers) = mpsc::channel();
        let worker = Worker {
            fetcher: self.recipe.fetch.fetcher().expect("checked when the recipe was read"),
            recipe: self.recipe.clone(),
            journal: self.journal.clone(),
            answered,
            stop: self.stop.clone(),
        };
        let known: BTreeSet<RowId> = held.keys().copied().collect();
        let finished = AtomicBool::new(false);
        let (scanned, assembled) = thread::scope(|scope| {
            let scanning = scope.spawn(|| self.scan(rows, &known, turns, candidates));
            scope.spawn(|| match &self.stored {
                Some(stored) => stored.answer(to_fetch, self.recipe, self.journal, &worker.answered, self.stop),
                None => network.block_on(worker.run(to_fetch)),
            });
            let showing = scope.spawn(|| self.show(&finished));
            let assembled = self.assemble(assembler, held, order, &answers);
            // The other threads may wait for this one: an error has to reach them before they are joined.
            let assembled = assembled.map_err(|error| self.stop.raise(error)).ok();
            let scanned = scanning.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            finished.store(true, Relaxed);
            showing.thread().unpark();
            (scanned, assembled)
        });
        network.shutdown_background();
        self.stop.check()?;
        assembled.map(|(ledger, tally)| (scanned, ledger, tally)).ok_or(Error::Interrupted)
    }

    /// Hands out turns for the candidates among `rows`, and to the network those that have no answer yet.
    fn scan(
        &self,
        rows: &Rows,
        known: &BTreeSet<RowId>,
        turns: mpsc::SyncSender<Turn>,
        candidates: feed::Sender<Candidate>,
    ) -> Scanned {
        let mut scanned = Scanned::default();
        let mut gone = false;
        let result = scan(self.tables, &self.recipe.captions, |batch| {
            scanned.rows += batch.rows;
            scanned.rejected.add_all(&batch.rejected);
            for candidate in batch.candidates.into_iter().filter(|c| rows.contains(c.key)) {
                let key = candidate.key;
                gone = self.stop.is_raised()
                    || turns.send(Turn::Row(key)).is_err()
                    || (!known.contains(&key) && candidates.blocking_send(candidate).is_err());
                if gone {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        match result {
            Ok(()) if !gone => drop(turns.send(Turn::End)),
            Ok(()) => {}
            Err(error) => self.stop.raise(error),
        }
        scanned
    }

    /// Takes answers in any order and assembles them in the order of the turns.
    fn assemble(
        &self,
        mut assembler: Assembler<'_>,
        mut waiting: BTreeMap<RowId, Location>,
        order: mpsc::Receiver<Turn>,
        answers: &mpsc::Receiver<(RowId, Location)>,
    ) -> Result<(Ledger, Tally)> {
        while let Turn::Row(key) = self.wait(&order)? {
            let location = loop {
                if let Some(location) = waiting.remove(&key) {
                    break location;
                }
                let (answered, location) = self.wait(answers)?;
                Progress::add(&self.progress.answered, 1);
                waiting.insert(answered, location);
            };
            let kept = assembler.push(location)?;
            Progress::add(if kept { &self.progress.kept } else { &self.progress.rejected }, 1);
            self.progress.rows.store(self.tables.rows_before(key), Relaxed);
        }
        assembler.finish()
    }

    /// The next message, unless the run is to stop.
    fn wait<T>(&self, messages: &mpsc::Receiver<T>) -> Result<T> {
        loop {
            self.stop.check()?;
            match messages.recv_timeout(STOP_POLL) {
                Ok(message) => return Ok(message),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                // The sender went away without a last word: the cause is with `stop`, or there is none.
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.stop.check()?;
                    return Err(Error::Interrupted);
                }
            }
        }
    }

    fn show(&self, finished: &AtomicBool) {
        let mut display = Display::new(self.tables.rows());
        while !finished.load(Relaxed) {
            display.update(self.progress);
            thread::park_timeout(STOP_POLL);
        }
        display.finish();
    }
}
