//! The demo world's exam: held-out captions, judged by the probe.

use std::ops::Range;
use std::path::Path;

use demo_world::scene::{Scene, Split, item_rng};
use serde_json::{Value, json};
use shards::ContentHash;
use tch::{Device, Kind, Tensor};

use super::exam::{Agreement, Exam, Features, Sight};
use super::resize::centre;
use crate::Result;
use crate::pretrain::pictures;
use crate::probe::questions::{accuracy, choices};
use crate::probe::{Probe, SIDE};

/// The side of the central patch whose texture is compared.
const PATCH: i64 = SIDE / 2;
/// Streams of random numbers for captions and for references.
const CAPTIONS: u64 = 200;
const REFERENCES: u64 = 201;

/// Captions with the scenes that they describe, and the probe.
pub struct DemoExam {
    scenes: Vec<Scene>,
    captions: Vec<String>,
    references: usize,
    lot: u64,
    probe: Probe,
    probe_hash: ContentHash,
    device: Device,
}

impl DemoExam {
    /// Draws captions from what no training has shown; each `lot` gives others.
    pub fn open(probe: &Path, captions: u64, references: u64, lot: u64, device: Device) -> Result<Self> {
        let (scenes, captions) = (0..captions)
            .map(|item| {
                let rng = &mut item_rng(lot, CAPTIONS, item);
                let scene = Scene::draw(Split::HeldOut, rng);
                let caption = scene.caption(rng);
                (scene, caption)
            })
            .unzip();
        Ok(Self {
            scenes,
            captions,
            references: references as usize,
            lot,
            probe: Probe::open(probe, device)?,
            probe_hash: ContentHash::of_file(probe)?,
            device,
        })
    }

    /// The probe's features of pictures in [-1, 1], and its answers to all questions.
    fn see(&self, pictures: &Tensor) -> (Features, Tensor) {
        let pictures = pictures.to_device(self.device);
        let seen = self.probe.look(&pictures);
        let patch = self.probe.texture(&centre(&pictures, PATCH));
        (Features { whole: seen.features, patch }, choices(&seen.logits))
    }
}

impl Exam for DemoExam {
    fn captions(&self) -> &[String] {
        &self.captions
    }

    fn references(&self) -> usize {
        self.references
    }

    fn reference_features(&self, items: Range<usize>) -> Result<Features> {
        Ok(self.see(&references(self.lot, items)).0)
    }

    fn look(&self, pictures: &Tensor, _items: Range<usize>) -> Result<Sight> {
        let (features, choices) = self.see(&(pictures / 127.5 - 1.0));
        Ok(Sight { features, agreement: choices.to_kind(Kind::Float) })
    }

    fn tally(&self, agreement: &Tensor) -> Agreement {
        let found = accuracy(&agreement.to_kind(Kind::Int64), &self.scenes);
        Agreement::Probe { captions: found.captions, attributes: found.things }
    }

    fn conditions(&self) -> Value {
        let mut conditions =
            json!({ "probe": self.probe_hash, "captions": self.captions, "references": self.references });
        // Parts of before there were lots are of the first.
        if self.lot != 0 {
            conditions["lot"] = self.lot.into();
        }
        conditions
    }
}

/// Scenes of a lot, rendered in [-1, 1].
fn references(lot: u64, items: Range<usize>) -> Tensor {
    let view = demo_world::render::View::whole(SIDE as u32, SIDE as u32);
    let scene = |item| Scene::draw(Split::HeldOut, &mut item_rng(lot, REFERENCES, item as u64));
    pictures(&items.map(|item| (scene(item), view)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::super::frechet::Moments;
    use super::*;

    /// What finite samples leave between rendered pictures, on which every model's distance stands (docs/results.md).
    #[test]
    fn rendered_pictures_of_two_lots_are_apart() {
        let probe = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo/probe.safetensors"));
        let features = |lot, count| {
            let exam = DemoExam::open(probe, 1, 4096, lot, Device::Cpu).unwrap();
            let parts = (0..count).step_by(100).map(|at| exam.reference_features(at..count.min(at + 100)).unwrap());
            let (whole, patch): (Vec<_>, Vec<_>) = parts.map(|part| (part.whole, part.patch)).unzip();
            [whole, patch].map(|parts| Moments::of(&Tensor::cat(&parts, 0)).unwrap())
        };
        let ([whole, patch], [other_whole, other_patch]) = (features(0, 2000), features(1, 4096));
        let distances = [whole.distance(&other_whole).unwrap(), patch.distance(&other_patch).unwrap()];
        assert!((distances[0] - 18.03).abs() < 0.05 && (distances[1] - 0.00956).abs() < 1e-4, "{distances:?}");
    }

    #[test]
    fn references_are_a_function_of_their_lot_and_number() {
        assert_eq!(references(0, 3..5).get(1), references(0, 4..5).get(0));
        assert_ne!(references(0, 3..4), references(0, 4..5));
        assert_ne!(references(0, 3..4), references(1, 3..4));
    }
}
