//! The table: `results.json`, `results.csv` and `results.md`.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::contender::Kind;

/// One contender with one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The contender.
    pub model: String,
    /// What of it was trained.
    pub kind: Kind,
    /// What made it.
    pub method: String,
    /// Sampling steps.
    pub steps: usize,
    /// Weight of classifier-free guidance; up to 1 there was none.
    pub guidance_scale: f64,
    /// Fréchet distance to the references over features of whole pictures.
    pub frechet_whole: f64,
    /// The same over the middle of each picture in full resolution: texture.
    pub frechet_patch: f64,
    /// 100 times the mean cosine of pictures and captions; not for the demo world.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_score: Option<f64>,
    /// The share of captions of which everything is found in the picture; for the demo world alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption_accuracy: Option<f64>,
    /// The share of colours, shapes and backgrounds asked for that are found; for the demo world alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attribute_accuracy: Option<f64>,
    /// Variance of the Laplacian of luma, in squared grey levels, mean over pictures.
    pub sharpness: f64,
    /// Root mean square distance in grey levels to the teacher's picture from the same noise, both at 128 px, mean over
    /// pictures.
    pub teacher_distance: f64,
    /// Pictures measured.
    pub n_images: u64,
    /// Where the noise came from.
    pub seed: u64,
}

/// A column of the tables and a chart of bars.
pub(super) struct Measure {
    /// Its title.
    pub title: &'static str,
    /// Its key in `results.csv`.
    key: &'static str,
    /// Its number in a row, where there is one.
    pub of: fn(&Row) -> Option<f64>,
    /// The digits behind the point that mean something.
    digits: usize,
    /// Whether it is also said as a multiple of the teacher's.
    relative: bool,
}

const MEASURES: [Measure; 7] = [
    Measure::new("Fréchet whole", "frechet_whole", |row| Some(row.frechet_whole), 2).relative(),
    Measure::new("Fréchet patch", "frechet_patch", |row| Some(row.frechet_patch), 3).relative(),
    Measure::new("CLIP score", "clip_score", |row| row.clip_score, 2),
    Measure::new("captions right", "caption_accuracy", |row| row.caption_accuracy, 3),
    Measure::new("attributes right", "attribute_accuracy", |row| row.attribute_accuracy, 3),
    Measure::new("sharpness", "sharpness", |row| Some(row.sharpness), 1),
    Measure::new("distance to teacher", "teacher_distance", |row| Some(row.teacher_distance), 1),
];

impl Measure {
    const fn new(title: &'static str, key: &'static str, of: fn(&Row) -> Option<f64>, digits: usize) -> Self {
        Self { title, key, of, digits, relative: false }
    }

    const fn relative(self) -> Self {
        Self { relative: true, ..self }
    }

    /// Mean and spread over the rows of one contender.
    pub fn mean(&self, rows: &[Row]) -> (f64, Option<f64>) {
        mean_and_spread(&rows.iter().filter_map(self.of).collect::<Vec<_>>())
    }

    /// One contender's cell: `12.34 ± 0.56` over several seeds, and `(1.20x)` beside a teacher.
    pub fn cell(&self, rows: &[Row], teacher: &[Row]) -> String {
        let digits = self.digits_beside(self.mean(teacher).0);
        let (mean, spread) = self.mean(rows);
        let mut text = format!("{mean:.digits$}");
        if let Some(spread) = spread {
            let _ = write!(text, " ± {spread:.digits$}");
        }
        if self.relative && rows[0].model != teacher[0].model {
            let _ = write!(text, " ({:.2}x)", mean / self.mean(teacher).0);
        }
        text
    }

    /// Of distances, whose scale is that of the features, enough digits for three of the teacher's to be seen.
    fn digits_beside(&self, teacher: f64) -> usize {
        if !self.relative || teacher <= 0.0 {
            return self.digits;
        }
        let to_third = 2 - teacher.log10().floor() as i32;
        self.digits.max(to_third.clamp(0, 9) as usize)
    }
}

/// The measures that these rows have.
pub(super) fn measures(rows: &[Row]) -> impl Iterator<Item = &'static Measure> + Clone {
    let first = rows.first().cloned();
    MEASURES.iter().filter(move |measure| first.as_ref().is_some_and(|row| (measure.of)(row).is_some()))
}

/// The rows of one contender, for the mean over seeds.
pub(super) fn by_model(rows: &[Row]) -> Vec<&[Row]> {
    rows.chunk_by(|one, other| one.model == other.model).collect()
}

/// Mean and, of several numbers, sample standard deviation.
pub(super) fn mean_and_spread(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()))
}

