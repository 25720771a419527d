//! Scenes as tensors.

use demo_world::render::{View, render};
use demo_world::scene::Scene;
use rayon::prelude::*;
use tch::{Kind, Tensor};

/// Draws the scenes, `view` giving each its part of the picture; all views have the same square size.
/// `[B, 3, size, size]` in [-1, 1].
pub fn pictures(scenes: &[(Scene, View)]) -> Tensor {
    let size = i64::from(scenes[0].1.width);
    let pixels: Vec<u8> = scenes.par_iter().flat_map_iter(|(scene, view)| render(scene, *view).into_raw()).collect();
    let nhwc = Tensor::from_slice(&pixels).view([scenes.len() as i64, size, size, 3]);
    nhwc.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0
}
