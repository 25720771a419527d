//! What the segments of a JPEG say: frame, tables, scans.

use std::rc::Rc;

use super::Stop;
use super::huffman::Huffman;
use crate::container::Jpeg;

/// The segments of a file, read scan by scan.
pub(super) struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) size: (usize, usize),
    frame: Option<Frame>,
    quantisers: [Option<[u16; 64]>; 4],
    huffman: [[Option<Rc<Huffman>>; 4]; 2],
    pub(super) restart_interval: usize,
}

/// A frame whose first component has the most samples, and along each side 1, 2 or 4 times as many as the others.
pub(super) struct Frame {
    pub(super) is_progressive: bool,
    pub(super) components: Vec<Component>,
}

/// A component of the frame.
pub(super) struct Component {
    id: u8,
    /// Blocks in an MCU, along and down; 1, 2 or 4.
    pub(super) horizontal: usize,
    pub(super) vertical: usize,
    quantiser: usize,
}

/// The head of a scan, and the coded data behind it.
pub(super) struct Scan<'a> {
    pub(super) components: Vec<ScanComponent>,
    /// The first and the last coefficient of a progressive scan, in zigzag order.
    pub(super) spectrum: (usize, usize),
    /// The bit down to which coefficients were known, and that down to which they are known after it.
    pub(super) bits: (u8, u8),
    /// From the first coded byte to the end of the file.
    pub(super) coded: &'a [u8],
}

/// A component in a scan.
pub(super) struct ScanComponent {
    /// Which of the frame's components it is.
    pub(super) index: usize,
    pub(super) dc: Option<Rc<Huffman>>,
    pub(super) ac: Option<Rc<Huffman>>,
}

impl<'a> Segments<'a> {
    pub(super) fn new(jpeg: &Jpeg<'a>) -> Self {
        Self {
            bytes: jpeg.bytes,
            at: 2,
            size: (jpeg.width as usize, jpeg.height as usize),
            frame: None,
            quantisers: [None; 4],
            huffman: Default::default(),
            restart_interval: 0,
        }
    }

    /// The frame, once a scan was read.
    pub(super) fn frame(&self) -> Result<&Frame, Stop> {
        self.frame.as_ref().ok_or(Stop::NotThisCase)
    }

    /// The quantiser of a component, in zigzag order.
    pub(super) fn quantiser(&self, component: usize) -> Result<[u16; 64], Stop> {
        let component = &self.frame()?.components[component];
        self.quantisers.get(component.quantiser).copied().flatten().ok_or(Stop::NotThisCase)
    }

