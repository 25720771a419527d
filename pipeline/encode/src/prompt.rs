//! Captions to what SDXL's UNet is told of them.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::config::read_json;
use crate::tokenizer::{TokenIds, stack};
use crate::{ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, ClipTokenizer, Error, Result};

/// Both tokenizers of an SDXL model. They can be used from many threads.
pub struct Tokenizers {
    first: ClipTokenizer,
    second: ClipTokenizer,
}

/// A caption as both text encoders see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedCaption {
    first: TokenIds,
    second: TokenIds,
}

/// Both text encoders of an SDXL model.
pub struct TextEncoders {
    first: ClipTextModel,
    second: ClipTextModelWithProjection,
    device: Device,
}

/// What the UNet is told of a batch of captions.
#[derive(Debug)]
pub struct PromptEmbeddings {
    /// `[B, L, D]`: both encoders' penultimate states side by side.
    pub prompt_embeds: Tensor,
    /// `[B, P]`: the second encoder's projected pooled state.
    pub pooled_prompt_embeds: Tensor,
}

impl Tokenizers {
    /// Opens `tokenizer` and `tokenizer_2` of a model folder and holds them against the encoders' configs.
    pub fn open(model: &Path) -> Result<Self> {
        let open = |tokenizer: &str, encoder: &str| {
            let (folder, config) = (model.join(tokenizer), ClipTextConfig::read(&model.join(encoder))?);
            let tokenizer = ClipTokenizer::open(&folder)?;
            if tokenizer.vocabulary_size() > config.vocab_size as usize {
                let (ids, rows) = (tokenizer.vocabulary_size(), config.vocab_size);
                return Err(Error::invalid(folder, format!("has {ids} token ids, the encoder a vocab_size of {rows}")));
            }
            if tokenizer.length() > config.max_position_embeddings as usize {
                let (length, positions) = (tokenizer.length(), config.max_position_embeddings);
                let reason = format!("model_max_length is {length}, the encoder's max_position_embeddings {positions}");
                return Err(Error::invalid(folder, reason));
            }
            Ok(tokenizer)
        };
        let (first, second) = (open("tokenizer", "text_encoder")?, open("tokenizer_2", "text_encoder_2")?);
        if first.length() != second.length() {
            let reason = format!("tokenizer has a length of {}, tokenizer_2 of {}", first.length(), second.length());
            return Err(Error::invalid(model, reason));
        }
        Ok(Self { first, second })
    }

    /// Encodes a caption for both encoders.
    pub fn encode(&self, caption: &str) -> Result<TokenizedCaption> {
        Ok(TokenizedCaption { first: self.first.encode(caption)?, second: self.second.encode(caption)? })
    }
}

impl TokenizedCaption {
    /// Whether the caption's end had to be left out.
    pub fn truncated(&self) -> bool {
        self.first.truncated || self.second.truncated
    }
}

impl TextEncoders {
    /// Takes two encoders that are loaded already, on `device`.
    pub fn new(first: ClipTextModel, second: ClipTextModelWithProjection, device: Device) -> Self {
        Self { first, second, device }
    }

    /// Loads `text_encoder` and `text_encoder_2` of a model folder.
    pub fn open(model: &Path, kind: Kind, device: Device) -> Result<Self> {
        Ok(Self {
            first: ClipTextModel::open(&model.join("text_encoder"), kind, device)?,
            second: ClipTextModelWithProjection::open(&model.join("text_encoder_2"), kind, device)?,
            device,
        })
    }

    /// Runs both encoders.
    pub fn encode(&self, captions: &[TokenizedCaption]) -> PromptEmbeddings {
        let ids = |of: fn(&TokenizedCaption) -> &TokenIds| {
            let sequences: Vec<TokenIds> = captions.iter().map(|caption| of(caption).clone()).collect();
            stack(&sequences).to_device(self.device)
        };
        let first = self.first.penultimate(&ids(|caption| &caption.first));
        let (second, pooled) = self.second.forward(&ids(|caption| &caption.second));
        PromptEmbeddings { prompt_embeds: Tensor::cat(&[first, second.penultimate], -1), pooled_prompt_embeds: pooled }
    }
}

impl PromptEmbeddings {
    /// Zeros in the same shapes: what SDXL was trained on in place of an empty caption.
    pub fn zeros_like(&self) -> Self {
        Self {
            prompt_embeds: self.prompt_embeds.zeros_like(),
            pooled_prompt_embeds: self.pooled_prompt_embeds.zeros_like(),
        }
    }
}

/// Whether the pipeline replaces the embeddings of an empty prompt by zeros: `force_zeros_for_empty_prompt` in
/// `model_index.json`, which is true where it does not say.
pub fn zeros_for_empty_prompt(model: &Path) -> Result<bool> {
    #[derive(serde::Deserialize)]
    struct ModelIndex {
        #[serde(default = "yes")]
        force_zeros_for_empty_prompt: bool,
    }
    fn yes() -> bool {
        true
    }
    let path = model.join("model_index.json");
    if !path.exists() {
        return Ok(true);
    }
    Ok(read_json::<ModelIndex>(&path)?.force_zeros_for_empty_prompt)
}
