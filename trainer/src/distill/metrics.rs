//! What is recorded of every iteration.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tensorboard::Events;
use crate::{Error, Result};

/// One iteration, a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Counted over the stage, from 1.
    pub iteration: u64,
    /// The phase's name.
    pub phase: String,
    /// The student's loss, a mean over the batch.
    pub student_loss: f64,
    /// The norm of the student's gradient before clipping; none where the update was skipped.
    pub student_gradient_norm: Option<f64>,
    /// What the discriminator did, where there is one.
    pub discriminator: Option<DiscriminatorMetrics>,
    /// Images of the batch over the iteration's time.
    pub images_per_second: f64,
    /// Share of the iteration spent waiting for data.
    pub data_wait: f64,
    /// The most that was held so far, in bytes: by tensors on a GPU, by the whole process on the CPU.
    pub peak_memory_bytes: Option<u64>,
}

/// The discriminator's part of an iteration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiscriminatorMetrics {
    /// Its loss, a mean over the batch; 2 ln 2 where it cannot tell.
    pub loss: f64,
    /// The norm of its gradient before clipping; none where the update was skipped.
    pub gradient_norm: Option<f64>,
    /// Mean logit of the teacher's points.
    pub real_mean: f64,
    /// Mean logit of the student's points.
    pub fake_mean: f64,
    /// Logits of the teacher's points, for histograms; none where another process did this half.
    #[serde(skip)]
    pub real: Vec<f64>,
    /// Logits of the student's points, likewise.
    #[serde(skip)]
    pub fake: Vec<f64>,
}

/// The files that metrics go to.
#[derive(Debug)]
pub(super) struct Recorder {
    lines: File,
    path: PathBuf,
    events: Events,
    histograms_every: u64,
}

impl Recorder {
    /// Goes on after `done` iterations: what was recorded beyond them is dropped, since it will be done again.
    pub fn open(path: &Path, events: &Path, done: u64, histograms_every: u64) -> Result<Recorder> {
        let kept: Vec<Metrics> = read(path)?.into_iter().filter(|metrics| metrics.iteration <= done).collect();
        let mut text = String::new();
        for metrics in &kept {
            text += &line(metrics);
        }
        shards::atomic::write_atomic(path, text.as_bytes())?;
        let lines = OpenOptions::new().append(true).open(path).map_err(Error::io("open", path))?;
        Ok(Recorder { lines, path: path.to_owned(), events: Events::create(events, done + 1)?, histograms_every })
    }

    /// Records one iteration.
    pub fn record(&mut self, metrics: &Metrics) -> Result<()> {
        self.lines.write_all(line(metrics).as_bytes()).map_err(Error::io("write", &self.path))?;
        let mut scalars =
            vec![("student/loss", metrics.student_loss), ("speed/images_per_second", metrics.images_per_second)];
        scalars.push(("speed/data_wait", metrics.data_wait));
        scalars.extend(metrics.student_gradient_norm.map(|norm| ("student/gradient_norm", norm)));
        scalars.extend(metrics.peak_memory_bytes.map(|bytes| ("memory/peak_bytes", bytes as f64)));
        if let Some(discriminator) = &metrics.discriminator {
            scalars.push(("discriminator/loss", discriminator.loss));
            scalars.push(("discriminator/real_mean", discriminator.real_mean));
            scalars.push(("discriminator/fake_mean", discriminator.fake_mean));
            scalars.extend(discriminator.gradient_norm.map(|norm| ("discriminator/gradient_norm", norm)));
            let due = self.histograms_every > 0 && metrics.iteration.is_multiple_of(self.histograms_every);
            if due && !discriminator.real.is_empty() {
                self.events.histogram(metrics.iteration, "discriminator/real", &discriminator.real)?;
                self.events.histogram(metrics.iteration, "discriminator/fake", &discriminator.fake)?;
            }
        }
        self.events.scalars(metrics.iteration, &scalars)
    }
}

/// The recorded iterations of a stage; a last line cut off by a kill is not one.
pub fn read(path: &Path) -> Result<Vec<Metrics>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn line(metrics: &Metrics) -> String {
    serde_json::to_string(metrics).expect("numbers and names have a JSON form") + "\n"
}
