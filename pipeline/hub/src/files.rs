//! Which files of a repository a pipeline is loaded from.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::name::Variant;
use crate::{Error, ModelName, Result};

/// Read before anything else.
const DOCUMENTS: [&str; 6] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
];
/// Each network's folder and what its files of weights are called.
const NETWORKS: [(&str, &str); 4] = [
    ("text_encoder", "model"),
    ("text_encoder_2", "model"),
    ("vae", "diffusion_pytorch_model"),
    ("unet", "diffusion_pytorch_model"),
];
const TOKENIZERS: [&str; 2] = ["tokenizer", "tokenizer_2"];
/// Either form of a tokenizer.
const VOCABULARIES: [&[&str]; 2] = [&["tokenizer.json"], &["vocab.json", "merges.txt"]];
/// What may stand beside it.
const TOKENIZER_SETTINGS: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

const FULL: [&str; 2] = ["safetensors", "safetensors.index.json"];
const FP16: [&str; 2] = ["fp16.safetensors", "safetensors.index.fp16.json"];

/// What has to be fetched of a repository; paths relative to it.
pub struct Wanted {
    /// Configurations and tokenizers.
    pub small: Vec<String>,
    /// For each network its file of weights, or the index of its shards.
    pub weights: Vec<String>,
}

/// Chooses from a repository's files.
pub fn wanted(name: &ModelName, listed: &BTreeSet<String>) -> Result<Wanted> {
    let lacks = |file: String| Error::Layout { model: name.to_string(), lacks: file };
    let has = |file: &String| listed.contains(file);
    let mut small: Vec<String> = DOCUMENTS.map(String::from).into();
    if let Some(file) = small.iter().find(|file| !has(file)) {
        return Err(lacks(file.clone()));
    }
    for folder in TOKENIZERS {
        let of = |files: &[&str]| files.iter().map(|file| format!("{folder}/{file}")).collect::<Vec<_>>();
        let forms: Vec<_> = VOCABULARIES.map(of).into_iter().filter(|files| files.iter().all(has)).collect();
        if forms.is_empty() {
            return Err(lacks(format!("{folder}/vocab.json")));
        }
        small.extend(forms.into_iter().flatten());
        small.extend(of(&TOKENIZER_SETTINGS).into_iter().filter(has));
    }
    let weights = NETWORKS
        .map(|(folder, stem)| {
            let named = |ending: &&str| format!("{folder}/{stem}.{ending}");
            let first = |endings: &[&str]| endings.iter().map(named).find(has);
            match name.variant() {
                Variant::Full => first(&FULL).or_else(|| first(&FP16)).ok_or_else(|| lacks(named(&FULL[0]))),
                Variant::Fp16 => first(&FP16).ok_or_else(|| lacks(named(&FP16[0]))),
            }
        })
        .into_iter()
        .collect::<Result<_>>()?;
    Ok(Wanted { small, weights })
}

/// The first file that a folder lacks to be a model of the wanted kind, if any. Weights are fetched last, so that what
/// is optional is there where they are.
pub fn missing(snapshot: &Path, variant: Variant) -> Result<Option<String>> {
    let absent = |file: &String| !snapshot.join(file).is_file();
    if let Some(file) = DOCUMENTS.map(String::from).into_iter().find(absent) {
        return Ok(Some(file));
    }
    for folder in TOKENIZERS {
        let form = |files: &[&str]| files.iter().all(|file| !absent(&format!("{folder}/{file}")));
        if !VOCABULARIES.into_iter().any(form) {
            return Ok(Some(format!("{folder}/vocab.json")));
        }
    }
    for (folder, stem) in NETWORKS {
        let named = |ending: &str| format!("{folder}/{stem}.{ending}");
        // Either precision will do where the smaller was asked for: what is there already is the better one.
        let endings: &[[&str; 2]] = match variant {
            Variant::Full => &[FULL],
            Variant::Fp16 => &[FULL, FP16],
        };
        let Some(weights) = endings.as_flattened().iter().map(|ending| named(ending)).find(|file| !absent(file)) else {
            return Ok(Some(named(endings[endings.len() - 1][0])));
        };
        if let Some(shard) = shards_of(snapshot, &weights)?.into_iter().find(absent) {
            return Ok(Some(shard));
        }
    }
    Ok(None)
}

/// The shards that an index names; none for a file of weights.
pub fn shards_of(snapshot: &Path, weights: &str) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct ShardIndex {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    if !weights.ends_with(".json") {
        return Ok(BTreeSet::new());
    }
    let path = snapshot.join(weights);
    let wrong = |reason: String| Error::Answer { url: path.display().to_string(), reason };
    let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let index: ShardIndex = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let folder = weights.rsplit_once('/').map_or("", |(folder, _)| folder);
    let is_plain = |file: &String| file.ends_with(".safetensors") && !file.contains(['/', '\\']);
    match index.weight_map.values().find(|file| !is_plain(file)) {
        Some(file) => Err(wrong(format!("names {file:?}, which is no safetensors file beside it"))),
        None => Ok(index.weight_map.values().map(|file| format!("{folder}/{file}")).collect()),
    }
}
