//! When to ask again.

use std::time::{Duration, SystemTime};

use crate::RetryPolicy;

/// Reads a Retry-After header: seconds, or an HTTP date, which is held against `now` (one in the
/// past is zero). `None` for anything else. A number too large to hold is the largest.
#[must_use]
pub fn parse_retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // The only way for digits not to parse is that they are too many.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

/// The wait before try `attempt + 1` of `url`: `base * 2^(attempt - 1)`, at most `cap`, of which
/// the jitter takes up to a half, so that URLs that failed together do not come back together.
pub(crate) fn backoff(policy: &RetryPolicy, url: &str, attempt: u32) -> Duration {
    let doubled = policy.base.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
    // A pure function of seed, URL and attempt: a repeated run waits alike.
    let state = url.bytes().chain(attempt.to_le_bytes()).fold(policy.seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let fraction = (splitmix64(state) >> 11) as f64 / (1_u64 << 53) as f64;
    doubled.min(policy.cap).mul_f64(0.5 + fraction / 2.0)
}

/// The finaliser of SplitMix64.
const fn splitmix64(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> SystemTime {
        httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap()
    }

    #[test]
    fn seconds_dates_garbage_and_huge() {
        let seconds = |text: &str| parse_retry_after(text.as_bytes(), now()).map(|wait| wait.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("99999999999999999999999999"), Some(u64::MAX));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(seconds("Sunday, 06-Nov-94 08:49:47 GMT"), Some(10));
        assert_eq!(seconds("Sun Nov  6 08:49:57 1994"), Some(20));
        assert_eq!(seconds("Sat, 05 Nov 1994 08:49:37 GMT"), Some(0));
        for garbage in ["", "-1", "1.5", "+3", "soon", "120 s", "0x10", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(seconds(garbage), None, "{garbage:?}");
        }
        assert_eq!(parse_retry_after(b"\xff\xfe", now()), None);
    }

    fn policy(seed: u64) -> RetryPolicy {
        RetryPolicy {
            attempts: 9,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(5),
            retry_after_cap: Duration::from_secs(1),
            seed,
        }
    }

    #[test]
    fn backoff_doubles_within_its_jitter_and_stops_at_the_cap() {
        for attempt in 1..=40 {
            let full =
                Duration::from_millis(100).saturating_mul(1 << (attempt - 1).min(20)).min(Duration::from_secs(5));
            let wait = backoff(&policy(7), "http://a/b", attempt);
            assert!(wait >= full / 2 && wait <= full, "try {attempt}: {wait:?} of {full:?}");
        }
    }

    #[test]
    fn backoff_repeats_with_the_seed_and_spreads_over_urls() {
        let waits = |seed| -> Vec<_> { (0..50).map(|i| backoff(&policy(seed), &format!("http://a/{i}"), 1)).collect() };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
        let mut distinct = waits(1);
        distinct.sort();
        distinct.dedup();
        assert!(distinct.len() > 45, "{} distinct waits of 50", distinct.len());
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_retry_after(&value, now());
        }
    }
}
