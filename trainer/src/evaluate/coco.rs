//! The paper's exam (section 4): captions and images of COCO, InceptionV3 on whole pictures and on patches of 299
//! pixels, and a CLIP.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use pixels::Limits;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use shards::ContentHash;
use tch::{Device, Kind, Tensor};

use super::clip::ClipScorer;
use super::exam::{Agreement, Exam, Features, Sight};
use super::inception::{INCEPTION_SIDE, InceptionV3};
use super::resize::{centre, resize};
use crate::{Error, Result};

/// Captions with their images, and the judges.
pub struct CocoExam {
    captions: Vec<String>,
    images: Vec<PathBuf>,
    /// One hash over the images.
    images_hash: ContentHash,
    /// The side of the pictures that patches are cut from.
    resolution: i64,
    inception: InceptionV3,
    clip: ClipScorer,
    judges: Vec<ContentHash>,
    device: Device,
}

/// Where the parts of the exam lie.
pub struct CocoFiles {
    /// `captions_*.json`.
    pub captions: PathBuf,
    /// The folder of images.
    pub references: PathBuf,
    /// InceptionV3's weights.
    pub inception: PathBuf,
    /// The CLIP's folder.
    pub clip: PathBuf,
}

/// The part of COCO's captions file that is needed.
#[derive(Deserialize)]
struct Annotations {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    caption: String,
}

impl CocoExam {
    /// Opens the judges, and takes the first caption of each of the first `count` images.
    pub fn open(files: &CocoFiles, count: usize, resolution: i64, device: Device) -> Result<Self> {
        if resolution < INCEPTION_SIDE {
            let reason = format!("a resolution of {resolution} has no patches of {INCEPTION_SIDE} pixels");
            return Err(Error::Argument(reason));
        }
        let (captions, images) = first_captions(&files.captions, &files.references, count)?;
        let inception = InceptionV3::open(&files.inception, device)?;
        let clip = ClipScorer::open(&files.clip, device)?;
        let judges = std::iter::once(&files.inception)
            .chain(&clip.files)
            .map(ContentHash::of_file)
            .collect::<shards::Result<_>>()?;
        let hashes = images.par_iter().map(ContentHash::of_file).collect::<shards::Result<Vec<_>>>()?;
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| *hash.as_bytes()).collect();
        let images_hash = ContentHash::of(&bytes);
        Ok(Self { captions, images, images_hash, resolution, inception, clip, judges, device })
    }

    fn features(&self, pictures: &Tensor) -> Tensor {
        self.inception.forward(&(pictures.to_device(self.device) / 255.0))
    }
}

/// Captions, and the files of their images, which all exist.
fn first_captions(file: &Path, folder: &Path, count: usize) -> Result<(Vec<String>, Vec<PathBuf>)> {
    let invalid = |reason: String| Error::Document { path: file.to_owned(), reason };
    let text = std::fs::read(file).map_err(|error| invalid(error.to_string()))?;
    let coco: Annotations = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    if coco.images.len() < count {
        return Err(invalid(format!("has {} images, the recipe asks for {count}", coco.images.len())));
    }
    let mut first: HashMap<u64, &str> = HashMap::new();
    for Annotation { image_id, caption } in &coco.annotations {
        first.entry(*image_id).or_insert(caption);
    }
    coco.images[..count]
        .iter()
        .map(|Image { id, file_name }| {
            let caption = first.get(id).ok_or_else(|| invalid(format!("image {id} ({file_name}) has no caption")))?;
            let image = folder.join(file_name);
            if !image.is_file() {
                return Err(Error::Document {
                    path: image,
                    reason: "is not there, and a caption belongs to it".into(),
                });
            }
            Ok((caption.trim().to_owned(), image))
        })
        .collect::<Result<Vec<_>>>()
        .map(|pairs| pairs.into_iter().unzip())
}

