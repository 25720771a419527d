//! From a seed to a folder: tables, pictures, the server's routes and the labels.
//!
//! ```text
//! DIR/laion/part-0000N.parquet   DIR/coyo/part-0000N.parquet   the source tables
//! DIR/images/TABLE-ROW.jpg|png                                 what the server sends
//! DIR/routes.json                                              path -> answer
//! DIR/labels.jsonl                                             row -> fate, caption, scene
//! DIR/world.json                                               written last: version, seed, port, counts
//! ```
//!
//! Every row's randomness is its own, so rows are made in parallel and the bytes do not depend on the order.

use crate::encode::{Finish, Format, Picture, pixel_bomb};
use crate::fate::Fate;
use crate::routes::{Answer, Body, ROUTES, Routes};
use crate::scene::{Scene, Split, item_rng};
use crate::tables::{Entry, Table};
use crate::{Error, Result};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shards::atomic::{read_json, write_atomic, write_json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Raised whenever the same seed would give other bytes.
const VERSION: u32 = 1;
/// The file that is written last.
const SUMMARY: &str = "world.json";
/// The file with a [`Label`] per row.
pub const LABELS: &str = "labels.jsonl";
/// Pictures live here.
const IMAGES: &str = "images";
/// Rows per parquet file and per row group.
const ROWS_PER_FILE: usize = 200;
const ROWS_PER_GROUP: usize = 64;

/// Streams of random numbers: one for each row order and one for each table's rows.
const STREAM_ORDER: u64 = 1;
const STREAM_ROWS: u64 = 10;

/// What makes one world differ from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The generator's version.
    pub version: u32,
    /// The seed.
    pub seed: u64,
    /// The port that the tables' addresses name.
    pub port: u16,
    /// Clean rows beside the usual ones, in the LAION-shaped table.
    #[serde(default)]
    pub more_clean: usize,
}

impl Identity {
    /// The world that this generator makes from a seed for a port, with so many clean rows more than usual.
    pub fn new(seed: u64, port: u16, more_clean: usize) -> Self {
        Self { version: VERSION, seed, port, more_clean }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { version, seed, port, more_clean } = self;
        write!(f, "generator version {version}, seed {seed}, port {port} and {more_clean} more clean rows")
    }
}

/// What a finished world holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// What made it.
    pub identity: Identity,
    /// Rows of each fate in both tables.
    pub rows: BTreeMap<Fate, usize>,
    /// Picture files.
    pub images: usize,
    /// Their bytes.
    pub image_bytes: u64,
}

impl Summary {
    /// Reads the summary of the finished world in `dir`.
    ///
    /// # Errors
    /// [`Error::NoWorld`] where there is none.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(SUMMARY);
        if !path.exists() {
            return Err(Error::NoWorld { dir: dir.to_owned() });
        }
        Ok(read_json(path)?)
    }
}

/// The truth about a row, for tests and for the probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// The table and the number of the row in it.
    pub row: String,
    /// What the row is.
    pub fate: Fate,
    /// Its address, as in the table.
    pub url: Option<String>,
    /// What its caption says, without noise.
    pub caption: String,
    /// What its picture shows; nothing for rows without a picture.
    pub scene: Option<Scene>,
}

/// Whether there was anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The world was made.
    Made,
    /// It was there already.
    Found,
}

/// Makes the world of `identity` in `dir`, unless it is there.
///
/// # Errors
/// [`Error::OtherWorld`] where the folder holds another world; otherwise what the file system says.
pub fn generate(dir: &Path, identity: Identity) -> Result<(Outcome, Summary)> {
    match Summary::load(dir) {
        Ok(summary) if summary.identity == identity => return Ok((Outcome::Found, summary)),
        Ok(summary) => {
            return Err(Error::OtherWorld {
                dir: dir.to_owned(),
                found: summary.identity.to_string(),
                wanted: identity.to_string(),
            });
        }
        Err(Error::NoWorld { .. }) => {}
        Err(error) => return Err(error),
    }
    let images = dir.join(IMAGES);
    fs::create_dir_all(&images).map_err(|source| Error::Io { path: images.clone(), source })?;

    let rows: Vec<Row> = Table::ALL.into_iter().flat_map(|table| plan(table, identity)).collect();
    let sizes: Vec<u64> =
        rows.par_iter().flat_map_iter(|row| &row.file).map(|file| file.write(dir)).collect::<Result<_>>()?;

    for table in Table::ALL {
        let entries: Vec<Entry> = rows.iter().filter(|row| row.table == table).map(|row| row.entry.clone()).collect();
        for (part, rows) in entries.chunks(ROWS_PER_FILE).enumerate() {
            let path = format!("{}/part-{part:05}.parquet", table.name());
            let bytes = table.encode(&path, rows, part * ROWS_PER_FILE, ROWS_PER_GROUP)?;
            write_atomic(dir.join(&path), &bytes)?;
        }
    }
    let routes: Routes = rows.iter().flat_map(|row| row.routes.clone()).collect();
    write_json(dir.join(ROUTES), &routes)?;
    let labels = rows.iter().map(|row| json_line(&row.label)).collect::<String>();
    write_atomic(dir.join(LABELS), labels.as_bytes())?;

    let mut fates = BTreeMap::new();
    for row in &rows {
        *fates.entry(row.label.fate).or_default() += 1;
    }
    let summary = Summary { identity, rows: fates, images: sizes.len(), image_bytes: sizes.iter().sum() };
    write_json(dir.join(SUMMARY), &summary)?;
    Ok((Outcome::Made, summary))
}

