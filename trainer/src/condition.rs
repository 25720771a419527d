//! What a network is told beside the sample and the timestep.

use tch::{Device, Kind, Tensor};

/// Text and micro-conditioning of a batch, as SDXL's UNet takes them.
#[derive(Debug)]
pub struct Condition {
    /// Both encoders' states side by side, `[B, tokens, width]`.
    pub prompt_embeds: Tensor,
    /// The pooled text, `[B, pooled]`.
    pub pooled: Tensor,
    /// Original height and width, crop top and left, target height and width, `[B, 6]` in FP32.
    pub time_ids: Tensor,
}

/// What classifier-free guidance leads away from.
#[derive(Debug)]
pub enum NullPrompt {
    /// Zeros in the shapes of a prompt, as SDXL was trained.
    Zeros,
    /// The embeddings of an empty prompt, for models whose index says `force_zeros_for_empty_prompt: false`.
    Embedded {
        /// `[tokens, width]`
        prompt_embeds: Tensor,
        /// `[pooled]`
        pooled: Tensor,
    },
}

impl NullPrompt {
    /// The same on `device`, in FP32.
    #[must_use]
    pub fn to_device(&self, device: Device) -> NullPrompt {
        let moved = |tensor: &Tensor| tensor.to_device(device).to_kind(Kind::Float);
        match self {
            NullPrompt::Zeros => NullPrompt::Zeros,
            NullPrompt::Embedded { prompt_embeds, pooled } => {
                NullPrompt::Embedded { prompt_embeds: moved(prompt_embeds), pooled: moved(pooled) }
            }
        }
    }
}

impl Condition {
    /// The same with the null prompt in place of each sample's own.
    pub fn null(&self, prompt: &NullPrompt) -> Condition {
        let (prompt_embeds, pooled) = match prompt {
            NullPrompt::Zeros => (self.prompt_embeds.zeros_like(), self.pooled.zeros_like()),
            NullPrompt::Embedded { prompt_embeds, pooled } => {
                (prompt_embeds.expand_as(&self.prompt_embeds), pooled.expand_as(&self.pooled))
            }
        };
        Condition { prompt_embeds, pooled, time_ids: self.time_ids.shallow_clone() }
    }

    /// This batch `times` over, one after the other.
    pub fn repeated(&self, times: usize) -> Condition {
        let repeat = |tensor: &Tensor| match times {
            1 => tensor.shallow_clone(),
            _ => Tensor::cat(&vec![tensor; times], 0),
        };
        Condition {
            prompt_embeds: repeat(&self.prompt_embeds),
            pooled: repeat(&self.pooled),
            time_ids: repeat(&self.time_ids),
        }
    }

    /// This batch and another, one after the other.
    pub fn and(&self, other: &Condition) -> Condition {
        Condition {
            prompt_embeds: Tensor::cat(&[&self.prompt_embeds, &other.prompt_embeds], 0),
            pooled: Tensor::cat(&[&self.pooled, &other.pooled], 0),
            time_ids: Tensor::cat(&[&self.time_ids, &other.time_ids], 0),
        }
    }

    /// In the network's dtype; time ids stay FP32, where numbers beyond 256 are exact.
    #[must_use]
    pub fn to_kind(&self, kind: Kind) -> Condition {
        Condition {
            prompt_embeds: self.prompt_embeds.to_kind(kind),
            pooled: self.pooled.to_kind(kind),
            time_ids: self.time_ids.shallow_clone(),
        }
    }
}