/// An image as grey levels, `[1, 3, H, W]`.
fn read(path: &Path) -> Result<Tensor> {
    let wrong = |reason: String| Error::Document { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let image = pixels::decode(&bytes, &Limits::default()).map_err(|error| wrong(error.to_string()))?;
    let size = [1, i64::from(image.height()), i64::from(image.width()), 3];
    Ok(Tensor::from_slice(image.rgb()).view(size).permute([0, 3, 1, 2]).to_kind(Kind::Float))
}

/// The middle of an image as it is; one with a shorter side is enlarged to have a middle of that size.
fn patch_of(image: &Tensor) -> Tensor {
    let (_, _, height, width) = image.size4().expect("an image has four dimensions");
    let scale = INCEPTION_SIDE as f64 / height.min(width) as f64;
    if scale <= 1.0 {
        return centre(image, INCEPTION_SIDE);
    }
    let scaled = |side: i64| ((side as f64 * scale).round() as i64).max(INCEPTION_SIDE);
    centre(&resize(image, scaled(height), scaled(width)), INCEPTION_SIDE)
}

impl Exam for CocoExam {
    fn captions(&self) -> &[String] {
        &self.captions
    }

    fn references(&self) -> usize {
        self.images.len()
    }

    fn reference_features(&self, items: Range<usize>) -> Result<Features> {
        let images = self.images[items].iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
        let all = |part: &dyn Fn(&Tensor) -> Tensor| Tensor::cat(&images.iter().map(part).collect::<Vec<_>>(), 0);
        Ok(Features {
            whole: self.features(&all(&|image| resize(image, INCEPTION_SIDE, INCEPTION_SIDE))),
            patch: self.features(&all(&patch_of)),
        })
    }

    fn look(&self, pictures: &Tensor, items: Range<usize>) -> Result<Sight> {
        let pictures = pictures.to_device(self.device);
        let full = resize(&pictures, self.resolution, self.resolution);
        let features = Features {
            whole: self.features(&resize(&pictures, INCEPTION_SIDE, INCEPTION_SIDE)),
            patch: self.features(&centre(&full, INCEPTION_SIDE)),
        };
        Ok(Sight { features, agreement: self.clip.scores(&pictures, &self.captions[items])?.unsqueeze(1) })
    }

    fn tally(&self, agreement: &Tensor) -> Agreement {
        Agreement::Clip(agreement.mean(Kind::Double).double_value(&[]))
    }

    fn conditions(&self) -> Value {
        json!({
            "judges": self.judges,
            "captions": self.captions,
            "references": self.images_hash,
            "resolution": self.resolution,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captions_file(folder: &Path, text: &str) -> PathBuf {
        let file = folder.join("captions.json");
        std::fs::write(&file, text).unwrap();
        file
    }

    const COCO: &str = r#"{"info": {}, "images": [{"id": 9, "file_name": "b.jpg", "width": 4}, {"id": 2, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 2, "id": 1, "caption": "second "}, {"image_id": 9, "id": 2, "caption": " first\n"},
        {"image_id": 9, "id": 3, "caption": "another"}]}"#;

    #[test]
    fn each_image_has_its_first_caption_in_the_order_of_images() {
        let folder = tempfile::tempdir().unwrap();
        let file = captions_file(folder.path(), COCO);
        for name in ["a.jpg", "b.jpg"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let (captions, images) = first_captions(&file, folder.path(), 2).unwrap();
        assert_eq!(captions, ["first", "second"]);
        assert_eq!(images, [folder.path().join("b.jpg"), folder.path().join("a.jpg")]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = captions_file(folder.path(), COCO);
        let refusal = |file: &Path, count| first_captions(file, folder.path(), count).unwrap_err().to_string();
        assert!(refusal(&file, 2).contains("b.jpg"));
        assert!(refusal(&file, 3).contains("has 2 images"));
        assert!(refusal(&captions_file(folder.path(), "[]"), 1).contains("captions.json"));
        let without = COCO.replace("\"image_id\": 2", "\"image_id\": 3");
        std::fs::write(folder.path().join("b.jpg"), b"").unwrap();
        std::fs::write(folder.path().join("a.jpg"), b"").unwrap();
        assert!(refusal(&captions_file(folder.path(), &without), 2).contains("image 2 (a.jpg) has no caption"));
    }

    #[test]
    fn a_broken_image_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.jpg");
        std::fs::write(&path, b"\xff\xd8\xff\xe0 not much of a picture").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("broken.jpg"));
    }

    #[test]
    fn patches_have_their_size_whatever_the_image() {
        for (height, width) in [(480, 640), (299, 300), (120, 500), (700, 299)] {
            let image = Tensor::zeros([1, 3, height, width], (Kind::Float, Device::Cpu));
            assert_eq!(patch_of(&image).size(), [1, 3, INCEPTION_SIDE, INCEPTION_SIDE], "{height} x {width}");
        }
    }
}
