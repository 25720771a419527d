//! The networks of one phase, and what passes from one phase to the next.

use std::collections::BTreeMap;
use std::path::Path;

use nn::{Adapters, Params, Weights};
use tch::{Device, Kind, Tensor};

use crate::adapters;
use crate::condition::NullPrompt;
use crate::discriminator::{Discriminator, DiscriminatorWeights, HeadShape, HeadWeights};
use crate::flow::Formulation;
use crate::model::ModelFolder;
use crate::objectives::{Judge, Student, Teacher};
use crate::optimizer::{AdamConfig, Optimizer, StateDevice};
use crate::recipe::{Objective, Phase, Precision, Stage, TeacherChoice, Trains};
use crate::unet::{Recompute, UNet, UNetConfig};
use crate::{Error, Result};

/// The models that a stage is made from.
#[derive(Debug)]
pub(super) struct Sources {
    /// The model at the start of the chain; discriminators are copies of its encoder.
    pub base: ModelFolder,
    /// The stage's teacher, from which the student starts.
    pub teacher: ModelFolder,
    /// The teacher's teacher, for phases that skip a level.
    pub skip_teacher: Option<ModelFolder>,
    /// What guidance leads away from, on the CPU.
    pub null_prompt: NullPrompt,
}

/// The student's weights between phases, in FP32 on the CPU.
#[derive(Debug)]
pub(super) enum CarriedStudent {
    /// Still the teacher's.
    Untouched,
    /// Adapters on top of the teacher's.
    Lora(BTreeMap<String, Tensor>),
    /// All of them.
    Full(BTreeMap<String, Tensor>),
}

/// What passes from one phase to the next.
#[derive(Debug)]
pub(super) struct Carried {
    pub student: CarriedStudent,
    /// The discriminator's weights, once there is one.
    pub discriminator: Option<BTreeMap<String, Tensor>>,
}

/// A UNet, and what it predicts.
#[derive(Debug)]
pub(super) struct Built {
    pub unet: UNet,
    pub formulation: Formulation,
}

/// A discriminator and its optimizer.
#[derive(Debug)]
pub(super) struct Critic {
    pub discriminator: Discriminator,
    pub optimizer: Optimizer,
}

/// The networks of one phase.
#[derive(Debug)]
pub(super) struct Networks {
    pub student: Student,
    pub student_optimizer: Optimizer,
    pub teacher: Teacher,
    pub critic: Option<Critic>,
    trains: Trains,
    adam: AdamConfig,
    discriminator_learning_rate: f64,
    frozen_copy: bool,
}

/// Settings that hold for the whole stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    pub device: Device,
    /// Side of the latents.
    pub latent_side: i64,
    /// What fresh weights follow from.
    pub seed: u64,
}

impl Precision {
    /// torch's name for it.
    pub fn kind(self) -> Kind {
        match self {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        }
    }
}

impl Networks {
    /// Builds what `phase` needs from what the phase before left.
    pub fn build(
        stage: &Stage,
        phase: &Phase,
        sources: &Sources,
        carried: Carried,
        placement: Placement,
    ) -> Result<Networks> {
        let (kind, device) = (stage.precision.kind(), placement.device);
        let recompute = recompute(stage);
        let state = if stage.offload_optimizer { StateDevice::Host } else { StateDevice::Same };

        // The base of adapters is the teacher's own set of tensors: one copy serves both networks.
        let (teacher_unet, teacher_params) = sources.teacher.frozen_unet(kind, device)?;
        let (mut student_unet, student_optimizer) = match phase.trains {
            Trains::Lora => lora_student(stage, sources, &teacher_params, &carried.student, placement, state)?,
            Trains::Full => full_student(stage, sources, carried.student, (kind, device), state)?,
        };
        student_unet.set_recompute(recompute);

        let (followed, unet) = match (phase.teacher, &sources.skip_teacher) {
            (TeacherChoice::Skip, Some(skip)) => {
                // Gone before the next one comes, but for what adapters stand on.
                drop((teacher_unet, teacher_params));
                (skip, skip.frozen_unet(kind, device)?.0)
            }
            _ => (&sources.teacher, teacher_unet),
        };

        let critic = match &phase.objective {
            Objective::Adversarial { conditional, .. } => {
                let shape = HeadShape::of(&sources.base.unet, placement.latent_side, *conditional);
                let weights = match carried.discriminator {
                    None => DiscriminatorWeights {
                        backbone: sources.base.tensors()?,
                        head: HeadWeights::Fresh { seed: placement.seed },
                    },
                    Some(carried) => split_head(carried),
                };
                Some(Critic::new(&sources.base.unet, shape, weights, (kind, device), recompute, state)?)
            }
            Objective::Mse | Objective::X0Conversion => None,
        };
        let student = Built { unet: student_unet, formulation: stage.student_formulation(sources.teacher.formulation) };
        let teacher = Built { unet, formulation: followed.formulation };
        let null_prompt = sources.null_prompt.to_device(device);
        Ok(Networks::assemble(stage, phase, (student, student_optimizer), (teacher, null_prompt), critic))
    }

