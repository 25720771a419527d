//! CLIP as transformers' `CLIPModel` lays it down: how well a picture and a caption fit.
//!
//! Shapes: `B` batch, `D` hidden size, `P` projection width, `N` patches.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use encode::tokenizer::stack;
use encode::{ClipLayer, ClipLayerConfig, ClipTextConfig, ClipTextModelWithProjection, ClipTokenizer};
use nn::{Activation, Init, LayerNorm, Linear, Masking, Scope, Weights};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::resize::resize;
use crate::{Error, Result};

/// Mean and standard deviation of the channels that the published models were trained with.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// Pillow's number for the filter that pictures are resized with.
const BICUBIC: i64 = 3;

/// `config.json` of a CLIP model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ClipConfig {
    /// The width that both towers are projected to.
    pub projection_dim: i64,
    /// The tower that reads.
    pub text_config: ClipTextConfig,
    /// The tower that sees.
    pub vision_config: ClipVisionConfig,
}

/// The part of a CLIP's config that describes the tower that sees.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// The width of a state.
    pub hidden_size: i64,
    /// The width inside the feed-forward layers.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: i64,
    /// The side of a picture in pixels.
    pub image_size: i64,
    /// The side of a patch in pixels.
    pub patch_size: i64,
    /// The activation inside the feed-forward layers.
    pub hidden_act: Activation,
    /// Added to the variance in every normalisation.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    /// transformers' defaults.
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipConfig {
    /// Reads and checks `FOLDER/config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let mut config: Self = encode::config::read_json(&path)?;
        config.text_config.projection_dim = config.projection_dim;
        config.check().map_err(|reason| Error::Document { path, reason })?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.text_config.check().map_err(|error| error.to_string())?;
        let vision = &self.vision_config;
        let sizes = [
            self.projection_dim,
            vision.hidden_size,
            vision.intermediate_size,
            vision.num_attention_heads,
            vision.image_size,
            vision.patch_size,
        ];
        if sizes.iter().any(|size| !(1..=1 << 24).contains(size)) {
            return Err("a size is out of range".into());
        }
        if vision.hidden_size % vision.num_attention_heads != 0 || vision.image_size % vision.patch_size != 0 {
            return Err(format!(
                "vision_config: num_attention_heads {} has to divide hidden_size {}, and patch_size {} image_size {}",
                vision.num_attention_heads, vision.hidden_size, vision.patch_size, vision.image_size
            ));
        }
        Ok(())
    }
}

/// The part of `preprocessor_config.json` that changes what a tower sees.
#[derive(Deserialize)]
#[serde(default)]
struct Preprocessor {
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    resample: i64,
    rescale_factor: f64,
    size: Option<Sides>,
    crop_size: Option<Sides>,
}

/// A number, or each side by its name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Sides {
    Both(i64),
    Named(BTreeMap<String, Option<i64>>),
}

impl Sides {
    fn are(&self, side: i64) -> bool {
        match self {
            Self::Both(both) => *both == side,
            Self::Named(sides) => sides.values().flatten().all(|&named| named == side),
        }
    }
}

impl Default for Preprocessor {
    /// transformers' defaults.
    fn default() -> Self {
        Self {
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            image_mean: MEAN,
            image_std: STD,
            resample: BICUBIC,
            rescale_factor: 1.0 / 255.0,
            size: None,
            crop_size: None,
        }
    }
}

impl Preprocessor {
    /// Refuses `FOLDER/preprocessor_config.json` where it asks for something else than [`prepare`] does; a folder may
    /// have none.
    fn check(folder: &Path, side: i64) -> Result<()> {
        let path = folder.join("preprocessor_config.json");
        if !path.is_file() {
            return Ok(());
        }
        let asked: Self = encode::config::read_json(&path)?;
        let same = |asked: [f32; 3], ours: [f32; 3]| asked.iter().zip(ours).all(|(a, b)| (a - b).abs() < 1e-6);
        let sides = |sides: &Option<Sides>| sides.as_ref().is_none_or(|sides| sides.are(side));
        let checks = [
            ("do_resize", asked.do_resize),
            ("do_rescale", asked.do_rescale),
            ("do_normalize", asked.do_normalize),
            ("image_mean", same(asked.image_mean, MEAN)),
            ("image_std", same(asked.image_std, STD)),
            ("resample", asked.resample == BICUBIC),
            ("rescale_factor", (asked.rescale_factor * 255.0 - 1.0).abs() < 1e-6),
            ("size", sides(&asked.size)),
            ("crop_size", sides(&asked.crop_size)),
        ];
        match checks.into_iter().find(|(_, as_here)| !as_here) {
            Some((key, _)) => {
                let reason = format!("`{key}` is not that of the published CLIP models at {side} pixels");
                Err(Error::Document { path, reason })
            }
            None => Ok(()),
        }
    }
}

/// Both towers and their projections.
#[derive(Debug)]
pub struct ClipModel {
    text: ClipTextModelWithProjection,
    vision: VisionTower,
    visual_projection: Linear,
}

impl ClipModel {
    /// Takes the network from a scope, under the published names.
    pub fn new(scope: &Scope, config: &ClipConfig) -> Self {
        Self {
            text: ClipTextModelWithProjection::new(scope, &config.text_config),
            vision: VisionTower::new(&scope.sub("vision_model"), &config.vision_config),
            visual_projection: scope.sub("visual_projection").linear(
                config.vision_config.hidden_size,
                config.projection_dim,
                false,
            ),
        }
    }

    /// `get_text_features`: token ids `[B, L]` to `[B, P]`.
    pub fn text_features(&self, ids: &Tensor) -> Tensor {
        self.text.forward(ids).1
    }

