//! Names to addresses that may be reached.
//!
//! The check is made where the connection takes its address from: what the HTTP client gets to
//! see of a name is only what the [`AllowList`] permits, so there is no moment between check and
//! use in which a name could be bound anew.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tower_service::Service;

use crate::AllowList;
use crate::breaker::{Breaker, Layer};

/// Names that are remembered at most.
const MAX_CACHED: usize = 100_000;
/// How long it is believed at most that a name does not exist.
const NEGATIVE_TTL: Duration = Duration::from_secs(30);

/// A source of addresses.
pub trait Lookup: Send + Sync + fmt::Debug {
    /// All addresses of a name.
    ///
    /// An error of kind [`io::ErrorKind::NotFound`] says that the name does not exist; any other,
    /// that this is not known.
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The operating system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            match tokio::net::lookup_host((host, 0)).await {
                Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect()),
                // getaddrinfo's EAI_AGAIN, of which std keeps only the text (glibc's or musl's).
                Err(error) if ["Temporary failure", "Try again"].iter().any(|t| error.to_string().contains(t)) => {
                    Err(error)
                }
                Err(error) => Err(io::Error::new(io::ErrorKind::NotFound, error)),
            }
        })
    }
}

/// Why a name gave no address that may be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("resolves to {0}, which is not public")]
    Blocked(IpAddr),
}

/// Looks names up once for all that ask at the same time, and remembers the answers.
#[derive(Debug)]
pub(crate) struct DnsCache {
    lookup: Arc<dyn Lookup>,
    breaker: Arc<Breaker>,
    ttl: Duration,
    entries: Mutex<HashMap<String, Entry>>,
}

type Answer = Result<Arc<[IpAddr]>, ResolveError>;

#[derive(Debug, Clone)]
struct Entry {
    since: Instant,
    answer: Arc<OnceCell<Answer>>,
}

impl DnsCache {
    pub(crate) fn new(lookup: Arc<dyn Lookup>, breaker: Arc<Breaker>, ttl: Duration) -> Self {
        Self { lookup, breaker, ttl, entries: Mutex::default() }
    }

    async fn resolve(&self, host: &str) -> Answer {
        let answer = self.entry(host);
        answer.get_or_init(|| self.look_up(host)).await.clone()
    }

    /// The entry of a name, made anew if it is outdated.
    fn entry(&self, host: &str) -> Arc<OnceCell<Answer>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(host).filter(|entry| self.is_current(entry)) {
            return entry.answer.clone();
        }
        if entries.len() >= MAX_CACHED {
            entries.retain(|_, entry| self.is_current(entry));
        }
        if entries.len() >= MAX_CACHED {
            entries.clear();
        }
        let entry = Entry { since: Instant::now(), answer: Arc::default() };
        entries.insert(host.to_owned(), entry.clone());
        entry.answer
    }

    fn is_current(&self, entry: &Entry) -> bool {
        let ttl = match entry.answer.get() {
            None | Some(Ok(_)) => self.ttl,
            Some(Err(ResolveError::NotFound(_))) => self.ttl.min(NEGATIVE_TTL),
            Some(Err(_)) => return false,
        };
        entry.since.elapsed() < ttl
    }

    /// Goes on where nobody waits any more: a resolver may take longer to give up than a connection may take, and
    /// that it gave up is to be counted all the same.
    async fn look_up(&self, host: &str) -> Answer {
        let (lookup, breaker, host) = (self.lookup.clone(), self.breaker.clone(), host.to_owned());
        let looked_up = tokio::spawn(async move {
            let answer = ask(&*lookup, &host).await;
            match &answer {
                // That a name does not exist is an answer, too.
                Ok(_) | Err(ResolveError::NotFound(_)) => breaker.succeeded(Layer::Resolution),
                Err(_) => breaker.failed(Layer::Resolution, &host),
            }
            answer
        });
        looked_up.await.unwrap_or_else(|error| Err(ResolveError::Unavailable(error.to_string())))
    }
}

async fn ask(lookup: &dyn Lookup, host: &str) -> Answer {
    match lookup.lookup(host.to_owned()).await {
        Ok(addresses) if addresses.is_empty() => Err(ResolveError::NotFound("the name has no address".into())),
        Ok(addresses) => Ok(addresses.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ResolveError::NotFound(error.to_string())),
        Err(error) => Err(ResolveError::Unavailable(error.to_string())),
    }
}

/// What the HTTP client resolves names with: permitted addresses only.
#[derive(Debug, Clone)]
pub(crate) struct GuardedResolver {
    pub(crate) cache: Arc<DnsCache>,
    pub(crate) allow: Arc<AllowList>,
    /// The one port that this resolver's client connects to, or `None` for a client of ports
    /// that the allow list does not name.
    pub(crate) port: Option<u16>,
}

impl GuardedResolver {
    async fn permitted(&self, host: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        let addresses = self.cache.resolve(host).await?;
        let permitted: Vec<_> = addresses
            .iter()
            .filter(|&&address| self.allow.permits_on(address, self.port))
            // The client puts the URL's port in place of 0.
            .map(|&address| SocketAddr::new(address, 0))
            .collect();
        match addresses.first() {
            Some(&first) if permitted.is_empty() => Err(ResolveError::Blocked(first)),
            _ => Ok(permitted),
        }
    }
}

impl Service<Name> for GuardedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = BoxFuture<'static, Result<Self::Response, ResolveError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move { Ok(resolver.permitted(name.as_str()).await?.into_iter()) })
    }
}
