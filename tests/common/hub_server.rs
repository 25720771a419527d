//! A small hub on loopback: one repository, with the faults that a test asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub const REPOSITORY: &str = "acme/small-xl";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files of this size or more are kept "elsewhere": on a second address, under the hash of what they hold.
const LARGE: usize = 1024;

/// What the hub does beside its work.
#[derive(Default, Clone)]
pub struct Faults {
    /// Requests without this token are refused.
    pub token: Option<String>,
    /// The first so many bodies of large files end after half of what is left.
    pub cuts: usize,
    /// The first so many requests of any kind are answered with 503.
    pub unavailable: usize,
    /// Ranges are passed over.
    pub no_ranges: bool,
    /// Large files arrive with their last byte changed.
    pub corrupt: bool,
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Whether it came to the second address.
    pub elsewhere: bool,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

/// The hub; it serves until the process ends.
pub struct HubServer {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    faults: Arc<Mutex<Faults>>,
}

impl HubServer {
    /// Serves files by their paths in the repository.
    pub fn start(files: BTreeMap<String, Vec<u8>>, faults: Faults) -> Self {
        let (hub, elsewhere) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (address, second) = (hub.local_addr().unwrap(), elsewhere.local_addr().unwrap());
        let (files, log, faults) = (Arc::new(files), Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(faults)));
        for (listener, is_elsewhere) in [(hub, false), (elsewhere, true)] {
            let (files, log, faults) = (files.clone(), log.clone(), faults.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let (files, log, faults) = (files.clone(), log.clone(), faults.clone());
                    std::thread::spawn(move || answer(stream, is_elsewhere, second, &files, &log, &faults));
                }
            });
        }
        Self { address, log, faults }
    }

    /// Serves a folder.
    pub fn of_folder(folder: &Path, faults: Faults) -> Self {
        Self::start(files_of(folder), faults)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }
}

/// Every file below a folder.
pub fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files.extend(files_of(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(
    stream: TcpStream,
    elsewhere: bool,
    second: SocketAddr,
    files: &BTreeMap<String, Vec<u8>>,
    log: &Mutex<Vec<Request>>,
    faults: &Mutex<Faults>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read_request(&mut reader, elsewhere) {
        log.lock().unwrap().push(request.clone());
        let mut faults = faults.lock().unwrap();
        if faults.unavailable > 0 {
            faults.unavailable -= 1;
            send(&mut stream, &request, "503 Service Unavailable", &[], b"");
            continue;
        }
        let token = faults.token.as_ref().map(|token| format!("Bearer {token}"));
        if !elsewhere && token.is_some() && request.authorization != token {
            send(&mut stream, &request, "401 Unauthorized", &[("X-Error-Code", "GatedRepo".into())], b"");
            continue;
        }
        if let Some(hash) = request.path.strip_prefix("/blobs/").filter(|_| elsewhere) {
            let mut bytes = files.values().find(|bytes| sha256(bytes) == hash).expect("a hash that was given").clone();
            if faults.corrupt {
                *bytes.last_mut().unwrap() ^= 1;
            }
            let start: Option<usize> = request.range.as_ref().filter(|_| !faults.no_ranges).map(|range| {
                range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("a range to the end")
            });
            let cut = faults.cuts > 0;
            faults.cuts = faults.cuts.saturating_sub(1);
            drop(faults);
            if send_body(&mut stream, &bytes, start, cut) {
                return;
            }
            continue;
        }
        drop(faults);
        let resolve = format!("/{REPOSITORY}/resolve/{COMMIT}/");
        if request.path == format!("/api/models/{REPOSITORY}/revision/main") {
            let names: Vec<String> = files.keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
            let body = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", names.join(","));
            send(&mut stream, &request, "200 OK", &[], body.as_bytes());
        } else if let Some(bytes) = request.path.strip_prefix(&resolve).and_then(|name| files.get(name)) {
            if bytes.len() >= LARGE {
                let hash = sha256(bytes);
                let headers = [
                    ("Location", format!("http://{second}/blobs/{hash}")),
                    ("X-Linked-Etag", format!("\"{hash}\"")),
                    ("X-Linked-Size", bytes.len().to_string()),
                    ("X-Repo-Commit", COMMIT.into()),
                ];
                send(&mut stream, &request, "302 Found", &headers, b"");
            } else {
                // The hub names small files by the hash of git's blob: forty digits.
                send(&mut stream, &request, "200 OK", &[("ETag", format!("\"{}\"", &sha256(bytes)[..40]))], bytes);
            }
        } else {
            send(&mut stream, &request, "404 Not Found", &[("X-Error-Code", "RepoNotFound".into())], b"");
        }
    }
}

fn read_request(reader: &mut impl BufRead, elsewhere: bool) -> Option<Request> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|&count| count > 0)?;
    let mut words = first.split(' ');
    let mut request = Request {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        elsewhere,
        authorization: None,
        range: None,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            None => return Some(request),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.into());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("range") => request.range = Some(value.into()),
            Some(_) => {}
        }
    }
}

fn send(stream: &mut TcpStream, request: &Request, status: &str, headers: &[(&str, String)], body: &[u8]) {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(body);
    }
}

/// Sends a file from `start`; says whether the connection was cut.
fn send_body(stream: &mut TcpStream, bytes: &[u8], start: Option<usize>, cut: bool) -> bool {
    let from = start.unwrap_or(0);
    let rest = &bytes[from..];
    let (status, range) = match start {
        Some(_) => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            ("206 Partial Content", range)
        }
        None => ("200 OK", String::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\n{range}Content-Length: {}\r\n\r\n", rest.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(if cut { &rest[..rest.len() / 2] } else { rest });
    let _ = stream.flush();
    if cut {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    cut
}
