//! LoRA files as users have them: kohya's `lora_unet_*` names (of diffusers' modules or of the reference
//! implementation's) and diffusers' or peft's dotted ones, alpha honoured.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use nn::{Adapters, Lora, Params, Weights};
use serde_json::Value;
use tch::Tensor;

use crate::single_file::Names;
use crate::unet::{UNet, UNetConfig};
use crate::{Error, Result};

/// The low-rank branches of one or more files, by the UNet's module paths.
#[derive(Debug, Default)]
pub struct LoraStack {
    branches: BTreeMap<String, Vec<Lora>>,
}

/// One part of one adapter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Down,
    Up,
    Alpha,
}

/// How the parts' names end.
const ENDINGS: [(&str, Part); 7] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
];

impl LoraStack {
    /// Adds a file's branches at a strength, for a UNet of the given shape. Tensors that match no module, and modules
    /// that lack a half, are listed in the error.
    pub fn add(&mut self, file: &Path, strength: f64, unet: &UNetConfig) -> Result<()> {
        let wrong = |reason: String| Error::Document { path: file.to_owned(), reason };
        let weights = Weights::open(file)?;
        let (_, parameters) = Weights::shapes_only().build(|scope| UNet::new(scope, unet))?;
        let modules = Modules::new(&parameters, &Names::unet(unet));
        let mut found: BTreeMap<String, BTreeMap<Part, &str>> = BTreeMap::new();
        let mut unmatched = Vec::new();
        for name in weights.names() {
            let place = ENDINGS.iter().find_map(|&(ending, part)| Some((name.strip_suffix(ending)?, part)));
            match place.and_then(|(module, part)| Some((modules.path(module)?, part))) {
                Some((path, part)) => {
                    if let Some(other) = found.entry(path.to_owned()).or_default().insert(part, name) {
                        return Err(wrong(format!("`{other}` and `{name}` are the same part of one module")));
                    }
                }
                None => unmatched.push(name),
            }
        }
        if !unmatched.is_empty() {
            return Err(wrong(format!(
                "{} of its tensors match no module of the UNet{}",
                unmatched.len(),
                list(&unmatched)
            )));
        }
        if found.is_empty() {
            return Err(wrong("holds no adapter".to_owned()));
        }
        let halves = |parts: &BTreeMap<Part, &str>| [Part::Down, Part::Up].iter().all(|part| parts.contains_key(part));
        let incomplete: Vec<&str> =
            found.iter().filter(|(_, parts)| !halves(parts)).map(|(path, _)| path.as_str()).collect();
        if !incomplete.is_empty() {
            return Err(wrong(format!("{} modules lack one half{}", incomplete.len(), list(&incomplete))));
        }
        let trained_with = PeftSettings::of(file)?;
        for (path, parts) in found {
            let down = weights.tensor(parts[&Part::Down])?;
            let up = weights.tensor(parts[&Part::Up])?;
            let rank = down.size().first().copied().unwrap_or(0);
            if rank == 0 {
                return Err(wrong(format!("`{}` has no rank", parts[&Part::Down])));
            }
            let alpha = match parts.get(&Part::Alpha) {
                Some(name) => scalar(&weights.tensor(name)?).ok_or_else(|| wrong(format!("`{name}` is no number")))?,
                None => trained_with.alpha(&path).map_err(wrong)?.unwrap_or(rank as f64),
            };
            let (down, up) = modules.shaped(&path, rank, down, up);
            self.branches.entry(path).or_default().push(Lora { down, up, scale: strength * alpha / rank as f64 });
        }
        Ok(())
    }

    /// One branch for each module. Several files on one module are one branch of their ranks' sum.
    pub fn into_adapters(self) -> Adapters {
        let merge = |mut branches: Vec<Lora>| {
            if branches.len() == 1 {
                return branches.remove(0);
            }
            let downs: Vec<&Tensor> = branches.iter().map(|branch| &branch.down).collect();
            let ups: Vec<Tensor> = branches.iter().map(|branch| &branch.up * branch.scale).collect();
            Lora { down: Tensor::cat(&downs, 0), up: Tensor::cat(&ups, 1), scale: 1.0 }
        };
        Adapters::Given(self.branches.into_iter().map(|(path, branches)| (path, merge(branches))).collect())
    }
}

/// The modules of a UNet that can carry an adapter.
struct Modules {
    /// Path -> the shape of the weight.
    shapes: BTreeMap<String, Vec<i64>>,
    /// kohya's name, dots written as underscores, in diffusers' spelling and the reference implementation's -> path.
    underscored: BTreeMap<String, String>,
}

