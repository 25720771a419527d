//! Curated shards to latent shards.
//!
//! Three stages overlap: one thread reads shards and has rayon decode, crop and tokenise; the calling thread drives
//! the device; one thread writes. Each latent shard has the name and the order of a curated one and is a unit of work:
//! a run that is stopped or killed loses at most the shard it was at.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shards::atomic::{read_json, write_json};
use shards::index::{ELSEWHERE, INDEX, SHARDS};
use shards::{Fingerprint, Index, RunLock, Sample, ShardEntry, ShardReader, ShardWriter};
use tch::Device;

use crate::cache::{FORMAT, LATENTS, LatentIndex, LatentSample, LatentTotals, Refusal, VERSION};
use crate::encoder::{Encoder, Prepared};
use crate::fingerprint::fingerprint;
use crate::prepare::prepare;
use crate::{Error, ModelManifest, Result, Tokenizers, report};

/// The folder of a run that holds the images, and its index's format.
const CURATED: &str = "curated";
const CURATED_FORMAT: &str = "stepdown-curated";
const CURATED_VERSION: u32 = 1;

/// Holds a record for each finished shard until the index is published.
const UNFINISHED: &str = "unfinished";
const FINGERPRINT_FILE: &str = "fingerprint.json";

/// Batches that are prepared at once.
const BATCHES_AHEAD: usize = 4;

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// All shards are encoded and the index is published.
    Done {
        /// What the index counts.
        totals: LatentTotals,
        /// What this run did of it.
        work: Work,
    },
    /// All was done before.
    NothingToDo {
        /// What the index counts.
        totals: LatentTotals,
    },
    /// The caller asked to stop; the next run goes on.
    Interrupted,
}

/// How the time of a run was spent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// Samples that went through the device.
    pub samples: u64,
    /// From the first sample to the last.
    pub elapsed: Duration,
    /// Of that, the time in which the device worked.
    pub device: Duration,
    /// The time that captions took on their way to token ids, over all threads.
    pub tokenising: Duration,
    /// The time that shards took to be proved, read and written.
    pub files: Duration,
}

/// Time that several threads spend on one thing.
#[derive(Debug, Default)]
pub struct Stopwatch(AtomicU64);

impl Stopwatch {
    /// Does something and counts the time it takes.
    pub fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        self.0.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// One finished shard.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardRecord {
    entry: ShardEntry,
    totals: LatentTotals,
}

/// A run's folders and what is left to do in them.
struct Plan {
    curated: PathBuf,
    latents: PathBuf,
    fingerprint: Fingerprint,
    /// Curated shards, in order.
    shards: Vec<ShardEntry>,
    /// For each, its record where it is encoded already.
    finished: Vec<Option<ShardRecord>>,
}

/// Encodes what a run has curated.
pub fn encode_latents(
    manifest: &ModelManifest,
    run: &Path,
    device: Device,
    progress: &ProgressBar,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let curated = run.join(CURATED);
    let index = Index::<serde_json::Value>::load(&curated, CURATED_FORMAT, CURATED_VERSION)?
        .ok_or_else(|| Error::NotCurated { folder: curated.clone() })?;
    let latents = run.join(LATENTS);
    let _lock = RunLock::acquire(&latents)?;
    let fingerprint = fingerprint(manifest, &curated.join(INDEX))?;
    if let Some(published) = LatentIndex::load(&latents, FORMAT, VERSION)? {
        agree(&latents, &published.fingerprint, &fingerprint)?;
        check_present(&latents, &published.shards)?;
        // A run that was killed after its last word has left them.
        remove_records(&latents)?;
        return Ok(Outcome::NothingToDo { totals: published.totals });
    }
    let is_here = |shard: &ShardEntry| curated.join(SHARDS).join(&shard.name).exists();
    if curated.join(ELSEWHERE).exists() && !index.shards.iter().all(is_here) {
        return Err(Error::ShardsElsewhere { folder: curated });
    }

    let mut plan = Plan::new(curated, latents, fingerprint, index.shards)?;
    let tokenizers = Tokenizers::open(&manifest.base)?;
    let encoder = Encoder::open(manifest, device)?;
    progress.set_length(plan.shards.iter().map(|shard| shard.count).sum());
    progress
        .set_position(plan.finished.iter().zip(&plan.shards).filter(|(f, _)| f.is_some()).map(|(_, s)| s.count).sum());
    let work = plan.encode_missing(manifest, &tokenizers, &encoder, progress, stop)?;
    if stop.load(Ordering::Relaxed) {
        return Ok(Outcome::Interrupted);
    }
    encoder.unconditional(manifest, &tokenizers)?.publish(&plan.latents)?;
    let totals = plan.publish(manifest, &encoder)?;
    Ok(Outcome::Done { totals, work })
}

