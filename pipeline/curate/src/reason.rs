//! Why a row was not kept.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use fetch::FailureClass;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::score::Score;

/// Why a row was not kept: exactly one for each such row, the first that applied. Written `stage.name`, as in
/// `fetch.not_found`; the names are stable, tables store them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The table's own values ruled it out, before any request.
    Filter(Filter),
    /// The cleaned caption is not wanted; found before any request, too.
    Caption(Caption),
    /// The URL did not yield bytes.
    Fetch(FailureClass),
    /// The bytes did not yield pixels; see [`pixels::DecodeError::name`].
    Decode(&'static str),
    /// The pixels are not wanted.
    Image(Image),
    /// A row before it brought the same.
    Duplicate(Duplicate),
    /// The run whose answers are used again does not have it; see [`refilter`](crate::refilter).
    Stored(Stored),
}

/// Reasons of the stage `filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// Width or height is null, NaN or not positive.
    SizeMissing,
    /// A side is shorter than wanted.
    TooSmall,
    /// Longer and narrower than wanted.
    AspectRatio,
    /// The score is null, NaN or infinite.
    ScoreMissing(Score),
    /// The score is on the wrong side of its threshold.
    Score(Score),
    /// The URL is null or empty.
    NoUrl,
    /// The caption is null or blank, or nothing is left of it when it is cleaned.
    NoCaption,
    /// There is no NSFW label.
    NsfwMissing,
    /// The NSFW label is not among those admitted.
    Nsfw,
    /// There is no language.
    LanguageMissing,
    /// The language is not among those admitted.
    Language,
}

/// Reasons of the stage `image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Image {
    /// A format that the recipe does not admit.
    Format,
    /// A real side is shorter than wanted.
    TooSmall,
    /// Longer and narrower than wanted.
    AspectRatio,
    /// The sharpness of the whole is below the threshold.
    Blurred,
    /// No tile is sharp enough.
    NoSharpTile,
    /// The full resolution adds no detail: the image was enlarged.
    Upscaled,
}

/// Reasons of the stage `caption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caption {
    /// Fewer characters than wanted.
    TooShort,
    /// More characters than wanted.
    TooLong,
    /// Fewer words than wanted.
    TooFewWords,
    /// More words than wanted.
    TooManyWords,
}

/// Reasons of the stage `duplicate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Duplicate {
    /// The same bytes.
    Exact,
    /// Nearly the same picture, by perceptual hash.
    Near,
    /// Bytes that many URLs bring, in place of an image that is gone.
    Placeholder,
}

/// Reasons of the stage `stored`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stored {
    /// The row was not requested then.
    NeverAsked,
    /// The image passes now and was turned down then, so that its file was not kept.
    FileNotKept,
}

impl Reason {
    /// The stage, the part before the dot.
    pub const fn stage(self) -> &'static str {
        match self {
            Reason::Filter(_) => "filter",
            Reason::Fetch(_) => "fetch",
            Reason::Decode(_) => "decode",
            Reason::Image(_) => "image",
            Reason::Caption(_) => "caption",
            Reason::Duplicate(_) => "duplicate",
            Reason::Stored(_) => "stored",
        }
    }

    /// Whether the table alone gave it: no request was made.
    pub const fn is_of_table(self) -> bool {
        matches!(self, Reason::Filter(_) | Reason::Caption(_))
    }

    /// The reasons that a list names: each item is one in full (`fetch.dns`), its name alone (`dns`), or a
    /// stage (`fetch`). Only what an answer gave can be named, as only that can be asked for again.
    ///
    /// # Errors
    /// The item that names nothing.
    pub fn named_by(list: &str) -> Result<Vec<Reason>, String> {
        let answered = || Reason::all().filter(|r| matches!(r, Reason::Fetch(_) | Reason::Decode(_)));
        let mut reasons = Vec::new();
        for item in list.split(',').map(str::trim) {
            let before = reasons.len();
            reasons.extend(answered().filter(|reason| {
                let full = reason.to_string();
                item == full || item == reason.stage() || full.split('.').next_back() == Some(item)
            }));
            if reasons.len() == before {
                return Err(format!(
                    "{item:?} names no failure of fetch or decode, the ones that can be asked for again, such as \
                     fetch.dns, dns, or fetch"
                ));
            }
        }
        reasons.sort_unstable();
        reasons.dedup();
        Ok(reasons)
    }

    /// Every reason there is, in order.
    pub fn all() -> impl Iterator<Item = Reason> {
        let filters = [Filter::SizeMissing, Filter::TooSmall, Filter::AspectRatio]
            .into_iter()
            .chain(Score::ALL.into_iter().flat_map(|s| [Filter::ScoreMissing(s), Filter::Score(s)]))
            .chain([Filter::NoUrl, Filter::NoCaption])
            .chain([Filter::NsfwMissing, Filter::Nsfw, Filter::LanguageMissing, Filter::Language]);
        let images =
            [Image::Format, Image::TooSmall, Image::AspectRatio, Image::Blurred, Image::NoSharpTile, Image::Upscaled];
        let captions = [Caption::TooShort, Caption::TooLong, Caption::TooFewWords, Caption::TooManyWords];
        filters
            .map(Reason::Filter)
            .chain(captions.into_iter().map(Reason::Caption))
            .chain(FailureClass::ALL.into_iter().map(Reason::Fetch))
            .chain(pixels::DecodeError::NAMES.into_iter().map(Reason::Decode))
            .chain(images.into_iter().map(Reason::Image))
            .chain([Duplicate::Exact, Duplicate::Near, Duplicate::Placeholder].into_iter().map(Reason::Duplicate))
            .chain([Stored::NeverAsked, Stored::FileNotKept].into_iter().map(Reason::Stored))
    }
}

