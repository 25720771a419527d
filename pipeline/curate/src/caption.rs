//! Captions: named cleaning rules, each of which knows what it changed, and bounds on what is left.
//!
//! Rules act on whole words and leave everything else alone: `webpage`, `epson`, `C++`, `iso800`, `a < b` and
//! emoji come out as they went in.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::reason;
use crate::recipe::CaptionRules;

/// The version of what the rules do, part of a run's fingerprint.
pub const VERSION: u32 = 1;

/// One cleaning step. The names are those of the recipe and of the trace in the sample's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// UTF-8 that was once read as Windows-1252 is read again: `CafÃ©` becomes `Café`.
    Mojibake,
    /// HTML entities, also doubly escaped ones: `&amp;#39;` becomes `'`.
    Entities,
    /// HTML tags of known names become a space. What follows a name within a tag is an attribute with a value, as in
    /// `<a href="x">`: `<a photo of a cat>` is none.
    Tags,
    /// `http://`, `https://` and `www.` addresses.
    Urls,
    /// Mail addresses.
    Emails,
    /// `@name` at the start of a word.
    Handles,
    /// A caption's words that are names of image files: `IMG_1234.jpg`.
    Filenames,
    /// Control characters, byte-order marks, soft hyphens and zero-width spaces; joiners of emoji and of
    /// scripts stay.
    Invisible,
    /// Four or more of `!`, `?`, `-`, `_`, `=`, `*`, `~` or `.` in a row become one, of `.` three.
    Repeats,
    /// Quotation marks around the whole caption.
    Quotes,
    /// Runs of white space become one space, and none is left at the ends.
    Spaces,
}

impl Rule {
    /// What is applied where the recipe names no rules.
    pub const STANDARD: [Rule; 9] = [
        Rule::Mojibake,
        Rule::Entities,
        Rule::Tags,
        Rule::Urls,
        Rule::Emails,
        Rule::Invisible,
        Rule::Repeats,
        Rule::Quotes,
        Rule::Spaces,
    ];

    /// Applies this rule; borrowed where it changes nothing.
    pub fn apply(self, text: &str) -> Cow<'_, str> {
        match self {
            Rule::Mojibake => mojibake(text).map_or(Cow::Borrowed(text), Cow::Owned),
            Rule::Entities => entities(text),
            Rule::Tags => TAGS.replace_all(text, " "),
            Rule::Urls => URLS.replace_all(text, " "),
            Rule::Emails => EMAILS.replace_all(text, " "),
            Rule::Handles => HANDLES.replace_all(text, "$before "),
            Rule::Filenames => FILENAMES.replace_all(text, "$before "),
            Rule::Invisible => without(text, is_invisible),
            Rule::Repeats => REPEATS.replace_all(text, |found: &regex::Captures<'_>| {
                let first = &found[0][..1];
                if first == "." { "...".to_owned() } else { first.to_owned() }
            }),
            Rule::Quotes => quotes(text),
            Rule::Spaces => spaces(text),
        }
    }
}

/// A caption after cleaning, and the rules that changed it, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned {
    /// What is trained on.
    pub text: String,
    /// The rules that changed something.
    pub changed_by: Vec<Rule>,
}

/// Applies the recipe's rules in order.
pub fn clean(raw: &str, rules: &[Rule]) -> Cleaned {
    let mut text = raw.to_owned();
    let mut changed_by = Vec::new();
    for &rule in rules {
        let after = rule.apply(&text);
        if after != text.as_str() {
            text = after.into_owned();
            changed_by.push(rule);
        }
    }
    Cleaned { text, changed_by }
}

/// Holds a cleaned caption against the recipe's bounds.
///
/// # Errors
/// The first bound that it breaks.
pub fn admit(text: &str, rules: &CaptionRules) -> Result<(), reason::Caption> {
    let (chars, words) = (text.chars().count(), words(text));
    if chars < rules.min_chars {
        Err(reason::Caption::TooShort)
    } else if chars > rules.max_chars {
        Err(reason::Caption::TooLong)
    } else if words < rules.min_words {
        Err(reason::Caption::TooFewWords)
    } else if words > rules.max_words {
        Err(reason::Caption::TooManyWords)
    } else {
        Ok(())
    }
}

