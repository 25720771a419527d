//! Columns of a parquet file, read by ranges: what the footer says of them, and their rows.
//!
//! polars decodes; this module decides which bytes it is given. A row group of usual size is read as it is. Of a
//! huge one (files with all their rows in one group exist) a few pages are read at a time, so that memory is
//! bounded by a slice of rows and not by the file.

use std::collections::VecDeque;
use std::io::Cursor;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use polars::prelude::{
    ArrowDataType, ArrowField, BooleanChunked, NewChunkedArray, PlSmallStr, PolarsError, PolarsResult, Series,
};
use polars_buffer::Buffer;
use polars_parquet::parquet::compression::Compression;
use polars_parquet::parquet::metadata::{Descriptor, FileMetadata};
use polars_parquet::parquet::page::CompressedPage;
use polars_parquet::parquet::read::{PageMetaData, deserialize_metadata};
use polars_parquet::read::{BasicDecompressor, Filter, PageReader, column_iter_to_arrays, infer_schema};
use shards::ContentHash;

use crate::error::{Error, Result};
use crate::store::Blob;

/// Bytes at the end of a file that are read in the hope that they hold all of its footer.
const END: u64 = 64 << 10;
/// Length of the footer and magic bytes.
const TAIL: usize = 8;
/// Bytes that are read ahead of the pages of a huge column chunk.
const AHEAD: u64 = 4 << 20;

/// What the end of a parquet file says.
#[derive(Debug)]
pub struct Footer {
    /// Names and types of the columns, as the file has them: most are of no interest, and some of no kind that can
    /// be read here.
    pub columns: Vec<(String, ArrowDataType)>,
    /// Rows of each row group.
    pub row_groups: Vec<usize>,
    /// Hash over length and footer of the file: column statistics, offsets and schema. Another content with the
    /// same footer does not happen by accident.
    pub identity: ContentHash,
    metadata: FileMetadata,
    fields: Vec<ArrowField>,
}

/// Where the values of one column lie, and how they are written.
#[derive(Debug)]
pub struct ColumnChunks {
    field: ArrowField,
    descriptor: Descriptor,
    /// One for each row group.
    chunks: Vec<Chunk>,
}

#[derive(Debug, Clone)]
struct Chunk {
    bytes: Range<u64>,
    values: usize,
    uncompressed: u64,
    compression: Compression,
}

impl Footer {
    /// Reads the footers of some files, many at once where they lie far away.
    ///
    /// # Errors
    /// [`Error::Table`] for the first file that is no parquet; [`Error::Store`].
    pub fn read_all(blobs: &[Blob]) -> Result<Vec<Footer>> {
        let ends = Blob::read_ends(blobs, END)?;
        blobs.iter().zip(ends).map(|(blob, end)| Footer::read(blob, end)).collect()
    }

