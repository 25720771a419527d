//! CLIP's tokenizer: text to the token ids that a text model was trained on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::Tensor;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::config::read_json;
use crate::{Error, Result};

/// How CLIP cuts lower-cased text into words, before byte pairs are merged.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// The sequence length of every published CLIP model.
const CLIP_LENGTH: usize = 77;

/// A tokenizer with the padding of one text model.
pub struct ClipTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
}

/// One text as a sequence of the tokenizer's length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// Start, text, end, padding.
    pub ids: Vec<i64>,
    /// Whether the end of the text had to be left out.
    pub truncated: bool,
}

/// The settings in `tokenizer_config.json`, or in the `special_tokens_map.json` beside it, that change token ids.
#[derive(Debug, Default, Deserialize)]
struct Settings {
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    unk_token: Option<Special>,
    pad_token: Option<Special>,
    /// The name that transformers 5 gives to `additional_special_tokens`.
    extra_special_tokens: Option<Further>,
    additional_special_tokens: Option<Further>,
    model_max_length: Option<f64>,
    added_tokens_decoder: Option<BTreeMap<String, Flags>>,
    padding_side: Option<String>,
    truncation_side: Option<String>,
    split_special_tokens: Option<bool>,
}

/// Special tokens beside the four: a list, or each by a name.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Further {
    Listed(Vec<Special>),
    Named(BTreeMap<String, Special>),
}

/// A special token, by its text alone or with its matching rules.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    WithFlags(Flags),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Flags {
    content: String,
    lstrip: bool,
    normalized: bool,
    rstrip: bool,
    single_word: bool,
    special: bool,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            content: String::new(),
            lstrip: false,
            normalized: true,
            rstrip: false,
            single_word: false,
            special: true,
        }
    }
}

impl Special {
    fn content(&self) -> &str {
        match self {
            Special::Text(content) => content,
            Special::WithFlags(flags) => &flags.content,
        }
    }

    fn to_added(&self) -> AddedToken {
        match self {
            // As transformers does with a token given by its text alone.
            Special::Text(content) => AddedToken::from(content.clone(), true).normalized(false),
            Special::WithFlags(flags) => flags.to_added(),
        }
    }
}

impl Flags {
    fn to_added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized)
            .single_word(self.single_word)
    }
}

impl Settings {
    /// Reads them as transformers does: a `tokenizer_config.json` that lists its tokens (`added_tokens_decoder`) is all
    /// there is. Beside an older one `special_tokens_map.json` has the last word, and `added_tokens.json` lists further
    /// tokens. Each of the three may be absent.
    fn read(folder: &Path) -> Result<Self> {
        fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
            if path.exists() { read_json(path) } else { Ok(T::default()) }
        }
        let path = folder.join("tokenizer_config.json");
        let config: Self = read(&path)?;
        if let Some(reason) = config.unsupported() {
            return Err(Error::invalid(path, reason));
        }
        if config.added_tokens_decoder.is_some() {
            return Ok(config);
        }
        let map: Self = read(&folder.join("special_tokens_map.json"))?;
        let added: BTreeMap<String, u32> = read(&folder.join("added_tokens.json"))?;
        let mut settings = Self {
            bos_token: map.bos_token.or(config.bos_token),
            eos_token: map.eos_token.or(config.eos_token),
            unk_token: map.unk_token.or(config.unk_token),
            pad_token: map.pad_token.or(config.pad_token),
            extra_special_tokens: map.extra_special_tokens.or(config.extra_special_tokens),
            additional_special_tokens: map.additional_special_tokens.or(config.additional_special_tokens),
            ..config
        };
        let named = settings.special_tokens();
        let flags = |content: String| {
            let special = named.iter().any(|token| token.content() == content);
            Flags { content, special, normalized: !special, ..Flags::default() }
        };
        settings.added_tokens_decoder =
            Some(added.into_iter().map(|(content, id)| (id.to_string(), flags(content))).collect());
        Ok(settings)
    }

    /// What would give other ids than those of a sequence that is cut and padded at its end.
    fn unsupported(&self) -> Option<String> {
        for (key, side) in [("padding_side", &self.padding_side), ("truncation_side", &self.truncation_side)] {
            if let Some(side) = side.as_ref().filter(|side| *side != "right") {
                return Some(format!("`{key}` = \"{side}\" is not supported"));
            }
        }
        (self.split_special_tokens == Some(true)).then(|| "`split_special_tokens` = true is not supported".to_owned())
    }

    /// The four that every tokenizer of this class has, and those that this one names beside them.
    fn special_tokens(&self) -> Vec<Special> {
        let four = [(&self.bos_token, START), (&self.eos_token, END), (&self.unk_token, END), (&self.pad_token, END)];
        let four =
            four.into_iter().map(|(token, text)| token.clone().unwrap_or_else(|| Special::Text(text.to_owned())));
        let further = [&self.extra_special_tokens, &self.additional_special_tokens].into_iter().flatten();
        let further = further.flat_map(|tokens| match tokens {
            Further::Listed(tokens) => tokens.clone(),
            Further::Named(tokens) => tokens.values().cloned().collect(),
        });
        four.chain(further).collect()
    }

    /// The tokens that are matched whole in a text, in the order in which transformers adds them: a later one of the
    /// same text replaces an earlier one. The padding token of SDXL's second encoder, `!`, is one of them, so that an
    /// exclamation mark in a caption is that token and not the word `!</w>`.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let listed: Vec<&Flags> = self.added_tokens_decoder.iter().flat_map(BTreeMap::values).collect();
        let named = self.special_tokens();
        let unlisted = named.iter().filter(|token| listed.iter().all(|flags| flags.content != token.content()));
        let all = listed.iter().map(|flags| flags.to_added()).chain(unlisted.map(Special::to_added));
        let mut kept: Vec<AddedToken> = Vec::new();
        for token in all {
            kept.retain(|earlier| earlier.content != token.content);
            kept.push(token);
        }
        kept
    }
}

