//! Pixels of a scene, at any size.
//!
//! Every edge is a signed distance, blended over one pixel, so a scene rendered at 128 px looks like one rendered at
//! 1024 px and scaled down. Only additions, multiplications, square roots and comparisons touch the pixels: no
//! function whose last bit differs between machines.

use crate::scene::{Colour, Object, Pattern, Scene, Shape, Tint};
use image::RgbImage;

/// Widths of a stripe and of a square of the checkerboard, in sides of the picture's centred square.
const STRIPE: f32 = 0.125;
const CHECK: f32 = 0.125;

/// Which part of the scene a picture shows, and how finely.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Pixels across and down.
    pub width: u32,
    /// See `width`.
    pub height: u32,
    /// Pixels per side of the scene's square.
    pub side: f32,
    /// Where the square's top left corner lies, in pixels; negative for a view into the scene.
    pub origin: [f32; 2],
    /// Amplitude of the paper grain in grey levels, 0 for none.
    pub grain: u8,
}

impl View {
    /// The whole scene; its square is centred, and the background reaches the borders.
    pub fn whole(width: u32, height: u32) -> Self {
        let side = width.min(height) as f32;
        let origin = [(width as f32 - side) / 2.0, (height as f32 - side) / 2.0];
        Self { width, height, side, origin, grain: 0 }
    }

    /// A square window of `size` pixels, its corner at (`left`, `top`), into the scene drawn at `side` pixels.
    pub fn window(side: u32, left: u32, top: u32, size: u32) -> Self {
        let origin = [-(left as f32), -(top as f32)];
        Self { width: size, height: size, side: side as f32, origin, grain: 0 }
    }

    /// The same view with grain.
    pub fn with_grain(self, grain: u8) -> Self {
        Self { grain, ..self }
    }
}

/// Draws the scene.
pub fn render(scene: &Scene, view: View) -> RgbImage {
    let mut picture = RgbImage::new(view.width, view.height);
    let pixel = 1.0 / view.side;
    for (row, line) in picture.chunks_exact_mut(3 * view.width as usize).enumerate() {
        let y = (row as f32 + 0.5 - view.origin[1]) * pixel;
        let crossing: Vec<&Object> =
            scene.objects.iter().filter(|object| (y - object.centre[1]).abs() < object.radius + pixel).collect();
        for (column, rgb) in line.chunks_exact_mut(3).enumerate() {
            let x = (column as f32 + 0.5 - view.origin[0]) * pixel;
            let mut colour = background(scene, x, y, pixel);
            for object in &crossing {
                if (x - object.centre[0]).abs() < object.radius + pixel {
                    let ink = coverage(distance(object, x, y), pixel);
                    colour = mix(colour, shaded(object, x, y), ink);
                }
            }
            let grain = grain(column as u32, row as u32, view.grain);
            for (value, channel) in rgb.iter_mut().zip(colour) {
                *value = (channel + grain + 0.5).clamp(0.0, 255.0) as u8;
            }
        }
    }
    picture
}

fn background(scene: &Scene, x: f32, y: f32, pixel: f32) -> [f32; 3] {
    let light = tint_rgb(scene.tint);
    let dark = light.map(|channel| channel * 0.78);
    match scene.pattern {
        Pattern::Plain => light,
        Pattern::Gradient => mix(light, light.map(|channel| channel * 0.45), y.clamp(0.0, 1.0)),
        Pattern::Striped => {
            let across = (x + y) * std::f32::consts::FRAC_1_SQRT_2 + 2.0 * STRIPE * scene.phase;
            mix(light, dark, coverage(band(across, STRIPE), pixel))
        }
        Pattern::Checkered => {
            let (across, down) = (band(x, CHECK), band(y, CHECK));
            // One of the two bands, but not both: the product of the signed distances, kept in units of length.
            let nearer = across.abs().min(down.abs());
            let signed = if (across < 0.0) == (down < 0.0) { nearer } else { -nearer };
            mix(light, dark, coverage(signed, pixel))
        }
    }
}

