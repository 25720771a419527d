//! The parquet files of a source: found, opened once, recognised, and made part of the fingerprint, all before
//! the first request.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use polars::prelude::{DataFrame, DataType, ParquetReader, SerReader};
use shards::{ContentHash, Fingerprint};

use crate::error::{Error, Result};
use crate::recipe::{Recipe, RowFilter, Source};
use crate::row::RowId;
use crate::table::{Columns, Field};

/// All tables of a recipe.
#[derive(Debug)]
pub struct Tables {
    /// In the order of the recipe.
    pub sources: Vec<OpenSource>,
}

/// One source, with its tables in the order of their names.
#[derive(Debug)]
pub struct OpenSource {
    /// Position in the recipe.
    pub index: u16,
    /// Which rows are worth a request.
    pub filter: RowFilter,
    /// Never empty.
    pub tables: Vec<Table>,
}

/// One parquet file whose columns are those that the recipe needs.
#[derive(Debug)]
pub struct Table {
    /// The file.
    pub path: PathBuf,
    /// Rows of the source before this file.
    pub first_row: u64,
    /// Sizes of the row groups, in order.
    pub row_groups: Vec<usize>,
    /// Where the fields are.
    pub columns: Columns,
    /// Length and footer of the file: column statistics, offsets and schema. Another content with the same
    /// footer does not happen by accident.
    pub identity: ContentHash,
}

impl Tables {
    /// Finds, opens and recognises every table.
    ///
    /// # Errors
    /// [`Error::NoTable`]; [`Error::Table`] for the first file that is no parquet, lacks a column or has it in
    /// another type.
    pub fn open(recipe: &Recipe) -> Result<Tables> {
        let sources = recipe
            .sources
            .iter()
            .enumerate()
            .map(|(at, source)| OpenSource::open(at, source))
            .collect::<Result<_>>()?;
        Ok(Tables { sources })
    }

    /// The rows of all tables.
    pub fn rows(&self) -> u64 {
        self.sources.iter().flat_map(|s| &s.tables).map(Table::rows).sum()
    }

    /// The rows of all tables before the row `key`.
    pub fn rows_before(&self, key: RowId) -> u64 {
        let sources = self.sources.iter().take_while(|s| s.index < key.source);
        sources.flat_map(|s| &s.tables).map(Table::rows).sum::<u64>() + key.row
    }

    /// `fingerprint` with every table as a part of its own.
    pub fn add_to(&self, mut fingerprint: Fingerprint) -> Fingerprint {
        for source in &self.sources {
            for table in &source.tables {
                let name = table.path.file_name().unwrap_or_default().to_string_lossy();
                // Row numbers make the keys, so a table that moves within its source is another input.
                let part = format!("source {}: {name} from row {}", source.index, table.first_row);
                fingerprint = fingerprint.with(part, table.identity);
            }
        }
        fingerprint
    }
}

impl OpenSource {
    fn open(at: usize, source: &Source) -> Result<OpenSource> {
        let index = u16::try_from(at).expect("a recipe has fewer than 65,536 sources");
        let mut tables = Vec::new();
        let mut first_row = 0;
        for path in files(at, &source.paths)? {
            let table = Table::open(path, first_row, source)?;
            first_row += table.rows();
            tables.push(table);
        }
        Ok(OpenSource { index, filter: source.filter.clone(), tables })
    }
}

impl Table {
    fn open(path: PathBuf, first_row: u64, source: &Source) -> Result<Table> {
        let wrong = |reason: String| Error::table(&path, reason);
        let mut file = File::open(&path).map_err(|e| wrong(format!("cannot be opened: {e}")))?;
        let identity = identity(&mut file).map_err(wrong)?;
        let mut reader = ParquetReader::new(file);
        let (schema, row_groups) = guarded(&path, || {
            let schema = reader.schema()?;
            let row_groups: Vec<usize> = reader.get_metadata()?.row_groups.iter().map(|g| g.num_rows()).collect();
            Ok((schema, row_groups))
        })?;
        let columns: Vec<(String, DataType)> =
            schema.iter_values().map(|field| (field.name.to_string(), DataType::from_arrow_field(field))).collect();
        let columns = Columns::find(source.kind, &source.columns, &columns).map_err(wrong)?;
        for field in needed_by(&source.filter) {
            columns.require(field).map_err(wrong)?;
        }
        Ok(Table { path, first_row, row_groups, columns, identity })
    }