impl ClipTokenizer {
    /// Opens a tokenizer's folder: `tokenizer.json`, or `vocab.json` with `merges.txt`.
    pub fn open(folder: &Path) -> Result<Self> {
        let settings = Settings::read(folder)?;
        let failed = |source| Error::Tokenizer { path: folder.to_owned(), source };
        let whole = folder.join("tokenizer.json");
        let mut tokenizer = if whole.exists() {
            Tokenizer::from_file(&whole).map_err(failed)?
        } else {
            from_vocabulary(folder, &settings)?
        };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(failed)?;
        let mut added = settings.added_tokens();
        if let Some(unknown) = added.iter().find(|token| tokenizer.token_to_id(&token.content).is_none()) {
            return Err(Error::invalid(folder, format!("the token `{}` is not in the vocabulary", unknown.content)));
        }
        // A tokenizer.json says itself how those that it lists are matched.
        let already = tokenizer.get_added_tokens_decoder();
        added.retain(|token| already.values().all(|listed| listed.content != token.content));
        tokenizer.add_special_tokens(&added);

        let id = |special: &Option<Special>, default: &str| {
            let text = special.as_ref().map_or(default, Special::content);
            tokenizer
                .token_to_id(text)
                .ok_or_else(|| Error::invalid(folder, format!("the token `{text}` is not in the vocabulary")))
        };
        let (start, end) = (id(&settings.bos_token, START)?, id(&settings.eos_token, END)?);
        let pad = id(&settings.pad_token, END)?;
        let length = match settings.model_max_length {
            // transformers writes 1e30 where no length was given.
            None | Some(1e9..) => CLIP_LENGTH,
            Some(length) if length >= 2.0 => length as usize,
            Some(length) => return Err(Error::invalid(folder, format!("model_max_length is {length}"))),
        };
        Ok(Self { path: folder.to_owned(), tokenizer, start, end, pad, length })
    }

    /// Tokens in a sequence.
    pub fn length(&self) -> usize {
        self.length
    }

    /// One more than the largest id.
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |largest| largest as usize + 1)
    }

    /// Encodes one text: cut so that start and end fit, padded to the length.
    pub fn encode(&self, text: &str) -> Result<TokenIds> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|source| Error::Tokenizer { path: self.path.clone(), source })?;
        let words = encoding.get_ids();
        let room = self.length - 2;
        let mut ids = Vec::with_capacity(self.length);
        ids.push(i64::from(self.start));
        ids.extend(words.iter().take(room).map(|&id| i64::from(id)));
        ids.push(i64::from(self.end));
        ids.resize(self.length, i64::from(self.pad));
        Ok(TokenIds { ids, truncated: words.len() > room })
    }
}

/// Stacks sequences of one length to `[texts, length]`.
pub fn stack(sequences: &[TokenIds]) -> Tensor {
    let rows: Vec<Tensor> = sequences.iter().map(|tokens| Tensor::from_slice(&tokens.ids)).collect();
    Tensor::stack(&rows, 0)
}

/// The tokenizer that transformers makes of CLIP's two files.
fn from_vocabulary(folder: &Path, settings: &Settings) -> Result<Tokenizer> {
    let failed = |source| Error::Tokenizer { path: folder.to_owned(), source };
    let file = |name: &str| {
        let path = folder.join(name);
        if !path.is_file() {
            let reason = format!("no {name}: a tokenizer is tokenizer.json, or vocab.json with merges.txt");
            return Err(Error::invalid(folder, reason));
        }
        path.into_os_string().into_string().map_err(|path| Error::invalid(path, "not a path in UTF-8"))
    };
    let unknown = settings.unk_token.as_ref().map_or(END, Special::content).to_owned();
    let model = BPE::from_file(&file("vocab.json")?, &file("merges.txt")?)
        .end_of_word_suffix("</w>".into())
        .unk_token(unknown)
        .build()
        .map_err(failed)?;

    let mut tokenizer = Tokenizer::new(model);
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(failed)?;
    let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)));
    let split = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true).map_err(failed)?;
    let words: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(words)));
    Ok(tokenizer)
}
