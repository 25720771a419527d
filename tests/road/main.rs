//! The whole road as its user walks it: `make demo` from rows of parquet to pictures of a distilled model, what it
//! leaves, and a second time, which changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use serde_json::Value;
use shards::npy::{Npy, NpyData};
use shards::{Index, Sample, ShardReader};

const STAGES: [(&str, u32); 5] = [("128to32", 32), ("32to8", 8), ("8to4", 4), ("4to2", 2), ("2to1", 1)];

#[test]
fn make_demo_walks_the_road_and_the_second_time_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (manifest, run) = (folder.path().join("manifest"), folder.path().join("run"));
    short_manifest(&manifest);
    let port = free_port();

    succeed(make(&manifest, &run, port, &["demo"]));
    let curated = check_curated(&run.join("curated"));
    check_latents(&run.join("latents"), &curated);
    check_stages(&run.join("stages"));
    check_pictures(&run.join("samples"));

    let before = snapshot(&run);
    succeed(make(&manifest, &run, port, &["demo"]));
    let after = snapshot(&run);
    let changed: Vec<&PathBuf> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "a second `make demo` changed {changed:?}");
}

/// Clones share what Cargo keeps between builds, and a clone's sources may be older than another's build.
#[test]
fn a_clone_builds_its_own_programs_beside_another() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let clones = ["one", "two"].map(|name| folder.path().join(name));
    for clone in &clones {
        small_clone(clone);
    }
    for clone in &clones {
        let cache = format!("STEPDOWN_CACHE={}", cache.display());
        // Or it would be brought into that cache.
        assert!(std::env::var_os("LIBTORCH").is_some(), "run the tests with `make test`, which says where libtorch is");
        succeed(make_in(clone).args(["build", &cache]).output().expect("make is installed"));
    }
    let programs = fs::read_dir(cache.join("clones")).unwrap().map(|clone| clone.unwrap().path().join("release/toy"));
    let said = programs.map(|program| String::from_utf8(Command::new(program).output().unwrap().stdout).unwrap());
    assert_eq!(said.collect::<BTreeSet<_>>(), BTreeSet::from(clones.map(|clone| clone.display().to_string())));
}

/// This project's Makefile and scripts around a program that says where it was built.
fn small_clone(folder: &Path) {
    let project = repository();
    fs::create_dir_all(folder.join("scripts")).unwrap();
    fs::create_dir(folder.join("src")).unwrap();
    fs::copy(project.join("Makefile"), folder.join("Makefile")).unwrap();
    for script in fs::read_dir(project.join("scripts")).unwrap() {
        let script = script.unwrap();
        fs::copy(script.path(), folder.join("scripts").join(script.file_name())).unwrap();
    }
    let package = "[package]\nname = \"toy\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(folder.join("Cargo.toml"), package).unwrap();
    fs::write(folder.join("Cargo.lock"), "version = 4\n[[package]]\nname = \"toy\"\nversion = \"0.1.0\"\n").unwrap();
    let source = format!("fn main() {{ print!(\"{{}}\", {:?}) }}\n", folder.display().to_string());
    fs::write(folder.join("src/main.rs"), source).unwrap();
}

/// Every row of the tables has one fate, the counts add up, and every shard verifies. The samples by key.
fn check_curated(folder: &Path) -> BTreeMap<String, Sample> {
    let index: Index<Value> = Index::load(folder, "stepdown-curated", 1).unwrap().unwrap();
    index.verify_shards(folder).unwrap();
    let samples = read_all(&index, folder);
    assert_eq!(samples.len() as u64, index.count(), "keys are unique");
    assert!((150..=300).contains(&samples.len()), "about 200 of about 600 rows survive, not {}", samples.len());

    let number =
        |name: &str| index.totals[name].as_u64().unwrap_or_else(|| panic!("totals.{name} in {}", index.totals));
    let reasons = index.totals["reasons"].as_object().unwrap();
    let lost: u64 = reasons.values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(number("rows"), number("kept") + lost, "in = kept + each reason: {}", index.totals);
    assert_eq!(number("kept"), samples.len() as u64);
    // A panic costs one row and no run: here it would pass for a row's own fault.
    assert!(!reasons.contains_key("decode.decoder_panic"), "a decoder panicked: {}", index.totals);

    for (key, sample) in &samples {
        let record: Value = serde_json::from_slice(sample.require("json").unwrap()).unwrap();
        let image = ["jpg", "png", "webp"].iter().find_map(|ext| sample.part(ext)).expect("an image");
        let hash = shards::ContentHash::of(image).to_string();
        assert_eq!(record["sha256"].as_str(), Some(hash.as_str()), "{key}: the bytes are those that were judged");
        for side in ["width", "height"] {
            assert!(record[side].as_u64().unwrap() >= 1024, "{key}: {record}");
        }
        assert!(!sample.require("txt").unwrap().is_empty(), "{key}: a caption");
    }
    for file in ["samples.parquet", "report.html"] {
        assert!(folder.join(file).exists(), "{file}");
    }
    samples
}

