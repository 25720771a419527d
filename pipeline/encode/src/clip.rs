//! CLIP's text models: token ids to hidden states and to a pooled state.
//!
//! Shapes: `B` batch, `L` tokens, `D` hidden size, `P` projection width.

use std::path::Path;

use nn::{Activation, Embedding, Init, LayerNorm, Linear, Masking, Scope, Weights, attention};
use tch::{Device, Kind, Tensor};

use crate::config::Pooling;
use crate::{ClipTextConfig, Result};

/// The prefix of all names but the projection's in the published folders.
const PREFIX: &str = "text_model.";
/// A buffer that older files carry beside the weights.
const POSITION_IDS: &str = "embeddings.position_ids";

/// What a text model says about a batch of sequences.
#[derive(Debug)]
pub struct TextStates {
    /// `[B, L, D]`: the input of the last layer, `hidden_states[-2]` in transformers.
    pub penultimate: Tensor,
    /// `[B, L, D]`: the output of the last layer after the final normalisation.
    pub last: Tensor,
    /// `[B, D]`: the last state at the end token.
    pub pooled: Tensor,
}

/// `CLIPTextModel`.
#[derive(Debug)]
pub struct ClipTextModel {
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<ClipLayer>,
    final_layer_norm: LayerNorm,
    pooling: Pooling,
}

/// `CLIPTextModelWithProjection`.
#[derive(Debug)]
pub struct ClipTextModelWithProjection {
    /// The model below the projection.
    pub text_model: ClipTextModel,
    text_projection: Linear,
}

impl ClipTextModel {
    /// Takes the network from a scope, under the names of the published folders.
    pub fn new(scope: &Scope, config: &ClipTextConfig) -> Self {
        let scope = scope.sub("text_model");
        let embeddings = scope.sub("embeddings");
        // The deviations with which transformers begins, so that a fresh model is one that can be trained.
        let embedding =
            |name, entries| embeddings.sub(name).embedding(entries, config.hidden_size, Init::Normal { std: 0.02 });
        Self {
            token_embedding: embedding("token_embedding", config.vocab_size),
            position_embedding: embedding("position_embedding", config.max_position_embeddings),
            layers: (0..config.num_hidden_layers)
                .map(|i| ClipLayer::new(&scope.sub("encoder").sub("layers").sub(i), &config.layer()))
                .collect(),
            final_layer_norm: scope.sub("final_layer_norm").layer_norm(config.hidden_size, config.layer_norm_eps),
            pooling: config.pooling(),
        }
    }

    /// Loads the `text_encoder` folder of a diffusers model.
    pub fn open(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let config = ClipTextConfig::read(folder)?;
        let (model, _) = Self::weights(folder)?.to(kind, device).build(|scope| Self::new(scope, &config))?;
        Ok(model)
    }

    /// Opens the weights of a text model's folder, with a projection or without, under the published spelling.
    /// transformers 5 writes `CLIPTextModel` without the prefix, and older files hold a buffer of position ids; both are
    /// the same network.
    pub fn weights(folder: &Path) -> Result<Weights> {
        Ok(Weights::open_folder(folder, "model")?.rename(published_name)?)
    }

    /// All states of token ids `[B, L]`.
    pub fn forward(&self, ids: &Tensor) -> TextStates {
        let penultimate = self.penultimate(ids);
        let last = self.final_layer_norm.forward(&self.last_layer().forward(&penultimate, Masking::Causal));
        let pooled = self.pool(&last, ids);
        TextStates { penultimate, last, pooled }
    }

    /// The penultimate state alone; the last layer is left out.
    pub fn penultimate(&self, ids: &Tensor) -> Tensor {
        let length = ids.size()[1];
        let positions = Tensor::arange(length, (Kind::Int64, ids.device()));
        let mut x = self.token_embedding.forward(ids) + self.position_embedding.forward(&positions);
        for layer in &self.layers[..self.layers.len() - 1] {
            x = layer.forward(&x, Masking::Causal);
        }
        x
    }

    fn last_layer(&self) -> &ClipLayer {
        &self.layers[self.layers.len() - 1]
    }

