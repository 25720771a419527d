//! The scores that published tables carry.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A score that a source publishes. Each variant is one model on one scale, so that a threshold cannot be
/// read on another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// LAION's first aesthetic predictor (`aesthetic`); above 7 lie 52 million rows of laion2B-en.
    AestheticV1,
    /// LAION's second aesthetic predictor (`AESTHETIC_SCORE`, COYO's `aesthetic_score_laion_v2`); from 6 on
    /// lie about 12 million rows of laion2B-en.
    AestheticV2,
    /// Image-text cosine similarity as LAION publishes it (`similarity`).
    Similarity,
    /// CLIP ViT-B/32 image-text cosine similarity of COYO and DataComp.
    SimilarityB32,
    /// CLIP ViT-L/14 image-text cosine similarity of COYO and DataComp.
    SimilarityL14,
    /// LAION's probability that an image is unsafe (`punsafe`).
    Punsafe,
    /// OpenNSFW2's probability (COYO).
    Opennsfw2,
    /// GantMan's NSFW probability (COYO).
    Gantman,
    /// LAION's watermark detector (`pwatermark`, COYO's `watermark_score`).
    Watermark,
}

impl Score {
    /// Every score, in the order of this enum.
    pub const ALL: [Score; 9] = [
        Score::AestheticV1,
        Score::AestheticV2,
        Score::Similarity,
        Score::SimilarityB32,
        Score::SimilarityL14,
        Score::Punsafe,
        Score::Opennsfw2,
        Score::Gantman,
        Score::Watermark,
    ];

    /// The name in recipes, tables and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Score::AestheticV1 => "aesthetic_v1",
            Score::AestheticV2 => "aesthetic_v2",
            Score::Similarity => "similarity",
            Score::SimilarityB32 => "similarity_b32",
            Score::SimilarityL14 => "similarity_l14",
            Score::Punsafe => "punsafe",
            Score::Opennsfw2 => "opennsfw2",
            Score::Gantman => "gantman",
            Score::Watermark => "watermark",
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Score {
    type Err = String;

    fn from_str(name: &str) -> Result<Score, String> {
        Score::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| format!("{name:?} is not a score"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_names_are_those_of_serde() {
        for score in Score::ALL {
            assert_eq!(serde_json::to_string(&score).unwrap(), format!("\"{score}\""));
            assert_eq!(score.name().parse::<Score>().unwrap(), score);
        }
    }
}