    fn read(blob: &Blob, mut end: Vec<u8>) -> Result<Footer> {
        let not_parquet =
            || Error::table(&blob.path(), "cannot be read as parquet: it does not end as a parquet file does");
        let tail = end.last_chunk::<TAIL>().ok_or_else(not_parquet)?;
        let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])) + TAIL as u64;
        if &tail[4..] != b"PAR1" || length > blob.length {
            return Err(not_parquet());
        }
        if length > end.len() as u64 {
            end = blob.read_one(blob.length - length..blob.length)?;
        }
        let footer = end.split_off(end.len() - length as usize);
        let mut hashed = footer[..footer.len() - TAIL].to_vec();
        hashed.extend(blob.length.to_le_bytes());
        let (metadata, fields) = guarded(blob, || {
            let metadata = deserialize_metadata(footer.into())?;
            let fields = infer_schema(&metadata)?.iter_values().cloned().collect::<Vec<_>>();
            Ok((metadata, fields))
        })?;
        let columns = fields.iter().map(|field| (field.name.to_string(), field.dtype.clone())).collect();
        let row_groups = metadata.row_groups.iter().map(|group| group.num_rows()).collect();
        Ok(Footer { columns, row_groups, identity: ContentHash::of(&hashed), metadata, fields })
    }

    /// Where a column lies that [`columns`](Footer::columns) has and that holds text or numbers.
    ///
    /// # Errors
    /// [`Error::Table`] for offsets that lead out of the file, and for another number of values than of rows.
    pub fn column(&self, blob: &Blob, name: &str) -> Result<ColumnChunks> {
        let malformed = |what: &str| Error::table(&blob.path(), format!("column {name:?}: {what}"));
        let field = self.fields.iter().find(|field| field.name == name).ok_or_else(|| malformed("is not there"))?;
        let groups = &self.metadata.row_groups;
        let chunks = guarded(blob, || {
            Ok(groups
                .iter()
                .map(|group| {
                    let mut found = group.columns_under_root_iter(name)?;
                    let chunk = found.next().filter(|_| found.len() == 0)?;
                    Some((
                        chunk.descriptor().descriptor.clone(),
                        Chunk {
                            bytes: chunk.byte_range(),
                            values: usize::try_from(chunk.num_values()).ok()?,
                            uncompressed: chunk.uncompressed_size().max(0) as u64,
                            compression: chunk.compression(),
                        },
                    ))
                })
                .collect::<Vec<_>>())
        })?;
        let chunks: Option<Vec<_>> = chunks.into_iter().collect();
        let chunks = chunks.ok_or_else(|| malformed("is not one column chunk in each row group"))?;
        for ((descriptor, chunk), &rows) in chunks.iter().zip(&self.row_groups) {
            if chunk.bytes.end > blob.length {
                return Err(malformed("leads beyond the end of the file, which is cut short or malformed"));
            }
            if chunk.values != rows || descriptor.max_rep_level != 0 {
                return Err(malformed("has not one value for each row"));
            }
        }
        let descriptor = match chunks.first() {
            Some((descriptor, _)) => descriptor.clone(),
            None => return Err(malformed("has no row group")),
        };
        Ok(ColumnChunks {
            field: ArrowField::new(field.name.clone(), read_as(&field.dtype), field.is_nullable),
            descriptor,
            chunks: chunks.into_iter().map(|(_, chunk)| chunk).collect(),
        })
    }
}

impl ColumnChunks {
    /// Bytes of the values of a row group before compression.
    pub fn uncompressed(&self, group: usize) -> u64 {
        self.chunks[group].uncompressed
    }

    /// Decodes pages that hold `values` values, or those of them that the mask admits.
    fn decode(&self, chunk: &Chunk, pages: Vec<u8>, values: usize, mask: Option<&[bool]>) -> PolarsResult<Series> {
        let meta = self.meta(chunk.compression, values as i64);
        let pages = PageReader::new_with_page_meta(Cursor::new(pages.into()), meta, vec![], usize::MAX);
        let filter = mask.map(|mask| {
            let mask = BooleanChunked::from_slice(PlSmallStr::EMPTY, mask);
            let bits = mask.downcast_iter().next().map(|array| array.values().clone());
            Filter::new_masked(bits.unwrap_or_default())
        });
        let wanted = mask.map_or(values, |mask| mask.iter().filter(|admitted| **admitted).count());
        let decompressed = BasicDecompressor::new(pages, vec![]);
        let types = vec![&self.descriptor.primitive_type];
        let (arrays, _) = column_iter_to_arrays(vec![decompressed], types, self.field.clone(), filter)?;
        let series = Series::try_from((&self.field, arrays))?;
        if series.len() == wanted {
            Ok(series)
        } else {
            Err(out_of_spec("pages hold fewer values than the footer says"))
        }
    }

    /// The pages that lie one after another in `bytes`, however many they are.
    fn pages(&self, compression: Compression, bytes: Buffer<u8>) -> PageReader {
        PageReader::new_with_page_meta(Cursor::new(bytes), self.meta(compression, i64::MAX), vec![], usize::MAX)
    }

    fn meta(&self, compression: Compression, values: i64) -> PageMetaData {
        PageMetaData::new(0, values, compression, self.descriptor.clone())
    }
}

/// Reads a row group, all at once or slice after slice.
pub struct GroupReader<'a> {
    blob: &'a Blob,
    group: usize,
    rows: usize,
    /// Of the columns that were read in slices so far.
    cursors: Vec<(&'a ColumnChunks, PageCursor)>,
}

