//! The `sample` program against fixtures/sample/make_fixtures.py.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use nn::Weights;
use shards::npy::{Npy, to_npy_f32};
use tch::{Device, Kind, Tensor};
use trainer::sample::{MicroCondition, ModelChoice, Pipeline, Size, Start};
use trainer::single_file;

use super::model::SmallModel;
use super::{fixture, hashed, relative_error};

const PROMPT: &str = "a red circle on a blue field, soft light";
const NEGATIVE: &str = "two green squares";
/// The issue's figure for an image after four Euler steps.
const TOLERANCE: f64 = 1e-3;

fn expected(name: &str) -> Tensor {
    Weights::open(&fixture("sample/outputs.safetensors")).unwrap().tensor(name).unwrap()
}

/// `sample` with a model and its noise, ready for more arguments.
struct Run {
    command: Command,
    latents: PathBuf,
    image: PathBuf,
}

/// One thread: the networks are small and the tests run side by side.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sample"));
    command.env("OMP_NUM_THREADS", "1");
    command
}

impl Run {
    fn new(model: &SmallModel, name: &str, (width, height): (i64, i64), steps: usize) -> Self {
        let (noise, latents) = (model.file(&format!("{name}.noise.npy")), model.file(&format!("{name}.npy")));
        let image = model.file(&format!("{name}.png"));
        save_npy(&noise, &hashed::tensor("noise", &[1, 4, height / 8, width / 8], 1.7));
        let mut command = program();
        command.arg("--model").arg(model.path()).args(["--prompt", PROMPT]);
        command.arg("--noise").arg(noise).arg("--latents-out").arg(&latents).arg("--out").arg(&image);
        command.args(["--size", &format!("{width}x{height}"), "--steps", &steps.to_string()]);
        Self { command, latents, image }
    }

    fn latents(mut self, arguments: &[&str]) -> Tensor {
        self.command.args(arguments).assert().success();
        let array = Npy::parse(&std::fs::read(&self.latents).unwrap()).unwrap();
        let shape: Vec<i64> = array.shape.iter().map(|&side| side as i64).collect();
        Tensor::from_slice(&array.to_f32()).reshape(shape)
    }

    /// The exit code and what was said.
    fn refused(mut self, arguments: &[&str]) -> (i32, String) {
        let output = self.command.args(arguments).output().unwrap();
        assert!(!self.image.exists() && !self.latents.exists(), "something was written");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

fn save_npy(path: &Path, tensor: &Tensor) {
    let shape: Vec<usize> = tensor.size().iter().map(|&side| side as usize).collect();
    let values: Vec<f32> = Vec::try_from(tensor.flatten(0, -1)).unwrap();
    std::fs::write(path, to_npy_f32(&shape, &values).unwrap()).unwrap();
}

fn assert_close(what: &str, found: &Tensor, name: &str) {
    let error = relative_error(found, &expected(name));
    assert!(error <= TOLERANCE, "{what}: {error:e}");
}

/// The small model's LoRA, by module: path, shape of the lower half, shape of the upper half.
fn lora_modules() -> Vec<(String, Vec<i64>, Vec<i64>)> {
    serde_json::from_str(&std::fs::read_to_string(fixture("sample/lora.json")).unwrap()).unwrap()
}

/// Writes a LoRA file; `name` makes the tensors' names from a module's path and a half.
fn save_lora(path: &Path, alpha: Option<f64>, name: impl Fn(&str, &str) -> String) {
    save_lora_with(path, alpha, name, &[]);
}

fn save_lora_with(path: &Path, alpha: Option<f64>, name: impl Fn(&str, &str) -> String, metadata: &[(&str, &str)]) {
    let mut tensors = Vec::new();
    for (module, down, up) in lora_modules() {
        tensors.push((name(&module, "down"), hashed::weight(&format!("{module}.down.weight"), &down)));
        tensors.push((name(&module, "up"), hashed::weight(&format!("{module}.up.weight"), &up)));
        if let Some(alpha) = alpha {
            tensors.push((name(&module, "alpha"), Tensor::from(alpha as f32)));
        }
    }
    nn::save(path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), metadata).unwrap();
}

fn kohya_name(module: &str, half: &str) -> String {
    let module = format!("lora_unet_{}", module.replace('.', "_"));
    if half == "alpha" { format!("{module}.alpha") } else { format!("{module}.lora_{half}.weight") }
}

#[test]
fn four_euler_steps_equal_diffusers() {
    let model = SmallModel::new();
    assert_close("no guidance", &Run::new(&model, "plain", (64, 64), 4).latents(&[]), "plain");
    let leading = ["--guidance-scale", "5", "--timestep-spacing", "leading"];
    let guided = Run::new(&model, "guided", (104, 72), 4).latents(&leading);
    assert_close("guided away from zeros, 104x72", &guided, "guided_odd");
    let negative = [&leading[..], &["--negative-prompt", NEGATIVE]].concat();
    let negative = Run::new(&model, "negative", (64, 64), 4).latents(&negative);
    assert_close("guided away from a prompt", &negative, "negative");
    let one_step = Run::new(&model, "one", (64, 64), 1).latents(&["--prediction-type", "v_prediction"]);
    assert!(relative_error(&one_step, &expected("one_step_sample")) > TOLERANCE);
    let one_step = Run::new(&model, "one", (64, 64), 1).latents(&["--prediction-type", "sample"]);
    assert_close("one step of a model that predicts x0", &one_step, "one_step_sample");
}

#[test]
fn the_picture_holds_its_pixels_and_its_parameters() {
    let model = SmallModel::new();
    let run = Run::new(&model, "picture", (64, 64), 4);
    let path = run.image.clone();
    drop(run.latents(&[]));
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap())).read_info().unwrap();
    let parameters = reader.info().utf8_text[0].clone();
    assert_eq!(parameters.keyword, "parameters");
    let text = parameters.get_text().unwrap();
    let says = format!("{PROMPT}\nSteps: 4, Sampler: Euler trailing, CFG scale: 0, Size: 64x64, Model: ");
    assert!(text.starts_with(&says), "{text}");
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut bytes).unwrap();
    let found = Tensor::from_slice(&bytes).reshape([64, 64, 3]).permute([2, 0, 1]).unsqueeze(0).to_kind(Kind::Float);
    // diffusers clips before it returns; one level of 255 is the rounding to bytes.
    let levels = (expected("image") * 0.5 + 0.5) * 255.0;
    let worst = (found - levels).abs().max().double_value(&[]);
    assert!(worst <= 0.5 + 255.0 * TOLERANCE, "{worst} levels of 255");
}