    /// Puts built networks to a phase's use.
    pub fn assemble(
        stage: &Stage,
        phase: &Phase,
        (student, student_optimizer): (Built, Optimizer),
        (teacher, null_prompt): (Built, NullPrompt),
        critic: Option<Critic>,
    ) -> Networks {
        let kind = stage.precision.kind();
        Networks {
            student: Student { unet: student.unet, kind, formulation: student.formulation, steps: stage.student_steps },
            student_optimizer,
            teacher: Teacher {
                unet: teacher.unet,
                kind,
                formulation: teacher.formulation,
                steps: stage.teacher_of(phase).steps,
                guidance_scale: phase.guidance_scale,
                null_prompt,
            },
            critic,
            trains: phase.trains,
            adam: AdamConfig {
                learning_rate: phase.learning_rate,
                betas: phase.betas,
                max_gradient_norm: stage.max_gradient_norm,
            },
            discriminator_learning_rate: phase.discriminator_learning_rate.unwrap_or(phase.learning_rate),
            frozen_copy: phase.objective == Objective::X0Conversion,
        }
    }

    /// Adam's constants for the student in this phase.
    pub fn adam(&self) -> AdamConfig {
        self.adam
    }

    /// Adam's constants for the discriminator in this phase.
    pub fn discriminator_adam(&self) -> AdamConfig {
        AdamConfig { learning_rate: self.discriminator_learning_rate, ..self.adam }
    }

    /// Against whom the student is measured.
    pub fn judge(&self) -> Judge<'_> {
        match &self.critic {
            Some(critic) => Judge::Discriminator(&critic.discriminator),
            None if self.frozen_copy => Judge::FrozenCopy(&self.teacher),
            None => Judge::Distance(&self.teacher),
        }
    }

    /// The masters, copied to the host. The networks go, so that the next phase's have room on the device.
    pub fn into_carried(self) -> Carried {
        let student = to_host(self.student_optimizer.masters());
        Carried {
            student: match self.trains {
                Trains::Lora => CarriedStudent::Lora(student),
                Trains::Full => CarriedStudent::Full(student),
            },
            discriminator: self.critic.as_ref().map(|critic| to_host(critic.optimizer.masters())),
        }
    }

    /// The student's full weights for export, in FP32 on the host: the running mean where one is kept, adapters merged.
    pub fn export_weights(&self, stage: &Stage, sources: &Sources) -> Result<BTreeMap<String, Tensor>> {
        let trained = self.student_optimizer.means().unwrap_or_else(|| self.student_optimizer.masters());
        match self.trains {
            Trains::Full => Ok(to_host(trained)),
            Trains::Lora => merged(stage, sources, &to_host(trained)),
        }
    }

    /// Publishes the adapters of a phase that trains them.
    pub fn save_adapters(&self, stage: &Stage, path: &Path) -> Result<()> {
        match (&stage.lora, self.trains) {
            (Some(recipe), Trains::Lora) => {
                adapters::save(path, &adapters::by_layer(&self.student_optimizer.masters(), recipe), recipe)
            }
            _ => Ok(()),
        }
    }
}

impl Critic {
    /// Builds a discriminator on a UNet's encoder, with masters as wide as the weights that are given.
    pub fn new(
        config: &UNetConfig,
        shape: HeadShape,
        weights: DiscriminatorWeights,
        (kind, device): (Kind, Device),
        recompute: Recompute,
        state: StateDevice,
    ) -> Result<Critic> {
        let masters = weights.backbone.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let (discriminator, params) = Discriminator::new(config, shape, weights, (kind, device), recompute)?;
        let mut masters: BTreeMap<String, Tensor> = masters;
        // The head is FP32 as built; the backbone's masters keep what its dtype may have rounded away.
        masters.extend(
            params
                .iter()
                .filter(|(name, _)| name.starts_with(HEAD))
                .map(|(name, tensor)| (name.to_string(), tensor.copy())),
        );
        let mut optimizer = Optimizer::new(params.iter(), state, false)?;
        optimizer.set_masters(&masters)?;
        Ok(Critic { discriminator, optimizer })
    }
}

