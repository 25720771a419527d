//! What became of a row that reached the network.

use pixels::{Format, Sharpness};
use serde::{Deserialize, Serialize};
use shards::ContentHash;

use crate::reason::Reason;
use crate::row::{Candidate, Size};

/// A row and the answer to its request: one entry of the journal, and all that later decisions are made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for.
    pub candidate: Candidate,
    /// What came.
    pub answer: Answer,
}

/// The answer to one row's request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// An image, measured.
    Image(Box<Measured>),
    /// None that could be measured.
    None(Rejection),
}

/// A row that is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// What exactly happened, for people.
    pub detail: String,
}

/// What was measured on a downloaded image, before any threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Format of the downloaded bytes.
    pub format: Format,
    /// Size of the upright image.
    pub size: Size,
    /// How the stored pixels are turned, as EXIF has it: 1 to 8.
    pub orientation: u8,
    /// Length of the downloaded file.
    pub bytes: u64,
    /// Hash of the downloaded file.
    pub sha256: ContentHash,
    /// Absent where the image was turned down by its header.
    pub pixels: Option<PixelMeasures>,
    /// Why a rule on this sample alone turns it down, if one does.
    pub rejection: Option<Rejection>,
    /// A small grey JPEG in base64, for the report, of an image that a rule on sharpness turned down by less than half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnail: Option<String>,
}

/// What takes a decode to measure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PixelMeasures {
    /// Raw sharpness.
    pub sharpness: Sharpness,
    /// Perceptual hash.
    pub perceptual_hash: u64,
}

/// A row's place or the reason why it has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is a sample.
    Kept {
        /// Number of the shard.
        shard: u64,
        /// Position in it, from 0.
        place: u64,
        /// The byte at which it begins; finished runs of earlier versions do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
    },
    /// It is none.
    Rejected(Rejection),
}

impl Rejection {
    /// A rejection whose reason says it all.
    pub fn plain(reason: Reason) -> Rejection {
        Rejection { reason, detail: String::new() }
    }
}
