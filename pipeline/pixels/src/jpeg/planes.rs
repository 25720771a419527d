//! Planes of samples, and what becomes of luma and chroma together.

use super::dct::Samples;
use crate::color;

/// A plane of samples, rows from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plane {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) samples: Vec<u8>,
}

/// The planes of a JPEG as they were coded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planes {
    pub(crate) luma: Plane,
    /// Cb and Cr; none for grey.
    pub(crate) chroma: Option<[Chroma; 2]>,
}

/// A plane of chroma.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chroma {
    pub(crate) plane: Plane,
    /// Samples of luma beside one of this, along and down: 1, 2 or 4.
    pub(crate) step: (usize, usize),
}

impl Planes {
    /// Luma alone, or luma and two of chroma, whose steps are given.
    pub(super) fn of(planes: Vec<Plane>, step: impl Fn(usize) -> (usize, usize)) -> Option<Self> {
        let mut planes = planes.into_iter();
        let chroma = |at: usize, plane: Plane| Chroma { plane, step: step(at) };
        match (planes.next(), planes.next(), planes.next(), planes.next()) {
            (Some(luma), None, None, None) => Some(Self { luma, chroma: None }),
            (Some(luma), Some(cb), Some(cr), None) => Some(Self { luma, chroma: Some([chroma(1, cb), chroma(2, cr)]) }),
            _ => None,
        }
    }

    /// The RGB samples. Chroma between samples is interpolated linearly where there is half as much of it, and
    /// repeated where there is less, as libjpeg does.
    pub(crate) fn to_rgb(&self) -> Vec<u8> {
        let Some([cb, cr]) = &self.chroma else {
            return color::gray_to_srgb(&self.luma.samples, None);
        };
        let Plane { width, samples, .. } = &self.luma;
        let mut rgb = vec![0; samples.len() * 3];
        let (mut cb_row, mut cr_row) = (ChromaRow::new(cb), ChromaRow::new(cr));
        let mut rows = [vec![0_u8; *width], vec![0; *width], vec![0; *width]];
        for (y, (luma, out)) in samples.chunks_exact(*width).zip(rgb.chunks_exact_mut(*width * 3)).enumerate() {
            let (cb, cr) = (cb_row.at(cb, y), cr_row.at(cr, y));
            convert(luma, &cb[..*width], &cr[..*width], &mut rows);
            let [red, green, blue] = &rows;
            for (((pixel, &red), &green), &blue) in out.as_chunks_mut::<3>().0.iter_mut().zip(red).zip(green).zip(blue)
            {
                *pixel = [red, green, blue];
            }
        }
        rgb
    }
}

/// A row of chroma at luma's width.
struct ChromaRow {
    /// Four times the samples of the row between two of chroma, its ends twice.
    between: Vec<u16>,
    row: Vec<u8>,
}

impl ChromaRow {
    fn new(chroma: &Chroma) -> Self {
        let width = chroma.plane.width;
        Self { between: vec![0; width + 2], row: vec![0; chroma.step.0 * width] }
    }

    /// The row that lies beside row `y` of luma.
    fn at(&mut self, Chroma { plane, step: (along, down) }: &Chroma, y: usize) -> &[u8] {
        let row = |y: usize| &plane.samples[y * plane.width..(y + 1) * plane.width];
        let near = y / down;
        let far = match (down, y % down) {
            (2, 0) => near.saturating_sub(1),
            (2, _) => (near + 1).min(plane.height - 1),
            _ => near,
        };
        let inner = &mut self.between[1..=plane.width];
        for ((sum, &near), &far) in inner.iter_mut().zip(row(near)).zip(row(far)) {
            *sum = 3 * u16::from(near) + u16::from(far);
        }
        let last = plane.width + 1;
        (self.between[0], self.between[last]) = (self.between[1], self.between[last - 1]);
        let (left, middle, right) = (&self.between[..], &self.between[1..], &self.between[2..]);
        if *along == 2 {
            let (pairs, _) = self.row.as_chunks_mut::<2>();
            for (((pair, left), middle), right) in pairs.iter_mut().zip(left).zip(middle).zip(right) {
                *pair = [((3 * middle + left + 8) >> 4) as u8, ((3 * middle + right + 7) >> 4) as u8];
            }
        } else {
            for (samples, sum) in self.row.chunks_exact_mut(*along).zip(middle) {
                samples.fill(((sum + 2) >> 2) as u8);
            }
        }
        &self.row
    }
}

/// JFIF's YCbCr to RGB, within one level, in 16-bit arithmetic that the compiler can vectorise.
fn convert(luma: &[u8], cb: &[u8], cr: &[u8], [red, green, blue]: &mut [Vec<u8>; 3]) {
    // Parts of 65536, of what is left once whole multiples are taken out.
    const CR_TO_RED: i16 = 26_345; // 1.402 - 1
    const CB_TO_GREEN: i16 = -22_553; // -0.344136
    const CR_TO_GREEN: i16 = 18_734; // -0.714136 + 1
    const CB_TO_BLUE: i16 = -14_942; // 1.772 - 2
    let part = |twice: i16, of: i16| ((i32::from(twice) * i32::from(of)) >> 16) as i16;
    let level = |value: i16| value.clamp(0, 255) as u8;
    let n = luma.len();
    let (cb, cr) = (&cb[..n], &cr[..n]);
    let (red, green, blue) = (&mut red[..n], &mut green[..n], &mut blue[..n]);
    for i in 0..n {
        let (y, cb, cr) = (i16::from(luma[i]), i16::from(cb[i]) - 128, i16::from(cr[i]) - 128);
        red[i] = level(y + cr + ((part(2 * cr, CR_TO_RED) + 1) >> 1));
        green[i] = level(y - cr + ((part(2 * cb, CB_TO_GREEN) + part(2 * cr, CR_TO_GREEN) + 1) >> 1));
        blue[i] = level(y + 2 * cb + ((part(2 * cb, CB_TO_BLUE) + 1) >> 1));
    }
}

