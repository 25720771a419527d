//! The single-file SDXL checkpoint, as Stability published it and ComfyUI reads it.
//!
//! | part | prefix | differs from diffusers in |
//! |---|---|---|
//! | UNet | `model.diffusion_model.` | names |
//! | autoencoder | `first_stage_model.` | names; the attention's projections are 1x1 convolutions |
//! | CLIP ViT-L | `conditioner.embedders.0.transformer.` | nothing |
//! | OpenCLIP bigG | `conditioner.embedders.1.model.` | names; query, key and value are one tensor; the projection is transposed |
//!
//! One table ([`Layout`]) says all of it, and is read in both directions.

mod names;

pub use names::Names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use encode::{AutoencoderKl, ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, VaeConfig};
use nn::{Mismatch, Scope, Weights};
use tch::{Device, Kind, Tensor};

use crate::unet::{UNet, UNetConfig};
use crate::{Error, Result};

/// The networks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `UNet2DConditionModel`.
    UNet,
    /// `AutoencoderKL`.
    Vae,
    /// `CLIPTextModel`, under the names of the published folders.
    TextEncoder,
    /// `CLIPTextModelWithProjection`.
    TextEncoder2,
}

impl Part {
    const ALL: [Self; 4] = [Self::UNet, Self::Vae, Self::TextEncoder, Self::TextEncoder2];

    fn prefix(self) -> &'static str {
        match self {
            Self::UNet => "model.diffusion_model.",
            Self::Vae => "first_stage_model.",
            Self::TextEncoder => "conditioner.embedders.0.transformer.",
            Self::TextEncoder2 => "conditioner.embedders.1.model.",
        }
    }
}

/// The configurations of the networks, without which names mean nothing.
#[derive(Debug, Clone)]
pub struct Configurations {
    /// The UNet's.
    pub unet: UNetConfig,
    /// The autoencoder's.
    pub vae: VaeConfig,
    /// The first text encoder's.
    pub text_encoder: ClipTextConfig,
    /// The second text encoder's.
    pub text_encoder_2: ClipTextConfig,
}

/// Tensors of each network by diffusers' names.
pub type Networks = BTreeMap<Part, BTreeMap<String, Tensor>>;

/// Where each of diffusers' tensors lies in the file.
struct Layout(Vec<Entry>);

/// One tensor of the file.
struct Entry {
    part: Part,
    /// Its name in the file.
    theirs: String,
    /// diffusers' name, or the three that are one there.
    ours: Vec<String>,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The same tensor.
    Same,
    /// `[outputs, inputs]` here, `[outputs, inputs, 1, 1]` there.
    Convolution,
    /// `[outputs, inputs]` here, `[inputs, outputs]` there.
    Transposed,
    /// Query, key and value here, one above the other there.
    Stacked,
}

impl Layout {
    fn new(configurations: &Configurations) -> Result<Self> {
        let Configurations { unet, vae, text_encoder, text_encoder_2 } = configurations;
        let mut entries = Vec::new();
        let names = Names::unet(unet);
        for ours in parameters(|scope| UNet::new(scope, unet))? {
            entries.push(Entry::new(Part::UNet, names.translate(&ours), ours, Form::Same)?);
        }
        let names = Names::vae(vae.block_out_channels.len(), vae.layers_per_block);
        for ours in parameters(|scope| AutoencoderKl::new(scope, vae))? {
            let projection = [".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight"];
            let form = if projection.iter().any(|end| ours.ends_with(end)) { Form::Convolution } else { Form::Same };
            entries.push(Entry::new(Part::Vae, names.translate(&ours), ours, form)?);
        }
        for ours in parameters(|scope| ClipTextModel::new(scope, text_encoder))? {
            entries.push(Entry::new(Part::TextEncoder, Some(ours.clone()), ours, Form::Same)?);
        }
        let names = Names::open_clip(text_encoder_2.num_hidden_layers);
        for ours in parameters(|scope| ClipTextModelWithProjection::new(scope, text_encoder_2))? {
            let part = Part::TextEncoder2;
            let theirs = names.translate(&ours);
            entries.push(match ours.as_str() {
                "text_model.embeddings.position_embedding.weight" => {
                    Entry::new(part, Some("positional_embedding".to_owned()), ours, Form::Same)?
                }
                "text_projection.weight" => {
                    Entry::new(part, Some("text_projection".to_owned()), ours, Form::Transposed)?
                }
                _ if ours.contains(".k_proj.") || ours.contains(".v_proj.") => continue,
                _ if ours.contains(".q_proj.") => {
                    let stacked = theirs.map(|name| name.replace("self_attn.q_proj.", "attn.in_proj_"));
                    let three = ["q_proj", "k_proj", "v_proj"].map(|name| ours.replace("q_proj", name));
                    Entry { ours: three.into(), ..Entry::new(part, stacked, ours, Form::Stacked)? }
                }
                _ => Entry::new(part, theirs, ours, Form::Same)?,
            });
        }
        Ok(Self(entries))
    }
}

impl Entry {
    fn new(part: Part, theirs: Option<String>, ours: String, form: Form) -> Result<Self> {
        let unnamed = || Error::Argument(format!("`{ours}` has no name in a single-file checkpoint"));
        let theirs = theirs.ok_or_else(unnamed)?;
        Ok(Self { part, theirs: format!("{}{theirs}", part.prefix()), ours: vec![ours], form })
    }

