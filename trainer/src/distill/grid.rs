//! Grids of samples: the teacher above the student, from the same noise and the same captions.

use std::path::Path;

use encode::AutoencoderKl;
use image::RgbImage;
use tch::{Device, Kind, Tensor};

use crate::condition::Condition;
use crate::draw::sample_noise;
use crate::flow::{Flow, Timestep};
use crate::objectives::{Student, Teacher};
use crate::{Error, Result};

/// Pixels between pictures.
const GAP: u32 = 2;

/// The fixed captions and noise of a stage's grids, and the decoder.
#[derive(Debug)]
pub(super) struct Grid {
    vae: AutoencoderKl,
    condition: Condition,
    noise: Tensor,
    /// Captions, one for each column.
    pub captions: Vec<String>,
    /// The teacher's row, drawn once in a phase.
    teacher: Option<Vec<RgbImage>>,
}

impl Grid {
    /// For some samples of the data, by their conditions and captions.
    pub fn new(
        base: &Path,
        device: Device,
        seed: u64,
        latent: [i64; 3],
        condition: Condition,
        captions: Vec<String>,
    ) -> Result<Grid> {
        let vae = AutoencoderKl::open(&base.join("vae"), Kind::Float, device)?;
        let [channels, height, width] = latent;
        let noise = sample_noise(seed, &[captions.len() as i64, channels, height, width]).to_device(device);
        Ok(Grid { vae, condition, noise, captions, teacher: None })
    }

    /// Has the teacher's row drawn again: another phase may follow another teacher.
    pub fn forget_teacher(&mut self) {
        self.teacher = None;
    }

    /// Draws the student's row below the teacher's and publishes the picture.
    pub fn draw(&mut self, flow: &Flow, teacher: &Teacher, student: &Student, path: &Path) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        if self.teacher.is_none() {
            let from = vec![flow.last(); self.captions.len()];
            let to = vec![Timestep::DATA; self.captions.len()];
            let points = teacher.walk(flow, &self.noise, &from, &to, &self.condition);
            self.teacher = Some(self.decode(points.last().unwrap_or(&self.noise))?);
        }
        let students = self.decode(&student.sample(flow, &self.noise, &self.condition))?;
        let rows = [self.teacher.as_deref().unwrap_or_default(), &students];
        let mut bytes = std::io::Cursor::new(Vec::new());
        tiled(&rows)
            .write_to(&mut bytes, image::ImageFormat::Png)
            .map_err(|e| Error::Document { path: path.to_owned(), reason: e.to_string() })?;
        Ok(shards::atomic::write_atomic(path, bytes.get_ref())?)
    }

    /// Latents to pictures, one at a time: a decoder's activations are large.
    fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        let pictures = latents.split(1, 0);
        pictures.iter().map(|latent| to_picture(&self.vae.decode(&self.vae.unscale(latent)))).collect()
    }
}

/// `[1, 3, H, W]` between -1 and 1.
fn to_picture(pixels: &Tensor) -> Result<RgbImage> {
    let pixels = pixels.squeeze_dim(0).to_kind(Kind::Float).to_device(Device::Cpu);
    let bytes = ((pixels / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8).permute([1, 2, 0]);
    let (height, width, _) = bytes.size3()?;
    let values: Vec<u8> = Vec::try_from(bytes.contiguous().flatten(0, -1))?;
    let picture = RgbImage::from_raw(width as u32, height as u32, values);
    Ok(picture.expect("three bytes for each pixel"))
}

fn tiled(rows: &[&[RgbImage]]) -> RgbImage {
    let (width, height) = rows[0][0].dimensions();
    let (columns, lines) = (rows[0].len() as u32, rows.len() as u32);
    let mut grid =
        RgbImage::from_pixel(columns * (width + GAP) - GAP, lines * (height + GAP) - GAP, image::Rgb([255, 255, 255]));
    for (y, row) in rows.iter().enumerate() {
        for (x, picture) in row.iter().enumerate() {
            let (left, top) = (x as u32 * (width + GAP), y as u32 * (height + GAP));
            image::imageops::replace(&mut grid, picture, left.into(), top.into());
        }
    }
    grid
}
