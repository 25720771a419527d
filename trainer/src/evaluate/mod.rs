//! The paper's table, measured on a run: how close few-step students come to their teacher.
//!
//! ```text
//! captions ── contender ── pictures ──┬── judges ──┬── features ── Fréchet distances to the references
//!                                     │            └── how pictures and captions fit
//!                                     └── sharpness, distance to the teacher's pictures
//! ```
//!
//! The captions, the references and the judges are an [`exam`](exam::Exam): the demo world's with its probe, or the
//! paper's with COCO, InceptionV3 and CLIP. `RUN/evaluation/` holds `results.json`, `.csv`, `.md` and `report.html`,
//! written last, and `parts/`: what has been seen of each contender, in chunks, under the hash of all that it depends
//! on. A stopped evaluation goes on from there, and a repeated one measures what has changed.

pub mod clip;
mod coco;
mod contender;
mod demo;
mod exam;
pub mod frechet;
pub mod inception;
mod measure;
mod parts;
mod recipe;
mod report;
pub mod resize;
mod results;

pub use contender::{Contender, Kind, contenders};
pub use recipe::{Baseline, EvaluateRecipe, ExamRecipe, Sampling};
pub use results::{Row, csv, markdown};

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use encode::ModelManifest;
use image::RgbImage;
use serde_json::{Value, json};
use shards::atomic::{write_atomic, write_json};
use shards::{ContentHash, RunLock};
use tch::{Device, Kind as Dtype, Tensor};

use self::coco::{CocoExam, CocoFiles};
use self::demo::DemoExam;
use self::exam::{Agreement, Exam, Features};
use self::frechet::Moments;
use self::measure::{compared, distance, draw, laplacian_variance};
use self::parts::{Chunk, Part};
use crate::model::ModelFolder;
use crate::probe::SIDE;
use crate::sample::{LoraChoice, ModelChoice, Pipeline};
use crate::{Error, Result};

/// Captions, or references, whose results are kept together: what a stop may cost.
const CHUNK: usize = 64;
/// Pixels between the pictures of a grid.
const GAP: u32 = 2;

/// The tensors of a chunk.
const WHOLE: &str = "whole";
const PATCH: &str = "patch";
const AGREEMENT: &str = "agreement";
const SHARPNESS: &str = "sharpness";
const DISTANCE: &str = "distance";
const COMPARED: &str = "compared";

/// One evaluation in progress.
struct Evaluation<'a> {
    recipe: &'a EvaluateRecipe,
    exam: Box<dyn Exam>,
    folder: PathBuf,
    dtype: Dtype,
    device: Device,
    interrupted: &'a AtomicBool,
    /// What the pictures of each contender follow from, by its name.
    identities: BTreeMap<String, Value>,
}

/// The moments of the references.
struct References {
    whole: Moments,
    patch: Moments,
}

