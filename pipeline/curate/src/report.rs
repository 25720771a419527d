//! `report.html`: a run at a glance, in one file without scripts or links.

mod survey;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use html_escape::encode_text;
use pixels::Limits;
use rayon::prelude::*;
use shards::Sample;
use shards::atomic::write_atomic;

use crate::counts::Counts;
use crate::error::Result;
use crate::folder::Totals;
use crate::ledger::Ledger;
use crate::reason::Reason;
use crate::recipe::Recipe;
use crate::target::Target;
use survey::{ClaimedSizes, Content, Histogram, NearMiss, Picture, Survey};

/// The file's name in `RUN/curated`.
pub const REPORT: &str = "report.html";

const HOSTS: usize = 12;

const HEAD: &str = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>curate: report</title>\n<style>
:root { color-scheme: light dark; --kept: #2a7f9e; --lost: #c9814a; --line: #8888; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; } td { padding: .1rem .6rem .1rem 0; }
td.n { text-align: right; font-variant-numeric: tabular-nums; width: 7rem; } td.bar { width: 50%; } td.wide { width: 60%; padding-left: 1.5rem; }
.bar div { height: .8rem; min-width: 1px; border-radius: 2px; background: var(--lost); } .kept .bar div { background: var(--kept); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem 2rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: .8rem; }
figure { margin: 0; } figcaption { font-size: .8rem; overflow-wrap: anywhere; } img { display: block; width: 100%; border-radius: 3px; }
svg { width: 100%; } svg text { font-size: 10px; fill: currentColor; } .k { fill: var(--kept); } .l { fill: var(--lost); }
.t { stroke: currentColor; stroke-dasharray: 3 2; } .key { color: var(--kept); } .key2 { color: var(--lost); }
</style>\n";

/// Publishes the report.
///
/// # Errors
/// [`Error::Storage`](crate::error::Error::Storage), also where a shard cannot be read for its thumbnails.
pub fn publish(ledger: &Ledger, recipe: &Recipe, totals: &Totals, target: &Target) -> Result<()> {
    let mut survey = Survey::new(recipe);
    ledger.entries(|_, entry| {
        survey.note(&entry);
        Ok(())
    })?;
    let mut html = String::from(HEAD);
    funnel(&mut html, totals);
    sizes(&mut html, &survey);
    histograms(&mut html, &survey.histograms);
    hosts(&mut html, &survey);
    contents(&mut html, &survey, recipe);
    let thumbnails = thumbnails(survey.sharpest.iter().chain(&survey.blurriest), target)?;
    pictures(&mut html, "The sharpest samples", &survey.sharpest, &thumbnails);
    pictures(&mut html, "The least sharp samples", &survey.blurriest, &thumbnails);
    near_misses(&mut html, &survey.nearest);
    let _ = write!(html, "<h2>The recipe</h2>\n<pre>{}</pre>\n</html>\n", encode_text(&recipe.to_toml()));
    Ok(write_atomic(target.folder().join(REPORT), html.as_bytes())?)
}

fn funnel(html: &mut String, totals: &Totals) {
    let Totals { rows, kept, reasons, .. } = totals;
    let share = |n: u64| 100.0 * n as f64 / (*rows).max(1) as f64;
    let _ = write!(
        html,
        "<h1>{kept} samples of {rows} rows</h1>\n<p>Every row has one fate, the first that applied: \
         {rows} = {kept} kept + {} not kept.</p>\n<h2>What became of the rows</h2>\n<table>\n",
        reasons.total()
    );
    let mut line = |class: &str, name: &str, n: u64| {
        let _ = writeln!(
            html,
            "<tr class=\"{class}\"><td>{name}</td><td class=\"n\">{n}</td><td class=\"n\">{0:.1} %</td>\
             <td class=\"bar\"><div style=\"width:{0:.2}%\"></div></td></tr>",
            share(n)
        );
    };
    let mut left = *rows;
    type Belongs = fn(Reason) -> bool;
    let stages: [(&str, Belongs); 4] = [
        ("left after the tables' own values and captions", Reason::is_of_table),
        ("left after fetching", |r| matches!(r, Reason::Fetch(_))),
        ("left after decoding", |r| matches!(r, Reason::Decode(_))),
        ("kept", |r| matches!(r, Reason::Image(_) | Reason::Duplicate(_) | Reason::Stored(_))),
    ];
    line("kept", "rows", left);
    for (name, belongs) in stages {
        for (reason, n) in reasons.iter().filter(|(reason, _)| belongs(*reason)) {
            line("", &reason.to_string(), n);
            left -= n;
        }
        line("kept", name, left);
    }
    html.push_str("</table>\n");
}

fn sizes(html: &mut String, survey: &Survey) {
    let swapped = survey.sizes.iter().filter(|(_, sizes)| sizes.swapped > 0);
    for (at, (source, ClaimedSizes { images, swapped })) in swapped.enumerate() {
        if at == 0 {
            html.push_str("<h2>Sizes that the tables claim</h2>\n");
        }
        let _ = writeln!(
            html,
            "<p>Source {source}: {swapped} of {images} images that are not square have the width that the table calls their \
             height, and the other way round, as the first LAION releases do.</p>"
        );
    }
}

fn histograms(html: &mut String, histograms: &[Histogram]) {
    html.push_str(
        "<h2>How it is spread</h2>\n<p><span class=\"key\">&#9632;</span> kept <span class=\"key2\">&#9632;</span> \
         downloaded and not kept; dashed: the recipe's threshold.</p>\n<div class=\"grid\">\n",
    );
    for histogram in histograms.iter().filter(|h| !h.bins.is_empty()) {
        html.push_str(&svg(histogram));
    }
    html.push_str("</div>\n");
}

/// Stacked bars, kept below rejected, with the axis' ends and the thresholds named.
fn svg(histogram: &Histogram) -> String {
    const WIDTH: f64 = 300.0;
    const HEIGHT: f64 = 90.0;
    let Histogram { quantity, thresholds, bins } = histogram;
    let positions = thresholds.iter().map(|&t| quantity.position(t));
    let first = bins.keys().map(|&b| f64::from(b)).chain(positions.clone()).fold(f64::INFINITY, f64::min).floor();
    let last = bins.keys().map(|&b| f64::from(b + 1)).chain(positions).fold(f64::NEG_INFINITY, f64::max).ceil();
    let x = |position: f64| WIDTH * (position - first) / (last - first).max(1.0);
    let most = bins.values().map(|(kept, lost)| kept + lost).max().unwrap_or(1).max(1) as f64;
    let mut svg = format!("<figure><svg viewBox=\"0 -12 {WIDTH} {}\" role=\"img\">", HEIGHT + 26.0);
    for (&bin, &(kept, lost)) in bins {
        let (left, width) = (x(bin.into()), (x(f64::from(bin) + 1.0) - x(bin.into()) - 0.5).max(0.5));
        let (kept, lost) = (HEIGHT * kept as f64 / most, HEIGHT * lost as f64 / most);
        for (class, top, height) in [("k", HEIGHT - kept, kept), ("l", HEIGHT - kept - lost, lost)] {
            if height > 0.0 {
                let _ = write!(
                    svg,
                    "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
                );
            }
        }
    }
    for &threshold in thresholds {
        let at = x(quantity.position(threshold));
        let _ = write!(
            svg,
            "<line class=\"t\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{HEIGHT}\"/>\
             <text x=\"{0:.1}\" y=\"-3\" text-anchor=\"middle\">{threshold}</text>",
            at.clamp(12.0, WIDTH - 12.0)
        );
    }
    let (low, high) = (number(quantity.value(first)), number(quantity.value(last)));
    let _ = writeln!(
        svg,
        "<text x=\"0\" y=\"{0}\">{low}</text><text x=\"{WIDTH}\" y=\"{0}\" text-anchor=\"end\">{high}</text></svg>\
         <figcaption>{1}</figcaption></figure>",
        HEIGHT + 12.0,
        quantity.title()
    );
    svg
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn hosts(html: &mut String, survey: &Survey) {
    let hosts = survey.failures_by_host.largest(HOSTS, Counts::total);
    if hosts.is_empty() {
        return;
    }
    let _ = writeln!(html, "<h2>Hosts with most failures</h2>\n<table>");
    for (host, failures) in hosts {
        let mut classes: Vec<_> = failures.iter().collect();
        classes.sort_by_key(|&(reason, rows)| (Reverse(rows), reason));
        let classes: Vec<String> = classes.iter().map(|(reason, rows)| format!("{rows} {}", reason.name())).collect();
        let host = if host.is_empty() { "(no host)" } else { host };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"wide\">{}</td></tr>",
            encode_text(host),
            failures.total(),
            classes.join(", ")
        );
    }
    html.push_str("</table>\n");
}

fn near_misses(html: &mut String, nearest: &[NearMiss]) {
    if nearest.is_empty() {
        return;
    }
    html.push_str("<h2>The best of what was not sharp enough</h2>\n<div class=\"pictures\">\n");
    for NearMiss { key, caption, detail, thumbnail, .. } in nearest {
        let _ = writeln!(
            html,
            "<figure><img alt=\"\" src=\"data:image/jpeg;base64,{thumbnail}\">\
             <figcaption>{} &middot; {key} &middot; {}</figcaption></figure>",
            encode_text(detail),
            encode_text(caption),
        );
    }
    html.push_str("</div>\n");
}

fn contents(html: &mut String, survey: &Survey, recipe: &Recipe) {
    let repeated = survey.repeated_contents();
    if repeated.is_empty() {
        return;
    }
    let rule = recipe.duplicates.placeholder_urls.map_or_else(
        || {
            "Many rows with one content may be a placeholder for images that are gone: see duplicates.placeholder_urls."
                .to_owned()
        },
        |urls| format!("A content that {urls} URLs bring is a placeholder, and none of its rows is kept."),
    );
    let _ = writeln!(html, "<h2>Contents that came several times</h2>\n<p>{rule}</p>\n<table>");
    for Content { sha256, rows, kept, bytes, size, first } in repeated {
        let _ = writeln!(
            html,
            "<tr><td>{rows} rows, {kept} kept</td><td>{} x {}, {bytes} bytes</td><td>first {first}</td><td>{:.12}&hellip;</td></tr>",
            size.width,
            size.height,
            sha256.to_string(),
        );
    }
    html.push_str("</table>\n");
}

fn pictures(html: &mut String, title: &str, pictures: &[Picture], thumbnails: &Thumbnails) {
    if pictures.is_empty() {
        return;
    }
    let _ = writeln!(html, "<h2>{title}</h2>\n<div class=\"pictures\">");
    for picture in pictures {
        let _ = writeln!(
            html,
            "<figure><img alt=\"\" src=\"data:image/jpeg;base64,{}\"><figcaption>{:.1} &middot; {} &middot; {}</figcaption></figure>",
            STANDARD.encode(&thumbnails[&(picture.shard, picture.offset)]),
            picture.sharpness,
            picture.key,
            encode_text(&picture.caption),
        );
    }
    html.push_str("</div>\n");
}

/// Small JPEGs by the shard of their samples and where these begin in it.
type Thumbnails = BTreeMap<(u64, u64), Vec<u8>>;

/// The thumbnails of some samples. Each shard is opened, or fetched, once.
fn thumbnails<'a>(pictures: impl Iterator<Item = &'a Picture>, target: &Target) -> Result<Thumbnails> {
    let mut by_shard: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for Picture { shard, offset, .. } in pictures {
        by_shard.entry(*shard).or_default().insert(*offset);
    }
    let of_shard = |(shard, offsets): (u64, BTreeSet<u64>)| {
        let samples = target.samples(&format!("{shard:06}.tar"), offsets.iter().copied())?;
        let thumbnails = offsets.iter().zip(samples).par_bridge();
        thumbnails.map(|(&offset, sample)| Ok(((shard, offset), thumbnail(sample?.as_ref())))).collect()
    };
    let thumbnails: Vec<Thumbnails> = by_shard.into_par_iter().map(of_shard).collect::<Result<_>>()?;
    Ok(thumbnails.into_iter().flatten().collect())
}

/// The middle of a sample as a small JPEG; empty where it does not decode, which its shard's check would tell.
fn thumbnail(sample: Option<&Sample>) -> Vec<u8> {
    let image = sample.iter().flat_map(|s| &s.parts).find(|part| !matches!(part.ext.as_str(), "json" | "txt"));
    // Whatever was kept once was within the recipe's limits.
    let limits = Limits { max_bytes: usize::MAX, max_pixels: u64::MAX, max_side: u32::MAX };
    let decoded = image.and_then(|part| pixels::decode_picture(&part.bytes, &limits).ok());
    decoded.map_or_else(Vec::new, |picture| picture.thumbnail())
}
