//! The two rasters of this crate: RGB and luma.

/// An upright 8-bit sRGB image: rows from the top, three bytes R, G, B for each pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

/// An upright 8-bit luma plane, `Y = 0.299 R + 0.587 G + 0.114 B` of the stored values: for a
/// YCbCr JPEG it is the Y channel as it was coded.
#[derive(Clone, PartialEq, Eq)]
pub struct Luma {
    width: u32,
    height: u32,
    samples: Vec<u8>,
}

impl Image {
    /// An image from its samples.
    ///
    /// # Panics
    /// If a side is 0 or `rgb` is not `width * height * 3` long.
    #[must_use]
    pub fn new(width: u32, height: u32, rgb: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0, "an image has at least one pixel");
        assert_eq!(rgb.len(), width as usize * height as usize * 3, "samples of a {width} x {height} image");
        Self { width, height, rgb }
    }

    /// Width in pixels, at least 1.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    #[must_use]
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// All samples: rows from the top, R, G, B.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The samples themselves, for callers that go on with a plain buffer.
    #[must_use]
    pub fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// The luma plane of this image.
    #[must_use]
    pub fn luma(&self) -> Luma {
        let samples = self.rgb.chunks_exact(3).map(|p| luma_of([p[0], p[1], p[2]])).collect();
        Luma::new(self.width, self.height, samples)
    }
}

impl Luma {
    /// A plane from its samples.
    ///
    /// # Panics
    /// If a side is 0 or `samples` is not `width * height` long.
    #[must_use]
    pub fn new(width: u32, height: u32, samples: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0, "a plane has at least one sample");
        assert_eq!(samples.len(), width as usize * height as usize, "samples of a {width} x {height} plane");
        Self { width, height, samples }
    }

    /// Width in samples, at least 1.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Height in samples, at least 1.
    #[must_use]
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// All samples, rows from the top.
    #[must_use]
    pub fn samples(&self) -> &[u8] {
        &self.samples
    }

    pub(crate) fn into_samples(self) -> Vec<u8> {
        self.samples
    }
}

/// BT.601 luma in 16-bit fixed point, rounded, as libjpeg and Pillow compute it.
const fn luma_of([r, g, b]: [u8; 3]) -> u8 {
    ((19_595 * r as u32 + 38_470 * g as u32 + 7_471 * b as u32 + 0x8000) >> 16) as u8
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} x {})", self.width, self.height)
    }
}

impl std::fmt::Debug for Luma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Luma({} x {})", self.width, self.height)
    }
}
