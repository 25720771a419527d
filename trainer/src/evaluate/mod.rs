//! The paper's table, measured on a run: how close few-step students come to their teacher.
//!
//! ```text
//! held-out captions ── contender ── pictures ──┬── probe ── features ── Fréchet distances to rendered scenes
//!                                              │      └──── answers ─── caption accuracy
//!                                              └── sharpness, distance to the teacher's pictures
//! ```
//!
//! `RUN/evaluation/` holds `results.json`, `.csv`, `.md` and `report.html`, written last, and `parts/`: what each
//! contender has shown with each seed, kept with the hash of all that it depends on. A stopped evaluation goes on from
//! there, and a repeated one measures what has changed.

mod contender;
pub mod frechet;
mod measure;
mod recipe;
mod report;
mod results;

pub use contender::{Contender, Kind, contenders};
pub use recipe::{Baseline, EvaluateRecipe, Sampling};
pub use results::{Row, csv, markdown};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use image::RgbImage;
use nn::Weights;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shards::atomic::{read_json, write_atomic, write_json};
use shards::{ContentHash, RunLock};
use tch::{Device, Kind as Dtype};

use self::measure::{Exam, Pictures, draw, measure};
use crate::model::ModelFolder;
use crate::probe::{Probe, SIDE};
use crate::sample::{LoraChoice, ModelChoice, Pipeline};
use crate::{Error, Result};

/// The tensor in a part's file of pictures.
const PICTURES: &str = "pictures";
/// Pixels between the pictures of a grid.
const GAP: u32 = 2;

/// What a contender has shown with one seed.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    /// The hash of all that the row depends on.
    key: ContentHash,
    row: Row,
}

/// One evaluation in progress.
struct Evaluation<'a> {
    recipe: &'a EvaluateRecipe,
    folder: PathBuf,
    probe: Probe,
    probe_hash: ContentHash,
    exam: Exam,
    device: Device,
    interrupted: &'a AtomicBool,
}

