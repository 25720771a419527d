//! `report.html` of a stage: the curves, the grids and the recipe, in one page without scripts.

use std::fmt::Write as _;
use std::path::Path;

use super::metrics::{self, Metrics};
use super::paths::StagePaths;
use crate::Result;
use crate::recipe::Stage;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}\
h1,h2{font-weight:600}figure{display:inline-block;margin:.5rem 1rem .5rem 0;vertical-align:top}\
figcaption{color:#555}svg{background:#fafafa;border:1px solid #ddd}img{max-width:100%;image-rendering:auto}\
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left}pre{background:#fafafa;padding:1rem;overflow:auto}";

/// Writes the page from what was recorded.
pub(super) fn write(stage: &Stage, captions: &[String], paths: &StagePaths) -> Result<()> {
    let recorded = metrics::read(&paths.metrics())?;
    let page = page(stage, captions, &recorded, &pictures(&paths.samples())?);
    Ok(shards::atomic::write_atomic(paths.report(), page.as_bytes())?)
}

fn pictures(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).map_err(crate::Error::io("read the folder", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(crate::Error::io("read the folder", folder))?.file_name();
        names.extend(name.to_str().filter(|name| name.ends_with(".png")).map(str::to_string));
    }
    names.sort();
    Ok(names)
}

fn page(stage: &Stage, captions: &[String], recorded: &[Metrics], pictures: &[String]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{STYLE}</style>\
         <h1>Stage {name}: {} steps to {}</h1>",
        stage.teacher.steps,
        stage.student_steps,
        name = escape(&stage.name),
    );
    let speed = recorded.iter().map(|m| m.images_per_second).sum::<f64>() / recorded.len().max(1) as f64;
    let wait = recorded.iter().map(|m| m.data_wait).sum::<f64>() / recorded.len().max(1) as f64;
    let skipped = recorded.iter().filter(|m| m.student_gradient_norm.is_none()).count();
    let _ = write!(
        html,
        "<p>{} of {} iterations of batch {}; {speed:.2} images a second, {:.2} % of the time waiting for data; \
         {skipped} updates skipped.</p><table><tr><th>phase<th>iterations<th>learning rate</tr>",
        recorded.len(),
        stage.iterations(),
        stage.batch_size,
        100.0 * wait,
    );
    for phase in &stage.phases {
        let _ =
            write!(html, "<tr><td>{}<td>{}<td>{:e}</tr>", escape(&phase.name), phase.iterations, phase.learning_rate);
    }
    html += "</table><h2>Curves</h2>";
    let series = |value: fn(&Metrics) -> Option<f64>| -> Vec<(f64, f64)> {
        recorded.iter().filter_map(|m| Some((m.iteration as f64, value(m)?))).collect()
    };
    html += &chart("student loss", &[("loss", series(|m| Some(m.student_loss)))]);
    html += &chart("student gradient norm", &[("norm", series(|m| m.student_gradient_norm))]);
    html += &chart("discriminator loss", &[("loss", series(|m| m.discriminator.as_ref().map(|d| d.loss)))]);
    html += &chart(
        "mean logits",
        &[
            ("teacher's points", series(|m| m.discriminator.as_ref().map(|d| d.real_mean))),
            ("student's points", series(|m| m.discriminator.as_ref().map(|d| d.fake_mean))),
        ],
    );
    html += "<h2>Samples</h2><p>Above the teacher, below the student, from the same noise:</p><ol>";
    for caption in captions {
        let _ = write!(html, "<li>{}</li>", escape(caption));
    }
    html += "</ol>";
    for picture in pictures {
        let name = escape(picture);
        let _ = write!(html, "<figure><img src=\"samples/{name}\" alt=\"\"><figcaption>{name}</figcaption></figure>");
    }
    let recipe = serde_json::to_string_pretty(stage).expect("a recipe has a JSON form");
    let _ = write!(html, "<h2>Recipe</h2><pre>{}</pre></html>", escape(&recipe));
    html
}

/// Lines over iterations; nothing where there are no values.
fn chart(title: &str, lines: &[(&str, Vec<(f64, f64)>)]) -> String {
    const WIDTH: f64 = 440.0;
    const HEIGHT: f64 = 180.0;
    const MARGIN: f64 = 12.0;
    const COLOURS: [&str; 2] = ["#1f6fb4", "#c4532c"];
    let finite: Vec<(f64, f64)> =
        lines.iter().flat_map(|(_, points)| points.iter().copied()).filter(|p| p.1.is_finite()).collect();
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    if finite.is_empty() {
        return String::new();
    }
    let (left, right) = bounds(&mut finite.iter().map(|p| p.0));
    let (low, high) = bounds(&mut finite.iter().map(|p| p.1));
    let scale = |value: f64, from: f64, to: f64, length: f64| {
        MARGIN + (value - from) / (to - from).max(f64::MIN_POSITIVE) * (length - 2.0 * MARGIN)
    };
    let mut svg = format!("<figure><svg width={WIDTH} height={HEIGHT} role=img aria-label=\"{}\">", escape(title));
    for ((_, points), colour) in lines.iter().zip(COLOURS) {
        let path: Vec<String> = points
            .iter()
            .filter(|p| p.1.is_finite())
            .map(|(x, y)| format!("{:.1},{:.1}", scale(*x, left, right, WIDTH), HEIGHT - scale(*y, low, high, HEIGHT)))
            .collect();
        let _ = write!(svg, "<polyline fill=none stroke=\"{colour}\" points=\"{}\"/>", path.join(" "));
    }
    let names: Vec<String> = lines
        .iter()
        .zip(COLOURS)
        .map(|((name, _), colour)| format!("<span style=\"color:{colour}\">{}</span>", escape(name)))
        .collect();
    let _ = write!(
        svg,
        "</svg><figcaption>{}: {} ({low:.4} to {high:.4})</figcaption></figure>",
        escape(title),
        names.join(", ")
    );
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
