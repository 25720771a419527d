//! What the report tells, gathered in one pass over the ledger.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use shards::ContentHash;

use crate::counts::Counts;
use crate::hosts::Hosts;
use crate::ledger::Entry;
use crate::reason::Reason;
use crate::recipe::{Recipe, SharpnessRules};
use crate::record::{Answer, Measured, Verdict};
use crate::row::{Candidate, RowId, Size};
use crate::score::Score;

/// Repeated contents that are told, and how many rows one of them has at least.
const CONTENTS: usize = 8;
const REPEATED: u64 = 3;
/// Hosts whose failures are counted one by one.
const HOSTS: usize = 1 << 18;
/// Thumbnails of each kind.
const PICTURES: usize = 8;

/// What was found in the ledger.
#[derive(Debug)]
pub struct Survey {
    /// One for each quantity, with the thresholds that the recipe sets on it.
    pub histograms: Vec<Histogram>,
    /// Rows that failed to be fetched, by host.
    pub failures_by_host: Hosts<Counts>,
    /// By source.
    pub sizes: BTreeMap<u16, ClaimedSizes>,
    rules: SharpnessRules,
    /// Downloaded contents, by the first half of their hash.
    contents: HashMap<u128, Content>,
    /// Those that a rule on sharpness turned down by least, the nearest first.
    pub nearest: Vec<NearMiss>,
    /// The sharpest samples, sharpest first.
    pub sharpest: Vec<Picture>,
    /// The least sharp samples, least sharp first.
    pub blurriest: Vec<Picture>,
}

/// Images that are not square and whose table claims a size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimedSizes {
    /// All of them.
    pub images: u64,
    /// Those with the width that the table calls their height, and the other way round.
    pub swapped: u64,
}

/// What rows brought one content.
#[derive(Debug, Clone)]
pub struct Content {
    /// Hash of the bytes.
    pub sha256: ContentHash,
    /// How many rows brought them.
    pub rows: u64,
    /// How many of these are samples.
    pub kept: u64,
    /// Their number.
    pub bytes: u64,
    /// Size of the image.
    pub size: Size,
    /// The first row that brought them.
    pub first: RowId,
}

/// An image that was nearly sharp enough.
#[derive(Debug, Clone, PartialEq)]
pub struct NearMiss {
    /// Its row.
    pub key: RowId,
    /// Its caption.
    pub caption: String,
    /// By what it missed.
    pub detail: String,
    /// The least of its scores' parts of their thresholds.
    pub nearness: f64,
    /// A JPEG in base64.
    pub thumbnail: String,
}

/// A sample to be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Its key.
    pub key: RowId,
    /// Its caption.
    pub caption: String,
    /// Whole-image sharpness.
    pub sharpness: f64,
    /// Number of its shard.
    pub shard: u64,
    /// The byte at which it begins there.
    pub offset: u64,
}

/// How a quantity is spread over kept and rejected images.
#[derive(Debug)]
pub struct Histogram {
    /// What is counted.
    pub quantity: Quantity,
    /// Values of the recipe's thresholds on it.
    pub thresholds: Vec<f64>,
    /// Images by bin: kept, rejected.
    pub bins: BTreeMap<i32, (u64, u64)>,
}

/// A quantity that an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Shorter side in pixels.
    MinSide,
    /// [`pixels::Sharpness::whole`].
    SharpnessWhole,
    /// [`pixels::Sharpness::tile`].
    SharpnessTile,
    /// [`pixels::Sharpness::detail`].
    SharpnessDetail,
    /// A published score.
    Score(Score),
}

impl Quantity {
    /// What the axis says.
    pub fn title(self) -> String {
        match self {
            Quantity::MinSide => "shorter side, pixels".into(),
            Quantity::SharpnessWhole => "sharpness of the whole".into(),
            Quantity::SharpnessTile => "sharpness of the sharpest tiles".into(),
            Quantity::SharpnessDetail => "detail at full resolution".into(),
            Quantity::Score(score) => score.to_string(),
        }
    }

    /// Position of a value on the axis, in bins: linear for scores, quarter octaves for the rest.
    pub fn position(self, value: f64) -> f64 {
        match self {
            Quantity::Score(Score::AestheticV1 | Score::AestheticV2) => value * 4.0,
            Quantity::Score(_) => value * 40.0,
            _ => value.max(1.0 / 1024.0).log2() * 4.0,
        }
    }

    /// The value at a position, the inverse of [`position`](Quantity::position).
    pub fn value(self, position: f64) -> f64 {
        match self {
            Quantity::Score(Score::AestheticV1 | Score::AestheticV2) => position / 4.0,
            Quantity::Score(_) => position / 40.0,
            _ => (position / 4.0).exp2(),
        }
    }

    fn of(self, candidate: &Candidate, measured: &Measured) -> Option<f64> {
        let sharpness = measured.pixels.map(|p| p.sharpness);
        match self {
            Quantity::MinSide => Some(f64::from(measured.size.min_side())),
            Quantity::SharpnessWhole => Some(sharpness?.whole),
            Quantity::SharpnessTile => Some(sharpness?.tile),
            Quantity::SharpnessDetail => Some(sharpness?.detail),
            Quantity::Score(score) => candidate.scores.get(&score).copied(),
        }
    }
}

