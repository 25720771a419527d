//! The recipe, validated: what a run does, with nothing left open.
//!
//! `data.toml` is read as it is written ([`written`]), then checked into these types. Every value is set here,
//! be it by the document or by the documented default, and `curate --show-recipe` prints them all.

pub mod written;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use shards::{ContentHash, Fingerprint};

use crate::caption::{self, Rule};
use crate::error::{Error, Result};
use crate::score::Score;
use crate::table::{Field, Kind};

/// The name of the document in a manifest's folder.
pub const DOCUMENT: &str = "data.toml";

/// What a run does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    /// Network limits.
    pub fetch: Fetch,
    /// What an image must be.
    pub image: ImageRules,
    /// How sharp it must be.
    pub sharpness: SharpnessRules,
    /// How captions are cleaned and what they must be.
    pub captions: CaptionRules,
    /// What counts as the same image.
    pub duplicates: DuplicateRules,
    /// How samples are cut into shards.
    pub shards: ShardRules,
    /// The tables, in the order of their keys.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// One `[[source]]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// Whose tables these are.
    pub kind: Kind,
    /// Files, folders or globs, resolved.
    pub paths: Vec<String>,
    /// Columns named by the recipe, before those that the kind knows.
    pub columns: BTreeMap<Field, String>,
    /// Which rows are worth a request.
    pub filter: RowFilter,
}

/// Which rows of a table are worth a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowFilter {
    /// Shortest side that the table may claim; 0 for any.
    pub min_side: u32,
    /// Longest aspect ratio that the table may claim; infinite for any.
    pub max_aspect_ratio: f64,
    /// Thresholds on published scores.
    pub scores: Vec<Threshold>,
    /// NSFW labels admitted; none for all.
    pub nsfw: Vec<String>,
    /// Languages admitted; none for all.
    pub languages: Vec<String>,
}

/// A bound on one score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Threshold {
    /// Which score, and thereby on which scale.
    pub score: Score,
    /// The side that passes.
    #[serde(flatten)]
    pub bound: Bound,
}

/// The side of a threshold that passes. Null, NaN and infinite values pass none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Strictly more.
    Above(f64),
    /// This much or more.
    AtLeast(f64),
    /// Strictly less.
    Below(f64),
    /// This much or less.
    AtMost(f64),
}

impl Bound {
    /// Whether `value` passes.
    pub fn admits(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Bound::Above(limit) => value > limit,
                Bound::AtLeast(limit) => value >= limit,
                Bound::Below(limit) => value < limit,
                Bound::AtMost(limit) => value <= limit,
            }
    }

    /// The number, for drawing it.
    pub fn limit(self) -> f64 {
        match self {
            Bound::Above(limit) | Bound::AtLeast(limit) | Bound::Below(limit) | Bound::AtMost(limit) => limit,
        }
    }
}

/// `[fetch]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fetch {
    /// Who asks, with a way to reach them.
    pub user_agent: String,
    /// Rows in flight: requested, arriving or waiting for a core. Rows that wait for their host are not among them.
    pub concurrency: usize,
    /// Requests at once to one host.
    pub per_host: usize,
    /// For name resolution, TCP and TLS together.
    pub connect_seconds: f64,
    /// From request to response headers.
    pub first_byte_seconds: f64,
    /// Between two reads of the body.
    pub read_seconds: f64,
    /// For one attempt in all.
    pub total_seconds: f64,
    /// Slowest body; 0 for any.
    pub min_bytes_per_second: u64,
    /// Most bytes of a body, as sent and as decompressed.
    pub max_bytes: u64,
    /// Most bytes of all bodies that are arriving, waiting for a core or being measured: what bounds memory,
    /// beside the decoders' own, about 14 bytes for each of `image.max_pixels` on each core.
    pub max_bytes_in_flight: u64,
    /// Most redirects.
    pub max_redirects: u32,
    /// Tries in all.
    pub attempts: u32,
    /// Longest Retry-After that is waited for.
    pub max_retry_after_seconds: f64,
    /// Name resolutions or connections in a row that must fail on our side of the network, over at least `outage_hosts`
    /// hosts, to stop the run, or requests that get no answer while servers that answered before are silent, too; 0 for
    /// never.
    pub outage_failures: u32,
    /// Hosts among those failures.
    pub outage_hosts: u32,
    /// Whether X-Robots-Tag opt-outs are honoured.
    pub honour_opt_outs: bool,
    /// Non-public addresses that may be reached, `ADDRESS:PORT` or `ADDRESS:*`.
    pub allow: Vec<String>,
}

