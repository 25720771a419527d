//! CLIP's tokenizer against transformers, on the vocabulary that SDXL uses.

use std::io::Read;
use std::path::Path;

use encode::ClipTokenizer;
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::json;

use super::fixture;

#[derive(Deserialize)]
struct Expected {
    captions: Vec<String>,
    tokenizer: Vec<Vec<i64>>,
    tokenizer_2: Vec<Vec<i64>>,
    tokenizer_truncated: usize,
    tokenizer_2_truncated: usize,
}

fn unpack(name: &str) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(fixture("tokenizer").join(name)).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

/// CLIP's vocabulary follows from its merges: 256 bytes, the same as ends of words, the merged pairs, start and end.
fn vocabulary(merges: &str) -> serde_json::Value {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let bytes: Vec<String> = printable.chain('\u{100}'..='\u{143}').map(String::from).collect();
    let ends = bytes.iter().map(|byte| format!("{byte}</w>"));
    let pairs = merges.lines().skip(1).map(|pair| pair.replace(' ', ""));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    let words = bytes.iter().cloned().chain(ends).chain(pairs).chain(special);
    words.enumerate().map(|(id, word)| (word, json!(id))).collect()
}

/// A folder as published: no tokenizer.json.
fn published(folder: &Path, pad: &str) {
    let merges = unpack("merges.txt.gz");
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("vocab.json"), vocabulary(&merges).to_string()).unwrap();
    std::fs::write(folder.join("merges.txt"), merges).unwrap();
    let token = |content: &str| {
        json!({"__type": "AddedToken", "content": content, "lstrip": false, "normalized": true, "rstrip": false,
               "single_word": false})
    };
    let (start, end) = (token("<|startoftext|>"), token("<|endoftext|>"));
    let config =
        json!({"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad, "model_max_length": 77});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

#[test]
fn ids_of_a_thousand_captions_are_those_of_transformers() {
    let expected: Expected = serde_json::from_str(&unpack("captions.json.gz")).unwrap();
    assert_eq!(expected.captions.len(), 1000);
    let folder = tempfile::tempdir().unwrap();
    for (name, pad, ids, truncated) in [
        ("tokenizer", "<|endoftext|>", &expected.tokenizer, expected.tokenizer_truncated),
        ("tokenizer_2", "!", &expected.tokenizer_2, expected.tokenizer_2_truncated),
    ] {
        let path = folder.path().join(name);
        published(&path, pad);
        let tokenizer = ClipTokenizer::open(&path).unwrap();
        let mut found_truncated = 0;
        let mut wrong = Vec::new();
        for (caption, ids) in expected.captions.iter().zip(ids) {
            let found = tokenizer.encode(caption).unwrap();
            found_truncated += usize::from(found.truncated);
            if found.ids != *ids {
                wrong.push(format!("{caption:?}\n  expected {ids:?}\n  found    {:?}", found.ids));
            }
        }
        assert!(
            wrong.is_empty(),
            "{name}: {} captions differ:\n{}",
            wrong.len(),
            wrong[..wrong.len().min(5)].join("\n")
        );
        assert_eq!(found_truncated, truncated);
    }
}

#[test]
fn both_forms_of_a_folder_are_one_tokenizer() {
    let whole = fixture("encode/model/tokenizer");
    assert!(whole.join("tokenizer.json").exists());
    let parts = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt"] {
        std::fs::copy(fixture("encode/model/tokenizer_2").join(name), parts.path().join(name)).unwrap();
    }
    let (whole, parts) = (ClipTokenizer::open(&whole).unwrap(), ClipTokenizer::open(parts.path()).unwrap());
    for text in ["", "a red square", "Two  BLUE\tcircles, it's 12!", "é 猫 🐱 <|endoftext|>"] {
        assert_eq!(whole.encode(text).unwrap(), parts.encode(text).unwrap(), "{text:?}");
    }
}

#[test]
fn a_folder_that_is_no_tokenizer_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let message = |folder: &Path| ClipTokenizer::open(folder).err().expect("refused").to_string();
    assert!(message(&folder.path().join("absent")).contains("no vocab.json"));
    std::fs::write(folder.path().join("vocab.json"), "{\"a\": 0}").unwrap();
    assert!(message(folder.path()).contains("no merges.txt"));
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\n").unwrap();
    assert!(message(folder.path()).contains("`<|startoftext|>` is not in the vocabulary"));
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(message(folder.path()).contains(&folder.path().display().to_string()));
}
