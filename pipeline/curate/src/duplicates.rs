//! Which samples repeat an earlier one. Rows are judged in their order, so the first one stays whatever came
//! over the network first.

use std::collections::{HashMap, HashSet};

use shards::ContentHash;

use crate::reason::Duplicate;
use crate::recipe::DuplicateRules;

/// The samples kept so far, by content and by look, and how many URLs brought each content. Takes about 20 bytes a
/// sample for exact duplicates, about 40 more for near ones, and about 60 for each content to find placeholders.
#[derive(Debug)]
pub struct Duplicates {
    exact: Option<HashSet<u128>>,
    near: Option<NearHashes>,
    urls: Option<UrlCounts>,
}

impl Duplicates {
    /// One that has seen nothing.
    pub fn new(rules: DuplicateRules) -> Duplicates {
        Duplicates {
            exact: rules.exact.then(HashSet::new),
            near: rules.near_bits.map(NearHashes::new),
            urls: rules.placeholder_urls.map(UrlCounts::new),
        }
    }

    /// Notes that a URL brought a content, whatever becomes of its row.
    pub fn bring(&mut self, content: ContentHash, url: &str) {
        if let Some(urls) = &mut self.urls {
            urls.add(half(content), url);
        }
    }

    /// Whether so many URLs have brought a content that it is a placeholder.
    pub fn is_placeholder(&self, content: ContentHash) -> bool {
        self.urls.as_ref().is_some_and(|urls| urls.is_placeholder(half(content)))
    }

    /// Whether a sample repeats one that was kept.
    pub fn judge(&self, content: ContentHash, look: u64) -> Result<(), Duplicate> {
        if self.is_placeholder(content) {
            return Err(Duplicate::Placeholder);
        }
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

/// By how many different URLs each content came.
#[derive(Debug)]
struct UrlCounts {
    limit: usize,
    contents: HashMap<u128, Urls>,
}

#[derive(Debug)]
enum Urls {
    One(u64),
    Several(HashSet<u64>),
    /// As many as make a placeholder, or more.
    Enough,
}

impl UrlCounts {
    fn new(limit: u32) -> UrlCounts {
        UrlCounts { limit: limit as usize, contents: HashMap::new() }
    }

    fn add(&mut self, content: u128, url: &str) {
        // The same in every process, so that a run that goes on counts as one that was never stopped.
        let hash = ContentHash::of(url.as_bytes());
        let (url, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
        let url = u64::from_le_bytes(*url);
        let urls = self.contents.entry(content).or_insert(Urls::One(url));
        match urls {
            Urls::One(first) if *first != url => *urls = Urls::Several(HashSet::from([*first, url])),
            Urls::Several(seen) => drop(seen.insert(url)),
            Urls::One(_) | Urls::Enough => {}
        }
        if matches!(urls, Urls::Several(seen) if seen.len() >= self.limit) {
            *urls = Urls::Enough;
        }
    }

    fn is_placeholder(&self, content: u128) -> bool {
        matches!(self.contents.get(&content), Some(Urls::Enough))
    }
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
        let mut seen = Duplicates::new(DuplicateRules { exact: true, near_bits: None, placeholder_urls: None });
        let (a, b) = (ContentHash::of(b"a"), ContentHash::of(b"b"));
        assert_eq!(seen.judge(a, 0), Ok(()));
        seen.keep(a, 0);
        assert_eq!(seen.judge(a, u64::MAX), Err(Duplicate::Exact));
        assert_eq!(seen.judge(b, 0), Ok(()));
    }

    #[test]
    fn a_content_of_many_urls_is_a_placeholder_and_one_of_many_rows_is_not() {
        let rules = DuplicateRules { exact: false, near_bits: None, placeholder_urls: Some(3) };
        let mut seen = Duplicates::new(rules);
        let (gone, popular) = (ContentHash::of(b"gone"), ContentHash::of(b"popular"));
        for n in 0..9 {
            seen.bring(popular, ["http://a/", "http://b/"][n % 2]);
        }
        for (n, is_placeholder) in [false, false, true, true].into_iter().enumerate() {
            seen.bring(gone, &format!("http://a/{n}"));
            assert_eq!(seen.judge(gone, 0).is_err(), is_placeholder, "after {} URLs", n + 1);
        }
        assert_eq!(seen.judge(gone, 0), Err(Duplicate::Placeholder));
        assert_eq!(seen.judge(popular, 0), Ok(()));
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