fn json_line(label: &Label) -> String {
    let mut line = serde_json::to_string(label).expect("labels have string keys and no foreign types");
    line.push('\n');
    line
}

/// A row with everything that belongs to it.
struct Row {
    table: Table,
    entry: Entry,
    label: Label,
    routes: Vec<(String, Answer)>,
    file: Option<File>,
}

/// A file still to be written.
struct File {
    path: String,
    content: Content,
}

enum Content {
    Picture(Box<Picture>),
    PixelBomb,
}

impl File {
    /// Writes the file and returns its length. Not durable by itself: `world.json` vouches for a world, and an
    /// unfinished one is made again.
    fn write(&self, dir: &Path) -> Result<u64> {
        let bytes = match &self.content {
            Content::Picture(picture) => picture.encode(),
            Content::PixelBomb => pixel_bomb(),
        };
        let bytes = bytes.map_err(|source| Error::Encode { path: self.path.clone(), source })?;
        let path = dir.join(&self.path);
        fs::write(&path, &bytes).map_err(|source| Error::Io { path, source })?;
        Ok(bytes.len() as u64)
    }
}

/// All rows of a table, in its order.
fn plan(table: Table, identity: Identity) -> Vec<Row> {
    let stream = table as u64;
    let mut fates: Vec<Fate> = Fate::ALL
        .iter()
        .flat_map(|&fate| {
            let (laion, coyo) = fate.rows();
            let more = if fate == Fate::Clean { identity.more_clean } else { 0 };
            std::iter::repeat_n(fate, if table == Table::Laion { laion + more } else { coyo })
        })
        .collect();
    fates.shuffle(&mut item_rng(identity.seed, STREAM_ORDER, stream));
    let mut rows: Vec<Row> = fates
        .into_iter()
        .enumerate()
        .map(|(number, fate)| {
            let rng = item_rng(identity.seed, STREAM_ROWS + stream, number as u64);
            RowPlan { table, number, fate, port: identity.port, rng }.plan()
        })
        .collect();
    repeat_addresses(&mut rows);
    rows
}

/// Gives each [`Fate::DuplicateUrl`] row the address and the entry of a clean row.
fn repeat_addresses(rows: &mut [Row]) {
    let clean: Vec<usize> = (0..rows.len()).filter(|&row| rows[row].label.fate == Fate::Clean).collect();
    let repeats: Vec<usize> = (0..rows.len()).filter(|&row| rows[row].label.fate == Fate::DuplicateUrl).collect();
    for (repeat, original) in repeats.into_iter().zip(clean) {
        let id = rows[repeat].entry.id;
        rows[repeat].entry = Entry { id, ..rows[original].entry.clone() };
        rows[repeat].label =
            Label { row: rows[repeat].label.row.clone(), fate: Fate::DuplicateUrl, ..rows[original].label.clone() };
        rows[repeat].routes.clear();
        rows[repeat].file = None;
    }
}

struct RowPlan<R> {
    table: Table,
    number: usize,
    fate: Fate,
    port: u16,
    rng: R,
}

impl<R: Rng> RowPlan<R> {
    fn plan(mut self) -> Row {
        let scene = match self.fate {
            Fate::GreyJpeg => Scene::draw_grey(&mut self.rng),
            _ => Scene::draw(Split::Shown, &mut self.rng),
        };
        let described = match self.fate {
            Fate::Mislabelled => Scene::draw(Split::Shown, &mut self.rng),
            _ => scene.clone(),
        };
        let caption = described.caption(&mut self.rng);
        let picture = self.picture(scene.clone());
        let file = self.file(&picture);
        let (url, routes) = self.address(&picture, file.as_ref());
        let entry = self.entry(&picture, url, &caption);
        let label = Label {
            row: format!("{}/{}", self.table.name(), self.number),
            fate: self.fate,
            url: entry.url.clone(),
            caption,
            scene: file.as_ref().and_then(|file| matches!(file.content, Content::Picture(_)).then_some(scene)),
        };
        Row { table: self.table, entry, label, routes, file }
    }

