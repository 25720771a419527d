//! Latent shards as training data, in an order that is a pure function of (seed, epoch, index).
//!
//! A shard's members are found once by its headers and read where they lie, so that any sample can be had at any time
//! and the order owes nothing to the files, to workers or to what was read before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use encode::cache::{Conditioning, FORMAT, LatentIndex, VERSION};
use encode::manifest::Shape;
use encode::{ModelManifest, VaeConfig};
use shards::npy::Npy;
use shards::{ContentHash, Fingerprint};
use tch::{Device, Tensor};

use crate::condition::Condition;
use crate::objectives::Batch;
use crate::unet::UNetConfig;
use crate::{Error, Result};

/// Micro-batches that wait ahead of the loop.
const PREFETCHED: usize = 4;

/// Where a sample's parts lie in their shard.
#[derive(Debug, Clone, Copy)]
struct Location {
    shard: u32,
    latent: Span,
    prompt_embeds: Span,
    pooled: Span,
    json: Span,
}

#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u64,
    length: u32,
}

/// One sample, decoded.
#[derive(Debug)]
struct Sample {
    latent: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
    time_ids: Tensor,
}

/// What every sample has to look like for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleShape {
    /// `[C, H, W]` of a latent.
    pub latent: [i64; 3],
    /// Width of the text states.
    pub context: i64,
    /// Width of the pooled text.
    pub pooled: i64,
}

impl SampleShape {
    /// For a UNet on the latents of an autoencoder, at a square resolution in pixels.
    pub fn of(unet: &UNetConfig, vae: &VaeConfig, resolution: u32) -> SampleShape {
        let side = i64::from(resolution) / vae.factor();
        SampleShape {
            latent: [unet.in_channels, side, side],
            context: unet.context_dim(),
            pooled: unet.addition_input_dim - 6 * unet.addition_time_embed_dim,
        }
    }
}

/// A published folder of latents.
#[derive(Debug)]
pub struct LatentShards {
    folder: PathBuf,
    files: Vec<File>,
    names: Vec<String>,
    samples: Vec<Location>,
    fingerprint: Fingerprint,
}

impl LatentShards {
    /// Opens the folder that encode-latents published, proves every shard against the index, and finds all samples.
    pub fn open(folder: &Path) -> Result<LatentShards> {
        let refused = |reason: String| Error::Latents { folder: folder.to_owned(), reason };
        let index = LatentIndex::load(folder, FORMAT, VERSION)?.ok_or_else(|| refused("there are none".into()))?;
        let (mut files, mut names, mut samples) = (Vec::new(), Vec::new(), Vec::new());
        for (at, entry) in index.shards.iter().enumerate() {
            let path = index.shard_path(folder, at);
            let found = ContentHash::of_file(&path)?;
            if found != entry.sha256 {
                return Err(shards::Error::Checksum { path, expected: entry.sha256, found }.into());
            }
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            let before = samples.len();
            locate(&file, &path, at as u32, &mut samples)?;
            let found = (samples.len() - before) as u64;
            if found != entry.count {
                return Err(shards::Error::Count { path, expected: entry.count, found }.into());
            }
            files.push(file);
            names.push(entry.name.clone());
        }
        if samples.is_empty() {
            return Err(refused("there is no sample in them".into()));
        }
        Ok(LatentShards { folder: folder.to_owned(), files, names, samples, fingerprint: index.fingerprint })
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Never: an empty folder does not open.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// What shaped the latents.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Refuses latents that another VAE, encoder, tokenizer, resolution or transform made, and those of several shapes.
    pub fn check(&self, model: &ModelManifest, shape: SampleShape) -> Result<()> {
        if model.encode.shape == Shape::Buckets {
            let reason =
                "encode.shape is \"buckets\", and training takes latents of one shape: say \"square\" in model.toml";
            return Err(self.refused(reason.into()));
        }
        let expected = encode::model_fingerprint(model)?;
        let differences: Vec<String> = self
            .fingerprint
            .difference(&expected)
            .iter()
            .filter(|difference| expected.part(&difference.part).is_some())
            .map(ToString::to_string)
            .collect();
        if !differences.is_empty() {
            return Err(self.refused(format!("since they were made, {}", differences.join(", "))));
        }
        self.read(0, shape).map(|_| ())
    }

    /// A batch of samples by their numbers, on the CPU.
    pub fn batch(&self, numbers: &[usize], shape: SampleShape) -> Result<Batch> {
        let samples = numbers.iter().map(|n| self.read(*n, shape)).collect::<Result<Vec<_>>>()?;
        let stack = |part: fn(&Sample) -> &Tensor| Tensor::stack(&samples.iter().map(part).collect::<Vec<_>>(), 0);
        Ok(Batch {
            latents: stack(|s| &s.latent),
            condition: Condition {
                prompt_embeds: stack(|s| &s.prompt_embeds),
                pooled: stack(|s| &s.pooled),
                time_ids: stack(|s| &s.time_ids),
            },
        })
    }

    /// The caption of a sample.
    pub fn caption(&self, number: usize) -> Result<String> {
        Ok(self.conditioning(&self.samples[number])?.caption)
    }

    fn read(&self, number: usize, shape: SampleShape) -> Result<Sample> {
        let location = self.samples[number];
        let latent = self.array(&location, location.latent, &shape.latent)?;
        let prompt_embeds = self.array(&location, location.prompt_embeds, &[-1, shape.context])?;
        let pooled = self.array(&location, location.pooled, &[shape.pooled])?;
        let time_ids = Tensor::from_slice(&self.conditioning(&location)?.time_ids());
        Ok(Sample { latent, prompt_embeds, pooled, time_ids })
    }

    fn conditioning(&self, location: &Location) -> Result<Conditioning> {
        let bytes = self.bytes(location, location.json)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| self.refused(format!("{}: {e}", self.names[location.shard as usize])))
    }