/// `[image]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageRules {
    /// Formats admitted.
    pub formats: Vec<pixels::Format>,
    /// Shortest side, of the decoded and upright image.
    pub min_side: u32,
    /// Longest aspect ratio.
    pub max_aspect_ratio: f64,
    /// Most pixels; more is refused before they are allocated.
    pub max_pixels: u64,
    /// Longest side; likewise.
    pub max_side: u32,
    /// What is stored: the bytes as they came, or pixels encoded anew.
    pub store: Store,
}

/// What a sample's image file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// The downloaded bytes.
    Original,
    /// The centre square, resized and encoded as JPEG.
    SquareJpeg {
        /// Pixels of a side.
        side: u32,
        /// 1 to 100.
        quality: u8,
    },
}

/// `[sharpness]`: see [`pixels::Sharpness`]. 0 admits all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SharpnessRules {
    /// Least [`pixels::Sharpness::whole`].
    pub min_whole: f64,
    /// Least [`pixels::Sharpness::tile`].
    pub min_tile: f64,
    /// Least [`pixels::Sharpness::detail`].
    pub min_detail: f64,
}

/// `[captions]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaptionRules {
    /// Applied in this order.
    pub rules: Vec<Rule>,
    /// Fewest characters after cleaning.
    pub min_chars: usize,
    /// Most characters after cleaning.
    pub max_chars: usize,
    /// Fewest words after cleaning.
    pub min_words: usize,
    /// Most words after cleaning.
    pub max_words: usize,
}

/// `[duplicates]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DuplicateRules {
    /// Whether of equal contents only the first row's is kept.
    pub exact: bool,
    /// Of pictures whose perceptual hashes differ in at most so many bits only the first row's is kept.
    pub near_bits: Option<u32>,
    /// A content that so many different URLs bring is a placeholder, and none of its rows is kept.
    pub placeholder_urls: Option<u32>,
}

/// `[shards]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardRules {
    /// Folder of an object store where shards and results go; none for the run's own folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Most samples in a shard.
    pub samples: u64,
    /// A shard that has reached so many bytes of sample data is closed, too.
    pub max_bytes: u64,
}

impl Recipe {
    /// Reads `MANIFEST/data.toml`. Relative paths in it are relative to the manifest's folder; `{run}` stands
    /// for `run`.
    ///
    /// # Errors
    /// [`Error::Recipe`] that names document and key.
    pub fn read(manifest: &Path, run: &Path) -> Result<Recipe> {
        let path = manifest.join(DOCUMENT);
        let refused = |reason: String| Error::Recipe { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|e| refused(format!("cannot be read: {e}")))?;
        let written: written::Document = toml::from_str(&text).map_err(|e| refused(e.to_string()))?;
        written.validate(manifest, run).map_err(refused)
    }