    fn picture(&mut self, scene: Scene) -> Picture {
        const FULL: &[(u32, u32)] =
            &[(1024, 1024), (1024, 1024), (1280, 1024), (1024, 1280), (1152, 1024), (1024, 1152), (1536, 1024)];
        const SMALL: &[(u32, u32)] = &[(640, 480), (480, 640), (512, 512), (800, 600), (1000, 750), (300, 300)];
        let (width, height) = match self.fate {
            Fate::SmallByTable => *SMALL.choose(&mut self.rng).expect("not empty"),
            Fate::SmallReally => (640, 560),
            // Sides that differ, so that an exchange shows.
            Fate::SwappedSize | Fate::ExifRotated => (1280, 1024),
            _ => *FULL.choose(&mut self.rng).expect("not empty"),
        };
        let finish = match self.fate {
            Fate::Blurred => Finish::Blurred,
            Fate::Upscaled => Finish::Upscaled,
            Fate::LowScore => Finish::Faded,
            _ => Finish::None,
        };
        let format = match self.fate {
            Fate::CleanPng => Format::Png,
            Fate::PngAlpha => Format::PngAlpha,
            Fate::BrokenPng => Format::BrokenPng,
            Fate::GreyJpeg => Format::GreyJpeg,
            Fate::ExifRotated => Format::RotatedJpeg,
            Fate::TruncatedJpeg => Format::TruncatedJpeg,
            _ => Format::Jpeg,
        };
        Picture { scene, width, height, finish, format }
    }

    /// The file behind the row, if its address leads to one.
    fn file(&self, picture: &Picture) -> Option<File> {
        let content = match self.fate {
            Fate::NullUrl
            | Fate::BadUrl
            | Fate::DuplicateUrl
            | Fate::NotFound
            | Fate::Gone
            | Fate::Forbidden
            | Fate::ServerError
            | Fate::RedirectLoop
            | Fate::RedirectPrivate
            | Fate::Refused
            | Fate::Oversize
            | Fate::Endless
            | Fate::Html
            | Fate::NotAPicture => return None,
            Fate::PixelBomb => Content::PixelBomb,
            _ => Content::Picture(Box::new(picture.clone())),
        };
        let extension = if self.fate == Fate::PixelBomb { "png" } else { picture.format.extension() };
        Some(File { path: format!("{IMAGES}/{}-{:04}.{extension}", self.table.name(), self.number), content })
    }

    /// The row's address and what the server answers there.
    fn address(&mut self, picture: &Picture, file: Option<&File>) -> (Option<String>, Vec<(String, Answer)>) {
        let extension = if self.fate == Fate::PixelBomb { "png" } else { picture.format.extension() };
        let path = format!("/{}/{:04}.{extension}", self.table.name(), self.number);
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let Some(file) = file else { return self.address_without_file(path, url) };

        let content_type = match self.fate {
            Fate::WrongContentType => "application/octet-stream",
            Fate::PixelBomb => "image/png",
            _ => picture.format.content_type(),
        };
        let body = Body { file: file.path.clone(), content_type: content_type.to_owned() };
        let answer = match self.fate {
            Fate::OptedOut => Answer::File { body, robots: Some("noai, noimageai".to_owned()) },
            Fate::Unavailable => Answer::Later { code: 503, retry_after: None, body },
            Fate::RateLimited => Answer::Later { code: 429, retry_after: Some("1".to_owned()), body },
            Fate::ShortBody => Answer::Short { body },
            Fate::Stalled => Answer::Stall { body },
            _ => Answer::File { body, robots: None },
        };
        if self.fate == Fate::Redirected {
            let target = format!("/moved{path}");
            let redirect = Answer::Redirect { location: target.clone() };
            return (Some(url), vec![(path, redirect), (target, answer)]);
        }
        (Some(url), vec![(path, answer)])
    }

