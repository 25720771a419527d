//! Any header value is a wait or none.
#![no_main]

use std::time::{Duration, SystemTime};

use fetch::parse_retry_after;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    if let Some(wait) = parse_retry_after(value, now) {
        // A later now never makes the wait longer.
        let later = parse_retry_after(value, now + Duration::from_secs(60)).expect("reads alike at any time");
        assert!(later <= wait);
    }
});
