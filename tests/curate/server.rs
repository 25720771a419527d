//! A web server on loopback that answers by path and remembers what it was asked.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What a path answers.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Before the first byte.
    pub delay: Duration,
}

impl Answer {
    pub fn ok(body: Vec<u8>) -> Answer {
        Answer { status: 200, headers: Vec::new(), body, delay: Duration::ZERO }
    }

    pub fn status(status: u16) -> Answer {
        Answer { status, ..Answer::ok(b"no".to_vec()) }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Answer {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn after(self, delay: Duration) -> Answer {
        Answer { delay, ..self }
    }
}

/// A server that runs until the test ends.
#[derive(Clone)]
pub struct Server {
    address: &'static str,
    pub port: u16,
    routes: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<HashMap<String, u64>>>,
    connections: Arc<AtomicU64>,
}

impl Server {
    pub fn start() -> Server {
        Server::start_on("127.0.0.1")
    }

    /// On another address of this machine, which makes it another host.
    pub fn start_on(address: &'static str) -> Server {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let server = Server {
            address,
            port: listener.local_addr().unwrap().port(),
            routes: Arc::default(),
            asked: Arc::default(),
            connections: Arc::default(),
        };
        let shared = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let server = shared.clone();
                thread::spawn(move || server.serve(stream));
            }
        });
        server
    }

    /// Makes `path` answer so; returns its address.
    pub fn route(&self, path: &str, answer: Answer) -> String {
        self.routes.lock().unwrap().insert(path.to_owned(), answer);
        format!("http://{}:{}{path}", self.address, self.port)
    }

    /// Delays every answer by a time that depends on its path and on `seed`.
    pub fn shuffle(&self, seed: u64, most: Duration) {
        for (path, answer) in self.routes.lock().unwrap().iter_mut() {
            let mixed = path.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
            answer.delay = most.mul_f64((mixed >> 40) as f64 / (1_u64 << 24) as f64);
        }
    }

    /// Requests so far, by path.
    pub fn asked(&self) -> HashMap<String, u64> {
        self.asked.lock().unwrap().clone()
    }

    pub fn requests(&self) -> u64 {
        self.asked().values().sum()
    }

    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
            let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
            line.clear();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            line.clear();
            *self.asked.lock().unwrap().entry(path.clone()).or_default() += 1;
            let answer = self.routes.lock().unwrap().get(&path).cloned().unwrap_or_else(|| Answer::status(404));
            thread::sleep(answer.delay);
            let mut head = format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
            for (name, value) in &answer.headers {
                head += &format!("{name}: {value}\r\n");
            }
            if stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(&answer.body)).is_err()
            {
                return;
            }
        }
    }
}
