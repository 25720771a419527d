//! One sample: a key and the parts filed under it.

use bytes::Bytes;

use crate::{Error, Result};

/// One member of a sample: `KEY.extension` in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What follows the key's dot, `jpg` or `latent.npy`.
    pub ext: String,
    /// The member's content.
    pub bytes: Bytes,
}

/// A key and its parts, sorted by extension as they lie in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Unique in its folder of shards; `a-z`, `0-9`, `_` and `-` only, so that no reader can split it
    /// elsewhere and no path can hide in it.
    pub key: String,
    /// Sorted by extension.
    pub parts: Vec<Part>,
}

impl Sample {
    /// A sample without parts.
    pub fn new(key: impl Into<String>) -> Sample {
        Sample { key: key.into(), parts: Vec::new() }
    }

    /// With one more part, kept in order.
    #[must_use]
    pub fn with(mut self, ext: impl Into<String>, bytes: impl Into<Bytes>) -> Sample {
        let part = Part { ext: ext.into(), bytes: bytes.into() };
        let at = self.parts.partition_point(|p| p.ext < part.ext);
        self.parts.insert(at, part);
        self
    }

    /// The part under `ext`.
    pub fn part(&self, ext: &str) -> Option<&[u8]> {
        self.parts.iter().find(|p| p.ext == ext).map(|p| &*p.bytes)
    }

    /// The part under `ext`, which the caller cannot do without.
    ///
    /// # Errors
    /// [`Error::MissingPart`].
    pub fn require(&self, ext: &str) -> Result<&[u8]> {
        self.part(ext).ok_or_else(|| Error::MissingPart { key: self.key.clone(), extension: ext.to_owned() })
    }

    /// Checks key and extensions.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], or [`Error::InvalidPart`] for an extension that is empty, doubled, or begins
    /// with `_` (WebDataset's metadata).
    pub fn validate(&self) -> Result<()> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if self.key.is_empty() || !self.key.bytes().all(allowed) {
            return Err(Error::InvalidKey { key: self.key.clone() });
        }
        for (at, part) in self.parts.iter().enumerate() {
            let reason = if part.ext.is_empty() || part.ext.contains(['/', '\\']) {
                "not a file extension"
            } else if part.ext.starts_with('_') {
                "a metadata name"
            } else if self.parts[..at].iter().any(|earlier| earlier.ext == part.ext) {
                "there twice"
            } else {
                continue;
            };
            return Err(Error::InvalidPart { key: self.key.clone(), extension: part.ext.clone(), reason });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_could_be_read_otherwise_are_refused() {
        for key in ["", "a.b", "a/b", "../a", "A", "ä", "a b", "a\\b"] {
            assert!(matches!(Sample::new(key).validate(), Err(Error::InvalidKey { .. })), "{key:?}");
        }
        Sample::new("s00-000001234_x").validate().unwrap();
    }

    #[test]
    fn parts_are_sorted_found_and_checked() {
        let sample = Sample::new("k").with("txt", "t").with("jpg", "j").with("json", "{}");
        assert_eq!(sample.parts.iter().map(|p| p.ext.as_str()).collect::<Vec<_>>(), ["jpg", "json", "txt"]);
        assert_eq!(sample.require("txt").unwrap(), b"t");
        assert!(matches!(sample.require("png"), Err(Error::MissingPart { .. })));
        for bad in ["", "_meta", "../x", "txt"] {
            let sample = sample.clone().with(bad, "");
            assert!(matches!(sample.validate(), Err(Error::InvalidPart { .. })), "{bad:?}");
        }
    }
}
