//! One stretch of rows through the filter: numbers of all of them, then text of those that are left.

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};

use polars::prelude::{DataType, Series, StringChunked};

use super::{Batch, Unusable};
use crate::caption;
use crate::chunks::{ColumnChunks, GroupReader};
use crate::counts::Counts;
use crate::error::{Error, Result};
use crate::reason::{Filter, Reason};
use crate::recipe::{CaptionRules, RowFilter};
use crate::row::{Candidate, RowId, Size};
use crate::score::Score;
use crate::table::Field;
use crate::tables::{OpenSource, Table};

/// Most candidates in a batch.
const BATCH: usize = 1 << 15;

/// Rows of one row group on their way through the filter.
pub(super) struct Stretch<'a, 'r> {
    source: u16,
    filter: &'a RowFilter,
    captions: &'a CaptionRules,
    table: &'a Table,
    reader: &'r mut GroupReader<'a>,
    /// Of the row group.
    rows: Range<usize>,
    /// Row of the source at which they begin.
    first_row: u64,
    /// Number columns read so far, with NaN for null.
    numbers: HashMap<&'a str, Vec<f64>>,
    unusable: BTreeMap<(u16, String), Unusable>,
    /// For each row 0 while it passes, else 1 + the index of its reason.
    fates: Vec<u8>,
    reasons: Vec<Reason>,
}

impl<'a, 'r> Stretch<'a, 'r> {
    /// These rows of the row group that `reader` reads, the first of which is `first_row` of the source.
    pub(super) fn new(
        source: &'a OpenSource,
        table: &'a Table,
        captions: &'a CaptionRules,
        reader: &'r mut GroupReader<'a>,
        rows: Range<usize>,
        first_row: u64,
    ) -> Self {
        Self {
            source: source.index,
            filter: &source.filter,
            captions,
            table,
            reader,
            first_row,
            numbers: HashMap::new(),
            unusable: BTreeMap::new(),
            fates: vec![0; rows.len()],
            reasons: Vec::new(),
            rows,
        }
    }

    /// Hands out the candidates, and with the last of them what became of the other rows.
    pub(super) fn filter(mut self, emit: &mut impl FnMut(Batch) -> ControlFlow<()>) -> Result<ControlFlow<()>> {
        self.filter_by_numbers()?;
        if self.fates.contains(&0) && self.filter_by_text(emit)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let mut rows_by_fate = [0; 256];
        self.fates.iter().for_each(|&fate| rows_by_fate[usize::from(fate)] += 1);
        let mut rejected = Counts::default();
        for (at, reason) in self.reasons.iter().enumerate() {
            rejected.add(*reason, rows_by_fate[at + 1]);
        }
        Ok(emit(Batch { rows: self.rows.len() as u64, rejected, unusable: self.unusable, candidates: Vec::new() }))
    }

    fn filter_by_numbers(&mut self) -> Result<()> {
        let RowFilter { min_side, max_aspect_ratio, scores, .. } = self.filter;
        let columns = &self.table.columns;
        let sizes = (*min_side > 0 || max_aspect_ratio.is_finite())
            .then(|| columns.get(Field::Width).zip(columns.get(Field::Height)))
            .flatten();
        let by_score: Vec<_> =
            scores.iter().filter_map(|t| columns.get(Field::Score(t.score)).map(|column| (t, column))).collect();
        let wanted = sizes.into_iter().flat_map(|(w, h)| [w, h]).chain(by_score.iter().map(|(_, column)| *column));
        self.read_numbers(wanted.collect())?;

        if let Some((width, height)) = sizes {
            let missing = self.code(Reason::Filter(Filter::SizeMissing));
            let small = self.code(Reason::Filter(Filter::TooSmall));
            let narrow = self.code(Reason::Filter(Filter::AspectRatio));
            let least = f64::from(*min_side);
            let sides = self.numbers[width].iter().zip(&self.numbers[height]);
            for (fate, (&width, &height)) in self.fates.iter_mut().zip(sides) {
                let (short, long) = (width.min(height), width.max(height));
                // `min` and `max` pass over NaN: both have to be looked at.
                *fate = if !(width >= 1.0 && height >= 1.0 && long.is_finite()) {
                    missing
                } else if short < least {
                    small
                } else if long > *max_aspect_ratio * short {
                    narrow
                } else {
                    0
                };
            }
        }
        for (threshold, column) in by_score {
            let missing = self.code(Reason::Filter(Filter::ScoreMissing(threshold.score)));
            let failed = self.code(Reason::Filter(Filter::Score(threshold.score)));
            for (fate, &value) in self.fates.iter_mut().zip(&self.numbers[column]) {
                if *fate == 0 && !threshold.bound.admits(value) {
                    *fate = if value.is_finite() { failed } else { missing };
                }
            }
        }
        Ok(())
    }

