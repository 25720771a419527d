//! What a recipe may say, and what it is told where it contradicts itself.

use super::*;

const STAGE: &str = r#"
        teacher = { model = "8to4", steps = 4 }
        skip_teacher = { model = "32to8", steps = 8 }
        student_steps = 2
        student_timesteps = [250, 500, 750, 1000]
        batch_size = 16
        micro_batch_size = 4
        seed = 1
        precision = "f32"
        lora = { rank = 8, alpha = 8.0 }
        record = { checkpoint_every = 10, keep_checkpoints = 2, samples_every = 0, samples = 4, histograms_every = 0 }
        guard = { max_skipped_in_a_row = 3, collapse_loss = 1e-4, collapse_patience = 50 }

        [[phase]]
        name = "lora"
        objective = "adversarial_conditional"
        trains = "lora"
        iterations = 10
        learning_rate = 1e-6
        betas = [0.0, 0.99]

        [[phase]]
        name = "full"
        objective = "adversarial_unconditional"
        trains = "full"
        teacher = "skip"
        iterations = 10
        learning_rate = 5e-7
        betas = [0.0, 0.99]
    "#;

fn parse(text: &str) -> Result<Stage, RecipeError> {
    Stage::parse("4to2", text, &Flow::sdxl())
}

#[test]
fn a_stage_is_read() {
    let stage = parse(STAGE).unwrap();
    assert_eq!(stage.micro_batches(), 4);
    assert_eq!(stage.teacher_of(&stage.phases[0]).steps, 4);
    assert_eq!(stage.teacher_of(&stage.phases[1]).steps, 8);
    assert_eq!(stage.phases[1].guidance_scale, 1.0);
    assert!(!stage.predicts_data());
}

#[test]
fn the_students_own_grid_is_the_default() {
    let stage = parse(&STAGE.replace("student_timesteps = [250, 500, 750, 1000]", "")).unwrap();
    assert_eq!(stage.student_timesteps, [Timestep(1000), Timestep(500)]);
}

/// Each edit of the valid recipe above, and a word of the refusal.
#[test]
fn contradictions_are_refused_by_name() {
    let cases = [
        ("seed = 1", "seed = 1\nsede = 2", "sede"),
        ("student_steps = 2", "student_steps = 3", "multiple"),
        ("student_steps = 2", "student_steps = 0", "student_steps"),
        ("[250, 500, 750, 1000]", "[]", "empty"),
        ("[250, 500, 750, 1000]", "[250, 2000]", "2000"),
        ("\"8to4\", steps = 4", "\"8to4\", steps = 6", "from 750 the student goes to 250"),
        ("batch_size = 16", "batch_size = 18", "multiple"),
        ("micro_batch_size = 4", "micro_batch_size = 0", "multiple"),
        ("\"32to8\", steps = 8", "\"32to8\", steps = 4", "more steps"),
        ("skip_teacher = { model = \"32to8\", steps = 8 }", "", "no skip_teacher"),
        ("teacher = \"skip\"", "", "no phase follows it"),
        ("lora = { rank = 8, alpha = 8.0 }", "", "no [lora]"),
        ("trains = \"lora\"", "trains = \"full\"", "no phase trains it"),
        ("rank = 8", "rank = 0", "rank"),
        ("trains = \"full\"", "trains = \"half\"", "half"),
        ("betas = [0.0, 0.99]", "betas = [0.0, 1.0]", "betas"),
        ("learning_rate = 1e-6", "learning_rate = 0.0", "learning_rate"),
        ("learning_rate = 1e-6", "learning_rate = nan", "learning_rate"),
        (
            "learning_rate = 1e-6",
            "learning_rate = 1e-6\ndiscriminator_learning_rate = 0.0",
            "discriminator_learning_rate",
        ),
        ("iterations = 10", "iterations = 0", "iterations"),
        ("teacher = \"skip\"", "teacher = \"skip\"\nguidance_scale = 0.5", "guidance_scale"),
        ("keep_checkpoints = 2", "keep_checkpoints = 0", "keep_checkpoints"),
        ("collapse_loss = 1e-4", "collapse_loss = nan", "collapse_loss"),
        ("seed = 1", "seed = 1\nema_decay = 1.5", "ema_decay"),
        ("seed = 1", "seed = 1\nmax_gradient_norm = 0.0", "max_gradient_norm"),
        ("\"adversarial_conditional\"", "\"x0_conversion\"", "a student of 1 step"),
        ("\"adversarial_unconditional\"", "\"x0_conversion\"", "comes first"),
        ("name = \"full\"", "name = \"lora\"", "a name of its own"),
        ("name = \"full\"", "name = \"\"", "a name of its own"),
        ("model = \"8to4\"", "model = \"4to2\"", "its own teacher"),
        ("model = \"32to8\"", "model = \"4to2\"", "its own teacher"),
        ("precision = \"f32\"", "precision = \"f16\"", "f16"),
        ("seed = 1", "seed = -1", "-1"),
        ("micro_batch_size = 4", "micro_batch_size = 32", "multiple"),
        ("max_skipped_in_a_row = 3", "max_skipped_in_a_row = -3", "-3"),
        ("collapse_patience = 50", "collapse_patience = 0", "collapse_patience"),
        ("alpha = 8.0", "alpha = 0.0", "alpha"),
        ("betas = [0.0, 0.99]", "betas = [0.0]", "betas"),
        ("iterations = 10", "iterations = -10", "-10"),
        ("objective = \"adversarial_conditional\"", "objective = \"adversarial\"", "adversarial"),
        ("seed = 1", "seed = 1\nema_decay = nan", "ema_decay"),
        (
            "\"adversarial_conditional\"",
            "\"mse\"\ndiscriminator_noise = { timesteps = [10], weights = [1.0] }",
            "no discriminator",
        ),
        (
            "\"adversarial_conditional\"",
            "\"adversarial_conditional\"\ndiscriminator_noise = { timesteps = [10], weights = [1.0] }",
            "1 step",
        ),
    ];
    for (from, to, word) in cases {
        assert!(STAGE.contains(from), "{from}");
        let error = parse(&STAGE.replacen(from, to, 1)).expect_err(to).to_string();
        assert!(error.contains(word), "{to}: {error}");
    }
}

