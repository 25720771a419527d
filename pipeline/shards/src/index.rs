//! The index of a folder of shards: written last, read first.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic::{json_bytes, read_json, write_json};
use crate::fingerprint::Fingerprint;
use crate::shard::{ShardEntry, verify};
use crate::{Error, Result};

/// `index.json` beside the folder `shards`: what is there, and what it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index<T> {
    /// What kind of shards these are, such as `stepdown-curated`.
    pub format: String,
    /// Version of that format.
    pub version: u32,
    /// Everything that shaped the content.
    pub fingerprint: Fingerprint,
    /// The shards, in order.
    pub shards: Vec<ShardEntry>,
    /// What the format counts.
    pub totals: T,
}

/// The file's name.
pub const INDEX: &str = "index.json";
/// The folder of shards beside it.
pub const SHARDS: &str = "shards";
/// The file beside an index whose shards lie in an object store: it says where.
pub const ELSEWHERE: &str = "target.json";

impl<T: Serialize> Index<T> {
    /// Publishes the index in `folder`. The shards that it names have to be there already.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn publish(&self, folder: impl AsRef<Path>) -> Result<()> {
        write_json(folder.as_ref().join(INDEX), self)
    }

    /// The bytes that [`publish`](Index::publish) writes, for a place that is no folder of this machine.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the totals have no JSON form.
    pub fn to_bytes(&self, place: &Path) -> Result<Vec<u8>> {
        json_bytes(place, self)
    }
}

impl<T: DeserializeOwned> Index<T> {
    /// Reads the index of `folder`, or `None` where nothing was published.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for another format or version, or an index that does not parse.
    pub fn load(folder: impl AsRef<Path>, format: &str, version: u32) -> Result<Option<Index<T>>> {
        let path = folder.as_ref().join(INDEX);
        if !path.exists() {
            return Ok(None);
        }
        // The head first: another format has other totals, and deserves a better message than a missing field.
        let head: Head = read_json(&path)?;
        if head.format != format || head.version != version {
            let reason = format!("is {} version {}, expected {format} version {version}", head.format, head.version);
            return Err(Error::Malformed { path, reason });
        }
        read_json(&path).map(Some)
    }
}

impl<T> Index<T> {
    /// The number of samples in all shards.
    pub fn count(&self) -> u64 {
        self.shards.iter().map(|s| s.count).sum()
    }

    /// Where shard `at` lies.
    pub fn shard_path(&self, folder: impl AsRef<Path>, at: usize) -> PathBuf {
        folder.as_ref().join(SHARDS).join(&self.shards[at].name)
    }

    /// Proves every shard; see [`verify`].
    ///
    /// # Errors
    /// The first shard that fails.
    pub fn verify_shards(&self, folder: impl AsRef<Path>) -> Result<()> {
        let shards = folder.as_ref().join(SHARDS);
        self.shards.iter().try_for_each(|entry| verify(&shards, entry))
    }
}

#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::ContentHash;
    use crate::sample::Sample;
    use crate::shard::ShardWriter;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Totals {
        rows: u64,
    }

    fn published(folder: &Path) -> Index<Totals> {
        let mut writer = ShardWriter::create(folder.join(SHARDS), "000000.tar").unwrap();
        writer.push(Sample::new("a").with("txt", "x")).unwrap();
        let index = Index {
            format: "stepdown-test".into(),
            version: 1,
            fingerprint: Fingerprint::new().with("recipe", ContentHash::of(b"r")),
            shards: vec![writer.finish().unwrap()],
            totals: Totals { rows: 3 },
        };
        index.publish(folder).unwrap();
        index
    }

    #[test]
    fn round_trip_and_verification() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Index::<Totals>::load(dir.path(), "stepdown-test", 1).unwrap(), None);
        let index = published(dir.path());
        let loaded = Index::<Totals>::load(dir.path(), "stepdown-test", 1).unwrap().unwrap();
        assert_eq!(loaded, index);
        assert_eq!(loaded.count(), 1);
        loaded.verify_shards(dir.path()).unwrap();
        std::fs::remove_file(index.shard_path(dir.path(), 0)).unwrap();
        assert!(loaded.verify_shards(dir.path()).unwrap_err().to_string().contains("000000.tar"));
    }

    #[test]
    fn another_format_version_or_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        published(dir.path());
        for (format, version) in [("stepdown-latents", 1), ("stepdown-test", 2)] {
            let message = Index::<Totals>::load(dir.path(), format, version).unwrap_err().to_string();
            assert!(message.contains("index.json") && message.contains("stepdown-test version 1"), "{message}");
        }
        let path = dir.path().join(INDEX);
        let text = std::fs::read_to_string(&path).unwrap().replace("\"version\"", "\"surplus\": 1, \"version\"");
        std::fs::write(&path, text).unwrap();
        let message = Index::<Totals>::load(dir.path(), "stepdown-test", 1).unwrap_err().to_string();
        assert!(message.contains("surplus"), "{message}");
    }
}
