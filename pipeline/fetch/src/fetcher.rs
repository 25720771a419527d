//! The fetcher: attempts, hops, one exchange.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout, timeout_at};
use url::{Host, Url};

use crate::breaker::{Breaker, Layer};
use crate::config::ConfigError;
use crate::dns::{DnsCache, GuardedResolver, Lookup, ResolveError, SystemLookup};
use crate::hosts::{HeldTooLong, Hosts};
use crate::retry::{backoff, parse_retry_after};
use crate::{AllowList, ByteLimits, Failure, FailureClass, FetchConfig, Outage, body, robots};

/// What is asked for: the formats that are decoded before any other, so that a server that offers
/// AVIF to browsers sends something older.
const ACCEPTED: HeaderValue =
    HeaderValue::from_static("image/jpeg,image/png,image/webp,image/gif,image/*;q=0.5,*/*;q=0.1");
/// How long an idle connection is kept.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);

/// A URL's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The body, content codings undone; not empty.
    pub body: Bytes,
    /// Where it came from, after redirects.
    pub final_url: String,
    /// The Content-Type header as sent. What the bytes are is for the bytes to say.
    pub content_type: Option<String>,
    /// Tries it took, at least 1.
    pub attempts: u32,
}

/// Fetches URLs. Cheap to clone; all clones share limits, caches and connections.
#[derive(Debug, Clone)]
pub struct Fetcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: FetchConfig,
    product: String,
    clients: Clients,
    hosts: Hosts,
    breaker: Arc<Breaker>,
}

impl Fetcher {
    /// A fetcher that resolves names with the operating system. Opens no connection yet.
    ///
    /// # Errors
    /// If the configuration is refused.
    pub fn new(config: FetchConfig) -> Result<Self, ConfigError> {
        Self::with_lookup(config, Arc::new(SystemLookup))
    }

