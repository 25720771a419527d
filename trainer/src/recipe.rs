//! A stage of distillation as a document: `stages/NAME.toml`, as written and as validated.
//!
//! [`Stage::parse`] refuses unknown keys, values out of range, and values that contradict each other; what it
//! returns can be run as it stands. Nothing here touches torch.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::flow::{Flow, Formulation, Timestep};

/// What is wrong with a recipe, in words for its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecipeError(String);

fn refuse<T>(why: impl Into<String>) -> Result<T, RecipeError> {
    Err(RecipeError(why.into()))
}

/// One stage: a student of few steps from a teacher of many.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// The stage's name, `4to2`.
    pub name: String,
    /// The model that the student starts from and follows.
    pub teacher: Teacher,
    /// The model of the stage before, for phases that skip a level.
    pub skip_teacher: Option<Teacher>,
    /// Inference steps of the student.
    pub student_steps: u32,
    /// Where the student is trained; its own inference timesteps unless the recipe says more.
    pub student_timesteps: Vec<Timestep>,
    /// Samples in one update.
    pub batch_size: usize,
    /// Samples in one pass; their gradients are added up to the batch.
    pub micro_batch_size: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Weights and activations.
    pub precision: Precision,
    /// Recompute activations in the backward pass instead of keeping them.
    pub checkpoint_activations: bool,
    /// Keep master weights and moments in host memory.
    pub offload_optimizer: bool,
    /// The decay of a running mean of the student's weights, which is exported in place of the last ones.
    pub ema_decay: Option<f64>,
    /// Gradients longer than this are scaled down to it.
    pub max_gradient_norm: Option<f64>,
    /// The adapters of phases that train LoRA.
    pub lora: Option<LoraRecipe>,
    /// What is kept of the run, and how often.
    pub record: Record,
    /// When to give up.
    pub guard: Guard,
    /// What is done, in order.
    pub phases: Vec<Phase>,
}

/// A model to learn from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// `base`, or the name of the stage whose export it is.
    pub model: String,
    /// Its inference steps.
    pub steps: u32,
}

impl Teacher {
    /// Whether it is the base model rather than a stage's export.
    pub fn is_base(&self) -> bool {
        self.model == "base"
    }
}

/// The type of weights and activations; masters and moments are FP32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits with FP32's range.
    Bf16,
}

/// The shape of low-rank adapters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraRecipe {
    /// Inner width.
    pub rank: i64,
    /// The branch is scaled by alpha / rank.
    pub alpha: f64,
}

/// What is kept of the run, and how often. Zero iterations mean never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Iterations between checkpoints; one is written at the end of each phase in any case.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// Iterations between grids of samples; one is drawn at the end of each phase in any case.
    pub samples_every: u64,
    /// Images in each row of a grid.
    pub samples: usize,
    /// Iterations between histograms of logits in the TensorBoard events.
    pub histograms_every: u64,
}

/// When a run gives up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// Updates with NaN or infinite gradients that may be skipped one after another.
    pub max_skipped_in_a_row: u32,
    /// A discriminator whose loss stays below this has nothing left to teach.
    pub collapse_loss: f64,
    /// For how many iterations the loss may stay there.
    pub collapse_patience: u64,
}

/// One phase of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// For logs and reports.
    pub name: String,
    /// What is minimised.
    pub objective: Objective,
    /// Which weights of the student move.
    pub trains: Trains,
    /// Whom the student follows.
    pub teacher: TeacherChoice,
    /// Scale of classifier-free guidance in the teacher's steps, against the null prompt; 1 is none.
    pub guidance_scale: f64,
    /// Updates.
    pub iterations: u64,
    /// Learning rate of the student. Zero where the discriminator alone learns, at its own rate.
    pub learning_rate: f64,
    /// Learning rate of the discriminator, where it is not the student's, as it is in the paper: with small batches and
    /// few updates it has to be far ahead to tell the student anything (two time scales, Heusel et al. 2017).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discriminator_learning_rate: Option<f64>,
    /// Adam's decays.
    pub betas: [f64; 2],
}