    /// The recipe as a TOML document, every value spelled out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds nothing that TOML cannot say")
    }

    /// The parts that shape the result. Speed and patience are not among them: a run may go on with more
    /// connections or longer limits.
    pub fn fingerprint(&self) -> Fingerprint {
        fn hash(part: &impl Serialize) -> ContentHash {
            let text = serde_json::to_vec(part).expect("a recipe has a JSON form");
            ContentHash::of(&text)
        }
        let Recipe { fetch, image, sharpness, captions, duplicates, shards, sources } = self;
        let mut fingerprint = Fingerprint::new()
            .with("fetch.max_bytes", hash(&fetch.max_bytes))
            .with("fetch.honour_opt_outs", hash(&fetch.honour_opt_outs))
            .with("image.store", hash(&image.store))
            .with("image.rules", hash(image))
            .with("sharpness.version", hash(&pixels::SHARPNESS_VERSION))
            .with("sharpness.rules", hash(sharpness))
            .with("captions.version", hash(&caption::VERSION))
            .with("captions", hash(captions))
            .with("duplicates", hash(duplicates))
            .with("shards", hash(shards));
        for (at, source) in sources.iter().enumerate() {
            fingerprint = fingerprint
                .with(format!("source {at}: kind and columns"), hash(&(source.kind, &source.columns)))
                .with(format!("source {at}: filter"), hash(&source.filter));
        }
        fingerprint
    }
}

impl Fetch {
    /// The fetcher that keeps these limits.
    ///
    /// # Errors
    /// What the fetcher finds wrong with them.
    pub fn fetcher(&self) -> Result<fetch::Fetcher, fetch::ConfigError> {
        let seconds = Duration::from_secs_f64;
        let mut config = fetch::FetchConfig::standard(self.user_agent.clone());
        config.allow = fetch::AllowList::parse(&self.allow)?;
        config.concurrency = self.concurrency;
        config.per_host = self.per_host;
        config.timeouts.connect = seconds(self.connect_seconds);
        config.timeouts.first_byte = seconds(self.first_byte_seconds);
        config.timeouts.read = seconds(self.read_seconds);
        config.timeouts.total = seconds(self.total_seconds);
        config.bytes.min_speed = self.min_bytes_per_second;
        config.bytes.max_body = self.max_bytes;
        config.bytes.max_in_flight = self.max_bytes_in_flight;
        config.max_redirects = self.max_redirects;
        config.retry.attempts = self.attempts;
        config.retry.retry_after_cap = seconds(self.max_retry_after_seconds);
        config.breaker.failures = self.outage_failures;
        config.breaker.hosts = self.outage_hosts;
        config.honour_opt_outs = self.honour_opt_outs;
        fetch::Fetcher::new(config)
    }
}

impl ImageRules {
    /// What a decoder may allocate for.
    pub fn limits(&self, fetch: &Fetch) -> pixels::Limits {
        pixels::Limits {
            max_bytes: usize::try_from(fetch.max_bytes).unwrap_or(usize::MAX),
            max_pixels: self.max_pixels,
            max_side: self.max_side,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[fetch]\nuser_agent = \"test/1.0 (+https://example.org)\"\n\
        [[source]]\nkind = \"laion\"\npaths = [\"{run}/t/*.parquet\", \"near.parquet\", \"/far\", \"s3://b/x\"]\n";

    fn read(text: &str) -> Result<Recipe> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(DOCUMENT), text).unwrap();
        Recipe::read(dir.path(), Path::new("/runs/one")).map_err(|e| {
            assert!(e.to_string().contains("data.toml"), "{e}");
            e
        })
    }