/// Takes the rows of a plane from the top, several at a time, one after another.
pub(crate) type Rows<'a> = dyn FnMut(&[u8]) + 'a;

/// A plane that is filled by rows of blocks.
pub(super) struct Band<'a> {
    size: (usize, usize),
    /// Blocks of a row, padding included.
    across: usize,
    blocks: Vec<Samples>,
    /// Rows of samples still to come.
    missing: usize,
    out: Out<'a>,
}

/// Where rows go.
enum Out<'a> {
    Plane(Vec<u8>),
    /// With room for those of a row of blocks.
    Rows(&'a mut Rows<'a>, Vec<u8>),
}

impl<'a> Band<'a> {
    /// For a plane of this size, `across` padded blocks wide, of which `down` rows of blocks are filled at a time. Its
    /// rows go to `rows`, or are kept.
    pub(super) fn new(across: usize, down: usize, size: (usize, usize), rows: Option<&'a mut Rows<'a>>) -> Self {
        let (width, height) = size;
        Self {
            size,
            across,
            blocks: vec![[[0; 8]; 8]; across * down],
            missing: height,
            out: match rows {
                Some(rows) => Out::Rows(rows, vec![0; width * 8]),
                None => Out::Plane(Vec::with_capacity(width * height)),
            },
        }
    }

    /// A block of the rows in hand.
    #[inline(always)]
    pub(super) fn block(&mut self, row: usize, column: usize) -> &mut Samples {
        &mut self.blocks[row * self.across + column]
    }

    /// Passes the rows in hand on, without what is padding.
    pub(super) fn flush(&mut self) {
        let width = self.size.0;
        for blocks in self.blocks.chunks_exact(self.across) {
            let whole = self.missing.min(8);
            if whole == 0 {
                return;
            }
            self.missing -= whole;
            let samples = match &mut self.out {
                Out::Plane(samples) => {
                    let done = samples.len();
                    samples.resize(done + whole * width, 0);
                    &mut samples[done..]
                }
                Out::Rows(_, samples) => &mut samples[..whole * width],
            };
            for (y, row) in samples.chunks_exact_mut(width).enumerate() {
                let (eights, rest) = row.as_chunks_mut::<8>();
                let last = &blocks[eights.len().min(blocks.len() - 1)][y];
                for (eight, block) in eights.iter_mut().zip(blocks) {
                    *eight = block[y];
                }
                rest.copy_from_slice(&last[..rest.len()]);
            }
            if let Out::Rows(rows, samples) = &mut self.out {
                rows(&samples[..whole * width]);
            }
        }
    }

    /// The plane, if it was kept.
    pub(super) fn into_plane(self) -> Option<Plane> {
        let (width, height) = self.size;
        match self.out {
            Out::Plane(samples) => Some(Plane { width, height, samples }),
            Out::Rows(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(width: usize, height: usize, sample: impl Fn(usize, usize) -> u8) -> Plane {
        let samples = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| sample(x, y)).collect();
        Plane { width, height, samples }
    }

    /// ITU T.871, section 7, in floating point.
    #[test]
    fn colours_are_jfif_s_within_one_level() {
        let steps = || (0..=255).step_by(5).map(|level: u16| level as u8);
        for y in steps() {
            let pairs: Vec<(u8, u8)> = steps().flat_map(|cb| steps().map(move |cr| (cb, cr))).collect();
            let luma = vec![y; pairs.len()];
            let (cb, cr): (Vec<u8>, Vec<u8>) = pairs.into_iter().unzip();
            let mut rows = [vec![0; luma.len()], vec![0; luma.len()], vec![0; luma.len()]];
            convert(&luma, &cb, &cr, &mut rows);
            for i in 0..luma.len() {
                let (y, cb, cr) = (f64::from(y), f64::from(cb[i]) - 128.0, f64::from(cr[i]) - 128.0);
                let exact = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
                for (row, exact) in rows.iter().zip(exact) {
                    assert!((f64::from(row[i]) - exact.clamp(0.0, 255.0)).abs() <= 1.0, "{y} {cb} {cr}: {exact}");
                }
            }
        }
    }

    #[test]
    fn chroma_between_samples_is_linear_and_flat_at_the_edges() {
        // Along a ramp of 16 a sample, the samples of luma's width are 8 apart.
        let ramp = Chroma { plane: plane(8, 6, |x, y| (40 + 16 * x + 4 * y) as u8), step: (2, 2) };
        let mut row = ChromaRow::new(&ramp);
        for y in 1..10 {
            let upsampled = row.at(&ramp, y).to_vec();
            for (x, &sample) in upsampled.iter().enumerate().take(14).skip(1) {
                let exact = 40.0 + 16.0 * (x as f64 - 0.5) / 2.0 + 4.0 * (y as f64 - 0.5) / 2.0;
                assert!((f64::from(sample) - exact).abs() <= 0.51, "{x}, {y}: {sample} of {exact}");
            }
        }
        for step in [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2), (1, 4)] {
            let flat = Chroma { plane: plane(5, 3, |_, _| 77), step };
            for y in 0..3 * step.1 {
                assert!(ChromaRow::new(&flat).at(&flat, y).iter().all(|&sample| sample == 77), "{step:?}");
            }
        }
        let full = Chroma { plane: plane(5, 3, |x, y| (x * 9 + y) as u8), step: (1, 1) };
        assert_eq!(ChromaRow::new(&full).at(&full, 2), &full.plane.samples[10..]);
    }
}
