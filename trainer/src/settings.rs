//! diffusers' JSON configurations, read strictly.

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
pub(crate) struct Settings(Map<String, Value>);

impl Settings {
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

    /// The value of a key, or what diffusers' class has as its default.
    pub fn or<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> Result<T, SettingsError> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    pub fn required<T: DeserializeOwned>(&mut self, key: &'static str) -> Result<T, SettingsError> {
        self.optional(key)?.ok_or(SettingsError::Missing(key))
    }

    /// Checks what is left: null, one of the `neutral` values, one of the `unread` keys, or a private key of diffusers.
    pub fn finish(self, neutral: &[(&str, Value)], unread: &[&str]) -> Result<(), SettingsError> {
        for (key, value) in self.0 {
            if value.is_null() || key.starts_with('_') || unread.contains(&key.as_str()) {
                continue;
            }
            match neutral.iter().find(|(name, _)| *name == key) {
                Some((_, neutral)) if same(neutral, &value) => {}
                Some(_) => return Err(SettingsError::Unsupported { key, value: value.to_string() }),
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
pub(crate) fn bad_value(key: &str, reason: impl ToString) -> SettingsError {
    SettingsError::Value { key: key.to_owned(), reason: reason.to_string() }
}
