//! What shaped a result, part by part, so that a reader can refuse a stale one and say why.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hash::ContentHash;

/// Named hashes of everything that a result depends on: recipe sections, input files, weights.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint {
    parts: BTreeMap<String, ContentHash>,
}

impl Fingerprint {
    /// One without parts.
    pub fn new() -> Fingerprint {
        Fingerprint::default()
    }

    /// With the part `name`, replacing one of that name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, hash: ContentHash) -> Fingerprint {
        self.parts.insert(name.into(), hash);
        self
    }

    /// The hash of part `name`.
    pub fn part(&self, name: &str) -> Option<ContentHash> {
        self.parts.get(name).copied()
    }

    /// All parts, by name.
    pub fn parts(&self) -> impl Iterator<Item = (&str, ContentHash)> {
        self.parts.iter().map(|(name, hash)| (name.as_str(), *hash))
    }

    /// One hash over names and hashes of all parts.
    pub fn digest(&self) -> ContentHash {
        let lines: String = self.parts.iter().map(|(name, hash)| format!("{name}\0{hash}\n")).collect();
        ContentHash::of(lines.as_bytes())
    }

    /// What `current` has otherwise than `self`, empty where they are equal.
    pub fn difference(&self, current: &Fingerprint) -> Vec<Difference> {
        let names: std::collections::BTreeSet<&String> = self.parts.keys().chain(current.parts.keys()).collect();
        names
            .into_iter()
            .filter_map(|name| {
                let kind = match (self.parts.get(name), current.parts.get(name)) {
                    (Some(old), Some(new)) if old == new => return None,
                    (Some(_), Some(_)) => DifferenceKind::Changed,
                    (Some(_), None) => DifferenceKind::Gone,
                    (None, _) => DifferenceKind::Added,
                };
                Some(Difference { part: name.clone(), kind })
            })
            .collect()
    }
}

/// One part in which two fingerprints differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The part's name.
    pub part: String,
    /// How it differs.
    pub kind: DifferenceKind,
}

/// How a part of a fingerprint differs from the recorded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    /// Another hash.
    Changed,
    /// It was not there before.
    Added,
    /// It is no longer there.
    Gone,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DifferenceKind::Changed => "changed",
            DifferenceKind::Added => "is new",
            DifferenceKind::Gone => "is gone",
        };
        write!(f, "{} {kind}", self.part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let (a, b) = (ContentHash::of(b"a"), ContentHash::of(b"b"));
        let recorded = Fingerprint::new().with("vae", a).with("resolution", a).with("crop", a);
        let current = Fingerprint::new().with("vae", b).with("resolution", a).with("dtype", a);
        let said: Vec<String> = recorded.difference(&current).iter().map(ToString::to_string).collect();
        assert_eq!(said, ["crop is gone", "dtype is new", "vae changed"]);
        assert!(recorded.difference(&recorded.clone()).is_empty());
    }

    #[test]
    fn the_digest_depends_on_names_and_hashes_but_not_on_order() {
        let (a, b) = (ContentHash::of(b"a"), ContentHash::of(b"b"));
        let one = Fingerprint::new().with("x", a).with("y", b);
        assert_eq!(one.digest(), Fingerprint::new().with("y", b).with("x", a).digest());
        assert_ne!(one.digest(), Fingerprint::new().with("x", b).with("y", a).digest());
    }
}