#[test]
fn lora_files_equal_diffusers_in_every_naming() {
    let model = SmallModel::new();
    let draw = |name: &str, file: &Path, scale: &str| {
        Run::new(&model, name, (64, 64), 4).latents(&["--lora", &format!("{}{scale}", file.display())])
    };
    let kohya = model.file("kohya.safetensors");
    save_lora(&kohya, Some(2.0), kohya_name);
    assert_close("kohya", &draw("kohya", &kohya, ""), "lora_kohya");

    let reference = model.file("reference.safetensors");
    let names = single_file::Names::unet(&model.configurations().unet);
    save_lora(&reference, Some(2.0), |module, half| kohya_name(&names.translate(module).unwrap(), half));
    assert_close("kohya, reference names", &draw("reference", &reference, ":1"), "lora_kohya");

    let peft = model.file("peft.safetensors");
    let peft_name =
        |module: &str, half: &str| format!("unet.{module}.lora_{}.weight", if half == "down" { "A" } else { "B" });
    save_lora(&peft, None, peft_name);
    assert_close("peft", &draw("peft", &peft, ":0.25"), "lora_peft");

    let noted = model.file("noted.safetensors");
    let settings = r#"{"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {}}"#;
    save_lora_with(&noted, None, peft_name, &[("lora_adapter_metadata", settings)]);
    assert_close("peft, alpha in the header", &draw("noted", &noted, ""), "lora_kohya");

    let own = model.file("own.safetensors");
    let settings = r#"{"r": 4, "lora_alpha": 2, "alpha_pattern": {}, "use_rslora": false, "use_dora": null}"#;
    let bare_name = |module: &str, half: &str| peft_name(module, half).replace("unet.", "");
    save_lora_with(&own, None, bare_name, &[("lora_adapter_metadata", settings)]);
    assert_close("one network's own file", &draw("own", &own, ""), "lora_kohya");
    let settings = r#"{"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 16}}"#;
    save_lora_with(&own, None, bare_name, &[("lora_adapter_metadata", settings)]);
    let apart = relative_error(&draw("patterns", &own, ":0.25"), &expected("lora_peft"));
    assert!(apart > TOLERANCE, "one network's own patterns: {apart:e}");

    let old = model.file("old.safetensors");
    save_lora(&old, None, |module, half| format!("unet.{module}.lora.{half}.weight"));
    assert_close("diffusers before peft", &draw("old", &old, ":0.25"), "lora_peft");

    // The same file twice at 1/8 is the file at 1/4; at 0 it is not there.
    let twice = format!("{}:0.125", peft.display());
    let twice = Run::new(&model, "twice", (64, 64), 4).latents(&["--lora", &twice, "--lora", &twice]);
    assert_close("two halves", &twice, "lora_peft");
    assert_close("strength 0", &draw("none", &peft, ":0"), "plain");
}

