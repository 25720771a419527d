//! A URL to its bytes, or to one class of failure.
//!
//! The network is hostile and unreliable. [`Fetcher::get`] bounds everything a server can draw
//! out (time to connect, to the first byte, between reads, in total; speed; bytes before and
//! after decompression; redirects), reaches no address inside the operator's network unless an
//! [`AllowList`] names it, asks no host more often than it said (Retry-After, requests per host),
//! and takes an `X-Robots-Tag` opt-out for an answer.
//!
//! Two kinds of trouble are kept apart. A [`Failure`] is about one URL, and is data: every URL
//! ends in bytes or in one [`FailureClass`]. An [`Outage`] is about this machine's network: no
//! name server answers, or there is no way out. It is an error that stops the run, so that a dead DNS
//! server does not mark a million rows as failed.
//!
//! What is deliberately absent: cookies, proxies, credentials (those in a URL are not sent),
//! referrers, HTTP/2, and a guess at what the bytes are: an HTML page at status 200 is a success
//! here, and no image to who reads it.
#![forbid(unsafe_code)]

mod address;
mod body;
mod breaker;
mod budget;
mod client;
mod config;
mod dns;
mod failure;
mod fetcher;
mod hosts;
mod retry;
mod robots;
mod witness;

pub use address::{AllowList, is_public};
pub use client::tls_config;
pub use config::{BreakerPolicy, ByteLimits, ConfigError, FetchConfig, RetryPolicy, Timeouts};
pub use dns::{Lookup, SystemLookup};
pub use failure::{Failure, FailureClass, Outage};
pub use fetcher::{Fetched, Fetcher, host_of};
pub use retry::parse_retry_after;
