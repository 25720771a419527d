//! LAION- and COYO-shaped parquet tables: the published column names, types and order.

use crate::{Error, Result};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::sync::Arc;

/// One row, before it takes the shape of a table. What is `None` becomes null.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub url: Option<String>,
    pub caption: Option<String>,
    pub width: Option<f64>,
    pub height: Option<f64>,
    pub aesthetic: Option<f32>,
    pub similarity: f64,
    pub punsafe: Option<f32>,
    pub pwatermark: Option<f32>,
    /// The table's own row key: LAION's `hash`, COYO's `id`.
    pub id: i64,
    /// A perceptual hash, as COYO gives it.
    pub phash: u64,
}

/// The two shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// `improved_aesthetics` of LAION: floating-point sizes, `AESTHETIC_SCORE` of the V2 predictor.
    Laion,
    /// COYO-700M.
    Coyo,
}

const LAION: &str = "message schema {
    OPTIONAL BYTE_ARRAY URL (UTF8);
    OPTIONAL BYTE_ARRAY TEXT (UTF8);
    OPTIONAL DOUBLE WIDTH;
    OPTIONAL DOUBLE HEIGHT;
    OPTIONAL DOUBLE similarity;
    OPTIONAL FLOAT punsafe;
    OPTIONAL FLOAT pwatermark;
    OPTIONAL FLOAT AESTHETIC_SCORE;
    OPTIONAL INT64 hash;
    OPTIONAL INT64 __index_level_0__;
}";

const COYO: &str = "message schema {
    OPTIONAL INT64 id;
    OPTIONAL BYTE_ARRAY url (UTF8);
    OPTIONAL BYTE_ARRAY text (UTF8);
    OPTIONAL INT32 width;
    OPTIONAL INT32 height;
    OPTIONAL BYTE_ARRAY image_phash (UTF8);
    OPTIONAL INT32 text_length;
    OPTIONAL INT32 word_count;
    OPTIONAL INT32 num_tokens_bert;
    OPTIONAL INT32 num_tokens_gpt;
    OPTIONAL INT32 num_faces;
    OPTIONAL FLOAT clip_similarity_vitb32;
    OPTIONAL FLOAT clip_similarity_vitl14;
    OPTIONAL FLOAT nsfw_score_opennsfw2;
    OPTIONAL FLOAT nsfw_score_gantman;
    OPTIONAL FLOAT watermark_score;
    OPTIONAL FLOAT aesthetic_score_laion_v2;
}";

impl Table {
    pub(crate) const ALL: [Self; 2] = [Self::Laion, Self::Coyo];

    /// The name of its folder, of its rows' keys and of its paths on the server.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Laion => "laion",
            Self::Coyo => "coyo",
        }
    }

    /// The rows as a parquet file with row groups of `group` rows; `first` is the number of the first row.
    pub(crate) fn encode(self, path: &str, rows: &[Entry], first: usize, group: usize) -> Result<Vec<u8>> {
        self.write(rows, first, group).map_err(|source| Error::Table { table: path.to_owned(), source })
    }

    fn write(self, rows: &[Entry], first: usize, group: usize) -> std::result::Result<Vec<u8>, ParquetError> {
        let message = match self {
            Self::Laion => LAION,
            Self::Coyo => COYO,
        };
        let schema = Arc::new(parse_message_type(message)?);
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
        for (number, rows) in rows.chunks(group).enumerate() {
            let mut columns = Columns { rows, group: file.next_row_group()? };
            match self {
                Self::Laion => columns.write_laion((first + number * group) as i64)?,
                Self::Coyo => columns.write_coyo()?,
            }
            columns.group.close()?;
        }
        file.into_inner()
    }
}

struct Columns<'rows, 'file> {
    rows: &'rows [Entry],
    group: SerializedRowGroupWriter<'file, Vec<u8>>,
}

impl Columns<'_, '_> {
    fn write_laion(&mut self, first: i64) -> std::result::Result<(), ParquetError> {
        self.column::<ByteArrayType>(|_, row| text(&row.url))?;
        self.column::<ByteArrayType>(|_, row| text(&row.caption))?;
        self.column::<DoubleType>(|_, row| row.width)?;
        self.column::<DoubleType>(|_, row| row.height)?;
        self.column::<DoubleType>(|_, row| Some(row.similarity))?;
        self.column::<FloatType>(|_, row| row.punsafe)?;
        self.column::<FloatType>(|_, row| row.pwatermark)?;
        self.column::<FloatType>(|_, row| row.aesthetic)?;
        self.column::<Int64Type>(|_, row| Some(row.id))?;
        self.column::<Int64Type>(|number, _| Some(first + number as i64))
    }

    fn write_coyo(&mut self) -> std::result::Result<(), ParquetError> {
        let characters = |row: &Entry| row.caption.as_ref().map(|caption| caption.chars().count() as i32);
        let words = |row: &Entry| row.caption.as_ref().map(|caption| caption.split_whitespace().count() as i32);
        self.column::<Int64Type>(|_, row| Some(row.id))?;
        self.column::<ByteArrayType>(|_, row| text(&row.url))?;
        self.column::<ByteArrayType>(|_, row| text(&row.caption))?;
        self.column::<Int32Type>(|_, row| row.width.map(|width| width as i32))?;
        self.column::<Int32Type>(|_, row| row.height.map(|height| height as i32))?;
        self.column::<ByteArrayType>(|_, row| Some(ByteArray::from(format!("{:016x}", row.phash).into_bytes())))?;
        self.column::<Int32Type>(|_, row| characters(row))?;
        self.column::<Int32Type>(|_, row| words(row))?;
        // Words and their punctuation: near enough to either tokenizer for a table whose token counts nobody filters.
        self.column::<Int32Type>(|_, row| words(row).map(|words| words + 2))?;
        self.column::<Int32Type>(|_, row| words(row).map(|words| words + 1))?;
        self.column::<Int32Type>(|_, _| Some(0))?;
        self.column::<FloatType>(|_, row| Some(row.similarity as f32))?;
        self.column::<FloatType>(|_, row| Some(row.similarity as f32 * 0.8))?;
        self.column::<FloatType>(|_, row| row.punsafe)?;
        self.column::<FloatType>(|_, row| row.punsafe)?;
        self.column::<FloatType>(|_, row| row.pwatermark)?;
        self.column::<FloatType>(|_, row| row.aesthetic)
    }

    /// Writes the next column: `value` of each row's number and entry.
    fn column<T: DataType>(
        &mut self,
        value: impl Fn(usize, &Entry) -> Option<T::T>,
    ) -> std::result::Result<(), ParquetError> {
        let values: Vec<Option<T::T>> = self.rows.iter().enumerate().map(|(number, row)| value(number, row)).collect();
        let present: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<T::T> = values.into_iter().flatten().collect();
        let mut column = self
            .group
            .next_column()?
            .ok_or_else(|| ParquetError::General("more columns than the schema has".into()))?;
        column.typed::<T>().write_batch(&values, Some(&present), None)?;
        column.close()
    }
}

fn text(value: &Option<String>) -> Option<ByteArray> {
    value.as_ref().map(|value| ByteArray::from(value.as_str()))
}
