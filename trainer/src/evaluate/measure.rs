//! From captions to pictures, and what needs no judge: sharpness, and the distance to the teacher's pictures.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::contender::Contender;
use super::resize::resize;
use crate::Result;
use crate::draw::{sample_noise, step_noise};
use crate::sample::{MicroCondition, Pipeline, Size, Start};

/// The side to which pictures are resized before they are held against the teacher's.
pub const COMPARED_SIDE: i64 = 128;

/// Draws a picture for each of the captions, which are those of `items`: `[B, 3, H, W]` in whole grey levels.
pub fn draw(
    contender: &Contender,
    pipeline: &Pipeline,
    captions: &[String],
    items: Range<usize>,
    seed: u64,
) -> Result<Tensor> {
    let size = Size { width: contender.side, height: contender.side };
    let one = pipeline.latent_shape(1, size)?;
    let steps = pipeline.steps(contender.sampling.steps)?;
    let ids = MicroCondition { original: size, target: size };
    // The noise of a caption is a function of the seed and of its place in the list.
    let seeds: Vec<u64> = items.map(|item| (seed << 32) + item as u64).collect();
    let noise = |of: &dyn Fn(u64) -> Tensor| Tensor::cat(&seeds.iter().map(|&seed| of(seed)).collect::<Vec<_>>(), 0);
    let prompts: Vec<&str> = captions.iter().map(String::as_str).collect();
    let guidance = pipeline.embed(&prompts, None, contender.sampling.guidance_scale, &ids)?;
    let fresh = |step: usize| noise(&|seed| step_noise(seed, step, &one));
    let start = noise(&|seed| sample_noise(seed, &one));
    let latents = pipeline.denoise(&steps, &guidance, &Start::Noise, &start, fresh, |_| {})?;
    Ok(((pipeline.decode(&latents).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to_device(Device::Cpu))
}

/// Pictures in the size and dtype in which they are held against others, whole grey levels in FP16.
pub fn compared(pictures: &Tensor) -> Tensor {
    resize(pictures, COMPARED_SIDE, COMPARED_SIDE).round().to_kind(Kind::Half)
}

/// Root mean square distance of each picture to the other's of the same place, in grey levels, `[B]`.
pub fn distance(ours: &Tensor, theirs: &Tensor) -> Tensor {
    let apart = ours.to_kind(Kind::Float) - theirs.to_kind(Kind::Float);
    apart.square().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float).sqrt()
}

/// The variance over each picture of the 3x3 Laplacian of luma (Rec. 709 weights), in squared grey levels, `[B]`.
pub fn laplacian_variance(pictures: &Tensor) -> Tensor {
    let weights = Tensor::from_slice(&[0.2126f32, 0.7152, 0.0722]).view([1, 3, 1, 1]);
    let kernel = Tensor::from_slice(&[0f32, 1.0, 0.0, 1.0, -4.0, 1.0, 0.0, 1.0, 0.0]).view([1, 1, 3, 3]);
    let luma = pictures.conv2d(&weights, None::<Tensor>, 1, 0, 1, 1);
    luma.conv2d(&kernel, None::<Tensor>, 1, 0, 1, 1).flatten(1, -1).var_dim([1i64].as_slice(), false, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_laplacian_of_a_checkerboard_is_known_and_of_a_slope_zero() {
        let row = Tensor::from_slice(&[255f32, 0.0]).repeat([8]);
        let board = ((row.view([1, 16]) - row.view([16, 1])).abs()).view([1, 1, 16, 16]).repeat([1, 3, 1, 1]);
        // Luma is 127.5 times +-1 around its mean, the Laplacian -8 times that, with mean zero.
        let expected = (8.0f64 * 127.5).powi(2);
        let found = laplacian_variance(&board).double_value(&[0]);
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} for {expected}");
        let slope =
            Tensor::linspace(0.0, 255.0, 16, (Kind::Float, Device::Cpu)).view([1, 1, 1, 16]).repeat([1, 3, 16, 1]);
        assert!(laplacian_variance(&slope).double_value(&[0]) < 1e-4);
    }

    #[test]
    fn pictures_ten_grey_levels_apart_are_ten_apart() {
        let dark = Tensor::full([2, 3, 256, 256], 100.0, (Kind::Float, Device::Cpu));
        let apart = distance(&compared(&dark), &compared(&(&dark + 10.0)));
        assert_eq!(Vec::<f32>::try_from(apart).unwrap(), [10.0, 10.0]);
    }
}
