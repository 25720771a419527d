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

/// The vocabulary of fixtures/encode with settings of its own; `words` is a folder that holds the vocabulary.
fn with_settings(words: &str, settings: &[(&str, serde_json::Value)]) -> encode::Result<ClipTokenizer> {
    let folder = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer.json"] {
        let file = fixture("encode/model").join(words).join(name);
        if file.exists() {
            std::fs::copy(file, folder.path().join(name)).unwrap();
        }
    }
    for (name, document) in settings {
        std::fs::write(folder.path().join(name), document.to_string()).unwrap();
    }
    ClipTokenizer::open(folder.path())
}

/// What transformers 5.24 makes of the same folders: "!" alone is another id than the word "!</w>".
#[test]
fn tokens_are_read_from_every_file_that_transformers_reads() {
    const CONFIG: &str = "tokenizer_config.json";
    const MAP: &str = "special_tokens_map.json";
    let opened = |words, settings: &[(&str, serde_json::Value)]| {
        let tokens = with_settings(words, settings).unwrap().encode("a!").unwrap().ids;
        (tokens[2], tokens[tokens.len() - 1])
    };
    let (word, end) = opened("tokenizer_2", &[]);
    let (mark, pad) = opened("tokenizer_2", &[(CONFIG, json!({"pad_token": "!"}))]);
    assert!(word != mark && mark == pad && pad != end);
    let by_end = || json!({"pad_token": "<|endoftext|>"});
    let by_mark = || json!({"pad_token": "!"});
    for (settings, ids) in [
        (vec![(CONFIG, by_end()), (MAP, by_mark())], (mark, pad)),
        (vec![(CONFIG, by_mark()), (MAP, by_end())], (word, end)),
        (vec![(CONFIG, json!({"added_tokens_decoder": {}})), (MAP, by_mark())], (word, end)),
        (vec![(CONFIG, json!({"additional_special_tokens": ["!"]}))], (mark, end)),
        (vec![(MAP, json!({"additional_special_tokens": [{"content": "!", "normalized": false}]}))], (mark, end)),
        (vec![(CONFIG, json!({"extra_special_tokens": {"mark_token": "!"}}))], (mark, end)),
        (vec![(CONFIG, json!({"extra_special_tokens": {}}))], (word, end)),
        (vec![("added_tokens.json", json!({"!": mark}))], (mark, end)),
    ] {
        assert_eq!(opened("tokenizer_2", &settings), ids, "{settings:?}");
    }
    assert_eq!(opened("tokenizer", &[(CONFIG, by_mark())]), (mark, pad), "beside a tokenizer.json");
}

#[test]
fn settings_that_would_give_other_ids_are_refused_by_name() {
    let refused = |name: &str, document: serde_json::Value| {
        with_settings("tokenizer_2", &[(name, document)]).err().expect("refused").to_string()
    };
    for (key, value, said) in [
        ("padding_side", json!("left"), "tokenizer_config.json: `padding_side` = \"left\" is not supported"),
        ("truncation_side", json!("left"), "tokenizer_config.json: `truncation_side` = \"left\" is not supported"),
        ("split_special_tokens", json!(true), "tokenizer_config.json: `split_special_tokens` = true is not supported"),
    ] {
        let message = refused("tokenizer_config.json", json!({ key: value }));
        assert!(message.contains(said), "{message}");
    }
    let message = refused("added_tokens.json", json!({"<s1>": 49408}));
    assert!(message.contains("the token `<s1>` is not in the vocabulary"), "{message}");
}
