//! Every scheduler against fixtures/schedulers/make_fixtures.py.

use serde::Deserialize;
use serde_json::Value;
use tch::{Kind, Tensor};
use trainer::schedulers::{Algorithm, PredictionType, Scheduler, SchedulerConfig, TimestepSpacing, trailing_timesteps};

#[derive(Deserialize)]
struct Fixtures {
    runs: Vec<Run>,
    trailing: Vec<(usize, f64, f64)>,
}

#[derive(Deserialize)]
struct Run {
    config: Value,
    count: usize,
    timesteps: Vec<f64>,
    sigmas: Option<Vec<f64>>,
    init_noise_sigma: f64,
    clean: Vec<f64>,
    noise: Vec<f64>,
    noised: Vec<f64>,
    sample: Vec<f64>,
    model_inputs: Vec<Vec<f64>>,
    model_outputs: Vec<Vec<f64>>,
    noises: Vec<Vec<f64>>,
    samples: Vec<Vec<f64>>,
}

fn fixtures() -> Fixtures {
    let text = std::fs::read_to_string(super::fixture("schedulers/schedulers.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Float)
}

/// Within 1e-6 of `scale`, the size of what went into the numbers: diffusers' own rounding to FP32 grows with it.
fn assert_close(what: &str, found: &[f64], expected: &[f64], scale: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let error = (found - expected).abs() / scale.max(1.0);
        assert!(error <= 1e-6, "{what}: {found} instead of {expected}, off by {error:e}");
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}

/// `numpy.linspace(0, 999, 27)` has 499.49999999999994 in its middle, which FP32 would make 499.5.
#[test]
fn ddim_rounds_its_timesteps_from_double_precision() {
    let config = r#"{"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}"#;
    let scheduler = Scheduler::new(SchedulerConfig::from_json(config).unwrap());
    for count in [27, 31, 47, 53, 61, 93] {
        assert_eq!(scheduler.steps(count).unwrap().timesteps()[count / 2], 499.0, "{count} steps");
    }
}

#[test]
fn timesteps_sigmas_and_steps_equal_diffusers() {
    for run in fixtures().runs {
        let what = format!("{} steps of {}", run.count, run.config);
        let scheduler = Scheduler::new(SchedulerConfig::from_json(&run.config.to_string()).expect(&what));
        let steps = scheduler.steps(run.count).expect(&what);
        assert_eq!(steps.timesteps(), run.timesteps, "{what}");
        let scale = run.init_noise_sigma.max(1.0);
        if let Some(sigmas) = &run.sigmas {
            let found: Vec<f64> = steps.sigmas().chain([0.0]).collect();
            assert_close(&what, &found, sigmas, scale);
        }
        assert_close(&what, &[steps.init_noise_scale()], &[run.init_noise_sigma], scale);
        let noised = steps.add_noise(0, &tensor(&run.clean), &tensor(&run.noise));
        assert_close(&what, &values(&noised), &run.noised, 4.0 * scale);

        let mut sample = tensor(&run.sample);
        for i in 0..run.timesteps.len() {
            assert_close(&what, &values(&steps.model_input(i, &sample)), &run.model_inputs[i], 4.0 * scale);
            let noise = || tensor(&run.noises[i]);
            // Each step from diffusers' own sample, so that errors do not add up.
            let next = steps.step(i, &sample, &tensor(&run.model_outputs[i]), noise);
            let largest = [values(&sample), run.samples[i].clone()].concat().iter().fold(scale, |m, x| x.abs().max(m));
            assert_close(&format!("{what}, step {i}"), &values(&next), &run.samples[i], 2.0 * largest);
            sample = tensor(&run.samples[i]);
        }
    }
}

/// numpy rounds half to even: 32 steps visit 811, not 812.
#[test]
fn trailing_grids_of_every_length_equal_numpy() {
    for (count, (length, sum, moment)) in (1..).zip(fixtures().trailing) {
        let grid = trailing_timesteps(1000, count);
        assert_eq!(grid.len(), length, "{count} steps");
        assert_eq!(grid.iter().sum::<f64>(), sum, "{count} steps");
        assert_eq!(grid.iter().zip(0..).map(|(t, i)| t * f64::from(i)).sum::<f64>(), moment, "{count} steps");
    }
}

#[test]
fn trailing_grids_nest() {
    for (coarse, fine) in [(1, 2), (2, 4), (4, 8), (8, 32), (32, 128)] {
        let every = trailing_timesteps(1000, fine).into_iter().step_by(fine / coarse).collect::<Vec<_>>();
        assert_eq!(trailing_timesteps(1000, coarse), every);
    }
}

#[test]
fn a_written_configuration_reads_back() {
    for run in fixtures().runs {
        let config = SchedulerConfig::from_json(&run.config.to_string()).unwrap();
        assert_eq!(SchedulerConfig::from_json(&config.to_json()).unwrap(), config);
    }
}

/// A student keeps its base's noise schedule, whatever that is.
#[test]
fn what_students_are_sampled_with_is_eulers_method_on_the_bases_schedule() {
    for run in fixtures().runs {
        let base = SchedulerConfig::from_json(&run.config.to_string()).unwrap();
        let student = base.distilled(PredictionType::Sample);
        assert_eq!(SchedulerConfig::from_json(&student.to_json()).unwrap(), student);
        assert_eq!((student.betas, student.num_train_timesteps), (base.betas, base.num_train_timesteps));
        assert_eq!((student.algorithm, student.timestep_spacing), (Algorithm::Euler, TimestepSpacing::Trailing));
        assert_eq!(student.prediction_type, PredictionType::Sample);
    }
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    let refused = |key: &str, value: &str| {
        let text = format!(r#"{{"_class_name": "EulerDiscreteScheduler", "{key}": {value}}}"#);
        SchedulerConfig::from_json(&text).unwrap_err().to_string()
    };
    assert_eq!(refused("use_karras_sigmas", "true"), "`use_karras_sigmas` = true is not supported");
    assert_eq!(refused("trained_betas", "[0.1, 0.2]"), "`trained_betas` = [0.1,0.2] is not supported");
    assert_eq!(refused("use_karas_sigmas", "false"), "`use_karas_sigmas` is not a setting of this class");
    assert!(refused("prediction_type", "\"noise\"").starts_with("`prediction_type`: unknown variant"));
    assert!(refused("beta_end", "1.5").starts_with("`beta_start`"));
    for count in ["1", "1000000000000000"] {
        let said = format!("`num_train_timesteps`: {count} is out of range");
        assert_eq!(refused("num_train_timesteps", count), said);
    }
    assert_eq!(SchedulerConfig::from_json("{}").unwrap_err().to_string(), "`_class_name` is missing");
}

#[test]
fn impossible_step_counts_are_refused() {
    let euler = Scheduler::new(SchedulerConfig::from_json(r#"{"_class_name": "EulerDiscreteScheduler"}"#).unwrap());
    assert!(euler.steps(0).is_err());
    assert!(euler.steps(1001).is_err());
    let lcm = SchedulerConfig::from_json(r#"{"_class_name": "LCMScheduler"}"#).unwrap();
    assert!(Scheduler::new(lcm).steps(51).is_err());
    let offset = r#"{"_class_name": "DDIMScheduler", "steps_offset": 2}"#;
    let error = Scheduler::new(SchedulerConfig::from_json(offset).unwrap()).steps(1000).unwrap_err();
    assert!(error.to_string().contains("steps_offset"), "{error}");
}