impl Modules {
    fn new(unet: &Params, reference: &Names) -> Self {
        let shapes: BTreeMap<String, Vec<i64>> = unet
            .iter()
            .filter(|(_, tensor)| tensor.dim() >= 2)
            .filter_map(|(name, tensor)| Some((name.strip_suffix(".weight")?.to_owned(), tensor.size())))
            .collect();
        let spellings = |path: &String| [Some(path.clone()), reference.translate(path)];
        let underscored = (shapes.keys())
            .flat_map(|path| spellings(path).into_iter().flatten().map(|name| (name.replace('.', "_"), path.clone())))
            .collect();
        Self { shapes, underscored }
    }

    /// The path of the module that a file calls `name`.
    fn path(&self, name: &str) -> Option<&str> {
        if let Some(name) = name.strip_prefix("lora_unet_") {
            return self.underscored.get(name).map(String::as_str);
        }
        let name = name.strip_prefix("unet.").unwrap_or(name);
        self.shapes.get_key_value(name).map(|(path, _)| path.as_str())
    }

    /// Both halves in the dimensions of their module: files write a linear layer's as those of a 1x1 convolution or the
    /// other way round. What cannot be reshaped stays, to be refused with its name and shape.
    fn shaped(&self, path: &str, rank: i64, down: Tensor, up: Tensor) -> (Tensor, Tensor) {
        let (outputs, inputs) = self.shapes[path].split_at(1);
        let point = vec![1; inputs.len() - 1];
        let fit = |tensor: Tensor, shape: Vec<i64>| {
            if tensor.numel() as i64 == shape.iter().product::<i64>() { tensor.reshape(shape) } else { tensor }
        };
        (fit(down, [&[rank], inputs].concat()), fit(up, [outputs, &[rank], &point].concat()))
    }
}

/// What newer versions of diffusers note in a file's header beside peft's names, as far as it changes the result.
#[derive(Default)]
struct PeftSettings {
    lora_alpha: Option<f64>,
    alpha_pattern: BTreeMap<String, f64>,
}

impl PeftSettings {
    fn of(file: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::Document { path: file.to_owned(), reason };
        let Some(noted) = header(file)?["__metadata__"]["lora_adapter_metadata"].as_str().map(str::to_owned) else {
            return Ok(Self::default());
        };
        let noted: Value =
            serde_json::from_str(&noted).map_err(|error| wrong(format!("its lora_adapter_metadata: {error}")))?;
        // A pipeline's files say of which network a setting is; those of one network (`unet.save_lora_adapter`) do not.
        let setting = |key: &str| noted.get(format!("unet.{key}")).or_else(|| noted.get(key)).unwrap_or(&Value::Null);
        if *setting("use_rslora") == true || *setting("use_dora") == true {
            return Err(wrong("rank-stabilised and weight-decomposed adapters are not supported".to_owned()));
        }
        let mut alpha_pattern = BTreeMap::new();
        for (end, alpha) in setting("alpha_pattern").as_object().into_iter().flatten() {
            // peft reads a regular expression here.
            let plain = end.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            let Some(alpha) = alpha.as_f64().filter(|_| plain) else {
                let reason = format!("its alpha_pattern: `{end}`: {alpha} is not the end of a path and a number");
                return Err(wrong(reason));
            };
            alpha_pattern.insert(end.clone(), alpha);
        }
        Ok(Self { lora_alpha: setting("lora_alpha").as_f64(), alpha_pattern })
    }

    /// The alpha of a module: that of the pattern whose end it is, or that of all. Of several patterns peft takes the
    /// first in the file, an order that JSON does not promise: an error names two of them.
    fn alpha(&self, path: &str) -> std::result::Result<Option<f64>, String> {
        let ends = |end: &str| path.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let mut own = self.alpha_pattern.iter().filter(|(end, _)| ends(end));
        match (own.next(), own.next()) {
            (Some((a, _)), Some((b, _))) => Err(format!("its alpha_pattern: `{a}` and `{b}` both stand for {path}")),
            (Some((_, &alpha)), None) => Ok(Some(alpha)),
            (None, _) => Ok(self.lora_alpha),
        }
    }
}

/// The JSON header of a safetensors file, which has been opened and so found valid before.
fn header(file: &Path) -> Result<Value> {
    let mut reader = File::open(file).map_err(Error::io("read", file))?;
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(Error::io("read", file))?;
    let mut text = Vec::new();
    reader.take(u64::from_le_bytes(length)).read_to_end(&mut text).map_err(Error::io("read", file))?;
    serde_json::from_slice(&text).map_err(|error| Error::Document { path: file.to_owned(), reason: error.to_string() })
}

fn scalar(tensor: &Tensor) -> Option<f64> {
    (tensor.numel() == 1).then(|| tensor.reshape([1]).double_value(&[0]))
}

/// The first few names, for a message.
fn list(names: &[&str]) -> String {
    const SPELT_OUT: usize = 16;
    let mut text: String = names.iter().take(SPELT_OUT).map(|name| format!("\n    {name}")).collect();
    if names.len() > SPELT_OUT {
        text += &format!("\n    and {} more", names.len() - SPELT_OUT);
    }
    text
}
