//! The fetcher.

use bytes::Bytes;

use crate::{ConfigError, Failure, FetchConfig, Outage};

/// A URL's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The body, decompressed; not empty.
    pub body: Bytes,
    /// Where it came from after redirects.
    pub final_url: String,
    /// The Content-Type header as sent. What the bytes are is decided by the bytes.
    pub content_type: Option<String>,
    /// Tries it took.
    pub attempts: u32,
}

/// Fetches URLs; cheap to clone, all clones share limits, caches and connections.
#[derive(Debug, Clone)]
pub struct Fetcher {
    config: FetchConfig,
}

impl Fetcher {
    /// A fetcher; opens no connection yet.
    ///
    /// # Errors
    /// If the configuration is refused.
    pub fn new(config: FetchConfig) -> Result<Self, ConfigError> {
        Ok(Self { config })
    }

    /// Fetches one URL, waiting for its turn. Call it as often as you like at once: the limits
    /// of the configuration hold over all calls.
    ///
    /// The inner result is the URL's terminal outcome.
    ///
    /// # Errors
    /// [`Outage`] if the network is down; the URL then has no outcome and is to be fetched again
    /// in another run. From then on every call returns the same.
    pub async fn get(&self, url: &str) -> Result<Result<Fetched, Failure>, Outage> {
        unimplemented!("{url} {:?}", self.config)
    }
}
