//! What becomes of each row: the faults of real tables and of the real web, each with its share of the world.

use serde::{Deserialize, Serialize};

/// Where a row is meant to end on its way through curation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It becomes a sample.
    Kept,
    /// The table alone rejects it: no request is made.
    Table,
    /// The request fails, or what it brings is no usable picture.
    Fetch,
    /// The picture is sound, but too small or not sharp.
    Picture,
}

macro_rules! fates {
    ($($(#[$doc:meta])* $fate:ident: $end:ident, $laion:literal, $coyo:literal;)+) => {
        /// The kind of a row: what its table entry, its server and its picture do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Fate { $($(#[$doc])* $fate),+ }

        impl Fate {
            /// Every fate.
            pub const ALL: &[Self] = &[$(Self::$fate),+];

            /// Where a row of this fate is meant to end.
            pub fn end(self) -> End {
                match self { $(Self::$fate => End::$end),+ }
            }

            /// Rows of this fate in the LAION-shaped and in the COYO-shaped table.
            pub fn rows(self) -> (usize, usize) {
                match self { $(Self::$fate => ($laion, $coyo)),+ }
            }
        }
    };
}

fates! {
    /// A sound JPEG with a plain caption.
    Clean: Kept, 72, 62;
    /// A sound PNG.
    CleanPng: Kept, 6, 6;
    /// The caption carries markup, entities, a link or stray white space.
    NoisyCaption: Kept, 12, 12;
    /// The table has width and height the wrong way round.
    SwappedSize: Kept, 8, 0;
    /// A JPEG with one channel.
    GreyJpeg: Kept, 4, 4;
    /// A PNG with an alpha channel.
    PngAlpha: Kept, 3, 3;
    /// A JPEG stored on its side, with the EXIF orientation that puts it upright.
    ExifRotated: Kept, 4, 3;
    /// The caption tells of another scene: no filter of this road can know.
    Mislabelled: Kept, 4, 4;
    /// One redirect to a sound picture.
    Redirected: Kept, 2, 2;
    /// 503 at first, then a sound picture.
    Unavailable: Kept, 2, 1;
    /// 429 with `Retry-After: 1` at first, then a sound picture.
    RateLimited: Kept, 1, 1;
    /// A sound picture served as `application/octet-stream`.
    WrongContentType: Kept, 2, 1;

    /// Too small by the table.
    SmallByTable: Table, 60, 50;
    /// Aesthetic score below the threshold.
    LowScore: Table, 45, 40;
    /// No aesthetic score.
    NullScore: Table, 6, 6;
    /// The aesthetic score is not a number.
    NanScore: Table, 5, 4;
    /// No size.
    NullSize: Table, 3, 2;
    /// The size is not a number, which only floating-point sizes can be.
    NanSize: Table, 3, 0;
    /// No address.
    NullUrl: Table, 3, 3;
    /// No caption.
    NullCaption: Table, 3, 2;
    /// The caption is a file name, a link, too short or endless.
    BadCaption: Table, 6, 6;
    /// The address of an earlier row.
    DuplicateUrl: Table, 4, 4;
    /// The address is not one.
    BadUrl: Table, 1, 1;

    /// 404.
    NotFound: Fetch, 6, 5;
    /// 410.
    Gone: Fetch, 2, 1;
    /// 403.
    Forbidden: Fetch, 4, 3;
    /// 503 for ever.
    ServerError: Fetch, 1, 1;
    /// `X-Robots-Tag: noai` on a sound picture.
    OptedOut: Fetch, 4, 3;
    /// A redirect that comes back to itself.
    RedirectLoop: Fetch, 2, 1;
    /// A redirect to a link-local or private address, or out of HTTP.
    RedirectPrivate: Fetch, 2, 2;
    /// Nobody listens at that port.
    Refused: Fetch, 1, 1;
    /// The body stops and the connection stays open.
    Stalled: Fetch, 1, 1;
    /// The body ends before its `Content-Length`.
    ShortBody: Fetch, 3, 3;
    /// A body announced as ten gigabytes.
    Oversize: Fetch, 1, 1;
    /// A body without announced length and without end.
    Endless: Fetch, 1, 0;
    /// A web page at 200, called a JPEG.
    Html: Fetch, 4, 4;
    /// A JPEG cut off in the middle, whole by its `Content-Length`.
    TruncatedJpeg: Fetch, 4, 4;
    /// A PNG with a flipped byte in its data.
    BrokenPng: Fetch, 2, 1;
    /// A PNG of a few bytes that claims 65535 x 65535 pixels.
    PixelBomb: Fetch, 1, 1;
    /// An SVG drawing.
    NotAPicture: Fetch, 1, 1;

    /// Smaller than its table says.
    SmallReally: Picture, 8, 7;
    /// Out of focus.
    Blurred: Picture, 12, 10;
    /// Scaled up from a small picture.
    Upscaled: Picture, 6, 6;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_six_hundred_rows_of_which_about_two_hundred_are_kept() {
        let count = |end: Option<End>| -> usize {
            Fate::ALL
                .iter()
                .filter(|fate| end.is_none_or(|end| fate.end() == end))
                .map(|fate| fate.rows().0 + fate.rows().1)
                .sum()
        };
        assert!((580..=620).contains(&count(None)), "{}", count(None));
        assert!((190..=230).contains(&count(Some(End::Kept))), "{}", count(Some(End::Kept)));
    }
}