    /// `get_image_features`: normalised pixels `[B, 3, side, side]` to `[B, P]`.
    pub fn image_features(&self, pixels: &Tensor) -> Tensor {
        self.visual_projection.forward(&self.vision.forward(pixels))
    }
}

/// `CLIPVisionTransformer`, up to its pooled state.
#[derive(Debug)]
struct VisionTower {
    /// `[D]`
    class_embedding: Tensor,
    /// `[D, 3, patch, patch]`
    patch_embedding: Tensor,
    /// `[1 + N, D]`
    position_embedding: Tensor,
    pre_norm: LayerNorm,
    layers: Vec<ClipLayer>,
    post_norm: LayerNorm,
    patch: i64,
}

impl VisionTower {
    fn new(scope: &Scope, config: &ClipVisionConfig) -> Self {
        const STD: f64 = 0.02;
        let (width, patch) = (config.hidden_size, config.patch_size);
        let layer = ClipLayerConfig {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        let embeddings = scope.sub("embeddings");
        let positions = 1 + (config.image_size / patch).pow(2);
        let init = Init::Normal { std: STD };
        Self {
            class_embedding: embeddings.tensor("class_embedding", &[width], init),
            patch_embedding: embeddings.sub("patch_embedding").tensor("weight", &[width, 3, patch, patch], init),
            position_embedding: embeddings.sub("position_embedding").tensor("weight", &[positions, width], init),
            // The spelling is that of the published files.
            pre_norm: scope.sub("pre_layrnorm").layer_norm(width, config.layer_norm_eps),
            layers: (0..config.num_hidden_layers)
                .map(|i| ClipLayer::new(&scope.sub("encoder").sub("layers").sub(i), &layer))
                .collect(),
            post_norm: scope.sub("post_layernorm").layer_norm(width, config.layer_norm_eps),
            patch,
        }
    }

    /// `[B, 3, side, side]` to the class token's state, `[B, D]`.
    fn forward(&self, pixels: &Tensor) -> Tensor {
        let (batch, width) = (pixels.size()[0], self.class_embedding.size()[0]);
        let stride = [self.patch, self.patch];
        let patches = pixels.conv2d(&self.patch_embedding, None::<&Tensor>, stride, [0, 0], [1, 1], 1);
        let class = self.class_embedding.expand([batch, 1, width], false);
        let tokens = Tensor::cat(&[class, patches.flatten(2, -1).transpose(1, 2)], 1) + &self.position_embedding;
        let states =
            self.layers.iter().fold(self.pre_norm.forward(&tokens), |x, layer| layer.forward(&x, Masking::None));
        self.post_norm.forward(&states.select(1, 0))
    }
}

/// A CLIP with its tokenizer, as it judges captions and pictures.
pub struct ClipScorer {
    model: ClipModel,
    tokenizer: ClipTokenizer,
    side: i64,
    device: Device,
    /// The files that it was loaded from.
    pub files: Vec<PathBuf>,
}

impl ClipScorer {
    /// Loads a folder in transformers' layout: `config.json`, `model.safetensors` and the tokenizer's files.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let config = ClipConfig::read(folder)?;
        let tokenizer = ClipTokenizer::open(folder)?;
        if tokenizer.length() > config.text_config.max_position_embeddings as usize {
            let (length, positions) = (tokenizer.length(), config.text_config.max_position_embeddings);
            let reason = format!("model_max_length is {length}, max_position_embeddings {positions}");
            return Err(Error::Document { path: folder.join("config.json"), reason });
        }
        let (ids, rows) = (tokenizer.vocabulary_size(), config.text_config.vocab_size);
        if ids > rows as usize {
            let reason = format!("the tokenizer has {ids} token ids, the text tower a vocab_size of {rows}");
            return Err(Error::Document { path: folder.join("config.json"), reason });
        }
        Preprocessor::check(folder, config.vision_config.image_size)?;
        let weights = Weights::open_folder(folder, "model")?;
        let files = weights.files().to_vec();
        let weights = weights.rename(|name| is_used(name).then(|| name.to_owned()))?.to(Kind::Float, device);
        let (model, _) = weights.build(|scope| ClipModel::new(scope, &config))?;
        Ok(Self { model, tokenizer, side: config.vision_config.image_size, device, files })
    }

    /// 100 times the cosine of each picture and its caption, `[B]`. `pictures` are `[B, 3, H, W]` of grey levels, 0 to
    /// 255, square.
    pub fn scores(&self, pictures: &Tensor, captions: &[String]) -> Result<Tensor> {
        let ids = captions.iter().map(|caption| self.tokenizer.encode(caption)).collect::<encode::Result<Vec<_>>>()?;
        let texts = self.model.text_features(&stack(&ids).to_device(self.device));
        let seen = self.model.image_features(&prepare(&pictures.to_device(self.device), self.side));
        Ok(Tensor::cosine_similarity(&texts, &seen, 1, 1e-8) * 100.0)
    }
}

/// What transformers' `CLIPImageProcessor` makes of square pictures: resized across and then down, each time to whole
/// grey levels, and normalised.
pub fn prepare(pictures: &Tensor, side: i64) -> Tensor {
    let column = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(pictures.device());
    let across = resize(pictures, pictures.size()[2], side).round();
    let pixels = resize(&across, side, side).round() / 255.0;
    (pixels - column(MEAN)) / column(STD)
}

/// The published files carry buffers of position ids and the scale of the training's logits.
fn is_used(name: &str) -> bool {
    name != "logit_scale" && !name.ends_with(".position_ids")
}
