//! Saved states: written whole or not at all, the newest good one wins.
//!
//! ```text
//! checkpoints/000000120/        student.safetensors  discriminator.safetensors  state.json
//! checkpoints/000000120-half/   the discriminator's half of iteration 121 is done too
//! ```
//!
//! A checkpoint is written beside its place and renamed into it. `state.json` holds the hashes of the other files, so
//! that one damaged later is passed over for the one before. A name stands for one state: a whole checkpoint is never
//! written again, and so there is no moment without one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nn::Weights;
use serde::{Deserialize, Serialize};
use shards::atomic::{is_temporary, read_json, sync_folder_of, write_json};
use shards::{ContentHash, Fingerprint};
use tch::{Device, Kind, Tensor};

use super::metrics::DiscriminatorMetrics;
use super::phase::{Carried, CarriedStudent, Networks};
use crate::error::refuse_stale;
use crate::recipe::{Stage, Trains};
use crate::{Error, Result};

const FORMAT: &str = "stepdown-checkpoint";
const VERSION: u32 = 1;
const STUDENT: &str = "student.safetensors";
const DISCRIMINATOR: &str = "discriminator.safetensors";
const STATE: &str = "state.json";
/// Ends the names of states in the middle of an iteration.
const HALF: &str = "-half";

/// Where a run stands. The data's position follows: iterations times the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// The phase, counted from 0.
    pub phase: usize,
    /// Iterations done in it.
    pub in_phase: u64,
    /// Iterations done in the stage.
    pub iteration: u64,
    /// Whether the discriminator's half of the next iteration is done too.
    pub discriminator_done: bool,
    /// Student updates skipped in a row.
    pub student_skips: u32,
    /// Discriminator updates skipped in a row.
    pub discriminator_skips: u32,
    /// Iterations in a row with a discriminator that has won.
    pub collapsed: u64,
}

impl Position {
    /// The name of its checkpoint; names sort as positions do.
    fn name(&self) -> String {
        let half = if self.discriminator_done { HALF } else { "" };
        format!("{:09}{half}", self.iteration)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: String,
    version: u32,
    fingerprint: Fingerprint,
    position: Position,
    student_updates: u64,
    discriminator_updates: u64,
    /// What the discriminator's half of the next iteration reported, where it is done.
    #[serde(default)]
    discriminator: Option<DiscriminatorMetrics>,
    files: BTreeMap<String, ContentHash>,
}

/// A state read back.
#[derive(Debug)]
pub(super) struct Saved {
    pub position: Position,
    /// What the discriminator's half of the next iteration reported, where it is done.
    pub discriminator_metrics: Option<DiscriminatorMetrics>,
    student: BTreeMap<String, Tensor>,
    student_updates: u64,
    discriminator: Option<BTreeMap<String, Tensor>>,
    discriminator_updates: u64,
}

impl Saved {
    /// The weights alone, from which the phase's networks are built.
    pub fn carried(&self, stage: &Stage) -> Carried {
        let student = masters(&self.student);
        Carried {
            student: match stage.phases[self.position.phase].trains {
                Trains::Lora => CarriedStudent::Lora(student),
                Trains::Full => CarriedStudent::Full(student),
            },
            discriminator: self.discriminator.as_ref().map(masters),
        }
    }

    /// Moments and masters, bit for bit.
    pub fn restore(self, networks: &mut Networks) -> Result<()> {
        networks.student_optimizer.restore(self.student, self.student_updates)?;
        if let (Some(critic), Some(state)) = (&mut networks.critic, self.discriminator) {
            critic.optimizer.restore(state, self.discriminator_updates)?;
        }
        Ok(())
    }
}

fn masters(state: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    state
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("master.")?.to_string(), tensor.shallow_clone())))
        .collect()
}

/// Removes what interrupted saves have left, of any position: a run that goes on need not stop where it was killed.
pub(super) fn remove_unfinished(folder: &Path) -> Result<()> {
    entries(folder)?.iter().filter(|path| is_temporary(path)).try_for_each(|path| remove(path))
}

