//! Tables to candidates: a few row groups at a time, numbers first, text only where numbers pass.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use polars::prelude::{BooleanChunked, DataFrame, DataType, NewChunkedArray, PlSmallStr, StringChunked};

use crate::caption;
use crate::counts::Counts;
use crate::error::{Error, Result};
use crate::reason::{Filter, Reason};
use crate::recipe::{CaptionRules, RowFilter};
use crate::row::{Candidate, RowId, Size};
use crate::score::Score;
use crate::table::Field;
use crate::tables::{OpenSource, Table, Tables};

/// Rows that are read at once. Bounds memory: about 8 bytes for each number column and row, and the text of
/// the rows that pass.
const BATCH_ROWS: usize = 1 << 19;

/// What a stretch of rows came to.
#[derive(Debug, Default)]
pub struct Batch {
    /// Rows looked at.
    pub rows: u64,
    /// Those of them that did not pass.
    pub rejected: Counts,
    /// Those that did, in order.
    pub candidates: Vec<Candidate>,
}

/// Filters every table in order and hands out batch after batch, until `each` breaks.
///
/// # Errors
/// [`Error::Table`] for a table that cannot be read to its end.
pub fn scan(tables: &Tables, captions: &CaptionRules, mut each: impl FnMut(Batch) -> ControlFlow<()>) -> Result<()> {
    for source in &tables.sources {
        for table in &source.tables {
            for (offset, len) in stretches(&table.row_groups) {
                if each(Stretch::new(source, captions, table, offset, len).filter()?).is_break() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Cuts a file into stretches of about [`BATCH_ROWS`]: small row groups together, large ones in pieces.
fn stretches(row_groups: &[usize]) -> Vec<(usize, usize)> {
    let mut stretches = Vec::new();
    let (mut offset, mut pending) = (0, 0);
    let mut cut = |offset: &mut usize, len: usize| {
        stretches.push((*offset, len));
        *offset += len;
    };
    for &rows in row_groups {
        if pending > 0 && pending + rows > BATCH_ROWS {
            cut(&mut offset, std::mem::take(&mut pending));
        }
        pending += rows;
        while pending > BATCH_ROWS {
            cut(&mut offset, BATCH_ROWS);
            pending -= BATCH_ROWS;
        }
    }
    if pending > 0 {
        cut(&mut offset, pending);
    }
    stretches
}

/// Rows `offset..offset + len` of one table on their way through the filter.
struct Stretch<'a> {
    source: u16,
    filter: &'a RowFilter,
    captions: &'a CaptionRules,
    table: &'a Table,
    offset: usize,
    len: usize,
    /// Number columns read so far, with NaN for null.
    numbers: HashMap<&'a str, Vec<f64>>,
    /// For each row 0 while it passes, else 1 + the index of its reason.
    fates: Vec<u8>,
    reasons: Vec<Reason>,
}

impl<'a> Stretch<'a> {
    fn new(
        source: &'a OpenSource,
        captions: &'a CaptionRules,
        table: &'a Table,
        offset: usize,
        len: usize,
    ) -> Stretch<'a> {
        Stretch {
            source: source.index,
            filter: &source.filter,
            captions,
            table,
            offset,
            len,
            numbers: HashMap::new(),
            fates: vec![0; len],
            reasons: Vec::new(),
        }
    }

    fn filter(mut self) -> Result<Batch> {
        self.filter_by_numbers()?;
        let mut candidates = Vec::new();
        if let Some(first) = self.fates.iter().position(|&fate| fate == 0) {
            let last = self.fates.iter().rposition(|&fate| fate == 0).unwrap_or(first);
            candidates = self.filter_by_text(first, last + 1)?;
        }
        let mut rows_by_fate = [0; 256];
        self.fates.iter().for_each(|&fate| rows_by_fate[usize::from(fate)] += 1);
        let mut rejected = Counts::default();
        for (at, reason) in self.reasons.iter().enumerate() {
            rejected.add(*reason, rows_by_fate[at + 1]);
        }
        Ok(Batch { rows: self.len as u64, rejected, candidates })
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
        self.read_numbers(wanted.collect(), 0, self.len)?;

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

    /// Looks at the text of rows `start..end` that still pass, and makes candidates of those that stay.
    fn filter_by_text(&mut self, start: usize, end: usize) -> Result<Vec<Candidate>> {
        let columns = &self.table.columns;
        let url = columns.require(Field::Url).map_err(|e| self.wrong(e))?;
        let caption = columns.require(Field::Caption).map_err(|e| self.wrong(e))?;
        let nsfw = columns.get(Field::Nsfw).filter(|_| !self.filter.nsfw.is_empty());
        let language = columns.get(Field::Language).filter(|_| !self.filter.languages.is_empty());
        let size = columns.get(Field::Width).zip(columns.get(Field::Height));
        let scores: Vec<(Score, &str)> = columns.scores().collect();

        let rows: Vec<usize> = (start..end).filter(|&row| self.fates[row] == 0).collect();
        let passing = PassingRows { start, end, mask: self.fates[start..end].iter().map(|&fate| fate == 0).collect() };
        let text_columns: Vec<&str> = [Some(url), Some(caption), nsfw, language].into_iter().flatten().collect();
        let texts = self.read_passing(text_columns, &passing)?;
        let number_columns = size.into_iter().flat_map(|(w, h)| [w, h]).chain(scores.iter().map(|(_, c)| *c));
        let numbers = self.read_passing_numbers(number_columns.collect(), &passing)?;

        let text = |column: &str| self.strings(&texts, column);
        let (url, caption) = (text(url)?, text(caption)?);
        let labels = [
            (nsfw.map(&text).transpose()?, &self.filter.nsfw, Filter::Nsfw),
            (language.map(&text).transpose()?, &self.filter.languages, Filter::Language),
        ];
        let mut candidates = Vec::new();
        let mut fates = Vec::new();
        for (at, &row) in rows.iter().enumerate() {
            let (url, caption) = (url.get(at).unwrap_or_default(), caption.get(at).unwrap_or_default());
            let unwanted = labels.iter().find_map(|(column, admitted, reason)| {
                let label = column.as_ref()?.get(at).unwrap_or_default();
                (!admitted.iter().any(|a| a.eq_ignore_ascii_case(label))).then_some(*reason)
            });
            let cleaned = caption::clean(caption, &self.captions.rules);
            let reason = if url.trim().is_empty() {
                Some(Reason::Filter(Filter::NoUrl))
            } else if caption.trim().is_empty() {
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
                key: RowId { source: self.source, row: self.table.first_row + (self.offset + row) as u64 },
                url: url.trim().to_owned(),
                caption: cleaned,
                caption_original: caption.to_owned(),
                claimed: size.and_then(|(w, h)| claimed(number(w)?, number(h)?)),
                scores: scores
                    .iter()
                    .filter_map(|(score, column)| Some((*score, number(column).filter(|v| v.is_finite())?)))
                    .collect::<BTreeMap<_, _>>(),
            });
        }
        for (row, reason) in fates {
            self.fates[row] = self.code(reason);
        }
        Ok(candidates)
    }

    /// The code of a reason among the fates.
    fn code(&mut self, reason: Reason) -> u8 {
        let at = self.reasons.iter().position(|&known| known == reason).unwrap_or_else(|| {
            self.reasons.push(reason);
            self.reasons.len() - 1
        });
        u8::try_from(at + 1).expect("fewer than 255 reasons")
    }

    fn read_numbers(&mut self, columns: Vec<&'a str>, start: usize, end: usize) -> Result<()> {
        if columns.is_empty() {
            return Ok(());
        }
        let frame = self.table.read(&unique(columns.clone()), self.offset + start, end - start)?;
        for column in columns {
            let values = self.floats(&frame, column)?;
            self.numbers.insert(column, values);
        }
        Ok(())
    }

    /// The number columns at the passing rows alone, whether they were read before or are read now.
    fn read_passing_numbers(&self, columns: Vec<&'a str>, passing: &PassingRows) -> Result<HashMap<&'a str, Vec<f64>>> {
        let (known, unknown): (Vec<_>, Vec<_>) = columns.into_iter().partition(|c| self.numbers.contains_key(c));
        let mut numbers = HashMap::new();
        for column in known {
            let all = &self.numbers[column][passing.start..passing.end];
            let kept = all.iter().zip(&passing.mask).filter(|(_, keep)| **keep).map(|(value, _)| *value);
            numbers.insert(column, kept.collect());
        }
        if !unknown.is_empty() {
            let frame = self.read_passing(unknown.clone(), passing)?;
            for column in unknown {
                numbers.insert(column, self.floats(&frame, column)?);
            }
        }
        Ok(numbers)
    }

    fn read_passing(&self, columns: Vec<&str>, passing: &PassingRows) -> Result<DataFrame> {
        let frame = self.table.read(&unique(columns), self.offset + passing.start, passing.end - passing.start)?;
        let mask = BooleanChunked::from_slice(PlSmallStr::EMPTY, &passing.mask);
        frame.filter(&mask).map_err(|e| self.wrong(e))
    }

    fn strings(&self, frame: &DataFrame, column: &str) -> Result<StringChunked> {
        let column = frame.column(column).map_err(|e| self.wrong(e))?;
        let text = column.str().map_err(|e| self.wrong(e))?.clone();
        Ok(text.rechunk().into_owned())
    }

    fn floats(&self, frame: &DataFrame, column: &str) -> Result<Vec<f64>> {
        let column = frame.column(column).map_err(|e| self.wrong(e))?.as_materialized_series();
        macro_rules! widened {
            ($chunked:ident) => {
                column.$chunked().map_err(|e| self.wrong(e))?.iter().map(|v| v.map_or(f64::NAN, |v| v as f64)).collect()
            };
        }
        Ok(match column.dtype() {
            DataType::Float64 => widened!(f64),
            DataType::Float32 => widened!(f32),
            DataType::Int64 => widened!(i64),
            DataType::Int32 => widened!(i32),
            DataType::UInt64 => widened!(u64),
            DataType::UInt32 => widened!(u32),
            other => return Err(self.wrong(format!("column {} is of type {other}, not a number", column.name()))),
        })
    }

    fn wrong(&self, reason: impl ToString) -> Error {
        Error::table(&self.table.path, reason)
    }
}

/// Which of the rows `start..end` of a stretch pass.
struct PassingRows {
    start: usize,
    end: usize,
    mask: Vec<bool>,
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
    use super::*;
    use std::fs::File;
    use std::path::Path;

    use polars::prelude::{ParquetWriter, df};
    use proptest::prelude::*;

    use crate::recipe::Recipe;

    /// One row of an `improved_aesthetics` table.
    type Row = (Option<String>, Option<String>, Option<f64>, Option<f64>, Option<f32>);

    fn write(path: &Path, rows: &[Row], row_group: usize) {
        let mut frame = df!(
            "URL" => rows.iter().map(|r| r.0.clone()).collect::<Vec<_>>(),
            "TEXT" => rows.iter().map(|r| r.1.clone()).collect::<Vec<_>>(),
            "WIDTH" => rows.iter().map(|r| r.2).collect::<Vec<_>>(),
            "HEIGHT" => rows.iter().map(|r| r.3).collect::<Vec<_>>(),
            "AESTHETIC_SCORE" => rows.iter().map(|r| r.4).collect::<Vec<_>>(),
        )
        .unwrap();
        ParquetWriter::new(File::create(path).unwrap())
            .with_row_group_size(Some(row_group))
            .finish(&mut frame)
            .unwrap();
    }

    fn scanned(rows: &[Row], row_group: usize, filter: &str) -> (u64, Counts, Vec<Candidate>) {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("a.parquet"), rows, row_group);
        write(&dir.path().join("b.parquet"), rows, row_group);
        let text = format!(
            "[fetch]\nuser_agent = \"test/1.0 (+x)\"\n[[source]]\nkind = \"laion\"\npaths = [\"*.parquet\"]\n\
             [source.filter]\n{filter}"
        );
        std::fs::write(dir.path().join("data.toml"), text).unwrap();
        let recipe = Recipe::read(dir.path(), dir.path()).unwrap();
        let tables = Tables::open(&recipe).unwrap();
        let (mut seen, mut counts, mut candidates) = (0, Counts::default(), Vec::new());
        scan(&tables, &recipe.captions, |batch| {
            seen += batch.rows;
            counts.add_all(&batch.rejected);
            candidates.extend(batch.candidates);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, tables.rows());
        (seen, counts, candidates)
    }

    /// The same, row by row and in the words of the recipe.
    fn fate(row: &Row) -> Option<Filter> {
        let (url, text, width, height, score) = row;
        let (Some(width), Some(height)) = (width, height) else { return Some(Filter::SizeMissing) };
        let number = |value: f64| value.is_finite() && value >= 1.0;
        if !number(*width) || !number(*height) {
            return Some(Filter::SizeMissing);
        }
        if *width < 1024.0 || *height < 1024.0 {
            return Some(Filter::TooSmall);
        }
        if width.max(*height) / width.min(*height) > 2.0 {
            return Some(Filter::AspectRatio);
        }
        match score {
            Some(score) if score.is_finite() && *score > 5.5 => {}
            Some(score) if score.is_finite() => return Some(Filter::Score(Score::AestheticV2)),
            _ => return Some(Filter::ScoreMissing(Score::AestheticV2)),
        }
        match (url, text) {
            (None, _) => Some(Filter::NoUrl),
            (_, None) => Some(Filter::NoCaption),
            _ => None,
        }
    }

    fn side() -> impl Strategy<Value = Option<f64>> {
        let plain = (500..3000_u32).prop_map(f64::from);
        let odd = prop::sample::select(vec![1023.0, 1024.0, 2048.0, 0.0, -5.0, f64::NAN, f64::INFINITY]);
        prop_oneof![6 => plain.prop_map(Some), 2 => odd.prop_map(Some), 1 => Just(None)]
    }

    fn score() -> impl Strategy<Value = Option<f32>> {
        let odd = prop::sample::select(vec![5.5, 5.500_001, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        prop_oneof![6 => (4.0..8.0_f32).prop_map(Some), 2 => odd.prop_map(Some), 1 => Just(None)]
    }

    fn text() -> impl Strategy<Value = Option<String>> {
        prop_oneof![8 => "[a-z]{3,12}".prop_map(Some), 1 => Just(None)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn batches_give_what_row_by_row_reading_gives(
            rows in prop::collection::vec((text(), text(), side(), side(), score()), 1..200),
            row_group in 1..80_usize,
        ) {
            let filter = "min_side = 1024\nmax_aspect_ratio = 2.0\nscores = [{ score = \"aesthetic_v2\", above = 5.5 }]\n";
            let (seen, counts, candidates) = scanned(&rows, row_group, filter);
            let mut wanted = Counts::default();
            let mut passing = Vec::new();
            for (at, row) in rows.iter().chain(&rows).enumerate() {
                match fate(row) {
                    Some(reason) => wanted.add(Reason::Filter(reason), 1),
                    None => passing.push((at as u64, row.0.clone().unwrap(), row.4.map(f64::from))),
                }
            }
            prop_assert_eq!(seen, 2 * rows.len() as u64);
            prop_assert_eq!(counts, wanted);
            let found: Vec<_> = candidates
                .iter()
                .map(|c| (c.key.row, c.url.clone(), c.scores.get(&Score::AestheticV2).copied()))
                .collect();
            prop_assert_eq!(found, passing);
        }
    }

    #[test]
    fn stretches_cover_every_row_once_and_stay_small() {
        let huge = 3 * BATCH_ROWS + 17;
        for groups in [vec![], vec![1], vec![BATCH_ROWS; 3], vec![100_000; 12], vec![5, huge, 5], vec![0, 0, 3]] {
            let mut next = 0;
            for (offset, len) in stretches(&groups) {
                assert!(offset == next && len > 0 && len <= BATCH_ROWS, "{groups:?}");
                next += len;
            }
            assert_eq!(next, groups.iter().sum::<usize>());
        }
    }
}