/// What a stage's trained networks keep for their backward passes.
pub(super) fn recompute(stage: &Stage) -> Recompute {
    if stage.checkpoint_activations { Recompute::Blocks } else { Recompute::Never }
}

const HEAD: &str = "head.";

fn split_head(carried: BTreeMap<String, Tensor>) -> DiscriminatorWeights {
    let (mut backbone, mut head) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in carried {
        match name.strip_prefix(HEAD) {
            Some(name) => head.insert(name.to_string(), tensor),
            None => backbone.insert(name, tensor),
        };
    }
    DiscriminatorWeights { backbone, head: HeadWeights::Given(head) }
}

fn lora_student(
    stage: &Stage,
    sources: &Sources,
    base: &Params,
    carried: &CarriedStudent,
    placement: Placement,
    state: StateDevice,
) -> Result<(UNet, Optimizer)> {
    let Some(recipe) = &stage.lora else { unreachable!("a recipe with LoRA phases has a [lora]") };
    let build = |source| Weights::shared(base).build_adapted(source, |scope| UNet::new(scope, &sources.teacher.unet));
    let masters = match carried {
        CarriedStudent::Lora(tensors) => {
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
        }
        CarriedStudent::Untouched => {
            let targets = adapters::TARGETS.map(String::from).into();
            let fresh = Adapters::Fresh { targets, rank: recipe.rank, alpha: recipe.alpha, seed: placement.seed };
            to_host(
                build(fresh)?.lora.iter().map(|(name, tensor)| (name.to_string(), tensor.shallow_clone())).collect(),
            )
        }
        CarriedStudent::Full(_) => unreachable!("a recipe's LoRA phases come before its full ones"),
    };
    // One road for a first start and for a resumed one: same tensors, same kernels, same bits.
    let adapted = build(Adapters::Given(adapters::by_layer(&masters, recipe)))?;
    let mut optimizer = Optimizer::new(adapted.lora.iter(), state, false)?;
    optimizer.set_masters(&masters)?;
    Ok((adapted.net, optimizer))
}

fn full_student(
    stage: &Stage,
    sources: &Sources,
    carried: CarriedStudent,
    (kind, device): (Kind, Device),
    state: StateDevice,
) -> Result<(UNet, Optimizer)> {
    let masters = match carried {
        CarriedStudent::Untouched => sources.teacher.tensors()?,
        CarriedStudent::Lora(tensors) => merged(stage, sources, &tensors)?,
        CarriedStudent::Full(tensors) => tensors,
    };
    let own = masters.iter().map(|(name, tensor)| (name.clone(), tensor.to_device(device).to_kind(kind).copy()));
    let weights = Weights::from_tensors("the student", own.collect()).to(kind, device);
    let (unet, params) = weights.build(|scope| UNet::new(scope, &sources.teacher.unet))?;
    let mut optimizer = Optimizer::new(params.iter(), state, stage.ema_decay.is_some())?;
    optimizer.set_masters(&masters)?;
    Ok((unet, optimizer))
}

/// The teacher's weights with adapters merged into them.
fn merged(stage: &Stage, sources: &Sources, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let mut weights = sources.teacher.tensors()?;
    if let Some(recipe) = &stage.lora {
        adapters::merge(&mut weights, &adapters::by_layer(tensors, recipe));
    }
    Ok(weights)
}

fn to_host(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let _no_grad = tch::no_grad_guard();
    tensors
        .into_iter()
        .map(|(name, tensor)| (name, tensor.detach().to_kind(Kind::Float).to_device(Device::Cpu).copy()))
        .collect()
}

/// The folder of a teacher of this manifest and run.
pub(super) fn teacher_folder(teacher: &crate::recipe::Teacher, base: &Path, run: &Path) -> Result<std::path::PathBuf> {
    if teacher.is_base() {
        return Ok(base.to_owned());
    }
    let folder = super::paths::StagePaths::new(run, &teacher.model).export();
    if folder.join("model_index.json").is_file() {
        return Ok(folder);
    }
    Err(Error::NoTeacher { folder, hint: format!("run `distill --stage {}` first, or `--stage all`", teacher.model) })
}
