//! The loop that all phases share: learning rate, metrics, checkpoints, interruption.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nn::Weights;
use serde::Serialize;
use serde_json::json;
use tch::Tensor;

use super::recipe::Updates;
use crate::optimizer::{AdamConfig, Optimizer, Update};
use crate::{Error, Result};

/// Updates between two lines of metrics.
const REPORT_EVERY: u64 = 50;
/// Updates with NaN or infinite gradients that may be skipped one after another.
const MAX_SKIPPED_IN_A_ROW: u32 = 20;
const BETAS: [f64; 2] = [0.9, 0.99];
const MAX_GRADIENT_NORM: f64 = 1.0;
/// The tensors of a checkpoint that hold the number of updates asked for, and of those that were not skipped, which is
/// Adam's own count. FP32 counts exactly to 16 million.
const UPDATES: &str = "updates";
const APPLIED: &str = "applied_updates";

/// Where a pretraining keeps what it has done, and how it is stopped.
#[derive(Debug)]
pub struct Desk {
    folder: PathBuf,
    checkpoint_every: Duration,
    interrupted: Arc<AtomicBool>,
}

impl Desk {
    /// A desk in `folder`, which is made if need be. Setting `interrupted` stops the phase in progress after a
    /// checkpoint.
    pub fn new(folder: &Path, checkpoint_every: Duration, interrupted: Arc<AtomicBool>) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Ok(Self { folder: folder.to_owned(), checkpoint_every, interrupted })
    }

    /// A file on the desk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Fails if the user has asked to stop.
    pub fn check_interrupt(&self, iteration: u64) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted { iteration }) } else { Ok(()) }
    }

    /// Makes sure that what lies under `name` was made under `conditions`, or nothing lies there yet. A phase that has
    /// begun cannot go on under others.
    pub fn pin(&self, name: &str, conditions: &impl Serialize) -> Result<()> {
        let path = self.path(&format!("{name}.json"));
        let now = json!(conditions);
        if !path.exists() {
            return Ok(shards::atomic::write_json(&path, &now)?);
        }
        let then: serde_json::Value = shards::atomic::read_json(&path)?;
        if then == now {
            return Ok(());
        }
        Err(Error::Stale { path, difference: format!("it began with {then}, the recipe now says {now}") })
    }

    /// Whether a phase has begun.
    pub fn has(&self, phase: &str) -> bool {
        self.checkpoint(phase).exists()
    }

    /// Lets a phase that has not begun go on from the weights that its optimizer holds, as if they had seen so many
    /// updates. Adam's moments, which are lost, start from nothing.
    pub fn adopt(&self, phase: &str, optimizer: &Optimizer, updates: u64) -> Result<()> {
        if self.has(phase) { Ok(()) } else { self.save(phase, optimizer, updates) }
    }

    /// How far a phase has come, its weights restored.
    pub fn restore(&self, phase: &str, optimizer: &mut Optimizer) -> Result<u64> {
        let path = self.checkpoint(phase);
        if !self.has(phase) {
            return Ok(0);
        }
        let saved = Weights::open(&path)?;
        let mut tensors: BTreeMap<String, Tensor> = saved
            .names()
            .into_iter()
            .map(|name| Ok((name.to_owned(), saved.tensor(name)?)))
            .collect::<std::result::Result<_, nn::Error>>()?;
        let mut count = |name: &str| match tensors.remove(name) {
            Some(tensor) => Ok(tensor.double_value(&[0]) as u64),
            None => Err(Error::Document { path: path.clone(), reason: format!("the tensor {name:?} is missing") }),
        };
        let (updates, applied) = (count(UPDATES)?, count(APPLIED)?);
        optimizer.restore(tensors, applied)?;
        Ok(updates)
    }

    /// Trains until the last update, from the last checkpoint on. `loss` gives the loss of one update, counted from 0.
    pub fn train(
        &self,
        phase: &str,
        updates: &Updates,
        optimizer: &mut Optimizer,
        mut loss: impl FnMut(u64) -> Result<Tensor>,
    ) -> Result<()> {
        let start = self.restore(phase, optimizer)?;
        if start < updates.steps {
            tracing::info!("{phase}: {} parameters, updates {start} to {}", optimizer.count(), updates.steps);
        }
        let mut saved_at = Instant::now();
        let mut meter = Meter::new();
        let mut skipped = 0;
        for step in start..updates.steps {
            let value = loss(step)?;
            value.backward();
            let adam = AdamConfig {
                learning_rate: updates.learning_rate_at(step),
                betas: BETAS,
                max_gradient_norm: Some(MAX_GRADIENT_NORM),
            };
            // Early on, the mean follows faster: it would remember the first weights otherwise.
            let decay = updates.ema_decay.min((step + 1) as f64 / (step + 10) as f64);
            match optimizer.update(&adam, Some(decay))? {
                Update::Applied { gradient_norm } => {
                    skipped = 0;
                    meter.add(value.double_value(&[]), gradient_norm);
                }
                Update::Skipped => skipped += 1,
            }
            if skipped > MAX_SKIPPED_IN_A_ROW {
                return Err(Error::NonFinite { updates: skipped, what: "the phase's networks", iteration: step });
            }
            let done = step + 1;
            if done.is_multiple_of(REPORT_EVERY) || done == updates.steps {
                self.report(phase, done, updates, &mut meter)?;
            }
            let stop = self.check_interrupt(done);
            if stop.is_err() || done == updates.steps || saved_at.elapsed() > self.checkpoint_every {
                self.save(phase, optimizer, done)?;
                saved_at = Instant::now();
            }
            stop?;
        }
        Ok(())
    }

    fn checkpoint(&self, phase: &str) -> PathBuf {
        self.path(&format!("{phase}.safetensors"))
    }

    fn save(&self, phase: &str, optimizer: &Optimizer, step: u64) -> Result<()> {
        let (mut tensors, applied) = optimizer.state();
        tensors.insert(UPDATES.into(), Tensor::from_slice(&[step as f32]));
        tensors.insert(APPLIED.into(), Tensor::from_slice(&[applied as f32]));
        Ok(nn::save(&self.checkpoint(phase), tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[])?)
    }

    fn report(&self, phase: &str, step: u64, updates: &Updates, meter: &mut Meter) -> Result<()> {
        let (loss, gradient_norm, seconds) = meter.take();
        let path = self.path("metrics.jsonl");
        let line = json!({
            "phase": phase,
            "step": step,
            "loss": loss,
            "gradient_norm": gradient_norm,
            "learning_rate": updates.learning_rate_at(step - 1),
            "seconds_per_update": seconds,
        });
        tracing::info!("{phase} {step}/{}: loss {loss:.4}, {seconds:.2} s an update", updates.steps);
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        writeln!(file, "{line}").map_err(Error::io("append to", &path))
    }
}

/// Means between two reports.
struct Meter {
    since: Instant,
    updates: u32,
    loss: f64,
    gradient_norm: f64,
}

impl Meter {
    fn new() -> Self {
        Self { since: Instant::now(), updates: 0, loss: 0.0, gradient_norm: 0.0 }
    }

    fn add(&mut self, loss: f64, gradient_norm: f64) {
        self.updates += 1;
        self.loss += loss;
        self.gradient_norm += gradient_norm;
    }

    /// Loss, gradient norm and seconds of an update; the meter starts anew.
    fn take(&mut self) -> (f64, f64, f64) {
        let count = f64::from(self.updates.max(1));
        let means = (self.loss / count, self.gradient_norm / count, self.since.elapsed().as_secs_f64() / count);
        *self = Self::new();
        means
    }
}