    #[test]
    fn paths_are_resolved_and_defaults_filled_in() {
        let recipe = read(MINIMAL).unwrap();
        let paths = &recipe.sources[0].paths;
        assert_eq!(paths[0], "/runs/one/t/*.parquet");
        assert!(paths[1].starts_with('/') && paths[1].ends_with("/near.parquet"), "{}", paths[1]);
        assert_eq!(paths[2..], ["/far", "s3://b/x"]);
        assert_eq!(recipe.image.store, Store::Original);
        assert!(recipe.fetch.honour_opt_outs);
        recipe.fetch.fetcher().unwrap();
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same_recipe() {
        let recipe = read(&format!(
            "{MINIMAL}columns = {{ caption = \"top_caption\" }}\n\
             [source.filter]\nmin_side = 1024\nscores = [{{ score = \"aesthetic_v2\", above = 5.5 }}]\n\
             [image]\nstore = {{ square_jpeg = {{ side = 512, quality = 95 }} }}\n[duplicates]\nnear_bits = 3\n"
        ))
        .unwrap();
        assert_eq!(read(&recipe.to_toml()).unwrap(), recipe, "{}", recipe.to_toml());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let filter = |scores: &str| format!("{MINIMAL}[source.filter]\nscores = [{scores}]\n");
        for (text, named) in [
            (format!("{MINIMAL}speed = 3\n"), "speed"),
            (MINIMAL.replace("laion", "lion"), "lion"),
            (MINIMAL.replace("[fetch]\n", "[fetch]\nconcurrency = 0\n"), "fetch.concurrency"),
            (MINIMAL.replace("[fetch]\n", "[fetch]\nconcurrency = 65537\n"), "fetch.concurrency"),
            (MINIMAL.replace("[fetch]\n", "[fetch]\nper_host = 9223372036854775807\n"), "fetch.per_host"),
            (MINIMAL.replace("[fetch]\n", "[fetch]\ntotal_seconds = -1\n"), "fetch.total_seconds"),
            (MINIMAL.replace("[fetch]\n", "[fetch]\nmax_bytes_in_flight = 9999\n"), "fetch.max_bytes_in_flight"),
            (MINIMAL.replace("[fetch]\n", "[fetch]\nallow = [\"everything\"]\n"), "everything"),
            (MINIMAL.replace("test/1.0", ""), "user agent"),
            ("[fetch]\nuser_agent = \"x/1 (+y)\"\n".into(), "source"),
            (filter("{ score = \"aesthetic\", above = 5.5 }"), "aesthetic"),
            (filter("{ score = \"aesthetic_v2\" }"), "aesthetic_v2"),
            (filter("{ score = \"aesthetic_v2\", above = 5, below = 6 }"), "aesthetic_v2"),
            (filter("{ score = \"aesthetic_v2\", above = nan }"), "aesthetic_v2"),
            (format!("{MINIMAL}[image]\nformats = [\"bmp\"]\n"), "bmp"),
            (format!("{MINIMAL}[image]\nstore = {{ square_jpeg = {{ side = 0, quality = 95 }} }}\n"), "image.store"),
            (format!("{MINIMAL}[captions]\nrules = [\"magic\"]\n"), "magic"),
            (format!("{MINIMAL}[captions]\nmin_words = 9\nmax_words = 8\n"), "captions.max_words"),
            (format!("{MINIMAL}[duplicates]\nnear_bits = 40\n"), "duplicates.near_bits"),
            (format!("{MINIMAL}[duplicates]\nplaceholder_urls = 1\n"), "duplicates.placeholder_urls"),
            (format!("{MINIMAL}[shards]\nsamples = 0\n"), "shards.samples"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.to_string().contains(named), "{named}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn patience_does_not_change_the_fingerprint_and_thresholds_do() {
        let recipe = read(MINIMAL).unwrap();
        let mut patient = recipe.clone();
        patient.fetch.total_seconds *= 2.0;
        patient.fetch.concurrency += 1;
        assert_eq!(recipe.fingerprint(), patient.fingerprint());
        let mut stricter = recipe.clone();
        stricter.sharpness.min_whole += 1.0;
        let named = recipe.fingerprint().difference(&stricter.fingerprint());
        assert_eq!(named.iter().map(ToString::to_string).collect::<Vec<_>>(), ["sharpness.rules changed"]);
    }

    #[test]
    fn nothing_but_a_finite_number_passes_a_bound() {
        for bound in [Bound::Above(0.5), Bound::AtLeast(0.5), Bound::Below(0.5), Bound::AtMost(0.5)] {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert!(!bound.admits(value), "{bound:?} {value}");
            }
        }
        assert!(!Bound::Above(0.5).admits(0.5) && Bound::AtLeast(0.5).admits(0.5));
        assert!(!Bound::Below(0.5).admits(0.5) && Bound::AtMost(0.5).admits(0.5));
    }
}
