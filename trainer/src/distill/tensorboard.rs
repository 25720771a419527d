//! TensorBoard's event files: TFRecords of protocol buffers, written by hand because two messages are all it takes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// Buckets of a histogram.
const BUCKETS: usize = 30;

/// One file of events.
#[derive(Debug)]
pub(super) struct Events {
    file: File,
    path: std::path::PathBuf,
}

impl Events {
    /// Begins a file. What earlier files say of iterations from `first` on is void: a resumed run does them again.
    pub fn create(folder: &Path, first: u64) -> Result<Events> {
        std::fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
        let path = folder.join(format!("events.out.tfevents.{:010}.{first:09}", wall_time() as u64));
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        let mut events = Events { file, path };
        events.write(&Message::default().double(1, wall_time()).bytes(3, b"brain.Event:2"))?;
        const SESSION_STARTS: u64 = 1;
        let session = Message::default().varint(1, SESSION_STARTS);
        events.write(&Message::default().double(1, wall_time()).varint(2, first).bytes(7, &session.0))?;
        Ok(events)
    }

    /// Numbers of one iteration, by tag.
    pub fn scalars(&mut self, iteration: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let value = Message::default().bytes(1, tag.as_bytes()).float(2, *value as f32);
            summary = summary.bytes(1, &value.0);
        }
        self.event(iteration, summary)
    }

    /// The distribution of some numbers of one iteration.
    pub fn histogram(&mut self, iteration: u64, tag: &str, values: &[f64]) -> Result<()> {
        let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        let Some(low) = finite.iter().copied().reduce(f64::min) else { return Ok(()) };
        let high = finite.iter().copied().fold(low, f64::max);
        let width = ((high - low) / BUCKETS as f64).max(f64::MIN_POSITIVE);
        let limits: Vec<f64> = (1..=BUCKETS).map(|at| low + width * at as f64).collect();
        let mut counts = vec![0.0; BUCKETS];
        for value in &finite {
            counts[(((value - low) / width) as usize).min(BUCKETS - 1)] += 1.0;
        }
        let histogram = Message::default()
            .double(1, low)
            .double(2, high)
            .double(3, finite.len() as f64)
            .double(4, finite.iter().sum())
            .double(5, finite.iter().map(|value| value * value).sum())
            .packed(6, &limits)
            .packed(7, &counts);
        let value = Message::default().bytes(1, tag.as_bytes()).bytes(5, &histogram.0);
        self.event(iteration, Message::default().bytes(1, &value.0))
    }

    fn event(&mut self, iteration: u64, summary: Message) -> Result<()> {
        self.write(&Message::default().double(1, wall_time()).varint(2, iteration).bytes(5, &summary.0))
    }

    fn write(&mut self, message: &Message) -> Result<()> {
        self.file.write_all(&record(&message.0)).map_err(Error::io("write", &self.path))
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A TFRecord: length, its checksum, data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

/// CRC-32C, rotated and offset as TFRecords want it.
fn masked_crc(data: &[u8]) -> u32 {
    const CASTAGNOLI_REVERSED: u32 = 0x82f6_3b78;
    let crc = !data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (CASTAGNOLI_REVERSED * (crc & 1)))
    });
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol buffer under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.raw_varint(field << 3 | wire_type);
    }

    fn varint(mut self, field: u64, value: u64) -> Self {
        self.key(field, 0);
        self.raw_varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn packed(self, field: u64, values: &[f64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes(field, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720's test vector: 32 bytes of zeros have the CRC-32C 0x8a9136aa.
    #[test]
    fn checksums_are_castagnolis() {
        let unmasked = masked_crc(&[0; 32]).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0x8a91_36aa);
    }

    /// Bytes of TensorFlow's own `Event(step=300, summary=Summary(value=[Value(tag="a", simple_value=0.5)]))`.
    #[test]
    fn messages_are_protocol_buffers() {
        let value = Message::default().bytes(1, b"a").float(2, 0.5);
        let event = Message::default().varint(2, 300).bytes(5, &Message::default().bytes(1, &value.0).0);
        assert_eq!(event.0, [0x10, 0xac, 0x02, 0x2a, 0x0a, 0x0a, 0x08, 0x0a, 0x01, 0x61, 0x15, 0, 0, 0, 0x3f]);
    }
}