/// Words of a text. Chinese, Japanese and Korean syllables and ideographs count one each, as these are
/// written without spaces.
fn words(text: &str) -> usize {
    let mut count = 0;
    let mut inside = false;
    for c in text.chars() {
        if is_unspaced(c) {
            count += 1;
            inside = false;
        } else if c.is_whitespace() {
            inside = false;
        } else if !inside {
            count += 1;
            inside = true;
        }
    }
    count
}

fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c), 0x3040..=0x30FF | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xAC00..=0xD7AF | 0xF900..=0xFAFF
        | 0x20000..=0x2FA1F)
}

macro_rules! pattern {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($pattern).expect("a constant pattern"));
    };
}

pattern!(
    TAGS,
    r#"(?i)</?(?:a|b|i|u|s|p|br|hr|em|strong|small|big|sub|sup|font|span|div|img|ul|ol|li|table|tbody|tr|td|th|h[1-6]|center|code|pre|blockquote|iframe|script|style|input|form|button|label|figure|figcaption|section|article)(?:\s+[a-z][\w:.-]*\s*=[^<>]*)?\s*/?>"#
);
pattern!(URLS, r#"(?i)\b(?:https?://|www\.)[^\s<>"]+"#);
pattern!(EMAILS, r"(?i)\b[a-z0-9][a-z0-9._%+-]*@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b");
pattern!(HANDLES, r"(?P<before>^|[\s(])@[A-Za-z0-9_]{2,}(?:\.[A-Za-z0-9_]+)*");
pattern!(FILENAMES, r"(?i)(?P<before>^|\s)[\w()-]+(?:\.[\w()-]+)*\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic)\b");
pattern!(REPEATS, r"!{4,}|\?{4,}|-{4,}|_{4,}|={4,}|\*{4,}|~{4,}|\.{4,}");

/// Decoded until nothing changes, but at most three times: sources escape twice.
fn entities(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..3 {
        match html_escape::decode_html_entities(text.as_ref()) {
            Cow::Borrowed(_) => break,
            Cow::Owned(decoded) if decoded == text => break,
            Cow::Owned(decoded) => text = Cow::Owned(decoded),
        }
    }
    text
}

/// The text read as Windows-1252 bytes that are UTF-8, if all of it can be.
fn mojibake(text: &str) -> Option<String> {
    // Every multi-byte sequence of UTF-8 begins with a byte that Windows-1252 shows as one of À to ô.
    if !text.chars().any(|c| ('\u{C2}'..='\u{F4}').contains(&c)) {
        return None;
    }
    let bytes: Option<Vec<u8>> = text.chars().map(windows_1252).collect();
    String::from_utf8(bytes?).ok()
}

/// The byte that Windows-1252 shows as `c`. Bytes that it leaves undefined stand for themselves, as browsers
/// have it.
fn windows_1252(c: char) -> Option<u8> {
    const UPPER: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
    ];
    match u32::from(c) {
        code @ (0..=0x7F | 0xA0..=0xFF) => u8::try_from(code).ok(),
        _ => UPPER.iter().position(|&u| u == c).and_then(|at| u8::try_from(0x80 + at).ok()),
    }
}

fn is_invisible(c: char) -> bool {
    let kept_as_space = matches!(c, '\t' | '\n' | '\r');
    // U+200C and U+200D join letters of some scripts and parts of emoji.
    (c.is_control() && !kept_as_space) || matches!(c, '\u{AD}' | '\u{200B}' | '\u{2060}' | '\u{FEFF}' | '\u{FFFD}')
}

fn without(text: &str, unwanted: fn(char) -> bool) -> Cow<'_, str> {
    if text.contains(unwanted) { Cow::Owned(text.replace(unwanted, "")) } else { Cow::Borrowed(text) }
}

fn quotes(text: &str) -> Cow<'_, str> {
    let trimmed = text.trim();
    for (open, close) in [('"', '"'), ('\'', '\''), ('“', '”'), ('‘', '’'), ('«', '»'), ('„', '“')] {
        if let Some(inner) = trimmed.strip_prefix(open).and_then(|t| t.strip_suffix(close))
            && !inner.contains([open, close])
        {
            return Cow::Borrowed(inner);
        }
    }
    Cow::Borrowed(text)
}

