//! The fetcher: attempts, hops, one exchange.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};
use hyper_util::client::legacy::connect::HttpInfo;
use tokio::time::{Instant, timeout, timeout_at};
use url::{Host, Url};

use crate::breaker::{Breaker, Layer};
use crate::budget::{Budget, Reserved};
use crate::client::{Clients, ConnectTimedOut, SendError};
use crate::config::ConfigError;
use crate::dns::{DnsCache, Lookup, ResolveError, SystemLookup};
use crate::hosts::{HeldTooLong, Hosts, Turn};
use crate::retry::{backoff, parse_retry_after};
use crate::witness::Witnesses;
use crate::{AllowList, ByteLimits, Failure, FailureClass, FetchConfig, Outage, body, robots};

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
    budget: Budget,
    breaker: Arc<Breaker>,
    witnesses: Witnesses,
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
        let budget = Budget::new(config.bytes.max_in_flight);
        Ok(Self(Arc::new(Shared { config, product, clients, hosts, budget, breaker, witnesses: Witnesses::default() })))
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
            if matches!(trouble.class, FailureClass::ConnectTimeout | FailureClass::FirstByteTimeout) {
                self.0.heard_nothing(&trouble.host).await;
            }
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

    /// Begins no request from now on, for any clone. A call that waits for its turn waits for ever and is to be
    /// dropped; one whose request is on its way goes on.
    ///
    /// Dropping the calls alone would not do: the turn of each that is dropped goes to one that still waits.
    pub fn close(&self) {
        self.0.hosts.close();
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
    /// With a body to be read.
    Answered(Response<Incoming>),
}

impl Shared {
    /// Follows a URL through its redirects.
    async fn attempt(&self, url: &str) -> Result<Answer, Trouble> {
        let mut target = Target::parse(url, &self.config.allow)?;
        // Time spent on the network. Waiting for a turn or for memory is not the server's doing.
        let mut spent = Duration::ZERO;
        for _ in 0..=self.config.max_redirects {
            let turn = self.hosts.enter(&target.host).await.map_err(|HeldTooLong(remaining)| Trouble {
                final_for_now: true,
                ..target
                    .trouble(FailureClass::RateLimited, format!("the host asked for {} s more", remaining.as_secs()))
            })?;
            let total = self.config.timeouts.total;
            let too_long = || target.trouble(FailureClass::TotalTimeout, format!("over {total:?}"));
            let began = Instant::now();
            // In boxes of their own, so that those who wait for a turn, many more than have one, take little memory.
            let exchange = Box::pin(self.exchange(&target));
            let hop = timeout(total.saturating_sub(spent), exchange).await.map_err(|_| too_long())??;
            spent += began.elapsed();
            match hop {
                Hop::Answered(response) => {
                    let reserved = self.budget.reserve(self.most_bytes_of(&response)).await;
                    let answer = Box::pin(self.answer(&target, response, reserved, turn));
                    return timeout(total.saturating_sub(spent), answer).await.map_err(|_| too_long())?;
                }
                Hop::Redirected(next) => {
                    drop(turn);
                    target = next;
                }
            }
        }
        Err(target.trouble(FailureClass::TooManyRedirects, format!("over {}", self.config.max_redirects)))
    }

    /// One request and its answer.
    async fn exchange(&self, target: &Target) -> Result<Hop, Trouble> {
        let sent = timeout(self.config.timeouts.first_byte, self.clients.get(&target.url, target.port)).await;
        let response = match sent {
            Err(_) => {
                let detail = format!("no answer within {:?}", self.config.timeouts.first_byte);
                return Err(target.trouble(FailureClass::FirstByteTimeout, detail));
            }
            Ok(Err(error)) => {
                match sign_of(&error) {
                    Some(Sign::Down) => self.breaker.failed(Layer::Connection, &target.host),
                    Some(Sign::Up) => self.heard_something(),
                    None => {}
                }
                return Err(target.trouble(class_of_send_error(&error), root_cause(&error)));
            }
            Ok(Ok(response)) => response,
        };
        self.heard_something();
        // The resolver let no other address through; this holds even if it ever did.
        let connected = response.extensions().get::<HttpInfo>().map(HttpInfo::remote_addr);
        if let Some(address) = connected.filter(|&address| !self.config.allow.permits(address)) {
            return Err(target.trouble(FailureClass::BlockedIp, format!("connected to {address}")));
        }
        if let Some(address) = connected {
            self.witnesses.note(address);
        }
        let status = response.status();
        match status.as_u16() {
            200 | 203 => self.admit(target, &response).map(|()| Hop::Answered(response)),
            301 | 302 | 303 | 307 | 308 => self.redirect(target, &response).map(Hop::Redirected),
            _ => Err(Trouble {
                status: Some(status),
                hold_host: Hold::asked_by(status, response.headers(), SystemTime::now()),
                ..target.trouble(class_of_status(status, response.headers()), status.to_string())
            }),
        }
        .map_err(|trouble| Trouble { status: Some(status), ..trouble })
    }

