//! `data.toml` as it is written. Unknown keys are refused; what may be left out has its default here.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{
    Bound, CaptionRules, DuplicateRules, Fetch, ImageRules, Recipe, RowFilter, ShardRules, SharpnessRules, Source,
    Store, Threshold,
};
use crate::caption::Rule;
use crate::score::Score;
use crate::table::{Field, Kind};

/// The whole document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    #[serde(default)]
    source: Vec<WrittenSource>,
    fetch: WrittenFetch,
    #[serde(default)]
    image: WrittenImage,
    #[serde(default)]
    sharpness: WrittenSharpness,
    #[serde(default)]
    captions: WrittenCaptions,
    #[serde(default)]
    duplicates: WrittenDuplicates,
    #[serde(default)]
    shards: WrittenShards,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSource {
    kind: Kind,
    paths: Vec<String>,
    #[serde(default)]
    columns: BTreeMap<Field, String>,
    #[serde(default)]
    filter: WrittenFilter,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenFilter {
    min_side: u32,
    max_aspect_ratio: Option<f64>,
    scores: Vec<WrittenThreshold>,
    nsfw: Vec<String>,
    languages: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenThreshold {
    score: Score,
    above: Option<f64>,
    at_least: Option<f64>,
    below: Option<f64>,
    at_most: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFetch {
    user_agent: String,
    concurrency: Option<usize>,
    per_host: Option<usize>,
    connect_seconds: Option<f64>,
    first_byte_seconds: Option<f64>,
    read_seconds: Option<f64>,
    total_seconds: Option<f64>,
    min_bytes_per_second: Option<u64>,
    max_bytes: Option<u64>,
    max_bytes_in_flight: Option<u64>,
    max_redirects: Option<u32>,
    attempts: Option<u32>,
    max_retry_after_seconds: Option<f64>,
    outage_failures: Option<u32>,
    outage_hosts: Option<u32>,
    honour_opt_outs: Option<bool>,
    #[serde(default)]
    allow: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenImage {
    formats: Option<Vec<pixels::Format>>,
    min_side: u32,
    max_aspect_ratio: Option<f64>,
    max_pixels: Option<u64>,
    max_side: Option<u32>,
    store: WrittenStore,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum WrittenStore {
    #[default]
    Original,
    SquareJpeg {
        side: u32,
        quality: u8,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenSharpness {
    min_whole: f64,
    min_tile: f64,
    min_detail: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenCaptions {
    rules: Option<Vec<Rule>>,
    min_chars: usize,
    max_chars: Option<usize>,
    min_words: usize,
    max_words: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenDuplicates {
    exact: Option<bool>,
    near_bits: Option<u32>,
    placeholder_urls: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenShards {
    target: Option<String>,
    samples: Option<u64>,
    max_bytes: Option<u64>,
}

impl Document {
    /// Checks every value; an error names the key.
    pub(super) fn validate(self, manifest: &Path, run: &Path) -> Result<Recipe, String> {
        if self.source.is_empty() {
            return Err("at least one [[source]] is needed".into());
        }
        let place = Place { manifest, run };
        Ok(Recipe {
            sources: self.source.into_iter().map(|s| s.validate(&place)).collect::<Result<_, _>>()?,
            fetch: self.fetch.validate()?,
            image: self.image.validate()?,
            sharpness: self.sharpness.validate()?,
            captions: self.captions.validate()?,
            duplicates: self.duplicates.validate()?,
            shards: self.shards.validate()?,
        })
    }
}

struct Place<'a> {
    manifest: &'a Path,
    run: &'a Path,
}

impl Place<'_> {
    /// The path in full. It may be a glob, and so nothing in the names of the folders that it begins with is one.
    fn resolve(&self, written: &str) -> Result<String, String> {
        if written.contains("://") {
            return Ok(written.replace("{run}", &self.run.to_string_lossy()));
        }
        let literal = |path: &Path| glob::Pattern::escape(&path.to_string_lossy());
        let named = written.replace("{run}", &literal(self.run));
        let base = std::path::absolute(self.manifest).map_err(|e| format!("source.paths: {e}"))?;
        let base = if written.contains("{run}") { std::env::current_dir().map_err(|e| e.to_string())? } else { base };
        Ok(Path::new(&literal(&base)).join(named).to_string_lossy().into_owned())
    }
}

impl WrittenSource {
    fn validate(self, place: &Place<'_>) -> Result<Source, String> {
        if self.paths.is_empty() {
            return Err("source.paths: at least one path is needed".into());
        }
        let filter = self.filter;
        let scores = filter.scores.into_iter().map(WrittenThreshold::validate).collect::<Result<_, _>>()?;
        Ok(Source {
            kind: self.kind,
            paths: self.paths.iter().map(|p| place.resolve(p)).collect::<Result<_, _>>()?,
            columns: self.columns,
            filter: RowFilter {
                min_side: filter.min_side,
                max_aspect_ratio: aspect_ratio("source.filter", filter.max_aspect_ratio)?,
                scores,
                nsfw: filter.nsfw,
                languages: filter.languages,
            },
        })
    }
}

impl WrittenThreshold {
    fn validate(self) -> Result<Threshold, String> {
        let score = self.score;
        let bounds = [
            self.above.map(Bound::Above),
            self.at_least.map(Bound::AtLeast),
            self.below.map(Bound::Below),
            self.at_most.map(Bound::AtMost),
        ];
        match bounds.into_iter().flatten().collect::<Vec<_>>()[..] {
            [bound] if bound.limit().is_finite() => Ok(Threshold { score, bound }),
            [_] => Err(format!("source.filter.scores: the bound on {score} is not a finite number")),
            _ => Err(format!("source.filter.scores: {score} needs one of above, at_least, below and at_most")),
        }
    }
}

impl WrittenFetch {
    fn validate(self) -> Result<Fetch, String> {
        let standard = fetch::FetchConfig::standard(self.user_agent.clone());
        let seconds = |key: &str, written: Option<f64>, standard: std::time::Duration| {
            let value = written.unwrap_or(standard.as_secs_f64());
            if value > 0.0 && value <= 86_400.0 {
                Ok(value)
            } else {
                Err(format!("fetch.{key}: must be more than 0 and at most 86400 seconds"))
            }
        };
        let max_bytes = at_least_one("fetch.max_bytes", self.max_bytes.unwrap_or(standard.bytes.max_body))?;
        let max_bytes_in_flight = self.max_bytes_in_flight.unwrap_or(standard.bytes.max_in_flight.max(2 * max_bytes));
        if max_bytes_in_flight / 2 < max_bytes {
            return Err(format!("fetch.max_bytes_in_flight: must be at least twice fetch.max_bytes, {max_bytes}"));
        }
        let fetch = Fetch {
            concurrency: requests("fetch.concurrency", self.concurrency.unwrap_or(standard.concurrency))?,
            per_host: requests("fetch.per_host", self.per_host.unwrap_or(standard.per_host))?,
            connect_seconds: seconds("connect_seconds", self.connect_seconds, standard.timeouts.connect)?,
            first_byte_seconds: seconds("first_byte_seconds", self.first_byte_seconds, standard.timeouts.first_byte)?,
            read_seconds: seconds("read_seconds", self.read_seconds, standard.timeouts.read)?,
            total_seconds: seconds("total_seconds", self.total_seconds, standard.timeouts.total)?,
            min_bytes_per_second: self.min_bytes_per_second.unwrap_or(standard.bytes.min_speed),
            max_bytes,
            max_bytes_in_flight,
            max_redirects: self.max_redirects.unwrap_or(standard.max_redirects),
            attempts: at_least_one("fetch.attempts", self.attempts.unwrap_or(standard.retry.attempts))?,
            max_retry_after_seconds: seconds(
                "max_retry_after_seconds",
                self.max_retry_after_seconds,
                standard.retry.retry_after_cap,
            )?,
            outage_failures: self.outage_failures.unwrap_or(standard.breaker.failures),
            outage_hosts: self.outage_hosts.unwrap_or(standard.breaker.hosts),
            honour_opt_outs: self.honour_opt_outs.unwrap_or(standard.honour_opt_outs),
            allow: self.allow,
            user_agent: self.user_agent,
        };
        fetch.fetcher().map_err(|e| format!("fetch: {e}"))?;
        Ok(fetch)
    }
}

impl WrittenImage {
    fn validate(self) -> Result<ImageRules, String> {
        use pixels::Format;
        let standard = pixels::Limits::default();
        let store = match self.store {
            WrittenStore::Original => Store::Original,
            WrittenStore::SquareJpeg { side, quality }
                if (1..=65_535).contains(&side) && (1..=100).contains(&quality) =>
            {
                Store::SquareJpeg { side, quality }
            }
            WrittenStore::SquareJpeg { .. } => {
                return Err("image.store.square_jpeg: side must be 1 to 65535 and quality 1 to 100".into());
            }
        };
        Ok(ImageRules {
            formats: self.formats.unwrap_or_else(|| vec![Format::Jpeg, Format::Png, Format::Webp, Format::Gif]),
            min_side: self.min_side,
            max_aspect_ratio: aspect_ratio("image", self.max_aspect_ratio)?,
            max_pixels: at_least_one("image.max_pixels", self.max_pixels.unwrap_or(standard.max_pixels))?,
            max_side: at_least_one("image.max_side", self.max_side.unwrap_or(standard.max_side))?,
            store,
        })
    }
}

impl WrittenSharpness {
    fn validate(self) -> Result<SharpnessRules, String> {
        let WrittenSharpness { min_whole, min_tile, min_detail } = self;
        for (key, value) in [("min_whole", min_whole), ("min_tile", min_tile), ("min_detail", min_detail)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("sharpness.{key}: must be 0 or more"));
            }
        }
        Ok(SharpnessRules { min_whole, min_tile, min_detail })
    }
}

impl WrittenCaptions {
    fn validate(self) -> Result<CaptionRules, String> {
        let (max_chars, max_words) = (self.max_chars.unwrap_or(1000), self.max_words.unwrap_or(256));
        for (key, least, most) in [("chars", self.min_chars, max_chars), ("words", self.min_words, max_words)] {
            if least > most {
                return Err(format!("captions.max_{key}: {most} is below captions.min_{key}, {least}"));
            }
        }
        Ok(CaptionRules {
            rules: self.rules.unwrap_or_else(|| Rule::STANDARD.to_vec()),
            min_chars: self.min_chars,
            max_chars,
            min_words: self.min_words,
            max_words,
        })
    }
}

impl WrittenDuplicates {
    fn validate(self) -> Result<DuplicateRules, String> {
        if self.near_bits.is_some_and(|bits| bits > 7) {
            return Err("duplicates.near_bits: 0 to 7; pictures further apart are different pictures".into());
        }
        if self.placeholder_urls.is_some_and(|urls| urls < 2) {
            return Err("duplicates.placeholder_urls: 2 or more; every image has one".into());
        }
        Ok(DuplicateRules {
            exact: self.exact.unwrap_or(true),
            near_bits: self.near_bits,
            placeholder_urls: self.placeholder_urls,
        })
    }
}

impl WrittenShards {
    fn validate(self) -> Result<ShardRules, String> {
        let remote = |url: &str| ["s3://", "gs://", "az://"].iter().any(|scheme| url.starts_with(scheme));
        if let Some(other) = self.target.as_deref().filter(|url| !remote(url)) {
            return Err(format!(
                "shards.target: {other:?} is no folder of a store (s3://, gs:// or az://); on this machine, shards go \
                 to the folder of --run"
            ));
        }
        Ok(ShardRules {
            target: self.target,
            samples: at_least_one("shards.samples", self.samples.unwrap_or(1000))?,
            max_bytes: at_least_one("shards.max_bytes", self.max_bytes.unwrap_or(1 << 30))?,
        })
    }
}

fn aspect_ratio(section: &str, written: Option<f64>) -> Result<f64, String> {
    match written {
        None => Ok(f64::INFINITY),
        Some(ratio) if ratio >= 1.0 => Ok(ratio),
        Some(ratio) => Err(format!("{section}.max_aspect_ratio: {ratio} is below 1; it is long side over short side")),
    }
}

/// Most requests at once: more than a machine has ports for.
const MOST_REQUESTS: usize = 1 << 16;

fn requests(key: &str, value: usize) -> Result<usize, String> {
    match at_least_one(key, value)? {
        value if value > MOST_REQUESTS => Err(format!("{key}: must be at most {MOST_REQUESTS}")),
        value => Ok(value),
    }
}

fn at_least_one<T: PartialOrd + From<u8>>(key: &str, value: T) -> Result<T, String> {
    if value < T::from(1) { Err(format!("{key}: must be at least 1")) } else { Ok(value) }
}
