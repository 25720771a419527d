//! A URL to its bytes, or to one class of failure.
//!
//! The network is hostile and unreliable. [`Fetcher::get`] bounds everything a server can draw
//! out (time to connect, to the first byte, between reads, in total; speed; bytes before and
//! after decompression; redirects), reaches no address inside the operator's network unless an
//! [`AllowList`] names it, asks nobody more often than they said (Retry-After, requests per
//! host), and takes `X-Robots-Tag` opt-outs for an answer.
//!
//! Two kinds of trouble are kept apart. A [`Failure`] is about one URL, and is data: every URL
//! ends in bytes or in one [`FailureClass`]. An [`Outage`] is about this machine's network: the
//! resolver or every connection fails at once. It is an error that stops the run, so that a dead
//! DNS server does not mark a million rows as failed.
#![forbid(unsafe_code)]

mod address;
mod config;
mod failure;
mod fetcher;
mod retry;

pub use address::{AllowList, is_public};
pub use config::{BreakerPolicy, ByteLimits, ConfigError, FetchConfig, RetryPolicy, Timeouts};
pub use failure::{Failure, FailureClass, Outage};
pub use fetcher::{Fetched, Fetcher};
pub use retry::parse_retry_after;
