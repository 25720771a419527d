//! The demo world from outside: `demo-world generate` and `demo-world serve`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use demo_world::fate::Fate;
use demo_world::world::{LABELS, Label};

/// One world for all tests; its folder stays until the process ends.
fn world() -> &'static Path {
    static WORLD: OnceLock<tempfile::TempDir> = OnceLock::new();
    WORLD
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let output = run(&["generate", "--world", dir.path().to_str().unwrap(), "--port", "1"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            dir
        })
        .path()
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_demo-world"))
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn labels() -> Vec<Label> {
    let text = fs::read_to_string(world().join(LABELS)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The path on the server of the first row with this fate.
fn path_of(fate: Fate) -> String {
    let label = labels().into_iter().find(|label| label.fate == fate).unwrap();
    label.url.unwrap().strip_prefix("http://127.0.0.1:1").unwrap().to_owned()
}

/// A server on a port of its own, stopped when dropped.
struct Served {
    child: Child,
    port: u16,
}

impl Served {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = program()
            .args(["serve", "--world", world().to_str().unwrap(), "--port", &port.to_string()])
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn get(&self, path: &str) -> Response {
        Response::ask(&mut BufReader::new(self.connect()), path)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Response {
    status: u16,
    fields: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Response {
    /// Asks on an open connection and reads as much of the body as `Content-Length` announces or as comes.
    fn ask(stream: &mut BufReader<TcpStream>, path: &str) -> Self {
        let (status, fields) = Self::head(stream, path);
        let length: u64 = fields["content-length"].parse().unwrap();
        let mut body = Vec::new();
        stream.take(length).read_to_end(&mut body).unwrap();
        Self { status, fields, body }
    }

    fn head(stream: &mut BufReader<TcpStream>, path: &str) -> (u16, BTreeMap<String, String>) {
        write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut fields = BTreeMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            fields.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        (status, fields)
    }
}

/// Every file below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path.strip_prefix(dir).unwrap().to_owned()) }
        }
    }
    found.sort();
    found
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_the_number_of_threads() {
    let other = tempfile::tempdir().unwrap();
    let output = program()
        .args(["generate", "--world", other.path().to_str().unwrap(), "--port", "1"])
        .env("RAYON_NUM_THREADS", "3")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(files(world()), files(other.path()));
    for file in files(world()) {
        assert!(
            fs::read(world().join(&file)).unwrap() == fs::read(other.path().join(&file)).unwrap(),
            "{} differs",
            file.display()
        );
    }
}

#[test]
fn a_finished_world_is_left_alone_and_another_one_is_refused() {
    let world = world().to_str().unwrap();
    let again = run(&["generate", "--world", world, "--port", "1"]);
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("found"));
    let other = run(&["generate", "--world", world, "--port", "1", "--seed", "2"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("seed 1"));
}

#[test]
fn every_fate_has_its_rows_and_every_row_its_label() {
    let labels = labels();
    for &fate in Fate::ALL {
        let (laion, coyo) = fate.rows();
        for (table, rows) in [("laion/", laion), ("coyo/", coyo)] {
            let found = labels.iter().filter(|label| label.fate == fate && label.row.starts_with(table)).count();
            assert_eq!(found, rows, "{fate:?} in {table}");
        }
    }
}

#[test]
fn pictures_and_statuses_share_one_connection() {
    let served = Served::start();
    let mut stream = BufReader::new(served.connect());
    let clean = Response::ask(&mut stream, &path_of(Fate::Clean));
    assert_eq!((clean.status, clean.fields["content-type"].as_str()), (200, "image/jpeg"));
    assert!(clean.body.starts_with(&[0xff, 0xd8]) && clean.body.ends_with(&[0xff, 0xd9]));
    for (fate, status) in [(Fate::NotFound, 404), (Fate::Gone, 410), (Fate::Forbidden, 403), (Fate::ServerError, 503)] {
        assert_eq!(Response::ask(&mut stream, &path_of(fate)).status, status, "{fate:?}");
    }
    let png = Response::ask(&mut stream, &path_of(Fate::PngAlpha));
    assert!(png.body.starts_with(b"\x89PNG"));
    assert_eq!(Response::ask(&mut stream, &path_of(Fate::OptedOut)).fields["x-robots-tag"], "noai, noimageai");
}

#[test]
fn faults_are_what_they_are_called() {
    let served = Served::start();

    let html = served.get(&path_of(Fate::Html));
    assert_eq!((html.status, html.fields["content-type"].as_str()), (200, "image/jpeg"));
    assert!(html.body.starts_with(b"<!doctype html>"));

    let limited = path_of(Fate::RateLimited);
    let first = served.get(&limited);
    assert_eq!((first.status, first.fields["retry-after"].as_str()), (429, "1"));
    assert_eq!(served.get(&limited).status, 200);

    let short = served.get(&path_of(Fate::ShortBody));
    let announced: usize = short.fields["content-length"].parse().unwrap();
    assert_eq!(short.body.len(), announced / 2);

    let truncated = served.get(&path_of(Fate::TruncatedJpeg));
    assert_eq!(truncated.body.len().to_string(), truncated.fields["content-length"]);
    assert!(!truncated.body.ends_with(&[0xff, 0xd9]));

    let redirected = served.get(&path_of(Fate::Redirected));
    assert_eq!(redirected.status, 302);
    assert_eq!(served.get(&redirected.fields["location"]).status, 200);

    let start = path_of(Fate::RedirectLoop);
    let there = served.get(&start).fields["location"].clone();
    assert_eq!(served.get(&there).fields["location"], start);

    let location = served.get(&path_of(Fate::RedirectPrivate)).fields["location"].clone();
    assert!(!location.contains("127.0.0.1"), "{location}");
}

#[test]
fn a_stalled_body_stays_open_and_a_flood_does_not_end() {
    let served = Served::start();
    let mut stalled = BufReader::new(served.connect());
    let (_, fields) = Response::head(&mut stalled, &path_of(Fate::Stalled));
    let half = fields["content-length"].parse::<usize>().unwrap() / 2;
    stalled.read_exact(&mut vec![0; half]).unwrap();
    stalled.get_ref().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = stalled.read(&mut [0]).unwrap_err();
    assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{error}");

    for (fate, announced) in [(Fate::Oversize, Some("10000000000")), (Fate::Endless, None)] {
        let mut flood = BufReader::new(served.connect());
        let (_, fields) = Response::head(&mut flood, &path_of(fate));
        assert_eq!(fields.get("content-length").map(String::as_str), announced);
        flood.read_exact(&mut vec![0; 50_000_000]).unwrap();
    }
}

#[test]
fn a_command_runs_while_the_world_is_served_and_its_exit_code_is_passed_on() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && exit 7");
    let output = program()
        .args(["serve", "--world", world().to_str().unwrap(), "--port", &port.to_string()])
        .args(["--", "bash", "-c", &script])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_busy_port_and_a_missing_world_are_said() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    let output = run(&["serve", "--world", world().to_str().unwrap(), "--port", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("127.0.0.1:{port}")));

    let empty = tempfile::tempdir().unwrap();
    let output = run(&["serve", "--world", empty.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("demo-world generate"));
}

#[test]
fn a_world_can_have_more_clean_rows_than_usual() {
    let larger = tempfile::tempdir().unwrap();
    let path = larger.path().to_str().unwrap();
    let output = run(&["generate", "--world", path, "--port", "1", "--more-clean", "7"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let labels = fs::read_to_string(larger.path().join(LABELS)).unwrap();
    let clean = labels.lines().map(|line| serde_json::from_str::<Label>(line).unwrap());
    let (laion, coyo) = Fate::Clean.rows();
    assert_eq!(clean.filter(|label| label.fate == Fate::Clean).count(), laion + coyo + 7);

    let usual = run(&["generate", "--world", path, "--port", "1"]);
    assert_eq!(usual.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&usual.stderr).contains("7 more clean rows"));
}