/// One latent for each curated sample, in the contract's types and shapes.
fn check_latents(folder: &Path, curated: &BTreeMap<String, Sample>) {
    let index: Index<Value> = Index::load(folder, "stepdown-latents", 1).unwrap().unwrap();
    index.verify_shards(folder).unwrap();
    let latents = read_all(&index, folder);
    assert_eq!(latents.keys().collect::<BTreeSet<_>>(), curated.keys().collect::<BTreeSet<_>>());
    for (key, sample) in &latents {
        let array = |ext: &str| Npy::parse(sample.require(ext).unwrap()).unwrap();
        assert_eq!(array("latent.npy").shape, [4, 16, 16], "{key}");
        let prompt = array("prompt_embeds.npy").shape;
        assert_eq!((prompt.len(), prompt[0]), (2, 32), "{key}");
        assert_eq!(array("pooled_prompt_embeds.npy").shape.len(), 1, "{key}");
        for ext in ["latent.npy", "prompt_embeds.npy", "pooled_prompt_embeds.npy"] {
            let array = array(ext);
            assert!(matches!(array.data, NpyData::F16(_)), "{key}.{ext}");
            assert!(array.to_f32().iter().all(|v| v.is_finite()), "{key}.{ext}");
        }
        let record: Value = serde_json::from_slice(sample.require("json").unwrap()).unwrap();
        for pair in ["original_size", "crop_top_left", "target_size"] {
            assert_eq!(record[pair].as_array().map(Vec::len), Some(2), "{key}: {pair} in {record}");
        }
    }
}

/// Five exports, each with the base's UNet by name and shape and other values.
fn check_stages(folder: &Path) {
    let base = header(&repository().join("manifests/demo/model/unet/diffusion_pytorch_model.safetensors"));
    for (stage, _) in STAGES {
        let export = folder.join(stage).join("export");
        assert!(export.join("model_index.json").exists(), "{stage}");
        let unet = export.join("unet/diffusion_pytorch_model.safetensors");
        assert_eq!(shapes(&header(&unet)), shapes(&base), "{stage}: the export's UNet is the base's in architecture");
        assert!(folder.join(stage).join("metrics.jsonl").exists(), "{stage}");
        assert!(folder.join(stage).join("report.html").exists(), "{stage}");
    }
    let scheduler: Value =
        serde_json::from_slice(&fs::read(folder.join("2to1/export/scheduler/scheduler_config.json")).unwrap()).unwrap();
    assert_eq!((&scheduler["timestep_spacing"], &scheduler["prediction_type"]), (&"trailing".into(), &"sample".into()));
}

/// A picture of the base and one of each stage, none of them of one colour.
fn check_pictures(folder: &Path) {
    let folder = fs::read_dir(folder).unwrap().next().expect("a folder for the prompt").unwrap().path();
    let names: Vec<String> =
        std::iter::once("base-32.png".to_owned()).chain(STAGES.map(|(stage, _)| format!("{stage}.png"))).collect();
    for name in names {
        let image = image::open(folder.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}")).to_rgb8();
        let first = image.get_pixel(0, 0);
        assert!(image.width() >= 64 && image.pixels().any(|pixel| pixel != first), "{name} shows something");
    }
}