const ONE_STEP: &str = r#"
        teacher = { model = "4to2", steps = 2 }
        student_steps = 1
        batch_size = 4
        micro_batch_size = 4
        seed = 1
        precision = "bf16"
        record = { checkpoint_every = 10, keep_checkpoints = 2, samples_every = 0, samples = 4, histograms_every = 0 }
        guard = { max_skipped_in_a_row = 3, collapse_loss = 1e-4, collapse_patience = 50 }

        [[phase]]
        name = "convert"
        objective = "x0_conversion"
        trains = "full"
        iterations = 10
        learning_rate = 1e-5
        betas = [0.9, 0.999]

        [[phase]]
        name = "noised"
        objective = "adversarial_conditional"
        trains = "full"
        discriminator_noise = { timesteps = [10, 250], weights = [5.0, 1.0] }
        iterations = 10
        learning_rate = 5e-7
        betas = [0.0, 0.99]
    "#;

/// What can contradict itself in a student of one step alone.
#[test]
fn contradictions_of_one_step_are_refused_by_name() {
    Stage::parse("2to1", ONE_STEP, &Flow::sdxl()).unwrap();
    let cases = [
        ("weights = [5.0, 1.0]", "weights = [5.0]", "one weight for each timestep"),
        ("timesteps = [10, 250], weights = [5.0, 1.0]", "timesteps = [], weights = []", "one weight"),
        ("weights = [5.0, 1.0]", "weights = [0.0, 0.0]", "not all zero"),
        ("weights = [5.0, 1.0]", "weights = [-1.0, 2.0]", "not negative"),
        ("timesteps = [10, 250]", "timesteps = [10, 1001]", "timesteps lie between"),
        ("objective = \"x0_conversion\"", "objective = \"x0_conversion\"\nguidance_scale = 6.0", "no guidance_scale"),
        ("objective = \"x0_conversion\"", "objective = \"x0_conversion\"\nteacher = \"skip\"", "no teacher to skip to"),
        (
            "objective = \"x0_conversion\"\n        trains = \"full\"",
            "objective = \"x0_conversion\"\n        trains = \"lora\"",
            "no [lora]",
        ),
    ];
    for (from, to, word) in cases {
        assert!(ONE_STEP.contains(from), "{from}");
        let error = Stage::parse("2to1", &ONE_STEP.replacen(from, to, 1), &Flow::sdxl()).expect_err(to).to_string();
        assert!(error.contains(word), "{to}: {error}");
    }
}

#[test]
fn adapters_cannot_follow_full_training() {
    let swapped = STAGE.replacen("trains = \"lora\"", "trains = \"later\"", 1);
    let swapped = swapped.replacen("trains = \"full\"", "trains = \"lora\"", 1).replace("\"later\"", "\"full\"");
    assert!(parse(&swapped).unwrap_err().to_string().contains("changed the weights"));
}

/// The committed recipes are valid, chain into each other and end in one step.
#[test]
fn committed_stages_chain() {
    for manifest in ["demo", "sdxl"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(manifest).join("stages");
        let stages = Stage::load_all(&folder, &Flow::sdxl()).unwrap();
        let names: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["128to32", "32to8", "8to4", "4to2", "2to1"], "{manifest}");
        assert!(stages[0].teacher.is_base());
        for pair in stages.windows(2) {
            assert_eq!(pair[1].teacher, Teacher { model: pair[0].name.clone(), steps: pair[0].student_steps });
        }
        assert!(stages[4].predicts_data());
    }
}

/// Ablations stand beside the demo's long stages: each follows a stage that comes before it and ends in its steps.
#[test]
fn committed_ablations_follow_what_comes_before_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/demo-long/stages");
    let stages = Stage::load_all(&folder, &Flow::sdxl()).unwrap();
    assert_eq!(stages.len(), 18);
    for (at, stage) in stages.iter().enumerate() {
        for teacher in std::iter::once(&stage.teacher).chain(&stage.skip_teacher) {
            let known = stages[..at].iter().any(|earlier| {
                (earlier.name.as_str(), earlier.student_steps) == (teacher.model.as_str(), teacher.steps)
            });
            assert!(known || teacher.is_base(), "{}: there is no {teacher:?} before it", stage.name);
        }
    }
}
