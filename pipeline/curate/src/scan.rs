//! Tables to candidates: a few row groups at a time, numbers first, text only where numbers pass.
//!
//! Readers take the row groups in turn, each on a thread of its own, and what they find is handed out in the order
//! of the rows. A reader is at most two batches ahead, so that memory is bounded by the batches and not by the
//! tables.

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use polars::prelude::{DataType, Series, StringChunked};

use crate::caption;
use crate::chunks::{ColumnChunks, GroupReader};
use crate::counts::Counts;
use crate::error::{Error, Result};
use crate::reason::{Filter, Reason};
use crate::recipe::{CaptionRules, RowFilter};
use crate::row::{Candidate, RowId, Size};
use crate::score::Score;
use crate::table::Field;
use crate::tables::{OpenSource, Table, Tables};

/// Most threads that read. Each holds the columns of one slice, so their number bounds memory, too.
const READERS: usize = 3;
/// Row groups with fewer rows than this are handed to a reader together.
const TASK_ROWS: usize = 1 << 19;
/// Most rows that are read at once: 8 bytes for each of them and each number column.
const SLICE_ROWS: usize = 1 << 20;
/// Most bytes of text, before compression, of the rows that are read at once.
const SLICE_TEXT: u64 = 256 << 20;
/// Most candidates in a batch.
const BATCH: usize = 1 << 15;

/// What a stretch of rows came to.
#[derive(Debug, Default)]
pub struct Batch {
    /// Rows looked at.
    pub rows: u64,
    /// Those of them that did not pass.
    pub rejected: Counts,
    /// Those that did, in order.
    pub candidates: Vec<Candidate>,
    /// Of the number columns that a filter looks at, by source and name.
    pub unusable: BTreeMap<(u16, String), Unusable>,
}

/// Values of a column that pass no threshold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unusable {
    /// Absent.
    pub null: u64,
    /// NaN or infinite.
    pub not_finite: u64,
}

/// Filters every table in order and hands out batch after batch, until `each` breaks.
///
/// # Errors
/// [`Error::Table`] for a table that cannot be read to its end; [`Error::Store`].
pub fn scan(tables: &Tables, captions: &CaptionRules, mut each: impl FnMut(Batch) -> ControlFlow<()>) -> Result<()> {
    let tasks = tasks(tables);
    let readers = thread::available_parallelism().map_or(1, usize::from).min(READERS).min(tasks.len());
    thread::scope(|scope| {
        let inboxes: Vec<_> = (0..readers)
            .map(|first| {
                let (outbox, inbox) = sync_channel(1);
                let tasks = tasks.iter().skip(first).step_by(readers);
                scope.spawn(move || read(tasks, captions, &outbox));
                inbox
            })
            .collect();
        for inbox in inboxes.iter().cycle().take(tasks.len()) {
            // A channel that closes early is one whose reader has panicked, which the scope tells.
            while let Some(batch) = inbox.recv().unwrap_or(Ok(None))? {
                if each(batch).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}

/// Row groups of one table for one reader.
struct Task<'a> {
    source: &'a OpenSource,
    table: &'a Table,
    groups: Range<usize>,
    /// Row of the source at which they begin.
    first_row: u64,
}

fn tasks(tables: &Tables) -> Vec<Task<'_>> {
    let mut tasks = Vec::new();
    for (source, table) in tables.sources.iter().flat_map(|s| s.tables.iter().map(move |table| (s, table))) {
        let (mut first, mut first_row, mut rows) = (0, table.first_row, 0);
        for (group, &more) in table.row_groups.iter().enumerate() {
            rows += more;
            if rows >= TASK_ROWS || group + 1 == table.row_groups.len() {
                tasks.push(Task { source, table, groups: first..group + 1, first_row });
                (first, first_row, rows) = (group + 1, first_row + rows as u64, 0);
            }
        }
    }
    tasks
}

/// What a reader sends: batches and, after each task, `None`.
type Found = Result<Option<Batch>>;

/// Reads until the tasks end, one fails, or nobody listens any more.
fn read<'a>(tasks: impl Iterator<Item = &'a Task<'a>>, captions: &CaptionRules, outbox: &SyncSender<Found>) {
    for task in tasks {
        let end = task.read(captions, |batch| match outbox.send(Ok(Some(batch))) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        });
        let failed = end.is_err();
        if outbox.send(end.map(|()| None)).is_err() || failed {
            return;
        }
    }
}

impl Task<'_> {
    fn read(&self, captions: &CaptionRules, mut emit: impl FnMut(Batch) -> ControlFlow<()>) -> Result<()> {
        let mut first_row = self.first_row;
        for group in self.groups.clone() {
            let rows = self.table.row_groups[group];
            let mut reader = GroupReader::new(&self.table.blob, group, rows);
            for slice in slices(rows, self.text_bytes(group)) {
                let stretch = Stretch {
                    source: self.source.index,
                    filter: &self.source.filter,
                    captions,
                    table: self.table,
                    reader: &mut reader,
                    first_row: first_row + slice.start as u64,
                    numbers: HashMap::new(),
                    unusable: BTreeMap::new(),
                    fates: vec![0; slice.len()],
                    reasons: Vec::new(),
                    rows: slice,
                };
                if stretch.filter(&mut emit)?.is_break() {
                    return Ok(());
                }
            }
            first_row += rows as u64;
        }
        Ok(())
    }

    fn text_bytes(&self, group: usize) -> u64 {
        let columns = [Field::Url, Field::Caption].into_iter().filter_map(|field| self.table.columns.get(field));
        columns.map(|column| self.table.chunks(column).uncompressed(group)).sum()
    }
}

/// Cuts a row group so that neither rows nor text of a slice are too many: usually not at all.
fn slices(rows: usize, text_bytes: u64) -> impl Iterator<Item = Range<usize>> {
    let pieces = rows.div_ceil(SLICE_ROWS).max(text_bytes.div_ceil(SLICE_TEXT) as usize).max(1);
    let most = rows.div_ceil(pieces).max(1);
    (0..rows).step_by(most).map(move |start| start..rows.min(start + most))
}

/// Rows of one row group on their way through the filter.
struct Stretch<'a, 'r> {
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

impl<'a> Stretch<'a, '_> {
    /// Hands out the candidates, and with the last of them what became of the other rows.
    fn filter(mut self, emit: &mut impl FnMut(Batch) -> ControlFlow<()>) -> Result<ControlFlow<()>> {
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
            other => return Err(self.wrong(format!("column {} is of type {other}, not a number", values.name()))),
        })
    }

    fn wrong(&self, reason: impl ToString) -> Error {
        Error::table(&self.table.blob.path(), reason)
    }
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
    fn slices_cover_every_row_once_and_stay_small() {
        for (rows, text) in [(0, 0), (1, 1), (SLICE_ROWS, 5), (3 * SLICE_ROWS + 17, 0), (10, 40 * SLICE_TEXT)] {
            let mut next = 0;
            for slice in slices(rows, text) {
                let bytes = text * slice.len() as u64 / rows as u64;
                assert!(slice.start == next && !slice.is_empty() && slice.len() <= SLICE_ROWS, "{rows} {slice:?}");
                assert!(bytes <= SLICE_TEXT || slice.len() == 1, "{rows} {text} {slice:?}");
                next = slice.end;
            }
            assert_eq!(next, rows);
        }
    }
}