    fn heard_something(&self) {
        self.breaker.succeeded(Layer::Connection);
        self.breaker.succeeded(Layer::Answer);
    }

    /// A host that is silent may be gone. Where many are, one after another, those that answered before are asked.
    async fn heard_nothing(&self, host: &str) {
        if self.breaker.suspect(Layer::Answer, host).is_none() {
            return;
        }
        let _turn = self.witnesses.turn().await;
        // Whose turn it was before may have settled it.
        if self.breaker.check().is_err() || self.breaker.suspicion(Layer::Answer).is_none() {
            return;
        }
        match self.witnesses.ask(self.config.timeouts.connect).await {
            // Unless somebody answered in the meantime.
            Some(false) => {
                self.breaker.suspicion(Layer::Answer).into_iter().for_each(|outage| self.breaker.open(outage))
            }
            Some(true) => self.breaker.succeeded(Layer::Answer),
            // Rows that are asked for again because their hosts were silent are expected to find them so.
            None => {}
        }
    }

    fn redirect(&self, target: &Target, response: &Response<Incoming>) -> Result<Target, Trouble> {
        let bad = |detail: &str| target.trouble(FailureClass::BadRedirect, detail.to_owned());
        let location = response.headers().get(LOCATION).ok_or_else(|| bad("no Location"))?;
        let location = std::str::from_utf8(location.as_bytes()).map_err(|_| bad("Location is not UTF-8"))?;
        let url = target.url.join(location).map_err(|error| bad(&format!("Location {location:?}: {error}")))?;
        Target::new(url, &self.config.allow)
    }

    /// Whether the body of a response is wanted, as far as its headers tell.
    fn admit(&self, target: &Target, response: &Response<Incoming>) -> Result<(), Trouble> {
        if self.config.honour_opt_outs
            && let Some(directive) = robots::opt_out(response.headers(), &self.product)
        {
            return Err(target.trouble(FailureClass::OptedOut, format!("X-Robots-Tag: {directive}")));
        }
        match response.body().size_hint().exact() {
            Some(announced) if announced > self.config.bytes.max_body => {
                let (class, detail) = too_large(announced, &self.config.bytes);
                Err(target.trouble(class, detail))
            }
            _ => Ok(()),
        }
    }

    /// The most bytes that a body can take, as sent and, if it is coded, once that is undone.
    fn most_bytes_of(&self, response: &Response<Incoming>) -> u64 {
        let most = self.config.bytes.max_body;
        let sent = response.body().size_hint().exact().unwrap_or(most);
        if response.headers().contains_key(CONTENT_ENCODING) { sent + most } else { sent }
    }

    async fn answer(
        &self,
        target: &Target,
        response: Response<Incoming>,
        reserved: Reserved,
        turn: Turn,
    ) -> Result<Answer, Trouble> {
        let (head, body) = response.into_parts();
        let headers = head.headers;
        let limits = &self.config.bytes;
        let failed = |(class, detail)| target.trouble(class, detail);
        let coded = read_body(body, limits, self.config.timeouts.read).await.map_err(failed)?;
        let body = body::decoded(coded, &headers, limits.max_body).map_err(failed)?;
        if body.is_empty() {
            return Err(target.trouble(FailureClass::EmptyBody, "no bytes".into()));
        }
        let content_type =
            headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Ok(Answer { body: reserved.keep(body, turn.leave_host()), url: target.url.clone(), content_type })
    }
}