/// One line for each contender and seed. Numbers that the exam does not give are empty.
pub fn csv(rows: &[Row]) -> String {
    let keys: Vec<&str> = MEASURES.iter().map(|measure| measure.key).collect();
    let mut text = format!("model,kind,method,steps,guidance_scale,{},n_images,seed\n", keys.join(","));
    for row in rows {
        let kind = kind_word(row.kind);
        let Row { model, method, steps, guidance_scale, n_images, seed, .. } = row;
        let _ = write!(text, "{model},{kind},{method},{steps},{guidance_scale}");
        for measure in &MEASURES {
            let number = (measure.of)(row).map(|number| number.to_string());
            let _ = write!(text, ",{}", number.unwrap_or_default());
        }
        let _ = writeln!(text, ",{n_images},{seed}");
    }
    text
}

/// One line for each contender, means over seeds; the first is the teacher.
pub fn markdown(rows: &[Row]) -> String {
    let titles: Vec<&str> = measures(rows).map(|measure| measure.title).collect();
    let mut text = format!("| model | kind | method | steps | guidance | {} |\n", titles.join(" | "));
    text += &format!("|{}\n", "---|".repeat(5 + titles.len()));
    let models = by_model(rows);
    for of_model in &models {
        let Row { model, kind, method, steps, guidance_scale, .. } = &of_model[0];
        let _ = write!(text, "| {model} | {} | {method} | {steps} | {guidance_scale} |", kind_word(*kind));
        for measure in measures(rows) {
            let _ = write!(text, " {} |", measure.cell(of_model, models[0]));
        }
        text.push('\n');
    }
    text
}

pub(super) fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Base => "base",
        Kind::Full => "full",
        Kind::Lora => "lora",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(model: &str, seed: u64, frechet_whole: f64) -> Row {
        Row {
            model: model.into(),
            kind: Kind::Full,
            method: "lightning".into(),
            steps: 4,
            guidance_scale: 0.0,
            frechet_whole,
            frechet_patch: 0.5,
            clip_score: None,
            caption_accuracy: Some(0.9),
            attribute_accuracy: Some(0.95),
            sharpness: 812.4,
            teacher_distance: 9.26,
            n_images: 96,
            seed,
        }
    }

    #[test]
    fn seeds_become_one_line_with_their_spread_and_the_ratio_to_the_teacher() {
        let rows = [row("base-32", 0, 1.5), row("base-32", 1, 2.5), row("8to4", 0, 1.0), row("8to4", 1, 4.0)];
        let table = markdown(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(!lines[0].contains("CLIP") && lines[0].contains("captions right"));
        assert_eq!(
            lines[3],
            "| 8to4 | full | lightning | 4 | 0 | 2.50 ± 2.12 (1.25x) | 0.500 ± 0.000 (1.00x) | 0.900 ± 0.000 | \
             0.950 ± 0.000 | 812.4 ± 0.0 | 9.3 ± 0.0 |"
        );
        let single = markdown(&[row("base-32", 0, 1.5)]);
        assert!(
            single.ends_with("| base-32 | full | lightning | 4 | 0 | 1.50 | 0.500 | 0.900 | 0.950 | 812.4 | 9.3 |\n")
        );
    }

    #[test]
    fn small_distances_are_told_apart() {
        let rows = [row("base-32", 0, 0.011_94), row("8to4", 0, 0.013_21)];
        let table = markdown(&rows);
        assert!(table.contains("| 0.0119 | ") && table.contains("| 0.0132 (1.11x) | "), "{table}");
    }

    #[test]
    fn csv_has_a_line_for_each_seed_and_as_many_fields_as_titles() {
        let text = csv(&[row("8to4", 0, 1.0), row("8to4", 1, 3.0)]);
        let fields: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(fields, [14, 14, 14]);
        assert!(text.lines().nth(2).unwrap().ends_with(",96,1"));
    }

    #[test]
    fn json_has_a_clip_score_or_an_accuracy() {
        let of_demo = serde_json::to_value(row("8to4", 0, 1.0)).unwrap();
        assert!(of_demo.get("clip_score").is_none() && of_demo["caption_accuracy"] == 0.9);
        let clip =
            Row { clip_score: Some(26.1), caption_accuracy: None, attribute_accuracy: None, ..row("8to4", 0, 1.0) };
        let of_coco = serde_json::to_value(&clip).unwrap();
        assert!(of_coco.get("caption_accuracy").is_none() && of_coco["clip_score"] == 26.1);
        assert_eq!(serde_json::from_value::<Row>(of_coco).unwrap(), clip);
    }
}