/// Measures all contenders of a run and writes the results. `interrupted` stops it after the pass in progress.
pub fn evaluate(
    recipe: &EvaluateRecipe,
    manifest: &Path,
    run: &Path,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<Vec<Row>> {
    let _no_grad = tch::no_grad_guard();
    let contenders = contenders(recipe, manifest, run)?;
    let model = ModelManifest::read(manifest, run)?;
    let exam = open_exam(&recipe.exam, manifest, run, model.resolution, device)?;
    let folder = run.join("evaluation");
    let _lock = RunLock::acquire(&folder)?;
    let identities = contenders.iter().map(|contender| Ok((contender.name.clone(), identity(contender)?)));
    let identities = identities.collect::<Result<_>>()?;
    let evaluation = Evaluation { recipe, exam, folder, dtype: model.dtype.kind(), device, interrupted, identities };

    let references = evaluation.references()?;
    // The teacher is first, and its pictures are kept for the others' distances.
    let (teacher, others) = contenders.split_first().expect("the teacher is always there");
    let mut rows = evaluation.rows(teacher, None, &references)?;
    for contender in others {
        rows.extend(evaluation.rows(contender, Some(teacher), &references)?);
    }
    evaluation.publish(&rows, &contenders)?;
    Ok(rows)
}

/// A contender and the hashes of all files that its pictures follow from.
fn identity(contender: &Contender) -> Result<Value> {
    let files = contender.lora.iter().chain(&contender.weights).map(ContentHash::of_file);
    Ok(json!({
        "contender": contender,
        "unet": ModelFolder::open(&contender.model)?.hash()?,
        "surroundings": encode::surroundings_fingerprint(&contender.model)?,
        "zeros_for_empty_prompt": encode::prompt::zeros_for_empty_prompt(&contender.model)?,
        "files": files.collect::<shards::Result<Vec<_>>>()?,
    }))
}

fn open_exam(
    recipe: &ExamRecipe,
    manifest: &Path,
    run: &Path,
    resolution: u32,
    device: Device,
) -> Result<Box<dyn Exam>> {
    let path = |written: &str| contender::resolve(manifest, run, written);
    match recipe {
        ExamRecipe::Demo { probe, captions, references, lot } => {
            if i64::from(resolution) != SIDE {
                let reason = format!(
                    "resolution is {resolution}: the probe judges pictures of {SIDE} pixels, those of the demo world"
                );
                return Err(Error::Document { path: manifest.join("model.toml"), reason });
            }
            Ok(Box::new(DemoExam::open(&path(probe), *captions, *references, *lot, device)?))
        }
        ExamRecipe::Coco { captions, references, count, inception, clip } => {
            let files = CocoFiles {
                captions: path(captions),
                references: path(references),
                inception: path(inception),
                clip: path(clip),
            };
            Ok(Box::new(CocoExam::open(&files, *count, i64::from(resolution), device)?))
        }
    }
}

impl Evaluation<'_> {
    /// The features of the references, a chunk at a time.
    fn references(&self) -> Result<References> {
        let key = ContentHash::of(json!({ "exam": self.exam.conditions() }).to_string().as_bytes());
        let part = Part::open(&self.folder.join("parts/references"), &key)?;
        let mut all = Vec::new();
        for (index, items) in chunks(self.exam.references()) {
            let chunk = match part.get(index)? {
                Some(chunk) => chunk,
                None => {
                    self.check_interrupt()?;
                    let Features { whole, patch } = self.exam.reference_features(items)?;
                    let chunk = named([(WHOLE, whole), (PATCH, patch)]);
                    part.put(index, &chunk)?;
                    chunk
                }
            };
            all.push(chunk);
        }
        Ok(References { whole: Moments::of(&joined(&all, WHOLE))?, patch: Moments::of(&joined(&all, PATCH))? })
    }

    /// A row for each seed. `teacher` is `None` for the teacher itself.
    fn rows(&self, contender: &Contender, teacher: Option<&Contender>, references: &References) -> Result<Vec<Row>> {
        let mut pipeline = None;
        let seeds = self.recipe.seeds.iter();
        seeds.map(|&seed| self.row(contender, teacher, references, seed, &mut pipeline)).collect()
    }

    fn row(
        &self,
        contender: &Contender,
        teacher: Option<&Contender>,
        references: &References,
        seed: u64,
        pipeline: &mut Option<Pipeline>,
    ) -> Result<Row> {
        let part = self.part(contender, teacher, seed)?;
        let teachers = teacher.map(|teacher| self.part(teacher, None, seed)).transpose()?;
        let count = self.exam.captions().len();
        let mut all = Vec::new();
        let mut said = false;
        for (index, items) in chunks(count) {
            let chunk = match part.get(index)? {
                Some(chunk) => chunk,
                None => {
                    if !std::mem::replace(&mut said, true) {
                        let left = count - items.start;
                        tracing::info!("{}: {left} of {count} pictures with seed {seed}", contender.name);
                    }
                    let theirs = match &teachers {
                        Some(part) => part.get(index)?.and_then(|mut chunk| chunk.remove(COMPARED)),
                        None => None,
                    };
                    let chunk = self.see(contender, items, seed, theirs.as_ref(), pipeline)?;
                    part.put(index, &chunk)?;
                    chunk
                }
            };
            all.push(chunk);
        }
        let mean = |name| joined(&all, name).mean(Dtype::Double).double_value(&[]);
        let (caption_accuracy, attribute_accuracy, clip_score) = match self.exam.tally(&joined(&all, AGREEMENT)) {
            Agreement::Probe { captions, attributes } => (Some(captions), Some(attributes), None),
            Agreement::Clip(score) => (None, None, Some(score)),
        };
        Ok(Row {
            model: contender.name.clone(),
            kind: contender.kind,
            method: contender.method.clone(),
            steps: contender.sampling.steps,
            guidance_scale: contender.sampling.guidance_scale,
            frechet_whole: Moments::of(&joined(&all, WHOLE))?.distance(&references.whole)?,
            frechet_patch: Moments::of(&joined(&all, PATCH))?.distance(&references.patch)?,
            clip_score,
            caption_accuracy,
            attribute_accuracy,
            sharpness: mean(SHARPNESS),
            teacher_distance: mean(DISTANCE),
            n_images: count as u64,
            seed,
        })
    }

    /// Draws the pictures of a chunk and says what there is to see. The teacher has nobody to be compared with, and its
    /// pictures are kept in small.
    fn see(
        &self,
        contender: &Contender,
        items: Range<usize>,
        seed: u64,
        theirs: Option<&Tensor>,
        loaded: &mut Option<Pipeline>,
    ) -> Result<Chunk> {
        let pipeline = match loaded {
            Some(pipeline) => pipeline,
            None => loaded.insert(self.load(contender)?),
        };
        let mut passes = Vec::new();
        let mut shown = Vec::new();
        for start in items.clone().step_by(self.recipe.batch) {
            self.check_interrupt()?;
            let items = start..items.end.min(start + self.recipe.batch);
            let pictures = draw(contender, pipeline, &self.exam.captions()[items.clone()], items.clone(), seed)?;
            let sight = self.exam.look(&pictures, items.clone())?;
            let small = compared(&pictures);
            let apart = match theirs {
                Some(theirs) => {
                    distance(&small, &theirs.narrow(0, (start - start / CHUNK * CHUNK) as i64, small.size()[0]))
                }
                None => Tensor::zeros([small.size()[0]], (Dtype::Float, Device::Cpu)),
            };
            let mut pass = named([
                (WHOLE, sight.features.whole),
                (PATCH, sight.features.patch),
                (AGREEMENT, sight.agreement),
                (SHARPNESS, laplacian_variance(&pictures)),
                (DISTANCE, apart),
            ]);
            if theirs.is_none() {
                pass.insert(COMPARED.into(), small);
            }
            passes.push(pass);
            let wanted = self.recipe.grid.min(self.exam.captions().len()).saturating_sub(items.start);
            if Some(&seed) == self.recipe.seeds.first() && wanted > 0 {
                shown.push(pictures.narrow(0, 0, pictures.size()[0].min(wanted as i64)));
            }
        }
        if !shown.is_empty() && items.start == 0 {
            self.draw_grid(contender, &Tensor::cat(&shown, 0))?;
        }
        let names: Vec<String> = passes[0].keys().cloned().collect();
        Ok(names.into_iter().map(|name| (name.clone(), joined(&passes, &name))).collect())
    }

    fn load(&self, contender: &Contender) -> Result<Pipeline> {
        let choice = ModelChoice {
            folder: contender.model.clone(),
            weights: contender.weights.clone(),
            loras: contender.lora.iter().map(|file| LoraChoice { file: file.clone(), strength: 1.0 }).collect(),
            algorithm: contender.sampler.map(crate::schedulers::Sampler::algorithm),
            timestep_spacing: contender.timestep_spacing,
            prediction_type: contender.prediction_type,
        };
        Pipeline::open(&choice, self.dtype, self.device)
    }

    /// The part of a contender, under the hash of the contender, of the teacher and of the exam.
    fn part(&self, contender: &Contender, teacher: Option<&Contender>, seed: u64) -> Result<Part> {
        let on = json!({
            "contender": self.identities[&contender.name],
            "teacher": teacher.map(|teacher| &self.identities[&teacher.name]),
            "exam": self.exam.conditions(),
            "dtype": format!("{:?}", self.dtype),
            "seed": seed,
        });
        let folder = self.folder.join("parts").join(format!("{}-seed{seed}", contender.name));
        Part::open(&folder, &ContentHash::of(on.to_string().as_bytes()))
    }

    fn check_interrupt(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted { iteration: 0 }) } else { Ok(()) }
    }

    /// Pictures `[N, 3, H, W]` in a row.
    fn draw_grid(&self, contender: &Contender, pictures: &Tensor) -> Result<()> {
        let (count, _, height, width) = pictures.size4()?;
        let (height, width) = (height as u32, width as u32);
        let mut grid = RgbImage::new((width + GAP) * count as u32, height);
        for at in 0..count {
            let pixels = pictures.get(at).to_kind(Dtype::Uint8).permute([1, 2, 0]).contiguous().view([-1]);
            let picture =
                RgbImage::from_raw(width, height, Vec::try_from(pixels)?).expect("three bytes for each pixel");
            image::imageops::replace(&mut grid, &picture, i64::from((width + GAP) * at as u32), 0);
        }
        let path = self.folder.join(grid_name(contender));
        let mut bytes = std::io::Cursor::new(Vec::new());
        grid.write_to(&mut bytes, image::ImageFormat::Png)
            .map_err(|error| Error::Document { path: path.clone(), reason: error.to_string() })?;
        Ok(write_atomic(path, bytes.get_ref())?)
    }

    fn publish(&self, rows: &[Row], contenders: &[Contender]) -> Result<()> {
        let captions = self.exam.captions();
        let page = report::page(rows, contenders, &captions[..self.recipe.grid.min(captions.len())], grid_name);
        write_atomic(self.folder.join("results.csv"), csv(rows).as_bytes())?;
        write_atomic(self.folder.join("results.md"), markdown(rows).as_bytes())?;
        write_atomic(self.folder.join("report.html"), page.as_bytes())?;
        Ok(write_json(self.folder.join("results.json"), &rows)?)
    }
}

/// Chunks of so many items, with their numbers.
fn chunks(count: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    (0..count).step_by(CHUNK).map(move |start| start..count.min(start + CHUNK)).enumerate()
}

fn named<const N: usize>(tensors: [(&str, Tensor); N]) -> Chunk {
    tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.to_device(Device::Cpu))).collect()
}

fn joined(chunks: &[Chunk], name: &str) -> Tensor {
    Tensor::cat(&chunks.iter().map(|chunk| &chunk[name]).collect::<Vec<_>>(), 0)
}

fn grid_name(contender: &Contender) -> String {
    format!("samples/{}.png", contender.name)
}
