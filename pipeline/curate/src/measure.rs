//! Bytes to measures, and to the bytes that a sample will hold.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pixels::{DecodeError, Sharpness};
use shards::ContentHash;

use crate::reason::{self, Reason};
use crate::recipe::{ImageRules, Recipe, SharpnessRules, Store};
use crate::record::{Answer, Measured, PixelMeasures, Rejection};
use crate::row::Size;

/// The part of a threshold from which on what misses it is worth a thumbnail.
const NEARLY: f64 = 0.5;

/// The image file of a sample.
#[derive(Debug)]
pub struct File<'a> {
    /// Its bytes: those that were downloaded, or others.
    pub bytes: Cow<'a, [u8]>,
    /// Their hash.
    pub sha256: ContentHash,
}

/// Decodes, measures and judges one download. Returns the answer, and the image file of the sample where no
/// rule turned it down.
pub fn measure<'a>(body: &'a [u8], recipe: &Recipe) -> (Answer, Option<File<'a>>) {
    match inspect(body, recipe) {
        Ok((measured, file)) => (Answer::Image(Box::new(measured)), file),
        Err(error) => (Answer::None(undecodable(&error)), None),
    }
}

fn undecodable(error: &DecodeError) -> Rejection {
    Rejection { reason: Reason::Decode(error.name()), detail: error.to_string() }
}

/// Holds an image that was decoded under other limits on its size against these.
///
/// # Errors
/// What the decoder would have said.
pub fn judge_limits(measured: &Measured, rules: &ImageRules) -> Result<(), Rejection> {
    let Size { width, height } = measured.size;
    if u64::from(width) * u64::from(height) <= rules.max_pixels && width.max(height) <= rules.max_side {
        return Ok(());
    }
    // A decoder speaks of the stored pixels, which these turns of EXIF lay on their side.
    let (width, height) = if measured.orientation < 5 { (width, height) } else { (height, width) };
    Err(undecodable(&DecodeError::TooManyPixels { width, height }))
}

fn inspect<'a>(body: &'a [u8], recipe: &Recipe) -> Result<(Measured, Option<File<'a>>), DecodeError> {
    let limits = recipe.image.limits(&recipe.fetch);
    let opened = pixels::open(body, &limits)?;
    let header = opened.header();
    let mut measured = Measured {
        format: header.format,
        size: Size { width: header.width, height: header.height },
        orientation: header.orientation.exif(),
        bytes: body.len() as u64,
        sha256: ContentHash::of(body),
        pixels: None,
        rejection: None,
        thumbnail: None,
    };
    // What the header rules out is not decoded.
    measured.rejection = judge(&measured, recipe).err();
    if measured.rejection.is_some() {
        return Ok((measured, None));
    }
    let file = match recipe.image.store {
        Store::Original => {
            measured.pixels = Some(opened.measure()?.into());
            measured.rejection = judge(&measured, recipe).err();
            // Few images are worth it, and the measures take no plane of luma: it is decoded once more.
            if is_near_miss(&measured, recipe) {
                measured.thumbnail = Some(thumbnail(&pixels::decode_luma(body, &limits)?));
            }
            File { bytes: body.into(), sha256: measured.sha256 }
        }
        Store::SquareJpeg { side, quality } => {
            let picture = opened.picture()?;
            measured.pixels = Some(pixels::Measures::of(picture.luma()).into());
            measured.rejection = judge(&measured, recipe).err();
            if measured.rejection.is_some() {
                measured.thumbnail = is_near_miss(&measured, recipe).then(|| thumbnail(picture.luma()));
                return Ok((measured, None));
            }
            let encoded = picture.square_jpeg(side, quality);
            File { sha256: ContentHash::of(&encoded), bytes: encoded.into() }
        }
    };
    let is_wanted = measured.rejection.is_none();
    Ok((measured, is_wanted.then_some(file)))
}

/// Whether the report may show an image among those that were nearly sharp enough.
fn is_near_miss(measured: &Measured, recipe: &Recipe) -> bool {
    let nearness = measured.pixels.map(|pixels| recipe.sharpness.nearness(pixels.sharpness));
    measured.rejection.is_some() && nearness.is_some_and(|nearness| nearness >= NEARLY)
}