#[test]
fn sdedit_equals_diffusers() {
    let model = SmallModel::new();
    let pipeline = open(&model);
    let size = Size { width: 64, height: 64 };
    let steps = pipeline.steps(5).unwrap();
    let guidance = pipeline.embed(&[PROMPT], None, 0.0, &MicroCondition { original: size, target: size }).unwrap();
    let start = Start::Latents { clean: hashed::tensor("init", &[1, 4, 8, 8], 0.8), strength: 0.6 };
    let noise = hashed::tensor("noise", &[1, 4, 8, 8], 1.7);
    let mut done = 0;
    let no_noise = |_| panic!("Euler adds no noise");
    let latents = pipeline.denoise(&steps, &guidance, &start, &noise, no_noise, |_| done += 1).unwrap();
    assert_close("3 of 5 steps", &latents, "image_to_image");
    assert_eq!(done, 3);
}

#[test]
fn a_single_file_draws_what_its_folder_draws() {
    let model = SmallModel::new();
    let file = model.file("all.safetensors");
    single_file::write(&file, &model.networks(), &model.configurations()).unwrap();
    // The folder's own weights are of no use any more.
    for part in
        ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model"]
    {
        std::fs::remove_file(model.path().join(format!("{part}.safetensors"))).unwrap();
    }
    let weights = file.display().to_string();
    assert_close("single file", &Run::new(&model, "single", (64, 64), 4).latents(&["--weights", &weights]), "plain");

    let mut networks = model.networks();
    let second = networks.remove(&single_file::Part::TextEncoder2).unwrap();
    single_file::write(&file, &networks, &model.configurations()).unwrap();
    let folder = model.path().join("text_encoder_2/model.safetensors");
    nn::save(&folder, second.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[]).unwrap();
    let one_of_two = Run::new(&model, "one-of-two", (64, 64), 4).latents(&["--weights", &weights]);
    assert_close("one text encoder of the file, one of the folder", &one_of_two, "plain");
}

/// What an image is depends on its seed and prompt alone.
#[test]
fn batches_change_nothing() {
    let model = SmallModel::new();
    let draw = |name: &str, arguments: &[&str]| {
        let mut command = program();
        command.arg("--model").arg(model.path()).args(["--steps", "2", "--sampler", "euler-ancestral"]);
        command.arg("--out").arg(model.file(name)).args(arguments).assert().success();
    };
    draw("many.png", &["--prompt", "a", "--prompt", "b", "--images", "2", "--seed", "7", "--batch-size", "3"]);
    draw("one.png", &["--prompt", "b", "--seed", "8"]);
    draw("other.png", &["--prompt", "b", "--seed", "7"]);
    let pixels = |name: &str| image::open(model.file(name)).unwrap().to_rgb8().into_raw();
    let apart = |a: &str, b: &str| pixels(a).iter().zip(pixels(b)).map(|(a, b)| a.abs_diff(b)).max().unwrap();
    assert!(apart("many-3.png", "one.png") <= 1);
    assert!(apart("many-2.png", "other.png") <= 1);
    assert!(apart("one.png", "other.png") > 1);
}

