//! Stored samples to sRGB.

use moxcms::{ColorProfile, DataColorSpace, Layout, RenderingIntent, TransformExecutor, TransformOptions};

/// Pixels per call of a transform, so that no second copy of the image is needed.
const STRIP: usize = 4096;

/// Converts RGB in place by an ICC profile; leaves it as it is if the profile is broken, of
/// another colour space, or the identity within one level.
pub(crate) fn rgb_to_srgb(rgb: &mut [u8], icc: &[u8]) {
    let Some(transform) = transform_to_srgb(icc, DataColorSpace::Rgb, Layout::Rgb) else {
        return;
    };
    if is_identity(&*transform) {
        return;
    }
    let mut source = [0; STRIP * 3];
    for strip in rgb.chunks_mut(source.len()) {
        let source = &mut source[..strip.len()];
        source.copy_from_slice(strip);
        if transform.transform(source, strip).is_err() {
            strip.copy_from_slice(source);
        }
    }
}

/// Whether a profile changes samples of this kind.
pub(crate) fn converts(icc: &[u8], is_gray: bool) -> bool {
    if is_gray {
        return transform_to_srgb(icc, DataColorSpace::Gray, Layout::Gray).is_some();
    }
    transform_to_srgb(icc, DataColorSpace::Rgb, Layout::Rgb).is_some_and(|transform| !is_identity(&*transform))
}

/// Grey to RGB, by the profile's curve if there is a grey profile.
pub(crate) fn gray_to_srgb(gray: &[u8], icc: Option<&[u8]>) -> Vec<u8> {
    let mut curve: [[u8; 3]; 256] = std::array::from_fn(|level| [level as u8; 3]);
    if let Some(transform) = icc.and_then(|icc| transform_to_srgb(icc, DataColorSpace::Gray, Layout::Gray)) {
        let levels: [u8; 256] = std::array::from_fn(|level| level as u8);
        let mut mapped = [0; 768];
        if transform.transform(&levels, &mut mapped).is_ok() {
            curve.as_flattened_mut().copy_from_slice(&mapped);
        }
    }
    gray.iter().flat_map(|&level| curve[usize::from(level)]).collect()
}

/// CMYK as Adobe stores it in JPEG, inverted (255 is no ink), to RGB: by the profile, or without
/// one by `R = (255 - C)(255 - K) / 255`, as Pillow does.
pub(crate) fn stored_cmyk_to_srgb(mut stored: Vec<u8>, icc: Option<&[u8]>) -> Vec<u8> {
    if let Some(transform) = icc.and_then(|icc| transform_to_srgb(icc, DataColorSpace::Cmyk, Layout::Rgba)) {
        let mut rgb = vec![0; stored.len() / 4 * 3];
        stored.iter_mut().for_each(|sample| *sample = 255 - *sample);
        let converted = stored
            .chunks(STRIP * 4)
            .zip(rgb.chunks_mut(STRIP * 3))
            .all(|(cmyk, rgb)| transform.transform(cmyk, rgb).is_ok());
        if converted {
            return rgb;
        }
        stored.iter_mut().for_each(|sample| *sample = 255 - *sample);
    }
    let paper = |ink: u8, black: u8| ((u32::from(ink) * u32::from(black) + 127) / 255) as u8;
    let (pixels, _) = stored.as_chunks::<4>();
    pixels.iter().flat_map(|&[c, m, y, k]| [paper(c, k), paper(m, k), paper(y, k)]).collect()
}

/// YCCK to CMYK as Adobe stores both: YCC is the RGB of the inverted inks.
pub(crate) fn ycck_to_stored_cmyk(samples: &mut [u8]) {
    let (pixels, _) = samples.as_chunks_mut::<4>();
    for pixel in pixels {
        let [y, cb, cr] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
        let (cb, cr) = (cb - 128.0, cr - 128.0);
        let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
        // A float cast saturates, which is the clamp.
        for (sample, value) in pixel.iter_mut().zip(rgb) {
            *sample = 255 - (value + 0.5) as u8;
        }
    }
}

/// Cb and Cr, as JFIF has them, of sums of four pixels' R, G and B, in 16-bit fixed point as libjpeg computes them.
pub(crate) const fn chroma_of_four([r, g, b]: [i32; 3]) -> [u8; 2] {
    // A half, and all but a half so that pure blue and pure red do not round up to 256.
    const OFFSET: i32 = (128 << 18) + (1 << 17) - 1;
    let cb = (OFFSET - 11_059 * r - 21_709 * g + 32_768 * b) >> 18;
    let cr = (OFFSET + 32_768 * r - 27_439 * g - 5_329 * b) >> 18;
    [cb as u8, cr as u8]
}

/// Composes colours with alpha over white.
pub(crate) fn compose_over_white(rgb: &mut [u8], alpha: &[u8]) {
    let (pixels, _) = rgb.as_chunks_mut::<3>();
    for (pixel, &alpha) in pixels.iter_mut().zip(alpha) {
        for sample in pixel {
            let weighed = u32::from(*sample) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
            *sample = ((weighed + 127) / 255) as u8;
        }
    }
}

/// The first of each three samples.
pub(crate) fn first_of_three(rgb: &[u8]) -> Vec<u8> {
    rgb.iter().step_by(3).copied().collect()
}

type Transform = std::sync::Arc<dyn TransformExecutor<u8> + Send + Sync>;

/// A transform to sRGB, if the profile is sound and is for `space`.
fn transform_to_srgb(icc: &[u8], space: DataColorSpace, layout: Layout) -> Option<Transform> {
    let profile = ColorProfile::new_from_slice(icc).ok().filter(|profile| profile.color_space == space)?;
    let options = TransformOptions { rendering_intent: RenderingIntent::Perceptual, ..TransformOptions::default() };
    profile.create_transform_8bit(layout, &ColorProfile::new_srgb(), Layout::Rgb, options).ok()
}

/// Whether a transform moves no colour of a 9 x 9 x 9 lattice by more than one level: most
/// profiles found in the wild are sRGB.
fn is_identity(transform: &(dyn TransformExecutor<u8> + Send + Sync)) -> bool {
    let level = |step: usize| (step * 255 / 8) as u8;
    let lattice: Vec<u8> = (0..729).flat_map(|i| [level(i / 81), level(i / 9 % 9), level(i % 9)]).collect();
    let mut mapped = vec![0; lattice.len()];
    transform.transform(&lattice, &mut mapped).is_ok() && lattice.iter().zip(&mapped).all(|(a, b)| a.abs_diff(*b) <= 1)
}
