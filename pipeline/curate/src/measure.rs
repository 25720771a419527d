//! Bytes to measures, and to the bytes that a sample will hold.

use pixels::{Anchor, DecodeError, Sharpness};
use shards::ContentHash;

use crate::reason::{self, Reason};
use crate::recipe::{ImageRules, Recipe, SharpnessRules, Store};
use crate::record::{Answer, Measured, PixelMeasures, Rejection};
use crate::row::Size;

/// Decodes, measures and judges one download. Returns the answer, and the image file of the sample where no
/// rule turned it down.
pub fn measure(body: &[u8], recipe: &Recipe) -> (Answer, Option<Vec<u8>>) {
    match inspect(body, recipe) {
        Ok((measured, file)) => (Answer::Image(Box::new(measured)), file),
        Err(error) => {
            let rejection = Rejection { reason: Reason::Decode(error.name()), detail: error.to_string() };
            (Answer::None(rejection), None)
        }
    }
}

fn inspect(body: &[u8], recipe: &Recipe) -> Result<(Measured, Option<Vec<u8>>), DecodeError> {
    let limits = recipe.image.limits(&recipe.fetch);
    let header = pixels::probe(body, &limits)?;
    let mut measured = Measured {
        format: header.format,
        size: Size { width: header.width, height: header.height },
        orientation: header.orientation.exif(),
        bytes: body.len() as u64,
        sha256: ContentHash::of(body),
        pixels: None,
        rejection: None,
    };
    // What the header rules out is not decoded.
    measured.rejection = judge(&measured, recipe).err();
    if measured.rejection.is_some() {
        return Ok((measured, None));
    }
    let (luma, image) = match recipe.image.store {
        Store::Original => (pixels::decode_luma(body, &limits)?, None),
        Store::SquareJpeg { .. } => {
            let image = pixels::decode(body, &limits)?;
            (image.luma(), Some(image))
        }
    };
    let sharpness = pixels::sharpness(&luma);
    measured.pixels = Some(PixelMeasures { sharpness, perceptual_hash: pixels::perceptual_hash(&luma).0 });
    measured.rejection = judge(&measured, recipe).err();
    if measured.rejection.is_some() {
        return Ok((measured, None));
    }
    let file = match (recipe.image.store, image) {
        (Store::SquareJpeg { side, quality }, Some(image)) => {
            pixels::encode_jpeg(&pixels::fit_square(&image, side, Anchor::CENTER).image, quality)
        }
        _ => body.to_vec(),
    };
    Ok((measured, Some(file)))
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

fn judge_sharpness(found: Sharpness, rules: SharpnessRules) -> Result<(), Rejection> {
    for (reason, name, value, least) in [
        (reason::Image::Blurred, "whole", found.whole, rules.min_whole),
        (reason::Image::NoSharpTile, "tile", found.tile, rules.min_tile),
        (reason::Image::Upscaled, "detail", found.detail, rules.min_detail),
    ] {
        if value < least {
            let detail = format!("sharpness {name} {value:.4} is below {least}");
            return Err(Rejection { reason: Reason::Image(reason), detail });
        }
    }
    Ok(())
}