    /// A fetcher that resolves names with `lookup`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_lookup(config: FetchConfig, lookup: Arc<dyn Lookup>) -> Result<Self, ConfigError> {
        let product = config.validated_product()?;
        let breaker = Arc::new(Breaker::new(config.breaker));
        let dns = Arc::new(DnsCache::new(lookup, breaker.clone(), config.dns_ttl));
        let clients = Clients::new(&config, &dns)?;
        let hosts = Hosts::new(config.concurrency, config.per_host, config.retry.retry_after_cap);
        Ok(Self(Arc::new(Shared { config, product, clients, hosts, breaker })))
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
        let Shared { config, hosts, breaker, .. } = &*self.0;
        let mut attempt = 1;
        loop {
            breaker.check()?;
            let trouble = match self.0.attempt(url).await {
                Ok(Answer { body, url, content_type }) => {
                    return Ok(Ok(Fetched { body, final_url: url.into(), content_type, attempts: attempt }));
                }
                Err(trouble) => trouble,
            };
            // A failure that opened the breaker says nothing about its URL.
            breaker.check()?;
            let wait = backoff(&config.retry, url, attempt);
            if let Some(hold) = trouble.hold_host {
                hosts.hold(&trouble.host, hold.asked_for.unwrap_or(wait));
            }
            if !trouble.class.is_transient() || trouble.final_for_now || attempt == config.retry.attempts {
                return Ok(Err(trouble.into_failure(attempt)));
            }
            tracing::debug!(url, class = %trouble.class, attempt, ?wait, "will be tried again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }
}

/// A body and where it was found.
struct Answer {
    body: Bytes,
    url: Url,
    content_type: Option<String>,
}

/// What an exchange of one hop led to.
enum Hop {
    Redirected(Target),
    Answered(Answer),
}

impl Shared {
    /// Follows a URL through its redirects.
    async fn attempt(&self, url: &str) -> Result<Answer, Trouble> {
        let mut target = Target::parse(url, &self.config.allow)?;
        // Time spent on the network. Waiting for a turn is not the server's doing.
        let mut spent = Duration::ZERO;
        for _ in 0..=self.config.max_redirects {
            let turn = self.hosts.enter(&target.host).await.map_err(|HeldTooLong(remaining)| Trouble {
                final_for_now: true,
                ..target
                    .trouble(FailureClass::RateLimited, format!("the host asked for {} s more", remaining.as_secs()))
            })?;
            let left = self.config.timeouts.total.saturating_sub(spent);
            let began = Instant::now();
            let hop = timeout(left, self.exchange(&target)).await.unwrap_or_else(|_| {
                Err(target.trouble(FailureClass::TotalTimeout, format!("over {:?}", self.config.timeouts.total)))
            })?;
            spent += began.elapsed();
            drop(turn);
            match hop {
                Hop::Answered(answer) => return Ok(answer),
                Hop::Redirected(next) => target = next,
            }
        }
        Err(target.trouble(FailureClass::TooManyRedirects, format!("over {}", self.config.max_redirects)))
    }

    /// One request and its answer.
    async fn exchange(&self, target: &Target) -> Result<Hop, Trouble> {
        let request = self.clients.of_port(target.port).get(target.url.clone());
        let sent = timeout(self.config.timeouts.first_byte, request.send()).await;
        let response = match sent {
            Err(_) => {
                let detail = format!("no answer within {:?}", self.config.timeouts.first_byte);
                return Err(target.trouble(FailureClass::FirstByteTimeout, detail));
            }
            Ok(Err(error)) => {
                let class = class_of_send_error(&error);
                if matches!(class, FailureClass::Connect | FailureClass::ConnectTimeout) {
                    self.breaker.failed(Layer::Connection, &target.host);
                }
                return Err(target.trouble(class, root_cause(&error)));
            }
            Ok(Ok(response)) => response,
        };
        self.breaker.succeeded(Layer::Connection);
        // The resolver let no other address through; this holds even if it ever did.
        if let Some(address) = response.remote_addr().filter(|&address| !self.config.allow.permits(address)) {
            return Err(target.trouble(FailureClass::BlockedIp, format!("connected to {address}")));
        }
        let status = response.status();
        match status.as_u16() {
            200 | 203 => self.answer(target, response).await.map(Hop::Answered),
            301 | 302 | 303 | 307 | 308 => self.redirect(target, &response).map(Hop::Redirected),
            _ => Err(Trouble {
                status: Some(status),
                hold_host: Hold::asked_by(status, response.headers(), SystemTime::now()),
                ..target.trouble(class_of_status(status, response.headers()), status.to_string())
            }),
        }
        .map_err(|trouble| Trouble { status: Some(status), ..trouble })
    }

    fn redirect(&self, target: &Target, response: &Response) -> Result<Target, Trouble> {
        let bad = |detail: &str| target.trouble(FailureClass::BadRedirect, detail.to_owned());
        let location = response.headers().get(LOCATION).ok_or_else(|| bad("no Location"))?;
        let location = std::str::from_utf8(location.as_bytes()).map_err(|_| bad("Location is not UTF-8"))?;
        let url = target.url.join(location).map_err(|error| bad(&format!("Location {location:?}: {error}")))?;
        Target::new(url, &self.config.allow)
    }

    async fn answer(&self, target: &Target, response: Response) -> Result<Answer, Trouble> {
        let headers = response.headers().clone();
        if self.config.honour_opt_outs
            && let Some(directive) = robots::opt_out(&headers, &self.product)
        {
            return Err(target.trouble(FailureClass::OptedOut, format!("X-Robots-Tag: {directive}")));
        }
        let limits = &self.config.bytes;
        let coded = read_body(response, limits, self.config.timeouts.read)
            .await
            .map_err(|(class, detail)| target.trouble(class, detail))?;
        let body =
            body::decoded(coded, &headers, limits.max_body).map_err(|(class, detail)| target.trouble(class, detail))?;
        if body.is_empty() {
            return Err(target.trouble(FailureClass::EmptyBody, "no bytes".into()));
        }
        let content_type =
            headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Ok(Answer { body: body.into(), url: target.url.clone(), content_type })
    }
}

/// Reads a body as it was sent, under the limits of size, stall and speed.
async fn read_body(
    mut response: Response,
    limits: &ByteLimits,
    read: Duration,
) -> Result<Vec<u8>, (FailureClass, String)> {
    let too_large =
        |bytes: u64| (FailureClass::TooLarge, format!("{bytes} bytes or more, of at most {}", limits.max_body));
    let announced = response.content_length().unwrap_or(0);
    if announced > limits.max_body {
        return Err(too_large(announced));
    }
    // Memory follows what came, not what was announced.
    let mut body = Vec::new();
    let mut window = SpeedWindow::new(limits);
    loop {
        let chunk = match timeout_at((Instant::now() + read).min(window.end), response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| (class_of_body_error(&error), root_cause(&error)))?,
            Err(_) if Instant::now() >= window.end => {
                window.turn(0)?;
                continue;
            }
            Err(_) => return Err((FailureClass::ReadTimeout, format!("nothing for {read:?}"))),
        };
        let Some(chunk) = chunk else {
            return Ok(body);
        };
        window.turn(chunk.len() as u64)?;
        if (body.len() + chunk.len()) as u64 > limits.max_body {
            return Err(too_large((body.len() + chunk.len()) as u64));
        }
        body.extend_from_slice(&chunk);
    }
}

/// Judges the speed of a body over one stretch of time after another.
struct SpeedWindow {
    min_speed: u64,
    length: Duration,
    end: Instant,
    bytes: u64,
}

impl SpeedWindow {
    fn new(limits: &ByteLimits) -> Self {
        let length = limits.speed_window;
        Self { min_speed: limits.min_speed, length, end: Instant::now() + length, bytes: 0 }
    }