    /// The file's tensor from diffusers', all of which are there.
    fn gather(&self, network: &BTreeMap<String, Tensor>) -> Tensor {
        let first = &network[&self.ours[0]];
        match self.form {
            Form::Same => first.shallow_clone(),
            Form::Convolution => first.unsqueeze(-1).unsqueeze(-1),
            Form::Transposed => first.tr().contiguous(),
            Form::Stacked => Tensor::cat(&self.ours.iter().map(|name| &network[name]).collect::<Vec<_>>(), 0),
        }
    }

    /// diffusers' tensors from the file's. What has another shape than expected is left as it is, to be refused with
    /// its name when the network is built.
    fn scatter(&self, tensor: Tensor) -> Vec<(String, Tensor)> {
        let one = |tensor: Tensor| vec![(self.ours[0].clone(), tensor)];
        match self.form {
            Form::Same => one(tensor),
            Form::Convolution if tensor.dim() == 4 => one(tensor.squeeze_dim(-1).squeeze_dim(-1)),
            Form::Transposed if tensor.dim() == 2 => one(tensor.tr().contiguous()),
            Form::Stacked if tensor.dim() > 0 && tensor.size()[0] % 3 == 0 => {
                let parts = tensor.chunk(3, 0).into_iter().map(|part| part.contiguous());
                self.ours.iter().cloned().zip(parts).collect()
            }
            Form::Convolution | Form::Transposed | Form::Stacked => one(tensor),
        }
    }
}

/// Names and shapes of a network's parameters.
fn parameters<T>(network: impl FnOnce(&Scope<'_>) -> T) -> Result<Vec<String>> {
    let (_, parameters) = Weights::shapes_only().build(network)?;
    Ok(parameters.names().map(str::to_owned).collect())
}

/// Tensors that such files carry and that no network reads.
fn is_unread(name: &str) -> bool {
    name.ends_with(".position_ids")
        || name == "conditioner.embedders.1.model.logit_scale"
        || name.starts_with("model_ema.")
}

/// A checkpoint whose names have been checked.
pub struct SingleFile {
    path: PathBuf,
    layout: Layout,
    held: BTreeSet<Part>,
}

impl SingleFile {
    /// Opens a checkpoint. A network that is there has to be whole, and nothing may be there that is of none.
    pub fn open(path: &Path, configurations: &Configurations) -> Result<Self> {
        let weights = Weights::open(path)?;
        let layout = Layout::new(configurations)?;
        let found: BTreeSet<&str> = weights.names().into_iter().filter(|name| !is_unread(name)).collect();
        let expected: BTreeSet<&str> = layout.0.iter().map(|entry| entry.theirs.as_str()).collect();
        let held: BTreeSet<Part> =
            Part::ALL.into_iter().filter(|part| found.iter().any(|name| name.starts_with(part.prefix()))).collect();
        let wanted = |entry: &&Entry| held.contains(&entry.part) && !found.contains(entry.theirs.as_str());
        let mismatch = Mismatch {
            origin: path.display().to_string(),
            missing: layout.0.iter().filter(wanted).map(|entry| entry.theirs.clone()).collect(),
            surplus: found.difference(&expected).map(|&name| name.to_owned()).collect(),
            ..Mismatch::default()
        };
        if !mismatch.is_empty() {
            return Err(nn::Error::Mismatch(mismatch).into());
        }
        Ok(Self { path: path.to_owned(), layout, held })
    }

    /// Whether the file holds a network.
    pub fn holds(&self, part: Part) -> bool {
        self.held.contains(&part)
    }

    /// The weights of one network, by diffusers' names.
    pub fn weights(&self, part: Part, kind: Kind, device: Device) -> Result<Weights> {
        let weights = Weights::open(&self.path)?.to(kind, device);
        let mut tensors = BTreeMap::new();
        for entry in self.layout.0.iter().filter(|entry| entry.part == part) {
            tensors.extend(entry.scatter(weights.tensor(&entry.theirs)?));
        }
        Ok(Weights::from_tensors(self.path.display().to_string(), tensors).to(kind, device))
    }
}

/// Whether a file of weights is such a checkpoint rather than a bare UNet.
pub fn is_single_file(path: &Path) -> Result<bool> {
    Ok(Weights::open(path)?.names().iter().any(|name| name.starts_with(Part::UNet.prefix())))
}

/// Writes a checkpoint of the networks given, each of which has to be whole.
pub fn write(path: &Path, networks: &Networks, configurations: &Configurations) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let layout = Layout::new(configurations)?;
    let mut mismatch = Mismatch { origin: "the networks to be written".to_owned(), ..Mismatch::default() };
    let mut out: Vec<(&str, Tensor)> = Vec::new();
    for entry in &layout.0 {
        let Some(network) = networks.get(&entry.part) else { continue };
        let absent: Vec<String> = entry.ours.iter().filter(|name| !network.contains_key(*name)).cloned().collect();
        if absent.is_empty() {
            out.push((&entry.theirs, entry.gather(network)));
        }
        mismatch.missing.extend(absent);
    }
    for (part, network) in networks {
        let known: BTreeSet<&String> =
            layout.0.iter().filter(|entry| entry.part == *part).flat_map(|entry| &entry.ours).collect();
        mismatch.surplus.extend(network.keys().filter(|name| !known.contains(name)).cloned());
    }
    if !mismatch.is_empty() {
        return Err(nn::Error::Mismatch(mismatch).into());
    }
    Ok(nn::save(path, out.iter().map(|(name, tensor)| (*name, tensor)), &[])?)
}