    fn address_without_file(&mut self, path: String, url: String) -> (Option<String>, Vec<(String, Answer)>) {
        let answer = match self.fate {
            Fate::NullUrl => return (None, vec![]),
            Fate::BadUrl => return (Some("//images//no-host-in-this-address.jpg".to_owned()), vec![]),
            // Port 1 (tcpmux) has no listener on any machine of this century.
            Fate::Refused => return (Some(format!("http://127.0.0.1:1{path}")), vec![]),
            Fate::DuplicateUrl | Fate::NotFound => return (Some(url), vec![]),
            Fate::Gone => Answer::Status { code: 410 },
            Fate::Forbidden => Answer::Status { code: 403 },
            Fate::ServerError => Answer::Status { code: 503 },
            Fate::RedirectLoop => {
                let other = format!("/loop{path}");
                let there = Answer::Redirect { location: other.clone() };
                let back = Answer::Redirect { location: path.clone() };
                return (Some(url), vec![(path, there), (other, back)]);
            }
            Fate::RedirectPrivate => {
                const TARGETS: &[&str] = &[
                    "http://169.254.169.254/latest/meta-data/",
                    "http://10.0.0.1/picture.jpg",
                    "file:///etc/hostname",
                ];
                Answer::Redirect { location: TARGETS[self.number % TARGETS.len()].to_owned() }
            }
            Fate::Oversize => Answer::Flood { announced: Some(10_000_000_000) },
            Fate::Endless => Answer::Flood { announced: None },
            Fate::Html => Answer::Text {
                content_type: "image/jpeg".to_owned(),
                text: "<!doctype html>\n<title>Hotlinking denied</title>\n<p>Please visit our site.\n".to_owned(),
            },
            Fate::NotAPicture => Answer::Text {
                content_type: "image/svg+xml".to_owned(),
                text: "<svg xmlns=\"http://www.w3.org/2000/svg\"><circle r=\"9\"/></svg>\n".to_owned(),
            },
            other => unreachable!("{other:?} rows have a file"),
        };
        (Some(url), vec![(path, answer)])
    }

    fn entry(&mut self, picture: &Picture, url: Option<String>, caption: &str) -> Entry {
        let (mut width, mut height) = (Some(f64::from(picture.width)), Some(f64::from(picture.height)));
        match self.fate {
            Fate::SwappedSize => (width, height) = (height, width),
            Fate::SmallReally => (width, height) = (Some(1280.0), Some(1120.0)),
            Fate::NullSize => (width, height) = (None, None),
            Fate::NanSize => (width, height) = (Some(f64::NAN), Some(f64::NAN)),
            _ => {}
        }
        let aesthetic = match self.fate {
            Fate::LowScore => Some(self.rng.random_range(3.2..5.45)),
            Fate::NullScore => None,
            Fate::NanScore => Some(f32::NAN),
            Fate::SmallByTable => Some(self.rng.random_range(4.5..7.2)),
            _ => Some(self.rng.random_range(5.6..7.4)),
        };
        let caption = match self.fate {
            Fate::NullCaption => None,
            Fate::BadCaption => Some(bad_caption(&mut self.rng)),
            Fate::NoisyCaption => Some(noisy(caption, &mut self.rng)),
            _ => Some(caption.to_owned()),
        };
        // Left outer joins leave holes in these two columns; a filter must not drop such rows by accident.
        let joined = self.rng.random_bool(0.95);
        Entry {
            url,
            caption,
            width,
            height,
            aesthetic,
            similarity: self.rng.random_range(0.28..0.42),
            punsafe: joined.then(|| self.rng.random_range(0.0..0.05)),
            pwatermark: joined.then(|| self.rng.random_range(0.0..0.4)),
            id: self.rng.random_range(i64::MIN..i64::MAX),
            phash: self.rng.random(),
        }
    }
}

/// A caption that says nothing about its picture.
fn bad_caption(rng: &mut impl Rng) -> String {
    const SHORT: &[&str] = &["IMG_2034.JPG", "ok", "", "image", "https://cdn.example.com/a/b/c/100023.jpg"];
    match rng.random_range(0..=SHORT.len()) {
        choice if choice < SHORT.len() => SHORT[choice].to_owned(),
        _ => "buy shapes online best price ".repeat(80),
    }
}

/// The caption with the debris of the web around it; cleaned, it is itself again.
fn noisy(caption: &str, rng: &mut impl Rng) -> String {
    match rng.random_range(0..5) {
        0 => format!("<p>{caption}</p>"),
        1 => format!("&lt;b&gt;{caption}&lt;/b&gt;"),
        2 => format!("{caption} https://shop.example.com/item?id={}", rng.random_range(100..999)),
        3 => format!("  {}\t\n", caption.replace(' ', "  ")),
        _ => format!("{}&amp;nbsp;", caption.replace(' ', "&nbsp;")),
    }
}
