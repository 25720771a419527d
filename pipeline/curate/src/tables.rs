//! The parquet files of a source: found, opened once, recognised, and made part of the fingerprint, all before
//! the first request.

use std::collections::{BTreeMap, HashMap, HashSet};

use shards::{ContentHash, Fingerprint};

use crate::chunks::{ColumnChunks, Footer};
use crate::error::{Error, Result};
use crate::recipe::{Recipe, RowFilter, Source};
use crate::row::RowId;
use crate::store::{self, Blob};
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
    /// The file or object.
    pub blob: Blob,
    /// Rows of the source before this file.
    pub first_row: u64,
    /// Sizes of the row groups, in order.
    pub row_groups: Vec<usize>,
    /// Where the fields are.
    pub columns: Columns,
    /// See [`Footer::identity`].
    pub identity: ContentHash,
    /// Of the columns that hold fields, by name.
    chunks: HashMap<String, ColumnChunks>,
}

impl Tables {
    /// Finds, opens and recognises every table.
    ///
    /// # Errors
    /// [`Error::NoTable`]; [`Error::Table`] for the first file that is no parquet, lacks a column or has it in
    /// another type; [`Error::Store`].
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
                let name = table.blob.name();
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
        let blobs = blobs(at, &source.paths)?;
        let footers = Footer::read_all(&blobs)?;
        let mut tables = Vec::new();
        let mut first_row = 0;
        for (blob, footer) in blobs.into_iter().zip(footers) {
            let table = Table::open(blob, &footer, first_row, source)?;
            first_row += table.rows();
            tables.push(table);
        }
        Ok(OpenSource { index, filter: source.filter.clone(), tables })
    }
}

impl Table {
    fn open(blob: Blob, footer: &Footer, first_row: u64, source: &Source) -> Result<Table> {
        let wrong = |reason: String| Error::table(&blob.path(), reason);
        let columns = Columns::find(source.kind, &source.columns, &footer.columns).map_err(wrong)?;
        for field in needed_by(&source.filter) {
            columns.require(field).map_err(wrong)?;
        }
        let row_groups = footer.row_groups.clone();
        // A table without rows has no column chunks either.
        let names = columns.names().filter(|_| !row_groups.is_empty());
        let chunks = names.map(|name| Ok((name.to_owned(), footer.column(&blob, name)?))).collect::<Result<_>>()?;
        Ok(Table { first_row, row_groups, columns, identity: footer.identity, chunks, blob })
    }

    /// The number of rows.
    pub fn rows(&self) -> u64 {
        self.row_groups.iter().map(|&rows| rows as u64).sum()
    }

    /// Where the values of a column lie that holds a field.
    pub fn chunks(&self, column: &str) -> &ColumnChunks {
        &self.chunks[column]
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

/// What the paths of a source lead to, each once, in the order of their names.
fn blobs(source_index: usize, paths: &[String]) -> Result<Vec<Blob>> {
    let mut found = BTreeMap::new();
    for path in paths {
        let blobs =
            store::find(path)?.map_err(|reason| Error::NoTable { source_index, pattern: path.clone(), reason })?;
        found.extend(blobs.into_iter().map(|blob| (blob.path(), blob)));
    }
    let mut known = HashSet::new();
    Ok(found.into_values().filter(|blob| known.insert(blob.identity())).collect())
}
