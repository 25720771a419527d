//! An image's size as users write it.

use std::fmt;
use std::str::FromStr;

/// Width and height in pixels, written `1024x768`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pixels from left to right.
    pub width: i64,
    /// Pixels from top to bottom.
    pub height: i64,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LARGEST: u32 = 16_384;
        let side = |text: &str| text.parse::<u32>().ok().filter(|side| (1..=LARGEST).contains(side)).map(i64::from);
        let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
        let (width, height) = sides.ok_or_else(|| format!("not WIDTHxHEIGHT with sides of 1 to {LARGEST}"))?;
        Ok(Self { width, height })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_read_as_they_are_written() {
        for text in ["1024x768", "8x8", "16384x1"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["", "1024", "1024x", "0x8", "-8x8", "16385x8", "8 x 8", "8x8x8"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