/// Signed distance to the nearest of the bands of width `width` that alternate with gaps of the same width; negative
/// inside a band.
fn band(position: f32, width: f32) -> f32 {
    let period = 2.0 * width;
    let within = position - (position / period).floor() * period;
    let from_middle = (within - width / 2.0).abs().min((within - width / 2.0 - period).abs());
    from_middle - width / 2.0
}

/// The share of a pixel that lies inside an edge at signed distance `distance`.
fn coverage(distance: f32, pixel: f32) -> f32 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}

/// Signed distance to an object's outline, in sides of the square; negative inside.
fn distance(object: &Object, x: f32, y: f32) -> f32 {
    let (x, y) = ((x - object.centre[0]) / object.radius, (y - object.centre[1]) / object.radius);
    let length = (x * x + y * y).sqrt();
    let unit = match object.shape {
        Shape::Circle => length - 0.92,
        Shape::Ring => (length - 0.7).abs() - 0.24,
        Shape::Square => x.abs().max(y.abs()) - 0.78,
        Shape::Cross => (x.abs() - 0.3).max(y.abs() - 0.95).min((x.abs() - 0.95).max(y.abs() - 0.3)),
        Shape::Triangle => {
            let y = y - 0.15;
            (y - 0.55).max(0.894_427_2 * x.abs() - 0.447_213_6 * y - 0.45)
        }
        Shape::Star => star(x, y),
    };
    unit * object.radius
}

/// Signed distance to a five-pointed star in the unit circle: the plane is folded along the star's axes until one
/// edge is left.
fn star(x: f32, y: f32) -> f32 {
    const AXIS: [f32; 2] = [0.809_017, -0.587_785_24];
    const INNER: f32 = 0.45;
    let (mut x, mut y) = (x.abs(), -y);
    for axis in [AXIS, [-AXIS[0], AXIS[1]]] {
        let beyond = 2.0 * (axis[0] * x + axis[1] * y).max(0.0);
        x -= beyond * axis[0];
        y -= beyond * axis[1];
    }
    let (x, y) = (x.abs(), y - 1.0);
    let edge = [-INNER * AXIS[1], INNER * AXIS[0] - 1.0];
    let along = ((x * edge[0] + y * edge[1]) / (edge[0] * edge[0] + edge[1] * edge[1])).clamp(0.0, 1.0);
    let (dx, dy) = (x - edge[0] * along, y - edge[1] * along);
    let length = (dx * dx + dy * dy).sqrt();
    if y * edge[0] - x * edge[1] < 0.0 { -length } else { length }
}

/// An object's colour, a little lighter at its top left.
fn shaded(object: &Object, x: f32, y: f32) -> [f32; 3] {
    let slope = (x - object.centre[0] + y - object.centre[1]) / object.radius;
    colour_rgb(object.colour).map(|channel| channel * (1.0 - 0.08 * slope))
}

fn mix(under: [f32; 3], over: [f32; 3], share: f32) -> [f32; 3] {
    std::array::from_fn(|channel| under[channel] + (over[channel] - under[channel]) * share)
}

/// Noise in [-amplitude, amplitude] that depends on nothing but the pixel.
fn grain(x: u32, y: u32, amplitude: u8) -> f32 {
    if amplitude == 0 {
        return 0.0;
    }
    // The finaliser of MurmurHash3.
    let mut hash = x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77);
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^= hash >> 16;
    f32::from(amplitude) * ((hash >> 8) as f32 / 8_388_608.0 - 1.0)
}

/// The colour that stands for a tint.
pub fn tint_rgb(tint: Tint) -> [f32; 3] {
    match tint {
        Tint::Sand => [228.0, 208.0, 158.0],
        Tint::Mint => [165.0, 222.0, 188.0],
        Tint::Sky => [160.0, 204.0, 238.0],
        Tint::Rose => [238.0, 176.0, 190.0],
        Tint::Grey => [150.0, 152.0, 155.0],
        Tint::Brown => [128.0, 92.0, 66.0],
    }
}

