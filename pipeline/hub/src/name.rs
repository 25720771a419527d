//! The name of a model on the hub.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// What tells a name on the hub from a folder's path.
pub const PREFIX: &str = "hf:";
const FP16: &str = ":fp16";
const MAIN: &str = "main";

/// `hf:OWNER/NAME[@REVISION][:fp16]`: a repository, the branch, tag or commit in it, and which of its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    repository: String,
    revision: String,
    variant: Variant,
}

/// Which of the files that a repository has for one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// As published, in full; the fp16 files where there are no others.
    Full,
    /// The fp16 files: half the bytes.
    Fp16,
}

impl ModelName {
    /// `OWNER/NAME`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    pub(crate) fn variant(&self) -> Variant {
        self.variant
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Name { name: text.to_owned(), reason: reason.to_owned() };
        let rest = text.strip_prefix(PREFIX).ok_or_else(|| wrong("does not begin with hf:"))?;
        let (rest, variant) = match rest.strip_suffix(FP16) {
            Some(rest) => (rest, Variant::Fp16),
            None => (rest, Variant::Full),
        };
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, MAIN));
        // The hub's own rules, and names of folders in the cache.
        let plain = |part: &str| {
            (1..=96).contains(&part.len())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("..")
                && !part.contains("--")
        };
        match repository.split_once('/') {
            Some((owner, name)) if plain(owner) && plain(name) => {}
            _ => return Err(wrong("expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION, and :fp16 behind either")),
        }
        if !revision.split('/').all(plain) {
            return Err(wrong("the revision is not the name of a branch, a tag or a commit"));
        }
        Ok(Self { repository: repository.into(), revision: revision.into(), variant })
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.repository)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        match self.variant {
            Variant::Full => Ok(()),
            Variant::Fp16 => f.write_str(FP16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_they_are_written() {
        for text in [
            "hf:stabilityai/stable-diffusion-xl-base-1.0",
            "hf:stabilityai/stable-diffusion-xl-base-1.0:fp16",
            "hf:a/b@refs/pr/1",
            "hf:a/b_c@462165984030d82259a11f4367a4eed129e94a7b:fp16",
        ] {
            assert_eq!(text.parse::<ModelName>().unwrap().to_string(), text);
        }
        assert_eq!("hf:a/b@main".parse::<ModelName>().unwrap(), "hf:a/b".parse().unwrap());
    }

    #[test]
    fn what_could_leave_the_cache_or_the_hub_is_refused() {
        for text in [
            "hf:",
            "hf:a",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/b@",
            "hf:a/b@..",
            "hf:a/b@x/../y",
            "hf:a/b@/x",
            "hf:a/b?x=1",
            "hf:a/b#x",
            "hf:a/b%2f",
            "hf:/etc",
            "hf:a b/c",
            "hf:.a/b",
            "hf:a/b:fp32",
            "hf:a--b/c",
            "a/b",
        ] {
            let message = text.parse::<ModelName>().unwrap_err().to_string();
            assert!(message.contains(text), "{message}");
        }
    }
}