/// What a phase minimises.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Objective {
    /// Distance to the teacher's next point (equation 16).
    Mse,
    /// A discriminator between the teacher's points and the student's (equations 17 to 26).
    Adversarial {
        /// Whether it also sees `x_t`, which ties the student to the teacher's flow (section 3.4).
        conditional: bool,
        /// Noise added before it looks (section 3.7.2).
        noise: Option<DiscriminatorNoise>,
    },
    /// From predicting noise to predicting data, against a frozen copy (equations 27 to 29).
    X0Conversion,
}

impl Objective {
    /// Whether there is a discriminator.
    pub fn is_adversarial(&self) -> bool {
        matches!(self, Objective::Adversarial { .. })
    }
}

/// Where the discriminator looks at a prediction of clean data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscriminatorNoise {
    /// Timesteps to which the prediction is noised, one drawn for each sample.
    pub timesteps: Vec<Timestep>,
    /// How often each is drawn, relative to the others.
    pub weights: Vec<f64>,
}

/// Which weights of the student move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trains {
    /// Low-rank adapters; the weights below them are the teacher's.
    Lora,
    /// Everything, adapters merged.
    Full,
}

/// Whom the student follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherChoice {
    /// The stage's teacher.
    #[default]
    Previous,
    /// The teacher's teacher (section 3.4).
    Skip,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    teacher: Teacher,
    skip_teacher: Option<Teacher>,
    student_steps: u32,
    student_timesteps: Option<Vec<Timestep>>,
    batch_size: usize,
    micro_batch_size: usize,
    seed: u64,
    precision: Precision,
    #[serde(default)]
    checkpoint_activations: bool,
    #[serde(default)]
    offload_optimizer: bool,
    ema_decay: Option<f64>,
    max_gradient_norm: Option<f64>,
    lora: Option<LoraRecipe>,
    record: Record,
    guard: Guard,
    phase: Vec<WrittenPhase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPhase {
    name: String,
    objective: WrittenObjective,
    trains: Trains,
    #[serde(default)]
    teacher: TeacherChoice,
    guidance_scale: Option<f64>,
    discriminator_noise: Option<DiscriminatorNoise>,
    iterations: u64,
    learning_rate: f64,
    discriminator_learning_rate: Option<f64>,
    betas: [f64; 2],
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum WrittenObjective {
    Mse,
    AdversarialConditional,
    AdversarialUnconditional,
    X0Conversion,
}

impl Stage {
    /// Reads the stage `name` from its document.
    pub fn parse(name: &str, text: &str, flow: &Flow) -> Result<Stage, RecipeError> {
        let written: Written = toml::from_str(text).map_err(|e| RecipeError(e.to_string().trim_end().to_string()))?;
        let stage = written.resolve(name, flow)?;
        stage.validate(flow)?;
        Ok(stage)
    }

    /// Reads `FOLDER/NAME.toml`, and says which stages there are where there is none of that name.
    pub fn load(folder: &Path, name: &str, flow: &Flow) -> Result<Stage, crate::Error> {
        let path = folder.join(format!("{name}.toml"));
        if !path.is_file() {
            let known = stage_names(folder)?.join(", ");
            return Err(crate::Error::UnknownStage { stage: name.to_string(), folder: folder.to_owned(), known });
        }
        let text = std::fs::read_to_string(&path).map_err(crate::Error::io("read", &path))?;
        let stage =
            Stage::parse(name, &text, flow).map_err(|source| crate::Error::Recipe { path: path.clone(), source })?;
        stage.check_teachers(folder).map_err(|source| crate::Error::Recipe { path, source })?;
        Ok(stage)
    }

    /// Refuses a teacher whose own recipe makes a model of other steps.
    fn check_teachers(&self, folder: &Path) -> Result<(), RecipeError> {
        #[derive(Deserialize)]
        struct Steps {
            student_steps: u32,
        }
        for teacher in std::iter::once(&self.teacher).chain(&self.skip_teacher).filter(|teacher| !teacher.is_base()) {
            let recipe = std::fs::read_to_string(folder.join(format!("{}.toml", teacher.model)));
            // A model without a readable recipe is looked at when it is opened, or when its stage is run.
            let Some(made) = recipe.ok().and_then(|text| toml::from_str::<Steps>(&text).ok()) else { continue };
            if made.student_steps != teacher.steps {
                return refuse(format!(
                    "the teacher {} is said to take {} steps, but its recipe makes a model of {} steps",
                    teacher.model, teacher.steps, made.student_steps
                ));
            }
        }
        Ok(())
    }

    /// All stages of a folder, each after its teacher.
    pub fn load_all(folder: &Path, flow: &Flow) -> Result<Vec<Stage>, crate::Error> {
        let names = stage_names(folder)?;
        let mut stages = names.iter().map(|name| Stage::load(folder, name, flow)).collect::<Result<Vec<_>, _>>()?;
        stages.sort_by_key(|stage| std::cmp::Reverse((stage.teacher.steps, stage.student_steps)));
        Ok(stages)
    }

    /// Passes whose gradients make one update.
    pub fn micro_batches(&self) -> usize {
        self.batch_size / self.micro_batch_size
    }

    /// Updates in all phases.
    pub fn iterations(&self) -> u64 {
        self.phases.iter().map(|phase| phase.iterations).sum()
    }

    /// The teacher that a phase follows.
    pub fn teacher_of(&self, phase: &Phase) -> &Teacher {
        match (phase.teacher, &self.skip_teacher) {
            (TeacherChoice::Skip, Some(skip)) => skip,
            _ => &self.teacher,
        }
    }

    /// Whether the stage makes a student that predicts data of a teacher that predicts noise.
    pub fn predicts_data(&self) -> bool {
        self.phases.iter().any(|phase| phase.objective == Objective::X0Conversion)
    }

    /// What the student of such a teacher predicts.
    pub fn student_formulation(&self, teacher: Formulation) -> Formulation {
        if self.predicts_data() { Formulation::Sample } else { teacher }
    }

    fn validate(&self, flow: &Flow) -> Result<(), RecipeError> {
        self.validate_steps(flow)?;
        if self.micro_batch_size == 0 || self.batch_size == 0 || !self.batch_size.is_multiple_of(self.micro_batch_size)
        {
            return refuse(format!(
                "batch_size ({}) has to be a multiple of micro_batch_size ({}), and neither zero",
                self.batch_size, self.micro_batch_size
            ));
        }
        if self.ema_decay.is_some_and(|decay| !(decay > 0.0 && decay < 1.0)) {
            return refuse("ema_decay lies between 0 and 1");
        }
        if self.max_gradient_norm.is_some_and(|norm| !(norm > 0.0 && norm.is_finite())) {
            return refuse("max_gradient_norm has to be positive; leave it out for no limit");
        }
        if self.record.keep_checkpoints == 0 || self.record.samples == 0 {
            return refuse("record.keep_checkpoints and record.samples are at least 1");
        }
        if self.guard.collapse_loss.is_nan() || self.guard.collapse_loss < 0.0 || self.guard.collapse_patience == 0 {
            return refuse("guard.collapse_loss is not negative, and guard.collapse_patience at least 1");
        }
        self.validate_order()?;
        self.phases.iter().try_for_each(|phase| {
            self.validate_phase(phase, flow).map_err(|error| RecipeError(format!("phase {:?}: {error}", phase.name)))
        })
    }

    fn validate_steps(&self, flow: &Flow) -> Result<(), RecipeError> {
        if self.student_steps == 0 || self.student_steps > flow.last().0 {
            return refuse(format!("student_steps ({}) lies between 1 and {}", self.student_steps, flow.last().0));
        }
        if self.student_timesteps.is_empty() {
            return refuse("student_timesteps is empty");
        }
        let beyond = |t: &&Timestep| **t == Timestep::DATA || **t > flow.last();
        if let Some(t) = self.student_timesteps.iter().find(beyond) {
            return refuse(format!("student_timesteps: {} lies outside of 1 to {}", t.0, flow.last().0));
        }
        let teachers =
            std::iter::once(("teacher", &self.teacher)).chain(self.skip_teacher.as_ref().map(|t| ("skip_teacher", t)));
        for (key, teacher) in teachers {
            if teacher.steps <= self.student_steps || !teacher.steps.is_multiple_of(self.student_steps) {
                return refuse(format!(
                    "{key}.steps ({}) has to be a multiple of student_steps ({}), and more",
                    teacher.steps, self.student_steps
                ));
            }
            let walks = teacher.steps / self.student_steps;
            for t in &self.student_timesteps {
                let there = (0..walks).fold(*t, |t, _| flow.next(t, teacher.steps));
                let wanted = flow.next(*t, self.student_steps);
                if there != wanted {
                    return refuse(format!(
                        "student_timesteps: from {} the student goes to {}, but {walks} of the {key}'s steps to {}",
                        t.0, wanted.0, there.0
                    ));
                }
            }
        }
        if std::iter::once(&self.teacher).chain(&self.skip_teacher).any(|teacher| teacher.model == self.name) {
            return refuse("a stage cannot be its own teacher");
        }
        match &self.skip_teacher {
            Some(skip) if skip.steps <= self.teacher.steps => refuse("skip_teacher takes more steps than teacher"),
            _ => Ok(()),
        }
    }

    fn validate_order(&self) -> Result<(), RecipeError> {
        let Some(last) = self.phases.last() else {
            return refuse("there is no [[phase]]");
        };
        let first_full = self.phases.iter().position(|phase| phase.trains == Trains::Full);
        let last_lora = self.phases.iter().rposition(|phase| phase.trains == Trains::Lora);
        if let (Some(full), Some(lora)) = (first_full, last_lora)
            && full < lora
        {
            return refuse(format!(
                "phase {:?} trains adapters after {:?} has changed the weights below them",
                self.phases[lora].name, self.phases[full].name
            ));
        }
        match (&self.lora, last_lora) {
            (None, Some(lora)) => {
                return refuse(format!("phase {:?} trains LoRA, but there is no [lora]", self.phases[lora].name));
            }
            (Some(_), None) => return refuse("there is a [lora], but no phase trains it"),
            (Some(lora), Some(_)) if lora.rank < 1 || !(lora.alpha > 0.0 && lora.alpha.is_finite()) => {
                return refuse("lora.rank and lora.alpha have to be positive");
            }
            _ => {}
        }
        if self.skip_teacher.is_some() && self.phases.iter().all(|phase| phase.teacher == TeacherChoice::Previous) {
            return refuse("there is a skip_teacher, but no phase follows it");
        }
        if self.ema_decay.is_some() && last.trains == Trains::Lora {
            return refuse("ema_decay averages the last phase's weights, which has to train them in full");
        }
        for (at, phase) in self.phases.iter().enumerate() {
            if phase.name.is_empty() || self.phases[..at].iter().any(|other| other.name == phase.name) {
                return refuse(format!("phase {:?}: every phase has a name of its own", phase.name));
            }
        }
        let conversion = self.phases.iter().rposition(|phase| phase.objective == Objective::X0Conversion);
        if conversion.is_some_and(|at| at > 0) {
            return refuse("x0_conversion comes first: its frozen copy is what the stage starts from");
        }
        if conversion.is_some() && self.student_steps != 1 {
            return refuse(format!(
                "x0_conversion is for a student of 1 step (section 3.7.3), and this one takes {}",
                self.student_steps
            ));
        }
        if conversion.is_some() && last_lora.is_some() {
            return refuse(
                "a student that predicts data is trained in full (section 3.7.3): no LoRA beside x0_conversion",
            );
        }
        Ok(())
    }

    fn validate_phase(&self, phase: &Phase, flow: &Flow) -> Result<(), RecipeError> {
        if phase.iterations == 0 {
            return refuse("iterations is zero");
        }
        let positive = |rate: f64| rate > 0.0 && rate.is_finite();
        if phase.discriminator_learning_rate.is_some_and(|rate| !positive(rate)) {
            return refuse("discriminator_learning_rate has to be positive");
        }
        let rests = phase.learning_rate == 0.0 && phase.discriminator_learning_rate.is_some();
        if !positive(phase.learning_rate) && !rests {
            return refuse("learning_rate has to be positive; zero is for phases with a discriminator_learning_rate");
        }
        if phase.discriminator_learning_rate.is_some() && !phase.objective.is_adversarial() {
            return refuse("discriminator_learning_rate, but no discriminator");
        }
        if phase.betas.iter().any(|beta| !(0.0..1.0).contains(beta)) {
            return refuse("betas lie between 0 and 1, 1 excluded");
        }
        if !(phase.guidance_scale >= 1.0 && phase.guidance_scale.is_finite()) {
            return refuse("guidance_scale is at least 1, which is no guidance");
        }
        if phase.objective == Objective::X0Conversion {
            if phase.guidance_scale != 1.0 {
                return refuse("x0_conversion follows a copy of the student, which nothing guides: no guidance_scale");
            }
            if phase.teacher == TeacherChoice::Skip {
                return refuse("x0_conversion follows a copy of the student: no teacher to skip to");
            }
        }
        if phase.teacher == TeacherChoice::Skip && self.skip_teacher.is_none() {
            return refuse("teacher = \"skip\", but the stage has no skip_teacher");
        }
        let Objective::Adversarial { noise: Some(noise), .. } = &phase.objective else {
            return Ok(());
        };
        if self.student_steps != 1 {
            return refuse("discriminator_noise noises predictions of clean data: only a student of 1 step makes them");
        }
        if noise.timesteps.is_empty() || noise.timesteps.len() != noise.weights.len() {
            return refuse("discriminator_noise has one weight for each timestep");
        }
        if noise.timesteps.iter().any(|t| *t > flow.last()) {
            return refuse(format!("discriminator_noise.timesteps lie between 0 and {}", flow.last().0));
        }
        if noise.weights.iter().any(|w| !(*w >= 0.0 && w.is_finite())) || noise.weights.iter().sum::<f64>() <= 0.0 {
            return refuse("discriminator_noise.weights are not negative, and not all zero");
        }
        Ok(())
    }
}

impl Written {
    fn resolve(self, name: &str, flow: &Flow) -> Result<Stage, RecipeError> {
        let phases = self.phase.into_iter().map(WrittenPhase::resolve).collect::<Result<_, _>>()?;
        Ok(Stage {
            name: name.to_string(),
            teacher: self.teacher,
            skip_teacher: self.skip_teacher,
            student_timesteps: self.student_timesteps.unwrap_or_else(|| flow.grid(self.student_steps)),
            student_steps: self.student_steps,
            batch_size: self.batch_size,
            micro_batch_size: self.micro_batch_size,
            seed: self.seed,
            precision: self.precision,
            checkpoint_activations: self.checkpoint_activations,
            offload_optimizer: self.offload_optimizer,
            ema_decay: self.ema_decay,
            max_gradient_norm: self.max_gradient_norm,
            lora: self.lora,
            record: self.record,
            guard: self.guard,
            phases,
        })
    }
}

impl WrittenPhase {
    fn resolve(self) -> Result<Phase, RecipeError> {
        let noise = self.discriminator_noise;
        let objective = match (self.objective, noise) {
            (WrittenObjective::AdversarialConditional, noise) => Objective::Adversarial { conditional: true, noise },
            (WrittenObjective::AdversarialUnconditional, noise) => Objective::Adversarial { conditional: false, noise },
            (WrittenObjective::Mse, None) => Objective::Mse,
            (WrittenObjective::X0Conversion, None) => Objective::X0Conversion,
            (WrittenObjective::Mse | WrittenObjective::X0Conversion, Some(_)) => {
                return refuse(format!("phase {:?}: discriminator_noise, but no discriminator", self.name));
            }
        };
        Ok(Phase {
            name: self.name,
            objective,
            trains: self.trains,
            teacher: self.teacher,
            guidance_scale: self.guidance_scale.unwrap_or(1.0),
            iterations: self.iterations,
            learning_rate: self.learning_rate,
            discriminator_learning_rate: self.discriminator_learning_rate,
            betas: self.betas,
        })
    }
}

/// The stages that a folder has documents for, by name.
pub fn stage_names(folder: &Path) -> Result<Vec<String>, crate::Error> {
    let entries = std::fs::read_dir(folder).map_err(crate::Error::io("read the folder", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(crate::Error::io("read the folder", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "toml")
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(name.to_string());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
