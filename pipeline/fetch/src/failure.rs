//! What can go wrong with one URL, and with the network.

use serde::{Deserialize, Serialize};

/// The class of a failure. The names (snake case) are stable: tables store them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// No absolute URL with a host.
    InvalidUrl,
    /// Not `http` or `https`, at the start or after a redirect.
    BlockedScheme,
    /// The host is, or resolves to, an address that is not public and not allowed.
    BlockedIp,
    /// The name does not exist, or has no address.
    Dns,
    /// The name server did not answer.
    DnsUnavailable,
    /// The connection was refused or reset, or there is no way to the host.
    Connect,
    /// No connection within the limit.
    ConnectTimeout,
    /// The TLS handshake failed: expired, self-signed or another host's certificate.
    Tls,
    /// No response headers within the limit.
    FirstByteTimeout,
    /// The body stalled for longer than the limit.
    ReadTimeout,
    /// The whole exchange, redirects and body included, took longer than the limit.
    TotalTimeout,
    /// The body came slower than the minimum speed.
    TooSlow,
    /// More bytes than allowed, on the wire or after decompression.
    TooLarge,
    /// The body ended before its Content-Length or its last chunk.
    Truncated,
    /// The answer is not sound HTTP, or its content coding is broken.
    Protocol,
    /// More redirects than allowed, or a loop.
    TooManyRedirects,
    /// A redirect without a usable Location.
    BadRedirect,
    /// 404.
    NotFound,
    /// 410.
    Gone,
    /// 401, 403, 407 or 451.
    Forbidden,
    /// 429, or 503 with Retry-After, until the attempts were used up; or the host is still under
    /// a Retry-After longer than is waited for.
    RateLimited,
    /// Another 4xx.
    ClientError,
    /// 5xx or 408, until the attempts were used up.
    ServerError,
    /// A status that is neither success, redirect nor error.
    UnexpectedStatus,
    /// 2xx without a body.
    EmptyBody,
    /// `X-Robots-Tag` says that the image is not to be used; the body was not read.
    OptedOut,
}

/// One URL's failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{url}: {class}: {detail}")]
pub struct Failure {
    /// Its class.
    pub class: FailureClass,
    /// The HTTP status, where one was received.
    pub status: Option<u16>,
    /// The URL that failed: the last hop.
    pub url: String,
    /// What happened, for people.
    pub detail: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// The network itself is down: an error of the run, not of a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the last {failures} {what}, for {hosts} hosts, all failed: is the network up?")]
pub struct Outage {
    /// What fails: `name resolutions`, `connections` or `requests`.
    pub what: &'static str,
    /// Failures in a row, without one success among them.
    pub failures: u32,
    /// Different hosts among them.
    pub hosts: u32,
}

impl FailureClass {
    /// Every class, in the order of this enum.
    pub const ALL: [Self; 26] = [
        Self::InvalidUrl,
        Self::BlockedScheme,
        Self::BlockedIp,
        Self::Dns,
        Self::DnsUnavailable,
        Self::Connect,
        Self::ConnectTimeout,
        Self::Tls,
        Self::FirstByteTimeout,
        Self::ReadTimeout,
        Self::TotalTimeout,
        Self::TooSlow,
        Self::TooLarge,
        Self::Truncated,
        Self::Protocol,
        Self::TooManyRedirects,
        Self::BadRedirect,
        Self::NotFound,
        Self::Gone,
        Self::Forbidden,
        Self::RateLimited,
        Self::ClientError,
        Self::ServerError,
        Self::UnexpectedStatus,
        Self::EmptyBody,
        Self::OptedOut,
    ];

    /// The stable name, as serde writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidUrl => "invalid_url",
            Self::BlockedScheme => "blocked_scheme",
            Self::BlockedIp => "blocked_ip",
            Self::Dns => "dns",
            Self::DnsUnavailable => "dns_unavailable",
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls => "tls",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::ReadTimeout => "read_timeout",
            Self::TotalTimeout => "total_timeout",
            Self::TooSlow => "too_slow",
            Self::TooLarge => "too_large",
            Self::Truncated => "truncated",
            Self::Protocol => "protocol",
            Self::TooManyRedirects => "too_many_redirects",
            Self::BadRedirect => "bad_redirect",
            Self::NotFound => "not_found",
            Self::Gone => "gone",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate_limited",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::UnexpectedStatus => "unexpected_status",
            Self::EmptyBody => "empty_body",
            Self::OptedOut => "opted_out",
        }
    }

    /// Whether the same request may succeed a little later, so that it is tried again.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::DnsUnavailable
                | Self::Connect
                | Self::ConnectTimeout
                | Self::FirstByteTimeout
                | Self::ReadTimeout
                | Self::Truncated
                | Self::RateLimited
                | Self::ServerError
        )
    }
}

impl std::fmt::Display for FailureClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