#[test]
fn bad_input_is_one_line_and_exit_code_2() {
    let model = SmallModel::new();
    let run = || Run::new(&model, "bad", (64, 64), 4);
    let refused = |run: Run, arguments: &[&str], says: &str| {
        let (code, said) = run.refused(arguments);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(says), "{said}");
    };
    refused(run(), &["--polish"], "unexpected argument '--polish'");
    refused(run(), &["--manifest", "manifests/demo"], "'--model <DIR>' cannot be used with '--manifest <DIR>'");
    refused(Run::new(&model, "bad", (64, 64), 0), &[], "--steps, --images and --batch-size are at least 1");
    refused(run(), &["--negative-prompt", "x"], "--guidance-scale above 1");
    refused(run(), &["--strength", "0.5"], "--init");
    refused(run(), &["--device", "gpu"], "gpu");
    refused(run(), &["--init", "/no/such.png"], "/no/such.png");
    refused(run(), &["--lora", "/no/such.safetensors"], "/no/such.safetensors");
    refused(Run::new(&model, "bad", (60, 64), 4), &[], "60x64 is not a multiple of 8");
    refused(Run::new(&model, "bad", (64, 64), 1001), &[], "1001 steps");
    let with_wrong_noise = run();
    save_npy(&model.file("bad.noise.npy"), &hashed::tensor("noise", &[1, 4, 4, 4], 1.0));
    refused(with_wrong_noise, &[], "has the shape [1, 4, 4, 4]");

    let lora = model.file("strange.safetensors");
    save_lora(&lora, None, |module, half| format!("lora_te1_{module}.lora_{half}.weight"));
    refused(run(), &["--lora", lora.to_str().unwrap()], "tensors match no module of the UNet");
    save_lora(&lora, None, |module, half| kohya_name(module, if half == "up" { "down" } else { "alpha" }));
    refused(run(), &["--lora", lora.to_str().unwrap()], "modules lack one half");
    for settings in [r#"{"unet.use_rslora": true}"#, r#"{"use_rslora": true}"#, r#"{"use_dora": true}"#] {
        let name =
            |module: &str, half: &str| format!("{module}.lora_{}.weight", if half == "down" { "A" } else { "B" });
        save_lora_with(&lora, None, name, &[("lora_adapter_metadata", settings)]);
        refused(run(), &["--lora", lora.to_str().unwrap()], "rank-stabilised and weight-decomposed");
    }
    for (patterns, says) in [
        (r#"{"attn1.*": 16}"#, "its alpha_pattern: `attn1.*`: 16 is not the end of a path and a number"),
        (r#"{"to_q": "16"}"#, "its alpha_pattern: `to_q`: \"16\" is not the end of a path and a number"),
        (r#"{"to_q": 16, "attn1.to_q": 8}"#, "its alpha_pattern: `attn1.to_q` and `to_q` both stand for"),
    ] {
        let name =
            |module: &str, half: &str| format!("{module}.lora_{}.weight", if half == "down" { "A" } else { "B" });
        let settings = format!(r#"{{"r": 4, "lora_alpha": 4, "alpha_pattern": {patterns}}}"#);
        save_lora_with(&lora, None, name, &[("lora_adapter_metadata", settings.as_str())]);
        refused(run(), &["--lora", lora.to_str().unwrap()], says);
    }
    std::fs::write(&lora, b"not safetensors").unwrap();
    refused(run(), &["--lora", lora.to_str().unwrap()], "not a valid safetensors file");

    let config = model.path().join("unet/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"in_channels\": 4", "\"in_channels\": 8")).unwrap();
    refused(run(), &[], "unet/config.json: `in_channels`: 8, the VAE's latents have 4");
    std::fs::write(&config, text.replace("\"class_embed_type\": null", "\"class_embed_type\": \"timestep\"")).unwrap();
    refused(run(), &[], "unet/config.json: `class_embed_type` = \"timestep\" is not supported");
    std::fs::write(&config, text.replace("\"cross_attention_dim\": 48", "\"cross_attention_dim\": 40")).unwrap();
    refused(run(), &[], "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight: expected");
    std::fs::write(&config, text).unwrap();
    let config = model.path().join("vae/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"out_channels\": 3", "\"out_channels\": 4")).unwrap();
    refused(run(), &[], "vae/config.json: `out_channels`: 4, images have 3");
    std::fs::write(&config, text).unwrap();
    std::fs::remove_dir_all(model.path().join("tokenizer")).unwrap();
    refused(run(), &[], "tokenizer");
    std::fs::remove_dir_all(model.path()).unwrap();
    refused(run(), &[], "is not a folder");
}

/// Only the export of a stage says how many steps it takes.
#[test]
fn a_base_model_needs_to_be_told_its_steps() {
    let model = SmallModel::new();
    let mut command = program();
    command.arg("--model").arg(model.path()).args(["--prompt", PROMPT]).arg("--out").arg(model.file("none.png"));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("say --steps"), "{said}");
}

fn open(model: &SmallModel) -> Pipeline {
    let choice = ModelChoice {
        folder: model.path(),
        weights: None,
        loras: Vec::new(),
        algorithm: None,
        timestep_spacing: None,
        prediction_type: None,
    };
    Pipeline::open(&choice, Kind::Float, Device::Cpu).unwrap()
}
