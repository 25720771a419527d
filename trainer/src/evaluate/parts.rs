//! What has been seen so far, in files, so that a stopped evaluation goes on where it was.
//!
//! `parts/NAME/` holds `key.json`, the hash of everything that its chunks depend on, and a file for each chunk.

use std::path::{Path, PathBuf};

use nn::Weights;
use shards::ContentHash;
use shards::atomic::{read_json, write_json};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// The chunks of one contender with one seed, or of the references.
pub struct Part {
    folder: PathBuf,
}

/// Tensors of one chunk by name.
pub type Chunk = std::collections::BTreeMap<String, Tensor>;

impl Part {
    /// The part in `folder`; one that was made under another key is thrown away.
    pub fn open(folder: &Path, key: &ContentHash) -> Result<Self> {
        let file = folder.join("key.json");
        let same = file.exists() && read_json::<ContentHash>(&file)? == *key;
        if !same {
            if folder.exists() {
                std::fs::remove_dir_all(folder).map_err(Error::io("remove", folder))?;
            }
            write_json(&file, key)?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// A chunk that is there already.
    pub fn get(&self, index: usize) -> Result<Option<Chunk>> {
        let file = self.file(index);
        if !file.exists() {
            return Ok(None);
        }
        let saved = Weights::open(&file)?.to(Kind::Float, Device::Cpu);
        let read = |name: &str| Ok((name.to_owned(), saved.tensor(name)?));
        saved.names().into_iter().map(read).collect::<Result<_>>().map(Some)
    }

    /// Keeps a chunk. Grey levels and features come back as they are; tensors may be FP16 to save space.
    pub fn put(&self, index: usize, chunk: &Chunk) -> Result<()> {
        Ok(nn::save(&self.file(index), chunk.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[])?)
    }

    fn file(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index:06}.safetensors"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_stay_as_long_as_their_key() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("base-seed0");
        let (one, other) = (ContentHash::of(b"one"), ContentHash::of(b"other"));
        let chunk: Chunk = [("whole".to_owned(), Tensor::from_slice(&[1f32, 2.0]))].into();
        let part = Part::open(&folder, &one).unwrap();
        assert!(part.get(0).unwrap().is_none());
        part.put(0, &chunk).unwrap();
        assert_eq!(Part::open(&folder, &one).unwrap().get(0).unwrap().unwrap(), chunk);
        assert!(Part::open(&folder, &other).unwrap().get(0).unwrap().is_none());
    }
}
