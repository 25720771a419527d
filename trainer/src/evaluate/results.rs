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
    /// The same over the texture of the central quarter.
    pub frechet_patch: f64,
    /// The share of captions of which everything is found in the picture.
    pub caption_accuracy: f64,
    /// The share of colours, shapes and backgrounds asked for that are found.
    pub attribute_accuracy: f64,
    /// Variance of the Laplacian of luma, in squared grey levels, mean over pictures.
    pub sharpness: f64,
    /// Root mean square distance in grey levels to the teacher's picture from the same noise, mean over pictures.
    pub teacher_distance: f64,
    /// Pictures measured.
    pub n_images: u64,
    /// Where the noise came from.
    pub seed: u64,
}

/// A measure: its column's title, its number in a row, and the digits behind the point that mean something.
type Measure = (&'static str, fn(&Row) -> f64, usize);

/// Columns of the tables and bars of the charts.
pub(super) const MEASURES: [Measure; 6] = [
    ("Fréchet whole", |row| row.frechet_whole, 2),
    ("Fréchet patch", |row| row.frechet_patch, 3),
    ("captions right", |row| row.caption_accuracy, 3),
    ("attributes right", |row| row.attribute_accuracy, 3),
    ("sharpness", |row| row.sharpness, 0),
    ("distance to teacher", |row| row.teacher_distance, 1),
];

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

/// One measure of one contender, `12.34 ± 0.56` over several seeds.
pub(super) fn cell(rows: &[Row], measure: fn(&Row) -> f64, digits: usize) -> String {
    let values: Vec<f64> = rows.iter().map(measure).collect();
    match mean_and_spread(&values) {
        (mean, None) => format!("{mean:.digits$}"),
        (mean, Some(spread)) => format!("{mean:.digits$} ± {spread:.digits$}"),
    }
}

/// One line for each contender and seed.
pub fn csv(rows: &[Row]) -> String {
    let mut text = "model,kind,method,steps,guidance_scale,frechet_whole,frechet_patch,caption_accuracy,\
                    attribute_accuracy,sharpness,teacher_distance,n_images,seed\n"
        .to_owned();
    for row in rows {
        let kind = kind_word(row.kind);
        let Row { model, method, steps, guidance_scale, n_images, seed, .. } = row;
        let _ = write!(text, "{model},{kind},{method},{steps},{guidance_scale}");
        for (_, measure, _) in MEASURES {
            let _ = write!(text, ",{}", measure(row));
        }
        let _ = writeln!(text, ",{n_images},{seed}");
    }
    text
}

/// One line for each contender, means over seeds.
pub fn markdown(rows: &[Row]) -> String {
    let titles: Vec<&str> = MEASURES.iter().map(|(title, ..)| *title).collect();
    let mut text = format!("| model | kind | method | steps | guidance | {} |\n", titles.join(" | "));
    text += &format!("|{}\n", "---|".repeat(5 + titles.len()));
    for rows in by_model(rows) {
        let Row { model, kind, method, steps, guidance_scale, .. } = &rows[0];
        let _ = write!(text, "| {model} | {} | {method} | {steps} | {guidance_scale} |", kind_word(*kind));
        for (_, measure, digits) in MEASURES {
            let _ = write!(text, " {} |", cell(rows, measure, digits));
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
            caption_accuracy: 0.9,
            attribute_accuracy: 0.95,
            sharpness: 812.4,
            teacher_distance: 9.26,
            n_images: 96,
            seed,
        }
    }

    #[test]
    fn seeds_become_one_line_with_their_spread() {
        let rows = [row("8to4", 0, 1.0), row("8to4", 1, 3.0), row("2to1", 0, 5.0)];
        let table = markdown(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(
            lines[2],
            "| 8to4 | full | lightning | 4 | 0 | 2.00 ± 1.41 | 0.500 ± 0.000 | 0.900 ± 0.000 | 0.950 ± 0.000 | 812 ± 0 | 9.3 ± 0.0 |"
        );
        assert_eq!(lines[3], "| 2to1 | full | lightning | 4 | 0 | 5.00 | 0.500 | 0.900 | 0.950 | 812 | 9.3 |");
    }

    #[test]
    fn csv_has_a_line_for_each_seed_and_as_many_fields_as_titles() {
        let text = csv(&[row("8to4", 0, 1.0), row("8to4", 1, 3.0)]);
        let fields: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(fields, [13, 13, 13]);
        assert!(text.lines().nth(2).unwrap().ends_with(",96,1"));
    }
}
