//! A URL's store, with the settings of the environment.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::told;
use crate::error::{Error, Result};

/// How a user gives credentials, for those who have given none.
pub const CREDENTIALS: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3), GOOGLE_APPLICATION_CREDENTIALS (gs) \
                               or AZURE_STORAGE_ACCOUNT_NAME and its key (az); for a public bucket AWS_SKIP_SIGNATURE=true";

/// A bucket, a container or a web server.
#[derive(Debug)]
pub struct Bucket {
    /// `scheme://name`, which stands before every key.
    pub url: String,
    /// Web servers cannot tell what they have.
    pub can_list: bool,
    pub store: Arc<dyn ObjectStore>,
}

/// Whether a written path is a URL.
pub fn is_url(path: &str) -> bool {
    path.contains("://")
}

/// The bucket of `url`, and the key in it as it is written: it may be a glob.
pub fn open(url: &str) -> Result<(Arc<Bucket>, String)> {
    let refused = |reason: String| Error::Store { url: url.to_owned(), reason, wrong: true };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| refused("is no URL".into()))?;
    let (name, key) = rest.split_once('/').unwrap_or((rest, ""));
    // A signature in the query belongs to the request for this one key, so such a store is not shared.
    let (key, query) = match scheme {
        "http" | "https" => key.split_once('?').map_or((key, None), |(key, query)| (key, Some(query))),
        _ => (key, None),
    };
    let bucket_url = query.map_or(format!("{scheme}://{name}"), |query| format!("{scheme}://{name}/?{query}"));
    static OPEN: LazyLock<Mutex<HashMap<String, Arc<Bucket>>>> = LazyLock::new(Mutex::default);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bucket) = open.get(&bucket_url) {
        return Ok((bucket.clone(), key.to_owned()));
    }
    let store = connect(scheme, name, &bucket_url).map_err(|failed| match failed {
        Failed::Store(error) => match told(url, error) {
            // Nothing was sent yet: what is wrong is what the environment or the recipe says.
            Error::Store { url, reason, .. } => Error::Store { url, reason, wrong: true },
            other => other,
        },
        Failed::Url(reason) => refused(reason),
    })?;
    let can_list = !matches!(scheme, "http" | "https");
    let bucket = Arc::new(Bucket { url: format!("{scheme}://{name}"), can_list, store });
    open.insert(bucket_url, bucket.clone());
    Ok((bucket, key.to_owned()))
}

enum Failed {
    Url(String),
    Store(object_store::Error),
}

impl From<object_store::Error> for Failed {
    fn from(error: object_store::Error) -> Failed {
        Failed::Store(error)
    }
}

fn connect(scheme: &str, name: &str, bucket_url: &str) -> Result<Arc<dyn ObjectStore>, Failed> {
    // Every connection of this program is secured by the same code; a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let named = || if name.is_empty() { Err(Failed::Url("names no bucket".into())) } else { Ok(name) };
    let retry = RetryConfig { max_retries: 6, retry_timeout: Duration::from_secs(120), ..RetryConfig::default() };
    Ok(match scheme {
        "s3" | "s3a" => {
            let mut builder = AmazonS3Builder::from_env().with_bucket_name(named()?).with_retry(retry);
            let endpoints = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
            if endpoints.iter().filter_map(|key| builder.get_config_value(key)).any(|url| is_loopback(&url)) {
                builder = builder.with_allow_http(true);
            }
            Arc::new(builder.build()?)
        }
        "gs" => Arc::new(GoogleCloudStorageBuilder::from_env().with_bucket_name(named()?).with_retry(retry).build()?),
        "az" | "abfs" | "abfss" | "azure" | "adl" => {
            // `container@account.host`, as Hadoop writes it.
            let builder = MicrosoftAzureBuilder::from_env().with_retry(retry);
            let builder =
                if name.contains('@') { builder.with_url(bucket_url) } else { builder.with_container_name(named()?) };
            Arc::new(builder.build()?)
        }
        "http" if !is_loopback(bucket_url) => {
            return Err(Failed::Url("is not encrypted; say https://".into()));
        }
        "http" | "https" => {
            named()?;
            let options = ClientOptions::new().with_allow_http(scheme == "http");
            Arc::new(HttpBuilder::new().with_url(bucket_url).with_client_options(options).with_retry(retry).build()?)
        }
        _ => {
            return Err(Failed::Url(format!(
                "{scheme}:// is not known; there are s3://, gs://, az://, https:// and paths of this machine"
            )));
        }
    })
}

fn is_loopback(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The key as the store has it.
pub fn key(bucket: &Bucket, written: &str) -> Result<Key> {
    let parsed = if bucket.can_list { Key::parse(written) } else { Key::from_url_path(written) };
    parsed.map_err(|error| Error::Store {
        url: format!("{}/{written}", bucket.url),
        reason: error.to_string(),
        wrong: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_apart_and_what_cannot_be_reached_is_refused() {
        let refused = |url: &str| open(url).unwrap_err().to_string();
        assert!(refused("ftp://host/x.parquet").contains("ftp:// is not known"));
        assert!(refused("file:///x.parquet").contains("file:// is not known"));
        assert!(refused("s3:///x.parquet").contains("names no bucket"));
        assert!(refused("http://example.org/x.parquet").contains("https://"));
        for loopback in ["http://127.0.0.1:1/x", "http://[::1]:1/x", "http://localhost:1/x"] {
            assert!(open(loopback).is_ok(), "{loopback}");
        }
        let (bucket, key) = open("https://example.org/a%20b/c.parquet?sig=1%2F2").unwrap();
        assert_eq!((bucket.url.as_str(), key.as_str()), ("https://example.org", "a%20b/c.parquet"));
        let (bucket, key) = open("s3://bucket/a/*.parquet").unwrap();
        assert_eq!((bucket.url.as_str(), key.as_str()), ("s3://bucket", "a/*.parquet"));
        assert!(Arc::ptr_eq(&bucket, &open("s3://bucket/other").unwrap().0));
    }
}