    /// An array of the expected shape, -1 for any side, in FP32.
    fn array(&self, location: &Location, span: Span, expected: &[i64]) -> Result<Tensor> {
        let array = Npy::parse(&self.bytes(location, span)?)?;
        let shape: Vec<i64> = array.shape.iter().map(|side| *side as i64).collect();
        let fits = shape.len() == expected.len() && shape.iter().zip(expected).all(|(a, b)| a == b || *b == -1);
        if !fits {
            return Err(self.refused(format!(
                "an array in {} has shape {shape:?}, the model takes {expected:?}",
                self.names[location.shard as usize]
            )));
        }
        Ok(Tensor::from_slice(&array.to_f32()).view(shape.as_slice()))
    }

    fn bytes(&self, location: &Location, span: Span) -> Result<Vec<u8>> {
        let mut bytes = vec![0; span.length as usize];
        let shard = location.shard as usize;
        self.files[shard]
            .read_exact_at(&mut bytes, span.start)
            .map_err(Error::io("read", self.folder.join(&self.names[shard])))?;
        Ok(bytes)
    }

    fn refused(&self, reason: String) -> Error {
        Error::Latents { folder: self.folder.clone(), reason }
    }
}

/// Finds the samples of one shard by its headers alone.
fn locate(file: &File, path: &Path, shard: u32, samples: &mut Vec<Location>) -> Result<()> {
    let malformed = |reason: String| shards::Error::Malformed { path: path.to_owned(), reason };
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries_with_seek().map_err(Error::io("read", path))?;
    let mut key_before = String::new();
    let mut complete = 4;
    for entry in entries {
        let entry = entry.map_err(Error::io("read", path))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some((key, part)) = name.split_once('.') else {
            return Err(malformed(format!("member {name:?} has no extension")).into());
        };
        if key != key_before {
            if complete != 4 {
                return Err(malformed(format!("sample {key_before} is incomplete")).into());
            }
            complete = 0;
            key_before = key.to_string();
            let empty = Span::default();
            samples.push(Location { shard, latent: empty, prompt_embeds: empty, pooled: empty, json: empty });
        }
        let length = u32::try_from(entry.size()).map_err(|_| malformed(format!("{name} is too large")))?;
        let span = Span { start: entry.raw_file_position(), length };
        let location = samples.last_mut().expect("one was pushed for the first member");
        *match part {
            "latent.npy" => &mut location.latent,
            "prompt_embeds.npy" => &mut location.prompt_embeds,
            "pooled_prompt_embeds.npy" => &mut location.pooled,
            "json" => &mut location.json,
            _ => return Err(malformed(format!("{name} is no part of a latent sample")).into()),
        } = span;
        complete += 1;
    }
    if complete != 4 {
        return Err(malformed(format!("sample {key_before} is incomplete")).into());
    }
    Ok(())
}