fn agree(folder: &Path, recorded: &Fingerprint, current: &Fingerprint) -> Result<()> {
    let differences: Vec<String> = recorded.difference(current).iter().map(ToString::to_string).collect();
    if differences.is_empty() { Ok(()) } else { Err(Error::MadeOtherwise { folder: folder.to_owned(), differences }) }
}

/// Every published shard is there in its size; who trains on them proves their hashes.
fn check_present(latents: &Path, shards: &[ShardEntry]) -> Result<()> {
    for shard in shards {
        let path = latents.join(SHARDS).join(&shard.name);
        let found = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        if found != shard.bytes {
            let reason = format!("has {found} bytes, the index says {}; remove {LATENTS}/ to encode anew", shard.bytes);
            return Err(Error::invalid(path, reason));
        }
    }
    Ok(())
}

impl Plan {
    /// Takes up the records of an earlier run, if they were made from the same.
    fn new(curated: PathBuf, latents: PathBuf, fingerprint: Fingerprint, shards: Vec<ShardEntry>) -> Result<Self> {
        let records = latents.join(UNFINISHED);
        let recorded = records.join(FINGERPRINT_FILE);
        if recorded.exists() {
            agree(&latents, &read_json(&recorded)?, &fingerprint)?;
        } else {
            write_json(&recorded, &fingerprint)?;
        }
        let finished = shards
            .iter()
            .map(|shard| {
                let path = record_path(&latents, &shard.name);
                if !path.exists() {
                    return Ok(None);
                }
                let record: ShardRecord = read_json(&path)?;
                shards::shard::verify(latents.join(SHARDS), &record.entry)?;
                Ok(Some(record))
            })
            .collect::<Result<_>>()?;
        Ok(Self { curated, latents, fingerprint, shards, finished })
    }

    fn encode_missing(
        &mut self,
        manifest: &ModelManifest,
        tokenizers: &Tokenizers,
        encoder: &Encoder,
        progress: &ProgressBar,
        stop: &AtomicBool,
    ) -> Result<Work> {
        let pending: Vec<usize> = (0..self.shards.len()).filter(|&at| self.finished[at].is_none()).collect();
        let started = Instant::now();
        let mut work = Work::default();
        let (tokenising, files) = (Stopwatch::default(), Stopwatch::default());
        let records = std::thread::scope(|scope| {
            let (prepared_out, prepared_in) = sync_channel::<Chunk<Prepared>>(1);
            let (encoded_out, encoded_in) = sync_channel::<Chunk<LatentSample>>(1);
            let (plan, tokenising, files) = (&*self, &tokenising, &files);
            let prepared = move |sample: &Sample| prepare(sample, manifest, tokenizers, tokenising);
            let size = manifest.encode.batch * BATCHES_AHEAD;
            let reader = scope.spawn(move || plan.read(&pending, size, prepared, &prepared_out, files, stop));
            let writer = scope.spawn(move || plan.write(&encoded_in, files, progress));

            let driven = drive(encoder, prepared_in, encoded_out, &mut work, stop);
            let read = reader.join().expect("the reader's faults are results");
            let written = writer.join().expect("the writer's faults are results");
            read?;
            driven?;
            written
        })?;
        work = Work { elapsed: started.elapsed(), tokenising: tokenising.total(), files: files.total(), ..work };
        for (at, record) in records {
            self.finished[at] = Some(record);
        }
        Ok(work)
    }