#[test]
fn every_program_refuses_bad_input_in_one_line_with_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let absent = folder.path().join("absent");
    let surplus = folder.path().join("surplus");
    copy_manifest(&surplus);
    for file in ["data.toml", "model.toml", "stages/2to1.toml"] {
        let path = surplus.join(file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("a_key_that_nobody_knows = 1\n{text}")).unwrap();
    }

    for (program, arguments) in [("curate", vec![]), ("encode-latents", vec![]), ("distill", vec!["--stage", "2to1"])] {
        for (manifest, word) in [(&absent, "absent"), (&surplus, "a_key_that_nobody_knows")] {
            refused(program, manifest, &run, &arguments, word);
        }
    }
    refused("distill", &repository().join("manifests/demo"), &run, &["--stage", "3to1"], "3to1");
    assert!(!run.join("curated").join("index.json").exists() && !run.join("latents").join("index.json").exists());
}

fn refused(program: &str, manifest: &Path, run: &Path, arguments: &[&str], word: &str) {
    let output = Command::new(program_path(program))
        .arg("--manifest")
        .arg(manifest)
        .arg("--run")
        .arg(run)
        .args(arguments)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{program} {arguments:?}: {message}");
    assert!(message.contains(word), "{program}: {message:?} names {word}");
    assert!(!message.contains("panicked"), "{program}: {message}");
}

fn make(manifest: &Path, run: &Path, port: u16, targets: &[&str]) -> Output {
    let mut command = make_in(&repository());
    command.args(targets);
    command.arg(format!("MANIFEST={}", manifest.display()));
    command.arg(format!("RUN={}", run.display())).arg(format!("DEMO_PORT={port}"));
    // The pictures beside the usual ones are there for the students' quality alone.
    command.arg("DEMO_MORE=0");
    command.output().expect("make is installed")
}

fn make_in(folder: &Path) -> Command {
    let mut command = Command::new("make");
    command.arg("-C").arg(folder);
    // What make and cargo told this test about themselves is not meant for a make of its own.
    for (name, _) in std::env::vars()
        .filter(|(name, _)| ["MAKE", "CARGO_PKG", "CARGO_MANIFEST"].iter().any(|own| name.starts_with(own)))
    {
        command.env_remove(name);
    }
    command
}

fn succeed(output: Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

fn program_path(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("STEPDOWN_BIN").expect("run the tests with `make test`, which says where the programs are");
    Path::new(&folder).join(name)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn read_all(index: &Index<Value>, folder: &Path) -> BTreeMap<String, Sample> {
    (0..index.shards.len())
        .flat_map(|at| ShardReader::open(index.shard_path(folder, at)).unwrap())
        .map(|sample| sample.map(|s| (s.key.clone(), s)).unwrap())
        .collect()
}

/// The header of a safetensors file: a length in eight bytes, then JSON.
fn header(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    serde_json::from_slice(&bytes[8..8 + length]).unwrap()
}

fn shapes(header: &Value) -> BTreeMap<&str, &Value> {
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    tensors.map(|(name, tensor)| (name.as_str(), &tensor["shape"])).collect()
}

/// Length and time of every file below `folder`, locks aside.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() != ".lock" {
                files.insert(entry.path(), (metadata.len(), metadata.modified().unwrap()));
            }
        }
    }
    files
}

fn copy_manifest(target: &Path) {
    let source = repository().join("manifests/demo");
    fs::create_dir_all(target.join("stages")).unwrap();
    for file in ["data.toml", "model.toml"] {
        fs::copy(source.join(file), target.join(file)).unwrap();
    }
    for (stage, _) in STAGES {
        let file = format!("stages/{stage}.toml");
        fs::copy(source.join(&file), target.join(&file)).unwrap();
    }
}

/// The demo's manifest with a few small updates a phase: the road, not where it leads.
fn short_manifest(target: &Path) {
    copy_manifest(target);
    let edit = |file: &str, line: &dyn Fn(&str) -> String| {
        let path = target.join(file);
        let text: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(line).collect();
        fs::write(&path, text.join("\n")).unwrap();
    };
    let base = repository().join("manifests/demo/model");
    edit("model.toml", &|line| if line.starts_with("base =") { format!("base = {base:?}") } else { line.to_owned() });
    for (stage, _) in STAGES {
        edit(&format!("stages/{stage}.toml"), &|line| match line.split_once(" = ") {
            Some((key @ ("iterations" | "batch_size" | "micro_batch_size"), count)) => {
                format!("{key} = {}", count.parse::<u32>().unwrap().min(4))
            }
            _ => line.to_owned(),
        });
    }
}