impl Survey {
    /// One of an empty ledger.
    pub fn new(recipe: &Recipe) -> Survey {
        let sharpness = recipe.sharpness;
        let quantities = [
            (Quantity::MinSide, vec![f64::from(recipe.image.min_side)]),
            (Quantity::SharpnessWhole, vec![sharpness.min_whole]),
            (Quantity::SharpnessTile, vec![sharpness.min_tile]),
            (Quantity::SharpnessDetail, vec![sharpness.min_detail]),
        ];
        let scores = Score::ALL.map(|score| {
            let thresholds = recipe.sources.iter().flat_map(|source| &source.filter.scores);
            (Quantity::Score(score), thresholds.filter(|t| t.score == score).map(|t| t.bound.limit()).collect())
        });
        let histograms = quantities.into_iter().chain(scores).map(|(quantity, mut thresholds)| {
            thresholds.retain(|&limit| limit > 0.0);
            thresholds.sort_by(f64::total_cmp);
            thresholds.dedup();
            Histogram { quantity, thresholds, bins: BTreeMap::new() }
        });
        Survey {
            histograms: histograms.collect(),
            failures_by_host: Hosts::new(HOSTS),
            sizes: BTreeMap::new(),
            contents: HashMap::new(),
            nearest: Vec::new(),
            rules: recipe.sharpness,
            sharpest: Vec::new(),
            blurriest: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn note(&mut self, entry: &Entry) {
        let candidate = &entry.record.candidate;
        if let Verdict::Rejected(rejection) = &entry.verdict
            && matches!(rejection.reason, Reason::Fetch(_))
        {
            self.failures_by_host.add(&candidate.host(), |failures| failures.add(rejection.reason, 1));
        }
        let Answer::Image(measured) = &entry.record.answer else { return };
        for histogram in &mut self.histograms {
            if let Some(value) = histogram.quantity.of(candidate, measured) {
                let bin = histogram.bins.entry(histogram.quantity.position(value).floor() as i32).or_default();
                match entry.verdict {
                    Verdict::Kept { .. } => bin.0 += 1,
                    Verdict::Rejected(_) => bin.1 += 1,
                }
            }
        }
        if let (Verdict::Rejected(rejection), Some(thumbnail), Some(pixels)) =
            (&entry.verdict, &measured.thumbnail, measured.pixels)
            && matches!(rejection.reason, Reason::Image(_))
        {
            let nearness = self.rules.nearness(pixels.sharpness);
            let at = self.nearest.partition_point(|other| other.nearness >= nearness);
            if at < PICTURES {
                let (caption, detail) = (candidate.caption.text.clone(), rejection.detail.clone());
                let miss = NearMiss { key: candidate.key, caption, detail, nearness, thumbnail: thumbnail.clone() };
                self.nearest.insert(at, miss);
                self.nearest.truncate(PICTURES);
            }
        }
        let content = self.contents.entry(half(measured.sha256)).or_insert(Content {
            sha256: measured.sha256,
            rows: 0,
            kept: 0,
            bytes: measured.bytes,
            size: measured.size,
            first: candidate.key,
        });
        content.rows += 1;
        content.kept += u64::from(matches!(entry.verdict, Verdict::Kept { .. }));
        let real = measured.size;
        // Tables were made without a look at EXIF: an image that lies on its side has both sizes by right.
        if let Some(claimed) = candidate.claimed.filter(|_| measured.orientation < 5 && real.width != real.height) {
            let sizes = self.sizes.entry(candidate.key.source).or_default();
            sizes.images += 1;
            sizes.swapped += u64::from(claimed.width == real.height && claimed.height == real.width);
        }
        if let (&Verdict::Kept { shard, offset: Some(offset), .. }, Some(pixels)) = (&entry.verdict, measured.pixels) {
            let picture = Picture {
                key: candidate.key,
                caption: candidate.caption.text.clone(),
                sharpness: pixels.sharpness.whole,
                shard,
                offset,
            };
            insert(&mut self.sharpest, picture.clone(), |a, b| a > b);
            insert(&mut self.blurriest, picture, |a, b| a < b);
        }
    }
}

impl Survey {
    /// The contents that most rows brought, most first.
    pub fn repeated_contents(&self) -> Vec<&Content> {
        let mut repeated: Vec<_> = self.contents.values().filter(|content| content.rows >= REPEATED).collect();
        repeated.sort_by_key(|content| (Reverse(content.rows), content.first));
        repeated.truncate(CONTENTS);
        repeated
    }
}

fn half(hash: ContentHash) -> u128 {
    u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a SHA-256 has 32 bytes"))
}

/// Inserts where no earlier one comes `before` it, and keeps the first few.
fn insert(pictures: &mut Vec<Picture>, picture: Picture, before: fn(f64, f64) -> bool) {
    let at = pictures.partition_point(|p| !before(picture.sharpness, p.sharpness));
    pictures.insert(at, picture);
    pictures.truncate(PICTURES);
}
