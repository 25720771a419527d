//! The ledger as a table: `samples.parquet`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use pixels::{PerceptualHash, Sharpness};
use polars::prelude::{Column, DataFrame, NamedFrom, ParquetReader, ParquetWriter, PolarsResult, SerReader, Series};
use shards::Error as StorageError;
use shards::atomic::AtomicFile;

use crate::error::{Error, Result};
use crate::folder::Totals;
use crate::ledger::{Entry, Ledger};
use crate::record::{Answer, Measured, PixelMeasures, Rejection, Verdict};
use crate::score::Score;

/// The file's name in `RUN/curated`.
pub const SAMPLES: &str = "samples.parquet";

const ROW_GROUP: usize = 1 << 14;

/// Publishes every row of the ledger, in order.
///
/// # Errors
/// [`Error::Storage`].
pub fn publish(ledger: &Ledger, path: &Path) -> Result<()> {
    let mut file = BufWriter::new(AtomicFile::create(path)?);
    let failed = |e: polars::prelude::PolarsError| Error::inconsistent(path, e);
    {
        let schema = frame(&[]).map_err(failed)?.schema().clone();
        let mut writer = ParquetWriter::new(&mut file).batched(&schema).map_err(failed)?;
        let mut batch = Vec::with_capacity(ROW_GROUP);
        ledger.entries(|_, entry| {
            batch.push(entry);
            if batch.len() == ROW_GROUP {
                writer.write_batch(&frame(&batch).map_err(failed)?).map_err(failed)?;
                batch.clear();
            }
            Ok(())
        })?;
        if !batch.is_empty() {
            writer.write_batch(&frame(&batch).map_err(failed)?).map_err(failed)?;
        }
        writer.finish().map_err(failed)?;
    }
    file.flush().map_err(StorageError::io("write", path))?;
    let file = file.into_inner().map_err(|e| StorageError::io("write", path)(e.into_error()))?;
    Ok(file.commit()?)
}

/// One row group.
fn frame(entries: &[Entry]) -> PolarsResult<DataFrame> {
    let text = |name: &str, value: &dyn Fn(&Entry) -> Option<String>| -> Column {
        Series::new(name.into(), entries.iter().map(value).collect::<Vec<_>>()).into()
    };
    let whole = |name: &str, value: &dyn Fn(&Entry) -> Option<u64>| -> Column {
        Series::new(name.into(), entries.iter().map(value).collect::<Vec<_>>()).into()
    };
    let real = |name: &str, value: &dyn Fn(&Entry) -> Option<f64>| -> Column {
        Series::new(name.into(), entries.iter().map(value).collect::<Vec<_>>()).into()
    };
    let mut columns = vec![
        text("key", &|e| Some(e.record.candidate.key.to_string())),
        whole("source", &|e| Some(e.record.candidate.key.source.into())),
        whole("row", &|e| Some(e.record.candidate.key.row)),
        text("url", &|e| Some(e.record.candidate.url.clone())),
        text("status", &|e| Some(if rejection(e).is_none() { "kept" } else { "rejected" }.to_owned())),
        text("reason", &|e| Some(rejection(e)?.reason.to_string())),
        text("detail", &|e| Some(rejection(e)?.detail.clone()).filter(|d| !d.is_empty())),
        text("shard", &|e| Some(format!("{:06}.tar", place(e)?.0))),
        whole("place", &|e| Some(place(e)?.1)),
        text("caption", &|e| Some(e.record.candidate.caption.text.clone())),
        text("caption_original", &|e| Some(e.record.candidate.caption_original.clone())),
        whole("claimed_width", &|e| Some(e.record.candidate.claimed?.width.into())),
        whole("claimed_height", &|e| Some(e.record.candidate.claimed?.height.into())),
        whole("width", &|e| Some(measured(e)?.size.width.into())),
        whole("height", &|e| Some(measured(e)?.size.height.into())),
        text("format", &|e| Some(measured(e)?.format.extension().to_owned())),
        whole("orientation", &|e| Some(measured(e)?.orientation.into())),
        whole("bytes", &|e| Some(measured(e)?.bytes)),
        text("sha256", &|e| Some(measured(e)?.sha256.to_string())),
        text("perceptual_hash", &|e| Some(PerceptualHash(pixels(e)?.perceptual_hash).to_string())),
        real("sharpness_whole", &|e| Some(sharpness(e)?.whole)),
        real("sharpness_tile", &|e| Some(sharpness(e)?.tile)),
        real("sharpness_detail", &|e| Some(sharpness(e)?.detail)),
    ];
    columns.extend(Score::ALL.map(|score| real(score.name(), &|e| e.record.candidate.scores.get(&score).copied())));
    DataFrame::new(entries.len(), columns)
}

fn rejection(entry: &Entry) -> Option<&Rejection> {
    match &entry.verdict {
        Verdict::Rejected(rejection) => Some(rejection),
        Verdict::Kept { .. } => None,
    }
}

fn place(entry: &Entry) -> Option<(u64, u64)> {
    match entry.verdict {
        Verdict::Kept { shard, place, .. } => Some((shard, place)),
        Verdict::Rejected(_) => None,
    }
}

fn measured(entry: &Entry) -> Option<&Measured> {
    match &entry.record.answer {
        Answer::Image(measured) => Some(measured),
        Answer::None(_) => None,
    }
}

fn pixels(entry: &Entry) -> Option<PixelMeasures> {
    measured(entry)?.pixels
}

fn sharpness(entry: &Entry) -> Option<Sharpness> {
    Some(pixels(entry)?.sharpness)
}

/// Holds the table's rows against the totals.
///
/// # Errors
/// [`Error::Table`] where it cannot be read; [`Error::Inconsistent`] where it tells something else.
pub fn verify(path: &Path, totals: &Totals) -> Result<()> {
    let failed = |e: polars::prelude::PolarsError| Error::table(path, e);
    let file = File::open(path).map_err(StorageError::io("open", path))?;
    let table = ParquetReader::new(file).with_columns(Some(vec!["reason".into()])).finish().map_err(failed)?;
    let reasons = table.column("reason").and_then(|c| c.str()).map_err(failed)?;
    let kept = reasons.null_count() as u64;
    let unasked: u64 = totals.reasons.iter().filter(|(reason, _)| reason.is_of_table()).map(|(_, rows)| rows).sum();
    if kept != totals.kept || table.height() as u64 + unasked != totals.rows {
        return Err(Error::inconsistent(path, "its rows are not those that the index counts"));
    }
    Ok(())
}
