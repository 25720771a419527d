//! From captions to numbers: what one contender draws, and what the probe makes of it.

use demo_world::scene::{Scene, Split, item_rng};
use tch::{Device, Kind, Tensor};

use super::contender::Contender;
use super::frechet::{FrechetError, Moments};
use super::recipe::EvaluateRecipe;
use super::results::Row;
use crate::draw::{sample_noise, step_noise};
use crate::pretrain::pictures;
use crate::probe::questions::{accuracy, choices};
use crate::probe::{Probe, SIDE};
use crate::sample::{MicroCondition, Pipeline, Size, Start};
use crate::{Error, Result};

/// The side of the central patch whose texture is compared.
const PATCH: i64 = SIDE / 2;
/// Streams of random numbers for captions and for references.
const CAPTIONS: u64 = 200;
const REFERENCES: u64 = 201;
/// Captions and references are the same in every evaluation.
const SEED: u64 = 0;
/// References in one pass.
const BATCH: u64 = 64;

/// The captions, with the scenes that they describe.
pub struct Exam {
    /// What the captions ask for.
    pub scenes: Vec<Scene>,
    /// The captions.
    pub captions: Vec<String>,
    whole: Moments,
    patch: Moments,
}

impl Exam {
    /// Draws captions and references by lot from what no training has shown.
    pub fn new(recipe: &EvaluateRecipe, probe: &Probe, device: Device) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let (scenes, captions) = (0..recipe.captions)
            .map(|item| {
                let rng = &mut item_rng(SEED, CAPTIONS, item);
                let scene = Scene::draw(Split::HeldOut, rng);
                let caption = scene.caption(rng);
                (scene, caption)
            })
            .unzip();
        let mut seen = Sights::default();
        for start in (0..recipe.references).step_by(BATCH as usize) {
            let items = start..recipe.references.min(start + BATCH);
            seen.look(probe, &references(items).to_device(device));
        }
        let (whole, patch) = seen.moments()?;
        Ok(Self { scenes, captions, whole, patch })
    }
}

fn references(items: std::ops::Range<u64>) -> Tensor {
    let view = demo_world::render::View::whole(SIDE as u32, SIDE as u32);
    let scenes: Vec<_> =
        items.map(|item| (Scene::draw(Split::HeldOut, &mut item_rng(SEED, REFERENCES, item)), view)).collect();
    pictures(&scenes)
}

/// What the probe has seen so far.
#[derive(Default)]
struct Sights {
    features: Vec<Tensor>,
    textures: Vec<Tensor>,
    choices: Vec<Tensor>,
}

impl Sights {
    fn look(&mut self, probe: &Probe, pictures: &Tensor) {
        let seen = probe.look(pictures);
        let corner = (SIDE - PATCH) / 2;
        let patches = pictures.narrow(2, corner, PATCH).narrow(3, corner, PATCH);
        self.features.push(seen.features);
        self.textures.push(probe.texture(&patches));
        self.choices.push(choices(&seen.logits));
    }

    /// Of whole pictures and of patches.
    fn moments(&self) -> std::result::Result<(Moments, Moments), FrechetError> {
        Ok((Moments::of(&Tensor::cat(&self.features, 0))?, Moments::of(&Tensor::cat(&self.textures, 0))?))
    }
}

/// A contender's pictures, `[N, 3, H, W]` in FP16 between -1 and 1.
pub struct Pictures(pub Tensor);

/// Draws a picture for each caption. `between` is asked after each pass and may stop the work.
pub fn draw(
    contender: &Contender,
    pipeline: &Pipeline,
    recipe: &EvaluateRecipe,
    captions: &[String],
    seed: u64,
    between: impl Fn() -> Result<()>,
) -> Result<Pictures> {
    let size = Size { width: SIDE, height: SIDE };
    let one = pipeline.latent_shape(1, size)?;
    let steps = pipeline.steps(contender.sampling.steps)?;
    let ids = MicroCondition { original: size, target: size };
    let mut pictures = Vec::new();
    for (at, captions) in captions.chunks(recipe.batch).enumerate() {
        let first = at * recipe.batch;
        // The noise of a caption is a function of the seed and of its place in the list.
        let seeds: Vec<u64> = (first..first + captions.len()).map(|item| (seed << 32) + item as u64).collect();
        let noise =
            |of: &dyn Fn(u64) -> Tensor| Tensor::cat(&seeds.iter().map(|&seed| of(seed)).collect::<Vec<_>>(), 0);
        let prompts: Vec<&str> = captions.iter().map(String::as_str).collect();
        let guidance = pipeline.embed(&prompts, None, contender.sampling.guidance_scale, &ids)?;
        let fresh = |step: usize| noise(&|seed| step_noise(seed, step, &one));
        let latents = pipeline.denoise(
            &steps,
            &guidance,
            &Start::Noise,
            &noise(&|seed| sample_noise(seed, &one)),
            fresh,
            |_| {},
        )?;
        pictures.push(pipeline.decode(&latents).clamp(-1.0, 1.0).to_device(Device::Cpu).to_kind(Kind::Half));
        between()?;
    }
    Ok(Pictures(Tensor::cat(&pictures, 0)))
}

