//! The tokenizers of the demo's model: byte pair encoding (Sennrich et al. 2016) in CLIP's layout, learnt from the
//! demo's captions until each of their words is one token.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use crate::scene::{Scene, Split, item_rng};
use crate::{Error, Result};

/// Captions that are learnt from.
const CAPTIONS: u64 = 20_000;
const SEED: u64 = 0;
/// A stream of random numbers of its own.
const STREAM: u64 = 300;
/// What CLIP puts behind the last symbol of a word.
const END_OF_WORD: &str = "</w>";
const SPECIAL: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];

/// Two neighbouring symbols that become one.
type Pair = (String, String);

/// Learns from captions of shown scenes and writes `vocab.json` and `merges.txt` into a folder.
pub fn write_tokenizer(folder: &Path) -> Result<()> {
    let captions = (0..CAPTIONS).map(|item| {
        let rng = &mut item_rng(SEED, STREAM, item);
        Scene::draw(Split::Shown, rng).caption(rng)
    });
    let merges = learn(captions);
    std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
    shards::atomic::write_atomic(folder.join("vocab.json"), vocabulary(&merges).as_bytes())?;
    let lines: String = merges.iter().map(|(left, right)| format!("{left} {right}\n")).collect();
    Ok(shards::atomic::write_atomic(folder.join("merges.txt"), format!("#version: 0.2\n{lines}").as_bytes())?)
}

/// The most frequent pair of neighbours is merged, again and again, until every word is whole. Of equally frequent
/// pairs the first in the order of their letters is taken.
fn learn(captions: impl Iterator<Item = String>) -> Vec<Pair> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for caption in captions {
        for word in caption.split(|c: char| !c.is_ascii_lowercase()).filter(|word| !word.is_empty()) {
            *counts.entry(word.to_owned()).or_default() += 1;
        }
    }
    let mut words: Vec<(Vec<String>, u64)> = counts.into_iter().map(|(word, count)| (symbols(&word), count)).collect();
    let mut merges = Vec::new();
    loop {
        let mut pairs: BTreeMap<Pair, u64> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *pairs.entry((pair[0].clone(), pair[1].clone())).or_default() += count;
            }
        }
        let Some((best, _)) = pairs.into_iter().min_by_key(|(_, count)| Reverse(*count)) else {
            return merges;
        };
        for (word, _) in &mut words {
            merge(word, &best);
        }
        merges.push(best);
    }
}

fn symbols(word: &str) -> Vec<String> {
    let mut symbols: Vec<String> = word.chars().map(String::from).collect();
    if let Some(last) = symbols.last_mut() {
        last.push_str(END_OF_WORD);
    }
    symbols
}

fn merge(word: &mut Vec<String>, (left, right): &Pair) {
    let mut at = 0;
    while at + 1 < word.len() {
        if word[at] == *left && word[at + 1] == *right {
            let second = word.remove(at + 1);
            word[at].push_str(&second);
        }
        at += 1;
    }
}

/// The ids of all symbols as JSON, in CLIP's order: bytes, bytes at the end of a word, merges, start and end.
fn vocabulary(merges: &[Pair]) -> String {
    let bytes = byte_symbols();
    let symbols = bytes
        .iter()
        .cloned()
        .chain(bytes.iter().map(|byte| format!("{byte}{END_OF_WORD}")))
        .chain(merges.iter().map(|(left, right)| format!("{left}{right}")))
        .chain(SPECIAL.map(String::from));
    let entries: Vec<String> =
        symbols.enumerate().map(|(id, symbol)| format!("{}:{id}", serde_json::Value::from(symbol))).collect();
    format!("{{{}}}\n", entries.join(","))
}

/// A visible character for each byte, GPT-2's: printable ones stand for themselves, the others for characters from 256
/// on; the printable ones come first.
fn byte_symbols() -> Vec<String> {
    let is_printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let printable = (0..256).filter(is_printable);
    let others = 256..256 + (0..256).filter(|byte| !is_printable(byte)).count() as u32;
    printable.chain(others).map(|code| char::from_u32(code).expect("below the surrogates").to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo/model");

    #[test]
    fn the_committed_tokenizers_are_those_learnt_here() {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path()).unwrap();
        for tokenizer in ["tokenizer", "tokenizer_2"] {
            for file in ["vocab.json", "merges.txt"] {
                let read = |folder: &Path| std::fs::read_to_string(folder.join(file)).unwrap();
                assert!(read(folder.path()) == read(&Path::new(MODEL).join(tokenizer)), "{tokenizer}/{file} differs");
            }
        }
    }

    #[test]
    fn merging_goes_by_frequency_until_every_word_is_whole() {
        let captions = ["a low low lowest".to_owned(), "a low".to_owned()];
        let merges: Vec<String> =
            learn(captions.into_iter()).iter().map(|(left, right)| format!("{left} {right}")).collect();
        assert_eq!(merges, ["l o", "lo w</w>", "e s", "es t</w>", "lo w", "low est</w>"]);
    }

    #[test]
    fn bytes_have_256_distinct_symbols() {
        let mut symbols = byte_symbols();
        assert_eq!((symbols[0].as_str(), symbols[255].as_str()), ("!", "\u{143}"));
        symbols.sort();
        symbols.dedup();
        assert_eq!(symbols.len(), 256);
    }
}
