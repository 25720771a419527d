//! The knobs.

use std::time::Duration;

use crate::AllowList;

/// All that steers a [`Fetcher`](crate::Fetcher).
#[derive(Debug, Clone, PartialEq)]
pub struct FetchConfig {
    /// Who asks: a product token with a version and a contact, such as
    /// `stepdown-curate/0.1 (+https://example.org/contact)`. The product token is also the name
    /// under which `X-Robots-Tag` may address us.
    pub user_agent: String,
    /// Non-public addresses that may be reached nevertheless.
    pub allow: AllowList,
    /// Limits on time.
    pub timeouts: Timeouts,
    /// Limits on bytes.
    pub bytes: ByteLimits,
    /// Most redirects of one request.
    pub max_redirects: u32,
    /// Requests in flight, over all hosts: from the request until it failed or its body is dropped. What waits for its
    /// host's turn is not among them.
    pub concurrency: usize,
    /// Requests in flight to one host.
    pub per_host: usize,
    /// When a failed request is tried again.
    pub retry: RetryPolicy,
    /// How long a resolved name is believed.
    pub dns_ttl: Duration,
    /// When the network counts as down.
    pub breaker: BreakerPolicy,
    /// Whether `X-Robots-Tag: noai, noimageai, noindex, noimageindex` rejects an image.
    pub honour_opt_outs: bool,
    /// Certificates, in DER, of authorities that are trusted beside the platform's.
    pub extra_roots: Vec<Vec<u8>>,
}

/// Limits on time. Each runs anew for each attempt, `total` included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For name resolution, TCP and TLS of one hop together.
    pub connect: Duration,
    /// From the request to the response headers of one hop, connecting included.
    pub first_byte: Duration,
    /// Between two reads of the body.
    pub read: Duration,
    /// For one attempt, redirects and body included. A trickling body cannot extend it.
    pub total: Duration,
}

/// Limits on bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteLimits {
    /// Most bytes of a body, as sent and again once content codings are undone. No more than that
    /// is kept, and a transfer is dropped at the first read past it, 64 KiB past it at most.
    pub max_body: u64,
    /// Most bytes of bodies held at once, from the first byte until the body is dropped; at least
    /// twice `max_body`. A body reserves what it was announced with, or `max_body` if it was not,
    /// and a coded one `max_body` more.
    pub max_in_flight: u64,
    /// Slowest body, in bytes a second, judged over `speed_window`; 0 for none.
    pub min_speed: u64,
    /// Over which time the speed is judged.
    pub speed_window: Duration,
}

/// When a failed request is tried again: exponential back-off with seeded jitter, for the classes
/// that may pass ([`FailureClass::is_transient`](crate::FailureClass::is_transient)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, at least 1.
    pub attempts: u32,
    /// Wait before the second try; doubles with each further one.
    pub base: Duration,
    /// Longest such wait.
    pub cap: Duration,
    /// Longest Retry-After that is waited for. Under a longer one the host's URLs end as
    /// `rate_limited` without a request until its time is over.
    pub retry_after_cap: Duration,
    /// Seed of the jitter, so that a run's waits can be repeated.
    pub seed: u64,
}

/// When the network counts as down: `failures` name resolutions or connections in a row failed on our side of it, over
/// at least `hosts` hosts, and nothing came back from beyond. A name server that does not answer is such a failure, and
/// so is a network without a way out; a name that does not exist and a host that refuses are not. Silent hosts are if
/// so many requests in a row got no answer and none of the servers that answered last can be reached any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row; 0 turns the breaker off.
    pub failures: u32,
    /// Different hosts among them.
    pub hosts: u32,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The user agent has no product token or holds characters that a header cannot.
    #[error("user agent {0:?}: expected a product token first, as in `name/1.0 (+https://contact)`")]
    UserAgent(String),
    /// An entry of the allow list is not `ADDRESS:PORT` or `ADDRESS:*`.
    #[error("allow list entry {0:?}: expected ADDRESS:PORT or ADDRESS:*, as in 127.0.0.1:8080 or [::1]:*")]
    Allow(String),
    /// A value that must not be 0 is.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// One body could take more than all may.
    #[error("bytes.max_in_flight is {in_flight}, and must be at least twice bytes.max_body, {body}")]
    InFlight {
        /// [`ByteLimits::max_in_flight`].
        in_flight: u64,
        /// [`ByteLimits::max_body`].
        body: u64,
    },
    /// The HTTP client could not be built, for want of trusted certificates for example.
    #[error("the HTTP client could not be built: {0}")]
    Client(String),
}

impl FetchConfig {
    /// The documented values, which suit a machine with 2 cores and a public network.
    #[must_use]
    pub fn standard(user_agent: impl Into<String>) -> Self {
        Self {
            user_agent: user_agent.into(),
            allow: AllowList::none(),
            timeouts: Timeouts {
                connect: Duration::from_secs(10),
                first_byte: Duration::from_secs(15),
                read: Duration::from_secs(10),
                total: Duration::from_secs(60),
            },
            bytes: ByteLimits {
                max_body: 64 << 20,
                max_in_flight: 512 << 20,
                min_speed: 2_000,
                speed_window: Duration::from_secs(10),
            },
            max_redirects: 5,
            concurrency: 256,
            per_host: 8,
            retry: RetryPolicy {
                attempts: 3,
                base: Duration::from_millis(500),
                cap: Duration::from_secs(20),
                retry_after_cap: Duration::from_secs(60),
                seed: 0,
            },
            dns_ttl: Duration::from_secs(300),
            breaker: BreakerPolicy { failures: 200, hosts: 20 },
            honour_opt_outs: true,
            extra_roots: Vec::new(),
        }
    }
}

impl FetchConfig {
    /// The product token of the user agent, in lower case: the name by which `X-Robots-Tag`
    /// addresses us.
    ///
    /// # Errors
    /// The first field that cannot be worked with.
    pub(crate) fn validated_product(&self) -> Result<String, ConfigError> {
        for (name, zero) in [
            ("concurrency", self.concurrency == 0),
            ("per_host", self.per_host == 0),
            ("retry.attempts", self.retry.attempts == 0),
            ("bytes.max_body", self.bytes.max_body == 0),
            ("bytes.speed_window", self.bytes.speed_window.is_zero()),
            ("timeouts.connect", self.timeouts.connect.is_zero()),
            ("timeouts.first_byte", self.timeouts.first_byte.is_zero()),
            ("timeouts.read", self.timeouts.read.is_zero()),
            ("timeouts.total", self.timeouts.total.is_zero()),
        ] {
            if zero {
                return Err(ConfigError::Zero(name));
            }
        }
        if self.bytes.max_in_flight / 2 < self.bytes.max_body {
            return Err(ConfigError::InFlight { in_flight: self.bytes.max_in_flight, body: self.bytes.max_body });
        }
        let product = self.user_agent.split(['/', ' ']).next().unwrap_or_default();
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let sendable = self.user_agent.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if product.is_empty() || !product.bytes().all(is_token) || !sendable {
            return Err(ConfigError::UserAgent(self.user_agent.clone()));
        }
        Ok(product.to_ascii_lowercase())
    }
}