    /// Counts bytes; at the end of the window, judges it and begins the next.
    fn turn(&mut self, bytes: u64) -> Result<(), (FailureClass, String)> {
        self.bytes += bytes;
        if Instant::now() < self.end {
            return Ok(());
        }
        let speed = (self.bytes as f64 / self.length.as_secs_f64()) as u64;
        if speed < self.min_speed {
            return Err((FailureClass::TooSlow, format!("{speed} bytes a second, of at least {}", self.min_speed)));
        }
        self.end = Instant::now() + self.length;
        self.bytes = 0;
        Ok(())
    }
}

/// A URL that may be asked, as far as the URL itself tells.
#[derive(Debug, Clone)]
struct Target {
    url: Url,
    host: String,
    port: u16,
}

impl Target {
    fn parse(url: &str, allow: &AllowList) -> Result<Self, Trouble> {
        let parsed = Url::parse(url.trim())
            .map_err(|error| Trouble::new(FailureClass::InvalidUrl, url, String::new(), error.to_string()))?;
        Self::new(parsed, allow)
    }

    fn new(mut url: Url, allow: &AllowList) -> Result<Self, Trouble> {
        let refused = |class, detail: &str| Err(Trouble::new(class, url.as_str(), String::new(), detail.to_owned()));
        if !matches!(url.scheme(), "http" | "https") {
            return refused(FailureClass::BlockedScheme, url.scheme());
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return refused(FailureClass::InvalidUrl, "no host");
        };
        // The URL parser has turned every spelling of an IPv4 address into one: octal,
        // hexadecimal, a single number, fewer than four parts.
        let literal = match host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
        };
        if let Some(address) = literal.filter(|&address| !allow.permits_on(address, Some(port))) {
            return refused(FailureClass::BlockedIp, &format!("{address} is not public"));
        }
        let host = host.to_string();
        url.set_fragment(None);
        // Neither call fails on a URL that has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(Self { url, host, port })
    }

    fn trouble(&self, class: FailureClass, detail: String) -> Trouble {
        Trouble::new(class, self.url.as_str(), self.host.clone(), detail)
    }
}

/// A failed attempt.
#[derive(Debug)]
struct Trouble {
    class: FailureClass,
    status: Option<StatusCode>,
    url: String,
    host: String,
    detail: String,
    hold_host: Option<Hold>,
    /// Trying again soon would fail alike.
    final_for_now: bool,
}

impl Trouble {
    fn new(class: FailureClass, url: &str, host: String, detail: String) -> Self {
        Self { class, status: None, url: url.to_owned(), host, detail, hold_host: None, final_for_now: false }
    }

    fn into_failure(self, attempts: u32) -> Failure {
        let Self { class, status, url, detail, .. } = self;
        Failure { class, status: status.map(|status| status.as_u16()), url, detail, attempts }
    }
}

/// The host is not to be asked for a while: for as long as it said, or, if it did not, for the
/// back-off.
#[derive(Debug, Clone, Copy)]
struct Hold {
    asked_for: Option<Duration>,
}

