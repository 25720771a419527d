//! Which samples repeat an earlier one. Rows are judged in their order, so the first one stays whatever came
//! over the network first.

use std::collections::{HashMap, HashSet};

use shards::ContentHash;

use crate::reason::Duplicate;
use crate::recipe::DuplicateRules;

/// The samples kept so far, by content and by look. Takes about 20 bytes a sample for exact duplicates and
/// about 40 more for near ones.
#[derive(Debug)]
pub struct Duplicates {
    exact: Option<HashSet<u128>>,
    near: Option<NearHashes>,
}

impl Duplicates {
    /// One that has seen nothing.
    pub fn new(rules: DuplicateRules) -> Duplicates {
        Duplicates { exact: rules.exact.then(HashSet::new), near: rules.near_bits.map(NearHashes::new) }
    }

    /// Whether a sample repeats one that was kept.
    pub fn judge(&self, content: ContentHash, look: u64) -> Result<(), Duplicate> {
        if self.exact.as_ref().is_some_and(|seen| seen.contains(&half(content))) {
            return Err(Duplicate::Exact);
        }
        if self.near.as_ref().is_some_and(|seen| seen.contains(look)) {
            return Err(Duplicate::Near);
        }
        Ok(())
    }

    /// Notes a sample that is kept.
    pub fn keep(&mut self, content: ContentHash, look: u64) {
        if let Some(seen) = &mut self.exact {
            seen.insert(half(content));
        }
        if let Some(seen) = &mut self.near {
            seen.insert(look);
        }
    }
}

/// Half of a SHA-256 still tells 10^15 contents apart.
fn half(hash: ContentHash) -> u128 {
    let (half, _) = hash.as_bytes().split_first_chunk().expect("a SHA-256 has 32 bytes");
    u128::from_le_bytes(*half)
}

/// Hashes that can be asked for neighbours: cut into `bits + 1` bands, two hashes that differ in at most
/// `bits` bits agree in one band at least.
#[derive(Debug)]
struct NearHashes {
    bits: u32,
    hashes: Vec<u64>,
    bands: Vec<HashMap<u64, Vec<u32>>>,
}

impl NearHashes {
    fn new(bits: u32) -> NearHashes {
        NearHashes { bits, hashes: Vec::new(), bands: vec![HashMap::new(); bits as usize + 1] }
    }

    fn contains(&self, hash: u64) -> bool {
        self.bands.iter().enumerate().any(|(at, band)| {
            let neighbours = band.get(&self.band(at, hash)).map_or(&[][..], Vec::as_slice);
            neighbours.iter().any(|&n| (self.hashes[n as usize] ^ hash).count_ones() <= self.bits)
        })
    }

    fn insert(&mut self, hash: u64) {
        let number = u32::try_from(self.hashes.len()).expect("a run keeps fewer than 2^32 samples");
        self.hashes.push(hash);
        for at in 0..self.bands.len() {
            let key = self.band(at, hash);
            self.bands[at].entry(key).or_default().push(number);
        }
    }

    fn band(&self, at: usize, hash: u64) -> u64 {
        let bands = self.bands.len();
        let (start, end) = (64 * at / bands, 64 * (at + 1) / bands);
        (hash >> start) & (u64::MAX >> (64 - (end - start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_of_equal_contents_stays() {
        let mut seen = Duplicates::new(DuplicateRules { exact: true, near_bits: None });
        let (a, b) = (ContentHash::of(b"a"), ContentHash::of(b"b"));
        assert_eq!(seen.judge(a, 0), Ok(()));
        seen.keep(a, 0);
        assert_eq!(seen.judge(a, u64::MAX), Err(Duplicate::Exact));
        assert_eq!(seen.judge(b, 0), Ok(()));
    }

    proptest! {
        #[test]
        fn neighbours_are_found_exactly(bits in 0..8_u32, kept: Vec<u64>, base: u64, flips in prop::collection::vec(0..64_u32, 0..10)) {
            let mut seen = NearHashes::new(bits);
            kept.iter().for_each(|&hash| seen.insert(hash));
            seen.insert(base);
            let asked = flips.iter().fold(base, |hash, bit| hash ^ (1 << bit));
            let near = kept.iter().chain([&base]).any(|k| (k ^ asked).count_ones() <= bits);
            prop_assert_eq!(seen.contains(asked), near);
        }
    }
}
