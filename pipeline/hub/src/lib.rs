//! A model by its name on the Hugging Face Hub: `hf:OWNER/NAME[@REVISION][:fp16]`.
//!
//! What a diffusers pipeline of SDXL's parts needs is fetched into the cache that Python's libraries use, in their
//! layout, so that either side finds what the other has fetched. What is there already is never asked for again, and a
//! download that was cut goes on where it was.
//!
//! ```text
//! HF_HUB_CACHE/models--OWNER--NAME/  refs/REVISION            the commit that a branch or tag stood for
//!                                    snapshots/COMMIT/PATH    links to
//!                                    blobs/ETAG               the contents; ETAG.incomplete while they come
//! ```
//!
//! The environment is that of Python's libraries: `HF_ENDPOINT`, `HF_TOKEN` (or the file that `huggingface-cli login`
//! writes), `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`.
#![forbid(unsafe_code)]

mod cache;
mod client;
mod error;
mod files;
mod name;

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use url::Url;

pub use error::{Error, Result};
pub use name::{ModelName, PREFIX};

use cache::Repository;
use client::Client;

/// Where models come from and where they are kept.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The hub's address.
    pub endpoint: Url,
    /// Shown to the hub alone, never to the servers that it sends on to.
    pub token: Option<String>,
    /// The cache's folder.
    pub cache: PathBuf,
    /// Whether the network is left alone.
    pub offline: bool,
    /// How servers are waited for.
    pub patience: Patience,
}

/// How long a server is waited for, and how often it is tried.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the next bytes of an answer.
    pub read: Duration,
    /// Tries in a row that bring nothing new.
    pub attempts: u32,
    /// Before the second try; doubled for each further one.
    pub wait: Duration,
}

impl Patience {
    /// For the public hub.
    pub const STANDARD: Patience = Patience {
        connect: Duration::from_secs(10),
        read: Duration::from_secs(30),
        attempts: 6,
        wait: Duration::from_secs(1),
    };
}

impl Hub {
    /// As the environment says.
    ///
    /// # Errors
    /// [`Error::Environment`] where `HF_ENDPOINT` is no address, or no variable says where the cache is.
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || match set("HF_HOME") {
            Some(home) => Ok(PathBuf::from(home)),
            None => match (set("XDG_CACHE_HOME"), set("HOME")) {
                (Some(cache), _) => Ok(Path::new(&cache).join("huggingface")),
                (None, Some(home)) => Ok(Path::new(&home).join(".cache/huggingface")),
                (None, None) => Err(Error::Environment { variable: "HOME", reason: "is not set".into() }),
            },
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let token = match (set("HF_TOKEN"), set("HF_TOKEN_PATH")) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => std::fs::read_to_string(path).ok(),
            (None, None) => std::fs::read_to_string(home()?.join("token")).ok(),
        };
        Ok(Self {
            endpoint: Url::parse(&endpoint)
                .ok()
                .filter(|url| url.has_host() && ["http", "https"].contains(&url.scheme()))
                .ok_or(Error::Environment { variable: "HF_ENDPOINT", reason: format!("{endpoint} is no address") })?,
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            cache: match set("HF_HUB_CACHE") {
                Some(cache) => cache.into(),
                None => home()?.join("hub"),
            },
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| !["0", "false", "no"].contains(&value.as_str())),
            patience: Patience::STANDARD,
        })
    }

    /// The folder of a model in diffusers' layout. What the cache lacks is fetched first; `progress` counts its bytes.
    ///
    /// # Errors
    /// Every variant of [`Error`] but [`Error::Name`]; the cache then holds whole files and beginnings of files only.
    pub fn model(&self, name: &ModelName, progress: &ProgressBar) -> Result<PathBuf> {
        let repository = Repository::new(&self.cache, name);
        let lacks = match repository.snapshot_of(name.revision())? {
            Some(snapshot) => match files::missing(&snapshot, name.variant())? {
                None => return Ok(snapshot),
                Some(file) => format!("{file} is missing in {}", snapshot.display()),
            },
            None => format!("there is nothing of it in {}", self.cache.display()),
        };
        if self.offline {
            return Err(Error::Offline { model: name.to_string(), lacks });
        }
        tracing::info!("{name}: {lacks}; asking {}", self.endpoint);
        let _lock = repository.lock()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| Error::Io { action: "start", path: "a runtime".into(), source })?;
        runtime.block_on(self.fetch(name, &repository, progress))
    }

    async fn fetch(&self, name: &ModelName, repository: &Repository, progress: &ProgressBar) -> Result<PathBuf> {
        let client = Client::new(self)?;
        let listing = client.list(name).await?;
        let snapshot = repository.snapshot(&listing.commit);
        let wanted = files::wanted(name, &listing.files)?;
        for file in &wanted.small {
            client.bring(name, &listing.commit, file, repository, progress).await?;
        }
        for weights in &wanted.weights {
            // An index comes before the files that it names.
            client.bring(name, &listing.commit, weights, repository, progress).await?;
            for shard in files::shards_of(&snapshot, weights)? {
                client.bring(name, &listing.commit, &shard, repository, progress).await?;
            }
        }
        repository.remember(name.revision(), &listing.commit)?;
        match files::missing(&snapshot, name.variant())? {
            None => Ok(snapshot),
            Some(file) => Err(Error::Layout { model: name.to_string(), lacks: file }),
        }
    }
}
