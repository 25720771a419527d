//! Where bytes lie: local files, and objects of S3, Google Cloud Storage, Azure and web servers, behind one face.
//!
//! A store is reached as its users expect: `s3://` reads `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
//! `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_SKIP_SIGNATURE` and the other variables of
//! [`object_store`]; `gs://` reads `GOOGLE_*`, `az://` reads `AZURE_*`. Plain HTTP is spoken to loopback alone, unless
//! `AWS_ALLOW_HTTP=true` says otherwise. Requests that fail for a reason that may pass are repeated with back-off.
//!
//! The rest of the crate is written for threads, and so is this face: a call returns when the bytes are there.

mod blob;
mod connect;
mod folder;

use std::future::Future;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

use crate::error::Error;

pub use blob::{Blob, find};
pub use folder::RemoteFolder;

/// Bytes of one request: small enough to be over before a time limit on a slow line, large enough that its round
/// trip does not count.
const PART: u64 = 8 << 20;
/// Requests at once for one read or one upload.
const PARTS_AT_ONCE: usize = 4;

/// The thread that waits for all stores.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("store").enable_all().build();
    runtime.expect("the system starts a thread")
});

fn wait<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.block_on(future)
}

/// `error` in the words of somebody who has to mend it.
fn told(url: &str, error: object_store::Error) -> Error {
    use object_store::Error as Cause;
    let text = error.to_string();
    let code = |code: &str| text.contains(code);
    let denied = code("403 Forbidden") || code("401 Unauthorized");
    let (reason, wrong) = if code("NoSuchBucket") || code("ContainerNotFound") {
        ("there is no such bucket".to_owned(), true)
    } else if code("latest/api/token") || code("latest/meta-data") || code("computeMetadata") {
        (format!("no credentials: {}; this machine has none of its own ({text})", connect::CREDENTIALS), true)
    } else if denied || matches!(error, Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. }) {
        (
            format!(
                "the store refuses the credentials of the environment, or they do not reach so far: {}",
                said(&text)
            ),
            true,
        )
    } else {
        match error {
            Cause::NotFound { .. } => ("there is no such object".to_owned(), true),
            _ => (text, false),
        }
    };
    Error::Store { url: url.to_owned(), reason, wrong }
}

/// Code and message of a store's answer in XML, or all of `text`.
fn said(text: &str) -> String {
    let element = |name: &str| Some(text.split_once(&format!("<{name}>"))?.1.split_once("</")?.0);
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}, {message}"),
        _ => text.to_owned(),
    }
}
