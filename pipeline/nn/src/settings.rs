//! The JSON configurations of diffusers and transformers, read strictly.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The text is not a JSON object.
    #[error("not a JSON object: {0}")]
    Json(serde_json::Error),
    /// A key has a value of another type, or one outside its range.
    #[error("`{key}`: {reason}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// A key without which nothing can be built is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A setting that diffusers knows and this program does not implement.
    #[error("`{key}` = {value} is not supported")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
    },
    /// A key that the class of this configuration does not have.
    #[error("`{0}` is not a setting of this class")]
    Unknown(String),
}

/// A JSON object from which settings are taken one by one. What is left at the end has to be neutral, so that nothing
/// is ever ignored that would change the result.
pub struct Settings(Map<String, Value>);

impl From<Map<String, Value>> for Settings {
    fn from(object: Map<String, Value>) -> Self {
        Self(object)
    }
}

impl Settings {
    /// Reads a JSON object.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        serde_json::from_str(text).map(Self).map_err(SettingsError::Json)
    }

    /// The value of a key; a missing key and null are the same.
    pub fn optional<T: DeserializeOwned>(&mut self, key: &'static str) -> Result<Option<T>, SettingsError> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|e| bad_value(key, e)),
        }
    }

    /// The value of a key, or what the class has as its default where the key is missing. A null is a value of its own,
    /// which no key with such a default may have.
    pub fn or<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> Result<T, SettingsError> {
        match self.0.remove(key) {
            None => Ok(default),
            Some(Value::Null) => Err(SettingsError::Unsupported { key: key.to_owned(), value: "null".to_owned() }),
            Some(value) => serde_json::from_value(value).map_err(|e| bad_value(key, e)),
        }
    }

    /// The value of a key that has to be there.
    pub fn required<T: DeserializeOwned>(&mut self, key: &'static str) -> Result<T, SettingsError> {
        self.optional(key)?.ok_or(SettingsError::Missing(key))
    }

    /// Refuses another class than the one that is built here. A document that names none is taken at its keys.
    pub fn class(&mut self, key: &'static str, expected: &[&str]) -> Result<(), SettingsError> {
        match self.optional::<String>(key)? {
            Some(class) if !expected.contains(&class.as_str()) => {
                Err(bad_value(key, format!("{class} is not supported, only {}", expected.join(" and "))))
            }
            _ => Ok(()),
        }
    }

    /// Checks what is left: one of the `neutral` values, one of the `unread` keys, a private key of diffusers, or a null
    /// that asks for nothing.
    pub fn finish(self, neutral: &[(&str, Value)], unread: &[&str]) -> Result<(), SettingsError> {
        for (key, value) in self.0 {
            if key.starts_with('_') || unread.contains(&key.as_str()) {
                continue;
            }
            match neutral.iter().find(|(name, _)| *name == key) {
                Some((_, neutral)) if same(neutral, &value) => {}
                // Python takes null for false, and for nothing else.
                Some((_, Value::Bool(false) | Value::Null)) if value.is_null() => {}
                Some(_) => return Err(SettingsError::Unsupported { key, value: value.to_string() }),
                None if value.is_null() => {}
                None => return Err(SettingsError::Unknown(key)),
            }
        }
        Ok(())
    }
}

/// Equality of JSON values, with 1 and 1.0 the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A key whose value cannot be used, with the reason.
pub fn bad_value(key: &str, reason: impl ToString) -> SettingsError {
    SettingsError::Value { key: key.to_owned(), reason: reason.to_string() }
}

/// The widest that any tensor of a network may be.
pub const MOST_WIDE: i64 = 1 << 20;
/// The most layers in a row: each is a module with names of its own, long before it has weights.
pub const MOST_LAYERS: i64 = 1 << 10;

/// Refuses what no network has, before anything of that size is built.
///
/// # Errors
/// Where `size` is not within 1 and `most`.
pub fn check_range(key: &str, size: i64, most: i64) -> Result<(), SettingsError> {
    if (1..=most).contains(&size) { Ok(()) } else { Err(bad_value(key, format!("{size} is out of range"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a document whose class has the keys `width` (8), `gated` (false) and `scale` (1).
    fn refused(text: &str) -> Option<String> {
        let read = || {
            let mut settings = Settings::parse(text)?;
            settings.class("_class_name", &["Net"])?;
            settings.or::<i64>("width", 8)?;
            settings.finish(&[("gated", false.into()), ("scale", 1.into())], &["note"])
        };
        read().err().map(|error: SettingsError| error.to_string())
    }

    #[test]
    fn nothing_that_would_change_a_result_is_passed_over() {
        for good in [
            "{}",
            r#"{"width": 4, "gated": false, "scale": 1.0, "note": [1], "_version": "x", "_class_name": "Net"}"#,
            r#"{"gated": null, "newer": null}"#,
        ] {
            assert_eq!(refused(good), None, "{good}");
        }
        for (bad, said) in [
            (r#"{"width": "wide"}"#, "`width`: invalid type: string"),
            (r#"{"width": null}"#, "`width` = null is not supported"),
            (r#"{"gated": true}"#, "`gated` = true is not supported"),
            (r#"{"scale": null}"#, "`scale` = null is not supported"),
            (r#"{"newer": 0}"#, "`newer` is not a setting of this class"),
            (r#"{"_class_name": "TinyNet"}"#, "`_class_name`: TinyNet is not supported, only Net"),
            ("[]", "not a JSON object"),
        ] {
            let message = refused(bad).expect(bad);
            assert!(message.starts_with(said), "{message}");
        }
    }
}
