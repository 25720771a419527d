//! A row of a source table, as it is carried through the run.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::caption::Cleaned;

/// Where a row stands: its source in the recipe and its position in that source's tables taken one after
/// another. Ordered as the rows are. Its text form is the sample's key, `s00-000001234`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// Position of the source in the recipe.
    pub source: u16,
    /// Position of the row in the source.
    pub row: u64,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{:02}-{:09}", self.source, self.row)
    }
}

impl FromStr for RowId {
    type Err = String;

    fn from_str(text: &str) -> Result<RowId, String> {
        let parse = || {
            let (source, row) = text.strip_prefix('s')?.split_once('-')?;
            Some(RowId { source: source.parse().ok()?, row: row.parse().ok()? })
        };
        // Only the canonical form, so that a key names one row and a row has one key.
        parse().filter(|id| id.to_string() == text).ok_or_else(|| format!("{text:?} is not the key of a row"))
    }
}

impl Serialize for RowId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RowId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RowId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

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

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl Size {
    /// The shorter side.
    pub fn min_side(self) -> u32 {
        self.width.min(self.height)
    }

    /// The longer side over the shorter; at least 1.
    pub fn aspect_ratio(self) -> f64 {
        f64::from(self.width.max(self.height)) / f64::from(self.min_side().max(1))
    }
}

/// A row that passed its source's filter and the rules for captions: what is to be fetched, and what the table says about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The row, and thereby the sample's key.
    pub key: RowId,
    /// As the table has it.
    pub url: String,
    /// Cleaned.
    pub caption: Cleaned,
    /// As the table has it.
    pub caption_original: String,
    /// The size that the table claims, where it claims one.
    pub claimed: Option<Size>,
    /// Every score of the table that is a finite number.
    pub scores: BTreeMap<Score, f64>,
}

impl Candidate {
    /// The host that the URL names, or what stands in its place.
    pub fn host(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        match host.rsplit_once(':') {
            Some((name, _)) if !host.ends_with(']') => name,
            _ => host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_rows_are_and_lead_back() {
        let id = RowId { source: 0, row: 1234 };
        assert_eq!(id.to_string(), "s00-000001234");
        for id in [id, RowId { source: 100, row: 12_345_678_901 }] {
            assert_eq!(id.to_string().parse::<RowId>().unwrap(), id);
        }
        assert!(RowId { source: 0, row: 9 } < RowId { source: 0, row: 10 });
        assert!(RowId { source: 0, row: u64::MAX } < RowId { source: 1, row: 0 });
        for other in ["", "s00", "s0-000001234", "s00-1234", "00-000001234", "s00-00000123x"] {
            assert!(other.parse::<RowId>().is_err(), "{other:?}");
        }
    }

    #[test]
    fn hosts_are_told_from_what_stands_around_them() {
        for (url, host) in [
            ("https://a.example/b.jpg", "a.example"),
            ("http://user:pass@a.example:8080?x", "a.example"),
            ("http://[::1]:80/x", "[::1]"),
            ("http://[::1]", "[::1]"),
            ("nonsense", "nonsense"),
        ] {
            let candidate = Candidate {
                key: RowId { source: 0, row: 0 },
                url: url.to_owned(),
                caption: crate::caption::clean("", &[]),
                caption_original: String::new(),
                claimed: None,
                scores: BTreeMap::new(),
            };
            assert_eq!(candidate.host(), host);
        }
    }

    #[test]
    fn score_names_are_those_of_serde() {
        for score in Score::ALL {
            assert_eq!(serde_json::to_string(&score).unwrap(), format!("\"{score}\""));
            assert_eq!(score.name().parse::<Score>().unwrap(), score);
        }
    }
}