/// Measures all contenders of a run and writes the results. `interrupted` stops it after the pass in progress.
pub fn evaluate(
    recipe: &EvaluateRecipe,
    manifest: &Path,
    run: &Path,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<Vec<Row>> {
    let contenders = contenders(recipe, manifest, run)?;
    check_resolution(manifest, run)?;
    let folder = run.join("evaluation");
    let _lock = RunLock::acquire(&folder)?;

    let probe_file = manifest.join(&recipe.probe);
    let probe = Probe::open(&probe_file, device)?;
    let probe_hash = ContentHash::of_file(&probe_file)?;
    let exam = Exam::new(recipe, &probe, device)?;
    let evaluation = Evaluation { recipe, folder, probe, probe_hash, exam, device, interrupted };

    // The teacher is first, and its pictures are kept for the others' distances.
    let (teacher, others) = contenders.split_first().expect("the teacher is always there");
    let (mut rows, teachers) = evaluation.teacher(teacher)?;
    for contender in others {
        rows.extend(evaluation.student(contender, &teachers)?);
    }
    evaluation.publish(&rows, &contenders)?;
    Ok(rows)
}

/// The probe looks at pictures of one size.
fn check_resolution(manifest: &Path, run: &Path) -> Result<()> {
    let resolution = encode::ModelManifest::read(manifest, run)?.resolution;
    if i64::from(resolution) == SIDE {
        return Ok(());
    }
    let reason =
        format!("resolution is {resolution}: the probe judges pictures of {SIDE} pixels, those of the demo world");
    Err(Error::Document { path: manifest.join("model.toml"), reason })
}

impl Evaluation<'_> {
    fn teacher(&self, teacher: &Contender) -> Result<(Vec<Row>, Vec<Pictures>)> {
        let key = self.key(teacher, None)?;
        let mut rows = Vec::new();
        let mut all = Vec::new();
        let mut pipeline = None;
        for &seed in &self.recipe.seeds {
            let file = self.part(teacher, seed, "safetensors");
            if let Some(row) = self.kept(teacher, seed, &key)?.filter(|_| file.exists()) {
                let pictures = Weights::open(&file)?.to(Dtype::Half, Device::Cpu).tensor(PICTURES)?;
                rows.push(row);
                all.push(Pictures(pictures));
                continue;
            }
            let pictures = self.draw(teacher, seed, &mut pipeline)?;
            nn::save(&file, [(PICTURES, &pictures.0)], &[])?;
            rows.push(self.examine(teacher, seed, &key, &pictures, &pictures)?);
            all.push(pictures);
        }
        Ok((rows, all))
    }

    fn student(&self, contender: &Contender, teachers: &[Pictures]) -> Result<Vec<Row>> {
        let key = self.key(contender, Some(teachers))?;
        let mut pipeline = None;
        let measured =
            self.recipe.seeds.iter().zip(teachers).map(|(&seed, teacher)| match self.kept(contender, seed, &key)? {
                Some(row) => Ok(row),
                None => {
                    let pictures = self.draw(contender, seed, &mut pipeline)?;
                    self.examine(contender, seed, &key, &pictures, teacher)
                }
            });
        measured.collect()
    }

    /// Draws with one seed; the model is loaded for the first of them.
    fn draw(&self, contender: &Contender, seed: u64, loaded: &mut Option<Pipeline>) -> Result<Pictures> {
        self.check_interrupt()?;
        tracing::info!("{}: {} pictures with seed {seed}", contender.name, self.exam.captions.len());
        if loaded.is_none() {
            let choice = ModelChoice {
                folder: contender.model.clone(),
                weights: None,
                loras: contender.lora.iter().map(|file| LoraChoice { file: file.clone(), strength: 1.0 }).collect(),
                algorithm: None,
                timestep_spacing: None,
                prediction_type: None,
            };
            *loaded = Some(Pipeline::open(&choice, Dtype::Float, self.device)?);
        }
        let pipeline = loaded.as_ref().expect("it has just been loaded");
        draw(contender, pipeline, self.recipe, &self.exam.captions, seed, || self.check_interrupt())
    }

    /// Measures pictures and keeps what came of it.
    fn examine(
        &self,
        contender: &Contender,
        seed: u64,
        key: &ContentHash,
        pictures: &Pictures,
        teacher: &Pictures,
    ) -> Result<Row> {
        let row = measure(contender, pictures, teacher, &self.exam, &self.probe, self.device, seed)?;
        if Some(&seed) == self.recipe.seeds.first() {
            self.draw_grid(contender, pictures)?;
        }
        write_json(self.part(contender, seed, "json"), &Part { key: *key, row: row.clone() })?;
        Ok(row)
    }

    /// The row of an earlier evaluation, if all that it depends on is the same.
    fn kept(&self, contender: &Contender, seed: u64, key: &ContentHash) -> Result<Option<Row>> {
        let file = self.part(contender, seed, "json");
        if !file.exists() {
            return Ok(None);
        }
        let part: Part = read_json(&file)?;
        Ok((part.key == *key).then_some(part.row))
    }

    /// The hash of a contender, of the teacher's pictures and of the exam.
    fn key(&self, contender: &Contender, teachers: Option<&[Pictures]>) -> Result<ContentHash> {
        let Contender { kind, method, model, lora, sampling, .. } = contender;
        let teachers = teachers.map(|teachers| teachers.iter().map(hash_of).collect::<Result<Vec<_>>>()).transpose()?;
        let on = json!({
            "kind": kind,
            "method": method,
            "unet": ModelFolder::open(model)?.hash()?,
            "lora": lora.as_ref().map(ContentHash::of_file).transpose()?,
            "sampling": sampling,
            "teachers": teachers,
            "probe": self.probe_hash,
            "captions": self.exam.captions,
            "references": self.recipe.references,
            "seeds": self.recipe.seeds,
        });
        Ok(ContentHash::of(on.to_string().as_bytes()))
    }

    fn part(&self, contender: &Contender, seed: u64, extension: &str) -> PathBuf {
        self.folder.join("parts").join(format!("{}-seed{seed}.{extension}", contender.name))
    }

    fn check_interrupt(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted { iteration: 0 }) } else { Ok(()) }
    }

    fn draw_grid(&self, contender: &Contender, pictures: &Pictures) -> Result<()> {
        let shown = self.recipe.grid.min(self.exam.captions.len());
        let side = SIDE as u32;
        let mut grid = RgbImage::new((side + GAP) * shown as u32, side);
        for at in 0..shown {
            let pixels = (pictures.0.get(at as i64).to_kind(Dtype::Float) + 1.0) * 127.5;
            let pixels: Vec<u8> =
                Vec::try_from(pixels.round().to_kind(Dtype::Uint8).permute([1, 2, 0]).contiguous().view([-1]))?;
            let picture = RgbImage::from_raw(side, side, pixels).expect("three bytes for each pixel");
            image::imageops::replace(&mut grid, &picture, i64::from((side + GAP) * at as u32), 0);
        }
        let path = self.folder.join(grid_name(contender));
        let mut bytes = std::io::Cursor::new(Vec::new());
        grid.write_to(&mut bytes, image::ImageFormat::Png)
            .map_err(|error| Error::Document { path: path.clone(), reason: error.to_string() })?;
        Ok(write_atomic(path, bytes.get_ref())?)
    }

    fn publish(&self, rows: &[Row], contenders: &[Contender]) -> Result<()> {
        let shown = &self.exam.captions[..self.recipe.grid.min(self.exam.captions.len())];
        let page = report::page(rows, contenders, shown, grid_name);
        write_atomic(self.folder.join("results.csv"), csv(rows).as_bytes())?;
        write_atomic(self.folder.join("results.md"), markdown(rows).as_bytes())?;
        write_atomic(self.folder.join("report.html"), page.as_bytes())?;
        Ok(write_json(self.folder.join("results.json"), &rows)?)
    }
}

fn grid_name(contender: &Contender) -> String {
    format!("samples/{}.png", contender.name)
}

fn hash_of(pictures: &Pictures) -> Result<ContentHash> {
    let levels = ((pictures.0.to_kind(Dtype::Float) + 1.0) * 127.5).round().to_kind(Dtype::Uint8);
    let bytes: Vec<u8> = Vec::try_from(levels.contiguous().view([-1]))?;
    Ok(ContentHash::of(&bytes))
}