impl Reason {
    /// The name within its stage, the part after the dot.
    pub fn name(self) -> Cow<'static, str> {
        let name = match self {
            Reason::Filter(Filter::ScoreMissing(score)) => return format!("{score}_missing").into(),
            Reason::Filter(Filter::Score(score)) => score.name(),
            Reason::Filter(Filter::SizeMissing) => "size_missing",
            Reason::Filter(Filter::TooSmall) => "too_small",
            Reason::Filter(Filter::AspectRatio) => "aspect_ratio",
            Reason::Filter(Filter::NoUrl) => "no_url",
            Reason::Filter(Filter::NoCaption) => "no_caption",
            Reason::Filter(Filter::NsfwMissing) => "nsfw_missing",
            Reason::Filter(Filter::Nsfw) => "nsfw",
            Reason::Filter(Filter::LanguageMissing) => "language_missing",
            Reason::Filter(Filter::Language) => "language",
            Reason::Fetch(class) => class.name(),
            Reason::Decode(name) => name,
            Reason::Image(Image::Format) => "format",
            Reason::Image(Image::TooSmall) => "too_small",
            Reason::Image(Image::AspectRatio) => "aspect_ratio",
            Reason::Image(Image::Blurred) => "blurred",
            Reason::Image(Image::NoSharpTile) => "no_sharp_tile",
            Reason::Image(Image::Upscaled) => "upscaled",
            Reason::Caption(Caption::TooShort) => "too_short",
            Reason::Caption(Caption::TooLong) => "too_long",
            Reason::Caption(Caption::TooFewWords) => "too_few_words",
            Reason::Caption(Caption::TooManyWords) => "too_many_words",
            Reason::Duplicate(Duplicate::Exact) => "exact",
            Reason::Duplicate(Duplicate::Near) => "near",
            Reason::Duplicate(Duplicate::Placeholder) => "placeholder",
            Reason::Stored(Stored::NeverAsked) => "never_asked",
            Reason::Stored(Stored::FileNotKept) => "file_not_kept",
        };
        name.into()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stage(), self.name())
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Reason, String> {
        Reason::all().find(|r| r.to_string() == text).ok_or_else(|| format!("{text:?} is not a reason"))
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn lists_name_reasons_in_full_by_name_or_by_stage() {
        use FailureClass::{Dns, NotFound};
        let named = |list| Reason::named_by(list).map(|r| r.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            named("fetch.not_found,dns").unwrap(),
            [Reason::Fetch(Dns), Reason::Fetch(NotFound)].map(|r| r.to_string())
        );
        assert_eq!(named("truncated").unwrap(), ["fetch.truncated", "decode.truncated"]);
        assert_eq!(named("decode").unwrap().len(), pixels::DecodeError::NAMES.len());
        assert!(named("dns, tired").unwrap_err().contains("tired"));
        assert!(named("filter.too_small").is_err() && named("blurred").is_err() && named("").is_err());
    }

    #[test]
    fn names_are_unique_and_lead_back() {
        let names: BTreeSet<String> = Reason::all().map(|r| r.to_string()).collect();
        assert_eq!(names.len(), Reason::all().count());
        for reason in Reason::all() {
            assert_eq!(reason.to_string().parse::<Reason>().unwrap(), reason);
        }
        assert!("fetch.tired".parse::<Reason>().is_err());
    }
}
