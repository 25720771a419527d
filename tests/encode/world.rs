//! A manifest, a small model and curated shards for the tests of `encode-latents`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use encode::cache::{FORMAT, LatentIndex, LatentSample, VERSION};
use shards::{ContentHash, Fingerprint, Index, Sample, ShardReader, ShardWriter};

use super::fixture;

pub const MODEL_TOML: &str = "base = 'model'\nresolution = 64\ndtype = 'f32'\n\
    [encode]\nshape = 'square'\ncrop = 'random'\nlatents = 'sample'\nseed = 1\nbatch = 2\n";

/// A manifest and a run with curated shards, in a folder that goes away.
pub struct World {
    folder: tempfile::TempDir,
}

/// A smooth image that differs with the seed.
pub fn image(width: u32, height: u32, seed: u32) -> pixels::Image {
    let value = |x: u32, y: u32, c: u32| ((x * (seed % 5 + 1) + y * (c + 1) + seed * 31) / 2 % 256) as u8;
    let rgb = (0..height).flat_map(|y| (0..width).flat_map(move |x| [0, 1, 2].map(|c| value(x, y, c)))).collect();
    pixels::Image::new(width, height, rgb)
}

pub fn curated(seed: u32) -> Sample {
    let (width, height) = [(96, 64), (64, 96), (80, 80)][seed as usize % 3];
    Sample::new(format!("s00-{seed:09}"))
        .with("png", pixels::encode_png(&image(width, height, seed)))
        .with("txt", format!("a red square, number {seed}"))
        .with("json", "{}")
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self { folder };
        copy_folder(&fixture("encode/model"), &world.manifest().join("model"));
        fs::write(world.manifest().join("model.toml"), MODEL_TOML).unwrap();
        world.curate(&[(0..5).map(curated).collect(), (5..8).map(curated).collect()]);
        world
    }

    pub fn duplicate(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), folder.path());
        Self { folder }
    }

    pub fn manifest(&self) -> PathBuf {
        self.folder.path().join("manifest")
    }

    pub fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn latents(&self) -> PathBuf {
        self.run().join("latents")
    }

    pub fn curate(&self, shards: &[Vec<Sample>]) {
        let folder = self.run().join("curated");
        let entries = shards.iter().enumerate().map(|(at, samples)| {
            let mut writer = ShardWriter::create(folder.join("shards"), format!("{at:06}.tar")).unwrap();
            samples.iter().for_each(|sample| writer.push(sample.clone()).unwrap());
            writer.finish().unwrap()
        });
        Index {
            format: "stepdown-curated".into(),
            version: 1,
            fingerprint: Fingerprint::new(),
            shards: entries.collect(),
            totals: serde_json::json!({}),
        }
        .publish(&folder)
        .unwrap();
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_encode-latents"));
        command.arg("--manifest").arg(self.manifest()).arg("--run").arg(self.run());
        command
    }

    pub fn encode(&self) -> Output {
        self.command().output().unwrap()
    }

    pub fn index(&self) -> LatentIndex {
        LatentIndex::load(self.latents(), FORMAT, VERSION).unwrap().expect("an index is published")
    }

    pub fn samples(&self) -> Vec<LatentSample> {
        let index = self.index();
        index.verify_shards(self.latents()).unwrap();
        (0..index.shards.len())
            .flat_map(|at| ShardReader::open(index.shard_path(self.latents(), at)).unwrap())
            .map(|sample| LatentSample::from_sample(&sample.unwrap()).unwrap())
            .collect()
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below, with its hash.
pub fn contents(folder: &Path) -> BTreeMap<String, ContentHash> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.display().to_string(), ContentHash::of_file(&path).unwrap());
        }
    }
    all
}

pub fn assert_ends(output: &Output, code: i32, said: &str) {
    let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(said), "expected {said:?} in: {text}");
}