    /// Looks at the text of the rows that still pass, and makes candidates of those that stay.
    fn filter_by_text(&mut self, emit: &mut impl FnMut(Batch) -> ControlFlow<()>) -> Result<ControlFlow<()>> {
        let columns = &self.table.columns;
        let url = columns.require(Field::Url).map_err(|e| self.wrong(e))?;
        let caption = columns.require(Field::Caption).map_err(|e| self.wrong(e))?;
        let nsfw = columns.get(Field::Nsfw).filter(|_| !self.filter.nsfw.is_empty());
        let language = columns.get(Field::Language).filter(|_| !self.filter.languages.is_empty());
        let size = columns.get(Field::Width).zip(columns.get(Field::Height));
        let scores: Vec<(Score, &str)> = columns.scores().collect();

        let passing: Vec<bool> = self.fates.iter().map(|&fate| fate == 0).collect();
        let rows = (0..passing.len()).filter(|&row| passing[row]);
        let text_columns: Vec<&str> = [Some(url), Some(caption), nsfw, language].into_iter().flatten().collect();
        let texts = self.read_texts(text_columns, &passing)?;
        let number_columns = size.into_iter().flat_map(|(w, h)| [w, h]).chain(scores.iter().map(|(_, c)| *c));
        let numbers = self.read_passing_numbers(number_columns.collect(), &passing)?;

        let labels = [
            (nsfw.map(|column| &texts[column]), &self.filter.nsfw, Filter::NsfwMissing, Filter::Nsfw),
            (language.map(|column| &texts[column]), &self.filter.languages, Filter::LanguageMissing, Filter::Language),
        ];
        let (url, caption) = (&texts[url], &texts[caption]);
        let mut candidates = Vec::new();
        let mut fates = Vec::new();
        for (at, row) in rows.enumerate() {
            let (url, caption) = (url.get(at).unwrap_or_default(), caption.get(at).unwrap_or_default());
            let unwanted = labels.iter().find_map(|(column, admitted, missing, unwanted)| {
                let label = column.as_ref()?.get(at).unwrap_or_default();
                let reason = if label.is_empty() { missing } else { unwanted };
                (!admitted.iter().any(|a| a.eq_ignore_ascii_case(label))).then_some(*reason)
            });
            let cleaned = caption::clean(caption, &self.captions.rules);
            let reason = if url.trim().is_empty() {
                Some(Reason::Filter(Filter::NoUrl))
            } else if caption.trim().is_empty() || cleaned.text.trim().is_empty() {
                Some(Reason::Filter(Filter::NoCaption))
            } else if let Some(unwanted) = unwanted {
                Some(Reason::Filter(unwanted))
            } else {
                caption::admit(&cleaned.text, self.captions).err().map(Reason::Caption)
            };
            if let Some(reason) = reason {
                fates.push((row, reason));
                continue;
            }
            let number = |column: &str| numbers.get(column).map(|values| values[at]);
            candidates.push(Candidate {
                key: RowId { source: self.source, row: self.first_row + row as u64 },
                url: url.trim().to_owned(),
                caption: cleaned,
                caption_original: caption.to_owned(),
                claimed: size.and_then(|(w, h)| claimed(number(w)?, number(h)?)),
                scores: scores
                    .iter()
                    .filter_map(|(score, column)| Some((*score, number(column).filter(|v| v.is_finite())?)))
                    .collect::<BTreeMap<_, _>>(),
            });
            if candidates.len() == BATCH {
                let candidates = std::mem::take(&mut candidates);
                if emit(Batch { candidates, ..Batch::default() }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        for (row, reason) in fates {
            self.fates[row] = self.code(reason);
        }
        Ok(emit(Batch { candidates, ..Batch::default() }))
    }

    /// The code of a reason among the fates.
    fn code(&mut self, reason: Reason) -> u8 {
        let at = self.reasons.iter().position(|&known| known == reason).unwrap_or_else(|| {
            self.reasons.push(reason);
            self.reasons.len() - 1
        });
        u8::try_from(at + 1).expect("fewer than 255 reasons")
    }

    /// Reads columns at the rows of this stretch, or at those of them that pass.
    fn read(&mut self, columns: &[&'a str], passing: Option<&[bool]>) -> Result<Vec<Series>> {
        let chunks: Vec<&ColumnChunks> = columns.iter().map(|column| self.table.chunks(column)).collect();
        self.reader.read(&chunks, self.rows.clone(), passing)
    }

    fn read_numbers(&mut self, columns: Vec<&'a str>) -> Result<()> {
        let columns = unique(columns);
        for (column, values) in columns.iter().zip(self.read(&columns, None)?) {
            let null = values.null_count() as u64;
            let values = self.floats(&values)?;
            let not_finite = values.iter().filter(|value| !value.is_finite()).count() as u64 - null;
            self.unusable.insert((self.source, (*column).to_owned()), Unusable { null, not_finite });
            self.numbers.insert(column, values);
        }
        Ok(())
    }

    /// The number columns at the passing rows alone, whether they were read before or are read now.
    fn read_passing_numbers(&mut self, columns: Vec<&'a str>, passing: &[bool]) -> Result<HashMap<&'a str, Vec<f64>>> {
        let (known, unknown): (Vec<_>, Vec<_>) =
            unique(columns).into_iter().partition(|column| self.numbers.contains_key(column));
        let mut numbers = HashMap::new();
        for column in known {
            let kept = self.numbers[column].iter().zip(passing).filter(|(_, keep)| **keep).map(|(value, _)| *value);
            numbers.insert(column, kept.collect());
        }
        for (column, values) in unknown.iter().zip(self.read(&unknown, Some(passing))?) {
            numbers.insert(column, self.floats(&values)?);
        }
        Ok(numbers)
    }

    fn read_texts(&mut self, columns: Vec<&'a str>, passing: &[bool]) -> Result<HashMap<&'a str, StringChunked>> {
        let columns = unique(columns);
        let texts = self.read(&columns, Some(passing))?;
        let one = |(column, text): (&&'a str, Series)| {
            let text = text.str().map_err(|e| self.wrong(e))?;
            Ok((*column, text.rechunk().into_owned()))
        };
        columns.iter().zip(texts).map(one).collect()
    }

    fn floats(&self, values: &Series) -> Result<Vec<f64>> {
        macro_rules! widened {
            ($chunked:ident) => {{
                let mut wide = Vec::with_capacity(values.len());
                for array in values.$chunked().map_err(|e| self.wrong(e))?.downcast_iter() {
                    match array.validity() {
                        Some(_) => wide.extend(array.iter().map(|v| v.map_or(f64::NAN, |v| *v as f64))),
                        None => wide.extend(array.values_iter().map(|v| *v as f64)),
                    }
                }
                wide
            }};
        }
        Ok(match values.dtype() {
            DataType::Float64 => widened!(f64),
            DataType::Float32 => widened!(f32),
            DataType::Int64 => widened!(i64),
            DataType::Int32 => widened!(i32),
            DataType::UInt64 => widened!(u64),
            DataType::UInt32 => widened!(u32),
            // Half precision: see `chunks`.
            DataType::Binary => {
                let halves = values.binary().map_err(|e| self.wrong(e))?;
                let wide = |bytes: &[u8]| <[u8; 2]>::try_from(bytes).map_or(f64::NAN, half_precision);
                halves.iter().map(|bytes| bytes.map_or(f64::NAN, wide)).collect()
            }
            other => return Err(self.wrong(format!("column {} is of type {other}, not a number", values.name()))),
        })
    }

    fn wrong(&self, reason: impl ToString) -> Error {
        Error::table(&self.table.blob.path(), reason)
    }
}

/// A half-precision number as parquet stores it.
fn half_precision(bytes: [u8; 2]) -> f64 {
    half::f16::from_le_bytes(bytes).to_f64()
}

fn unique(mut columns: Vec<&str>) -> Vec<&str> {
    columns.sort_unstable();
    columns.dedup();
    columns
}

fn claimed(width: f64, height: f64) -> Option<Size> {
    let side = |value: f64| (value >= 1.0 && value <= f64::from(u32::MAX)).then_some(value as u32);
    Some(Size { width: side(width)?, height: side(height)? })
}

#[cfg(test)]
mod tests {
    use super::half_precision;

    #[test]
    fn half_precision_numbers_are_those_of_ieee_754() {
        for (bits, value) in [
            (0x0000_u16, 0.0),
            (0x3C00, 1.0),
            (0xC000, -2.0),
            (0x3555, 0.333_251_953_125),
            (0x7BFF, 65504.0),
            (0x0001, 5.960_464_477_539_063e-8),
            (0x0400, 6.103_515_625e-5),
            (0x7C00, f64::INFINITY),
            (0xFC00, f64::NEG_INFINITY),
        ] {
            assert_eq!(half_precision(bits.to_le_bytes()), value, "{bits:#06x}");
        }
        assert!(half_precision(0x7E00_u16.to_le_bytes()).is_nan());
    }
}