impl Hold {
    fn asked_by(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Self> {
        let asked_for = headers.get(RETRY_AFTER).and_then(|value| parse_retry_after(value.as_bytes(), now));
        match status {
            StatusCode::TOO_MANY_REQUESTS => Some(Self { asked_for }),
            StatusCode::SERVICE_UNAVAILABLE if asked_for.is_some() => Some(Self { asked_for }),
            _ => None,
        }
    }
}

fn class_of_status(status: StatusCode, headers: &HeaderMap) -> FailureClass {
    match status.as_u16() {
        204 | 205 => FailureClass::EmptyBody,
        401 | 403 | 407 | 451 => FailureClass::Forbidden,
        404 => FailureClass::NotFound,
        410 => FailureClass::Gone,
        429 => FailureClass::RateLimited,
        400..=499 => FailureClass::ClientError,
        503 if headers.contains_key(RETRY_AFTER) => FailureClass::RateLimited,
        500..=599 => FailureClass::ServerError,
        _ => FailureClass::UnexpectedStatus,
    }
}

/// The class of an error between the request and the response's headers.
fn class_of_send_error(error: &reqwest::Error) -> FailureClass {
    if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref::<ResolveError>()) {
        return match error {
            ResolveError::NotFound(_) => FailureClass::Dns,
            ResolveError::Unavailable(_) => FailureClass::DnsUnavailable,
            ResolveError::Blocked(_) => FailureClass::BlockedIp,
        };
    }
    if causes(error).any(|cause| cause.is::<rustls::Error>()) {
        FailureClass::Tls
    } else if error.is_connect() && error.is_timeout() {
        FailureClass::ConnectTimeout
    } else if error.is_connect() {
        FailureClass::Connect
    } else if causes(error).any(is_cut_off) {
        FailureClass::Truncated
    } else if error.is_builder() {
        FailureClass::InvalidUrl
    } else {
        FailureClass::Protocol
    }
}

/// The class of an error while the body was read.
fn class_of_body_error(error: &reqwest::Error) -> FailureClass {
    if causes(error).any(is_cut_off) { FailureClass::Truncated } else { FailureClass::Protocol }
}

/// Whether the connection ended before the message did.
fn is_cut_off(cause: &(dyn Error + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe))
        || cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message)
}

/// An error and what caused it, down to the first cause. `io::Error` names as its source not what
/// it wraps but the source of that.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>().map(io::Error::get_ref) {
        Some(Some(wrapped)) => Some(wrapped),
        _ => error.source(),
    })
}

fn root_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
}

/// The HTTP clients: one for each port that the allow list names, whose resolver admits what is
/// allowed on that port, and one for all other ports. A resolver is told a name but no port, and
/// so cannot be shared.
#[derive(Debug)]
struct Clients {
    of_port: BTreeMap<u16, Client>,
    of_others: Client,
}

impl Clients {
    fn new(config: &FetchConfig, dns: &Arc<DnsCache>) -> Result<Self, ConfigError> {
        let allow = Arc::new(config.allow.clone());
        let tls = tls(config)?;
        let client = |port: Option<u16>| {
            let resolver = GuardedResolver { cache: dns.clone(), allow: allow.clone(), port };
            client(config, tls.clone(), resolver).map_err(|error| ConfigError::Client(root_cause(&error)))
        };
        Ok(Self {
            of_port: config.allow.ports().map(|port| Ok((port, client(Some(port))?))).collect::<Result<_, _>>()?,
            of_others: client(None)?,
        })
    }

    fn of_port(&self, port: u16) -> &Client {
        self.of_port.get(&port).unwrap_or(&self.of_others)
    }
}

fn client(config: &FetchConfig, tls: rustls::ClientConfig, resolver: GuardedResolver) -> reqwest::Result<Client> {
    let headers = [(ACCEPT, ACCEPTED), (ACCEPT_ENCODING, HeaderValue::from_static("identity"))];
    Client::builder()
        .user_agent(&config.user_agent)
        .default_headers(HeaderMap::from_iter(headers))
        .tls_backend_preconfigured(tls)
        .dns_resolver(resolver)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .http1_only()
        .connect_timeout(config.timeouts.connect)
        .pool_max_idle_per_host(config.per_host)
        .pool_idle_timeout(IDLE_CONNECTION)
        .build()
}

/// TLS by the platform's trusted authorities, without touching the process-wide provider.
fn tls(config: &FetchConfig) -> Result<rustls::ClientConfig, ConfigError> {
    let refused = |error: rustls::Error| ConfigError::Client(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = config.extra_roots.iter().map(|root| CertificateDer::from(root.clone()));
    let verifier =
        rustls_platform_verifier::Verifier::new_with_extra_roots(roots, provider.clone()).map_err(refused)?;
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}