/// Reads a body as it was sent, under the limits of size, stall and speed.
async fn read_body(
    mut incoming: Incoming,
    limits: &ByteLimits,
    read: Duration,
) -> Result<Vec<u8>, (FailureClass, String)> {
    // Memory follows what came; what was announced is reserved, and is no reason to touch it.
    let mut body = Vec::with_capacity(incoming.size_hint().exact().unwrap_or(0).min(limits.max_body) as usize);
    let mut window = SpeedWindow::new(limits);
    loop {
        let frame = match timeout_at((Instant::now() + read).min(window.end), incoming.frame()).await {
            Ok(frame) => frame.transpose().map_err(|error| (class_of_body_error(&error), root_cause(&error)))?,
            Err(_) if Instant::now() >= window.end => {
                window.turn(0)?;
                continue;
            }
            Err(_) => return Err((FailureClass::ReadTimeout, format!("nothing for {read:?}"))),
        };
        let Some(frame) = frame else {
            return Ok(body);
        };
        // Trailers say nothing about an image.
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        window.turn(chunk.len() as u64)?;
        if (body.len() + chunk.len()) as u64 > limits.max_body {
            return Err(too_large((body.len() + chunk.len()) as u64, limits));
        }
        body.extend_from_slice(&chunk);
    }
}

fn too_large(bytes: u64, limits: &ByteLimits) -> (FailureClass, String) {
    (FailureClass::TooLarge, format!("{bytes} bytes or more, of at most {}", limits.max_body))
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

/// The host of a URL, as requests are counted for it: `EXAMPLE.org.` is `example.org`, and `0x7f.1` is `127.0.0.1`.
/// None for what is no URL with a host.
#[must_use]
pub fn host_of(url: &str) -> Option<String> {
    Url::parse(url.trim()).ok().as_ref().and_then(host_name)
}

fn host_name(url: &Url) -> Option<String> {
    Some(url.host()?.to_string().trim_end_matches('.').to_owned())
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
        let (Some(name), Some(host), Some(port)) = (host_name(&url), url.host(), url.port_or_known_default()) else {
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
        url.set_fragment(None);
        // Neither call fails on a URL that has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(Self { url, host: name, port })
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
        // The server did not wait for the request; the next may be faster.
        408 => FailureClass::ServerError,
        429 => FailureClass::RateLimited,
        400..=499 => FailureClass::ClientError,
        503 if headers.contains_key(RETRY_AFTER) => FailureClass::RateLimited,
        500..=599 => FailureClass::ServerError,
        _ => FailureClass::UnexpectedStatus,
    }
}

/// The class of an error between the request and the response's headers.
fn class_of_send_error(error: &SendError) -> FailureClass {
    let error = match error {
        SendError::Url(_) => return FailureClass::InvalidUrl,
        SendError::Exchange(error) => error,
    };
    if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref::<ResolveError>()) {
        return match error {
            ResolveError::NotFound(_) => FailureClass::Dns,
            ResolveError::Unavailable(_) => FailureClass::DnsUnavailable,
            ResolveError::Blocked(_) => FailureClass::BlockedIp,
        };
    }
    if causes(error).any(|cause| cause.is::<rustls::Error>()) {
        FailureClass::Tls
    } else if error.is_connect() && causes(error).any(is_timeout) {
        FailureClass::ConnectTimeout
    } else if error.is_connect() {
        FailureClass::Connect
    } else if causes(error).any(is_cut_off) {
        FailureClass::Truncated
    } else {
        FailureClass::Protocol
    }
}

/// What a failed request tells of the network on our side.
enum Sign {
    Up,
    Down,
}

/// A refusal came over the network, and a network that cannot be reached is ours. What silence tells, [`Witnesses`] say.
fn sign_of(error: &SendError) -> Option<Sign> {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, ConnectionReset, NetworkDown, NetworkUnreachable};
    let kind = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>().filter(|e| e.raw_os_error().is_some()));
    match kind?.kind() {
        NetworkUnreachable | NetworkDown | AddrNotAvailable => Some(Sign::Down),
        ConnectionRefused | ConnectionReset => Some(Sign::Up),
        _ => None,
    }
}

fn is_timeout(cause: &(dyn Error + 'static)) -> bool {
    cause.is::<ConnectTimedOut>()
        || cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// The class of an error while the body was read.
fn class_of_body_error(error: &hyper::Error) -> FailureClass {
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
