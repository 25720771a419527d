//! A small HTTP/1.1 server on loopback that answers from a world's route table, faults included.
//!
//! Written by hand because most answers are ones that a sound HTTP library refuses to give.

use crate::routes::{Answer, Body, ROUTES, Routes};
use crate::world::Summary;
use crate::{Error, Result};
use std::collections::HashSet;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// No longer request head is read.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long an idle or stalled connection is kept.
const PATIENCE: Duration = Duration::from_secs(120);

/// A world that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    site: Arc<Site>,
}

#[derive(Debug)]
struct Site {
    dir: PathBuf,
    routes: Routes,
    /// The [`Answer::Later`] paths that have had their first request.
    asked: Mutex<HashSet<String>>,
}

impl Server {
    /// Reads the world in `dir` and listens on loopback, on `port` or else on the port that the world was made for; 0
    /// takes any free one.
    ///
    /// # Errors
    /// [`Error::NoWorld`] and [`Error::Listen`], or what reading the routes says.
    pub async fn bind(dir: &Path, port: Option<u16>) -> Result<Self> {
        let port = port.unwrap_or(Summary::load(dir)?.identity.port);
        let routes = shards::atomic::read_json(dir.join(ROUTES))?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|source| Error::Listen { port, source })?;
        let site = Site { dir: dir.to_owned(), routes, asked: Mutex::default() };
        Ok(Self { listener, site: Arc::new(site) })
    }

    /// The port that was bound.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Answers until the future is dropped.
    pub async fn run(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let site = Arc::clone(&self.site);
                    tokio::spawn(async move {
                        // A client that goes away is not this server's concern.
                        let _ = converse(stream, &site).await;
                    });
                }
                Err(error) => {
                    // Out of file descriptors, say: connections in progress will free some.
                    tracing::warn!("accepting a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// [`Error::Signals`] where signals cannot be awaited.
pub async fn until_interrupted(server: Server) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    tokio::select! {
        () = server.run() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Serves while `program` runs and returns the code it exits with, or 128 and the number of the signal that ended it.
///
/// The program shares this one's terminal, so a Ctrl-C reaches it directly; a SIGTERM is passed on. Either way its own
/// end is awaited.
///
/// # Errors
/// [`Error::Command`] where the program does not start.
pub async fn during(server: Server, program: &str, arguments: &[String]) -> Result<u8> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let failed = |source| Error::Command { command: program.to_owned(), source };
    let mut child = Command::new(program).args(arguments).spawn().map_err(failed)?;
    let id = child.id().to_string();
    let serving = tokio::spawn(server.run());
    let mut ended = tokio::task::spawn_blocking(move || child.wait());
    let status = loop {
        tokio::select! {
            status = &mut ended => break status.expect("waiting for a child does not panic").map_err(failed)?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {
                // Without unsafe code a signal is sent by the program made for it.
                Command::new("kill").args(["-TERM", &id]).status().map_err(failed)?;
            }
        }
    };
    serving.abort();
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Whether the connection can take another request.
#[derive(PartialEq)]
enum After {
    KeepOpen,
    Close,
}

async fn converse(stream: TcpStream, site: &Site) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(request) = Request::read(&mut stream).await? {
        if request.answer(stream.get_mut(), site).await? == After::Close {
            break;
        }
    }
    stream.get_mut().shutdown().await
}

struct Request {
    head_only: bool,
    path: String,
}

impl Request {
    /// The next request, or nothing when the client is done, silent for too long or not speaking HTTP.
    async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut head = String::new();
        loop {
            let line = tokio::time::timeout(PATIENCE, stream.read_line(&mut head));
            match line.await {
                Ok(Ok(0)) | Err(_) => return Ok(None),
                Ok(read) => read?,
            };
            if head.len() > MAX_HEAD_BYTES {
                return Ok(None);
            }
            if head.ends_with("\r\n\r\n") {
                break;
            }
        }
        let mut words = head.split_ascii_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
        let path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
        Ok(Some(Self { head_only: method == "HEAD", path }))
    }

    async fn answer(&self, stream: &mut TcpStream, site: &Site) -> io::Result<After> {
        match site.routes.get(&self.path) {
            None => self.send(stream, 404, &[], b"not found\n").await,
            Some(Answer::Status { code }) => self.send(stream, *code, &[], b"").await,
            Some(Answer::Redirect { location }) => self.send(stream, 302, &[("Location", location)], b"").await,
            Some(Answer::Text { content_type, text }) => {
                self.send(stream, 200, &[("Content-Type", content_type)], text.as_bytes()).await
            }
            Some(Answer::File { body, robots }) => {
                let mut fields = vec![("Content-Type", body.content_type.as_str())];
                fields.extend(robots.as_deref().map(|value| ("X-Robots-Tag", value)));
                self.send(stream, 200, &fields, &site.read(body).await?).await
            }
            Some(Answer::Later { code, retry_after, body }) => {
                let first = site.asked.lock().expect("no holder of this lock panics").insert(self.path.clone());
                if first {
                    let fields: Vec<_> = retry_after.iter().map(|value| ("Retry-After", value.as_str())).collect();
                    self.send(stream, *code, &fields, b"").await
                } else {
                    self.send(stream, 200, &[("Content-Type", &body.content_type)], &site.read(body).await?).await
                }
            }
            Some(Answer::Short { body }) => {
                self.send_half(stream, site, body).await?;
                Ok(After::Close)
            }
            Some(Answer::Stall { body }) => {
                self.send_half(stream, site, body).await?;
                // Ends early when the client gives up. That the stream was readable once may still be said of its request.
                let _ = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
                Ok(After::Close)
            }
            Some(Answer::Flood { announced }) => {
                let length = announced.map_or(String::new(), |bytes| format!("Content-Length: {bytes}\r\n"));
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n{length}Connection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                loop {
                    stream.write_all(&[0; 64 * 1024]).await?;
                }
            }
        }
    }

    async fn send(&self, stream: &mut TcpStream, code: u16, fields: &[(&str, &str)], body: &[u8]) -> io::Result<After> {
        stream.write_all(head(code, fields, body.len()).as_bytes()).await?;
        if !self.head_only {
            stream.write_all(body).await?;
        }
        Ok(After::KeepOpen)
    }

    async fn send_half(&self, stream: &mut TcpStream, site: &Site, body: &Body) -> io::Result<()> {
        let bytes = site.read(body).await?;
        stream.write_all(head(200, &[("Content-Type", &body.content_type)], bytes.len()).as_bytes()).await?;
        stream.write_all(&bytes[..bytes.len() / 2]).await
    }
}

fn head(code: u16, fields: &[(&str, &str)], length: usize) -> String {
    let reason = match code {
        200 => "OK",
        302 => "Found",
        403 => "Forbidden",
        404 => "Not Found",
        410 => "Gone",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Other",
    };
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {code} {reason}\r\n{fields}Content-Length: {length}\r\n\r\n")
}

impl Site {
    async fn read(&self, body: &Body) -> io::Result<Vec<u8>> {
        tokio::fs::read(self.dir.join(&body.file)).await
    }
}
