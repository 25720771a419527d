//! `report.html`: decoded latents beside the images they were made from.

use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shards::index::SHARDS;
use shards::{Sample, ShardReader};

use crate::cache::{LatentIndex, LatentSample};
use crate::encoder::Encoder;
use crate::manifest::ModelManifest;
use crate::prepare::{framed, image_bytes};
use crate::{Error, Result};

const REPORT: &str = "report.html";
/// Samples shown, evenly spread over all.
const SHOWN: u64 = 8;
const JPEG_QUALITY: u8 = 90;

/// One row of the report.
struct Row {
    key: String,
    caption: String,
    source: pixels::Image,
    decoded: pixels::Image,
    psnr: f64,
}

/// Publishes the report of a finished cache.
pub fn publish(
    curated: &Path,
    latents: &Path,
    index: &LatentIndex,
    manifest: &ModelManifest,
    encoder: &Encoder,
) -> Result<()> {
    let count = index.count();
    let shown = SHOWN.min(count);
    let mut rows = Vec::new();
    for nth in 0..shown {
        let (shard, place) = locate(index, nth * count / shown);
        rows.push(row(curated, latents, shard, place, manifest, encoder)?);
    }
    shards::atomic::write_atomic(latents.join(REPORT), html(index, &rows).as_bytes())?;
    Ok(())
}

/// The shard of the `nth` sample of all, and its place there.
fn locate(index: &LatentIndex, mut nth: u64) -> (&str, usize) {
    for shard in &index.shards {
        if nth < shard.count {
            return (&shard.name, nth as usize);
        }
        nth -= shard.count;
    }
    unreachable!("there are more than {nth} samples")
}

fn row(
    curated: &Path,
    latents: &Path,
    shard: &str,
    place: usize,
    manifest: &ModelManifest,
    encoder: &Encoder,
) -> Result<Row> {
    let gone = |folder: &Path| Error::invalid(folder.join(SHARDS).join(shard), "changed while it was being encoded");
    let sample = find(latents, shard, |at, _| at == place)?.ok_or_else(|| gone(latents))?;
    let encoded = LatentSample::from_sample(&sample)?;
    let image = find(curated, shard, |_, sample| sample.key == encoded.key)?.ok_or_else(|| gone(curated))?;
    let bytes = image_bytes(&image).ok_or_else(|| gone(curated))?;
    let source = framed(bytes, &encoded.key, manifest).map_err(|_| gone(curated))?.image;
    let decoded = encoder.decode(&encoded.latent);
    let psnr = psnr(source.rgb(), decoded.rgb());
    Ok(Row { key: encoded.key, caption: encoded.conditioning.caption, source, decoded, psnr })
}

fn find(folder: &Path, shard: &str, wanted: impl Fn(usize, &Sample) -> bool) -> Result<Option<Sample>> {
    for (at, sample) in ShardReader::open(folder.join(SHARDS).join(shard))?.enumerate() {
        let sample = sample?;
        if wanted(at, &sample) {
            return Ok(Some(sample));
        }
    }
    Ok(None)
}

/// Peak signal-to-noise ratio in dB: `10 log10(255^2 / mean squared error)`.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let squares: u64 = a.iter().zip(b).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares as f64).log10()
}

fn html(index: &LatentIndex, rows: &[Row]) -> String {
    let totals = &index.totals;
    let mut page = String::from(
        "<!doctype html><meta charset=\"utf-8\"><title>Latents</title>\n\
         <style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}\
         img{max-width:100%;height:auto}table{border-collapse:collapse}td,th{padding:.4rem .8rem;text-align:left;\
         vertical-align:top}tr{border-bottom:1px solid #ddd}code{font-size:.9em}</style>\n<h1>Latents</h1>\n",
    );
    let _ = writeln!(
        page,
        "<p>{} samples in {} shards, {} refused, {} captions truncated.</p>",
        totals.encoded,
        index.shards.len(),
        totals.refused.len(),
        totals.truncated_captions
    );
    page.push_str("<table><tr><th>source<th>decoded from its latent<th>PSNR<th>caption\n");
    for row in rows {
        let _ = writeln!(
            page,
            "<tr><td>{}<td>{}<td>{:.2} dB<td>{}<br><code>{}</code>",
            image(&row.source),
            image(&row.decoded),
            row.psnr,
            escape(&row.caption),
            escape(&row.key)
        );
    }
    page.push_str("</table>\n");
    if !totals.refused.is_empty() {
        page.push_str("<h2>Refused</h2>\n<table><tr><th>sample<th>reason\n");
        for refusal in &totals.refused {
            let _ = writeln!(page, "<tr><td><code>{}</code><td>{}", escape(&refusal.key), escape(&refusal.detail));
        }
        page.push_str("</table>\n");
    }
    page.push_str("<h2>Made from</h2>\n<table><tr><th>part<th>SHA-256\n");
    for (name, hash) in index.fingerprint.parts() {
        let _ = writeln!(page, "<tr><td>{}<td><code>{hash}</code>", escape(name));
    }
    page.push_str("</table>\n");
    page
}

fn image(image: &pixels::Image) -> String {
    format!("<img src=\"data:image/jpeg;base64,{}\">", STANDARD.encode(pixels::encode_jpeg(image, JPEG_QUALITY)))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_follows_its_definition() {
        assert_eq!(psnr(&[7; 12], &[7; 12]), f64::INFINITY);
        assert!((psnr(&[0; 4], &[255; 4])).abs() < 1e-12);
        assert!((psnr(&[10; 4], &[11; 4]) - 48.130_803_608_679_1).abs() < 1e-9);
    }

    #[test]
    fn captions_cannot_become_markup() {
        assert_eq!(escape("<b>\"a\" & b</b>"), "&lt;b&gt;&quot;a&quot; &amp; b&lt;/b&gt;");
    }
}