    /// Reads up to the next scan; `None` at the end of the image.
    pub(super) fn next_scan(&mut self) -> Result<Option<Scan<'a>>, Stop> {
        loop {
            let marker = match self.bytes.get(self.at..) {
                // Fill before a marker.
                Some([0xFF, 0xFF, ..]) => {
                    self.at += 1;
                    continue;
                }
                Some([0xFF, 0xD9, ..]) => return Ok(None),
                Some([0xFF, marker, ..]) => *marker,
                _ => return Err(Stop::NotThisCase),
            };
            let length = match self.bytes.get(self.at + 2..self.at + 4) {
                Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
                _ => return Err(Stop::NotThisCase),
            };
            let body = self.bytes.get(self.at + 4..self.at + 2 + length).ok_or(Stop::NotThisCase)?;
            self.at += 2 + length;
            let read = match marker {
                0xC0..=0xC2 => Frame::read(body, marker == 0xC2).map(|frame| self.frame = Some(frame)),
                0xC4 => self.read_huffman_tables(body),
                0xDB => self.read_quantisers(body),
                0xDD => body.try_into().ok().map(|two| self.restart_interval = usize::from(u16::from_be_bytes(two))),
                0xDA => return self.scan(body).map(Some).ok_or(Stop::NotThisCase),
                // Application data and comments.
                0xE0..=0xEF | 0xFE => Some(()),
                _ => None,
            };
            read.ok_or(Stop::NotThisCase)?;
        }
    }

    /// Goes on behind the coded data of a scan, which has `length` bytes.
    pub(super) fn skip_coded(&mut self, length: usize) {
        self.at += length;
    }

    fn scan(&self, body: &[u8]) -> Option<Scan<'a>> {
        let frame = self.frame.as_ref()?;
        let (&count, rest) = body.split_first()?;
        let (selected, rest) = rest.split_at_checked(2 * usize::from(count))?;
        let &[first, last, bits] = rest else {
            return None;
        };
        let component = |pair: &[u8]| {
            let index = frame.components.iter().position(|component| component.id == pair[0])?;
            let table = |kind: usize, at: u8| self.huffman[kind].get(usize::from(at)).cloned().flatten();
            Some(ScanComponent { index, dc: table(0, pair[1] >> 4), ac: table(1, pair[1] & 15) })
        };
        let components: Vec<_> = selected.chunks_exact(2).map(component).collect::<Option<_>>()?;
        // In the frame's order, none twice.
        let in_order = components.windows(2).all(|pair| pair[0].index < pair[1].index);
        (in_order && !components.is_empty()).then_some(Scan {
            components,
            spectrum: (first.into(), last.into()),
            bits: (bits >> 4, bits & 15),
            coded: &self.bytes[self.at..],
        })
    }

    fn read_quantisers(&mut self, mut body: &[u8]) -> Option<()> {
        while let Some((&head, rest)) = body.split_first() {
            let table = self.quantisers.get_mut(usize::from(head & 15))?;
            *table = match head >> 4 {
                0 => {
                    let (values, rest) = rest.split_first_chunk::<64>()?;
                    body = rest;
                    Some(values.map(u16::from))
                }
                1 => {
                    let (values, rest) = rest.split_first_chunk::<128>()?;
                    body = rest;
                    Some(std::array::from_fn(|k| u16::from_be_bytes([values[2 * k], values[2 * k + 1]])))
                }
                _ => return None,
            };
        }
        Some(())
    }

    fn read_huffman_tables(&mut self, mut body: &[u8]) -> Option<()> {
        while let Some((&head, rest)) = body.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, rest) = rest.split_at_checked(total)?;
            body = rest;
            let kind = self.huffman.get_mut(usize::from(head >> 4))?;
            *kind.get_mut(usize::from(head & 15))? = Some(Huffman::new(counts, symbols, head >> 4 == 1)?.into());
        }
        Some(())
    }
}

impl Frame {
    fn read(body: &[u8], is_progressive: bool) -> Option<Self> {
        let listed = body.get(6..)?;
        let count = usize::from(body[5]);
        if !matches!(count, 1 | 3 | 4) || listed.len() != count * 3 {
            return None;
        }
        let component = |three: &[u8]| {
            let sides = [three[1] >> 4, three[1] & 15].map(usize::from);
            // A lone component is not interleaved: its blocks follow one another whatever its sampling.
            let [horizontal, vertical] = if count == 1 { [1, 1] } else { sides };
            let known = sides.iter().all(|side| matches!(side, 1 | 2 | 4));
            known.then_some(Component { id: three[0], horizontal, vertical, quantiser: three[2].into() })
        };
        let components: Vec<_> = listed.chunks_exact(3).map(component).collect::<Option<_>>()?;
        let (horizontal, vertical) = (components[0].horizontal, components[0].vertical);
        let luma_is_largest = components.iter().all(|c| c.horizontal <= horizontal && c.vertical <= vertical);
        let distinct = (1..count).all(|at| components[..at].iter().all(|c| c.id != components[at].id));
        (luma_is_largest && distinct).then_some(Self { is_progressive, components })
    }

    /// For each component, how many samples of the first lie beside one of it, along and down.
    pub(super) fn steps(&self) -> Vec<(usize, usize)> {
        let luma = &self.components[0];
        self.components.iter().map(|c| (luma.horizontal / c.horizontal, luma.vertical / c.vertical)).collect()
    }

    /// MCUs along and down an image of this size.
    pub(super) fn mcus(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let luma = &self.components[0];
        (width.div_ceil(8 * luma.horizontal), height.div_ceil(8 * luma.vertical))
    }

    /// The size of a component's plane.
    pub(super) fn plane_size(&self, component: usize, (width, height): (usize, usize)) -> (usize, usize) {
        let (luma, component) = (&self.components[0], &self.components[component]);
        let part = |length: usize, of: usize, full: usize| (length * of).div_ceil(full);
        (part(width, component.horizontal, luma.horizontal), part(height, component.vertical, luma.vertical))
    }
}