/// A permutation of `count` samples for every epoch, without a table: a Feistel network over the next power of four,
/// walked until it lands inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleOrder {
    seed: u64,
    count: u64,
    half_bits: u32,
}

impl SampleOrder {
    /// The order of `count` samples under `seed`.
    pub fn new(seed: u64, count: usize) -> SampleOrder {
        let count = count as u64;
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        SampleOrder { seed, count, half_bits: bits.div_ceil(2).max(1) }
    }

    /// The sample that comes `position`-th, counted over all epochs.
    pub fn sample(&self, position: u64) -> usize {
        let (epoch, index) = (position / self.count, position % self.count);
        let mut at = index;
        loop {
            at = self.permute(epoch, at);
            if at < self.count {
                return at as usize;
            }
        }
    }

    fn permute(&self, epoch: u64, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..4 {
            let mixed = splitmix(splitmix(splitmix(self.seed) ^ epoch) ^ (right << 3 | round));
            (left, right) = (right, left ^ (mixed & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64.
fn splitmix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Micro-batches in order, read ahead by a thread of their own.
#[derive(Debug)]
pub struct Loader {
    batches: Receiver<Result<Batch>>,
    /// Ends by itself once the receiver is gone.
    _reader: JoinHandle<()>,
}

impl Loader {
    /// Begins with the `first`-th micro-batch of the run.
    pub fn start(
        shards: Arc<LatentShards>,
        order: SampleOrder,
        first: u64,
        micro_batch: usize,
        shape: SampleShape,
    ) -> Loader {
        let (sender, batches) = sync_channel(PREFETCHED);
        let reader = std::thread::spawn(move || {
            for number in first.. {
                let start = number * micro_batch as u64;
                let numbers: Vec<usize> = (start..start + micro_batch as u64).map(|p| order.sample(p)).collect();
                let batch = shards.batch(&numbers, shape);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        Loader { batches, _reader: reader }
    }

    /// The next micro-batch, on the CPU.
    pub fn next(&self) -> Result<Batch> {
        self.batches.recv().map_err(|_| Error::Io {
            action: "read",
            path: "the latents".into(),
            source: std::io::Error::other("the reader has stopped"),
        })?
    }
}

impl Batch {
    /// The batch on another device.
    #[must_use]
    pub fn to_device(&self, device: Device) -> Batch {
        Batch {
            latents: self.latents.to_device(device),
            condition: Condition {
                prompt_embeds: self.condition.prompt_embeds.to_device(device),
                pooled: self.condition.pooled.to_device(device),
                time_ids: self.condition.time_ids.to_device(device),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_epoch_is_a_permutation(seed: u64, count in 1usize..300, epoch in 0u64..5) {
            let order = SampleOrder::new(seed, count);
            let start = epoch * count as u64;
            let mut seen: Vec<usize> = (start..start + count as u64).map(|p| order.sample(p)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let epoch = |seed, epoch: u64| -> Vec<usize> {
            (epoch * 1000..(epoch + 1) * 1000).map(|p| SampleOrder::new(seed, 1000).sample(p)).collect()
        };
        assert_ne!(epoch(1, 0), epoch(1, 1));
        assert_ne!(epoch(1, 0), epoch(2, 0));
        // Not a shift of one another, and no long runs.
        let neighbours = epoch(1, 0).windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
        assert!(neighbours < 10, "{neighbours}");
    }
}
