//! When to ask again.

use std::time::{Duration, SystemTime};

/// Reads a Retry-After header: seconds or an HTTP date. A date in the past is zero. `None` for
/// anything else.
#[must_use]
pub fn parse_retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    unimplemented!("{value:?} {now:?}")
}
