//! Where the shards of a run lie: in its folder, or in a folder of an object store.
//!
//! With `[shards] target` a shard is finished here, stored there whole, and forgotten here once the ledger names
//! it, so that a run needs the disk of one shard. What is published at the end goes the same way, the index last;
//! `RUN/curated` keeps its ledger and a copy of all but the shards. A shard that was stored by a killed process
//! before the ledger named it is made again, from the same answers and so with the same bytes, and stored again.
//!
//! Two files tie a run and its target together: `RUN/curated/target.json` says where the shards lie, and `run.json`
//! at the target says whose they are, so that two runs cannot mix theirs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use shards::atomic::{read_json, write_json};
use shards::index::{ELSEWHERE, INDEX, SHARDS};
use shards::shard::verify_file;
use shards::{ContentHash, Error as StorageError, Fingerprint, Index, Sample, ShardEntry, ShardReader};

use crate::error::{Error, Result};
use crate::folder::Totals;
use crate::report::REPORT;
use crate::samples::SAMPLES;
use crate::store::RemoteFolder;

/// At the target.
const OWNER: &str = "run.json";

/// `target.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceOfShards {
    /// As the recipe has it.
    target: String,
    owner: Owner,
}

/// `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    /// Distinct for every run, also for two of the same recipe.
    run: ContentHash,
}

/// The shards of one run, wherever they lie.
#[derive(Debug)]
pub struct Target {
    /// `RUN/curated`.
    folder: PathBuf,
    remote: Option<RemoteFolder>,
}

impl Target {
    /// That of the run in `folder`, which is `RUN/curated`.
    ///
    /// # Errors
    /// [`Error::Storage`]; [`Error::Store`] where the store cannot be spoken to.
    pub fn of_run(folder: &Path) -> Result<Target> {
        let place = folder.join(ELSEWHERE);
        let remote = if place.exists() {
            let place: PlaceOfShards = read_json(place)?;
            Some(RemoteFolder::open(&place.target)?)
        } else {
            None
        };
        Ok(Target { folder: folder.to_owned(), remote })
    }

    /// `RUN/curated`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes `target` that of a new run, before anything else of it is written.
    ///
    /// # Errors
    /// [`Error::Store`], also where the target holds another run.
    pub fn claim(folder: &Path, target: Option<&str>, fingerprint: &Fingerprint) -> Result<()> {
        let place = folder.join(ELSEWHERE);
        let Some(target) = target else {
            return remove_file(&place);
        };
        let remote = RemoteFolder::open(target)?;
        let known: Option<PlaceOfShards> = if place.exists() { Some(read_json(&place)?) } else { None };
        let owner = match known {
            Some(known) if known.target == target => known.owner,
            _ => {
                let owner = Owner { run: new_identity(folder, target, fingerprint) };
                write_json(&place, &PlaceOfShards { target: target.to_owned(), owner: owner.clone() })?;
                owner
            }
        };
        let claimed = hold(&remote, &owner);
        if claimed.is_err() {
            remove_file(&place)?;
        }
        claimed
    }

