//! What the server answers to each path: the route table that a world keeps in `routes.json`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name of the route table in a world's folder.
pub const ROUTES: &str = "routes.json";

/// From a request's path to its answer; what is not here is 404.
pub type Routes = BTreeMap<String, Answer>;

/// A file of the world and how it is presented.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// The file, relative to the world's folder.
    pub file: String,
    /// The `Content-Type` it is given, true or not.
    pub content_type: String,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The file.
    File {
        /// What is sent.
        body: Body,
        /// The value of `X-Robots-Tag`, if one is sent.
        robots: Option<String>,
    },
    /// A short text.
    Text {
        /// The `Content-Type` it is given, true or not.
        content_type: String,
        /// What is sent.
        text: String,
    },
    /// A status without a picture.
    Status {
        /// The code.
        code: u16,
    },
    /// A status at the first request since the server's start, the file at every later one.
    Later {
        /// The first answer's code.
        code: u16,
        /// The first answer's `Retry-After`, if it has one.
        retry_after: Option<String>,
        /// What later requests get.
        body: Body,
    },
    /// A redirect.
    Redirect {
        /// The `Location`.
        location: String,
    },
    /// The file's first half, then the connection closes, though `Content-Length` promised the whole.
    Short {
        /// What is promised.
        body: Body,
    },
    /// The file's first half, then silence on an open connection.
    Stall {
        /// What is promised.
        body: Body,
    },
    /// Zeros as long as the client takes them, called a JPEG.
    Flood {
        /// The announced `Content-Length`, if one is announced.
        announced: Option<u64>,
    },
}