    /// Proves and reads shards, and prepares their samples `size` at a time.
    fn read(
        &self,
        pending: &[usize],
        size: usize,
        prepare: impl Fn(&Sample) -> Result<std::result::Result<Prepared, Refusal>> + Sync,
        out: &SyncSender<Chunk<Prepared>>,
        files: &Stopwatch,
        stop: &AtomicBool,
    ) -> Result<()> {
        let folder = self.curated.join(SHARDS);
        for &shard in pending {
            files.time(|| shards::shard::verify(&folder, &self.shards[shard]))?;
            let mut samples = ShardReader::open(folder.join(&self.shards[shard].name))?.peekable();
            loop {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let chunk: Vec<Sample> = files.time(|| samples.by_ref().take(size).collect::<shards::Result<_>>())?;
                let items = chunk.par_iter().map(&prepare).collect::<Result<Vec<_>>>()?;
                let truncated = |item: &&std::result::Result<Prepared, _>| {
                    item.as_ref().is_ok_and(|sample| sample.caption.truncated())
                };
                let truncated_captions = items.iter().filter(truncated).count() as u64;
                let last = samples.peek().is_none();
                if out.send(Chunk { shard, items, truncated_captions, last }).is_err() {
                    // A later stage has failed and says why.
                    return Ok(());
                }
                if last {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes each shard as its samples come, and its record when it is whole.
    fn write(
        &self,
        encoded: &Receiver<Chunk<LatentSample>>,
        files: &Stopwatch,
        progress: &ProgressBar,
    ) -> Result<Vec<(usize, ShardRecord)>> {
        let folder = self.latents.join(SHARDS);
        let mut finished = Vec::new();
        let mut open: Option<(ShardWriter, LatentTotals)> = None;
        for Chunk { shard, items, truncated_captions, last } in encoded {
            let name = &self.shards[shard].name;
            let (mut writer, mut totals) = match open.take() {
                Some(open) => open,
                None => (ShardWriter::create(&folder, name.clone())?, LatentTotals::default()),
            };
            totals.truncated_captions += truncated_captions;
            progress.inc(items.len() as u64);
            for item in items {
                match item {
                    Ok(sample) => {
                        files.time(|| writer.push(sample.to_sample()?).map_err(Error::from))?;
                        totals.encoded += 1;
                    }
                    Err(refusal) => {
                        tracing::warn!(key = refusal.key, "refused: {}", refusal.detail);
                        totals.refused.push(refusal);
                    }
                }
            }
            if !last {
                open = Some((writer, totals));
                continue;
            }
            let record = ShardRecord { entry: files.time(|| writer.finish())?, totals };
            files.time(|| write_json(record_path(&self.latents, name), &record))?;
            tracing::info!("{name}: {} encoded, {} refused", record.totals.encoded, record.totals.refused.len());
            finished.push((shard, record));
        }
        Ok(finished)
    }

    /// Publishes report and index; the records have served.
    fn publish(self, manifest: &ModelManifest, encoder: &Encoder) -> Result<LatentTotals> {
        let mut totals = LatentTotals::default();
        let mut shards = Vec::with_capacity(self.shards.len());
        for record in self.finished {
            let record = record.expect("every shard is finished");
            totals.add(record.totals);
            shards.push(record.entry);
        }
        let index = LatentIndex {
            format: FORMAT.into(),
            version: VERSION,
            fingerprint: self.fingerprint,
            shards,
            totals: totals.clone(),
        };
        report::publish(&self.curated, &self.latents, &index, manifest, encoder)?;
        index.publish(&self.latents)?;
        remove_records(&self.latents)?;
        Ok(totals)
    }
}

fn remove_records(latents: &Path) -> Result<()> {
    let records = latents.join(UNFINISHED);
    match std::fs::remove_dir_all(&records) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&records)(error)),
        _ => Ok(()),
    }
}

fn record_path(latents: &Path, shard: &str) -> PathBuf {
    latents.join(UNFINISHED).join(shard).with_extension("json")
}

/// Consecutive samples of one shard on their way; refused ones travel along to be counted.
struct Chunk<T> {
    shard: usize,
    items: Vec<std::result::Result<T, Refusal>>,
    truncated_captions: u64,
    last: bool,
}

/// The device's stage.
fn drive(
    encoder: &Encoder,
    prepared: Receiver<Chunk<Prepared>>,
    encoded: SyncSender<Chunk<LatentSample>>,
    work: &mut Work,
    stop: &AtomicBool,
) -> Result<()> {
    for Chunk { shard, items, truncated_captions, last } in prepared {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        // tch panics where torch refuses, for example for want of memory.
        let items = catch_unwind(AssertUnwindSafe(|| encode_chunk(encoder, items)))
            .map_err(|panic| Error::Torch(tch::TchError::Torch(panic_message(panic.as_ref()))))?;
        work.device += began.elapsed();
        work.samples += items.len() as u64;
        if encoded.send(Chunk { shard, items, truncated_captions, last }).is_err() {
            // The writer has failed and says why.
            break;
        }
    }
    Ok(())
}

/// Encodes the samples of a chunk that are not refused yet; all keep their places.
fn encode_chunk(
    encoder: &Encoder,
    items: Vec<std::result::Result<Prepared, Refusal>>,
) -> Vec<std::result::Result<LatentSample, Refusal>> {
    let mut places = Vec::with_capacity(items.len());
    let mut ready = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Ok(sample) => {
                ready.push(sample);
                places.push(None);
            }
            Err(refusal) => places.push(Some(refusal)),
        }
    }
    let mut encoded = encoder.encode(ready).into_iter();
    places
        .into_iter()
        .map(|refusal| match refusal {
            Some(refusal) => Err(refusal),
            None => encoded.next().expect("one result for each sample"),
        })
        .collect()
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the device stage panicked").to_owned()
}