/// What the report shows of it.
fn thumbnail(luma: &pixels::Luma) -> String {
    STANDARD.encode(luma.thumbnail())
}

impl From<pixels::Measures> for PixelMeasures {
    fn from(measures: pixels::Measures) -> Self {
        Self { sharpness: measures.sharpness, perceptual_hash: measures.perceptual_hash.0 }
    }
}

/// Holds what was measured so far against the recipe.
///
/// # Errors
/// The first rule that turns it down.
pub fn judge(measured: &Measured, recipe: &Recipe) -> Result<(), Rejection> {
    judge_header(measured, &recipe.image).map_err(|reason| Rejection::plain(Reason::Image(reason)))?;
    measured.pixels.map_or(Ok(()), |pixels| judge_sharpness(pixels.sharpness, recipe.sharpness))
}

fn judge_header(measured: &Measured, rules: &ImageRules) -> Result<(), reason::Image> {
    if !rules.formats.contains(&measured.format) {
        Err(reason::Image::Format)
    } else if measured.size.min_side() < rules.min_side {
        Err(reason::Image::TooSmall)
    } else if measured.size.aspect_ratio() > rules.max_aspect_ratio {
        Err(reason::Image::AspectRatio)
    } else {
        Ok(())
    }
}

impl SharpnessRules {
    /// Each score with its threshold, and what it means to be below.
    fn held_against(self, found: Sharpness) -> [(reason::Image, &'static str, f64, f64); 3] {
        [
            (reason::Image::Blurred, "whole", found.whole, self.min_whole),
            (reason::Image::NoSharpTile, "tile", found.tile, self.min_tile),
            (reason::Image::Upscaled, "detail", found.detail, self.min_detail),
        ]
    }

    /// The least of the scores' parts of their thresholds; below 1 if one of them is not met.
    pub fn nearness(self, found: Sharpness) -> f64 {
        self.held_against(found).into_iter().map(|(.., value, least)| value / least).fold(f64::INFINITY, f64::min)
    }
}

fn judge_sharpness(found: Sharpness, rules: SharpnessRules) -> Result<(), Rejection> {
    for (reason, name, value, least) in rules.held_against(found) {
        if value < least {
            let detail = format!("sharpness {name} {value:.4} is below {least}");
            return Err(Rejection { reason: Reason::Image(reason), detail });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::DOCUMENT;

    /// An image whose sharpness misses the threshold by a third, however it would have been stored.
    #[test]
    fn a_near_miss_is_turned_down_for_its_sharpness_and_has_a_thumbnail() {
        let rgb = (0..256 * 256).flat_map(|i: u32| [(i.wrapping_mul(2_654_435_761) >> 24) as u8; 3]).collect();
        let body = pixels::encode_jpeg(&pixels::Image::new(256, 256, rgb), 95);
        for store in ["\"original\"", "{ square_jpeg = { side = 96, quality = 90 } }"] {
            let folder = tempfile::tempdir().unwrap();
            let limits = pixels::Limits { max_bytes: 1 << 20, max_pixels: 1 << 20, max_side: 1 << 10 };
            let threshold = pixels::measure(&body, &limits).unwrap().sharpness.whole * 1.5;
            let text = format!(
                "[fetch]\nuser_agent = \"test/1.0 (+https://example.org)\"\n[image]\nmin_side = 64\nstore = {store}\n\
                 [sharpness]\nmin_whole = {threshold}\n[[source]]\nkind = \"laion\"\npaths = [\"/t\"]\n"
            );
            std::fs::write(folder.path().join(DOCUMENT), text).unwrap();
            let recipe = Recipe::read(folder.path(), folder.path()).unwrap();
            let (Answer::Image(measured), None) = measure(&body, &recipe) else { panic!("not turned down") };
            assert_eq!(measured.rejection.unwrap().reason, Reason::Image(reason::Image::Blurred));
            let thumbnail = STANDARD.decode(measured.thumbnail.unwrap()).unwrap();
            let thumbnail = pixels::probe(&thumbnail, &limits).unwrap();
            assert_eq!((thumbnail.width, thumbnail.height), (pixels::THUMBNAIL_SIDE, pixels::THUMBNAIL_SIDE));
        }
    }
}
