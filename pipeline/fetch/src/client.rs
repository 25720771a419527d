//! The HTTP clients: hyper's, with what this crate promises built in.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, HeaderValue, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;
use tower_service::Service;
use url::Url;

use crate::dns::{DnsCache, GuardedResolver};
use crate::{ConfigError, FetchConfig};

/// What is asked for: the formats that are decoded before any other, so that a server that offers
/// AVIF to browsers sends something older.
const ACCEPTED: HeaderValue =
    HeaderValue::from_static("image/jpeg,image/png,image/webp,image/gif,image/*;q=0.5,*/*;q=0.1");
/// How long an idle connection is kept.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);
/// Buffer of a connection: what is read of a body past its cap is at most twice this.
const READ_BUFFER: usize = 32 << 10;

type BoxError = Box<dyn Error + Send + Sync>;
type Connector = Timed<HttpsConnector<HttpConnector<GuardedResolver>>>;

/// The HTTP clients: one for each port that the allow list names, whose resolver admits what is
/// allowed on that port, and one for all other ports. A resolver is told a name but no port, and
/// so cannot be shared.
///
/// They speak HTTP/1.1, follow no redirect, know no proxy, cookie or referrer, and undo no content
/// coding: [`body`](crate::body) does, under the cap.
#[derive(Debug)]
pub(crate) struct Clients {
    user_agent: HeaderValue,
    of_port: BTreeMap<u16, Client<Connector, Empty<Bytes>>>,
    of_others: Client<Connector, Empty<Bytes>>,
}

/// Why a request brought no response.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The URL cannot stand in a request.
    Url(String),
    /// Anything between the name and the response's headers.
    Exchange(hyper_util::client::legacy::Error),
}

/// The connection was not made within the limit.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
pub(crate) struct ConnectTimedOut(Duration);

impl Clients {
    pub(crate) fn new(config: &FetchConfig, dns: &Arc<DnsCache>) -> Result<Self, ConfigError> {
        let allow = Arc::new(config.allow.clone());
        let tls = Arc::new(tls_config(&config.extra_roots)?);
        let client = |port: Option<u16>| {
            let resolver = GuardedResolver { cache: dns.clone(), allow: allow.clone(), port };
            client(config, tls.clone(), resolver)
        };
        Ok(Self {
            user_agent: HeaderValue::from_str(&config.user_agent)
                .map_err(|_| ConfigError::UserAgent(config.user_agent.clone()))?,
            of_port: config.allow.ports().map(|port| (port, client(Some(port)))).collect(),
            of_others: client(None),
        })
    }

    /// Asks for a URL, whose port is `port`.
    pub(crate) async fn get(&self, url: &Url, port: u16) -> Result<Response<Incoming>, SendError> {
        let uri: Uri = url.as_str().parse().map_err(|error| SendError::Url(format!("{error}")))?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, self.user_agent.clone());
        headers.insert(ACCEPT, ACCEPTED);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let client = self.of_port.get(&port).unwrap_or(&self.of_others);
        client.request(request).await.map_err(SendError::Exchange)
    }
}

fn client(
    config: &FetchConfig,
    tls: Arc<rustls::ClientConfig>,
    resolver: GuardedResolver,
) -> Client<Connector, Empty<Bytes>> {
    let limit = config.timeouts.connect;
    let mut http = HttpConnector::new_with_resolver(resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    // Shared by the addresses of a name, so that a dead one leaves time for the next.
    http.set_connect_timeout(Some(limit));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_CONNECTION)
        .pool_max_idle_per_host(config.per_host)
        .http1_max_buf_size(READ_BUFFER)
        .build(Timed { inner: HttpsConnector::from((http, tls)), limit })
}

/// TLS by the platform's trusted authorities and `extra_roots` (DER), without touching the process-wide provider.
///
/// # Errors
/// [`ConfigError::Client`] where no verifier can be made of them.
pub fn tls_config(extra_roots: &[Vec<u8>]) -> Result<rustls::ClientConfig, ConfigError> {
    let refused = |error: rustls::Error| ConfigError::Client(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = extra_roots.iter().map(|root| CertificateDer::from(root.clone()));
    let verifier =
        rustls_platform_verifier::Verifier::new_with_extra_roots(roots, provider.clone()).map_err(refused)?;
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// A connector with one limit on name resolution, TCP and TLS together.
#[derive(Debug, Clone)]
struct Timed<C> {
    inner: C,
    limit: Duration,
}

impl<C> Service<Uri> for Timed<C>
where
    C: Service<Uri>,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (limit, connecting) = (self.limit, self.inner.call(uri));
        Box::pin(async move {
            match timeout(limit, connecting).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(ConnectTimedOut(limit).into()),
            }
        })
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(reason) => f.write_str(reason),
            Self::Exchange(error) => error.fmt(f),
        }
    }
}

impl Error for SendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Url(_) => None,
            Self::Exchange(error) => Some(error),
        }
    }
}
