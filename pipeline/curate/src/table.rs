//! Which table this is: fields of the run found among the columns of a parquet file.
//!
//! Releases of the same data set differ in case (`URL`, `url`), in names (`TEXT`, `caption`) and in types
//! (`WIDTH` as i32, i64 or f64). Columns are found by name whatever their case, checked for their type once,
//! before the first request, and read as what they are. A column that nobody needs may be of any type.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use polars::prelude::ArrowDataType;
use serde::{Deserialize, Serialize};

use crate::score::Score;

/// Whose table it is, and so which columns it is known to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// LAION-400M, -5B and all derived from them: joined, aesthetic, high-resolution, art, coco, relaion.
    Laion,
    /// COYO-700M.
    Coyo,
    /// DataComp.
    Datacomp,
    /// Any other: the recipe's `columns` name what there is.
    Custom,
}

/// What the run wants to know of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Where the image lies.
    Url,
    /// What it shows.
    Caption,
    /// Claimed width.
    Width,
    /// Claimed height.
    Height,
    /// NSFW label.
    Nsfw,
    /// Language of the caption.
    Language,
    /// A score.
    Score(Score),
}

impl Field {
    /// The name in a recipe's `columns`.
    pub fn name(self) -> &'static str {
        match self {
            Field::Url => "url",
            Field::Caption => "caption",
            Field::Width => "width",
            Field::Height => "height",
            Field::Nsfw => "nsfw",
            Field::Language => "language",
            Field::Score(score) => score.name(),
        }
    }

    fn all() -> impl Iterator<Item = Field> {
        let plain = [Field::Url, Field::Caption, Field::Width, Field::Height, Field::Nsfw, Field::Language];
        plain.into_iter().chain(Score::ALL.into_iter().map(Field::Score))
    }

    /// Lower-case names of the columns that hold this field in tables of `kind`, preferred first.
    fn names(self, kind: Kind) -> &'static [&'static str] {
        match (kind, self) {
            (Kind::Custom, _) => &[],
            (_, Field::Url) => &["url"],
            (Kind::Laion, Field::Caption) => &["text", "caption"],
            (_, Field::Caption) => &["text"],
            (Kind::Datacomp, Field::Width) => &["original_width"],
            (Kind::Datacomp, Field::Height) => &["original_height"],
            (_, Field::Width) => &["width"],
            (_, Field::Height) => &["height"],
            (Kind::Laion, Field::Nsfw) => &["nsfw"],
            (Kind::Laion, Field::Language) => &["language"],
            (Kind::Laion, Field::Score(Score::AestheticV1)) => &["aesthetic"],
            (Kind::Laion, Field::Score(Score::AestheticV2)) => &["aesthetic_score"],
            (Kind::Laion, Field::Score(Score::Similarity)) => &["similarity"],
            (Kind::Laion, Field::Score(Score::Punsafe)) => &["punsafe"],
            (Kind::Laion, Field::Score(Score::Watermark)) => &["pwatermark"],
            (Kind::Coyo, Field::Score(Score::AestheticV2)) => &["aesthetic_score_laion_v2"],
            (Kind::Coyo, Field::Score(Score::SimilarityB32)) => &["clip_similarity_vitb32"],
            (Kind::Coyo, Field::Score(Score::SimilarityL14)) => &["clip_similarity_vitl14"],
            (Kind::Coyo, Field::Score(Score::Opennsfw2)) => &["nsfw_score_opennsfw2"],
            (Kind::Coyo, Field::Score(Score::Gantman)) => &["nsfw_score_gantman"],
            (Kind::Coyo, Field::Score(Score::Watermark)) => &["watermark_score"],
            (Kind::Datacomp, Field::Score(Score::SimilarityB32)) => &["clip_b32_similarity_score"],
            (Kind::Datacomp, Field::Score(Score::SimilarityL14)) => &["clip_l14_similarity_score"],
            _ => &[],
        }
    }

    fn accepts(self, dtype: &ArrowDataType) -> bool {
        match self {
            Field::Url | Field::Caption | Field::Nsfw | Field::Language => is_text(dtype),
            Field::Width | Field::Height | Field::Score(_) => is_number(dtype),
        }
    }
}

/// Text, also where it is written as categories.
fn is_text(dtype: &ArrowDataType) -> bool {
    match dtype {
        ArrowDataType::Dictionary(_, values, _) => is_text(values),
        dtype => *dtype == ArrowDataType::Utf8View,
    }
}

