//! A curated sample to a crop at the resolution of training, and its caption to token ids. No torch.

use pixels::{Framed, Limits};
use shards::{ContentHash, Sample};

use crate::cache::{Conditioning, Refusal, RefusalReason};
use crate::encoder::Prepared;
use crate::frame::frame;
use crate::manifest::ModelManifest;
use crate::run::Stopwatch;
use crate::{Result, Tokenizers};

/// Extensions under which a curated shard files images.
const IMAGE_EXTENSIONS: [&str; 4] = ["jpg", "png", "webp", "gif"];
const CAPTION: &str = "txt";
/// Images were held against the recipe's limits when they were curated; these only keep memory in bounds.
const LIMITS: Limits = Limits { max_bytes: 256 << 20, max_pixels: 200_000_000, max_side: 65_535 };

/// Prepares one sample. A fault of the sample is a refusal; a fault of the tokenizer is an error.
pub fn prepare(
    sample: &Sample,
    manifest: &ModelManifest,
    tokenizers: &Tokenizers,
    tokenising: &Stopwatch,
) -> Result<std::result::Result<Prepared, Refusal>> {
    let refused = |reason, detail: String| Ok(Err(Refusal { key: sample.key.clone(), reason, detail }));
    let Some(bytes) = image_bytes(sample) else {
        return refused(RefusalReason::Incomplete, "has no image".into());
    };
    let Some(caption) = sample.part(CAPTION).and_then(|text| std::str::from_utf8(text).ok()) else {
        return refused(RefusalReason::Incomplete, "has no caption in UTF-8".into());
    };
    let Framed { image, original_size, crop_top_left, target_size } = match framed(bytes, &sample.key, manifest) {
        Ok(framed) => framed,
        Err(error) => return refused(RefusalReason::Undecodable, error.to_string()),
    };
    Ok(Ok(Prepared {
        key: sample.key.clone(),
        image,
        caption: tokenising.time(|| tokenizers.encode(caption))?,
        conditioning: Conditioning {
            original_size,
            crop_top_left,
            target_size,
            caption: caption.to_owned(),
            sha256: ContentHash::of(bytes),
        },
    }))
}

/// The image file of a curated sample.
pub fn image_bytes(sample: &Sample) -> Option<&[u8]> {
    IMAGE_EXTENSIONS.iter().find_map(|extension| sample.part(extension))
}

/// Decodes an image file and cuts it as the manifest says.
pub fn framed(bytes: &[u8], key: &str, manifest: &ModelManifest) -> std::result::Result<Framed, pixels::DecodeError> {
    Ok(frame(&pixels::decode(bytes, &LIMITS)?, key, manifest))
}