impl<'a> GroupReader<'a> {
    /// Of the row group number `group`, which has `rows` rows.
    pub fn new(blob: &'a Blob, group: usize, rows: usize) -> GroupReader<'a> {
        GroupReader { blob, group, rows, cursors: Vec::new() }
    }

    /// Reads some columns at `rows` of the group, or at those of them that the mask admits. From call to call the
    /// rows of a column go forward.
    ///
    /// # Errors
    /// [`Error::Table`] for what cannot be read; a panic inside the decoder is one as well. [`Error::Store`].
    pub fn read(
        &mut self,
        columns: &[&'a ColumnChunks],
        rows: Range<usize>,
        mask: Option<&[bool]>,
    ) -> Result<Vec<Series>> {
        if rows != (0..self.rows) {
            return columns.iter().map(|column| self.read_slice(column, rows.clone(), mask)).collect();
        }
        let chunks = columns.iter().map(|column| &column.chunks[self.group]);
        let bytes = self.blob.read(&chunks.clone().map(|chunk| chunk.bytes.clone()).collect::<Vec<_>>())?;
        let read = columns.iter().zip(chunks).zip(bytes);
        read.map(|((column, chunk), bytes)| guarded(self.blob, || column.decode(chunk, bytes, self.rows, mask)))
            .collect()
    }

    fn read_slice(&mut self, column: &'a ColumnChunks, rows: Range<usize>, mask: Option<&[bool]>) -> Result<Series> {
        let at = self.cursors.iter().position(|(known, _)| std::ptr::eq(*known, column)).unwrap_or_else(|| {
            self.cursors.push((column, PageCursor::new(&column.chunks[self.group])));
            self.cursors.len() - 1
        });
        let cursor = &mut self.cursors[at].1;
        let pages = cursor.take(self.blob, column, rows.clone())?;
        let mut whole = vec![false; pages.values];
        let admitted = &mut whole[pages.before..pages.before + rows.len()];
        match mask {
            Some(mask) => admitted.copy_from_slice(mask),
            None => admitted.fill(true),
        }
        let chunk = &column.chunks[self.group];
        guarded(self.blob, || column.decode(chunk, pages.bytes, pages.values, Some(&whole)))
    }
}

/// Walks over the pages of one column chunk and holds those at the current rows.
struct PageCursor {
    chunk: Chunk,
    /// Offset in the file of the first byte that was not read.
    next: u64,
    /// Bytes read and still needed, from the first page of `pages` on.
    held: Buffer<u8>,
    /// The page before all others, where there is one; read with the first.
    dictionary: Option<Vec<u8>>,
    /// Bytes, header included, and values of the pages that are held whole.
    pages: VecDeque<(usize, usize)>,
    /// Row of the first value of the first of them.
    row: usize,
}

/// Whole pages, the dictionary first.
struct Pages {
    bytes: Vec<u8>,
    values: usize,
    /// Values before those that were asked for.
    before: usize,
}

impl PageCursor {
    fn new(chunk: &Chunk) -> PageCursor {
        PageCursor {
            chunk: chunk.clone(),
            next: chunk.bytes.start,
            held: Buffer::default(),
            dictionary: None,
            pages: VecDeque::new(),
            row: 0,
        }
    }

    /// The pages that hold `rows`. What lies before them is dropped.
    fn take(&mut self, blob: &Blob, column: &ColumnChunks, rows: Range<usize>) -> Result<Pages> {
        if self.dictionary.is_none() {
            self.dictionary = Some(self.read_dictionary(blob, column)?);
        }
        while self.row + self.values() < rows.end {
            let page = self.find_page(blob, column)?;
            self.pages.push_back(page);
            while let Some(&(bytes, values)) = self.pages.front().filter(|(_, values)| self.row + values <= rows.start)
            {
                self.pages.pop_front();
                self.row += values;
                self.held = self.held.clone().sliced(bytes..);
            }
        }
        let length: usize = self.pages.iter().map(|(bytes, _)| bytes).sum();
        let mut bytes = self.dictionary.clone().unwrap_or_default();
        bytes.extend_from_slice(&self.held[..length]);
        Ok(Pages { bytes, values: self.values(), before: rows.start - self.row })
    }

    fn values(&self) -> usize {
        self.pages.iter().map(|(_, values)| values).sum()
    }

    /// Takes the dictionary from the start of what is held.
    fn read_dictionary(&mut self, blob: &Blob, column: &ColumnChunks) -> Result<Vec<u8>> {
        let compression = self.chunk.compression;
        let length = self.parse(blob, 0, |held| {
            let mut pages = column.pages(compression, held);
            pages.read_dict()?;
            Ok(pages.into_inner().0.position() as usize)
        })?;
        let dictionary = self.held[..length].to_vec();
        self.held = self.held.clone().sliced(length..);
        Ok(dictionary)
    }

    /// Length and values of the first page behind those that are known.
    fn find_page(&mut self, blob: &Blob, column: &ColumnChunks) -> Result<(usize, usize)> {
        let compression = self.chunk.compression;
        let known = self.pages.iter().map(|(bytes, _)| bytes).sum();
        self.parse(blob, known, |held| {
            let mut pages = column.pages(compression, held);
            let values = match pages.next() {
                Some(Ok(CompressedPage::Data(page))) => page.num_values(),
                Some(Err(error)) => return Err(error.into()),
                _ => return Err(out_of_spec("pages hold fewer values than the footer says")),
            };
            Ok((pages.into_inner().0.position() as usize, values))
        })
    }

    /// Parses what is held from `from` on, and reads more of the chunk where that is too little.
    fn parse<T>(&mut self, blob: &Blob, from: usize, parse: impl Fn(Buffer<u8>) -> PolarsResult<T>) -> Result<T> {
        let mut ahead = AHEAD;
        loop {
            let rest = self.held.clone().sliced(from..);
            let complete = self.next == self.chunk.bytes.end;
            if complete || !rest.is_empty() {
                match guarded(blob, || parse(rest)) {
                    // A page that is cut short looks like a malformed one until all of the chunk is there.
                    Err(_) if !complete => {}
                    parsed => return parsed,
                }
            }
            let end = self.chunk.bytes.end.min(self.next + ahead);
            let more = blob.read_one(self.next..end)?;
            self.held = [&self.held[..], &more].concat().into();
            self.next = end;
            ahead *= 2;
        }
    }
}

/// The type that values are decoded into. Some types of columns have no array in this build of polars, or none that is
/// of use, and the bytes on the disk are those of a simpler one: of categories the text, of short integers an `i32`,
/// of half-precision numbers two bytes.
fn read_as(dtype: &ArrowDataType) -> ArrowDataType {
    use ArrowDataType::{Dictionary, FixedSizeBinary, Float16, Int8, Int16, Int32, UInt8, UInt16, UInt32};
    match dtype {
        Dictionary(_, values, _) => values.as_ref().clone(),
        Int8 | Int16 => Int32,
        UInt8 | UInt16 => UInt32,
        Float16 => FixedSizeBinary(2),
        other => other.clone(),
    }
}

fn out_of_spec(reason: &'static str) -> PolarsError {
    PolarsError::ComputeError(reason.into())
}

/// Malformed files can make a parquet reader panic; that is an error of the file.
fn guarded<T>(blob: &Blob, read: impl FnOnce() -> PolarsResult<T>) -> Result<T> {
    // Sound to assert: what the closure borrowed mutably is dropped by the caller on error.
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::table(&blob.path(), format!("cannot be read as parquet: {error}"))),
        Err(_) => Err(Error::table(&blob.path(), "cannot be read as parquet: the file is malformed")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use polars::prelude::{DataFrame, ParquetCompression, ParquetWriter, df};

    use super::*;
    use crate::store;

    const ROWS: usize = 5000;

    /// Text of its own in each row, text from a dictionary, numbers with and without nulls; pages of about 100 rows.
    fn table() -> DataFrame {
        df!(
            "text" => (0..ROWS).map(|n| (n % 7 != 3).then(|| format!("a text of row number {n}"))).collect::<Vec<_>>(),
            "word" => (0..ROWS).map(|n| ["one", "two", "three"][n * n % 3]).collect::<Vec<_>>(),
            "score" => (0..ROWS).map(|n| (n % 5 != 0).then_some(n as f64 / 3.0)).collect::<Vec<_>>(),
            "side" => (0..ROWS).map(|n| n as i32).collect::<Vec<_>>(),
        )
        .unwrap()
    }

    fn written(frame: &mut DataFrame, compression: ParquetCompression) -> (tempfile::TempDir, Blob) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let writer = ParquetWriter::new(fs::File::create(&path).unwrap());
        writer
            .with_data_page_size(Some(2000))
            .with_row_group_size(Some(ROWS))
            .with_compression(compression)
            .finish(frame)
            .unwrap();
        let blob = store::find(&path.to_string_lossy()).unwrap().unwrap().swap_remove(0);
        (folder, blob)
    }

    #[test]
    fn slices_of_a_row_group_hold_what_the_whole_holds() {
        for compression in [ParquetCompression::Uncompressed, ParquetCompression::Snappy] {
            let mut frame = table();
            let (_folder, blob) = written(&mut frame, compression);
            let footer = Footer::read_all(std::slice::from_ref(&blob)).unwrap().swap_remove(0);
            assert_eq!(footer.row_groups, [ROWS]);
            let names = ["text", "word", "score", "side"];
            let columns: Vec<ColumnChunks> = names.iter().map(|name| footer.column(&blob, name).unwrap()).collect();
            let columns: Vec<&ColumnChunks> = columns.iter().collect();
            let mask: Vec<bool> = (0..ROWS).map(|n| n % 11 == 4 || (1000..1100).contains(&n)).collect();
            let whole = |mask| GroupReader::new(&blob, 0, ROWS).read(&columns, 0..ROWS, mask).unwrap();
            let (all, some) = (whole(None), whole(Some(&mask)));
            for (series, name) in all.iter().zip(names) {
                assert!(series.equals_missing(frame.column(name).unwrap().as_materialized_series()), "{name}");
            }
            for most in [1, 7, 99, 640, ROWS - 1] {
                // Every other slice is passed over by the second reader.
                let (mut first, mut second) = (GroupReader::new(&blob, 0, ROWS), GroupReader::new(&blob, 0, ROWS));
                let mut before = 0;
                for (at, start) in (0..ROWS).step_by(most).enumerate() {
                    let rows = start..ROWS.min(start + most);
                    let admitted = &mask[rows.clone()];
                    let count = admitted.iter().filter(|a| **a).count();
                    if most < 99 && at % 50 > 1 {
                        before += count;
                        continue;
                    }
                    let read = first.read(&columns, rows.clone(), None).unwrap();
                    for (series, wanted) in read.iter().zip(&all) {
                        assert!(series.equals_missing(&wanted.slice(start as i64, rows.len())), "{most} {rows:?}");
                    }
                    if at % 2 == 0 {
                        let read = second.read(&columns, rows.clone(), Some(admitted)).unwrap();
                        for (series, wanted) in read.iter().zip(&some) {
                            assert!(series.equals_missing(&wanted.slice(before as i64, count)), "{most} {rows:?}");
                        }
                    }
                    before += count;
                }
            }
        }
    }

    #[test]
    fn a_cursor_holds_the_pages_of_its_rows_alone() {
        let (_folder, blob) = written(&mut table(), ParquetCompression::Uncompressed);
        let footer = Footer::read_all(std::slice::from_ref(&blob)).unwrap().swap_remove(0);
        let column = footer.column(&blob, "text").unwrap();
        let mut cursor = PageCursor::new(&column.chunks[0]);
        for start in (0..ROWS).step_by(500) {
            let pages = cursor.take(&blob, &column, start..start + 500).unwrap();
            assert!(pages.values < 1000, "{} values for 500 rows", pages.values);
        }
    }

    #[test]
    fn any_damage_is_an_error_that_names_the_file() {
        let (_folder, blob) = written(&mut table(), ParquetCompression::Snappy);
        let path = blob.path();
        let whole = fs::read(&path).unwrap();
        let mut refused = 0;
        for seed in 0..400_u64 {
            let mut bytes = whole.clone();
            // A few bytes anywhere, the footer more often than its share.
            let mixed = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let span = if seed % 2 == 0 { bytes.len() } else { 1500 };
            let at = bytes.len() - 1 - (mixed >> 8) as usize % span;
            for byte in bytes.iter_mut().skip(at).take(1 + (seed % 5) as usize) {
                *byte ^= (mixed >> 40) as u8 | 1;
            }
            fs::write(&path, &bytes).unwrap();
            let read = || -> Result<()> {
                let footer = Footer::read_all(std::slice::from_ref(&blob))?.swap_remove(0);
                for name in ["text", "word", "score", "side"] {
                    let column = footer.column(&blob, name)?;
                    let rows = footer.row_groups[0];
                    GroupReader::new(&blob, 0, rows).read(&[&column], 0..rows, None)?;
                    GroupReader::new(&blob, 0, rows).read(&[&column], 0..rows.min(600), None)?;
                }
                Ok(())
            };
            if let Err(error) = read() {
                refused += 1;
                assert!(error.to_string().contains("a.parquet"), "{error}");
            }
        }
        assert!(refused > 100, "{refused}");
    }
}
