//! A row of a source table, as it is carried through the run.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::caption::Cleaned;
use crate::score::Score;

/// Where a row stands: its source in the recipe and its position in that source's tables taken one after
/// another. Ordered as the rows are. Its text form is the sample's key, `s00-000001234`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// Position of the source in the recipe.
    pub source: u16,
    /// Position of the row in the source.
    pub row: u64,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{:02}-{:09}", self.source, self.row)
    }
}

impl FromStr for RowId {
    type Err = String;

    fn from_str(text: &str) -> Result<RowId, String> {
        let parse = || {
            let (source, row) = text.strip_prefix('s')?.split_once('-')?;
            Some(RowId { source: source.parse().ok()?, row: row.parse().ok()? })
        };
        // Only the canonical form, so that a key names one row and a row has one key.
        parse().filter(|id| id.to_string() == text).ok_or_else(|| format!("{text:?} is not the key of a row"))
    }
}

impl Serialize for RowId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RowId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RowId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl Size {
    /// The shorter side.
    pub fn min_side(self) -> u32 {
        self.width.min(self.height)
    }

    /// The longer side over the shorter; at least 1.
    pub fn aspect_ratio(self) -> f64 {
        f64::from(self.width.max(self.height)) / f64::from(self.min_side().max(1))
    }
}

/// A row that passed its source's filter and the rules for captions: what is to be fetched, and what the table says about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The row, and thereby the sample's key.
    pub key: RowId,
    /// As the table has it.
    pub url: String,
    /// Cleaned.
    pub caption: Cleaned,
    /// As the table has it.
    pub caption_original: String,
    /// The size that the table claims, where it claims one.
    pub claimed: Option<Size>,
    /// Every score of the table that is a finite number.
    pub scores: BTreeMap<Score, f64>,
}

impl Candidate {
    /// The host that is asked for the URL, or what stands in its place.
    pub fn host(&self) -> Cow<'_, str> {
        if let Some(host) = plain_host(&self.url) {
            return Cow::Borrowed(host);
        }
        fetch::host_of(&self.url).map_or_else(|| Cow::Borrowed(self.written_host()), Cow::Owned)
    }

    fn written_host(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        match host.rsplit_once(':') {
            Some((name, _)) if !host.ends_with(']') => name,
            _ => host,
        }
    }
}

/// The host of a URL which a parser of URLs would give back as it stands: so are most, and parsing takes its time.
fn plain_host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    // Addresses have many spellings; the last part of a name begins with a letter.
    let is_name = host.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_lowercase()));
    let is_plain = host.bytes().all(is_plain) && port.bytes().all(|byte| byte.is_ascii_digit());
    (is_plain && is_name && !host.contains("xn--")).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_rows_are_and_lead_back() {
        let id = RowId { source: 0, row: 1234 };
        assert_eq!(id.to_string(), "s00-000001234");
        for id in [id, RowId { source: 100, row: 12_345_678_901 }] {
            assert_eq!(id.to_string().parse::<RowId>().unwrap(), id);
        }
        assert!(RowId { source: 0, row: 9 } < RowId { source: 0, row: 10 });
        assert!(RowId { source: 0, row: u64::MAX } < RowId { source: 1, row: 0 });
        for other in ["", "s00", "s0-000001234", "s00-1234", "00-000001234", "s00-00000123x"] {
            assert!(other.parse::<RowId>().is_err(), "{other:?}");
        }
    }

    #[test]
    fn hosts_are_told_from_what_stands_around_them() {
        for (url, host) in [
            ("https://a.example/b.jpg", "a.example"),
            ("http://user:pass@a.example:8080?x", "a.example"),
            ("http://[::1]:80/x", "[::1]"),
            ("http://[::1]", "[::1]"),
            ("nonsense", "nonsense"),
            ("HTTP://Images.Example/b.jpg", "images.example"),
            ("http://a.example./b.jpg", "a.example"),
            ("https:\\\\a.example\\b.jpg", "a.example"),
            ("http:a.example/b.jpg", "a.example"),
            ("http://b\u{fc}cher.example/", "xn--bcher-kva.example"),
            ("http://0x7f.1/", "127.0.0.1"),
            ("http://127.1:80", "127.0.0.1"),
            ("http://a.example:x/", "a.example"),
        ] {
            let candidate = Candidate {
                key: RowId { source: 0, row: 0 },
                url: url.to_owned(),
                caption: crate::caption::clean("", &[]),
                caption_original: String::new(),
                claimed: None,
                scores: BTreeMap::new(),
            };
            assert_eq!(candidate.host(), host, "{url}");
            if let Some(plain) = plain_host(url) {
                assert_eq!(fetch::host_of(url).as_deref(), Some(plain), "as the fetcher has it");
            }
        }
    }
}
