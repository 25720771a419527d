//! What can go wrong between a file of weights and a network.

use std::fmt;
use std::path::PathBuf;

/// An error of this crate; it names the file or the tensor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, mapped or read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is not valid safetensors.
    #[error("{path}: not a valid safetensors file: {source}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// The index of a sharded set is malformed or disagrees with its shards.
    #[error("{path}: {reason}", path = path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder holds none of the files that weights could lie in.
    #[error("{folder}: no weights found, looked for {}", looked_for.join(", "), folder = folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// The names tried.
        looked_for: Vec<String>,
    },
    /// A tensor was asked for by name and is not there.
    #[error("{origin}: no tensor `{tensor}`")]
    NoTensor {
        /// Where the weights came from.
        origin: String,
        /// The name asked for.
        tensor: String,
    },
    /// A tensor has a type that torch's layers cannot take.
    #[error("{origin}: tensor `{tensor}` has type {dtype}, expected a floating-point type")]
    Dtype {
        /// Where the weights came from.
        origin: String,
        /// The tensor.
        tensor: String,
        /// Its type as the file states it.
        dtype: String,
    },
    /// The tensors are not those of the network.
    #[error(transparent)]
    Mismatch(Mismatch),
    /// The same name twice after renaming.
    #[error("{origin}: two tensors are named `{tensor}`")]
    Duplicate {
        /// Where the weights came from.
        origin: String,
        /// The name.
        tensor: String,
    },
    /// Torch refused an operation on a tensor.
    #[error("tensor `{tensor}`: {source}")]
    Torch {
        /// The tensor.
        tensor: String,
        /// What torch says.
        source: tch::TchError,
    },
    /// A device that is not there, or is not one.
    #[error("device `{name}`: {reason}")]
    Device {
        /// As it was asked for.
        name: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// A file could not be published.
    #[error(transparent)]
    Save(#[from] shards::Error),
}

/// Every difference between a network and the tensors offered to it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Where the tensors came from.
    pub origin: String,
    /// Names the network has and the source lacks.
    pub missing: Vec<String>,
    /// Names the source has and the network lacks.
    pub surplus: Vec<String>,
    /// Names both have, in different shapes.
    pub misshapen: Vec<Misshapen>,
    /// Names both have that could not be read as numbers, with the reason.
    pub unreadable: Vec<(String, String)>,
}

/// A tensor whose shape is not the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// The tensor.
    pub name: String,
    /// The shape that the network wants.
    pub expected: Vec<i64>,
    /// The shape that the source has.
    pub found: Vec<i64>,
}

impl Mismatch {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty() && self.misshapen.is_empty() && self.unreadable.is_empty()
    }
}

/// How many names of one kind a message spells out; the fields hold all of them.
const SPELT_OUT: usize = 16;

fn list<T>(f: &mut fmt::Formatter<'_>, what: &str, items: &[T], show: impl Fn(&T) -> String) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    write!(f, "\n  {what} ({}):", items.len())?;
    for item in items.iter().take(SPELT_OUT) {
        write!(f, "\n    {}", show(item))?;
    }
    match items.len().checked_sub(SPELT_OUT) {
        Some(more) if more > 0 => write!(f, "\n    and {more} more"),
        _ => Ok(()),
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the weights are not those of the network", self.origin)?;
        list(f, "missing", &self.missing, String::clone)?;
        list(f, "surplus", &self.surplus, String::clone)?;
        list(f, "misshapen", &self.misshapen, |m| {
            format!("{}: expected {:?}, found {:?}", m.name, m.expected, m.found)
        })?;
        list(f, "unreadable", &self.unreadable, |(name, reason)| format!("{name}: {reason}"))
    }
}

impl std::error::Error for Mismatch {}
