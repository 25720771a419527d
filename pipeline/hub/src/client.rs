//! The hub's protocol: a listing, and files by ranges.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::Url;

use crate::cache::{Repository, is_commit, is_etag, make_folder_of};
use crate::{Error, Hub, ModelName, Patience, Result};

const USER_AGENT: &str = concat!("stepdown/", env!("CARGO_PKG_VERSION"));
/// More than any repository's listing.
const LARGEST_LISTING: usize = 16 << 20;
const REDIRECTS: usize = 10;
/// Where there is no progress bar to see, a line this often.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// A repository's files at one commit.
pub struct Listing {
    pub commit: String,
    pub files: BTreeSet<String>,
}

/// What a server says of a file before it sends it.
struct About {
    etag: String,
    bytes: u64,
}

/// A file on its way into the cache.
struct Download {
    url: Url,
    about: About,
    partial: PathBuf,
}

/// One hub.
pub struct Client<'a> {
    http: reqwest::Client,
    endpoint: &'a Url,
    token: Option<&'a str>,
    patience: Patience,
}

impl<'a> Client<'a> {
    pub fn new(hub: &'a Hub) -> Result<Self> {
        let failed = |reason: String| Error::Environment { variable: "TLS", reason };
        let tls = fetch::tls_config(&[]).map_err(|error| failed(error.to_string()))?;
        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            // Ranges and sizes are those of the file.
            .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
            .tls_backend_preconfigured(tls)
            // Followed by hand: the token must not travel along.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(hub.patience.connect)
            .read_timeout(hub.patience.read)
            .build()
            .map_err(|error| failed(root_cause(&error)))?;
        Ok(Self { http, endpoint: &hub.endpoint, token: hub.token.as_deref(), patience: hub.patience })
    }

