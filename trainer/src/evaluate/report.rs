//! `report.html`: the table, bar charts and grids, in one page without scripts.

use std::fmt::Write as _;

use super::contender::Contender;
use super::results::{Measure, Row, by_model, measures};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}\
h1,h2,h3{font-weight:600}table{border-collapse:collapse}td,th{padding:.15rem .9rem .15rem 0;text-align:left}\
img{max-width:100%}figure{margin:.8rem 0}figcaption{color:#555}.charts{display:flex;flex-wrap:wrap;gap:1.5rem}\
svg text{font:12px system-ui,sans-serif;fill:#222}";

/// Pixels of a chart.
const LABEL: f64 = 120.0;
const BAR: f64 = 200.0;
const NUMBER: f64 = 190.0;
const LINE: f64 = 20.0;

/// The page. `captions` are those of the grids' columns; `grid` names a contender's picture.
pub(super) fn page(
    rows: &[Row],
    contenders: &[Contender],
    captions: &[String],
    grid: impl Fn(&Contender) -> String,
) -> String {
    let mut html =
        format!("<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{STYLE}</style>");
    let images = rows.first().map_or(0, |row| row.n_images);
    let _ = write!(
        html,
        "<h1>Evaluation</h1><p>{images} captions, the same noise for all; means over seeds, and multiples of the teacher's \
         number in brackets. Numbers compare models measured together and nothing else.</p>",
    );
    html += "<table><tr><th>model<th>method<th>steps";
    for measure in measures(rows) {
        let _ = write!(html, "<th>{}", measure.title);
    }
    html += "</tr>";
    let models = by_model(rows);
    for of_model in &models {
        let Row { model, method, steps, .. } = &of_model[0];
        let _ = write!(html, "<tr><td>{}<td>{}<td>{steps}", escape(model), escape(method));
        for measure in measures(rows) {
            let _ = write!(html, "<td>{}", measure.cell(of_model, models[0]));
        }
        html += "</tr>";
    }
    html += "</table><div class=charts>";
    for measure in measures(rows) {
        html += &chart(&models, measure);
    }
    html += "</div><h2>Pictures</h2><ol>";
    for caption in captions {
        let _ = write!(html, "<li>{}</li>", escape(caption));
    }
    html += "</ol>";
    for contender in contenders {
        let name = escape(&contender.name);
        let _ = write!(
            html,
            "<figure><img src=\"{}\" alt=\"pictures by {name}\"><figcaption>{name}: {} steps, guidance {}</figcaption></figure>",
            escape(&grid(contender)),
            contender.sampling.steps,
            contender.sampling.guidance_scale,
        );
    }
    html += "</html>\n";
    html
}

/// A bar is cut at so many times the median: one model that is far off is not to hide how the others differ.
const CUT: f64 = 3.0;

/// The number that a bar of full length stands for.
fn longest(means: &[f64]) -> f64 {
    let mut sorted = means.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[(sorted.len() - 1) / 2];
    let whole = sorted.iter().copied().filter(|&mean| mean <= CUT * median);
    whole.fold(f64::MIN_POSITIVE, f64::max)
}

/// A bar for each contender; one that is cut ends in an arrow.
fn chart(models: &[&[Row]], measure: &Measure) -> String {
    let title = measure.title;
    let means: Vec<f64> = models.iter().map(|rows| measure.mean(rows).0).collect();
    let longest = longest(&means);
    let (width, height) = (LABEL + BAR + NUMBER, LINE * models.len() as f64);
    let mut svg =
        format!("<figure><h3>{title}</h3><svg width={width} height={height} role=img aria-label=\"{title}\">");
    for (at, (rows, mean)) in models.iter().zip(&means).enumerate() {
        let (top, middle) = (LINE * at as f64, LINE * (at as f64 + 0.7));
        let length = BAR * (mean / longest).clamp(0.0, 1.0);
        let arrow = if *mean > longest { "\u{25b8} " } else { "" };
        let fill = if rows[0].method == "base" { "#9aa5b1" } else { "#3b6ea5" };
        let _ = write!(
            svg,
            "<text x=0 y={middle}>{}</text><rect x={LABEL} y={} width={length:.1} height={} fill=\"{fill}\"/>\
             <text x={:.1} y={middle}>{arrow}{}</text>",
            escape(&rows[0].model),
            top + 3.0,
            LINE - 6.0,
            LABEL + length + 5.0,
            measure.cell(rows, models[0]),
        );
    }
    svg + "</svg></figure>"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_far_off_leaves_the_others_their_bars() {
        assert_eq!(longest(&[1.0, 1.2, 0.9, 140.0, 2.9]), 2.9);
        assert_eq!(longest(&[0.97, 0.98, 0.0]), 0.98);
        assert!(longest(&[0.0, 0.0]) > 0.0);
    }
}
