//! A real S3 server on loopback, over a folder, that can be told to fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3ServiceBuilder, SharedS3Service};
use tempfile::TempDir;

pub const BUCKET: &str = "pictures";
pub const KEY_ID: &str = "stepdown";
pub const SECRET: &str = "not very secret";

/// A server that runs until the test ends, with one bucket.
pub struct S3 {
    pub port: u16,
    root: TempDir,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct Faults {
    /// PUT requests that are still answered; negative for all.
    puts_left: AtomicI64,
    /// Whether the others break off instead of telling that they failed.
    breaks: AtomicBool,
}

impl S3 {
    pub fn start() -> S3 {
        S3::serve(true)
    }

    /// One that asks for no signature.
    pub fn public() -> S3 {
        S3::serve(false)
    }

    fn serve(signed: bool) -> S3 {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        if signed {
            service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        }
        let service = service.build().into_shared();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let faults = Arc::new(Faults { puts_left: AtomicI64::new(-1), breaks: AtomicBool::new(false) });
        let shared = faults.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let (service, faults) = (service.clone(), shared.clone());
                    let answer = service_fn(move |request| answer(service.clone(), faults.clone(), request));
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                    tokio::spawn(connection);
                }
            });
        });
        S3 { port, root, faults }
    }

    /// Answers so many PUT requests and refuses the others, or breaks them off.
    pub fn fail_after_puts(&self, puts: i64, breaking_off: bool) {
        self.faults.breaks.store(breaking_off, Ordering::SeqCst);
        self.faults.puts_left.store(puts, Ordering::SeqCst);
    }

    pub fn mend(&self) {
        self.faults.puts_left.store(-1, Ordering::SeqCst);
    }

    /// Where the bytes of an object lie, or a folder of them.
    pub fn object(&self, key: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(key)
    }

    /// Every object below a folder.
    pub fn objects(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let mut objects = BTreeMap::new();
        collect(&self.object(folder), &self.object(folder), &mut objects);
        objects
    }

    /// Gives a program the credentials and the address of this server, and takes away whatever else it would find.
    pub fn known_to(&self, mut command: Command) -> Command {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port))
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET);
        command
    }
}

async fn answer(
    service: SharedS3Service,
    faults: Arc<Faults>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    // This server makes a bucket when something is put into it; S3 does not.
    if !request.uri().path().starts_with(&format!("/{BUCKET}")) {
        let body = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";
        return Ok(Response::builder().status(StatusCode::NOT_FOUND).body(Body::from(body.to_owned()))?);
    }
    if *request.method() == Method::PUT && faults.puts_left.load(Ordering::SeqCst) >= 0 {
        if faults.puts_left.load(Ordering::SeqCst) == 0 {
            return match faults.breaks.load(Ordering::SeqCst) {
                false => Ok(Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR).body(Body::empty())?),
                true => Err("broken off".into()),
            };
        }
        faults.puts_left.fetch_sub(1, Ordering::SeqCst);
    }
    Ok(service.call(request).await?)
}

fn collect(root: &Path, folder: &Path, objects: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, objects);
        } else {
            let key = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            objects.insert(key, fs::read(path).unwrap());
        }
    }
}