    /// What a revision stands for and which files it has.
    pub async fn list(&self, name: &ModelName) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        // A revision's slashes are part of its name.
        let url = self.url(&["api", "models"], name.repository(), &["revision", name.revision()], "")?;
        let mut tries = Tries::new(self.patience);
        let body = loop {
            let text = async {
                let mut answer = self.ask(Method::GET, &url, None).await?;
                let mut body = Vec::new();
                while let Some(chunk) = answer.chunk().await.map_err(Fault::from)? {
                    body.extend_from_slice(&chunk);
                    if body.len() > LARGEST_LISTING {
                        return Err(Fault::wrong(&url, "the listing does not end"));
                    }
                }
                Ok(body)
            };
            match text.await {
                Ok(body) => break body,
                Err(fault) => tries.after(&url, fault).await?,
            }
        };
        let wrong = |reason: String| Error::Answer { url: url.to_string(), reason };
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| wrong(format!("no listing: {error}")))?;
        if !is_commit(&answer.sha) {
            return Err(wrong(format!("{:?} is no commit", answer.sha)));
        }
        Ok(Listing { commit: answer.sha, files: answer.siblings.into_iter().map(|file| file.rfilename).collect() })
    }

    /// Brings one file of a commit into the cache, where it is not there yet.
    pub async fn bring(
        &self,
        name: &ModelName,
        commit: &str,
        file: &str,
        cache: &Repository,
        progress: &ProgressBar,
    ) -> Result<()> {
        // Contents are hashed before they are linked, so that what a link leads to is whole.
        if cache.snapshot(commit).join(file).is_file() {
            return Ok(());
        }
        let url = self.url(&[], name.repository(), &["resolve", commit], file)?;
        let mut tries = Tries::new(self.patience);
        let about = loop {
            match self.about(&url).await {
                Ok(about) => break about,
                Err(fault) => tries.after(&url, fault).await?,
            }
        };
        let (etag, blob) = (about.etag.clone(), cache.blob(&about.etag));
        if !blob.is_file() {
            tracing::info!("{file}: {}", HumanBytes(about.bytes));
            let mut partial = blob.clone().into_os_string();
            partial.push(".incomplete");
            make_folder_of(&blob)?;
            let download = Download { url, about, partial: partial.into() };
            self.download(&download, progress).await?;
            fs::rename(&download.partial, &blob).map_err(Error::io("rename", &download.partial))?;
        }
        cache.link(commit, file, &etag)
    }

    async fn about(&self, url: &Url) -> std::result::Result<About, Fault> {
        let mut url = url.clone();
        for _ in 0..REDIRECTS {
            let answer = self.send(Method::HEAD, &url, None).await?;
            let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
            let location = header(LOCATION.as_str()).filter(|_| answer.status().is_redirection());
            // Large files lie elsewhere; the hub itself says what they are before it sends on.
            let etag = match location {
                Some(_) => header("x-linked-etag"),
                None => header("x-linked-etag").or_else(|| header(ETAG.as_str())),
            };
            if let Some(etag) = etag {
                let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
                let bytes = header("x-linked-size").or_else(|| header(CONTENT_LENGTH.as_str()));
                let bytes = bytes.and_then(|bytes| bytes.parse().ok());
                return match (is_etag(&etag), bytes) {
                    (true, Some(bytes)) => Ok(About { etag, bytes }),
                    (false, _) => Err(Fault::wrong(&url, &format!("the etag {etag:?} cannot be a file's name"))),
                    (true, None) => Err(Fault::wrong(&url, "the answer has no size")),
                };
            }
            match location {
                Some(location) => url = self.onward(&url, location)?,
                None => {
                    accept(&url, &answer)?;
                    return Err(Fault::wrong(&url, "the answer has no etag"));
                }
            }
        }
        Err(Fault::wrong(&url, "too many redirects"))
    }

    /// Appends to the partial file until it is whole, and proves it.
    async fn download(&self, download: &Download, progress: &ProgressBar) -> Result<()> {
        let Download { url, about, partial } = download;
        let file = File::options().create(true).truncate(false).read(true).append(true).open(partial);
        let mut file = file.map_err(Error::io("open", partial))?;
        progress.set_length(about.bytes);
        let mut tries = Tries::new(self.patience);
        loop {
            let have = file.metadata().map_err(Error::io("read", partial))?.len();
            progress.set_position(have);
            if have == about.bytes {
                break;
            }
            if have > about.bytes {
                file.set_len(0).map_err(Error::io("write", partial))?;
                continue;
            }
            if let Err(fault) = self.append(download, &mut file, have, progress).await {
                if file.metadata().map_err(Error::io("read", partial))?.len() > have {
                    tries = Tries::new(self.patience);
                }
                tries.after(url, fault).await?;
            }
        }
        // The hub names large files by the hash of what they hold.
        if about.etag.len() == 64 && hash(&mut file, partial)? != about.etag {
            fs::remove_file(partial).map_err(Error::io("remove", partial))?;
            let reason = "what came is not what the hub has: its SHA-256 differs; the same command fetches it anew";
            return Err(Error::Answer { url: url.to_string(), reason: reason.into() });
        }
        file.sync_all().map_err(Error::io("flush to disk", partial))
    }

    async fn append(
        &self,
        download: &Download,
        file: &mut File,
        have: u64,
        progress: &ProgressBar,
    ) -> std::result::Result<(), Fault> {
        let Download { url, about, partial } = download;
        let range = (have > 0).then(|| format!("bytes={have}-"));
        let mut answer = self.ask(Method::GET, url, range.as_deref()).await?;
        let begins = match answer.status() {
            StatusCode::PARTIAL_CONTENT => first_byte(answer.headers()).unwrap_or(u64::MAX),
            _ => 0,
        };
        if begins != have {
            // The server takes no ranges, or gives another one: begin anew with what it sends, if it sends all.
            if begins != 0 {
                return Err(Fault::wrong(url, "the answer is another part of the file than was asked for"));
            }
            file.set_len(0).map_err(Error::io("write", partial))?;
        }
        let (mut have, mut said) = (begins, Instant::now());
        while let Some(chunk) = answer.chunk().await? {
            have += chunk.len() as u64;
            if have > about.bytes {
                return Err(Fault::wrong(url, &format!("more than the {} bytes that were announced", about.bytes)));
            }
            file.write_all(&chunk).map_err(Error::io("write", partial))?;
            progress.set_position(have);
            if progress.is_hidden() && said.elapsed() > SAY_EVERY {
                said = Instant::now();
                tracing::info!("{} of {}", HumanBytes(have), HumanBytes(about.bytes));
            }
        }
        Ok(())
    }

    /// An answer of success, redirects followed.
    async fn ask(&self, method: Method, url: &Url, range: Option<&str>) -> std::result::Result<Response, Fault> {
        let mut url = url.clone();
        for _ in 0..REDIRECTS {
            let answer = self.send(method.clone(), &url, range).await?;
            match answer.headers().get(LOCATION).and_then(|location| location.to_str().ok()) {
                Some(location) if answer.status().is_redirection() => url = self.onward(&url, location)?,
                _ => {
                    accept(&url, &answer)?;
                    return Ok(answer);
                }
            }
        }
        Err(Fault::wrong(&url, "too many redirects"))
    }

    async fn send(&self, method: Method, url: &Url, range: Option<&str>) -> std::result::Result<Response, Fault> {
        let mut request = self.http.request(method, url.clone());
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let is_hub = url.origin() == self.endpoint.origin();
        if let Some(token) = self.token.filter(|_| is_hub) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        Ok(request.send().await?)
    }

    fn onward(&self, from: &Url, location: &str) -> std::result::Result<Url, Fault> {
        let to = from.join(location).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
        let to = to.ok_or_else(|| Fault::wrong(from, "a redirect to no address"))?;
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(Fault::wrong(from, "a redirect that gives up encryption"));
        }
        Ok(to)
    }

    /// An address on the hub; each part is escaped on its own but for the slashes of the repository and of the file.
    fn url(&self, before: &[&str], repository: &str, after: &[&str], file: &str) -> Result<Url> {
        let mut url = self.endpoint.clone();
        let reason = || "cannot be the beginning of an address".to_owned();
        url.path_segments_mut()
            .map_err(|()| Error::Environment { variable: "HF_ENDPOINT", reason: reason() })?
            .pop_if_empty()
            .extend(before)
            .extend(repository.split('/'))
            .extend(after)
            .extend(file.split('/').filter(|part| !part.is_empty()));
        Ok(url)
    }
}