/// The colour that stands for an object's colour word.
pub fn colour_rgb(colour: Colour) -> [f32; 3] {
    match colour {
        Colour::Red => [216.0, 36.0, 38.0],
        Colour::Orange => [246.0, 138.0, 24.0],
        Colour::Yellow => [250.0, 224.0, 48.0],
        Colour::Green => [38.0, 150.0, 66.0],
        Colour::Blue => [36.0, 72.0, 206.0],
        Colour::Purple => [138.0, 52.0, 176.0],
        Colour::Black => [26.0, 26.0, 30.0],
        Colour::White => [246.0, 246.0, 244.0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Place, Size, Split, item_rng};

    fn single(shape: Shape) -> Scene {
        let object = Object {
            shape,
            colour: Colour::Red,
            size: Size::Large,
            place: Place::Centre,
            centre: [0.5, 0.5],
            radius: 0.25,
        };
        Scene { pattern: Pattern::Plain, tint: Tint::Sky, phase: 0.0, objects: vec![object] }
    }

    fn red_share(picture: &RgbImage) -> f64 {
        let red = picture.pixels().filter(|pixel| pixel[0] > 150 && pixel[1] < 100).count();
        red as f64 / f64::from(picture.width() * picture.height())
    }

    #[test]
    fn areas_are_those_of_the_shapes() {
        let unit = 0.25f64 * 0.25;
        let pi = std::f64::consts::PI;
        // The star: ten triangles between an outer vertex (radius 1) and an inner one (radius 0.45), 36 degrees apart.
        let star = 10.0 * 0.5 * 0.45 * (pi / 5.0).sin();
        for (shape, area) in [
            (Shape::Circle, pi * 0.92 * 0.92),
            (Shape::Ring, pi * (0.94f64.powi(2) - 0.46f64.powi(2))),
            (Shape::Square, 1.56 * 1.56),
            (Shape::Cross, 2.0 * 0.6 * 1.9 - 0.6 * 0.6),
            (Shape::Star, star),
        ] {
            let found = red_share(&render(&single(shape), View::whole(512, 512)));
            assert!((found - area * unit).abs() < 0.002, "{shape:?}: {found} for {}", area * unit);
        }
    }

    #[test]
    fn a_small_picture_is_the_large_one_scaled_down() {
        for item in 0..12 {
            let scene = Scene::draw(Split::Shown, &mut item_rng(5, 0, item));
            let small = render(&scene, View::whole(64, 64));
            let large = render(&scene, View::whole(512, 512));
            let scaled = image::imageops::thumbnail(&large, 64, 64);
            let difference: f64 = small
                .as_raw()
                .iter()
                .zip(scaled.as_raw())
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
                .sum::<f64>()
                / small.as_raw().len() as f64;
            assert!(difference < 1.0, "scene {item} differs by {difference} grey levels on average");
        }
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let scene = Scene::draw(Split::Shown, &mut item_rng(5, 0, 1));
        let whole = render(&scene, View::whole(128, 128));
        let window = render(&scene, View::window(128, 40, 24, 64));
        let part = image::imageops::crop_imm(&whole, 40, 24, 64, 64).to_image();
        assert_eq!(window, part);
    }

    #[test]
    fn stripes_and_checks_fill_half_of_the_plane() {
        for pattern in [Pattern::Striped, Pattern::Checkered] {
            let scene = Scene { pattern, tint: Tint::Sky, phase: 0.3, objects: vec![] };
            let picture = render(&scene, View::whole(256, 256));
            let dark = picture.pixels().filter(|pixel| pixel[2] < 212).count() as f64 / 65_536.0;
            assert!((dark - 0.5).abs() < 0.05, "{pattern:?}: {dark}");
        }
    }
}