/// Publishes the state, then removes all but the last `keep`.
pub(super) fn save(
    folder: &Path,
    fingerprint: &Fingerprint,
    (position, discriminator_metrics): (Position, Option<&DiscriminatorMetrics>),
    networks: &Networks,
    keep: usize,
) -> Result<()> {
    let place = folder.join(position.name());
    // A stop may fall on a checkpoint.
    if vouched(&place).is_ok_and(|state| state.position == position && state.fingerprint == *fingerprint) {
        return Ok(());
    }
    let temporary = folder.join(format!(".{}.tmp", position.name()));
    fs::create_dir_all(&temporary).map_err(Error::io("create the folder", &temporary))?;

    let mut files = BTreeMap::new();
    let mut write = |name: &str, tensors: &BTreeMap<String, Tensor>| -> Result<()> {
        let path = temporary.join(name);
        nn::save(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[])?;
        files.insert(name.to_string(), ContentHash::of_file(&path)?);
        Ok(())
    };
    let (student, student_updates) = networks.student_optimizer.state();
    write(STUDENT, &student)?;
    let mut discriminator_updates = 0;
    if let Some(critic) = &networks.critic {
        let (discriminator, updates) = critic.optimizer.state();
        write(DISCRIMINATOR, &discriminator)?;
        discriminator_updates = updates;
    }
    let state = State {
        format: FORMAT.into(),
        version: VERSION,
        fingerprint: fingerprint.clone(),
        position,
        student_updates,
        discriminator_updates,
        discriminator: discriminator_metrics.cloned(),
        files,
    };
    write_json(temporary.join(STATE), &state)?;
    // Whatever is still there is damaged.
    remove(&place)?;
    fs::rename(&temporary, &place).map_err(Error::io("rename into place", &place))?;
    sync_folder_of(&place)?;
    let mut kept = list(folder)?;
    kept.truncate(kept.len().saturating_sub(keep));
    kept.iter().try_for_each(|old| remove(old))
}

/// The newest state that is whole; older ones stand in for damaged ones, with a warning. A state of another recipe,
/// teacher or data set is refused.
pub(super) fn latest(folder: &Path, fingerprint: &Fingerprint) -> Result<Option<Saved>> {
    for path in list(folder)?.iter().rev() {
        match read(path) {
            Ok((saved, found)) => {
                refuse_stale(path, &found, fingerprint)?;
                return Ok(Some(saved));
            }
            Err(error) => {
                tracing::warn!("checkpoint {} is damaged ({error}); trying the one before", path.display());
            }
        }
    }
    Ok(None)
}

/// What a checkpoint says of itself, its files compared with the hashes in it.
fn vouched(path: &Path) -> Result<State> {
    let state: State = read_json(path.join(STATE))?;
    if state.format != FORMAT || state.version != VERSION {
        let reason = format!("is {} version {}, expected {FORMAT} version {VERSION}", state.format, state.version);
        return Err(Error::Document { path: path.join(STATE), reason });
    }
    for (name, expected) in &state.files {
        let (path, expected) = (path.join(name), *expected);
        let found = ContentHash::of_file(&path)?;
        if found != expected {
            return Err(shards::Error::Checksum { path, expected, found }.into());
        }
    }
    Ok(state)
}

fn read(path: &Path) -> Result<(Saved, Fingerprint)> {
    let state = vouched(path)?;
    let load = |name: &str| -> Result<Option<BTreeMap<String, Tensor>>> {
        if !state.files.contains_key(name) {
            return Ok(None);
        }
        let weights = Weights::open(&path.join(name))?.to(Kind::Float, Device::Cpu);
        let tensors = weights
            .names()
            .into_iter()
            .map(|name| Ok((name.to_string(), weights.tensor(name)?)))
            .collect::<Result<_>>()?;
        Ok(Some(tensors))
    };
    let student =
        load(STUDENT)?.ok_or_else(|| Error::Document { path: path.join(STATE), reason: "names no student".into() })?;
    let saved = Saved {
        position: state.position,
        discriminator_metrics: state.discriminator,
        student,
        student_updates: state.student_updates,
        discriminator: load(DISCRIMINATOR)?,
        discriminator_updates: state.discriminator_updates,
    };
    Ok((saved, state.fingerprint))
}

/// Published checkpoints, oldest first.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_position = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.strip_suffix(HALF).unwrap_or(name).bytes().all(|b| b.is_ascii_digit()))
    };
    let mut found = entries(folder)?;
    found.retain(|path| is_position(path) && path.is_dir());
    found.sort();
    Ok(found)
}

/// What lies in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).map_err(Error::io("read the folder", folder))?;
    entries.map(|entry| Ok(entry.map_err(Error::io("read the folder", folder))?.path())).collect()
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", folder)(error)),
        _ => Ok(()),
    }
}