fn spaces(text: &str) -> Cow<'_, str> {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if joined == text { Cow::Borrowed(text) } else { Cow::Owned(joined) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Rule; 11] = [
        Rule::Mojibake,
        Rule::Entities,
        Rule::Tags,
        Rule::Urls,
        Rule::Emails,
        Rule::Handles,
        Rule::Filenames,
        Rule::Invisible,
        Rule::Repeats,
        Rule::Quotes,
        Rule::Spaces,
    ];

    fn cleaned(raw: &str) -> String {
        clean(raw, &ALL).text
    }

    #[test]
    fn each_rule_does_its_own() {
        for (rule, raw, wanted) in [
            (Rule::Mojibake, "CafÃ© â€œOlÃ©â€\u{9d}", "Café “Olé”"),
            (Rule::Entities, "rock &amp;#39;n&amp;#39; roll &amp;amp; blues", "rock 'n' roll & blues"),
            (Rule::Tags, "a<br/>b <b class=\"x\">c</b>", "a b  c "),
            (Rule::Tags, "<a\nhref = x target=_blank>d</a ><br /><HR>", " d   "),
            (Rule::Urls, "see https://a.b/c?d=e and www.f.org now", "see   and   now"),
            (Rule::Emails, "mail a.b@c.org today", "mail   today"),
            (Rule::Handles, "by @some.body today", "by   today"),
            (Rule::Filenames, "IMG_1234.JPG a cat", "  a cat"),
            (Rule::Invisible, "a\u{200b}b\u{feff}\u{7}c", "abc"),
            (Rule::Repeats, "wow!!!!! so....... yes --", "wow! so... yes --"),
            (Rule::Quotes, "“a red bridge”", "a red bridge"),
            (Rule::Spaces, "  a \t b\n\nc ", "a b c"),
        ] {
            assert_eq!(rule.apply(raw), wanted, "{rule:?}");
        }
    }

    #[test]
    fn the_damage_of_other_cleaners_is_not_done() {
        for text in [
            "webpage design",
            "epson printer",
            "ford f150",
            "airbus a380 at iso800",
            "h2o",
            "C++ and C#",
            "<a photo of a cat>",
            "a < b > c",
            "1 <3 you",
            "free shipping to Norway",
            "\"one\" and \"two\"",
            "рыжий кот на окне",
            "富士山の夕焼け",
            "고양이",
            "می‌خواهم",
            "👨‍👩‍👧‍👦 family 🏳️‍🌈",
            "crème brûlée, Ångström, ÀÉÎ",
            "price: 10 € / 5 £",
            "Mr. Smith @ the beach",
            "AT&T & friends",
        ] {
            assert_eq!(cleaned(text), text);
        }
    }

    #[test]
    fn changes_are_traced_by_rule() {
        let cleaned = clean("  &quot;a  cat&quot;  ", &Rule::STANDARD);
        assert_eq!(cleaned.text, "a cat");
        assert_eq!(cleaned.changed_by, [Rule::Entities, Rule::Quotes, Rule::Spaces]);
        assert_eq!(clean("a cat", &Rule::STANDARD).changed_by, []);
    }

    #[test]
    fn bounds_count_characters_and_words_of_every_script() {
        let rules = CaptionRules { rules: vec![], min_chars: 3, max_chars: 20, min_words: 3, max_words: 5 };
        assert_eq!(admit("a red cat", &rules), Ok(()));
        assert_eq!(admit("富士山", &rules), Ok(()));
        assert_eq!(admit("ab", &rules), Err(reason::Caption::TooShort));
        assert_eq!(admit("red cat", &rules), Err(reason::Caption::TooFewWords));
        assert_eq!(admit("a b c d e f", &rules), Err(reason::Caption::TooManyWords));
        assert_eq!(admit(&"abc ".repeat(6), &rules), Err(reason::Caption::TooLong));
    }

    proptest! {
        #[test]
        fn plain_words_pass_through_every_rule(text in "[a-zA-Z0-9+#]{1,9}( [a-zA-Z0-9+#]{1,9}){0,9}") {
            prop_assert_eq!(cleaned(&text), text);
        }

        #[test]
        fn any_text_is_cleaned_without_panic_and_ends_tidy(text in ".{0,200}") {
            let text = cleaned(&text);
            prop_assert!(text.trim() == text && !text.contains("  "));
        }
    }
}