fn is_number(dtype: &ArrowDataType) -> bool {
    use ArrowDataType::{Float16, Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    matches!(dtype, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 | Float16 | Float32 | Float64)
}

/// The name of a type for people: without what nested types hold.
fn type_name(dtype: &ArrowDataType) -> String {
    match dtype {
        ArrowDataType::Utf8View => "string".to_owned(),
        ArrowDataType::BinaryView => "binary".to_owned(),
        ArrowDataType::LargeList(_) => "list".to_owned(),
        other => {
            let written = format!("{other:?}");
            written.split(['(', ' ']).next().unwrap_or_default().to_lowercase()
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Field {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
        let name = String::deserialize(deserializer)?;
        Field::all().find(|f| f.name() == name).ok_or_else(|| {
            let known = Field::all().map(Field::name).collect::<Vec<_>>().join(", ");
            serde::de::Error::custom(format!("unknown field {name:?}, expected one of {known}"))
        })
    }
}

/// The columns of one table that hold what the run wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    found: BTreeMap<Field, String>,
    /// Why a column that holds a field by its name cannot be read as such.
    unreadable: BTreeMap<Field, String>,
}

impl Columns {
    /// Finds the fields among `(name, type)` of a table's columns: those that the recipe names under exactly
    /// that name, the others by what `kind` is known to call them.
    ///
    /// # Errors
    /// What is missing, ambiguous or, where url, caption or the recipe needs it, of another type, with the columns
    /// that there are.
    pub fn find(
        kind: Kind,
        named: &BTreeMap<Field, String>,
        columns: &[(String, ArrowDataType)],
    ) -> Result<Columns, String> {
        let (mut found, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for field in Field::all() {
            let (column, dtype) = match named.get(&field) {
                Some(name) => columns.iter().find(|(column, _)| column == name).ok_or_else(|| {
                    format!("has no column {name:?}, which the recipe names as {field}{}", Listed(columns))
                })?,
                None => match by_known_name(field, kind, columns)? {
                    Some(column) => column,
                    None => continue,
                },
            };
            if field.accepts(dtype) {
                found.insert(field, column.clone());
                continue;
            }
            let dtype = type_name(dtype);
            let reason = format!("column {column:?}, the {field}, is of type {dtype}, which cannot be read as such");
            if named.contains_key(&field) {
                return Err(reason);
            }
            unreadable.insert(field, reason);
        }
        for field in [Field::Url, Field::Caption] {
            if let Some(reason) = unreadable.remove(&field) {
                return Err(reason);
            }
            if !found.contains_key(&field) {
                return Err(format!(
                    "has no column for the {field}: not a table of kind {kind:?}; name it under source.columns{}",
                    Listed(columns)
                ));
            }
        }
        Ok(Columns { found, unreadable })
    }

    /// The column of `field`, where the table has one.
    pub fn get(&self, field: Field) -> Option<&str> {
        self.found.get(&field).map(String::as_str)
    }

    /// The column of `field`, which a filter of the recipe needs.
    ///
    /// # Errors
    /// Why the filter cannot be applied to this table.
    pub fn require(&self, field: Field) -> Result<&str, String> {
        if let Some(reason) = self.unreadable.get(&field) {
            return Err(format!("{reason}; the filter needs it"));
        }
        self.get(field).ok_or_else(|| match field {
            Field::Score(Score::AestheticV2) if self.get(Field::Score(Score::AestheticV1)).is_some() => format!(
                "has aesthetic scores of LAION's first predictor (column {:?}), and the filter names aesthetic_v2, \
                 LAION's second: the scales differ (above 7 on V1 lie 52 million rows of laion2B-en, from 6 on V2 \
                 12 million); name aesthetic_v1 in the filter, or take a table with AESTHETIC_SCORE",
                self.get(Field::Score(Score::AestheticV1)).unwrap_or_default()
            ),
            Field::Score(Score::AestheticV1) if self.get(Field::Score(Score::AestheticV2)).is_some() => format!(
                "has aesthetic scores of LAION's second predictor (column {:?}), and the filter names aesthetic_v1, \
                 LAION's first: the scales differ; name aesthetic_v2 in the filter",
                self.get(Field::Score(Score::AestheticV2)).unwrap_or_default()
            ),
            Field::Width | Field::Height => format!(
                "has no column for the {field}, which filter.min_side or filter.max_aspect_ratio needs; leave them \
                 out: [image] checks the size of what was downloaded"
            ),
            _ => format!("has no column for {field}, which the filter names"),
        })
    }

    /// Every column that holds a field, once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.found.values().map(String::as_str).collect::<BTreeSet<_>>().into_iter()
    }

    /// The scores that the table has.
    pub fn scores(&self) -> impl Iterator<Item = (Score, &str)> {
        self.found.iter().filter_map(|(field, column)| match field {
            Field::Score(score) => Some((*score, column.as_str())),
            _ => None,
        })
    }
}

fn by_known_name(
    field: Field,
    kind: Kind,
    columns: &[(String, ArrowDataType)],
) -> Result<Option<&(String, ArrowDataType)>, String> {
    for name in field.names(kind) {
        let matching: Vec<_> = columns.iter().filter(|(column, _)| column.eq_ignore_ascii_case(name)).collect();
        match matching[..] {
            [] => {}
            [one] => return Ok(Some(one)),
            [(a, _), (b, _), ..] => {
                return Err(format!(
                    "columns {a:?} and {b:?} could both be the {field}; name one under source.columns"
                ));
            }
        }
    }
    Ok(None)
}

struct Listed<'a>(&'a [(String, ArrowDataType)]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        write!(f, " (it has {})", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(list: &str) -> Vec<(String, ArrowDataType)> {
        list.split(' ')
            .map(|entry| {
                let (name, dtype) = entry.split_once(':').unwrap();
                let dtype = match dtype {
                    "s" => ArrowDataType::Utf8View,
                    "i32" => ArrowDataType::Int32,
                    "i64" => ArrowDataType::Int64,
                    "f32" => ArrowDataType::Float32,
                    "f64" => ArrowDataType::Float64,
                    "struct" => ArrowDataType::Struct(Vec::new()),
                    other => panic!("{other}"),
                };
                (name.to_owned(), dtype)
            })
            .collect()
    }

    fn find(kind: Kind, list: &str) -> Result<Columns, String> {
        Columns::find(kind, &BTreeMap::new(), &columns(list))
    }

    /// The published tables, as `reference` data sheets list them.
    const TABLES: [(&str, Kind, &str, &str); 10] = [
        (
            "laion2B-multi",
            Kind::Laion,
            "SAMPLE_ID:i64 URL:s TEXT:s HEIGHT:i32 WIDTH:i32 LICENSE:s LANGUAGE:s NSFW:s similarity:f64",
            "url=URL caption=TEXT width=WIDTH height=HEIGHT nsfw=NSFW language=LANGUAGE similarity=similarity",
        ),
        (
            "laion2B-en-joined",
            Kind::Laion,
            "URL:s TEXT:s WIDTH:i32 HEIGHT:i32 similarity:f64 hash:i64 punsafe:f32 pwatermark:f32",
            "url=URL caption=TEXT width=WIDTH height=HEIGHT similarity=similarity punsafe=punsafe watermark=pwatermark",
        ),
        (
            "laion2B-en-aesthetic",
            Kind::Laion,
            "URL:s TEXT:s WIDTH:i32 HEIGHT:i32 similarity:f64 hash:i64 punsafe:f32 pwatermark:f32 aesthetic:f32",
            "url=URL caption=TEXT width=WIDTH height=HEIGHT aesthetic_v1=aesthetic similarity=similarity punsafe=punsafe watermark=pwatermark",
        ),
        (
            "laion-high-resolution",
            Kind::Laion,
            "URL:s TEXT:s WIDTH:i32 HEIGHT:i32 similarity:f64 LANGUAGE:s hash:i64 pwatermark:f32 punsafe:f32",
            "url=URL caption=TEXT width=WIDTH height=HEIGHT language=LANGUAGE similarity=similarity punsafe=punsafe watermark=pwatermark",
        ),
        (
            "laion-art",
            Kind::Laion,
            "URL:s TEXT:s WIDTH:i32 HEIGHT:i32 similarity:f64 LANGUAGE:s hash:i64 pwatermark:f32 punsafe:f32 aesthetic:f32",
            "url=URL caption=TEXT width=WIDTH height=HEIGHT language=LANGUAGE aesthetic_v1=aesthetic similarity=similarity punsafe=punsafe watermark=pwatermark",
        ),
        (
            "improved_aesthetics",
            Kind::Laion,
            "URL:s TEXT:s WIDTH:f64 HEIGHT:f64 similarity:f64 punsafe:f32 pwatermark:f32 AESTHETIC_SCORE:f32 hash:i64 __index_level_0__:i64",
            "url=URL caption=TEXT width=WIDTH height=HEIGHT aesthetic_v2=AESTHETIC_SCORE similarity=similarity punsafe=punsafe watermark=pwatermark",
        ),
        (
            "laion-coco",
            Kind::Laion,
            "URL:s TEXT:s top_caption:s all_captions:struct all_similarities:struct WIDTH:i64 HEIGHT:i64 similarity:f64 hash:i64 pwatermark:f32 punsafe:f32",
            "url=URL caption=TEXT width=WIDTH height=HEIGHT similarity=similarity punsafe=punsafe watermark=pwatermark",
        ),
        (
            "relaion2B-en-research-safe",
            Kind::Laion,
            "url:s caption:s similarity:f64 hash:i64 pwatermark:f32 punsafe:f32 width:i32 height:i32",
            "url=url caption=caption width=width height=height similarity=similarity punsafe=punsafe watermark=pwatermark",
        ),
        (
            "coyo-700m",
            Kind::Coyo,
            "id:i64 url:s text:s width:i32 height:i32 image_phash:s text_length:i32 word_count:i32 num_tokens_bert:i32 num_tokens_gpt:i32 num_faces:i32 clip_similarity_vitb32:f32 clip_similarity_vitl14:f32 nsfw_score_opennsfw2:f32 nsfw_score_gantman:f32 watermark_score:f32 aesthetic_score_laion_v2:f32",
            "url=url caption=text width=width height=height aesthetic_v2=aesthetic_score_laion_v2 similarity_b32=clip_similarity_vitb32 similarity_l14=clip_similarity_vitl14 opennsfw2=nsfw_score_opennsfw2 gantman=nsfw_score_gantman watermark=watermark_score",
        ),
        (
            "datacomp",
            Kind::Datacomp,
            "uid:s url:s text:s original_width:i64 original_height:i64 clip_b32_similarity_score:f32 clip_l14_similarity_score:f32 face_bboxes:struct",
            "url=url caption=text width=original_width height=original_height similarity_b32=clip_b32_similarity_score similarity_l14=clip_l14_similarity_score",
        ),
    ];

    #[test]
    fn every_published_table_is_recognised() {
        for (name, kind, list, wanted) in TABLES {
            let Columns { found, .. } = find(kind, list).unwrap_or_else(|e| panic!("{name}: {e}"));
            let said: Vec<String> = found.iter().map(|(field, column)| format!("{field}={column}")).collect();
            assert_eq!(said.join(" "), wanted, "{name}");
        }
    }

    #[test]
    fn a_threshold_on_the_other_aesthetic_scale_is_explained() {
        let v1 = find(Kind::Laion, TABLES[2].2).unwrap();
        let reason = v1.require(Field::Score(Score::AestheticV2)).unwrap_err();
        assert!(reason.contains("aesthetic_v1") && reason.contains("scales differ"), "{reason}");
        let v2 = find(Kind::Laion, TABLES[5].2).unwrap();
        assert!(v2.require(Field::Score(Score::AestheticV1)).unwrap_err().contains("aesthetic_v2"));
        assert_eq!(v2.require(Field::Score(Score::AestheticV2)), Ok("AESTHETIC_SCORE"));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let coyo_as_datacomp = find(Kind::Datacomp, "link:s text:s").unwrap_err();
        assert!(coyo_as_datacomp.contains("url") && coyo_as_datacomp.contains("link"), "{coyo_as_datacomp}");
        let ambiguous = find(Kind::Laion, "URL:s url:s TEXT:s").unwrap_err();
        assert!(ambiguous.contains("\"URL\" and \"url\""), "{ambiguous}");
        let typed = find(Kind::Laion, "URL:s TEXT:f64 WIDTH:i32 HEIGHT:i32").unwrap_err();
        assert!(typed.contains("TEXT") && typed.contains("float64"), "{typed}");
        let typed = find(Kind::Laion, "URL:s TEXT:s WIDTH:s HEIGHT:i32").unwrap();
        let needed = typed.require(Field::Width).unwrap_err();
        assert!(needed.contains("WIDTH") && needed.contains("string"), "{needed}");
        assert_eq!((typed.get(Field::Width), typed.get(Field::Height)), (None, Some("HEIGHT")));
        let named = BTreeMap::from([(Field::Width, "WIDTH".to_owned())]);
        let named = Columns::find(Kind::Laion, &named, &columns("URL:s TEXT:s WIDTH:s")).unwrap_err();
        assert!(named.contains("WIDTH") && named.contains("string"), "{named}");
    }

    #[test]
    fn the_recipe_may_name_columns() {
        let named = BTreeMap::from([(Field::Caption, "top_caption".to_owned())]);
        let found = Columns::find(Kind::Laion, &named, &columns(TABLES[6].2)).unwrap();
        assert_eq!(found.get(Field::Caption), Some("top_caption"));
        let custom = BTreeMap::from([(Field::Url, "u".to_owned()), (Field::Caption, "c".to_owned())]);
        let found = Columns::find(Kind::Custom, &custom, &columns("u:s c:s WIDTH:i32")).unwrap();
        assert_eq!(found.get(Field::Width), None);
        assert!(Columns::find(Kind::Custom, &custom, &columns("u:s C:s")).unwrap_err().contains("\"c\""));
    }
}