/// Tries in a row that brought nothing.
struct Tries {
    made: u32,
    patience: Patience,
}

impl Tries {
    fn new(patience: Patience) -> Self {
        Self { made: 0, patience }
    }

    /// Waits before the next try, or gives up.
    async fn after(&mut self, url: &Url, fault: Fault) -> Result<()> {
        self.made += 1;
        let (reason, asked_to_wait) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Passing { reason, wait } => (reason, wait),
        };
        if self.made >= self.patience.attempts {
            return Err(Error::Network { url: url.to_string(), reason, attempts: self.made });
        }
        let wait = asked_to_wait.unwrap_or(self.patience.wait * 2u32.saturating_pow(self.made - 1));
        tracing::warn!("{url}: {reason}; trying again in {:.1} s", wait.as_secs_f64());
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Why one try failed.
enum Fault {
    /// Another try would end alike.
    Final(Error),
    /// Another try may do better.
    Passing { reason: String, wait: Option<Duration> },
}

impl Fault {
    fn wrong(url: &Url, reason: &str) -> Self {
        Fault::Final(Error::Answer { url: url.to_string(), reason: reason.to_owned() })
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Self {
        Fault::Passing { reason: root_cause(&error), wait: None }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Final(error)
    }
}

/// Turns a status that is no success into its fault.
fn accept(url: &Url, answer: &Response) -> std::result::Result<(), Fault> {
    const LONGEST_WAIT: u64 = 120;
    let status = answer.status();
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let said = match header("x-error-code") {
        Some(code) => format!("{} {code}", status.as_u16()),
        None => status.as_u16().to_string(),
    };
    let url = url.to_string();
    match status {
        _ if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Fault::Final(Error::Denied {
            url,
            answer: said,
            hint: "accept its terms on the hub where it has any, and set HF_TOKEN",
        })),
        StatusCode::NOT_FOUND => Err(Fault::Final(Error::NotFound { url, answer: said })),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            let wait = header("retry-after").and_then(|seconds| seconds.parse().ok());
            Err(Fault::Passing {
                reason: format!("status {said}"),
                wait: wait.map(|s: u64| Duration::from_secs(s.min(LONGEST_WAIT))),
            })
        }
        _ if status.is_server_error() => Err(Fault::Passing { reason: format!("status {said}"), wait: None }),
        _ => Err(Fault::Final(Error::Answer { url, reason: format!("status {said}") })),
    }
}

/// `bytes FIRST-LAST/TOTAL`
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// SHA-256 in hexadecimal.
fn hash(file: &mut File, path: &Path) -> Result<String> {
    file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
    let (mut sha, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => break,
            count => sha.update(&buffer[..count]),
        }
    }
    Ok(sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error).to_string()
}
