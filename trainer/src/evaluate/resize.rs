//! Resizing as clean-fid does it (Parmar et al. 2022): Pillow's bicubic filter, widened where it shrinks.

use tch::{Kind, Tensor};

/// Resizes pictures `[B, C, H, W]` of grey levels, 0 to 255, whole or not. The result is not rounded, but held between
/// 0 and 255.
pub fn resize(pictures: &Tensor, height: i64, width: i64) -> Tensor {
    let pictures = pictures.to_kind(Kind::Float);
    let (_, _, from_height, from_width) = pictures.size4().expect("pictures have four dimensions");
    if (from_height, from_width) == (height, width) {
        return pictures;
    }
    // Pillow skips a direction whose size stays; the filter at whole places is the identity, so torch agrees.
    pictures.internal_upsample_bicubic2d_aa([height, width], false, None, None).clamp(0.0, 255.0)
}

/// The middle of pictures `[B, C, H, W]`, rounded towards the top left.
pub fn centre(pictures: &Tensor, side: i64) -> Tensor {
    let (_, _, height, width) = pictures.size4().expect("pictures have four dimensions");
    pictures.narrow(2, (height - side) / 2, side).narrow(3, (width - side) / 2, side)
}