    /// The row of `states` `[B, L, D]` at each sequence's end token.
    fn pool(&self, states: &Tensor, ids: &Tensor) -> Tensor {
        let end = match self.pooling {
            Pooling::LargestId => ids.argmax(1, true),
            // `argmax` of equal values gives the first.
            Pooling::FirstOf(id) => ids.eq(id).to_kind(Kind::Int).argmax(1, true),
        };
        let index = end.unsqueeze(2).expand([-1, 1, states.size()[2]], false);
        states.gather(1, &index, false).squeeze_dim(1)
    }
}

impl ClipTextModelWithProjection {
    /// Takes the network from a scope, under the names of the published folders.
    pub fn new(scope: &Scope, config: &ClipTextConfig) -> Self {
        Self {
            text_model: ClipTextModel::new(scope, config),
            text_projection: scope.sub("text_projection").linear(config.hidden_size, config.projection_dim, false),
        }
    }

    /// Loads the `text_encoder_2` folder of a diffusers model.
    pub fn open(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let config = ClipTextConfig::read(folder)?;
        let (model, _) = ClipTextModel::weights(folder)?.to(kind, device).build(|scope| Self::new(scope, &config))?;
        Ok(model)
    }

    /// All states of token ids `[B, L]`, and the projection `[B, P]` of the pooled one (`text_embeds`).
    pub fn forward(&self, ids: &Tensor) -> (TextStates, Tensor) {
        let states = self.text_model.forward(ids);
        let projected = self.text_projection.forward(&states.pooled);
        (states, projected)
    }
}

fn published_name(name: &str) -> Option<String> {
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    match bare {
        POSITION_IDS => None,
        _ if bare.starts_with("text_projection.") => Some(name.to_owned()),
        _ => Some(format!("{PREFIX}{bare}")),
    }
}

/// The sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipLayerConfig {
    /// The width of a state.
    pub width: i64,
    /// The width inside the feed-forward part.
    pub inner: i64,
    /// Heads of the attention.
    pub heads: i64,
    /// The activation inside the feed-forward part.
    pub activation: Activation,
    /// Added to the variance in every normalisation.
    pub eps: f64,
}

impl ClipTextConfig {
    fn layer(&self) -> ClipLayerConfig {
        ClipLayerConfig {
            width: self.hidden_size,
            inner: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            eps: self.layer_norm_eps,
        }
    }
}

/// A layer of CLIP's towers: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Debug)]
pub struct ClipLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
    layer_norm2: LayerNorm,
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
}

impl ClipLayer {
    /// Takes the layer from a scope, under transformers' names.
    pub fn new(scope: &Scope, config: &ClipLayerConfig) -> Self {
        let ClipLayerConfig { width, inner, heads, activation, eps } = *config;
        let attention = |name| scope.sub("self_attn").sub(name).linear(width, width, true);
        Self {
            layer_norm1: scope.sub("layer_norm1").layer_norm(width, eps),
            q_proj: attention("q_proj"),
            k_proj: attention("k_proj"),
            v_proj: attention("v_proj"),
            out_proj: attention("out_proj"),
            heads,
            layer_norm2: scope.sub("layer_norm2").layer_norm(width, eps),
            fc1: scope.sub("mlp").sub("fc1").linear(width, inner, true),
            activation,
            fc2: scope.sub("mlp").sub("fc2").linear(inner, width, true),
        }
    }

    /// States `[B, L, D]` to states.
    pub fn forward(&self, x: &Tensor, masking: Masking) -> Tensor {
        let h = self.layer_norm1.forward(x);
        let (q, k, v) = (self.q_proj.forward(&h), self.k_proj.forward(&h), self.v_proj.forward(&h));
        let x = x + self.out_proj.forward(&attention(&q, &k, &v, self.heads, masking));
        let h = self.fc1.forward(&self.layer_norm2.forward(&x));
        &x + self.fc2.forward(&self.activation.forward(&h))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_becomes_the_published_one() {
        let published = Some("text_model.final_layer_norm.weight".to_owned());
        assert_eq!(published_name("final_layer_norm.weight"), published);
        assert_eq!(published_name("text_model.final_layer_norm.weight"), published);
        assert_eq!(published_name("text_projection.weight").as_deref(), Some("text_projection.weight"));
        assert_eq!(published_name("text_model.embeddings.position_ids"), None);
        assert_eq!(published_name("embeddings.position_ids"), None);
    }
}