    /// The number of rows.
    pub fn rows(&self) -> u64 {
        self.row_groups.iter().map(|&rows| rows as u64).sum()
    }

    /// Reads `len` rows of some columns, from row `offset` of this file on.
    ///
    /// # Errors
    /// [`Error::Table`] for what cannot be read; a panic inside the reader is one as well.
    pub fn read(&self, columns: &[&str], offset: usize, len: usize) -> Result<DataFrame> {
        let file = File::open(&self.path).map_err(|e| Error::table(&self.path, format!("cannot be opened: {e}")))?;
        guarded(&self.path, || {
            ParquetReader::new(file)
                .with_columns(Some(columns.iter().map(|&c| c.to_owned()).collect()))
                .with_slice(Some((offset, len)))
                .finish()
        })
    }
}

/// The fields that a filter cannot do without.
fn needed_by(filter: &RowFilter) -> Vec<Field> {
    let mut fields: Vec<Field> = filter.scores.iter().map(|t| Field::Score(t.score)).collect();
    if filter.min_side > 0 || filter.max_aspect_ratio.is_finite() {
        fields.extend([Field::Width, Field::Height]);
    }
    if !filter.nsfw.is_empty() {
        fields.push(Field::Nsfw);
    }
    if !filter.languages.is_empty() {
        fields.push(Field::Language);
    }
    fields
}

/// Malformed files can make a parquet reader panic; that is an error of the file.
fn guarded<T>(path: &Path, read: impl FnOnce() -> polars::prelude::PolarsResult<T>) -> Result<T> {
    // Sound to assert: what the closure borrowed mutably is dropped by the caller on error.
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::table(path, format!("cannot be read as parquet: {error}"))),
        Err(_) => Err(Error::table(path, "cannot be read as parquet: the file is malformed")),
    }
}

/// Hash over length and footer.
fn identity(file: &mut File) -> std::result::Result<ContentHash, String> {
    const TAIL: u64 = 8;
    let failed = |e: std::io::Error| format!("cannot be read: {e}");
    let not_parquet = || "cannot be read as parquet: it does not end as a parquet file does".to_owned();
    let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let mut read_at = |offset: u64, len: u64| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(len).read_to_end(&mut bytes)).map_err(failed)?;
        Ok::<_, String>(bytes)
    };
    let tail = read_at(length.saturating_sub(TAIL), TAIL)?;
    let (size, magic) = tail.split_first_chunk::<4>().ok_or_else(not_parquet)?;
    let footer = u64::from(u32::from_le_bytes(*size));
    let start = length.checked_sub(TAIL + footer).filter(|_| magic == b"PAR1").ok_or_else(not_parquet)?;
    let mut identity = read_at(start, footer)?;
    identity.extend(length.to_le_bytes());
    Ok(ContentHash::of(&identity))
}

/// Files of the written paths: a file, a folder's `*.parquet`, or a glob; sorted, each once. Hidden files and
/// checksums (`.crc`), which some data sets ship beside their tables, are passed over.
fn files(source_index: usize, patterns: &[String]) -> Result<Vec<PathBuf>> {
    let mut found: BTreeSet<PathBuf> = BTreeSet::new();
    for pattern in patterns {
        let none = || Error::NoTable { source_index, pattern: pattern.clone() };
        let folder = Path::new(pattern).is_dir();
        let expanded = if folder { format!("{}/*.parquet", glob::Pattern::escape(pattern)) } else { pattern.clone() };
        let matches = glob::glob(&expanded).map_err(|_| none())?;
        let before = found.len();
        found.extend(matches.filter_map(|path| path.ok()).filter(|path| is_table(path)));
        if found.len() == before {
            return Err(none());
        }
    }
    Ok(found.into_iter().collect())
}

fn is_table(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.is_file() && !name.starts_with('.') && !name.starts_with('_') && !name.ends_with(".crc")
}
