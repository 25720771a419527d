//! A server that does to the letter what a test tells it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A listener on a free port of 127.0.0.1 that hands each connection, with the head of its
/// request, to a handler; the connection closes when the handler returns.
pub struct Server {
    pub address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    /// When each connection was accepted.
    connections: Vec<Instant>,
    /// The head of each request.
    requests: Vec<String>,
}

impl Server {
    /// Serves with `handler`, which is given the number of the connection (from 0), the head of
    /// its request and the connection.
    pub async fn start<F, R>(handler: F) -> Self
    where
        F: Fn(usize, String, TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send,
    {
        Self::start_on("127.0.0.1:0", handler).await
    }

    /// As [`start`](Self::start), on a chosen address.
    pub async fn start_on<F, R>(address: &str, handler: F) -> Self
    where
        F: Fn(usize, String, TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        let (handler, shared) = (Arc::new(handler), log.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let number = {
                    let mut log = shared.lock().unwrap();
                    log.connections.push(Instant::now());
                    log.connections.len() - 1
                };
                let (handler, log) = (handler.clone(), shared.clone());
                tokio::spawn(async move {
                    let request = read_head(&mut stream).await;
                    log.lock().unwrap().requests.push(request.clone());
                    handler(number, request, stream).await;
                });
            }
        });
        Self { address, log }
    }

    /// Answers each request with the same bytes.
    pub async fn saying(answer: impl Into<Vec<u8>>) -> Self {
        let answer = Arc::new(answer.into());
        Self::start(move |_, _, stream| send(stream, answer.clone())).await
    }

    /// Answers with each of the bytes in turn, and with the last one from then on.
    pub async fn saying_in_turn(answers: Vec<Vec<u8>>) -> Self {
        let answers: Vec<Arc<Vec<u8>>> = answers.into_iter().map(Arc::new).collect();
        Self::start(move |number, _, stream| send(stream, answers[number.min(answers.len() - 1)].clone())).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn connections(&self) -> usize {
        self.log.lock().unwrap().connections.len()
    }

    /// The time between the first and the second connection.
    pub fn first_gap(&self) -> Duration {
        let log = self.log.lock().unwrap();
        log.connections[1] - log.connections[0]
    }

    pub fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().requests.clone()
    }
}

async fn send(mut stream: TcpStream, answer: Arc<Vec<u8>>) {
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
}

pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A whole answer: status line, headers (each ending in CRLF), Content-Length and body.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())
            .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// 200 with a body.
pub fn ok(body: &[u8]) -> Vec<u8> {
    answer("200 OK", "", body)
}

/// A redirect.
pub fn moved(location: &str) -> Vec<u8> {
    answer("302 Found", &format!("Location: {location}\r\n"), b"")
}