    /// Forgets shards of an earlier process: each is in the target, or is made again.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn clear_local_shards(&self) -> Result<()> {
        if self.remote.is_none() {
            return Ok(());
        }
        let shards = self.folder.join(SHARDS);
        match fs::remove_dir_all(&shards) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StorageError::io("remove", shards)(error).into())
            }
            _ => Ok(()),
        }
    }

    /// Stores a finished shard of `RUN/curated/shards` where it belongs.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn store(&self, shard: &ShardEntry) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        remote.upload(&object(&shard.name), &self.local(&shard.name))
    }

    /// Forgets the local copy of a shard that the ledger names.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn forget(&self, shard: &ShardEntry) -> Result<()> {
        if self.remote.is_none() { Ok(()) } else { remove_file(&self.local(&shard.name)) }
    }

    /// Stores what is published beside the shards, the index last.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn store_results(&self, index: &Index<Totals>) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        remote.upload(SAMPLES, &self.folder.join(SAMPLES))?;
        remote.upload(REPORT, &self.folder.join(REPORT))?;
        remote.put(INDEX, index.to_bytes(&PathBuf::from(remote.url(INDEX)))?)
    }

    /// Opens a shard for reading. One that lies in a store is brought into a file without a name, which is gone
    /// when it is closed.
    ///
    /// # Errors
    /// [`Error::Storage`] or [`Error::Store`], also where it is missing.
    pub fn open(&self, name: &str) -> Result<ShardReader> {
        let (file, path) = self.file(name)?;
        Ok(ShardReader::of_file(file, path))
    }

    /// The samples that begin at these bytes of a shard; `None` at its end.
    ///
    /// # Errors
    /// As [`open`](Target::open). An item fails with what reading its sample finds.
    pub fn samples<O: IntoIterator<Item = u64>>(
        &self,
        name: &str,
        offsets: O,
    ) -> Result<impl Iterator<Item = Result<Option<Sample>>> + use<O>> {
        let (file, path) = self.file(name)?;
        Ok(ShardReader::samples_at(file, path, offsets).map(|sample| Ok(sample?)))
    }

    /// Proves a shard; see [`shards::shard::verify`].
    ///
    /// # Errors
    /// As [`open`](Target::open), and for what is not as `shard` says.
    pub fn verify(&self, shard: &ShardEntry) -> Result<()> {
        let (file, path) = self.file(&shard.name)?;
        Ok(verify_file(file, &path, shard)?)
    }

    /// A cheap look at what [`verify`](Target::verify) proves.
    ///
    /// # Errors
    /// As [`verify`](Target::verify).
    pub fn look_at(&self, shard: &ShardEntry) -> Result<()> {
        let path = self.place(&shard.name);
        let found = match &self.remote {
            None => fs::metadata(&path).map_err(StorageError::io("find", &path))?.len(),
            Some(remote) => remote
                .length(&object(&shard.name))?
                .ok_or_else(|| Error::inconsistent(&path, "is not there, and the index names it"))?,
        };
        if found == shard.bytes {
            Ok(())
        } else {
            Err(Error::inconsistent(&path, format!("has {found} bytes, the index says {}", shard.bytes)))
        }
    }

    /// The names of all files that lie where shards do, temporary ones aside.
    ///
    /// # Errors
    /// [`Error::Storage`]; [`Error::Store`].
    pub fn shards(&self) -> Result<Vec<String>> {
        let names = match &self.remote {
            Some(remote) => remote.names(SHARDS)?,
            None => names(&self.folder.join(SHARDS))?,
        };
        Ok(names.into_iter().filter(|name| !name.starts_with('.')).collect())
    }

    fn file(&self, name: &str) -> Result<(File, PathBuf)> {
        let place = self.place(name);
        let Some(remote) = &self.remote else {
            return Ok((File::open(&place).map_err(StorageError::io("open", &place))?, place));
        };
        let local = self.folder.join(format!(".{}-{name}.tmp", process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&local);
        let file = file.map_err(StorageError::io("create", &local))?;
        remove_file(&local)?;
        remote.download(&object(name), &file, &local)?;
        std::io::Seek::rewind(&mut &file).map_err(StorageError::io("read", &local))?;
        Ok((file, place))
    }

    /// Path or URL of a shard.
    fn place(&self, name: &str) -> PathBuf {
        match &self.remote {
            None => self.local(name),
            Some(remote) => PathBuf::from(remote.url(&object(name))),
        }
    }

    fn local(&self, name: &str) -> PathBuf {
        self.folder.join(SHARDS).join(name)
    }
}

/// The names in a folder, which need not be there.
fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = || StorageError::io("list", folder);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed())?,
    };
    let name = |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    Ok(entries.map(name).collect::<std::io::Result<_>>().map_err(failed())?)
}

fn object(shard: &str) -> String {
    format!("{SHARDS}/{shard}")
}

/// Writes `owner` to the target, or finds it there.
fn hold(remote: &RemoteFolder, owner: &Owner) -> Result<()> {
    let written = serde_json::to_vec(owner).expect("an owner has a JSON form");
    for _ in 0..2 {
        if let Some(found) = remote.get(OWNER)? {
            if serde_json::from_slice(&found).is_ok_and(|found: Owner| found == *owner) {
                return Ok(());
            }
            let reason = "another run keeps its results here; choose another shards.target, or remove what is there";
            return Err(Error::Store { url: remote.url(OWNER), reason: reason.into(), wrong: true });
        }
        // Where somebody else was faster, the next look finds theirs.
        remote.put_new(OWNER, written.clone())?;
    }
    let reason = "was stored and is not there".into();
    Err(Error::Store { url: remote.url(OWNER), reason, wrong: false })
}

fn new_identity(folder: &Path, target: &str, fingerprint: &Fingerprint) -> ContentHash {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let run = format!("{target}\0{}\0{}\0{host}\0{}\0{now}", fingerprint.digest(), folder.display(), process::id());
    ContentHash::of(run.as_bytes())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StorageError::io("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}
