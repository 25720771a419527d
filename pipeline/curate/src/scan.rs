//! Tables to candidates: a few row groups at a time, numbers first, text only where numbers pass.
//!
//! Readers take the row groups in turn, each on a thread of its own, and what they find is handed out in the order
//! of the rows. A reader is at most two batches ahead, so that memory is bounded by the batches and not by the
//! tables.

mod stretch;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use crate::chunks::GroupReader;
use crate::counts::Counts;
use crate::error::Result;
use crate::recipe::CaptionRules;
use crate::row::Candidate;
use crate::table::Field;
use crate::tables::{OpenSource, Table, Tables};
use stretch::Stretch;

/// Most threads that read. Each holds the columns of one slice, so their number bounds memory, too.
const READERS: usize = 3;
/// Row groups with fewer rows than this are handed to a reader together.
const TASK_ROWS: usize = 1 << 19;
/// Most rows that are read at once: 8 bytes for each of them and each number column.
const SLICE_ROWS: usize = 1 << 20;
/// Most bytes of text, before compression, of the rows that are read at once.
const SLICE_TEXT: u64 = 256 << 20;

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
                let begin = first_row + slice.start as u64;
                let stretch = Stretch::new(self.source, self.table, captions, &mut reader, slice, begin);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::path::Path;

    use polars::prelude::{ParquetWriter, df};
    use proptest::prelude::*;

    use crate::reason::{Filter, Reason};
    use crate::recipe::Recipe;
    use crate::score::Score;

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