/// Holds a contender's pictures against the exam and against the teacher's.
pub fn measure(
    contender: &Contender,
    pictures: &Pictures,
    teacher: &Pictures,
    exam: &Exam,
    probe: &Probe,
    device: Device,
    seed: u64,
) -> Result<Row> {
    let _no_grad = tch::no_grad_guard();
    let mut seen = Sights::default();
    let (mut sharpness, mut distance) = (0.0, 0.0);
    for (batch, teachers) in pictures.0.split(BATCH as i64, 0).iter().zip(teacher.0.split(BATCH as i64, 0)) {
        let (batch, teachers) = (batch.to_kind(Kind::Float), teachers.to_kind(Kind::Float));
        sharpness += laplacian_variance(&batch).sum(Kind::Double).double_value(&[]);
        let apart = (&batch - teachers) * 127.5;
        let apart = apart.square().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Double).sqrt();
        distance += apart.sum(Kind::Double).double_value(&[]);
        seen.look(probe, &batch.to_device(device));
    }
    let (whole, patch) = seen.moments()?;
    let found = accuracy(&Tensor::cat(&seen.choices, 0).to_device(Device::Cpu), &exam.scenes);
    let count = pictures.0.size()[0];
    Ok(Row {
        model: contender.name.clone(),
        kind: contender.kind,
        method: contender.method.clone(),
        steps: contender.sampling.steps,
        guidance_scale: contender.sampling.guidance_scale,
        frechet_whole: whole.distance(&exam.whole)?,
        frechet_patch: patch.distance(&exam.patch)?,
        caption_accuracy: found.captions,
        attribute_accuracy: found.things,
        sharpness: sharpness / count as f64,
        teacher_distance: distance / count as f64,
        n_images: count as u64,
        seed,
    })
}

/// The variance over each picture `[B, 3, H, W]` of the 3x3 Laplacian of luma (Rec. 709 weights) in grey levels, `[B]`.
fn laplacian_variance(pictures: &Tensor) -> Tensor {
    let weights = Tensor::from_slice(&[0.2126f32, 0.7152, 0.0722]).view([1, 3, 1, 1]);
    let kernel = Tensor::from_slice(&[0f32, 1.0, 0.0, 1.0, -4.0, 1.0, 0.0, 1.0, 0.0]).view([1, 1, 3, 3]);
    let luma = pictures.conv2d(&weights, None::<Tensor>, 1, 0, 1, 1) * 127.5;
    luma.conv2d(&kernel, None::<Tensor>, 1, 0, 1, 1).flatten(1, -1).var_dim([1i64].as_slice(), false, false)
}

impl From<FrechetError> for Error {
    fn from(error: FrechetError) -> Self {
        Error::Argument(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_laplacian_of_a_checkerboard_is_known_and_of_a_slope_zero() {
        let row = Tensor::from_slice(&[1f32, -1.0]).repeat([8]);
        let board = (row.view([1, 16]) * row.view([16, 1])).view([1, 1, 16, 16]).repeat([1, 3, 1, 1]);
        // Luma is 127.5 times +-1, the Laplacian -8 times that, with mean zero.
        let expected = (8.0f64 * 127.5).powi(2);
        let found = laplacian_variance(&board).double_value(&[0]);
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} for {expected}");
        let slope =
            Tensor::linspace(-1.0, 1.0, 16, (Kind::Float, Device::Cpu)).view([1, 1, 1, 16]).repeat([1, 3, 16, 1]);
        assert!(laplacian_variance(&slope).double_value(&[0]) < 1e-4);
    }

    #[test]
    fn references_are_a_function_of_their_number() {
        assert_eq!(references(3..5).get(1), references(4..5).get(0));
        assert_ne!(references(3..4), references(4..5));
    }
}
