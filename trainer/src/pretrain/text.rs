//! The text encoders: their own phase, and what they make of captions.
//!
//! In their own phase they learn to answer the probe's questions from captions alone, in minutes; the UNet's phase
//! then starts from states that tell scenes apart.

use std::path::Path;

use demo_world::scene::{Scene, Split, item_rng};
use encode::tokenizer::stack;
use encode::{ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, ClipTokenizer, TokenIds};
use nn::{Linear, Params, Weights};
use tch::Tensor;

use super::desk::Desk;
use super::recipe::PretrainRecipe;
use super::{Start, Stream, average, joined};
use crate::Result;
use crate::optimizer::{Optimizer, StateDevice};
use crate::probe::questions::{self, Question};

/// The name of the phase and of its files.
pub const PHASE: &str = "text";

/// Both encoders with their tokenizers.
pub struct TextEncoders {
    tokenizer: ClipTokenizer,
    tokenizer_2: ClipTokenizer,
    encoder: ClipTextModel,
    encoder_2: ClipTextModelWithProjection,
    widths: Widths,
    /// The parameters of the first.
    pub params: Params,
    /// The parameters of the second.
    pub params_2: Params,
}

/// Widths of the states.
#[derive(Clone, Copy)]
struct Widths {
    context: i64,
    pooled: i64,
}

/// What the encoders make of captions.
pub struct TextEmbeddings {
    /// Both penultimate states side by side, `[B, tokens, width]`.
    pub context: Tensor,
    /// The second encoder's projection, `[B, width]`.
    pub pooled: Tensor,
    /// The penultimate states at each caption's end, `[B, width]`.
    end: Tensor,
}

impl TextEncoders {
    /// Encoders of the configurations in a model's folder, and its tokenizers.
    pub fn new(model: &Path, seed: u64, start: &Start) -> Result<Self> {
        let config = ClipTextConfig::read(&model.join("text_encoder"))?;
        let config_2 = ClipTextConfig::read(&model.join("text_encoder_2"))?;
        let (encoder, params) =
            start.weights("text_encoder", "model", seed)?.build(|scope| ClipTextModel::new(scope, &config))?;
        let (encoder_2, params_2) = start
            .weights("text_encoder_2", "model", seed + 1)?
            .build(|scope| ClipTextModelWithProjection::new(scope, &config_2))?;
        Ok(Self {
            tokenizer: ClipTokenizer::open(&model.join("tokenizer"))?,
            tokenizer_2: ClipTokenizer::open(&model.join("tokenizer_2"))?,
            encoder,
            encoder_2,
            widths: Widths { context: config.hidden_size + config_2.hidden_size, pooled: config_2.projection_dim },
            params,
            params_2,
        })
    }

    /// Encodes captions, padded to the tokenizers' length as the UNet sees them.
    pub fn embed(&self, captions: &[String]) -> Result<TextEmbeddings> {
        let tokens = Tokens::new(&self.tokenizer, captions)?;
        let tokens_2 = Tokens::new(&self.tokenizer_2, captions)?;
        Ok(self.embed_ids(&tokens.ids, &tokens_2.ids, &tokens.ends))
    }

    /// Encodes captions without padding beyond the longest: the states up to each end are the same, as no token sees
    /// those behind it.
    fn embed_unpadded(&self, captions: &[String]) -> Result<TextEmbeddings> {
        let tokens = Tokens::new(&self.tokenizer, captions)?;
        let tokens_2 = Tokens::new(&self.tokenizer_2, captions)?;
        let length = tokens.ends.max().int64_value(&[]) + 1;
        Ok(self.embed_ids(&tokens.ids.narrow(1, 0, length), &tokens_2.ids.narrow(1, 0, length), &tokens.ends))
    }

    fn embed_ids(&self, ids: &Tensor, ids_2: &Tensor, ends: &Tensor) -> TextEmbeddings {
        let (states_2, pooled) = self.encoder_2.forward(ids_2);
        let context = Tensor::cat(&[self.encoder.penultimate(ids), states_2.penultimate], -1);
        let at = ends.view([-1, 1, 1]).expand([-1, 1, self.widths.context], false);
        let end = context.gather(1, &at, false).squeeze_dim(1);
        TextEmbeddings { context, pooled, end }
    }

    /// Teaches the encoders to answer questions about scenes from their captions.
    pub fn train(&self, recipe: &PretrainRecipe, desk: &Desk) -> Result<()> {
        // Two readers, so that the pooled state and the states that the UNet attends to both learn to tell.
        let Widths { context, pooled } = self.widths;
        let (readers, reader_params) = Weights::seeded(recipe.seed).build(|scope| {
            let reader = |name: &str, width| scope.sub(name).linear(width, Question::logits(), true);
            [reader("pooled", pooled), reader("end", context)]
        })?;
        let trained =
            joined([("text_encoder", &self.params), ("text_encoder_2", &self.params_2), ("readers", &reader_params)]);
        let mut optimizer = Optimizer::new(trained.iter(), StateDevice::Same, true)?;
        desk.train(PHASE, &recipe.text.updates, &mut optimizer, |step| {
            let scenes = batch(recipe, step);
            let captions = captions(&scenes, recipe.seed, step);
            let embeddings = self.embed_unpadded(&captions)?;
            let answers = questions::answers(&scenes);
            let [from_pooled, from_end]: [&Linear; 2] = readers.each_ref();
            Ok(questions::loss(&from_pooled.forward(&embeddings.pooled), &answers)
                + questions::loss(&from_end.forward(&embeddings.end), &answers))
        })?;
        average(&trained, &optimizer);
        Ok(())
    }
}

/// Captions as one tokenizer gives them.
struct Tokens {
    /// `[B, tokens]`
    ids: Tensor,
    /// Where each caption ends, `[B]`.
    ends: Tensor,
}

impl Tokens {
    fn new(tokenizer: &ClipTokenizer, captions: &[String]) -> Result<Self> {
        let sequences: Vec<TokenIds> =
            captions.iter().map(|caption| tokenizer.encode(caption)).collect::<encode::Result<_>>()?;
        // The end token has the largest id of a CLIP vocabulary.
        let end = |tokens: &TokenIds| {
            let largest = tokens.ids.iter().max();
            tokens.ids.iter().position(|id| Some(id) == largest).unwrap_or_default() as i64
        };
        let ends: Vec<i64> = sequences.iter().map(end).collect();
        Ok(Self { ids: stack(&sequences), ends: Tensor::from_slice(&ends) })
    }
}

fn batch(recipe: &PretrainRecipe, step: u64) -> Vec<Scene> {
    let rng = &mut item_rng(recipe.seed, Stream::Text as u64, step);
    (0..recipe.text.batch).map(|_| Scene::draw(Split::Shown, rng)).collect()
}

/// A phrasing for each scene, another one in each update.
pub fn captions(scenes: &[Scene], seed: u64, step: u64) -> Vec<String> {
    let rng = &mut item_rng(seed, Stream::Captions as u64, step);
    scenes.iter().map(|scene| scene.caption(rng)).collect()
}
